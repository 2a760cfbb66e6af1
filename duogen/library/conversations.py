"""Conversations on disk, one folder each, below `DUOGEN_HOME/conversations`; saved after every change and searched by words.

Beside what `save_conversation` writes, a folder holds `about.json`: whether it is pinned, a note for each answer (the line under it, its
seed and options), and the question that is not asked yet. Deleted conversations stay in `.deleted` for a month.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from duogen.conversation import Conversation, load_conversation, save_conversation
from duogen.files import write_beside
from duogen.picture_input import MAX_PIXELS

KEPT_OPEN = 8
KEPT_DELETED_SECONDS = 30 * 24 * 3600
TITLE_LETTERS = 60
ZIP_FILES, ZIP_BYTES, ZIP_TEXT_BYTES, ZIP_PIXELS = 2000, 512 * 1024**2, 32 * 1024**2, 8 * MAX_PIXELS
ZIP_NAMES = re.compile(r"conversation\.json|about\.json|images/[0-9a-f]{64}\.png")
NOT_OURS = "This zip is no conversation that was exported here; bring a file that Export has made."

Note = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A line of the list. `changed` is in seconds since 1970."""

    id: str
    title: str
    pinned: bool
    changed: float


def make_title(words: str) -> str:
    """Make a title from the first words of a question."""
    line = " ".join(words.split())
    if len(line) <= TITLE_LETTERS:
        return line or "Pictures"
    return line[:TITLE_LETTERS].rsplit(" ", 1)[0] + " …"


ID = re.compile("[0-9a-f]{32}")  # checked before a name is joined to a path


class ConversationStore:
    """The folder of all conversations. Thread-safe; changes happen one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.deleted = folder, folder / ".deleted"
        self.deleted.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Conversation] = OrderedDict()
        self._read: dict[str, tuple[tuple[float, float], Entry, str]] = {}
        for left in [*folder.glob(".coming-*"), *self.deleted.iterdir()]:
            if left.parent == folder or time.time() - left.stat().st_ctime > KEPT_DELETED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)

    def list_entries(self, words: str = "") -> list[Entry]:
        """List the conversations that contain all of `words`, pinned ones first, then the newest."""
        wanted, found = words.casefold().split(), []
        with self._lock:
            for file in self.folder.glob("*/conversation.json"):
                try:
                    entry, said = self._summarise(file)
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # opening a damaged one reports the error; the others must be listed
                if all(word in said for word in wanted):
                    found.append(entry)
        return sorted(found, key=lambda entry: (entry.pinned, entry.changed), reverse=True)

    def _summarise(self, file: Path) -> tuple[Entry, str]:
        about = file.with_name("about.json")
        times = (file.stat().st_mtime, about.stat().st_mtime if about.exists() else 0.0)
        known = self._read.get(file.parent.name)
        if known is None or known[0] != times:
            payload = json.loads(file.read_text(encoding="utf-8"))
            said = [part["text"] for turn in payload["turns"] for part in turn["parts"] if part["type"] == "text"]
            entry = Entry(file.parent.name, payload["title"], self.read_about(file.parent.name)["pinned"], times[0])
            known = self._read[entry.id] = (times, entry, " ".join([payload["title"], *said]).casefold())
        return known[1], known[2]

    def open(self, id: str) -> Conversation:
        """Raises: ValueError: there is no such conversation, or it is damaged."""
        with self._lock:
            if id not in self._open:
                self._open[id] = load_conversation(self._folder_of(id))
                while len(self._open) > KEPT_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(id)
            return self._open[id]

    def save(self, conversation: Conversation) -> Conversation:
        """Raises: ValueError: its id is not one that DuoGen gives."""
        if not ID.fullmatch(conversation.id):
            raise ValueError("This conversation has an id that DuoGen never gives.")
        with self._lock:
            save_conversation(conversation, self.folder / conversation.id)
            self._open[conversation.id] = conversation
        return conversation

    def change(self, id: str, how: Callable[[Conversation], Conversation], quiet: bool = False) -> Conversation:
        """Save the result of `how` on a conversation. A `quiet` change does not move it up in the list.

        Raises:
            ValueError: it is gone.
        """
        with self._lock:
            file = self._folder_of(id) / "conversation.json"
            before = file.stat()
            changed = self.save(how(self.open(id)))
            if quiet:
                os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
                self._read.pop(id, None)
            return changed

    def read_about(self, id: str) -> dict[str, Any]:
        """Read `pinned`; `notes`: by turn, `line` (the line under the answer), `seed` and `options`; `unasked`: `text` and `files` of the
        question that waits for the end of an answer, or `None`."""
        try:
            found = json.loads((self._folder_of(id) / "about.json").read_text(encoding="utf-8"))
            notes, waits = {turn: dict(note) for turn, note in found["notes"].items()}, found.get("unasked")
            unasked = {"text": str(waits["text"]), "files": [str(file) for file in waits["files"]]} if waits else None
            return {"pinned": bool(found["pinned"]), "notes": notes, "unasked": unasked}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {"pinned": False, "notes": {}, "unasked": None}

    def save_note(self, id: str, turn: str, note: Note) -> None:
        """Save a note about an answer."""
        with self._lock:
            about = self.read_about(id)
            self._write_about(id, about | {"notes": about["notes"] | {turn: note}})

    def save_unasked(self, id: str, unasked: dict[str, Any] | None) -> None:
        """Save the question to ask later, as `read_about` returns it; `None` removes it."""
        with self._lock:
            about = self.read_about(id)
            if unasked != about["unasked"]:
                self._write_about(id, about | {"unasked": unasked})

    def pin(self, id: str, pinned: bool) -> None:
        with self._lock:
            self._write_about(id, self.read_about(id) | {"pinned": pinned})

    def _write_about(self, id: str, about: dict[str, Any]) -> None:
        write_beside(self._folder_of(id) / "about.json", json.dumps(about, ensure_ascii=False, indent=1).encode())

    def rename(self, id: str, title: str) -> None:
        """Raises: ValueError: the title is empty, or the conversation is gone."""
        if not title.strip():
            raise ValueError("A conversation needs a name; type one.")
        self.change(id, lambda conversation: replace(conversation, title=" ".join(title.split())[:200]), quiet=True)

    def delete(self, id: str) -> None:
        """Move a conversation to the deleted ones, from where `restore` brings it back."""
        with self._lock:
            folder = self._folder_of(id)  # checks the name, before anything is joined to a path or removed
            aside = self.deleted / folder.name
            if aside.exists():
                shutil.rmtree(aside)
            folder.rename(aside)
            os.utime(aside)
            self._open.pop(id, None)

    def measure_deleted(self) -> tuple[int, int]:
        """The number of deleted conversations that can be restored, and their bytes."""
        folders = [folder for folder in self.deleted.iterdir() if folder.is_dir()]
        return len(folders), sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())

    def purge_deleted(self) -> None:
        """Delete the deleted conversations for good."""
        with self._lock:
            for folder in self.deleted.iterdir():
                shutil.rmtree(folder, ignore_errors=True)

    def restore(self, id: str) -> None:
        """Raises: ValueError: it is no longer there."""
        with self._lock:
            if not ID.fullmatch(id) or not (self.deleted / id).is_dir():
                raise ValueError("This conversation is gone for good.")
            (self.deleted / id).rename(self.folder / id)

    def pack(self, id: str) -> bytes:
        """A conversation as a zip, with all branches and pictures."""
        with self._lock:
            folder, data = self._folder_of(id), io.BytesIO()
            with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as packed:  # PNG does not get smaller
                for file in sorted(folder.rglob("*")):
                    name = file.relative_to(folder).as_posix()
                    if ZIP_NAMES.fullmatch(name):
                        packed.write(file, name)
            return data.getvalue()

    def unpack(self, file: Path) -> Conversation:
        """Import what `pack` made as a new conversation. Existing conversations do not change.

        Raises:
            ValueError: it is no such zip, is damaged, or is too large unpacked.
        """
        with tempfile.TemporaryDirectory(prefix=".coming-", dir=self.folder) as folder:
            coming = Path(folder) / uuid.uuid4().hex
            _extract(file, coming)
            try:
                conversation = replace(load_conversation(coming), id=coming.name)
            except (ValueError, AttributeError) as error:
                raise ValueError(f"The conversation in {file.name} is damaged; export it again.") from error
            if not all(isinstance(id, str) and ID.fullmatch(id) for id in conversation.turns):
                raise ValueError(NOT_OURS)
            self.save(replace(conversation, title=str(conversation.title)[:200]))
            about = coming / "about.json"
            if about.exists():
                write_beside(self.folder / coming.name / "about.json", about.read_bytes())
                self._write_about(coming.name, self.read_about(coming.name) | {"pinned": False, "unasked": None})
        return self.open(conversation.id)

    def _folder_of(self, id: str) -> Path:
        if not ID.fullmatch(str(id)) or not (self.folder / id).is_dir():
            raise ValueError("There is no such conversation here; it may have been deleted.")
        return self.folder / id


def _extract(file: Path, folder: Path) -> None:
    """Raises: ValueError: the zip holds files that `ConversationStore.pack` never writes, or too much."""
    try:
        with zipfile.ZipFile(file) as packed:
            inside = packed.infolist()
            if len({each.filename for each in inside}) != len(inside) or not all(ZIP_NAMES.fullmatch(each.filename) for each in inside):
                raise ValueError(NOT_OURS)
            small = all(each.file_size <= ZIP_TEXT_BYTES for each in inside if each.filename.endswith(".json"))
            if not small or len(inside) > ZIP_FILES or sum(each.file_size for each in inside) > ZIP_BYTES:
                raise ValueError(f"{file.name} holds too much; a conversation may have {ZIP_BYTES // 1024**2} MB.")
            (folder / "images").mkdir(parents=True)
            pixels = 0
            for each in inside:
                data = packed.read(each)  # at most the declared size, or it raises
                if each.filename.endswith(".png"):
                    with PILImage.open(io.BytesIO(data)) as picture:  # reads the header only
                        pixels += picture.width * picture.height
                if pixels > ZIP_PIXELS:
                    raise ValueError(f"{file.name} holds too much; its pictures may have {ZIP_PIXELS // 10**6} megapixels together.")
                (folder / each.filename).write_bytes(data)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, PILImage.DecompressionBombError) as error:
        raise ValueError(NOT_OURS) from error
