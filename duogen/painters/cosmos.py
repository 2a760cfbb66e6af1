"""The frame painter: paints the next picture of a conversation after all earlier ones.

C latent channels, h w latent size, S words, D channels of the condition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image as PILImage

from duogen.models.pipeline import DuoGenPipeline
from duogen.models.placement import CACHE_THRESHOLD, wants_skipping
from duogen.nn.attention import FrameCache, KeyValue, word_scores
from duogen.nn.flow import add_change, copy_unchanged, guide, noisy, sample, to_velocity
from duogen.nn.frames import Frames as PackedFrames
from duogen.nn.frames import Skipping, WordCache, embed_frames, project_condition, unpatchify, walk
from duogen.options import ImageOptions


@dataclass(frozen=True)
class Brief:
    """What a frame reads: the first `words` words of the conversation, of which those from index `segment` on are new."""

    words: int
    segment: int


@dataclass
class Frames:
    """The pictures of a conversation as the painter knows them.

    Attributes:
        past: their latents, each [1, C, h, w].
        cache: keys and values of the first of them.
        briefs: of the others, whose keys and values are computed when a picture comes after them; the last picture needs none.
        words: keys and values of the words.
    """

    past: list[torch.Tensor] = field(default_factory=list)
    cache: FrameCache = field(default_factory=FrameCache)
    briefs: list[Brief] = field(default_factory=list)
    words: WordCache = field(default_factory=WordCache)

    @staticmethod
    def empty() -> Frames:
        return Frames()

    def keep(self, count: int, words: int) -> None:
        """Forget all but the first `count` pictures and the first `words` words."""
        del self.past[count:]
        del self.briefs[max(0, count - self.cache.frames) :]
        self.cache.keep(count)
        self.words.keep(words)


@dataclass(frozen=True)
class Painted:
    """One denoising step is done; `latents` is what the picture would be now, and the picture itself after the last step."""

    step: int
    latents: torch.Tensor


@dataclass(frozen=True)
class Retouch:
    """Paint anew only where `inside`, boolean [1, 1, h, w], says so, into the picture whose `latents` are given, [1, C, h, w]."""

    latents: torch.Tensor
    inside: torch.Tensor


@dataclass(frozen=True)
class Given:
    """What stays the same over the denoising steps of a picture, for its B branches.

    Attributes:
        condition: every block's cross-attention keys and values of the words.
        reads: as `walk` takes it, which words are read; `None` for all, and all alike.
        sees: boolean [B, 1, 1, past + own tokens], which pictures are seen; `None` for all.
        room: the pictures before and room for this one, as `FrameCache.room` lays them out; empty without a cache.
        skipping: of the blocks that change little from step to step; `None` for none.
    """

    condition: list[KeyValue]
    reads: torch.Tensor | None
    sees: torch.Tensor | None
    room: list[KeyValue]
    skipping: Skipping | None


class FramePainter:
    """Drives a `CosmosTransformer3DModel`, block-causal with a frame cache, or bidirectional without one.

    It reads hidden states, not words.
    """

    reads_words = False

    def __init__(self, pair: DuoGenPipeline) -> None:
        self.pair, self.model, self.about = pair, pair.transformer, pair.about
        config = pair.vae.config
        shape = (1, -1, 1, 1)
        self.mean, self.std = (torch.tensor(values).view(shape).to(self.device) for values in (config.latents_mean, config.latents_std))
        self.weight = self.std.square() / self.std.square().mean()  # of a latent's error, so that it is that of pixels
        self.causal = self.about.frame_attention == "block_causal"

    @property
    def device(self) -> torch.device:
        """Where it computes, which is not where its weights wait while others have the card."""
        if self.pair.turns.rest:
            return torch.device(self.pair.turns.work)
        return (self.pair.vae if self.model is None else self.model).device  # training looks at pictures without the DiT

    def size(self, side: int = 0) -> tuple[int, int]:
        """Latent (h, w) of a picture to be painted, `side` as of `ImageOptions`. Raises ValueError, as `About.picture_size`."""
        ratio = self.pair.vae.spatial_compression_ratio
        width, height = self.about.picture_size(side)
        return height // ratio, width // ratio

    @torch.no_grad()
    def encode(self, picture: PILImage.Image, size: tuple[int, int] | None = None) -> torch.Tensor:
        """A picture as normalised latents [1, C, h, w], scaled to `size` (width, height), by default the pair's picture size."""
        fitted = fit(picture, size or self.about.image_size)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None, :, None].to(self.device)
        latents = self.pair.vae.encode((pixels / 127.5 - 1).to(self.pair.vae.dtype)).latent_dist.mode()[:, :, 0]
        return (latents.float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> PILImage.Image:
        """Normalised latents [1, C, h, w] as a picture."""
        raw = (latents * self.std + self.mean)[:, :, None].to(self.pair.vae.dtype)
        pixels = self.pair.vae.decode(raw).sample[0, :, 0].float()
        array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        return PILImage.fromarray(array)

    def retouch(self, picture: PILImage.Image, mask: PILImage.Image, side: int = 0) -> Retouch:
        """What `paint` needs to change `picture` only where `mask` ("L", as large) is white; every latent that it touches is painted.

        Raises:
            ValueError: the mask is of another size, or nothing of it is white; as `About.picture_size`.
        """
        check_mask(picture, mask)
        size = self.about.picture_size(side)
        left, top, width, height = inner_box(picture.size, size)
        whole = PILImage.new("L", size)
        whole.paste(mask.resize((width, height), PILImage.Resampling.BOX), (left, top))
        rows, columns = self.size(side)
        touched = torch.from_numpy(np.array(whole) > 0).unflatten(0, (rows, -1)).unflatten(2, (columns, -1)).any(3).any(1)
        return Retouch(self.encode(picture, size), touched[None, None].to(self.device))

    def laid_in(self, painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
        """`picture` in its own size with what was painted where `mask` is white; outside not a pixel changes."""
        return lay_in(painted, picture, mask)

    @torch.no_grad()
    def remember(self, frames: Frames, latents: torch.Tensor, condition: torch.Tensor, segment: int) -> None:
        """Add a final picture; its keys and values are computed once, before the next picture, and serve every later one.

        Args:
            condition: [1, S, D] states of the words before its BOV.
            segment: index of the first word of the last text segment before it.

        Raises:
            ValueError: the conversation has more pictures than the model has positions for.
        """
        self._check_room(frames)
        frames.past.append(latents)
        if self.causal:
            self._condition(frames, condition)  # now, since the states are not kept
            frames.briefs.append(Brief(condition.shape[1], segment))

    @torch.no_grad()
    def fill_cache(self, frames: Frames) -> None:
        """Compute the keys and values that are still due, before a picture comes after them."""
        while frames.briefs:
            brief, index = frames.briefs[0], frames.cache.frames
            latents = frames.past[index]
            packed = self._embedded(frames.past[:index], latents, True)
            timesteps = torch.zeros(1, 1, device=latents.device)
            words, room = frames.words.first(brief.words), frames.cache.room(1, packed.lengths[0])
            _, fresh = walk(self.model, packed, timesteps, words, self._reads(brief.words, brief.segment), room=room)
            frames.cache.append(fresh)
            del frames.briefs[0]

    @torch.no_grad()
    def paint(
        self, frames: Frames, condition: torch.Tensor, segment: int, options: ImageOptions, seed: int, retouch: Retouch | None = None
    ) -> Iterator[Painted]:
        """Paint the next picture.

        Args:
            frames: the pictures before it; only their caches are filled.
            condition: [1, S, D] states of all words before its BOV.
            segment: index of the first word of the last text segment, which the negative branch does not read.
            retouch: leave a picture as it is outside a mask; at every step what stays is put back at the step's noise (blended
                latent diffusion: Avrahami et al. 2023, section 4.1).

        Yields:
            A `Painted` after every denoising step.

        Raises:
            ValueError: the conversation has more pictures than the model has positions for; as `About.picture_size`.
        """
        self._check_room(frames)
        self.fill_cache(frames)
        height, width = self.size(options.side)
        shape = (1, self.pair.vae.config.z_dim, height, width)
        # Drawn on the CPU: the same seed gives the same picture on every device.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        branches = self._branches(frames, options)
        given = Given(
            self._condition(frames, condition, branches), self._reads(condition.shape[1], segment, branches),
            *self._before(frames, (height, width), branches),
            Skipping(CACHE_THRESHOLD) if wants_skipping(options.steps, self.pair.caching) else None,
        )  # fmt: skip
        run = self._cached if self.causal else self._whole

        def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            batch = latents.expand(branches, -1, -1, -1)
            out = run(frames, batch, sigma, given)
            return guide(to_velocity(out.float(), batch, sigma, self.about.prediction), options.guidance, options.picture_guidance)

        def settle(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return torch.where(retouch.inside, latents, noisy(retouch.latents, noise, sigma))

        steps = sample(self.pair.scheduler, velocity, noise, options.steps, settle if retouch else None)
        for step, (latents, predicted) in enumerate(steps, 1):
            painted = latents if step == options.steps else predicted
            if self.about.least_change and frames.past:
                painted = copy_unchanged(painted, frames.past[-1], self.weight, self.about.least_change)
            yield Painted(step, painted)

    def _check_room(self, frames: Frames) -> None:
        most = self.model.config.max_size[0]
        if len(frames.past) >= most:
            raise ValueError(f"This conversation has {most} pictures, the most that the pair can follow; start a new chat.")

    def _branches(self, frames: Frames, options: ImageOptions) -> int:
        """How many run side by side: all is read; not the latest words; neither these nor the pictures before."""
        if options.picture_guidance > 1.0 and frames.past:
            return 3
        return 2 if options.guidance > 1.0 else 1

    def _before(self, frames: Frames, size: tuple[int, int], branches: int) -> tuple[torch.Tensor | None, list[KeyValue]]:
        """What every branch sees of the pictures before: `sees` and `room` of `Given`."""
        _, p_h, p_w = self.model.config.patch_size
        tokens = (size[0] // p_h) * (size[1] // p_w)
        room = frames.cache.room(branches, tokens) if self.causal else []
        if branches < 3:
            return None, room
        past = sum((each.shape[-2] // p_h) * (each.shape[-1] // p_w) for each in frames.past)
        sees = torch.ones(branches, 1, 1, past + tokens, dtype=torch.bool, device=self.device)
        sees[2:, ..., :past] = False
        return sees, room

    def _embedded(self, past: list[torch.Tensor], latents: torch.Tensor, clean: bool) -> PackedFrames:
        """One frame after those of `past`, which a third branch does not see."""
        before = self._previous(past, len(latents))
        previous = [before if before is None else before.to(self.model.dtype)] if self.about.sees_previous else None
        return embed_frames(self.model, [latents.to(self.model.dtype)], [len(past)], [clean], previous)

    def _previous(self, past: list[torch.Tensor], branches: int) -> torch.Tensor | None:
        """The last frame of `past` as every branch sees it, [branches, C, h, w]; a third one does not."""
        if not past:
            return None
        before = past[-1].expand(branches, -1, -1, -1)
        return torch.cat([before[:2], torch.zeros_like(before[2:])]) if branches > 2 else before

    def _condition(self, frames: Frames, condition: torch.Tensor, branches: int = 1) -> list[KeyValue]:
        states = condition.to(self.device, self.model.dtype)
        projected = frames.words.project(self.model, states) if self.causal else project_condition(self.model, states)
        # Once for each branch in memory: an expanded tensor is copied at every step and block by the product of matrices.
        return [(key.repeat(branches, 1, 1, 1), value.repeat(branches, 1, 1, 1)) for key, value in projected]

    def _reads(self, words: int, segment: int, branches: int = 1) -> torch.Tensor | None:
        """[branches, 1, 1, S], which words are read; `None` for all, and all alike.

        All branches but the first read nothing of the last text segment (its first word is kept: attention needs one).
        """
        if branches == 1 and not self.about.fresh_bias:
            return None
        reads = torch.ones(branches, 1, 1, words, dtype=torch.bool, device=self.device)
        fresh = torch.zeros_like(reads)
        fresh[0, ..., max(segment, 1) :] = True
        reads[1:, ..., max(segment, 1) :] = False
        return word_scores(reads, fresh, self.about.fresh_bias) if self.about.fresh_bias else reads

    def _cached(self, frames: Frames, batch: torch.Tensor, sigma: torch.Tensor, given: Given) -> torch.Tensor:
        packed = self._embedded(frames.past, batch, False)
        timesteps = (sigma * self.about.timestep_scale).expand(len(batch), 1)
        out, _ = walk(
            self.model, packed, timesteps, given.condition, given.reads, given.sees, given.room,
            skipping=given.skipping, through=self.pair.through,
        )  # fmt: skip
        made = unpatchify(self.model, out, packed.sizes[0]).float()
        return add_change(made, self._previous(frames.past, len(batch)), self.about.prediction)

    def _whole(self, frames: Frames, batch: torch.Tensor, sigma: torch.Tensor, given: Given) -> torch.Tensor:
        """All frames in one sequence, every frame seeing all, as the checkpoint was trained."""
        latents = [past.expand(len(batch), -1, -1, -1) for past in frames.past] + [batch]
        count = len(latents)
        packed = embed_frames(
            self.model, [each.to(self.model.dtype) for each in latents], list(range(count)), [True] * (count - 1) + [False]
        )
        timesteps = torch.zeros(len(batch), count, device=batch.device)
        timesteps[:, -1] = sigma * self.about.timestep_scale
        out, _ = walk(
            self.model, packed, timesteps, given.condition, given.reads, given.sees, skipping=given.skipping, through=self.pair.through
        )
        return unpatchify(self.model, out[:, -packed.lengths[-1] :], packed.sizes[-1])


def check_mask(picture: PILImage.Image, mask: PILImage.Image) -> None:
    """Raises ValueError: the mask is of another size than its picture, or nothing of it is white."""
    if mask.size != picture.size:
        sizes = f"{mask.width} x {mask.height}", f"{picture.width} x {picture.height}"
        raise ValueError(f"The mask has {sizes[0]} pixels and its picture {sizes[1]}; mark the picture anew.")
    if mask.getbbox() is None:
        raise ValueError("Nothing of the picture is marked; paint over what should change.")


def lay_in(painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
    """`picture` in its own size with what was painted where `mask` is white."""
    left, top, width, height = inner_box(picture.size, painted.size)
    inner = painted.crop((left, top, left + width, top + height)).resize(picture.size, PILImage.Resampling.LANCZOS)
    return PILImage.composite(inner, picture, mask.point(lambda value: 255 if value else 0))


def inner_box(size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a picture of `size` scaled to fit into the middle of `within`, keeping its shape."""
    scale = min(within[0] / size[0], within[1] / size[1])
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return (within[0] - width) // 2, (within[1] - height) // 2, width, height


def fit(picture: PILImage.Image, size: tuple[int, int]) -> PILImage.Image:
    """Scale a picture into `size` (width, height), keeping its shape, on a ground of its own edge colour."""
    if picture.size == size:
        return picture
    left, top, width, height = inner_box(picture.size, size)
    ground = PILImage.new("RGB", size, picture.getpixel((0, 0)))
    ground.paste(picture.resize((width, height), PILImage.Resampling.LANCZOS), (left, top))
    return ground
