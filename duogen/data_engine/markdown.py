"""Read Markdown as words and pictures in order: that of Hugo, Jekyll, MyST, MDX, Docusaurus and Obsidian, with their folders."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from duogen.data_engine.flow import split_steps
from duogen.data_engine.front_matter import split_front_matter
from duogen.data_engine.html import continue_block, load_picture, read_fragment
from duogen.data_engine.markdown_rules import EXTENDED, WIKILINK, make_parser, read_wikilink
from duogen.data_engine.sample import Block, Picture, Source, Words
from duogen.data_engine.shortcodes import (
    COMPONENT,
    EXTENT,
    TEMPLATE,
    Template,
    list_closed,
    list_imports,
    load_shortcodes,
    prepare_text,
    read_component,
    read_template,
)
from duogen.data_engine.site_files import find_embedded, find_picture
from duogen.files import read_text

PICTURE = re.compile(
    r"!\[|(?i:<(?:img|amp-|image|picture|svg)\b|background)|\[\[|<[A-Z][a-z]|\{\{[<%]|\{%|^\s*(?:`{3,}|~{3,}|:{3,})\s*\{", re.M
)  # what a page without pictures lacks
HTML_PICTURE = re.compile(r"<(?:img|image|amp-img|picture|source|svg)\b", re.I)
TEMPLATES = re.compile(f"(?s:{TEMPLATE.pattern})|{COMPONENT.pattern}|{WIKILINK.pattern}")
DIRECTIVE = re.compile(r"\{([\w:-]+)(?:[,\s][^}]*)?\}(.*)")
OPTION = re.compile(r":([\w-]+):[ \t]*(.*)")
ALERT = re.compile(r"\[!\w+\][+-]?[ \t]*")
# Imports and exports of MDX, the label of what follows in MyST, the end of a container.
NO_WORDS = re.compile(
    r"(?:(?:import\s[^\n]*[\"'][^\"'\n]+[\"'];?|export\s+(?:const|default|function|let)\b[^\n]*|\(\w[\w-]*\)=|:::[^\n]*)\s*)+"
)
NAMELESS = ("index", "_index", "readme", "note", "page", "post", "untitled", "default")
DEEPEST = 8  # directives within directives
Find = Callable[[str], Path | None]


@lru_cache(maxsize=2)
def markdown_parser(extended: bool = True) -> MarkdownIt:
    return make_parser(extended)


def read_markdown(file: Path, root: Path) -> tuple[Source, list[Block]]:
    """Read one page of a tree whose root is `root`.

    Raises:
        ValueError: it cannot be read.
    """
    front, body = split_front_matter(read_text(file).replace("\r\n", "\n").replace("\r", "\n"))

    def value(*names: str) -> str:
        return ", ".join(next((front[name] for name in names if front.get(name)), []))

    source = Source(
        str(file.relative_to(root)), value("url", "permalink"), value("title"), value("author", "authors"), value("license", "licence"),
        value("date"), tuple(front.get("tags", ())),
    )  # fmt: skip
    if not PICTURE.search(body):  # most pages of most sites: they are dropped anyway, and parsing is slow
        return source, [Words(body.strip())] if body.strip() else []
    blocks = parse_blocks(body, lambda name: find_picture(name, file, root), lambda name: find_embedded(name, file, root))
    return replace(source, title=source.title or _find_title(blocks, file, root)), blocks


def _find_title(blocks: list[Block], file: Path, root: Path) -> str:
    """The heading above a page without a title, else the words in the name of its file or folder, else its first heading."""
    words = [block for block in blocks if isinstance(block, Words)]
    headings = [block.text.strip("*_# ") for block in words if block.kind == "heading"]
    if headings and words[0].kind == "heading":
        return headings[0]
    stem = file.stem if file.stem.lower() not in NAMELESS else file.parent.name if file.parent != root else ""
    named = " ".join(re.sub(r"^\d{4}-\d\d-\d\d-|[-_]+", " ", stem).split())
    return named if re.search(r"[^\W\d_]{3}", named) else headings[0] if headings else ""


def parse_blocks(text: str, find: Find, embedded: Find | None = None) -> list[Block]:
    """Parse Markdown into blocks. `find` returns the file of a picture's address, `embedded` that of a wikilink, or `None`."""
    text = prepare_text(text)
    reader = _MarkdownReader(find, embedded or find, {"closed": list_closed(text), "imports": list_imports(text)})
    return reader.read(text)


class _MarkdownReader:
    """Reads the tokens of a text in order, with the kind and mark of the block that is open."""

    def __init__(self, find: Find, embedded: Find, env: dict[str, Any], depth: int = 0) -> None:
        self.find, self.embedded, self.env, self.depth = find, embedded, env, depth
        self.blocks: list[Block] = []
        self.kind, self.mark = "paragraph", ""
        self.outer: list[tuple[str, str]] = []  # kinds and marks of the blocks around it
        self.lists: list[int | None] = []
        self.row: list[str] | None = None
        self.shown: list[Block] = []  # the pictures of a row, which stand behind it

    def read(self, text: str) -> list[Block]:
        for token in markdown_parser(bool(EXTENDED.search(text))).parse(text, self.env | {"references": {}}):
            self._read_token(token)
        return self.blocks

    def _read_token(self, token: Token) -> None:
        match token.type:
            case "paragraph_open" | "paragraph_close":  # the most frequent, and nothing to do
                return
            case "inline":
                self._read_inline(token)
            case "heading_open":
                self._open("heading", "#" * int(token.tag[1]) + " ")
            case "bullet_list_open":
                self.lists.append(None)
            case "ordered_list_open":
                start = token.attrGet("start")
                self.lists.append(1 if start is None else int(start))
            case "bullet_list_close" | "ordered_list_close":
                self.lists.pop()
            case "list_item_open":
                self._open_item()
            case "blockquote_open":
                self._open("quote", "> ")
            case "fence" | "code_block" | "colon_fence":
                self._read_fence(token)
            case "tr_open":
                self.row, self.shown = [], []
            case "tr_close":
                words = " | ".join(each for each in self.row or [] if each)
                self.blocks += [Words(words, "item", "- ")] if words else []
                self.blocks += self.shown
                self.row = None
            case "heading_close" | "list_item_close" | "blockquote_close":
                self.kind, self.mark = self.outer.pop()
            case "html_block":
                self._read_html(token.content)

    def _open(self, kind: str, mark: str) -> None:
        self.outer.append((self.kind, self.mark))
        self.kind, self.mark = kind, mark

    def _open_item(self) -> None:
        indent, number = "   " * (len(self.lists) - 1), self.lists[-1]
        self._open("item", f"{indent}- " if number is None else f"{indent}{number}. ")
        if number is not None:
            self.lists[-1] = number + 1

    def _read_inline(self, token: Token) -> None:
        if token.content.startswith(("import", "export", "(", ":::")) and NO_WORDS.fullmatch(token.content):
            return
        parts, unread = self._read_children(token.children or [])
        if self.row is not None:
            self.row += [" ".join(part.text.split()) for part in parts if isinstance(part, Words)]
            self.shown += [part for part in parts if isinstance(part, Picture)] + unread
            return
        for part in parts:
            if isinstance(part, Words) and self.kind == "paragraph":
                self.blocks += split_steps(part.text)
            else:
                self.blocks.append(part)
        self.blocks += unread
        # The second paragraph of an item is indented below it, without a number of its own.
        self.mark = " " * len(self.mark) if self.kind == "item" else self.mark

    def _read_children(self, children: list[Token]) -> tuple[list[Block], list[Block]]:
        """The text of one block, cut at its pictures, and what in it is not understood."""
        reader = _InlineReader(self)
        for child in children:
            reader.read(child)
        return reader.finish()

    def show(self, token: Token) -> Picture:
        """The picture of a token."""
        said, _, size = token.content.rpartition("|")
        alt = said if EXTENT.fullmatch(size.strip()) else token.content
        caption = token.meta.get("caption", "")
        picture = Picture(str(token.attrGet("src") or ""), alt=alt.strip(), title=str(token.attrGet("title") or ""), caption=caption)
        find = self.embedded if token.info == "wikilink" else self.find
        return load_picture(picture, lambda name: (find(name), None), self.env["imports"])

    def read_fragment(self, text: str) -> list[Block]:
        return read_fragment(text, lambda name: (self.find(name), None))

    def _read_html(self, text: str) -> None:
        """Read a block of HTML. Templates in it become pictures, and a caption goes to the picture before it."""
        unread: list[Block] = []

        def replace_template(found: re.Match[str]) -> str:
            written = found[0]
            shown = (
                read_wikilink(written) if written.startswith(("!", "[")) else read_component(written, self.env["imports"])
                if written.startswith("<") else read_template(written, self.env["closed"])
            )  # fmt: skip
            if shown is None:
                return written
            if shown.why:
                unread.append(Picture(" ".join(written.split())[:200], unread=shown.why))
            return _format_picture(shown) if shown.address else html.escape(shown.title)

        for block in self.read_fragment(TEMPLATES.sub(replace_template, text)):
            before = self.blocks[-1] if self.blocks else None
            if isinstance(block, Picture):
                self.blocks.append(block)
            elif block.kind == "caption" and isinstance(before, Picture) and not before.caption:
                self.blocks[-1] = replace(before, caption=block.text)
            elif "![" in block.text and block.kind != "code" and self.depth < DEEPEST:
                self.blocks += self._read_nested(block.text)
            else:
                self.blocks.append(replace(block, kind="paragraph") if block.kind == "caption" else block)
        self.blocks += unread

    def _read_nested(self, text: str) -> list[Block]:
        return _MarkdownReader(self.find, self.embedded, self.env, self.depth + 1).read(text)

    def _read_fence(self, token: Token) -> None:
        info = token.info.strip()
        found = DIRECTIVE.match(info)
        if found:
            self._read_directive(found[1], found[2].strip(), token.content)
        elif token.type != "colon_fence":
            self.blocks.append(Words(token.content.rstrip("\n"), "code"))
        else:  # a container: `:::tip Title`
            self._read_body(re.sub(r"^(?:\{[^}]*\}|[\w-]+)\s*", "", info).strip(" []"), token.content)

    def _read_directive(self, name: str, argument: str, content: str) -> None:
        """Read a directive of MyST."""
        how = load_shortcodes()["directives"].get(name, "")
        options, body = _split_options(content)
        if how == "picture" and argument:
            inner = self._read_nested(body) if body.strip() and self.depth < DEEPEST else []
            words = [block.text for block in inner if isinstance(block, Words)]
            picture = Picture(argument, alt=options.get("alt", ""), caption=re.sub(r"\*+|`", "", words[0]) if words else "")
            self.blocks.append(load_picture(picture, lambda name: (self.find(name), None), self.env["imports"]))
            self.blocks += [block for block in inner if not words or block is not next(each for each in inner if isinstance(each, Words))]
        elif how == "code":
            self.blocks.append(Words(body.strip("\n"), "code"))
        elif how == "words":
            self._read_body(argument, body)
        elif how != "nothing":
            self.blocks.append(Picture(f"{{{name}}} {argument}".strip(), unread="a directive that is not understood"))

    def _read_body(self, title: str, content: str) -> None:
        if self.depth >= DEEPEST:
            self.blocks.append(Picture(title or "...", unread="nested too deeply"))
            return
        if re.search(r"[^\W\d_]{2}", title):
            self.blocks += self._read_nested(title)
        self.blocks += self._read_nested(content)


class _InlineReader:
    """Reads the tokens within one block: words until a picture, and the tags of HTML as one piece of it."""

    def __init__(self, reader: _MarkdownReader) -> None:
        self.reader = reader
        self.parts: list[Block] = []
        self.unread: list[Block] = []
        self.said, self.tags = "", ""

    def read(self, child: Token) -> None:
        if child.type == "text" and not self.tags:
            self.said += child.content
        elif child.type == "html_inline":
            self.tags += child.content
        elif self.tags and (child.type == "softbreak" or (child.type == "text" and not child.content.strip())):
            self.tags += " "
        else:
            self._end_tags()
            if child.type == "image":
                self._end_piece()
                self.parts.append(self.reader.show(child))
            elif child.type == "unread":
                self.unread.append(Picture(child.content, unread=child.info))
            else:
                self.said += _inline_markup(child)

    def finish(self) -> tuple[list[Block], list[Block]]:
        self._end_tags()
        self._end_piece()
        return self.parts, self.unread

    def _end_tags(self) -> None:
        if not self.tags:
            return
        tags, self.tags = self.tags, ""
        if HTML_PICTURE.search(tags):
            self._end_piece()
            self.parts += [each for each in self.reader.read_fragment(tags) if isinstance(each, Picture)]
        elif re.search(r"<br\b", tags, re.I):
            self.said += "\n"
        elif tags.startswith(" ") or tags.endswith(" ") or "> <" in tags:
            self.said += " "

    def _end_piece(self) -> None:
        text, self.said = self.said.strip(), ""
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", text) if "\n" in text else text
        if self.reader.kind == "quote":
            text = ALERT.sub("", text, count=1)
        if text:
            self.parts.append(continue_block(Words(text, self.reader.kind, self.reader.mark), self.parts))


def _format_picture(shown: Template) -> str:
    named = {"src": shown.address, "alt": shown.alt, "title": shown.title, "data-caption": shown.caption}
    return "<img " + " ".join(f'{name}="{html.escape(value)}"' for name, value in named.items() if value) + ">"


def _split_options(content: str) -> tuple[dict[str, str], str]:
    """The options above the body of a directive (`:alt: a board`, or YAML between two rules), and the body."""
    front, body = split_front_matter(content)
    options = {name: ", ".join(values) for name, values in front.items()}
    lines = body.split("\n")
    while lines and (found := OPTION.fullmatch(lines[0].strip())):
        options[found[1]] = found[2]
        lines.pop(0)
    return options, "\n".join(lines)


def _inline_markup(child: Token) -> str:
    """The text of an inline token: emphasis and code stay, of links and HTML only the words."""
    match child.type:
        case "text":
            return child.content
        case "code_inline":
            return f"`{child.content}`"
        case "myst_role":
            return re.sub(r"\s*<[^<>]*>$", "", child.content)
        case "strong_open" | "strong_close" | "em_open" | "em_close":
            return child.markup
        case "softbreak" | "hardbreak":
            return "\n" if child.type == "hardbreak" else " "
    return ""
