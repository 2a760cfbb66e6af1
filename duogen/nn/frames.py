"""The forward pass of a `CosmosTransformer3DModel`, frame by frame.

The model's own `forward` runs all frames at once. Here its submodules run one by one, so that final frames can be kept as keys and values,
frames may differ in size, and the modulation is computed once per frame instead of once per token.

B batch, F frames, N tokens of a frame, L tokens of all frames, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from duogen.nn.attention import KeyValue, Rotary, attend, attend_frames, project_key_value, project_out, project_query

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

Part = Any  # a block or a norm in it: torch types its submodules as Tensor | Module
BlockForward = Callable[..., tuple[torch.Tensor, KeyValue]]  # `forward_block`, as it is or compiled


@dataclass(frozen=True)
class Frames:
    """Frames of equal or different sizes, packed into one sequence.

    Attributes:
        tokens: [B, L, C] embedded latents.
        rotary: cosines and sines, each [L, D].
        lengths: tokens of each frame, summing to L.
        sizes: (height, width) of each frame in latents.
        extra: [1, L, C] learnable positions where the checkpoint has them; added before every block.
    """

    tokens: torch.Tensor
    rotary: Rotary
    lengths: list[int]
    sizes: list[tuple[int, int]]
    extra: torch.Tensor | None = None


def embed_frames(
    model: CosmosTransformer3DModel,
    latents: list[torch.Tensor],
    times: list[int],
    clean: list[bool],
    previous: list[torch.Tensor | None] | None = None,
) -> Frames:
    """Pack latents into tokens.

    Args:
        latents: per frame [B, channels, h, w]; sizes may differ.
        times: the position of each frame among the conversation's pictures.
        clean: whether the frame is given (condition mask 1) or to be painted (0).
        previous: for models with channels for it, per frame the latents of the frame before it, like its own; `None` for a first frame.
            What did not change then lies at the same place already (as in InstructPix2Pix: Brooks et al. 2023, section 3.2).
    """
    config: Any = model.config
    tokens, cosines, sines, lengths, learnt = [], [], [], [], []
    for index, (frame, time, given) in enumerate(zip(latents, times, clean, strict=True)):
        extra = [torch.full_like(frame[:, :1], float(given))]
        if config.concat_padding_mask:
            extra.append(torch.zeros_like(frame[:, :1]))  # no padding: frames are packed, not padded
        if previous is not None:
            before = previous[index]
            extra.append(torch.zeros_like(frame) if before is None else before)
        embedded = model.patch_embed(torch.cat([frame, *extra], 1)[:, :, None]).flatten(1, 3)
        tokens.append(embedded)
        lengths.append(embedded.shape[1])
        # The model counts positions from the first frame: lay out all frames up to this one and keep the last.
        layout = torch.empty(1, 1, time + 1, *frame.shape[-2:], device=frame.device)
        cos, sin = model.rope(layout)
        cosines.append(cos[-lengths[-1] :])
        sines.append(sin[-lengths[-1] :])
        if model.learnable_pos_embed is not None:
            learnt.append(model.learnable_pos_embed(layout)[:, -lengths[-1] :])
    rotary = (torch.cat(cosines), torch.cat(sines))
    sizes = [(frame.shape[-2], frame.shape[-1]) for frame in latents]
    return Frames(torch.cat(tokens, 1), rotary, lengths, sizes, torch.cat(learnt, 1) if learnt else None)


def project_condition(model: CosmosTransformer3DModel, states: torch.Tensor) -> list[KeyValue]:
    """The connector and every block's cross-attention keys and values, computed once for all denoising steps.

    Args:
        states: [B, S, layers * width] concatenated, per-layer normalised hidden states of the MLLM.
    """
    config: Any = model.config
    blocks: Iterable[Part] = model.transformer_blocks
    context = model.crossattn_proj(states) if config.use_crossattn_projection else states
    return [project_key_value(block.attn2, context) for block in blocks]


@dataclass
class WordCache:
    """Every block's cross-attention keys and values of the words read so far, [1, H, S, D] each, in buffers with spare room.

    Where frames attend block-causally, a word's never change: its hidden state has read only what stands before it.
    """

    buffers: list[KeyValue] = field(default_factory=list)
    count: int = 0

    def project(self, model: CosmosTransformer3DModel, states: torch.Tensor) -> list[KeyValue]:
        """As `project_condition` for [1, S, D] states, of which only those after the first `count` are new."""
        words = states.shape[1]
        if words > self.count:
            fresh = project_condition(model, states[:, self.count :])
            if not self.buffers or words > self.buffers[0][0].shape[2]:
                self.buffers = [
                    (_enlarge(key, old and old[0], self.count, 2 * words), _enlarge(value, old and old[1], self.count, 2 * words))
                    for (key, value), old in zip(fresh, self.buffers or [None] * len(fresh), strict=True)
                ]
            for whole, new in zip(self.buffers, fresh, strict=True):
                for buffer, part in zip(whole, new, strict=True):
                    buffer[:, :, self.count : words] = part
            self.count = words
        return self.first(words)

    def first(self, words: int) -> list[KeyValue]:
        """Those of the first `words` words, which have been projected."""
        return [(key[:, :, :words], value[:, :, :words]) for key, value in self.buffers]

    def keep(self, words: int) -> None:
        """Forget all but the first `words` words."""
        self.count = min(self.count, words)


def _enlarge(like: torch.Tensor, old: torch.Tensor | None, count: int, length: int) -> torch.Tensor:
    buffer = like.new_empty(*like.shape[:2], length, like.shape[3])
    if old is not None:
        buffer[:, :, :count] = old[:, :, :count]
    return buffer


@dataclass
class FirstBlockCache:
    """First-block caching, as in ParaAttention: where the first block adds about what it added at an earlier step, all other blocks are
    taken to add what they added then.

    Attributes:
        threshold: mean change of what the first block adds, relative to its mean size, up to which that is done.
        first, rest: what the first block and all others added at the last step that ran all blocks, each [B, L, C].
    """

    threshold: float
    first: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    def recall(self, added: torch.Tensor) -> torch.Tensor | None:
        """The rest, where it can be taken from memory; if not, it will be kept for `added`."""
        if self.first is not None and (added - self.first).abs().mean() < self.threshold * self.first.abs().mean():
            return self.rest
        self.first = added
        return None


def forward_frames(
    model: CosmosTransformer3DModel,
    frames: Frames,
    timesteps: torch.Tensor,
    condition: list[KeyValue],
    condition_mask: torch.Tensor | None = None,
    self_mask: torch.Tensor | None = None,
    preallocated_kv: list[KeyValue] | None = None,
    *,
    block_cache: FirstBlockCache | None = None,
    block_forward: BlockForward | None = None,
) -> tuple[torch.Tensor, list[KeyValue]]:
    """Run the transformer over `frames`.

    Args:
        timesteps: [B, F].
        condition: what `project_condition` returned.
        condition_mask: broadcastable to [B, 1, L, S]: which words each token reads, boolean or as `word_scores` gives it.
        self_mask: boolean, broadcastable to [B, 1, L, cached + L]; or without a cache [F, F], which frame sees which (`frame_mask`).
        preallocated_kv: final frames that stand before these, as `FrameCache.preallocate` lays them out; these are written after them.
        block_cache: of all steps of one picture; blocks that it skips have no keys and values in the result.
        block_forward: `forward_block`, compiled; by default as it is.

    Returns:
        [B, L, channels * patch area] outputs, and every block's keys and values of these frames.
    """
    hidden = frames.tokens
    embedded, shared = _time(model, timesteps, hidden)
    repeats = torch.tensor(frames.lengths, device=hidden.device)
    fresh: list[KeyValue] = []
    block_forward = block_forward or forward_block
    for index, block in enumerate(model.transformer_blocks):
        earlier = preallocated_kv[index] if preallocated_kv else None
        given = (block, frames, hidden, embedded, shared, repeats, condition[index], condition_mask, self_mask, earlier)
        if model.gradient_checkpointing and torch.is_grad_enabled():
            hidden, made = checkpoint(block_forward, *given, use_reentrant=False)
        else:
            hidden, made = block_forward(*given)
        fresh.append(made)
        if block_cache and index == 0:
            begun = hidden
            if (rest := block_cache.recall(hidden - frames.tokens)) is not None:
                hidden = hidden + rest
                break
    else:
        if block_cache:
            block_cache.rest = hidden - begun
    return model.proj_out(_modulate_last(model.norm_out, hidden, embedded, shared, repeats)), fresh


def forward_block(
    block: Part, frames: Frames, hidden: torch.Tensor, embedded: torch.Tensor, shared: torch.Tensor, repeats: torch.Tensor,
    condition: KeyValue, *masks_and_kv: *tuple[torch.Tensor | None, torch.Tensor | None, KeyValue | None],
) -> tuple[torch.Tensor, KeyValue]:  # fmt: skip
    """One block: hidden states [B, L, C], and the keys and values of these frames. The last three are the masks and `preallocated_kv`."""
    condition_mask, self_mask, preallocated_kv = masks_and_kv
    if frames.extra is not None:
        hidden = hidden + frames.extra
    normed, gate = _modulate(block.norm1, hidden, embedded, shared, repeats)
    made = key, value = project_key_value(block.attn1, normed, frames.rotary)
    if preallocated_kv:
        for whole, new in zip(preallocated_kv, made, strict=True):
            whole[:, :, -new.shape[2] :] = new
        key, value = preallocated_kv
    query = project_query(block.attn1, normed, frames.rotary)
    if self_mask is not None and self_mask.ndim == 2:
        looked = attend_frames(block.attn1, query, key, value, self_mask, frames.lengths)
    else:
        looked = attend(block.attn1, query, key, value, self_mask)
    hidden = hidden + gate * project_out(block.attn1, looked)
    normed, gate = _modulate(block.norm2, hidden, embedded, shared, repeats)
    query = project_query(block.attn2, normed)
    hidden = hidden + gate * project_out(block.attn2, attend(block.attn2, query, *condition, condition_mask))
    normed, gate = _modulate(block.norm3, hidden, embedded, shared, repeats)
    return hidden + gate * block.ff(normed), made


def _time(model: CosmosTransformer3DModel, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shared, embedded = model.time_embed(like, timesteps.flatten())
    return embedded.unflatten(0, timesteps.shape), shared.unflatten(0, timesteps.shape)


def _modulate(
    norm: Part, hidden: torch.Tensor, embedded: torch.Tensor, shared: torch.Tensor, repeats: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """adaLN-LoRA as in `CosmosAdaLayerNormZero`, with the modulation computed per frame [B, F, 3 C]."""
    modulation = norm.linear_2(norm.linear_1(norm.activation(embedded))) + shared
    shift, scale, gate = modulation.repeat_interleave(repeats, 1).chunk(3, dim=-1)
    return norm.norm(hidden) * (1 + scale) + shift, gate


def _modulate_last(norm: Part, hidden: torch.Tensor, embedded: torch.Tensor, shared: torch.Tensor, repeats: torch.Tensor) -> torch.Tensor:
    """As `CosmosAdaLayerNorm`, which has no gate."""
    modulation = norm.linear_2(norm.linear_1(norm.activation(embedded))) + shared[..., : 2 * norm.embedding_dim]
    shift, scale = modulation.repeat_interleave(repeats, 1).chunk(2, dim=-1)
    return norm.norm(hidden) * (1 + scale) + shift


def unpatchify(model: CosmosTransformer3DModel, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """One frame's outputs [B, N, patch area * channels] -> latents [B, channels, h, w]."""
    config: Any = model.config
    _, p_h, p_w = config.patch_size
    height, width = size[0] // p_h, size[1] // p_w
    # The model packs (p_h, p_w, channels), as diffusers' own unpatchify reads it.
    patches = tokens.unflatten(2, (p_h, p_w, -1)).unflatten(1, (height, width))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
