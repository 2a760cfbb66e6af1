"""What moves, goes or gets another colour: how it is labelled and learnt, and that the pixels of the picture before come through."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.models.pipeline import open_pair
from duogen.nn.change_head import BINS, KINDS, ChangeHead, list_bins, read_motions
from duogen.painters.masks import (
    ColourChange,
    Motion,
    Removal,
    Transform,
    apply_transform,
    fill_shapes,
    find_shape,
    grow_shape,
    level_ground,
    mark_regions,
    to_pixels,
)
from duogen.provenance import encode_picture
from duogen.sketchbook.change import add_thing, loose_parts, place_thing, recolour_part, remove_part, remove_thing
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, Scene
from duogen.sketchbook.verify import check_scene
from duogen.sketchbook.world import make_thing, random_colours
from duogen.train.change_head import Change, LabelledTransform, collate, fold_head, label_transform, measure_head, narrow_head, train_head
from duogen.train.states import Projection
from tests.models.test_caches import noise_picture, options
from tests.models.test_change_head import make_head
from tests.support.tiny import BOV, END, SIDE, script, tiny_pair

SPOTS = [{"side": "middle"}, {"level": "sky"}, {"side": "middle", "level": "sky"}, {"scale": "big"}]


def make_scene(background: str = "night") -> Scene:
    things = [make_thing(kind, random_colours(kind, random.Random(4))) for kind in ("house", "tree")]
    return Scene(background, tuple(replace(each, scale="small", side=side) for each, side in zip(things, ("left", "right"), strict=True)))


def read_label(label: LabelledTransform, before: PILImage.Image) -> Transform:
    """What the serving side makes of a head that tells the label."""
    pixels = to_pixels([before])
    marks = mark_regions(label.mark_source(pixels[0])[None, None].float(), pixels)
    if label.kind == "recolour":
        red, green, blue = ((value + 1) * 127.5 for value in label.colour)
        return ColourChange(marks, (red, green, blue))
    return Motion(find_shape(marks), 2 ** label.motion[0], *label.motion[1:]) if label.kind == "move" else Removal(fill_shapes(marks))


def change_picture(before: Scene, after: Scene, size: int, painted: PILImage.Image) -> PILImage.Image:
    """The picture of `before` in another size, with what its labels say; `painted` is what the painter makes of the ground."""
    label, picture = label_transform(before, after), draw(before)
    assert label is not None
    transform = read_label(label, picture)
    large = picture.resize((size, size), PILImage.Resampling.NEAREST)
    made = apply_transform(painted, large, ~transform.source, transform)
    assert made.size == (size, size)
    return made.resize((256, 256), PILImage.Resampling.BOX)


@pytest.mark.parametrize("where", SPOTS)
@pytest.mark.parametrize("size", [256, 512])
def test_moved_pixels_on_the_empty_ground_are_the_picture_after(where: dict, size: int) -> None:
    """Both ways, and for a picture larger than the painter's. What the labels say is what the serving side does."""
    scene = make_scene()
    moved = place_thing(scene, 0, **where)
    for before, after in ((scene, moved), (moved, scene)):
        assert check_scene(change_picture(before, after, size, draw(remove_thing(before, 0))), after).right


def test_what_moves_leaves_the_ground_between_its_parts_behind() -> None:
    """A tree goes from the meadow into the sky: none of the meadow comes with it."""
    before = make_scene("meadow")
    after = place_thing(before, 1, level="sky")
    made, meant = (np.asarray(each, int) for each in (change_picture(before, after, 256, draw(remove_thing(before, 1))), draw(after)))
    assert (np.abs(made - meant).max(-1)[:112] > 60).mean() < 1e-3


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_part_in_another_colour_keeps_its_shape_and_outline(background: str, size: int) -> None:
    """Every part of both things in every other colour, whatever was painted; a detail on it keeps its own colour."""
    before, blotches = make_scene(background), PILImage.effect_noise((256, 256), 90).convert("RGB")
    for number, thing in enumerate(before.things):
        for index, part in enumerate(thing.parts):
            for colour in sorted(set(COLOURS) - {part.colour, "white", "grey", "black"}):
                after = recolour_part(before, number, index, colour)
                made = change_picture(before, after, size, blotches)
                assert check_scene(made, after).right, (thing.kind, part.name, part.colour, colour)
                far = np.abs(np.asarray(made, int) - np.asarray(draw(after), int)).max(-1) > 90
                assert far.mean() < 1e-3


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_that_goes_takes_nothing_beside_it_along(number: int) -> None:
    """Every part on which no other stands, but the door, which touches the windows of a small house. The painter left a trace of it."""
    before = make_scene()
    for index in loose_parts(before.things[number]):
        if before.things[number].parts[index].name == "door":
            continue
        after = before.with_thing(number, remove_part(before.things[number], index))
        made = change_picture(before, after, 256, PILImage.blend(draw(after), draw(before), 0.1))
        assert check_scene(made, after).right, before.things[number].parts[index]


@pytest.mark.parametrize("size", [256, 512])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_level_ground_takes_the_place_of_what_has_gone(background: str, size: int) -> None:
    """Whatever the painter made of it; what stands beside it stays."""
    before = make_scene(background)
    after, (picture, meant) = remove_thing(before, 0), (draw(each) for each in (before, remove_thing(before, 0)))
    stays = torch.from_numpy((np.asarray(picture) == np.asarray(meant)).all(-1))[None, None]
    large = [each.resize((size, size), PILImage.Resampling.NEAREST) for each in (picture, meant)]
    assert not check_scene(PILImage.blend(meant, picture, 0.6), after).right
    made = level_ground(large[0], stays, (256, 256))
    assert made.size == (size, size)
    assert (np.abs(np.asarray(made, int) - np.asarray(large[1], int)).max(-1) > 8).mean() < 1e-4
    assert check_scene(made.resize((256, 256), PILImage.Resampling.BOX), after).right


def test_where_both_sides_differ_the_painted_ground_stays() -> None:
    ground = np.zeros((16, 16, 3), np.uint8)
    ground[:, 10:] = 200
    ground[8:, 4:12] = 99  # what was painted
    stays = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    stays[..., 8:, 4:12] = False
    picture = PILImage.fromarray(ground)
    assert np.array_equal(np.asarray(level_ground(picture, stays, (16, 16))), ground)


def test_the_wall_takes_the_place_of_a_door_between_two_windows() -> None:
    """A narrow strip of it is on both sides, and the painter painted it, with traces of the door."""
    before = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    before[16:30, 4:23] = before[16:30, 41:60] = (60, 60, 200)
    before[12:50, 25:39] = (250, 220, 60)
    stays = torch.from_numpy((before != (250, 220, 60)).any(-1))[None, None]
    meant = np.where(stays[0, 0].numpy()[..., None], before, np.uint8((200, 40, 40)))
    painted = np.where(stays[0, 0].numpy()[..., None], before, np.uint8((210, 70, 45)))
    assert np.array_equal(np.asarray(level_ground(PILImage.fromarray(painted), stays, (64, 64))), meant)


@pytest.mark.parametrize("size", [16, 40])
def test_whole_pictures_and_single_pixels_are_transformed_too(size: int) -> None:
    """Nothing lies beside the one, and the other has no middle."""
    before, painted = PILImage.new("RGB", (size, size), (20, 90, 200)), PILImage.new("RGB", (16, 16), (9, 9, 9))
    whole, single = torch.ones(1, 1, 16, 16, dtype=torch.bool), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    single[..., 5, 6] = True
    for source in (whole, single, torch.zeros_like(whole)):
        for transform in (Motion(source, 0.5, 0.1, 0.0), Removal(source), ColourChange(source, (250.0, 240.0, 10.0))):
            assert apply_transform(painted, before, ~source, transform).size == before.size
    made = np.asarray(apply_transform(painted, before, ~whole, ColourChange(whole, (250.0, 240.0, 10.0))))
    assert (np.abs(made - np.array((250, 240, 10))) <= 1).all()


@pytest.mark.parametrize("sure", [0.55, 0.95])
def test_whole_regions_of_a_colour_are_marked(sure: float) -> None:
    """Three of four of its pixels are enough, and one of four of the ground around it does no harm."""
    picture = to_pixels([draw(make_scene("paper"))])
    thing = np.asarray(draw(make_scene("paper")), int)
    meant = torch.from_numpy(np.abs(thing - (250, 246, 236)).max(-1) > 4)[None, None]
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand(meant.shape, generator=generator)
    marks = torch.where(torch.where(meant, noise < 0.75, noise < 0.25), sure, 1 - sure)
    found = mark_regions(marks, picture)
    assert (found != meant).float().mean() < 0.01 and ((marks > 0.5) != meant).float().mean() > 0.2
    few = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    assert torch.equal(mark_regions(marks[..., :8, :8], few), marks[..., :8, :8] > 0.5), "noise has no regions"


def test_marks_make_one_shape_without_holes() -> None:
    marks = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    marks[..., 8:28, 8:28] = True
    whole = marks.clone()
    marks[..., 12:18, 12:18] = marks[..., :, 20] = False  # a hole, and a gap
    marks[..., 36:38, 36:38] = True  # something apart
    assert torch.equal(find_shape(marks), whole)
    assert not find_shape(torch.zeros_like(marks)).any()
    assert grow_shape(whole, 3)[0, 0].nonzero().min() == 5


def test_shapes_are_filled_and_specks_are_none() -> None:
    marks = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    marks[..., 4:14, 4:14] = marks[..., 24:34, 24:34] = True
    whole = marks.clone()
    marks[..., 8:11, 8:11] = False
    marks[..., 36:38, 4:6] = True
    assert torch.equal(fill_shapes(marks), whole)


def test_a_change_is_labelled_where_it_is_one_alone() -> None:
    scene = make_scene()
    house = scene.things[0]
    colour = "blue" if house.parts[0].colour != "blue" else "red"
    moved, recoloured = place_thing(scene, 0, level="sky"), recolour_part(scene, 0, 0, colour)
    bare = scene.with_thing(0, remove_part(house, loose_parts(house)[0]))
    found = [label_transform(scene, each) for each in (moved, recoloured, bare, remove_thing(scene, 1))]
    assert [each.kind for each in found if each] == ["move", "recolour", "remove", "remove"]
    assert found[1] and found[1].colour == pytest.approx([value / 127.5 - 1 for value in COLOURS[colour]])
    others = (
        scene, replace(moved, background="sea"), place_thing(moved, 1, side="middle"), add_thing(scene, replace(house, side="middle")),
        recolour_part(moved, 0, 0, colour), recolour_part(recoloured, 0, 1, "purple" if house.parts[1].colour != "purple" else "red"),
        remove_thing(bare, 1), place_thing(bare, 0, level="sky"), bare.with_thing(1, replace(scene.things[1], side="middle")),
    )  # fmt: skip
    assert all(label_transform(scene, other) is None for other in others)


def make_changes(count: int) -> list[Change]:
    """2 x 2 places of 8 x 8 pixels: the first word says what becomes of the red block: it goes right or down and becomes half as big, it
    goes, it gets one of two colours, or it is painted."""
    generator, kinds, made = random.Random(3), torch.eye(9), []
    for _ in range(count):
        place, said = generator.randrange(4), generator.randrange(6)
        ground = np.zeros((16, 16, 3), np.uint8)
        ground[..., 1] = 255
        before, (row, column) = ground.copy(), divmod(place, 2)
        before[row * 8 + 2 : row * 8 + 6, column * 8 + 2 : column * 8 + 6] = (255, 0, 0)
        empty, seen = (encode_picture(PILImage.fromarray(each), "PNG", None) for each in (ground, before))
        transform = [
            LabelledTransform("move", empty, (0.0, 0.5, 0.0)), LabelledTransform("move", empty, (-1.0, 0.0, 0.25)),
            LabelledTransform("remove", empty), LabelledTransform("recolour", empty, colour=(-0.8, 0.0, 0.7)),
            LabelledTransform("recolour", empty, colour=(0.9, 0.9, -0.5)), None,
        ][said]  # fmt: skip
        moved = torch.arange(4) == place
        made.append(Change(kinds[7 + moved.long()], kinds[[said, 6]], moved, (seen, empty), transform))
    return made


def test_a_head_learns_what_becomes_of_what() -> None:
    head = train_head(make_changes(300), 300, seed=0, log=lambda words: None)
    figures = measure_head(head, make_changes(340)[300:])
    assert min(figures["kinds"], figures["motions"], figures["colours"]) > 0.9 and figures["sources"] > 0.8, figures
    changes = make_changes(4)
    projection = Projection.fit([torch.randn(100, 12, generator=torch.Generator().manual_seed(1))], 9)
    narrow = narrow_head(fold_head(head, projection), projection)
    for one, other in zip(head.state_dict().values(), narrow.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert narrow.find_transforms(narrow.read(*collate(changes)[:3])).kinds.shape == (4, len(KINDS))


def test_a_motion_is_near_the_likeliest_bin_and_not_between_two() -> None:
    bins, logits = list_bins(), torch.full((1, 3, BINS), -20.0)
    logits[0, :, 30] = 3.0
    logits[0, :, 100] = 2.5  # nearly as likely, and far
    assert torch.allclose(read_motions(logits)[0], bins[:, 30], atol=1e-5)
    logits[0, :, 31] = 3.0
    assert torch.allclose(read_motions(logits)[0], (bins[:, 30] + bins[:, 31]) / 2, atol=1e-5)


def change_left(channels: int, kind: str) -> ChangeHead:
    """A head that moves the left half of a picture to the right, makes it orange, or removes it, whatever it reads."""
    head = make_head(channels, (), 4)
    changing = ChangeHead(channels, (4, 4), layers=1, width=8, heads=1, pixels=4, transforms=True)
    changing.load_state_dict(head.state_dict(), strict=False)
    with torch.no_grad():
        for name in ("to_kind", "to_motion", "to_colour", "to_source"):
            for weight in changing.get_submodule(name).parameters():
                weight.zero_()
        changing.motion_token.zero_()
        changing.place_table.zero_()
        changing.place_table[[0, 1, 4, 5, 8, 9, 12, 13], 0] = 1
        changing.place_table[[2, 3, 6, 7, 10, 11, 14, 15], 0] = -1
        changing.to_source.weight[0, 0] = 1
        changing.to_kind.bias[KINDS.index(kind)] = 1
        changing.to_colour.bias[:] = (torch.tensor(COLOURS["orange"]) / 127.5 - 1).atanh()
        nearest = (list_bins() - torch.tensor([[0.0], [0.5], [0.0]])).abs().square()
        changing.to_motion.bias[:] = (-1e4 * nearest).flatten()
    return changing.eval()


def answer_changed(tmp_path, monkeypatch, kind: str, brought: PILImage.Image) -> tuple[Engine, PILImage.Image]:
    """A tiny pair with such a head, saved and opened again, and what it makes of a picture."""
    pair = open_pair(tiny_pair(tmp_path / "pair", gate=True), "cpu", "fp32")
    pair.about = replace(pair.about, image_size=(SIDE, SIDE), copy_below=1e9, keep_below=0.0)  # the gate alone would copy everything
    width = len(Engine(pair).mllm.layers) * pair.text_encoder.config.text_config.hidden_size
    pair.register_modules(change_head=change_left(width, kind))
    pair.save_pretrained(tmp_path / "saved")
    engine = Engine(open_pair(tmp_path / "saved", "cpu", "fp32"))
    script(monkeypatch, engine.tokens, "Here", BOV, END)
    *_, done = engine.answer(Conversation().say("user", "Change it", brought), options(2))
    (image,) = done.conversation.path()[-1].images()
    assert image.picture.size == brought.size
    assert torch.allclose(engine.memory.frames.past[-1], engine.painter.encode(image.picture), atol=1e-5)
    return engine, image.picture


def test_an_answer_gives_the_pixels_that_the_head_names_another_colour(tmp_path, monkeypatch) -> None:
    brought = PILImage.new("RGB", (2 * SIDE, 2 * SIDE), COLOURS["blue"])
    brought.paste((255, 255, 255), (SIDE, 0, 2 * SIDE, 2 * SIDE))
    made = np.asarray(answer_changed(tmp_path, monkeypatch, "recolour", brought)[1], int)
    assert np.abs(made[:, :SIDE] - COLOURS["orange"]).max() <= 2 and (made[:, SIDE:] == 255).all()


def test_an_answer_leaves_the_ground_of_what_goes_to_the_painter(tmp_path, monkeypatch) -> None:
    brought = PILImage.new("RGB", (2 * SIDE, 2 * SIDE), COLOURS["blue"])
    brought.paste((255, 255, 255), (SIDE, 0, 2 * SIDE, 2 * SIDE))
    made = np.asarray(answer_changed(tmp_path, monkeypatch, "remove", brought)[1])
    assert (made[:, SIDE + 6 :] == 255).all() and (made[:, :SIDE] == COLOURS["blue"]).all(-1).mean() < 0.1


def test_an_answer_moves_the_pixels_that_the_head_names(tmp_path, monkeypatch) -> None:
    """The right half shows the old left one to the pixel; where that was, the painter paints. The head comes with its pair."""
    brought = noise_picture(1).resize((2 * SIDE, 2 * SIDE), PILImage.Resampling.NEAREST)
    made, before = np.asarray(answer_changed(tmp_path, monkeypatch, "move", brought)[1]), np.asarray(brought)
    assert (made[4:-4, SIDE + 4 : -4] == before[4:-4, 4 : SIDE - 4]).all()
    assert (made[:, :SIDE] == before[:, :SIDE]).all(-1).mean() < 0.1
