"""Write the report of a run as a web page: the funnel, histograms and sample dialogues."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markdown_it import MarkdownIt

from duogen.data_engine.sample import ASSETS
from duogen.data_engine.state import STEPS, Row, State
from duogen.files import write_beside

REPORT, FUNNEL = "report.html", "funnel.json"
CHARTS = ("pictures in a dialogue", "words in a dialogue", "kind of picture", "kind of page", "turns of the user", "pictures moved",
          "worded by", "lost")  # fmt: skip
MISSING = "pictures not found"
MOST_NAMED = 1000  # pages that could not be read, and as many files that were passed over
TITLES = {"lost": "What kept pages lost on the way"}


@dataclass(frozen=True)
class FunnelStep:
    """One step of the funnel. `reasons` are the commonest ones with their numbers of pages."""

    name: str
    entered: int
    dropped: int
    reasons: list[tuple[str, int]]

    @property
    def left(self) -> int:
        return self.entered - self.dropped


def funnel(state: State) -> list[FunnelStep]:
    """The funnel: every step in order, including those that dropped nothing."""
    dropped, entered, found = state.count_dropped(), state.count_pages(), []
    for name in STEPS:
        reasons = dropped.get(name, {})
        found.append(FunnelStep(name, entered, sum(reasons.values()), list(reasons.items())[:6]))
        entered = found[-1].left
    return found


def write_report(state: State, samples: int = 50) -> Path:
    """Write report.html and funnel.json into the folder of the run. Returns the path of the page."""
    steps = funnel(state)
    charts = {name: state.counts(name) for name in CHARTS}
    asked, files = state.get_fact("asked", {}), state.get_fact("files", {})
    unread = _list_unread(state, files)
    raw = {"asked": asked, "seconds": state.get_fact("seconds"), "pages": state.count_pages(), "dialogues": state.count_pages("kept"),
           "files": files | ({"found": _count_files(files)} if files else {}), "unread": unread,
           "funnel": [vars(step) | {"left": step.left} for step in steps], "counts": charts}  # fmt: skip
    write_beside(state.folder / FUNNEL, json.dumps(raw, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))
    overruled = {verdict: state.count_pages("verdict = ?", (verdict,)) for verdict in ("keep", "drop")}
    kept = f"{state.count_pages('kept'):,} of {state.count_pages():,} pages became dialogues."
    if any(overruled.values()):
        kept += f" A person brought {overruled['keep']:,} back and took {overruled['drop']:,} out."
    page = _template().render(
        title="The data engine's report", asked=describe_run(asked), funnel=steps, kept=kept, files=_describe_files(files), unread=unread,
        charts=[{"name": TITLES.get(name, name.capitalize()), "rows": _bar_rows(counts)} for name, counts in charts.items() if counts],
        samples=[_render_row(row) for row in state.sample_rows(samples)],
    )  # fmt: skip
    write_beside(state.folder / REPORT, page.encode("utf-8", "backslashreplace"))  # the name of the folder may be no UTF-8
    return state.folder / REPORT


def _count_files(files: dict[str, Any]) -> int:
    return sum(files.get(name, 0) for name in ("pages", "pictures", "assets", "passed"))


def _describe_files(files: dict[str, Any]) -> str:
    """What became of the files of the folder in one sentence, "" for a run that counted none."""
    if not files:
        return ""
    said = f"{files['pages']:,} hold pages, {files['pictures']:,} are pictures, {files['assets']:,} are styles, scripts and media"
    return f"{_count_files(files):,} files were found: {said}, and {files['passed']:,} were passed over."


def _list_unread(state: State, files: dict[str, Any]) -> list[tuple[str, str]]:
    """The files and pages that were not read, and why: at most `MOST_NAMED` of each."""
    pages = [(f"{file}, {member}" if member else file, why) for file, member, why in state.unreadable(MOST_NAMED)]
    return pages + list(files.get("reasons", {}).items())[:MOST_NAMED]


def describe_run(asked: dict[str, Any]) -> str:
    """The settings of a run in one sentence."""
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.get("options", {}).items() if value not in ("", None))
    return f"Pages of {asked.get('root', '?')}; {options}; worded by {asked.get('model') or 'rules'}."


@lru_cache(maxsize=1)
def _template() -> Template:
    return Environment(autoescape=True).from_string((ASSETS / "report.html").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _bar_rows(counts: dict[str, int]) -> list[tuple[str, int, int]]:
    rows = list(counts.items())
    if all(name[:1].isdigit() for name, _ in rows):
        rows.sort(key=lambda each: int("".join(letter for letter in each[0].split("-")[0].split(" ")[0].rstrip(",") if letter.isdigit())))
    most = max(counts.values())
    return [(name, count, round(100 * count / most)) for name, count in rows[:12]]


def _render_row(row: Row) -> dict[str, Any]:
    raw = (row.record or {"turns": []})["turns"]
    turns = [{"role": turn["role"], "parts": [_render_part(part) for part in turn["parts"]]} for turn in raw]
    source = row.about.get("source", {})
    said = [source.get("file", row.file), source.get("author", ""), source.get("licence", "")]
    where = " · ".join(each for each in said if each)
    return {"id": row.id, "title": row.title, "source": where, "turns": turns, "lost": row.about["lost"]}


def _render_part(part: dict[str, Any]) -> dict[str, str]:
    if part["type"] == "image":
        return {"image": part["file"], "alt": part["alt"], "kind": part.get("kind", "")}
    return {"html": _markdown().render(part["text"])}
