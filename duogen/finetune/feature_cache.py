"""A cache on disk of what the frozen MLLM and VAE compute for stage 2: the hidden states and latents of each example.

A file is named by a hash of the example's words and pictures and of all weights that they pass through. So a cache is never stale, serves
every later run on the same data, and may be deleted at any time.

S words before the last picture's BOV, D channels of the condition, C latent channels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import save_file

from duogen.dataset.format import Example
from duogen.files import sync_file
from duogen.models.mllm import MLLM, Context
from duogen.painters.cosmos import CosmosPainter

BUCKET_STEP = 2  # a bucket's sides are multiples of this many latents, as patches of two need


@dataclass
class CachedExample:
    """An example as the painter reads it; F pictures, including the user's.

    Attributes:
        states: [S, D] bf16.
        latents: F of [C, h, w], normalised, float32; the sizes may differ.
        cuts: per picture, how many words stand before its BOV and how many before its last text segment.
        painted: per picture, whether it is the assistant's and so a target.
    """

    states: torch.Tensor
    latents: list[torch.Tensor]
    cuts: list[tuple[int, int]]
    painted: list[bool]

    def sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple((each.shape[-2], each.shape[-1]) for each in self.latents)


def fingerprint(pair: Path, precision: str, adapter: Path | None, buckets: bool) -> str:
    """A hash of all weights and settings that states and latents depend on."""
    digest = hashlib.sha256(f"1 {precision} {buckets}".encode())
    folders = [pair / "text_encoder", pair / "vae", pair / "tokenizer", *([adapter] if adapter else [])]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in (".safetensors", ".json")]
    for file in [*files, *pair.glob("duogen.json")]:
        with file.open("rb") as stream:
            digest.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


class FeatureCache:
    """A folder with the features of examples, one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, example: Example) -> Path:
        return self.folder / f"{example.key()}.safetensors"

    def has(self, example: Example) -> bool:
        """Whether the example's file is there and whole."""
        try:
            with safe_open(self.file(example), "pt") as opened:
                about = opened.metadata() or {}
                names = {"states", *(f"latents.{index}" for index in range(len(json.loads(about["cuts"]))))}
                return names <= set(opened.keys()) and "painted" in about
        except Exception:  # a damaged file raises whatever its bytes lead to
            return False

    def fill(self, examples: list[Example], extract: Callable[[Example], CachedExample], report: Callable[[int, int], None]) -> list[Path]:
        """Compute the missing files; returns all files, in order. `report` gets how many are done, and how many there are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = []
        for done, example in enumerate(examples):
            report(done, len(examples))
            files.append(self.file(example))
            if not self.has(example):
                write(extract(example), files[-1])
        report(len(examples), len(examples))
        return files


def write(example: CachedExample, file: Path) -> None:
    latents = {f"latents.{index}": each.contiguous() for index, each in enumerate(example.latents)}
    tensors = {"states": example.states.contiguous()} | latents
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata={"cuts": json.dumps(example.cuts), "painted": json.dumps(example.painted)})
        sync_file(part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read(file: Path) -> CachedExample:
    """Raises ValueError when the file is gone or damaged, as where the cache is deleted during a run."""
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata()
            cuts = [tuple(cut) for cut in json.loads(about["cuts"])]
            latents = [opened.get_tensor(f"latents.{index}") for index in range(len(cuts))]
            return CachedExample(opened.get_tensor("states"), latents, cuts, json.loads(about["painted"]))
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f"The cached states in {file.parent} are gone or damaged; resume, and they are computed again.") from error


class FeatureExtractor:
    """Computes the features of examples with the models of the pair, exactly as serving does."""

    def __init__(self, mllm: MLLM, painter: CosmosPainter, buckets: bool) -> None:
        self.mllm, self.painter, self.buckets = mllm, painter, buckets

    @torch.no_grad()
    def __call__(self, example: Example) -> CachedExample:
        """Raises ValueError when no picture of the example is the assistant's, or a picture is gone."""
        packed = self.mllm.tokens.pack(example.turns())
        last = max((index for index, slot in enumerate(packed.slots) if slot.painted), default=-1)
        if last < 0:
            raise ValueError(f"{example.where}: there is no picture to learn to paint.")
        slots = packed.slots[: last + 1]
        context = Context()
        self.mllm.prefill(context, packed.between(0, slots[-1].bov))
        states = context.condition()[0].to("cpu", torch.bfloat16)
        latents = [self.encode(slot.image.picture) for slot in slots]
        cuts = [(slot.bov, packed.last_segment(slot.bov)) for slot in slots]
        return CachedExample(states, latents, cuts, [slot.painted for slot in slots])

    def encode(self, picture: PILImage.Image) -> torch.Tensor:
        if not self.buckets:
            return self.painter.encode(picture)[0].cpu()
        return self.painter.encode(picture, bucket(picture.size, self.painter))[0].cpu()


def bucket(size: tuple[int, int], painter: CosmosPainter) -> tuple[int, int]:
    """The (width, height) of about the pair's area, in whole latents, nearest in shape to a picture of `size`."""
    rows, columns = painter.size()
    area, ratio = rows * columns, size[0] / size[1]
    heights = range(BUCKET_STEP, 2 * max(rows, columns) + 1, BUCKET_STEP)
    shapes = [(max(BUCKET_STEP, round(area / height / BUCKET_STEP) * BUCKET_STEP), height) for height in heights]
    wide, tall = min(shapes, key=lambda shape: abs(np.log(shape[0] / shape[1] / ratio)))
    step = painter.pair.vae.spatial_compression_ratio
    return wide * step, tall * step
