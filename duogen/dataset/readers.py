"""Read training data from folders and zips in any layout that people have; `layouts/` holds one module for each."""

from __future__ import annotations

from pathlib import Path

from duogen.dataset.checks import check_example, explain_error
from duogen.dataset.crops import CROP, crop_file
from duogen.dataset.folder import Folder, shorten
from duogen.dataset.format import CONVERSATIONS, PICTURES, Data, Example, Picture, Problem
from duogen.dataset.layouts import before_after, caption_table, captions, conversations, exports, hugging_face
from duogen.dataset.layouts.base import Layout
from duogen.dataset.pictures import is_lfs_pointer
from duogen.dataset.unpack import unpack_zip

KNOWN = (
    f"a folder or zip with {CONVERSATIONS}, exported conversations, pictures with .txt captions beside them, the folders before and "
    "after, a LLaVA JSON file, or a Hugging Face dataset"
)
OWN, LLAVA, OTHER = conversations.LAYOUTS
LAYOUTS = [  # the first that fits is read
    OWN, *exports.LAYOUTS, *before_after.LAYOUTS, *hugging_face.LAYOUTS, LLAVA, OTHER, *caption_table.LAYOUTS, captions.CAPTIONED,
    conversations.DAMAGED, captions.BARE,
]  # fmt: skip
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
RECORDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav", ".flac", ".ogg", ".m4a")
ROWS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
CAPTIONS = (".txt", ".caption", ".cap", ".tags")


def read_dataset(source: Path) -> Data:
    """Read a folder or zip in any known layout. Each example is checked, and fixed where that is safe.

    Raises:
        ValueError: there is nothing at `source`, or nothing that can be read as training data; one sentence.
    """
    folder = Folder(_find_folder(source))
    layout = next((layout for layout in LAYOUTS if layout.fits(folder)), None)
    if layout is None:
        raise ValueError(f"{shorten(str(source))} holds no training data{_describe_files(folder)}; bring {KNOWN}.")
    data = Data(layout.kind, folder.root, found=frozenset(folder.files), strange=len(folder.strange), passed=folder.passed)
    named: set[Path] = set()
    try:
        for each in layout.read(folder):
            named.update(_take(each, data))
    except Exception as error:  # the layouts catch what one file raises; this is the last net
        data.problems.append(Problem(layout.kind, f"the rest cannot be read: {explain_error(error)}"))
    data.unread = [Problem(name, why, "not read") for name, why in folder.strange.items()]
    for file in folder.files:
        if file not in named:
            data.unread.append(Problem(folder.show(file), _explain_unread(folder, file, layout), "not read"))
    return data


def _find_folder(source: Path) -> Path:
    try:
        source = source.expanduser()
        if source.is_dir():
            return source
        there, is_file = source.exists(), source.is_file()
    except (OSError, ValueError, RuntimeError):  # longer than names may be; a zero byte; nobody's home
        there = is_file = False
    if not there:
        raise ValueError(f"There is no folder or zip {shorten(str(source))}.")
    if not is_file:
        raise ValueError(f"{shorten(str(source))} is no folder and no zip.")
    return unpack_zip(source)


def _take(found: Example | Problem | Path, data: Data) -> set[Path]:
    """Put what a layout found into the data. Returns the files that are learnt from or named by it."""
    if isinstance(found, Problem):
        data.problems.append(found)
        return set(found.files)
    if isinstance(found, Path):
        try:
            Picture(found).with_crop()
            data.loose.append(found)
        except ValueError as error:
            data.problems.append(Problem(shorten(found.name), explain_error(error)))
        return {found, crop_file(found)}
    example, problems = check_example(found)
    data.examples += [example] if example else []
    data.problems += problems
    pictures = {file for picture in found.pictures() for file in (picture.file, crop_file(picture.file))}
    said = " ".join(f"{problem.where} {problem.what}" for problem in problems)
    return {*found.files, *(file for file in pictures if example or shorten(file.name) in said)}


def _describe_files(folder: Folder) -> str:
    names = [*(folder.show(file) for file in folder.files), *(f"{name}, which {why}" for name, why in folder.strange.items())]
    count = f"{len(names)} files, such as " if len(names) > 1 else ""
    return f" (it holds {count}{names[0]})" if names else ""


def _explain_unread(folder: Folder, file: Path, layout: Layout) -> str:
    """Why a file is not read, also one that is gone by now, as those that a database keeps beside itself while it is open."""
    try:
        return _explain_unused(folder, file, layout)
    except FileNotFoundError:
        return "was deleted while the folder was read"


def _explain_unused(folder: Folder, file: Path, layout: Layout) -> str:
    """Why a file is not read though it can be."""
    ending = file.suffix.lower()
    if not file.stat().st_size:
        return "is empty"
    if is_lfs_pointer(file):
        return "is a git-lfs pointer, not the file itself; fetch it with: git lfs pull"
    if ending in PICTURES:
        return layout.unused
    if ending in ARCHIVES:
        return "archives inside the folder are not opened; unpack it, or name it instead of the folder"
    if ending in RECORDINGS:
        return "videos and sounds are not read"
    if ending in ROWS:
        error = next((row.error for row in folder.rows(file) if row.error), "")
        if error:
            return error
    if ending in CAPTIONS and layout.kind == captions.KIND:
        pictures = folder.list_namesakes(file)
        return f"the words of {folder.show(pictures[0])} come from another file" if pictures else "no picture that is read has this name"
    if ending == CROP:
        return "no picture that is read has this name"
    if ending in (*ROWS, *CAPTIONS):
        return f"the folder is read as {layout.kind}, and this file is no part of it"
    return f"files that end in {ending} are not read" if ending else "files without an ending are not read"
