"""`CosmosPainter`: paints a conversation's pictures frame by frame, each after all earlier ones.

C latent channels, h w latent size, S words, D channels of the condition.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage

from duogen.conversation import REFERENCE
from duogen.models.guardrail import CheckedBefore
from duogen.models.pipeline import DuoGenPipeline
from duogen.models.placement import CACHE_THRESHOLD, wants_block_cache
from duogen.models.samplers import choose_scheduler
from duogen.nn.attention import KeyValue, word_scores
from duogen.nn.change_head import KINDS, read_motions
from duogen.nn.flow import add_noise, gate_logit, guide, sample, split_gate, to_velocity
from duogen.nn.frames import FirstBlockCache, embed_frames, forward_frames, project_condition, unpatchify
from duogen.nn.frames import Frames as PackedFrames
from duogen.nn.vae import pixel_weights
from duogen.options import ImageOptions
from duogen.painters.base import Frames, PaintRequest, PaintStep, SceneStart, WordRange
from duogen.painters.masks import (
    ColourChange,
    Motion,
    Removal,
    Transform,
    check_mask,
    composite_inside,
    fill_shapes,
    find_shape,
    fit,
    inner_box,
    mark_regions,
    to_pixels,
)
from duogen.painters.pipeline_run import PipelineRun

FILM_FRAMES = 93  # of the videos that Cosmos-Predict2.5 was trained on: 24 latents


@dataclass(frozen=True)
class Inpaint:
    """Paint anew only where `mask`, boolean [1, 1, h, w], says so, into the picture whose `latents` are given, [1, C, h, w]."""

    latents: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Kept:
    """What stays of the picture before, as the change head says.

    Attributes:
        places: boolean [1, 1, h, w].
        pixels: boolean [1, 1, H, W]; `None` where the head knows places only.
        transform: what happens to pixels that need not be painted; then all but these stay. `None` for nothing.
    """

    places: torch.Tensor
    pixels: torch.Tensor | None = None
    transform: Transform | None = None


@dataclass(frozen=True)
class StepInputs:
    """What stays the same over the denoising steps of a picture, for its B branches.

    Attributes:
        condition: every block's cross-attention keys and values of the words.
        reads: as `forward_frames` takes it, which words are read; `None` for all, and all alike.
        sees: boolean [B, 1, 1, past + own tokens], which pictures are seen; `None` for all.
        preallocated_kv: of the pictures before and this one, as `FrameCache.preallocate` lays them out; empty without a cache.
        block_cache: of the blocks that change little from step to step; `None` for none.
    """

    condition: list[KeyValue]
    reads: torch.Tensor | None
    sees: torch.Tensor | None
    preallocated_kv: list[KeyValue]
    block_cache: FirstBlockCache | None


class CosmosPainter:
    """Drives a `CosmosTransformer3DModel`, block-causal with a frame cache, or bidirectional without one.

    It reads hidden states, not words.

    Attributes:
        follows: it paints the next frame after all earlier pictures, as stage 2 teaches. Else it does what an untuned Cosmos-Predict2.5
            was trained for: a picture from words alone, or a video that begins with a picture.
    """

    reads_words = False

    def __init__(self, pair: DuoGenPipeline) -> None:
        self.pair, self.model, self.about = pair, pair.transformer, pair.about
        config = pair.vae.config
        shape = (1, -1, 1, 1)
        self.mean, self.std = (torch.tensor(values).view(shape).to(self.device) for values in (config.latents_mean, config.latents_std))
        self.weight = pixel_weights(config.latents_std).to(self.device)
        self.causal = self.about.frame_attention == "block_causal"
        self.follows = True

    @property
    def device(self) -> torch.device:
        """Where it computes, which is not where its weights wait while others have the GPU."""
        if self.pair.swapper.rest:
            return torch.device(self.pair.swapper.work)
        return (self.pair.vae if self.model is None else self.model).device  # training looks at pictures without the DiT

    @property
    def most_frames(self) -> int:
        """As of `Painter`: the DiT has a position in time for each."""
        return self.model.config.max_size[0]

    def size(self, picture: tuple[int, int] | None = None) -> tuple[int, int]:
        """Latent (h, w) of a picture of this (width, height), `None` for the pair's own."""
        ratio = self.pair.vae.spatial_compression_ratio
        width, height = picture or self.about.image_size
        return height // ratio, width // ratio

    def takes_pictures(self, options: ImageOptions) -> bool:
        """Whether it was taught to paint the next frame, or is to film."""
        return self.follows or self._films(options)

    def find_sources(self, frames: Frames, condition: torch.Tensor) -> list[int]:
        """The picture before, unless a new scene begins."""
        return [len(frames.past) - 1] if frames.past and not self._begins_scene(condition) else []

    def source_shape(self, frames: Frames, condition: torch.Tensor) -> tuple[int, int] | None:
        """(width, height) of the picture before, like which the next one of its scene is shaped."""
        if not self.find_sources(frames, condition):
            return None
        height, width = frames.past[-1].shape[-2:]
        ratio = self.pair.vae.spatial_compression_ratio
        return width * ratio, height * ratio

    @torch.no_grad()
    def encode(self, picture: PILImage.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
        """A picture as normalised latents [1, C, h, w], scaled to `size` (width, height), by default the pair's picture size."""
        fitted = fit(picture, size or self.about.image_size)
        pixels = to_pixels([fitted])[:, :, None].to(self.device)
        latents = self.pair.vae.encode(pixels.to(self.pair.vae.dtype)).latent_dist.mode()[:, :, 0]
        return (latents.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> PILImage.Image:
        """Normalised latents [1, C, h, w] as a picture."""
        array = ((self._decode_pixels(latents)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        return PILImage.fromarray(array)

    def _decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents [1, C, h, w] as pixels [1, 3, H, W] in -1..1."""
        raw = (latents * self.std + self.mean)[:, :, None].to(self.pair.vae.dtype)
        return self.pair.vae.decode(raw).sample[:, :, 0].float().clamp(-1, 1)

    def prepare_inpaint(self, picture: PILImage.Image, mask: PILImage.Image, size: tuple[int, int] | None = None) -> Inpaint:
        """What `paint` needs to change `picture` only where `mask` ("L", as large) is white; every latent that it touches is painted.

        Raises:
            ValueError: the mask is of another size, or nothing of it is white.
        """
        check_mask(picture, mask)
        size = size or self.about.image_size
        left, top, width, height = inner_box(picture.size, size)
        whole = PILImage.new("L", size)
        whole.paste(mask.resize((width, height), PILImage.Resampling.BOX), (left, top))
        rows, columns = self.size(size)
        touched = torch.from_numpy(np.array(whole) > 0).unflatten(0, (rows, -1)).unflatten(2, (columns, -1)).any(3).any(1)
        return Inpaint(self.encode(picture, size), touched[None, None].to(self.device))

    def composite(self, painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
        """`picture` in its own size with what was painted where `mask` is white; outside not a pixel changes."""
        return composite_inside(painted, picture, mask)

    @torch.no_grad()
    def remember(self, frames: Frames, latents: torch.Tensor, condition: torch.Tensor, segment: int, goes_on: bool = False) -> None:
        """Add a final picture; its keys and values are computed once, before the next picture, and serve every later one.

        Args:
            condition: [1, S, D] states of the words before its BOV.
            segment: index of the first word of the last text segment before it.
            goes_on: as of `Painter`.

        Raises:
            ValueError: the conversation has more pictures than the model has positions for.
        """
        self._check_room(frames)
        frames.scenes.append(self._find_start(frames, condition, segment, goes_on))
        frames.past.append(latents)
        if self.causal:
            self._condition(frames, condition)  # now, since the states are not kept
            frames.word_ranges.append(WordRange(condition.shape[1], segment))

    @torch.no_grad()
    def fill_cache(self, frames: Frames) -> None:
        """Compute the keys and values that are still due, before a picture comes after them."""
        while frames.word_ranges:
            brief, index = frames.word_ranges[0], frames.cache.frames
            latents, start = frames.past[index], frames.scenes[index]
            packed = self._embed(frames.past[start.frame : index], latents, True)
            timesteps = torch.zeros(1, 1, device=latents.device)
            words, cached = frames.words.first(brief.words), frames.cache.since(start.frame).preallocate(1, packed.lengths[0])
            reads = self._mask_words(brief.words, brief.segment, first=start.word)
            _, fresh = forward_frames(self.model, packed, timesteps, words, reads, preallocated_kv=cached)
            frames.cache.append(fresh)
            del frames.word_ranges[0]

    @torch.no_grad()
    def paint(self, frames: Frames, request: PaintRequest) -> Iterator[PaintStep]:
        """Paint the next picture.

        Args:
            frames: the pictures before it; only their caches are filled.
            request: with `inpaint`, the picture stays as it is outside the mask: after every step what stays is put back at the step's
                noise (blended latent diffusion: Avrahami et al. 2023, section 4.1).

        Yields:
            A `PaintStep` after every denoising step.

        Raises:
            ValueError: the conversation has more pictures than the model has positions for; as `About.picture_size`.
        """
        options, inpaint = request.options, request.inpaint
        size = request.size or self.about.picture_size(options.side)
        if not self.follows:
            if self._films(options) and frames.past and inpaint is None:
                yield from self._film(frames.past[-1], request, size)
                return
            frames = Frames.empty()  # it never learnt what a frame a step later is
        self._check_room(frames)
        self.fill_cache(frames)
        goes_on = inpaint is not None or bool(request.role)
        frames = frames.since(self._find_start(frames, request.condition, request.segment, goes_on))
        height, width = self.size(size)
        shape = (1, self.pair.vae.config.z_dim, height, width)
        # Drawn on the CPU: the same seed gives the same picture on every device.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)).to(self.device)

        def on_step(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return torch.where(inpaint.mask, latents, add_noise(inpaint.latents, noise, sigma))

        velocity = _GuidedVelocity(self, frames, request, (height, width))
        steps = sample(choose_scheduler(self.pair.scheduler, options.sampler), velocity, noise, options.steps, on_step if inpaint else None)
        for step, (latents, predicted) in enumerate(steps, 1):
            last = step == options.steps
            if last and velocity.stays is not None:
                latents = torch.where(velocity.stays, frames.past[-1], latents)  # exactly, whatever the sampler rounds
            done = PaintStep(step, latents, velocity.find_kept_pixels(), transform=velocity.transform)
            yield done if last else PaintStep(step, predicted)

    def _view_before(self, frames: Frames, request: PaintRequest) -> torch.Tensor:
        """The picture before in the painter's size, [1, 3, H, W] in -1..1."""
        if request.before is None:
            return self._decode_pixels(frames.past[-1])
        ratio = self.pair.vae.spatial_compression_ratio
        height, width = (side * ratio for side in frames.past[-1].shape[-2:])
        return to_pixels([fit(request.before, (width, height))]).to(self.device)

    def _films(self, options: ImageOptions) -> bool:
        return self.about.films and options.world == "on"

    def _film(self, before: torch.Tensor, request: PaintRequest, size: tuple[int, int]) -> Iterator[PaintStep]:
        """The last frame of a video that begins with the picture `before`, by diffusers' own pipeline.

        Raises:
            ValueError: a library that the pipeline wants is not here.
        """
        from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import Cosmos2_5_PredictBasePipeline

        if self.model.config.concat_padding_mask and importlib.util.find_spec("torchvision") is None:
            raise ValueError("Filming needs torchvision: pip install torchvision, or set the option World to off.")
        options, pair = request.options, self.pair
        scheduler = copy.deepcopy(choose_scheduler(pair.scheduler, options.sampler))
        reader: Any = None  # the words have been read
        pipe = Cosmos2_5_PredictBasePipeline(reader, pair.tokenizer, pair.transformer, pair.vae, scheduler, CheckedBefore())
        pipe.set_progress_bar_config(disable=True)
        words, negative = (each if each is None else each.to(self.device) for each in (request.condition, request.negative))
        given = {
            "prompt": None, "prompt_embeds": words, "negative_prompt_embeds": negative, "width": size[0],
            "height": size[1], "num_frames": FILM_FRAMES, "video": [fit(self.decode(before), size)], "num_latent_conditional_frames": 1,
            "num_inference_steps": options.steps, "guidance_scale": options.guidance if request.negative is not None else 1.0,
            "generator": torch.Generator().manual_seed(request.seed),
        }  # fmt: skip
        run = PipelineRun(pipe, given, pair.transformer, lambda made: made.frames[0][-1])
        try:
            for step in run.steps():
                if step < options.steps:
                    yield PaintStep(step, None)
            assert run.picture is not None  # since the steps ended without an error
            yield PaintStep(options.steps, self.encode(run.picture, size), picture=run.picture)
        finally:
            run.stop()

    def _begins_scene(self, condition: torch.Tensor) -> bool:
        """Whether the picture after these words shows a new scene, as the MLLM's last state says."""
        head = self.pair.scene_head
        return head is not None and bool((head(condition[0, -1]) > 0).item())

    def _find_kept(self, frames: Frames, request: PaintRequest) -> Kept | None:
        """What stays of the picture before, as the change head says; `None` without one, for a picture of another shape than it knows, and
        where the MLLM did not read the picture."""
        head, size = self.pair.change_head, tuple(frames.past[-1].shape[-2:])
        first = request.segment - 1 - size[0] * size[1]  # the picture's last token, EOV, is no place
        if head is None or size != tuple(head.config.places) or first < 0:
            return None
        places = request.condition[:, first : request.segment - 1]
        words = request.condition[:, request.segment :].flip(1)
        read = head.read(places, words, torch.tensor([words.shape[1]], device=words.device))
        if not head.config.pixels:
            return Kept((head.mark_places(read) < self.about.keep_below).view(1, 1, *size))
        before = self._view_before(frames, request)
        transform = self._find_transform(read, before)
        pixels = ~transform.source if transform else head.mark_pixels(read, before)[:, None] < self.about.keep_below
        return Kept(pixels.float().unflatten(3, (size[1], -1)).unflatten(2, (size[0], -1)).amin((3, 5)) > 0, pixels, transform)

    def _find_transform(self, read: torch.Tensor, before: torch.Tensor) -> Transform | None:
        """What happens to pixels of the picture before, [1, 3, H, W] in -1..1, as the change head says; `None` where all is painted."""
        head = self.pair.change_head
        if not head.config.transforms:
            return None
        found = head.find_transforms(read)
        kind = KINDS[int(found.kinds[0].argmax())]
        if kind == "paint":
            return None
        marks = mark_regions(head.mark_source(read, before)[:, None].sigmoid(), before)
        source = find_shape(marks) if kind == "move" else fill_shapes(marks) if kind == "remove" else marks
        if not source.any():
            return None
        if kind == "recolour":
            red, green, blue = ((found.colours[0] + 1) * 127.5).tolist()
            return ColourChange(source, (red, green, blue))
        doublings, right, down = read_motions(found.motions)[0].tolist()
        return Motion(source, 2.0**doublings, right, down) if kind == "move" else Removal(source)

    def _find_start(self, frames: Frames, condition: torch.Tensor, segment: int, goes_on: bool = False) -> SceneStart:
        """Where the scene of the next picture begins: with itself, or where that of the picture before does, as one that `goes_on` must."""
        if not frames.past:
            return SceneStart()
        return frames.scenes[-1] if goes_on or not self._begins_scene(condition) else SceneStart(len(frames.past), segment)

    def _check_room(self, frames: Frames) -> None:
        most = self.most_frames
        if len(frames.past) >= most:
            raise ValueError(f"This conversation has {most} pictures, the most that the pair can follow; start a new chat.")

    def _step_inputs(self, frames: Frames, request: PaintRequest, size: tuple[int, int], branches: int) -> StepInputs:
        condition, words = self._branch_conditions(frames, request, branches), request.condition.shape[1]
        cache = FirstBlockCache(CACHE_THRESHOLD) if wants_block_cache(request.options.steps, self.pair.caching) else None
        reads = None if request.negative is not None else self._mask_words(words, request.segment, branches, frames.first_word)
        return StepInputs(condition, reads, *self._before(frames, size, branches), cache)

    def _branches(self, frames: Frames, options: ImageOptions) -> int:
        """How many run side by side: all is read; not the latest words; neither these nor the pictures before."""
        if options.picture_guidance > 1.0 and frames.past:
            return 3
        return 2 if options.guidance > 1.0 else 1

    def _before(self, frames: Frames, size: tuple[int, int], branches: int) -> tuple[torch.Tensor | None, list[KeyValue]]:
        """What every branch sees of the pictures before: `sees` and `preallocated_kv` of `StepInputs`."""
        _, p_h, p_w = self.model.config.patch_size
        tokens = (size[0] // p_h) * (size[1] // p_w)
        preallocated_kv = frames.cache.preallocate(branches, tokens) if self.causal else []
        if branches < 3:
            return None, preallocated_kv
        past = sum((each.shape[-2] // p_h) * (each.shape[-1] // p_w) for each in frames.past)
        sees = torch.ones(branches, 1, 1, past + tokens, dtype=torch.bool, device=self.device)
        sees[2:, ..., :past] = False
        return sees, preallocated_kv

    def _embed(self, past: list[torch.Tensor], latents: torch.Tensor, clean: bool) -> PackedFrames:
        """One frame after those of `past`, which a third branch does not see."""
        previous = None
        if self.about.sees_previous:
            before = past[-1].expand(len(latents), -1, -1, -1).to(self.model.dtype) if past else None
            if before is not None and len(latents) > 2:
                before = torch.cat([before[:2], torch.zeros_like(before[2:])])
            previous = [before]
        return embed_frames(self.model, [latents.to(self.model.dtype)], [len(past)], [clean], previous)

    def _condition(self, frames: Frames, condition: torch.Tensor, branches: int = 1) -> list[KeyValue]:
        states = condition.to(self.device, self.model.dtype)
        projected = frames.words.project(self.model, states) if self.causal else project_condition(self.model, states)
        # Once for each branch in memory: an expanded tensor is copied at every step and block by the product of matrices.
        return [(key.repeat(branches, 1, 1, 1), value.repeat(branches, 1, 1, 1)) for key, value in projected]

    def _branch_conditions(self, frames: Frames, request: PaintRequest, branches: int) -> list[KeyValue]:
        """What the branches read: all the same, or the others the negative words of the request."""
        if request.negative is None or branches == 1:
            return self._condition(frames, request.condition, branches)
        states = torch.cat([request.condition, *[request.negative] * (branches - 1)])
        return project_condition(self.model, states.to(self.device, self.model.dtype))

    def _mask_words(self, words: int, segment: int, branches: int = 1, first: int = 0) -> torch.Tensor | None:
        """[branches, 1, 1, S], which words are read; `None` for all, and all alike.

        All branches but the first read nothing of the last text segment. None reads what stands before the word of index `first`. The very
        first word is always kept: attention needs one.
        """
        if branches == 1 and not self.about.fresh_bias and first <= 1:
            return None
        reads = torch.ones(branches, 1, 1, words, dtype=torch.bool, device=self.device)
        reads[..., 1:first] = False
        fresh = torch.zeros_like(reads)
        fresh[0, ..., max(segment, 1) :] = True
        reads[1:, ..., max(segment, 1) :] = False
        return word_scores(reads, fresh, self.about.fresh_bias) if self.about.fresh_bias else reads

    def _predict_causal(self, frames: Frames, batch: torch.Tensor, sigma: torch.Tensor, given: StepInputs) -> torch.Tensor:
        packed = self._embed(frames.past, batch, False)
        timesteps = (sigma * self.about.timestep_scale).expand(len(batch), 1)
        out, _ = forward_frames(
            self.model, packed, timesteps, given.condition, given.reads, given.sees, given.preallocated_kv,
            block_cache=given.block_cache, block_forward=self.pair.block_forward,
        )  # fmt: skip
        return unpatchify(self.model, out, packed.sizes[0])

    def _predict_bidirectional(self, frames: Frames, batch: torch.Tensor, sigma: torch.Tensor, given: StepInputs) -> torch.Tensor:
        """All frames in one sequence, every frame seeing all, as the checkpoint was trained."""
        latents = [past.expand(len(batch), -1, -1, -1) for past in frames.past] + [batch]
        count = len(latents)
        packed = embed_frames(
            self.model, [each.to(self.model.dtype) for each in latents], list(range(count)), [True] * (count - 1) + [False]
        )
        timesteps = torch.zeros(len(batch), count, device=batch.device)
        timesteps[:, -1] = sigma * self.about.timestep_scale
        out, _ = forward_frames(
            self.model, packed, timesteps, given.condition, given.reads, given.sees,
            block_cache=given.block_cache, block_forward=self.pair.block_forward,
        )  # fmt: skip
        return unpatchify(self.model, out[:, -packed.lengths[-1] :], packed.sizes[-1])


class _GuidedVelocity:
    """The velocity of one picture at a noise level, as `sample` calls it: guidance, and the copy gate where the DiT has one.

    Attributes:
        stays: boolean [1, 1, h, w], the places of the frame before that the gate copied at the last call; `None` without a gate.
    """

    def __init__(self, painter: CosmosPainter, frames: Frames, request: PaintRequest, size: tuple[int, int]) -> None:
        self.painter, self.frames, self.options = painter, frames, request.options
        self.copies = bool(frames.past) and request.role != REFERENCE
        self.run = painter._predict_causal if painter.causal else painter._predict_bidirectional
        self.branches = painter._branches(frames, request.options)
        self.inputs = painter._step_inputs(frames, request, size, self.branches)
        # Cosmos' own code adds the difference to the guided branch, so its numbers count from 0, and ours from 1.
        self.strength = request.options.guidance + (request.negative is not None)
        # Steps build on the picture before, and the gate alone was taught enough of them. The head is for what a user wants changed.
        asked = self.copies and request.inpaint is None and not request.is_step
        self.kept = painter._find_kept(frames, request) if asked else None
        self.transform = self.kept.transform if self.kept else None
        self.stays: torch.Tensor | None = None

    def find_kept_pixels(self) -> torch.Tensor | None:
        """Boolean, what stays of the picture before, as finely as it is known: [1, 1, h, w] places or [1, 1, H, W] pixels."""
        if self.stays is None or self.kept is None or self.kept.pixels is None:
            return self.stays
        return self.kept.pixels

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        painter, about = self.painter, self.painter.about
        batch = latents.expand(self.branches, -1, -1, -1)
        frame, gate = split_gate(self.run(self.frames, batch, sigma, self.inputs).float(), latents.shape[1])
        guided = guide(to_velocity(frame, batch, sigma, about.prediction), self.strength, self.options.picture_guidance)
        if gate is None or not self.copies:
            return guided
        # The gate of the branch that reads everything decides, by the distance that guidance made.
        made, before = latents - sigma * guided, self.frames.past[-1]
        self.stays = gate_logit(made, gate[:1], before, painter.weight) < about.copy_below
        if self.kept is not None:  # the gate alone would keep what is transformed as it was, too
            self.stays = self.kept.places if self.kept.transform else self.stays | self.kept.places
        return to_velocity(torch.where(self.stays, before, made), latents, sigma, "sample")
