"""A local MLLM as the judge. Its questions are files in `assets/prompts/`; its answers are JSON, asked for again when unreadable.

Which prompt, and which scores it asks for, is the benchmark's `Rubric`. The five scores are those of DuoGen's benchmark (section 5): text
completeness, image completeness, consistency between images, image quality, consistency of image and text, each from 0 to 5.
InterleavedBench, CoMM and OpenING are asked for what their authors ask for, on their scales. UEval is asked about one criterion at a time.

Scores of another judge are not comparable with published figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from duogen.evaluate.rubric import Rubric, check_prompt
from duogen.evaluate.tasks import Benchmark, Task
from duogen.prompts import fill_prompt, parse_json
from duogen.vision_qa import MOST_TOKENS, VisionQA

UNREADABLE = "the judge's answer could not be read"
NO_PICTURE = "there is no picture in the answer"
PAIR = "judge-pair"
UNSURE = ("not sure", "unsure", "unknown")
TRIES = 3
MOST_PICTURES = 12
AGAIN = "\n\nYour last answer could not be read. Answer with the JSON object only, with exactly the keys asked for."
Parts = Sequence[str | Path]
T = TypeVar("T")


@dataclass(frozen=True)
class Judgement:
    """Scores by name, or the reason why there are none.

    Attributes:
        raw: the last answer of the judge.
        verdicts: its single verdicts by name, where the scores are shares of them.
    """

    scores: dict[str, float]
    failed: str = ""
    raw: str = ""
    verdicts: dict[str, bool] = field(default_factory=dict)


def ask_for_scores(vision_qa: VisionQA, question: str, pictures: Sequence[Path], needed: Sequence[str], scale: float) -> Judgement:
    """Ask until the answer holds a number from 0 to `scale` for each name in `needed`, at most three times."""
    scores, raw = _ask_until_readable(vision_qa, question, pictures, lambda said: read_scores(said, needed, scale))
    return Judgement({}, UNREADABLE, raw) if scores is None else Judgement(scores, raw=raw)


def read_scores(raw: str, needed: Sequence[str], scale: float) -> dict[str, float] | None:
    """The scores in a judge's answer; `None` where one is missing, is no number or is out of its range.

    Keys may be in any case and have blanks or hyphens. A score may be a number, a number in words ("4/5") or {"score": ...}.
    """
    found = parse_json(raw)
    if isinstance(found, list):
        found = next((each for each in reversed(found) if isinstance(each, dict)), None)
    if not isinstance(found, dict):
        return None
    for name in ("scores", "score", "result", "ratings", "evaluation"):
        if isinstance(found.get(name), dict):
            found = found[name]
    plain = {str(key).strip().lower().replace("-", "_").replace(" ", "_"): value for key, value in found.items()}
    numbers = {name: _parse_number(plain.get(name)) for name in needed}
    scores = {name: value for name, value in numbers.items() if value is not None and 0 <= value <= scale}
    return scores if len(scores) == len(numbers) else None


def _parse_number(value: object) -> float | None:
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


def judge_answer(benchmark: Benchmark, task: Task, answer: Parts, vision_qa: VisionQA) -> Judgement:
    """Score one answer by the benchmark's published questions.

    Raises:
        ValueError: the benchmark has no judge.
    """
    rubric = benchmark.rubric
    if rubric is None:
        raise ValueError(f"{benchmark.name} is scored without a judge.")
    pictures = [part for part in answer if isinstance(part, Path)]
    if benchmark.kind == "interleaved":
        return _judge_interleaved(rubric, task, answer, vision_qa)
    if benchmark.kind == "criteria":
        return _judge_criteria(rubric, task, answer, vision_qa)
    if not pictures:
        return Judgement({"score": 0.0}, NO_PICTURE)
    if benchmark.kind == "questions":
        return _judge_questions(rubric, task, pictures[-1:], vision_qa)
    question = fill_prompt(rubric.prompt, prompt=task.words(), explanation=task.about.get("explanation", ""), kind=task.group)
    shown = [*task.pictures()[:1], pictures[-1]] if benchmark.kind == "edit" else pictures[-1:]
    said = ask_for_scores(vision_qa, question, shown, rubric.keys, rubric.scale)
    return Judgement(said.scores | {"score": rubric.overall(said.scores)}, "", said.raw) if said.scores else said


def _judge_interleaved(rubric: Rubric, task: Task, answer: Parts, vision_qa: VisionQA) -> Judgement:
    shown = list(task.pictures())
    words = _number_pictures(answer, shown)
    asked = task.words() + (f" [images 1 to {len(task.pictures())} are the user's]" if task.pictures() else "")
    question = fill_prompt(rubric.prompt, prompt=asked, answer=words, reference=task.about.get("reference") or "(none)")
    said = ask_for_scores(vision_qa, question, shown[:MOST_PICTURES], rubric.keys, rubric.scale)
    if not said.scores:
        return said
    if len(shown) == len(task.pictures()):
        said = Judgement(said.scores | dict.fromkeys(rubric.about_pictures, 0.0), "", said.raw)
    extra = {"score": rubric.overall(said.scores)}
    if task.about.get("structure"):  # ISG: the order of words and pictures
        extra["structure"] = float([_part_kind(part) for part in answer] == task.about["structure"])
    return Judgement(said.scores | extra, "", said.raw)


def _number_pictures(answer: Parts, shown: list[Path]) -> str:
    """The answer as text with "[image N]" for its pictures. Appends them to `shown`, which sets N."""
    lines = []
    for part in answer:
        if isinstance(part, Path):
            shown.append(part)
        lines.append(f"[image {len(shown)}]" if isinstance(part, Path) else part)
    return "\n".join(lines)


def _part_kind(part: str | Path) -> str:
    return "image" if isinstance(part, Path) else "text"


def _judge_questions(rubric: Rubric, task: Task, pictures: Sequence[Path], vision_qa: VisionQA) -> Judgement:
    """Score by the share of questions answered yes. A question whose condition was answered no counts as no (DPG-Bench, DSG)."""
    said: dict[str, bool] = {}
    raw = ""
    for each in task.about["questions"]:
        if all(said.get(after, False) for after in each["after"]):
            verdict, raw = _ask_until_readable(vision_qa, fill_prompt(rubric.prompt, question=each["ask"]), pictures, parse_verdict, 64)
            if verdict is None:
                return Judgement({}, UNREADABLE, raw)
            said[each["id"]] = verdict
        else:
            said[each["id"]] = False
    return Judgement({"score": sum(said.values()) / len(said)}, "", raw, said)


def _judge_criteria(rubric: Rubric, task: Task, answer: Parts, vision_qa: VisionQA) -> Judgement:
    """Score words and pictures each by the share of their criteria that are met. Without a picture no criterion of pictures is met."""
    shown: list[Path] = []
    numbered = _number_pictures(answer, shown)
    words = "\n".join(part for part in answer if isinstance(part, str))
    met: dict[str, dict[str, bool]] = {}
    raw = ""
    for number, each in enumerate(task.about["criteria"], 1):
        of_pictures, verdict = each["about"] == "image", False
        if shown or not of_pictures:
            said = (numbered if of_pictures else words) or "(none)"
            question = fill_prompt(each["prompt"], prompt=task.words(), answer=said, criterion=each["ask"])
            seen = shown[:MOST_PICTURES] if of_pictures else ()
            verdict, raw = _ask_until_readable(vision_qa, question, seen, parse_criterion, 64)
        if verdict is None:
            return Judgement({}, UNREADABLE, raw)
        met.setdefault(each["about"], {})[str(number)] = verdict
    rates = {about: sum(found.values()) / len(found) for about, found in met.items()}
    verdicts = {number: verdict for found in met.values() for number, verdict in found.items()}
    return Judgement(rates | {"score": rubric.overall(rates)}, "", raw, verdicts)


def _ask_until_readable(
    vision_qa: VisionQA, question: str, pictures: Sequence[Path], read: Callable[[str], T | None], most: int = MOST_TOKENS
) -> tuple[T | None, str]:
    """Ask until `read` can parse the answer (it returns `None` where not). Returns the parsed value and the raw answer.

    Args:
        most: tokens of an answer, at most.
    """
    raw = ""
    for attempt in range(TRIES):
        raw = vision_qa.ask(question + (AGAIN if attempt else ""), pictures, most)
        if (found := read(raw)) is not None:
            return found, raw
    return None, raw


def parse_verdict(raw: str) -> bool | None:
    """The yes or no in a judge's answer, in JSON or in words; `None` where there is neither."""
    found = parse_json(raw)
    text = str(found.get("answer", "")) if isinstance(found, dict) else raw
    first = "".join(letter for letter in text.strip().lower().split(" ")[0] if letter.isalpha()) if text.strip() else ""
    return {"yes": True, "no": False, "true": True, "false": False}.get(first)


def parse_criterion(raw: str) -> bool | None:
    """Whether a judge says that a criterion is met; not sure is a no, as UEval counts it. `None` where it says neither."""
    found = parse_json(raw)
    text = str(found.get("criteria_met", "")) if isinstance(found, dict) else raw
    return False if text.strip().strip('."').lower() in UNSURE else parse_verdict(text)


def check_pair_prompt() -> None:
    """Check the prompt of `compare_answers`.

    Raises:
        ValueError: it is missing or broken; one sentence.
    """
    check_prompt(PAIR, ("prompt", "answers"), (), ("better",))


def compare_answers(task: Task, one: Parts, other: Parts, vision_qa: VisionQA) -> float | None:
    """Return 1.0 when the judge prefers `one`, 0.0 for `other`, 0.5 for a tie, `None` when unreadable.

    The judge sees both orders. Only a preference that agrees in both is a win.
    """
    votes = []
    for first, second in ((one, other), (other, one)):
        words, shown = [], []
        for name, answer in (("A", first), ("B", second)):
            words.append(f"Answer {name}:\n{_number_pictures(answer, shown)}")
        question = fill_prompt(PAIR, prompt=task.words(), answers="\n\n".join(words))
        better, _ = _ask_until_readable(vision_qa, question, shown[:MOST_PICTURES], _parse_preference)
        if better is None:
            return None
        votes.append(better)
    if votes == ["A", "B"]:
        return 1.0
    return 0.0 if votes == ["B", "A"] else 0.5


def _parse_preference(raw: str) -> str | None:
    found = parse_json(raw)
    better = str(found.get("better", "")).strip().upper() if isinstance(found, dict) else ""
    return better if better in ("A", "B", "TIE") else None
