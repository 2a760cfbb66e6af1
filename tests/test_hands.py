"""Drawings by other hands: the same picture, drawn differently."""

from __future__ import annotations

import random

import numpy as np
import pytest

from duogen.sketchbook.draw import draw
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.tasks import sample
from duogen.sketchbook.world import kinds, random_scene
from duogen.train.curriculum import practised


def scenes(count: int) -> list[Scene]:
    rng = random.Random(1)
    return [random_scene(rng, kinds("train")) for _ in range(count)]


def far(one, other) -> np.ndarray:
    """How far two pictures are apart at every point, in 0..255."""
    return np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean(-1)


@pytest.mark.parametrize("hand", HANDS)
def test_another_hand_draws_the_same_thing_otherwise(hand):
    for seed, scene in enumerate(scenes(6)):
        clean = draw(scene)
        drawn = by_hand(clean, hand, seed)
        assert drawn.size == clean.size and drawn.mode == "RGB"
        assert drawn.tobytes() == by_hand(clean, hand, seed).tobytes() != by_hand(clean, hand, seed + 1).tobytes()
        assert 4 < far(drawn, clean).mean() < 50
        others = [far(drawn, draw(other)).mean() for other in scenes(12)[6:] if other.background == scene.background]
        assert all(far(drawn, clean).mean() < other for other in others), "it is nearer to its own drawing than to another"


def test_what_stays_is_bent_alike():
    """An edit by the same hand changes only the place of the edit."""
    scene = next(scene for scene in scenes(20) if len(scene.things) > 1)
    fewer = Scene(scene.background, scene.things[:1])
    gone = far(draw(scene), draw(fewer)) > 0
    for hand in HANDS:
        moved = far(by_hand(draw(scene), hand, 3), by_hand(draw(fewer), hand, 3)) > 2
        assert 0.7 < moved.sum() / gone.sum() < 1.5


def test_there_are_only_these_hands():
    with pytest.raises(ValueError, match="child, marker"):
        by_hand(draw(scenes(1)[0]), "left", 0)


def test_a_share_of_what_people_bring_is_drawn_by_another_hand():
    def clean(settings: dict, task: str) -> list[bool]:
        """Of some dialogues, whether all pictures are clean drawings of what they are meant to show."""
        found = []
        for seed in range(30):
            turns, told = practised(task, random.Random(seed), settings), sample(task, random.Random(seed))
            pictures = [image.picture for turn in turns for image in turn.images()]
            found.append(all(mine.tobytes() == draw(scene).tobytes() for mine, scene in zip(pictures, told.scenes(), strict=True)))
        return found

    assert all(clean({}, "question")) and all(clean({"hands": 1.0}, "guide"))
    some = clean({"hands": 0.5}, "question")
    assert 5 < sum(some) < 25 and sum(clean({"hands": 1.0}, "question")) < sum(some)
