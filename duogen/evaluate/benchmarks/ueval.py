"""UEval (Li et al. 2026): how-to and textbook questions answered in words and pictures, scored on criteria of each question.

The layout is that of huggingface.co/datasets/zlab-princeton/UEval: a Parquet file of `id`, `task`, `prompt`, `text_rubrics` and
`image_rubrics` (a sentence for each criterion), `text_ref` and `image_ref`. Its first version has `task_type` and rubrics with a
`criterion`; that is read too. The references made the criteria and are not shown to the judge.

The judge says of one criterion at a time whether it is met, as in the authors' script (`ueval_eval.py`): of words from the words alone, of
pictures from the pictures, with the words in the four open tasks and without them in the four closed ones. "Not sure" is not met. The
wording of the prompts is ours. The script gives a rate for words and one for pictures; that the figure of an answer is the mean of both is
not stated there. The whole figure is the mean of the eight tasks, as in the authors' table, which goes to 100 where this goes to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, find_file, load_dataset_rows, read_json, read_json_lines

WORDS, OPEN, CLOSED = "judge-criterion-words", "judge-criterion-open", "judge-criterion-closed"
CLOSED_TASKS = ("space", "textbook", "diagram", "paper")


def read(folder: Path) -> Iterator[Task]:
    for raw in _load_rows(folder):
        group = str(raw["task"] if "task" in raw else raw["task_type"]).strip().lower()
        asked = {"text": WORDS, "image": CLOSED if group in CLOSED_TASKS else OPEN}
        criteria = [
            {"about": about, "ask": rubric if isinstance(rubric, str) else rubric["criterion"], "prompt": prompt}
            for about, prompt in asked.items()
            for rubric in raw[f"{about}_rubrics"] or []
        ]
        if not criteria:
            raise KeyError("text_rubrics")
        yield Task(str(raw["id"]), (raw["prompt"],), group, {"criteria": criteria, "reference": raw.get("text_ref") or ""})


def _load_rows(folder: Path) -> Iterable[dict[str, Any]]:
    """The questions of Parquet, of a folder that `datasets` saved, or of JSON; without the reference pictures, which nothing needs."""
    rows: Any = load_dataset_rows(folder, "test")
    if rows is not None:
        return rows.remove_columns([name for name in ("image_ref",) if name in rows.column_names])
    file = find_file(folder, "test-*.parquet", "test.jsonl", "test.json")
    return read_json_lines(file) if file.suffix == ".jsonl" else read_json(file)


RUBRIC = Rubric(WORDS, ("criteria_met",), 1.0, more_prompts=(OPEN, CLOSED))
BENCHMARK = Benchmark("ueval", "criteria", read, RUBRIC, hub="huggingface.co/datasets/zlab-princeton/UEval", files=("*.parquet",))
