"""The interleaved loop: text until the MLLM asks for a picture, the picture, text again, until the end of the turn (DuoGen, section 3).

`Engine.answer` is a generator of events; nothing else talks to the models.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers.decoders import DecodeStream

from duogen.adapters import Wanted, put_on
from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.events import Done, Event, Failed, ImageDone, ImageStarted, ImageStep, Stats, TextDelta
from duogen.mllm import MLLM, Context
from duogen.options import ImageOptions, Options
from duogen.painter import FramePainter, Frames
from duogen.pipeline import DuoGenPipeline, open_pair
from duogen.sequence import Packed, Slot, Tokens


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
    shown: str = ""
    text_tokens: int = 0
    first_text: float = 0.0
    begun: int = 0  # parts that were there before

    def images(self) -> int:
        return sum(isinstance(part, Image) for part in self.parts)


class Engine:
    """A pair that is open, and what it remembers of the conversation it last answered."""

    def __init__(self, pair: DuoGenPipeline) -> None:
        self.pair = pair
        self.tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
        count = pair.text_encoder.config.text_config.num_hidden_layers
        layers = list(pair.about.layers or range(1, count + 1))
        self.mllm = MLLM(pair.text_encoder, self.tokens, layers)
        self.painter = FramePainter(pair)
        self.about: dict[str, Any] = asdict(pair.about)
        self.adapters: tuple[Wanted, ...] = ()
        self.memory = Memory()

    @property
    def device(self) -> str:
        """Where it computes: "cpu", "cuda:0" ..."""
        return str(self.painter.device)

    @staticmethod
    def open(
        pair: str | Path | None = None, device: str = "auto", precision: str = "auto", progress: Callable[[str], None] | None = None,
        adapters: Sequence[Wanted] = (),
    ) -> Engine:  # fmt: skip
        """Open a pair: a folder, or by default the bundled one, which is assembled on first use; and put `adapters` on it.

        Raises:
            ValueError: one sentence for the user.
        """
        from duogen.assemble import ready_pair

        say = progress or (lambda sentence: None)
        folder = ready_pair(pair, say)
        say("Loading the pair ...")
        engine = Engine(open_pair(folder, device, precision))
        engine.wear(adapters)
        say(f"Ready: {engine.pair.about.title}.")
        return engine

    def wear(self, adapters: Sequence[Wanted]) -> None:
        """Change which adapters work, and how strongly; the pair itself stays where it is. What was read so far is forgotten.

        Raises:
            ValueError: one of them does not fit this pair; then none is on.
        """
        if not adapters and not self.adapters:
            return
        self.memory = Memory()
        try:
            put_on(self.pair, adapters)
        except ValueError:
            put_on(self.pair, ())
            self.adapters = ()
            raise
        self.adapters = tuple(adapters)

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
            reply.masked = _masked(path)
            with self._forgetting_failures():
                self.memory.said = {id: said for id, said in self.memory.said.items() if id in conversation.turns}
                prompt = self._prompt(path)
                opened = len(prompt.ids)
                self._add_parts(prompt, begun)
                encoded = self._follow(prompt)
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
        self._add_parts(prompt, path[-1].parts)
        with self._forgetting_failures():
            self._follow(prompt)
            yield from self._draw(reply)

    def _prompt(self, path: list[Turn]) -> Packed:
        """The conversation as ids, the assistant's own turns as they were said, and the opening of the answer."""
        packed = Packed()
        for turn in path:
            said = self.memory.said.get(turn.id)
            if said is None:
                self.tokens.add_turn(packed, turn)
                continue
            packed.extend(said)
        packed.add(self.tokens.opening("assistant"), False)
        return packed

    def _add_parts(self, prompt: Packed, parts: tuple[Piece, ...]) -> None:
        """Of an answer that is under way."""
        for part in parts:
            if isinstance(part, Text):
                prompt.add(self.tokens.text(part.text), True)
            else:
                self.tokens.add_image(prompt, part, True)

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
        encoded = self.mllm.prefill(memory.context, packed)
        # A picture stays as it was painted if all before it is the same: its frame has read those words.
        kept = sum(slot.end <= len(packed.ids) - encoded for slot in memory.slots)
        memory.frames.keep(kept)
        del memory.slots[kept:]
        for slot in packed.slots[kept:]:
            self.painter.remember(
                memory.frames, self.painter.encode(slot.image.picture), memory.context.condition(slot.bov), packed.last_segment(slot.bov)
            )
            memory.slots.append(slot)
        return encoded

    def _speak(self, reply: Reply) -> Iterator[Event]:
        """Words and pictures in turn; returns why it ended."""
        memory, limits = self.memory, reply.options
        while True:
            token = None
            for token in self.mllm.talk(memory.context, limits.text, reply.generator):
                if token in (self.tokens.bov, self.tokens.end):
                    break
                reply.text_tokens += 1
                yield from self._words(reply, token)
                if reply.stop.is_set() or reply.text_tokens >= limits.text.max_tokens:
                    self.mllm.append(memory.context, token)  # said, so it must be read
                    break
            self._flush(reply)
            if token == self.tokens.bov:
                if reply.images() >= limits.image.max_images:
                    return "max_images"
                finished = yield from self._draw(reply)
                if not finished:
                    return "user"
            elif token == self.tokens.end:
                return "end"
            else:
                return "user" if reply.stop.is_set() else "max_tokens"

    def _words(self, reply: Reply, token: int) -> Iterator[Event]:
        """Words as soon as they are whole: a token may end in the middle of a character."""
        text = reply.stream.step(self.pair.tokenizer.backend_tokenizer, token)
        if not text:
            return
        if not reply.first_text:
            reply.first_text = time.monotonic() - reply.started
        yield TextDelta(text)
        reply.shown += text

    def _flush(self, reply: Reply) -> None:
        """Close the running piece of text."""
        if reply.shown:
            before = reply.parts.pop().text if reply.parts and isinstance(reply.parts[-1], Text) else ""  # of an answer that goes on
            reply.parts.append(Text(before + reply.shown))
        reply.stream, reply.shown = DecodeStream(skip_special_tokens=True), ""

    def _draw(self, reply: Reply) -> Iterator[Event]:
        """Paint one picture and show it to both models; returns False when the user stopped it."""
        memory, options, index = self.memory, reply.options.image, reply.images()
        masked = reply.masked if index == 0 else None  # what comes next is a new picture
        retouch = self.painter.retouch(masked.picture, masked.mask) if masked else None
        seed = reply.rng.randrange(2**31)
        yield ImageStarted(index, seed, options.steps)
        begun = time.monotonic()
        bov = len(memory.context.packed.ids)
        condition = memory.context.condition()
        segment = memory.context.packed.last_segment(bov)
        latents = None
        for painted in self.painter.paint(memory.frames, condition, segment, options, seed, retouch):
            latents = painted.latents
            if reply.stop.is_set():
                return False
            yield ImageStep(index, painted.step, options.steps, self._preview(painted.step, latents, options))
        picture = self.painter.decode(latents)
        if masked:
            picture = self.painter.laid_in(picture, masked.picture, masked.mask)
            latents = self.painter.encode(picture)
        said = next((part.text for part in reversed(reply.parts) if isinstance(part, Text)), "")
        image = Image(picture, seed, time.monotonic() - begun, alt=said.strip().splitlines()[-1] if said.strip() else "")
        yield ImageDone(index, image)
        reply.parts.append(image)
        packed = memory.context.packed.between(0)
        self.tokens.add_image(packed, image, True)
        self.mllm.prefill(memory.context, packed)
        self.painter.remember(memory.frames, latents, condition, segment)
        memory.slots.append(packed.slots[-1])
        return True

    def _preview(self, step: int, latents: torch.Tensor, options: ImageOptions) -> Any:
        wanted = options.preview_every and step % options.preview_every == 0 and step < options.steps
        return self.painter.decode(latents) if wanted else None

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


def _masked(path: list[Turn]) -> Image | None:
    """The picture of the last question that may change inside its mask only."""
    asked = next((turn for turn in reversed(path) if turn.role == "user"), None)
    return next((image for image in reversed(asked.images()) if image.mask), None) if asked else None
