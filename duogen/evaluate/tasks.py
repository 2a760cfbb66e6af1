"""What a benchmark is, and what is common in reading their tasks. Each has a file of its own in `duogen/evaluate/benchmarks/`."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from duogen import paths
from duogen.evaluate.fetch import fetch_benchmark
from duogen.evaluate.rubric import Rubric
from duogen.picture_input import open_picture

if TYPE_CHECKING:
    from datasets import Dataset

    from duogen.evaluate.detector import Detector

ASSETS = paths.ASSETS / "benchmarks"
MARK = re.compile(r"<image>|<BEGIN>", re.I)


@dataclass(frozen=True)
class Task:
    """One request of a benchmark.

    Attributes:
        parts: the user's message: words and picture files, in order.
        group: the group in the benchmark's tables.
        about: what scoring needs: questions, a reference answer, required objects.
    """

    id: str
    parts: tuple[str | Path, ...]
    group: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))

    def pictures(self) -> list[Path]:
        return [part for part in self.parts if isinstance(part, Path)]


Check = Callable[[Task, PILImage.Image, "Detector"], tuple[bool, str]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        kind: how an answer is judged: "detected", "picture", "questions" (about a picture), "edit", "interleaved" or
            "criteria" (of words and of pictures, each met or not).
        read: reads the tasks from the folder that its authors publish.
        rubric: what a judge is asked, for all kinds but "detected".
        check: for "detected", whether a picture fits its task, and what is wrong with it in words.
        hub: where its authors publish it.
        files: patterns of the needed files; all files where empty.
        ships: whether its prompts are in this repository.
    """

    name: str
    kind: str
    read: Callable[[Path], Iterator[Task]]
    rubric: Rubric | None = None
    check: Check | None = None
    hub: str = ""
    files: tuple[str, ...] = ()
    ships: bool = False

    @property
    def most_pictures(self) -> int:
        """The most pictures of one answer."""
        return 8 if self.kind in ("interleaved", "criteria") else 1

    def check_prompt(self) -> None:
        """Check what the judge will be asked, so that hours of answering are not in vain.

        Raises:
            ValueError: its prompt is missing or broken, or nothing scores it; one sentence.
        """
        if (self.rubric is None) == (self.check is None):
            raise ValueError(f"The benchmark {self.name} must have either a rubric for a judge or a check for a detector.")
        if self.rubric is not None:
            self.rubric.check(self.kind)


def load_tasks(benchmark: Benchmark, folder: Path | None, limit: int | None = None) -> list[Task]:
    """Load the tasks of a benchmark; with `limit`, that many spread evenly. Without a folder, use what ships or fetch it from the hub.

    Raises:
        ValueError: the benchmark cannot be fetched, or the folder has another layout.
    """
    if folder is None or (not folder.exists() and benchmark.hub.endswith(f"/datasets/{folder}")):
        ships = ASSETS / benchmark.name
        folder = ships if benchmark.ships else fetch_benchmark(benchmark.name, benchmark.hub, benchmark.files)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; name the one that holds {benchmark.name}.")
    try:
        found = list(benchmark.read(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not laid out as {benchmark.name} is: it lacks {Path(str(error.filename)).name}.") from error
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not laid out as {benchmark.name} is ({type(error).__name__}: {error}).") from error
    if not found:
        raise ValueError(f"{folder} holds no task of {benchmark.name}.")
    found = _make_ids_unique(found)
    if limit is not None and limit < len(found):
        found = [found[at * len(found) // limit] for at in range(limit)]
    return found


def _make_ids_unique(tasks: list[Task]) -> list[Task]:
    """Number ids that occur twice (ISG-Bench repeats them in its categories), so every task has its own answer."""
    seen: dict[str, int] = {}
    found = []
    for task in tasks:
        seen[task.id] = seen.get(task.id, 0) + 1
        found.append(task if seen[task.id] == 1 else replace(task, id=f"{task.id}-{seen[task.id]}"))
    return found


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def load_dataset_rows(folder: Path, split: str) -> Dataset | None:
    """The rows of a dataset that `datasets` saved, or of Parquet files; `None` where the folder holds neither."""
    saved = (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()
    files: list[Any] = sorted(map(str, folder.rglob("*.parquet")))
    if not saved and not files:
        return None
    from datasets import Dataset, DatasetDict, load_from_disk

    found = load_from_disk(str(folder)) if saved else Dataset.from_parquet(files, cache_dir=str(folder / ".rows"))
    return found[split] if isinstance(found, DatasetDict) else found


def find_file(folder: Path, *names: str) -> Path:
    """Find the first of these file names that exists, anywhere in the folder."""
    for name in names:
        if (folder / name).exists():
            return folder / name
        found = sorted(folder.rglob(name))
        if found:
            return found[0]
    raise FileNotFoundError(2, "missing", names[0])


def find_picture(folder: Path, name: str) -> Path:
    """Find a picture of the benchmark by its name.

    Raises:
        FileNotFoundError: it is not in the folder.
    """
    inside = folder.resolve()
    for base in ("", "images", "zipped_images", "Benchmark", "singleturn", "Benchmark/singleturn", "ISG_eval"):
        file = (folder / base / name).resolve()
        if not file.is_relative_to(inside):
            continue
        if file.is_file():
            return file
        # ISG-Bench writes a.JPG and has a.jpg.
        if (alike := [each for each in file.parent.glob(f"{glob.escape(file.stem)}.*") if each.is_file()]) and len(alike) == 1:
            return alike[0]
    raise FileNotFoundError(2, "missing", name)


def parse_parts(folder: Path, said: list[dict[str, Any]]) -> tuple[str | Path, ...]:
    """Turn a list of {"text", "image"} (OpenING, MMIE) into parts."""
    parts: list[str | Path] = []
    for each in said:
        text = MARK.sub(" ", each.get("text") or "").strip()
        parts += [text] if text else []
        parts += [find_picture(folder, each["image"])] if each.get("image") else []
    return tuple(parts)


def check_pictures(tasks: list[Task]) -> None:
    """Open every picture of the tasks, so a damaged one is found before hours of answering.

    Raises:
        ValueError: a picture is damaged.
    """
    for task in tasks:
        for file in task.pictures():
            open_picture(file)
