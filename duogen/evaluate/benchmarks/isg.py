"""ISG-Bench (Chen et al. 2024): answers in words and pictures, in the order that the request asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from duogen.evaluate.rubric import FIVE_SCORES
from duogen.evaluate.tasks import Benchmark, Task, find_file, find_picture, read_json_lines


def read(folder: Path) -> Iterator[Task]:
    for raw in read_json_lines(find_file(folder, "ISG-Bench.jsonl")):
        parts = tuple(each["content"] if each["type"] == "text" else find_picture(folder, each["content"]) for each in raw["Query"])
        golden = raw.get("Golden") or []
        about = {
            "structure": [each["type"] for each in golden],
            "reference": "\n".join(each["content"] for each in golden if each["type"] == "text"),
            "questions": _parse_questions(raw.get("predict") or {}),
        }
        yield Task(str(raw["id"]), parts, str(raw.get("Category", "")), about)


def _parse_questions(predict: dict[str, Any]) -> list[dict[str, Any]]:
    """Questions about one picture each. `after` names the questions that must be answered yes before."""
    found = predict.get("image_qa") or []
    rows = found if isinstance(found, list) else next(iter(found.values()), [])
    return [{"id": row["id"], "ask": row["Question"], "after": row.get("Preliminary", []), "image": row["image"]} for row in rows]


BENCHMARK = Benchmark("isg", "interleaved", read, FIVE_SCORES, hub="huggingface.co/datasets/shuaishuaicdp/ISG-Bench")
