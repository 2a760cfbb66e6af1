"""Grow a painter to more latent channels, and mix what it learnt with what it was."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel


@torch.no_grad()
def grow_transformer(model: CosmosTransformer3DModel, old: int, new: int) -> CosmosTransformer3DModel:
    """Copy `model`, which paints latents of `old` channels, into a model for latents of `new` channels.

    Its inputs are, as `embed_frames` packs them, a frame's latents, the condition mask (and the padding mask), and the latents of the
    frame before where the model sees them. Outputs beyond the latents (a gate) stay behind them. Until the grown model is trained, its
    output in the first `old` channels does not depend on the others, and in the others it is zero.

    Raises:
        ValueError: `new` is not greater than `old`, or the model does not paint latents of `old` channels.
    """
    sizes: Any = model.config
    seen, rest = divmod(sizes.in_channels - 1, old)
    beside = sizes.out_channels - old
    if new <= old:
        raise ValueError(f"The latents have {old} channels already; there must be more than that, not {new}.")
    if rest or seen not in (1, 2) or beside < 0:
        raise ValueError(f"A model with {sizes.in_channels} inputs does not paint latents of {old} channels.")
    config = dict(sizes) | {"in_channels": seen * new + 1, "out_channels": new + beside}
    grown: Any = CosmosTransformer3DModel.from_config(config)
    grown.to(model.dtype)
    area = math.prod(sizes.patch_size)
    weights = model.state_dict()
    weights["patch_embed.proj.weight"] = _widen_columns(weights["patch_embed.proj.weight"], old, new, seen, area)
    # The rows of the last layer are ordered (place in the patch, channel).
    rows = weights["proj_out.weight"].unflatten(0, (area, old + beside))
    latents, others = rows.split((old, beside), 1)
    added = rows.new_zeros(area, new - old, rows.shape[-1])
    weights["proj_out.weight"] = torch.cat([latents, added, others], 1).flatten(0, 1)
    grown.load_state_dict(weights)
    return grown.train(model.training)


@torch.no_grad()
def mix_transformers(model: CosmosTransformer3DModel, old: CosmosTransformer3DModel, share: float) -> None:
    """Make each weight of `model` a mean with that of `old`, which counts `share`.

    The mean of a model and of what it was before it was trained further often forgets less than the trained one (Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models").

    Raises:
        ValueError: the two have different sizes.
    """
    before, now = old.state_dict(), model.state_dict()
    if {name: value.shape for name, value in before.items()} != {name: value.shape for name, value in now.items()}:
        raise ValueError("The painter in grow_from has other sizes than the trained one; set old_share to 0.")
    for name, value in now.items():
        value.copy_(value.float() * (1 - share) + before[name].float() * share)


def _widen_columns(weight: torch.Tensor, old: int, new: int, seen: int, area: int) -> torch.Tensor:
    """Add zero columns to the first layer's weight. Its columns, ordered (channel, place in the patch), are those of a frame, of the masks,
    and if `seen` is 2 of the frame before.
    """
    columns = weight.unflatten(1, (-1, area))
    masks = columns.shape[1] - seen * old
    parts = list(columns.split((old, masks, old)[: seen + 1], 1))
    added = weight.new_zeros(len(weight), new - old, area)
    parts[0] = torch.cat([parts[0], added], 1)
    if seen == 2:
        parts[2] = torch.cat([parts[2], added], 1)
    return torch.cat(parts, 1).flatten(1)
