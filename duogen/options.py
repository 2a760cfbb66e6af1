"""The options of an answer: the one source for the page's controls, the command line's flags and the API's fields."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def option(default: Any, help: str, low: float | None = None, high: float | None = None, step: float | None = None) -> Any:
    """A dataclass field that carries what a control needs: a help sentence and, for numbers, its range."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "step": step})


class Checked:
    """Refuses values outside the ranges that the fields declare."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, low, high = getattr(self, each.name), each.metadata["low"], each.metadata["high"]
            if value is None or low is None:
                continue
            if not low <= value <= high:
                raise ValueError(f"{each.name} must be between {low} and {high}, not {value}.")


@dataclass(frozen=True)
class TextOptions(Checked):
    temperature: float = option(0.4, "How freely words are chosen; 0 always takes the likeliest.", 0.0, 2.0, 0.05)
    top_p: float = option(0.9, "Only the likeliest words that make up this share are considered.", 0.05, 1.0, 0.05)
    max_tokens: int = option(512, "The longest answer, in tokens.", 1, 8192, 1)


@dataclass(frozen=True)
class ImageOptions(Checked):
    steps: int = option(8, "Denoising steps for each picture; fewer are faster.", 1, 100, 1)
    guidance: float = option(1.0, "How strongly a picture follows the latest words; 1 is off.", 1.0, 10.0, 0.1)
    max_images: int = option(8, "The most pictures in one answer.", 0, 64, 1)
    preview_every: int = option(2, "Show the picture in the making after every so many steps; 0 never.", 0, 100, 1)


@dataclass(frozen=True)
class Options:
    """All options of one answer. `seed` fixes words and pictures; `None` draws a new one."""

    seed: int | None = None
    text: TextOptions = field(default_factory=TextOptions)
    image: ImageOptions = field(default_factory=ImageOptions)


# By field, as the path of names from `Options`; what a preset does not name takes the pair's own default.
PRESETS: dict[str, dict[tuple[str, ...], Any]] = {
    "quick": {("image", "steps"): 4, ("image", "max_images"): 4, ("image", "preview_every"): 0, ("text", "max_tokens"): 256},
    "balanced": {},
    "fine": {("image", "steps"): 16, ("image", "max_images"): 12, ("text", "max_tokens"): 1024},
}
