"""Conversations in JSON or JSON lines: `conversations.jsonl`, and the files of other programs under any name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder
from duogen.dataset.format import CONVERSATIONS, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.pictures import PictureStore
from duogen.dataset.rows import TURNS, RowParser, is_chat
from duogen.dataset.unpack import unpacked_home

CLUES = 1 << 16  # bytes that show what a damaged file holds
UNUSED = "no conversation that is learnt shows it"


def open_store(folder: Folder) -> PictureStore:
    """Where the pictures go that stand inside the files of a folder."""
    return PictureStore(unpacked_home() / hashlib.sha256(str(folder.root.resolve()).encode(errors="replace")).hexdigest()[:16])


def has_own_file(folder: Folder) -> bool:
    return any(file.name.lower() == CONVERSATIONS for file in folder.files)


def _list_chats(folder: Folder) -> Iterator[Path]:
    """The files that hold conversations."""
    for file in folder.select(".json", ".jsonl", ".ndjson"):
        if file.name.lower() == CONVERSATIONS or any(is_chat(row.raw) for row in folder.rows(file)):
            yield file


def _has_llava_rows(folder: Folder) -> bool:
    return any(_is_llava(row.raw) for file in _list_chats(folder) for row in folder.rows(file))


def _is_llava(raw: object) -> bool:
    turns = next((raw[name] for name in TURNS if raw.get(name)), None) if isinstance(raw, Mapping) else None
    return isinstance(turns, list) and isinstance(turns[0], Mapping) and "from" in turns[0]


def _list_damaged(folder: Folder) -> Iterator[Path]:
    """The JSON files that cannot be read and seem to hold conversations."""
    for file in folder.select(".json", ".jsonl", ".ndjson"):
        if file.name.lower() != CONVERSATIONS and all(row.error for row in folder.rows(file)):
            with file.open("rb") as stream:
                head = stream.read(CLUES)
            if any(f'"{name}"'.encode() in head for name in TURNS):
                yield file


def read_conversations(folder: Folder) -> Found:
    """Read every file that holds conversations."""
    for file in [*_list_chats(folder), *_list_damaged(folder)]:
        parser = RowParser(folder, file.parent, open_store(folder))
        for row in folder.rows(file):
            where = f"{folder.show(file)} {row.where}".strip()
            if row.error:
                yield Problem(where, row.error, files=(file,))
                continue
            try:
                yield parser.parse(row.raw, where, (file,))
            except Exception as error:  # whatever one row raises leaves the others alone
                yield Problem(where, explain_error(error), files=(file,))
        if parser.systems:
            yield Problem(folder.show(file), f"rows with a system text: {parser.systems}", "left these texts out; a pair reads none")


LAYOUTS = [
    Layout("conversations", has_own_file, read_conversations, UNUSED),
    Layout("LLaVA conversations", _has_llava_rows, read_conversations, UNUSED),
    Layout("conversations", lambda folder: any(_list_chats(folder)), read_conversations, UNUSED),
]
DAMAGED = Layout("conversations", lambda folder: any(_list_damaged(folder)), read_conversations, UNUSED)
