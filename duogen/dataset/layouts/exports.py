"""Conversations that were exported here, unpacked or as zips. Only the branch that is shown is read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path, PurePosixPath

from duogen.conversation import Conversation, Message, Text, load_conversation
from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder
from duogen.dataset.format import Example, Picture, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.unpack import unpack_zip
from duogen.dataset.words import read_words

EXPORT = "conversation.json"


def _fits(folder: Folder) -> bool:
    whole = [home for home in _list_homes(folder) if not folder.rows(home / EXPORT)[0].error or (home / "images").is_dir()]
    return bool(whole) or any(_holds_conversation(file) for file in folder.select(".zip"))


def _list_homes(folder: Folder) -> list[Path]:
    return [file.parent for file in folder.files if file.name == EXPORT and _is_export(folder, file)]


def _is_export(folder: Folder, file: Path) -> bool:
    """Whether this is an exported conversation, whole or damaged, and no other program's file of that name."""
    rows = folder.rows(file)
    return len(rows) == 1 and (bool(rows[0].error) or (isinstance(rows[0].raw, dict) and "turns" in rows[0].raw and "head" in rows[0].raw))


def _list_conversations(packed: zipfile.ZipFile) -> list[str]:
    return [name for name in packed.namelist() if PurePosixPath(name).name == EXPORT and not name.startswith("__MACOSX")]


def _holds_conversation(file: Path) -> bool:
    """Whether a zip holds an exported conversation that can be unpacked."""
    try:
        with zipfile.ZipFile(file) as packed:
            return any("turns" in json.loads(packed.read(name)) for name in _list_conversations(packed))
    except Exception:  # a damaged zip raises whatever its numbers lead to
        return False


def _names_conversation(file: Path) -> bool:
    """Whether a zip says that it holds a conversation."""
    try:
        with zipfile.ZipFile(file) as packed:
            return bool(_list_conversations(packed))
    except Exception:
        return False


def _read(folder: Folder) -> Found:
    for place in _list_homes(folder):
        files = (place / EXPORT, place / "about.json", *(place / "images").glob("*.*"))
        yield from _read_export(place, folder.show(place) if place != folder.root else place.name, files)
    for file in folder.select(".zip"):
        if not _names_conversation(file):
            continue
        try:
            inside = Folder(unpack_zip(file))
            homes = _list_homes(inside)
            for home in homes:
                where = folder.show(file) + (f"/{inside.show(home)}" if len(homes) > 1 else "")
                yield from _read_export(home, where, (file,))
        except Exception as error:  # whatever one zip raises leaves the others alone
            yield Problem(folder.show(file), explain_error(error), files=(file,))


def _read_export(home: Path, where: str, files: tuple[Path, ...]) -> Found:
    try:
        raw = {turn["id"]: turn for turn in json.loads(read_words(home / EXPORT))["turns"]}
        conversation = _load(home)
        lines, shown = [], set[str]()
        for turn in conversation.path():
            parts: list[str | Picture] = []
            for part, entry in zip(turn.parts, raw[turn.id]["parts"], strict=True):
                name = "" if isinstance(part, Text) else Path(entry["file"]).name
                parts.append(part.text if isinstance(part, Text) else Picture(home / "images" / name, part.alt))
            lines.append(Message(turn.role, tuple(parts)))
            shown |= {str(entry.get(key)) for entry in raw[turn.id]["parts"] for key in ("file", "mask")}
        others = sum(file.name not in shown for file in (home / "images").glob("*.*"))
        hidden = Problem(where, f"pictures of branches that are not shown: {others}", "left them out")
        yield Example(where, tuple(lines), files, (hidden,) if others else ())
    except Exception as error:  # whatever one conversation raises leaves the others alone
        yield Problem(where, explain_error(error), files=files)


def _load(home: Path) -> Conversation:
    """Raises ValueError, in fewer words than `load_conversation` does, where the conversation is damaged."""
    try:
        return load_conversation(home, lazily=True)  # pictures of other branches may be damaged
    except Exception as error:
        raise ValueError("the conversation is damaged; export it again") from error


LAYOUTS = [Layout("exported conversations", _fits, _read, "no turn of a conversation that is read shows it")]
