"""The words of answers as Markdown: parsed once for all exports, with what the chat shows (tables, task lists, bare addresses)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from duogen.text_decoding import clean_text

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

DEEPEST = 60  # lists and quotations in each other; the parser drops what lies deeper
MOST_LETTERS, MOST_BRACKETS = 100_000, 3000  # that are parsed: time grows with their square; words with more are shown as they are
BLOCKS = {"paragraph_open", "heading_open", "list_item_open", "th_open", "td_open", "blockquote_open"}
LONGEST_ADDRESS = 2000


@cache
def make_parser() -> MarkdownIt:
    """The parser of all exports. It takes no HTML, and a picture somewhere else is a link."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.tasklists import tasklists_plugin

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": True, "maxNesting": DEEPEST})
    parser.enable(["table", "strikethrough", "linkify"]).disable("image").use(tasklists_plugin)
    if parser.linkify is not None:
        parser.linkify.set({"fuzzy_link": False, "fuzzy_email": False})  # "README.md" is no address
    return parser


def parse_words(words: str) -> list[Token]:
    """Markdown as tokens. Words that take the parser too long, or that it drops because they lie too deep, are one plain paragraph."""
    words, parser = clean_text(words), make_parser()
    try:
        if len(words) <= MOST_LETTERS and words.count("[") <= MOST_BRACKETS:
            tokens = parser.parse(words)
            if not any(token.level >= DEEPEST - 1 for token in tokens):
                return tokens
    except Exception:  # whatever the parser raises, the words are exported
        pass
    return _make_plain(words)


def _make_plain(words: str) -> list[Token]:
    from markdown_it.token import Token

    inline = Token("inline", "", 0, content=words, children=[Token("text", "", 0, content=words)])
    return [Token("paragraph_open", "p", 1), inline, Token("paragraph_close", "p", -1)]


def render_html(words: str) -> str:
    """Markdown as HTML in which each block has the direction of its own letters, and bare addresses are marked for the paper."""
    tokens, parser = parse_words(words), make_parser()
    for token in tokens:
        if token.type in BLOCKS:
            token.attrSet("dir", "auto")
        for child in token.children or []:
            if child.type == "link_open":
                child.attrSet("rel", "noopener noreferrer")
                if child.info == "auto":
                    child.attrSet("class", "bare")
    return parser.renderer.render(tokens, parser.options, {})


def find_code_lines(words: str) -> set[int]:
    """The numbers, from 0, of the lines that are code: what looks like a step in them is none."""
    found: set[int] = set()
    for token in parse_words(words):
        if token.type in ("fence", "code_block") and token.map:
            found.update(range(*token.map))
    return found


def markdown_lines(words: str) -> list[dict[str, Any]]:
    """Markdown as lines for guide.typ: paragraphs, list items, headings and code, each of runs in one style, and tables.

    Returns:
        `[{"kind": "text" | "item" | "heading" | "code" | "table", "number": int | None, "depth": int, "done": bool | None,
        "runs": [{"text", "bold", "italic", "code", "strike", "link", "address"}]}]`. A task has `done`. A table has `rows` of cells of
        runs and the `aligns` of its columns instead of `runs`.
    """
    lines: list[dict[str, Any]] = []
    lists: list[int | None] = []
    item, heading = False, False
    table: dict[str, Any] | None = None
    for token in parse_words(words):
        match token.type:
            case "bullet_list_open" | "ordered_list_open":
                lists.append(int(token.attrs.get("start", 1)) if token.type == "ordered_list_open" else None)
            case "bullet_list_close" | "ordered_list_close":
                lists.pop()
            case "list_item_open":
                item = True
            case "heading_open" | "heading_close":
                heading = token.type == "heading_open"
            case "table_open" | "table_close":
                table = _begin_table(len(lists)) if token.type == "table_open" else None
                lines += [table] if table else []
            case "tr_open" | "th_open" | "td_open" if table:
                _add_to_table(table, token)
            case "inline" if table:
                table["rows"][-1][-1] = _runs(token.children or [])
            case "inline" | "code_block" | "fence":
                kind = "item" if item else "heading" if heading else "text" if token.type == "inline" else "code"
                number = _count_item(lists) if item else None
                children = token.children or []
                runs = _runs(children) if token.type == "inline" else [_run(token.content.rstrip(), code=True)]
                lines.append({"kind": kind, "number": number, "depth": len(lists), "done": _find_task(children), "runs": runs})
                item = False
    return lines


def _count_item(lists: list[int | None]) -> int | None:
    """The number of the next item of the innermost list; `None` for a list without numbers."""
    number = lists[-1]
    if number is not None:
        lists[-1] = number + 1
    return number


def _begin_table(depth: int) -> dict[str, Any]:
    return {"kind": "table", "number": None, "depth": depth, "done": None, "runs": [], "rows": [], "aligns": []}


def _add_to_table(table: dict[str, Any], token: Token) -> None:
    if token.type == "tr_open":
        table["rows"].append([])
        return
    table["rows"][-1].append([])
    if token.type == "th_open":
        table["aligns"].append(str(token.attrs.get("style", "")).rpartition(":")[2] or "left")


def _find_task(tokens: list[Token]) -> bool | None:
    """Whether a list item that is a task is done; `None` for what is no task."""
    box = tokens[0] if tokens else None
    return "checked=" in box.content if box and box.type == "html_inline" else None


def _runs(tokens: list[Token]) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    styles = {"strong": 0, "em": 0, "s": 0}
    link, bare, begun = "", False, 0
    for token in tokens:
        name, _, way = token.type.rpartition("_")
        if name in styles:
            styles[name] += 1 if way == "open" else -1
        elif token.type == "link_open":
            link, bare, begun = str(token.attrs["href"])[: LONGEST_ADDRESS + 1], token.info == "auto", len(runs)
            link = "" if len(link) > LONGEST_ADDRESS else link
        elif token.type == "link_close":
            if link and not bare and len(runs) > begun:
                runs[-1]["address"] = True
            link = ""
        elif token.type != "html_inline":  # the box of a task
            text = {"softbreak": "\n", "hardbreak": "\n"}.get(token.type, token.content)
            if text:
                runs.append(_run(text, *(styles[each] > 0 for each in styles), code=token.type == "code_inline", link=link))
    if runs and tokens[0].type == "html_inline":
        runs[0]["text"] = runs[0]["text"].lstrip()
    return runs


def _run(text: str, bold: bool = False, italic: bool = False, strike: bool = False, code: bool = False, link: str = "") -> dict[str, Any]:
    return {"text": text, "bold": bold, "italic": italic, "strike": strike, "code": code, "link": link, "address": False}


def strip_markdown(words: str) -> str:
    """Markdown as one line of plain text."""
    said = []
    for line in markdown_lines(words):
        rows = line.get("rows") or [[line["runs"]]]
        said += [run["text"] for row in rows for cell in row for run in cell]
        said.append(" ")
    return " ".join("".join(said).split())
