"""A second look at what was painted: the MLLM says whether a picture shows its words, and if not, it is painted again.

The MLLM looks in a context of its own, so that the conversation's KV cache and hidden states stay as they are.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image as PILImage

from duogen.conversation import Image
from duogen.events import Event, Notice
from duogen.models.mllm import MLLM
from duogen.models.picture_marks import PictureRequest
from duogen.models.pipeline import About
from duogen.models.placeholders import LONGEST_PROMPT
from duogen.prompts import fill_prompt, parse_json
from duogen.vision_qa import MLLMVisionQA

VERDICT_TOKENS = 400  # a verdict with a whole new prompt
ANSWER_TOKENS = 32
LONGEST_REASON = 160  # characters
IS_NO = re.compile(r"\W*(?:no|false|0)\b[\s,.:;!-]*", re.I)


@dataclass(frozen=True)
class Verdict:
    """What the MLLM says of a picture.

    Attributes:
        shows: whether the picture shows its words.
        reason: what is wrong, "" where nothing is said of it.
        prompt: what should be painted instead; "" for the same words.
    """

    shows: bool = True
    reason: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class PictureTry:
    """A painted picture that may stay.

    Attributes:
        latents: as `Painter.remember` takes them.
        condition, segment: of its `PaintRequest`.
        asked: the request of an untuned pair, `None` where the painter reads hidden states.
    """

    image: Image
    latents: Any
    condition: Any
    segment: int
    asked: PictureRequest | None


class Critic(Protocol):
    """Looks at pictures. `stop` of its methods ends a look within one token; what it returns then does not matter."""

    def check(self, picture: PILImage.Image, words: str, stop: threading.Event) -> Verdict:
        """Whether the picture shows `words`."""

    def prefers(self, new: PILImage.Image, old: PILImage.Image, words: str, stop: threading.Event) -> bool:
        """Whether the new picture shows `words` better than the old one, which was refused."""


class PromptCritic:
    """Asks an MLLM that follows instructions. What it cannot answer counts for the picture that is being looked at."""

    def __init__(self, mllm: MLLM) -> None:
        self.qa = MLLMVisionQA(mllm, "critic", "")

    def check(self, picture: PILImage.Image, words: str, stop: threading.Event) -> Verdict:
        return read_verdict(self.qa.ask(fill_prompt("critic-check", words=words), [picture], VERDICT_TOKENS, stop))

    def prefers(self, new: PILImage.Image, old: PILImage.Image, words: str, stop: threading.Event) -> bool:
        said = self.qa.ask(fill_prompt("critic-compare", words=words), [old, new], ANSWER_TOKENS, stop)
        found = parse_json(said)
        better = found.get("better", "") if isinstance(found, dict) else said
        return not re.match(r"\W*(?:1\b|first\b|the first\b|picture 1\b)", str(better), re.I)


class QuestionCritic:
    """Asks an MLLM that only answers short questions about pictures.

    `questions` are patterns to look for in a picture's words, each with the question that a match asks (`About.check_questions`). The
    group "answer" of a pattern is the word that the answer must hold.
    """

    def __init__(self, mllm: MLLM, questions: Sequence[tuple[str, str]]) -> None:
        self.qa = MLLMVisionQA(mllm, "critic", "")
        self.questions = questions

    def check(self, picture: PILImage.Image, words: str, stop: threading.Event) -> Verdict:
        wrong = self._list_wrong(picture, words, stop)
        return Verdict(not wrong, wrong[0] if wrong else "")

    def prefers(self, new: PILImage.Image, old: PILImage.Image, words: str, stop: threading.Event) -> bool:
        return len(self._list_wrong(new, words, stop)) < len(self._list_wrong(old, words, stop))

    def _list_wrong(self, picture: PILImage.Image, words: str, stop: threading.Event) -> list[str]:
        """What the MLLM sees otherwise than the words say it."""
        wrong = []
        for answer, question in list_questions(self.questions, words):
            said = self.qa.ask(question, [picture], ANSWER_TOKENS, stop)
            if said and answer.lower() not in said.lower():
                wrong.append(f"{_shorten(said)}, not {answer}")
        return wrong


def open_critic(mllm: MLLM, about: About) -> Critic:
    """The critic that suits a pair's MLLM."""
    return QuestionCritic(mllm, about.check_questions) if about.check_questions else PromptCritic(mllm)


def list_questions(questions: Sequence[tuple[str, str]], words: str) -> list[tuple[str, str]]:
    """What to ask about a picture of these words, as (answer, question)."""
    return [(found["answer"], found.expand(question)) for pattern, question in questions for found in re.finditer(pattern, words)]


def read_verdict(said: str) -> Verdict:
    """The verdict in an MLLM's answer, as JSON or as a sentence that begins with no; one that cannot be read counts as yes."""
    found = parse_json(said)
    if isinstance(found, list):
        found = next((each for each in reversed(found) if isinstance(each, dict)), None)
    if not isinstance(found, dict):
        no = IS_NO.match(said)
        return Verdict(False, _shorten(said[no.end() :])) if no else Verdict()
    named = {str(name).strip().lower(): value for name, value in found.items()}
    if not IS_NO.match(str(named.get("shows", "yes"))):
        return Verdict()
    reason, prompt = (value if isinstance(value := named.get(name), str) else "" for name in ("reason", "prompt"))
    return Verdict(False, _shorten(reason), " ".join(re.sub("[<>]", " ", prompt).split())[:LONGEST_PROMPT])


def look_again(
    critic: Critic,
    first: PictureTry,
    words: str,
    times: int,
    paint: Callable[[int, str], Generator[Event, None, PictureTry | None]],
    stop: threading.Event,
) -> Generator[Event, None, tuple[PictureTry, tuple[Image, ...]]]:
    """Look at a picture, and let it be painted again while it does not show its words.

    Args:
        words: what it should show.
        times: how often it is painted again at most.
        paint: paints the try of a number, from 1, from other words, or from the same where they are ""; `None` where that came to nothing.
        stop: set where the user stopped the answer.

    Returns:
        The picture that stays, and the other ones.
    """
    best, others = first, []
    verdict = critic.check(best.image.picture, words, stop)
    for number in range(1, times + 1):
        if verdict.shows or stop.is_set():
            break
        yield Notice(f"Looks again: {verdict.reason}." if verdict.reason else "Looks again.")
        made = yield from paint(number, verdict.prompt)
        if made is None:
            break
        if critic.prefers(made.image.picture, best.image.picture, words, stop):
            others.append(best.image)
            best = made
            verdict = critic.check(best.image.picture, words, stop) if number < times else verdict
        else:
            others.append(made.image)
    return best, tuple(others)


def _shorten(reason: str) -> str:
    """A reason in one line, without the point at its end."""
    return " ".join(reason.split()).rstrip(" .!")[:LONGEST_REASON]
