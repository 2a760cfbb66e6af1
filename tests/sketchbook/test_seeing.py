"""What the vision tower is given and taught: places, what is in sight, and words that can be told apart."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from PIL import ImageFilter
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from duogen.models.mllm import append_patch_positions
from duogen.sketchbook.draw import OVER, draw, visible_part_map
from duogen.sketchbook.scene import Part, Scene, Thing
from duogen.sketchbook.world import random_composition
from duogen.train.vision import CELLS, labels, orthogonalise, vocabulary

INDEX = {word: place for place, word in enumerate(vocabulary())}


@pytest.mark.parametrize("merge", [1, 2])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_tower_that_asks_for_places_gets_those_of_its_patches(merge, channels):
    """Pictures that get redder to the right and greener downwards carry their places themselves."""
    pictures = []
    for width, height in ((64, 32), (32, 96)):
        across, down = np.meshgrid(*((np.arange(side) + 0.5) * 255 / side for side in (width, height)))
        pictures.append(PILImage.fromarray(np.stack([across, down, 0 * down], -1).round().astype(np.uint8)))
    maker = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=merge, temporal_patch_size=1, min_pixels=1, max_pixels=10**6, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    made = maker(images=pictures, return_tensors="pt")
    vision = SimpleNamespace(temporal_patch_size=1, patch_size=8, in_channels=channels, spatial_merge_size=merge)
    given = append_patch_positions(made["pixel_values"], made["image_grid_thw"], vision)
    if channels == 3:
        assert given is made["pixel_values"]
        return
    patches = given.view(-1, channels, 64).mean(-1)
    assert torch.equal(given[:, : 3 * 64], made["pixel_values"])
    assert (patches[:, 3] - patches[:, 1]).abs().max() < 0.02, "rows"
    assert (patches[:, 4] - patches[:, 0]).abs().max() < 0.02, "columns"


def test_in_sight_is_what_a_part_paints():
    rng = random.Random(3)
    for _ in range(12):
        thing = random_composition(rng, 4)
        seen = visible_part_map(Scene("paper", (thing,)))
        for number, part in enumerate(thing.parts):
            parts = list(thing.parts)
            parts[number] = replace(part, colour="yellow" if part.colour != "yellow" else "purple")
            before, after = (np.asarray(draw(Scene("paper", (replace(thing, parts=tuple(each)),)))) for each in (thing.parts, parts))
            changed = (before != after).any(-1)
            mine = seen[::OVER, ::OVER] == number + 1
            assert (changed & mine).sum() >= 0.65 * mine.sum(), "what is left of a hidden one is mostly outline of the other"
            around = np.asarray(PILImage.fromarray(mine.astype(np.uint8)).filter(ImageFilter.MaxFilter(13)), bool)
            assert (changed & ~around).sum() < 10, "outlines at most, and their sharp tips"


def test_a_cell_has_the_words_of_what_is_seen_there():
    square = Part("square", "big", "red", stand="on the ground")
    dot = Part("circle", "tiny", "blue", place="in the middle of", of=0)
    truth = labels(Scene("paper", (Thing(None, (square, dot)),)), INDEX).view(CELLS, CELLS, -1)
    inside = truth[..., INDEX["red"]]
    assert inside.max() > 0.9 and torch.equal(inside, truth[..., INDEX["square"]])
    assert 0 < truth[..., INDEX["blue"]].max() < inside.max()
    assert float(truth[0, 0, INDEX["paper"]]) == 1 and float(truth[0, 0, INDEX["red"]]) == 0
    row, column = divmod(int(inside.argmax()), CELLS)
    assert truth[row, column, INDEX["paper"]] + truth[row, column, INDEX["red"]] + truth[row, column, INDEX["blue"]] == pytest.approx(1)
    for place, words in (((0, 0), "top left"), ((7, 7), "bottom right"), ((4, 3), "middle centre"), ((3, 4), "middle centre")):
        said = {word for word in ("top", "middle", "bottom", "left", "centre", "right") if truth[place][INDEX[word]]}
        assert said == set(words.split())
    under, over = Part("square", "small", "green", stand="on the ground"), Part("square", "big", "red", place="in the middle of", of=0)
    hidden = labels(Scene("paper", (Thing(None, (under, over)),)), INDEX)
    assert hidden[:, INDEX["green"]].max() == 0, "what is painted over is not seen"


def test_words_are_set_apart_and_stay_near_themselves():
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(20, 64) + 2 * torch.randn(64), dim=-1)
    away = orthogonalise(rows)
    alike = away @ away.T
    assert (rows @ rows.T).fill_diagonal_(0).max() > 0.7
    assert alike.fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal((away @ rows.T).argmax(1), torch.arange(20)), "each is nearest to its own word"
    assert orthogonalise(torch.cat([rows, rows[:2].mean(0, keepdim=True)])).isfinite().all(), "also where one is made of others"
