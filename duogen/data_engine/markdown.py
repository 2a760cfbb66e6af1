"""Read Markdown as words and pictures in order, with the front matter and static folders of Hugo and Jekyll."""

from __future__ import annotations

import html
import re
import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from duogen.data_engine.sample import Block, Picture, Source, Words

FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n\1[ \t]*(?:\n|\Z)", re.S)
SHORTCODE = re.compile(r"\{\{[<%].*?[%>]\}\}|\{%.*?%\}", re.S)
HTML_PICTURE = re.compile(r"<img\b[^>]*>", re.I)
PICTURE = re.compile(r"!\[|<img\b", re.I)
HTML_ATTRIBUTE = re.compile(r"(\w+)\s*=\s*(\"|')(.*?)\2", re.S)
Find = Callable[[str], Path | None]
STATIC = ("static", "assets", "public", "source", "")  # folders that sites serve from their root


@lru_cache(maxsize=1)
def markdown_parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def read_markdown(file: Path, root: Path) -> tuple[Source, list[Block]]:
    """Read one page of a tree whose root is `root`.

    Raises:
        OSError, UnicodeDecodeError: it cannot be read.
    """
    text = file.read_text(encoding="utf-8")
    front, body = _split_front_matter(text)
    source = Source(
        str(file.relative_to(root)),
        url=str(front.get("url") or front.get("permalink") or ""),
        title=str(front.get("title") or ""),
        author=_join_values(front.get("author") or front.get("authors")),
        licence=str(front.get("license") or front.get("licence") or ""),
        date=str(front.get("date") or ""),
        tags=tuple(_list_values(front.get("tags"))),
    )
    body = SHORTCODE.sub("", body)
    if not PICTURE.search(body):  # most pages of most sites: they are dropped anyway, and parsing is slow
        return source, [Words(body.strip())] if body.strip() else []
    return source, parse_blocks(body, lambda name: find_picture(name, file, root))


def _split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The YAML or TOML front matter (empty if damaged), and the text after it."""
    found = FRONT.match(text.lstrip("\ufeff"))
    if not found:
        return {}, text
    mark, raw = found.groups()
    try:
        front = tomllib.loads(raw) if mark == "+++" else yaml.load(raw, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, tomllib.TOMLDecodeError):
        front = {}
    return front if isinstance(front, dict) else {}, text[found.end() :]


def _list_values(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [value] if isinstance(value, str) and value else []


def _join_values(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("name", "")
    return ", ".join(_list_values(value))


def find_picture(name: str, file: Path, root: Path) -> Path | None:
    """Find the file of an address in a page: beside the page or from the site's root, never outside `root`."""
    split = urlsplit(name)
    if split.scheme or split.netloc or not split.path:
        return None
    path = unquote(split.path)
    tries = [file.parent / path, file.with_suffix("") / path]
    inside = root.resolve()
    if path.startswith("/"):  # from the root of its site, which is `root` or a folder between
        above = [folder for folder in file.parents if folder == root or root in folder.parents]
        tries = [folder / base / path.lstrip("/") for folder in reversed(above) for base in STATIC]
    for each in tries:
        found = each.resolve()
        if found.is_file() and found.is_relative_to(inside):
            return found
    return None


def parse_blocks(text: str, find: Find) -> list[Block]:
    """Parse Markdown into blocks. `find` returns the file of a picture's address, or `None`."""
    blocks: list[Block] = []
    kind, mark, lists = "paragraph", "", []
    for token in markdown_parser().parse(text):
        match token.type:
            case "heading_open":
                kind, mark = "heading", "#" * int(token.tag[1]) + " "
            case "bullet_list_open":
                lists.append(None)
            case "ordered_list_open":
                lists.append(int(token.attrGet("start") or 1))
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                indent = "   " * (len(lists) - 1)
                kind, mark = "item", f"{indent}- " if lists[-1] is None else f"{indent}{lists[-1]}. "
                if lists[-1] is not None:
                    lists[-1] += 1
            case "blockquote_open":
                kind, mark = "quote", "> "
            case "fence" | "code_block":
                blocks.append(Words(token.content.rstrip("\n"), "code"))
            case "inline":
                blocks += _parse_inline(token, kind, mark, find)
                # The second paragraph of an item is indented below it, without a number of its own.
                mark = " " * len(mark) if kind == "item" else mark
            case "heading_close" | "list_item_close" | "blockquote_close":
                kind, mark = "paragraph", ""
            case "html_block":
                blocks += [_parse_html_picture(tag, find) for tag in HTML_PICTURE.findall(token.content)]
    return blocks


def _parse_inline(token: Token, kind: str, mark: str, find: Find) -> list[Block]:
    """Parse the text of one block and cut it at its pictures."""
    blocks: list[Block] = []
    said = ""
    for child in token.children or []:
        if child.type == "image":
            if said.strip():
                blocks.append(Words(said.strip(), kind, mark))
            name = str(child.attrGet("src") or "")
            blocks.append(Picture(name, find(name), alt=child.content, title=str(child.attrGet("title") or "")))
            said = ""
        elif child.type == "html_inline" and HTML_PICTURE.match(child.content):
            blocks += [Words(said.strip(), kind, mark)] if said.strip() else []
            blocks.append(_parse_html_picture(child.content, find))
            said = ""
        else:
            said += _inline_markup(child)
    return [*blocks, Words(said.strip(), kind, mark)] if said.strip() else blocks


def _parse_html_picture(tag: str, find: Find) -> Picture:
    said = {name.lower(): html.unescape(value) for name, _, value in HTML_ATTRIBUTE.findall(tag)}
    return Picture(said.get("src", ""), find(said.get("src", "")), alt=said.get("alt", ""), title=said.get("title", ""))


def _inline_markup(child: Token) -> str:
    """The text of an inline token: emphasis and code stay, of links and HTML only the words."""
    match child.type:
        case "text":
            return child.content
        case "code_inline":
            return f"`{child.content}`"
        case "strong_open" | "strong_close" | "em_open" | "em_close":
            return child.markup
        case "softbreak" | "hardbreak":
            return "\n" if child.type == "hardbreak" else " "
    return ""
