"""Bytes to text: marks, labels, guesses, and what is refused."""

from __future__ import annotations

import pytest

from duogen.files import read_text
from duogen.text_decoding import (
    clean_message,
    clean_text,
    clean_title,
    cut_text,
    decode_page,
    decode_text,
    find_rubbish,
    fold_text,
    is_blank,
)

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


@pytest.mark.parametrize(
    "code", [0, 9, 0x20, 0xAD, 0x34F, 0x115F, 0x180B, 0x200B, 0x200D, 0x202E, 0x2060, 0x2800, 0x3164, 0xFE0F, 0xFEFF, 0xFFA0, 0xE0061]
)
def test_what_nobody_sees_is_blank(code):
    assert not clean_message(f" {chr(code)}\n{chr(code)}") and clean_message(f" a{chr(code)} ").startswith("a")
    assert is_blank(chr(code) * 3) and is_blank(f" {chr(code)}\n") and not clean_title(chr(code)) and not is_blank(f"a{chr(code)}")


@pytest.mark.parametrize("seen", ["a", "。", "é", "\u0301", "❤️", "👩‍🚀", "\ufffd", "\ue000"])
def test_what_somebody_sees_is_not_blank(seen):
    assert not is_blank(seen) and clean_title(f"  {seen}\n\u2066") == seen


def test_a_name_is_one_line_in_its_own_direction():
    assert clean_title("\u202egnp.exe\u202c \x1b[0m\tof\n\n \ud83d me") == "gnp.exe [0m of \ufffd me"


def test_a_text_is_cut_between_letters():
    flag, family = "🇩🇪", "👨\u200d👩\u200d👦"
    assert cut_text("one two three", 8) == "one two" and cut_text("one two three", 7) == "one two" and cut_text("one", 3) == "one"
    assert cut_text(flag * 3, 5) == flag * 2 and cut_text("e\u0301" * 3, 3) == "e\u0301" and cut_text("ab" + family, 5) == "ab"
    assert cut_text("a" + "\u0301" * 50, 9) == "a" + "\u0301" * 8, "one letter that is too long is cut all the same"


def test_a_search_takes_other_forms_for_the_same():
    assert fold_text("ＦＵＬＬ Cafe\u0301 Straße ﬁn") == fold_text("full café STRASSE FIN") == "full café strasse fin"
    assert fold_text("soft\u00ad\u200bword") == "softword" and fold_text("ｱｲｽ") == "アイス"


QUOTED = "It’s “fine” – naïve café €5, Grüße"
RUSSIAN = "Возьмите доску и распилите её на шесть частей, каждая длиной с ладонь."


def html(words: str, head: str = "") -> str:
    return f"<!doctype html><html><head>{head}<title>Board</title></head><body><p>{'Saw the board. ' * 9}</p><p>{words}</p></body>"


@pytest.mark.parametrize(
    ("declared", "head", "codec", "words"),
    [
        ("", '<meta charset="iso-8859-1">', "cp1252", QUOTED),
        ("", "<meta charset=x-sjis>", "cp932", JAPANESE + "①～"),
        ("", '<META CONTENT="text/html; charset=gb2312" HTTP-EQUIV="Content-Type">', "gb18030", CHINESE + "镕"),
        ("", "<meta http-equiv='content-type' content='text/html; charset=utf-8;'>", "utf-8", QUOTED),
        ("", '<!-- <meta charset="iso-8859-1"> -->', "utf-8", QUOTED),
        ("", '<meta charset="x-nobody-knows">', "utf-8", QUOTED),
        ("", '<meta charset="utf-8">', "cp1252", QUOTED),
        ("", '<meta charset="iso-8859-1">', "utf-8", QUOTED),
        ("", '<meta charset="utf-16">', "utf-8", QUOTED),
        ("", '<?xml version="1.0" encoding="windows-1251"?>', "cp1251", RUSSIAN),
        ("windows-1251", '<meta charset="iso-8859-1">', "cp1251", RUSSIAN),
        ("utf-8", '<meta charset="iso-8859-1">', "utf-8", QUOTED),
        ("x-user-defined", '<meta charset="windows-1252">', "cp1252", QUOTED),
        ("iso-8859-1", "", "utf-8-sig", QUOTED),
        ("", "", "utf-16", QUOTED),
        ("", "", "utf-16-le", QUOTED),
    ],
)
def test_a_page_is_decoded_by_the_rules_of_the_web(declared, head, codec, words):
    assert decode_page(html(words, head).encode(codec), declared) == html(words, head)


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        *((codec, RUSSIAN) for codec in ("cp1251", "koi8-r", "iso8859-5", "cp866")),
        ("cp1252", QUOTED),
        ("cp932", JAPANESE),
        ("euc_jp", JAPANESE),
        ("iso2022_jp", JAPANESE),
        ("gb18030", CHINESE),
        ("cp1253", "Πάρτε τη σανίδα και κόψτε την σε έξι κομμάτια."),
        ("cp1250", "Nařežte desku na šest kusů a slepte boky. Žluťoučký kůň."),
        ("cp949", "판자를 여섯 조각으로 자르고 구멍을 뚫으세요."),
        ("cp1255", "קחו את הלוח ונסרו אותו לשישה חלקים. קדחו חור בחלק הקדמי."),
    ],
)
def test_a_page_without_a_label_is_guessed_by_its_letters(codec, words):
    assert decode_page(html(words).encode(codec)) == html(words)


def test_what_a_browser_reads_another_way_in_a_page():
    assert decode_page(b"<p>it&#146;s &#x93;x&#X94; &#133 &#1470; &#x85ff;</p>") == "<p>it’s “x” … &#1470; &#x85ff;</p>"
    assert decode_page(html("ca\0fé").encode()) == html("café")
    cut = html(QUOTED).encode().replace("–".encode(), b"\xe2\x80")
    assert decode_page(cut) == html(QUOTED.replace("–", "\ufffd")), "one damaged letter is marked, and the others stay"


@pytest.mark.parametrize("raw", [bytes(range(256)) * 9, b"\x00\x01\x02\x03" * 90, b"<p>" + bytes(range(1, 32)) * 40])
def test_what_is_no_page_is_refused(raw):
    with pytest.raises(ValueError, match="is no text that can be read"):
        decode_page(raw)
