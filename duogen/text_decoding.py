"""Turn bytes into text by the rules of the web (the WHATWG Encoding Standard), and refuse what is no text."""

from __future__ import annotations

import re

import charset_normalizer
import webencodings

MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\xfe\xff": "utf-16-be",
    b"\xff\xfe": "utf-16-le",
}
# What is never said in words: controls but tab and line ends, C1 controls, half of a surrogate pair, the mark of lost letters.
RUBBISH = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd\ufffe\uffff]")
SURROGATES = re.compile("[\ud800-\udfff]")
CLUES = 1 << 16  # bytes that a guess looks at
FEWEST_CLUES = 8  # bytes beyond ASCII; fewer fit any encoding
NO_TEXT = "is no text that can be read; save it as UTF-8."
# Encodings of several bytes a letter. Their rules refuse most other bytes, so a guess of one can be trusted.
TRUSTED = {
    *("cp932", "shift_jis", "shift_jis_2004", "euc_jp", "euc_jis_2004", "gb18030", "gbk", "big5"),
    *("big5hkscs", "cp949", "euc_kr", "johab"),
}


def decode_text(raw: bytes, label: str = "") -> str:
    """Decode bytes: a byte-order mark decides, then `label`, then UTF-8, UTF-16 without a mark, a guess, windows-1252.

    Args:
        label: the name of an encoding as the file or its sender states it; one that nobody knows counts as none.

    Raises:
        ValueError: the bytes are no text in any of these; the message begins with a verb, so that the name of a file can stand before it.
    """
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            return _decode(raw[len(mark) :], name)
    known = webencodings.lookup(label) if label else None
    if known and known.name not in ("x-user-defined", "replacement"):
        try:
            return _check(raw.decode(known.codec_info.name))
        except ValueError:
            pass  # the label is wrong
    wide = _guess_wide(raw)
    if wide:
        return _decode(raw, wide)
    try:
        return _check(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return _guess(raw)


def find_rubbish(text: str) -> str:
    """The first character that no words hold (a control, a lost letter, half a surrogate pair), "" if there is none."""
    found = RUBBISH.search(text)
    return found.group() if found else ""


def clean_text(text: str) -> str:
    """The text without halves of surrogate pairs, which no file and no tokenizer takes: a pair is joined, a half becomes U+FFFD."""
    if not SURROGATES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _decode(raw: bytes, name: str) -> str:
    try:
        return _check(raw.decode(name))
    except UnicodeDecodeError as error:
        raise ValueError(NO_TEXT) from error


def _check(text: str) -> str:
    if find_rubbish(text):
        raise ValueError(NO_TEXT)
    return text


def _guess(raw: bytes) -> str:
    """Decode bytes that are no UTF-8 and carry no label."""
    clues = raw[:CLUES]
    if sum(byte > 127 for byte in clues) >= FEWEST_CLUES:
        best = charset_normalizer.from_bytes(clues).best()
        if best and best.encoding in TRUSTED:
            try:
                return _decode(raw, best.encoding)
            except ValueError:
                pass  # the rest of the file says otherwise
    return _decode(raw, "cp1252")


def _guess_wide(raw: bytes) -> str:
    """The form of UTF-16 that the places of zero bytes suggest, "" where they suggest none."""
    clues = raw[:CLUES]
    even, odd = clues[::2].count(0), clues[1::2].count(0)
    if max(even, odd) * 5 < len(clues) or min(even, odd) * 10 > max(even, odd):
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"
