"""Zips of training data as programs on all systems make them, and damaged ones: what can be read is read, nothing is left behind."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

import pytest

from duogen.dataset.readers import read_dataset
from tests.unit.test_example_layouts import SEEN, captioned, chat, encoded, named, short
from tests.unit.test_examples import home  # noqa: F401

CAPTION = {"a.png": encoded(1), "a.txt": b"Sun"}
ROWS = json.dumps(chat([{"type": "image", "file": "images/a.png"}, "What?"])).encode()


def pack(file: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as packed:
        warnings.simplefilter("ignore")
        for name, data in entries.items():
            packed.writestr(name, data)
    return file


def change(file: Path, old: bytes, new: bytes, count: int = -1) -> None:
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new, count))


def leftovers(folder: Path) -> list[Path]:
    return list((folder / "home" / "finetune").rglob("*"))


@pytest.mark.parametrize(("entries", "wanted"), [
    ({"conversations.jsonl": ROWS, "images\\a.png": encoded(1)}, SEEN),
    ({"set/set/conversations.jsonl": ROWS, "set/set/images/a.png": encoded(1)}, SEEN),
    ({"set/conversations.jsonl": ROWS, "set/images/a.png": encoded(1), "__MACOSX/set/._a.png": b"", "Thumbs.db": b""}, SEEN),
    ({"set": b"", "set/a.png": encoded(1), "set/a.txt": b"Sun"}, captioned(a_png="Sun")),  # a folder that is no folder's entry
    ({"/a.png": encoded(1), "../a.txt": b"Sun"}, captioned(a_png="Sun")),
])  # fmt: skip
def test_zips_of_other_programs_are_read(tmp_path: Path, entries: dict[str, bytes], wanted: list) -> None:
    data = read_dataset(pack(tmp_path / "x.zip", entries))
    assert short(data) == wanted and not named(data)
    inside = (tmp_path / "home" / "finetune" / "unpacked").resolve()
    assert all(picture.file.resolve().is_relative_to(inside) for example in data.examples for picture in example.pictures())


@pytest.mark.parametrize(
    ("word", "encoding"), [("船", "gbk"), ("猫", "cp932"), ("배", "cp949"), ("Käse", "cp437"), ("Käse", "utf-8"), ("Käse", "cp1252")]
)
def test_names_in_unmarked_encodings_are_found(tmp_path: Path, word: str, encoding: str) -> None:
    rows = ROWS.replace(b"images/a", f"images/{word}".encode("unicode_escape").replace(b"\\x", b"\\u00"))
    raw = word.encode(encoding)
    file = pack(tmp_path / "x.zip", {"conversations.jsonl": rows, f"images/{'Z' * len(raw)}.png": encoded(1)})
    change(file, b"Z" * len(raw), raw)
    data = read_dataset(file)
    assert len(data.examples) == 1 and not named(data)


def damage_crc(file: Path) -> None:
    change(file, b"A tree" * 20, b"A trEE" * 20)


def encrypt(file: Path) -> None:
    change(file, b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0")
    change(file, b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\x01\0")


def use_method(file: Path) -> None:
    change(file, b"PK\x03\x04\x14\0\0\0\0", b"PK\x03\x04\x14\0\0\0\x09")
    change(file, b"PK\x01\x02\x14\x03\x14\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x09")


def spoil_stream(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[44:70] = b"\xff" * 26
    file.write_bytes(data)


REFUSED = {
    "locked": ({"b.txt": b"x"}, zipfile.ZIP_STORED, encrypt, "x.zip is locked with a password"),
    "deflate64": ({"b.txt": b"x"}, zipfile.ZIP_STORED, use_method, "Deflate64"),
    "checksum": ({"b.txt": b"A tree" * 20}, zipfile.ZIP_STORED, damage_crc, "b.txt is damaged"),
    "deflate": ({"b.txt": bytes(range(256)) * 9}, zipfile.ZIP_DEFLATED, spoil_stream, "b.txt is damaged"),
    "bzip2": ({"b.txt": bytes(range(256)) * 9}, zipfile.ZIP_BZIP2, spoil_stream, "b.txt is damaged"),
    "lzma": ({"b.txt": bytes(range(256)) * 9}, zipfile.ZIP_LZMA, spoil_stream, "b.txt is damaged"),
    "clash": ({"a": b"x", "a/b.png": encoded(1), "a/b.txt": b"Sun"}, zipfile.ZIP_STORED, None, "a file and a folder of one name"),
    "letters": (
        {"Kä.txt": b"x"},
        zipfile.ZIP_STORED,
        lambda file: change(file, "ä".encode(), b"\xe4\xe4"),
        "says that its names are UTF-8",
    ),
    "link": ({"b.txt": b"x"}, zipfile.ZIP_STORED, lambda file: change(file, b"\x80\x01\0\0\0\0", b"\xff\xa1\0\0\0\0"), "is a link"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_zip_of_which_nothing_can_be_read_gets_one_sentence_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    entries, method, spoil, words = REFUSED[name]
    file = pack(tmp_path / "x.zip", entries, method)
    if spoil:
        spoil(file)
    with pytest.raises(ValueError, match=words) as raised:
        read_dataset(file)
    assert "x.zip" in str(raised.value) and str(raised.value).count(". ") == 0
    assert not [each for each in leftovers(tmp_path) if each.name != "unpacked"]


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ("clash", "letters")])
def test_of_a_zip_with_one_bad_file_the_others_are_read(tmp_path: Path, name: str) -> None:
    entries, method, spoil, words = REFUSED[name]
    file = pack(tmp_path / "x.zip", entries, method)
    spoil(file)
    with zipfile.ZipFile(file, "a") as packed:
        for other, data in CAPTION.items():
            packed.writestr(other, data)
    for _ in range(2):  # when it is unpacked, and afterwards
        data = read_dataset(file)
        assert short(data) == captioned(a_png="Sun") and data.count_files() == (3, 2, 1, 0)
        assert named(data)["b.txt"] in words or words in f"x.zip {named(data)['b.txt']}" or "Deflate64" in named(data)["b.txt"]


def test_long_and_double_names_cost_one_file(tmp_path: Path) -> None:
    file = pack(tmp_path / "x.zip", CAPTION | {"b" * 300 + ".png": encoded(2), "c.txt": b"1"})
    change(file, b"c.txt", b"a.txt")
    data = read_dataset(file)
    rows = named(data)
    assert short(data) == captioned(a_png="Sun") and rows["a.txt"] == "is in the zip twice; the first one is taken" and len(rows) == 2
    assert any("too long for the disk" in what for what in rows.values())


def test_a_stray_zip_beside_pictures_does_not_hide_them(tmp_path: Path) -> None:
    for number, spoil in enumerate((encrypt, use_method, lambda file: change(file, b"conver", b"c\xe4nver"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in CAPTION.items():
            (folder / name).write_bytes(data)
        spoil(pack(folder / "x.zip", {"conversation.json": b'{"turns": []}'}))
        data = read_dataset(folder)
        assert short(data) == captioned(a_png="Sun") and "not opened" in named(data)["x.zip"]
