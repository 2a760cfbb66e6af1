"""What the models receive for "@name": the pictures of the reference and its words, as if a person had written both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from duogen.conversation import REFERENCE, Conversation, Image, Reference, Text
from duogen.engine import Engine
from duogen.events import AnswerBuilder
from duogen.library.references import ReferenceStore
from duogen.models.pipeline import open_pair
from duogen.options import ImageOptions, Options, TextOptions
from tests.support.tiny import SIDE, tiny_pair
from ui.chat.references import ask_in_style

OPTIONS = Options(1, TextOptions(temperature=1.0, max_tokens=40), ImageOptions(steps=2, preview_every=0, max_images=1))
INK = Reference("Ink", "style", "black ink")


def noise(seed: int, role: str = "", about: Reference | None = None) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image(PILImage.fromarray(pixels), role=role, reference=about)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32"))


def answer(engine: Engine, asked: Conversation) -> list[str | bytes]:
    """The words of an answer and the pixels of its pictures."""
    made = AnswerBuilder()
    for event in engine.answer(asked, OPTIONS):
        made.take(event)
    assert not made.error
    return [part.text if isinstance(part, Text) else part.picture.tobytes() for part in made.parts]


def watch_pixels(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The pictures that the vision tower reads."""
    seen: list[bytes] = []
    pixels = engine.tokens.pixels

    def watch(images: list[Image]):
        seen.extend(image.picture.tobytes() for image in images)
        return pixels(images)

    monkeypatch.setattr(engine.tokens, "pixels", watch)
    return seen


def test_a_mention_is_read_as_pictures_and_words_that_a_person_brings(engine: Engine, tmp_path: Path, monkeypatch) -> None:
    store = ReferenceStore(tmp_path / "references")
    store.add(INK, [noise(1), noise(2)])
    asked = store.attach(Conversation().say("user", noise(3), "A house in @ink, see @1."))
    seen = watch_pixels(engine, monkeypatch)
    packed = engine._prompt(asked.path(), (), OPTIONS).packed
    mine = answer(engine, asked)
    assert seen[:3] == [each.picture.tobytes() for each in (noise(1), noise(2), noise(3))], "references first, the picture to change last"
    written = "A house in the style of Ink (black ink, see picture 1 and picture 2), see picture 3."
    pictures = [noise(1, REFERENCE), noise(2, REFERENCE), noise(3, "source")]
    by_hand = Conversation().say("user", *pictures, written)
    assert packed.ids == engine.tokens.pack(by_hand.path()).ids + engine.tokens.opening("assistant")
    engine.memory = type(engine.memory)()
    assert answer(engine, by_hand) == mine
    assert answer(engine, Conversation().say("user", noise(3, "source"), written)) != mine


def test_a_style_is_among_what_the_painter_sees(engine: Engine, monkeypatch) -> None:
    asked = Conversation().say("user", "A house.")
    styled = asked.with_turn(ask_in_style(asked.path()[0], [noise(1, about=INK)]))
    seen = watch_pixels(engine, monkeypatch)
    painted = [engine.generate_image(each.say("assistant", "The walls.\n"), OPTIONS) for each in (asked, styled)]
    assert painted[0].picture.tobytes() != painted[1].picture.tobytes()
    assert noise(1).picture.tobytes() in seen, "the MLLM reads it"
    assert engine.memory.slots[0].image.picture.tobytes() == noise(1).picture.tobytes(), "the painter has it as a frame"
