"""Muon whose Newton-Schulz steps run in float32, for machines that multiply bf16 slowly.

`torch.optim.Muon` always casts them to bf16. On a CPU without bf16 instructions that takes twenty times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

RMS_OF_ADAMW = 0.2  # of an update of AdamW (Liu et al., 2025, arXiv 2502.16982, section 2.2)


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`; each of the two loads states that the other saved."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, adjust_lr_fn="match_rms_adamw", **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step_matrix(weight, weight.grad, group)
        return loss

    def _step_matrix(self, weight: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        momentum = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * RMS_OF_ADAMW * math.sqrt(max(weight.shape)))


def orthogonalise(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """Make the singular values of a matrix about one and keep its singular vectors, by a quintic Newton-Schulz iteration (Jordan et al.,
    2024) in the matrix's own number format.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
