"""Words and rows out of the text files of training data: captions, JSON, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen.dataset.checks import explain_error
from duogen.dataset.pictures import LFS_POINTER
from duogen.files import read_text

MOST_BYTES = 2 << 30  # of a file of rows
MOST_CAPTION_BYTES = 16 << 20
CAPTIONS = ("text", "caption", "captions", "prompt", "description", "tags")  # what captions are called in JSON and in tables
LISTS = ("data", "rows", "examples", "items", "train", "samples", "annotations")  # what holds the rows of a JSON object


@dataclass(frozen=True)
class Row:
    """A row of a file: `where` counts it ("line 3"), `raw` is what it says, and `error` why that cannot be read."""

    where: str
    raw: object = None
    error: str = ""


def read_words(file: Path) -> str:
    """The text of a small file.

    Raises:
        ValueError: it cannot be read, is no text, or is a pointer that git-lfs left.
    """
    said = read_text(file, MOST_CAPTION_BYTES)
    if said.startswith(LFS_POINTER.decode()):
        raise ValueError(f"{file.name} is a git-lfs pointer, not the file itself; fetch it with: git lfs pull.")
    return said.strip()


def read_caption(file: Path) -> tuple[str, str]:
    """The caption in a text or JSON file.

    Returns:
        The caption, and what was not as it should be though the caption is plain; "" where nothing was.

    Raises:
        ValueError: there is no caption in it; the message says what is.
    """
    said = read_words(file)
    if not said:
        raise ValueError("the caption is empty")
    if file.suffix.lower() == ".json" or said[0] in "{[":
        try:
            raw = json.loads(said)
        except (ValueError, RecursionError):
            raw = None
        found = find_caption(raw)
        if found:
            return found, "" if file.suffix.lower() == ".json" else "the caption is JSON"
        if file.suffix.lower() == ".json" or isinstance(raw, dict | list):
            raise ValueError(f"there is no caption in its JSON; call it {CAPTIONS[0]} or {CAPTIONS[1]}")
    if not any(letter.isalnum() or ord(letter) > 0x2FFF for letter in said):  # emoji are words, too
        raise ValueError("the caption has no words, only signs")
    return said, ""


def find_caption(raw: object) -> str:
    """The caption that a JSON value holds, "" where it holds none."""
    if isinstance(raw, Mapping):
        lower = {str(name).strip().lower(): value for name, value in raw.items()}
        return next((said for name in CAPTIONS if (said := find_caption(lower.get(name)))), "")
    if isinstance(raw, list):
        words = [each.strip() for each in raw if isinstance(each, str) and each.strip()]
        return ", ".join(words) if words and max(map(len, words)) < 40 and len(words) > 1 else next(iter(words), "")
    return raw.strip() if isinstance(raw, str) else ""


def read_rows(file: Path) -> tuple[Row, ...]:
    """The rows of a JSON, JSON-lines or CSV file. A row that cannot be read says why; a file that cannot be read is one such row."""
    try:
        if file.suffix.lower() in (".csv", ".tsv"):
            return tuple(_read_table(read_text(file, MOST_BYTES)))
        return tuple(_read_json(read_text(file, MOST_BYTES), file.suffix.lower() == ".json"))
    except Exception as error:  # whatever one file raises leaves the others alone
        return (Row("", None, explain_error(error)),)


def _read_json(text: str, whole: bool) -> Iterator[Row]:
    """The rows of a list, of an object that holds one, or of lines.

    Args:
        whole: the file should be one JSON value, so that damage is that of the file and not of a line.
    """
    if text.startswith(LFS_POINTER.decode()):
        raise ValueError("it is a git-lfs pointer, not the file itself; fetch it with: git lfs pull")
    lines = [(number, line) for number, line in enumerate(_split_lines(text), 1) if line.strip()]
    by_line = bool(lines) and not _loads(lines[0][1]).error
    value = _loads(text) if whole or not by_line or len(lines) == 1 else None
    if value is not None and not value.error and (whole or not by_line or _find_list(value.raw) is not None):
        yield from _unfold(value.raw)
    elif by_line or not whole:
        yield from (_loads(line, f"line {number}") for number, line in lines)
    elif value is not None:
        yield value


def _unfold(raw: object) -> Iterator[Row]:
    """The rows of a list, or of an object that holds one; another value is a row itself."""
    listed = _find_list(raw)
    if listed is None:
        yield Row("", raw)
    else:
        yield from (Row(f"entry {number}", each) for number, each in enumerate(listed, 1))


def _find_list(raw: object) -> list | None:
    if isinstance(raw, dict):
        return next((raw[name] for name in LISTS if isinstance(raw.get(name), list)), None)
    return raw if isinstance(raw, list) else None


def _split_lines(text: str) -> list[str]:
    """Lines as JSON lines have them: other marks of a line's end may stand in a string."""
    return text.split("\n") if "\n" in text else text.split("\r")


def _loads(text: str, where: str = "") -> Row:
    try:
        return Row(where, json.loads(text))
    except json.JSONDecodeError as error:
        at = f" (line {error.lineno}, column {error.colno})" if not where else ""
        return Row(where, None, f"it is not JSON{at}")
    except Exception as error:  # deep nesting, numbers of many thousand digits
        return Row(where, None, f"it is not JSON that can be read: {explain_error(error)}")


def _read_table(text: str) -> Iterator[Row]:
    head = text.split("\n", 1)[0]
    separator = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(f"line {reader.line_num}", None, f"it is no line of a table ({error})")
            continue
        if not names:
            names = [cell.strip().lower() for cell in cells]
        elif any(cell.strip() for cell in cells):
            row: dict[str, Any] = dict(zip(names, cells, strict=False))
            yield Row(f"line {reader.line_num}", row)
