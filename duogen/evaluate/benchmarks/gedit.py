"""GEdit-Bench (Liu et al. 2025): a picture changed as a user's own words say; the English half."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, find_picture, read_json_lines


def read(folder: Path) -> Iterator[Task]:
    """Read Parquet, a folder that `datasets` saved, or JSON lines with pictures beside them."""
    saved = (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()
    if saved or any(folder.rglob("*.parquet")):
        rows = _read_dataset_rows(folder, saved)
    else:
        rows = read_json_lines(find_file(folder, "gedit.jsonl", "metadata.jsonl"))
    for raw in rows:
        if raw.get("instruction_language", "en") == "en":
            name = raw.get("input_image") or raw["file_name"]
            picture = name if isinstance(name, Path) else find_picture(folder, name)
            yield Task(str(raw["key"]), (picture, raw["instruction"]), raw["task_type"])


def _read_dataset_rows(folder: Path, saved: bool) -> Iterator[dict[str, Any]]:
    """The rows of a dataset, `saved` to disk or as Parquet. Their pictures are written beside it once."""
    from datasets import Dataset, DatasetDict, load_from_disk

    if saved:
        found = load_from_disk(str(folder))
    else:
        files: list[Any] = sorted(map(str, folder.rglob("*.parquet")))
        found = Dataset.from_parquet(files, cache_dir=str(folder / ".rows"))
    rows: Iterable[dict[str, Any]] = found["train"] if isinstance(found, DatasetDict) else found
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
