"""FSDP: the weights are split over the processes of `accelerate launch`. Each keeps its shard, and gathers the others while it computes.

PyTorch's `fully_shard` keeps every parameter's name and makes it a DTensor, so that optimiser, clipping and averages work unchanged.
accelerate's own FSDP clips only whole models and does not work on a CPU.
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


def fsdp_requested() -> bool:
    """Whether `accelerate launch` was configured for FSDP, as by `assets/recipes/fsdp.yaml`."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def read_whole_files() -> None:
    """Have every process read all weights. transformers would read them in the main process only, for accelerate to send them."""
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard_module(whole: nn.Module, device: str, count: int) -> nn.Module:
    """Split the weights of a module over `count` processes, in place.

    A language model's layers are gathered one at a time. All other weights are gathered together, as every process must gather the same
    weights at the same time: the DiT's blocks are not called as modules (`duogen.nn.frames.forward_frames`), and the vision tower is not
    called at all for a batch without pictures.
    """
    mesh = init_device_mesh(device, (count,))
    for model in whole.modules():
        if isinstance(model, PreTrainedModel):
            layers = {name for name in model._no_split_modules or () if "DecoderLayer" in name}
            for layer in [each for each in model.modules() if type(each).__name__ in layers]:
                fully_shard(layer, mesh=mesh)
            break  # models within it have the same layers
    fully_shard(whole, mesh=mesh)
    return whole


def touch_all(loss: torch.Tensor, weights: Iterable[torch.Tensor]) -> torch.Tensor:
    """The same loss, with a gradient for every weight that is gathered now: all processes must have gradients for the same weights."""
    here = [weight.sum() for weight in weights if weight.requires_grad and not isinstance(weight, DTensor)]
    return loss + 0.0 * sum(here) if here else loss


def full_state_dict(state: Any) -> Any:
    """Gather all tensors of nested dicts and lists; every process gets whole tensors."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {key: full_state_dict(value) for key, value in state.items()}
    return [full_state_dict(value) for value in state] if isinstance(state, list) else state


def copy_into(target: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    target.copy_(shard_like(value, target))


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a whole tensor as `like` is sharded."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(like.device, copy=True), like.device_mesh, like.placements)


def shard_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Shard the moments in an optimizer's saved state as its weights are sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, moments in state["state"].items():
        like = weights[index]
        state["state"][index] = {
            name: shard_like(value, like) if isinstance(value, torch.Tensor) and value.shape == like.shape else value
            for name, value in moments.items()
        }
    return state
