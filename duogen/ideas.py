"""Several ideas for one wish: "give me four ideas for a garden" is answered with four scenes, none a continuation of another."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace

import regex

from duogen.conversation import Image, Piece, Text
from duogen.events import Done, Event, Events, Failed, Ideas, ImageDone, ImageStarted, ImageStep, TextDelta, Thought
from duogen.options import Options, TextOptions
from duogen.prompts import fill_prompt

LONGEST = 500  # letters of a message that can be a request for ideas; what is longer takes too long to read by patterns
MOST_TRIES = 4  # at an idea, until its words are new
WARMER = 0.2  # temperature that each further try adds
WARMEST = 1.2

COUNTS = {
    **{str(count): count for count in range(2, 7)},
    **{word: count for count, word in enumerate(("two", "three", "four", "five", "six"), 2)},
    **{word: count for count, word in enumerate(("zwei", "drei", "vier", "fünf", "sechs"), 2)},
    **{word: count for count, word in enumerate("二三四五六", 2)},
    **{"两": 2, "兩": 2, "fuenf": 5},
}
_NUMBER = rf"(?P<count>{'|'.join(COUNTS)})"
_WISH = r"(?P<wish>[^\s.!?。！？][^.!?。！？\n]*?)"
_GIVE = r"(?:give|show|draw|paint|sketch|make|find|suggest|offer|bring)"
_GEBEN = r"(?:gib|gebt|geben sie|zeig|zeige|zeigen sie|mal|male|malen sie|zeichne|zeichnen sie|mach|mache|nenne|nenn)"
_GEI = r"(?:请|麻烦|可以|能不能|给我?|帮我?|为我|来|我?想要|我?要|看看|展示|提供|画出?|出|想出?|\s)*"
_IDEE = r"(?:点子|點子|创意|創意|想法|主意|构思|構思|方案)"
_IDEEN = (
    rf"(?:(?:bitte|hallo|hi)[\s,]+)*(?:{_GEBEN}(?: (?:mir|uns))?|(?:kannst|könntest) du (?:mir|uns)|ich (?:möchte|will|brauche))?"
    rf"(?: bitte)?\s*{_NUMBER} (?:\p{{L}}+ ){{0,2}}(?:\p{{L}}+)?ideen(?:,? bitte)?"
)
_GEBEN_BITTE = r"(?: (?:geben|zeigen|malen|zeichnen))?(?:,? bitte)?"
_FLAGS = regex.IGNORECASE
# A message is a request for ideas where one of these fits all of it. Each with what a trained pair is asked for, with and without a wish.
_PATTERNS = tuple(
    (regex.compile(rf"\s*{pattern}[\s.!?。！？]*", _FLAGS), *asked)
    for pattern, *asked in (
        (
            rf"(?:(?:please|pls|hi|hey|hello|ok|now)[\s,]+)*(?:(?:can|could|would|will) (?:you|u)(?: please)? )?"
            rf"(?:{_GIVE}(?: (?:me|us))?|(?:i|we)(?: would like|'d like|’d like| want| need)|let(?:'s|’s| me| us) (?:see|have))?"
            rf"\s*{_NUMBER} (?:\p{{L}}+ ){{0,2}}ideas(?:,? (?:please|pls))?(?: (?:for|of|about|on|how to draw)(?: a picture of)? {_WISH})??"
            r"(?:,? (?:please|pls))?",
            "Draw {}.", "Draw something.",
        ),
        (rf"{_IDEEN}(?: (?:für|fuer) {_WISH})??{_GEBEN_BITTE}", "Zeichne {}.", "Zeichne etwas."),
        (rf"{_IDEEN} (?P<wish>(?:zu|zum|zur|von|mit) [^.!?\n]+?){_GEBEN_BITTE}", "Zeichne etwas {}.", "Zeichne etwas."),
        (rf"{_GEI}{_NUMBER}\s*[个個种種]?(?:不同的?)?(?:关于|關於)?{_WISH}??的?{_IDEE}", "画{}。", "画点什么。"),
        (rf"{_GEI}(?:关于|關於)?{_WISH}的{_NUMBER}\s*[个個种種]?(?:不同的?)?{_IDEE}", "画{}。", "画点什么。"),
        (rf"{_GEI}{_NUMBER}\s*[个個种種]?(?:不同的?)?{_IDEE}[,，:：\s]*(?:关于|關於){_WISH}", "画{}。", "画点什么。"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class IdeasRequest:
    """A request for ideas: how many, its words, and what a trained pair, which draws what it is asked for, is asked for each."""

    count: int
    said: str
    drawing: str

    def ask(self, tuned: bool, earlier: Sequence[str]) -> str:
        """The words that ask for the next idea alone.

        Args:
            tuned: the pair was trained on single pictures; another MLLM is told what to do.
            earlier: the words of the ideas before it.
        """
        if tuned:
            return self.drawing
        told = "".join(f"\n- {' '.join(words.split())}" for words in earlier)
        others = f"It is another scene than these:{told}" if told else "It is the first of them."
        return fill_prompt("idea", request=self.said, count=self.count, number=len(earlier) + 1, others=others)


def find_ideas(words: str) -> IdeasRequest | None:
    """The request for two to six ideas that a message is, in English, German or Chinese; `None` for any other message."""
    for pattern, with_wish, without in _PATTERNS if len(words) <= LONGEST else ():
        if found := pattern.fullmatch(words):
            wish = (found["wish"] or "").strip(" ,，")
            return IdeasRequest(COUNTS[found["count"].lower()], words.strip(), with_wish.format(wish) if wish else without)
    return None


@dataclass
class IdeasProgress:
    """The ideas so far.

    Attributes:
        parts: a line and a picture of each.
        others: tries of pictures that were not chosen, and their places among the parts.
        failure: why the next one failed.
        pictureless: whether the pair answers the request without a picture.
        is_announced: whether `Ideas` was yielded.
    """

    parts: list[Piece]
    others: list[tuple[int, Image]] = field(default_factory=list)
    failure: str = ""
    pictureless: bool = False
    is_announced: bool = False

    def pictures(self) -> list[Image]:
        return [part for part in self.parts if isinstance(part, Image)]


Answer = Callable[[str, Options], Events]  # asks a pair for one idea, which reads none of the others' pictures


def make_ideas(
    request: IdeasRequest, tuned: bool, made: IdeasProgress, options: Options, stop: threading.Event, answer: Answer
) -> Generator[Event, None, None]:
    """Ask for each idea that is missing, until its words are new, and paint it; `made` grows."""
    seeds = random.Random(options.seed)
    while len(made.pictures()) < request.count and not stop.is_set():
        earlier = [image.alt for image in made.pictures()]
        asked = request.ask(tuned, earlier)
        for number in range(MOST_TRIES):
            tried = _set_options(options, seeds.randrange(2**31), number)
            last = number == MOST_TRIES - 1
            before = len(made.parts)
            yield from _try_idea(made, answer(asked, tried), set() if last else {_fold(words) for words in earlier})
            if len(made.parts) > before or made.failure or stop.is_set():
                break
            if made.pictureless and not made.is_announced:
                return
        else:
            return
        if made.failure:
            return


def _try_idea(made: IdeasProgress, events: Events, known: set[str]) -> Generator[Event, None, None]:
    """One answer up to its first picture, which is left before it is painted where its words are known."""
    said, line, index, shown = "", "", len(made.pictures()), False
    try:
        for event in events:
            match event:
                case TextDelta(text):
                    said += text
                case ImageStarted(words=words):
                    if _fold(words) in known:
                        return
                    if not shown:
                        line = ("\n\n" if made.parts else "") + (said.strip() or _first_sentence(words))
                        if not made.is_announced:
                            yield Ideas()
                        yield TextDelta(line)
                        shown = made.is_announced = True
                    yield replace(event, index=index)
                case ImageStep():
                    yield replace(event, index=index)
                case ImageDone(_, image, others):
                    made.parts += [Text(line), image]
                    made.others += [(len(made.parts) - 1, each) for each in others]
                    yield replace(event, index=index)
                    return
                case Failed(message):
                    made.failure = message
                case Done():
                    made.pictureless = not shown
                case Thought():
                    pass
                case _:
                    yield event
    finally:
        events.close()


def _set_options(options: Options, seed: int, tries: int) -> Options:
    """The options of a try at one idea."""
    text: TextOptions = options.text
    warm = max(text.temperature, min(text.temperature + WARMER * tries, WARMEST))
    return replace(options, seed=seed, text=replace(text, temperature=warm), image=replace(options.image, max_images=1))


def _fold(words: str) -> str:
    return " ".join(words.lower().split()).strip(" .!。")


def _first_sentence(words: str) -> str:
    return regex.split(r"(?<=[.!?。！？])\s*", words.strip(), maxsplit=1)[0]
