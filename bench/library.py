"""How fast the library is with many pictures: python -m bench.library [--pictures N]

Files and index are made in a temporary folder; medians of the repeats, in milliseconds of processor time (goals are of these) and by the
clock, which says more of the machine the busier it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from PIL import Image as PILImage

from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery, PictureQuery
from ui.tabs.library import PER_PAGE, picture_title

THINGS = ["house", "boat", "tree", "cat", "car", "sun", "mountain", "bridge", "lamp", "fish"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "orange", "purple"]
SIDE, REPEATS = 256, 20
GOALS = {"search": 20.0, "page": 50.0, "last_page": 50.0, "new_thumbnails_page": 1500.0, "open": 500.0}


def filled(home: Path, count: int) -> Gallery:
    """A gallery of small pictures with words, a few of them favourites."""
    gallery, rng = Gallery(home), random.Random(0)
    for number in range(count):
        picture = PILImage.new("RGB", (SIDE, SIDE), tuple(rng.randbytes(3)))
        picture.paste(tuple(rng.randbytes(3)), (number % 200, number // 200 % 200, SIDE, SIDE))
        words = (
            f"Step {number % 8 + 1}. Draw a {rng.choice(COLOURS)} {rng.choice(THINGS)} beside a {rng.choice(COLOURS)} {rng.choice(THINGS)}."
        )
        gallery.add(picture, PictureInfo(words, seed=number, model="Bench", made=1e9 + number, favourite=number % 50 == 0))
    return gallery


def milliseconds(work: Callable[[], Any], repeats: int = REPEATS) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        started = time.process_time(), time.perf_counter()
        work()
        times.append((time.process_time() - started[0], time.perf_counter() - started[1]))
    processor, clock = (round(1000 * statistics.median(kind), 2) for kind in zip(*times, strict=True))
    return {"processor": processor, "clock": clock}


def shown(gallery: Gallery, grid: gr.Gallery, wanted: PictureQuery, start: int) -> None:
    """What the page does to show a page, up to what is sent to the browser."""
    entries, _ = gallery.find(wanted, start, PER_PAGE)
    grid.postprocess([(str(gallery.thumbnail(entry)), picture_title(entry)) for entry in entries]).model_dump()


def measured(home: Path, count: int) -> dict[str, dict[str, float]]:
    gallery, grid = filled(home, count), gr.Gallery()
    numbers = {
        "search": milliseconds(lambda: gallery.find(PictureQuery("red boat"))),
        "page": milliseconds(lambda: shown(gallery, grid, PictureQuery(), 0)),
        "last_page": milliseconds(lambda: shown(gallery, grid, PictureQuery(), count - PER_PAGE)),
        "favourites_page": milliseconds(lambda: shown(gallery, grid, PictureQuery(favourites=True, sort="large"), 0)),
        "open": milliseconds(lambda: Gallery(home), 3),
    }

    def without_thumbnails() -> None:
        gallery.thumbnails.clear()
        shown(gallery, grid, PictureQuery(), 0)

    numbers["new_thumbnails_page"] = milliseconds(without_thumbnails, 3)
    for file in home.glob("pictures.sqlite*"):
        file.unlink()
    return numbers | {"index_lost_open": milliseconds(lambda: Gallery(home), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the library with many small pictures.")
    parser.add_argument("--pictures", type=int, default=5000)
    count = parser.parse_args().pictures
    with tempfile.TemporaryDirectory(prefix="duogen-library-") as home:
        numbers = measured(Path(home), count)
    missed = {name: goal for name, goal in GOALS.items() if numbers[name]["processor"] > goal}
    print(json.dumps({"pictures": count, **numbers, "goals_missed": missed}, indent=1))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
