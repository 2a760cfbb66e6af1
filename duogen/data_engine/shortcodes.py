"""Read the templates in Markdown: shortcodes of Hugo, tags of Liquid, components of MDX. The names are in `assets/data/shortcodes.json`.

A template with the address of a picture among its parameters is a picture, whatever its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from duogen.data_engine.picture_addresses import ADDRESS_NOT_UNDERSTOOD, PICTURE_FILE, plain_address
from duogen.data_engine.sample import ASSETS

QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|`[^`]*`"
BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
# A shortcode of Hugo, a tag of Liquid, an expression, a comment of MDX.
TEMPLATE = re.compile(r"\{\{([<%].{0,4000}?)[%>]\}\}|\{%-?(.{0,4000}?)-?%\}|(\{\{.{0,1000}?\}\})|\{/\*.{0,4000}?\*/\}", re.S)
COMPONENT = re.compile(rf"<(/?)([A-Za-z][\w.]*)((?:{QUOTED}|{BRACES}|[^\"'`{{}}<>]){{0,2000}})>")
PARAMETER = re.compile(rf"(?:([\w:.@-]+)\s*(?:=|:(?=\s*[\"'`]))\s*|--(\w+)\s+)?({QUOTED}|\{{\{{.*?\}}\}}|{BRACES}|[^\s\"'`,]+)", re.S)
SEVERAL_LINES = re.compile(r"\{\{[<%][^{}]{0,4000}[%>]\}\}|\{%[^{}%]{0,4000}%\}")
BRACKETS = re.compile(r"\[(/?)([a-z_]+)((?:\s+[\w-]+=(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\]\"']+))*)\s*/?\](?![(\[:])")
CALL = re.compile(r"\{\{-?\s*([\w.]+)\((.*)\)\s*-?\}\}", re.S)  # a shortcode of Zola
CLOSING = re.compile(r"\{\{[<%]\s*/\s*([\w./-]+)|\{%-?\s*end(\w+)")
IMPORT = re.compile(r"^import\s+(\w+)\s+from\s+[\"']([^\"']+)[\"'];?[ \t]*$", re.M)
EXTENT = re.compile(r"[\d.]+(?:px|%|em|rem|vw)?|[\d.]+x[\d.]*|left|right|center|lazy|true|false")
NOT_UNDERSTOOD = "a template that is not understood"


@dataclass(frozen=True)
class Template:
    """What a template stands for: a picture if it has an address, nothing, or `why` it is not understood."""

    address: str = ""
    alt: str = ""
    title: str = ""
    caption: str = ""
    why: str = ""


@lru_cache(maxsize=1)
def load_shortcodes() -> dict[str, Any]:
    raw = json.loads((ASSETS / "shortcodes.json").read_text(encoding="utf-8"))
    return {name: value if isinstance(value, dict) else tuple(value.split()) for name, value in raw.items()}


def read_template(text: str, closed: frozenset[str]) -> Template | None:
    """Read a template that `TEMPLATE` matches as a whole, `None` if it is none.

    Args:
        closed: the names that the page closes again: what such templates enclose is read as words.
    """
    found = TEMPLATE.fullmatch(text)
    if not found:
        return None
    shortcode, tag, output = found.groups()
    if output:
        called_with = CALL.fullmatch(output)
        return (read_parameters(called_with[1], called_with[2], {}) if called_with else None) or Template(why=NOT_UNDERSTOOD)
    inner = (shortcode[1:] if shortcode else tag or "").strip()
    name = re.match(r"[\w./-]*", inner)
    called = name[0] if name else ""
    if not called or called.startswith(("/", "end")):
        return Template()  # the end of one, or a comment
    shown = read_parameters(called, inner[len(called) :].rstrip("/ "), {})
    if shown is not None:
        return shown
    known = load_shortcodes()
    encloses = called in closed and called not in known["pictures"]
    return Template() if encloses or called in known["wordless"] else Template(why=NOT_UNDERSTOOD)


def read_brackets(text: str) -> Template | None:
    """Read a shortcode of WordPress (`[gallery ids="1,2"]`), `None` if the text in brackets is none."""
    found = BRACKETS.fullmatch(text)
    if not found or found[2] not in load_shortcodes()["bracketed"]:
        return None
    if found[1] or found[2] in load_shortcodes()["wordless"]:
        return Template()
    return read_parameters(found[2], found[3], {}) or Template(why=NOT_UNDERSTOOD)


def read_component(text: str, imports: Mapping[str, str]) -> Template | None:
    """Read a component of MDX (`<Image src={board} />`), `None` if the text is none or plain HTML."""
    found = COMPONENT.fullmatch(text)
    if not found or not is_component(found[2], text):
        return None
    shown = None if found[1] else read_parameters(found[2].lower(), found[3].rstrip("/ \n"), imports)
    if shown is not None:
        return shown
    return Template(why=NOT_UNDERSTOOD if found[3].rstrip().endswith("/") and found[2][0].isupper() else "")


def is_component(name: str, text: str) -> bool:
    """Whether a tag belongs to MDX: by a capital with small letters, or by a value in braces."""
    return (name[0].isupper() and not name.isupper()) or "={" in text


def read_parameters(name: str, text: str, imports: Mapping[str, str]) -> Template | None:
    """The picture among the parameters of a template, `None` if there is none."""
    named: dict[str, str] = {}
    loose: list[str] = []
    for key, dashed, value in PARAMETER.findall(text):
        plain = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] in "\"'`" else value
        if key or dashed:
            named.setdefault((key or dashed).lower(), plain)
        else:
            loose.append(plain)
    known = load_shortcodes()
    sure = name in known["pictures"]
    found = _find_address([named[key] for key in known["address"] if key in named], [*loose, *named.values()], sure, imports)
    if not found:
        return None
    written, address = found
    alt, title, caption = (next((named[key] for key in known[what] if named.get(key)), "") for what in ("alt", "title", "caption"))
    if written in loose and not alt:
        after = [each for each in loose[loose.index(written) + 1 :] if not EXTENT.fullmatch(each)]
        spaced = [each for each in after if " " in each]
        alt = spaced[-1] if spaced else " ".join(after)
    alt, title, caption = ("" if each.startswith("{") else " ".join(each.split()) for each in (alt, title, caption))
    return Template(address, alt, title, caption) if address else Template(why=ADDRESS_NOT_UNDERSTOOD)


def _find_address(likely: list[str], values: list[str], sure: bool, imports: Mapping[str, str]) -> tuple[str, str] | None:
    """The value that holds the address of a picture, and the address, "" if it is not understood."""
    for written in (*likely, *values):
        address = plain_address(written, imports)
        if PICTURE_FILE.match(address):
            return written, address
    if sure and likely:
        return likely[0], plain_address(likely[0], imports)
    return (values[0], plain_address(values[0], imports)) if sure and values and "/" in values[0] else None


def prepare_text(text: str) -> str:
    """Remove comments of Liquid and Hugo, and make fences of what they highlight."""
    if "{%" not in text and "{{" not in text:
        return text
    text = SEVERAL_LINES.sub(lambda found: " ".join(found[0].split()), text)  # a line of one may begin like a quote
    parts: list[str] = []
    done, opened = 0, None
    for found in _pair_pattern().finditer(text):
        name = found[2] or found[4]
        if not (found[1] or found[3]):
            opened = opened or found
        elif opened and name == (opened[2] or opened[4]):
            inner = text[opened.end() : found.start()].strip()
            parts += [text[done : opened.start()], f"\n~~~~\n{inner}\n~~~~\n" if name in load_shortcodes()["code"] else ""]
            done, opened = found.end(), None
    return "".join((*parts, text[done:]))


@lru_cache(maxsize=1)
def _pair_pattern() -> re.Pattern[str]:
    """The beginnings and ends of the templates that enclose a comment or code."""
    names = "|".join((*load_shortcodes()["comments"], *load_shortcodes()["code"]))
    return re.compile(rf"\{{%-?\s*(end)?({names})\b[^%]{{0,500}}%\}}|\{{\{{[<%]\s*(/)?\s*({names})\b[^{{}}]{{0,500}}[%>]\}}\}}")


def list_closed(text: str) -> frozenset[str]:
    """The names of the templates that a text closes."""
    return frozenset(first or second for first, second in CLOSING.findall(text)) if "{{" in text or "{%" in text else frozenset()


def list_imports(text: str) -> dict[str, str]:
    """The variables that MDX imports, with their addresses."""
    return dict(IMPORT.findall(text)) if "import " in text else {}
