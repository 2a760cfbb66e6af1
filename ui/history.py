"""A conversation as the messages of the chat, and an answer while it is being made."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.events import Event, ImageDone, ImageStarted, ImageStep, Stats, TextDelta
from ui.pictures import PictureFolder

PAINTING = Path(__file__).with_name("painting.svg")
SHOWN_PIXELS = 768
ENDED = {
    "user": ["stopped"],
    "max_tokens": ["cut at the longest answer that Options allow"],
    "max_images": ["cut at the most pictures that Options allow"],
}

Message = dict[str, Any]


def text_part(words: str) -> Message:
    """Words as Markdown that can neither become HTML nor fetch a picture from somewhere."""
    safe = re.sub(r"(`+[^`]*`+)|<|!\[", lambda found: found[1] or {"<": "&lt;", "![": "!\\["}[found[0]], words)
    return {"type": "text", "text": safe.strip()}


def picture_part(path: str | Path, alt: str) -> Message:
    """A picture by its file. Written as HTML because the chat drops the alternative text of files."""
    address = f"gradio_api/file={quote(str(path), safe='/:')}"
    image = f'<img class="picture" src="{address}" alt="{html.escape(alt)}">'
    return {"type": "text", "text": f'<a href="{address}" target="_blank" rel="noopener">{image}</a>'}


def alt_words(image: Image, words: str) -> str:
    """What a screen reader says: the picture's own description, else the last sentences before it."""
    plain = " ".join(re.sub(r"[*_`#]", "", image.alt or words).split())
    return plain[-240:] or "A picture"


def note(stats: Stats, seed: int) -> str:
    """The discreet line under an answer."""
    painted = {0: [], 1: ["1 picture"]}.get(stats.images, [f"{stats.images} pictures"])
    return " · ".join([*painted, f"{stats.seconds:.1f} s", f"seed {seed}", *ENDED.get(stats.stopped, [])])


def messages(conversation: Conversation, notes: dict[str, str], pictures: PictureFolder) -> list[Message]:
    """The branch that is shown; `notes` are the lines under the answers, by turn."""
    return [{"role": turn.role, "content": _content(turn, notes.get(turn.id), pictures)} for turn in conversation.path()]


def _content(turn: Turn, line: str | None, pictures: PictureFolder) -> list[Message]:
    parts, words = [], ""
    for part in turn.parts:
        if isinstance(part, Text):
            words = part.text
            parts.append(text_part(words))
        else:
            shown = part.picture.copy()
            shown.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
            parts.append(picture_part(pictures.keep(shown), alt_words(part, words if turn.role == "assistant" else "Your picture")))
    parts = [part for part in parts if part.get("text") != ""]
    return [*parts, {"type": "text", "text": f"<small>{line}</small>"}] if line else parts


class Answer:
    """An answer in the making: takes events in, gives the message and a status line out."""

    def __init__(self, pictures: PictureFolder, previews: PictureFolder) -> None:
        self.pictures, self.previews = pictures, previews
        self.parts: list[str | Message] = []
        self.status = "Thinking ..."

    def take(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                if not self.parts or not isinstance(self.parts[-1], str):
                    self.parts.append("")
                self.parts[-1] += text
                self.status = "Writing ..."
            case ImageStarted(index, _, steps):
                self.parts.append(picture_part(PAINTING, f"Picture {index + 1} is being painted"))
                self.status = f"Painting picture {index + 1} ..."
            case ImageStep(index, step, steps, preview):
                self.status = f"Painting picture {index + 1}, step {step} of {steps} ..."
                if preview is not None:
                    self.parts[-1] = picture_part(self.previews.keep(preview), f"Picture {index + 1} is being painted")
            case ImageDone(_, image):
                self.parts[-1] = picture_part(self.pictures.keep(image.picture), alt_words(image, self._last_words()))

    def _last_words(self) -> str:
        return next((part for part in reversed(self.parts) if isinstance(part, str)), "")

    def message(self) -> Message:
        parts = [text_part(part) if isinstance(part, str) else part for part in self.parts]
        shown = [part for part in parts if part.get("text") != ""]
        return {"role": "assistant", "content": shown or [{"type": "text", "text": "…"}]}
