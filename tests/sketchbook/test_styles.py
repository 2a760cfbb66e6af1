"""Drawings in other styles: the same picture, drawn differently."""

from __future__ import annotations

import random

import numpy as np
import pytest

from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.tasks import sample
from duogen.sketchbook.world import kinds, random_scene
from duogen.train.curriculum import sample_task
from duogen.train.settings import CurriculumSettings


def scenes(count: int) -> list[Scene]:
    rng = random.Random(1)
    return [random_scene(rng, kinds("train")) for _ in range(count)]


def far(one, other) -> np.ndarray:
    """How far two pictures are apart at every point, in 0..255."""
    return np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean(-1)


@pytest.mark.parametrize("style", STYLES)
def test_another_style_draws_the_same_thing_differently(style):
    for seed, scene in enumerate(scenes(6)):
        clean = draw(scene)
        drawn = apply_style(clean, style, seed)
        assert drawn.size == clean.size and drawn.mode == "RGB"
        assert drawn.tobytes() == apply_style(clean, style, seed).tobytes() != apply_style(clean, style, seed + 1).tobytes()
        assert 4 < far(drawn, clean).mean() < 50
        others = [far(drawn, draw(other)).mean() for other in scenes(12)[6:] if other.background == scene.background]
        assert all(far(drawn, clean).mean() < other for other in others), "it is nearer to its own drawing than to another"


def test_what_stays_is_bent_alike():
    """An edit in the same style changes only the place of the edit."""
    scene = next(scene for scene in scenes(20) if len(scene.things) > 1)
    fewer = Scene(scene.background, scene.things[:1])
    gone = far(draw(scene), draw(fewer)) > 0
    for style in STYLES:
        moved = far(apply_style(draw(scene), style, 3), apply_style(draw(fewer), style, 3)) > 2
        assert 0.7 < moved.sum() / gone.sum() < 1.5


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="child, marker"):
        apply_style(draw(scenes(1)[0]), "left", 0)


def test_a_share_of_the_uploads_is_drawn_in_another_style():
    def clean(settings: dict, task: str) -> list[bool]:
        """Of some dialogues, whether all pictures are clean drawings of what they are meant to show."""
        found = []
        for seed in range(30):
            turns = sample_task(task, random.Random(seed), CurriculumSettings.from_json(settings))
            dialogue = sample(task, random.Random(seed))
            pictures = [image.picture for turn in turns for image in turn.images()]
            found.append(all(mine.tobytes() == draw(scene).tobytes() for mine, scene in zip(pictures, dialogue.scenes(), strict=True)))
        return found

    assert all(clean({}, "question")) and all(clean({"styles": 1.0}, "guide"))
    some = clean({"styles": 0.5}, "question")
    assert 5 < sum(some) < 25 and sum(clean({"styles": 1.0}, "question")) < sum(some)
    assert clean({"hands": 0.5}, "question") == some, "recipes of earlier versions call the share hands"
