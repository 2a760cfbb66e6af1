"""Captions for pictures that have none: the pair writes them into text files beside the pictures, where a person can correct them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Conversation
from duogen.events import Done
from duogen.files import write_beside
from duogen.options import ImageOptions, Options, TextOptions
from duogen.picture_input import open_picture

if TYPE_CHECKING:
    from duogen.engine import Engine

QUESTION = "Describe this picture in one sentence."


def caption_all(engine: Engine, pictures: list[Path]) -> Iterator[tuple[Path, str]]:
    """Write NAME.txt beside each picture that has none; yields each picture with its caption. Files that exist are not changed."""
    options = Options(0, TextOptions(temperature=0.0, max_tokens=80), ImageOptions(max_images=0, preview_every=0))
    for picture in pictures:
        words = picture.with_suffix(".txt")
        if words.exists():
            continue
        said = ""
        for event in engine.answer(Conversation().say("user", open_picture(picture), QUESTION), options):
            if isinstance(event, Done):
                said = " ".join(event.conversation.path()[-1].text().split())
        if said:
            write_beside(words, said.encode())
            yield picture, said
