"""The picture world: things, geometry, splits and drawing."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from duogen.sketchbook.draw import draw, outline_points
from duogen.sketchbook.scene import (
    BACKGROUNDS,
    CANVAS,
    COLOURS,
    PLACES,
    SHAPE_SIZES,
    SHAPES,
    SIZES,
    Part,
    Scene,
    Thing,
    fits_canvas,
    part_boxes,
)
from duogen.sketchbook.verify import check_scene
from duogen.sketchbook.world import (
    HELD_OUT_KINDS,
    _refuse_double_names,
    has_held_out,
    is_held_out_colour,
    kinds,
    make_thing,
    parse_entry,
    random_colours,
    random_composition,
    random_scene,
    things,
)


def test_the_world_is_large_enough_and_sound():
    assert len(kinds("all", "draw")) >= 16 and len(kinds("all", "make")) >= 8
    assert len(HELD_OUT_KINDS) >= 4 and set(kinds("all")) >= HELD_OUT_KINDS
    for entry in things().values():
        assert 3 <= len(entry.parts) <= 6, entry.kind
        for part in entry.parts:
            assert part.shape in SHAPES and part.size in SIZES and set(part.colours) <= set(COLOURS)
            assert part.place is None or part.place in PLACES
            assert set(part.natural) <= set(part.colours), (entry.kind, part.name)


@pytest.mark.parametrize("kind", kinds("all"))
@pytest.mark.parametrize("scale", ["big", "small"])
def test_every_thing_fits_and_every_part_shows(kind, scale):
    thing = make_thing(kind, random_colours(kind, random.Random(1)), scale=scale)
    assert fits_canvas(thing)
    pictures = [np.asarray(draw(Scene("paper", (Thing(kind, thing.parts[:count], scale),)))) for count in range(1, len(thing.parts) + 1)]
    for before, after in zip(pictures, pictures[1:], strict=False):
        assert (before != after).any(-1).sum() >= 20, "a step must change the picture"


def test_same_scene_same_pixels_and_size():
    scene = random_scene(random.Random(3), kinds())
    first, second = draw(scene), draw(scene)
    assert first.size == (CANVAS, CANVAS) and first.tobytes() == second.tobytes()


def test_backgrounds_differ():
    means = {name: np.asarray(draw(Scene(name))).mean((0, 1)).tolist() for name in BACKGROUNDS}
    names = list(means)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert np.abs(np.subtract(means[one], means[other])).max() > 15


def test_training_scenes_hold_nothing_out():
    rng = random.Random(5)
    assert not any(has_held_out(random_scene(rng, kinds())) for _ in range(400))


def test_splits_are_stable():
    # Written down once: a changed hash would move held-out pictures into training.
    every = [(e.kind, p.name, c) for e in things().values() for p in e.parts for c in p.colours]
    held = sorted(each for each in every if is_held_out_colour(*each))
    assert len(held) == 62, "a new thing adds some: write the new number, and see that the old ones stay"
    assert held[0] == ("boat", "mast", "green") and held[-1] == ("windmill", "tower", "purple")


def test_random_compositions_fit_and_draw():
    rng = random.Random(7)
    for _ in range(200):
        thing = random_composition(rng)
        assert fits_canvas(thing) and draw(Scene("paper", (thing,))).size == (CANVAS, CANVAS)


def test_boxes_follow_the_words():
    body = Part("square", "big", "red", stand="on the ground")
    [[square], [hat]] = part_boxes(Thing(None, (body, Part("triangle", "wide", "blue", place="on top of", of=0))))
    assert square[3] == 224 and hat[3] == square[1] and (hat[0] + hat[2]) == (square[0] + square[2])
    assert len(part_boxes(Thing(None, (body, Part("circle", "tiny", "blue", place="side by side in", of=0))))[1]) == 2


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="not before it"):
        part_boxes(Thing(None, (Part("square", "big", "red", place="below", of=3),)))
    with pytest.raises(ValueError, match="no place called"):
        part_boxes(Thing(None, (Part("square", "big", "red"), Part("square", "tiny", "blue", place="under the bed", of=0))))
    with pytest.raises(ValueError, match="no shape called"):
        outline_points("blob")


def test_shapes_have_sizes():
    assert set(SHAPE_SIZES) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_whatever_words_say_can_be_drawn(shape):
    """Words of a model go together as they like: a tiny cloud, half as big as usual, is smaller than its outline."""
    paper = np.asarray(draw(Scene("paper", ())))
    for size in SIZES:
        thing = Thing(None, (Part(shape, size, "red", stand="on the ground"),), "small")
        assert (np.asarray(draw(Scene("paper", (thing,)))) != paper).any(), size


@pytest.mark.parametrize("kind", kinds("all"))
def test_every_thing_is_read_back_as_it_was_drawn(kind: str) -> None:
    scene = Scene("meadow", (make_thing(kind, random_colours(kind, random.Random(3))),))
    assert check_scene(draw(scene), scene).right


def test_a_wrong_entry_is_named() -> None:
    with pytest.raises(ValueError, match="The shade of the lamp stands on 'stalk', which the lamp lacks"):
        parse_entry("lamp", {"parts": [{"name": "foot"}, {"name": "shade", "of": "stalk"}]})
    with pytest.raises(ValueError, match="names 'lamp' twice"):
        json.loads('{"lamp": 1, "lamp": 2}', object_pairs_hook=_refuse_double_names)
