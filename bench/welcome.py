"""Paints the pictures of the first page and of the README with the bundled pair: python -m bench.welcome

The last picture of the answer to each of the pair's examples becomes `assets/welcome/N.webp`; `examples.json` beside them names them.
`assets/readme/guide.webp` has a row for each of six guides.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

from PIL import Image as PILImage

from duogen import paths
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import AnswerBuilder
from duogen.options import Options, TextOptions

SEED = 1
FOLDER = paths.ASSETS / "welcome"
SHEET, SIDE, GAP = paths.ASSETS / "readme" / "guide.webp", 196, 4
GUIDES = (
    "How do I draw a red house with a blue door?",
    "How do I draw a snowman at night?",
    "How do I draw a yellow flower with a purple centre?",
    "How do I draw a red car with a green cabin?",
    "How do I draw a blue tree with red apples?",
    "How do I draw a green rocket by the sea?",
)


def main() -> None:
    engine = Engine.open(None)
    FOLDER.mkdir(exist_ok=True)
    examples = {}
    for number, words in enumerate(engine.about["examples"], 1):
        name = f"{number}.webp"
        _paint(engine, words)[-1].save(FOLDER / name, "WEBP", quality=90, method=6)
        examples[words] = name
        print(f"{name}: {words}", flush=True)
    record = {"command": "python -m bench.welcome", "seed": SEED, "examples": examples}
    (FOLDER / "examples.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _save_sheet([_paint(engine, words) for words in GUIDES], SHEET)


def _paint(engine: Engine, words: str) -> list[PILImage.Image]:
    """The pictures of an answer, its words at temperature 0."""
    options = Options(seed=SEED, text=TextOptions(temperature=0))
    answer = AnswerBuilder.from_events(engine.answer(Conversation().say("user", words), options, threading.Event()))
    return [image.picture for image in answer.images()]


def _save_sheet(rows: list[list[PILImage.Image]], file: Path) -> None:
    sheet = PILImage.new("RGB", (max(map(len, rows)) * (SIDE + GAP), len(rows) * (SIDE + GAP)), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS), (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(file, "WEBP", quality=90, method=6)


if __name__ == "__main__":
    main()
