"""A transformer out of a single file, for the part of a pair whose configuration it fits. diffusers converts the names of its weights.

diffusers leaves out what a file has too much and fills nothing in where it has too little; here a file fits whole, or is refused in a
sentence before its weights are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from duogen.models.placement import allow_cpu_quantisation, dtype_of, quantisation
from duogen.models.transformer_files import MARKS, PREFIXES, SCALES, StoredWeight, TransformerFile, pick_own, read_transformer

WIDENED = (torch.float8_e4m3fn, torch.float8_e5m2)
UNET = "UNet2DConditionModel"


def check_fits(about: TransformerFile, part: Path) -> set[str]:
    """Whether a file holds just the weights of the model whose configuration lies in `part`. Returns their names in diffusers.

    Raises:
        ValueError: it does not; one sentence.
    """
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    kind = _class_of(config)
    with torch.device("meta"):  # of this thread alone; accelerate's way would empty the models that another one opens
        model = kind.from_config(config)
    wanted = {name: weight.shape for name, weight in model.state_dict().items()}
    needed = {name for name, _ in model.named_parameters()}
    other = f"{about.file} does not fit the {kind.__name__} of this pair; open the pair that it belongs to."
    try:
        found = _convert(kind, config, {name: torch.empty(each.shape, device="meta") for name, each in about.weights.items()}, needed)
    except LookupError as error:  # the converter misses a weight
        raise ValueError(other) from error
    odd = [name for name, weight in found.items() if wanted.get(name) != weight.shape]
    if needed - found.keys() or odd:
        raise ValueError(other)
    readable = {"F32", "F16", *(each.name for each in SUPPORTED_GGUF_QUANT_TYPES)}
    if about.form == "GGUF" and (unread := {each.type for each in about.weights.values()} - readable):
        raise ValueError(f"{about.file} is quantised as {sorted(unread)[0]}, which diffusers cannot read; get it as Q4_K, Q5_K or Q8_0.")
    return set(wanted)


def open_transformer(file: Path, part: Path, precision: str, device: str, rests: bool = False) -> Any:
    """Open the transformer in `file` with the configuration in `part`, to compute on `device`. Weights that are quantised stay so; others
    take `precision`.

    Args:
        rests: it waits in host memory, unless bitsandbytes quantises it, which happens on the device.

    Raises:
        ValueError: the file is damaged, or does not fit; one sentence.
    """
    from diffusers.models.model_loading_utils import load_state_dict
    from diffusers.quantizers.quantization_config import BFLQuantizationConfig, GGUFQuantizationConfig

    about = read_transformer(file)
    names = check_fits(about, part)
    config, dtype = json.loads((part / "config.json").read_text(encoding="utf-8")), dtype_of(precision, device)
    kind, weights = _class_of(config), pick_own(load_state_dict(str(file)))
    if about.form == "GGUF":
        quantised = GGUFQuantizationConfig(compute_dtype=dtype)
    elif about.form == "fp8":
        quantised = BFLQuantizationConfig(compute_dtype=dtype)  # it keeps fp8 with a scale for each row
    else:
        quantised = quantisation(precision)
    if about.form != "GGUF":
        weights = _prepare_fp8(weights, about.weights, dtype)
    if all(name in names or weight.ndim < 2 for name, weight in weights.items()):  # named as in diffusers, and perhaps marks beside them
        weights = {name: weight for name, weight in weights.items() if name.removesuffix("_scale") in names}
    weights = _name_for_converter(kind, weights)
    where = "cpu" if rests and (about.form or quantised is None) else device
    with allow_cpu_quantisation() if device == "cpu" else nullcontext(), _quantise_while_loading():
        model = kind.from_single_file(
            weights, config=str(part), quantization_config=quantised, dtype=dtype, device=where, local_files_only=True
        )
    if any(weight.is_meta for weight in model.parameters()):
        raise ValueError(f"{file} does not fit the {kind.__name__} of this pair; open the pair that it belongs to.")
    if about.form == "GGUF":
        _widen_gguf(model, dtype)
    return model.eval()


@contextmanager
def _quantise_while_loading() -> Iterator[None]:
    """`from_single_file` takes the weights that bitsandbytes shall quantise for quantised ones; it is told otherwise meanwhile."""
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    kinds: dict[str, Any] = AUTO_QUANTIZER_MAPPING
    before = {name: kind for name, kind in kinds.items() if name.startswith("bitsandbytes")}
    try:
        kinds.update({name: partial(kind, pre_quantized=False) for name, kind in before.items()})
        yield
    finally:
        kinds.update(before)


def _class_of(config: Mapping[str, Any]) -> Any:
    """The class of a model. Raises ValueError: diffusers opens no single files of it."""
    import diffusers

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None or _converter_of(kind) is None:
        raise ValueError(f"diffusers {diffusers.__version__} reads no {config.get('_class_name')} from a single file; open the whole pair.")
    return kind


def _converter_of(kind: Any) -> Any:
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known = next((each.__name__ for each in kind.__mro__ if each.__name__ in SINGLE_FILE_LOADABLE_CLASSES), None)
    return SINGLE_FILE_LOADABLE_CLASSES[known]["checkpoint_mapping_fn"] if known else None


def _convert(kind: Any, config: Mapping[str, Any], weights: dict[str, torch.Tensor], needed: set[str]) -> dict[str, torch.Tensor]:
    """A file's weights under diffusers' names; marks that are no matrices are left out. Raises KeyError, IndexError: one is missing."""
    if not needed <= weights.keys():
        weights = dict(_converter_of(kind)(checkpoint=_name_for_converter(kind, weights), config=config))
    return {name: weight for name, weight in weights.items() if name in needed or weight.ndim > 1}


def _name_for_converter(kind: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """diffusers' converter of UNets alone wants the prefix of a checkpoint."""
    bare = kind.__name__ == UNET and any(name.startswith("input_blocks.") for name in weights)
    return {PREFIXES[0] + name: weight for name, weight in weights.items()} if bare else weights


def _prepare_fp8(weights: dict[str, torch.Tensor], stored: Mapping[str, StoredWeight], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Give every matrix that stays in fp8 a scale for each row, widen the others, and leave out what else ComfyUI wrote."""
    made: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if MARKS.search(name):
            continue
        made[name] = weight
        if weight.dtype not in WIDENED:
            continue
        layer = name.removesuffix(".weight")
        scale = next((weights[f"{layer}.{each}"] for each in SCALES if f"{layer}.{each}" in weights), torch.ones(1)).float().flatten()
        if stored[name].stays_fp8(name):
            made[f"{layer}.weight_scale"] = scale.expand(weight.shape[0]).contiguous()
        else:
            made[name] = (weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))).to(dtype)
    return made


def _widen_gguf(model: nn.Module, dtype: torch.dtype) -> None:
    """Only linear layers compute with quantised weights: widen those of all others."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, GGUFParameter) and not (isinstance(module, GGUFLinear) and name == "weight"):
                setattr(module, name, nn.Parameter(dequantize_gguf_tensor(weight).to(dtype), requires_grad=False))
