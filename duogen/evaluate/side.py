"""Compare systems on one web page: scores with intervals, win rates, and answers side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markdown_it import MarkdownIt

from duogen.evaluate.answer_files import load_answer
from duogen.evaluate.benchmark import CAUTION, RESULTS, published_figures
from duogen.evaluate.figures import Figure, mean
from duogen.evaluate.judge import compare_answers
from duogen.evaluate.tasks import ASSETS, Task
from duogen.files import write_beside
from duogen.vision_qa import VisionQA

MOST_TASKS = 40


@dataclass(frozen=True)
class System:
    """A system: its name and its folder of answers."""

    name: str
    folder: Path

    def read_results(self) -> dict[str, Any]:
        """The results that scoring wrote; empty for a system that was not scored."""
        file = self.folder / RESULTS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def compute_win_rates(systems: list[System], tasks: list[Task], vision_qa: VisionQA, log: Callable[[str], None] = print) -> dict[str, Any]:
    """How often the judge prefers each system to each other one; a tie counts half. Verdicts are stored beside the first one's answers."""
    found = {}
    for one, other in combinations(systems, 2):
        file = one.folder / f"against-{other.folder.name}-{vision_qa.version}.json"
        votes: dict[str, float | None] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for task in tasks:
            first, second = (load_answer(each.folder, task.id) for each in (one, other))
            if task.id not in votes and first is not None and second is not None:
                votes[task.id] = compare_answers(task, first, second, vision_qa)
                write_beside(file, json.dumps(votes, indent=1).encode())
        figure = mean(votes.values())
        log(f"{one.name} against {other.name}: {figure.format()}")
        found[f"{one.name} against {other.name}"] = figure.as_dict()
    return found


def write_side_by_side(name: str, systems: list[System], tasks: list[Task], out: Path, rates: dict[str, Any], judged_by: str = "") -> Path:
    """Write the page; pictures are linked, not copied.

    Raises:
        ValueError: fewer than two systems.
    """
    if len(systems) < 2:
        raise ValueError("Two folders of answers are needed to compare.")
    results = {each.name: each.read_results() for each in systems}
    names = list(dict.fromkeys(score for each in results.values() for score in each.get("scores", {})))
    rows = [
        {
            "name": each,
            "judge": raw.get("judge", "not scored"),
            "figures": [_format_figure(raw.get("scores", {}).get(score)) for score in names],
        }
        for each, raw in results.items()
    ]
    shown = []
    for task in tasks:
        answers = [load_answer(each.folder, task.id) for each in systems]
        if len(shown) < MOST_TASKS and any(answers):
            rendered = [_render_parts(answer or []) for answer in answers]
            shown.append({"id": task.id, "asked": _render_parts(task.parts), "answers": rendered})
    page = _template().render(
        name=name, caution=CAUTION, names=names, rows=rows, published=published_figures(name), shown=shown,
        systems=[each.name for each in systems],
        rates={pair: Figure(**each).format() for pair, each in rates.items()}, judge=judged_by,
    )  # fmt: skip
    write_beside(out, page.encode())
    return out


def _format_figure(figure: dict[str, Any] | None) -> str:
    return Figure(**figure).format(percent=False) if figure else "-"


def _render_parts(parts: Sequence[str | Path]) -> list[dict[str, str]]:
    return [{"html": _markdown().render(part)} if isinstance(part, str) else {"image": part.resolve().as_uri()} for part in parts]


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False})


@lru_cache(maxsize=1)
def _template() -> Template:
    return Environment(autoescape=True).from_string((ASSETS / "side-by-side.html").read_text(encoding="utf-8"))
