"""Latents of more channels: what an autoencoder and a painter could before they grew, they can afterwards."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from duogen.nn.frames import embed_frames, forward_frames, project_condition, unpatchify
from duogen.nn.vae import PatchVAE, grow_vae
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import Part, Scene, Thing, fits_canvas
from duogen.sketchbook.world import has_held_out
from duogen.train.grow import grow_transformer
from duogen.train.trainer import Recipe, train
from duogen.train.vae import VAEStage, crowded_scene, smallness
from tests.support.tiny import tiny_patch_vae, tiny_transformer

OLD, NEW = 16, 24


def painted(model, latents: torch.Tensor, previous: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    """What the model says of a frame: [B, channels, h, w]."""
    with torch.no_grad():
        frames = embed_frames(model, [latents], [1], [False], [previous] if previous is not None else None)
        out, _ = forward_frames(model, frames, torch.full((len(latents), 1), 300.0), project_condition(model, states))
        return unpatchify(model, out, tuple(latents.shape[-2:]))


@pytest.mark.parametrize(("cosmos_layout", "sees"), [(False, True), (False, False), (True, False)])
def test_a_grown_painter_paints_what_it_painted(cosmos_layout, sees):
    torch.manual_seed(1)
    old = tiny_transformer(OLD, cosmos_layout, sees)
    torch.nn.init.normal_(old.proj_out.weight)
    grown = grow_transformer(old, OLD, NEW)
    latents, before = torch.randn(2, 2, NEW, 4, 4)
    states = torch.randn(2, 5, old.config.crossattn_proj_in_channels)
    own = painted(old, latents[:, :OLD], before[:, :OLD] if sees else None, states)
    new = painted(grown, latents, before if sees else None, states)
    assert own.std() > 0.1 and new.shape == (2, NEW, 4, 4)
    assert (new[:, :OLD] - own).abs().max() < 1e-5 and torch.equal(new[:, OLD:], torch.zeros(2, NEW - OLD, 4, 4))
    assert grown.dtype == old.dtype and not grown.training


def test_a_grown_painter_keeps_its_gate_and_learns_the_new_channels():
    torch.manual_seed(1)
    small = tiny_transformer(OLD, False, True)
    old = type(small).from_config(dict(small.config) | {"out_channels": OLD + 1}).eval()  # a gate beside the latents
    grown = grow_transformer(old, OLD, NEW)
    latents, before = torch.randn(2, 2, NEW, 4, 4)
    states = torch.randn(2, 5, old.config.crossattn_proj_in_channels)
    own = painted(old, latents[:, :OLD], before[:, :OLD], states)
    new = painted(grown, latents, before, states)
    assert new.shape[1] == NEW + 1 and (new[:, [*range(OLD), NEW]] - own).abs().max() < 1e-5
    frames = embed_frames(grown, [latents], [1], [False], [before])
    out, _ = forward_frames(grown, frames, torch.zeros(2, 1), project_condition(grown, states))
    (unpatchify(grown, out, (4, 4)) - 1).square().mean().backward()
    assert grown.proj_out.weight.grad[OLD:NEW].abs().max() > 0 and grown.patch_embed.proj.weight.grad[:, OLD:NEW].abs().max() > 0


def test_a_painter_of_other_latents_does_not_grow():
    model = tiny_transformer(OLD, False, True)
    with pytest.raises(ValueError, match="more than that"):
        grow_transformer(model, OLD, OLD)
    with pytest.raises(ValueError, match="does not paint latents of 12"):
        grow_transformer(model, 12, NEW)


def test_a_grown_autoencoder_keeps_its_channels_and_holds_more():
    torch.manual_seed(0)
    old = PatchVAE(z_dim=8, patch_size=8, width=8, blocks=1)
    patches = torch.randn(500, 12) @ torch.randn(12, 3 * 8 * 8)  # twelve directions, of which eight channels hold eight
    old.fit_patches(patches)
    torch.nn.init.normal_(old.conv_out.weight, std=0.02)
    more = torch.randn(500, 3) @ torch.randn(3, 3 * 8 * 8)
    data = patches + more
    grown = grow_vae(old, 15, data.T @ data / 500)
    pixels = data[:6].view(6, 3, 8, 8)
    with torch.no_grad():
        latents, known = grown.encoder(pixels), old.encoder(pixels)
        assert (latents[:, :8] - known).abs().max() < 1e-4
        alone = torch.cat([known, torch.zeros(6, 7, 1, 1)], 1)
        assert (grown.decode_frames(alone) - old.decode_frames(known)).abs().max() < 1e-4
        # What fifteen directions made, fifteen channels hold; eight do not.
        assert (grown.to_pixels(latents) - pixels).abs().max() < 1e-3 < (old.to_pixels(known) - pixels).abs().max()
    means, sizes = grown.config.latents_mean, torch.tensor(grown.config.latents_std)
    assert means[:8] == old.config.latents_mean and torch.equal(sizes[:8], torch.tensor(old.config.latents_std))
    assert (sizes[8:-1] >= sizes[9:]).all() and sizes[8:].max() < sizes[:8].max() and sizes[-1] > 0.1
    with pytest.raises(ValueError, match="must be greater"):
        grow_vae(old, 8, torch.eye(192))


def test_new_channels_are_normalised_like_the_old():
    torch.manual_seed(0)
    whole = torch.randn(4000, 192) * torch.linspace(3, 0.1, 192)
    whole -= whole.mean(0)
    both = PatchVAE(z_dim=40, patch_size=8, width=8, blocks=1)
    both.fit_patches(whole)
    half = PatchVAE(z_dim=20, patch_size=8, width=8, blocks=1)
    half.fit_patches(whole)
    grown = grow_vae(half, 40, whole.T @ whole / len(whole))
    one, other = torch.tensor(grown.config.latents_std), torch.tensor(both.config.latents_std)
    assert ((one / other) / (one / other).mean() - 1).abs().max() < 1e-3, "one factor apart from the axes fitted at once"


SETTINGS = {
    "batch": 2, "noise": 0.2, "patches_from": 4, "model": {"z_dim": 12}, "crowded": 0.5, "edits": 0.5, "styles": 0.5, "tiny": 2.0,
    "old_only": 0.5,
}  # fmt: skip


def recipe(**changes) -> Recipe:
    return Recipe(steps=12, learning_rate=0.003, warmup=2, ema=0.0, seed=2, workers=0, log_every=100, settings=SETTINGS | changes)


@pytest.mark.usefixtures("as_before")
def test_the_autoencoder_stage_grows_what_a_recipe_names(tmp_path):
    old = tiny_patch_vae()
    old.save_pretrained(tmp_path / "old")
    wish = recipe(grow_from=str(tmp_path / "old"))
    stage = VAEStage(wish, tmp_path / "run")
    assert stage.known == 8 and stage.vae.config.z_dim == 12 and torch.equal(stage.vae.conv_out.weight, old.conv_out.weight)
    assert torch.equal(stage.vae.encoder.weight[:8], old.encoder.weight) and not stage.vae.encoder.weight.requires_grad

    def loss() -> float:
        with torch.no_grad():
            return sum(float(stage.loss(stage.batch(step), torch.Generator().manual_seed(step))[0]) for step in (100, 101))

    before, axes = loss(), stage.vae.encoder.weight.clone()
    train(stage, wish, tmp_path / "run", log=lambda line: None)
    assert loss() < before and torch.equal(stage.vae.encoder.weight, axes)
    again = VAEStage(replace(wish, settings=SETTINGS | {"grow_from": str(tmp_path / "old"), "patches_from": 2}), tmp_path / "run")
    assert torch.equal(again.vae.encoder.weight, axes), "a run that goes on sees the same axes"


def test_tiny_parts_and_zeroed_channels_weigh_as_the_recipe_says(tmp_path):
    tiny_patch_vae().save_pretrained(tmp_path / "old")
    wish = recipe(grow_from=str(tmp_path / "old"), old_only=0.0, tiny=0.0, noise=0.0)
    stage = VAEStage(wish, tmp_path / "run")
    pixels, _ = stage.batch(1)
    nowhere, everywhere = torch.zeros(2, 1, 256, 256), torch.ones(2, 1, 256, 256)

    def loss(tiny: torch.Tensor) -> float:
        with torch.no_grad():
            return float(stage.loss((pixels, tiny), torch.Generator().manual_seed(0))[0])

    plain = loss(everywhere)
    assert plain == loss(nowhere)
    stage.settings = replace(stage.settings, tiny=2.0)
    assert loss(everywhere) == pytest.approx(3 * plain) and loss(nowhere) == pytest.approx(plain)
    stage.settings = replace(stage.settings, old_only=1.0)
    with torch.no_grad():
        stage.vae.encoder.weight[8:] = 100.0  # nobody reads it
    zeroed = loss(nowhere)
    stage.settings = replace(stage.settings, old_only=0.0)
    assert loss(nowhere) > 2 * zeroed


def test_half_of_the_scenes_are_crowded():
    rng = random.Random(3)
    scenes = [crowded_scene(rng, 0.5) for _ in range(200)]
    half_size = [scene for scene in scenes if len(scene.things) > 1 and all(thing.scale == "small" for thing in scene.things)]
    assert 100 <= len(half_size) <= 160 and all(fits_canvas(thing) for scene in scenes for thing in scene.things)
    assert not any(has_held_out(scene) for scene in scenes) and any(thing.kind is None for scene in half_size for thing in scene.things)


def test_a_part_counts_the_more_the_smaller_it_is():
    parts = (Part("square", "medium", "red", stand="on the ground"), Part("circle", "tiny", "blue", place="on top of", of=0))
    found = smallness(Scene("paper", (Thing(None, parts),)))  # 64 px that stand on the ground at 224, 16 px on top
    rows, columns = found.any(1).nonzero()[0], found.any(0).nonzero()[0]
    assert (rows[0], rows[-1], columns[0], columns[-1], found.max()) == (140, 163, 116, 139, 1)
    assert smallness(Scene("paper", (Thing(None, parts, "small"),))).max() == 4
    assert not smallness(Scene("paper", (Thing(None, parts[:1]),))).any()


def test_patches_with_tiny_parts_are_fitted_more_often(tmp_path, monkeypatch):
    tiny_patch_vae().save_pretrained(tmp_path / "old")
    stage = VAEStage(recipe(grow_from=str(tmp_path / "old")), tmp_path / "run")
    parts = (Part("square", "medium", "red", stand="on the ground"), Part("circle", "tiny", "blue", place="on top of", of=0))
    scene = Scene("paper", (Thing(None, parts),))
    monkeypatch.setattr(stage, "_example", lambda rng: (draw(scene), scene))

    def blue(tiny: float) -> int:
        stage.settings = replace(stage.settings, tiny=tiny)
        patches = next(stage._patches(20, 16)).unflatten(1, (3, -1))
        return int(((patches[:, 2] > 0.5) & (patches[:, 0] < -0.5)).any(1).sum())

    assert 0 < 2 * blue(0.0) < blue(8.0)
