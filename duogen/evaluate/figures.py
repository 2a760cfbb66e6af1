"""Figures with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

Z = 1.96


@dataclass(frozen=True)
class Figure:
    """A measured value, its 95 % interval and the number of cases. Value and interval are `None` without cases."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def format(self, percent: bool = True) -> str:
        if self.value is None:
            return "-"
        if percent:
            return f"{self.value:6.1%}  ({self.low:.1%} to {self.high:.1%}, n={self.n})"
        return f"{self.value:6.2f}  ({self.low:.2f} to {self.high:.2f}, n={self.n})"

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def share(cases: Iterable[bool]) -> Figure:
    """The share of true cases with Wilson's interval, which is valid for few cases and for shares near 0 and 1."""
    found = list(cases)
    n = len(found)
    if not n:
        return Figure(None, None, None, 0)
    p = sum(found) / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    reach = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Figure(p, min(p, max(0.0, centre - reach)), max(p, min(1.0, centre + reach)), n)


def mean(cases: Iterable[float | None]) -> Figure:
    """The mean of the cases that are not `None`, with its normal interval. No case may be negative."""
    found = [case for case in cases if case is not None]
    n = len(found)
    if not n:
        return Figure(None, None, None, 0)
    value = sum(found) / n
    spread = math.sqrt(sum((case - value) ** 2 for case in found) / (n - 1)) if n > 1 else 0.0
    reach = Z * spread / math.sqrt(n)
    return Figure(value, max(0.0, value - reach), value + reach, n)


def mean_of_shares(figures: Iterable[Figure]) -> Figure:
    """The mean of some shares, each of cases of its own, with the interval that follows from theirs; groups without cases do not count."""
    found = [(each.value, each.low, each.high, each.n) for each in figures]
    known = [(value, high - low, n) for value, low, high, n in found if value is not None and low is not None and high is not None]
    if not known:
        return Figure(None, None, None, 0)
    value = sum(value for value, _, _ in known) / len(known)
    reach = (sum((width / 2) ** 2 for _, width, _ in known) ** 0.5) / len(known)
    return Figure(value, max(0.0, value - reach), min(1.0, value + reach), sum(n for _, _, n in known))
