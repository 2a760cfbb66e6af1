"""The report of a run: the funnel, histograms, and dialogues by chance as a web page to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markdown_it import MarkdownIt

from duogen.conversation import write_beside
from duogen.data_engine.sample import ASSETS
from duogen.data_engine.state import STEPS, Row, State

REPORT, FUNNEL = "report.html", "funnel.json"
CHARTS = ("pictures in a dialogue", "words in a dialogue", "kind of picture", "kind of page", "turns of the user", "pictures moved",
          "worded by", "lost")  # fmt: skip
TITLES = {"lost": "What kept pages lost on the way"}


@dataclass(frozen=True)
class Step:
    """One step of the funnel; `reasons` are the commonest, with how many pages each."""

    name: str
    entered: int
    dropped: int
    reasons: list[tuple[str, int]]

    @property
    def left(self) -> int:
        return self.entered - self.dropped


def funnel(state: State) -> list[Step]:
    """Every step in order, also those that dropped nothing."""
    dropped, entered, found = state.dropped(), state.number(), []
    for name in STEPS:
        reasons = _together(dropped.get(name, {}))
        found.append(Step(name, entered, sum(reasons.values()), list(reasons.items())[:6]))
        entered = found[-1].left
    return found


def _together(reasons: dict[str, int]) -> dict[str, int]:
    """Reasons that differ in the page they name only, as one."""
    found: dict[str, int] = {}
    for why, count in reasons.items():
        plain = why.partition(" of page ")[0]
        found[plain] = found.get(plain, 0) + count
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def write_report(state: State, samples: int = 50) -> Path:
    """Write report.html and funnel.json into the folder of the run; returns the page's path."""
    steps = funnel(state)
    charts = {name: state.counts(name) for name in CHARTS}
    asked = state.told("asked", {})
    raw = {"asked": asked, "seconds": state.told("seconds"), "pages": state.number(), "dialogues": state.number("kept"),
           "funnel": [vars(step) | {"left": step.left} for step in steps], "counts": charts}  # fmt: skip
    write_beside(state.folder / FUNNEL, json.dumps(raw, ensure_ascii=False, indent=1).encode())
    overruled = {verdict: state.number("verdict = ?", (verdict,)) for verdict in ("keep", "drop")}
    kept = f"{state.number('kept'):,} of {state.number():,} pages became dialogues."
    if any(overruled.values()):
        kept += f" A person brought {overruled['keep']:,} back and took {overruled['drop']:,} out."
    page = _template().render(
        title="The data engine's report", asked=words_about(asked), funnel=steps, kept=kept,
        charts=[{"name": TITLES.get(name, name.capitalize()), "rows": _bars(counts)} for name, counts in charts.items() if counts],
        samples=[_shown(row) for row in state.sample(samples)],
    )  # fmt: skip
    write_beside(state.folder / REPORT, page.encode())
    return state.folder / REPORT


def words_about(asked: dict[str, Any]) -> str:
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.get("options", {}).items() if value not in ("", None))
    return f"Pages of {asked.get('root', '?')}; {options}; worded by {asked.get('model') or 'rules'}."


@lru_cache(maxsize=1)
def _template() -> Any:
    return Environment(autoescape=True).from_string((ASSETS / "report.html").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _bars(counts: dict[str, int]) -> list[tuple[str, int, int]]:
    rows = list(counts.items())
    if all(name[:1].isdigit() for name, _ in rows):
        rows.sort(key=lambda each: int("".join(letter for letter in each[0].split("-")[0].split(" ")[0].rstrip(",") if letter.isdigit())))
    most = max(counts.values())
    return [(name, count, round(100 * count / most)) for name, count in rows[:12]]


def _shown(row: Row) -> dict[str, Any]:
    turns = [{"role": turn["role"], "parts": [_part(part) for part in turn["parts"]]} for turn in (row.record or {"turns": []})["turns"]]
    source = row.about.get("source", {})
    said = [source.get("file", row.file), source.get("author", ""), source.get("licence", "")]
    where = " · ".join(each for each in said if each)
    return {"id": row.id, "title": row.title, "source": where, "turns": turns, "lost": row.about["lost"]}


def _part(part: dict[str, Any]) -> dict[str, str]:
    if part["type"] == "image":
        return {"image": part["file"], "alt": part["alt"], "kind": part.get("kind", "")}
    return {"html": _markdown().render(part["text"])}
