"""Conversations on disk: found again, laid aside, packed and unpacked; foreign zips refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import weakref
import zipfile
from functools import cache
from pathlib import Path

import pytest
from PIL import Image as PILImage

from duogen import stored_picture
from duogen.conversation import Conversation, Image, Text
from duogen.library.conversations import NOT_OURS, ConversationStore, Entry, list_tags, make_title
from duogen.library.deletions import LEDGER


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
    assert [entry.title for entry in again.list_entries()] == ["Boat"]


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


def test_tags_are_found_exactly_and_come_back_in_a_zip(store: ConversationStore, tmp_path: Path) -> None:
    cake, boat = store.save(guide("A cake?")), store.save(guide("A boat with #paddles?"))
    store.set_tags(cake.id, " #Cake，winter  low<b>fat, cake #")
    store.set_tags(boat.id, "cakes winter")
    before = store.list_entries()
    assert [entry.tags for entry in before] == [("cakes", "winter"), ("cake", "winter", "low<b>fat")]
    assert list_tags(before) == ["cake", "cakes", "low<b>fat", "winter"]
    found = {"#CAKE": [cake], "#cak": [boat, cake], "#winter boat": [boat], "#paddles": [boat], "winter": [boat, cake]}
    for words, right in found.items():
        assert [entry.id for entry in store.list_entries(words)] == [each.id for each in right], words
    (tmp_path / "cake.zip").write_bytes(store.pack(cake.id))
    other = ConversationStore(tmp_path / "other")
    back, copy = other.unpack(tmp_path / "cake.zip"), store.copy_until(cake.id, cake.head)
    assert other.entry(back.id).tags == store.entry(copy.id).tags == ("cake", "winter", "low<b>fat")
    for words in (" ".join(f"t{n}" for n in range(9)), "x" * 31):
        with pytest.raises(ValueError, match="at most 8 tags of 30 letters"):
            store.set_tags(cake.id, words)
    store.set_tags(cake.id, " ")
    assert store.entry(cake.id).tags == () and store.entry(boat.id).changed == before[0].changed


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
        assert store.read_about(id) == {"pinned": False, "tags": [], "notes": {}, "waiting": []}
        for ask in (store.open, store.pack, store.delete, store.restore):
            with pytest.raises(ValueError):
                ask(id)
    assert removed == [] and (tmp_path / "outside").is_dir() and store.folder.is_dir()


def test_a_damaged_one_hides_no_other(store: ConversationStore) -> None:
    kept, damaged = store.save(guide()), store.save(guide("broken"))
    (store.folder / damaged.id / "conversation.json").write_text("[")
    assert {entry.id: entry.damaged for entry in ConversationStore(store.folder).list_entries()} == {kept.id: False, damaged.id: True}


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


@cache
def encode_png(width: int, height: int, mode: str = "1") -> bytes:
    data = io.BytesIO()
    PILImage.new(mode, (width, height)).save(data, "PNG")
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
        ({}, "exported here"),
        ({"conversation.json": b"[]"}, "damaged"),
        ({"conversation.json": write_payload(parent="b" * 32)}, "damaged"),
        ({"conversation.json": write_payload(parent="a" * 32)}, "damaged"),
        ({"conversation.json": write_payload(id='" onclick="x')}, "damaged"),
        ({"conversation.json": b" " * (33 * 1024**2)}, "too much"),
        (GOOD | {f"images/{at:064x}.png": encode_png(7000, 7000) for at in range(82)}, "too much"),
        (GOOD | {f"images/{at:064x}.png": encode_png(7000, 7000, "L") for at in range(9)}, "too much"),
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


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("How do I draw a red house with a blue door?", "Red house with a blue door"),
        ("Please show me how to fold a paper boat!", "Fold a paper boat"),
        ("Make the door green", "Make the door green"),
        ("What is this?", "What is this?"),
        ("Zeig mir, wie man einen Baum malt.", "Baum"),
        ("怎么画一座红色的房子？", "红色的房子"),
    ],
)
def test_a_title_is_the_subject_of_the_request(words: str, title: str) -> None:
    assert make_title(words) == title


def test_titles_have_no_signs_that_nobody_sees() -> None:
    assert make_title("\u202eein\x07 rotes\u2069 Haus\u200f") == "ein rotes Haus"
    assert make_title("\u200b\u2060") == "Pictures"
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f466"
    assert make_title("x" * 58 + family) == "x" * 58 + " …", "no half of an emoji"


@pytest.mark.parametrize("name", ["\u200b", "\u3164", "\u2800", "\ufe0f", " \u00ad\n"])
def test_a_name_of_invisible_characters_is_none(store: ConversationStore, name: str) -> None:
    said = store.save(guide())
    with pytest.raises(ValueError, match="needs a name"):
        store.rename(said.id, name)


DAMAGE = {
    "empty": (b"", "it is cut short or no JSON .line 1."),
    "zeros": (b"\0" * 300, "it is cut short or no JSON .line 1."),
    "cut": (write_payload()[:40], "it is cut short or no JSON .line 1."),
    "other letters": (write_payload().replace(b'"t"', '"Öl"'.encode("latin-1")), r"its text is no UTF-8 .byte \d+."),
    "deep": (b"[" * 100_000, "nested too deep"),
    "a newer format": (write_payload().replace(b'"format": 1', b'"format": 9'), "written by a newer DuoGen"),
    "a number for words": (write_payload(parts=[{"type": "text", "text": 7}]), "a text is of the type int"),
    "a list for an id": (write_payload(id=["a"]), "the id of a turn is of the type list"),
    "a text for turns": (write_payload().replace(b'"turns": [', b'"turns": "', 1), "it is cut short or no JSON"),
    "no object": (b"null", "it is no conversation"),
    "a long number": (b'{"format": ' + b"9" * 5000 + b"}", "it is no conversation"),
    "no role": (write_payload(role="system"), "is missing or leads nowhere"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_conversation_is_listed_exported_and_deleted(store: ConversationStore, damage: str) -> None:
    kept, broken = store.save(guide()), store.save(guide("A broken one"))
    written, reason = DAMAGE[damage]
    (store.folder / broken.id / "conversation.json").write_bytes(written)
    assert {entry.id: entry.damaged for entry in store.list_entries()} == {kept.id: False, broken.id: True}
    with pytest.raises(ValueError, match=reason):
        store.open(broken.id)
    with zipfile.ZipFile(io.BytesIO(store.pack(broken.id))) as packed:
        assert packed.read("conversation.json") == written and len(packed.namelist()) == 2
    store.delete(broken.id)
    store.restore(broken.id)
    store.delete(broken.id)
    assert [entry.id for entry in store.list_entries()] == [kept.id]


def test_the_title_of_a_damaged_conversation_is_found(store: ConversationStore) -> None:
    said = store.save(guide())
    file = store.folder / said.id / "conversation.json"
    file.write_bytes(file.read_bytes()[:-30])
    assert store.entry(said.id) == Entry(said.id, "Boat", False, store.entry(said.id).changed, damaged=True)
    file.unlink()
    assert store.entry(said.id).damaged and store.entry(said.id).title == "", "its pictures are there still"


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None, encode_png(40, 40)[:50]])
def test_a_damaged_picture_costs_one_picture(store: ConversationStore, tmp_path: Path, damage: bytes | None) -> None:
    said = store.save(guide().say("user", PILImage.new("RGB", (9, 9), "blue"), "And this?"))
    _, red, blue = sorted((store.folder / said.id).rglob("*.*"), key=lambda file: file.name != "conversation.json")
    first = said.path()[1].images()[0].picture.tobytes()
    lost = red if PILImage.open(red).tobytes() == first else blue
    lost.unlink() if damage is None else lost.write_bytes(damage)
    fresh = ConversationStore(store.folder)
    answered, asked = [turn.images()[0] for turn in fresh.open(said.id).path()[1:]]
    assert answered.picture.size == (256, 256) and asked.picture.getpixel((0, 0)) == (0, 0, 255)
    after = fresh.change(said.id, lambda now: now.say("assistant", "Go on."))
    assert json.loads((store.folder / said.id / "conversation.json").read_text())["turns"][1]["parts"][1]["file"] == lost.name
    (tmp_path / "a.zip").write_bytes(fresh.pack(said.id))
    back = ConversationStore(tmp_path / "other").unpack(tmp_path / "a.zip")
    assert [turn.text() for turn in back.path()] == [turn.text() for turn in after.path()]
    assert [image.picture.size for turn in back.path() for image in turn.images()] == [(256, 256), (9, 9)]


def test_opened_pictures_do_not_fill_the_memory(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duogen.stored_picture.KEPT_PIXELS", 3 * 64)
    said = store.save(Conversation().say("assistant", *[PILImage.new("RGB", (8, 8), (n, 0, 0)) for n in range(9)]))
    images = ConversationStore(store.folder).open(said.id).path()[0].images()
    assert [image.picture.getpixel((0, 0))[0] for image in images] == list(range(9))
    assert len(stored_picture.RECENT) == 3
    again = ConversationStore(store.folder).open(said.id).path()[0].images()
    assert again[8].picture is images[8].picture and len(stored_picture.RECENT) == 3, "a file is kept once"
    held = images[0].picture
    assert all(image.picture for image in images) and images[0].picture is held, "what somebody holds stays the same object"


def test_what_was_saved_does_not_fill_the_memory(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = [PILImage.new("RGB", (8, 8), (n, 0, 0)) for n in range(9)]
    drafts = (Image(painted[7], 1), Image(painted[8], 1))
    said = store.save(Conversation().say("assistant", *map(Image, painted[:6]), Image(painted[8], 1, drafts=drafts)))
    images = store.open(said.id).path()[0].images()
    assert images[0].picture is painted[0], "while somebody holds the pixels"
    gone = [weakref.ref(each) for each in painted[1:]]
    del painted, drafts
    monkeypatch.setattr(stored_picture, "RECENT", stored_picture.RecentPictures())
    assert not any(each() for each in gone)
    assert [image.picture.getpixel((0, 0))[0] for image in images] == [0, 1, 2, 3, 4, 5, 8]
    assert [draft.picture.getpixel((0, 0))[0] for draft in images[-1].drafts] == [7, 8]


# Zips that a person has unpacked and packed again


def repack(data: bytes, file: Path, rename=lambda name: name, change=lambda name, data: data, more=(), how=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", how) as new:
        for name in old.namelist():
            new.writestr(rename(name), change(name, old.read(name)))
        for name in more:
            new.writestr(name, b"\0\5litter")
    return file


@pytest.mark.parametrize(
    "how",
    [
        {"rename": lambda name: "Holiday/" + name, "more": ["Holiday/", "__MACOSX/Holiday/._conversation.json", "Holiday/.DS_Store"]},
        {"rename": lambda name: "a/b c/Über/" + name},
        {"rename": lambda name: name.replace("/", "\\"), "more": ["images\\Thumbs.db", "desktop.ini"]},
        {"rename": lambda name: "Boat\\" + name.replace("/", "\\")},
        {"rename": lambda name: "./" + name, "more": ["images/"]},
        {"change": lambda name, data: b"\xef\xbb\xbf" + data if name.endswith(".json") else data},
        {"how": zipfile.ZIP_LZMA},
        {"how": zipfile.ZIP_BZIP2},
    ],
)
def test_what_was_packed_again_comes_back(store: ConversationStore, tmp_path: Path, how: dict) -> None:
    said = store.save(guide())
    store.save_note(said.id, said.head, {"line": "a note"})
    back = store.unpack(repack(store.pack(said.id), tmp_path / "again.zip", **how))
    assert (back.turns, back.title) == (said.turns, said.title) and store.read_about(back.id)["notes"] == {said.head: {"line": "a note"}}
    assert back.path()[1].images()[0].picture.getpixel((0, 0)) == (255, 0, 0)


def test_damaged_zips_are_named_with_their_reason(store: ConversationStore, tmp_path: Path) -> None:
    packed = store.pack(store.save(guide()).id)
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        data = bytearray(repack(packed, tmp_path / "a.zip", how=how).read_bytes())
        data[75:115] = b"\xff" * 40
        (tmp_path / "a.zip").write_bytes(data)
        with pytest.raises(ValueError, match="a.zip is damaged"):
            store.unpack(tmp_path / "a.zip")
    data = bytearray(packed)
    for mark in (b"PK\3\4", b"PK\1\2"):  # the flag of a password, in both headers of the first file
        data[data.index(mark) + (6 if mark == b"PK\3\4" else 8)] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(ValueError, match="locked.zip has a password"):
        store.unpack(tmp_path / "locked.zip")
    assert len(store.list_entries()) == 1 and not list(store.folder.glob(".coming-*"))


@pytest.mark.parametrize(
    "about",
    [
        b"[" * 50_000,
        b"\xff\xfe",
        b"null",
        b'{"pinned": "yes", "notes": [1], "unasked": 3, "waiting": {"a": 1}}',
        b'{"pinned": 1, "notes": {"%s": {"line": {"a": [[]]}, "seed": "x", "thoughts": "\\ud83d"}}}' % (b"a" * 32),
        b'{"waiting": [{"words": 1, "files": {"a": 1}}, 5], "notes": {"x": 5}}',
        b'{"unasked": {"text": "", "files": ["\\u0000", "%s", 7]}}' % (b"a" * 5000),
        b'{"tags": {"a": 1}, "notes": {"x": {"line": "kept"}}}',
        b'{"tags": [1, null, "\\ud83d", "# ", "%s", "a\\u0000 b", "c", "d", "e", "f", "g", "h", "i", "j"]}' % (b"a" * 5000),
    ],
)
def test_a_hostile_note_breaks_nothing(store: ConversationStore, tmp_path: Path, about: bytes) -> None:
    back = store.unpack(write_zip(tmp_path / "a.zip", **GOOD, **{"about.json": about}))
    (store.folder / back.id / "about.json").write_bytes(about)
    (entry,) = ConversationStore(store.folder).list_entries()
    read = store.read_about(back.id)
    assert len(read["tags"]) <= 8 and all(0 < len(tag) <= 30 and " " not in tag for tag in read["tags"])
    assert b"kept" not in about or read["notes"] == {"x": {"line": "kept"}}
    assert not entry.pinned and all(isinstance(value, str) for note in read["notes"].values() for value in note.values())
    store.save_note(back.id, "a" * 32, {"line": "new"})
    store.pin(back.id, True)
    assert store.read_about(back.id)["notes"]["a" * 32] == {"line": "new"}


def test_halves_of_letters_are_stored_and_listed(store: ConversationStore, tmp_path: Path) -> None:
    said = store.save(Conversation(title="a \ud83d").say("user", "b \ude00 \ud83d\ude00"))
    assert store.open(said.id) and ConversationStore(store.folder).open(said.id).path()[0].text() == "b \ufffd \U0001f600"
    hostile = write_payload(parts=[{"type": "text", "text": "half \ud800"}]).replace(b'"t"', b'"t\\udc00"')
    back = store.unpack(write_zip(tmp_path / "a.zip", **{"conversation.json": hostile}))
    assert (back.title, back.path()[0].text()) == ("t\ufffd", "half \ufffd") and len(store.list_entries("half")) == 1


@pytest.mark.parametrize("day", ["1970-01-02", "2110-01-01"])
def test_files_of_any_date_are_packed(store: ConversationStore, day: str) -> None:
    said = store.save(guide())
    seconds = time.mktime(time.strptime(day, "%Y-%m-%d"))
    for file in store.folder.rglob("*.*"):
        os.utime(file, (seconds, seconds))
    assert len(zipfile.ZipFile(io.BytesIO(store.pack(said.id))).namelist()) == 2


def test_more_pictures_than_a_person_makes_come_back(store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # six thousand of them would take half a minute
    tiles = [PILImage.new("RGB", (2, 2), (n % 256, n // 256, 1)) for n in range(2050)]
    said = store.save(Conversation().say("assistant", *tiles))
    (tmp_path / "a.zip").write_bytes(store.pack(said.id))
    back = ConversationStore(tmp_path / "other").unpack(tmp_path / "a.zip")
    assert len(back.path()[0].parts) == 2050 and back.path()[0].image_at(700).picture.getpixel((0, 0)) == (700 % 256, 2, 1)


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("ZIP_FILES", 2, "files"),
        ("ZIP_BYTES", 300, "MB"),
        ("ZIP_TEXT_BYTES", 100, "words"),
        ("ZIP_PIXELS", 60, "megapixels"),
        ("ZIP_MASK_PIXELS", 40, "masks"),
    ],
)
def test_a_limit_is_said_at_both_ends(
    store: ConversationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str
) -> None:
    masked = Image(PILImage.new("RGB", (8, 7), "red"), mask=PILImage.new("L", (8, 7), 255))
    said = store.save(guide().say("user", masked))
    (tmp_path / "a.zip").write_bytes(store.pack(said.id))
    monkeypatch.setattr(f"duogen.library.conversation_zip.{limit}", value)
    with pytest.raises(ValueError, match=f"This conversation has .*{words}.*; save it as a web page"):
        store.pack(said.id)
    with pytest.raises(ValueError, match=f"a.zip holds too much: .*{words}"):
        store.unpack(tmp_path / "a.zip")


# Time


def test_the_order_lies_inside_the_files(store: ConversationStore, tmp_path: Path) -> None:
    ids = [store.save(guide(words)).id for words in ("one", "two", "three", "four")]
    store.change(ids[1], lambda now: now.say("user", "more"))
    for at, id in enumerate(ids):  # as after a copy, and a date of the future
        os.utime(store.folder / id / "conversation.json", (2e9 + 1e6 * (at == 0), 2e9 + 1e6 * (at == 0)))
    shutil.copytree(store.folder, tmp_path / "copy" / "conversations")
    for place in (store, ConversationStore(tmp_path / "copy" / "conversations")):
        assert [entry.title for entry in place.list_entries()] == ["two", "four", "three", "one"]


def test_a_clock_that_was_ahead_leaves_nothing_on_top(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = store.save(guide("of an older version"))
    payload = json.loads((store.folder / old.id / "conversation.json").read_text())
    (store.folder / old.id / "conversation.json").write_text(json.dumps({name: payload[name] for name in payload if name != "changed"}))
    os.utime(store.folder / old.id / "conversation.json", (4e9, 4e9))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 5e8)
    store.save(guide("ahead"))
    monkeypatch.setattr("time.time", lambda: now + 60)
    fresh = ConversationStore(store.folder)
    fresh.save(guide("now"))
    fresh.save(guide("after"))
    assert [entry.title for entry in fresh.list_entries()][:3] == ["after", "now", "ahead"]


def test_a_clock_that_was_ahead_once_deletes_nothing(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    said, now, day = store.save(guide()), time.time(), 24 * 3600
    store.delete(said.id)

    def start(days: float) -> bool:
        monkeypatch.setattr("time.time", lambda: now + days * day)
        return (ConversationStore(store.folder).deleted / said.id).exists()

    assert start(31) and start(31.1) and start(0.1) and start(29), "it was 31 days ahead, for an hour"
    assert start(30.5) and not start(31.6), "two starts a day apart have found it that old"


def test_restored_and_deleted_again_is_a_new_month(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    said, now, day = store.save(guide()), time.time(), 24 * 3600
    store.delete(said.id)
    monkeypatch.setattr("time.time", lambda: now + 31 * day)
    assert (ConversationStore(store.folder).deleted / said.id).exists()
    store.restore(said.id)
    store.delete(said.id)
    monkeypatch.setattr("time.time", lambda: now + 33 * day)
    ConversationStore(store.folder)
    ledger = json.loads((store.deleted / LEDGER).read_text())
    assert ledger[said.id]["due"] == now + 33 * day


def test_search_finds_other_forms_of_the_same_letters(store: ConversationStore) -> None:
    cafe = store.save(guide("Draw the Cafe\u0301 Ｂａｒ in Zü\u00adrich"))
    for words in ("café", "CAFE\u0301", "bar", "ｂａｒ", "zürich", "Zu\u0308rich", "\u200bbar"):
        assert [entry.id for entry in store.list_entries(words)] == [cafe.id], words


# Two processes


def test_two_stores_on_one_folder_lose_no_turn(store: ConversationStore) -> None:
    said, other = store.save(guide()), ConversationStore(store.folder)
    other.open(said.id)
    store.change(said.id, lambda now: now.say("user", "from one"))
    other.change(said.id, lambda now: now.at(said.head).say("user", "from two"))
    store.rename(said.id, "a name")
    mine = store.open(said.id).at(said.head).say("user", "mine")
    other.change(said.id, lambda now: now.at(said.head).say("user", "theirs"))
    store.save(mine)
    texts = {turn.text() for turn in ConversationStore(store.folder).open(said.id).turns.values()}
    assert texts >= {"from one", "from two", "mine", "theirs"} and other.open(said.id).title == "a name"


def test_what_another_process_deleted_is_gone_here_too(store: ConversationStore) -> None:
    said, other = store.save(guide()), ConversationStore(store.folder)
    known = other.open(said.id)
    store.delete(said.id)
    with pytest.raises(ValueError, match="may have been deleted"):
        other.open(said.id)
    other.save(known.say("user", "more"))
    with pytest.raises(ValueError, match="come back already"):
        store.restore(said.id)


def test_a_second_start_leaves_a_running_import(store: ConversationStore) -> None:
    (store.folder / ".coming-now").mkdir()
    (store.folder / ".coming-old").mkdir()
    os.utime(store.folder / ".coming-old", (1e9, 1e9))
    ConversationStore(store.folder)
    assert [path.name for path in store.folder.glob(".coming-*")] == [".coming-now"]


def test_a_copied_folder_is_another_conversation(store: ConversationStore) -> None:
    said = store.save(guide())
    shutil.copytree(store.folder / said.id, store.folder / ("c" * 32))
    store.change("c" * 32, lambda now: now.say("user", "only here"))
    assert len(store.open(said.id).turns) == 2 and len(store.open("c" * 32).turns) == 3
