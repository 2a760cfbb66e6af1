"""MMIE (Xia et al. 2024): questions of many fields, answered in words and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from duogen.evaluate.rubric import FIVE_SCORES
from duogen.evaluate.tasks import Benchmark, Task, find_file, parse_parts, read_json


def read(folder: Path) -> Iterator[Task]:
    for raw in read_json(find_file(folder, "data.json", "overview.json")):
        reference = "\n".join(each.get("text") or "" for each in raw.get("gt_answer") or [])
        group = str(raw.get("category", raw.get("field", "")))
        yield Task(str(raw["id"]), parse_parts(folder, raw["question"]), group, {"reference": reference})


BENCHMARK = Benchmark("mmie", "interleaved", read, FIVE_SCORES, hub="huggingface.co/datasets/MMIE/MMIE")
