"""Weights shared out over the processes of `accelerate launch` (FSDP): each keeps its part, and gathers the rest when it computes.

PyTorch's `fully_shard` leaves every parameter under its name, as a DTensor, so that optimiser, clipping and averages go on as they are.
accelerate's own way clips only whole models and does not know FSDP on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel


def wished() -> bool:
    """Whether `accelerate launch` was told so, as by `assets/recipes/fsdp.yaml`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def read_whole() -> None:
    """Have every process read all weights: transformers would read them in the main one only, for accelerate to send them on."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard(whole: nn.Module, device: str, count: int) -> nn.Module:
    """Share out the weights of a module over `count` processes, in place.

    A language model's layers are gathered one at a time. All else is gathered as one: the painter's blocks are not called as modules
    (`duogen.nn.frames.walk`), and the vision tower is not called at all for a batch without pictures, while every process must gather
    the same at the same time.
    """
    mesh = init_device_mesh(device, (count,))
    for model in whole.modules():
        if isinstance(model, PreTrainedModel):
            layers = {name for name in model._no_split_modules or () if "DecoderLayer" in name}
            for layer in [each for each in model.modules() if type(each).__name__ in layers]:
                fully_shard(layer, mesh=mesh)
            break  # models within it have the same layers
    return fully_shard(whole, mesh=mesh)


def touched(loss: torch.Tensor, weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """The same loss, with a gradient for every weight that is gathered now: what one process has, all must have."""
    here = [weight.sum() for weight in weights if weight.requires_grad and not isinstance(weight, DTensor)]
    return loss + 0.0 * sum(here) if here else loss


def gathered(state: Any) -> Any:
    """The same nest of dicts and lists with whole tensors, in every process."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor into one that may be shared out."""
    target.copy_(spread(value, target))


def spread(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor shared out as `like` is."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device, copy=True), like.device_mesh, like.placements)


def spread_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer saved, its moments shared out as the weights are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, moments in state["state"].items():
        like = weights[index]
        state["state"][index] = {
            name: spread(value, like) if isinstance(value, torch.Tensor) and value.shape == like.shape else value
            for name, value in moments.items()
        }
    return state
