"""Read an element as blocks of Markdown: the HTML of a fragment, or the XML that trafilatura makes of an article."""

from __future__ import annotations

import re
from typing import Any

from duogen.data_engine.sample import Words

ROLES = {
    **dict.fromkeys(("p", "ab", "div", "fw", "section", "article", "main", "header", "footer", "aside", "center", "figure", "details",
                     "summary", "dl", "address", "fieldset", "form", "hgroup", "body"), "block"),
    **dict.fromkeys(("list", "ul", "ol", "menu"), "list"), **dict.fromkeys(("item", "li", "dt", "dd"), "item"),
    **dict.fromkeys(("head", "h1", "h2", "h3", "h4", "h5", "h6"), "heading"), **dict.fromkeys(("quote", "blockquote"), "quote"),
    **dict.fromkeys(("lb", "br"), "break"), **dict.fromkeys(("hi", "b", "strong", "i", "em"), "emphasis"),
    **dict.fromkeys(("script", "style", "template", "svg", "iframe", "button", "select", "textarea", "title"), "nothing"),
    "table": "table", "code": "code", "pre": "code", "figcaption": "caption",
}  # fmt: skip
APART = frozenset(("block", "list", "item", "heading", "quote", "table", "caption"))
BOLD, SLANTED = ("#b", "b", "strong"), ("#i", "i", "em")
NUMBERED = re.compile(r"duogenitem(\d+)mark\s*")  # the number of an item, which `number_items` puts before its words
STEP = re.compile(r"(\d{1,3})[.)]\s+(?=\S)")
BULLET = re.compile(r"[\u2022\u00b7\u2023\u25aa\u25e6*+\u2013-]\s+(?=\S)")
BREAK = "\u2028"  # a line break within a block, until the blanks around it are gone
BREAKS = re.compile(f" *{BREAK} *")
BLANKS = re.compile(r"[ \t\r\n\f\v\u00a0]+")
PARAGRAPHS = re.compile(r"\n{2,}")


def number_items(tree: Any) -> None:
    """Mark the items of ordered lists that do not count from 1, and put a list that stands between items into the item before it."""
    for each in list(tree.iter("ul", "ol")):
        above, before = each.getparent(), each.getprevious()
        if above is not None and above.tag in ("ul", "ol") and before is not None and before.tag == "li":
            before.append(each)
    for each in tree.iter("ol"):
        items = [item for item in each if item.tag == "li"]
        backwards = each.get("reversed") is not None
        if not backwards and each.get("start") is None and all(item.get("value") is None for item in items):
            continue
        number = _read_integer(each.get("start"), len(items) if backwards else 1)
        for item in items:
            number = _read_integer(item.get("value"), number)
            item.text = f"duogenitem{max(number, 0)}mark {item.text or ''}"
            number += -1 if backwards else 1


def _read_integer(value: str | None, otherwise: int) -> int:
    found = re.match(r"\s*([+-]?\d{1,9})", value or "")
    return int(found[1]) if found else otherwise


def read_flow(element: Any) -> list[Words]:
    """The words of an element as blocks, emphasis as Markdown."""
    reader = _FlowReader()
    reader.read_children(element)
    reader.end_block()
    return reader.blocks


class _FlowReader:
    """Reads elements in order. Words gather until an element stands apart; then they are a block of the present kind and mark."""

    def __init__(self, kind: str = "paragraph", mark: str = "", indent: str = "") -> None:
        self.blocks: list[Words] = []
        self.kind, self.mark, self.indent = kind, mark, indent
        self.said: list[str] = []

    def read_children(self, element: Any) -> None:
        self.said.append(element.text or "")
        for child in element:
            if isinstance(child.tag, str):
                self._read_element(child)
            self.said.append(child.tail or "")

    def _read_element(self, element: Any) -> None:
        role = ROLES.get(element.tag, "inline")
        if role == "break":
            self.said.append(BREAK)
        elif role == "emphasis":
            self._read_emphasis(element)
        elif role == "code" and (element.tag == "pre" or _stands_alone(element)):
            self.end_block()
            self._add(_code_text(element), "code", "")
        elif role in APART:
            self.end_block()
            self._read_apart(element, role)
            self.end_block()
        elif role != "nothing":
            self.read_children(element)

    def _read_apart(self, element: Any, role: str) -> None:
        if role == "list":
            self._read_list(element)
        elif role == "heading":
            text = _line(element)
            level = re.fullmatch(r"h([1-6])", element.get("rend") or element.tag)
            if self.kind == "item":
                self.said.append(f"**{text}**" if text else "")
            else:
                self._add(text, "heading", "#" * int(level[1] if level else 2) + " ")
        elif role == "quote":
            self._read_nested(element, "quote", "> ", "")
        elif role == "table":
            self._read_table(element)
        elif role == "caption":
            self._add(_line(element), "caption", "")
        elif role == "item":  # outside of a list
            self._read_nested(element, "item", f"{self.indent}- ", self.indent + "  ")
        else:
            self.read_children(element)

    def _read_nested(self, element: Any, kind: str, mark: str, indent: str) -> None:
        inner = _FlowReader(kind, mark, indent)
        inner.read_children(element)
        inner.end_block()
        self.blocks += inner.blocks

    def _read_list(self, element: Any) -> None:
        """Number the items by their marks, else from 1. A definition stands below its term."""
        ordered = element.tag == "ol" or element.get("rend") == "ol"
        number = 1
        for item in element:
            if not isinstance(item.tag, str):
                continue
            if ROLES.get(item.tag) != "item":
                self._read_element(item)
                continue
            marked = NUMBERED.match((item.text or "").lstrip())
            number = int(marked[1]) if marked else number
            below = item.tag == "dd" or (item.get("rend") or "").startswith("dd")
            mark = f"{self.indent}{number}. " if ordered or marked else f"{self.indent}  " if below else f"{self.indent}- "
            count = len(self.blocks)
            self._read_nested(item, "item", mark, self.indent + "   ")
            number += len(self.blocks) > count

    def _read_table(self, element: Any) -> None:
        """A row is an item; the only cell of a row is read as if there were no table, since old pages are laid out so."""
        for row in element.iter("row", "tr"):
            if next(iter(row.iterancestors("table")), None) is not element:
                continue
            cells = [cell for cell in row if cell.tag in ("cell", "td", "th")]
            if len(cells) == 1:
                self._read_nested(cells[0], self.kind, self.mark, self.indent)
                continue
            texts = [" ".join(block.text for block in read_flow(cell)) for cell in cells]
            marks = [mark for text in texts for mark in re.findall(r"duogenpicture\d+mark", text)]
            texts = [re.sub(r"\s*duogenpicture\d+mark\s*", " ", text).strip() for text in texts]
            self._add(" | ".join(text for text in texts if text), "item", "- ")
            self._add(" ".join(marks), "paragraph", "")

    def _read_emphasis(self, element: Any) -> None:
        """Put the marks of emphasis close to its words; around blocks and pictures there are none."""
        if any(ROLES.get(below.tag) in APART or ROLES.get(below.tag) == "break" for below in element.iterdescendants()):
            self.read_children(element)
            return
        inner = _FlowReader()
        inner.read_children(element)
        text = re.sub(r"\s+", " ", "".join(inner.said))
        name = element.get("rend") if element.tag == "hi" else element.tag
        around = "**" if name in BOLD else "*" if name in SLANTED else ""
        if not text.strip() or "duogenpicture" in text or text.strip().startswith("*"):
            around = ""
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if text.strip() else ""
        self.said.append(f"{before}{around}{text.strip()}{around}{after}")

    def end_block(self) -> None:
        """Make blocks of the words so far."""
        said = "".join(self.said)
        self.said = []
        if not said or said.isspace():
            return
        text = BLANKS.sub(" ", said)
        text = NUMBERED.sub("", text) if "duogenitem" in text else text
        text = (BREAKS.sub("\n", text) if BREAK in text else text).strip()
        for part in PARAGRAPHS.split(text) if "\n" in text else [text]:
            if not part:
                continue
            if self.kind == "paragraph":
                self.blocks += split_steps(part)
            else:
                self._add(part, self.kind, self.mark)
                self.mark = " " * len(self.mark) if self.kind == "item" else self.mark  # the rest stands below it, without a number

    def _add(self, text: str, kind: str, mark: str) -> None:
        if text:
            self.blocks.append(Words(text, kind, mark))


def split_steps(text: str) -> list[Words]:
    """A paragraph as one block; lines of it that count or have bullets, as items."""
    if "\n" not in text:
        return [Words(text)]
    lines = text.split("\n")
    numbers = [int(found[1]) for line in lines if (found := STEP.match(line))]
    counts = len(numbers) >= 2 and all(after == before + 1 for before, after in zip(numbers, numbers[1:], strict=False))
    form = STEP if counts else BULLET if sum(bool(BULLET.match(line)) for line in lines) >= 2 else None
    if form is None:
        return [Words(text)]
    blocks: list[Words] = []
    for line in lines:
        found = form.match(line)
        if found:
            blocks.append(Words(line[found.end() :], "item", f"{found[1]}. " if counts else "- "))
        elif blocks:
            blocks[-1] = Words(f"{blocks[-1].text}\n{line}", "item", blocks[-1].mark)
        else:
            blocks.append(Words(line))
    return blocks


def _line(element: Any) -> str:
    """The words of an element in one line."""
    return " ".join(" ".join(block.text for block in read_flow(element)).split())


def _stands_alone(element: Any) -> bool:
    """Whether an element has nothing but blanks and blocks beside it, so that it is a block of its own."""
    above = element.getparent()
    if above is None or ROLES.get(above.tag) not in ("block", None) or above.tag in ("p", "ab"):
        return False
    return not (element.tail or "").strip() and not _text_before(element).strip()


def _text_before(element: Any) -> str:
    before = element.getprevious()
    if before is None:
        return element.getparent().text or ""
    return before.tail or ("" if ROLES.get(before.tag) in APART or before.tag in ("code", "pre") else "inline")


def _code_text(element: Any) -> str:
    for each in element.iter("lb", "br"):
        each.tail = "\n" + (each.tail or "")
    return NUMBERED.sub("", "".join(element.itertext())).strip("\n")
