"""The reward stage: the DiT learns from the exact checks of what it paints; the MLLM and the autoencoder are frozen.

For each request several pictures are painted by the averaged weights, read back and graded. By rejection sampling the DiT learns the good
ones as it learns drawings in stage 2; by DiffusionNFT (Zheng et al., ICLR 2026) it is drawn to good ones and pushed off bad ones. The words
and earlier pictures of a request are those of the reference, so no words are sampled, and no guidance is used.

B requests, K pictures of each, F frames, T noisy copies, S words, C latent channels, h w latent size.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from PIL import Image as PILImage
from torch import nn

from duogen.models.pipeline import DuoGenPipeline
from duogen.models.sequence import Tokens
from duogen.nn.attention import word_scores
from duogen.nn.flow import add_noise, gate_logit, sample, split_gate, to_velocity
from duogen.nn.frames import project_condition
from duogen.nn.vae import pixel_weights
from duogen.sketchbook import tasks
from duogen.sketchbook.grade import Grade, grade_picture
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.tasks import Dialogue
from duogen.sketchbook.world import HELD_OUT_KINDS
from duogen.train import fsdp
from duogen.train.curriculum import choose_core_kinds, sample_drafts
from duogen.train.dit import FrameBatch, NoisyFrames, TargetRunner, collate
from duogen.train.objective import FlowObjective, Prediction
from duogen.train.policy import choose_kept, compute_nft_losses, compute_optimality
from duogen.train.settings import RequestGroup, RewardSettings
from duogen.train.states import read_states, truncate_layers
from duogen.train.trainer import Recipe

TRIES = 200
WATCHED = {"combinations": None, "things": tuple(sorted(HELD_OUT_KINDS))}  # what is held out, and kinds; `None` for the recipe's


@dataclass(frozen=True)
class Request:
    """A dialogue of which one picture is to be painted: `meant` after `before`, `None` where it is the first."""

    dialogue: Dialogue
    meant: Scene
    before: Scene | None


@dataclass
class RequestBatch:
    """Requests for the same picture of their dialogues, of which `data` holds the words and all pictures up to it."""

    requests: list[Request]
    data: FrameBatch


@dataclass
class RewardBatch:
    """The batch of a step: one for each group, and by the name of what is held out those that are watched in this step."""

    groups: list[RequestBatch]
    watched: dict[str, list[RequestBatch]]


@dataclass(frozen=True)
class Setting:
    """What all pictures of a batch have in common.

    Attributes:
        given: [B, F - 1, C, h, w], the earlier frames, with a little noise.
        states: [B, S, D], of the words.
        reads, fresh: boolean [B, F, S], the words that each frame reads, and which of them are new to it.
    """

    given: torch.Tensor
    states: torch.Tensor
    reads: torch.Tensor
    fresh: torch.Tensor

    @property
    def before(self) -> torch.Tensor | None:
        """The frame before the one that is painted, [B, C, h, w]; `None` for a first frame."""
        return self.given[:, -1] if self.given.shape[1] else None


def sample_request(
    rng: random.Random, group: RequestGroup, frame: int, settings: RewardSettings, held: Sequence[str] | None = None
) -> Request:
    """Sample a dialogue whose picture number `frame`, from 1, is the assistant's.

    Args:
        held: kinds to show with something held out of training, `None` for what training shows.

    Raises:
        ValueError: the group's tasks make no such dialogue.
    """
    for _ in range(TRIES):
        task = rng.choices(list(group.tasks), list(group.tasks.values()))[0]
        if task == "drafts":
            dialogue = sample_drafts(rng, frame, settings, held)
        else:
            dialogue = tasks.sample(task, rng, held is not None, held or choose_core_kinds(rng, settings))
        painted = [line.role == "assistant" for line in dialogue.lines for _ in line.scenes()]
        if len(painted) >= frame and painted[frame - 1]:
            scenes = dialogue.scenes()
            return Request(dialogue, scenes[frame - 1], scenes[frame - 2] if frame > 1 else None)
    raise ValueError(f"The group {group.name} asks for picture {frame} of {', '.join(group.tasks)}, which has none; change its frames.")


class RewardStage:
    """Learning from rewards; `settings` name the method and the share of every kind of request."""

    def __init__(self, recipe: Recipe, pair: DuoGenPipeline) -> None:
        """`pair`: what the painter goes on from. Its transformer learns.

        Raises:
            ValueError: the pair or the recipe does not fit; one sentence.
        """
        self.recipe, self.about = recipe, pair.about
        self.settings = RewardSettings.from_json(recipe.settings)
        _check(recipe, pair)
        self.tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
        self.layers = list(pair.about.layers or ())
        self.mllm = truncate_layers(pair.text_encoder, max(self.layers)).eval().requires_grad_(False)
        self.vae, self.scheduler = pair.vae.requires_grad_(False), pair.scheduler
        self.transformer: CosmosTransformer3DModel = pair.transformer.float().requires_grad_(True)
        self.modules: dict[str, nn.Module] = {"transformer": self.transformer}
        self.reference, self.old = (copy.deepcopy(self.transformer).requires_grad_(False) for _ in range(2))
        config = self.vae.config
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
        self.runner = TargetRunner(self.about.timestep_scale, self.about.fresh_bias)
        self.objective = FlowObjective(
            pixel_weights(config.latents_std), shift=self.settings.training_shift, focus=self.settings.focus,
            has_gate=_config(self.transformer).out_channels > config.z_dim,
        )  # fmt: skip

    def read_average(self, averaged: dict[str, torch.Tensor]) -> None:
        """As of `AverageReader`: the old painter is the average itself, so that a state holds it and a resumed run has it."""
        for name, parameter in self.old.named_parameters():
            parameter.data = averaged[f"transformer.{name}"]

    def batch(self, step: int) -> RewardBatch:
        rng, settings = random.Random(self.recipe.step_seed(step)), self.settings
        groups = [self.make_requests(rng, group, group.requests) for group in settings.groups]
        watched: dict[str, list[RequestBatch]] = {}
        if settings.watch_every and step % settings.watch_every == 0:
            for name, kinds in WATCHED.items():
                same = random.Random(f"{self.recipe.seed}/{name}")  # the same requests every time
                held = kinds or settings.core_kinds
                watched[name] = [self.make_requests(same, group, settings.watched, held) for group in settings.groups]
        return RewardBatch(groups, watched)

    def make_requests(self, rng: random.Random, group: RequestGroup, count: int, held: Sequence[str] | None = None) -> RequestBatch:
        """Requests of a group, all for the same picture of their dialogues; `held` as of `sample_request`."""
        frame = rng.choice(group.frames)
        requests = [sample_request(rng, group, frame, self.settings, held) for _ in range(count)]
        dialogues = [tasks.draw_turns(each.dialogue) for each in requests]
        return RequestBatch(requests, collate(self.tokens, dialogues, frame, 0, see=True))

    def loss(self, batch: RewardBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        total, grades, figures = torch.zeros(()), [], {}
        for group, asked in zip(self.settings.groups, batch.groups, strict=True):
            setting = self.prepare(asked.data, generator)
            painted = self.paint(self.old, setting, self.settings.pictures, generator)
            graded = self.grade(painted, asked.requests)
            loss = self.learn(setting, painted, graded, generator)
            total = total + group.weight * loss
            figures[f"reward_{group.name}"] = self._mean_reward(graded)
            grades += graded
        figures |= {"reward": self._mean_reward(grades), "right": _share_right(grades)}
        for name, held in batch.watched.items():
            graded = [each for asked in held for each in self._watch(asked)]
            figures |= {f"held_{name}": self._mean_reward(graded), f"held_{name}_right": _share_right(graded)}
        return total, figures

    def _watch(self, asked: RequestBatch) -> list[list[Grade]]:
        """The grades of held-out requests, one picture each, always of the same noise."""
        same = torch.Generator().manual_seed(self.recipe.seed)
        return self.grade(self.paint(self.old, self.prepare(asked.data, same), 1, same), asked.requests)

    def _mean_reward(self, grades: list[list[Grade]]) -> float:
        rewards = [each.reward(self.settings.bonus) for own in grades for each in own]
        return sum(rewards) / len(rewards)

    @torch.no_grad()
    def prepare(self, data: FrameBatch, generator: torch.Generator) -> Setting:
        """The earlier frames and the words of a batch of requests."""
        frames = data.pixels[:, :-1].flatten(0, 1)
        shape = (len(data.pixels), data.pixels.shape[1] - 1, self.vae.config.z_dim, *self._size(data.pixels))
        clean = self.encode(frames).view(shape) if len(frames) else torch.zeros(shape)
        blur = torch.rand(*shape[:2], 1, 1, 1, generator=generator) * self.settings.context_noise
        clean = clean + blur * torch.randn(shape, generator=generator)
        states = read_states(self.mllm, self.layers, data.ids, data.places, data.mask, data.vision)
        return Setting(clean, states, data.words, data.words & ~data.fewer)

    def _size(self, pixels: torch.Tensor) -> tuple[int, int]:
        ratio = self.vae.spatial_compression_ratio
        return pixels.shape[-2] // ratio, pixels.shape[-1] // ratio

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[N, 3, H, W] -> normalised latents [N, C, h, w]."""
        with torch.autocast("cpu", enabled=False):
            return (self.vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[PILImage.Image]:
        """Normalised latents [N, C, h, w] as pictures."""
        with torch.autocast("cpu", enabled=False):
            pixels = self.vae.decode((latents * self.std + self.mean)[:, :, None]).sample[:, :, 0]
        arrays = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [PILImage.fromarray(each) for each in arrays]

    @torch.no_grad()
    def paint(self, transformer: CosmosTransformer3DModel, setting: Setting, count: int, generator: torch.Generator) -> torch.Tensor:
        """Paint `count` pictures of each request as `CosmosPainter` does without guidance, [B, K, C, h, w]."""
        noise = torch.randn(len(setting.given), count, *setting.given.shape[2:], generator=generator)
        condition = project_condition(transformer, setting.states)
        stays: list[torch.Tensor] = []

        def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            outputs = self._run(transformer, setting, latents, sigma.expand(latents.shape[:2]), condition)
            made = [self._apply_gate(out, before, own, sigma) for (out, before), own in zip(outputs, latents.unbind(1), strict=True)]
            stays[:] = [kept for _, kept in made]
            return torch.stack([v for v, _ in made], 1)

        *_, (latents, _) = sample(self.scheduler, velocity, noise, self.settings.sampling_steps or self.about.steps)
        if setting.before is None:
            return latents
        return torch.where(torch.stack(stays, 1), setting.before[:, None], latents)  # exactly, whatever the sampler rounds

    def _apply_gate(
        self, out: torch.Tensor, before: torch.Tensor | None, latents: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity that an output stands for, and the places that it copies, boolean [B, 1, h, w]; like `latents` [B, C, h, w]."""
        frame, gate = split_gate(out, latents.shape[1])
        velocity = to_velocity(frame, latents, sigma, "sample")
        if gate is None or before is None:
            return velocity, torch.zeros_like(frame[:, :1], dtype=torch.bool)
        made = latents - sigma * velocity
        stays = gate_logit(made, gate, before, self.objective.weight) < self.about.copy_below
        return to_velocity(torch.where(stays, before, made), latents, sigma, "sample"), stays

    def _run(
        self, transformer: CosmosTransformer3DModel, setting: Setting, noisy: torch.Tensor, sigma: torch.Tensor, condition: Any
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """What `TargetRunner.run` gives for noisy pictures [B, T, C, h, w] of `sigma` [B, T]."""
        time, count = setting.given.shape[1], noisy.shape[1]
        order = [(index, 0) for index in range(time)] + [(time, copy + 1) for copy in range(count)]
        batch = NoisyFrames(torch.cat([setting.given, noisy], 1), order, noisy, noisy, noisy, sigma)
        rows = [index for index, _ in order]
        return self.runner.run(transformer, batch, condition, word_scores(setting.reads, setting.fresh, self.about.fresh_bias)[:, rows])

    def grade(self, painted: torch.Tensor, requests: list[Request]) -> list[list[Grade]]:
        """The grades of painted pictures [B, K, C, h, w]."""
        return [
            [grade_picture(picture, each.meant, each.before) for picture in self.decode(own)]
            for own, each in zip(painted, requests, strict=True)
        ]

    def learn(self, setting: Setting, painted: torch.Tensor, grades: list[list[Grade]], generator: torch.Generator) -> torch.Tensor:
        """The loss of painted pictures [B, K, C, h, w]."""
        rewards = torch.tensor([[each.reward(self.settings.bonus) for each in own] for own in grades])
        if self.settings.method == "rejection":
            right = torch.tensor([[each.right for each in own] for own in grades])
            return self._learn_kept(setting, painted, choose_kept(rewards, right, self.settings.kept), generator)
        return self._learn_contrast(setting, painted, compute_optimality(rewards, self.settings.clip), generator)

    def _learn_kept(self, setting: Setting, painted: torch.Tensor, kept: list[list[int]], generator: torch.Generator) -> torch.Tensor:
        """The loss of stage 2 for the pictures that are kept. Requests with fewer than others repeat theirs."""
        most = max(map(len, kept)) * self.settings.noises
        if not most:
            return sum(parameter.sum() for parameter in self.transformer.parameters()) * torch.zeros(())
        rows = torch.tensor([[(own or [0])[index % max(1, len(own))] for index in range(most)] for own in kept])
        counts = torch.tensor([[float(bool(own))] for own in kept])
        target = painted.gather(1, rows[..., None, None, None].expand(-1, -1, *painted.shape[2:]))
        noise, sigma = self._draw_noise(target, generator)
        predictions = self._predict(self.transformer, setting, target, noise, sigma)
        errors = [self._flow_error(each, target[:, index], noise[:, index], setting.before) for index, each in enumerate(predictions)]
        weight = self.objective.weigh_targets(sigma) * counts
        return (torch.stack(errors, 1) * weight).sum() / weight.sum()

    def _flow_error(self, prediction: Prediction, target: torch.Tensor, noise: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        moved = self.objective.find_moved(target, before)
        return self.objective.compute_error(prediction, target, noise, moved, before is None)

    def _learn_contrast(
        self, setting: Setting, painted: torch.Tensor, optimality: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """DiffusionNFT's loss, with the squared distance to the reference."""
        settings, weight = self.settings, self.objective.weight
        target = painted.repeat(1, settings.noises, 1, 1, 1)
        noise, sigma = self._draw_noise(target, generator)
        with torch.no_grad():
            old = self._predict(self.old, setting, target, noise, sigma)
            reference = self._predict(self.reference, setting, target, noise, sigma) if settings.kl else old
        own = self._predict(self.transformer, setting, target, noise, sigma)
        mine, olds, firsts = (torch.stack([each.frame for each in made], 1).flatten(0, 1) for made in (own, old, reference))
        chances = optimality.repeat(1, settings.noises).flatten()
        losses = compute_nft_losses(mine, olds, target.flatten(0, 1), chances, settings.beta, weight)
        return losses.mean() + settings.kl * (weight * (mine - firsts).square()).mean()

    def _draw_noise(self, target: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(target.shape, generator=generator)
        return noise, self.objective.draw_sigmas(target.shape[0] * target.shape[1], generator).view(target.shape[:2])

    def _predict(
        self, transformer: CosmosTransformer3DModel, setting: Setting, target: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
    ) -> list[Prediction]:
        """What a painter makes of pictures [B, T, C, h, w] at the noise levels `sigma` [B, T]."""
        noisy = add_noise(target, noise, sigma[..., None, None, None])
        outputs = self._run(transformer, setting, noisy, sigma, project_condition(transformer, setting.states))
        return [self.objective.read_output(out, before, target.shape[2]) for out, before in outputs]


def _check(recipe: Recipe, pair: DuoGenPipeline) -> None:
    about = pair.about
    if about.frame_attention != "block_causal" or about.prediction != "sample" or not about.sees_previous or not about.layers:
        raise ValueError("The reward stage goes on with a pair of the bundled kind, which predicts clean frames; name one in grow_from.")
    if not recipe.ema:
        raise ValueError("The reward stage paints with averaged weights; give the recipe an ema, such as 0.9.")
    if fsdp.fsdp_requested():
        raise ValueError("The reward stage needs whole weights; launch it without FSDP.")


def _share_right(grades: list[list[Grade]]) -> float:
    every = [each.right for own in grades for each in own]
    return sum(every) / len(every)


def _config(model: CosmosTransformer3DModel) -> Any:
    """A model's configuration, which diffusers types as a dict though it is read by attribute."""
    return model.config
