"""Pictures before and after a change: `before/NAME` and `after/NAME`, and what changes in `after/NAME.txt` or `instruction.txt`."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from duogen.conversation import Message
from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder, fold
from duogen.dataset.format import Example, Picture, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.words import read_caption

CHANGED = "Here is the changed picture.\n"
BEFORE, AFTER = "before", "after"


def make_change_example(before: Path, after: Path, asked: str, where: str, files: tuple[Path, ...] = ()) -> Example:
    """An example of a change: the user shows a picture and asks for the change, the assistant paints the other."""
    answer = Message("assistant", (CHANGED, Picture(after, asked)))
    return Example(where, (Message("user", (Picture(before), asked)), answer), files)


class Side:
    """The pictures of one of the two folders, by their names below it."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        named = {folder.name(file): file for file in folder.pictures()}
        self.pictures = {each.removeprefix(f"{name}/"): file for each, file in named.items() if each.startswith(f"{name}/")}

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        return _group(self.pictures, fold)

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        return _group(self.pictures, _stem)

    def list_same(self, name: str) -> list[str]:
        """The names that are the same but for upper and lower case, or composed letters; only the same one where it is there."""
        return [name] if name in self.pictures else self._folded.get(fold(name), [])

    def list_alike(self, name: str) -> list[str]:
        """The names that differ in the ending as well."""
        return self._stems.get(_stem(name), [])


def _stem(name: str) -> str:
    return fold(posixpath.splitext(name)[0])


def _group(names: dict[str, Path], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups


def _list_bases(folder: Folder) -> list[tuple[str, str]]:
    """The names of the two folders, wherever both are; upper and lower case do not matter."""
    found: dict[str, dict[str, str]] = {}
    for file in folder.pictures():
        pieces = folder.name(file).split("/")[:-1]
        place = next((index for index, piece in enumerate(pieces) if piece.casefold() in (BEFORE, AFTER)), None)
        if place is not None:
            found.setdefault("/".join(pieces[:place]), {})[pieces[place].casefold()] = pieces[place]
    for base, sides in found.items():
        for side in (BEFORE, AFTER):  # one may be empty
            known = [name for name in (side, side.capitalize(), side.upper()) if (folder.root / base / name).is_dir()]
            sides |= {side: known[0]} if known and side not in sides else {}
    return [(posixpath.join(base, each[BEFORE]), posixpath.join(base, each[AFTER])) for base, each in found.items() if len(each) == 2]


def _read(folder: Folder) -> Found:
    for before, after in _list_bases(folder):
        olds, news = Side(folder, before), Side(folder, after)
        taken: set[str] = set()
        for name, picture in olds.pictures.items():
            where = folder.show(picture)
            try:
                twin = _find_twin(name, olds, news)
            except ValueError as error:
                yield Problem(where, explain_error(error), files=(picture,))
                continue
            taken.add(twin)
            if len(olds.list_alike(name)) > 1:
                note = f"{' and '.join(sorted(olds.list_alike(name)))} have one name in {before}"
                yield Problem(where, note, f"took {after}/{twin} for it")
            yield _read_pair(folder, (olds, news), name, twin)
        for name, picture in news.pictures.items():
            if name not in taken:
                yield Problem(folder.show(picture), f"there is no picture {before}/{name} that it belongs to", files=(picture,))


def _find_twin(name: str, olds: Side, news: Side) -> str:
    """The name of the picture after for a picture before: the same, else the only one with another ending.

    Raises:
        ValueError: there is none, or several may be meant.
    """
    same = news.list_same(name)
    if len(same) == 1:
        return same[0]
    alike, rivals = news.list_alike(name), olds.list_alike(name)
    if not alike:
        raise ValueError(f"there is no picture {news.name}/{name} that it becomes")
    if len(alike) > 1 or len(rivals) > 1:
        raise ValueError(f"{' and '.join(sorted(rivals))} in {olds.name} may become {' or '.join(sorted(alike))} in {news.name}")
    return alike[0]


def _read_pair(folder: Folder, sides: tuple[Side, Side], name: str, twin: str) -> Example | Problem:
    olds, news = sides
    pictures = (olds.pictures[name], news.pictures[twin])
    where, base, stem = folder.show(pictures[0]), posixpath.dirname(olds.name), posixpath.splitext(name)[0]
    inside = posixpath.dirname(name)
    tops = (news.name, olds.name, base)
    places = [posixpath.join(top, f"{each}.txt") for top in tops for each in (stem, name)]
    places += [posixpath.join(top, each, "instruction.txt") for each in dict.fromkeys((inside, "")) for top in tops]
    file = next((file for place in places if (file := folder.get(place))), None)
    if file is None:
        return Problem(where, f"nobody says what changes; write it into {news.name}/{stem}.txt", files=pictures)
    try:
        return make_change_example(*pictures, read_caption(file)[0], where, (file,))
    except Exception as error:  # whatever one file raises leaves the others alone
        return Problem(where, f"{folder.show(file)}: {explain_error(error)}", files=(*pictures, file))


LAYOUTS = [Layout("pictures before and after", _list_bases, _read, "it is neither in a folder before nor in a folder after")]
