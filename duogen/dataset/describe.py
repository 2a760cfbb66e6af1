"""What a person sees of their data before training: counts, lengths, sizes, what is wrong, what looks the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from PIL import Image as PILImage

from duogen.dataset.format import Data, Example, Line, Picture, duplicates, fitted, split
from duogen.models.sequence import Packed, Tokens


@dataclass(frozen=True)
class Report:
    """
    Attributes:
        tokens: shortest, middle and longest example.
        painted, seen: pictures of the assistant and of the user.
        sizes: the commonest picture sizes, "640 x 480" -> how many.
        alike: pairs of examples with near-duplicate pictures.
    """

    kind: str
    examples: int
    validation: int
    turns: int
    tokens: tuple[int, int, int]
    painted: int
    seen: int
    loose: int
    sizes: dict[str, int]
    left_out: int
    fixed: int
    alike: list[tuple[str, str]]

    def sentences(self) -> list[str]:
        """For the terminal and the page."""
        said = [f"Read as {self.kind}: {_counted(self.examples, 'example')}, {self.validation} of them kept back to check on."]
        said.append(f"{_counted(self.painted, 'picture')} to paint, {self.seen} to look at; {self.turns} turns.")
        if self.examples:
            said.append(f"Tokens of an example: {self.tokens[0]} to {self.tokens[2]}, the middle one {self.tokens[1]}.")
        if self.sizes:
            said.append("Picture sizes: " + ", ".join(f"{size} ({count})" for size, count in self.sizes.items()) + ".")
        if self.left_out or self.fixed:
            said.append(f"{_counted(self.left_out, 'example')} left out, {self.fixed} mended.")
        if self.loose:
            said.append(f"{_counted(self.loose, 'picture')} without words: have them described, or write a .txt file beside each.")
        if self.alike:
            one, other = self.alike[0]
            said.append(f"{len(self.alike)} pairs of examples have pictures that look the same, such as {one} and {other}.")
        return said


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count:,} {what}s"


class Lengths:
    """Tokens of some lines, pictures counted by their size alone."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self._known = tokens, {}

    def __call__(self, lines: tuple[Line, ...]) -> int:
        return sum(self._line(line) for line in lines)

    def _line(self, line: Line) -> int:
        if line not in self._known:
            packed = Packed()
            packed.add(self.tokens.opening(line.role), False)
            count = len(packed.ids) + len(self.tokens.closing())
            for part in line.parts:
                count += len(self.tokens.text(part)) if isinstance(part, str) else self._picture(part)
            self._known[line] = count
        return self._known[line]

    def _picture(self, picture: Picture) -> int:
        from duogen.conversation import Image

        with PILImage.open(picture.file) as opened:  # the header is enough
            rows, columns = self.tokens.grid(Image(opened))
        return rows * columns + 2


def fit_all(data: Data, tokens: Tokens, most: int) -> Lengths:
    """Cut or leave out what is too long, in place."""
    lengths, kept = Lengths(tokens), []
    for example in data.examples:
        fits, problems = fitted(example, lengths, most)
        kept += [fits] if fits else []
        data.problems += problems
    data.examples = kept
    return lengths


def describe(data: Data, tokens: Tokens, most: int, share: float = 0.1) -> Report:
    """Fit the data to `most` tokens and say what it holds; `share` of the examples are for validation."""
    lengths = fit_all(data, tokens, most)
    counts = sorted(lengths(example.lines) for example in data.examples)
    pictures = [picture for example in data.examples for picture in example.pictures()]
    sizes: Counter[str] = Counter()
    for picture in pictures:
        with PILImage.open(picture.file) as opened:
            sizes["{} x {}".format(*opened.size)] += 1
    painted = sum(len(example.pictures("assistant")) for example in data.examples)
    return Report(
        kind=data.kind, examples=len(data.examples), validation=len(split(data.examples, share)[1]),
        turns=sum(len(example.lines) for example in data.examples),
        tokens=(counts[0], round(median(counts)), counts[-1]) if counts else (0, 0, 0), painted=painted, seen=len(pictures) - painted,
        loose=len(data.loose), sizes=dict(sizes.most_common(4)), left_out=data.left_out(),
        fixed=len(data.problems) - data.left_out(), alike=duplicates(data.examples),
    )  # fmt: skip


def words_of(example: Example, most: int = 300) -> str:
    """What is said in an example, on one line."""
    said = " · ".join(" ".join(line.words().split()) for line in example.lines)
    return said if len(said) <= most else said[: most - 1] + "…"


def rows(data: Data) -> list[list[Any]]:
    """What is wrong, for a table: where, what, what was done."""
    return [[problem.where, problem.what, problem.fix or "left out"] for problem in data.problems]
