"""DPG-Bench (Hu et al. 2024): pictures of long prompts, judged by questions of yes or no."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, read_json_lines


def read(folder: Path) -> Iterator[Task]:
    """The questions come from `dpg_bench.csv` where it exists; else each sentence of the prompt becomes one."""
    questions: dict[str, list[dict[str, Any]]] = {}
    if (folder / "dpg_bench.csv").exists():
        with (folder / "dpg_bench.csv").open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                after = [number for number in row["dependency"].replace(",", " ").split() if number != "0"]
                entry = {"id": row["proposition_id"], "ask": row["question_natural_language"], "after": after}
                questions.setdefault(row["item_id"], []).append(entry | {"group": row.get("category_broad", "")})
    for raw in read_json_lines(folder / "prompts.jsonl"):
        id, prompt = str(raw["id"]), raw["prompt"]
        cut = [each for each in re.split(r"(?<=[.!?])\s+", prompt.strip()) if each]
        plain = [{"id": str(at), "ask": f"Does the picture show this: {each}", "after": []} for at, each in enumerate(cut, 1)]
        yield Task(id, (prompt,), "", {"questions": questions.get(id, plain), "published_questions": id in questions})


RUBRIC = Rubric("judge-question", ("answer",), 1.0)
BENCHMARK = Benchmark("dpg", "questions", read, RUBRIC, hub="github.com/TencentQQGYLab/ELLA", ships=True)
