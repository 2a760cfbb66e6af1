"""The VAE stage: the bundled pair's autoencoder is fitted in closed form, then its convolutional correction is trained."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import nn

from duogen.nn.vae import PatchVAE, grow_vae
from duogen.painters.masks import to_pixels
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.scene import BACKGROUNDS, CANVAS, LEVELS, SIDES, Scene, Thing, fits_canvas, part_boxes
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.world import has_held_out, kinds, random_composition, random_scene, random_thing
from duogen.train.settings import VAESettings
from duogen.train.trainer import Recipe

TINY = 16  # pixels: a part is tiny if its shorter side is no longer than this
STRAY = 4  # pixels around a tiny part that belong to it: its outline, and how far a style moves it
CHUNK = 50  # pictures whose patches are in memory at once


def any_scene(rng: random.Random, named: float = 0.5) -> Scene:
    """Named things, a share `named` of the scenes, and free compositions."""
    if rng.random() < named:
        return random_scene(rng, kinds("train"))
    return Scene(rng.choice(BACKGROUNDS), (random_composition(rng),))


def crowded_scene(rng: random.Random, share: float) -> Scene:
    """Two or three things, or shapes, at half size for `share` of the scenes; else any scene, rarely free compositions."""
    if rng.random() >= share:
        return any_scene(rng, 0.8)
    background = rng.choice(BACKGROUNDS)
    for _ in range(60):
        sides = rng.sample(SIDES, rng.choice((2, 3, 3)))
        scene = Scene(background, tuple(_half_size(rng, side) for side in sides))
        if all(fits_canvas(thing) for thing in scene.things) and not has_held_out(scene):
            return scene
    return any_scene(rng)


def _half_size(rng: random.Random, side: str) -> Thing:
    placing: dict[str, Any] = {"scale": "small", "side": side, "level": rng.choice(tuple(LEVELS))}
    return random_composition(rng, **placing) if rng.random() < 0.2 else random_thing(rng, kinds("train"), **placing)


def smallness(scene: Scene) -> np.ndarray:
    """How small the part at each point is, float32 [256, 256]: 1 for `TINY` pixels, 4 for half as many, 0 where nothing is tiny."""
    found = np.zeros((CANVAS, CANVAS), np.float32)
    for left, top, right, bottom in (box for thing in scene.things for boxes in part_boxes(thing) for box in boxes):
        side = min(right - left, bottom - top)
        if side <= TINY:
            place = found[max(0, int(top) - STRAY) : int(bottom) + STRAY, max(0, int(left) - STRAY) : int(right) + STRAY]
            np.maximum(place, (TINY / side) ** 2, out=place)
    return found


class VAEStage:
    """Trains the decoder's correction on latents with some noise, so that it also sharpens what the painter leaves blurred."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.settings = VAESettings.from_json(recipe.settings)
        fitted = folder / "fitted"
        if fitted.exists():  # later stages and resumed runs need the same axes
            self.vae = PatchVAE.from_pretrained(fitted)
        else:
            self.vae = self._fit()
            self.vae.save_pretrained(fitted)
        for part in (self.vae.encoder, self.vae.to_pixels):
            part.requires_grad_(False)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.std = torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1)
        self.known: int = self.vae.config.z_dim
        if self.settings.grow_from:
            old: Any = PatchVAE.load_config(self.settings.grow_from)
            self.known = old["z_dim"]

    def _fit(self) -> PatchVAE:
        model, source, count = self.settings.model, self.settings.grow_from, self.settings.patches_from
        if not source:
            vae = PatchVAE(**asdict(model))
            vae.fit_patches(torch.cat(list(self._patches(count, vae.config.patch_size))))
            return vae
        old = PatchVAE.from_pretrained(source)
        patches = self._patches(count, old.config.patch_size)
        moments = sum((each.T @ each / len(each) for each in patches), torch.zeros(()))
        return grow_vae(old, model.z_dim, moments / math.ceil(count / CHUNK))

    def _patches(self, count: int, side: int) -> Iterator[torch.Tensor]:
        """Patches [N, 3 * side * side] of `count` pictures, in chunks; with `tiny`, patches with tiny parts are repeated."""
        rng = random.Random(self.recipe.seed)
        for start in range(0, count, CHUNK):
            pixels, small = self._examples(rng, min(CHUNK, count - start))
            patches = F.unfold(pixels, side, stride=side).transpose(1, 2).reshape(-1, 3 * side * side)
            if not self.settings.tiny:
                yield patches
                continue
            weights = 1 + self.settings.tiny * F.avg_pool2d(small, side).flatten()
            generator = torch.Generator().manual_seed(self.recipe.step_seed(start))
            yield patches[torch.multinomial(weights, len(patches), replacement=True, generator=generator)]

    def _examples(self, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [N, 3, 256, 256], and the `smallness` of their scenes [N, 1, 256, 256]."""
        examples = [self._example(rng) for _ in range(count)]
        small = torch.from_numpy(np.stack([smallness(scene) for _, scene in examples]))[:, None]
        return to_pixels([picture for picture, _ in examples]), small

    def _example(self, rng: random.Random) -> tuple[Image, Scene]:
        scene = any_scene(rng) if self.settings.crowded is None else crowded_scene(rng, self.settings.crowded)
        if rng.random() < self.settings.edits:
            scene = random_edit(rng, Pool(tuple(kinds("train"))), scene).scene
        picture = draw(scene)
        if rng.random() < self.settings.styles:
            picture = apply_style(picture, rng.choice(STYLES), rng.randrange(2**31))
        return picture, scene

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._examples(random.Random(self.recipe.step_seed(step)), self.settings.batch)

    def loss(self, batch: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, small = batch
        latents = self.vae.encoder(pixels)
        level = torch.rand(len(pixels), 1, 1, 1, generator=generator) * self.settings.noise
        level = level * (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5)
        latents = latents + torch.randn(latents.shape, generator=generator) * self.std * level
        old_only = torch.rand(len(pixels), 1, 1, 1, generator=generator) < self.settings.old_only
        added = torch.arange(latents.shape[1]).view(1, -1, 1, 1) >= self.known
        latents = latents.masked_fill(old_only & added, 0.0)
        decoded = self.vae.decode_frames(latents).float()
        error = (decoded - pixels).square()
        clean = error.detach().mean((1, 2, 3))[(level == 0).flatten() & ~old_only.flatten()]
        psnr = float(10 * torch.log10(4 / clean).mean()) if len(clean) else 0.0
        # Some absolute error beside the squared one keeps flat areas flat.
        weighed = (1 + self.settings.tiny * small) * (error + 0.1 * (decoded - pixels).abs())
        return weighed.mean(), {"psnr": psnr}


def load_vae(runs: Path, source: str = "") -> tuple[PatchVAE, bool]:
    """The autoencoder that the run fitted, or where it has none, that of the pair in the folder `source`. Returns whether it is the run's.

    Raises:
        ValueError: there is neither.
    """
    own = runs / "vae" / "fitted"
    if own.exists():
        return PatchVAE.from_pretrained(own), True
    if not source:
        raise ValueError("There is no fitted autoencoder yet; run `python -m duogen.train vae` first, or name a pair in `grow_from`.")
    return PatchVAE.from_pretrained(Path(source) / "vae"), False
