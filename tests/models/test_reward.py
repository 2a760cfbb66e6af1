"""The reward stage: pictures are graded as they are right, and the painter turns to what is rewarded."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from bench.rewards import compare, grade_requests
from duogen.models.pipeline import About, DuoGenPipeline, open_pair
from duogen.nn.vae import PatchVAE
from duogen.options import ImageOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.cosmos import CosmosPainter
from duogen.sketchbook.draw import draw
from duogen.sketchbook.grade import Grade, grade_picture, list_new_parts
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.world import HELD_OUT_KINDS, has_held_out, make_thing
from duogen.train import __main__ as commands
from duogen.train.export import export
from duogen.train.policy import choose_kept, compute_nft_losses, compute_optimality
from duogen.train.reward import RewardStage, Setting, sample_request
from duogen.train.settings import RequestGroup, RewardSettings
from duogen.train.trainer import Recipe, build_state, collect_parameters, save_state, train
from tests.support.tiny import tiny_pair

pytestmark = pytest.mark.usefixtures("as_before")

GROUPS = [
    {"name": "first", "frames": [1], "requests": 1, "tasks": {"picture": 1.0}},
    {"name": "edits", "frames": [2], "requests": 2, "tasks": {"edit": 1.0}},
]
SETTINGS = {
    "grow_from": "", "pictures": 4, "noises": 1, "core_kinds": ["house", "tree"], "core_share": 1.0, "watch_every": 2, "watched": 1,
    "groups": GROUPS,
}  # fmt: skip


def recipe(**changes) -> Recipe:
    settings = SETTINGS | changes.pop("settings", {})
    made = {"steps": 3, "learning_rate": 0.01, "warmup": 1, "ema": 0.5, "workers": 0, "log_every": 1, "precision": "fp32", "decay": 0.0}
    return Recipe(**(made | {"settings": settings} | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny pair with a copy gate that paints 8 x 8 latents of the world's pictures."""
    folder = tiny_pair(tmp_path_factory.mktemp("pair"), gate=True)
    torch.manual_seed(2)
    vae = PatchVAE(z_dim=8, patch_size=32, width=8, blocks=1, latents_mean=[0.1] * 8, latents_std=[0.5 + 0.1 * i for i in range(8)])
    vae.fit_patches(torch.rand(64, 3 * 32 * 32) * 2 - 1)
    vae.register_to_config(latents_mean=[0.1] * 8, latents_std=[3.0 + 0.5 * i for i in range(8)])
    vae.save_pretrained(folder / "vae")
    about = replace(About.load(folder), image_size=(256, 256), steps=2)
    about.write(folder)
    return folder


def open_tiny(folder: Path) -> DuoGenPipeline:
    return open_pair(folder, "cpu", "fp32")


def quiet(line: str) -> None:
    pass


@pytest.fixture
def reward_red(monkeypatch) -> None:
    """Pictures are graded by how red they are: at once, and any two differ."""

    def grade_red(picture: PILImage.Image, meant: Scene, before: Scene | None) -> Grade:
        red, green, blue = np.asarray(picture, np.float32).mean((0, 1)) / 255
        return Grade(float(red - (green + blue) / 2), False)

    monkeypatch.setattr("duogen.train.reward.grade_picture", grade_red)


def house(**colours: str) -> Scene:
    chosen = {"walls": "red", "roof": "blue", "door": "brown", "windows": "yellow"} | colours
    return Scene("meadow", (make_thing("house", chosen),))


def without_part(scene: Scene) -> Scene:
    thing = scene.things[0]
    return scene.with_thing(0, replace(thing, parts=thing.parts[:-1]))


# Grades


def test_grades_stand_in_the_order_of_what_is_right():
    meant = house()
    wrong = [meant, house(roof="green"), house(roof="green", walls="orange"), Scene("night")]
    shares = [grade_picture(draw(scene), meant) for scene in wrong]
    assert shares[0] == Grade(1.0, True) and shares[0].reward(0.5) == 1.5
    assert all(one.share > other.share and not other.right for one, other in zip(shares, shares[1:], strict=False))
    assert shares[1].reward(0.5) == shares[1].share
    parts = len(meant.things[0].parts)
    assert shares[1].share == pytest.approx(1 - 1 / (2 + 5 * parts))  # one colour of all marks is wrong


def test_something_besides_what_is_meant_costs_a_mark():
    meant = without_part(house())
    grade = grade_picture(draw(house()), meant)
    assert not grade.right and grade.share == pytest.approx(1 - 1 / (2 + 5 * len(meant.things[0].parts)))


def test_to_leave_a_picture_as_it_is_does_not_pay():
    before, meant = house(), house(roof="green")
    assert list_new_parts(meant, before) == {(0, 1)} and len(list_new_parts(meant, None)) == len(meant.things[0].parts)
    kept, done, spoilt = (grade_picture(draw(scene), meant, before) for scene in (before, meant, house(roof="green", walls="orange")))
    assert done == Grade(1.0, True) and kept.share == pytest.approx((1 + 4 / 5) / 2)
    assert spoilt.share > kept.share, "the change was made, and one of many parts that stay is wrong"
    gone = without_part(before)
    assert grade_picture(draw(before), gone, before).share < 0.75 < 1.0 == grade_picture(draw(gone), gone, before).share


# Methods


def test_rejection_keeps_what_is_right_or_else_the_best():
    rewards = torch.tensor([[0.5, 0.9, 0.7], [2.0, 0.9, 2.0], [0.4, 0.4, 0.4], [2.0, 2.0, 2.0]])
    assert choose_kept(rewards, rewards > 1, 2) == [[1], [0, 2], [], [0, 1]]


def test_optimality_is_normalised_in_each_request_and_clipped():
    rewards = torch.tensor([[0.2, 0.4, 0.6, 0.8], [1.0, 1.0, 1.0, 1.0], [5.0, 5.2, 5.4, 5.6]])
    found = compute_optimality(rewards, 2.0)
    deviations = [[each - sum(own) / 4 for each in own] for own in rewards.tolist()]
    spread = (sum(each * each for own in deviations for each in own) / 12) ** 0.5
    for own, shown in zip(deviations, found.tolist(), strict=True):
        assert shown == pytest.approx([min(1.0, max(0.0, each / spread / 2 / 2 + 0.5)) for each in own], abs=1e-3)
    assert found[1].tolist() == [0.5] * 4 and torch.allclose(found[0], found[2], atol=1e-5)
    assert compute_optimality(rewards, 1.0)[0].tolist() == [0.0, pytest.approx(0.226, abs=0.01), pytest.approx(0.774, abs=0.01), 1.0]


def test_the_loss_is_that_of_the_velocities_written_out():
    """r |v+ - v|^2 + (1 - r) |v- - v|^2, each divided by the mean error of its clean frame, over the noise level squared."""
    torch.manual_seed(0)
    own, old, painted, noise = torch.randn(4, 3, 2, 2, 2).double()
    weight, sigma, beta = torch.tensor([0.5, 1.5]).view(1, 2, 1, 1).double(), [0.9, 0.5, 0.3], 0.6
    optimality = torch.tensor([1.0, 0.3, 0.0]).double()
    losses = compute_nft_losses(own, old, painted, optimality, beta, weight)
    for n, level in enumerate(sigma):
        noisy = (1 - level) * painted[n] + level * noise[n]
        goal, mine, theirs = noise[n] - painted[n], (noisy - own[n]) / level, (noisy - old[n]) / level
        total = 0.0
        for share, v in ((optimality[n], (1 - beta) * theirs + beta * mine), (1 - optimality[n], (1 + beta) * theirs - beta * mine)):
            clean = noisy - level * v
            size = sum(float(weight[0, c, 0, 0]) ** 0.5 * float((clean - painted[n])[c].abs().sum()) for c in range(2)) / 8
            square = sum(float(weight[0, c, 0, 0]) * float((v - goal)[c].square().sum()) for c in range(2)) / 8
            total += float(share) * square * level**2 / size / beta
        assert float(losses[n]) == pytest.approx(total, rel=1e-6)


def test_the_loss_draws_to_good_pictures_and_pushes_off_bad_ones():
    painted, weight = torch.ones(2, 1, 1, 1), torch.ones(1, 1, 1, 1)
    own, old = torch.zeros(2, 1, 1, 1, requires_grad=True), torch.zeros(2, 1, 1, 1)
    compute_nft_losses(own, old, painted, torch.tensor([1.0, 0.0]), 1.0, weight).sum().backward()
    assert own.grad[0] < 0 < own.grad[1]
    own.grad = None
    compute_nft_losses(own, old, painted, torch.tensor([0.5, 0.5]), 1.0, weight).sum().backward()
    assert not own.grad.any(), "a picture as good as the others of its request teaches nothing"


# The stage


def test_requests_are_for_pictures_of_the_assistant_and_hold_out_what_is_held_out():
    settings, rng = RewardSettings.from_json(SETTINGS), random.Random(0)
    for tasks, frames in (({"edit": 1.0, "drafts": 1.0}, 3), ({"picture": 1.0, "guide": 1.0}, 1)):
        group = RequestGroup(name="g", frames=(frames,), tasks=tasks)
        for _ in range(8):
            asked = sample_request(rng, group, frames, settings)
            held = sample_request(rng, group, frames, settings, ("house",))
            things = sample_request(rng, group, frames, settings, tuple(HELD_OUT_KINDS))
            assert asked.meant == asked.dialogue.scenes()[frames - 1] and (asked.before is None) == (frames == 1)
            assert not any(map(has_held_out, asked.dialogue.scenes())) and any(map(has_held_out, held.dialogue.scenes()))
            assert {thing.kind for scene in things.dialogue.scenes() for thing in scene.things} <= HELD_OUT_KINDS
    with pytest.raises(ValueError, match="asks for picture 30 of guide, which has none; change its frames"):
        sample_request(rng, RequestGroup(name="g", frames=(30,), tasks={"guide": 1.0}), 30, settings)


def test_the_stage_paints_what_the_pair_paints(folder):
    """Several noises of several requests at once, against one picture at a time with the frame cache."""
    pair = open_tiny(folder)
    pair.about = replace(pair.about, copy_below=0.0)
    stage = RewardStage(recipe(settings={"context_noise": 0.0}), pair)
    copied = 0
    for frame in (1, 3):
        asked = stage.make_requests(random.Random(5), RequestGroup(name="g", frames=(frame,), tasks={"guide": 1.0}, requests=2), 2)
        setting = stage.prepare(asked.data, torch.Generator().manual_seed(0))
        painted = stage.paint(stage.old, setting, 2, torch.Generator().manual_seed(7))
        noise = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(7))
        painter = CosmosPainter(pair)
        for row in range(2):
            states = setting.states[row][None]
            for number in range(2):
                frames, words = painter_frames(painter, setting, row, states)
                single = paint_single(painter, frames, states[:, : words[-1][0]], words[-1][1], noise[row, number][None])
                assert (single[0] - painted[row, number]).abs().max() < 1e-3
                copied += int(frame > 1 and (painted[row, number] == setting.given[row, -1]).all(0).any())
    assert copied


def painter_frames(painter: CosmosPainter, setting: Setting, row: int, states: torch.Tensor) -> tuple[Frames, list[tuple[int, int]]]:
    """The earlier frames as the painter keeps them, and for each frame (words that it reads, first new one)."""
    read, fresh = setting.reads[row], setting.fresh[row]
    words = [(int(own.sum()), int(new.nonzero()[0])) for own, new in zip(read, fresh, strict=True)]
    frames = Frames.empty()
    for index, latents in enumerate(setting.given[row]):
        count, segment = words[index]
        painter.remember(frames, latents[None], states[:, :count], segment)
    return frames, words


def paint_single(painter: CosmosPainter, frames: Frames, condition: torch.Tensor, segment: int, noise: torch.Tensor) -> torch.Tensor:
    request = PaintRequest(condition, segment, ImageOptions(steps=2, guidance=1.0), seed=0)
    old = torch.randn
    torch.randn = lambda *_, **__: noise
    try:
        return list(painter.paint(frames, request))[-1].latents
    finally:
        torch.randn = old


def equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


@pytest.mark.parametrize("method", ["nft", "rejection"])
def test_a_resumed_run_ends_with_the_same_bits(folder, tmp_path, reward_red, method):
    wish = recipe(settings={"method": method})
    train(RewardStage(wish, open_tiny(folder)), wish, tmp_path / "whole", log=quiet)
    train(RewardStage(wish, open_tiny(folder)), wish, tmp_path / "parts", until=2, log=quiet)
    halves = torch.load(tmp_path / "parts" / "state.pt")
    train(RewardStage(wish, open_tiny(folder)), wish, tmp_path / "parts", log=quiet)
    whole, parts = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == 3 and equal(whole, parts)
    assert not equal(whole["weights"], halves["weights"]) and not equal(whole["ema"], whole["weights"])
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    assert [{**each, "seconds": 0} for each in logs[0]] == [{**each, "seconds": 0} for each in logs[1]]
    assert {"reward", "right", "reward_first", "reward_edits", "held_combinations", "held_things_right"} <= logs[0][0].keys()
    assert "held_things" not in logs[0][1] and "held_things" in logs[0][2]


def test_the_averaged_weights_paint(folder, tmp_path, reward_red):
    wish = recipe(steps=2)
    stage = RewardStage(wish, open_tiny(folder))
    train(stage, wish, tmp_path, log=quiet)
    state = torch.load(tmp_path / "state.pt")
    assert equal({f"transformer.{name}": value.data for name, value in stage.old.named_parameters()}, state["ema"])
    first = dict(open_tiny(folder).transformer.named_parameters())
    assert all(torch.equal(value, first[name]) for name, value in stage.reference.named_parameters())


@pytest.mark.parametrize("method", ["nft", "rejection"])
def test_the_painter_turns_to_what_is_rewarded(folder, method):
    """Half of the same pictures have more in a channel, half less: the painter goes to whichever are good."""
    group = GROUPS[0] | {"requests": 2}
    wish = recipe(settings={"method": method, "pictures": 8, "kept": 4, "beta": 0.5, "kl": 0.0, "groups": [group]})
    data = RewardStage(wish, open_tiny(folder)).batch(0).groups[0].data

    def paint_after(good: int, steps: int, middle: float = 0.0) -> float:
        stage = RewardStage(wish, open_tiny(folder))
        setting = stage.prepare(data, torch.Generator().manual_seed(0))
        painted = 0.3 * torch.randn(2, 8, 8, 8, 8, generator=torch.Generator().manual_seed(3))
        painted[:, ::2, 0] += middle + 1.0
        painted[:, 1::2, 0] += middle - 1.0
        grades = [[Grade(float(index % 2 == good), index % 2 == good) for index in range(8)]] * 2
        optimizer = torch.optim.AdamW(stage.transformer.parameters(), lr=0.01)
        for step in range(steps):
            stage.learn(setting, painted, grades, torch.Generator().manual_seed(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return float(stage.paint(stage.transformer, setting, 4, torch.Generator().manual_seed(5))[:, :, 0].mean())

    before = paint_after(0, 0)
    assert paint_after(1, 12, before) < before - 0.2 < before + 0.2 < paint_after(0, 12, before)


def test_requests_without_a_better_picture_teach_nothing(folder, monkeypatch):
    monkeypatch.setattr("duogen.train.reward.grade_picture", lambda *_: Grade(0.5, False))
    wish = recipe(settings={"method": "rejection", "watch_every": 0})
    stage = RewardStage(wish, open_tiny(folder))
    loss, figures = stage.loss(stage.batch(0), torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == 0.0 and figures["reward"] == 0.5
    assert all(not each.grad.any() for each in stage.transformer.parameters())


def test_a_reward_run_exports_its_pair_with_another_painter(folder, tmp_path):
    transformer = open_tiny(folder).transformer
    with torch.no_grad():
        transformer.proj_out.weight.add_(1.0)
    save_state(tmp_path / "runs" / "reward", build_state(5, collect_parameters({"transformer": transformer}), {}, []))
    file, out = tmp_path / "better.json", tmp_path / "out"
    file.write_text(json.dumps({"reward": {"steps": 5, "learning_rate": 1, "settings": SETTINGS | {"grow_from": str(folder)}}}))
    assert export(file, tmp_path / "runs", out) == {"reward": 5}
    written = open_tiny(out)
    assert torch.equal(written.transformer.proj_out.weight, transformer.proj_out.weight.bfloat16().float())
    kept = [file for part in ("vae", "text_encoder", "scheduler") for file in (folder / part).glob("*.*")]
    assert len(kept) > 4 and all((out / file.relative_to(folder)).exists() for file in kept)
    weights = [file.relative_to(folder) for file in kept if file.suffix == ".safetensors"]
    assert all((out / file).read_bytes() == (folder / file).read_bytes() for file in weights)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "grpo"}, "There is no method 'grpo'; choose one of nft, rejection"),
        ({"groups": []}, "groups must not be empty"),
        ({"groups": [GROUPS[0] | {"tasks": {"question": 1.0}}]}, "has the task question; known are guide, picture, edit, drafts"),
        ({"groups": [GROUPS[0] | {"frames": [0]}]}, "needs frames, counted from 1, and tasks"),
        ({"styles": 0.2}, "styles must be 0, as the check reads the world's own drawings"),
        ({"pictures": 1}, "pictures must be between 2 and 1024, not 1"),
    ],
)
def test_a_wrong_recipe_gets_one_sentence(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        RewardSettings.from_json(SETTINGS | changes)
    assert str(error.value).startswith("The recipe's reward settings cannot be used: ")


def test_a_pair_or_recipe_that_does_not_fit_gets_one_sentence(folder, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"give the recipe an ema, such as 0\.9"):
        RewardStage(recipe(ema=0.0), open_tiny(folder))
    pair = open_tiny(folder)
    pair.about = replace(pair.about, prediction="velocity")
    with pytest.raises(ValueError, match="goes on with a pair of the bundled kind"):
        RewardStage(recipe(), pair)
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({"reward": {"steps": 1, "learning_rate": 1, "settings": SETTINGS | {"grow_from": str(tmp_path)}}}))
    assert commands.main(["reward", "--recipe", str(file), "--runs", str(tmp_path / "runs"), "--threads", "1"]) == 2
    assert f"goes on with the pair in {tmp_path}, which is none; name one in grow_from." in capsys.readouterr().err


def test_the_same_painter_adds_nothing(folder):
    stage = RewardStage(recipe(), open_tiny(folder))
    group = RequestGroup(name="singles", frames=(1,), tasks={"picture": 1.0})
    before, after = (grade_requests(stage, each, group, 2) for each in (stage.reference, stage.transformer))
    assert len(before) == 2 and compare(before, after) == (0.0, 0.0, 0.0)
    better = [replace(each, share=each.share + 0.1) for each in before]
    assert compare(before, better) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = compare(before, [replace(before[0], share=before[0].share + 0.2), before[1]])
    assert (mean, mean - low, high - mean) == pytest.approx((0.1, 0.196, 0.196))
