"""The requests written by hand, and how their replies are marked."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image as PILImage

from duogen.conversation import Image, Text
from duogen.engine import Engine
from duogen.evaluate.phrasings import PHRASINGS, Phrasing, evaluate, score_reply
from duogen.models.pipeline import open_pair
from duogen.sketchbook.scene import BACKGROUNDS, PART_COLOURS, Scene
from duogen.sketchbook.tasks import sample
from duogen.sketchbook.world import things
from tests.support.tiny import BOV, END, script, tiny_pair

EVERY = [Phrasing(**entry) for entry in json.loads(PHRASINGS.read_text(encoding="utf-8"))["asked"]]


def test_every_request_can_be_met():
    assert len(EVERY) == len({each.say for each in EVERY}) == 200
    for each in EVERY:
        if each.reply == "words":
            assert not each.kind and not each.parts
            continue
        parts = {part.name for part in things()[each.kind].parts}
        assert each.reply in ("guide", "picture") and parts >= each.parts.keys() and not each.outside, each
        assert set(each.parts.values()) <= set(PART_COLOURS) and each.background in ("", *BACKGROUNDS), each


def guide() -> tuple[Scene, list]:
    """A reference guide as a reply."""
    picture = Image(PILImage.new("RGB", (8, 8)))
    for seed in range(100):
        line = sample("guide", random.Random(seed), kinds=["house"]).lines[1]
        if len(line.scenes()) > 2:
            return line.scenes()[-1], [picture if isinstance(part, Scene) else Text(part) for part in line.parts]
    raise AssertionError("no guide")


def test_a_guide_is_right_with_its_wishes_only():
    scene, reply = guide()
    walls = next(part.colour for part in scene.things[0].parts if part.name == "walls")
    other = next(colour for colour in PART_COLOURS if colour != walls)
    assert score_reply(Phrasing("x", "guide", "house", {"walls": walls}, scene.background), reply)["right"]
    wrong = [Phrasing("x", "guide", "house", {"walls": other}), Phrasing("x", "guide", "tree"), Phrasing("x", "words")]
    wrong.append(Phrasing("x", "guide", "house", background=next(name for name in BACKGROUNDS if name != scene.background)))
    assert not any(score_reply(each, reply)["right"] for each in [*wrong, Phrasing("x", "picture", "house")])


@pytest.mark.parametrize(
    ("said", "plain", "outside"),
    [("Hello!", True, False), ("I cannot draw that, but I can draw a cat.", True, True), ("", False, False), ("No.", True, False)],
)
def test_words(said, plain, outside):
    assert score_reply(Phrasing("x", "words"), [Text(said)])["right"] == plain
    assert score_reply(Phrasing("x", "words", outside=True), [Text(said)])["right"] == outside
    assert not score_reply(Phrasing("x", "words"), [Text(said), guide()[1][1]])["draws"]


def test_a_pair_is_asked(tmp_path, monkeypatch):
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    script(monkeypatch, engine.tokens, "Hello", END, "Hi", BOV, END)
    figures = evaluate(engine, 2, log=lambda line: None)
    assert figures["n"] == 2 and [each["reply"] for each in figures["asked"]] == ["Hello", "Hi[picture]"]
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(engine, 0)
