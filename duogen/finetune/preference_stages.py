"""The two stages of learning from votes: of two answers the one that a person preferred becomes likelier than the other.

The loss is that of DPO (Rafailov et al. 2023), in stage 2 as Diffusion-DPO (Wallace et al. 2023). The reference, which both are measured
against, is the same model with its adapter off.

B pairs of answers, F frames of one, T targets.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from peft.helpers import rescale_adapter_scale

from duogen.finetune.config import DiTConfig, MLLMConfig
from duogen.finetune.feature_cache import CachedExample, read
from duogen.finetune.preferences import Preference
from duogen.finetune.stages import BatchSampler, CachedBatch, DiTStage, MLLMStage, collate
from duogen.models.pipeline import DuoGenPipeline
from duogen.models.sequence import Tokens
from duogen.train import mllm as bundled
from duogen.train.trainer import Recipe

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

Errors = tuple[torch.Tensor, torch.Tensor]  # of the better answers and of the worse ones, each [B] or [B, T]


def compute_preference_losses(own: Errors, reference: Errors, scale: float) -> torch.Tensor:
    """The loss of each pair: small where the better answer's error fell below the reference's by more than the worse one's did."""
    margin = (own[0] - reference[0]) - (own[1] - reference[1])
    return -F.logsigmoid(-scale * margin)


def _describe_order(losses: torch.Tensor) -> dict[str, float]:
    """The share of pairs that are in the right order by now."""
    return {"right": float((losses.detach() < -F.logsigmoid(torch.zeros(()))).float().mean())}


class MLLMPreferenceStage(MLLMStage):
    """Stage 1 on pairs of answers. A batch has the better answers, then the worse ones in the same order."""

    def __init__(
        self, recipe: Recipe, mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, pairs: list[Preference], own: MLLMConfig,
    ) -> None:  # fmt: skip
        super().__init__(recipe, mllm, tokens, [*pairs], own.batch)
        self.examples += [each.worse for each in pairs]
        self.beta, self.count = own.beta, len(pairs)

    def batch(self, step: int) -> bundled.TextBatch:
        better = self.batch_sampler[step]
        return bundled.collate(self.tokens, [self.pack_example(index) for index in (*better, *(self.count + index for index in better))])

    def loss(self, batch: bundled.TextBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = self.move(batch)
        own = self._compute_errors(batch)  # before the reference: autocast would keep weights that were cast without gradients
        with torch.no_grad(), rescale_adapter_scale(self.mllm, 0.0):
            reference = self._compute_errors(batch)
        losses = compute_preference_losses(own, reference, self.beta)
        return losses.mean(), _describe_order(losses)

    def _compute_errors(self, batch: bundled.TextBatch) -> Errors:
        """How unlikely the answers are, as negative logarithms."""
        logits, meant = self.predict(batch)
        surprise = F.cross_entropy(logits, meant, reduction="none")
        rows = batch.learn[:, 1:].nonzero()[:, 0]
        better, worse = surprise.new_zeros(len(batch.ids)).index_add(0, rows, surprise).chunk(2)
        return better, worse


def select_matching(pairs: Iterable[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Of the cached features of better and worse answers, those that have two pictures of one size to compare."""
    return [pair for pair in pairs if any(match_frames(read(pair[0]), read(pair[1]))[0].painted)]


def match_frames(better: CachedExample, worse: CachedExample) -> tuple[CachedExample, CachedExample]:
    """Both cut to the frames that have the same sizes. To be painted are those of the assistant that differ."""
    frames = list(zip(better.latents, worse.latents, better.painted, worse.painted, strict=False))
    count = next((index for index, (one, other, *_) in enumerate(frames) if one.shape != other.shape), len(frames))
    painted = [ours and theirs and not torch.equal(one, other) for one, other, ours, theirs in frames[:count]]
    one, other = (replace(each, latents=each.latents[:count], cuts=each.cuts[:count], painted=painted) for each in (better, worse))
    return one, other


class DiTPreferenceStage:
    """Stage 2 on pairs of answers: their pictures get the same noise at the same times, with the adapter and without."""

    def __init__(self, recipe: Recipe, parts: DuoGenPipeline, pairs: list[tuple[Path, Path]], settings: DiTConfig) -> None:
        """`pairs` are the cached features of the better and the worse answers, as `select_matching` returns them."""
        self.flow = DiTStage(recipe, parts, [better for better, _ in pairs], settings)
        self.recipe, self.modules, self.pairs, self.beta = recipe, self.flow.modules, pairs, settings.beta
        self.batch_sampler = BatchSampler([self._read_pair(index)[0].sizes() for index in range(len(pairs))], settings.batch, recipe.seed)

    def _read_pair(self, index: int) -> tuple[CachedExample, CachedExample]:
        better, worse = self.pairs[index]
        return match_frames(self.flow.read_example(better), self.flow.read_example(worse))

    def batch(self, step: int) -> tuple[CachedBatch, CachedBatch]:
        rng = random.Random(self.recipe.step_seed(step))
        better, worse = map(list, zip(*(self._read_pair(index) for index in self.batch_sampler[step]), strict=True))
        targets = self.flow.choose_targets(better, rng)
        return collate(better, targets), collate(worse, targets)

    def loss(self, batch: tuple[CachedBatch, CachedBatch], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        drawn = generator.get_state()

        def compute_errors(each: CachedBatch) -> tuple[torch.Tensor, torch.Tensor]:
            generator.set_state(drawn)
            error, weight = self.flow.compute_errors(each, generator)
            return error * weight, weight > 0

        # Before the reference: autocast would keep weights that were cast without gradients.
        (better, counts), (worse, _) = compute_errors(batch[0]), compute_errors(batch[1])
        with torch.no_grad(), rescale_adapter_scale(self.flow.transformer, 0.0):
            reference = compute_errors(batch[0])[0], compute_errors(batch[1])[0]
        losses = compute_preference_losses((better, worse), reference, self.beta / 2)[counts]
        return losses.mean(), _describe_order(losses)
