"""Describe training data before training: counts, lengths, sizes, problems and near-duplicates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

from duogen.conversation import Message
from duogen.dataset.checks import explain_error, truncate_example
from duogen.dataset.format import Data, Example, Picture, Problem, find_duplicates, split_examples
from duogen.models.sequence import Packed, Tokens


@dataclass(frozen=True)
class Report:
    """The description of a data set.

    Attributes:
        tokens: of the shortest, the median and the longest example.
        painted, seen: numbers of pictures of the assistant and of the user.
        sizes: the commonest picture sizes ("640 x 480") and their numbers.
        alike: pairs of examples with near-duplicate pictures.
        files: numbers of files: found, learnt from, named with a reason, passed over.
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
    files: tuple[int, int, int, int] = (0, 0, 0, 0)

    def sentences(self) -> list[str]:
        """The description in sentences, for the terminal and the page."""
        said = [f"Read as {self.kind}: {_format_count(self.examples, 'example')}, {self.validation} of them kept back to check on."]
        said.append(f"{_format_count(self.painted, 'picture')} to paint, {self.seen} to look at; {self.turns} turns.")
        if self.examples:
            said.append(f"Tokens of an example: {self.tokens[0]} to {self.tokens[2]}, the middle one {self.tokens[1]}.")
        if self.sizes:
            said.append("Picture sizes: " + ", ".join(f"{size} ({count})" for size, count in self.sizes.items()) + ".")
        if self.left_out or self.fixed:
            said.append(f"{_format_count(self.left_out, 'example')} left out, {self.fixed} mended.")
        if self.loose:
            said.append(f"{_format_count(self.loose, 'picture')} without words: have them described, or write a .txt file beside each.")
        if any(self.files[2:]):
            found, learnt, named, passed = self.files
            said.append(f"Files: {found:,}; learnt from: {learnt:,}; named with a reason: {named:,}; hidden or about the set: {passed:,}.")
        if self.alike:
            one, other = self.alike[0]
            said.append(f"{len(self.alike)} pairs of examples have pictures that look the same, such as {one} and {other}.")
        return said


def _format_count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count:,} {what}s"


class TokenCounter:
    """Counts the tokens of lines. Pictures count by their size."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self._known = tokens, {}

    def __call__(self, lines: tuple[Message, ...]) -> int:
        return sum(self._count_line(line) for line in lines)

    def _count_line(self, line: Message) -> int:
        if line not in self._known:
            packed = Packed()
            packed.add(self.tokens.opening(line.role), False)
            count = len(packed.ids) + len(self.tokens.closing())
            for part in line.parts:
                count += len(self.tokens.text(part)) if isinstance(part, str) else self._count_picture(part)
            self._known[line] = count
        return self._known[line]

    def _count_picture(self, picture: Picture) -> int:
        rows, columns = self.tokens.grid_of_size(picture.inspect().size)
        return rows * columns + 2


def fit_examples(data: Data, tokens: Tokens, most: int) -> TokenCounter:
    """Truncate or leave out examples with more than `most` tokens, in place. Returns the counter."""
    lengths, kept = TokenCounter(tokens), []
    for example in data.examples:
        try:
            fits, problems = truncate_example(example, lengths, most)
        except Exception as error:  # whatever one example raises leaves the others alone
            fits, problems = None, [Problem(example.where, explain_error(error))]
        kept += [fits] if fits else []
        data.problems += problems
    data.examples = kept
    return lengths


def describe(data: Data, tokens: Tokens, most: int, share: float = 0.1) -> Report:
    """Fit the data to `most` tokens and describe it. `share` of the examples is for validation."""
    lengths = fit_examples(data, tokens, most)
    counts = sorted(lengths(example.lines) for example in data.examples)
    pictures = [picture for example in data.examples for picture in example.pictures()]
    sizes: Counter[str] = Counter()
    for picture in pictures:
        sizes["{} x {}".format(*picture.inspect().size)] += 1
    painted = sum(len(example.pictures("assistant")) for example in data.examples)
    return Report(
        kind=data.kind, examples=len(data.examples), validation=len(split_examples(data.examples, share)[1]),
        turns=sum(len(example.lines) for example in data.examples),
        tokens=(counts[0], round(median(counts)), counts[-1]) if counts else (0, 0, 0), painted=painted, seen=len(pictures) - painted,
        loose=len(data.loose), sizes=dict(sizes.most_common(4)), left_out=data.count_left_out(),
        fixed=len(data.problems) - data.count_left_out(), alike=find_duplicates(data.examples),
        files=data.count_files(),
    )  # fmt: skip


def example_text(example: Example, most: int = 300) -> str:
    """The words of an example on one line of at most `most` letters; a caption, which is asked for and repeated, once."""
    said = " · ".join(dict.fromkeys(" ".join(line.text().split()) for line in example.lines))
    return said if len(said) <= most else said[: most - 1] + "…"


def problem_rows(data: Data) -> list[list[str]]:
    """The problems, then the files that are not read, as rows of a table: where, what, what was done."""
    return [[problem.where, problem.what, problem.fix or "left out"] for problem in (*data.problems, *data.unread)]
