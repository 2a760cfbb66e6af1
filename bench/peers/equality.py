"""Single pictures by DuoGen's painters and by diffusers' own pipelines: equal weights, seed, steps, prompt and source pictures.

The pipelines run as they are, but for two things that hold for both ways. Qwen's picture tokens get their own positions, which diffusers
does not pass on (the hook in `duogen.painters.diffusers` works on the text encoder that both share). Cosmos is called as for a video whose
given latents are the earlier pictures; that call takes one whole picture at most: its autoencoder lays four further frames into one latent.
Only a Cosmos tuned by stage 2 goes on from an earlier picture; what it computes then is compared too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT
from PIL import Image as PILImage

from bench.gpu import small_sources
from bench.peers.families import FAMILIES, Peers, Size
from bench.peers.naive import Wish
from duogen.models.picture_marks import PictureRequest
from duogen.models.sequence import Packed
from duogen.options import ImageOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.cosmos import CosmosPainter

SIZE = Size(64, 2, 64)
PROMPT, SEED = "a red house with a blue door under a sun", 3


@dataclass(frozen=True)
class Case:
    """`allowed` is the greatest difference that rounding explains: of pixels in 0..1, of Cosmos' latents relative to their largest."""

    family: str
    earlier: int
    allowed: float = 0.0
    guidance: float = 1.0


CASES = (
    Case("cosmos", 0, 1e-5), Case("cosmos", 1, 1e-5), Case("cosmos", 0, 1e-5, 7.0), Case("cosmos", 1, 1e-5, 7.0),
    Case("qwen-image-edit", 0), Case("qwen-image-edit", 1), Case("qwen-image-edit", 2), Case("qwen-image-edit", 1, guidance=4.0),
    Case("flux2-klein", 0), Case("flux2-klein", 1), Case("flux2-klein", 2),
    Case("qwen-image", 0, guidance=4.0), Case("longcat-image", 0, guidance=4.5), Case("longcat-image-edit", 0),
    Case("longcat-image-edit", 1, guidance=4.5), Case("flux1-kontext", 0, guidance=2.5), Case("flux1-kontext", 1, guidance=2.5),
    Case("z-image", 0), Case("z-image", 0, guidance=0.0), Case("z-image", 0, guidance=4.0),
)  # fmt: skip


def compare(case: Case, size: Size = SIZE) -> float:
    """The greatest difference."""
    rng = np.random.default_rng(case.earlier)
    shape = (size.side, size.side, 3)
    pictures = [PILImage.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(case.earlier)]
    with small_sources(size.side):
        peers = FAMILIES[case.family].build(size)
        mine = paint(peers, pictures, size, case.guidance)
        if isinstance(mine, torch.Tensor):
            theirs = call_cosmos(peers, pictures, size, case.guidance)
            return float((mine - theirs).abs().max() / theirs.abs().max())
        theirs = peers.naive(Wish(Packed(), PROMPT, pictures, SEED, case.guidance))
    one, other = (np.asarray(each, dtype=np.float32) / 255 for each in (mine, theirs))
    return float(np.abs(one - other).max())


def paint(peers: Peers, pictures: list[PILImage.Image], size: Size, guidance: float) -> torch.Tensor | PILImage.Image:
    """By DuoGen: latents [1, C, h, w] of a frame painter, the picture of another."""
    engine, painter, frames = peers.engine, peers.engine.painter, Frames.empty()
    condition, segment, negative = PictureRequest(PROMPT), 0, None
    if isinstance(painter, CosmosPainter):
        painter.follows = bool(pictures)
        condition, segment = engine.mllm.read_prompt(PROMPT)
        negative = engine.mllm.read_prompt(DEFAULT_NEGATIVE_PROMPT)[0]
    for each in pictures:
        painter.remember(frames, painter.encode(each), None, 0)
    request = PaintRequest(condition, segment, ImageOptions(size.steps, guidance), SEED, None, size.picture, negative)
    *_, last = painter.paint(frames, request)
    return last.latents


def call_cosmos(peers: Peers, pictures: list[PILImage.Image], size: Size, guidance: float) -> torch.Tensor:
    """By the pipeline's own call: latents [1, C, h, w] of the frame after `pictures`."""
    pipe, width, height = peers.pipe, *size.picture
    ratio, count = pipe.vae_scale_factor_spatial, len(pictures)
    noise = torch.randn(1, pipe.vae.config.z_dim, 1, height // ratio, width // ratio, generator=torch.Generator().manual_seed(SEED))
    latents = torch.cat([*(torch.zeros_like(noise) for _ in pictures), noise], 2)
    video = {"video": pictures, "num_latent_conditional_frames": count} if pictures else {}
    made = pipe(
        prompt=PROMPT, width=width, height=height, num_frames=1 + 4 * count, num_inference_steps=size.steps, guidance_scale=guidance,
        latents=latents, output_type="latent", **video,
    ).frames  # fmt: skip
    return made[:, :, -1]
