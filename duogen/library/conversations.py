"""Conversations on disk, one folder each, below `DUOGEN_HOME/conversations`; saved after every change and searched by words.

Beside what `save_conversation` writes, a folder holds `about.json`: whether it is pinned, its tags, a note for each answer (the line
under it, its seed and options), and the questions that are not asked yet. Deleted conversations stay in `.deleted` for a month. One
server holds the home (`duogen.paths.lock_home`); commands beside it may read and change conversations, since each change reads what is on
the disk first.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from duogen.conversation import ROLES, Conversation, load_conversation, read_payload, save_conversation
from duogen.files import make_folder, move, place_folder, read_bytes, read_record, write_beside
from duogen.library.conversation_zip import ABOUT, CONVERSATION, NOT_OURS, extract_zip, pack_folder
from duogen.library.deletions import remove_leftovers, remove_old
from duogen.text_decoding import clean_text, clean_title, cut_text, fold_text

KEPT_OPEN = 8
TITLE_LETTERS, NAME_LETTERS = 60, 200
MOST_TAGS, TAG_LETTERS = 8, 30
BETWEEN_TAGS = re.compile(r"[\s,;，、；]+")
STEP_SECONDS = 0.001
TITLE_IN_DAMAGE = re.compile(rb'"title": ?("(?:[^"\\]|\\.)*")')
GONE = "There is no such conversation here; it may have been deleted."
NUMBERED = re.compile(r" \(\d+\)$")
ID = re.compile("[0-9a-f]{32}")  # checked before a name is joined to a path
# What leads to the subject of a request, in the languages of the page.
OPENINGS = (
    re.compile(
        r"(?:(?:please|hi|hello|hey|(?:can|could|would) you)[,!]? +)*"
        r"(?:(?:how (?:do|can|should|would) (?:i|you|we)|how to|(?:show|teach|tell) me,? how (?:to|i can)|explain how to|show me|give me)\b"
        r"(?: +(?:draw|paint|sketch|make)\b)?|(?:draw|paint|sketch)\b)"
        r"(?: +(?:me|us)\b)?(?: +(?:a picture|pictures) of\b)?(?: +(?:an?|the|some)\b)?",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?:bitte,? +)?(?:wie (?:(?:male?|zeichne|mache?|baue) ich|(?:malt|zeichnet|macht|baut) man)"
        r"|(?:zeige?|erklär[e']?) mir,? wie (?:man|ich)|zeige? mir|male?|zeichne)\b(?: mir\b)?(?: (?:eine?[nmrs]?|der|die|das|den)\b)?",
        re.IGNORECASE,
    ),
    re.compile(r"(?:请问?|帮我|给我)*(?:(?:怎么|怎样|如何|教我(?:怎么)?)(?:画|做)?|画|做)(?:出)?(?:[一两三几][个只座朵棵辆条艘幅张间匹])?"),
)
CLOSINGS = re.compile(r"(?: (?:malt|male|zeichnet|zeichne|macht|baut))?[ .!?？！。…]*$", re.IGNORECASE)

Note = dict[str, Any]
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A line of the list. `changed` is in seconds since 1970; `damaged` says that the conversation cannot be opened; `picture` is the file
    of its newest picture, of those that were painted if there are any."""

    id: str
    title: str
    pinned: bool
    changed: float
    damaged: bool = False
    picture: Path | None = field(default=None, compare=False)
    tags: tuple[str, ...] = ()


def make_title(words: str) -> str:
    """Make a title from the subject of a question, else from its first words."""
    line = clean_title(words)
    line = find_subject(line) or line
    if len(line) <= TITLE_LETTERS:
        return line or "Pictures"
    return cut_text(line, TITLE_LETTERS) + " …"


def find_subject(line: str) -> str:
    """What a request is about: "How do I draw a red house?" is about "Red house"; "" where nothing is left."""
    led = max((found.end() for opening in OPENINGS if (found := opening.match(line))), default=0)
    subject = CLOSINGS.sub("", line[led:]).strip()
    return subject[:1].upper() + subject[1:] if led else ""


def split_tags(words: str) -> list[str]:
    """The tags in what a person typed: each is one word, without the "#" before it; the same one counts once.

    Raises:
        ValueError: they are too many or too long.
    """
    tags = _clean_tags(BETWEEN_TAGS.split(words))
    if len(tags) > MOST_TAGS or any(len(tag) > TAG_LETTERS for tag in tags):
        raise ValueError(f"A conversation takes at most {MOST_TAGS} tags of {TAG_LETTERS} letters each; leave some out or shorten them.")
    return tags


def list_tags(entries: Iterable[Entry]) -> list[str]:
    """The tags of conversations in the order of the alphabet, as the first conversation spells them."""
    return sorted({fold_tag(tag): tag for entry in reversed([*entries]) for tag in entry.tags}.values(), key=fold_tag)


@functools.lru_cache(10_000)
def fold_tag(tag: str) -> str:
    """A tag as a search finds it: "#cake"."""
    return "#" + fold_text(tag)


def _clean_tags(words: Iterable[str]) -> list[str]:
    cleaned = ("-".join(clean_title(word).split()).lstrip("#＃") for word in words)
    return [*{fold_tag(tag): tag for tag in cleaned if tag}.values()]


class ConversationStore:
    """The folder of all conversations. Thread-safe; changes happen one after the other, also those of several processes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.deleted = folder, folder / ".deleted"
        make_folder(self.deleted)
        self._lock = threading.RLock()
        self._file_lock = FileLock(self.deleted / ".lock", thread_local=False)
        self._open: OrderedDict[str, tuple[Stamp, Conversation]] = OrderedDict()
        self._read: dict[str, tuple[Stamp, Entry, str]] = {}
        self._newest: float | None = None  # the latest time of all conversations, once it is known
        with self._hold_lock():
            remove_old(self.deleted)
            remove_leftovers(folder)

    @contextlib.contextmanager
    def _hold_lock(self) -> Iterator[None]:
        """Keep other threads and processes from changing anything meanwhile."""
        with self._lock, self._file_lock:
            yield

    def list_entries(self, words: str = "") -> list[Entry]:
        """List the conversations that contain all of `words`, pinned ones first, then the newest. "#cake" is the tag, where one has it."""
        every, wanted = self._summarise_all(), fold_text(words).split()
        tags = {fold_tag(tag) for entry, _ in every for tag in entry.tags} & set(wanted)
        rest = [word for word in wanted if word not in tags]
        found = [entry for entry, said in every if tags <= set(map(fold_tag, entry.tags)) and all(word in said for word in rest)]
        return sorted(found, key=lambda entry: (entry.pinned, entry.changed), reverse=True)

    def _summarise_all(self) -> list[tuple[Entry, str]]:
        """The entry and the folded words of every conversation."""
        with self._lock:
            here = [folder for folder in self.folder.iterdir() if ID.fullmatch(folder.name) and folder.is_dir()]
            for gone in self._read.keys() - {folder.name for folder in here}:
                del self._read[gone]
            found = [self._summarise(folder) for folder in here]
        return [each for each in found if each is not None]

    def _summarise(self, folder: Path) -> tuple[Entry, str] | None:
        """The entry of a conversation; `None` for a folder without a file, which is just being made."""
        stamp = (*_stamp(folder / CONVERSATION), *_stamp(folder / ABOUT))
        known = self._read.get(folder.name)
        if known is None or known[0] != stamp:
            about, texts = self.read_about(folder.name), []
            pinned, tags = about["pinned"], tuple(about["tags"])
            try:
                payload = read_payload(folder)
                title, picture = clean_title(payload["title"]), _find_newest_picture(folder, payload)
                entry = Entry(folder.name, title, pinned, _time_of(folder, payload), picture=picture, tags=tags)
                texts = [part["text"] for turn in payload["turns"] for part in turn["parts"] if part["type"] == "text"]
            except ValueError:
                if not any(file.is_file() for file in folder.rglob("*")):
                    return None
                entry = Entry(folder.name, _guess_title(folder), pinned, _time_of(folder, {}), damaged=True, tags=tags)
            said = fold_text("\n".join([entry.title, *(f"#{tag}" for tag in tags), *texts]))
            known = self._read[folder.name] = (stamp, entry, said)
        return known[1], known[2]

    def entry(self, id: str) -> Entry:
        """The line of one conversation, damaged or not. Raises ValueError: there is no such conversation."""
        with self._lock:
            found = self._summarise(self._folder_of(id))
        if found is None:
            raise ValueError(GONE)
        return found[0]

    def open(self, id: str) -> Conversation:
        """The conversation as it is on the disk.

        Raises:
            ValueError: there is no such conversation, or it is damaged.
        """
        with self._lock:
            folder = self._folder_of(id)
            stamp, known = _stamp(folder / CONVERSATION), self._open.get(id)
            if known is None or known[0] != stamp:
                self._remember(id, stamp, replace(load_conversation(folder, lazily=True), id=id))
            self._open.move_to_end(id)
            return self._open[id][1]

    def _remember(self, id: str, stamp: Stamp, conversation: Conversation) -> None:
        self._open[id] = stamp, conversation
        while len(self._open) > KEPT_OPEN:
            self._open.popitem(last=False)

    def save(self, conversation: Conversation) -> Conversation:
        """Save a conversation. Turns that another process has added since it was opened here stay.

        Raises:
            ValueError: its id is not one that DuoGen gives.
        """
        if not ID.fullmatch(conversation.id):
            raise ValueError("This conversation has an id that DuoGen never gives.")
        with self._hold_lock():
            known, stamp = self._open.get(conversation.id), _stamp(self.folder / conversation.id / CONVERSATION)
            if known is not None and any(stamp) and known[0] != stamp:
                conversation = replace(conversation, turns={**self.open(conversation.id).turns, **conversation.turns})
            return self._write(conversation, self._next_time())

    def _write(self, conversation: Conversation, changed: float) -> Conversation:
        folder = self.folder / conversation.id
        stored = save_conversation(conversation, folder, changed)
        self._remember(stored.id, _stamp(folder / CONVERSATION), stored)
        return stored

    def _next_time(self) -> float:
        """A time after that of every conversation, so that the newest change is on top whatever a clock said before."""
        if self._newest is None:
            self._newest = max((entry.changed for entry, _ in self._summarise_all()), default=0.0)
        self._newest = max(time.time(), self._newest + STEP_SECONDS)
        return self._newest

    def change(self, id: str, how: Callable[[Conversation], Conversation], quiet: bool = False) -> Conversation:
        """Save the result of `how` on a conversation. A `quiet` change does not move it up in the list.

        Raises:
            ValueError: it is gone.
        """
        with self._hold_lock():
            folder = self._folder_of(id)
            changed, summary = how(self.open(id)), self._summarise(folder)
            return self._write(changed, summary[0].changed if quiet and summary else self._next_time())

    def read_about(self, id: str) -> dict[str, Any]:
        """Read `pinned`; `tags`; `notes`: by turn, `line` (the line under the answer), `seed`, `options` and `rejected` (whether it only
        holds a picture that the look again did not choose); `waiting`: the
        questions that wait for the end of an answer, as `save_waiting` takes them."""
        try:
            return _read_about(self._folder_of(id))
        except ValueError:
            return _check_about({})

    def save_note(self, id: str, turn: str, note: Note) -> None:
        """Save a note about an answer."""
        with self._hold_lock():
            about = self.read_about(id)
            self._write_about(id, about | {"notes": about["notes"] | {turn: note}})

    def save_waiting(self, id: str, waiting: list[dict[str, Any]]) -> None:
        """Save the questions to ask later: `id`, `words`, `files`, `options`, `early` if no pair was open yet, and `roles` by file."""
        with self._hold_lock():
            self._write_about(id, self.read_about(id) | {"waiting": waiting})

    def pin(self, id: str, pinned: bool) -> None:
        with self._hold_lock():
            self._write_about(id, self.read_about(id) | {"pinned": pinned})

    def set_tags(self, id: str, words: str) -> None:
        """Give a conversation the tags in `words`, in place of its old ones. Raises: ValueError: as `split_tags`, or it is gone."""
        tags = split_tags(words)
        with self._hold_lock():
            self._write_about(id, self.read_about(id) | {"tags": tags})

    def _write_about(self, id: str, about: dict[str, Any]) -> None:
        _write_about(self._folder_of(id), about)

    def rename(self, id: str, title: str) -> None:
        """Raises: ValueError: nothing of the title can be seen, or the conversation is gone."""
        name = cut_text(clean_title(title), NAME_LETTERS)
        if not name:
            raise ValueError("A conversation needs a name; type one.")
        self.change(id, lambda conversation: replace(conversation, title=name), quiet=True)

    def copy_until(self, id: str, turn: str) -> Conversation:
        """Save what was said up to a turn, and the turn, as a new conversation. The old one does not change.

        Raises:
            ValueError: the old one is gone.
            KeyError: it has no such turn.
        """
        with self._hold_lock():
            old = self.open(id).at(turn)
            turns = {each.id: each for each in old.path()}
            new = self.save(Conversation(turns, turn, title=self._number_title(old.title)))
            about = self.read_about(id)
            notes = {each: note for each, note in about["notes"].items() if each in turns}
            self._write_about(new.id, self.read_about(new.id) | {"notes": notes, "tags": about["tags"]})
            return new

    def _number_title(self, title: str) -> str:
        """The title with the first number from 2 on that no other conversation has, such as "Boat (2)"."""
        taken, bare = {entry.title for entry, _ in self._summarise_all()}, NUMBERED.sub("", title)
        return next(name for number in itertools.count(2) if (name := f"{bare} ({number})".strip()) not in taken)

    def delete(self, id: str) -> None:
        """Move a conversation, damaged or not, to the deleted ones, from where `restore` brings it back."""
        with self._hold_lock():
            folder = self._folder_of(id)  # checks the name, before anything is joined to a path or removed
            aside = self.deleted / folder.name
            if aside.exists():
                shutil.rmtree(aside)
            move(folder, aside)
            os.utime(aside)
            self._open.pop(id, None)

    def measure_deleted(self) -> tuple[int, int]:
        """The number of deleted conversations that can be restored, and their bytes."""
        folders = [folder for folder in self.deleted.iterdir() if folder.is_dir()]
        return len(folders), sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())

    def purge_deleted(self) -> None:
        """Delete the deleted conversations for good."""
        with self._hold_lock():
            for folder in self.deleted.iterdir():
                shutil.rmtree(folder, ignore_errors=True)  # leaves the files beside them, which are ours

    def restore(self, id: str) -> None:
        """Raises: ValueError: it is no longer there, or was written again since it was deleted."""
        with self._hold_lock():
            if not ID.fullmatch(id) or not (self.deleted / id).is_dir():
                raise ValueError("This conversation is gone for good.")
            if (self.folder / id).exists():
                raise ValueError("This conversation has come back already; look for it in the list.")
            move(self.deleted / id, self.folder / id)

    def pack(self, id: str) -> bytes:
        """A conversation as a zip, with all branches and pictures. Raises ValueError as `pack_to`."""
        data = io.BytesIO()
        self.pack_to(id, data)
        return data.getvalue()

    def pack_to(self, id: str, out: BinaryIO) -> None:
        """Write a conversation, damaged or not, as a zip that `unpack` takes.

        Raises:
            ValueError: it is gone, or holds more than `unpack` takes.
        """
        try:
            pack_folder(self._folder_of(id), out)  # without the lock: files are replaced whole, and an answer may go on meanwhile
        except FileNotFoundError as error:
            raise ValueError(GONE) from error

    def unpack(self, file: Path) -> Conversation:
        """Import what `pack` made as a new conversation. Existing conversations do not change.

        Raises:
            ValueError: it is no such zip, is damaged, or is too large unpacked.
        """
        with tempfile.TemporaryDirectory(prefix=".coming-", dir=self.folder) as folder:
            coming = Path(folder) / uuid.uuid4().hex
            extract_zip(file, coming)
            try:
                conversation = replace(load_conversation(coming, lazily=True), id=coming.name)
            except ValueError as error:
                reason = str(error).replace(str(coming), file.name)
                raise ValueError(reason) from error
            if not all(ID.fullmatch(id) for id in conversation.turns):
                raise ValueError(NOT_OURS)
            with self._hold_lock():
                title = cut_text(clean_title(conversation.title), NAME_LETTERS)
                save_conversation(replace(conversation, title=title), coming, self._next_time())
                if (coming / ABOUT).exists():
                    _write_about(coming, _read_about(coming) | {"pinned": False, "waiting": []})
                place_folder(coming, self.folder / coming.name)
        return self.open(conversation.id)

    def _folder_of(self, id: str) -> Path:
        if not ID.fullmatch(str(id)) or not (self.folder / id).is_dir():
            raise ValueError(GONE)
        return self.folder / id


def _stamp(file: Path) -> Stamp:
    """What changes whenever a file is written; zeros where it is not there."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _time_of(folder: Path, payload: dict[str, Any]) -> float:
    """When a conversation was changed: as it says itself, else by its files, of which a date in the future says nothing."""
    changed = payload.get("changed")
    if isinstance(changed, int | float) and 0 <= changed < 1e11:
        return float(changed)
    file = folder / CONVERSATION
    return min((file if file.exists() else folder).stat().st_mtime, time.time())


def _find_newest_picture(folder: Path, payload: dict[str, Any]) -> Path | None:
    shown = [(turn["role"], part["file"]) for turn in payload["turns"] for part in turn["parts"] if part["type"] == "image"]
    names = [name for role, name in shown if role == "assistant"] or [name for _, name in shown]
    return folder / "images" / Path(names[-1]).name if names else None


def _guess_title(folder: Path) -> str:
    """The title of a damaged conversation, "" where it cannot be found."""
    with contextlib.suppress(ValueError, RecursionError):
        if found := TITLE_IN_DAMAGE.search(read_bytes(folder / CONVERSATION)[:1000]):
            return clean_title(str(json.loads(found[1].decode())))
    return ""


def _read_about(folder: Path) -> dict[str, Any]:
    """What `ConversationStore.read_about` returns, of a conversation's folder."""
    return _check_about(read_record(folder / ABOUT))


def _write_about(folder: Path, about: dict[str, Any]) -> None:
    write_beside(folder / ABOUT, clean_text(json.dumps(about, ensure_ascii=False, indent=1)).encode())


def _check_about(found: dict[str, Any]) -> dict[str, Any]:
    """What a file about a conversation says, without what is of another type."""
    notes, waiting = found.get("notes"), found.get("waiting", [found.get("unasked")])  # older servers kept one
    checked = {turn: _check_note(note) for turn, note in notes.items() if isinstance(note, dict)} if isinstance(notes, dict) else {}
    pinned, tags = found.get("pinned") is True, _check_tags(found.get("tags"))
    return {"pinned": pinned, "tags": tags, "notes": checked, "waiting": _check_waiting(waiting)}


def _check_note(note: dict[Any, Any]) -> Note:
    """A note with the fields that `save_note` writes; those of another type are left out."""
    kinds: dict[str, Any] = {"line": str, "thoughts": str, "seed": int, "options": dict, "rejected": bool}
    return {
        name: clean_text(note[name]) if isinstance(note[name], str) else note[name]
        for name, kind in kinds.items()
        if isinstance(note.get(name), kind)
    }


def _check_tags(tags: Any) -> list[str]:
    """The tags of a file, without what is none; those that are too long are cut, and too many are left out."""
    found = [cut_text(tag, TAG_LETTERS) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return _clean_tags(found)[:MOST_TAGS]


def _check_waiting(waiting: Any) -> list[dict[str, Any]]:
    """The waiting questions, without files that are gone and without what is no question."""
    found = [each for each in waiting if isinstance(each, dict)] if isinstance(waiting, list) else []
    checked = []
    for place, each in enumerate(found):
        words, files, options, id = each.get("words", each.get("text")), each.get("files"), each.get("options"), each.get("id")
        if isinstance(words, str) and isinstance(files, list):
            here = [file for file in files if isinstance(file, str) and os.path.isfile(file)]
            about = {"options": options if isinstance(options, dict) else {}, "early": each.get("early") is True}
            roles = each.get("roles") if isinstance(each.get("roles"), dict) else {}
            about["roles"] = {file: roles[file] for file in here if roles.get(file) in ROLES[1:]}
            known = id if isinstance(id, str) and ID.fullmatch(id) else f"{place:032x}"
            checked.append({"id": known, "words": clean_text(words), "files": here, **about})
    return checked
