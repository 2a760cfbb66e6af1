"""The walk through a `CosmosTransformer3DModel`, frame by frame.

The model's own `forward` runs all frames at once; we walk its submodules, so that final frames can be kept as keys and values,
frames may differ in size, and the modulation is computed once per frame instead of once per token.

B batch, F frames, N tokens of a frame, L tokens of all frames, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import CosmosTransformer3DModel
from torch.utils.checkpoint import checkpoint

from duogen.nn.attention import KeyValue, Rotary, attend, attend_frames, project_key_value, project_out, project_query


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
    tokens, cosines, sines, lengths, learnt = [], [], [], [], []
    for index, (frame, time, given) in enumerate(zip(latents, times, clean, strict=True)):
        extra = [torch.full_like(frame[:, :1], float(given))]
        if model.config.concat_padding_mask:
            extra.append(torch.zeros_like(frame[:, :1]))  # no padding: frames are packed, not padded
        if previous is not None:
            extra.append(torch.zeros_like(frame) if previous[index] is None else previous[index])
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
    sizes = [tuple(frame.shape[-2:]) for frame in latents]
    return Frames(torch.cat(tokens, 1), rotary, lengths, sizes, torch.cat(learnt, 1) if learnt else None)


def project_condition(model: CosmosTransformer3DModel, states: torch.Tensor) -> list[KeyValue]:
    """The connector and every block's cross-attention keys and values, computed once for all denoising steps.

    Args:
        states: [B, S, layers * width] concatenated, per-layer normalised hidden states of the MLLM.
    """
    context = model.crossattn_proj(states) if model.config.use_crossattn_projection else states
    return [project_key_value(block.attn2, context) for block in model.transformer_blocks]


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


def _enlarge(like: torch.Tensor, old: torch.Tensor | None, count: int, room: int) -> torch.Tensor:
    buffer = like.new_empty(*like.shape[:2], room, like.shape[3])
    if old is not None:
        buffer[:, :, :count] = old[:, :, :count]
    return buffer


@dataclass
class Skipping:
    """First-block caching, as in ParaAttention: where the first block adds about what it added at an earlier step, all other blocks are
    taken to add what they added then.

    Attributes:
        threshold: mean change of what the first block adds, relative to its mean size, up to which that is done.
        first, rest: what the first block and all others added at the last step that was walked whole, each [B, L, C].
    """

    threshold: float
    first: torch.Tensor | None = None
    rest: torch.Tensor | None = None

    def fits(self, added: torch.Tensor) -> bool:
        """Whether the rest can be taken from memory; if not, it will be kept for `added`."""
        if self.first is not None and (added - self.first).abs().mean() < self.threshold * self.first.abs().mean():
            return True
        self.first = added
        return False


def walk(
    model: CosmosTransformer3DModel,
    frames: Frames,
    timesteps: torch.Tensor,
    condition: list[KeyValue],
    condition_mask: torch.Tensor | None = None,
    self_mask: torch.Tensor | None = None,
    room: list[KeyValue] | None = None,
    *,
    skipping: Skipping | None = None,
    through: Callable[..., tuple[torch.Tensor, KeyValue]] | None = None,
) -> tuple[torch.Tensor, list[KeyValue]]:
    """Run the transformer over `frames`.

    Args:
        timesteps: [B, F].
        condition: what `project_condition` returned.
        condition_mask: broadcastable to [B, 1, L, S]: which words each token reads, boolean or as `word_scores` gives it.
        self_mask: boolean, broadcastable to [B, 1, L, cached + L]; or without a room [F, F], which frame sees which (`frame_mask`).
        room: final frames that stand before these, as `FrameCache.room` lays them out; these are written after them.
        skipping: of all steps of one picture; blocks that it skips have no keys and values in the result.
        through: `through_block`, compiled; by default as it is.

    Returns:
        [B, L, channels * patch area] outputs, and every block's keys and values of these frames.
    """
    hidden = frames.tokens
    embedded, shared = _time(model, timesteps, hidden)
    repeats = torch.tensor(frames.lengths, device=hidden.device)
    fresh: list[KeyValue] = []
    through = through or through_block
    for index, block in enumerate(model.transformer_blocks):
        given = (block, frames, hidden, embedded, shared, repeats, condition[index], condition_mask, self_mask, room and room[index])
        if model.gradient_checkpointing and torch.is_grad_enabled():
            hidden, made = checkpoint(through, *given, use_reentrant=False)
        else:
            hidden, made = through(*given)
        fresh.append(made)
        if skipping and index == 0:
            begun = hidden
            if skipping.fits(hidden - frames.tokens):
                hidden = hidden + skipping.rest
                break
    else:
        if skipping:
            skipping.rest = hidden - begun
    shift, scale = _final_modulation(model.norm_out, embedded, shared)
    hidden = model.norm_out.norm(hidden) * (1 + scale.repeat_interleave(repeats, 1)) + shift.repeat_interleave(repeats, 1)
    return model.proj_out(hidden), fresh


def through_block(
    block: torch.nn.Module, frames: Frames, hidden: torch.Tensor, embedded: torch.Tensor, shared: torch.Tensor, repeats: torch.Tensor,
    condition: KeyValue, *masks_and_room: torch.Tensor | KeyValue | None,
) -> tuple[torch.Tensor, KeyValue]:  # fmt: skip
    """One block: hidden states [B, L, C], and the keys and values of these frames. The last three are the masks and the room."""
    condition_mask, self_mask, room = masks_and_room
    if frames.extra is not None:
        hidden = hidden + frames.extra
    normed, gate = _modulate(block.norm1, hidden, embedded, shared, repeats)
    made = key, value = project_key_value(block.attn1, normed, frames.rotary)
    if room:
        for whole, new in zip(room, made, strict=True):
            whole[:, :, -new.shape[2] :] = new
        key, value = room
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
    return (x.unflatten(0, timesteps.shape) for x in (embedded, shared))


def _modulate(norm: torch.nn.Module, hidden: torch.Tensor, embedded: torch.Tensor, shared: torch.Tensor, repeats: torch.Tensor):
    """adaLN-LoRA as in `CosmosAdaLayerNormZero`, with the modulation computed per frame [B, F, 3 C]."""
    modulation = norm.linear_2(norm.linear_1(norm.activation(embedded))) + shared
    shift, scale, gate = modulation.repeat_interleave(repeats, 1).chunk(3, dim=-1)
    return norm.norm(hidden) * (1 + scale) + shift, gate


def _final_modulation(norm: torch.nn.Module, embedded: torch.Tensor, shared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    modulation = norm.linear_2(norm.linear_1(norm.activation(embedded))) + shared[..., : 2 * norm.embedding_dim]
    return modulation.chunk(2, dim=-1)


def unpatchify(model: CosmosTransformer3DModel, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """One frame's outputs [B, N, patch area * channels] -> latents [B, channels, h, w]."""
    _, p_h, p_w = model.config.patch_size
    height, width = size[0] // p_h, size[1] // p_w
    # The model packs (p_h, p_w, channels), as diffusers' own unpatchify reads it.
    patches = tokens.unflatten(2, (p_h, p_w, -1)).unflatten(1, (height, width))
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
