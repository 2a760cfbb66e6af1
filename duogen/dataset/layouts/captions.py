"""Pictures with captions: in text files of the same name, in a folder of captions, or in the names of folders as kohya has them."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from pathlib import Path

from duogen.conversation import Message
from duogen.dataset.checks import explain_error
from duogen.dataset.folder import Folder, fold
from duogen.dataset.format import PICTURES, Example, Picture, Problem
from duogen.dataset.layouts.base import Found, Layout
from duogen.dataset.pictures import inspect_picture
from duogen.dataset.words import find_caption, read_caption

KIND = "pictures with captions"
PLAIN = (".txt", ".caption", ".cap", ".tags")
ENDINGS = (*PLAIN, ".json")
APART = ("captions", "caption", "texts", "text", "txt", "labels", "prompts")  # folders of captions
REPEATS = re.compile(r"([1-9]\d{0,2})_(.*\w.*)")  # kohya's folders: 10_boat


def make_caption_example(caption: str, picture: Path, where: str, files: tuple[Path, ...] = (), notes: tuple[Problem, ...] = ()) -> Example:
    """An example from a caption: the user asks with its words, the assistant repeats them and paints the picture."""
    words = caption.strip()
    return Example(where, (Message("user", (words,)), Message("assistant", (words + "\n", Picture(picture, words)))), files, notes)


def read_captions(folder: Folder, without: frozenset[Path] = frozenset()) -> Found:
    """Read every picture but those of `without` with its caption."""
    pictures = [file for file in folder.pictures() if file not in without]
    captions = {picture: _find_captions(folder, picture) for picture in pictures}
    owners = Counter(found[0] for found in captions.values() if found)
    named: Counter[Path] = Counter()
    for picture in pictures:
        where, found = folder.show(picture), captions[picture]
        if found:
            yield _read_caption(folder, picture, found[0], owners[found[0]] > 1)
            continue
        try:
            inspect_picture(picture)
        except ValueError as error:
            yield Problem(where, explain_error(error), files=(picture,))
            continue
        words = REPEATS.fullmatch(picture.parent.name)
        if words:
            named[picture.parent] += 1
            yield make_caption_example(words[2].replace("_", " "), picture, where)
        else:
            yield picture
    for place, count in named.items():
        yield Problem(folder.show(place), f"pictures without a caption: {count}", "took the words in the folder's name")
    for place in sorted({picture.parent for picture in pictures}):
        words = REPEATS.fullmatch(place.name)
        if words and words[1] != "1":
            yield Problem(folder.show(place), f"its name asks for {words[1]} repeats", "took each picture once; the steps say how often")


def _read_caption(folder: Folder, picture: Path, file: Path, shared: bool) -> Example | Problem:
    where, notes = folder.show(picture), []
    try:
        said, odd = read_caption(file)
    except Exception as error:  # whatever one file raises leaves the others alone
        return Problem(folder.show(file), explain_error(error), files=(picture, file))
    if odd:
        notes.append(Problem(folder.show(file), odd, "took the words in it"))
    if shared:
        notes.append(Problem(where, f"{folder.show(file)} is the caption of several pictures", "took its words for each"))
    return make_caption_example(said, picture, where, (file,), tuple(notes))


def find_caption_file(example: Example) -> Path | None:
    """The text file that holds the caption of an example and nothing else; `None` where its words come from somewhere else."""
    texts = {line.text().strip() for line in example.lines}
    alone = len(example.files) == 1 and example.files[0].suffix.lower() in PLAIN and len(texts) == 1
    return example.files[0] if alone else None


def _find_captions(folder: Folder, picture: Path) -> list[Path]:
    """The files that can be the caption of a picture, the likeliest first."""
    place, name = posixpath.split(folder.name(picture))
    stem = posixpath.splitext(name)[0]
    above, last = posixpath.split(place)
    first, _, rest = place.partition("/")
    places = [place]
    for apart in APART:
        places += [posixpath.join(place, apart), posixpath.join(above, apart), posixpath.join(apart, place), posixpath.join(apart, rest)]
        places.append(posixpath.join(first, apart, rest))
    names = [f"{each}{ending}" for ending in ENDINGS for each in (name, stem)]
    found = [file for each in dict.fromkeys(places) for name in names if (file := folder.get(posixpath.join(each, name)))]
    return [file for file in found if file.suffix.lower() != ".json" or any(find_caption(row.raw) for row in folder.rows(file))]


def _has_captions(folder: Folder) -> bool:
    return any(_find_captions(folder, picture) for picture in folder.pictures())


def _has_pictures(folder: Folder) -> bool:
    return bool(folder.pictures()) or any(fold(Path(name).suffix) in PICTURES for name in folder.strange)


CAPTIONED, BARE = (Layout(KIND, fits, read_captions, "it has no caption") for fits in (_has_captions, _has_pictures))
