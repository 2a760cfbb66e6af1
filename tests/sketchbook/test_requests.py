"""Requests for shapes, requests that leave everything open, and the autoencoder: how their replies are marked."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from duogen.conversation import Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate import autoencoder, shapes, vague
from duogen.evaluate.scores import MOST_DECIBELS
from duogen.evaluate.shapes import SHAPES, Composition, matches_request, score_reply
from duogen.models.pipeline import open_pair
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import COLOURS, SHAPE_SIZES, Part, Scene, Thing
from duogen.sketchbook.verify import Check, PartCheck
from duogen.sketchbook.words import picture_sentence
from duogen.sketchbook.world import make_thing
from tests.support.tiny import tiny_pair

EVERY = [Composition(**entry) for entry in json.loads(SHAPES.read_text(encoding="utf-8"))["asked"]]


class Named:
    about = {"steps": 2, "guidance": 1.0}


def scene_of(request: Composition) -> Scene:
    """A scene that fits the request; what it leaves open is arbitrary."""
    parts: list[Part] = []
    for index, each in enumerate(request.parts):
        size = next(size for size in each.get("size", SHAPE_SIZES[each["shape"]]) if size in SHAPE_SIZES[each["shape"]])
        own = {"place": each["place"], "of": each["of"]} if index else {"stand": "high up"}
        parts.append(Part(each["shape"], size, each.get("colour", "yellow"), **own))
    return Scene(request.background or "sea", (Thing(None, tuple(parts)),))


def reply(scene: Scene, shown: Scene | None = None) -> list[Piece]:
    return [Text(picture_sentence(scene)), Image(draw(shown or scene))]


def test_every_request_can_be_met():
    assert len(EVERY) == len({each.say for each in EVERY}) == 100
    for each in EVERY:
        scene = scene_of(each)
        assert matches_request(each, scene), each.say
        assert score_reply(each, reply(scene))["words"], each.say


def test_a_request_is_met_by_nothing_else():
    request = EVERY[0]
    scene = scene_of(request)
    circle, star, line = scene.things[0].parts
    wrong = [
        (replace(circle, colour="red"), star, line),
        (circle, replace(star, shape="heart"), line),
        (replace(circle, size="small"), star, line),
        (circle, star, replace(line, place="on top of")),
        (circle, star),
        (circle, star, line, replace(line, colour="pink")),
    ]
    for parts in wrong:
        assert not matches_request(request, Scene("sea", (Thing(None, parts),))), parts
    assert matches_request(request, Scene("sea", (Thing(None, (circle, line, star)),))), "the order is free"
    first = Part("line", "long", "red", stand="on the ground")
    upside_down = (first, replace(circle, place="on top of", of=0, stand=None), replace(star, of=1))
    assert matches_request(request, Scene("sea", (Thing(None, upside_down),))), "a circle on a line is a line below a circle"
    assert not matches_request(replace(request, background="night"), scene)
    house = Scene("sea", (make_thing("house", dict.fromkeys(("walls", "roof", "door", "windows"), "red")),))
    assert not matches_request(request, house)


def test_words_and_picture_are_marked_apart():
    request = next(each for each in EVERY if each.say.startswith("draw a red square"))
    scene = scene_of(request)
    square, circle = scene.things[0].parts
    other = Scene(scene.background, (Thing(None, (square, replace(circle, colour="blue"))),))
    assert score_reply(request, reply(scene)) == {"words": True, "picture": True, "right": True}
    assert score_reply(request, reply(scene, other)) == {"words": True, "picture": False, "right": False}
    assert score_reply(request, reply(other)) == {"words": False, "picture": True, "right": False}
    assert score_reply(request, [Text(picture_sentence(scene))]) == {"words": False, "picture": False, "right": False}


def test_shapes_are_asked_for(monkeypatch):
    def answer(engine, words, options):
        return reply(scene_of(next(each for each in EVERY if each.say == words)))

    monkeypatch.setattr(shapes, "ask_pair", answer)
    figures = shapes.evaluate(Named(), 5, log=lambda line: None)
    assert figures["scores"]["right"] == figures["scores"]["words"] and figures["scores"]["right"]["n"] == 5
    assert figures["scores"]["right"]["value"] == 1.0
    with pytest.raises(ValueError, match="at least 1"):
        shapes.evaluate(Named(), 0)


def test_a_pair_that_always_thinks_of_the_same_is_found_out(monkeypatch):
    def drawing(seed: int) -> list[Piece]:
        scene = Scene("sea", (Thing(None, (Part("square", "big", list(COLOURS)[seed % 8], stand="high up"),)),))
        return reply(scene) if seed else [Text("No.")]

    monkeypatch.setattr(vague, "ask_pair", lambda engine, words, options: drawing(options.seed))
    figures = vague.evaluate(Named(), 2, 0, log=lambda line: None)["scores"]
    assert figures["different"]["value"] == 7 and figures["six_different"]["value"] == 1.0 and figures["right"]["value"] == 7 / 8
    monkeypatch.setattr(vague, "ask_pair", lambda engine, words, options: drawing(1))
    figures = vague.evaluate(Named(), 2, 0, log=lambda line: None)["scores"]
    assert figures["different"]["value"] == 1 and figures["six_different"]["value"] == 0.0 and figures["right"]["value"] == 1.0
    with pytest.raises(ValueError, match="at least 1"):
        vague.evaluate(Named(), 0)


def test_ideas_are_different_where_all_their_scenes_are(monkeypatch):
    def draw_reply(colour: str) -> list[Piece]:
        return reply(Scene("sea", (Thing(None, (Part("square", "big", colour, stand="high up"),)),)))

    def answer(colours: tuple[str, ...]):
        ideas = [part for colour in colours for part in draw_reply(colour)]
        return lambda engine, words, options: ideas if "ideas" in words else draw_reply("red")

    monkeypatch.setattr(vague, "ask_pair", answer(("red", "blue", "yellow")))
    figures = vague.evaluate(Named(), 2, 0, log=lambda line: None, ideas=3)
    assert {name: each["value"] for name, each in figures["scores"].items()} == {"all_different": 1.0, "right": 1.0, "right_alone": 1.0}
    assert [each["say"] for each in figures["asked"]] == ["Give me 3 ideas.", "Give me 3 ideas for a house."]
    assert figures["scores"]["right"]["n"] == 6 and figures["scores"]["right_alone"]["n"] == 2 * vague.ALONE
    for colours in (("red", "blue", "red"), ("red", "blue")):
        monkeypatch.setattr(vague, "ask_pair", answer(colours))
        assert vague.evaluate(Named(), 1, 0, log=lambda line: None, ideas=3)["scores"]["all_different"]["value"] == 0.0


def test_a_real_pair_is_asked(tmp_path):
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    assert shapes.evaluate(engine, 1, log=lambda line: None)["asked"][0]["say"] == EVERY[0].say
    assert len(vague.evaluate(engine, 1, log=lambda line: None)["asked"]) == vague.SEEDS
    scores = autoencoder.evaluate(engine, 4, log=lambda line: None)["scores"]
    assert scores["psnr"]["n"] == 4 and 0 < scores["psnr"]["value"] < 30, "its weights are random"
    assert scores["right_scenes"]["n"] == 2 and scores["right"]["value"] < 1


def test_an_autoencoder_is_judged_by_what_it_loses():
    def scores(restore) -> dict:
        return autoencoder.measure_loss(restore, 12, log=lambda line: None)["scores"]

    kept = scores(lambda picture: picture)
    assert kept["right"]["value"] == 1.0 and [kept[f"right_{group}"]["n"] for group in ("scenes", "edits", "styles")] == [6, 3, 3]
    assert kept["psnr"]["value"] == MOST_DECIBELS
    lost = scores(lambda picture: picture.resize((16, 16)).resize((256, 256)))
    assert lost["right"]["value"] < 0.3 and lost["right_styles"]["value"] < 1 and lost["psnr"]["value"] < 30
    with pytest.raises(ValueError, match="at least 1"):
        autoencoder.measure_loss(lambda picture: picture, 0)


def test_only_what_was_right_before_can_be_lost():
    wrong, right = PartCheck(0, 0, True, False, True, True, True), PartCheck(0, 0, True, True, True, True, True)
    assert autoencoder.is_kept(Check(True, (wrong,), True), Check(True, (right,)))
    assert autoencoder.is_kept(Check(True, (wrong,), True), Check(True, (wrong,), True))
    for less in (Check(True, (wrong,)), Check(False, (right,)), Check(True, (right,), True)):
        assert not autoencoder.is_kept(Check(True, (right,)), less)


def test_the_drawings_of_a_seed_are_the_same():
    one, other = (list(autoencoder.make_cases(8, 5)) for _ in range(2))
    assert [case.scene for case in one] == [case.scene for case in other]
    assert all(a.picture.tobytes() == b.picture.tobytes() for a, b in zip(one, other, strict=True))
    assert [case.group for case in one] == [*autoencoder.GROUPS] * 2
    assert draw(one[0].scene).tobytes() == one[0].picture.tobytes() and draw(one[3].scene).tobytes() != one[3].picture.tobytes()
