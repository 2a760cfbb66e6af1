"""Saved references: characters, things and styles with a name, words and pictures, which messages mention as "@name".

Each is a folder below `DUOGEN_HOME/references`: `about.json`, and its pictures by number. Deleted ones stay in `.deleted` for a month.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from duogen.content_credentials import encode_signed
from duogen.conversation import REFERENCE as ROLE
from duogen.conversation import REFERENCE_KINDS, Conversation, Image, Reference, Text
from duogen.files import fill_folder, make_folder, move, read_record, write_beside
from duogen.library.deletions import remove_leftovers, remove_old
from duogen.mentions import check_name, find_mentions, fold_name
from duogen.paths import data_home
from duogen.picture_input import PICTURE_SIDE, open_picture
from duogen.provenance import find_origin
from duogen.text_decoding import clean_message, cut_text

MOST_PICTURES = 8  # of a reference, and of a message that a person types
WORDS_LETTERS = 400
ABOUT = "about.json"


@dataclass(frozen=True)
class SavedReference:
    """A reference on the disk. `files` are its pictures."""

    about: Reference
    files: tuple[Path, ...]

    def open_images(self) -> list[Image]:
        """Its pictures, as a message holds them. Raises ValueError: one cannot be read."""
        alt = self.about.words or self.about.name
        return [Image(open_picture(file), alt=alt, origin=find_origin(file), reference=self.about, role=ROLE) for file in self.files]


class ReferenceStore:
    """The references in a folder. Changes happen one after the other, also those of several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.deleted = folder, folder / ".deleted"
        self._lock = threading.RLock()

    def remove_leftovers(self) -> None:
        """Delete for good what was deleted a month ago, and what killed processes left."""
        with self._hold_lock():
            remove_old(self.deleted)
            remove_leftovers(self.folder)

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        """Keep other threads and processes from changing anything meanwhile."""
        make_folder(self.deleted)
        with self._lock, FileLock(self.deleted / ".lock", thread_local=False):
            yield

    def list_references(self) -> list[SavedReference]:
        """The references by name, without damaged ones."""
        folders = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        found = (_read_reference(folder) for folder in folders if folder.name[0] != "." and folder.is_dir())
        return sorted((each for each in found if each), key=lambda each: fold_name(each.about.name))

    def find(self, name: str) -> SavedReference:
        """Raises ValueError: there is no such reference."""
        listed = self.list_references()
        for each in listed:
            if fold_name(each.about.name) == fold_name(name.strip().removeprefix("@")):
                return each
        known = ", ".join(f"@{each.about.name}" for each in listed)
        if not known:
            raise ValueError(f"There is no reference called {name.strip()}; none is saved yet.")
        raise ValueError(f"There is no reference called {name.strip()}; there are {known}.")

    def add(self, about: Reference, images: Sequence[Image]) -> SavedReference:
        """Save a new reference. Raises ValueError: its name is taken or cannot be one, or the pictures are too many or none."""
        about = _check_about(about)
        _check_count(len(images))
        with self._hold_lock():
            self._check_free(about.name)
            folder = self.folder / fold_name(about.name)
            with fill_folder(folder) as part:
                for number, image in enumerate(images, 1):
                    _write_picture(image, part / f"{number}.png")
                _write_about(about, part)
            return self.find(about.name)

    def add_pictures(self, name: str, images: Sequence[Image]) -> SavedReference:
        """Add pictures to a reference. Raises ValueError: there is none of this name, or the pictures are too many."""
        with self._hold_lock():
            known = self.find(name)
            _check_count(len(known.files) + len(images))
            last = int(known.files[-1].stem)
            for number, image in enumerate(images, last + 1):
                _write_picture(image, known.files[-1].with_name(f"{number}.png"))
            return self.find(name)

    def change(self, name: str, about: Reference) -> SavedReference:
        """Give a reference another name, kind or words. Raises ValueError: there is none, or the new name is taken or cannot be one."""
        about = _check_about(about)
        with self._hold_lock():
            folder, new = self.find(name).files[0].parent, self.folder / fold_name(about.name)
            if folder == new:
                _write_about(about, folder)
                return self.find(about.name)
            self._check_free(about.name)
            with fill_folder(new) as part:
                shutil.copytree(folder, part, dirs_exist_ok=True)
                _write_about(about, part)
            shutil.rmtree(folder)
            return self.find(about.name)

    def delete(self, name: str) -> None:
        """Move a reference to the deleted ones, from where `restore` brings it back. Raises ValueError: there is none of this name."""
        with self._hold_lock():
            folder = self.find(name).files[0].parent
            aside = self.deleted / folder.name
            if aside.exists():
                shutil.rmtree(aside)
            move(folder, aside)
            os.utime(aside)

    def restore(self, name: str) -> SavedReference:
        """Raises ValueError: it is gone for good, or its name is taken again."""
        with self._hold_lock():
            aside = self.deleted / fold_name(check_name(name))
            if not aside.is_dir():
                raise ValueError("This reference is gone for good.")
            self._check_free(name)
            move(aside, self.folder / aside.name)
            return self.find(name)

    def _check_free(self, name: str) -> None:
        """Raises ValueError: a reference has this name."""
        for each in self.list_references():
            if fold_name(each.about.name) == fold_name(name):
                raise ValueError(f"There is a reference called @{each.about.name} already; choose another name.")
        if (self.folder / fold_name(name)).exists():
            raise ValueError(f"A damaged reference is in {self.folder / fold_name(name)}; mend or delete it, or choose another name.")

    def find_mentioned(self, *texts: str) -> list[SavedReference]:
        """The references that a message mentions, in order."""
        saved = {fold_name(each.about.name): each for each in self.list_references()} if any("@" in text for text in texts) else {}
        return [saved[name] for name in dict.fromkeys(mention.name for text in texts for mention in find_mentions(text, saved))]

    def check_room(self, words: str, count: int, most: int) -> None:
        """Raises ValueError: with the pictures of the references that it mentions, a message of `count` pictures has more than `most`."""
        mentioned = self.find_mentioned(words)
        count += sum(len(each.files) for each in mentioned)
        if mentioned and count > most:
            names = ", ".join(f"@{each.about.name}" for each in mentioned)
            raise ValueError(f"A message takes {most} pictures at most; with those of {names} these are {count}, so leave some out.")

    def attach(self, conversation: Conversation) -> Conversation:
        """The conversation whose last message holds the pictures of the references that it mentions, before its words.

        Raises:
            ValueError: one of them cannot be read.
        """
        turn = conversation.turns[conversation.head or ""]
        mentioned = self.find_mentioned(*(part.text for part in turn.parts if isinstance(part, Text)))
        if not mentioned:
            return conversation
        images = [image for each in mentioned for image in each.open_images()]
        first = next(at for at, part in enumerate(turn.parts) if isinstance(part, Text))
        return conversation.with_turn(replace(turn, parts=(*turn.parts[:first], *images, *turn.parts[first:])))


def open_references() -> ReferenceStore:
    """The references of this user."""
    return ReferenceStore(data_home() / "references")


def _read_reference(folder: Path) -> SavedReference | None:
    """`None` for a folder whose record is damaged or that holds no picture."""
    known = read_record(folder / ABOUT)
    files = sorted((file for file in folder.glob("*.png") if file.stem.isdecimal()), key=lambda file: int(file.stem))
    with contextlib.suppress(ValueError, KeyError, AttributeError):
        about = _check_about(Reference(known["name"], known["kind"], known["words"]))
        return SavedReference(about, tuple(files)) if files else None
    return None


def _check_about(about: Reference) -> Reference:
    """As it is saved. Raises ValueError: its name cannot be one, or it is of no known kind."""
    if about.kind not in REFERENCE_KINDS:
        raise ValueError(f"A reference is a {', a '.join(REFERENCE_KINDS[:-1])} or a {REFERENCE_KINDS[-1]}, not {about.kind}.")
    words = cut_text(" ".join(clean_message(about.words).split()), WORDS_LETTERS)
    return Reference(check_name(about.name), about.kind, words.rstrip(" ."))


def _check_count(count: int) -> None:
    if not 1 <= count <= MOST_PICTURES:
        raise ValueError(f"A reference has from 1 to {MOST_PICTURES} pictures, not {count}.")


def _write_picture(image: Image, file: Path) -> None:
    picture = image.picture.convert("RGB")
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    write_beside(file, encode_signed(picture, "PNG", image.origin, image.is_painted))


def _write_about(about: Reference, folder: Path) -> None:
    write_beside(folder / ABOUT, json.dumps(asdict(about), ensure_ascii=False, indent=1).encode())
