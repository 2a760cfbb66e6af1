"""Adapters inside a model, as peft lays them: which there are, how strongly each works, and taking one out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from duogen.lazy_imports import is_read

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

LAST = re.compile(r"lora_B|lora_embedding_B|lokr_w2")  # the matrix of an adapter that is zero before it learns


def list_layers(module: nn.Module) -> list[Any]:
    """The layers of a model that adapters change."""
    if not is_read("peft"):
        return []  # whose layers nobody has made
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [each for each in module.modules() if isinstance(each, BaseTunerLayer)]


def list_loaded(module: nn.Module) -> set[str]:
    """The names of the adapters in a model."""
    return {name for layer in list_layers(module) for name in _names(layer)}


def _names(layer: BaseTunerLayer) -> set[str]:
    return {name for group in layer.adapter_layer_names for name in getattr(layer, group)}


def layers_with(module: nn.Module, name: str) -> list[Any]:
    """The layers of a model that the adapter `name` changes."""
    return [layer for layer in list_layers(module) if name in _names(layer)]


def remove_adapter(module: nn.Module, name: str) -> None:
    """Take an adapter out of a model."""
    for layer in layers_with(module, name):
        layer.delete_adapter(name)
    getattr(module, "peft_config", {}).pop(name, None)


def set_weights(module: nn.Module, weights: Mapping[str, float], kept: frozenset[str] = frozenset()) -> None:
    """Make these adapters work in a model, each as strongly as its weight says; those in `kept` go on as they are, all others rest."""
    active = [*sorted(kept & list_loaded(module)), *(name for name, weight in weights.items() if weight)]
    for layer in list_layers(module):
        layer.enable_adapters(bool(active))
        if active:
            layer.set_adapter(active)
        for name in weights.keys() & _names(layer):
            layer.set_scale(name, weights[name])
    if list_layers(module):
        module.requires_grad_(False)


def has_effect(module: nn.Module, name: str) -> bool:
    """Whether an adapter changes anything in a model: one of its last matrices is not zero."""
    for layer in layers_with(module, name):
        for group in layer.adapter_layer_names:
            held = getattr(layer, group)
            if LAST.search(group) and name in held:
                weight = held[name].weight if isinstance(held[name], nn.Module) else held[name]
                if weight.count_nonzero():
                    return True
    return False
