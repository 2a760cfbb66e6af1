"""The two stages of fine-tuning on a user's examples. Each is a `duogen.train.trainer.Stage`: modules, batches by number, a loss.

B examples, F frames of one, K noisy copies, N tokens per frame, S words, L tokens in all, D channels of the condition.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import nn

from duogen.dataset.format import Example
from duogen.finetune.config import DiTConfig, MLLMConfig
from duogen.finetune.feature_cache import CachedExample, read
from duogen.models.pipeline import About, DuoGenPipeline
from duogen.models.sequence import Packed, Tokens
from duogen.nn.attention import frame_mask, word_scores
from duogen.nn.flow import add_noise
from duogen.nn.frames import embed_frames, forward_frames, project_condition, unpatchify
from duogen.nn.vae import PatchVAE, pixel_weights
from duogen.train import mllm as bundled
from duogen.train.objective import SHIFTS, FlowObjective, Prediction
from duogen.train.settings import MLLMSettings
from duogen.train.trainer import Recipe

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

PASS_TOKENS = 16_384  # of all frames of a batch; frames beyond that wait for another round
LANGUAGE_LAYERS = r".*language_model\.layers\.({layers})\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
VISION_LAYERS = r"|.*visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|merger\.mlp\.[02])"
DIT_LAYERS = (
    r".*(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)|norm[123]\.linear_[12]|norm_out\.linear_[12])"
    r"|.*time_embed.*linear_[12]|patch_embed\.proj|proj_out|crossattn_proj\.0"
)
CONNECTOR = "crossattn_proj.0"


class BatchSampler:
    """Chooses the examples of batch number n: rounds through all examples, shuffled for each round; a batch has examples of one kind.

    `replayed` are the kinds of further examples: the share `share` of the batches consists of those alone. Their indices come after the
    others.
    """

    def __init__(self, kinds: Sequence[Hashable], batch: int, seed: int, replayed: Sequence[Hashable] = (), share: float = 0.0) -> None:
        self.kinds, self.batch, self.seed, self.share = kinds, batch, seed, share
        self._round = lru_cache(maxsize=2)(self._shuffle_round)
        self.batches = len(self._shuffle_round(0))
        self.replayed = BatchSampler(replayed, batch, seed) if replayed and share else None

    def __getitem__(self, number: int) -> list[int]:
        if self.replayed is not None:
            before, after = int(number * self.share), int((number + 1) * self.share)
            if after > before:
                return [len(self.kinds) + index for index in self.replayed[before]]
            number -= before
        turn, place = divmod(number, self.batches)
        return self._round(turn)[place]

    def _shuffle_round(self, turn: int) -> list[list[int]]:
        rng = random.Random(f"{self.seed}/{turn}")
        groups: dict[Hashable, list[int]] = {}
        for index in rng.sample(range(len(self.kinds)), len(self.kinds)):
            groups.setdefault(self.kinds[index], []).append(index)
        batches = [group[at : at + self.batch] for group in groups.values() for at in range(0, len(group), self.batch)]
        rng.shuffle(batches)
        return batches


@dataclass(frozen=True)
class Replay:
    """Examples of what the pair was trained on before.

    Attributes:
        examples: for stage 1; for stage 2 the files of their cached features.
        share: of all batches.
    """

    examples: Sequence[Any] = ()
    share: float = 0.0


def mllm_lora_config(mllm: Qwen2_5_VLForConditionalGeneration, recipe: MLLMConfig, first_layer: int) -> LoraConfig:
    """LoRA on the language model from `first_layer` up, and on the vision tower where the recipe says so."""
    sizes: Any = mllm.config.text_config
    count = sizes.num_hidden_layers
    targets = LANGUAGE_LAYERS.format(layers="|".join(map(str, range(min(first_layer, count - 1), count))))
    targets += VISION_LAYERS if recipe.vision else ""
    return LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=targets)


def lowest_layer(recipe: MLLMConfig, about: About, count: int) -> int:
    """The first layer to train. Where possible it is above the layers that the painter reads, so that their states stay the same."""
    if recipe.first_layer >= 0:
        return recipe.first_layer
    highest = max(about.layers or range(count + 1))
    return highest if highest < count else 0


def dit_lora_config(transformer: CosmosTransformer3DModel, recipe: DiTConfig) -> LoraConfig:
    """LoRA on the whole DiT. With `connector` "full" the connector's LoRA has full rank; its files are plain LoRA all the same."""
    ranks = {}
    config: Any = transformer.config
    if recipe.connector == "full" and config.use_crossattn_projection:
        ranks = {CONNECTOR: min(transformer.get_submodule(CONNECTOR).get_parameter("weight").shape)}
    alphas = {name: 2 * rank for name, rank in ranks.items()}
    return LoraConfig(r=recipe.rank, lora_alpha=2 * recipe.rank, target_modules=DIT_LAYERS, rank_pattern=ranks, alpha_pattern=alphas)


class MLLMStage(bundled.MLLMStage):
    """Stage 1: next-token loss on the assistant's turns, BOV included. The loss is that of the bundled pair's own stage 1.

    `duogen.finetune.preference_stages` has another loss, that of votes.
    """

    def __init__(
        self, recipe: Recipe, mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, examples: list[Example], batch: int,
        replay: Replay | None = None,
    ) -> None:  # fmt: skip
        replay = replay or Replay()
        self.recipe, self.mllm, self.tokens, self.examples = recipe, mllm, tokens, [*examples, *replay.examples]
        self.settings = MLLMSettings.from_json({"tasks": {}} | (recipe.settings or {}))
        self.modules: dict[str, nn.Module] = {"mllm": mllm}
        self.batch_sampler = BatchSampler([0] * len(examples), batch, recipe.seed, [0] * len(replay.examples), replay.share)
        self.pack_example = lru_cache(maxsize=512)(self._pack_example)

    def _pack_example(self, index: int) -> Packed:
        return self.tokens.pack(self.examples[index].turns())

    def batch(self, step: int) -> bundled.TextBatch:
        return bundled.collate(self.tokens, [self.pack_example(index) for index in self.batch_sampler[step]])

    def move(self, batch: bundled.TextBatch) -> bundled.TextBatch:
        """The batch on the model's device."""
        device = self.mllm.device
        vision = (batch.vision[0].to(device), batch.vision[1].to(device)) if batch.vision else None
        return bundled.TextBatch(*(each.to(device) for each in (batch.ids, batch.places, batch.mask, batch.learn)), vision)

    def loss(self, batch: bundled.TextBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        return super().loss(self.move(batch), generator)


@dataclass
class CachedBatch:
    """Examples whose frames have the same sizes.

    Attributes:
        states: [B, S, D] bf16, padded.
        latents: F of [B, C, h, w].
        words, fewer: boolean [B, F, S], the words that each frame reads, and those that its negative branch reads.
        painted: boolean [B, F], whether the frame is the assistant's.
        targets: times of the frames that this batch trains on.
    """

    states: torch.Tensor
    latents: list[torch.Tensor]
    words: torch.Tensor
    fewer: torch.Tensor
    painted: torch.Tensor
    targets: list[int]

    def to(self, device: torch.device) -> CachedBatch:
        moved = {name: getattr(self, name).to(device) for name in ("states", "words", "fewer", "painted")}
        return replace(self, latents=[each.to(device) for each in self.latents], **moved)


def collate(examples: list[CachedExample], targets: list[int]) -> CachedBatch:
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
    return CachedBatch(states, latents, words, fewer, torch.tensor([each.painted for each in examples]), targets)


class DiTStage:
    """Stage 2: flow matching on noisy frames with the clean earlier ones before them (DuoGen, section 4).

    A block-causal pair learns all pictures of an example in one pass, as the bundled pair does. A bidirectional pair learns one picture,
    drawn at random, with the pictures before it; every frame attends to all, as when it paints.
    """

    def __init__(
        self, recipe: Recipe, parts: DuoGenPipeline, files: list[Path], settings: DiTConfig, replay: Replay | None = None,
    ) -> None:  # fmt: skip
        """`parts` are a pair's transformer, which is trained, its autoencoder and its `duogen.json`."""
        replay, transformer, about, vae = replay or Replay(), parts.transformer, parts.about, parts.vae
        self.recipe, self.transformer, self.about, self.own, self.files = recipe, transformer, about, settings, [*files, *replay.examples]
        self.modules: dict[str, nn.Module] = {"transformer": transformer}
        self.causal = about.frame_attention == "block_causal"
        sizes = [read(file).sizes() for file in self.files]
        self.batch_sampler = BatchSampler(sizes[: len(files)], settings.batch, recipe.seed, sizes[len(files) :], replay.share)
        self.read_example = lru_cache(maxsize=64)(read)
        weight = pixel_weights(vae.config.latents_std) if isinstance(vae, PatchVAE) else torch.ones(1)
        channels = vae.config.z_dim
        self.objective = FlowObjective(
            weight, about.prediction, settings.shift or SHIFTS[about.prediction], settings.focus if self.causal else 0.0,
            has_gate=transformer.config.out_channels > channels,
        )  # fmt: skip

    def batch(self, step: int) -> CachedBatch:
        rng = random.Random(self.recipe.step_seed(step))
        examples = [self.read_example(self.files[index]) for index in self.batch_sampler[step]]
        return collate(examples, self.choose_targets(examples, rng))

    def choose_targets(self, examples: list[CachedExample], rng: random.Random) -> list[int]:
        """The times of the frames that a batch trains on."""
        painted = [time for time in range(len(examples[0].latents)) if any(each.painted[time] for each in examples)]
        if not self.causal:
            return [rng.choice(painted)]
        area = max(height * width for height, width in examples[0].sizes()) // self.transformer.config.patch_size[1] ** 2
        room = max(1, PASS_TOKENS // (area * len(examples)) - max(painted))
        return sorted(rng.sample(painted, min(len(painted), max(1, room // self.own.copies))))

    def loss(self, batch: CachedBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """`duogen.finetune.preference_stages` has another loss, that of votes."""
        error, weight = self.compute_errors(batch, generator)
        return (error * weight).sum() / weight.sum().clamp(min=1e-6), {"error": float(error.detach().mean())}

    def compute_errors(self, batch: CachedBatch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The error of each noisy target and what it counts, [B, targets], where a bidirectional pair's B is that of all copies."""
        batch = batch.to(self.transformer.device)
        if not self.causal:
            batch = _repeat_examples(batch, self.own.copies)
        copies = self.own.copies if self.causal else 1
        last = max(batch.targets)
        given = [(time, 0) for time in range(last)]
        targets = [(time, copy + 1) for time in batch.targets for copy in range(copies)]
        sigma = self.objective.draw_sigmas(len(batch.states) * len(targets), generator).view(-1, len(targets)).to(batch.states.device)
        noise = [self._draw_noise(batch.latents[time], generator) for time, _ in targets]
        frames = [self._add_context_noise(batch.latents[time], generator) for time, _ in given]
        moved = [self.objective.find_moved(batch.latents[time], batch.latents[time - 1] if time else None) for time, _ in targets]
        meant = [
            self.objective.choose_target(batch.latents[time], frames[time - 1] if time else None, moved[index])
            for index, (time, _) in enumerate(targets)
        ]
        frames += [add_noise(data, own, s[:, None, None, None]) for data, own, s in zip(meant, noise, sigma.unbind(1), strict=True)]
        predictions = self._predict(frames, given + targets, batch, sigma, generator)
        errors = [
            self.objective.compute_error(each, meant[index], noise[index], moved[index], targets[index][0] == 0)
            for index, each in enumerate(predictions)
        ]
        weight = self.objective.weigh_targets(sigma) * batch.painted[:, [time for time, _ in targets]]
        return torch.stack(errors, 1), weight

    def _draw_noise(self, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)  # drawn on the CPU: the same on every device

    def _add_context_noise(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        strength = torch.rand(len(latents), 1, 1, 1, generator=generator).to(latents.device) * self.own.context_noise
        return latents + strength * self._draw_noise(latents, generator)

    def _predict(
        self, frames: list[torch.Tensor], order: list[tuple[int, int]], batch: CachedBatch, sigma: torch.Tensor, generator: torch.Generator
    ) -> list[Prediction]:
        """Predict the targets from the noisy frames, which are the last of `order`."""
        model, given = self.transformer, len(order) - sigma.shape[1]
        times = [time for time, _ in order]
        before = [frames[time - 1] if time else None for time in times] if self.about.sees_previous else None
        dtype = model.patch_embed.proj.weight.dtype
        cast = [each.to(dtype) for each in frames]
        seen = [each if each is None else each.to(dtype) for each in before] if before else None
        packed = embed_frames(model, cast, times, [index < given for index in range(len(order))], seen)
        lengths = torch.tensor(packed.lengths, device=sigma.device)
        reads = self._word_masks(batch, times, given, generator).repeat_interleave(lengths, 1)[:, None]
        sees = frame_mask(order, order) if self.causal else None
        timesteps = torch.cat([sigma.new_zeros(len(sigma), given), sigma], 1) * self.about.timestep_scale
        out, _ = forward_frames(model, packed, timesteps, project_condition(model, batch.states.to(dtype)), reads, sees)
        made = out.float().split(packed.lengths, 1)[given:]
        outs = [unpatchify(model, each, size) for each, size in zip(made, packed.sizes[given:], strict=True)]
        olds = (before or [None] * len(order))[given:]
        return [self.objective.read_output(each, old, frames[0].shape[1]) for each, old in zip(outs, olds, strict=True)]

    def _word_masks(self, batch: CachedBatch, times: list[int], given: int, generator: torch.Generator) -> torch.Tensor:
        """[B, frames, S], boolean or scores: the words that each frame reads. Some targets, at random, do without the latest words."""
        if not self.causal:  # all frames read the words of the target
            times = [times[-1]] * len(times)
        reads, fewer = batch.words[:, times], batch.fewer[:, times]
        dropped = (torch.rand(reads.shape[:2], generator=generator) < self.own.dropout).to(reads.device)
        dropped = dropped[:, -1:].expand(-1, len(times)) if not self.causal else dropped
        if self.causal:
            dropped[:, :given] = False
        reads = torch.where(dropped[..., None], fewer, reads)
        return word_scores(reads, reads & ~fewer, self.about.fresh_bias) if self.about.fresh_bias else reads


def _repeat_examples(batch: CachedBatch, copies: int) -> CachedBatch:
    """Repeat each example in the batch: within one bidirectional sequence, noisy copies of a frame would see each other."""
    many = {name: getattr(batch, name).repeat_interleave(copies, 0) for name in ("states", "words", "fewer", "painted")}
    return replace(batch, latents=[each.repeat_interleave(copies, 0) for each in batch.latents], **many)
