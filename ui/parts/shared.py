"""What the tabs share: the engine on its way, the pictures, the drawer; and how they tell a person something."""

from __future__ import annotations

import html
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from duogen.conversation import Image, open_picture
from duogen.library.picture_file import About
from duogen.library.pictures import Gallery
from duogen.options import Options
from ui.api.requests import PICTURE_SIDE
from ui.parts import controls
from ui.parts.disk_space import Space
from ui.parts.i18n import say
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

Updates = dict[Any, Any]
UPLOADS = 8
EMPTY_BOX = {"text": "", "files": []}
QUICK = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def new_seed() -> int:
    return secrets.randbelow(1_000_000)


class Refused(Exception):
    """What was asked for is not to be had now; the message is one sentence for the user, and nothing changes."""


@dataclass(frozen=True)
class Shared:
    """
    Attributes:
        gallery: all pictures.
        space: on the disk, that can be had back.
        previews: of pictures in the making.
        drawer: the controls of the options, by field.
    """

    loading: Loading
    gallery: Gallery
    space: Space
    previews: PictureFolder
    drawer: dict[controls.Path, Component]

    def options(self, values: dict[Component, Any]) -> Options:
        """What the drawer says; an empty seed is drawn here, so that it can be written down.

        Raises:
            Refused: a value is out of its range.
        """
        try:
            options = controls.read(Options, self.drawer, values)
        except ValueError as error:
            raise Refused(str(error)) from error
        return options if options.seed is not None else replace(options, seed=new_seed())

    def brought(self, file: Path) -> Image:
        """A picture that came with a message, in the library too. Raises ValueError: it cannot be read as a picture."""
        picture = open_picture(file)
        self.gallery.add(picture, About(painted=False))
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        return Image(picture)

    def restored(self, about: About) -> Updates:
        """The drawer as it stood for a picture, as far as that is known."""
        updates = {}
        for path, control in self.drawer.items():
            value: Any = about.options
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            low, high = getattr(control, "minimum", None), getattr(control, "maximum", None)
            if isinstance(value, int | float) and (low is None or low <= value <= high):
                updates[control] = value
        return updates | {self.drawer["seed",]: "" if about.seed is None else str(about.seed)}


def check_uploads(files: list[str]) -> None:
    """Raises Refused: these are too many for one message."""
    if len(files) > UPLOADS:
        raise Refused(f"Bring at most {UPLOADS} pictures with a message; these are {len(files)}.")


def sentence(message: str) -> str:
    """A sentence in the language of the browser, as HTML."""
    return html.escape(say(message), quote=False)


def status_line(words: str, mood: str = "", act: str = "", share: float | None = None) -> str:
    """`mood` is "busy", "bad" or nothing; `act` is a button; `share` is how much of the work is done, from 0 to 1."""
    bar = f'<progress max="1" value="{share:.3f}" aria-label="{sentence("Progress")}"></progress>' if share is not None else ""
    return f'<div role="status" class="status {mood}"><span>{sentence(words)}</span>{act}{bar}</div>'


def refused(reason: Exception) -> None:
    """Gradio's own errors would be laid over the page."""
    gr.Warning(sentence(str(reason)), title=say("One moment"))


def kind_words(updates: Iterator[Updates], idle: Component) -> Iterator[Updates]:
    """A refusal on the way becomes a word to the user; `idle` is any output."""
    try:
        yield from updates
    except (Refused, ValueError) as reason:
        refused(reason)
        yield {idle: gr.skip()}
