"""What a layout is: how a folder of training data is recognised and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from duogen.dataset.folder import Folder
from duogen.dataset.format import Example, Problem

Found = Iterator[Example | Problem | Path]


@dataclass(frozen=True)
class Layout:
    """A layout of training data.

    Attributes:
        kind: its name for people.
        fits: whether a folder has it.
        read: yields examples, problems, and pictures without a description; what one file raises concerns that file alone.
        unused: why a picture may be there that no example shows.
    """

    kind: str
    fits: Callable[[Folder], object]
    read: Callable[[Folder], Found]
    unused: str
