"""Turn bytes into text by the rules of the web (the WHATWG Encoding Standard), and refuse what is no text."""

from __future__ import annotations

import re
import unicodedata

import regex
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
# What changes the order in which other letters are shown.
DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# What no font draws though it counts as a letter or a symbol: fillers, selectors, joiners, the empty pattern of Braille.
UNDRAWN = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{White_Space}\p{Cc}\p{Cs}\u2800\U0001d159]*")
CLUSTER = regex.compile(r"\X")  # what a person sees as one letter, such as an emoji with its skin tone
CLUES = 1 << 16  # bytes that a guess looks at
FEWEST_CLUES = 8  # letters beyond ASCII; fewer may be UTF-8 by chance
FEWEST_GUESSED = 4  # bytes beyond ASCII; fewer fit any encoding
SURE = 0.1  # what chardet says of a guess that is seldom wrong
NO_TEXT = "is no text that can be read; save it as UTF-8."
# What a guess may choose: the encodings of the web that are no Unicode.
GUESSED = [
    *(f"windows-125{number}" for number in range(9)),
    *("iso-8859-2", "iso-8859-5", "koi8-r", "koi8-u", "ibm866", "cp874"),
    *("cp932", "euc-jp", "iso-2022-jp", "cp949", "gb18030", "big5hkscs"),
]
# What the names of the web mean in Python: the larger set, as browsers read them.
LARGER = {"shift_jis": "cp932", "euc-kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs"}
# Letters beyond ASCII as UTF-8 writes them, and any other byte beyond ASCII.
WIDE_LETTER = re.compile(rb"([\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})|[\x80-\xff]")
PLAIN = re.compile(rb"<[^>]*>|\n|[ -~]{64,}")  # what tells nothing of an encoding, and would outweigh what does
# A comment is skipped, since a tag in it counts for nothing.
DECLARATION = re.compile(rb"<!--.*?-->|<meta\b([^>]*)>|<\?xml\b([^>]*)\?>|<body\b", re.I | re.S)
ATTRIBUTE = re.compile(r"""([^\s"'=/>]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.I)
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")  # a browser shows nothing for them
C1_REFERENCE = re.compile(r"&#(?:0*(1(?:2[89]|[345]\d))|x0*([89][0-9a-f]))(?:;|(?![0-9a-f]))", re.I)
ESCAPE = b"\x1b"  # begins Japanese letters in ISO-2022-JP; no other text has it
C1_BYTE = re.compile(rb"[\x80-\x9f]")
HEAD = 1 << 20  # bytes in which a page may declare its encoding
MOST_DAMAGED = 10  # of so many letters beyond ASCII one may be damaged


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
    codec = _find_codec(label)
    if codec:
        try:
            return _check(raw.decode(codec))
        except ValueError:
            pass  # the label is wrong
    wide = _guess_wide(raw)
    if wide:
        return _decode(raw, wide)
    whole, damaged = _count_wide_letters(raw)
    return _guess(raw) if ESCAPE in raw or damaged > whole else _decode(raw, "utf-8")


def decode_page(raw: bytes, declared: str = "") -> str:
    """Decode HTML: a byte-order mark decides, then `declared`, then what the page declares, then UTF-8, a guess, windows-1252.

    A label that most letters contradict counts as none. Controls go, and references to C1 controls mean windows-1252 (HTML standard).

    Args:
        declared: the encoding that the server or the archive names.

    Returns:
        The page. It has U+FFFD where single bytes are damaged: the caller refuses a page that shows one.

    Raises:
        ValueError: the bytes are no text; the message begins with a verb, so that the name of a file can stand before it.
    """
    for mark, name in MARKS.items():
        if raw.startswith(mark):
            return _clean_page(_decode_damaged(raw[len(mark) :], name))
    wide = _guess_wide(raw)
    if wide:
        return _clean_page(_decode_damaged(raw, wide))
    whole, damaged = _count_wide_letters(raw)
    codecs = [_find_codec(label) for label in (declared, _find_declaration(raw))]
    if whole and not damaged:  # UTF-8 without a fault is nothing else; a few letters may be Chinese or Japanese by chance
        codecs = [codec for codec in codecs if whole < FEWEST_CLUES and codec in (*LARGER.values(), "euc_jp")]
    for codec in codecs:
        try:
            if codec and codec != "utf-8":
                return _clean_page(_decode_damaged(raw, codec))
        except ValueError:
            pass  # the label is wrong
    return _clean_page(_guess(raw) if ESCAPE in raw or damaged > whole else raw.decode("utf-8", "replace"))


def find_rubbish(text: str) -> str:
    """The first character that no words hold (a control, a lost letter, half a surrogate pair), "" if there is none."""
    found = RUBBISH.search(text)
    return found.group() if found else ""


def clean_text(text: str) -> str:
    """The text without halves of surrogate pairs, which no file and no tokenizer takes: a pair is joined, a half becomes U+FFFD."""
    if not SURROGATES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def is_blank(text: str) -> bool:
    """Whether a person would see nothing of the text: it is empty, or has only spaces and characters that are never drawn."""
    return UNDRAWN.fullmatch(text) is not None


def clean_message(text: str) -> str:
    """The text as a message: no spaces around it, no halves of surrogate pairs; "" where a person would see nothing of it."""
    cleaned = clean_text(text).strip()
    return "" if is_blank(cleaned) else cleaned


def clean_title(text: str) -> str:
    """The text as a name: on one line, without controls and without what turns the direction of letters; "" where nothing is to be seen."""
    plain = DIRECTIONS.sub("", clean_text(text))
    line = " ".join("".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in plain).split())
    return "" if is_blank(line) else line


def count_words(text: str) -> int:
    """Count words. In scripts without blanks, two letters count as a word."""
    wide = sum(1 for letter in text if "\u3040" <= letter <= "\u9fff")
    return len(re.findall(r"\w+", text)) + wide // 2


def cut_text(text: str, most: int) -> str:
    """At most `most` characters of the text, cut between two words, else between two letters as a person sees them."""
    if len(text) <= most:
        return text
    end = 0
    for cluster in CLUSTER.finditer(text):
        if cluster.end() > most:
            break
        end = cluster.end()
    end = end or most
    return (text[:end].rsplit(" ", 1)[0] if text[end] != " " else text[:end]).rstrip()


def fold_text(text: str) -> str:
    """The text for a search: composed, full-width and half-width letters alike, without differences of case and what is never drawn."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return regex.sub(r"\p{Default_Ignorable_Code_Point}+", "", folded)


def _count_wide_letters(raw: bytes) -> tuple[int, int]:
    """How many letters of UTF-8 beyond ASCII the bytes have, and how many other bytes beyond ASCII."""
    try:
        text = raw.decode("utf-8")
        return len(text) - len(text.encode("ascii", "ignore")), 0
    except UnicodeDecodeError:
        pass
    whole = damaged = 0
    for found in WIDE_LETTER.finditer(raw):
        if found[1]:
            whole += 1
        else:
            damaged += 1
    return whole, damaged


def _find_declaration(page: bytes) -> str:
    """The encoding that a page names in its head, "" if it names none."""
    for found in DECLARATION.finditer(page[:HEAD]):
        if found[0][:5].lower() == b"<body":
            break
        text = (found[1] or found[2] or b"").decode("latin-1")
        said = {name.lower(): one or two or bare for name, one, two, bare in ATTRIBUTE.findall(text)}
        label = said.get("encoding", "") if found[2] else said.get("charset", "")
        if not label and said.get("http-equiv", "").lower() == "content-type":
            named = CHARSET.search(said.get("content", ""))
            label = named[1] if named else ""
        if label:
            return "utf-8" if label.lower().startswith("utf-16") else label  # a page of UTF-16 would not be read to here
    return ""


def _find_codec(label: str) -> str:
    """The codec of a label of the web, "" if nobody knows it."""
    known = webencodings.lookup(label.strip(" \t\r\n;,\"'")) if label.isascii() else None
    if known is None or known.name in ("x-user-defined", "replacement"):
        return ""
    return LARGER.get(known.name, known.codec_info.name)


def _decode_damaged(raw: bytes, codec: str) -> str:
    """Decode bytes of which a few may be damaged; these become U+FFFD.

    Raises:
        ValueError: most letters beyond ASCII are none in this encoding.
    """
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        text = raw.decode(codec, "replace")
        if text.count("\ufffd") * MOST_DAMAGED > sum(letter > "\x7f" for letter in text):
            raise ValueError(NO_TEXT) from None
        return text


def _clean_page(text: str) -> str:
    """The page without controls, and with the letters that its references to C1 controls mean.

    Raises:
        ValueError: so many controls are no text.
    """
    plain = CONTROLS.sub("", text)
    if (len(text) - len(plain)) * 100 > len(text):
        raise ValueError(NO_TEXT)
    return C1_REFERENCE.sub(_read_reference, plain)


def _read_reference(found: re.Match[str]) -> str:
    number = int(found[1]) if found[1] else int(found[2], 16)
    return bytes([number]).decode("cp1252", "ignore") or found[0]


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
    clues, best = raw[:CLUES], None
    if ESCAPE not in clues:
        clues = b"\n".join(piece for piece in PLAIN.split(clues) if not piece.isascii())
    if sum(byte > 127 for byte in clues) >= FEWEST_GUESSED or ESCAPE in clues:
        import chardet  # loads its models, and most texts need none

        best = chardet.detect(clues, include_encodings=GUESSED, no_match_encoding="windows-1252", empty_input_encoding="windows-1252")
        if best["encoding"] is None:  # bytes of a program or a picture
            raise ValueError(NO_TEXT)
    name = best["encoding"] if best and best["encoding"] and best["confidence"] >= SURE else "cp1252"
    if name == "Windows-1250" and not C1_BYTE.search(raw):  # both have the same letters, at other places
        name = "iso-8859-2"
    return _decode(raw, name)


def _guess_wide(raw: bytes) -> str:
    """The form of UTF-16 that the places of zero bytes suggest, "" where they suggest none."""
    clues = raw[:CLUES]
    even, odd = clues[::2].count(0), clues[1::2].count(0)
    if max(even, odd) * 5 < len(clues) or min(even, odd) * 10 > max(even, odd):
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"
