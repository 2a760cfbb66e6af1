"""ImgEdit (Ye et al. 2025): a picture changed as one instruction says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, find_picture, read_json


def read(folder: Path) -> Iterator[Task]:
    for id, raw in read_json(find_file(folder, "basic_edit.json", "singleturn.json")).items():
        yield Task(str(id), (find_picture(folder, raw["id"]), raw["prompt"]), raw["edit_type"])


def edit_score(scores: Mapping[str, float]) -> float:
    """The mean, with no score above that of compliance."""
    return sum(min(scores["compliance"], value) for value in scores.values()) / len(scores)


RUBRIC = Rubric("judge-edit", ("compliance", "naturalness", "integrity"), 5.0, overall=edit_score)
BENCHMARK = Benchmark("imgedit", "edit", read, RUBRIC, hub="huggingface.co/datasets/sysuyy/ImgEdit", files=("Benchmark.tar",))
