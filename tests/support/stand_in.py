"""The page with a stand-in for the engine, so that tests can look at an answer in the middle: python tests/support/stand_in.py

Its answers have three pictures whose colours come from the seed; `--seconds` is what each takes. If the question says "slowly", the
third of a new answer is half painted until somebody stops it or the file `go` is in DUOGEN_HOME. A request for ideas gets four.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from PIL import Image as PILImage
from PIL import ImageDraw

ROOT = Path(__file__).parents[2]
STEPS, HALF, LAST = 5, 3, 2
IDEAS = ("A boat at noon.", "\n\nA boat at dusk.", "\n\nA boat in fog.", "\n\nA boat at night.")
WORDS = ("Step 1. Draw the hull of the boat.", "\n\nStep 2. Put a mast on it.", "\n\nStep 3. Paint the **sail**.", "\n\nAll done!")


class StandIn:
    about = {
        "title": "Stand-in",
        "summary": "It draws colours.",
        "examples": ("How do I draw a boat?",),
        "image_size": (64, 64),
        "steps": STEPS,
    }

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def answer(self, conversation, options, stop: threading.Event) -> Iterator:
        yield from self._answer(conversation, [], options, stop)

    def continue_answer(self, conversation, options, stop: threading.Event) -> Iterator:
        from duogen.conversation import Text

        head = conversation.path()[-1]
        whole = head.parts[: len(head.parts) - isinstance(head.parts[-1], Text)]  # it says every step from its start
        yield from self._answer(conversation.at(head.parent), list(whole), options, stop)

    def _answer(self, conversation, parts: list, options, stop: threading.Event) -> Iterator:
        from duogen.conversation import Image, Text, Turn
        from duogen.events import Done, Ideas, Stats, TextDelta
        from duogen.ideas import find_ideas

        began, seeds = time.monotonic(), random.Random(options.seed)
        asked = conversation.path()[-1]
        masked = next((image for image in asked.images() if image.mask), None)
        first = sum(isinstance(part, Image) for part in parts)
        slow = "slowly" in asked.text() and first == 0
        ideas = find_ideas(asked.text()) is not None
        if ideas:
            yield Ideas()
        for at, words in enumerate((IDEAS if ideas else WORDS)[first:], first):
            for word in words.split(" "):
                yield TextDelta(word + " ")
                time.sleep(self.seconds / 50)
            parts.append(Text(words))
            if (at < 3 or ideas) and not stop.is_set():
                yield from self._paint(at, seeds.randrange(2**31), parts, stop, masked, slow and at == LAST)
            if stop.is_set():
                break
        why = "user" if stop.is_set() else "end"
        turn = Turn("assistant", tuple(parts), parent=conversation.head, ideas=ideas)
        yield Done(conversation.with_turn(turn), Stats(1, 1, 1, 3, 0.1, time.monotonic() - began, why))

    def keep_unchanged(self, painted: PILImage.Image, before: PILImage.Image) -> PILImage.Image:
        return painted.resize(before.size)

    def describe_change(self, before: PILImage.Image, after: PILImage.Image) -> str:
        return "Paint the hull red."

    def stream_image(self, conversation, options, stop: threading.Event, drafts: tuple[str, ...] = ()) -> Iterator:
        yield from self._paint(len(conversation.path()[-1].images()), options.seed, [], stop)

    def _paint(self, index: int, seed: int, parts: list, stop: threading.Event, masked=None, slow: bool = False) -> Iterator:
        from duogen.conversation import Image
        from duogen.events import ImageDone, ImageStarted, ImageStep
        from duogen.paths import data_home
        from duogen.provenance import Origin

        picture = boat(index + 1, random.Random(seed))
        if masked:
            picture = PILImage.composite(picture.resize(masked.picture.size), masked.picture, masked.mask)
        yield ImageStarted(index, seed, STEPS)
        for step in range(1, STEPS + 1):
            time.sleep(self.seconds / STEPS)
            while slow and step > HALF and not stop.is_set() and not (data_home() / "go").exists():
                time.sleep(0.01)
            if stop.is_set():
                return
            yield ImageStep(index, step, STEPS, picture.resize((8, 8)) if step % 2 == 0 else None)
        parts.append(Image(picture, seed, self.seconds, f"Step {index + 1}", origin=Origin.CHANGED if masked else Origin.PAINTED))
        yield ImageDone(index, parts[-1])


def boat(steps: int, colours: random.Random) -> PILImage.Image:
    """Hull, mast and sail, as many of them as there were steps; the colours are random."""
    paper, sea, hull, sail = (tuple(colours.randrange(low, low + 90) for _ in range(3)) for low in (165, 90, 40, 120))
    picture = PILImage.new("RGB", (256, 256), paper)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 196, 256, 256), fill=sea)
    pen.polygon([(40, 170), (216, 170), (186, 214), (70, 214)], fill=hull)
    if steps > 1:
        pen.rectangle((124, 50, 132, 170), fill="#4a3728")
    if steps > 2:
        pen.polygon([(138, 54), (138, 158), (206, 158)], fill=sail)
    return picture


def main() -> None:
    sys.path.insert(0, str(ROOT))
    at = sys.argv.index("--seconds")
    _, seconds = sys.argv[at : at + 2]
    del sys.argv[at : at + 2]
    import app
    from ui.parts.loading import Loading

    def start(loading: Loading) -> None:
        loading.engine, loading.words = StandIn(float(seconds)), "Ready: Stand-in."
        loading.finished.set()

    Loading.start = start
    app.main()


if __name__ == "__main__":
    main()
