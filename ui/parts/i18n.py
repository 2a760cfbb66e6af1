"""Translation of the page into the language of the browser. English is in the code; `languages/` has a file for every other language.

A key of such a file is an English sentence. `{names}` in it stand for parts that vary, `{names_words}` for another sentence of the page.
The browser translates what a component shows from the start (`gr.I18n`); this module translates what the server says later, by the
same files. So code that raises an error or reports progress, also below the page, writes English and knows nothing of languages.
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


def browser_translations() -> gr.I18n:
    """The sentences without `{names}`, for the browser to translate what components show from the start."""
    return gr.I18n(**{language: {key: said for key, said in table.items() if "{" not in key} for language, table in TABLES.items()})


def mark_translatable(blocks: gr.Blocks) -> None:
    """Mark the texts that the components show from the start, so that browsers translate them."""
    here = browser_translations()
    ours = set().union(*here.translations.values())
    for block in blocks.blocks.values():
        for name in ("label", "info", "placeholder", "value"):
            words = getattr(block, name, None)
            if isinstance(words, str) and (found := next((each for each in _list_texts(words) if each in ours), "")):
                setattr(block, name, words.replace(found, str(here(found)), 1))


def _list_texts(words: str) -> list[str]:
    """What may be a sentence of the page: the words themselves, then the texts between tags. The browser translates only one."""
    return [words, *re.findall(r">([^<>&]+)<", words)]


def browser_language() -> str:
    """The language of the browser whose event is being handled, "en" without one; chosen as Gradio does it in the browser."""
    headers = getattr(LocalContext.request.get(None), "headers", None) or {}
    return choose_language(headers.get("accept-language", ""))


def choose_language(wanted: str) -> str:
    """The language of the page for a header `Accept-Language`."""
    first = re.split("[-,;]", wanted.strip().lower())[0]
    return first if first in TABLES else "en"


def translate(words: str) -> str:
    """Translate an English sentence of the page into the language of the browser; an unknown sentence stays as it is."""
    return translate_into(browser_language(), words)


def translate_choices(names: dict[str, str]) -> list[tuple[str, str]]:
    """Choices with translated names, from a table of names by value. No value may be a sentence of the page: it would be translated."""
    return [(translate(name), value) for value, name in names.items()]


@functools.lru_cache(2000)
def translate_into(language: str, words: str) -> str:
    table = TABLES.get(language, {})
    if not words or words in table:
        return table.get(words, words)
    for pattern, said in _patterns(language):
        if found := pattern.fullmatch(words):
            parts = found.groupdict()
            return said.format(
                **{name: translate_into(language, part) if name.endswith("_words") else part for name, part in parts.items()}
            )
    return words


@functools.cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], str]]:
    """The sentences with `{names}`, those with the longest fixed text first."""
    keys = [key for key in TABLES.get(language, {}) if "{" in key]
    keys.sort(key=lambda key: len(re.sub(r"\{\w+\}", "", key)), reverse=True)
    return [(_pattern(key), TABLES[language][key]) for key in keys]


def _pattern(key: str) -> re.Pattern[str]:
    literal = re.split(r"(\{\w+\})", key)
    return re.compile("".join(f"(?P<{part[1:-1]}>.+?)" if part.startswith("{") else re.escape(part) for part in literal), re.DOTALL)
