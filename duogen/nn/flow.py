"""Flow matching: noisy latents x = (1 - sigma) data + sigma noise, velocity = noise - data (Lipman et al. 2023; DuoGen, stage 2).

sigma runs from 1 (noise) to 0 (data).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from diffusers import SchedulerMixin

MIN_SIGMA = 0.05  # a predicted sample is turned into a velocity by dividing by sigma: keep that finite

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Settle = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sample(
    scheduler: SchedulerMixin, velocity: Velocity, noise: torch.Tensor, steps: int, settle: Settle | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Integrate from noise to data with a diffusers flow scheduler.

    Args:
        velocity: (latents, sigma []) -> velocity, both like `noise`.
        noise: starting latents, any shape.
        settle: (latents, their sigma []) -> latents, after every step: puts back what is known already.

    Yields:
        After every step: the latents, and the data as predicted at that step (for previews).
    """
    solver = copy.deepcopy(scheduler)  # schedulers keep state
    solver.set_timesteps(steps)
    latents = noise
    for timestep, sigma, after in zip(solver.timesteps, solver.sigmas[:-1], solver.sigmas[1:], strict=True):
        sigma = sigma.to(latents)
        v = velocity(latents, sigma)
        predicted = latents - sigma * v
        latents = solver.step(v, timestep, latents, return_dict=False)[0]
        latents = settle(latents, after.to(latents)) if settle else latents
        yield latents, predicted


def noisy(data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (1 - sigma) * data + sigma * noise


def to_velocity(output: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """The model's output as a velocity: `prediction` is "velocity", or "sample" or "change" (the clean data, after `add_change`)."""
    if prediction == "velocity":
        return output
    return (latents - output) / sigma.clamp(min=MIN_SIGMA)


def add_change(output: torch.Tensor, before: torch.Tensor | None, prediction: str) -> torch.Tensor:
    """The model's output for a frame, with the frame before it added where "change" is predicted: what differs between the two.

    Args:
        before: latents of the frame before, as `output`; `None` for a first frame, whose change is all of it.
    """
    return output if prediction != "change" or before is None else output + before


def copy_unchanged(latents: torch.Tensor, before: torch.Tensor, weight: torch.Tensor, least: float) -> torch.Tensor:
    """`latents` with those of the frame before at every place that changed less than `least`, so that what stays does so exactly.

    Args:
        latents, before: [B, C, h, w].
        weight: [1, C, 1, 1], what a channel's squared change counts.
        least: mean squared change of a place, weighted.
    """
    changed = (weight * (latents - before).square()).mean(1, keepdim=True) >= least
    return torch.where(changed, latents, before)


def guide(branches: torch.Tensor, words: float, pictures: float = 1.0) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022), with a third branch apart for words and pictures (InstructPix2Pix: Brooks et al.
    2023, equation 3).

    Args:
        branches: [1 to 3, ...] velocities: reading all; all but the latest words; neither these nor the pictures before.
        words, pictures: how strongly each of the two is followed; 1 is as the model does by itself.

    Returns:
        [1, ...].
    """
    whole, *lesser = branches.split(1)
    if not lesser:
        return whole
    guided = lesser[0] + words * (whole - lesser[0])
    return guided + (pictures - 1) * (lesser[0] - lesser[1]) if len(lesser) == 2 else guided


def random_sigmas(count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Logit-normal training sigmas, shifted towards noise as the sampling schedule is (Esser et al. 2024, section 3.1)."""
    return shifted(torch.sigmoid(torch.randn(count, generator=generator)), shift)


def even_sigmas(count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Training sigmas as dense as the sampling schedule's, up to pure noise.

    Where words settle a picture wholly, what goes where in which colour is decided near sigma 1, which logit-normal ones hardly visit.
    """
    return shifted(torch.rand(count, generator=generator), shift)


def shifted(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Sigmas moved towards noise, as diffusers' flow schedulers do with their `shift`."""
    return shift * sigma / (1 + (shift - 1) * sigma)
