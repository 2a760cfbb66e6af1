"""The MLLM's KV cache, written in place: a new token costs its own keys and values, not a copy of all that is there.

KV key-value heads, L tokens, D channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

LEAST_ROOM = 256  # tokens


class PreallocatedLayer(DynamicLayer):
    """One layer's keys and values, [1, KV, L, D] each: views of buffers with spare room, which double when they are full."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values [1, KV, new, D] behind the others; returns all, as `DynamicLayer.update` does."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.key_buffer = self.value_buffer = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
            self.keys, self.values = self.key_buffer, self.value_buffer
            self.is_initialized = True
        assert self.keys is not None and self.values is not None
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            room = max(LEAST_ROOM, 2 * end)
            self.key_buffer, self.value_buffer = _grow(self.keys, room), _grow(self.values, room)
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values


def _grow(states: torch.Tensor, room: int) -> torch.Tensor:
    buffer = states.new_empty(*states.shape[:2], room, states.shape[3])
    buffer[:, :, : states.shape[2]] = states
    return buffer


def new_kv_cache() -> DynamicCache:
    """An empty KV cache of one conversation, for transformers' models and for `TokenForward`."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = PreallocatedLayer
    return cache
