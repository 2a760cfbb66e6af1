"""A CommonMark parser with the additions that sites and notebooks write: shortcodes, wikilinks, attribute lists, loose addresses."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from mdit_py_plugins.admon import admon_plugin
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.footnote import footnote_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from duogen.data_engine.picture_addresses import PICTURE_FILE
from duogen.data_engine.shortcodes import BRACKETS, COMPONENT, EXTENT, TEMPLATE, Template, read_brackets, read_component, read_template

EXTENDED = re.compile(r"\[\^|\^\[|\}`|^[ >]*(?::[ \t:]|!!!|\?\?\?|~[ \t])", re.M)
WIKILINK = re.compile(r"(!?)\[\[([^\[\]\n]{1,500})\]\](?!\()")
ATTRIBUTE = r"(?:[#.][\w:-]+|[\w-]+=(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"'{}]+))"
ATTRIBUTES = re.compile(rf"\{{:[^{{}}\n]{{0,500}}\}}|\{{\s*{ATTRIBUTE}(?:\s+{ATTRIBUTE})*\s*\}}")
TITLE = re.compile(r"\s(?:\"([^\"]*)\"|'([^']*)')$")
SIZE = re.compile(r"\s=\d{0,5}%?x?\d{0,5}%?$")
LONGEST = 4000  # letters of an address or a template
CONTENTS = ("toc", "_toc_", "contents")
EMBEDDED = "an embedded file that is no picture"


class _Parser(MarkdownIt):
    """Keeps every address as it is written: the reader decides what it can find."""

    def validateLink(self, url: str) -> bool:
        return True

    def normalizeLink(self, url: str) -> str:
        return url


def make_parser(extended: bool) -> MarkdownIt:
    """The parser of Markdown pages. Its token "unread" names what is not understood.

    Args:
        extended: with the blocks that few pages have: what `EXTENDED` finds in a text needs them.
    """
    parser = _Parser("commonmark").enable("table")
    for plugin in (footnote_plugin, deflist_plugin, admon_plugin, colon_fence_plugin, myst_role_plugin) if extended else ():
        parser.use(plugin)
    rules = parser.inline.ruler
    rules.before("link", "template", _read_braces)
    rules.before("link", "wikilink", _read_wikilink)
    rules.after("image", "loose_address", _read_loose_address)
    rules.before("html_inline", "component", _read_component)
    return parser


def _push_picture(state: StateInline, shown: Template) -> None:
    token = state.push("image", "img", 0)
    token.attrs = {"src": shown.address, "alt": "", "title": shown.title}
    token.content, token.children = shown.alt, []
    token.meta = {"caption": shown.caption}


def _push_template(state: StateInline, shown: Template, written: str) -> None:
    if shown.why:
        token = state.push("unread", "", 0)
        token.content, token.info = " ".join(written.split())[:200], shown.why
    elif shown.address:
        _push_picture(state, shown)


def _read_braces(state: StateInline, silent: bool) -> bool:
    """A template, or a list of attributes (which says nothing)."""
    if state.src[state.pos] != "{" or state.src.find("}", state.pos, state.pos + LONGEST) < 0:
        return False
    found = TEMPLATE.match(state.src, state.pos)
    if found:
        shown = read_template(found[0], state.env.get("closed", frozenset()))
        if shown is None:
            return False
        if not silent:
            _push_template(state, shown, found[0])
        state.pos = found.end()
        return True
    found = ATTRIBUTES.match(state.src, state.pos)
    if not found or not (not state.pending or found.end() >= state.posMax or state.src[found.end()] == "\n"):
        return False
    state.pos = found.end()
    return True


def _read_wikilink(state: StateInline, silent: bool) -> bool:
    """`![[file|size]]` is a picture, `[[page|label]]` its label."""
    if not state.src.startswith(("![[", "[["), state.pos):
        return _read_brackets(state, silent)
    found = WIKILINK.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        shown = read_wikilink(found[0])
        if shown.address or shown.why:
            _push_template(state, shown, found[0])
            state.tokens[-1].info = shown.why or "wikilink"
        else:
            state.pending += shown.title
    state.pos = found.end()
    return True


def _read_brackets(state: StateInline, silent: bool) -> bool:
    found = BRACKETS.match(state.src, state.pos) if state.src[state.pos] == "[" else None
    shown = read_brackets(found[0]) if found and (found[1] or found[3]) else None
    if found is None or shown is None:
        return False
    if not silent:
        _push_template(state, shown, found[0])
    state.pos = found.end()
    return True


def read_wikilink(text: str) -> Template:
    """What a text that `WIKILINK` matches stands for. The label of a link is in `title`."""
    found = WIKILINK.fullmatch(text)
    target, *more = (each.strip() for each in (found[2] if found else "").split("|"))
    target = re.sub(r"^(?:file|image):", "", target.partition("#")[0].strip(), flags=re.I)
    labels = [each for each in more if not EXTENT.fullmatch(each) and each not in ("thumb", "frame", "frameless", "border")]
    label = labels[-1].removeprefix("alt=") if labels else ""
    if PICTURE_FILE.match(target):
        return Template(target, alt=label)
    if found and found[1]:
        return Template(why=EMBEDDED)
    return Template(title="" if target.lower() in CONTENTS else label or target.rpartition("/")[2])


def _read_loose_address(state: StateInline, silent: bool) -> bool:
    """A picture whose address holds blanks or a template, which CommonMark takes for letters; of links only the latter."""
    picture = state.src.startswith("![", state.pos)
    if (not picture and state.src[state.pos] != "[") or state.src.find(")", state.pos, state.pos + LONGEST) < 0:
        return False
    start = state.pos + picture
    end = state.md.helpers.parseLinkLabel(state, start, not picture)
    if end < 0 or not state.src.startswith("](", end):
        return False
    close = _find_bracket(state.src, end + 2, state.posMax)
    written = state.src[end + 2 : close].strip() if close >= 0 else ""
    if not written or not (picture or "{{" in written or "{%" in written):
        return False
    label = state.src[start + 1 : end]
    if not silent and picture:
        title = TITLE.search(SIZE.sub("", written))
        address = TITLE.sub("", SIZE.sub("", written)).strip().removeprefix("<").removesuffix(">")
        _push_picture(state, Template(address, alt=label, title=(title[1] or title[2] or "") if title else ""))
    elif not silent:
        most, state.pos, state.posMax = state.posMax, start + 1, end
        state.md.inline.tokenize(state)
        state.posMax = most
    state.pos = close + 1
    return True


def _find_bracket(text: str, start: int, end: int) -> int:
    """The index of the bracket that closes an address in the same line, -1 if there is none."""
    depth = 0
    for at in range(start, min(end, start + LONGEST)):
        letter = text[at]
        if letter == "\n":
            return -1
        if letter == ")":
            if not depth:
                return at
            depth -= 1
        elif letter == "(":
            depth += 1
    return -1


def _read_component(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] != "<":
        return False
    found = COMPONENT.match(state.src, state.pos)
    shown = read_component(found[0], state.env.get("imports", {})) if found else None
    if found is None or shown is None:
        return False
    if not silent:
        _push_template(state, shown, found[0])
    state.pos = found.end()
    return True
