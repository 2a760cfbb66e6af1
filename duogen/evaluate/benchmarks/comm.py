"""CoMM (Chen et al. 2024), task 4: an illustrated guide for a title. The guide itself is the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, read_json, read_json_lines


def read(folder: Path) -> Iterator[Task]:
    file = find_file(folder, "test.jsonl", "test.json", "test_data.json")
    for raw in read_json_lines(file) if file.suffix == ".jsonl" else read_json(file):
        steps = [" ".join(each["content"].strip() for each in step if each["type"] == "text") for step in raw["step_info"]]
        asked = f"Can you generate step-by-step instructions with images about {raw['title']}?"
        pictures = sum(each["type"] == "image" for step in raw["step_info"] for each in step)
        about = {"reference": "\n".join(steps), "pictures": pictures}
        yield Task(str(raw["data_id"]), (asked,), raw.get("dataset_type", ""), about)


def relevance(scores: Mapping[str, float]) -> float:
    """What DuoGen publishes for CoMM is how well the pictures illustrate the words."""
    return scores["relevance"]


PICTURES = ("style_consistency", "entity_consistency", "trend_consistency", "image_quality", "relevance")
RUBRIC = Rubric("judge-comm", (*PICTURES[:3], "completeness", *PICTURES[3:]), 10.0, PICTURES, relevance)
BENCHMARK = Benchmark("comm", "interleaved", read, RUBRIC, hub="huggingface.co/datasets/weisuxi/CoMM", files=("*.json*", "*.zip"))
