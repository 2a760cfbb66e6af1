"""Before stage 1: the vision tower learns to speak the language model's words.

Each of its tokens covers 64 x 64 pixels; it is trained to lie, among the language model's word embeddings, near the words for what is
drawn there. That takes minutes, since the language model itself is not run; stage 1 then starts from a tower that can be read.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from duogen.conversation import Image
from duogen.sequence import Tokens
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, SHAPES, Scene, part_boxes
from duogen.sketchbook.world import kinds, things
from duogen.train.loop import Recipe
from duogen.train.vae import any_scene

CELLS, CELL = 4, 64
BATCH = 20  # pictures at a time in `refit`


def vocabulary() -> list[str]:
    """Every word that can be true of a place in a picture."""
    parts = {part.name for entry in things().values() for part in entry.parts}
    words = [*COLOURS, *BACKGROUNDS, *kinds("train"), *sorted(parts), *SHAPES]
    return list(dict.fromkeys(words))


def labels(scene: Scene, index: dict[str, int]) -> torch.Tensor:
    """Which words are true in each cell: [16, words], 0 or 1."""
    truth = torch.zeros(CELLS * CELLS, len(index))
    truth[:, index[scene.background]] = 1
    for thing in scene.things:
        for part, boxes in zip(thing.parts, part_boxes(thing), strict=True):
            words = [part.colour, part.shape, *([thing.kind] if thing.kind else []), *([part.name] if part.name else [])]
            for left, top, right, bottom in boxes:
                for row in range(max(0, int(top // CELL)), min(CELLS, int(-(-bottom // CELL)))):
                    for column in range(max(0, int(left // CELL)), min(CELLS, int(-(-right // CELL)))):
                        for word in words:
                            truth[row * CELLS + column, index[word]] = 1
    return truth


class VisionStage:
    """Multi-label words per cell, scored against the frozen word embeddings."""

    def __init__(self, recipe: Recipe, mllm: nn.Module, tokens: Tokens) -> None:
        self.recipe, self.tokens = recipe, tokens
        self.visual = mllm.model.visual
        self.words = vocabulary()
        self.index = {word: place for place, word in enumerate(self.words)}
        table = mllm.get_input_embeddings().weight.detach().float()
        rows = torch.stack([table[tokens.text(f" {word}")].mean(0) for word in self.words])
        self.rows, self.size = F.normalize(rows, dim=-1), float(table.norm(dim=-1).mean())
        self.scale = nn.Module()
        self.scale.gain = nn.Parameter(torch.tensor(30.0))
        self.scale.bias = nn.Parameter(torch.full((len(self.words),), -5.0))
        self.modules = {"visual": self.visual, "scale": self.scale}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._drawn(random.Random(self.recipe.step_seed(step)), self.recipe.settings["batch"])

    def _drawn(self, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches and grids of `count` pictures, and which words are true in each of their cells."""
        scenes = [any_scene(rng, named=0.75) for _ in range(count)]
        pixels, grids = self.tokens.pixels([Image(draw(scene)) for scene in scenes])
        return pixels, grids, torch.cat([labels(scene, self.index) for scene in scenes])

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, grids, truth = batch
        features = self.visual(pixels, grid_thw=grids).pooler_output.float()
        direction = F.normalize(features, dim=-1)
        logits = direction @ self.rows.T * self.scale.gain + self.scale.bias
        error = F.binary_cross_entropy_with_logits(logits, truth) * 10
        # As long as a word's embedding: what the language model expects to read.
        error = error + 0.01 * (features.norm(dim=-1) / self.size - 1).square().mean()
        hits = (logits.detach() > 0) == (truth > 0)
        return error, {"recall": float(hits[truth > 0].float().mean()), "precision": float(truth[logits.detach() > 0].mean())}

    @torch.no_grad()
    def refit(self, pictures: int, seed: int, ridge: float = 1e-6) -> float:
        """Set the tower's last layer in closed form, by ridge regression from what lies under it to the words that are true of each cell.

        Stage 1 with `train_vision` may let the features grow until one direction drowns out all others and nobody can read them; this
        brings them back among the word embeddings, at their length.

        Returns:
            The share of the targets' variance that the layer explains, on pictures that it was not fitted to.
        """
        rng = random.Random(seed)
        last = self.visual.merger.mlp[2]
        under, truth = [], []
        hook = last.register_forward_pre_hook(lambda module, given: under.append(given[0].float()))
        for _ in range(0, pictures, BATCH):
            pixels, grids, true = self._drawn(rng, BATCH)
            self.visual(pixels, grid_thw=grids)
            truth.append(true)
        hook.remove()
        given = F.pad(torch.cat(under), (0, 1), value=1.0).double()
        meant = F.normalize(torch.cat(truth) @ self.rows, dim=-1).double() * self.size
        known = len(given) * 9 // 10
        square = given[:known].T @ given[:known]
        square += ridge * square.diagonal().mean() * torch.eye(len(square))
        solved = torch.linalg.solve(square, given[:known].T @ meant[:known])
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])
        rest = meant[known:]
        return float(1 - (given[known:] @ solved - rest).square().sum() / (rest - meant[:known].mean(0)).square().sum())
