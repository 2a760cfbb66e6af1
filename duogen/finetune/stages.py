"""The two stages on a user's own examples. Both bring what the shared loop wants: modules, batches by number, a loss.

B examples, F frames of one, K noisy copies, N tokens per frame, S words, L tokens in all, D channels of the condition.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from duogen.dataset.format import Example
from duogen.finetune.config import PaintRecipe, TalkRecipe
from duogen.finetune.feature_cache import Seen, read
from duogen.models.pipeline import About, DuoGenPipeline
from duogen.models.sequence import Packed, Tokens
from duogen.nn.attention import frame_mask, word_scores
from duogen.nn.flow import add_change, noisy, random_sigmas
from duogen.nn.frames import embed_frames, project_condition, unpatchify, walk
from duogen.nn.vae import PatchVAE
from duogen.train.mllm import MLLMStage, TextBatch, collate
from duogen.train.trainer import Recipe

PASS_TOKENS = 16_384  # of all frames of a batch; what is more is left for another round
LANGUAGE = r".*language_model\.layers\.({layers})\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
VISION = r"|.*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|merger\.mlp\.[02])"
PAINTER = (
    r".*(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)|norm[123]\.linear_[12]|norm_out\.linear_[12])"
    r"|.*time_embed.*linear_[12]|patch_embed\.proj|proj_out|crossattn_proj\.0"
)
CONNECTOR = "crossattn_proj.0"


class Rounds:
    """Which examples make up batch number n: round after round through all, shuffled anew each time, those of a kind together.

    With `rehearsed`, the kinds of further examples, a share of the batches is of those alone; their indices come after the others.
    """

    def __init__(self, kinds: Sequence[Hashable], batch: int, seed: int, rehearsed: Sequence[Hashable] = (), share: float = 0.0) -> None:
        self.kinds, self.batch, self.seed, self.share = kinds, batch, seed, share
        self._round = lru_cache(maxsize=2)(self._shuffled)
        self.batches = len(self._shuffled(0))
        self.old = Rounds(rehearsed, batch, seed) if rehearsed and share else None

    def __getitem__(self, number: int) -> list[int]:
        if self.old is not None:
            before, after = int(number * self.share), int((number + 1) * self.share)
            if after > before:
                return [len(self.kinds) + index for index in self.old[before]]
            number -= before
        turn, place = divmod(number, self.batches)
        return self._round(turn)[place]

    def _shuffled(self, turn: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{turn}")
        groups: dict[Hashable, list[int]] = {}
        for index in rng.sample(range(len(self.kinds)), len(self.kinds)):
            groups.setdefault(self.kinds[index], []).append(index)
        batches = [group[at : at + self.batch] for group in groups.values() for at in range(0, len(group), self.batch)]
        rng.shuffle(batches)
        return batches


@dataclass(frozen=True)
class Rehearsed:
    """What the pair practised before, and the share of the batches that are of it: examples for stage 1, their cached files for stage 2."""

    examples: Sequence[Any] = ()
    share: float = 0.0


def talk_config(mllm: nn.Module, recipe: TalkRecipe, first_layer: int) -> LoraConfig:
    """LoRA on the language model from `first_layer` up, and on the vision tower if that is wished."""
    count = mllm.config.text_config.num_hidden_layers
    targets = LANGUAGE.format(layers="|".join(map(str, range(min(first_layer, count - 1), count)))) + (VISION if recipe.vision else "")
    return LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=targets)


def lowest_layer(recipe: TalkRecipe, about: About, count: int) -> int:
    """The first layer that learns: above those that the painter reads, if it leaves any, so that its reading stays the same."""
    if recipe.first_layer >= 0:
        return recipe.first_layer
    highest = max(about.layers or range(count + 1))
    return highest if highest < count else 0


def paint_config(transformer: nn.Module, recipe: PaintRecipe) -> LoraConfig:
    """LoRA on the whole DiT; `connector` "full" gives the connector an update of full rank, which is still plain LoRA to a reader."""
    ranks = {}
    if recipe.connector == "full" and transformer.config.use_crossattn_projection:
        ranks = {CONNECTOR: min(transformer.crossattn_proj[0].weight.shape)}
    alphas = {name: 2 * rank for name, rank in ranks.items()}
    return LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=PAINTER, rank_pattern=ranks, alpha_pattern=alphas)


class TalkStage(MLLMStage):
    """Stage 1: next-token loss on the assistant's turns, BOV included. The loss is that of the bundled pair's own stage 1.

    Another loss, of preferences or rewards, would take the place of `loss` and nothing else.
    """

    def __init__(
        self, recipe: Recipe, mllm: nn.Module, tokens: Tokens, examples: list[Example], batch: int, old: Rehearsed | None = None,
    ) -> None:  # fmt: skip
        old = old or Rehearsed()
        self.recipe, self.mllm, self.tokens, self.examples = recipe, mllm, tokens, [*examples, *old.examples]
        self.settings = recipe.settings or {}
        self.modules = {"mllm": mllm}
        self.rounds = Rounds([0] * len(examples), batch, recipe.seed, [0] * len(old.examples), old.share)
        self.packed = lru_cache(maxsize=512)(self._packed)

    def _packed(self, index: int) -> Packed:
        return self.tokens.pack(self.examples[index].turns())

    def batch(self, step: int) -> TextBatch:
        return collate(self.tokens, [self.packed(index) for index in self.rounds[step]])

    def loss(self, batch: TextBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        device = self.mllm.device
        vision = tuple(each.to(device) for each in batch.vision) if batch.vision else None
        moved = TextBatch(*(each.to(device) for each in (batch.ids, batch.places, batch.mask, batch.learn)), vision)
        return super().loss(moved, generator)


@dataclass
class SeenBatch:
    """Examples whose frames have the same sizes.

    Attributes:
        states: [B, S, D] bf16, padded.
        latents: F of [B, C, h, w].
        words, fewer: boolean [B, F, S], which words each frame reads, and which its negative branch does.
        painted: boolean [B, F].
        targets: times of the frames to be painted here.
    """

    states: torch.Tensor
    latents: list[torch.Tensor]
    words: torch.Tensor
    fewer: torch.Tensor
    painted: torch.Tensor
    targets: list[int]

    def to(self, device: torch.device) -> SeenBatch:
        moved = {name: getattr(self, name).to(device) for name in ("states", "words", "fewer", "painted")}
        return replace(self, latents=[each.to(device) for each in self.latents], **moved)


def gathered(examples: list[Seen], targets: list[int]) -> SeenBatch:
    """Pad the words of examples to the longest."""
    longest, frames = max(len(each.states) for each in examples), len(examples[0].latents)
    states = examples[0].states.new_zeros(len(examples), longest, examples[0].states.shape[1])
    words, fewer = (torch.zeros(len(examples), frames, longest, dtype=torch.bool) for _ in range(2))
    for row, each in enumerate(examples):
        states[row, : len(each.states)] = each.states
        for index, (until, since) in enumerate(each.cuts):
            words[row, index, :until] = True
            fewer[row, index, : max(since, 1)] = True  # attention needs one word
    latents = [torch.stack([each.latents[time] for each in examples]) for time in range(frames)]
    return SeenBatch(states, latents, words, fewer, torch.tensor([each.painted for each in examples]), targets)


class PaintStage:
    """Stage 2: flow matching on noisy frames with the clean earlier ones before them (DuoGen, section 4).

    A block-causal pair learns all its pictures in one pass, as the bundled pair does; a bidirectional one a random picture with
    those before it, every frame seeing all, as it paints.
    """

    def __init__(
        self, recipe: Recipe, parts: DuoGenPipeline, files: list[Path], settings: PaintRecipe, old: Rehearsed | None = None,
    ) -> None:  # fmt: skip
        """`parts` are a pair's transformer, which learns, its autoencoder and what is known about it."""
        old, transformer, about, vae = old or Rehearsed(), parts.transformer, parts.about, parts.vae
        self.recipe, self.transformer, self.about, self.own, self.files = recipe, transformer, about, settings, [*files, *old.examples]
        self.modules = {"transformer": transformer}
        self.causal = about.frame_attention == "block_causal"
        sizes = [read(file).sizes() for file in self.files]
        self.rounds = Rounds(sizes[: len(files)], settings.batch, recipe.seed, sizes[len(files) :], old.share)
        self.see = lru_cache(maxsize=64)(read)
        self.weight = torch.ones(1)
        if isinstance(vae, PatchVAE):  # its axes are orthonormal: so the error is that of pixels
            square = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1).square()
            self.weight = square / square.mean()

    def batch(self, step: int) -> SeenBatch:
        rng = random.Random(self.recipe.step_seed(step))
        examples = [self.see(self.files[index]) for index in self.rounds[step]]
        painted = [time for time in range(len(examples[0].latents)) if any(each.painted[time] for each in examples)]
        if not self.causal:
            return gathered(examples, [rng.choice(painted)])
        area = max(height * width for height, width in examples[0].sizes()) // self.transformer.config.patch_size[1] ** 2
        room = max(1, PASS_TOKENS // (area * len(examples)) - max(painted))
        return gathered(examples, sorted(rng.sample(painted, min(len(painted), max(1, room // self.own.copies)))))

    def loss(self, batch: SeenBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Preferences or rewards would take the place of this function and nothing else."""
        batch = batch.to(self.transformer.device)
        if not self.causal:
            batch = _repeated(batch, self.own.copies)
        copies = self.own.copies if self.causal else 1
        errors, weights = [], []
        last = max(batch.targets)
        given = [(time, 0) for time in range(last)]
        targets = [(time, copy + 1) for time in batch.targets for copy in range(copies)]
        sigma = random_sigmas(len(batch.states) * len(targets), self.own.shift, generator).view(-1, len(targets)).to(batch.states.device)
        noise = [self._noise(batch.latents[time], generator) for time, _ in targets]
        frames = [self._blurred(batch.latents[time], generator) for time, _ in given]
        meant = [batch.latents[time] for time, _ in targets]
        frames += [noisy(data, own, s[:, None, None, None]) for data, own, s in zip(meant, noise, sigma.unbind(1), strict=True)]
        outs = self._walk(frames, given + targets, batch, sigma, generator)
        for index, (out, (time, _)) in enumerate(zip(outs, targets, strict=True)):
            sample = self.about.prediction != "velocity"
            goal = meant[index] if sample else noise[index] - meant[index]
            errors.append((self.weight.to(out.device) * (out - goal).square()).mean((1, 2, 3)))
            strength = (1 / sigma[:, index].square()).clamp(max=10.0) if sample else torch.ones_like(sigma[:, index])
            weights.append(strength * batch.painted[:, time])
        error, weight = torch.stack(errors, 1), torch.stack(weights, 1)
        return (error * weight).sum() / weight.sum().clamp(min=1e-6), {"error": float(error.detach().mean())}

    def _noise(self, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)  # drawn on the CPU: the same on every device

    def _blurred(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        strength = torch.rand(len(latents), 1, 1, 1, generator=generator).to(latents.device) * self.own.context_noise
        return latents + strength * self._noise(latents, generator)

    def _walk(
        self, frames: list[torch.Tensor], order: list[tuple[int, int]], batch: SeenBatch, sigma: torch.Tensor, generator: torch.Generator
    ) -> list[torch.Tensor]:
        """What the model makes of the noisy frames, the last of `order`: each [B, C, h, w], float32."""
        model, given = self.transformer, len(order) - sigma.shape[1]
        times = [time for time, _ in order]
        before = [frames[time - 1] if time else None for time in times] if self.about.sees_previous else None
        dtype = model.patch_embed.proj.weight.dtype
        cast = [each.to(dtype) for each in frames]
        seen = [each if each is None else each.to(dtype) for each in before] if before else None
        packed = embed_frames(model, cast, times, [index < given for index in range(len(order))], seen)
        lengths = torch.tensor(packed.lengths, device=sigma.device)
        reads = self._reads(batch, times, given, generator).repeat_interleave(lengths, 1)[:, None]
        sees = frame_mask(order, order) if self.causal else None
        timesteps = torch.cat([sigma.new_zeros(len(sigma), given), sigma], 1) * self.about.timestep_scale
        out, _ = walk(model, packed, timesteps, project_condition(model, batch.states.to(dtype)), reads, sees)
        made = out.float().split(packed.lengths, 1)[given:]
        outs = [unpatchify(model, each, size) for each, size in zip(made, packed.sizes[given:], strict=True)]
        olds = (before or [None] * len(order))[given:]
        return [add_change(each, old, self.about.prediction) for each, old in zip(outs, olds, strict=True)]

    def _reads(self, batch: SeenBatch, times: list[int], given: int, generator: torch.Generator) -> torch.Tensor:
        """[B, frames, S]: which words each frame reads, boolean or as scores; now and then a target does without the latest."""
        if not self.causal:  # all frames read what the one to be painted reads
            times = [times[-1]] * len(times)
        reads, fewer = batch.words[:, times], batch.fewer[:, times]
        dropped = (torch.rand(reads.shape[:2], generator=generator) < self.own.dropout).to(reads.device)
        dropped = dropped[:, -1:].expand(-1, len(times)) if not self.causal else dropped
        if self.causal:
            dropped[:, :given] = False
        reads = torch.where(dropped[..., None], fewer, reads)
        return word_scores(reads, reads & ~fewer, self.about.fresh_bias) if self.about.fresh_bias else reads


def _repeated(batch: SeenBatch, copies: int) -> SeenBatch:
    """Each example several times, where frames of one sequence would see each other's copies."""
    many = {name: getattr(batch, name).repeat_interleave(copies, 0) for name in ("states", "words", "fewer", "painted")}
    return replace(batch, latents=[each.repeat_interleave(copies, 0) for each in batch.latents], **many)
