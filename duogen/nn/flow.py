"""Flow matching: noisy latents x = (1 - sigma) data + sigma noise, velocity = noise - data (Lipman et al. 2023; DuoGen, stage 2).

sigma runs from 1 (noise) to 0 (data).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

DISTANCE_FLOOR, LOG_MIDDLE = 1e-4, -3.0  # of the copy gate: squared errors are logarithms there, about zero at the middle
MIN_SIGMA = 0.05  # a predicted sample is turned into a velocity by dividing by sigma: keep that finite

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OnStep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def sample(
    scheduler: SchedulerMixin, velocity: Velocity, noise: torch.Tensor, steps: int, on_step: OnStep | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Integrate from noise to data with a diffusers flow scheduler.

    Args:
        velocity: (latents, sigma []) -> velocity, both like `noise`.
        noise: starting latents, any shape.
        on_step: (latents, their sigma []) -> latents, after every step: puts back what is known already.

    Yields:
        After every step: the latents, and the data as predicted at that step (for previews).
    """
    solver: Any = copy.deepcopy(scheduler)  # schedulers keep state
    solver.set_timesteps(steps)
    latents = noise
    for timestep, sigma, after in zip(solver.timesteps, solver.sigmas[:-1], solver.sigmas[1:], strict=True):
        sigma = sigma.to(latents)
        v = velocity(latents, sigma)
        predicted = latents - sigma * v
        latents = solver.step(v, timestep, latents, return_dict=False)[0]
        latents = on_step(latents, after.to(latents)) if on_step else latents
        yield latents, predicted


def add_noise(data: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return (1 - sigma) * data + sigma * noise


def to_velocity(output: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor, prediction: str) -> torch.Tensor:
    """The model's output as a velocity: `prediction` is "velocity", or "sample" (the clean data)."""
    if prediction == "velocity":
        return output
    return (latents - output) / sigma.clamp(min=MIN_SIGMA)


def split_gate(output: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A DiT's output [B, channels (+ 2), h, w] as the frame and, where there is one, the copy gate [B, 2, h, w]."""
    return (output, None) if output.shape[1] == channels else (output[:, :channels], output[:, channels:])


def gate_logit(made: torch.Tensor, gate: torch.Tensor, before: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """How likely a place of a frame is painted anew rather than copied from the frame before, as a logit [B, 1, h, w].

    The gate says for each place how it judges the distance between what is predicted and the frame before: a little where all stays, and
    much where something comes new.

    Args:
        made, before: [B, C, h, w], the frame as predicted and the one before.
        gate: [B, 2, h, w], a base, and a slope less one: where both are zero, the distance decides.
        weight: [1, C, 1, 1], what a channel's squared error counts.
    """
    distance = (weight * (made - before).square()).mean(1, keepdim=True)
    return gate[:, :1] + (1 + gate[:, 1:]) * (torch.log(distance + DISTANCE_FLOOR) - LOG_MIDDLE)


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
    return shift_sigmas(torch.sigmoid(torch.randn(count, generator=generator)), shift)


def even_sigmas(count: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Training sigmas as dense as the sampling schedule's, up to pure noise.

    Where words settle a picture wholly, what goes where in which colour is decided near sigma 1, which logit-normal ones hardly visit.
    """
    return shift_sigmas(torch.rand(count, generator=generator), shift)


def shift_sigmas(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Sigmas moved towards noise, as diffusers' flow schedulers do with their `shift`."""
    return shift * sigma / (1 + (shift - 1) * sigma)
