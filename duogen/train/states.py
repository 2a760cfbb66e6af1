"""The frozen MLLM's hidden states, as the connector reads them: computed for a batch, or computed once, projected and stored on disk.

The dialogues of a fixed set, with their pictures, are made again from their numbers whenever they are needed. Only the MLLM's states are
stored, as computing them takes most of a step: their first principal components, as 8-bit numbers. At export the projection is folded into
the connector.

B conversations, S words, D channels of the states (layers * width), K of the projection, T words of all dialogues in a file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from duogen.conversation import Image
from duogen.files import write_beside
from duogen.models.mllm import embed, normalise_states

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

MULTIPLE = 16  # a slice's length is one of this
SLICE_WORDS = 512  # about the words of a slice: more rows make no matrix product faster
CHUNK = 256  # dialogues of a file
PROJECTION = "projection.safetensors"


def truncate_layers(model: Qwen2_5_VLForConditionalGeneration, layers: int) -> Qwen2_5_VLForConditionalGeneration:
    """A model with the first `layers` layers and without the final norm, sharing all weights. The connector reads no later layers."""
    # Here, as the hooks are on the layers, which both models share: each model would add its own, and every state would count twice.
    maybe_install_capturing_hooks(model.model.language_model)
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.model = copy.copy(model.model)
    short.model._modules = dict(model.model._modules)
    language = copy.copy(model.model.language_model)
    language._modules = dict(language._modules)
    language.layers = nn.ModuleList(list(language.layers)[:layers])
    language.norm = nn.Identity()
    short.model.language_model = language
    return short


@torch.no_grad()
def read_states(
    mllm: Qwen2_5_VLForConditionalGeneration, layers: list[int], ids: torch.Tensor, places: torch.Tensor, mask: torch.Tensor,
    vision: tuple[torch.Tensor, torch.Tensor] | None, slice_words: int = SLICE_WORDS,
) -> torch.Tensor:  # fmt: skip
    """Compute the hidden states, [B, S, D] float32, zeros where there is padding.

    The MLLM reads slices of conversations of similar length, each padded to its own longest.

    Args:
        ids, places, mask: [B, S], [3, B, S], [B, S], padded at the end.
        vision: patches and grids of all pictures, in order.
        slice_words: the most words of a slice, unless one conversation alone has more.
    """
    with torch.autocast(ids.device.type, enabled=False):
        embeds = embed(mllm, ids, *(vision or (None, None)))
        lengths = mask.sum(1)
        order = lengths.argsort(descending=True).tolist()
        out = torch.zeros(*ids.shape, embeds.shape[2] * len(layers))
        while order:
            length = min(ids.shape[1], -(-int(lengths[order[0]]) // MULTIPLE) * MULTIPLE)
            count = max(1, slice_words // length)
            rows, order = order[:count], order[count:]
            read = mllm.model.language_model(
                inputs_embeds=embeds[rows, :length], position_ids=places[:, rows, :length], attention_mask=mask[rows, :length].long(),
                output_hidden_states=True, use_cache=False,
            )  # fmt: skip
            states = torch.cat([normalise_states(read.hidden_states[layer]) for layer in layers], -1)
            out[rows, :length] = states * mask[rows, :length, None]
        return out


@dataclass(frozen=True)
class Projection:
    """The projection of states on their first principal components. Like whole states, projected ones have a mean square of one.

    Attributes:
        mean: [D].
        axes: [K, D], orthogonal and of one length.
        spread: [K], the standard deviation of each component.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    spread: torch.Tensor

    @staticmethod
    def fit(samples: Iterable[torch.Tensor], channels: int) -> Projection:
        """Fit a projection to states, each sample [S, D].

        Raises:
            ValueError: states have fewer channels than should be kept.
        """
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for states in samples:
            count, total, square = count + len(states), total + states.sum(0).double(), square + (states.T @ states).double()
        if channels > len(total):
            raise ValueError(f"The states have {len(total)} channels, so {channels} cannot be kept; lower `states` in the recipe.")
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - mean.outer(mean))
        values, vectors = values[-channels:].flip(0).clamp(min=1e-8), vectors[:, -channels:].flip(1)
        size = (channels / values.sum()).sqrt()
        return Projection(mean.float(), (vectors.T * size).float().contiguous(), (values.sqrt() * size).float())

    @staticmethod
    def load(file: Path) -> Projection:
        return Projection(**load_file(file))

    def write(self, file: Path) -> None:
        _write_tensors({"mean": self.mean, "axes": self.axes, "spread": self.spread}, file)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., K]."""
        return (states - self.mean) @ self.axes.T

    def pack(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[S, D] -> 8-bit numbers [S, K] and a scale for each word, [S]."""
        parts = self.project(states) / self.spread
        scale = (parts.abs().amax(-1) / 127).clamp(min=1e-4).half()
        return (parts / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale

    def unpack(self, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The projected states that `pack` rounded, [..., K]."""
        return packed.float() * scale.float()[..., None] * self.spread


@torch.no_grad()
def fold_connector(transformer: CosmosTransformer3DModel, projection: Projection) -> None:
    """Change a DiT that reads projected states into one that reads whole states, with the same result."""
    old: Any = transformer.crossattn_proj[0]
    whole = old.weight.double() @ projection.axes.double()
    _put_connector(transformer, whole, old.bias.double() - whole @ projection.mean.double())


@torch.no_grad()
def narrow_connector(transformer: CosmosTransformer3DModel, projection: Projection) -> None:
    """Change a DiT that reads whole states into one that reads projected states, with the same result but for what these lose."""
    old: Any = transformer.crossattn_proj[0]
    weight, bias, axes = old.weight.double(), old.bias.double(), projection.axes.double()
    _put_connector(transformer, weight @ axes.T / axes[0].square().sum(), bias + weight @ projection.mean.double())


def _put_connector(transformer: CosmosTransformer3DModel, weight: torch.Tensor, bias: torch.Tensor) -> None:
    old: Any = transformer.crossattn_proj[0].weight
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=old.device, dtype=old.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    transformer.crossattn_proj[0] = layer
    transformer.register_to_config(crossattn_proj_in_channels=weight.shape[1])


@dataclass
class KeptStates:
    """The stored states of one dialogue.

    Attributes:
        packed, scale: int8 [S, K] and float16 [S], from `Projection.pack`.
        check: the `checksum` of the dialogue.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    check: int


def checksum(ids: list[int], pictures: list[Image]) -> int:
    """A number that tells whether two conversations are the same to the MLLM."""
    check = zlib.crc32(repr(ids).encode())
    for image in pictures:
        check = zlib.crc32(image.picture.tobytes(), check)
    return check


class StateStore:
    """The states of numbered dialogues in a folder, in files that are written as a whole or not at all.

    Several processes may fill it at the same time.
    """

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        """`counts`: how many dialogues each group has; the last file of a group is filled up."""
        self.folder, self.counts = folder, counts

    def file(self, group: str, chunk: int) -> Path:
        return self.folder / f"{group}-{chunk:05d}.safetensors"

    def list_missing(self) -> list[tuple[str, int]]:
        chunks = [(group, chunk) for group, count in self.counts.items() for chunk in range(math.ceil(count / CHUNK))]
        return [each for each in chunks if not self.file(*each).exists()]

    def fill_projection(self, samples: Callable[[], Iterable[torch.Tensor]], channels: int) -> Projection:
        """Load the projection; fit it first where there is none yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / PROJECTION
        with FileLock(self.folder / ".projection.lock"):
            if not file.exists():
                Projection.fit(samples(), channels).write(file)
        return Projection.load(file)

    def fill(self, make: Callable[[str, range], list[KeptStates]], log: Callable[[str], None]) -> None:
        """Write the missing files; `make` gets a group and dialogues' numbers, and computes their states."""
        for wait in (False, True):  # first the files that no other process works on, then those that another may have left
            missing = self.list_missing()
            for done, (group, chunk) in enumerate(missing):
                try:
                    with FileLock(self.folder / f".{group}-{chunk:05d}.lock", timeout=-1 if wait else 0):
                        if not self.file(group, chunk).exists():
                            log(f"Reading the words of dialogues: {done} of {len(missing)} files of {CHUNK} ...")
                            self._write(make(group, range(chunk * CHUNK, (chunk + 1) * CHUNK)), self.file(group, chunk))
                except Timeout:
                    continue
        for lock in self.folder.glob(".*.lock"):
            lock.unlink(missing_ok=True)

    def _write(self, kept: list[KeptStates], file: Path) -> None:
        ends = torch.tensor([0, *(len(each.packed) for each in kept)]).cumsum(0)
        packed, scale = torch.cat([each.packed for each in kept]), torch.cat([each.scale for each in kept])
        _write_tensors({"states": packed, "scale": scale, "ends": ends, "checks": torch.tensor([each.check for each in kept])}, file)

    def get(self, group: str, number: int) -> KeptStates:
        """Raises ValueError when the file is gone or damaged."""
        file = self.file(group, number // CHUNK)
        try:
            with safe_open(file, "pt") as opened:
                place = number % CHUNK
                start, end = opened.get_slice("ends")[place : place + 2].tolist()
                check = int(opened.get_slice("checks")[place : place + 1])
                return KeptStates(opened.get_slice("states")[start:end], opened.get_slice("scale")[start:end], check)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The kept states in {file} cannot be read; remove the file, and they are made again.") from error


def name_store(raw: dict[str, Any], seed: int, mllm: Qwen2_5_VLForConditionalGeneration) -> str:
    """The name of a store's folder, a hash of all that the states depend on: the recipe's dialogues, the MLLM and the projection.

    `raw` are the settings as the recipe's file writes them, which `DiTSettings` has checked. With defaults filled in and numbers converted
    the folders that earlier versions wrote would not be found.
    """
    kinds = [{name: group[name] for name in ("name", "frames", "tasks")} for group in raw["groups"]]
    others = {name: raw.get(name) for name in ("layers", "see", "core_kinds", "core_share", "states")}
    others["hands"] = raw.get("styles", raw.get("hands"))  # by its old name
    digest = hashlib.sha256(json.dumps([1, seed, kinds, others], sort_keys=True).encode())
    for name, weight in sorted(mllm.model.state_dict().items()):
        digest.update(name.encode() + weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    write_beside(file, save({name: value.contiguous() for name, value in tensors.items()}))
