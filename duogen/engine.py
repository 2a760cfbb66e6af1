"""The interleaved loop: text until the MLLM asks for a picture, the picture, text again, until the end of the turn (DuoGen, section 3).

`Engine.answer` is a generator of events; nothing else talks to the models.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream

from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.events import Done, Event, Failed, ImageDone, ImageStarted, ImageStep, Notice, Stats, TextDelta, Thought
from duogen.hub.catalogue import find
from duogen.hub.load import Costs, opened, planned
from duogen.hub.memory_plan import Plan
from duogen.models import guardrail, thinking
from duogen.models.adapters import Wanted, put_on
from duogen.models.mllm import MLLM, Context
from duogen.models.pipeline import DuoGenPipeline, check_parts, pick_device
from duogen.models.placeholders import OPENING, SYSTEM, Asked, Placeholders
from duogen.models.placement import free, take_turns
from duogen.models.sequence import Packed, Slot, Tokens
from duogen.options import ImageOptions, LoadOptions, Options, scaled
from duogen.painters.cosmos import FramePainter, Frames
from duogen.painters.diffusers import StockPainter, StockPair, is_stock

SMALLEST_SIDE = 256  # smaller pictures are of no use
PROMPT_TOKENS = 256  # of a picture's words, where one is painted anew


@dataclass
class Memory:
    """What the engine keeps between answers: the MLLM's context and the painter's frames, both of the same conversation.

    Attributes:
        said: token ids and slots of the assistant's turns as they were said, by turn id: encoding their text again might cut it into
            other tokens and empty the cache.
    """

    context: Context = field(default_factory=Context)
    frames: Frames = field(default_factory=Frames.empty)
    slots: list[Slot] = field(default_factory=list)
    said: dict[str, Packed] = field(default_factory=dict)


@dataclass
class Reply:
    """One answer in the making."""

    options: Options
    stop: threading.Event
    rng: random.Random
    generator: torch.Generator
    masked: Image | None = None
    started: float = field(default_factory=time.monotonic)
    parts: list[Piece] = field(default_factory=list)
    stream: DecodeStream = field(default_factory=lambda: DecodeStream(skip_special_tokens=True))
    marks: Placeholders | None = None
    waiting: list[str | Asked] = field(default_factory=list)  # said, but not yet shown or painted
    ended: bool = False
    shown: str = ""
    text_tokens: int = 0
    first_text: float = 0.0
    begun: int = 0  # parts that were there before
    question: str = ""

    def images(self) -> int:
        return sum(isinstance(part, Image) for part in self.parts)


class Engine:
    """A pair that is open, and what it remembers of the conversation it last answered."""

    def __init__(self, pair: DuoGenPipeline | StockPair) -> None:
        self.pair = pair
        self.tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
        count = pair.text_encoder.config.text_config.num_hidden_layers
        layers = list(pair.about.layers or range(1, count + 1))
        self.mllm = MLLM(pair.text_encoder, self.tokens, layers, token_dtype=pair.token_dtype)
        self._expect(pair.about.tuned)
        self.painter = StockPainter(pair) if isinstance(pair, StockPair) else FramePainter(pair)
        self.about: dict[str, Any] = asdict(pair.about)
        self.adapters: tuple[Wanted, ...] = ()
        self.plan: Plan | None = None
        self.costs: Costs | None = None  # of a picture; nothing is told or noted without
        self.guard: guardrail.Guardrail | None = None
        self.shrunk = False  # whether memory ran out until pictures had to be smaller
        self.memory = Memory()

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0" ..."""
        return str(self.painter.device)

    @staticmethod
    def open(
        pair: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        progress: Callable[[str], None] | None = None,
        *,
        brain: str | Path | None = None,
        load: LoadOptions | None = None,
        adapters: Sequence[Wanted] = (),
    ) -> Engine:
        """Open a pair: an id of the catalogue, a repository that was downloaded, a folder, or by default the bundled one.

        Args:
            brain: the MLLM of a pipeline that cannot talk.
            load: all choices at once, instead of `device` and `precision`.
            adapters: what fine-tuning made, to be put on it.

        Raises:
            ValueError: one sentence for the user.
        """
        say = progress or (lambda sentence: None)
        found = find(pair, brain, say)
        wishes = load or LoadOptions(device=device, precision=precision)
        pick_device(wishes.device)
        if not is_stock(found.folder):
            check_parts(found.folder)  # what is missing cannot be planned for
        costs, preset = planned(found, wishes)
        if not costs.plan.fits:
            raise ValueError(costs.plan.line())
        say(f"Loading the pair: {costs.plan.line()}")
        engine = Engine(opened(found, costs.plan.load, preset))
        engine.plan = costs.plan = replace(costs.plan, attention=engine.pair.attention)
        engine.costs = costs
        engine.wear(adapters)
        bound = (found.entry is not None and bool(found.entry.licence.guardrail)) or guardrail.wanted(found.folder)
        if bound:
            engine.guard = guardrail.open_guardrail(pick_device(wishes.device))
        unguarded = f" Its licence asks for a guardrail: pip install {guardrail.PACKAGE}" if bound and engine.guard is None else ""
        say(f"Ready: {engine.pair.about.title}.{unguarded}")
        return engine

    def _expect(self, tuned: bool) -> None:
        """Whether the MLLM says BOV itself: the pair came so, or an adapter of stage 1 taught it."""
        self.tuned = self.tokens.tuned = self.mllm.remembers = tuned
        unsaid = [token for token in self.mllm.unsaid if token != self.tokens.bov]
        self.mllm.unsaid = unsaid if tuned else [*unsaid, self.tokens.bov]

    def wear(self, adapters: Sequence[Wanted]) -> None:
        """Change which adapters work, and how strongly; the pair itself stays where it is. What was read so far is forgotten.

        Raises:
            ValueError: one of them does not fit this pair; then none is on.
        """
        if not adapters and not self.adapters:
            return
        if isinstance(self.pair, StockPair):
            raise ValueError("This pair's painter takes no adapters of fine-tuning; open the pair that they were made for.")
        self.memory = Memory()
        try:
            put_on(self.pair, adapters)
        except ValueError:
            put_on(self.pair, ())
            self.adapters = ()
            self._expect(self.pair.about.tuned)
            raise
        self.adapters = tuple(adapters)
        taught = any(each.weight and (each.folder / "text_encoder").is_dir() for each in adapters)
        self._expect(taught or self.pair.about.tuned)

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Iterator[Event]:
        """Answer the user's last turn.

        Args:
            conversation: its head is a user turn.
            stop: set it to stop within one token or one denoising step; what is finished is kept.

        Yields:
            Events; the last one is `Done`, or `Failed` with the conversation as it was before the part that failed.
        """
        yield from self._answer(conversation, (), options, stop or threading.Event())

    def going_on(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Iterator[Event]:
        """Go on with an answer that is there in part, as another answer to the same question.

        Args:
            conversation: its head is an assistant turn, whose parts the new answer begins with.
            stop: as of `answer`.

        Yields:
            Events of what is new; `Done` holds the whole answer.

        Raises:
            ValueError: the head is no assistant turn.
        """
        path = conversation.path()
        if not path or path[-1].role != "assistant":
            raise ValueError("There is no answer to go on with; ask for one first.")
        yield from self._answer(conversation.at(path[-1].parent), path[-1].parts, options, stop or threading.Event())

    def _answer(self, conversation: Conversation, begun: tuple[Piece, ...], options: Options, stop: threading.Event) -> Iterator[Event]:
        """An answer whose first parts are `begun`."""
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)
        reply = Reply(options, stop, random.Random(seed), torch.Generator().manual_seed(seed), parts=list(begun), begun=len(begun))
        try:
            path = conversation.path()
            if not path or path[-1].role != "user":
                raise ValueError("There is nothing to answer; say something first.")
            reply.masked, reply.question = _masked(path), path[-1].text()
            with self._forgetting_failures():
                self.memory.said = {id: said for id, said in self.memory.said.items() if id in conversation.turns}
                prompt = self._prompt(path)
                opened = len(prompt.ids)
                self.tokens.add_parts(prompt, begun, True)
                encoded = self._follow(prompt)
                yield from self._think(reply)
                stopped = yield from self._speak(reply)
        except torch.OutOfMemoryError:
            yield self._failed(conversation, reply, "Memory ran out; make the pictures smaller, or close other programs, and try again.")
            return
        except ValueError as error:
            yield self._failed(conversation, reply, str(error))
            return
        except RuntimeError as error:
            yield self._failed(conversation, reply, f"The pair failed ({str(error).splitlines()[0]}); try again, or open the pair anew.")
            return
        turn = self._turn(path[-1].id, reply, opened)
        done = Conversation({**conversation.turns, turn.id: turn}, turn.id, conversation.id, conversation.title)
        seconds = time.monotonic() - reply.started
        yield Done(done, Stats(len(prompt.ids), encoded, reply.text_tokens, reply.images(), reply.first_text, seconds, stopped))

    def paint_after(self, conversation: Conversation, options: Options) -> Image:
        """The picture that `painting` ends with."""
        *_, last = self.painting(conversation, options)
        return last.image

    def painting(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Iterator[Event]:
        """Paint the picture that comes next in an answer whose words are given: the painter without the talker's choice.

        Args:
            conversation: its head is an assistant turn, unfinished; its pictures that this method painted are not encoded again.
            stop: set it to stop within one denoising step.

        Yields:
            Events of one picture; the last one is `ImageDone`, unless it was stopped.

        Raises:
            ValueError: the head is no assistant turn.
        """
        path = conversation.path()
        if not path or path[-1].role != "assistant":
            raise ValueError("There is no answer to paint for; say the words of one first.")
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)
        generator = torch.Generator().manual_seed(seed)
        reply = Reply(options, stop or threading.Event(), random.Random(seed), generator, _masked(path), parts=list(path[-1].parts))
        prompt = self._prompt(path[:-1])
        self.tokens.add_parts(prompt, path[-1].parts, True)
        with self._forgetting_failures():
            self._follow(prompt)
            yield from self._draw(reply, None if self.tuned else self._words_for_next(reply))

    def _prompt(self, path: list[Turn]) -> Packed:
        """The conversation as ids, the assistant's own turns as they were said, and the opening of the answer."""
        packed = Packed()
        if not self.tuned:
            packed.add([*self.tokens.opening("system"), *self.tokens.text(SYSTEM), *self.tokens.closing()], False)
        for turn in path:
            said = self.memory.said.get(turn.id)
            if said is None:
                self.tokens.add_turn(packed, turn)
                continue
            packed.extend(said)
        packed.add(self.tokens.opening("assistant"), False)
        return packed

    @contextmanager
    def _forgetting_failures(self) -> Iterator[None]:
        """What breaks off in the middle may leave the two models at different places: start afresh then."""
        try:
            yield
        except (Exception, KeyboardInterrupt):
            self.memory = Memory()
            raise

    def _follow(self, packed: Packed) -> int:
        """Make both models' memory that of `packed`, encoding only what is new; returns how many tokens that were."""
        memory = self.memory
        self.pair.turns.talk()
        encoded = self.mllm.prefill(memory.context, packed)
        # A picture stays as it was painted if all before it is the same: its frame has read those words.
        kept = sum(slot.end <= len(packed.ids) - encoded for slot in memory.slots)
        memory.frames.keep(kept, len(packed.ids) - encoded)
        del memory.slots[kept:]
        new = packed.slots[kept:]
        if new:
            self.pair.turns.paint()
        for slot in new:
            condition = memory.context.condition(slot.bov) if self.tuned else None  # an untuned painter remembers pictures alone
            self.painter.remember(memory.frames, self.painter.encode(slot.image.picture), condition, packed.last_segment(slot.bov))
            memory.slots.append(slot)
        if new:
            self.pair.turns.talk()
        return encoded

    def _think(self, reply: Reply) -> Iterator[Event]:
        """Thoughts before the answer, if they are wanted."""
        if not reply.options.text.think or reply.begun:
            return
        if not self.pair.about.thinks:
            raise ValueError("This pair was never taught to think before it answers; switch Think off.")
        context, thoughts, stream = self.memory.context, thinking.Thoughts(), DecodeStream(skip_special_tokens=True)
        self._put(thinking.OPENING)
        for count, token in enumerate(self.mllm.talk(context, reply.options.text, reply.generator)):
            if token in (self.tokens.bov, self.tokens.end) or count >= thinking.MOST_TOKENS or reply.stop.is_set():
                break
            text = stream.step(self.pair.tokenizer.backend_tokenizer, token)
            if said := thoughts.feed(text or ""):
                yield Thought(said)
            if thoughts.over:
                self.mllm.append(context, token)
                break
        self._put("\n\n" if thoughts.over else f"{thinking.CLOSING}\n\n")

    def _put(self, words: str) -> None:
        """Words into the MLLM's mouth, which it goes on from."""
        for token in self.tokens.text(words):
            self.mllm.append(self.memory.context, token)

    def _speak(self, reply: Reply) -> Iterator[Event]:
        """Words and pictures in turn; returns why it ended."""
        reply.marks = None if self.tuned else Placeholders()
        while True:
            asked, why = yield from self._talk(reply)
            self._flush(reply)
            if why:
                return why
            if reply.images() >= reply.options.image.max_images:
                return "max_images"
            finished = yield from self._draw(reply, asked)
            if not finished:
                return "user"

    def _talk(self, reply: Reply) -> Iterator[Event]:
        """Words until a picture is due or the answer ends; returns the wish for a picture (of an untuned pair) and why it ended."""
        context, limits = self.memory.context, reply.options.text
        asked = yield from self._show(reply)
        if asked or reply.ended:
            return asked, "" if asked else "end"
        for token in self.mllm.talk(context, limits, reply.generator):
            if token == self.tokens.bov:
                return None, ""
            if token == self.tokens.end:
                break
            reply.text_tokens += 1
            asked = yield from self._words(reply, token)
            full = reply.text_tokens >= limits.max_tokens
            if asked or full or reply.stop.is_set():
                self.mllm.append(context, token)  # said, so it must be read
                return asked, "" if asked else "user" if reply.stop.is_set() else "max_tokens"
        reply.ended = True
        if reply.marks:
            reply.waiting += reply.marks.close()
        asked = yield from self._show(reply)
        return asked, "" if asked else "end"

    def _words(self, reply: Reply, token: int) -> Iterator[Event]:
        """Words as soon as they are whole: a token may end in the middle of a character. Returns a wish for a picture that came up."""
        text = reply.stream.step(self.pair.tokenizer.backend_tokenizer, token)
        if not text:
            return None
        reply.waiting += reply.marks.feed(text) if reply.marks else [text]
        return (yield from self._show(reply))

    def _show(self, reply: Reply) -> Iterator[Event]:
        """Show words that wait, up to the first wish for a picture, which is returned."""
        while reply.waiting:
            piece = reply.waiting.pop(0)
            if isinstance(piece, Asked):
                return piece
            if not reply.first_text:
                reply.first_text = time.monotonic() - reply.started
            yield TextDelta(piece)
            reply.shown += piece
        return None

    def _words_for_next(self, reply: Reply) -> Asked:
        """An untuned MLLM writes the words of the picture that comes next."""
        context, marks, stream = self.memory.context, Placeholders(), DecodeStream(skip_special_tokens=True)
        marks.feed(OPENING)
        self._put(OPENING)
        for count, token in enumerate(self.mllm.talk(context, reply.options.text, reply.generator)):
            if token == self.tokens.end or count >= PROMPT_TOKENS or reply.stop.is_set():
                break
            text = stream.step(self.pair.tokenizer.backend_tokenizer, token)
            found = marks.feed(text) if text else []
            if asked := next((piece for piece in found if isinstance(piece, Asked)), None):
                self.mllm.append(context, token)
                return asked
        return next(piece for piece in marks.close() if isinstance(piece, Asked))

    def _flush(self, reply: Reply) -> None:
        """Close the running piece of text."""
        if reply.shown:
            before = reply.parts.pop().text if reply.parts and isinstance(reply.parts[-1], Text) else ""  # of an answer that goes on
            reply.parts.append(Text(before + reply.shown))
        reply.stream, reply.shown = DecodeStream(skip_special_tokens=True), ""

    def _draw(self, reply: Reply, asked: Asked | None = None) -> Iterator[Event]:
        """Paint one picture and show it to both models; returns False when the user stopped it.

        `asked` is the wish of an untuned pair: the painter reads its words alone.
        """
        memory, options, index = self.memory, reply.options.image, reply.images()
        masked = reply.masked if index == 0 else None  # what comes next is a new picture
        asked = asked and self._worded(asked, reply)
        if self.guard:
            self.guard.read(asked.prompt if asked else _last_line(reply) or reply.question)
        condition, segment = self._brief(asked)
        self.pair.turns.paint()
        self.painter.fill_cache(memory.frames)  # of the pictures before: not part of what this one takes
        if self.shrunk and options.side > max(self.pair.about.image_size):
            options = replace(options, side=0)
        retouch = self.painter.retouch(masked.picture, masked.mask, options.side) if masked else None
        seed = reply.rng.randrange(2**31)
        yield ImageStarted(index, seed, options.steps, self._expected(options))
        begun = time.monotonic()
        made = yield from self._painted(reply, index, (condition, segment, options, seed, retouch))
        if made is None:
            return False
        latents, plain = made
        picture = plain
        if self.guard:
            picture = self.guard.look(picture)
        if masked:
            picture = self.painter.laid_in(picture, masked.picture, masked.mask)
        if picture is not plain:
            latents = self.painter.encode(picture, plain.size)
        image = Image(picture, seed, time.monotonic() - begun, alt=asked.prompt if asked else _last_line(reply))
        if self.costs:
            self.costs.note(image.seconds, options)
        yield ImageDone(index, image)
        reply.parts.append(image)
        self.painter.remember(memory.frames, latents, condition, segment)
        self.pair.turns.talk()
        packed = memory.context.packed.between(0)
        self.tokens.add_image(packed, image, True)
        self.mllm.prefill(memory.context, packed)
        memory.slots.append(packed.slots[-1])
        return True

    def _painted(self, reply: Reply, index: int, given: tuple[Any, ...]) -> Iterator[Event]:
        """A picture's steps; returns its latents and pixels, `None` when the user stopped it.

        When memory runs out it is begun again, once, in a way that needs less.
        """
        (*brief, options, seed, retouch), lighter = given, ""
        while True:
            latents = None
            try:
                for painted in self.painter.paint(self.memory.frames, *brief, options, seed, retouch):
                    latents = painted.latents
                    if reply.stop.is_set():
                        return None
                    yield ImageStep(index, painted.step, options.steps, self._preview(painted.step, latents, options))
                return latents, self.painter.decode(latents)
            except torch.OutOfMemoryError:
                if lighter or not (lighter := self._lighter(options.side)):
                    raise
            latents = painted = None
            free()
            yield Notice(lighter)
            options = replace(options, side=0) if self.shrunk else options
            retouch = self.painter.retouch(reply.masked.picture, reply.masked.mask, options.side) if retouch is not None else None

    def _expected(self, options: ImageOptions) -> float:
        """Seconds that a picture will take, 0 where nobody knows. Raises ValueError, before it is begun, when it would not fit."""
        if self.costs is None:
            return 0.0
        size = self.pair.about.picture_size(options.side)
        self.costs.check(options, size)
        return self.costs.seconds(options, size)

    def _lighter(self, side: int) -> str:
        """Step down: tiles, then turns on the card, then pictures smaller than the ones of this `side`.

        Returns:
            What was done, in one sentence; "" for nothing more.
        """
        self.costs = None
        pair, vae = self.pair, getattr(self.pair, "vae", None) or getattr(getattr(self.pair, "pipe", None), "vae", None)
        if hasattr(vae, "enable_tiling") and not getattr(vae, "use_tiling", True):
            vae.enable_tiling()
            return "Memory ran out, so pictures are made in tiles from now on."
        if take_turns(pair):
            return "Memory ran out, so the parts of the pair take turns on the card from now on, which is slower."
        size = scaled(pair.about.image_size, (side or max(pair.about.image_size)) * 3 // 4)
        if max(size) < SMALLEST_SIDE or not pair.about.any_size:
            return ""
        pair.about = self.painter.about = replace(pair.about, image_size=size)
        self.about, self.shrunk = asdict(pair.about), True
        return f"Memory ran out, so pictures have {size[0]} x {size[1]} pixels from now on."

    def _brief(self, asked: Asked | None) -> tuple[Any, int]:
        """What the painter reads for the next picture, and where in it the latest words begin."""
        if asked is None:
            context = self.memory.context
            return context.condition(), context.packed.last_segment(len(context.packed.ids))
        return (asked, 0) if self.painter.reads_words else self.mllm.alone(asked.prompt)

    def _worded(self, asked: Asked, reply: Reply) -> Asked:
        """A wish without words means what was said last, or what was asked."""
        return asked if asked.prompt else replace(asked, prompt=_last_line(reply) or reply.question or "A picture.")

    def _preview(self, step: int, latents: torch.Tensor, options: ImageOptions) -> Any:
        wanted = options.preview_every and step % options.preview_every == 0 and step < options.steps
        return self.painter.decode(latents) if wanted and latents is not None else None

    def _turn(self, parent: str, reply: Reply, opened: int) -> Turn:
        """The finished turn; its ids as they were said are kept for the next answer. `opened` is where its opening ends."""
        turn = Turn("assistant", tuple(reply.parts), parent=parent)
        opening = len(self.tokens.opening("assistant"))
        said = self.memory.context.packed.between(opened - opening)
        said.add(self.tokens.closing(), True)
        self.memory.said[turn.id] = said
        return turn

    def _failed(self, conversation: Conversation, reply: Reply, message: str) -> Failed:
        """What was finished before the failed part is kept as a turn."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        finished = list(reply.parts)
        while finished and isinstance(finished[-1], Text):
            finished.pop()
        return Failed(message, conversation.say("assistant", *finished) if len(finished) > reply.begun else conversation)


def _last_line(reply: Reply) -> str:
    """The last words before a picture, which describe it."""
    said = next((part.text for part in reversed(reply.parts) if isinstance(part, Text)), "").strip()
    return said.splitlines()[-1] if said else ""


def _masked(path: list[Turn]) -> Image | None:
    """The picture of the last question that may change inside its mask only."""
    asked = next((turn for turn in reversed(path) if turn.role == "user"), None)
    return next((image for image in reversed(asked.images()) if image.mask), None) if asked else None
