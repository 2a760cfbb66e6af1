"""Captions for pictures that have none: the pair writes them into text files beside the pictures, where a person can correct them."""

from __future__ import annotations

from collections import Counter
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
    """Write NAME.txt beside each picture that has none; yields each picture with its caption. Files that exist are not changed.

    A picture that shares its name with others, but for the ending, gets NAME.ENDING.txt. One that cannot be read is left out.
    """
    options = Options(0, TextOptions(temperature=0.0, max_tokens=80), ImageOptions(max_images=0, preview_every=0))
    names = Counter(picture.with_suffix("") for picture in pictures)
    for picture in pictures:
        words = picture.with_suffix(".txt") if names[picture.with_suffix("")] == 1 else picture.with_name(f"{picture.name}.txt")
        if words.exists():
            continue
        try:
            shown = open_picture(picture)
        except ValueError:
            continue  # it was changed after the folder was read, which names what cannot be read
        said = ""
        for event in engine.answer(Conversation().say("user", shown, QUESTION), options):
            if isinstance(event, Done):
                said = " ".join(event.conversation.path()[-1].text().split())
        if said:
            write_beside(words, said.encode())
            yield picture, said
