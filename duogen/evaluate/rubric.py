"""What a judge is asked, and how its scores make one figure: the prompt of a benchmark, the scores that it asks for, their scale."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from duogen.prompts import BLANK, load_prompt

FIVE = ("t_com", "i_com", "i_co", "i_q", "it_co")
FOR_ONE = (("prompt",), ("explanation", "kind"))
BLANKS = {  # by kind of benchmark: the blanks that a prompt must have, and those that it may have
    "picture": FOR_ONE,
    "edit": FOR_ONE,
    "questions": (("question",), ()),
    "criteria": (("prompt", "criterion"), ("answer",)),
    "interleaved": (("prompt", "answer"), ("reference",)),
}


def mean_score(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked about an answer.

    Attributes:
        prompt: the name of a file in `assets/prompts/`. It ends in the JSON object that the judge is to answer with.
        keys: the names in that object: of scores, or "answer" for questions of yes or no.
        scale: the largest score.
        about_pictures: the scores that are 0 where nothing was drawn.
        overall: the one figure that the benchmark reports for an answer.
        more_prompts: further prompts of the same form, where a task names a prompt for each of its questions.
    """

    prompt: str
    keys: tuple[str, ...]
    scale: float = 5.0
    about_pictures: tuple[str, ...] = ()
    overall: Callable[[Mapping[str, float]], float] = mean_score
    more_prompts: tuple[str, ...] = ()

    def hash_prompts(self) -> str:
        """A hash of all that the judge is asked by; it changes with each letter of a prompt.

        Raises:
            ValueError: a prompt is missing.
        """
        texts = {name: load_prompt(name) for name in (self.prompt, *self.more_prompts)}
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()

    def check(self, kind: str) -> None:
        """Check that the prompt can be filled and asks for the scores that are read from the answer.

        Args:
            kind: of the benchmark, one of `BLANKS`.

        Raises:
            ValueError: it cannot, or does not; one sentence.
        """
        for name in (self.prompt, *self.more_prompts):
            check_prompt(name, *BLANKS[kind], keys=self.keys)
        try:
            self.overall(dict.fromkeys(self.keys, self.scale))
        except KeyError as error:
            raise ValueError(f"The figure of {self.prompt} is made of a score {error} that its prompt does not ask for.") from error
        if strange := sorted(set(self.about_pictures) - set(self.keys)):
            raise ValueError(f"The prompt {self.prompt} does not ask for {strange[0]!r}, which is about pictures.")


FIVE_SCORES = Rubric("judge-five", FIVE, about_pictures=FIVE[1:])


def check_prompt(name: str, needed: Collection[str], possible: Collection[str], keys: Collection[str]) -> None:
    """Check a judge's prompt before it is used.

    Args:
        needed: blanks that it must have; `possible` ones it may have.
        keys: what the JSON object must have in which it ends.

    Raises:
        ValueError: it is missing, or has other blanks or other keys; one sentence.
    """
    text = load_prompt(name)
    blanks = set(BLANK.findall(text))
    if missing := sorted(set(needed) - blanks):
        raise ValueError(f"The prompt {name} is broken: it lacks the blank {{{{{missing[0]}}}}}.")
    if strange := sorted(blanks - {*needed, *possible}):
        raise ValueError(f"The prompt {name} is broken: it has a blank {strange[0]} that nothing fills.")
    try:
        example = json.loads(text[text.rfind("\n{") + 1 :])
    except json.JSONDecodeError:
        example = None
    if not isinstance(example, dict) or set(example) != set(keys):
        raise ValueError(f"The prompt {name} is broken: it must end in a JSON object with {', '.join(keys)}, and no other keys.")
