"""Bytes to text: marks, labels, guesses, and what is refused."""

from __future__ import annotations

import pytest

from duogen.files import read_text
from duogen.text_decoding import clean_text, decode_text, find_rubbish

GERMAN = "Käse mit „Brot“ – für 2 Grüße"
JAPANESE = "これは赤い船の絵です。青い空の下に白い家があります。" * 3
CHINESE = "这是一条红色的船，在蓝色的天空下有一座白色的房子。" * 3


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_german_is_read_without_a_label(codec):
    assert decode_text(GERMAN.encode(codec)) == GERMAN


@pytest.mark.parametrize(("codec", "said"), [("shift_jis", JAPANESE), ("gbk", CHINESE), ("big5", "紅色的船在藍色的天空下" * 4)])
def test_a_label_decides_and_may_be_spelt_as_on_the_web(codec, said):
    spellings = {"shift_jis": ["x-sjis", "windows-31j", "Shift_JIS"], "gbk": ["x-gbk", "gb2312", "GB18030"], "big5": ["big5", "x-x-big5"]}
    assert [decode_text(said.encode(codec), label) for label in spellings[codec]] == [said] * len(spellings[codec])


@pytest.mark.parametrize(("codec", "said"), [("shift_jis", JAPANESE), ("gb18030", CHINESE)])
def test_a_language_of_many_letters_is_guessed(codec, said):
    assert decode_text(said.encode(codec)) == said


def test_latin_1_means_windows_1252_as_in_a_browser():
    assert decode_text(b"\x93Brot\x94 \x96 1", "iso-8859-1") == "“Brot” – 1"


@pytest.mark.parametrize("label", ["", "nobody-knows", "x-user-defined", "rot13", "base64", "ä", "cp-850"])
def test_a_label_that_nobody_knows_counts_as_none(label):
    assert decode_text(GERMAN.encode(), label) == GERMAN


@pytest.mark.parametrize("raw", [b"a\0b", b"\x00\x01\x02\x03" * 20, "a\ufffdb".encode(), b"a\x81\x8d", bytes(range(256))])
def test_what_is_no_text_is_refused(raw):
    with pytest.raises(ValueError, match="is no text that can be read"):
        decode_text(raw)


def test_rubbish_is_found_and_halves_of_pairs_are_replaced():
    assert find_rubbish("a\u0091") == "\u0091" and not find_rubbish("a\tb\r\nc 🙂 é")
    assert clean_text("\ud83d\ude42 a\ud83d") == "🙂 a\ufffd"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "c.txt").write_bytes(b"\0\1\2")
    (tmp_path / "d.txt").symlink_to(tmp_path / "gone")
    reasons = {"a.txt": "cannot be read", "b.txt": "is a folder", "c.txt": "is no text", "d.txt": "is a link", "e.txt": "no file"}
    for name, why in reasons.items():
        with pytest.raises(ValueError, match=why) as failed:
            read_text(tmp_path / name)
        assert name in str(failed.value)
