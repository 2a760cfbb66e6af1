"""Captions for pictures that have none: the pair writes them into text files beside the pictures, where a person can correct them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Conversation
from duogen.dataset.format import Picture
from duogen.events import Done
from duogen.files import write_beside
from duogen.options import ImageOptions, Options, TextOptions

if TYPE_CHECKING:
    from duogen.answerer import Answerer

QUESTION = "Describe this picture in one sentence."


def caption_files(pictures: list[Path]) -> dict[Path, Path]:
    """The text files for the captions of pictures."""
    names = Counter(picture.with_suffix("") for picture in pictures)
    alone = {picture: names[picture.with_suffix("")] == 1 for picture in pictures}
    return {picture: picture.with_suffix(".txt") if own else picture.with_name(f"{picture.name}.txt") for picture, own in alone.items()}


def caption_all(engine: Answerer, pictures: list[Path]) -> Iterator[tuple[Path, str]]:
    """Write NAME.txt beside each picture that has none; yields each picture with its caption. Files that exist are not changed.

    A picture that shares its name with others, but for the ending, gets NAME.ENDING.txt. One that cannot be read is left out.
    """
    files = caption_files(pictures)
    options = Options(0, TextOptions(temperature=0.0, max_tokens=80), ImageOptions(max_images=0, preview_every=0))
    for picture, words in files.items():
        if words.exists():
            continue
        try:
            shown = Picture(picture).with_crop().open()
        except ValueError:
            continue  # it was changed after the folder was read, which names what cannot be read
        said = ""
        for event in engine.answer(Conversation().say("user", shown, QUESTION), options):
            if isinstance(event, Done):
                said = " ".join(event.conversation.path()[-1].text().split())
        if said:
            write_beside(words, said.encode())
            yield picture, said
