"""WISE (Niu et al. 2025): pictures of prompts that take knowledge of the world to understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, read_json


def read(folder: Path) -> Iterator[Task]:
    for name in ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json"):
        for raw in read_json(find_file(folder, name)):
            about = {"explanation": raw["Explanation"], "subcategory": raw.get("Subcategory", "")}
            yield Task(str(raw["prompt_id"]), (raw["Prompt"],), raw["Category"], about)


def wi_score(scores: Mapping[str, float]) -> float:
    return (0.7 * scores["consistency"] + 0.2 * scores["realism"] + 0.1 * scores["aesthetic"]) / 2


RUBRIC = Rubric("judge-wise", ("consistency", "realism", "aesthetic"), 2.0, overall=wi_score)
BENCHMARK = Benchmark("wise", "picture", read, RUBRIC, hub="github.com/PKU-YuanGroup/WISE")
