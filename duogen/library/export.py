"""Exports of a conversation: one HTML file, Markdown with its pictures as a zip, or a PDF like a printed guide.

The templates are in `assets/export/`: a Jinja template with its style, and a Typst document that reads the same data.
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
from duogen.conversation import Conversation, Image, Text, Turn
from duogen.files import write_beside

if TYPE_CHECKING:
    from markdown_it.token import Token

ASSETS = paths.ASSETS / "export"
TITLE_LETTERS = 120
CHINESE = re.compile("[\u3400-\u9fff]")
CHINESE_NUMBERS = "一二三四五六七八九十"


def _step_pattern(label: str, heading: str = "?") -> re.Pattern[str]:
    """A pattern for lines that begin with `label`, perhaps as a heading or in bold."""
    before, after = rf"^ {{0,3}}(?P<heading>#{{1,6}} +){heading}(?P<bold>\*\*)?", r"(?P<closed>\*\*[.:：]?)?[ \t]*"
    return re.compile(f"{before}(?P<label>{label}){after}", re.IGNORECASE | re.MULTILINE)


# How answers count their steps, surest first: an answer that says "Step 1." may hold lists whose "1." is no step.
STEPS = (
    _step_pattern(
        r"(?:step|schritt) +\d{1,3}(?: ?[.):–—-]|(?=\*\*|[ \t]*$))"
        r"|步骤 ?\d{1,3} ?[.:：、，]?"
        r"|第 ?(?:\d{1,3}|[一二三四五六七八九十]) ?步 ?[.:：、，]?"
    ),
    _step_pattern(r"\d{1,3}[.):：、](?=\s|\*)", heading=""),
    _step_pattern(r"\d{1,3}(?:[.)](?=\s|\*)|、)"),
)
EMOJI_STYLES = re.compile("[\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")  # they follow an emoji and change its appearance
MISSING = re.compile(r'the text `"(.+?)"` could not be displayed')
RUST_ESCAPE = re.compile(r"\\u\{([0-9a-f]+)\}")


@dataclass(frozen=True)
class Block:
    """A part of a page that stays together: words and the picture after them.

    Attributes:
        words: Markdown.
        number: the number of the step in the answer; `None` for words that are no step.
        label: the number as the answer writes it, such as "Schritt 2".
        picture: the picture that follows the words.
    """

    words: str
    number: int | None = None
    label: str = ""
    picture: Image | None = None


@dataclass(frozen=True)
class Section:
    """A question, its uploaded pictures, and the answer."""

    question: str
    brought: tuple[Image, ...]
    blocks: tuple[Block, ...]


def sections(conversation: Conversation, answer: str | None = None) -> list[Section]:
    """The sections of the current branch, or only one answer with its question.

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
    """The words before a picture as blocks: earlier steps are blocks of their own, and the last step has the picture."""
    found = list(steps.finditer(words))
    if not found:
        return [Block(words.strip(), picture=picture)] if words.strip() or picture else []
    cut = [match.start() for match in found] + [len(words)]
    blocks = [_step(match, words[match.end() : end].strip()) for match, end in zip(found, cut[1:], strict=True)]
    blocks[-1] = replace(blocks[-1], picture=picture)
    lead = words[: cut[0]].strip()
    return [Block(lead), *blocks] if lead else blocks


def _step(match: re.Match[str], words: str) -> Block:
    """A step without its number. The rest of a heading, or of bold words that begin with the number, stays bold."""
    said = match["label"]
    digits = re.findall(rf"\d+|[{CHINESE_NUMBERS}]", said)[0]
    number = int(digits) if digits.isdecimal() else CHINESE_NUMBERS.index(digits) + 1
    first, _, rest = words.partition("\n")
    if match["bold"] and not match["closed"]:
        gap = "\n\n" if first.rstrip().endswith("**") else "\n"
        words = f"**{first.rstrip()}{gap}{rest}"
    elif match["heading"] and first.strip():
        words = f"**{first.strip(' *#')}**\n{rest}"
    return Block(words, number, said.rstrip(" .):–—-：、，"))


def guide_title(found: list[Section]) -> str:
    """The first question on one line, shortened if it is long."""
    line = " ".join((found[0].question or "A guide").split())
    return line if len(line) <= TITLE_LETTERS else line[:TITLE_LETTERS].rsplit(" ", 1)[0] + " …"


def guess_language(section: Section) -> str:
    """The language for screen readers and quotation marks: "zh", or "" if unknown."""
    return "zh" if any(map(CHINESE.search, (section.question, *(block.words for block in section.blocks)))) else ""


def as_html(conversation: Conversation, answer: str | None = None) -> str:
    """One HTML file with everything in it, no scripts. Raises ValueError as `sections` does."""
    import jinja2
    from markdown_it import MarkdownIt

    found = sections(conversation, answer)
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")  # an answer must not fetch pictures
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"markdown": markdown.render, "data": _data_url, "alt": _alt_text, "language": guess_language}
    style = (ASSETS / "guide.css").read_text(encoding="utf-8")
    return templates.get_template("guide.html").render(title=guide_title(found), sections=found, style=style)


def as_zip(conversation: Conversation, answer: str | None = None) -> bytes:
    """`guide.md` and the folder `pictures` beside it. Raises ValueError as `sections` does."""
    found = sections(conversation, answer)
    lines = [f"# {guide_title(found)}", ""]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as packed:  # PNG does not get smaller

        def save_picture(image: Image, words: str = "") -> str:
            name = f"pictures/{len(packed.namelist()) + 1:02}.png"
            packed.writestr(name, _encode_png(image))
            alt = re.sub(r"[\[\]\\]", "", _alt_text(image, words))
            return f"![{alt}]({name})"

        for index, section in enumerate(found):
            question = " ".join(section.question.split())
            if question and (index or question != guide_title(found)):
                lines += [f"## {question}" if index else question, ""]
            lines += [line for image in section.brought for line in (save_picture(image), "")]
            for block in section.blocks:
                lines += [f"**{block.label}.** {block.words}" if block.number is not None else block.words, ""]
                lines += [save_picture(block.picture, block.words), ""] if block.picture else []
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

        def save_picture(image: Image, words: str = "") -> dict[str, Any]:
            kind, packed = _encode_compact(image)
            name = f"{len(list(root.iterdir())) + 1}.{kind}"
            (root / name).write_bytes(packed)
            return {"file": name, "alt": _alt_text(image, words), "ratio": image.picture.height / image.picture.width}

        def lay_out(block: Block) -> dict[str, Any]:
            picture = save_picture(block.picture, block.words) if block.picture else None
            return {"number": block.number, "lines": markdown_lines(block.words), "picture": picture}

        def lay_out_section(section: Section) -> dict[str, Any]:
            return {
                "question": " ".join(section.question.split()),
                "language": guess_language(section) or "en",
                "brought": [save_picture(image) for image in section.brought],
                "blocks": [lay_out(block) for block in section.blocks],
            }

        data = {"title": guide_title(found), "sections": [lay_out_section(section) for section in found]}
        (root / "guide.typ").write_text((ASSETS / "guide.typ").read_text(encoding="utf-8"), encoding="utf-8")
        return _typeset(root, data)


def _typeset(root: Path, data: dict[str, Any]) -> bytes:
    """Compile `guide.typ` with `data` as its guide.json. With PDF/UA-1, Typst refuses letters without a font instead of drawing boxes."""
    import pylopdf_fonts_zh_cn
    import typst

    fonts = typst.Fonts(font_paths=[str(pylopdf_fonts_zh_cn.serif_path().parent)])
    data = _remove_matches(EMOJI_STYLES, data)
    while True:
        (root / "guide.json").write_text(json.dumps(data), encoding="utf-8")
        try:
            return typst.compile(str(root / "guide.typ"), root=str(root), font_paths=fonts, pdf_standards="ua-1")
        except typst.TypstError as error:
            missing = MISSING.search(error.message)
            if missing is None:
                raise
            letters = RUST_ESCAPE.sub(lambda found: chr(int(found[1], 16)), missing[1])
            left = _remove_matches(re.compile(rf"^{re.escape(letters)} *| ?{re.escape(letters)}"), data)
            if left == data or any(unicodedata.category(letter)[0] not in "SMC" for letter in letters):
                sentence = f"No font on this machine has the letter {letters}; install one that has it, or export as HTML."
                raise ValueError(sentence) from error
            data = left


def _remove_matches(unwanted: re.Pattern[str], data: Any) -> Any:
    """`data` with all matches removed from its strings."""
    if isinstance(data, str):
        return unwanted.sub("", data)
    if isinstance(data, list):
        return [_remove_matches(unwanted, each) for each in data]
    return {name: _remove_matches(unwanted, each) for name, each in data.items()} if isinstance(data, dict) else data


WRITERS = {".html": lambda *what: as_html(*what).encode(), ".zip": as_zip, ".pdf": as_pdf}


def export(conversation: Conversation, file: Path, answer: str | None = None) -> None:
    """Write a guide to `file`, in the format of its suffix.

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
    """Markdown as lines for guide.typ: paragraphs, list items, headings and code, each of runs in one style.

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


def strip_markdown(words: str) -> str:
    """Markdown as one line of plain text."""
    return " ".join(" ".join(run["text"] for run in line["runs"]) for line in markdown_lines(words))


def _encode_png(image: Image) -> bytes:
    data = io.BytesIO()
    image.picture.save(data, "PNG")
    return data.getvalue()


def _encode_compact(image: Image) -> tuple[str, bytes]:
    """ "png" or "jpeg", whichever needs fewer bytes: drawings are smaller as PNG, photographs as JPEG; both look the same."""
    data = io.BytesIO()
    image.picture.save(data, "JPEG", quality=92, subsampling=0)
    return min(("png", _encode_png(image)), ("jpeg", data.getvalue()), key=lambda packed: len(packed[1]))


def _data_url(image: Image) -> str:
    kind, data = _encode_compact(image)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _alt_text(image: Image, words: str = "") -> str:
    """The text for screen readers: the picture's own description, else the words that it was painted from."""
    return " ".join((image.alt or strip_markdown(words)).split())[:240] or "A picture"
