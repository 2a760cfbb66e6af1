"""A guide as a PDF, set by Typst from `assets/export/guide.typ`. Letters that no font has are replaced and named at its end."""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen import paths
from duogen.conversation import Conversation, Image
from duogen.library.guide import Block, Section, guess_language, guide_title, rest_of_question, sections
from duogen.library.guide_pictures import alt_text, encode_compact
from duogen.library.markdown import markdown_lines
from duogen.text_decoding import CLUSTER

if TYPE_CHECKING:
    import typst

ASSETS = paths.ASSETS / "export"
EMOJI_STYLES = re.compile("[\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")  # they follow an emoji and change its appearance
MISSING = re.compile(r'the text `"(.+?)"` could not be displayed', re.DOTALL)
RUST_ESCAPE = re.compile(r"\\u\{([0-9a-f]+)\}")
SUBSTITUTE = "□"
MOST_NAMED, MOST_OF_SCRIPT = 12, 3
PROBE = """#set document(title: "x")
#set text(font: ("Libertinus Serif", "Noto Serif SC"))
#for it in json("probe.json") { par(it) }
"""


def as_pdf(conversation: Conversation, answer: str | None = None) -> bytes:
    """A4 pages with selectable text, tagged as PDF/UA-1 wants it; a step and its picture stay on one page where one page is enough.

    Fonts: Typst's own for Latin, Greek and Cyrillic letters, a package's for Chinese and Japanese, else those of the machine.
    What no font has is replaced: a letter by a square, a symbol or emoji by nothing. A line at the end names it.

    Raises:
        ValueError: as `sections` does, or Typst cannot set the guide.
    """
    import typst

    found = sections(conversation, answer)
    try:
        with tempfile.TemporaryDirectory(prefix="duogen-pdf-") as folder:
            return typeset("guide", _lay_out(found, Path(folder)), Path(folder), pdf_standards="ua-1")
    except typst.TypstError as error:
        raise ValueError(f"The PDF cannot be made ({error.message.splitlines()[0]}); save it as a web page instead.") from error


def typeset(template: str, data: dict[str, Any], root: Path, **settings: Any) -> Any:
    """Set `data` by a template of `assets/export/`, in the folder `root`, which holds its pictures.

    What no font has is replaced in its texts, and its "note" names it.

    Args:
        settings: what `typst.compile` takes.

    Raises:
        typst.TypstError: Typst cannot set it.
        ValueError: as `find_missing`.
    """
    import typst

    missing = find_missing(_displayed(data), root)
    data = _replace_texts(data, lambda text: substitute(text, missing)) | {"note": describe_missing(missing)}
    for name in ("words", template):
        (root / f"{name}.typ").write_text((ASSETS / f"{name}.typ").read_text(encoding="utf-8"), encoding="utf-8")
    (root / f"{template}.json").write_text(json.dumps(data), encoding="utf-8")
    return typst.compile(str(root / f"{template}.typ"), root=str(root), font_paths=_fonts(), **settings)


def _lay_out(found: list[Section], root: Path) -> dict[str, Any]:
    """What guide.typ reads. Writes the pictures into `root`."""
    count = iter(range(1, 10**9))

    def save_picture(image: Image, words: str = "") -> dict[str, Any]:
        kind, packed = encode_compact(image)
        name = f"{next(count)}.{kind}"
        (root / name).write_bytes(packed)
        return {"file": name, "alt": alt_text(image, words), "ratio": image.picture.height / image.picture.width}

    def lay_out(block: Block, sticky: bool) -> dict[str, Any]:
        picture = save_picture(block.picture, block.words) if block.picture else None
        return {"number": block.number, "lines": markdown_lines(block.words), "picture": picture, "sticky": sticky}

    def lay_out_section(section: Section, last: bool) -> dict[str, Any]:
        # The last step takes the one before it along, so that it is not alone on a page, and what is said after it stays with it.
        closing = bool(section.blocks) and section.blocks[-1].picture is None and section.blocks[-1].number is None
        kept = range(len(section.blocks) - 2 - closing, len(section.blocks) - 1) if last else range(0)
        return {
            "question": " ".join(section.question.split()),
            "asked": rest_of_question(found) if section is found[0] else "",
            "language": guess_language(section) or "en",
            "brought": [save_picture(image) for image in section.brought],
            "blocks": [lay_out(block, at in kept) for at, block in enumerate(section.blocks)],
        }

    title = guide_title(found)
    laid = [lay_out_section(section, section is found[-1]) for section in found]
    pictures = [image for section in found for image in (*section.brought, *(block.picture for block in section.blocks)) if image]
    origins = sorted({image.origin for image in pictures if image.origin})
    return {"title": title, "name": title, "language": guess_language(*found) or "en", "sections": laid, "origins": origins}


@lru_cache(maxsize=1)
def _fonts() -> typst.Fonts:
    import pylopdf_fonts_zh_cn
    import typst

    return typst.Fonts(font_paths=[str(pylopdf_fonts_zh_cn.serif_path().parent)])


KEPT_AS_THEY_ARE = {"alt", "file", "kind", "language", "name", "link", "origins"}


def _replace_texts(data: Any, how: Callable[[str], str]) -> Any:
    """`data` with all texts that are drawn replaced."""
    if isinstance(data, str):
        return how(data)
    if isinstance(data, list):
        return [_replace_texts(each, how) for each in data]
    if isinstance(data, dict):
        return {name: each if name in KEPT_AS_THEY_ARE else _replace_texts(each, how) for name, each in data.items()}
    return data


def _displayed(data: dict[str, Any]) -> set[str]:
    """The letters of a guide beyond ASCII, as a person sees them: an emoji of several characters is one."""
    texts: list[str] = []
    _replace_texts(data, lambda text: texts.append(text) or text)
    return {cluster for text in texts for cluster in CLUSTER.findall(EMOJI_STYLES.sub("", text)) if not cluster.isascii()}


def find_missing(letters: set[str], root: Path) -> set[str]:
    """Those of the letters that no font on this machine can draw. Raises ValueError: Typst does not say which."""
    import typst

    left, missing = set(letters), set()
    (root / "probe.typ").write_text(PROBE, encoding="utf-8")
    while left:
        (root / "probe.json").write_text(json.dumps(sorted(left)), encoding="utf-8")
        try:
            # With PDF/UA-1, Typst refuses letters without a font instead of drawing boxes, one at a time.
            typst.compile(str(root / "probe.typ"), root=str(root), font_paths=_fonts(), pdf_standards="ua-1")
            return missing
        except typst.TypstError as error:
            named = MISSING.search(error.message)
            text = RUST_ESCAPE.sub(lambda found: chr(int(found[1], 16)), named[1]) if named else ""
            gone = {letter for letter in left if text and text in letter} or {letter for letter in left if set(text) & set(letter)}
            if not gone:
                raise ValueError("The PDF cannot be made with these letters; save it as a web page instead.") from error
            left, missing = left - gone, missing | gone
    return missing


def substitute(text: str, missing: set[str]) -> str:
    """The text without emoji and symbols that are missing, and with a square for each missing letter."""
    text = EMOJI_STYLES.sub("", text)
    letters, symbols = _split_letters(missing)
    text = "".join(SUBSTITUTE if cluster in letters else cluster for cluster in CLUSTER.findall(text))
    if not symbols:
        return text
    any_symbol = "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    return re.sub(rf"^(?:{any_symbol}) *| ?(?:{any_symbol})", "", text)


def _split_letters(missing: set[str]) -> tuple[set[str], set[str]]:
    """Letters, digits and marks of punctuation; symbols, emoji and controls."""
    symbols = {letter for letter in missing if unicodedata.category(letter[0])[0] in "SMC"}
    return missing - symbols, symbols


def describe_missing(missing: set[str]) -> str:
    """A sentence that names what was replaced, each once; "" where nothing was."""
    letters, symbols = _split_letters(missing)
    said = []
    if letters:
        said.append(f"No font on this machine has the letters shown as {SUBSTITUTE}: {_list_names(letters)}.")
    if symbols:
        said.append(f"No font on this machine has these symbols, so they are left out: {_list_names(symbols)}.")
    return " ".join(said)


def _list_names(letters: set[str]) -> str:
    """The names of the characters, each once; many of one script are counted."""
    names = list(dict.fromkeys(name for letter in sorted(letters) for name in _names(letter)))
    scripts = Counter(name.split()[0] for name in names)
    said = dict.fromkeys(_count_script(name, scripts[name.split()[0]]) for name in names)
    more = [f"{len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
    return ", ".join([*list(said)[:MOST_NAMED], *more])


def _count_script(name: str, count: int) -> str:
    return name if count <= MOST_OF_SCRIPT else f"{count} of {name.split()[0].capitalize()}"


def _names(letter: str) -> Iterator[str]:
    """The names of the characters of a letter that are drawn."""
    for each in letter:
        if unicodedata.category(each) != "Cf":
            yield unicodedata.name(each, f"U+{ord(each):04X}").lower().replace("u+", "U+")
