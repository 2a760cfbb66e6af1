"""The words of a message as the chat shows them: Markdown with all its features but those that fetch.

The chat's own parser of Markdown reads odd marks in its own way, and lets pictures, styles and videos of any address through. So words
are parsed here by a CommonMark library, and the chat gets HTML in which nothing is left to parse: whatever has a meaning in Markdown or
HTML is written as an entity. Only blocks of code come as fences, which the chat colours and gives a button to copy.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence

from linkify_it import LinkifyIt
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.tasklists import tasklists_plugin

from duogen.faults import report_fault

DEEPEST = 60  # lists and quotations in each other; the parser drops what lies deeper
MOST_LETTERS, MOST_BRACKETS = 100_000, 3000  # that are parsed: time grows with their square; words with more are shown as they are
KEPT_TEXTS = 1000  # whose HTML is remembered: a conversation is drawn again after every answer
SHORTEST_FENCE = 4  # the chat draws a fence of three marks named "mermaid", whose pictures can have any address
ADDRESS = re.compile(r"https?://|mailto:", re.IGNORECASE)
LANGUAGE = re.compile(r"[A-Za-z0-9+#.-]{1,40}")
MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "&<>\"'`![]\\*_~|$"} | {ord("\n"): " ", ord("\r"): " "}


def escape_marks(words: str) -> str:
    """Words in which neither HTML nor Markdown finds anything but words; line ends become spaces."""
    return words.translate(MARKS)


@functools.lru_cache(KEPT_TEXTS)
def render_words(words: str) -> str:
    """Words as Markdown for the chat. No part of the result makes a browser fetch anything; links work when they are clicked."""
    try:
        parsed = len(words) <= MOST_LETTERS and words.count("[") <= MOST_BRACKETS
        tokens = PARSER.parse(words, {}) if parsed else []
        if tokens and not any(token.level >= DEEPEST - 1 for token in tokens):
            return PARSER.renderer.render(tokens, PARSER.options, {}).strip()
    except Exception as error:  # whatever the parser raises: a message must be shown, and never as Markdown
        report_fault(error)
    return f"<p>{'<br>'.join(map(escape_marks, words.strip().splitlines()))}</p>" if words.strip() else ""


def is_link(url: str) -> bool:
    """Whether words may link there; of other links and pictures the words stay as they were written."""
    return ADDRESS.match(url) is not None


class _ChatRenderer(RendererHTML):
    """Tokens as HTML without a blank line inside a block, which would end the block for the chat."""

    def renderToken(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        tag = "div" if token.hidden else token.tag  # a paragraph of a close list: bare words would be Markdown again after a fence
        end = "\n\n" if token.block and not token.level and token.nesting < 1 else ""
        return f"</{tag}>{end}" if token.nesting < 0 else f"<{tag}{self.renderAttrs(token)}>{end}"

    @staticmethod
    def renderAttrs(token: Token) -> str:
        given = dict(token.attrs)
        if token.type == "link_open":
            given |= {"target": "_blank", "rel": "noopener noreferrer"}
        if align := str(given.pop("style", "")).rpartition(":")[2]:  # of a cell
            given["align"] = align
        return "".join(f' {name}="{escape_marks(str(value))}"' for name, value in given.items())

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return escape_marks(tokens[idx].content)

    def softbreak(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "<br>"

    def hardbreak(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return "<br>"

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"<code>{escape_marks(tokens[idx].content)}</code>"

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A picture somewhere else is a link in the words that were written."""
        token = tokens[idx]
        words = self.renderInlineAsText(token.children or [], options, env)
        address = escape_marks(str(token.attrs["src"]))
        return f'{escape_marks(f"![{words}](")}<a href="{address}" target="_blank" rel="noopener noreferrer">{address}</a>)'

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        code, name = tokens[idx].content, (tokens[idx].info.split() or [""])[0]
        marks = "`" * max([SHORTEST_FENCE, *(len(run) + 1 for run in re.findall("`+", code))])
        language = html.unescape(name) if LANGUAGE.fullmatch(name) else ""
        return f"\n\n{marks}{language}\n{code.rstrip(chr(10))}\n{marks}\n\n"

    code_block = fence


def _make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "linkify": True, "maxNesting": DEEPEST}, renderer_cls=_ChatRenderer)
    parser.enable(["table", "strikethrough", "linkify"]).use(tasklists_plugin)
    parser.linkify = LinkifyIt(options={"fuzzy_link": False})  # "README.md" is no address
    parser.validateLink = is_link
    return parser


PARSER = _make_parser()
