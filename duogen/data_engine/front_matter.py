"""Read the front matter of a Markdown page: YAML, TOML or JSON above its text."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import yaml

FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)^(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.S | re.M)
LINE = re.compile(r"^([\w-]+)[ \t]*[:=][ \t]*(.*?)[ \t]*$", re.M)
NULLS = ("", "~", "null", "Null", "NULL")
Front = dict[str, list[str]]  # the values of each name; a name with one value has one


def split_front_matter(text: str) -> tuple[Front, str]:
    """The values of the front matter, as far as it can be read, and the text after it."""
    if text.startswith("{"):
        return _split_json(text)
    found = FRONT.match(text)
    if not found:
        return {}, text
    mark, raw = found.groups()
    front = _read_toml(raw) if mark == "+++" else _read_yaml(raw)
    if not front and raw.strip() and not LINE.search(raw):
        return {}, text  # two rules with words between them
    return front, text[found.end() :]


def _split_json(text: str) -> tuple[Front, str]:
    try:
        raw, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return {}, text
    return _list_plain_values(raw), text[end:]


def _read_toml(raw: str) -> Front:
    try:
        return _list_plain_values(tomllib.loads(raw))
    except (ValueError, RecursionError):
        return {}


def _list_plain_values(raw: dict[str, Any]) -> Front:
    """The values of each name: itself, the items of a list, the `name` of an object."""
    found: Front = {}
    for name, value in raw.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                each = each.get("name")
            if each is not None and not isinstance(each, (dict, list)):
                found.setdefault(name, []).append(str(each))
    return found


def _read_yaml(raw: str) -> Front:
    """Read the events of YAML, not its objects: a date that is none, aliases without end and deep nesting then cost nothing.

    Of damaged YAML the lines `name: value` are read.
    """
    found: Front = {}
    names: list[str | None] = []  # the name that waits for its value, for each open mapping; of a list it stays `None`
    mappings: list[bool] = []
    try:
        for event in yaml.parse(raw, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)):
            if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
                mappings.append(isinstance(event, yaml.MappingStartEvent))
                names.append(None)
            elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
                mappings.pop()
                names.pop()
                _take_name(names, mappings)
            elif isinstance(event, yaml.AliasEvent):
                _take_name(names, mappings)
            elif isinstance(event, yaml.ScalarEvent) and mappings:
                _read_scalar(event, names, mappings, found)
    except yaml.YAMLError:
        lines = {name: value.strip("'\"") for name, value in LINE.findall(raw) if value and value[0] not in "[{&*!|>%@`"}
        found |= {name: [value] for name, value in lines.items()}
    return found


def _read_scalar(event: yaml.ScalarEvent, names: list[str | None], mappings: list[bool], found: Front) -> None:
    """Take a scalar as a name, or as a value of the outermost name."""
    if mappings[-1] and names[-1] is None:
        names[-1] = event.value
        return
    plain = not event.style and event.value in NULLS
    wanted = not mappings[-1] or len(names) == 1 or names[-1] == "name"
    if mappings[0] and names[0] and wanted and not plain:
        found.setdefault(names[0], []).append(event.value)
    _take_name(names, mappings)


def _take_name(names: list[str | None], mappings: list[bool]) -> None:
    """The value of the waiting name is read; a value where a name is due (a list as a key) becomes a name that nobody asks for."""
    if mappings and mappings[-1]:
        names[-1] = "" if names[-1] is None else None
