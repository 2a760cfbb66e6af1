"""Load prompts from files, and parse JSON from the answers of a model."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from duogen.paths import ASSETS

PROMPTS = ASSETS / "prompts"
BLANK = re.compile(r"\{\{(\w+)\}\}")
FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)(?:```|\Z)", re.S)
THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.S | re.I)
DEEPEST = 32  # of nesting that is repaired


@lru_cache(maxsize=64)
def load_prompt(name: str) -> str:
    """The text of a prompt file.

    Raises:
        ValueError: there is no such prompt, or it cannot be read.
    """
    try:
        return (PROMPTS / f"{name}.md").read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise ValueError(f"There is no prompt {name} in {PROMPTS}.") from error
    except (OSError, UnicodeError) as error:
        raise ValueError(f"The prompt {name} in {PROMPTS} cannot be read ({error}).") from error


def fill_prompt(name: str, **words: object) -> str:
    """Fill the {{blanks}} of a prompt. The values may contain braces.

    Raises:
        ValueError: there is no such prompt, or a blank is left.
    """
    text = load_prompt(name)
    missing = set(BLANK.findall(text)) - words.keys()
    if missing:
        raise ValueError(f"The prompt {name} has a blank {sorted(missing)[0]} that nothing fills.")
    return BLANK.sub(lambda found: str(words[found[1]]), text)


def parse_json(answer: str) -> Any:
    """Parse the JSON object or list in a model's answer; `None` where there is none.

    Removes thoughts, Markdown fences and the words around the JSON. Repairs common mistakes: single or curly quotes, trailing commas,
    Python literals, comments, bare keys, line breaks within strings, missing closing brackets. Of several objects the last complete
    one counts, because models correct themselves.
    """
    text = THOUGHT.sub("", answer).strip().lstrip("\ufeff")
    fenced = [piece.strip() for piece in FENCE.findall(text) if piece.strip()]
    for candidate in [*reversed(fenced), text]:
        found = [value for value in (_load_json(piece) for piece in _spans(candidate)) if isinstance(value, dict | list)]
        if found:
            return found[-1]
    return None


def _spans(text: str) -> list[str]:
    """The outermost bracketed pieces of a text. Brackets in strings do not count; the last piece may lack its end."""
    spans, start, depth, quote, escaped = [], 0, 0, "", False
    for at, letter in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = letter == "\\"
            quote = "" if letter == quote else quote
        elif letter == '"' and depth:
            quote = letter
        elif letter in "{[":
            start = at if not depth else start
            depth += 1
        elif letter in "}]" and depth:
            depth -= 1
            if not depth:
                spans.append(text[start : at + 1])
    return [*spans, text[start:]] if depth else spans


def _load_json(text: str) -> Any:
    for attempt in (text, _repair_json(text)):
        try:
            return json.loads(attempt, strict=False)
        except (ValueError, RecursionError):
            continue
    return None


def _repair_json(text: str) -> str:
    text = text.translate({0x201C: '"', 0x201D: '"', 0x201E: '"', 0x2018: "'", 0x2019: "'", 0xFF1A: ":", 0xFF0C: ","})
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        inner = found[1] if found[1] is not None else re.sub(r'(?<!\\)"', r"\\\"", found[2]).replace("\\'", "'")
        strings.append(f'"{inner}"')
        return f"\0{len(strings) - 1}\0"

    # Double quotes always quote; single ones where a value or key can stand, so that apostrophes stay.
    text = re.sub(r'"((?:[^"\\]|\\.)*)"|(?<=[\[{,:\s])\'((?:[^\'\\]|\\.|\'(?=\w))*)\'(?=\s*[,:}\]])', keep, text, flags=re.S)
    text = re.sub(r"//[^\n]*|/\*.*?\*/|(?<=[\s,])#[^\n]*", "", text, flags=re.S)
    text = re.sub(r"\bTrue\b", "true", re.sub(r"\bFalse\b", "false", re.sub(r"\b(?:None|NaN|N/A|undefined)\b", "null", text)))
    text = re.sub(r"([{,]\s*)([A-Za-z_][\w -]*?)\s*:", r'\1"\2":', text)
    text = re.sub(r"(:\s*)\+?(-?)\.(\d)", r"\g<1>\g<2>0.\3", re.sub(r":\s*\+(\d)", r": \1", text))
    text = re.sub(r"(\d(?:\.\d+)?)\s*/\s*\d+(?=\s*[,}\]])", r"\1", text)  # "4/5"
    text = re.sub(r"(\0|\d|true|false|null|[}\]])(\s*\n\s*)(?=\0)", r"\1,\2", text)  # a comma forgotten at the end of a line
    text = re.sub(r",(\s*,)+", ",", re.sub(r",\s*(?=[}\]])", "", text))
    text = _close_brackets(text)
    return re.sub("\0(\\d+)\0", lambda found: strings[int(found[1])], text)


def _close_brackets(text: str) -> str:
    """Close open brackets. A string or key that the answer breaks off in is left out."""
    open_quote = text.rfind('"')
    if text.count('"') % 2 and open_quote >= 0 and not re.search(r'"\w[\w -]*":', text[open_quote - 40 : open_quote + 1] + "x"):
        text = text[:open_quote] + '"' + text[open_quote + 1 :] + '"'
    stack = []
    for letter in text:
        if letter in "{[":
            stack.append("}" if letter == "{" else "]")
        elif letter in "}]" and stack:
            stack.pop()
    if stack:
        text = re.sub(r",?\s*(?:\0\d+\0|\"[^\"]*\")?\s*:?\s*$", "", text) if re.search(r"[:,]\s*$", text) else text
    return text + "".join(reversed(stack[-DEEPEST:]))
