"""InterleavedBench (Liu et al. 2024): answers in words and pictures, scored on its authors' five questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, find_picture, read_json


def read(folder: Path) -> Iterator[Task]:
    for number, raw in enumerate(read_json(find_file(folder, "interleaved_bench.json"))):
        asked = next(each["value"] for each in raw["conversations"] if each["from"] == "human")
        pictures = iter(raw.get("image") or [])
        parts: list[str | Path] = []
        for at, piece in enumerate(asked.replace("<BEGIN>", "").split("<image>")):
            name = next(pictures, None) if at else None
            parts += [find_picture(folder, name)] if name else []
            parts += [piece.strip(" .\n")] if piece.strip(" .\n") else []
        reference = " ".join(each["value"] for each in raw["conversations"] if each["from"] != "human")
        yield Task(str(raw.get("id", number)), tuple(parts), raw["task_name"], {"reference": reference})


RUBRIC = Rubric(
    "judge-interleaved",
    ("text_quality", "perceptual_quality", "image_coherence", "text_image_coherence", "helpfulness"),
    5.0,
    about_pictures=("perceptual_quality", "image_coherence", "text_image_coherence"),
)
BENCHMARK = Benchmark("interleavedbench", "interleaved", read, RUBRIC, hub="huggingface.co/mqliu/InterleavedBench")
