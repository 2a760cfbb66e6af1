"""Conversations on disk: found again, laid aside, packed and unpacked; foreign zips refused."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text
from duogen.library.conversations import NOT_OURS, ConversationStore, make_title


@pytest.fixture
def store(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path / "conversations")


def guide(words: str = "How do I draw a boat?", colour: str = "red") -> Conversation:
    picture = Image(PILImage.new("RGB", (8, 6), colour), 7, 0.5, "a boat")
    return Conversation(title=make_title(words)).say("user", words).say("assistant", Text("Step 1."), picture)


def test_what_is_saved_is_there_after_a_restart(store: ConversationStore) -> None:
    said = store.save(guide())
    store.save_note(said.id, said.head, {"line": "1 picture", "seed": 7})
    again = ConversationStore(store.folder)
    assert again.open(said.id) == said
    assert again.read_about(said.id)["notes"][said.head]["seed"] == 7
    assert [entry.title for entry in again.list_entries()] == ["How do I draw a boat?"]


def test_the_list_is_newest_first_and_pinned_before_it(store: ConversationStore) -> None:
    ids = [store.save(guide(words)).id for words in ("one", "two", "three")]
    for at, id in enumerate(ids):
        os.utime(store.folder / id / "conversation.json", (1000 + at, 1000 + at))
    assert [entry.title for entry in store.list_entries()] == ["three", "two", "one"]
    store.pin(ids[0], True)
    store.rename(ids[1], "  a new   name ")
    assert [entry.title for entry in store.list_entries()] == ["one", "three", "a new name"]
    with pytest.raises(ValueError, match="needs a name"):
        store.rename(ids[1], " ")


def test_search_looks_into_all_branches(store: ConversationStore) -> None:
    boat, tree = store.save(guide()), store.save(guide("A tree?"))
    store.change(boat.id, lambda now: now.at(None).say("user", "And a Straße in Grün?"))
    assert [entry.id for entry in store.list_entries("boat draw")] == [boat.id]
    assert [entry.id for entry in store.list_entries("STRASSE grün")] == [boat.id]
    assert {entry.id for entry in store.list_entries("step")} == {boat.id, tree.id} and store.list_entries("boat tree") == []


def test_what_is_deleted_can_come_back(store: ConversationStore) -> None:
    said = store.save(guide())
    store.delete(said.id)
    assert store.list_entries() == []
    with pytest.raises(ValueError, match="no such conversation"):
        store.open(said.id)
    store.restore(said.id)
    assert store.open(said.id) == said
    with pytest.raises(ValueError, match="gone for good"):
        store.restore(said.id)


def test_a_name_leads_nowhere_else(store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it stays inside the test's own folder, and nothing is really removed: a mistake here must not cost a machine its files."""
    (tmp_path / "outside").mkdir()
    removed = []
    monkeypatch.setattr("duogen.library.conversations.shutil.rmtree", lambda path, **_: removed.append(path))
    for id in ("..", "../../outside", "", "a" * 31, "A" * 32, str(tmp_path / "outside"), "f" * 32, ".deleted"):
        assert store.read_about(id) == {"pinned": False, "notes": {}, "unasked": None}
        for ask in (store.open, store.pack, store.delete, store.restore):
            with pytest.raises(ValueError):
                ask(id)
    assert removed == [] and (tmp_path / "outside").is_dir() and store.folder.is_dir()


def test_a_damaged_one_hides_no_other(store: ConversationStore) -> None:
    kept, damaged = store.save(guide()), store.save(guide("broken"))
    (store.folder / damaged.id / "conversation.json").write_text("[")
    assert [entry.id for entry in ConversationStore(store.folder).list_entries()] == [kept.id]


def test_a_zip_brings_everything_along(store: ConversationStore, tmp_path: Path) -> None:
    said = store.save(guide())
    said = store.change(said.id, lambda now: now.at(None).say("user", "a branch"))
    store.save_note(said.id, said.head, {"line": "a note"})
    (tmp_path / "boat.zip").write_bytes(store.pack(said.id))
    other = ConversationStore(tmp_path / "other")
    back = other.unpack(tmp_path / "boat.zip")
    assert back.id != said.id and (back.turns, back.head, back.title) == (said.turns, said.head, said.title)
    assert other.read_about(back.id)["notes"] == {said.head: {"line": "a note"}}
    assert sorted(path.name for path in other.folder.iterdir()) == sorted([".deleted", back.id])


def write_zip(file: Path, **parts: bytes) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in parts.items():
            packed.writestr(name, data)
    return file


def encode_png(width: int, height: int) -> bytes:
    data = io.BytesIO()
    PILImage.new("1", (width, height)).save(data, "PNG")
    return data.getvalue()


def write_payload(**changes) -> bytes:
    turn = {"id": "a" * 32, "role": "user", "parent": None, "parts": [{"type": "text", "text": "hello"}]}
    return json.dumps({"format": 1, "id": "x", "title": "t", "head": "a" * 32, "turns": [turn | changes]}).encode()


GOOD = {"conversation.json": write_payload()}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (GOOD | {"../evil.txt": b"x"}, "exported here"),
        (GOOD | {"/dev/null/evil": b"x"}, "exported here"),
        (GOOD | {"images/../../evil.png": b"x"}, "exported here"),
        ({"holiday.txt": b"x"}, "exported here"),
        ({}, "damaged"),
        ({"conversation.json": b"[]"}, "damaged"),
        ({"conversation.json": write_payload(parent="b" * 32)}, "damaged"),
        ({"conversation.json": write_payload(parent="a" * 32)}, "damaged"),
        ({"conversation.json": write_payload(id='" onclick="x')}, "damaged"),
        ({"conversation.json": b" " * (33 * 1024**2)}, "too much"),
        (GOOD | {f"images/{at:064x}.png": encode_png(7000, 7000) for at in range(9)}, "too much"),
        (GOOD | {f"images/{0:064x}.png": b"no picture"}, "exported here"),
    ],
)
def test_foreign_zips_are_refused(store: ConversationStore, tmp_path: Path, parts: dict, words: str) -> None:
    before = {path for path in tmp_path.rglob("*")}
    file = write_zip(tmp_path / "a.zip", **parts)
    with pytest.raises(ValueError, match=words):
        store.unpack(file)
    assert {path for path in tmp_path.rglob("*")} == before | {file}, "something of it was left behind"


def test_what_is_no_zip_is_refused(store: ConversationStore, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=NOT_OURS[:20]):
        store.unpack(tmp_path / "a.zip")


def test_titles_are_short() -> None:
    assert make_title("  how\n do I ") == "how do I" and make_title("") == "Pictures"
    assert len(make_title("word " * 99)) <= 62
