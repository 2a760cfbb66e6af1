"""What a reward makes of painted pictures: which are kept to learn from, or how much each attracts and repels.

B requests, K pictures of each, N examples, C latent channels, h w latent size.
"""

from __future__ import annotations

import torch

SMALLEST_SPREAD = 1e-4  # of rewards
SMALLEST_ERROR = 1e-5  # of latents, which a loss is divided by


def choose_kept(rewards: torch.Tensor, right: torch.Tensor, most: int) -> list[list[int]]:
    """Rejection sampling: of each request the first `most` pictures that are wholly right; where none is, the best one (RAFT: Dong et al.
    2023).

    Args:
        rewards: [B, K]. `right`: boolean [B, K].

    Returns:
        For each request the indices of its pictures, none where all are equally wrong.
    """
    kept = []
    for own, whole in zip(rewards, right, strict=True):
        if whole.any():
            kept.append(whole.nonzero().flatten().tolist()[:most])
        else:
            kept.append([int(own.argmax())] if own.max() > own.min() else [])
    return kept


def compute_optimality(rewards: torch.Tensor, clip: float) -> torch.Tensor:
    """How likely each picture is a good one of its request, 0..1 (DiffusionNFT: Zheng et al., ICLR 2026).

    The deviation from the mean of the request's pictures, in standard deviations of all pictures from theirs: -`clip` is 0, 0 a half.

    Args:
        rewards: [B, K].
    """
    deviations = rewards - rewards.mean(1, keepdim=True)
    spread = deviations.square().mean().sqrt() + SMALLEST_SPREAD
    return (0.5 + deviations / spread / clip / 2).clamp(0, 1)


def compute_nft_losses(
    own: torch.Tensor, old: torch.Tensor, painted: torch.Tensor, optimality: torch.Tensor, beta: float, weight: torch.Tensor
) -> torch.Tensor:
    """DiffusionNFT's loss of each example, [N], for painters that predict the clean frame (Zheng et al., ICLR 2026).

    An implicit positive painter, `beta` of the way from the old one to the new, is drawn to good pictures; an implicit negative one,
    as far on the other side, to bad ones. A squared error is divided by the mean error itself, as the authors do.

    Args:
        own, old: what the learning painter and the old one make of the noised pictures, [N, C, h, w].
        painted: the pictures, as `own`. `optimality`: [N].
        weight: [1, C, 1, 1], what a channel's squared error counts.
    """
    positive, negative = old + beta * (own - old), old - beta * (own - old)
    good, bad = (_compute_error(each, painted, weight) for each in (positive, negative))
    return (optimality * good + (1 - optimality) * bad) / beta


def _compute_error(frame: torch.Tensor, painted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    difference = frame - painted
    size = (weight.sqrt() * difference.detach().abs()).mean((1, 2, 3)).clamp(min=SMALLEST_ERROR)
    return (weight * difference.square()).mean((1, 2, 3)) / size
