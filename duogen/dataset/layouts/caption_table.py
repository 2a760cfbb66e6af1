"""Captions of pictures in a table: `metadata.jsonl` and `metadata.csv` of Hugging Face's imagefolder, and JSON or CSV of other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder
from duogen.dataset.format import PICTURES, Example, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.layouts.before_after import make_change_example
from duogen.dataset.layouts.captions import KIND, make_caption_example, read_captions
from duogen.dataset.words import CAPTIONS, Row, find_caption

NAMES = ("file_name", "filename", "file", "image", "image_path", "image_file", "image_name", "img", "path", "picture")
BEFORE = ("before", "input", "original", "source", "input_image", "original_image", "source_image", "image_before")
AFTER = ("after", "output", "edited", "target", "output_image", "edited_image", "target_image", "image_after")
CHANGES = ("edit_prompt", "instruction", "edit", "edit_instruction", *CAPTIONS)


def choose_columns(row: Mapping, columns: tuple[str, ...]) -> list[str]:
    """The columns of a row that have one of these names, in the names' order; `_file_name` at a name's end does not count."""
    known = {str(name).strip().lower().removesuffix("_file_name"): name for name, value in row.items() if value}
    return [known[name] for name in columns if name in known]


def _list_rows(folder: Folder, file: Path) -> Iterator[Row]:
    """The rows of a file; an object of captions by file names is one row for each."""
    rows = folder.rows(file)
    if len(rows) == 1 and isinstance(rows[0].raw, dict) and not _is_row(rows[0].raw):
        for name, value in rows[0].raw.items():
            if find_caption(value) and Path(name).suffix.lower() in PICTURES:
                yield Row(f'"{name}"', {"file_name": name, "text": find_caption(value)})
        return
    yield from rows


def _is_row(raw: object) -> bool:
    """Whether a row names a picture and has words."""
    if not isinstance(raw, Mapping):
        return False
    words = any(find_caption(raw[name]) for name in choose_columns(raw, CHANGES))
    return words and bool(choose_columns(raw, (*NAMES, *BEFORE)))


def _list_tables(folder: Folder) -> list[Path]:
    files = folder.select(".jsonl", ".ndjson", ".csv", ".tsv", ".json")
    return [file for file in files if any(_is_row(row.raw) for row in _list_rows(folder, file))]


def _read(folder: Folder) -> Found:
    """Read the tables, then the pictures that they do not name."""
    seen: set[Path] = set()
    for file in _list_tables(folder):
        for row in _list_rows(folder, file):
            where = f"{folder.show(file)} {row.where}".strip()
            try:
                example = _read_row(folder, file, row, where)
                seen.update(picture.file for picture in example.pictures())
                yield example
            except Exception as error:  # whatever one row raises leaves the others alone
                yield Problem(where, explain_error(error), files=(file,))
    yield from read_captions(folder, frozenset(seen))


def _read_row(folder: Folder, file: Path, row: Row, where: str) -> Example:
    if row.error:
        raise ValueError(row.error)
    if not isinstance(row.raw, Mapping):
        raise ValueError("it is no row with the name of a picture")
    raw = row.raw
    words = next((said for name in choose_columns(raw, CHANGES) if (said := find_caption(raw[name]))), "")
    if not words:
        raise ValueError(f"it has no words; write them into a column {CAPTIONS[0]} or {CAPTIONS[1]}")
    shown = {name: value for name, value in raw.items() if isinstance(value, str) and Path(value).suffix.lower() in PICTURES}
    before, after = choose_columns(shown, BEFORE), choose_columns(shown, (*AFTER, *NAMES))
    names = [raw[before[0]], raw[after[0]]] if before and after else [raw[name] for name in choose_columns(raw, NAMES)[:1]]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"it names no picture; write its name into a column {NAMES[0]}")
    notes, files = [], []
    for name in names:
        found, what = folder.find(name, file.parent)
        files.append(found)
        notes += [Problem(where, what, f"took {folder.show(found)}")] if what else []
    if len(files) == 2:
        return make_change_example(files[0], files[1], words, where, (file,))
    return make_caption_example(words, files[0], where, (file,), tuple(notes))


LAYOUTS = [Layout(KIND, _list_tables, _read, "it has no caption")]
