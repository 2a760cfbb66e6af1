"""A Hugging Face dataset: Parquet files, or a folder of `Dataset.save_to_disk`; pictures with words, changes, or conversations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder
from duogen.dataset.format import Example, Picture, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.layouts.before_after import make_change_example
from duogen.dataset.layouts.caption_table import AFTER, BEFORE, CHANGES, choose_columns
from duogen.dataset.layouts.captions import make_caption_example
from duogen.dataset.layouts.conversations import open_store
from duogen.dataset.pictures import is_lfs_pointer
from duogen.dataset.rows import IMAGES, TURNS, RowParser
from duogen.dataset.words import find_caption

ROWS_AT_ONCE = 64
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes; LLaMA-Factory has a dataset_info.json, too
NO_TABLE = "it has neither a picture with words nor a conversation; name the columns image and text, or messages"


def _list_saved(folder: Folder) -> list[Path]:
    """The folders that `save_to_disk` wrote; of a dataset with splits that of the splits."""
    places = {file.parent for file in folder.files if file.name in SAVED and (file.name == SAVED[0] or _is_split(file.parent))}
    return sorted(place for place in places if not places & set(place.parents))


def _is_split(place: Path) -> bool:
    return (place / "dataset_info.json").is_file()


def _fits(folder: Folder) -> bool:
    return bool(folder.select(".parquet") or _list_saved(folder))


def _read(folder: Folder) -> Found:
    for place in _list_saved(folder):
        files = tuple(file for file in folder.files if file.is_relative_to(place))
        yield from _read_rows(folder, place, files, _iterate_saved(place))
    for file in folder.select(".parquet"):
        if is_lfs_pointer(file):
            yield Problem(folder.show(file), "it is a git-lfs pointer, not the file itself; fetch it with: git lfs pull", files=(file,))
        else:
            yield from _read_rows(folder, file, (file,), _iterate_parquet(file))


def _iterate_saved(place: Path) -> Iterator[Mapping | Exception]:
    import datasets

    loaded = datasets.load_from_disk(str(place))
    for part in loaded.values() if isinstance(loaded, datasets.DatasetDict) else [loaded]:
        plain = part.with_format("arrow")
        for start in range(0, len(plain), ROWS_AT_ONCE):
            yield from plain[start : start + ROWS_AT_ONCE].to_pylist()


def _iterate_parquet(file: Path) -> Iterator[Mapping | Exception]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            try:
                for batch in opened.iter_batches(ROWS_AT_ONCE, row_groups=[group]):
                    yield from batch.to_pylist()
            except Exception as error:  # damage in one group of rows leaves the others alone
                yield error


def _read_rows(folder: Folder, place: Path, files: tuple[Path, ...], rows: Iterator[Mapping | Exception]) -> Found:
    parser = RowParser(folder, place if place.is_dir() else place.parent, open_store(folder))
    others: dict[str, str] = {}
    name, number = folder.show(place) if place != folder.root else place.name, 0
    try:
        for row in rows:
            number += 1
            where = f"{name} row {number}"
            try:
                if isinstance(row, Exception):
                    raise row
                yield _parse_row(row, where, files, parser, others)
            except Exception as error:  # whatever one row raises leaves the others alone
                yield Problem(where, explain_error(error), files=files)
    except Exception as error:
        yield Problem(name, f"the table is damaged ({type(error).__name__})", files=files)
    for column, taken in others.items():
        yield Problem(name, f"the column {column} is not read", f"took the pictures of the column {taken}")
    if parser.systems:
        yield Problem(name, f"rows with a system text: {parser.systems}", "left these texts out; a pair reads none")


def _parse_row(row: Mapping, where: str, files: tuple[Path, ...], parser: RowParser, others: dict[str, str]) -> Example:
    """Parse a row. Columns of pictures that are not used are added to `others`, with the one that is.

    Raises:
        ValueError: nothing can be learnt from it.
    """
    if any(row.get(name) is not None for name in TURNS):
        return parser.parse(row, where, files)
    columns = [name for name, value in row.items() if _is_picture(name, value)]
    words = next((said for name in choose_columns(row, CHANGES) if (said := find_caption(row[name]))), "")
    if not columns or not words:
        if any(name in row for name in ("question", "instruction", "query")):
            return parser.parse(row, where, files)
        raise ValueError(NO_TABLE)
    shown = {name: row[name] for name in columns}
    before, after = choose_columns(shown, BEFORE), choose_columns(shown, AFTER)
    if before and after:
        return make_change_example(_open(parser, row[before[0]]), _open(parser, row[after[0]]), words, where, files)
    taken = (choose_columns(shown, IMAGES) or columns)[0]
    others |= {name: taken for name in columns if name != taken}
    return make_caption_example(words, _open(parser, row[taken]), where, files)


def _is_picture(name: str, value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return _is_picture(name, value[0])
    if isinstance(value, Mapping):
        return bool(value.keys()) and value.keys() <= {"bytes", "path"}
    known = (*IMAGES, *BEFORE, *AFTER)
    return isinstance(value, bytes) or (isinstance(value, str) and bool(value) and str(name).lower().removesuffix("_file_name") in known)


def _open(parser: RowParser, value: Any) -> Path:
    picture: Picture = parser.open(value[0] if isinstance(value, list | tuple) else value)
    return picture.file


LAYOUTS = [Layout("a Hugging Face dataset", _fits, _read, "no row of the table names it")]
