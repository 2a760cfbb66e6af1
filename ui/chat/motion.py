"""A picture of an answer set in motion: what the dialog shows beforehand, the request that it makes, and the work of the job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duogen.conversation import Conversation, Image, Motion, Text, Turn
from duogen.library.conversations import ConversationStore
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.options import LONGEST_MOTION, MOST_MOTION_STEPS
from duogen.text_decoding import clean_message
from ui.chat.history import last_sentences
from ui.parts.i18n import translate
from ui.parts.loading import Loading
from ui.parts.shared import Refusal
from ui.parts.video_models import open_plan, stream_motion

if TYPE_CHECKING:
    from duogen.motion import MotionRequest

SHORTEST = 0.2  # seconds of an animation
SAID = "The picture is animated; the animation is beside it and in the Library."


@dataclass(frozen=True)
class MotionTask:
    """An animation to be made.

    Attributes:
        turn: the answer whose picture at `at` it begins with; `to`: the place of the picture it ends with, `None` where that is open.
        words: what happens. `seconds`, `steps`: `None` for the model's own.
        model: id, repository or folder of the video model, "" for the first one that is here.
    """

    turn: str
    at: int
    to: int | None
    words: str
    model: str = ""
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0

    def request(self, turn: Turn) -> MotionRequest:
        """What the video model is asked. Raises ValueError: as `MotionRequest`."""
        from duogen.motion import MotionRequest

        first, last = turn.image_at(self.at), turn.image_at(self.to) if self.to is not None else None
        return MotionRequest(
            first.picture, self.words, last.picture if last else None, self.seconds, self.steps, self.seed, first.origin
        )  # fmt: skip


def find_next(turn: Turn, at: int) -> int | None:
    """The place of the picture after the one at `at`."""
    return next((place for place in range(at + 1, len(turn.parts)) if isinstance(turn.parts[place], Image)), None)


def read_task(turn: Turn, at: int, goes_on: bool, given: Any, seed: int) -> MotionTask:
    """The task that the dialog asks for. Raises Refusal: something of it is missing or out of range."""
    given = given if isinstance(given, dict) else {}
    words, to = clean_message(str(given.get("words") or "")), find_next(turn, at) if goes_on else None
    if not words:
        raise Refusal("Say what happens, in a few words: they lead the animation.")
    if goes_on and to is None:
        raise Refusal("There is no next step; animate this one alone.")
    seconds, steps = _read_number(given.get("seconds")), _read_number(given.get("steps"))
    if seconds is not None and not SHORTEST <= seconds <= LONGEST_MOTION:
        raise Refusal(f"The seconds must be from {SHORTEST} to {LONGEST_MOTION:g}.")
    if steps is not None and not (1 <= steps <= MOST_MOTION_STEPS and steps == int(steps)):
        raise Refusal(f"The steps must be a whole number from 1 to {MOST_MOTION_STEPS}.")
    turn.image_at(at)
    return MotionTask(turn.id, at, to, words, str(given.get("model") or ""), seconds, int(steps) if steps else None, seed)


def _read_number(value: Any) -> float | None:
    """A number that was typed, `None` for none. Raises Refusal: it is no number."""
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Refusal("The seconds and the steps are numbers.") from error


class MotionFunctions:
    """What the dialog asks the server."""

    def __init__(self, store: ConversationStore, loading: Loading) -> None:
        self.store, self.loading = store, loading

    def functions(self) -> list[Callable]:
        def describe_motion(asked: dict) -> dict:
            return self.describe(asked)

        return [describe_motion]

    def describe(self, asked: dict) -> dict[str, Any]:
        """The models that are here, the words of a step, and what the chosen model would need; or `error`, one sentence.

        Args:
            asked: `chat`, `turn`, `at`, `on` (whether to the next step), `model`, `seconds`, `steps`.
        """
        from duogen.hub.motion import explain_none, list_video_models

        try:
            turn, at = self.store.open(str(asked["chat"])).turns[str(asked["turn"])], int(asked["at"])
            turn.image_at(at)
            here = [{"id": id, "title": title} for id, title in list_video_models()]
            hint = "" if here else translate(explain_none() + ".")
            model = str(asked.get("model") or (here[0]["id"] if here else ""))
            plan = self._plan(model, asked) if model else ""
            return {"models": here, "model": model, "hint": hint, "words": find_words(turn, at, bool(asked.get("on"))), "plan": plan}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return {"error": str(error) if isinstance(error, ValueError) else translate("That is no longer there; open the page anew.")}

    def _plan(self, model: str, asked: dict) -> str:
        """What an animation would need, or why it cannot be made."""
        from duogen.hub.motion import plan_motion

        try:
            seconds, steps = _read_number(asked.get("seconds")), int(_read_number(asked.get("steps")) or 0) or None
            plan = plan_motion(model, self.loading.load_for_others(), seconds, steps, closing=open_plan(self.loading))
            plan.check_ends(bool(asked.get("on")))
        except (ValueError, Refusal) as error:
            return translate(str(error))
        return " ".join(map(translate, plan.sentences()))


def find_words(turn: Turn, at: int, goes_on: bool) -> str:
    """What the dialog offers as words: those of the step, to the next one those of that."""
    place = find_next(turn, at) if goes_on else at
    image = turn.image_at(place if place is not None else at)
    before = turn.parts[(place or at) - 1] if (place or at) else None
    return last_sentences(image.alt or (before.text if isinstance(before, Text) else ""))


def animate_turn(loading: Loading, task: MotionTask, turn: Turn, about: PictureInfo, stop: threading.Event) -> Generator[Any, None, None]:
    """The events of an animation of an answer's picture. Raises ValueError: one sentence for the user."""
    from duogen.hub.motion import plan_motion

    request = task.request(turn)

    def plan(closed: Any) -> Any:
        made = plan_motion(task.model, loading.load_for_others(), task.seconds, task.steps, closing=closed)
        return made.check_ends(request.last is not None)

    yield from stream_motion(loading, lambda animator: animator.animate(request, stop, about), plan)


def keep_motion(store: ConversationStore, gallery: Gallery, chat: str, task: MotionTask, data: bytes) -> None:
    """Save an animation beside its picture and in the Library. Raises ValueError: the conversation is gone."""

    def add(now: Conversation) -> Conversation:
        return now.with_changed(now.turns[task.turn].with_motion(task.at, Motion(data, task.words)))

    store.change(chat, add, quiet=True)
    gallery.add_motion(data)


def describe_source(chat: str, turn: Turn, task: MotionTask) -> PictureInfo:
    """What the file says of where it came from."""
    return replace(PictureInfo(), caption=turn.image_at(task.at).alt, conversation=chat, turn=turn.id)
