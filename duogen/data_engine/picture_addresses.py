"""Find the address of a picture: in the attributes of an element, in a `data:` URL, and within a template."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

PICTURE_FILE = re.compile(r"[^\s{<].*\.(?:jpe?g|jfif|png|gif|webp|avif|heic|heif|bmp|tiff?|svg)(?:[?#]\S*)?$", re.I)
ADDRESS = re.compile(r"[^\s{\[]\S*$")
SRCSET = re.compile(r"[\s,]*(\S*[^\s,])(\s[^,]*)?(?:,|$)")
LAZY = re.compile(r"src|lazy|orig", re.I)  # names of attributes that hold what a script puts into `src` later
# Attributes that hold no address of the picture that the element shows.
OTHERS = frozenset(("alt", "title", "class", "id", "style", "width", "height", "sizes", "usemap", "longdesc", "data-caption"))
PLACEHOLDER = re.compile(
    r"(?:^|[/\W_\d])(?:placeholder|spacer|blank|transparent|lazy-?load|loading|loader|lazy|pixel|1x1|gr[ae]y|dot|clear|empty)"
    r"(?![a-z])[^/]*\.(?:gif|png|svg|webp|jpe?g)(?:[?#].*)?$",
    re.I,
)
TINY = 500  # letters of a `data:` URL; a picture worth anything has more
BACKGROUND = re.compile(r"background(?:-image)?\s*:[^;]*?(?:url\(\s*(\"[^\"]*\"|'[^']*'|[^)\"']*)\s*\)|var\(\s*(--[\w-]+))", re.I)
VARIABLE = re.compile(r"(--[\w-]+)\s*:\s*url\(\s*(\"[^\"]*\"|'[^']*'|[^)\"']*)\s*\)")


def list_addresses(image: Any, variables: Mapping[str, str], twin: Sequence[str] = ()) -> list[str]:
    """The addresses that an element may have its picture from, the best first: large ones and lazy ones, then its `src`, placeholders last.

    Args:
        variables: the CSS variables of the page that hold an address.
        twin: the addresses of the picture in the noscript beside it.
    """
    picture = next(iter(image.iterancestors("picture")), None)
    lazy, plain, other = _list_attributes(image)
    for source in () if picture is None else picture.iter("source"):
        other += [address for addresses in _list_attributes(source) for address in addresses]
    background = background_address(image.get("style") or "", variables)
    found = dict.fromkeys([*lazy, *twin, *plain, *other, *([background] if background else [])])
    return sorted(found, key=_is_placeholder)


def _list_attributes(element: Any) -> tuple[list[str], list[str], list[str]]:
    """The addresses in attributes for later (the largest in a `srcset` first), in the plain one, and in any other."""
    lazy: list[str] = []
    plain: list[str] = []
    other: list[str] = []
    sizes: list[str] = []
    for key, value in element.attrib.items():
        name, value = str(key).lower(), value.strip()
        if not value or name in OTHERS:
            continue
        if "srcset" in name:
            sizes += parse_srcset(value)
        elif name in ("src", "xlink:href", "href"):
            plain.append(value)
        elif LAZY.search(name) and _may_be_address(value):
            lazy.append(value)
        elif PICTURE_FILE.match(value):
            other.append(value)
    return sizes + lazy, plain, other


def _may_be_address(value: str) -> bool:
    return bool(PICTURE_FILE.match(value) or (ADDRESS.match(value) and re.search(r"/|\.[a-z]", value, re.I)))


def _is_placeholder(address: str) -> bool:
    if address.startswith("data:"):
        return len(address) < TINY or address.startswith("data:image/svg")
    return bool(PLACEHOLDER.search(address)) or address.startswith(("about:", "javascript:", "#"))


def parse_srcset(text: str) -> list[str]:
    """The addresses in a `srcset`, the largest picture first; one without a size counts as the smallest."""
    found = []
    for address, size in SRCSET.findall(text):
        wide, dense = (re.search(rf"([\d.]+){unit}\b", size) for unit in "wx")
        found.append((_to_number(wide), _to_number(dense), address))
    found.sort(key=lambda each: each[:2], reverse=True)
    return [address for *_, address in found]


def _to_number(found: re.Match[str] | None) -> float:
    try:
        return float(found[1]) if found else 0.0
    except ValueError:
        return 0.0


def background_address(style: str, variables: Mapping[str, str]) -> str:
    """The address of a background in a `style`, "" if it has none."""
    found = BACKGROUND.search(style)
    if not found:
        return ""
    return variables.get(found[2], "") if found[2] else found[1].strip("\"' ")


def read_variables(styles: str) -> dict[str, str]:
    """The variables of style sheets that hold an address."""
    return {name: address.strip("\"' ") for name, address in VARIABLE.findall(styles)}


def decode_data_url(address: str) -> bytes | None:
    """The bytes in a `data:` URL, `None` if it is damaged."""
    head, comma, body = address.partition(",")
    if not comma:
        return None
    if not head.rstrip().lower().endswith(";base64"):
        return unquote_to_bytes(body)
    letters = re.sub(r"\s+", "", unquote(body)).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


# Addresses within templates: Liquid of Jekyll, JavaScript of MDX, aliases of Docusaurus and VuePress

ADDRESS_NOT_UNDERSTOOD = "an address that is not understood"
OUTPUT = re.compile(r"\{\{-?(.{0,1000}?)-?\}\}", re.S)
LINK_TAG = re.compile(r"\{%-?\s*(?:link|asset_path|asset_url|static|post_asset)\s+(.{1,1000}?)\s*-?%\}", re.S)
LITERAL = re.compile(r"\"([^\"]*)\"|'([^']*)'|`([^`$]*)`")
SITE = re.compile(r"\s*\.?(?:site\.)?(?:base_?url|base_?path|static_url|url|root|asset_path)\s*", re.I)
ALIAS = re.compile(r"(?:@site|@static|~@|@|~)/")


def plain_address(address: str, imports: Mapping[str, str] | None = None) -> str:
    """The address without the template or script around it, "" where that is not understood.

    Args:
        imports: the addresses that the page imports as variables.
    """
    text = address.strip()
    if "{" not in text and "%7b" not in text.lower() and not ALIAS.match(text):
        return text
    text = unquote(text) if "%7b" in text.lower() else text
    text = LINK_TAG.sub(lambda found: "/" + found[1].strip("\"'").lstrip("/"), text)
    text = OUTPUT.sub(lambda found: _fill_output(found[1]), text)
    if text.startswith("{") and text.endswith("}") and not text.startswith(("{{", "{%")):
        inner = text[1:-1].strip()
        literals = LITERAL.findall(inner)
        text = (imports or {}).get(inner.partition(".")[0], "") or ("".join(literals[0]) if len(literals) == 1 else "")
    if "{{" in text or "{%" in text or text.startswith("{"):
        return ""
    return ALIAS.sub("/", text, count=1) if ALIAS.match(text) else text


def _fill_output(expression: str) -> str:
    """What Liquid puts in the place of an expression: a literal, extended by filters; braces where that is not known."""
    head, *filters = re.findall(r"(?:\"[^\"]*\"|'[^']*'|[^|\"'])+", expression) or [""]
    literal = LITERAL.search(head)
    value = "" if SITE.fullmatch(head) else "".join(part or "" for part in literal.groups()) if literal else None
    if value is None:
        return "{{}}"
    for each in filters:
        name, said = each.split(":")[0].strip(), LITERAL.search(each)
        more = "".join(part or "" for part in said.groups()) if said else ""
        value = more + value if name == "prepend" else value + more if name == "append" else value
    return value
