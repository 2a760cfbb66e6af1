"""A conversation leaves the page: one HTML file, Markdown with its pictures as a zip, or a PDF that looks like a printed guide.

The looks are in `assets/export/`: a Jinja template with its style, and a Typst document that reads the same data.
"""

from __future__ import annotations

import base64
import io
import json
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from duogen.conversation import Conversation, Image, Text, Turn, write_beside

# In the order of guide.typ; without one of them, Typst shows boxes for these letters.
EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")
EAST_ASIAN_FONTS = ("Noto Serif CJK SC", "Noto Sans CJK SC", "Source Han Serif SC", "PingFang SC", "Microsoft YaHei", "SimSun")
ASSETS = Path(__file__).parents[1] / "assets" / "export"
STEP = re.compile(r"^\s*(?:#+\s*)?(?:step\s+)?(\d{1,3})\s*[.):]\s+", re.IGNORECASE | re.MULTILINE)
TITLE_LETTERS = 120


@dataclass(frozen=True)
class Block:
    """What belongs together on a page: words and the picture that they lead to.

    Attributes:
        number: of the step, as the answer counts it; `None` for words that are no step.
        words: Markdown.
        picture: the picture that follows the words.
    """

    words: str
    number: int | None = None
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
    blocks: list[Block] = []
    words = ""
    for part in answered.parts:
        if isinstance(part, Text):
            words += part.text
            continue
        blocks += _blocks(words, part)
        words = ""
    blocks += _blocks(words, None)
    return Section(asked.text().strip() if asked else "", tuple(asked.images()) if asked else (), tuple(blocks))


def _blocks(words: str, picture: Image | None) -> list[Block]:
    """The words before a picture: what leads to the last step is a block of its own, and the step stands with its picture."""
    found = list(STEP.finditer(words))
    if not found:
        return [Block(words.strip(), None, picture)] if words.strip() or picture else []
    cut = [match.start() for match in found] + [len(words)]
    steps = [Block(words[match.end() : end].strip(), int(match[1])) for match, end in zip(found, cut[1:], strict=True)]
    steps[-1] = Block(steps[-1].words, steps[-1].number, picture)
    lead = words[: cut[0]].strip()
    return [Block(lead), *steps] if lead else steps


def title(found: list[Section]) -> str:
    line = " ".join((found[0].question or "A guide").split())
    return line if len(line) <= TITLE_LETTERS else line[:TITLE_LETTERS].rsplit(" ", 1)[0] + " …"


def as_html(conversation: Conversation, answer: str | None = None) -> str:
    """One HTML file with everything in it, no scripts. Raises ValueError as `sections` does."""
    import jinja2
    from markdown_it import MarkdownIt

    found = sections(conversation, answer)
    markdown = MarkdownIt("commonmark", {"html": False}).disable("image")  # an answer must not fetch pictures from somewhere
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"markdown": markdown.render, "data": _data_address, "alt": _alt}
    return templates.get_template("guide.html").render(title=title(found), sections=found, style=(ASSETS / "guide.css").read_text())


def as_zip(conversation: Conversation, answer: str | None = None) -> bytes:
    """`guide.md` and the folder `pictures` beside it. Raises ValueError as `sections` does."""
    found = sections(conversation, answer)
    lines = [f"# {title(found)}", ""]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as packed:  # PNG does not get smaller

        def shown(image: Image, words: str) -> str:
            name = f"pictures/{len(packed.namelist()) + 1:02}.png"
            packed.writestr(name, _png(image))
            alt = re.sub(r"[\[\]\\]", "", _alt(image, words))
            return f"![{alt}]({name})"

        for index, section in enumerate(found):
            if index:
                lines += [f"## {' '.join(section.question.split())}", ""]
            lines += [line for image in section.brought for line in (shown(image, "What was brought"), "")]
            for block in section.blocks:
                lines += [f"**Step {block.number}.** {block.words}" if block.number else block.words, ""]
                lines += [shown(block.picture, block.words), ""] if block.picture else []
        packed.writestr("guide.md", "\n".join(lines).rstrip() + "\n")
    return data.getvalue()


def as_pdf(conversation: Conversation, answer: str | None = None) -> bytes:
    """A4 pages with selectable text; a step and its picture stay on one page.

    Fonts: Typst's own for Latin, Greek and Cyrillic letters; Chinese from those installed on the machine.

    Raises:
        ValueError: as `sections` does, or the words need a font that the machine lacks.
    """
    import typst

    found = sections(conversation, answer)
    said = "".join(text for section in found for text in (section.question, *(block.words for block in section.blocks)))
    if EAST_ASIAN.search(said) and not set(EAST_ASIAN_FONTS) & set(typst.Fonts().families()):
        raise ValueError("A PDF of these words needs a font with Chinese letters: install Noto Sans CJK, or export as HTML.")
    with tempfile.TemporaryDirectory(prefix="duogen-pdf-") as folder:
        root = Path(folder)

        def kept(image: Image, words: str) -> dict[str, str]:
            name = f"{len(list(root.glob('*.png'))) + 1}.png"
            (root / name).write_bytes(_png(image))
            return {"file": name, "alt": _alt(image, words)}

        data = {"title": title(found), "sections": []}
        for section in found:
            brought = [kept(image, "What was brought") for image in section.brought]
            blocks = [
                {
                    "number": block.number,
                    "words": plain(block.words),
                    "picture": kept(block.picture, block.words) if block.picture else None,
                }
                for block in section.blocks
            ]
            data["sections"].append({"question": " ".join(section.question.split()), "brought": brought, "blocks": blocks})
        (root / "guide.json").write_text(json.dumps(data), encoding="utf-8")
        (root / "guide.typ").write_text((ASSETS / "guide.typ").read_text(encoding="utf-8"), encoding="utf-8")
        return typst.compile(str(root / "guide.typ"), root=str(root))


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


def plain(words: str) -> list[str]:
    """Markdown as paragraphs without its marks."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark", {"html": False}).parse(words)
    paragraphs = []
    for token in tokens:
        if token.type == "inline":
            breaks = {"softbreak": " ", "hardbreak": "\n"}
            paragraphs.append("".join(breaks.get(child.type, child.content) for child in token.children or []))
        elif token.type in ("code_block", "fence"):
            paragraphs.append(token.content.rstrip())
    return [paragraph for paragraph in paragraphs if paragraph.strip()]


def _png(image: Image) -> bytes:
    data = io.BytesIO()
    image.picture.save(data, "PNG")
    return data.getvalue()


def _data_address(image: Image) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(image)).decode()


def _alt(image: Image, words: str) -> str:
    """What a screen reader says: the picture's own description, else the words it was painted from."""
    return " ".join((image.alt or " ".join(plain(words)) or "A picture").split())[:240]
