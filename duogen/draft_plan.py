"""The plan of drafts for a picture: a general MLLM splits its words into strokes, and each is painted as an edit of the draft before."""

from __future__ import annotations

import threading

from duogen.models.mllm import MLLM
from duogen.prompts import fill_prompt, parse_json
from duogen.vision_qa import MLLMVisionQA

MOST_STROKES = 8  # each takes as long as a picture
PLAN_TOKENS = 768
NO_PLAN = "The language model made no plan of drafts, so the picture is painted in one stroke."


def plan_drafts(mllm: MLLM, words: str, stop: threading.Event) -> list[str]:
    """The words of the drafts that lead to a picture of `words`, the last one included; none where the MLLM names fewer than two.

    The MLLM is asked in a context of its own. `stop` ends that within one token.
    """
    prompt = fill_prompt("plan-drafts", words=words, most=MOST_STROKES)
    return read_plan(MLLMVisionQA(mllm, "drafts", "").ask(prompt, [], PLAN_TOKENS, stop))


def read_plan(said: str) -> list[str]:
    """The strokes in an answer, at most `MOST_STROKES`; none where there are fewer than two."""
    found = parse_json(said)
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), [])
    listed = [_read_stroke(each) for each in found] if isinstance(found, list) else []
    strokes = [" ".join(each.split()) for each in listed if each.strip()]
    if len(strokes) > MOST_STROKES:  # the last of them is still the whole picture
        strokes = [*strokes[: MOST_STROKES - 1], " ".join(strokes[MOST_STROKES - 1 :])]
    return strokes if len(strokes) > 1 else []


def _read_stroke(raw: object) -> str:
    """The words of a stroke, which some write as an object."""
    if isinstance(raw, dict):
        return max((value for value in raw.values() if isinstance(value, str)), key=len, default="")
    return raw if isinstance(raw, str) else ""
