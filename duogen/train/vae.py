"""The autoencoder of the bundled pair: principal components in closed form, then the convolutional correction."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from duogen.nn.vae import PatchVAE
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import BACKGROUNDS, Scene
from duogen.sketchbook.world import kinds, random_composition, random_scene
from duogen.train.loop import Recipe


def to_pixels(pictures: list[Any]) -> torch.Tensor:
    """RGB pictures of one size -> [N, 3, H, W] in -1..1."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def any_scene(rng: random.Random, named: float = 0.5) -> Scene:
    """Named things, a share `named` of the scenes, and free compositions."""
    if rng.random() < named:
        return random_scene(rng, kinds("train"))
    return Scene(rng.choice(BACKGROUNDS), (random_composition(rng),))


class VAEStage:
    """Trains the decoder's correction on latents with some noise, so that it also cleans what the painter leaves blurred."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        settings = recipe.settings or {}
        fitted = folder / "fitted"
        if fitted.exists():  # later stages and resumed runs must see the very same axes
            self.vae = PatchVAE.from_pretrained(fitted)
        else:
            self.vae = PatchVAE(**settings.get("model", {}))
            self.vae.fit_patches(self._patches(settings.get("patches_from", 1500)))
            self.vae.save_pretrained(fitted)
        for part in (self.vae.encoder, self.vae.to_pixels):
            part.requires_grad_(False)
        self.modules = {"vae": self.vae}
        self.std = torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1)

    def _patches(self, count: int) -> torch.Tensor:
        rng = random.Random(self.recipe.seed)
        pixels = to_pixels([draw(any_scene(rng)) for _ in range(count)])
        side = self.vae.config.patch_size
        return F.unfold(pixels, side, stride=side).transpose(1, 2).reshape(-1, 3 * side * side)

    def batch(self, step: int) -> torch.Tensor:
        rng = random.Random(self.recipe.step_seed(step))
        return to_pixels([draw(any_scene(rng)) for _ in range(self.recipe.settings["batch"])])

    def loss(self, pixels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        latents = self.vae.encoder(pixels)
        level = torch.rand(len(pixels), 1, 1, 1, generator=generator) * self.recipe.settings["noise"]
        level = level * (torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5)
        latents = latents + torch.randn(latents.shape, generator=generator) * self.std * level
        decoded = self.vae.decode_frames(latents).float()
        error = (decoded - pixels).square().mean((1, 2, 3))
        clean = error[level.flatten() == 0]
        psnr = float(10 * torch.log10(4 / clean.detach()).mean()) if len(clean) else 0.0
        # Some absolute error beside the squared one keeps flat areas flat.
        return error.mean() + 0.1 * (decoded - pixels).abs().mean(), {"psnr": psnr}
