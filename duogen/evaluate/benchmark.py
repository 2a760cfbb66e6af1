"""Score the stored answers of one benchmark and summarise the figures with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from duogen.evaluate.answer_files import SCORES, add_score, check_frozen_prompts, load_answer, load_painting, load_scores
from duogen.evaluate.detector import Detector
from duogen.evaluate.figures import Figure, mean, mean_of_shares, share
from duogen.evaluate.judge import NO_PICTURE, judge_answer
from duogen.evaluate.rejudge import REJUDGED, agreement_lines, compare_verdicts, pick_rows
from duogen.evaluate.tasks import ASSETS, Benchmark, Check, Task
from duogen.files import write_beside
from duogen.picture_input import open_picture
from duogen.vision_qa import VisionQA

RESULTS = "results.json"
Log = Callable[[str], None]
Answer = Sequence[str | Path]
CAUTION = "Scores by another judge than the published ones are not comparable with published figures."


@dataclass(frozen=True)
class Scorer:
    """What scores the answers: a detector for GenEval, a judge for the other benchmarks.

    Attributes:
        rejudge: the share of the answers that is judged again; 0 for none.
        second: who judges again; the judge itself where it is `None`.
    """

    detector: Detector | None = None
    judge: VisionQA | None = None
    rejudge: float = 0.0
    second: VisionQA | None = None

    @property
    def name(self) -> str:
        if self.detector is not None:
            return f"{self.detector.name}, colours by rules"
        return f"{self.judge.name} {self.judge.version}" if self.judge is not None else ""


def score_all(benchmark: Benchmark, tasks: list[Task], root: Path, scorer: Scorer, log: Log = print) -> dict[str, Any]:
    """Score every stored answer that this scorer has not scored yet, and write results.json.

    Raises:
        ValueError: there are no answers, the scorer is not of the kind that the benchmark needs, or the judge's prompts changed since the
            first answer.
    """
    frozen = check_frozen_prompts(root, benchmark.rubric)
    rows = _score_rows(benchmark, tasks, root, scorer, SCORES)
    if not rows:
        raise ValueError(f"There are no answers in {root}; make them first, without --score-only.")
    results = summarise_scores(benchmark, rows, len(tasks), scorer.name) | {"painting": load_painting(root)}
    if benchmark.rubric is not None:
        results["prompts"] = {"hash": benchmark.rubric.hash_prompts(), "frozen": frozen}
    if scorer.rejudge and scorer.judge is not None:
        again = replace(scorer, judge=scorer.second or scorer.judge)
        picked = {row["id"]: row for row in pick_rows(rows, scorer.rejudge)}
        second = _score_rows(benchmark, [task for task in tasks if task.id in picked], root, again, REJUDGED)
        results["agreement"] = compare_verdicts(picked, second, again.name)
    write_beside(root / RESULTS, json.dumps(results, ensure_ascii=False, indent=1).encode())
    for line in results_table(results):
        log(line)
    return results


def _score_rows(benchmark: Benchmark, tasks: list[Task], root: Path, scorer: Scorer, name: str) -> list[dict[str, Any]]:
    """A row for every task that has an answer. Those that the file `name` holds already are not scored again."""
    score_answer = _answer_scorer(benchmark, scorer)
    prompts = benchmark.rubric.hash_prompts() if benchmark.rubric is not None else ""
    done = load_scores(root, scorer.name, prompts, name)
    rows = []
    for task in tasks:
        answer = load_answer(root, task.id)
        if answer is None:
            continue
        if task.id not in done:
            about = {"id": task.id, "group": task.group, "judge": scorer.name} | ({"prompts": prompts} if prompts else {})
            done[task.id] = about | score_answer(task, answer)
            add_score(root, done[task.id], name)
        rows.append(done[task.id])
    return rows


def _answer_scorer(benchmark: Benchmark, scorer: Scorer) -> Callable[[Task, Answer], dict[str, Any]]:
    """What scores one answer to a task.

    Raises:
        ValueError: the scorer is not of the kind that the benchmark needs.
    """
    if benchmark.check is not None and scorer.detector is not None:
        return partial(_score_by_detector, benchmark.check, scorer.detector)
    if benchmark.check is None and scorer.judge is not None:
        return partial(_score_by_judge, benchmark, scorer.judge)
    raise ValueError(f"{benchmark.name} is scored by a {'judge' if benchmark.check is None else 'detector'}; name one.")


def _score_by_detector(check: Check, detector: Detector, task: Task, answer: Answer) -> dict[str, Any]:
    pictures = [part for part in answer if isinstance(part, Path)]
    if not pictures:
        return {"scores": {"score": 0.0}, "failed": NO_PICTURE}
    good, why = check(task, open_picture(pictures[-1]), detector)
    return {"scores": {"score": float(good)}, "failed": why}


def _score_by_judge(benchmark: Benchmark, judge: VisionQA, task: Task, answer: Answer) -> dict[str, Any]:
    said = judge_answer(benchmark, task, answer, judge)
    found: dict[str, Any] = {"scores": said.scores, "failed": said.failed}
    return found | ({"raw": said.raw} if said.failed else {}) | ({"verdicts": said.verdicts} if said.verdicts else {})


def summarise_scores(benchmark: Benchmark, rows: list[dict[str, Any]], asked: int, judged_by: str) -> dict[str, Any]:
    """Figures ready for JSON, each {"value", "low", "high", "n"} with its 95 % interval."""
    read = [row for row in rows if row["scores"]]
    names = sorted({name for row in read for name in row["scores"]}, key=lambda name: (name != "score", name))
    groups = list(dict.fromkeys(row["group"] for row in read))
    figure = _share if benchmark.kind == "detected" else mean
    by_group = {group: figure(row["scores"]["score"] for row in read if row["group"] == group) for group in groups}
    whole = figure(row["scores"]["score"] for row in read)
    if benchmark.kind in ("detected", "criteria") and by_group:  # the official figure of GenEval and UEval is the mean over their groups
        whole = mean_of_shares(by_group.values())
    return {
        "benchmark": benchmark.name,
        "judge": judged_by,
        "caution": CAUTION,
        "tasks": asked,
        "answered": len(rows),
        "unreadable": len(rows) - len(read),
        "without_picture": sum(row["failed"] == NO_PICTURE for row in rows),
        "score": whole.as_dict(),
        "scores": {name: figure(row["scores"][name] for row in read if name in row["scores"]).as_dict() for name in names},
        "groups": {group: each.as_dict() for group, each in by_group.items()},
        "published": published_figures(benchmark.name),
    }


def _share(values: Iterable[float]) -> Figure:
    return share(bool(value) for value in values)


def published_figures(name: str) -> list[dict[str, Any]]:
    """Figures that other systems published for a benchmark, with source, judge and version of the benchmark."""
    systems = json.loads((ASSETS / "published.json").read_text(encoding="utf-8"))["systems"]
    return [{"name": s["name"], "source": s["source"], **s["figures"][name]} for s in systems if name in s["figures"]]


def results_table(results: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{results['benchmark']}: {results['answered']} of {results['tasks']} answered, judged by {results['judge']}"]
    if results["unreadable"]:
        lines.append(f"{results['unreadable']} answers of the judge could not be read and count in no figure")
    if results["without_picture"]:
        lines.append(f"without a picture, which counts as wrong: {results['without_picture']} of {results['answered']}")
    rows = {"score": results["score"], **{f"  {name or 'all'}": each for name, each in results["groups"].items()}}
    rows |= {f"  {name}": each for name, each in results["scores"].items() if name != "score"}
    lines += [f"{name:32} {Figure(**each).format(percent=False)}" for name, each in rows.items()]
    lines += [
        f"{'published: ' + each['name']:32} {each['value']:6.2f}  ({each['version']}; {each['judge']}; {each['source']})"
        for each in results["published"]
    ]
    if "prompts" in results:
        when = "as before the first answer" if results["prompts"]["frozen"] else "not known to be as before the first answer"
        lines.append(f"the judge's prompts: {results['prompts']['hash'][:12]}, {when}")
    lines += agreement_lines(results["agreement"], results["judge"]) if "agreement" in results else []
    return [*lines, results["caution"]]
