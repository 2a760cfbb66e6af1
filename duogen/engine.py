"""The interleaved loop (DuoGen, section 3): words, a picture when the MLLM asks for one, words again, until the end of the turn.

`Engine.answer` is a generator of events. Page, command line and tests use nothing else. In pseudo-code:

    ids = pack(conversation)
    mllm.prefill(ids)                        # only what is new since the last answer
    loop:
        for token in mllm.generate():        # every token's hidden state is kept
            if token is BOV: break           # the MLLM asks for a picture
            if token is END: yield Done; return
            yield TextDelta(token)
        states = hidden states of all words so far
        for step in painter.paint(frames, states):
            yield ImageStep(step)            # a denoising step
        yield ImageDone(picture)
        painter.remember(picture)            # its keys and values serve every later picture
        mllm.prefill(picture)                # through the vision tower

An MLLM that was never taught BOV writes `<picture>words</picture>` instead, and its painter reads those words (`models.placeholders`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from tokenizers.decoders import DecodeStream

from duogen.approved import CANNOT_POINT, FILLS_ALL, NOT_FOUND, describe_place, find_approval, find_shown, mask_rest, reword
from duogen.conversation import REFERENCE, SOURCE, Conversation, Image, Piece, Text, Turn
from duogen.critic import PictureTry, look_again, open_critic
from duogen.draft_plan import NO_PLAN, plan_drafts
from duogen.events import Done, Draft, Event, Events, Failed, ImageDone, ImageStarted, ImageStep, Notice, Stats, TextDelta, Thought
from duogen.faults import report_fault
from duogen.files import DISK_FULL
from duogen.grounding import Box, find_boxes
from duogen.heaps import return_memory
from duogen.hub.catalogue import Found, find
from duogen.hub.load import Costs, is_guarded, open_planned, plan_pair
from duogen.hub.memory_plan import Plan
from duogen.ideas import IdeasProgress, IdeasRequest, find_ideas, make_ideas
from duogen.mentions import spell_out
from duogen.models import guardrail, thinking
from duogen.models.adapters import AdapterSpec, read_about, set_adapters
from duogen.models.mllm import MLLM, Context
from duogen.models.picture_marks import PictureRequest
from duogen.models.pipeline import DuoGenPipeline, check_parts, pick_devices
from duogen.models.pipeline_loras import set_loras
from duogen.models.placeholders import BLIND_SYSTEM, OPENING, SYSTEM, Placeholders, find_open_fence, mark_picture
from duogen.models.placement import free, swap_devices
from duogen.models.sequence import Packed, Slot, Tokens, find_start
from duogen.options import ImageOptions, LoadOptions, Options, scale_size
from duogen.painters.base import Frames, Painter, PaintRequest
from duogen.painters.cosmos import CosmosPainter
from duogen.painters.diffusers import DiffusersPainter, DiffusersPair, is_diffusers_pipeline
from duogen.painters.masks import Transform, apply_transform, fit, keep_places, keep_unchanged
from duogen.picture_roles import arrange_turn, describe_roles, number_turn, order_sources
from duogen.prompts import THOUGHT, fill_prompt
from duogen.provenance import Origin
from duogen.vision_qa import MLLMVisionQA

SMALLEST_SIDE = 256  # smaller pictures are of no use
BLIND = "This painter cannot see pictures; the language model sees yours and describes it to the painter in words."
TOO_FEW = "This painter sees {most} of the pictures that you named; the language model describes the others to it in words."
NO_SYSTEM_PROMPT = "The language model of this pair was never taught to follow a system prompt, so yours is left out."
CANNOT_WORD = "The language model of this pair cannot word a change; leave the words empty, and the pair goes by the pictures."
CHANGE_TOKENS = 96  # of a change in words
PROMPT_TOKENS = 256  # of a picture's words, where one is painted anew
MOST_TOKENS = 32_768  # that an MLLM reads, whatever its configuration allows: time and memory grow with them
SHORTEST_ANSWER = 32  # tokens that must remain for an answer


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
    waiting: list[str | PictureRequest | Thought] = field(default_factory=list)  # said, but not yet shown or painted
    ended: bool = False
    shown: str = ""
    text_tokens: int = 0
    counted_tokens: int = 0  # of them those that `max_tokens` counts: all but the words of requests for pictures
    first_text: float = 0.0
    begun: int = 0  # parts that were there before
    opening: int = 0  # token at which the parts begin
    versions: list[tuple[int, Image]] = field(default_factory=list)  # tries that were not chosen, and the parts that they are tries of
    question: str = ""
    named: tuple[list[int], list[int]] = ([], [])  # as of `Prompt`
    drafts: list[Image] = field(default_factory=list)  # those so far, each with its words as `alt`
    drafted: Image | None = None  # the latest draft, until it is shown as the picture

    def images(self) -> int:
        return len(self.pictures())

    def pictures(self) -> list[Image]:
        return [part for part in self.parts if isinstance(part, Image)]


@dataclass(frozen=True)
class Prompt:
    """What is read before an answer goes on.

    Attributes:
        packed: the conversation, and the beginning of the answer.
        answer: index at which the answer begins, after its opening.
        notice: what of the conversation is left out, in one sentence; "" for nothing.
        named: as of `order_sources`, the numbers of the pictures that the question names, among those that are read.
        question: its words as they are read.
    """

    packed: Packed
    answer: int
    notice: str
    named: tuple[list[int], list[int]]
    question: str


class Painting(NamedTuple):
    """A painted picture; `stays` and `transform` are those of `PaintStep`."""

    latents: Any
    picture: PILImage.Image
    stays: torch.Tensor | None
    transform: Transform | None


class Engine:
    """A pair that is open, and what it remembers of the conversation it last answered."""

    def __init__(self, pair: DuoGenPipeline | DiffusersPair) -> None:
        self.pair = pair
        self.tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
        config = pair.text_encoder.config.text_config
        self.most_tokens = min(config.max_position_embeddings, MOST_TOKENS)
        layers = list(pair.about.layers or range(1, config.num_hidden_layers + 1))
        self.mllm = MLLM(pair.text_encoder, self.tokens, layers, token_dtype=pair.token_dtype)
        self._set_tuned(pair.about.tuned)
        self.painter: Painter = DiffusersPainter(pair) if isinstance(pair, DiffusersPair) else CosmosPainter(pair)
        self.about: dict[str, Any] = asdict(pair.about)
        self.adapters: tuple[AdapterSpec, ...] = ()
        self.found: Found | None = None  # where the pair came from, if it was opened by its name
        self.plan: Plan | None = None
        self.costs: Costs | None = None  # of a picture; without it no times are estimated or recorded
        self.guard: guardrail.Guardrail | None = None
        self.shrunk = False  # whether memory ran out until pictures had to be smaller
        self._set_follows(())
        self.memory = Memory()

    @property
    def device(self) -> str:
        """Where it paints: "cpu", "cuda:0" ..."""
        return str(self.painter.device)

    @property
    def devices(self) -> list[str]:
        """Where it computes: the MLLM's device, if that is another one, and the painter's."""
        return [*([self.pair.swapper.mllm_device] if self.pair.swapper.mllm_device else []), self.device]

    @staticmethod
    def open(
        pair: str | Path | None = None,
        device: str = "auto",
        precision: str = "auto",
        progress: Callable[[str], None] | None = None,
        *,
        mllm: str | Path | None = None,
        load: LoadOptions | None = None,
        adapters: Sequence[AdapterSpec] = (),
    ) -> Engine:
        """Open a pair: an id of the catalogue, a repository that was downloaded, a folder, or by default the bundled one.

        Args:
            mllm: the MLLM of a pipeline that cannot talk.
            load: all choices at once, instead of `device` and `precision`.
            adapters: what fine-tuning made, or other tools' LoRA files, to be put on it.

        Raises:
            ValueError: one sentence for the user.
        """
        say = progress or (lambda sentence: None)
        found = find(pair, mllm, say)
        requested = load or LoadOptions(device=device, precision=precision)
        _, device = pick_devices(requested.device)
        if not is_diffusers_pipeline(found.folder):
            check_parts(found.folder)  # what is missing cannot be planned for
        costs, preset = plan_pair(found, requested)
        if not costs.plan.fits:
            raise ValueError(costs.plan.line())
        say(f"Loading the pair: {costs.plan.line()}")
        engine = Engine(open_planned(found, costs.plan.load, preset))
        engine.plan = costs.plan = replace(costs.plan, attention=engine.pair.attention)
        engine.costs, engine.found = costs, found
        engine.set_adapters(adapters)
        bound = is_guarded(found)
        if bound:
            engine.guard = guardrail.open_guardrail(device)
        unguarded = f" Its licence asks for a guardrail: pip install {guardrail.PACKAGE}" if bound and engine.guard is None else ""
        say(f"Ready: {engine.pair.about.title}.{unguarded}")
        return engine

    def _set_tuned(self, tuned: bool) -> None:
        """Set whether the MLLM writes BOV itself: the pair came so, or an adapter of stage 1 trained it."""
        self.tuned = self.tokens.tuned = self.mllm.remembers = tuned
        unsaid = [token for token in self.mllm.unsaid if token != self.tokens.bov]
        self.mllm.unsaid = unsaid if tuned else [*unsaid, self.tokens.bov]

    def _set_follows(self, adapters: Sequence[AdapterSpec]) -> None:
        """Set whether the painter paints the next frame: the pair came so, or an adapter of stage 2 trained it."""
        if isinstance(self.painter, CosmosPainter):
            has_stage_two = any(each.changes("transformer") for each in adapters)
            self.painter.follows = self.pair.about.tuned or has_stage_two

    def set_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """Change which adapters work, and how strongly; the pair itself stays where it is. What was read so far is forgotten.

        Raises:
            ValueError: one of them does not fit this pair; then none is on.
        """
        if not adapters and not self.adapters:
            return
        self.memory = Memory()
        try:
            self._place_adapters(adapters)
        except ValueError:
            self._place_adapters(())
            self.adapters = ()
            self._set_tuned(self.pair.about.tuned)
            self._set_follows(())
            raise
        self.adapters = tuple(adapters)
        has_stage_one = any(each.changes("text_encoder") for each in adapters)
        self._set_tuned(has_stage_one or self.pair.about.tuned)
        self._set_follows(adapters)

    def _place_adapters(self, adapters: Sequence[AdapterSpec]) -> None:
        """Make `adapters` those that work in the pair. Raises ValueError: one does not fit; those before it may be on."""
        for each in adapters:
            each.check()
            base = "" if each.is_lora_file else str(read_about(each.path)["base"])
            if isinstance(self.pair, DiffusersPair) and not each.is_lora_file:
                base = base or "another pair"
                raise ValueError(f"The adapter {each.path} was made for {base}; this pair's painter takes LoRA files only.")
            if self.found is not None and self.found.is_other_than(base):
                raise ValueError(f"The adapter {each.path} was made for {base}; open that pair.")
        if not isinstance(self.pair, DiffusersPair):
            set_adapters(self.pair, adapters)
            return
        set_loras(self.pair.pipe, {each.path: each.weight for each in adapters})

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events:
        """Answer the user's last turn.

        Args:
            conversation: its head is a user turn.
            stop: set it to stop within one token or one denoising step; what is finished is kept.

        Yields:
            Events; the last one is `Done`, or `Failed` with the conversation as it was before the part that failed, whatever was raised.
        """
        stop = stop or threading.Event()
        path = conversation.path()
        request = find_ideas(path[-1].text()) if path and path[-1].role == "user" else None
        if request and options.image.max_images > 1:
            answered = yield from self._answer_ideas(conversation, request, (), options, stop)
            if answered:
                return
        yield from self._answer(conversation, (), options, stop)

    def continue_answer(self, conversation: Conversation, options: Options, stop: threading.Event | None = None) -> Events:
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
        asked, begun, stop = conversation.at(path[-1].parent), path[-1], stop or threading.Event()
        request = find_ideas(asked.path()[-1].text()) if begun.ideas and begun.parent else None
        if request:
            yield from self._answer_ideas(asked, request, begun.parts, options, stop)
        else:
            yield from self._answer(asked, begun.parts, options, stop)

    def _answer_ideas(
        self, conversation: Conversation, request: IdeasRequest, begun: tuple[Piece, ...], options: Options, stop: threading.Event
    ) -> Generator[Event, None, bool]:
        """An answer of several ideas, whose first ones are `begun`; returns False where the pair answers without a picture.

        A trained pair is asked for each idea in a conversation of its own, since it would go on from the pictures that are there.
        """
        started, question = time.monotonic(), conversation.path()[-1]
        request = replace(request, count=min(request.count, options.image.max_images))
        seed = choose_seed(options)
        made, before = IdeasProgress(list(begun)), conversation.at(None if self.tuned else question.parent)

        def answer(words: str, tried: Options) -> Events:
            return self._answer(before.say("user", *question.images(), words), (), tried, stop)

        yield from make_ideas(request, self.tuned, made, replace(options, seed=seed), stop, answer)
        if made.pictureless and not made.parts and not stop.is_set():
            return False
        turn = Turn("assistant", tuple(made.parts), parent=question.id, ideas=True)
        versions = tuple(turn.with_image(at, image) for at, image in made.others)
        turns = conversation.turns | {each.id: each for each in (*versions, turn)}
        done = Conversation(turns, turn.id, conversation.id, conversation.title)
        if made.failure:
            yield Failed(made.failure, done if len(made.parts) > len(begun) else conversation)
            return True
        read = len(self.memory.context.packed.ids)
        said, images = sum(len(self.tokens.text(part.text)) for part in made.parts if isinstance(part, Text)), len(made.pictures())
        stopped = "user" if stop.is_set() else "end"
        yield Done(done, Stats(read, read, said, images, 0.0, time.monotonic() - started, stopped), versions)
        return True

    def _answer(self, conversation: Conversation, begun: tuple[Piece, ...], options: Options, stop: threading.Event) -> Events:
        """An answer whose first parts are `begun`."""
        seed = choose_seed(options)
        reply = Reply(options, stop, random.Random(seed), torch.Generator().manual_seed(seed), parts=list(begun), begun=len(begun))
        try:
            path = conversation.path()
            if not path or path[-1].role != "user":
                raise ValueError("There is nothing to answer; say something first.")
            path, reply.masked = self._find_approved(path, begun, stop)
            with return_memory(), self._forget_on_failure():
                self.memory.said = {id: said for id, said in self.memory.said.items() if id in conversation.turns}
                prompt = self._prompt(path, begun, options)
                reply.question, reply.named = prompt.question, prompt.named
                yield from map(Notice, self._list_notices(path[-1], prompt, options))
                encoded, reply.opening = self._read_prompt(prompt.packed), prompt.answer
                yield from self._think(reply)
                yield from self._draft(reply)
                stopped = yield from self._generate_parts(reply)
                turn = self._make_turn(path[-1].id, reply, prompt.answer)
        except Exception as error:  # an MLLM and a painter raise whatever their libraries raise
            yield self._make_failure(conversation, reply, error)
            return
        versions = tuple(turn.with_image(at, image) for at, image in reply.versions)
        turns = conversation.turns | {each.id: each for each in (*versions, turn)}
        done = Conversation(turns, turn.id, conversation.id, conversation.title)
        seconds, read = time.monotonic() - reply.started, len(prompt.packed.ids)
        yield Done(done, Stats(read, encoded, reply.text_tokens, reply.images(), reply.first_text, seconds, stopped), versions)

    def _list_notices(self, asked: Turn, prompt: Prompt, options: Options) -> Iterator[str]:
        """What of a question has no effect, a sentence each."""
        if prompt.notice:
            yield prompt.notice
        if self.tuned and options.text.system_prompt.strip():
            yield NO_SYSTEM_PROMPT
        if self.tuned:
            return
        if not self.painter.takes_pictures(options.image):
            yield from [BLIND] * bool(asked.images())
        elif sum(map(len, prompt.named)) > (most := self.pair.about.most_sources):
            yield TOO_FEW.format(most=most)

    def generate_image(self, conversation: Conversation, options: Options) -> Image:
        """The picture that `stream_image` ends with.

        Raises:
            ValueError: the head is no assistant turn, or the picture failed; one sentence for the user.
        """
        *_, event = self.stream_image(conversation, options)
        if isinstance(event, ImageDone):
            return event.image
        raise ValueError(event.message if isinstance(event, Failed) else "The picture was not finished.")

    def stream_image(
        self, conversation: Conversation, options: Options, stop: threading.Event | None = None, drafts: tuple[str, ...] = ()
    ) -> Events:
        """Paint the next picture of an answer whose words are given. The MLLM decides nothing here.

        Args:
            conversation: its head is an assistant turn, unfinished; its pictures that this method painted are not encoded again.
            stop: set it to stop within one denoising step.
            drafts: the words of the drafts that the picture is painted by, the `alt` of those that its `Image` holds; none to paint it
                at once.

        Yields:
            Events of one picture; the last one is `ImageDone`, or `Failed` with the conversation as it was before the answer, whatever was
            raised; neither where it was stopped.

        Raises:
            ValueError: the head is no assistant turn.
        """
        path = self._separate_idea(conversation.path())
        if not path or path[-1].role != "assistant":
            raise ValueError("There is no answer to paint for; say the words of one first.")
        seed = choose_seed(options)
        generator = torch.Generator().manual_seed(seed)
        reply = Reply(options, stop or threading.Event(), random.Random(seed), generator, parts=list(path[-1].parts))
        try:
            question, reply.masked = self._find_approved(path[:-1], path[-1].parts, reply.stop)
            path = [*question, path[-1]]
            with return_memory(), self._forget_on_failure():
                plan, drafts = ((), drafts) if self.tuned else (drafts, ())
                prompt = self._prompt(path[:-1], _end_with_picture(path[-1].parts) if drafts else path[-1].parts, options)
                if prompt.notice:
                    yield Notice(prompt.notice)
                self._read_prompt(prompt.packed)
                reply.opening, reply.named = prompt.answer, prompt.named
                if drafts:
                    yield from self._draft_again(reply, drafts)
                    return
                asked = None if self.tuned else PictureRequest(" ".join(plan)) if plan else self._write_prompt(reply)
                yield from self._add_picture(reply, asked, plan=plan)
        except Exception as error:  # as of `_answer`
            reply.begun = len(reply.parts)
            yield self._make_failure(conversation.at(path[-1].parent), reply, error)

    def _find_approved(self, path: list[Turn], begun: Sequence[Piece], stop: threading.Event) -> tuple[list[Turn], Image | None]:
        """The turns up to a question as they are read, and the picture that may change inside its mask only, `None` for none.

        Where the question approves a part of a picture, all but that part may change: what its mask leaves out, else where the MLLM
        sees it.

        Args:
            begun: the first parts of the answer; after a first picture nothing is kept.

        Raises:
            ValueError: the part is not found, or nothing is left to change; one sentence.
        """
        masked = _find_masked(path)
        request = find_approval(path[-1].text()) if path and path[-1].role == "user" else None
        shown = find_shown(path) if request and not any(isinstance(part, Image) for part in begun) else None
        if request is None or shown is None:
            return path, masked
        if masked is None:
            if self.pair.about.check_questions:
                raise ValueError(CANNOT_POINT)
            self.pair.swapper.use_mllm()
            picture = shown.picture
            boxes = find_boxes(self.mllm, picture, request.part, stop)
            if not boxes and not stop.is_set():
                raise ValueError(NOT_FOUND.format(part=request.part))
            mask = mask_rest(picture.size, boxes)
            if mask.getbbox() is None:
                raise ValueError(FILLS_ALL.format(part=request.part))
            masked = replace(shown, mask=mask)
        return [*path[:-1], reword(path[-1], request.ask(self.tuned, describe_place(masked.mask) if masked.mask else ""))], masked

    def _separate_idea(self, path: list[Turn]) -> list[Turn]:
        """The path to an answer; a trained pair's idea stands in a conversation of its own, as `_answer_ideas` asked for it."""
        question = path[-2] if len(path) > 1 else None
        request = find_ideas(question.text()) if question and path[-1].ideas and self.tuned else None
        if question is None or request is None:
            return path
        line = tuple(Text(part.text.strip()) if isinstance(part, Text) else part for part in path[-1].parts)
        return [replace(question, parts=(*question.images(), Text(request.ask(True, ())))), replace(path[-1], parts=line)]

    def keep_unchanged(self, painted: PILImage.Image, before: PILImage.Image) -> PILImage.Image:
        """`before` in its own size with what changed in `painted`, which was painted from it, as `masks.keep_unchanged`."""
        size = self.pair.about.picture_size(0, before.size)
        if painted.size == before.size != size:  # a copy gate has kept the places already
            return painted
        self.pair.swapper.use_painter()
        seen = self.painter.decode(self.painter.encode(before, size))
        return keep_unchanged(fit(painted, size), fit(seen, size), before)

    def find_boxes(self, picture: PILImage.Image, words: str) -> list[Box]:
        """The boxes around what `words` name in a picture, as the MLLM says; none where it names none.

        Raises:
            ValueError: the MLLM only answers short questions.
        """
        if self.pair.about.check_questions:
            raise ValueError("The language model of this pair cannot point at things; tap the picture instead.")
        self.pair.swapper.use_mllm()
        return find_boxes(self.mllm, picture, words)

    def describe_change(self, before: PILImage.Image, after: PILImage.Image) -> str:
        """What was changed from one picture to the other, as an order in one sentence; "" where the MLLM says nothing.

        Raises:
            ValueError: the MLLM only answers short questions.
        """
        if self.pair.about.check_questions:
            raise ValueError(CANNOT_WORD)
        self.pair.swapper.use_mllm()
        said = MLLMVisionQA(self.mllm, "example", "").ask(fill_prompt("say-change"), [before, after], CHANGE_TOKENS)
        return THOUGHT.sub("", said).strip().partition("\n")[0].strip()

    def _prompt(self, path: list[Turn], begun: tuple[Piece, ...], options: Options) -> Prompt:
        """The latest turns, as many as can be read, the assistant's own as they were said, and an answer whose first parts are `begun`.

        Raises:
            ValueError: the last question alone is too long.
        """
        first = Packed()
        system = SYSTEM if self.painter.takes_pictures(options.image) else BLIND_SYSTEM
        style = options.image.style_words.strip() if self.tuned else ""  # an untuned pair's painter reads them with every picture's words
        if not self.tuned:
            system = f"{system}\n\n{options.text.system_prompt}".strip()
            first.add([*self.tokens.opening("system"), *self.tokens.text(system), *self.tokens.closing()], False)
        turns, opening = self._pack_path(path, begun, style)
        last = turns[-1]
        self._check_length(len(first.ids) + len(last.ids), len(last.slots))
        tokens, pictures = self._room(options, len(first.ids))
        asks = [*(turn.role == "user" for turn in path[:-1]), True]
        start = find_start(list(zip(turns, asks, strict=True)), tokens, pictures)
        left_out = sum(len(turn.images()) for turn in path[:start])
        if left_out and not self.tuned:
            turns, opening = self._pack_path(path, begun, style, left_out)
        packed = first
        for turn in turns[start:]:
            packed.extend(turn)
        answer, notice = len(packed.ids) - len(turns[-1].ids) + opening, self._describe_cut(turns, start, tokens)
        return Prompt(packed, answer, notice, *self._read_names(path, left_out))

    def _pack_path(self, path: list[Turn], begun: tuple[Piece, ...], style: str, left_out: int = 0) -> tuple[list[Packed], int]:
        """The turns as they are read, the last with the first parts of its answer, and where in it these begin.

        `left_out` of the pictures, the oldest, are not read.
        """
        before: list[Image] = []
        turns, last = [], Packed()
        for turn in path:
            turns.append(self._pack_turn(turn, before, style, left_out))
            before += turn.images()
        for turn in turns[-1:]:
            last.extend(turn)
        last.add(self.tokens.opening("assistant"), False)
        opening = len(last.ids)
        self.tokens.add_parts(last, begun, True)
        return [*turns[:-1], last], opening

    def _pack_turn(self, turn: Turn, before: list[Image], style: str, left_out: int) -> Packed:
        """A turn after the pictures `before` as it is read, a question with the style words behind it."""
        said = self.memory.said.get(turn.id)
        if said is None:
            said = Packed()
            parts = turn.parts
            if turn.role == "user":
                parts = self._number_pictures(turn, before, left_out).parts
                roles = "" if self.tuned else describe_roles(turn, len(before) - left_out)
                behind = roles + (f" {style}" if style and turn.text() else "")
                parts = (*parts, Text(behind)) if behind else parts
            self.tokens.add_turn(said, replace(turn, parts=parts))
        return said

    def _number_pictures(self, question: Turn, before: list[Image], left_out: int) -> Turn:
        """A question whose references and pictures are named, and for a trained pair ordered, as the models read it."""
        said = spell_out(question, "@{}")
        return arrange_turn(said, before) if self.tuned else number_turn(said, len(before), left_out)

    def _read_names(self, path: list[Turn], left_out: int) -> tuple[tuple[list[int], list[int]], str]:
        """`Prompt.named` and `Prompt.question` of the last turn."""
        if not path:
            return ([], []), ""
        before = [image for turn in path[:-1] for image in turn.images()]
        named = [[number - left_out for number in each if number > left_out] for each in order_sources(path[-1], len(before))]
        return (named[0], named[1]), self._number_pictures(path[-1], before, left_out).text()

    def _check_length(self, tokens: int, pictures: int) -> None:
        """Raises ValueError: a question and what there is of its answer are more than the pair can follow."""
        most, most_pictures = self.most_tokens, self.painter.most_frames
        if tokens + SHORTEST_ANSWER > most:
            raise ValueError(f"This message has {tokens:,} tokens, and the pair reads {most:,} at most, answer included; make it shorter.")
        if most_pictures is not None and pictures > most_pictures:
            raise ValueError(f"This message has {pictures} pictures, and the pair can follow {most_pictures} at most; bring fewer.")

    def _room(self, options: Options, taken: int) -> tuple[int, int]:
        """How many tokens and pictures a conversation may have so that its answer fits behind it, which at most half of all is kept for.

        `taken` are tokens before the conversation.
        """
        text, images = options.text, options.image.max_images
        answer = text.max_tokens + thinking.MOST_TOKENS * text.think + images * self._picture_tokens()
        most, most_frames = self.most_tokens - taken, self.painter.most_frames
        pictures = self.most_tokens if most_frames is None else most_frames - min(images, most_frames // 2)
        return most - min(answer, most // 2), pictures

    def _picture_tokens(self) -> int:
        """Tokens that a picture of the pair's own size adds to an answer."""
        rows, columns = self.tokens.grid_of_size(self.pair.about.image_size)
        return rows * columns + 2 + (0 if self.tuned else PROMPT_TOKENS)

    def _describe_cut(self, turns: list[Packed], start: int, tokens: int) -> str:
        """One sentence about the turns before `start`, "" where there are none. `tokens` are as many as had room."""
        if not start:
            return ""
        if sum(len(turn.ids) for turn in turns) > tokens:
            return f"The pair reads {self.most_tokens:,} tokens at most, so the oldest messages ({start}) are left out."
        return f"The pair can follow {self.painter.most_frames} pictures at most, so the oldest messages ({start}) are left out."

    def _is_full(self, pictures: int = 0) -> bool:
        """Whether the pair can read nothing more, or not so many pictures more."""
        frames = self.painter.most_frames
        if pictures and frames is not None and len(self.memory.frames.past) + pictures > frames:
            return True
        return len(self.memory.context.packed.ids) + max(1, pictures * self._picture_tokens()) >= self.most_tokens

    @contextmanager
    def _forget_on_failure(self) -> Iterator[None]:
        """What breaks off in the middle may leave the two models at different places: start afresh then."""
        try:
            yield
        except (Exception, KeyboardInterrupt):
            self.memory = Memory()
            raise

    def _read_prompt(self, packed: Packed) -> int:
        """Make both models' memory that of `packed`, encoding only what is new; returns how many tokens that were."""
        memory = self.memory
        self.pair.swapper.use_mllm()
        encoded = self.mllm.prefill(memory.context, packed)
        # A picture stays as it was painted if all before it is the same: its frame has read those words.
        kept = sum(slot.end <= len(packed.ids) - encoded for slot in memory.slots)
        memory.frames.keep(kept, len(packed.ids) - encoded)
        roles = [(old.image.role, now.image.role) for old, now in zip(memory.slots[:kept], packed.slots, strict=False)]
        changed = next((at for at, (old, now) in enumerate(roles) if old != now), kept)
        if changed < kept:  # the same picture is for something else now
            kept = changed
            memory.frames.keep(kept, packed.slots[kept].bov)
        del memory.slots[kept:]
        new = packed.slots[kept:]
        if new:
            self.pair.swapper.use_painter()
        for slot in new:
            condition = memory.context.condition(slot.bov) if self.tuned else None  # an untuned painter remembers pictures alone
            size = self.pair.about.picture_size(0, slot.image.picture.size)
            goes_on = bool(slot.image.role and memory.slots and memory.slots[-1].image.role == REFERENCE)
            latents, segment = self.painter.encode(slot.image.picture, size), packed.last_segment(slot.bov)
            self.painter.remember(memory.frames, latents, condition, segment, goes_on)
            memory.slots.append(slot)
        if new:
            self.pair.swapper.use_mllm()
        return encoded

    def _think(self, reply: Reply) -> Generator[Event, None, None]:
        """Thoughts before the answer, if they are wanted."""
        if not reply.options.text.think or reply.begun:
            return
        if not self.pair.about.thinks:
            raise ValueError("This pair was never taught to think before it answers; switch Think off.")
        context, thoughts, stream = self.memory.context, thinking.Thoughts(), DecodeStream(skip_special_tokens=True)
        self._force_words(thinking.OPENING)
        for count, token in enumerate(self.mllm.generate(context, reply.options.text, reply.generator)):
            ended = token in (self.tokens.bov, self.tokens.end) or count >= thinking.MOST_TOKENS
            if ended or reply.stop.is_set() or self._is_full():
                break
            text = stream.step(self.pair.tokenizer.backend_tokenizer, token)
            if said := thoughts.feed(text or ""):
                yield Thought(said)
            if thoughts.over:
                self.mllm.append(context, token)
                break
        self._force_words("\n\n" if thoughts.over else f"{thinking.CLOSING}\n\n")
        reply.opening = len(context.packed.ids)

    def _force_words(self, words: str) -> None:
        """Words into the MLLM's mouth, which it goes on from."""
        for token in self.tokens.text(words):
            self.mllm.append(self.memory.context, token)

    def _draft(self, reply: Reply) -> Generator[Event, None, None]:
        """Drafts of a picture, where the MLLM would begin with them (DuoGen: visual drafts for reasoning)."""
        context, text, wanted = self.memory.context, reply.options.text, reply.options.image.drafts
        if not self.tuned or not self.pair.about.draws_drafts or reply.begun or text.think:
            return
        mark, logits = self.tokens.text(thinking.DRAFTING), context.logits
        assert logits is not None, "the prompt has been read"
        likely = wanted == "on" or float(logits.softmax(-1)[mark[0]]) > 0.5
        masked = reply.masked and reply.masked.mask
        if wanted == "off" or not likely or masked or not reply.options.image.max_images:
            logits[mark[0]] = float("-inf")
            return
        self._force_words(thinking.DRAFTING)
        thoughts, stream, count = thinking.Thoughts(), DecodeStream(skip_special_tokens=True), 0
        while not thoughts.over:
            words = ""
            for token in self.mllm.generate(context, text, reply.generator):
                count += 1
                ended = token in (self.tokens.bov, self.tokens.end) or count > thinking.MOST_TOKENS
                if ended or reply.stop.is_set() or self._is_full(pictures=1):
                    break
                words += (said := thoughts.feed(stream.step(self.pair.tokenizer.backend_tokenizer, token) or ""))
                if said:
                    yield Thought(said)
                if thoughts.over:
                    self.mllm.append(context, token)
                    break
            full = len(reply.drafts) >= thinking.MOST_DRAFTS
            if full or token != self.tokens.bov or not (yield from self._add_draft(reply, words)):
                break
        if not thoughts.over:
            self._force_words(thinking.CLOSING)

    def _draft_again(self, reply: Reply, drafts: tuple[str, ...]) -> Generator[Event, None, None]:
        """Paint a picture by drafts whose words are given."""
        self._force_words(thinking.DRAFTING)
        for words in drafts:
            self._force_words(words)
            if not (yield from self._add_draft(reply, words)):
                return
        yield from self._show_drafted(reply)

    def _add_draft(self, reply: Reply, words: str) -> Generator[Event, None, bool]:
        """Paint a draft and show it to both models; returns False when the user stopped it."""
        shown, reply.parts = reply.parts, [*reply.parts, Text(words)]
        try:
            for event in (painting := self._add_picture(reply, times=0)):
                if isinstance(event, ImageDone):
                    reply.drafted = event.image
                    reply.drafts.append(replace(event.image, alt=words))
                    yield Draft(len(reply.drafts), reply.drafts[-1])
                elif not isinstance(event, ImageStarted | ImageStep):
                    yield event
        finally:
            painting.close()
            reply.parts = shown
        return not reply.stop.is_set()

    def _show_drafted(self, reply: Reply) -> Generator[Event, None, None]:
        """Show the last draft as the picture of the answer."""
        image, index = reply.drafted, reply.images()
        if image is None:
            return
        seconds = time.monotonic() - reply.started
        image = replace(image, alt=_last_line(reply), drafts=tuple(reply.drafts), seconds=seconds)
        reply.drafted = None
        reply.parts.append(image)
        yield ImageStarted(index, image.seed or 0, 1, words=image.alt)
        yield ImageDone(index, image)

    def _generate_parts(self, reply: Reply) -> Generator[Event, None, str]:
        """Words and pictures in turn; returns why it ended."""
        last = reply.parts[-1] if reply.parts else None
        reply.marks = None if self.tuned else Placeholders(find_open_fence(last.text) if isinstance(last, Text) else "")
        while True:
            asked, why = yield from self._generate_words(reply)
            self._close_text(reply)
            if reply.drafted and why != "user":
                yield from self._show_drafted(reply)
                return why or "end"
            if why:
                return why
            if reply.images() >= reply.options.image.max_images:
                return "max_images"
            if reply.images() and self._is_full(pictures=1):
                return "max_context"
            finished = yield from self._add_picture(reply, asked)
            if not finished:
                return "user"

    def _generate_words(self, reply: Reply) -> Generator[Event, None, tuple[PictureRequest | None, str]]:
        """Words until a picture is due or the answer ends; returns the request for a picture (of an untuned pair) and why it ended."""
        context, limits = self.memory.context, reply.options.text
        asked = yield from self._stream_waiting(reply)
        if asked or reply.ended:
            return asked, "" if asked else "end"
        for token in self.mllm.generate(context, limits, reply.generator):
            if token == self.tokens.bov:
                return None, ""
            if token == self.tokens.end:
                break
            asked = yield from self._stream_token(reply, token)
            why = "user" if reply.stop.is_set() else "max_tokens" if reply.counted_tokens >= limits.max_tokens else ""
            why = why or ("max_context" if self._is_full() else "")
            if asked or why:
                self.mllm.append(context, token)  # said, so it must be read
            if asked:
                return asked, ""
            if why:
                yield from self._stream_held(reply)
                return None, why
        reply.ended = True
        if reply.marks:
            reply.waiting += reply.marks.close()
        asked = yield from self._stream_waiting(reply)
        return asked, "" if asked else "end"

    def _stream_token(self, reply: Reply, token: int) -> Generator[Event, None, PictureRequest | None]:
        """Words as soon as they are whole: a token may end in the middle of a character. Returns a request for a picture that came up."""
        text, marks = reply.stream.step(self.pair.tokenizer.backend_tokenizer, token), reply.marks
        asking = marks is not None and marks.is_open()
        if text:
            reply.waiting += marks.feed(text) if marks else [text]
        reply.text_tokens += 1
        reply.counted_tokens += not asking and not (marks is not None and marks.is_open())
        return (yield from self._stream_waiting(reply))

    def _stream_held(self, reply: Reply) -> Generator[Event, None, None]:
        """Show what was held back, where an answer is cut: pictures that it asks for are not painted."""
        reply.waiting = [piece for piece in reply.marks.close() if not isinstance(piece, PictureRequest)] if reply.marks else []
        yield from self._stream_waiting(reply)

    def _stream_waiting(self, reply: Reply) -> Generator[Event, None, PictureRequest | None]:
        """Show words that wait, up to the first request for a picture, which is returned."""
        while reply.waiting:
            piece = reply.waiting.pop(0)
            if isinstance(piece, PictureRequest):
                return piece
            if isinstance(piece, Thought):
                yield piece
                continue
            if not reply.first_text:
                reply.first_text = time.monotonic() - reply.started
            yield TextDelta(piece)
            reply.shown += piece
        return None

    def _write_prompt(self, reply: Reply) -> PictureRequest:
        """An untuned MLLM writes the words of the picture that comes next."""
        context, marks, stream = self.memory.context, Placeholders(), DecodeStream(skip_special_tokens=True)
        marks.feed(OPENING)
        self._force_words(OPENING)
        for count, token in enumerate(self.mllm.generate(context, reply.options.text, reply.generator)):
            if token == self.tokens.end or count >= PROMPT_TOKENS or reply.stop.is_set() or self._is_full():
                break
            text = stream.step(self.pair.tokenizer.backend_tokenizer, token)
            found = marks.feed(text) if text else []
            if asked := next((piece for piece in found if isinstance(piece, PictureRequest)), None):
                self.mllm.append(context, token)
                return asked
        return next((piece for piece in marks.close() if isinstance(piece, PictureRequest)), PictureRequest(""))

    def _close_text(self, reply: Reply) -> None:
        """Close the running piece of text."""
        if reply.shown:
            last = reply.parts[-1] if reply.parts else None
            if isinstance(last, Text):  # of an answer that goes on
                reply.parts[-1] = Text(last.text + reply.shown)
            else:
                reply.parts.append(Text(reply.shown))
        reply.stream, reply.shown = DecodeStream(skip_special_tokens=True), ""

    def _add_picture(
        self, reply: Reply, asked: PictureRequest | None = None, times: int | None = None, plan: Sequence[str] = ()
    ) -> Generator[Event, None, bool]:
        """Paint one picture and show it to both models; returns False when the user stopped it.

        Args:
            asked: the request of an untuned pair: the painter reads its words alone.
            times: how often it is painted again at most, if the MLLM refuses it; by default as the options say.
            plan: the words of the drafts that it is painted by, of an untuned pair; by default as the options say.
        """
        memory, index = self.memory, reply.images()
        asked = asked and self._fill_prompt(asked, reply)
        plan = plan or (yield from self._plan_drafts(reply, asked))
        if asked and plan:
            made, times = (yield from self._paint_plan(reply, asked, plan)), 0
        else:
            made = yield from self._try_picture(reply, asked, reply.rng.randrange(2**31))
        if made is None:
            return False
        others: tuple[Image, ...] = ()
        if times := reply.options.image.check if times is None else times:
            made, others = yield from self._look_again(reply, made, times)
        yield ImageDone(index, made.image, others)
        if made.asked != asked:
            self._reword(reply, made.image.alt)
            self.pair.swapper.use_painter()
        reply.versions += [(len(reply.parts), other) for other in others]
        reply.parts.append(made.image)
        self.painter.remember(memory.frames, made.latents, made.condition, made.segment, bool(self._role_before()))
        self.pair.swapper.use_mllm()
        packed = memory.context.packed.between(0)
        self.tokens.add_image(packed, made.image, True)
        self.mllm.prefill(memory.context, packed)
        memory.slots.append(packed.slots[-1])
        return True

    def _plan_drafts(self, reply: Reply, asked: PictureRequest | None) -> Generator[Event, None, Sequence[str]]:
        """The words of the drafts that lead to a picture of an untuned pair; none where it is painted in one stroke.

        A picture that goes on from another needs none, and neither do the later pictures of an answer, which are drawn one by one anyway.
        """
        image, masked = reply.options.image, reply.masked and reply.masked.mask
        if asked is None or image.drafts != "on" or masked or reply.images() or not self.painter.reads_words:
            return ()
        if not self.painter.takes_pictures(image) or self.painter.find_sources(self.memory.frames, asked):
            return ()
        plan = plan_drafts(self.mllm, asked.prompt, reply.stop)
        if not plan and not reply.stop.is_set():
            yield Notice(NO_PLAN)
        return plan

    def _paint_plan(self, reply: Reply, asked: PictureRequest, plan: Sequence[str]) -> Generator[Event, None, PictureTry | None]:
        """Paint a picture by drafts, each an edit of the one before; the last is the picture. Returns `None` when the user stopped it.

        The latest draft stands among the pictures for this long only: what comes next goes on from the picture.
        """
        memory, begun, drafts, made = self.memory, time.monotonic(), [], None
        shown, named = len(memory.slots), reply.named
        try:
            for words in plan:
                yield Thought(f"{words}\n")
                sources = (shown + 1,) if drafts else asked.sources
                made = yield from _hide_steps(self._try_picture(reply, PictureRequest(words, sources), reply.rng.randrange(2**31)))
                if made is None:
                    return None
                drafts.append(replace(made.image, alt=words))
                yield Draft(len(drafts), drafts[-1])
                self._forget_draft(shown)
                self.painter.remember(memory.frames, made.latents, made.condition, made.segment)
                end = len(memory.context.packed.ids)
                memory.slots.append(Slot(end, end, (0, 0), made.image, True))
                reply.named = ([], named[1])  # what was to be changed is in the first draft
        finally:
            reply.named = named
            self._forget_draft(shown)
        assert made is not None, "a plan has words"
        image = replace(made.image, alt=asked.prompt, drafts=tuple(drafts), seconds=time.monotonic() - begun)
        yield ImageStarted(reply.images(), image.seed or 0, 1, words=image.alt)
        return replace(made, image=image, asked=asked)

    def _forget_draft(self, shown: int) -> None:
        """Leave only the first `shown` pictures."""
        del self.memory.slots[shown:]
        self.memory.frames.keep(shown, len(self.memory.context.packed.ids))

    def _look_again(self, reply: Reply, first: PictureTry, times: int) -> Generator[Event, None, tuple[PictureTry, tuple[Image, ...]]]:
        """As `critic.look_again`. Where another try fails, the picture that is there stays."""

        def paint(number: int, prompt: str) -> Generator[Event, None, PictureTry | None]:
            asked, seed = first.asked, (first.image.seed or 0) + number
            try:
                return (yield from self._try_picture(reply, asked and replace(asked, prompt=prompt or asked.prompt), seed % 2**31))
            except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
                yield Notice(describe_failure(error))
                return None
            finally:
                self.pair.swapper.use_mllm()

        self.pair.swapper.use_mllm()
        critic, words = open_critic(self.mllm, self.pair.about), first.image.alt or reply.question
        made = yield from look_again(critic, first, words, times, paint, reply.stop)
        self.pair.swapper.use_painter()
        return made

    def _reword(self, reply: Reply, prompt: str) -> None:
        """Put the words that a picture was painted from in the place of those that an untuned MLLM said, as the conversation has it."""
        packed, marks = self.memory.context.packed.between(0, reply.opening), reply.marks
        self.tokens.add_parts(packed, reply.parts, True)
        after = "".join(piece for piece in reply.waiting if isinstance(piece, str)) + (marks.held if marks else "")
        packed.add(self.tokens.text(mark_picture(prompt) + after), True)
        self._read_prompt(packed)

    def _try_picture(self, reply: Reply, asked: PictureRequest | None, seed: int) -> Generator[Event, None, PictureTry | None]:
        """Paint one picture, which neither model remembers yet; returns `None` when the user stopped it."""
        memory, options, index = self.memory, reply.options.image, reply.images()
        masked = reply.masked if index == 0 else None  # what comes next is a new picture
        read = asked and add_style(asked, options.style_words.strip())
        if read and index == 0:
            read = add_sources(read, *reply.named)
        if self.guard:
            self.guard.read(read.prompt if read else _last_line(reply) or reply.question)
        condition, segment = self._condition(read)
        negative = self._negative(asked, options)
        self.pair.swapper.use_painter()
        self.painter.fill_cache(memory.frames)  # of the pictures before: not part of what this one takes
        if self.shrunk and options.side > max(self.pair.about.image_size):
            options = replace(options, side=0)
        size = self._picture_size(options, masked or next(iter(reply.pictures()), None), condition)
        inpaint = self.painter.prepare_inpaint(masked.picture, masked.mask, size) if masked and masked.mask else None
        is_step = segment > reply.opening
        before = memory.slots[-1].image.picture if memory.slots else None
        request = PaintRequest(condition, segment, options, seed, inpaint, size, negative, self._role_before(), is_step, before)
        alt = asked.prompt if asked else _last_line(reply)
        yield ImageStarted(index, request.seed, options.steps, self._estimate_seconds(options, size), alt)
        begun = time.monotonic()
        made = yield from self._paint_picture(reply, index, request)
        if made is None:
            return None
        latents, plain, stays, transform = made
        picture, size = plain, plain.size  # smaller than requested where memory ran out
        if stays is not None and before is not None and not masked:
            if transform is not None:
                picture = apply_transform(plain, before, stays, transform)
            else:
                picture = keep_places(plain, before, stays)
                plain = picture if stays.shape[-2:] == latents.shape[-2:] else plain  # whose latents these are
        if self.guard:
            picture = self.guard.look(picture)
        if masked and masked.mask:
            picture = self.painter.composite(picture, masked.picture, masked.mask)
        if picture is not plain:
            latents = self.painter.encode(picture, size)
        seconds = time.monotonic() - begun
        origin = self._find_origin(options, condition, masked)
        image = Image(picture, request.seed, seconds, alt, origin=origin)
        if self.costs:
            self.costs.note(seconds, options)
        return PictureTry(image, latents, condition, segment, asked)

    def _paint_picture(self, reply: Reply, index: int, request: PaintRequest) -> Generator[Event, None, Painting | None]:
        """A picture's steps; returns `None` when the user stopped it.

        When memory runs out it is begun again, once, in a way that needs less.
        """
        remedy = ""
        while True:
            done, steps = None, request.options.steps
            try:
                for done in self.painter.paint(self.memory.frames, request):
                    if reply.stop.is_set():
                        return None
                    yield ImageStep(index, done.step, steps, self._preview(done.step, done.latents, request.options))
                assert done is not None, "a picture has steps"
                return Painting(done.latents, done.picture or self.painter.decode(done.latents), done.stays, done.transform)
            except torch.OutOfMemoryError:
                if remedy or not (remedy := self._use_less_memory(request.options.side)):
                    raise
            done = None
            free()
            yield Notice(remedy)
            request = self._make_smaller(request, reply)

    def _make_smaller(self, request: PaintRequest, reply: Reply) -> PaintRequest:
        """The same request where pictures may have become smaller."""
        options = replace(request.options, side=0) if self.shrunk else request.options
        masked, inpaint, size = reply.masked, request.inpaint, self.pair.about.picture_size(options.side, request.size)
        if masked and masked.mask and inpaint is not None:
            inpaint = self.painter.prepare_inpaint(masked.picture, masked.mask, size)
        return replace(request, options=options, inpaint=inpaint, size=size)

    def _picture_size(self, options: ImageOptions, like: Image | None, condition: Any) -> tuple[int, int]:
        """(width, height) of the next picture: of the chosen aspect, else shaped as `like`, else as the picture that it goes on from.

        Raises:
            ValueError: the pair paints its own size only.
        """
        about = self.pair.about
        if options.shape and not about.any_size:
            width, height = about.image_size
            raise ValueError(f"This pair paints pictures of {width} x {height} pixels only; set the aspect of pictures to auto.")
        shape = options.shape or (like.picture.size if like else None)
        if shape is None and self.painter.takes_pictures(options):
            if role := self._role_before():
                shape = self.memory.slots[-1].image.picture.size if role == SOURCE else None
            else:
                shape = self.painter.source_shape(self.memory.frames, condition)
        return about.picture_size(options.side, shape)

    def _role_before(self) -> str:
        """The role of the picture before the next one, where the user brought it and the painter goes on from frame to frame; else ""."""
        slots = self.memory.slots
        return slots[-1].image.role if slots and not slots[-1].painted and not self.painter.reads_words else ""

    def _estimate_seconds(self, options: ImageOptions, size: tuple[int, int]) -> float:
        """Seconds that a picture will take, 0 where nobody knows. Raises ValueError, before it is begun, when it would not fit."""
        if self.costs is None:
            return 0.0
        self.costs.check(options, size)
        return self.costs.seconds(options, size)

    def _use_less_memory(self, side: int) -> str:
        """Step down: tiles, then turns on the GPU, then pictures smaller than the ones of this `side`.

        Returns:
            What was done, in one sentence; "" for nothing more.
        """
        self.costs = None
        pair, vae = self.pair, getattr(self.pair, "vae", None) or getattr(getattr(self.pair, "pipe", None), "vae", None)
        if hasattr(vae, "enable_tiling") and not getattr(vae, "use_tiling", True):
            vae.enable_tiling()
            return "Memory ran out, so pictures are made in tiles from now on."
        if swap_devices(pair):
            return "Memory ran out, so the parts of the pair take turns on the GPU from now on, which is slower."
        size = scale_size(pair.about.image_size, (side or max(pair.about.image_size)) * 3 // 4)
        if max(size) < SMALLEST_SIDE or not pair.about.any_size:
            return ""
        pair.about = self.painter.about = replace(pair.about, image_size=size)
        self.about, self.shrunk = asdict(pair.about), True
        return f"Memory ran out, so pictures have {size[0]} x {size[1]} pixels from now on."

    def _condition(self, asked: PictureRequest | None) -> tuple[Any, int]:
        """What the painter reads for the next picture, and where in it the latest words begin."""
        if asked is None:
            context = self.memory.context
            return context.condition(), context.packed.last_segment(len(context.packed.ids))
        return (asked, 0) if self.painter.reads_words else self.mllm.read_prompt(asked.prompt)

    def _negative(self, asked: PictureRequest | None, options: ImageOptions) -> torch.Tensor | None:
        """What the branch without guidance of an untuned frame painter reads, `None` for all others."""
        painter = self.painter
        if asked is None or options.guidance <= 1 or not isinstance(painter, CosmosPainter) or painter.follows:
            return None
        from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT

        return self.mllm.read_prompt(DEFAULT_NEGATIVE_PROMPT)[0]

    def _find_origin(self, options: ImageOptions, condition: Any, masked: Image | None) -> Origin:
        """The origin of the next picture: a change of a brought one where it goes on from one, else painted whole."""
        takes, role = self.painter.takes_pictures(options), self._role_before()
        sources = self.painter.find_sources(self.memory.frames, condition) if takes and not role else []
        if role == SOURCE:
            sources = [len(self.memory.slots) - 1]
        shown = [*([masked] if masked else []), *(self.memory.slots[at].image for at in sources)]
        changed = any(image.origin is not Origin.PAINTED for image in shown)
        return Origin.CHANGED if changed else Origin.PAINTED

    def _fill_prompt(self, asked: PictureRequest, reply: Reply) -> PictureRequest:
        """A request without words means what was said last, or what was asked."""
        return asked if asked.prompt else replace(asked, prompt=_last_line(reply) or reply.question or "A picture.")

    def _preview(self, step: int, latents: Any, options: ImageOptions) -> PILImage.Image | None:
        wanted = options.preview_every and step % options.preview_every == 0 and step < options.steps
        return self.painter.decode(latents) if wanted and latents is not None else None

    def _make_turn(self, parent: str, reply: Reply, start: int) -> Turn:
        """The finished turn; its ids as they were said are kept for the next answer. `start` is where its opening ends."""
        turn = Turn("assistant", tuple(reply.parts), parent=parent)
        opening = len(self.tokens.opening("assistant"))
        if reply.drafts:  # they leave the context: what comes next reads the answer as it stands in the conversation
            return turn
        said = self.memory.context.packed.between(start - opening)
        said.add(self.tokens.closing(), True)
        self.memory.said[turn.id] = said
        return turn

    def _make_failure(self, conversation: Conversation, reply: Reply, error: Exception) -> Failed:
        """What was finished before the failed part is kept as a turn."""
        said = describe_failure(error)
        if not isinstance(error, ValueError | MemoryError | torch.OutOfMemoryError):
            said = f"{said.removesuffix('.')} (fault {report_fault(error)})."
        if torch.cuda.is_available():
            with suppress(RuntimeError):  # a GPU that has failed fails here too
                torch.cuda.empty_cache()
        finished = list(reply.parts)
        while finished and isinstance(finished[-1], Text):
            finished.pop()
        kept = conversation.say("assistant", *finished) if len(finished) > reply.begun else conversation
        return Failed(said, kept)


def describe_failure(error: Exception) -> str:
    """One sentence for the user: what kind of error it was, and what to do."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    if isinstance(error, torch.OutOfMemoryError):
        return "Memory ran out; make the pictures smaller, or close other programs, and try again."
    if isinstance(error, MemoryError):
        return f"Memory ran out ({kind}); make the pictures smaller, or close other programs, and try again."
    if type(error) is ValueError and lines:
        return lines[0]
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return f"The pair needs the package {package} ({kind}); install it with pip and open the pair anew."
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"The disk is full ({kind}); make room, and try again."
    said = (error.strerror if isinstance(error, OSError) else "") or (lines[0] if lines else "")
    return f"The pair failed ({kind}{f': {said}' if said else ''}); try again, or open the pair anew."


def _hide_steps(painting: Generator[Event, None, PictureTry | None]) -> Generator[Event, None, PictureTry | None]:
    """The events of a painting but those of its steps."""
    try:
        while True:
            event = next(painting)
            if not isinstance(event, ImageStarted | ImageStep):
                yield event
    except StopIteration as ended:
        return ended.value
    finally:
        painting.close()


def add_style(asked: PictureRequest, style: str) -> PictureRequest:
    """A request with the style words behind its own, unless it names them itself."""
    if not style or style.lower() in asked.prompt.lower():
        return asked
    return replace(asked, prompt=f"{asked.prompt.rstrip(' .')}. {style}")


def add_sources(asked: PictureRequest, changed: list[int], references: list[int]) -> PictureRequest:
    """A request with the pictures that the user named around those that the MLLM did: first what is changed, last the references."""
    own = [number for number in asked.sources if number not in references]
    return replace(asked, sources=tuple(dict.fromkeys((*changed, *own, *references))))


def _last_line(reply: Reply) -> str:
    """The last words before a picture, which describe it."""
    said = next((part.text for part in reversed(reply.parts) if isinstance(part, Text)), "").strip()
    return said.splitlines()[-1] if said else ""


def _end_with_picture(parts: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The parts up to the last picture: the words after it are those of a picture to come."""
    pictures = [index for index, part in enumerate(parts) if isinstance(part, Image)]
    return parts[: pictures[-1] + 1] if pictures else ()


def choose_seed(options: Options) -> int:
    """The seed of an answer: the chosen one, else a new one."""
    return options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)


def _find_masked(path: list[Turn]) -> Image | None:
    """The picture of the last question that may change inside its mask only."""
    asked = next((turn for turn in reversed(path) if turn.role == "user"), None)
    return next((image for image in reversed(asked.images()) if image.mask), None) if asked else None
