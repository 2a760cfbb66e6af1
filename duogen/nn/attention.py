"""Frame attention: one attention function, the masks between frames, and the cache of final frames.

B batch, L query tokens, S key tokens, H heads, D channels per head, F frames, N tokens per frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

Attention = Any  # diffusers' own, which types its submodules as perhaps `None`
Rotary = tuple[torch.Tensor, torch.Tensor]
KeyValue = tuple[torch.Tensor, torch.Tensor]


def attend(attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Scaled dot-product attention, [B, H, L, D] -> [B, L, H * D].

    Args:
        mask: broadcastable to [B, H, L, S]; boolean, or a float that is added to the scores.

    The kernel is the one chosen with diffusers' `set_attention_backend`; where there is a mask, PyTorch's own: of the others some take
    none, and xformers takes a boolean one for numbers to be added.
    """
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or torch.is_grad_enabled()):
        # PyTorch's CPU kernel is slow in bf16 and on the way back: plain matrix products are twice as fast.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)
        out = scores.softmax(dim=-1).to(value.dtype) @ value
        return out.transpose(1, 2).flatten(2, 3)
    backend = getattr(attn.processor, "_attention_backend", None) if mask is None else AttentionBackendName.NATIVE
    out = dispatch_attention_fn(*(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask, backend=backend)
    return out.flatten(2, 3)


def attend_frames(
    attn: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """As `attend`, for whole frames of `lengths` tokens: each looks at those that `sees`, boolean [F, F], gives it.

    Frame by frame, where one product with a mask would compute four times as many scores as a frame and its copies need.
    """
    keys, values = key.split(lengths, 2), value.split(lengths, 2)
    made = []
    for own, seen in zip(query.split(lengths, 2), sees.tolist(), strict=True):
        chosen = [index for index, yes in enumerate(seen) if yes]
        made.append(attend(attn, own, *(torch.cat([each[index] for index in chosen], 2) for each in (keys, values)), None))
    return torch.cat(made, 1)


def project_query(attn: Attention, hidden: torch.Tensor, rotary: Rotary | None = None) -> torch.Tensor:
    """[B, L, C] -> normalised, rotated queries [B, H, L, D]."""
    query = attn.norm_q(attn.to_q(hidden).unflatten(2, (attn.heads, -1)).transpose(1, 2))
    return rotate(query, rotary)


def project_key_value(attn: Attention, hidden: torch.Tensor, rotary: Rotary | None = None) -> KeyValue:
    """[B, S, C] -> normalised, rotated keys and values, each [B, H, S, D]."""
    key = attn.norm_k(attn.to_k(hidden).unflatten(2, (attn.heads, -1)).transpose(1, 2))
    value = attn.to_v(hidden).unflatten(2, (attn.heads, -1)).transpose(1, 2)
    return rotate(key, rotary), value


def project_out(attn: Attention, hidden: torch.Tensor) -> torch.Tensor:
    return attn.to_out[1](attn.to_out[0](hidden))


def rotate(states: torch.Tensor, rotary: Rotary | None) -> torch.Tensor:
    if rotary is None:
        return states
    # diffusers declares a tuple of one tensor, and two tensors for what is one.
    turned: Any = apply_rotary_emb(states, rotary, use_real=True, use_real_unbind_dim=-2)  # ty: ignore[invalid-argument-type]
    return turned.to(states.dtype)


def frame_mask(queries: list[tuple[int, int]], keys: list[tuple[int, int]], bidirectional: bool = False) -> torch.Tensor:
    """Which frame may look at which: boolean [F_q, F_k].

    A frame is (position in time, copy): copy 0 is the clean frame, copies 1, 2, ... are noisy versions of it. A clean frame sees
    clean frames up to itself, a noisy copy sees itself and the clean frames before it (block-causal teacher forcing). With
    `bidirectional`, every frame sees all.
    """
    if bidirectional:
        return torch.ones(len(queries), len(keys), dtype=torch.bool)
    return torch.tensor(
        [
            [(k_copy == 0 and k_time < q_time) or (k_time, k_copy) == (q_time, q_copy) for k_time, k_copy in keys]
            for q_time, q_copy in queries
        ]
    )


def word_scores(reads: torch.Tensor, fresh: torch.Tensor, bias: float) -> torch.Tensor:
    """What is added to the cross-attention scores of each word: boolean [..., S] twice -> float [..., S].

    Words that are not read get minus infinity, those since the picture before (`fresh`) get `bias`: which words are new is what a
    frame must know first, and the hidden states hardly tell.
    """
    return torch.zeros(reads.shape, device=reads.device).masked_fill(fresh, bias).masked_fill(~reads, float("-inf"))


@dataclass
class FrameCache:
    """Keys and values of the final frames, one pair per block, each [1, H, S, D]; they never change once written.

    `ends` holds the number of tokens up to the end of each frame.
    """

    blocks: list[KeyValue] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """How many there are: the next frame's position in time."""
        return len(self.ends)

    def append(self, fresh: list[KeyValue]) -> None:
        """Add one frame's keys and values of every block."""
        if self.blocks:
            fresh = [
                (torch.cat([k, new_k], 2), torch.cat([v, new_v], 2)) for (k, v), (new_k, new_v) in zip(self.blocks, fresh, strict=True)
            ]
        self.blocks = fresh
        self.ends = [*self.ends, fresh[0][0].shape[2]]

    def preallocate(self, branches: int, tokens: int) -> list[KeyValue]:
        """The frames of every block once for each branch, [branches, H, S + tokens, D], the last `tokens` left open for a frame that
        stands after them: `forward_frames` writes them there, so that what is final is copied once for a picture and not at every step."""
        return [(_append_space(key, branches, tokens), _append_space(value, branches, tokens)) for key, value in self.blocks]

    def since(self, frame: int) -> FrameCache:
        """The frames from index `frame` on, sharing memory."""
        begin = self.ends[frame - 1] if frame else 0
        blocks = [(key[:, :, begin:], value[:, :, begin:]) for key, value in self.blocks] if frame < self.frames else []
        return FrameCache(blocks, [end - begin for end in self.ends[frame:]])

    def keep(self, frames: int) -> None:
        """Forget all but the first `frames` frames."""
        self.ends = self.ends[:frames]
        until = self.ends[-1] if self.ends else 0
        self.blocks = [(key[:, :, :until], value[:, :, :until]) for key, value in self.blocks] if until else []


def _append_space(states: torch.Tensor, branches: int, tokens: int) -> torch.Tensor:
    _, heads, length, width = states.shape
    buffer = states.new_empty(branches, heads, length + tokens, width)
    buffer[:, :, :length] = states
    return buffer
