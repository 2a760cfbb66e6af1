"""One benchmark, whole: answers made once and stored, scored apart from that, figures with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen.conversation import open_picture, write_beside
from duogen.evaluate.figures import Figure, mean, share
from duogen.evaluate.geneval import Detector, right
from duogen.evaluate.judge import judge
from duogen.evaluate.stored import add_score, scores, stored
from duogen.evaluate.tasks import ASSETS, Benchmark, Task
from duogen.vision_qa import Reader

RESULTS = "results.json"
NO_PICTURE = "there is no picture in the answer"
Say = Callable[[str], None]
CAUTION = "Scores by another judge than the published ones are not comparable with published figures."


@dataclass(frozen=True)
class Scorer:
    """Who scores: a detector for GenEval, else a judge."""

    detector: Detector | None = None
    reader: Reader | None = None

    @property
    def name(self) -> str:
        if self.detector is not None:
            return f"{self.detector.name}, colours by rules"
        return f"{self.reader.name} {self.reader.version}"


def score_all(benchmark: Benchmark, tasks: list[Task], root: Path, scorer: Scorer, say: Say = print) -> dict[str, Any]:
    """Score every stored answer that this judge has not scored, and write results.json.

    Raises:
        ValueError: there are no answers, or the scorer is not of the kind that the benchmark needs.
    """
    needs = scorer.detector if benchmark.kind == "detected" else scorer.reader
    if needs is None:
        raise ValueError(f"{benchmark.name} is scored by a {'detector' if benchmark.kind == 'detected' else 'judge'}; name one.")
    done = scores(root, scorer.name)
    rows = []
    for task in tasks:
        answer = stored(root, task.id)
        if answer is None:
            continue
        if task.id not in done:
            done[task.id] = {"id": task.id, "group": task.group, "judge": scorer.name} | _scored(benchmark, task, answer, scorer)
            add_score(root, done[task.id])
        rows.append(done[task.id])
    if not rows:
        raise ValueError(f"There are no answers in {root}; make them first, without --score-only.")
    results = summary(benchmark, rows, len(tasks), scorer.name)
    write_beside(root / RESULTS, json.dumps(results, ensure_ascii=False, indent=1).encode())
    for line in table(results):
        say(line)
    return results


def _scored(benchmark: Benchmark, task: Task, answer: list[str | Path], scorer: Scorer) -> dict[str, Any]:
    if benchmark.kind != "detected":
        said = judge(benchmark, task, answer, scorer.reader)
        return {"scores": said.scores, "failed": said.failed} | ({"raw": said.raw} if said.failed else {})
    pictures = [part for part in answer if isinstance(part, Path)]
    if not pictures:
        return {"scores": {"score": 0.0}, "failed": NO_PICTURE}
    good, why = right(task.about, task.group, open_picture(pictures[-1]), scorer.detector)
    return {"scores": {"score": float(good)}, "failed": why}


def summary(benchmark: Benchmark, rows: list[dict[str, Any]], asked: int, judged_by: str) -> dict[str, Any]:
    """Figures ready for JSON, each {"value", "low", "high", "n"} with its 95 % interval."""
    read = [row for row in rows if row["scores"]]
    names = sorted({name for row in read for name in row["scores"]}, key=lambda name: (name != "score", name))
    groups = list(dict.fromkeys(row["group"] for row in read))
    figure = _share if benchmark.kind == "detected" else _mean
    by_group = {group: figure(row["scores"]["score"] for row in read if row["group"] == group) for group in groups}
    whole = figure(row["scores"]["score"] for row in read)
    if benchmark.kind == "detected" and by_group:  # the official figure is the mean over the six kinds of prompt
        value = sum(each.value for each in by_group.values()) / len(by_group)
        reach = (sum(((each.high - each.low) / 2) ** 2 for each in by_group.values()) ** 0.5) / len(by_group)
        whole = Figure(value, max(0.0, value - reach), min(1.0, value + reach), len(read))
    return {
        "benchmark": benchmark.name,
        "judge": judged_by,
        "caution": CAUTION,
        "tasks": asked,
        "answered": len(rows),
        "unreadable": len(rows) - len(read),
        "without_picture": sum(row["failed"] == NO_PICTURE for row in rows),
        "score": whole.data(),
        "scores": {name: figure(row["scores"][name] for row in read if name in row["scores"]).data() for name in names},
        "groups": {group: each.data() for group, each in by_group.items()},
        "published": published(benchmark.name),
    }


def _share(values: Any) -> Figure:
    return share(bool(value) for value in values)


def _mean(values: Any) -> Figure:
    return mean(values)


def published(name: str) -> list[dict[str, Any]]:
    """What others published for a benchmark, with source and judge."""
    systems = json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))["systems"]
    return [{"name": s["name"], "source": s["source"], **s["figures"][name]} for s in systems if name in s["figures"]]


def table(results: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{results['benchmark']}: {results['answered']} of {results['tasks']} answered, judged by {results['judge']}"]
    if results["unreadable"]:
        lines.append(f"{results['unreadable']} answers of the judge could not be read and count in no figure")
    if results["without_picture"]:
        lines.append(f"without a picture, which counts as wrong: {results['without_picture']} of {results['answered']}")
    rows = {"score": results["score"], **{f"  {name or 'all'}": each for name, each in results["groups"].items()}}
    rows |= {f"  {name}": each for name, each in results["scores"].items() if name != "score"}
    lines += [f"{name:32} {Figure(**each).words(percent=False)}" for name, each in rows.items()]
    lines += [
        f"{'published: ' + each['name']:32} {each['value']:6.2f}  ({each['judge']}; {each['source']})" for each in results["published"]
    ]
    return [*lines, results["caution"]]
