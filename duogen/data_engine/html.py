"""Read HTML as words and pictures in order. trafilatura finds the article; every picture keeps its place.

trafilatura drops many pictures, so each is replaced by a mark in the text and put back where the mark comes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lxml import etree  # ty: ignore[missing-module-member]: compiled, and without stubs
from lxml import html as lxml_html

from duogen.data_engine.sample import Block, Picture, Source, Words

Load = Callable[[str], tuple[Path | None, bytes | None]]  # maps an address to (file, data), both None where it is not found
MARK = re.compile(r"\s*duogenpicture(\d+)mark\s*")
LAZY = ("data-src", "data-original", "data-lazy-src", "data-orig-file")
WRAPPERS = ("a", "picture", "source", "p", "div", "span", "center", "figure")
LEVEL = re.compile(r"h([1-6])")
LICENCE = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/(\d\.\d)")


def read_html(page: bytes | str, file: str, load: Load, url: str = "") -> tuple[Source, list[Block]]:
    """Read the article of a page.

    Raises:
        ValueError: it is no HTML, or holds no article.
    """
    import trafilatura  # a sixth of what a worker imports, and Markdown needs none of it

    if isinstance(page, str):
        page = page.encode()
    tree = lxml_html.document_fromstring(page, parser=lxml_html.HTMLParser(encoding=_find_charset(page))) if page.strip() else None
    if tree is None:
        raise ValueError("the file is empty")
    licence = _find_licence(tree)
    pictures = _mark_pictures(tree, load)
    found = trafilatura.bare_extraction(
        tree, url=url or None, include_comments=False, include_tables=True, include_formatting=True, favor_recall=True, with_metadata=True
    )
    if found is None or isinstance(found, dict) or found.body is None:
        raise ValueError("no article was found in it")
    source = Source(
        file, url or found.url or "", found.title or "", found.author or "", licence or found.license or "", found.date or "",
        tuple(found.tags or ()),
    )  # fmt: skip
    blocks = [part for block in _read_blocks(found.body) for part in _split_at_pictures(block, pictures)]
    return source, blocks


def _find_charset(page: bytes) -> str | None:
    """`None` if the page declares its charset, else UTF-8 if it decodes as that (lxml would take Latin-1)."""
    if re.search(rb"<meta[^>]+charset", page[:4096], re.I):
        return None
    try:
        page.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        return None


def _find_licence(tree: Any) -> str:
    """The Creative Commons licence that the page links to, "" if none."""
    for link in tree.iter("a", "link"):
        said = LICENCE.search(link.get("href") or "")
        if said:
            return f"CC {said[1].upper()} {said[2]}"
    return ""


def _mark_pictures(tree: Any, load: Load) -> list[Picture]:
    """Replace each picture by a mark, and take the captions out of the text."""
    pictures: list[Picture] = []
    for noscript in list(tree.iter("noscript")):  # the twin of a lazy picture
        noscript.drop_tree()
    for image in list(tree.iter("img")):
        name = picture_address(image)
        figure = next((above for above in image.iterancestors("figure")), None)
        caption = ""
        if figure is not None:
            for each in list(figure.iter("figcaption")):
                caption = " ".join(each.text_content().split())
                each.drop_tree()
        file, data = load(name)
        alt, title = (" ".join((image.get(key) or "").split()) for key in ("alt", "title"))
        pictures.append(Picture(name, file, data, alt=alt, title=title, caption=caption))
        _replace_picture(image, figure, f"duogenpicture{len(pictures) - 1}mark")
    return pictures


def _replace_picture(image: Any, figure: Any, mark: str) -> None:
    """Put the mark into a paragraph of its own for a picture that stands alone, else into the running text."""
    whole = image
    if figure is not None and sum(1 for _ in figure.iter("img")) == 1:
        whole = figure
    while (above := whole.getparent()) is not None and above.tag in WRAPPERS and len(_list_siblings(above, whole)) == 0:
        whole = above
    above = whole.getparent()
    if above is None:
        return
    alone = whole is not image or above.tag not in ("p", "span", "a", "b", "i", "em", "strong", "td", "h1", "h2", "h3", "h4")
    element = etree.Element("p" if alone else "span")
    element.text = mark if alone else f" {mark} "
    element.tail = whole.tail
    above.replace(whole, element)


def _list_siblings(above: Any, whole: Any) -> list[str]:
    """The texts and tags in an element beside its child `whole`."""
    said = [above.text or "", *(child.tail or "" for child in above)]
    beside = [str(child.tag) for child in above if child is not whole and child.tag not in ("source", "br")]
    return [each for each in said if each.strip()] + beside


def picture_address(image: Any) -> str:
    """The address of the largest version of an <img>, lazy ones included."""
    candidates = []
    for entry in re.split(r",\s+", image.get("srcset") or image.get("data-srcset") or ""):
        address, _, size = entry.strip().partition(" ")
        if address and not address.startswith("data:"):
            number = re.match(r"[\d.]+", size.strip())
            candidates.append((float(number[0]) if number else 1.0, address))
    plain = [image.get(name) for name in (*LAZY, "src")]
    first = next((each for each in plain if each and not each.startswith("data:")), "")
    return max(candidates)[1] if candidates and not image.get("data-keep-src") else first or image.get("src") or ""


def _read_blocks(body: Any) -> list[Words]:
    blocks: list[Words] = []
    for element in body:
        _read_element(element, blocks, "")
    return blocks


def _read_element(element: Any, blocks: list[Words], indent: str) -> None:
    """Append an element of trafilatura's XML to the blocks."""
    tag = element.tag
    if tag == "list":
        for number, item in enumerate(element.iter("item"), 1):
            mark = f"{indent}{number}. " if element.get("rend") == "ol" else f"{indent}- "
            _add_block(blocks, _element_text(item), "item", mark)
    elif tag == "head":
        level = LEVEL.match(element.get("rend") or "h2")
        _add_block(blocks, _element_text(element), "heading", "#" * int(level[1] if level else 2) + " ")
    elif tag == "table":
        for row in element.iter("row"):
            cells = [_element_text(cell) for cell in row.iter("cell")]
            _add_block(blocks, " | ".join(cell for cell in cells if cell), "item", "- ")
    elif tag == "quote":
        _add_block(blocks, _element_text(element), "quote", "> ")
    elif tag == "code":
        _add_block(blocks, "".join(element.itertext()).strip("\n"), "code", "")
    elif tag in ("p", "ab", "div", "fw"):
        nested = [child for child in element if child.tag in ("list", "table", "head", "quote")]
        _add_block(blocks, _element_text(element, skip=nested), "paragraph", "")
        for child in nested:
            _read_element(child, blocks, indent)


def _add_block(blocks: list[Words], text: str, kind: str, mark: str) -> None:
    if text:
        blocks.append(Words(text, kind, mark))


def _element_text(element: Any, skip: Sequence[Any] = ()) -> str:
    """The words of an element, emphasis as Markdown."""
    said = element.text or ""
    for child in element:
        if child not in skip:
            inner = _element_text(child)
            around = {"#b": "**", "#i": "*"}.get(child.get("rend") or "", "") if child.tag == "hi" and not MARK.search(inner) else ""
            said += "\n" if child.tag == "lb" else f"{around}{inner}{around}" if inner else ""
        said += child.tail or ""
    return re.sub(r"[ \t\r\f\v]+", " ", re.sub(r"\s*\n\s*", " ", said) if element.tag != "code" else said).strip()


def _split_at_pictures(block: Words, pictures: list[Picture]) -> list[Block]:
    """Cut a block at the marks of pictures and put the pictures in."""
    parts: list[Block] = []
    for number, piece in enumerate(MARK.split(block.text)):
        if number % 2:
            if int(piece) < len(pictures):
                parts.append(pictures[int(piece)])
        elif piece.strip():
            parts.append(Words(piece.strip(), block.kind, block.mark))
    return parts
