"""The options of a run of the data engine, for the command line and the page."""

from __future__ import annotations

from dataclasses import dataclass

from duogen.options import RangeChecked, option


@dataclass(frozen=True)
class DataOptions(RangeChecked):
    language: str = option("en", "Keep pages in this language (two letters); empty keeps all.")
    min_words: int = option(40, "Drop pages with fewer words.", 0, 10_000, 1)
    min_side: int = option(160, "Drop pictures whose shorter side has fewer pixels.", 16, 4096, 1)
    max_pictures: int = option(24, "The most pictures kept of a page; the rest of the page goes with them.", 1, 256, 1)
    max_side: int = option(2048, "Pictures are made smaller to this many pixels on the longer side.", 128, 8192, 1)
    gain: float = option(0.34, "Move a picture only when its sentence fits better by this much (0 to 1).", 0.0, 1.0, 0.01)
    block: str = option("", "A file of words and addresses, one a line; pages with one of them are dropped.")
    licence: str = option("", "The licence of pages that name none.")
