"""A conversation as the messages of the chat, and an answer while it is being made.

The sanitizer of the chat keeps the class, title and value of a button. The value is the command of a click, such as "retry TURN" or
"again TURN 2", which `actions.js` sends to the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.events import AnswerBuilder, Event, ImageDone, ImageStarted, ImageStep, Notice, PendingPicture, Stats, TextDelta
from duogen.hub.timings import say_seconds
from ui import STATIC
from ui.chat.safe_html import render_words
from ui.parts.i18n import translate
from ui.parts.pictures import PictureFolder

PAINTING = STATIC / "painting.svg"
SHOWN_PIXELS = 768
STRIP_PIXELS = 96
ENDED = {
    "user": ["stopped"],
    "max_tokens": ["cut at the longest answer that Options allow"],
    "max_images": ["cut at the most pictures that Options allow"],
    "max_context": ["cut at the most that the pair can read"],
}
BROKEN_OFF = "broken off"
UNFINISHED = (BROKEN_OFF, *(words for each in ENDED.values() for words in each))
PICTURE_ACTIONS = [
    ("again", "Paint this picture again"),
    ("words", "Change its words and paint again"),
    ("vary", "Paint four different ones"),
    ("on", "Tell anew what comes after this picture"),
    ("use", "Use this picture in a question"),
    ("studio", "Edit this picture in the studio"),
]

Message = dict[str, Any]


def text_part(words: str) -> Message:
    """Words, read as Markdown, that cannot become HTML of their own or fetch a picture."""
    return {"type": "text", "text": render_words(words)}


def html_part(markup: str) -> Message:
    """Our own HTML, on one line: after a blank line the chat would read words in it as Markdown."""
    return {"type": "text", "text": " ".join(markup.splitlines())}


def thoughts_part(thoughts: str) -> Message:
    """The thoughts before the answer, folded; empty without thoughts."""
    name, words = html.escape(translate("Thoughts")), "<br>".join(map(html.escape, thoughts.strip().splitlines()))
    return html_part(f'<details class="thoughts"><summary>{name}</summary>{words}</details>' if words else "")


def address(path: str | Path) -> str:
    """The URL of a file that the page serves."""
    return f"gradio_api/file={quote(str(path), safe='/:')}"


def button(command: str, name: str, *arguments: object, words: str = "") -> str:
    """A small button that sends "command argument argument" to `ChatActions.run`. It shows an icon, or `words`."""
    value, name = html.escape(" ".join([command, *map(str, arguments)])), html.escape(translate(name))
    shown = html.escape(translate(words)) if words else f'<span class="sr">{name}</span>'
    kind = "worded" if words else f"icon i-{command}"
    return f'<button type="button" class="act {kind}" value="{value}" title="{name}">{shown}</button>'


def picture_part(path: str | Path, alt: str, full: str | Path | None = None, below: str = "", kind: str = "") -> Message:
    """A picture by its file. Written as HTML because the chat drops the alternative text of files.

    Args:
        full: the file that a click opens, if it is another one.
        below: our own HTML under the picture.
        kind: a CSS class.
    """
    image = f'<img class="picture" src="{address(path)}" alt="{html.escape(alt)}">'
    link = f'<a href="{address(full or path)}" target="_blank" rel="noopener">{image}</a>'
    return html_part(f'<figure class="card {kind}">{link}{below}</figure>')


def alt_words(image: Image, words: str) -> str:
    """What a screen reader says: the picture's own description, else the last sentences before it."""
    return last_sentences(image.alt or words) or translate("A picture")


def last_sentences(words: str) -> str:
    """The last sentences of some Markdown on one line."""
    return " ".join(re.sub(r"[*_`#]", "", words).split())[-240:]


def stats_line(stats: Stats, seed: int | None, notices: Iterable[str] = ()) -> str:
    """The small line under an answer. `notices` are what the user was told while it was made."""
    answer_picture = {0: [], 1: ["1 picture"]}.get(stats.images, [f"{stats.images} pictures"])
    return " · ".join([*answer_picture, f"{stats.seconds:.1f} s", f"seed {seed}", *notices, *ENDED.get(stats.stopped, [])])


def messages(conversation: Conversation, notes: dict[str, dict], pictures: PictureFolder) -> list[Message]:
    """The current branch; `notes` are what `ConversationStore.read_about` holds, by turn."""
    return [{"role": turn.role, "content": _content(conversation, turn, notes.get(turn.id, {}), pictures)} for turn in conversation.path()]


def _content(conversation: Conversation, turn: Turn, about: dict, pictures: PictureFolder) -> list[Message]:
    parts, words, number = [], "", 0
    for at, part in enumerate(turn.parts):
        if isinstance(part, Text):
            words = part.text
            parts.append(text_part(words))
        elif turn.role == "user":
            number += 1
            parts.append(question_picture(part, number, pictures))
        else:
            parts.append(answer_picture(conversation, turn, at, alt_words(part, words), pictures))
    said = str(about.get("line", ""))
    noted = " · ".join(map(translate, said.split(" · ")))
    line = f"<small>{html.escape(noted)}</small>" if turn.role == "assistant" else ""
    if said.endswith(UNFINISHED) and parts:
        line += button("on", "Go on with this answer", turn.id, len(turn.parts) - 1, words="Go on")
    shown = [part for part in [thoughts_part(str(about.get("thoughts", ""))), *parts] if part.get("text") != ""]
    return [*shown, html_part(f'<div class="chat-actions">{_turn_actions(conversation, turn)}{line}</div>')]


def waiting_message(words: str, images: tuple[Image, ...], pictures: PictureFolder) -> Message:
    """A question that waits for the answer before it."""
    shown = [question_picture(image, number, pictures) for number, image in enumerate(images, 1)]
    line = f"<small>{html.escape(translate('Sent when this answer is done'))}</small>" + button(
        "recall", "Back into the box", words="Cancel"
    )
    return {"role": "user", "content": [*shown, text_part(words), html_part(f'<div class="chat-actions">{line}</div>')]}


def question_picture(image: Image, number: int, pictures: PictureFolder) -> Message:
    """A picture of a question, with its number."""
    alt, mark = image.alt or translate(f"Your picture {number}"), f'<span class="number">{number}</span>'
    return picture_part(pictures.keep(image.picture, SHOWN_PIXELS), alt, pictures.keep(image.picture), mark, "brought")


def answer_picture(conversation: Conversation, turn: Turn, at: int, alt: str, pictures: PictureFolder) -> Message:
    """A picture of an answer with its buttons and its other versions."""
    picture = turn.image_at(at).picture
    full = pictures.keep(picture)
    name = html.escape(translate("Download"))
    save = f'<a class="act icon i-save" href="{address(full)}" download="duogen.png" title="{name}"><span class="sr">{name}</span></a>'
    actions = "".join(button(command, name, turn.id, at) for command, name in PICTURE_ACTIONS)
    below = f'<div class="chat-actions">{actions}{save}</div>{_versions(conversation, turn, at, pictures)}'
    return picture_part(pictures.keep(picture, SHOWN_PIXELS), alt, full, below)


def _versions(conversation: Conversation, turn: Turn, at: int, pictures: PictureFolder) -> str:
    """The pictures at the same place of sibling answers that are equal in everything else."""
    beside = [conversation.turns[id] for id in conversation.branches(turn.id)]
    same = [other for other in beside if other.id == turn.id or _differ_only_at(turn.parts, other.parts, at)]
    if len(same) < 2:
        return ""
    shown = []
    for number, other in enumerate(same, 1):
        name = html.escape(translate(f"Version {number}"))
        tile = f'<img src="{address(pictures.keep(other.image_at(at).picture, STRIP_PIXELS))}" alt="{name}">'
        chosen = " chosen" if other.id == turn.id else ""
        shown.append(f'<button type="button" class="act tile{chosen}" value="branch {other.id}" title="{name}">{tile}</button>')
    return f'<div class="versions">{"".join(shown)}</div>'


def _differ_only_at(some: tuple[Piece, ...], others: tuple[Piece, ...], at: int) -> bool:
    """Whether two answers are the same but for the picture at `at` and the words right before it."""
    if len(some) != len(others) or _same_picture(some[at], others[at]):
        return False
    for place, (one, other) in enumerate(zip(some, others, strict=True)):
        if type(one) is not type(other):
            return False
        if place == at or (place == at - 1 and isinstance(one, Text)):
            continue
        if one != other or (isinstance(one, Image) and not _same_picture(one, other)):
            return False
    return True


def _same_picture(one: Piece, other: Piece) -> bool:
    return isinstance(one, Image) and isinstance(other, Image) and one.picture is other.picture


def _turn_actions(conversation: Conversation, turn: Turn) -> str:
    beside = conversation.branches(turn.id)
    arrows, at = "", beside.index(turn.id)
    if len(beside) > 1:
        back, on = beside[at - 1], beside[(at + 1) % len(beside)]
        count = f'<span class="count">{at + 1}/{len(beside)}</span>'
        arrows = button("branch", "The branch before", back, words="‹") + count + button("branch", "The next branch", on, words="›")
    actions = [button("copy", "Copy the words", turn.id)]
    if turn.role == "user":
        actions.append(button("edit", "Edit, as a branch", turn.id))
    if turn.role == "assistant":
        actions.append(button("edit", "Correct the words, as a branch", turn.id))
        actions.append(button("pdf", "Save this answer as PDF", conversation.id, turn.id))
        actions.append(button("print", "Print this answer", conversation.id, turn.id))
        actions.append(button("teach", "Use as training example", turn.id))
    actions.append(button("retry", "Answer again with a new seed", turn.id))
    actions.append(button("drop", "Delete, with all that came after it", turn.id))
    return arrows + "".join(actions)


class Answer(AnswerBuilder):
    """An unfinished answer: takes events, and gives the message and a status line.

    Attributes:
        rest: the parts after those that are made, where one picture is repainted.
    """

    def __init__(
        self, pictures: PictureFolder, previews: PictureFolder, parts: tuple[Piece, ...] = (), rest: tuple[Piece, ...] = ()
    ) -> None:
        super().__init__(list(parts))
        self.pictures, self.previews = pictures, previews
        self.rest = rest
        self.status = "Thinking ..."

    def take(self, event: Event) -> None:
        super().take(event)
        match event:
            case TextDelta():
                self.status = f"Writing ... {self.notice}" if self.notice else "Writing ..."
            case ImageStarted(index):
                self.status = f"Painting picture {index + 1} ..."
            case ImageStep(index, step, steps):
                painting = f"Painting picture {index + 1}, step {step} of {steps} ..."
                self.status = f"Painting picture {index + 1}, step {step} of {steps} ... {self.notice}" if self.notice else painting
            case Notice(words):
                self.status = words
            case ImageDone(_, image):
                self.pictures.keep(image.picture, SHOWN_PIXELS)

    def finished_parts(self) -> tuple[Piece, ...]:
        """The complete parts, which stay if the answer ends now."""
        return tuple(self.parts)

    def message(self) -> Message:
        shown, words = [], ""
        for part in [*self.all_parts(), *self.rest]:
            if isinstance(part, Text):
                words = part.text
                shown.append(text_part(words))
            elif isinstance(part, PendingPicture):
                shown.append(self._pending_picture(part, last_sentences(words.strip().rpartition("\n")[2])))
            else:
                shown.append(picture_part(self.pictures.keep(part.picture, SHOWN_PIXELS), alt_words(part, words)))
        shown = [part for part in [thoughts_part(self.thoughts), *shown] if part.get("text") != ""]
        return {"role": "assistant", "content": shown or [{"type": "text", "text": "…"}]}

    def _pending_picture(self, pending: PendingPicture, words: str) -> Message:
        """A picture while it is painted: its preview, its words and the time left."""
        name = html.escape(translate("Steps painted"))
        bar = f'<progress value="{pending.step}" max="{pending.steps}" title="{name}" aria-label="{name}"></progress>'
        bar = bar if pending.steps else ""  # nobody knows how many drafts there will be
        time_left = translate(f"draft {pending.drafts}" if pending.drafts else _say_left(pending.seconds_left()))
        below = f"{bar}<figcaption><span>{html.escape(words)}</span><span>{time_left}</span></figcaption>"
        file = self.previews.keep(pending.preview) if pending.preview else PAINTING
        return picture_part(file, translate(f"Picture {pending.index + 1} is being painted"), below=below, kind="pending")


def _say_left(left: float | None) -> str:
    """The time until a picture is painted."""
    if left is None:
        return "painting ..."
    seconds = max(1, round(left))
    return f"{seconds} s left" if seconds < 90 else f"{say_seconds(seconds)} left"
