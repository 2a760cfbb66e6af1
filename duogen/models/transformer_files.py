"""Transformers as single files, as other tools keep them: GGUF, and safetensors in 16 bits or fp8. Their headers are enough here, so torch
is not needed; `duogen.models.transformer_weights` opens them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeVar

from duogen.models.lora_files import HALVES
from duogen.models.weight_files import PICKLES, check_file, read_header

Stored = TypeVar("Stored")

DENOISERS = ("transformer", "unet")  # the folders in a pipeline that hold one
SAFETENSORS, GGUF = ".safetensors", ".gguf"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")  # of a transformer's weights in ComfyUI's and Forge's files
SCALES = ("scale_weight", "weight_scale")  # names of an fp8 layer's scale
# What ComfyUI writes beside the weights of quantised layers.
MARKS = re.compile(rf"(^|\.)({'|'.join(SCALES)}|scale_input|input_scale|scaled_fp8|comfy_quant)$")
BLOCKS = re.compile(r"(blocks?|layers?|refiner)\.\d+\.")  # weights outside of them are few, and are never kept in fp8
FP8, FP8_TYPES = "F8_E4M3", ("F8_E4M3", "F8_E5M2")
OTHERS = {  # by the names of weights: what a file is that is no transformer
    "a LoRA": HALVES,
    "a text encoder": re.compile(r"(embed_tokens|token_embedding|token_embd|^shared)\.weight$|SelfAttention"),
    "an autoencoder": re.compile(r"^(vae\.|first_stage_model\.)?decoder\.(conv_in|conv1)\."),
}
TEXT_ENCODERS = ("llama", "t5", "t5encoder", "qwen2", "qwen2vl", "qwen3", "qwen3vl", "gemma2", "gemma3", "mistral3", "clip")  # in GGUF
QUANTISED = {  # by the names of weights: what only the tool that wrote them reads
    "Nunchaku": re.compile(r"\.(qweight|wscales)$"),
    "bitsandbytes": re.compile(r"\.(absmax|quant_map|quant_state\.\w+)$"),
}
ARCHITECTURE = re.compile(rb"general\.architecture\x08\0\0\0(.{8})", re.DOTALL)
HEAD = 1 << 16  # bytes of a GGUF file that say what it is


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it lies in a file: `type` is that of safetensors or of GGUF."""

    shape: tuple[int, ...]
    type: str
    bytes: int

    def stays_fp8(self, name: str) -> bool:
        """Whether it stays as it is in memory; others of fp8 are widened."""
        return self.type == FP8 and len(self.shape) == 2 and name.endswith(".weight") and BLOCKS.search(name) is not None


@dataclass(frozen=True)
class TransformerFile:
    """A transformer in a file.

    Attributes:
        form: "GGUF" or "fp8" where its weights stay quantised in memory, else "".
        weights: by their names in the transformer.
    """

    file: Path
    form: str
    weights: dict[str, StoredWeight]

    @property
    def parameters(self) -> int:
        return sum(prod(each.shape) for each in self.weights.values())

    @property
    def bytes(self) -> int:
        """What quantised weights take in memory; 0 for whole ones, of which that depends on the precision."""
        if self.form == "fp8":
            return sum(prod(each.shape) * (1 if each.stays_fp8(name) else 2) for name, each in self.weights.items())
        return sum(each.bytes for each in self.weights.values()) if self.form else 0


def read_transformer(file: Path) -> TransformerFile:
    """Read the header of a transformer's file.

    Raises:
        ValueError: the file is damaged, is something else than a transformer, or cannot be read from a single file; one sentence.
    """
    suffix = file.suffix.lower()
    if suffix in PICKLES:
        raise ValueError(f"{file} is a pickle, which can run code; get the transformer as a {SAFETENSORS} or {GGUF} file.")
    if suffix not in (SAFETENSORS, GGUF):
        raise ValueError(f"{file} is no transformer; choose a {SAFETENSORS} or {GGUF} file.")
    stored = _read_gguf(file) if suffix == GGUF else _read_safetensors(file)
    refuse_others(file, list(stored))
    own = pick_own(stored)
    if suffix == SAFETENSORS:
        _refuse_quantised(file, own)
    weights = {name: each for name, each in own.items() if not MARKS.search(name)}
    form = "GGUF" if suffix == GGUF else "fp8" if any(each.stays_fp8(name) for name, each in weights.items()) else ""
    return TransformerFile(file, form, weights)


def pick_own(stored: dict[str, Stored]) -> dict[str, Stored]:
    """The transformer's weights out of all that a file holds, under the names that they have in it."""
    prefix = next((each for each in PREFIXES if any(name.startswith(each) for name in stored)), "")
    return {name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)}


def _read_safetensors(file: Path) -> dict[str, StoredWeight]:
    header = read_header(file)
    if not header.shapes:
        raise ValueError(f"{file} holds no weights; get the transformer again.")
    return {name: StoredWeight(shape, header.types[name], 0) for name, shape in header.shapes.items()}


def _read_gguf(file: Path) -> dict[str, StoredWeight]:
    if read_architecture(file) in TEXT_ENCODERS:
        raise ValueError(_say_other(file, "a text encoder"))  # at once: its vocabulary takes seconds to read
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
        return {
            each.name: StoredWeight(tuple(int(size) for size in reversed(each.shape)), each.tensor_type.name, int(each.n_bytes))
            for each in tensors
        }
    except Exception as error:  # whatever a damaged file makes the library raise
        raise ValueError(f"{file} cannot be opened: it is cut short or damaged; get it again.") from error


def read_architecture(file: Path) -> str:
    """What a GGUF file says that it holds, "" where it does not. Raises ValueError: it is no GGUF file."""
    check_file(file)
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if not head.startswith(b"GGUF"):
        raise ValueError(f"{file} cannot be opened: it is cut short or damaged; get it again.")
    found = ARCHITECTURE.search(head)
    return head[found.end() : found.end() + int.from_bytes(found[1], "little")].decode("utf-8", "replace") if found else ""


def refuse_others(file: Path, names: list[str]) -> None:
    """Raises ValueError when the names of its weights say that a file holds something else than a transformer."""
    if any(name.startswith(PREFIXES[0]) for name in names):
        return  # a checkpoint of everything
    for what, pattern in OTHERS.items():
        if any(pattern.search(name) for name in names):
            raise ValueError(_say_other(file, what))


def _say_other(file: Path, what: str) -> str:
    return f"{file} is {what}, not a transformer; choose the file of a transformer."


def _refuse_quantised(file: Path, weights: dict[str, StoredWeight]) -> None:
    """Raises ValueError: the weights are quantised in a way that cannot be read."""
    method = next((method for method, pattern in QUANTISED.items() if any(pattern.search(name) for name in weights)), "")
    if any(each.type in ("U8", "I8") and name.endswith(".weight") for name, each in weights.items()):
        method = method or "nvfp4 or int8"
    for name, each in weights.items():
        layer, _, last = name.rpartition(".")
        scaled = weights.get(f"{layer}.weight")
        if last in SCALES and scaled is not None and prod(each.shape) not in (1, scaled.shape[0]):
            method = method or "fp8 in blocks"
    if method:
        raise ValueError(f"The weights in {file} are quantised by {method}, which cannot be read here; get it as GGUF, fp8 or bf16.")
