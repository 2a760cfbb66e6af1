"""Before stage 1: the vision tower learns to speak the language model's words.

Each of its tokens covers 32 x 32 pixels; it is trained to lie, among the language model's word embeddings, near the words for what is
drawn there. That takes minutes, since the language model itself is not run; stage 1 then starts from a tower that can be read.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image as Drawing
from torch import nn

from duogen.conversation import Image
from duogen.models.mllm import placed
from duogen.models.sequence import Tokens
from duogen.sketchbook.draw import OVER, draw, in_sight
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.scene import BACKGROUNDS, COLOURS, SHAPES, Scene
from duogen.sketchbook.world import kinds, things
from duogen.train.trainer import Recipe
from duogen.train.vae import any_scene

CELLS, CELL = 8, 32
BATCH = 20  # pictures at a time in `refit`
SEEN = 1 / 32  # of a cell's area: less of a part is not worth a word
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


def vocabulary() -> list[str]:
    """Every word that can be true of a place in a picture."""
    parts = {part.name for entry in things().values() for part in entry.parts}
    words = [*COLOURS, *BACKGROUNDS, *kinds("train"), *sorted(parts), *SHAPES, *ROWS, *COLUMNS]
    return list(dict.fromkeys(words))


def labels(scene: Scene, index: dict[str, int]) -> torch.Tensor:
    """Which words are true in each cell, and of how much of it: [64, words], 0..1. Words of place are true of all of it."""
    side = CELL * OVER
    cells = in_sight(scene).reshape(CELLS, side, CELLS, side).transpose(0, 2, 1, 3).reshape(CELLS * CELLS, -1)
    truth = torch.zeros(CELLS * CELLS, len(index))

    said = [(part.colour, part.shape, thing.kind, part.name) for thing in scene.things for part in thing.parts]
    for number, words in enumerate([(scene.background,), *said]):  # as `in_sight` counts them
        share = torch.from_numpy((cells == number).mean(1)).float()
        for word in filter(None, words):
            truth[:, index[word]] += share
    truth = truth.clamp(max=1) * (truth >= SEEN)
    for cell in range(CELLS * CELLS):
        row, column = divmod(cell, CELLS)
        truth[cell, [index[ROWS[(2 * row + 1) * 3 // (2 * CELLS)]], index[COLUMNS[(2 * column + 1) * 3 // (2 * CELLS)]]]] = 1
    return truth


def apart(rows: torch.Tensor) -> torch.Tensor:
    """[words, C] -> directions nearly at right angles, each as near to its word's embedding as all can be at once (Loewdin, 1950).

    Embeddings of words lie close together, the colours most of all: a sum of several cannot be told apart again. Names made of the same
    words ("top bun", "bottom bun", beside "top" and "bottom") depend on each other and stay a little nearer.
    """
    rows = F.normalize(rows.double(), dim=-1)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    spread = vectors @ torch.diag(values.clamp(min=0.05).rsqrt()) @ vectors.T @ rows
    return F.normalize(spread, dim=-1).float()


class VisionStage:
    """Multi-label words per cell, scored against directions near the frozen word embeddings."""

    def __init__(self, recipe: Recipe, mllm: nn.Module, tokens: Tokens) -> None:
        self.recipe, self.tokens = recipe, tokens
        self.visual = mllm.model.visual
        self.words = vocabulary()
        self.index = {word: place for place, word in enumerate(self.words)}
        table = mllm.get_input_embeddings().weight.detach().float()
        self.rows = apart(torch.stack([table[tokens.text(f" {word}")].mean(0) for word in self.words]))
        self.size = float(table.norm(dim=-1).mean())
        self.scale = nn.Module()
        self.scale.gain = nn.Parameter(torch.tensor(30.0))
        self.scale.bias = nn.Parameter(torch.full((len(self.words),), -5.0))
        self.modules = {"visual": self.visual, "scale": self.scale}

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._drawn(random.Random(self.recipe.step_seed(step)), self.recipe.settings["batch"])

    def _drawn(self, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches, with their places, and grids of `count` pictures, and which words are true in each of their cells."""
        scenes = [any_scene(rng, named=0.75) for _ in range(count)]
        pictures = [Image(self._picture(draw(scene), rng)) for scene in scenes]
        pixels, grids = self.tokens.pixels(pictures)
        return placed(pixels, grids, self.visual.config), grids, torch.cat([labels(scene, self.index) for scene in scenes])

    def _picture(self, clean: Drawing, rng: random.Random) -> Drawing:
        """With `hands`, that share of the drawings is another hand's."""
        if rng.random() >= (self.recipe.settings or {}).get("hands", 0.0):
            return clean
        return by_hand(clean, rng.choice(HANDS), rng.randrange(2**31))

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        pixels, grids, shares = batch
        truth = (shares > 0).float()
        features = self.visual(pixels, grid_thw=grids).pooler_output.float()
        direction = F.normalize(features, dim=-1)
        logits = direction @ self.rows.T * self.scale.gain + self.scale.bias
        error = F.binary_cross_entropy_with_logits(logits, truth) * 10
        # As long as a word's embedding: what the language model expects to read.
        error = error + 0.01 * (features.norm(dim=-1) / self.size - 1).square().mean()
        found = logits.detach() > 0
        return error, {"recall": float(found[truth > 0].float().mean()), "precision": float(truth[found].mean())}

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
        # By the root of how much of the cell it is true of: so a wall's colour is told from that of its little window.
        meant = F.normalize(torch.cat(truth).sqrt() @ self.rows, dim=-1).double() * self.size
        known = len(given) * 9 // 10
        square = given[:known].T @ given[:known]
        square += ridge * square.diagonal().mean() * torch.eye(len(square))
        solved = torch.linalg.solve(square, given[:known].T @ meant[:known])
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])
        rest = meant[known:]
        return float(1 - (given[known:] @ solved - rest).square().sum() / (rest - meant[:known].mean(0)).square().sum())
