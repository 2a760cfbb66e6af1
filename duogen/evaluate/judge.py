"""A local MLLM as the judge: questions as files in `assets/prompts/`, answers as JSON, asked again where they are none.

The five scores are those of DuoGen's benchmark (section 5): text completeness, image completeness, consistency between images, image
quality, consistency of image and text, each from 0 to 5. InterleavedBench, CoMM and OpenING are asked for what their authors ask for,
on their scales. A swapped judge is not comparable with published figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duogen.evaluate.tasks import Benchmark, Task
from duogen.prompts import fill, parsed
from duogen.vision_qa import MOST_TOKENS, Reader

FIVE = ("t_com", "i_com", "i_co", "i_q", "it_co")
NEEDED = {
    "judge-five": FIVE,
    "judge-interleaved": ("text_quality", "perceptual_quality", "image_coherence", "text_image_coherence", "helpfulness"),
    "judge-comm": ("style_consistency", "entity_consistency", "trend_consistency", "completeness", "image_quality", "relevance"),
    "judge-opening": (
        "correctness", "image_text_coherency", "multi_step_consistency", "content_quality", "human_preference_alignment", "completeness",
        "content_richness",
    ),
    "judge-wise": ("consistency", "realism", "aesthetic"),
    "judge-edit": ("compliance", "naturalness", "integrity"),
    "judge-viescore": ("success", "overediting", "naturalness", "artifacts"),
}
ABOUT_PICTURES = {  # 0 where nothing was drawn
    "judge-five": ("i_com", "i_co", "i_q", "it_co"),
    "judge-interleaved": ("perceptual_quality", "image_coherence", "text_image_coherence"),
    "judge-comm": ("style_consistency", "entity_consistency", "trend_consistency", "image_quality", "relevance"),
    "judge-opening": ("image_text_coherency",),
}
UNREADABLE = "the judge's answer could not be read"
TRIES = 3
MOST_PICTURES = 12
AGAIN = "\n\nYour last answer could not be read. Answer with the JSON object only, with exactly the keys asked for."
Parts = Sequence[str | Path]


@dataclass(frozen=True)
class Judgement:
    """Scores by name, or none and why; `raw` is what the judge said last."""

    scores: dict[str, float]
    failed: str = ""
    raw: str = ""


def ask(reader: Reader, question: str, pictures: Sequence[Path], needed: Sequence[str], scale: float) -> Judgement:
    """Ask until the answer holds a number from 0 to `scale` for each name, three times at most."""
    scores, raw = _said(reader, question, pictures, lambda said: read_scores(said, needed, scale))
    return Judgement({}, UNREADABLE, raw) if scores is None else Judgement(scores, raw=raw)


def read_scores(raw: str, needed: Sequence[str], scale: float) -> dict[str, float] | None:
    """The scores in a judge's answer; `None` where one is missing, is no number or is out of its range.

    Keys count in any case and with blanks or hyphens; a score may be a number, a number in words ("4/5") or {"score": ...}.
    """
    found = parsed(raw)
    if isinstance(found, list):
        found = next((each for each in reversed(found) if isinstance(each, dict)), None)
    if not isinstance(found, dict):
        return None
    for name in ("scores", "score", "result", "ratings", "evaluation"):
        if isinstance(found.get(name), dict):
            found = found[name]
    plain = {str(key).strip().lower().replace("-", "_").replace(" ", "_"): value for key, value in found.items()}
    scores = {name: _number(plain.get(name)) for name in needed}
    if any(value is None or not 0 <= value <= scale for value in scores.values()):
        return None
    return scores


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = next((value[key] for key in ("score", "value", "rating") if key in value), None)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(str(value).strip().split("/")[0].split(" ")[0].rstrip("."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def judge(benchmark: Benchmark, task: Task, answer: Parts, reader: Reader) -> Judgement:
    """The scores of one answer, by the benchmark's published questions."""
    pictures = [part for part in answer if isinstance(part, Path)]
    if benchmark.kind in ("picture", "edit") and not pictures:
        return Judgement({"score": 0.0}, "there is no picture in the answer")
    if benchmark.kind == "interleaved":
        return _interleaved(benchmark, task, answer, reader)
    if benchmark.judged == "judge-question":
        return _questions(task, pictures[-1:], reader)
    question = fill(benchmark.judged, prompt=task.words(), explanation=task.about.get("explanation", ""), kind=task.group)
    shown = [*task.pictures()[:1], pictures[-1]] if benchmark.kind == "edit" else pictures[-1:]
    said = ask(reader, question, shown, NEEDED[benchmark.judged], benchmark.scale)
    return Judgement(said.scores | {"score": _total(benchmark.judged, said.scores)}, "", said.raw) if said.scores else said


def _total(judged: str, scores: dict[str, float]) -> float:
    """The one figure that a benchmark reports for an answer."""
    if judged == "judge-wise":  # WiScore
        return (0.7 * scores["consistency"] + 0.2 * scores["realism"] + 0.1 * scores["aesthetic"]) / 2
    if judged == "judge-viescore":  # the worse of each pair, and their geometric mean
        return math.sqrt(min(scores["success"], scores["overediting"]) * min(scores["naturalness"], scores["artifacts"]))
    if judged == "judge-edit":  # ImgEdit: no part above compliance
        return sum(min(scores["compliance"], value) for value in scores.values()) / len(scores)
    # What DuoGen publishes for CoMM is how well the pictures illustrate the words.
    return scores["relevance"] if judged == "judge-comm" else sum(scores.values()) / len(scores)


def _interleaved(benchmark: Benchmark, task: Task, answer: Parts, reader: Reader) -> Judgement:
    judged, shown = benchmark.judged, list(task.pictures())
    words = _numbered(answer, shown)
    asked = task.words() + (f" [images 1 to {len(task.pictures())} are the user's]" if task.pictures() else "")
    question = fill(judged, prompt=asked, answer=words, reference=task.about.get("reference") or "(none)")
    said = ask(reader, question, shown[:MOST_PICTURES], NEEDED[judged], benchmark.scale)
    if not said.scores:
        return said
    if len(shown) == len(task.pictures()):
        said = Judgement(said.scores | dict.fromkeys(ABOUT_PICTURES[judged], 0.0), "", said.raw)
    extra = {"score": _total(judged, said.scores)}
    if task.about.get("structure"):  # ISG: the order of words and pictures
        extra["structure"] = float([_kind(part) for part in answer] == task.about["structure"])
    return Judgement(said.scores | extra, "", said.raw)


def _numbered(answer: Parts, shown: list[Path]) -> str:
    """An answer as text, its pictures as "[image N]", counted on from those in `shown`, to which they are added."""
    lines = []
    for part in answer:
        if isinstance(part, Path):
            shown.append(part)
        lines.append(f"[image {len(shown)}]" if isinstance(part, Path) else part)
    return "\n".join(lines)


def _kind(part: str | Path) -> str:
    return "image" if isinstance(part, Path) else "text"


def _questions(task: Task, pictures: Sequence[Path], reader: Reader) -> Judgement:
    """The share of questions answered yes; one whose condition was answered no counts as no (DPG-Bench, DSG)."""
    said: dict[str, bool] = {}
    raw = ""
    for each in task.about["questions"]:
        if all(said.get(after, False) for after in each["after"]):
            verdict, raw = _said(reader, fill("judge-question", question=each["ask"]), pictures, yes_or_no, 64)
            if verdict is None:
                return Judgement({}, UNREADABLE, raw)
            said[each["id"]] = verdict
        else:
            said[each["id"]] = False
    return Judgement({"score": sum(said.values()) / len(said)}, "", raw)


def _said(reader: Reader, question: str, pictures: Sequence[Path], read: Callable[[str], Any], most: int = MOST_TOKENS) -> tuple[Any, str]:
    """What `read` makes of the judge's answer of `most` tokens, asked again where that is `None`; and the answer."""
    raw = ""
    for attempt in range(TRIES):
        raw = reader.ask(question + (AGAIN if attempt else ""), pictures, most)
        if (found := read(raw)) is not None:
            return found, raw
    return None, raw


def yes_or_no(raw: str) -> bool | None:
    """A verdict, in JSON or in words."""
    found = parsed(raw)
    text = str(found.get("answer", "")) if isinstance(found, dict) else raw
    first = "".join(letter for letter in text.strip().lower().split(" ")[0] if letter.isalpha()) if text.strip() else ""
    return {"yes": True, "no": False, "true": True, "false": False}.get(first)


def prefers(task: Task, one: Parts, other: Parts, reader: Reader) -> float | None:
    """1.0 where the judge prefers `one`, 0.0 for `other`, 0.5 for a tie: asked with both orders, which must agree to count as a win."""
    votes = []
    for first, second in ((one, other), (other, one)):
        words, shown = [], []
        for name, answer in (("A", first), ("B", second)):
            words.append(f"Answer {name}:\n{_numbered(answer, shown)}")
        question = fill("judge-pair", prompt=task.words(), answers="\n\n".join(words))
        better, _ = _said(reader, question, shown[:MOST_PICTURES], _better)
        if better is None:
            return None
        votes.append(better)
    if votes == ["A", "B"]:
        return 1.0
    return 0.0 if votes == ["B", "A"] else 0.5


def _better(raw: str) -> str | None:
    found = parsed(raw)
    better = str(found.get("better", "")).strip().upper() if isinstance(found, dict) else ""
    return better if better in ("A", "B", "TIE") else None
