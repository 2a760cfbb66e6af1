"""Compare an answer in words with the true answer by its facts. The phrasing is free."""

from __future__ import annotations

import re
from functools import lru_cache

from duogen.sketchbook.scene import COLOURS, SHAPES
from duogen.sketchbook.world import things

_SAME = {
    "gray": "grey", "violet": "purple", "lilac": "purple", "0": "no", "zero": "no", "none": "no", "1": "one", "2": "two", "3": "three",
    "centre": "middle", "center": "middle", "larger": "bigger", "sunny": "meadow", "grass": "meadow", "dark": "night", "beach": "sea",
    "seaside": "sea", "daytime": "day", "nighttime": "night",
}  # fmt: skip
_GROUPS = {
    "colour": frozenset(COLOURS),
    "number": frozenset(("no", "one", "two", "three")),
    "side": frozenset(("left", "middle", "right")),
    "level": frozenset(("sky",)),
    "background": frozenset(("meadow", "night", "paper", "sea", "day")),
}
_LISTS = re.compile(r"^(this is|these are|i see)\b")


def answers_agree(said: str, true: str) -> bool:
    """Whether `said` states the facts of the true answer and contradicts none of them.

    After a right yes or no the rest may be missing. A list of what is in the picture must name each thing or part as it is.
    """
    mine, truth = _normalise(said), _normalise(true)
    if _leading_verdict(truth):
        return _leading_verdict(mine) == _leading_verdict(truth) and all(_facts(mine, group) <= _facts(truth, group) for group in _GROUPS)
    if _LISTS.match(truth):
        return set(_clauses(mine)) == set(_clauses(truth))
    if _leading_verdict(mine):
        mine = mine.partition(",")[2]
    needed = all(_facts(mine, group) == _facts(truth, group) for group in _GROUPS if group != "number")
    numbers = _facts(truth, "number")
    said_one = numbers == {"one"} and not _facts(mine, "number") and re.search(r"\ban?\b", mine) is not None
    names = _names(mine) <= _names(truth) and ("bigger" not in truth or _names(mine) == _names(truth))
    return bool(mine.strip()) and needed and names and (said_one or _facts(mine, "number") == numbers)


def _normalise(text: str) -> str:
    """The text in lower case, with one spelling for each fact and without full stops."""
    words = re.sub(r"[.!?;]", " , ", text.lower().replace("half circle", "half-circle"))
    words = re.sub(r"[^\w\s,-]", " ", words)
    return " ".join(_SAME.get(word, word) for word in words.replace(",", " , ").split()).strip(" ,")


def _leading_verdict(text: str) -> str:
    """The yes or no that the text begins with, else ""."""
    first, _, rest = text.partition(" ")
    verdict = first in ("yes", "no") and (not rest or rest.startswith(","))
    return first if verdict else ""


def _facts(text: str, group: str) -> set[str]:
    """The words of one group. A leading yes or no is no number."""
    words = text.split()[1:] if _leading_verdict(text) else text.split()
    # A part such as "night cap" never occurs, so every word of a group is a fact.
    return {word for word in words if word in _GROUPS[group]}


@lru_cache(maxsize=1)
def _kinds() -> dict[str, str]:
    """Map each name of a kind (singular and plural) and of a shape to the kind or shape."""
    named = {name: kind for kind, entry in things().items() for name in (kind, entry.plural)}
    return {**named, **{shape.replace("half circle", "half-circle"): shape for shape in SHAPES}}


def _names(text: str) -> set[str]:
    return {kind for name, kind in _kinds().items() if re.search(rf"\b{re.escape(name)}\b", text)}


def _clauses(text: str) -> list[frozenset[str]]:
    """The clauses of a text, each as the set of its words that carry facts."""
    text = re.sub(r"\bin (it|the picture)\b", " ", text)
    skipped = r"\b(this|these|is|are|i|see|an|a|the|with|on|in|up|there|it|can|my|your|and)\b"
    found = [frozenset(re.sub(skipped, " ", clause).replace(",", " ").split()) for clause in re.split(r",| and | with ", text)]
    return [clause for clause in found if clause]
