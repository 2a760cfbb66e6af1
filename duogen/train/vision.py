"""The vision stage, before stage 1: the vision tower is trained to produce features that the language model can read.

Each of its tokens covers 32 x 32 pixels. It is trained to lie near the language model's embeddings of the words for what is drawn there.
That takes minutes, as the language model itself is not run.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL.Image import Image as Drawing
from torch import nn

from duogen.conversation import Image
from duogen.models.mllm import append_patch_positions
from duogen.models.sequence import Tokens
from duogen.sketchbook.draw import OVER, draw, visible_part_map
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, SHAPES, Scene
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.world import kinds, things
from duogen.train.settings import VisionSettings
from duogen.train.trainer import Recipe
from duogen.train.vae import any_scene

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

CELLS, CELL = 8, 32
BATCH = 20  # pictures at a time in `fit_last_layer`
SEEN = 1 / 32  # of a cell's area: a part that covers less gets no word
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def vocabulary() -> list[str]:
    """Every word that can be true of a place in a picture."""
    parts = {part.name for entry in things().values() for part in entry.parts}
    words = [*COLOURS, *BACKGROUNDS, *kinds("train"), *sorted(parts), *SHAPES, *ROWS, *COLUMNS]
    return list(dict.fromkeys(words))


def labels(scene: Scene, index: dict[str, int]) -> torch.Tensor:
    """The share of each cell of which each word is true: [64, words], 0..1. Words of place are true of all of a cell."""
    side = CELL * OVER
    cells = visible_part_map(scene).reshape(CELLS, side, CELLS, side).transpose(0, 2, 1, 3).reshape(CELLS * CELLS, -1)
    truth = torch.zeros(CELLS * CELLS, len(index))

    said = [(part.colour, part.shape, thing.kind, part.name) for thing in scene.things for part in thing.parts]
    for number, words in enumerate([(scene.background,), *said]):  # in the order of `visible_part_map`
        share = torch.from_numpy((cells == number).mean(1)).float()
        for word in filter(None, words):
            truth[:, index[word]] += share
    truth = truth.clamp(max=1) * (truth >= SEEN)
    for cell in range(CELLS * CELLS):
        row, column = divmod(cell, CELLS)
        truth[cell, [index[ROWS[(2 * row + 1) * 3 // (2 * CELLS)]], index[COLUMNS[(2 * column + 1) * 3 // (2 * CELLS)]]]] = 1
    return truth


def orthogonalise(rows: torch.Tensor) -> torch.Tensor:
    """Turn embeddings [words, C] into nearly orthogonal directions, each as near to its word's embedding as possible (Loewdin, 1950).

    Embeddings of words lie close together, above all those of colours: the terms of a sum of several cannot be recovered. Names made of
    the same words ("top bun", "bottom bun", beside "top" and "bottom") depend on each other and stay a little nearer.
    """
    rows = F.normalize(rows.double(), dim=-1)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    directions = vectors @ torch.diag(values.clamp(min=0.05).rsqrt()) @ vectors.T @ rows
    return F.normalize(directions, dim=-1).float()


class _Scale(nn.Module):
    """Turns cosines with the words' directions into logits; a bias for each word."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(30.0))
        self.bias = nn.Parameter(torch.full((words,), -5.0))


class VisionStage:
    """Trains the vision tower on several words per cell, scored against directions near the frozen word embeddings."""

    def __init__(self, recipe: Recipe, mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens) -> None:
        self.recipe, self.tokens, self.settings = recipe, tokens, VisionSettings.from_json(recipe.settings)
        self.visual = mllm.model.visual
        self.words = vocabulary()
        self.index = {word: place for place, word in enumerate(self.words)}
        embeddings: Any = mllm.get_input_embeddings()
        table = embeddings.weight.detach().float()
        self.rows = orthogonalise(torch.stack([table[tokens.text(f" {word}")].mean(0) for word in self.words]))
        self.size = float(table.norm(dim=-1).mean())
        self.scale = _Scale(len(self.words))
        self.modules: dict[str, nn.Module] = {"visual": self.visual, "scale": self.scale}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._sample_batch(random.Random(self.recipe.step_seed(step)), self.settings.batch)

    def _sample_batch(self, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches, with their places, and grids of `count` pictures, and the words that are true in each cell."""
        scenes = [any_scene(rng, named=0.75) for _ in range(count)]
        pictures = [Image(self._draw_in_style(draw(scene), rng)) for scene in scenes]
        pixels, grids = self.tokens.pixels(pictures)
        return append_patch_positions(pixels, grids, self.visual.config), grids, torch.cat([labels(scene, self.index) for scene in scenes])

    def _draw_in_style(self, clean: Drawing, rng: random.Random) -> Drawing:
        """The drawing; for a share `styles` of the drawings the same in another style."""
        if rng.random() >= self.settings.styles:
            return clean
        return apply_style(clean, rng.choice(STYLES), rng.randrange(2**31))

    def loss(
        self, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, grids, shares = batch
        truth = (shares > 0).float()
        features = self.visual(pixels, grid_thw=grids).pooler_output.float()
        direction = F.normalize(features, dim=-1)
        logits = direction @ self.rows.T * self.scale.gain + self.scale.bias
        error = F.binary_cross_entropy_with_logits(logits, truth) * 10
        # The features get the length of a word's embedding, which the language model expects.
        error = error + 0.01 * (features.norm(dim=-1) / self.size - 1).square().mean()
        found = logits.detach() > 0
        return error, {"recall": float(found[truth > 0].float().mean()), "precision": float(truth[found].mean())}

    @torch.no_grad()
    def fit_last_layer(self, pictures: int, seed: int, ridge: float = 1e-6) -> float:
        """Fit the tower's last layer in closed form, by ridge regression from its inputs to the words that are true of each cell.

        Stage 1 with `train_vision` may let the features grow until one direction outweighs all others and the language model cannot read
        them. This brings them back among the word embeddings, at their length.

        Returns:
            The share of the targets' variance that the layer explains on pictures that it was not fitted to.
        """
        rng = random.Random(seed)
        last = self.visual.merger.mlp[2]
        under, truth = [], []
        hook = last.register_forward_pre_hook(lambda module, given: under.append(given[0].float()))
        for _ in range(0, pictures, BATCH):
            pixels, grids, true = self._sample_batch(rng, BATCH)
            self.visual(pixels, grid_thw=grids)
            truth.append(true)
        hook.remove()
        given = F.pad(torch.cat(under), (0, 1), value=1.0).double()
        # Weighted by the root of the word's share of the cell, so that a wall's colour is distinguished from that of its little window.
        meant = F.normalize(torch.cat(truth).sqrt() @ self.rows, dim=-1).double() * self.size
        known = len(given) * 9 // 10
        square = given[:known].T @ given[:known]
        square += ridge * square.diagonal().mean() * torch.eye(len(square))
        solved = torch.linalg.solve(square, given[:known].T @ meant[:known])
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])
        rest = meant[known:]
        return float(1 - (given[known:] @ solved - rest).square().sum() / (rest - meant[:known].mean(0)).square().sum())
