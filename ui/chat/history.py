"""A conversation as the messages of the chat, and an answer while it is being made.

The chat's own sanitizer leaves of a button its class, title and value: the value says what a click wants, "retry TURN" or
"again TURN 2", and `actions.js` brings it to the page.
"""

from __future__ import annotations

import html
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.events import Event, ImageDone, ImageStarted, ImageStep, Notice, Stats, TextDelta, Thought
from duogen.hub.timings import spoken
from ui import STATIC
from ui.parts.i18n import say
from ui.parts.pictures import PictureFolder

PAINTING = STATIC / "painting.svg"
SHOWN_PIXELS = 768
STRIP_PIXELS = 96
ENDED = {
    "user": ["stopped"],
    "max_tokens": ["cut at the longest answer that Options allow"],
    "max_images": ["cut at the most pictures that Options allow"],
}
BROKEN_OFF = "broken off"
UNFINISHED = (BROKEN_OFF, *(words for each in ENDED.values() for words in each))
PICTURE_ACTS = [
    ("again", "Paint this picture again"),
    ("words", "Change its words and paint again"),
    ("vary", "Paint four different ones"),
    ("on", "Tell anew what comes after this picture"),
    ("use", "Use this picture in a question"),
    ("studio", "Edit this picture in the studio"),
]

Message = dict[str, Any]


def text_part(words: str) -> Message:
    """Words as Markdown that can neither become HTML nor fetch a picture from somewhere."""
    safe = re.sub(r"(`+[^`]*`+)|<|!\[", lambda found: found[1] or {"<": "&lt;", "![": "!\\["}[found[0]], words)
    return {"type": "text", "text": safe.strip()}


def thoughts_part(thoughts: str) -> Message:
    """What was thought before the answer, folded; nothing for no thoughts."""
    name, words = html.escape(say("Thoughts")), html.escape(thoughts.strip()).replace("\n", "<br>")
    return {"type": "text", "text": f'<details class="thoughts"><summary>{name}</summary>{words}</details>' if words else ""}


def address(path: str | Path) -> str:
    """Where a browser finds a file that is served."""
    return f"gradio_api/file={quote(str(path), safe='/:')}"


def button(wish: str, name: str, *arguments: object, words: str = "") -> str:
    """A small button whose click reaches `Page.act` as "wish argument argument"; it shows an icon, or `words`."""
    value, name = html.escape(" ".join([wish, *map(str, arguments)])), html.escape(say(name))
    shown = html.escape(say(words)) if words else f'<span class="sr">{name}</span>'
    kind = "worded" if words else f"icon i-{wish}"
    return f'<button type="button" class="act {kind}" value="{value}" title="{name}">{shown}</button>'


def picture_part(path: str | Path, alt: str, full: str | Path | None = None, below: str = "", kind: str = "") -> Message:
    """A picture by its file. Written as HTML because the chat drops the alternative text of files.

    Args:
        full: the file that a click opens, where that is another one.
        below: HTML of our own that stands under the picture.
        kind: a class for the looks.
    """
    image = f'<img class="picture" src="{address(path)}" alt="{html.escape(alt)}">'
    link = f'<a href="{address(full or path)}" target="_blank" rel="noopener">{image}</a>'
    return {"type": "text", "text": f'<figure class="card {kind}">{link}{below}</figure>'}


def alt_words(image: Image, words: str) -> str:
    """What a screen reader says: the picture's own description, else the last sentences before it."""
    return plain(image.alt or words) or say("A picture")


def plain(words: str) -> str:
    """The last sentences of some Markdown on one line."""
    return " ".join(re.sub(r"[*_`#]", "", words).split())[-240:]


def note(stats: Stats, seed: int) -> str:
    """The discreet line under an answer."""
    painted = {0: [], 1: ["1 picture"]}.get(stats.images, [f"{stats.images} pictures"])
    return " · ".join([*painted, f"{stats.seconds:.1f} s", f"seed {seed}", *ENDED.get(stats.stopped, [])])


def messages(conversation: Conversation, notes: dict[str, dict], pictures: PictureFolder) -> list[Message]:
    """The branch that is shown; `notes` are what `Store.about` holds, by turn."""
    return [{"role": turn.role, "content": _content(conversation, turn, notes.get(turn.id, {}), pictures)} for turn in conversation.path()]


def _content(conversation: Conversation, turn: Turn, about: dict, pictures: PictureFolder) -> list[Message]:
    parts, words, number = [], "", 0
    for at, part in enumerate(turn.parts):
        if isinstance(part, Text):
            words = part.text
            parts.append(text_part(words))
        elif turn.role == "user":
            number += 1
            parts.append(brought(part, number, pictures))
        else:
            parts.append(painted(conversation, turn, at, alt_words(part, words), pictures))
    said = str(about.get("line", ""))
    noted = " · ".join(map(say, said.split(" · ")))
    line = f"<small>{html.escape(noted)}</small>" if turn.role == "assistant" else ""
    if said.endswith(UNFINISHED) and parts:
        line += button("on", "Go on with this answer", turn.id, len(turn.parts) - 1, words="Go on")
    shown = [part for part in [thoughts_part(str(about.get("thoughts", ""))), *parts] if part.get("text") != ""]
    return [*shown, {"type": "text", "text": f'<div class="acts">{_turn_acts(conversation, turn)}{line}</div>'}]


def waiting_message(words: str, images: tuple[Image, ...], pictures: PictureFolder) -> Message:
    """A question that is asked when the answer before it is done."""
    shown = [brought(image, number, pictures) for number, image in enumerate(images, 1)]
    line = f"<small>{html.escape(say('Is sent when this answer is done'))}</small>" + button("recall", "Back into the box", words="Cancel")
    return {"role": "user", "content": [*shown, text_part(words), {"type": "text", "text": f'<div class="acts">{line}</div>'}]}


def brought(image: Image, number: int, pictures: PictureFolder) -> Message:
    """A picture of a question, with the number by which the question can name it."""
    alt, mark = image.alt or say(f"Your picture {number}"), f'<span class="number">{number}</span>'
    return picture_part(pictures.keep(image.picture, SHOWN_PIXELS), alt, pictures.keep(image.picture), mark, "brought")


def painted(conversation: Conversation, turn: Turn, at: int, alt: str, pictures: PictureFolder) -> Message:
    """A picture of an answer with what can be done to it, and its other versions."""
    picture = turn.parts[at].picture
    full = pictures.keep(picture)
    name = html.escape(say("Download"))
    save = f'<a class="act icon i-save" href="{address(full)}" download="duogen.png" title="{name}"><span class="sr">{name}</span></a>'
    acts = "".join(button(wish, name, turn.id, at) for wish, name in PICTURE_ACTS)
    below = f'<div class="acts">{acts}{save}</div>{_versions(conversation, turn, at, pictures)}'
    return picture_part(pictures.keep(picture, SHOWN_PIXELS), alt, full, below)


def _versions(conversation: Conversation, turn: Turn, at: int, pictures: PictureFolder) -> str:
    """The pictures that the answers beside this one have in its place, where they are the same in all else."""
    beside = [conversation.turns[id] for id in conversation.branches(turn.id)]
    same = [other for other in beside if other.id == turn.id or _differ_only_at(turn.parts, other.parts, at)]
    if len(same) < 2:
        return ""
    shown = []
    for number, other in enumerate(same, 1):
        name = html.escape(say(f"Version {number}"))
        tile = f'<img src="{address(pictures.keep(other.parts[at].picture, STRIP_PIXELS))}" alt="{name}">'
        chosen = " chosen" if other.id == turn.id else ""
        shown.append(f'<button type="button" class="act tile{chosen}" value="branch {other.id}" title="{name}">{tile}</button>')
    return f'<div class="versions">{"".join(shown)}</div>'


def _differ_only_at(some: tuple[Piece, ...], others: tuple[Piece, ...], at: int) -> bool:
    """Whether two answers are the same but for the picture at `at` and the words right before it."""
    if len(some) != len(others):
        return False
    for place, (one, other) in enumerate(zip(some, others, strict=True)):
        if type(one) is not type(other):
            return False
        if place == at or (place == at - 1 and isinstance(one, Text)):
            continue
        if one != other or (isinstance(one, Image) and one.picture is not other.picture):
            return False
    return some[at].picture is not others[at].picture


def _turn_acts(conversation: Conversation, turn: Turn) -> str:
    beside = conversation.branches(turn.id)
    arrows, at = "", beside.index(turn.id)
    if len(beside) > 1:
        back, on = beside[at - 1], beside[(at + 1) % len(beside)]
        count = f'<span class="count">{at + 1}/{len(beside)}</span>'
        arrows = button("branch", "The branch before", back, words="‹") + count + button("branch", "The next branch", on, words="›")
    acts = [button("copy", "Copy the words", turn.id)]
    if turn.role == "user":
        acts.append(button("edit", "Edit, as a branch", turn.id))
    if turn.role == "assistant":
        acts.append(button("edit", "Correct the words, as a branch", turn.id))
        acts.append(button("pdf", "Save this answer as PDF", conversation.id, turn.id))
        acts.append(button("print", "Print this answer", conversation.id, turn.id))
        acts.append(button("teach", "Use as training example", turn.id))
    acts.append(button("retry", "Answer again with a new seed", turn.id))
    acts.append(button("drop", "Delete, with all that came after it", turn.id))
    return arrows + "".join(acts)


@dataclass
class Pending:
    """A picture that is being painted.

    Attributes:
        usual: seconds that the picture before took, else what is expected; 0 where neither is known.
    """

    index: int
    steps: int
    usual: float
    step: int = 0
    preview: PILImage.Image | None = None

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def seconds_left(self) -> int | None:
        """`None` while nobody can know."""
        gone = time.monotonic() - self.started
        whole = gone / self.step * self.steps if self.step else self.usual
        return max(1, round(whole - gone)) if whole else None


class Answer:
    """An answer in the making: takes events in, gives the message and a status line out.

    Attributes:
        parts: what it has so far, the picture being painted included.
        rest: what stands after that already, where one picture is painted anew.
    """

    def __init__(
        self, pictures: PictureFolder, previews: PictureFolder, parts: tuple[Piece, ...] = (), rest: tuple[Piece, ...] = ()
    ) -> None:
        self.pictures, self.previews = pictures, previews
        self.parts: list[Piece | Pending] = list(parts)
        self.rest = rest
        self.status = "Thinking ..."
        self.notice = self.thoughts = ""

    def take(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                said = self.parts.pop().text if self.parts and isinstance(self.parts[-1], Text) else ""
                self.parts.append(Text(said + text))
                self.status = "Writing ..."
            case Thought(text):
                self.thoughts += text
            case ImageStarted(index, _, steps, seconds):
                usual = next((part.seconds for part in reversed(self.parts) if isinstance(part, Image) and part.seconds), seconds)
                self.parts.append(Pending(index, steps, usual))
                self.status = f"Painting picture {index + 1} ..."
            case ImageStep(index, step, steps, preview):
                pending = self.parts[-1]
                pending.step, pending.preview = step, preview or pending.preview
                self.status = " ".join([f"Painting picture {index + 1}, step {step} of {steps} ...", self.notice]).strip()
            case Notice(words):
                self.status = self.notice = words
            case ImageDone(_, image):
                self.pictures.keep(image.picture, SHOWN_PIXELS)
                self.parts[-1] = image

    def finished(self) -> tuple[Piece, ...]:
        """The parts that would stay if it ended now."""
        return tuple(part for part in self.parts if not isinstance(part, Pending))

    def message(self) -> Message:
        shown, words = [], ""
        for part in [*self.parts, *self.rest]:
            if isinstance(part, Text):
                words = part.text
                shown.append(text_part(words))
            elif isinstance(part, Pending):
                shown.append(self._card(part, plain(words.strip().rpartition("\n")[2])))
            else:
                shown.append(picture_part(self.pictures.keep(part.picture, SHOWN_PIXELS), alt_words(part, words)))
        shown = [part for part in [thoughts_part(self.thoughts), *shown] if part.get("text") != ""]
        return {"role": "assistant", "content": shown or [{"type": "text", "text": "…"}]}

    def _card(self, pending: Pending, words: str) -> Message:
        """The place of a picture while it is painted: its words, how it looks by now, how long it takes yet."""
        left = pending.seconds_left()
        time_left = say((f"{left} s left" if left < 90 else f"{spoken(left)} left") if left else "painting ...")
        name = html.escape(say("Steps painted"))
        bar = f'<progress value="{pending.step}" max="{pending.steps}" title="{name}" aria-label="{name}"></progress>'
        below = f"{bar}<figcaption><span>{html.escape(words)}</span><span>{time_left}</span></figcaption>"
        file = self.previews.keep(pending.preview) if pending.preview else PAINTING
        return picture_part(file, say(f"Picture {pending.index + 1} is being painted"), below=below, kind="pending")
