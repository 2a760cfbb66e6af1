"""Two or more systems side by side: scores with intervals, win rates, and their answers next to each other, in one web page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt

from duogen.conversation import write_beside
from duogen.evaluate.benchmark import CAUTION, RESULTS, published
from duogen.evaluate.figures import Figure, mean
from duogen.evaluate.judge import prefers
from duogen.evaluate.stored import stored
from duogen.evaluate.tasks import ASSETS, Task
from duogen.vision_qa import Reader

SHOWN = 40


@dataclass(frozen=True)
class System:
    """A folder of answers, and what it is called."""

    name: str
    folder: Path

    def results(self) -> dict[str, Any]:
        """What scoring wrote; empty where it was not scored."""
        file = self.folder / RESULTS
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def win_rates(systems: list[System], tasks: list[Task], reader: Reader, say: Callable[[str], None] = print) -> dict[str, Any]:
    """How often the judge prefers each system to each other, ties as half; what it says once is kept beside the first one's answers."""
    found = {}
    for one, other in combinations(systems, 2):
        file = one.folder / f"against-{other.folder.name}-{reader.version}.json"
        votes: dict[str, float | None] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for task in tasks:
            answers = [stored(each.folder, task.id) for each in (one, other)]
            if task.id not in votes and None not in answers:
                votes[task.id] = prefers(task, answers[0], answers[1], reader)
                write_beside(file, json.dumps(votes, indent=1).encode())
        figure = mean(votes.values())
        say(f"{one.name} against {other.name}: {figure.words()}")
        found[f"{one.name} against {other.name}"] = figure.data()
    return found


def write_side_by_side(name: str, systems: list[System], tasks: list[Task], out: Path, rates: dict[str, Any], judged_by: str = "") -> Path:
    """Write the page; pictures are linked, not copied.

    Raises:
        ValueError: fewer than two systems.
    """
    if len(systems) < 2:
        raise ValueError("Two folders of answers are needed to compare.")
    results = {each.name: each.results() for each in systems}
    names = list(dict.fromkeys(score for each in results.values() for score in each.get("scores", {})))
    rows = [
        {"name": each, "judge": raw.get("judge", "not scored"), "figures": [_words(raw.get("scores", {}).get(score)) for score in names]}
        for each, raw in results.items()
    ]
    shown = []
    for task in tasks:
        answers = [stored(each.folder, task.id) for each in systems]
        if len(shown) < SHOWN and any(answers):
            shown.append({"id": task.id, "asked": _parts(task.parts), "answers": [_parts(answer or []) for answer in answers]})
    page = _template().render(
        name=name, caution=CAUTION, names=names, rows=rows, published=published(name), systems=[each.name for each in systems], shown=shown,
        rates={pair: Figure(**each).words() for pair, each in rates.items()}, judge=judged_by,
    )  # fmt: skip
    write_beside(out, page.encode())
    return out


def _words(figure: dict[str, Any] | None) -> str:
    return Figure(**figure).words(percent=False) if figure else "-"


def _parts(parts: Any) -> list[dict[str, str]]:
    return [{"html": _markdown().render(part)} if isinstance(part, str) else {"image": part.resolve().as_uri()} for part in parts]


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False})


@lru_cache(maxsize=1)
def _template() -> Any:
    return Environment(autoescape=True).from_string((ASSETS / "side-by-side.html").read_text(encoding="utf-8"))
