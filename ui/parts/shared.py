"""What the tabs share: the engine, the pictures and the controls of the drawer; status lines and warnings."""

from __future__ import annotations

import hashlib
import html
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from duogen.conversation import Image
from duogen.files import explain_disk
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.options import Options
from duogen.picture_input import PICTURE_SIDE, open_picture
from duogen.provenance import find_origin
from ui.parts import controls
from ui.parts.disk_space import DiskSpace
from ui.parts.i18n import translate
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

Updates = dict[Any, Any]
UPLOADS = 8
EMPTY_BOX: dict[str, Any] = {"text": "", "files": []}
QUICK: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}


def session_of(request: gr.Request) -> str:
    """The browser window that a request comes from; "" for a program that names none."""
    return request.session_hash or ""


def tell_scripts(name: str) -> str:
    """JavaScript of an event of the page: tells its scripts, by an event of the document."""
    return f"() => {{ document.dispatchEvent(new Event('{name}')) }}"


def key_of(*names: object) -> str:
    """A short key for something that only the server may know by its names, such as folders."""
    return hashlib.sha256("\0".join(map(str, names)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def draw_seed() -> int:
    return secrets.randbelow(1_000_000)


class Refusal(Exception):
    """A request of the user that is refused; the message is one sentence for the user, and nothing changes."""


def read_event(event: gr.EventData, *names: str) -> list[Any]:
    """What a script of the page sends with an event, by name. Raises Refusal: something is missing."""
    sent = event._data
    if not isinstance(sent, dict) or any(name not in sent for name in names):
        raise Refusal("The page has sent too little; open the page anew.")
    return [sent[name] for name in names]


REFUSALS = (Refusal, ValueError, OSError, sqlite3.OperationalError)  # the last two for a full disk


@dataclass(frozen=True)
class Shared:
    """
    Attributes:
        gallery: all pictures.
        disk_space: what can be freed on the disk.
        previews: of unfinished pictures.
        drawer: the controls of the options, by field.
    """

    loading: Loading
    gallery: Gallery
    disk_space: DiskSpace
    previews: PictureFolder
    drawer: dict[controls.Path, controls.Control]

    def options(self, values: dict[Component, Any]) -> Options:
        """The options in the drawer. An empty seed is drawn here, so that it can be recorded.

        Raises:
            Refusal: a value is out of its range.
        """
        try:
            options = controls.read(Options, self.drawer, values)
        except ValueError as error:
            raise Refusal(str(error)) from error
        return options if options.seed is not None else replace(options, seed=draw_seed())

    def add_upload(self, file: Path) -> Image:
        """Open a picture that came with a message, and add it to the library. Raises ValueError: it cannot be read as a picture."""
        image = _read_upload(file)
        self._keep_image(image)
        return _shrink_upload(image)

    def keep_upload(self, file: Path) -> Path:
        """Add a picture that came with a message to the library; returns its file there. Raises ValueError: it cannot be read."""
        return self._keep_image(_read_upload(file))

    def _keep_image(self, image: Image) -> Path:
        return self.gallery.add(image.picture, PictureInfo(painted=False, origin=image.origin or "")).file

    def restore_options(self, about: PictureInfo) -> Updates:
        """Updates that set the drawer to the settings of a picture, as far as they are known."""
        updates = {}
        for path, control in self.drawer.items():
            value: Any = about.options
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            low, high = getattr(control, "minimum", None), getattr(control, "maximum", None)
            fits = low is None or low <= value <= high if isinstance(value, int | float) else isinstance(value, str)
            if fits and isinstance(value, str) == isinstance(control.value, str):
                updates[control] = value
        return updates | {self.drawer["seed",]: "" if about.seed is None else str(about.seed)}


def open_upload(file: Path) -> Image:
    """Open a picture of a message that `keep_upload` has kept. Raises ValueError: it cannot be read as a picture."""
    return _shrink_upload(_read_upload(file))


def _read_upload(file: Path) -> Image:
    return Image(open_picture(file), origin=find_origin(file))


def _shrink_upload(image: Image) -> Image:
    """The image, whose picture is made smaller in its place."""
    image.picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return image


def check_uploads(files: list[str]) -> None:
    """Raises Refusal: there are too many files for one message."""
    if len(files) > UPLOADS:
        raise Refusal(f"Bring at most {UPLOADS} pictures with a message; these are {len(files)}.")


def translate_html(message: str) -> str:
    """Translate a sentence into the language of the browser, as HTML."""
    return html.escape(translate(message), quote=False)


def status_line(words: str, mood: str = "", act: str = "", share: float | None = None) -> str:
    """`mood` is "busy", "bad" or ""; `act` is a button; `share` is the finished part of the work, from 0 to 1."""
    bar = f'<progress max="1" value="{share:.3f}" aria-label="{translate_html("Progress")}"></progress>' if share is not None else ""
    return f'<div role="status" class="status {mood}"><span>{translate_html(words)}</span>{act}{bar}</div>'


def idle_line(words: str) -> str:
    """A status that nobody waits for, such as which pair is ready: behind a small button."""
    name = translate_html("Details")
    summary = f'<summary title="{name}"><span class="sr">{name}</span></summary>'
    about = f'<div class="menu"><p class="about">{translate_html(words)}</p></div>'
    return f'<div role="status" class="status idle"><details class="more">{summary}{about}</details></div>'


def show_warning(reason: Exception) -> None:
    """Show a warning. Gradio's own errors would cover the page. Raises: `reason` itself, where it is no sentence for a user."""
    words = str(reason) if isinstance(reason, Refusal | ValueError) else explain_disk(reason)
    if not words:
        raise reason
    gr.Warning(translate_html(words), title=translate("One moment"))


def catch_refusals(updates: Iterator[Updates], idle: Component) -> Iterator[Updates]:
    """Show a refusal as a warning; `idle` is any output of the event."""
    try:
        yield from updates
    except REFUSALS as reason:
        show_warning(reason)
        yield {idle: gr.skip()}
