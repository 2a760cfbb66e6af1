"""What moves or changes its size: how it is labelled and learnt, and that its pixels come through."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.models.pipeline import open_pair
from duogen.nn.change_head import ChangeHead
from duogen.painters.masks import Motion, clear_gone, find_shape, grow_shape, level_ground, move_pixels, to_pixels
from duogen.provenance import encode_picture
from duogen.sketchbook.change import add_thing, place_thing, recolour_part, remove_thing
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import BACKGROUNDS, Scene
from duogen.sketchbook.verify import check_scene
from duogen.sketchbook.world import make_thing, random_colours
from duogen.train.change_head import Change, LabelledMotion, collate, fold_head, label_motion, measure_head, narrow_head, train_head
from duogen.train.states import Projection
from tests.models.test_caches import noise_picture, options
from tests.models.test_change_head import make_head
from tests.support.tiny import BOV, END, SIDE, script, tiny_pair

SPOTS = [{"side": "middle"}, {"level": "sky"}, {"side": "middle", "level": "sky"}, {"scale": "big"}]


def make_scene(background: str = "night") -> Scene:
    things = [make_thing(kind, random_colours(kind, random.Random(4))) for kind in ("house", "tree")]
    return Scene(background, tuple(replace(each, scale="small", side=side) for each, side in zip(things, ("left", "right"), strict=True)))


@pytest.mark.parametrize("where", SPOTS)
@pytest.mark.parametrize("size", [256, 512])
def test_moved_pixels_on_the_empty_ground_are_the_picture_after(where: dict, size: int) -> None:
    """Both ways, and for a picture larger than the painter's. What the labels say is what the serving side does."""
    scene = make_scene()
    moved = place_thing(scene, 0, **where)
    for before, after in ((scene, moved), (moved, scene)):
        label = label_motion(before, after)
        assert label is not None
        source = label.mark_source(to_pixels([draw(before)])[0])[None, None]
        motion = Motion(source, 2 ** label.target[0], *label.target[1:])
        ground, picture = (draw(each).resize((size, size), PILImage.Resampling.NEAREST) for each in (remove_thing(before, 0), before))
        made = move_pixels(ground, picture, motion, (256, 256))
        assert made.size == (size, size)
        assert check_scene(made.resize((256, 256), PILImage.Resampling.BOX), after).right


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_level_ground_takes_the_place_of_what_has_gone(background: str, size: int) -> None:
    """Whatever the painter made of it, and whether the thing moves or goes for good; what stands beside it stays."""
    before = make_scene(background)
    after, (picture, meant) = remove_thing(before, 0), (draw(each) for each in (before, remove_thing(before, 0)))
    stays = torch.from_numpy((np.asarray(picture) == np.asarray(meant)).all(-1))[None, None]
    ghost = PILImage.blend(meant, picture, 0.06)  # a trace of the thing is left, and a speck of it
    ghost.paste((230, 20, 20), (60, 190, 63, 193))
    large = [each.resize((size, size), PILImage.Resampling.NEAREST) for each in (picture, meant, ghost)]
    assert not check_scene(PILImage.blend(meant, picture, 0.6), after).right
    for made in (level_ground(large[0], stays, (256, 256)), clear_gone(large[2], large[0], stays, (256, 256))):
        assert made.size == (size, size)
        assert (np.abs(np.asarray(made, int) - np.asarray(large[1], int)).max(-1) > 8).mean() < 1e-4
        assert check_scene(made.resize((256, 256), PILImage.Resampling.BOX), after).right


def test_what_is_painted_anew_is_not_taken_for_ground() -> None:
    """A recoloured thing, one that comes anew, and a part of what stands in front of what has gone."""
    before = make_scene()
    recoloured, added = recolour_part(before, 0, 0, "yellow"), draw(before)
    for old, new in ((draw(before), draw(recoloured)), (draw(remove_thing(before, 0)), added)):
        stays = torch.from_numpy((np.asarray(old) == np.asarray(new)).all(-1))[None, None]
        assert np.array_equal(np.asarray(clear_gone(new, old, stays, (256, 256))), np.asarray(new))
    sky, wall, post = (150, 200, 250), (200, 40, 40), (60, 60, 60)
    old, new = np.full((64, 64, 3), sky, np.uint8), np.full((64, 64, 3), sky, np.uint8)
    old[20:40, 10:50] = wall
    old[10:60, 28:32] = new[10:60, 28:32] = post
    stays = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    stays[..., 20:40, 10:50] = False  # the post in front of the wall was painted anew, too
    made = np.asarray(clear_gone(PILImage.fromarray(new), PILImage.fromarray(old), stays, (64, 64)))
    assert np.array_equal(made, new)


def test_where_both_sides_differ_the_painted_ground_stays() -> None:
    ground = np.zeros((16, 16, 3), np.uint8)
    ground[:, 10:] = 200
    ground[8:, 4:12] = 99  # what was painted
    stays = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    stays[..., 8:, 4:12] = False
    assert np.array_equal(np.asarray(level_ground(PILImage.fromarray(ground), stays, (16, 16))), ground)


def test_marks_make_one_shape_without_holes() -> None:
    marks = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    marks[..., 8:28, 8:28] = True
    whole = marks.clone()
    marks[..., 12:18, 12:18] = marks[..., :, 20] = False  # a hole, and a gap
    marks[..., 36:38, 36:38] = True  # something apart
    assert torch.equal(find_shape(marks), whole)
    assert not find_shape(torch.zeros_like(marks)).any()
    assert grow_shape(whole, 3)[0, 0].nonzero().min() == 5


def test_only_one_thing_with_another_place_or_size_moves() -> None:
    scene = make_scene()
    house = scene.things[0]
    moved = place_thing(scene, 0, level="sky")
    others = (
        scene, replace(moved, background="sea"), recolour_part(scene, 0, 0, "blue" if house.parts[0].colour != "blue" else "red"),
        place_thing(moved, 1, side="middle"), remove_thing(scene, 1), add_thing(scene, replace(house, side="middle")),
        recolour_part(moved, 0, 0, "blue" if house.parts[0].colour != "blue" else "red"),
    )  # fmt: skip
    assert label_motion(scene, moved) is not None
    assert all(label_motion(scene, other) is None for other in others)


def make_changes(count: int) -> list[Change]:
    """2 x 2 places of 8 x 8 pixels: the first word says whether the red block goes right, becomes half as big, or is recoloured."""
    generator, kinds, made = random.Random(3), torch.eye(6), []
    for _ in range(count):
        place, said = generator.randrange(4), generator.randrange(3)
        ground = np.zeros((16, 16, 3), np.uint8)
        ground[..., 1] = 255
        before, (row, column) = ground.copy(), divmod(place, 2)
        before[row * 8 + 2 : row * 8 + 6, column * 8 + 2 : column * 8 + 6] = (255, 0, 0)
        empty, seen = (encode_picture(PILImage.fromarray(each), "PNG", None) for each in (ground, before))
        motion = [LabelledMotion((0.0, 0.5, 0.0), empty), LabelledMotion((-1.0, 0.0, 0.25), empty), None][said]
        moved = torch.arange(4) == place
        made.append(Change(kinds[4 + moved.long()], kinds[[said, 3]], moved, (seen, empty), motion))
    return made


def test_a_head_learns_what_moves_and_how() -> None:
    head = train_head(make_changes(150), 250, seed=0, log=lambda words: None)
    figures = measure_head(head, make_changes(190)[150:])
    assert figures["moves"] > 0.95 and figures["motions"] > 0.9 and figures["sources"] > 0.8
    changes = make_changes(4)
    projection = Projection.fit([torch.randn(100, 10, generator=torch.Generator().manual_seed(1))], 6)
    narrow = narrow_head(fold_head(head, projection), projection)
    for one, other in zip(head.state_dict().values(), narrow.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert narrow.find_motion(narrow.read(*collate(changes)[:3])).shape == (4, 4)


def move_right(channels: int) -> ChangeHead:
    """A head that moves the left half of a picture to the right, whatever it reads."""
    head = make_head(channels, (), 4)
    moving = ChangeHead(channels, (4, 4), layers=1, width=8, heads=1, pixels=4, moves=True)
    moving.load_state_dict(head.state_dict(), strict=False)
    with torch.no_grad():
        for name in ("motion_token", "to_motion.weight", "to_motion.bias", "to_source.weight", "to_source.bias"):
            moving.get_parameter(name).zero_()
        moving.place_table.zero_()
        moving.place_table[[0, 1, 4, 5, 8, 9, 12, 13], 0] = 1
        moving.place_table[[2, 3, 6, 7, 10, 11, 14, 15], 0] = -1
        moving.to_source.weight[0, 0] = 1
        moving.to_motion.bias[:] = torch.tensor([1.0, 0.0, 0.5, 0.0])
    return moving.eval()


def test_an_answer_moves_the_pixels_that_the_head_names(tmp_path, monkeypatch) -> None:
    """The right half shows the old left one to the pixel; where that was, the painter paints. The head comes with its pair."""
    pair = open_pair(tiny_pair(tmp_path / "pair", gate=True), "cpu", "fp32")
    pair.about = replace(pair.about, image_size=(SIDE, SIDE), copy_below=1e9, keep_below=0.0)  # the gate alone would copy everything
    width = len(Engine(pair).mllm.layers) * pair.text_encoder.config.text_config.hidden_size
    pair.register_modules(change_head=move_right(width))
    pair.save_pretrained(tmp_path / "saved")
    engine = Engine(open_pair(tmp_path / "saved", "cpu", "fp32"))
    brought = noise_picture(1).resize((2 * SIDE, 2 * SIDE), PILImage.Resampling.NEAREST)
    script(monkeypatch, engine.tokens, "Here", BOV, END)
    *_, done = engine.answer(Conversation().say("user", "Move it", brought), options(2))
    (image,) = done.conversation.path()[-1].images()
    made, before = np.asarray(image.picture), np.asarray(brought)
    assert image.picture.size == brought.size and (made[:, SIDE:] == before[:, :SIDE]).all()
    assert (made[:, :SIDE] == before[:, :SIDE]).all(-1).mean() < 0.1
    assert torch.allclose(engine.memory.frames.past[-1], engine.painter.encode(image.picture), atol=1e-5)
