"""GEdit-Bench (Liu et al. 2025): a picture changed as a user's own words say; the English half."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, find_picture, load_dataset_rows, read_json_lines

if TYPE_CHECKING:
    from datasets import Dataset


def read(folder: Path) -> Iterator[Task]:
    """Read Parquet, a folder that `datasets` saved, or JSON lines with pictures beside them."""
    found = load_dataset_rows(folder, "train")
    rows = read_json_lines(find_file(folder, "gedit.jsonl", "metadata.jsonl")) if found is None else _write_pictures(folder, found)
    for raw in rows:
        if raw.get("instruction_language", "en") == "en":
            name = raw.get("input_image") or raw["file_name"]
            picture = name if isinstance(name, Path) else find_picture(folder, name)
            yield Task(str(raw["key"]), (picture, raw["instruction"]), raw["task_type"])


def _write_pictures(folder: Path, rows: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset. Their pictures are written beside it once."""
    raw: Any
    for raw in rows:
        file = folder / "pictures" / f"{raw['key']}.png"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            raw["input_image"].convert("RGB").save(file)
        yield {**raw, "input_image": file}


def vie_score(scores: Mapping[str, float]) -> float:
    """VIEScore: the worse of each pair, and their geometric mean."""
    return math.sqrt(min(scores["success"], scores["overediting"]) * min(scores["naturalness"], scores["artifacts"]))


RUBRIC = Rubric("judge-viescore", ("success", "overediting", "naturalness", "artifacts"), 10.0, overall=vie_score)
BENCHMARK = Benchmark("gedit", "edit", read, RUBRIC, hub="huggingface.co/datasets/stepfun-ai/GEdit-Bench")
