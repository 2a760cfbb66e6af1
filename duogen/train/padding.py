"""Padding: conversations of different lengths in one batch."""

from __future__ import annotations

import torch


def pad_conversations(reads: list[tuple[list[int], torch.Tensor]], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad conversations to the longest, B of them.

    Args:
        reads: for each conversation its ids and their rotary positions [3, length].
        multiple: L is a multiple of this; with few different lengths oneDNN does not build new kernels at every step.

    Returns:
        ids [B, L], positions [3, B, L], and the boolean mask [B, L], false where there is padding.
    """
    length = -(-max(len(ids) for ids, _ in reads) // multiple) * multiple
    ids, mask = torch.zeros(len(reads), length, dtype=torch.long), torch.zeros(len(reads), length, dtype=torch.bool)
    places = torch.zeros(3, len(reads), length, dtype=torch.long)
    for row, (own, where) in enumerate(reads):
        ids[row, : len(own)], mask[row, : len(own)] = torch.tensor(own), True
        places[:, row, : len(own)] = where
    return ids, places, mask
