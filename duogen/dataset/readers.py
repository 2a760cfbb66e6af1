"""Read training data from folders and zips: our own format and exports, captions, before/after, LLaVA, Hugging Face."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from duogen.conversation import Message, Text, load_conversation
from duogen.dataset.format import CONVERSATIONS, PICTURES, Data, Example, Picture, Problem, check_example, parse_example, resolve_file
from duogen.paths import data_home

ZIP_FILES, ZIP_BYTES = 200_000, 20 * 1024**3
CHANGED = "Here is the changed picture.\n"
KNOWN = (
    f"a folder or zip with {CONVERSATIONS}, exported conversations, pictures with .txt captions beside them, the folders before and "
    "after, a LLaVA JSON file, or a Hugging Face dataset"
)

Found = Iterator[Example | Problem | Path]


def read_dataset(source: Path) -> Data:
    """Read a folder or zip in any known layout. Each example is checked, and fixed where that is safe.

    Raises:
        ValueError: there is nothing at `source`, or nothing that can be read as training data; one sentence.
    """
    source = source.expanduser()
    if not source.exists():
        raise ValueError(f"There is no folder or zip {source}.")
    folder = unpack_zip(source) if source.is_file() else source
    for kind, fits, found in READERS:
        if not fits(folder):
            continue
        data = Data(kind, folder)
        for each in found(folder):
            if isinstance(each, Problem):
                data.problems.append(each)
            elif isinstance(each, Path):
                data.loose.append(each)
            else:
                example, problems = check_example(each)
                data.examples += [example] if example else []
                data.problems += problems
        return data
    raise ValueError(f"{source} holds no training data; bring {KNOWN}.")


def unpack_zip(file: Path) -> Path:
    """Unpack a zip, once. Returns its folder.

    Raises:
        ValueError: the file is no zip, is damaged, or holds too much.
    """
    with file.open("rb") as stream:
        target = data_home() / "finetune" / "unpacked" / hashlib.file_digest(stream, "sha256").hexdigest()[:16]
    if target.is_dir():
        return find_inner_folder(target)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(file) as packed:
            entries = packed.infolist()
            if len(entries) > ZIP_FILES or sum(entry.file_size for entry in entries) > ZIP_BYTES:
                raise ValueError(f"{file.name} holds too much; unpack it yourself and name the folder.")
            packed.extractall(part)  # zipfile keeps every name inside the folder
        part.rename(target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file.name} is no zip, or is damaged; pack it again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return find_inner_folder(target)


def find_inner_folder(folder: Path) -> Path:
    """The folder of the data: the only folder inside, if a zip holds everything in one."""
    inside = [each for each in folder.iterdir() if each.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name != "images" else folder


def _list_pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and not file.name.startswith("."))


def _read_conversations(folder: Path) -> Found:
    with (folder / CONVERSATIONS).open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _parse_line(line, f"{CONVERSATIONS} line {number}", folder)


def _parse_line(line: str, where: str, folder: Path) -> Example | Problem:
    try:
        return parse_example(json.loads(line), where, folder)
    except json.JSONDecodeError:
        return Problem(where, "it is not JSON")
    except ValueError as error:
        return Problem(where, str(error))


def _list_exports(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob("conversation.json") if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _read_exports(folder: Path) -> Found:
    """Read conversations that `ConversationStore.pack` exported, unpacked or as zips. Only the shown branch is read."""
    packed = [file for file in sorted(folder.rglob("*.zip")) if _is_export(file)]
    for place in [file.parent for file in _list_exports(folder)] + packed:
        where = str(place.relative_to(folder)) if place != folder else place.name
        try:
            home = unpack_zip(place) if place.is_file() else place
            yield _read_export(home, where)
        except ValueError as error:
            yield Problem(where, str(error).rstrip("."))


def _read_export(home: Path, where: str) -> Example:
    conversation = load_conversation(home)
    raw = {turn["id"]: turn for turn in json.loads((home / "conversation.json").read_text(encoding="utf-8"))["turns"]}
    lines = []
    for turn in conversation.path():
        parts: list[str | Picture] = []
        for part, entry in zip(turn.parts, raw[turn.id]["parts"], strict=True):
            parts.append(part.text if isinstance(part, Text) else Picture(resolve_file(home / "images", entry["file"]), part.alt))
        lines.append(Message(turn.role, tuple(parts)))
    return Example(where, tuple(lines))


def _is_export(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as packed:
            return "conversation.json" in packed.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def make_caption_example(caption: str, picture: Path, where: str) -> Example:
    """An example from a caption: the user asks with its words, the assistant repeats them and paints the picture."""
    words = caption.strip()
    return Example(where, (Message("user", (words,)), Message("assistant", (words + "\n", Picture(picture, words)))))


def _read_captions(folder: Path) -> Found:
    for picture in _list_pictures(folder):
        words = picture.with_suffix(".txt")
        if not words.is_file():
            yield picture
        elif not (said := words.read_text(encoding="utf-8", errors="replace").strip()):
            yield Problem(str(words.relative_to(folder)), "the caption is empty")
        else:
            yield make_caption_example(said, picture, str(picture.relative_to(folder)))


def _read_pairs(folder: Path) -> Found:
    """Read before/NAME and after/NAME, with the instruction in NAME.txt (in after/, before/ or beside them) or one instruction.txt."""
    afters = {file.stem: file for file in _list_pictures(folder / "after")}
    for before in _list_pictures(folder / "before"):
        where = f"before/{before.name}"
        if before.stem not in afters:
            yield Problem(where, "there is no picture of this name in the folder after")
            continue
        places = [folder / "after" / f"{before.stem}.txt", folder / "before" / f"{before.stem}.txt", folder / f"{before.stem}.txt"]
        file = next((place for place in [*places, folder / "instruction.txt"] if place.is_file()), None)
        asked = file.read_text(encoding="utf-8", errors="replace").strip() if file else ""
        if not asked:
            yield Problem(where, f"nobody says what changes; write it into after/{before.stem}.txt")
            continue
        answer = Message("assistant", (CHANGED, Picture(afters[before.stem], asked)))
        yield Example(where, (Message("user", (Picture(before), asked)), answer))


def _find_llava_file(folder: Path) -> Path | None:
    for file in sorted(folder.glob("*.json")):
        said = file.read_text(encoding="utf-8", errors="replace")
        if said.lstrip().startswith("[") and '"conversations"' in said:
            return file
    return None


def _read_llava(folder: Path) -> Found:
    file = _find_llava_file(folder)
    if file is None:
        return
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        yield Problem(file.name, f"it is not JSON ({error})")
        return
    for number, row in enumerate(rows, 1):
        where = f"{file.name} entry {number}"
        try:
            images = row.get("image", row.get("images", []))
            files = iter([resolve_file(folder, name) for name in ([images] if isinstance(images, str) else images)])
            yield Example(where, tuple(_parse_llava_line(turn, files) for turn in row["conversations"] if turn["from"] != "system"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield Problem(where, f"it is no LLaVA conversation ({error})")


def _parse_llava_line(turn: dict[str, str], files: Iterator[Path]) -> Message:
    roles = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    parts: list[str | Picture] = []
    for index, words in enumerate(turn["value"].split("<image>")):
        if index:
            picture = next(files, None)
            if picture is None:
                raise ValueError("it names more pictures than it has")
            parts.append(Picture(picture))
        words = words.strip("\n") if turn["from"] in ("human", "user") else words
        parts += [words] if words else []
    return Message(roles[turn["from"]], tuple(parts))


def _has_dataset(folder: Path) -> bool:
    return any(folder.rglob("*.parquet")) or (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def _read_table(folder: Path) -> Found:
    """Read Parquet files or a folder of `Dataset.save_to_disk`: pictures with words, or conversations with pictures."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            parts = list(loaded.values()) if isinstance(loaded, datasets.DatasetDict) else [loaded]
        else:
            parts = [datasets.Dataset.from_parquet([str(file) for file in sorted(folder.rglob("*.parquet"))], keep_in_memory=True)]
    except Exception as error:  # the library raises whatever its readers raise
        raise ValueError(f"The dataset in {folder} cannot be read ({' '.join(str(error).split())[:160]}).") from error
    images = data_home() / "finetune" / "unpacked" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    number = 0
    for part in parts:
        for name, feature in part.features.items():
            if isinstance(feature, datasets.Image):
                part = part.cast_column(name, datasets.Image(decode=False))
        for row in part:
            number += 1
            try:
                yield _parse_row(row, f"row {number}", images, folder)
            except (ValueError, KeyError, TypeError) as error:
                yield Problem(f"row {number}", str(error))


def _parse_row(row: dict[str, Any], where: str, images: Path, folder: Path) -> Example:
    talk = next((row[name] for name in ("turns", "messages", "conversations") if row.get(name)), None)
    found = [value for value in row.values() if isinstance(value, dict) and ("bytes" in value or "path" in value)]
    many = next((value for name, value in row.items() if name == "images" and isinstance(value, list)), [])
    files = [_save_picture(value, images, folder) for value in found or many]
    if talk is None:
        words = next((row[name] for name in ("text", "caption", "prompt", "description") if isinstance(row.get(name), str)), "").strip()
        if not files or not words:
            raise ValueError("it has neither a picture with words nor a conversation; name the columns image and text, or messages")
        return make_caption_example(words, files[0], where)
    if "from" in talk[0]:
        return Example(where, tuple(_parse_llava_line(turn, iter(files)) for turn in talk if turn["from"] != "system"))
    waiting = iter(files)
    lines = []
    for turn in talk:
        raw = dict(turn)
        if isinstance(raw.get("content"), list):
            raw["content"] = [_attach_file(part, waiting) for part in raw["content"]]
        lines += parse_example({"turns": [raw]}, where, images).lines
    return Example(where, tuple(lines))


def _attach_file(part: object, waiting: Iterator[Path]) -> object:
    if isinstance(part, dict) and part.get("type") == "image":
        picture = next(waiting, None)
        if picture is None:
            raise ValueError("it names more pictures than it has")
        return {"type": "image", "file": picture.name}
    return part


def _save_picture(value: dict[str, Any], images: Path, folder: Path) -> Path:
    """Write a picture of a table to a file. Returns the file."""
    data = value.get("bytes")
    if data is None:
        data = resolve_file(folder, str(value["path"])).read_bytes()
    file = images / f"{hashlib.sha256(data).hexdigest()[:24]}.png"
    if not file.exists():
        images.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return file


READERS: list[tuple[str, Callable[[Path], object], Callable[[Path], Found]]] = [
    ("conversations", lambda folder: (folder / CONVERSATIONS).is_file(), _read_conversations),
    ("exported conversations", lambda folder: _list_exports(folder) or any(map(_is_export, folder.rglob("*.zip"))), _read_exports),
    ("pictures before and after", lambda folder: (folder / "before").is_dir() and (folder / "after").is_dir(), _read_pairs),
    ("a Hugging Face dataset", _has_dataset, _read_table),
    ("LLaVA conversations", _find_llava_file, _read_llava),
    ("pictures with captions", _list_pictures, _read_captions),
]
