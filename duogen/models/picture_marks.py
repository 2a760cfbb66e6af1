"""What a mark says by which a language model asks for a picture: its words, and the pictures that it goes on from.

`models.placeholders` finds the marks in a stream of text; nothing here knows of streams.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PICTURES = ("picture", "image", "img")
THOUGHTS = ("think", "thinking", "thought")
CALLS = ("tool_call", "function_call")
CODES = ("code", "pre")
TAGS = (*PICTURES, *THOUGHTS, *CALLS, *CODES, "source")
LABELS = (*PICTURES, "bild", "图片", "图像", "插图")  # in brackets: [picture: words]
_TAG = re.compile(r"[<＜][ \t\u3000]{0,4}(\\?[/／])?[ \t\u3000]{0,4}([a-z_]*)", re.I)
_TOKEN = re.compile(r"<\|[a-z_]{0,30}\|?", re.I)
TOKEN = re.compile(r"<\|(?:\w+_(?:start|end|pad)|image|endoftext)\|", re.I)  # without its ">"
_QUOTED = r"""(?:"[^"]*"|'[^']*'|“[^”]*”)"""
_ATTRIBUTE = re.compile(
    rf"\b([a-z][\w:-]*)\s*[=＝]\s*({_QUOTED})|\b(src|srcset|href|alt|prompt|title|width|height|id|class|size)\s*=\s*([^\s\"'/]+)", re.I
)
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5}
_LISTED = rf"(?:[\d\s,;&、，]|and\b|the\b|pictures?\b|images?\b|{'|'.join(_ORDINALS)})+"
_FROM = re.compile(rf"(?:^|\s)(?:from|sources?)\s*(?:[=＝:：]\s*({_QUOTED}|{_LISTED})|(?<=from)(\s*{_LISTED}))", re.I)
_BEGINS_FROM = re.compile(r"\s*from\b", re.I)
_DESCRIBES = ("prompt", "description", "alt", "caption", "title", "picture", "image", "img", "query", "text")  # best first
_LINKS = {"src", "srcset", "href"}
_TRIMMED = " \t\r\n=＝:：\"'“”,-–"
_CALL_KEYS = {
    *_DESCRIBES, "from", "size", "style", "n", "width", "height", "seed", "quality", "aspect_ratio", "negative_prompt", "steps",
}  # fmt: skip
_TOOL_KEYS, _GIVEN_KEYS = ("name", "tool", "action", "function"), ("arguments", "parameters", "input", "action_input", "args", "function")
_DRAWS = re.compile(r"pict|image|draw|paint|illustrat|text2im|dall", re.I)


@dataclass(frozen=True)
class PictureRequest:
    """A picture is wanted here. `prompt` is what it shows; `sources` the numbers, from 1, of the pictures it goes on from."""

    prompt: str
    sources: tuple[int, ...] = ()


@dataclass(frozen=True)
class Head:
    """What stands in an opening mark.

    Attributes:
        words: what the picture shows; "" where the mark does not say.
        bare: these words stand in it plainly, not as an attribute.
        void: it ends in "/", so nothing follows that belongs to it.
        links: it names a file, as HTML does.
    """

    words: str = ""
    bare: bool = False
    sources: tuple[int, ...] = ()
    void: bool = False
    links: bool = False


def may_be_tag(text: str) -> bool:
    """Whether a text that begins with "<" may be, or become, the beginning of one of `TAGS` or a special token."""
    found = _TAG.fullmatch(text)
    return any(name.startswith(found[2].lower()) for name in TAGS) if found else _TOKEN.fullmatch(text) is not None


def read_tag(text: str) -> tuple[str, bool]:
    """The name of the tag whose beginning `text` is, "" for none, and whether it is a closing one."""
    found = _TAG.fullmatch(text)
    name = found[2].lower() if found else ""
    return (name, bool(found and found[1])) if name in TAGS else ("", False)


def read_label(text: str) -> PictureRequest | None:
    """What `[picture: words]` asks for, `None` where a text in brackets asks for nothing."""
    found = re.fullmatch(rf"[\[［【]\s*(?:{'|'.join(LABELS)})(?!\w)([^:：]{{0,40}})[:：](.+)[\]］】]", text, re.I)
    return PictureRequest(found[2].strip(), read_head(found[1]).sources) if found and found[2].strip() else None


def read_head(head: str) -> Head:
    """What an opening mark says between its name and its end."""
    stripped = head.rstrip()
    void = stripped.endswith(("/", "／"))
    left = stripped[:-1] if void else stripped
    named = _FROM.search(left)
    if named and (named[1] or _BEGINS_FROM.match(left)):
        left = left[: named.start()] + " " + left[named.end() :]
    sources = _read_numbers(named[1] or named[2]) if named and (named[1] or _BEGINS_FROM.match(head)) else ()
    given = {(name or plain).lower(): (quoted[1:-1] if quoted else value) for name, quoted, plain, value in _ATTRIBUTE.findall(left)}
    bare = " ".join(_ATTRIBUTE.sub(" ", left).split()).strip(_TRIMMED)
    bare = bare if any(each.isalpha() for each in bare) else ""  # a number alone is the picture's own
    described = next((words for name in _DESCRIBES if (words := given.get(name, "").strip())), "")
    return Head(bare or described, bool(bare), sources, void, bool(_LINKS & given.keys()))


def _read_numbers(words: str) -> tuple[int, ...]:
    found = re.findall(rf"\d{{1,9}}|{'|'.join(_ORDINALS)}", words.lower())
    return tuple(_ORDINALS.get(each) or int(each) for each in found)


def read_call(text: str) -> PictureRequest | None:
    """What a call of a tool, as JSON, asks for; `None` where it asks for no picture or is no JSON."""
    try:
        return _read_call(json.loads(text, strict=False), False)
    except (ValueError, RecursionError):
        return None


def _read_call(data: Any, drawing: bool) -> PictureRequest | None:
    """`drawing`: the tool's name says that it draws, so whatever it is given describes the picture."""
    if isinstance(data, str) and drawing:
        return read_call(data) or PictureRequest(data)
    if not isinstance(data, Mapping):
        return None
    for given in _GIVEN_KEYS:
        names = [data[key] for key in _TOOL_KEYS if isinstance(data.get(key), str)]
        inner = data.get(given)
        if inner is not None and (given == "function" or any(_DRAWS.search(name) for name in names)):
            found = _read_call(inner, given != "function")
            if found:
                return found
    if not drawing and not data.keys() <= _CALL_KEYS:
        return None
    words = next((data[name] for name in _DESCRIBES if isinstance(data.get(name), str) and data[name].strip()), None)
    nested = next((data[name] for name in PICTURES if isinstance(data.get(name), Mapping)), None)
    if words is None:
        return _read_call(nested, True) if nested else None
    return PictureRequest(words, _read_numbers(str(data.get("from", ""))))
