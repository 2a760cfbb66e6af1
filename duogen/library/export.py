"""A conversation leaves the page: one HTML file, Markdown with its pictures as a zip, or a PDF that looks like a printed guide.

The looks are in `assets/export/`: a Jinja template with its style, and a Typst document that reads the same data.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
import unicodedata
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen import paths
from duogen.conversation import Conversation, Image, Text, Turn, write_beside

if TYPE_CHECKING:
    from markdown_it.token import Token

ASSETS = paths.ASSETS / "export"
TITLE_LETTERS = 120
CHINESE = re.compile("[\u3400-\u9fff]")
CHINESE_NUMBERS = "一二三四五六七八九十"


def _counting(label: str, heading: str = "?") -> re.Pattern[str]:
    """Lines that begin with `label`, perhaps as a heading or in bold."""
    before, after = rf"^ {{0,3}}(?P<heading>#{{1,6}} +){heading}(?P<bold>\*\*)?", r"(?P<closed>\*\*[.:：]?)?[ \t]*"
    return re.compile(f"{before}(?P<label>{label}){after}", re.IGNORECASE | re.MULTILINE)


# How answers count their steps, surest first: an answer that says "Step 1." may hold lists whose "1." is no step.
STEPS = (
    _counting(
        r"(?:step|schritt) +\d{1,3}(?: ?[.):–—-]|(?=\*\*|[ \t]*$))"
        r"|步骤 ?\d{1,3} ?[.:：、，]?"
        r"|第 ?(?:\d{1,3}|[一二三四五六七八九十]) ?步 ?[.:：、，]?"
    ),
    _counting(r"\d{1,3}[.):：、](?=\s|\*)", heading=""),
    _counting(r"\d{1,3}(?:[.)](?=\s|\*)|、)"),
)
EMOJI_STYLES = re.compile("[\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")  # they stand behind an emoji and change its looks
MISSING = re.compile(r'the text `"(.+?)"` could not be displayed')
RUST_ESCAPE = re.compile(r"\\u\{([0-9a-f]+)\}")


@dataclass(frozen=True)
class Block:
    """What belongs together on a page: words and the picture that they lead to.

    Attributes:
        words: Markdown.
        number: of the step, as the answer counts it; `None` for words that are no step.
        label: how the answer says that number, such as "Schritt 2".
        picture: the picture that follows the words.
    """

    words: str
    number: int | None = None
    label: str = ""
    picture: Image | None = None


@dataclass(frozen=True)
class Section:
    """A question, the pictures that came with it, and the answer."""

    question: str
    brought: tuple[Image, ...]
    blocks: tuple[Block, ...]


def sections(conversation: Conversation, answer: str | None = None) -> list[Section]:
    """The branch that is shown, or only one answer with its question.

    Args:
        answer: the id of that answer's turn.

    Raises:
        ValueError: nothing was answered yet, or there is no such answer on this branch.
    """
    path = conversation.path()
    pairs = [(path[index - 1] if index else None, turn) for index, turn in enumerate(path) if turn.role == "assistant"]
    if answer is not None:
        pairs = [pair for pair in pairs if pair[1].id == answer]
    if not pairs:
        raise ValueError("There is no answer to export yet; ask for something first.")
    return [_section(asked, answered) for asked, answered in pairs]


def _section(asked: Turn | None, answered: Turn) -> Section:
    said = "\n".join(part.text for part in answered.parts if isinstance(part, Text))
    steps = next((pattern for pattern in STEPS if pattern.search(said)), STEPS[-1])
    blocks: list[Block] = []
    words = ""
    for part in answered.parts:
        if isinstance(part, Text):
            words += part.text
            continue
        blocks += _blocks(words, part, steps)
        words = ""
    blocks += _blocks(words, None, steps)
    return Section(asked.text().strip() if asked else "", tuple(asked.images()) if asked else (), tuple(blocks))


def _blocks(words: str, picture: Image | None, steps: re.Pattern[str]) -> list[Block]:
    """The words before a picture: what leads to the last step is a block of its own, and the step stands with its picture."""
    found = list(steps.finditer(words))
    if not found:
        return [Block(words.strip(), picture=picture)] if words.strip() or picture else []
    cut = [match.start() for match in found] + [len(words)]
    blocks = [_step(match, words[match.end() : end].strip()) for match, end in zip(found, cut[1:], strict=True)]
    blocks[-1] = replace(blocks[-1], picture=picture)
    lead = words[: cut[0]].strip()
    return [Block(lead), *blocks] if lead else blocks


def _step(match: re.Match[str], words: str) -> Block:
    """A step without its number; the rest of a heading, or of bold words that the number began, stays bold."""
    said = match["label"]
    digits = re.search(rf"\d+|[{CHINESE_NUMBERS}]", said)[0]
    number = int(digits) if digits.isdecimal() else CHINESE_NUMBERS.index(digits) + 1
    first, _, rest = words.partition("\n")
    if match["bold"] and not match["closed"]:
        gap = "\n\n" if first.rstrip().endswith("**") else "\n"
        words = f"**{first.rstrip()}{gap}{rest}"
    elif match["heading"] and first.strip():
        words = f"**{first.strip(' *#')}**\n{rest}"
    return Block(words, number, said.rstrip(" .):–—-：、，"))


def title(found: list[Section]) -> str:
    """The first question on one line, cut where it is long."""
    line = " ".join((found[0].question or "A guide").split())
    return line if len(line) <= TITLE_LETTERS else line[:TITLE_LETTERS].rsplit(" ", 1)[0] + " …"


def language(section: Section) -> str:
    """What a screen reader and the choice of quotation marks need to know: "zh", or "" where it cannot be told."""
    return "zh" if any(map(CHINESE.search, (section.question, *(block.words for block in section.blocks)))) else ""


def as_html(conversation: Conversation, answer: str | None = None) -> str:
    """One HTML file with everything in it, no scripts. Raises ValueError as `sections` does."""
    import jinja2
    from markdown_it import MarkdownIt

    found = sections(conversation, answer)
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")  # an answer must not fetch pictures from somewhere
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"markdown": markdown.render, "data": _data_address, "alt": _alt, "language": language}
    style = (ASSETS / "guide.css").read_text(encoding="utf-8")
    return templates.get_template("guide.html").render(title=title(found), sections=found, style=style)


def as_zip(conversation: Conversation, answer: str | None = None) -> bytes:
    """`guide.md` and the folder `pictures` beside it. Raises ValueError as `sections` does."""
    found = sections(conversation, answer)
    lines = [f"# {title(found)}", ""]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as packed:  # PNG does not get smaller

        def shown(image: Image, words: str = "") -> str:
            name = f"pictures/{len(packed.namelist()) + 1:02}.png"
            packed.writestr(name, _png(image))
            alt = re.sub(r"[\[\]\\]", "", _alt(image, words))
            return f"![{alt}]({name})"

        for index, section in enumerate(found):
            question = " ".join(section.question.split())
            if question and (index or question != title(found)):
                lines += [f"## {question}" if index else question, ""]
            lines += [line for image in section.brought for line in (shown(image), "")]
            for block in section.blocks:
                lines += [f"**{block.label}.** {block.words}" if block.number is not None else block.words, ""]
                lines += [shown(block.picture, block.words), ""] if block.picture else []
        packed.writestr("guide.md", "\n".join(lines).rstrip() + "\n")
    return data.getvalue()


def as_pdf(conversation: Conversation, answer: str | None = None) -> bytes:
    """A4 pages with selectable text, tagged as PDF/UA-1 wants it; a step and its picture stay on one page.

    Fonts: Typst's own for Latin, Greek and Cyrillic letters, a package's for Chinese and Japanese, else those of the machine.
    A symbol or emoji that no font has is left out.

    Raises:
        ValueError: as `sections` does, or the words need a font that the machine lacks.
    """
    found = sections(conversation, answer)
    with tempfile.TemporaryDirectory(prefix="duogen-pdf-") as folder:
        root = Path(folder)

        def kept(image: Image, words: str = "") -> dict[str, Any]:
            kind, packed = _compact(image)
            name = f"{len(list(root.iterdir())) + 1}.{kind}"
            (root / name).write_bytes(packed)
            return {"file": name, "alt": _alt(image, words), "ratio": image.picture.height / image.picture.width}

        def laid(block: Block) -> dict[str, Any]:
            picture = kept(block.picture, block.words) if block.picture else None
            return {"number": block.number, "lines": markdown_lines(block.words), "picture": picture}

        data = {"title": title(found), "sections": []}
        for section in found:
            part = {"question": " ".join(section.question.split()), "language": language(section) or "en"}
            part |= {"brought": [kept(image) for image in section.brought], "blocks": [laid(block) for block in section.blocks]}
            data["sections"].append(part)
        (root / "guide.typ").write_text((ASSETS / "guide.typ").read_text(encoding="utf-8"), encoding="utf-8")
        return _typeset(root, data)


def _typeset(root: Path, data: dict[str, Any]) -> bytes:
    """Compile `guide.typ` with `data` as its guide.json. PDF/UA-1 makes Typst refuse letters without a font instead of drawing boxes."""
    import pylopdf_fonts_zh_cn
    import typst

    fonts = typst.Fonts(font_paths=[str(pylopdf_fonts_zh_cn.serif_path().parent)])
    data = _without(EMOJI_STYLES, data)
    while True:
        (root / "guide.json").write_text(json.dumps(data), encoding="utf-8")
        try:
            return typst.compile(str(root / "guide.typ"), root=str(root), font_paths=fonts, pdf_standards="ua-1")
        except typst.TypstError as error:
            missing = MISSING.search(error.message)
            if missing is None:
                raise
            letters = RUST_ESCAPE.sub(lambda found: chr(int(found[1], 16)), missing[1])
            left = _without(re.compile(rf"^{re.escape(letters)} *| ?{re.escape(letters)}"), data)
            if left == data or any(unicodedata.category(letter)[0] not in "SMC" for letter in letters):
                sentence = f"No font on this machine has the letter {letters}; install one that has it, or export as HTML."
                raise ValueError(sentence) from error
            data = left


def _without(unwanted: re.Pattern[str], data: Any) -> Any:
    """`data` with all that matches cut out of its strings."""
    if isinstance(data, str):
        return unwanted.sub("", data)
    if isinstance(data, list):
        return [_without(unwanted, each) for each in data]
    return {name: _without(unwanted, each) for name, each in data.items()} if isinstance(data, dict) else data


WRITERS = {".html": lambda *what: as_html(*what).encode(), ".zip": as_zip, ".pdf": as_pdf}


def export(conversation: Conversation, file: Path, answer: str | None = None) -> None:
    """Write a guide into `file`; its ending says as what.

    Raises:
        ValueError: the ending is none of .html, .zip and .pdf, there is nothing to export, or the file cannot be written.
    """
    writer = WRITERS.get(file.suffix.lower())
    if writer is None:
        raise ValueError(f"{file.name} must end in {', '.join(WRITERS)}; that says what to write.")
    data = writer(conversation, answer)
    try:
        write_beside(file, data)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}); choose another place.") from error


def markdown_lines(words: str) -> list[dict[str, Any]]:
    """Markdown as what guide.typ sets: paragraphs, list items, headings and code, each of runs of letters in one style.

    Returns:
        `[{"kind": "text" | "item" | "heading" | "code", "number": int | None, "depth": int, "runs": [{"text", "bold", "italic", "code"}]}]`
    """
    from markdown_it import MarkdownIt

    lines, lists = [], []
    item, heading = False, False
    for token in MarkdownIt("commonmark", {"html": False}).parse(words):
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                lists.append(int(token.attrs.get("start", 1)) if token.type == "ordered_list_open" else None)
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                item = True
            case "heading_open" | "heading_close":
                heading = token.type == "heading_open"
            case "inline" | "code_block" | "fence":
                kind = "item" if item else "heading" if heading else "text" if token.type == "inline" else "code"
                number = lists[-1] if item else None
                if number is not None:
                    lists[-1] += 1
                runs = _runs(token.children or []) if token.type == "inline" else [_run(token.content.rstrip(), code=True)]
                lines.append({"kind": kind, "number": number, "depth": len(lists), "runs": runs})
                item = False
    return lines


def _runs(tokens: list[Token]) -> list[dict[str, Any]]:
    runs, bold, italic = [], 0, 0
    for token in tokens:
        bold += {"strong_open": 1, "strong_close": -1}.get(token.type, 0)
        italic += {"em_open": 1, "em_close": -1}.get(token.type, 0)
        text = {"softbreak": " ", "hardbreak": "\n"}.get(token.type, token.content)
        if text:
            runs.append(_run(text, bold > 0, italic > 0, token.type == "code_inline"))
    return runs


def _run(text: str, bold: bool = False, italic: bool = False, code: bool = False) -> dict[str, Any]:
    return {"text": text, "bold": bold, "italic": italic, "code": code}


def plain(words: str) -> str:
    """Markdown on one line without its marks."""
    return " ".join(" ".join(run["text"] for run in line["runs"]) for line in markdown_lines(words))


def _png(image: Image) -> bytes:
    data = io.BytesIO()
    image.picture.save(data, "PNG")
    return data.getvalue()


def _compact(image: Image) -> tuple[str, bytes]:
    """ "png" or "jpeg", whichever needs fewer bytes: drawings are smaller as PNG, photographs as JPEG, and neither shows a difference."""
    data = io.BytesIO()
    image.picture.save(data, "JPEG", quality=92, subsampling=0)
    return min(("png", _png(image)), ("jpeg", data.getvalue()), key=lambda packed: len(packed[1]))


def _data_address(image: Image) -> str:
    kind, data = _compact(image)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _alt(image: Image, words: str = "") -> str:
    """What a screen reader says: the picture's own description, else the words it was painted from."""
    return " ".join((image.alt or plain(words)).split())[:240] or "A picture"
