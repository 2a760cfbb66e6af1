"""OpenING (Zhou et al. 2024): answers in words and pictures to everyday requests, scored on its authors' seven questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, parse_parts, read_json_lines


def read(folder: Path) -> Iterator[Task]:
    for raw in read_json_lines(find_file(folder, "test_data.jsonl", "data.jsonl")):
        asked, answered = raw["conversations"][0]["input"], raw["conversations"][1]["output"]
        about = {
            "reference": "\n".join(each.get("text") or "" for each in answered),
            "pictures": sum(bool(a.get("image")) for a in answered),
        }
        yield Task(str(raw["total_uid"]), parse_parts(folder, asked), str(raw.get("meta_task_name", raw.get("task_uid", ""))), about)


RUBRIC = Rubric(
    "judge-opening",
    (
        "correctness", "image_text_coherency", "multi_step_consistency", "content_quality", "human_preference_alignment", "completeness",
        "content_richness",
    ),
    10.0,
    about_pictures=("image_text_coherency",),
)  # fmt: skip
BENCHMARK = Benchmark("opening", "interleaved", read, RUBRIC, hub="github.com/LanceZPF/OpenING")
