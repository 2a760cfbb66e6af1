"""What the page says, in the language of the browser. English is in the code; `languages/` has a file for every other language.

A key of such a file is an English sentence; `{names}` in it stand for what differs from time to time, `{names_words}` for a sentence of
ours again. What a component shows from
the start is put into another language by the browser (`gr.I18n`); what the server says later, here, by the same files. So whoever
raises an error or reports progress, below the page too, writes English and knows nothing of languages.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import gradio as gr
from gradio.context import LocalContext

FOLDER = Path(__file__).parents[1] / "languages"
TABLES: dict[str, dict[str, str]] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}


def for_browsers() -> gr.I18n:
    """The sentences without `{names}`, for what components show from the start."""
    return gr.I18n(**{language: {key: said for key, said in table.items() if "{" not in key} for language, table in TABLES.items()})


def mark(blocks: gr.Blocks) -> None:
    """Mark what the components of a page show from the start, for browsers to put it into their language."""
    here = for_browsers()
    ours = set().union(*here.translations.values())
    for block in blocks.blocks.values():
        for name in ("label", "info", "placeholder", "value"):
            if isinstance(words := getattr(block, name, None), str) and words in ours:
                setattr(block, name, str(here(words)))


def language() -> str:
    """That of the browser whose event is being handled, "en" where there is none; chosen as Gradio's own code in the browser does."""
    headers = getattr(LocalContext.request.get(None), "headers", None) or {}
    wanted = headers.get("accept-language", "")
    first = re.split("[-,;]", wanted.strip().lower())[0]
    return first if first in TABLES else "en"


def say(words: str) -> str:
    """An English sentence of ours in the language of the browser; one that is in no file stays as it is."""
    return said_in(language(), words)


def choices(names: dict[str, str]) -> list[tuple[str, str]]:
    """What a list of choices shows, for a table of names by value. No value may be a sentence of ours: it would be translated."""
    return [(say(name), value) for value, name in names.items()]


@functools.lru_cache(2000)
def said_in(language: str, words: str) -> str:
    table = TABLES.get(language, {})
    if not words or words in table:
        return table.get(words, words)
    for pattern, said in _patterns(language):
        if found := pattern.fullmatch(words):
            parts = found.groupdict()
            return said.format(**{name: said_in(language, part) if name.endswith("_words") else part for name, part in parts.items()})
    return words


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """The sentences with `{names}`, those with most words of their own first."""
    keys = [key for key in TABLES.get(language, {}) if "{" in key]
    keys.sort(key=lambda key: len(re.sub(r"\{\w+\}", "", key)), reverse=True)
    return [(_pattern(key), TABLES[language][key]) for key in keys]


def _pattern(key: str) -> re.Pattern[str]:
    literal = re.split(r"(\{\w+\})", key)
    return re.compile("".join(f"(?P<{part[1:-1]}>.+?)" if part.startswith("{") else re.escape(part) for part in literal), re.DOTALL)
