"""Adapters: what fine-tuning made, put on an open pair and taken off again without reading the pair anew.

An adapter is a folder with `adapter.json` and, for each part that it changes, a folder in peft's own layout: `text_encoder/` and
`transformer/`, each with `adapter_config.json` and `adapter_model.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from duogen.lazy_imports import is_read

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    from duogen.models.pipeline import DuoGenPipeline

# peft is imported where an adapter is loaded: most pairs have none, and the import takes long.

ADAPTER, WEIGHTS = "adapter.json", "adapter_model.safetensors"
PARTS = ("text_encoder", "transformer")
PREFIX = "base_model.model."  # what peft puts before every name
MOST = 1.5


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter and how strongly it works: 1 as it was trained, 0 not at all."""

    folder: Path
    weight: float = 1.0

    @staticmethod
    def parse(text: str) -> AdapterSpec:
        """ "DIR" or "DIR:WEIGHT". Raises ValueError, one sentence."""
        folder, _, weight = text.rpartition(":")
        try:
            strength = float(weight)
        except ValueError:
            folder, strength = text, 1.0
        if not folder:
            raise ValueError(f"{text!r} names no adapter; write its folder, and its weight after a colon.")
        wanted = AdapterSpec(Path(folder).expanduser(), strength)
        wanted.check()
        return wanted

    def check(self) -> None:
        """Raises ValueError, one sentence, when it cannot be used."""
        if not math.isfinite(self.weight) or not 0 <= self.weight <= MOST:
            raise ValueError(f"An adapter's weight is from 0 to {MOST}, not {self.weight}.")
        read_about(self.folder)


def read_about(folder: Path) -> dict[str, Any]:
    """What `adapter.json` says. Raises ValueError, one sentence."""
    try:
        about = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        return {"title": folder.name, "base": "", **about}
    except OSError as error:
        raise ValueError(f"{folder} is no adapter: an adapter is a folder with {ADAPTER} in it.") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / ADAPTER} is damaged; train or get the adapter again.") from error


def set_adapters(pair: DuoGenPipeline, wanted: Sequence[AdapterSpec]) -> None:
    """Make `wanted` the adapters that work in a pair; those that are not among them are taken off, those that are stay in memory.

    Raises:
        ValueError: one of them is no adapter, is damaged, or was made for another pair; those before it may be on.
    """
    for each in wanted:
        each.check()
    for part in PARTS:
        module = getattr(pair, part)
        if module is None:  # a pair that is open in part
            continue
        there = {_name(each.folder / part): each for each in wanted if (each.folder / part / WEIGHTS).is_file()}
        loaded = _list_loaded(module)
        for gone in loaded - there.keys():
            _remove_adapter(module, gone)
        for name, each in there.items():
            if name not in loaded:
                _load(module, each.folder / part, name, each.folder)
        _set_weights(module, {name: each.weight for name, each in there.items()})


def _name(folder: Path) -> str:
    """The same for the same file; peft's names hold no dots."""
    stat = (folder / WEIGHTS).stat()
    return "a" + hashlib.sha256(f"{folder.resolve()} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:16]


def _layers(module: nn.Module) -> list[LoraLayer]:
    if not is_read("peft"):
        return []  # whose layers nobody has made
    from peft.tuners.lora import LoraLayer

    return [each for each in module.modules() if isinstance(each, LoraLayer)]


def _list_loaded(module: nn.Module) -> set[str]:
    return {name for layer in _layers(module) for name in layer.lora_A}


def _remove_adapter(module: nn.Module, name: str) -> None:
    for layer in _layers(module):
        if name in layer.lora_A:
            layer.delete_adapter(name)
    getattr(module, "peft_config", {}).pop(name, None)


def _load(module: nn.Module, folder: Path, name: str, whole: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = {key.removeprefix(PREFIX): value for key, value in load_file(folder / WEIGHTS).items()}
        inject_adapter_in_model(config, module, adapter_name=name)
        result = set_peft_model_state_dict(module, weights, adapter_name=name)
        if result.unexpected_keys:
            raise KeyError(result.unexpected_keys[0])
    except (OSError, SafetensorError) as error:
        _remove_adapter(module, name)
        raise ValueError(f"The adapter {whole} is damaged or incomplete; train or get it again.") from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        _remove_adapter(module, name)
        raise ValueError(f"The adapter {whole} was made for another pair, or is damaged; open the pair that it names.") from error
    module.requires_grad_(False)


def _set_weights(module: nn.Module, weights: dict[str, float]) -> None:
    active = [name for name, weight in weights.items() if weight]
    for layer in _layers(module):
        layer.enable_adapters(bool(active))
        if active:
            layer.set_adapter(active)
        for name, weight in weights.items():
            if name in layer.lora_A:
                layer.set_scale(name, weight)
    module.requires_grad_(False)


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters that work into the weights, and take them off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(name, each) for name, each in module.named_modules() if isinstance(each, BaseTunerLayer)]:
        layer.merge(safe_merge=True)
        above, _, last = name.rpartition(".")
        setattr(module.get_submodule(above), last, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def write(module: nn.Module, name: str, config: LoraConfig, folder: Path) -> None:
    """Write the adapter `name` of a module into `folder`, as peft and diffusers read it."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)
    named = {PREFIX + key: value.detach().to("cpu", torch.float32).contiguous() for key, value in weights.items()}
    part = folder / f".{WEIGHTS}.part"
    save_file(named, part, metadata={"format": "pt"})
    part.replace(folder / WEIGHTS)


def write_safely(out: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `out`, which is not there, whole or not at all; `fill` writes what is in it."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        fill(part)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
