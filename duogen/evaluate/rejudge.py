"""Judge a part of the answers again, blindly, and tell how often the verdicts agree.

Who judges again is asked what the first judge was asked and sees nothing of its verdicts. Judges decode greedily, so the same judge
tells only whether its verdicts repeat; another judge tells whether they hold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from duogen.evaluate.figures import Figure, mean, share

REJUDGED = "rejudged.jsonl"
Row = dict[str, Any]


def pick_rows(rows: Sequence[Row], part: float) -> list[Row]:
    """Pick this part of the rows that have scores at random, at least one; always the same, so a stopped run goes on."""
    scored = sorted((row for row in rows if row["scores"]), key=lambda row: row["id"])
    return random.Random(0).sample(scored, min(len(scored), max(1, round(len(scored) * part))))


def compare_verdicts(first: Mapping[str, Row], second: Sequence[Row], judge: str) -> dict[str, Any]:
    """How the verdicts on the same answers agree, ready for JSON.

    Args:
        first: rows of the first judge by task id.
        second: rows of who judged again.

    Returns:
        "verdicts", the share of single verdicts or scores that are the same; "difference", the mean difference of the figures of answers.
    """
    read = [(first[row["id"]], row) for row in second if row["scores"]]
    pairs = [(_list_verdicts(one), _list_verdicts(other)) for one, other in read]
    same = [one[name] == other[name] for one, other in pairs for name in one if name in other]
    return {
        "judge": judge,
        "answers": len(second),
        "unreadable": len(second) - len(read),
        "verdicts": share(same).as_dict(),
        "difference": mean(abs(one["scores"]["score"] - other["scores"]["score"]) for one, other in read).as_dict(),
    }


def _list_verdicts(row: Row) -> dict[str, float]:
    """What the judge itself said: verdicts of yes or no, else the scores without the figure that is made of them."""
    return row.get("verdicts") or {name: value for name, value in row["scores"].items() if name != "score"} or row["scores"]


def agreement_lines(agreement: dict[str, Any], judge: str) -> list[str]:
    """The agreement as lines of text."""
    if not agreement["answers"]:
        return ["judged again: none, since no answer has a score"]
    lines = [f"judged again blindly: {agreement['answers']} answers, by {agreement['judge']}"]
    if agreement["unreadable"]:
        lines.append(f"{agreement['unreadable']} of these could not be read and count in no figure")
    lines.append(f"{'  same verdicts':32} {Figure(**agreement['verdicts']).format()}")
    lines.append(f"{'  difference of the score':32} {Figure(**agreement['difference']).format(percent=False)}")
    if agreement["judge"] == judge:
        lines.append("  The same judge decodes greedily: this shows only that its verdicts repeat. Name another with --second-judge.")
    return lines
