"""Pictures are read back as the scenes that they show, and wrong ones are found out."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from PIL import Image

from bench.verify import WRONGS, add_noise, agreement, blotchy, clean, differs, measure_checks, measure_rejections, some_scene
from duogen.sketchbook.change import place_thing, recolour_part, remove_part
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import Part, Scene, Thing
from duogen.sketchbook.verify import check_scene, nearest_distance, psnr, read_scene, unchanged_mask
from duogen.sketchbook.world import make_thing

HOUSE = make_thing("house", {"walls": "red", "roof": "blue", "door": "green", "windows": "yellow"})
SCENE = Scene("meadow", (HOUSE,))


@pytest.mark.parametrize(("spoil", "least"), [(clean, 0.995), (add_noise, 0.98), (blotchy, 0.98)])
def test_right_pictures_are_found_right(spoil, least):
    attributes, pictures, _ = measure_checks(20, spoil, seed=1)
    assert attributes >= least and pictures >= 0.95


@pytest.mark.parametrize("wrong", WRONGS)
def test_wrong_pictures_are_rejected(wrong):
    assert measure_rejections(8, add_noise, wrong, seed=2) == 1


@pytest.mark.parametrize(("spoil", "least"), [(clean, 0.995), (add_noise, 0.98)])
def test_scenes_are_read_without_a_hint(spoil, least):
    rng = random.Random(3)
    counts = []
    for _ in range(16):
        scene = some_scene(rng)
        reading = read_scene(spoil(draw(scene), rng))
        counts.append(agreement(scene, reading.scene))
        assert reading.confidence > 0.8
    assert sum(right for right, _ in counts) / sum(total for _, total in counts) >= least


def test_check_names_the_wrong_attribute():
    door = check_scene(draw(recolour_part(SCENE, 0, 2, "pink")), SCENE).parts[2]
    assert (door.present, door.colour, door.shape, door.size, door.place) == (True, False, True, True, True)
    roof = HOUSE.parts[1]
    for field, value, attribute in (("shape", "half circle", "shape"), ("size", "medium", "size"), ("place", "in the middle of", "place")):
        other = Part(**{**vars(roof), field: value})
        shown = Scene("meadow", (Thing("house", (HOUSE.parts[0], other, *HOUSE.parts[2:])),))
        check = check_scene(draw(shown), SCENE)
        assert not getattr(check.parts[1], attribute), attribute
        assert check.parts[1].present and check.parts[1].colour and not check.right


def test_missing_part_has_nothing_right_and_the_others_stay_right():
    check = check_scene(draw(SCENE.with_thing(0, remove_part(HOUSE, 3))), SCENE)
    windows = check.parts[3]
    assert not (windows.present or windows.colour or windows.shape or windows.size or windows.place)
    assert all(part.right for part in check.parts[:3]) and check.background and not check.extra
    assert check.attributes == (16, 21)


def test_wrong_background_and_extra_thing():
    other = check_scene(draw(Scene("sea", SCENE.things)), SCENE)
    assert not other.background and all(part.right for part in other.parts)
    sun = make_thing("sun", {"rays": "orange", "face": "yellow", "eyes": "black", "mouth": "red"}, scale="small", side="left", level="sky")
    more = check_scene(draw(Scene("meadow", (HOUSE, sun))), SCENE)
    assert more.extra and not more.right and all(part.right for part in more.parts)


def test_bare_backgrounds_and_noise():
    assert read_scene(draw(Scene("night"))).scene == Scene("night")
    assert check_scene(draw(Scene("night")), Scene("night")).right
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8))
    assert not check_scene(noise, SCENE).right
    assert read_scene(noise).confidence < 0.5


def test_an_unnamed_composition_is_read_with_a_hint():
    parts = (Part("circle", "big", "blue", stand="on the ground"), Part("star", "small", "yellow", place="in the middle of", of=0))
    meant = Scene("paper", (Thing(None, parts),))
    shown = recolour_part(meant, 0, 1, "white")
    assert check_scene(draw(meant), meant).right
    assert read_scene(draw(shown), hint=meant).scene == shown


def test_a_part_that_was_left_out_is_read():
    shown = SCENE.with_thing(0, remove_part(HOUSE, 2))
    assert read_scene(draw(shown)).scene == shown


def test_psnr_and_distance():
    picture = draw(SCENE)
    brighter = Image.fromarray((np.asarray(picture, np.int16) + 2).clip(0, 255).astype(np.uint8))
    assert psnr(picture, picture) == math.inf
    assert psnr(picture, brighter) == pytest.approx(20 * math.log10(255 / 2), abs=0.3)  # white cannot get brighter
    assert nearest_distance(picture, SCENE) == 0
    assert nearest_distance(brighter, SCENE) == pytest.approx(2, abs=0.1)
    moved = Image.fromarray(np.roll(np.asarray(picture), (2, -1), (0, 1)))
    assert nearest_distance(moved, SCENE) == 0
    with pytest.raises(ValueError, match="resize"):
        psnr(picture, picture.resize((64, 64)))
    with pytest.raises(ValueError, match="no pixels"):
        psnr(picture, picture, np.zeros((256, 256), bool))


def test_unchanged_mask_leaves_out_what_changed():
    after = recolour_part(SCENE, 0, 2, "pink")
    mask = unchanged_mask(SCENE, after)
    assert psnr(draw(SCENE), draw(after), mask) == math.inf
    assert 0.9 < mask.mean() < 1 and not mask[200, 128]
    assert unchanged_mask(SCENE, SCENE).all()
    assert not unchanged_mask(SCENE, place_thing(SCENE, 0, scale="small"))[150, 90]


def test_wrong_makers_really_change_the_picture():
    rng = random.Random(4)
    for make in WRONGS.values():
        assert any(differs(SCENE, make(SCENE, rng)) for _ in range(5))
