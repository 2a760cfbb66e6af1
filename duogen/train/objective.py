"""The one flow-matching objective of stage 2, for the bundled pair's training and for users' fine-tuning (DuoGen, section 4).

B examples, C latent channels, h w latent size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from duogen.nn.flow import even_sigmas, gate_logit, random_sigmas, split_gate

MOVED = 1e-4  # squared error, in units of a latent's mean variance, above which a place differs from the frame before
GATE_WEIGHT = 0.2  # what a wrong decision of the copy gate counts, beside the squared error
SHIFTS = {"sample": 8.0, "velocity": 2.0}  # of the noise levels, where nobody says otherwise
SMALLEST_SHARE = 1 / 32  # of a frame: what is new counts no more than if it filled this


@dataclass(frozen=True)
class Prediction:
    """What the DiT makes of a noisy frame.

    Attributes:
        frame: [B, C, h, w], the clean frame, or the velocity.
        logit: of the copy gate, [B, 1, h, w]; `None` without one.
    """

    frame: torch.Tensor
    logit: torch.Tensor | None = None


@dataclass(frozen=True)
class FlowObjective:
    """How noisy a target is, and what an error costs.

    Attributes:
        weight: [1, C, 1, 1], what a channel's squared error counts.
        prediction: "sample" (the clean frame) or "velocity", as of `About`.
        shift: moves the noise levels towards pure noise.
        focus: how much more the new places of a frame count than those that stay.
        has_gate: the DiT has a copy gate.
        max_weight: the most that a target of little noise counts, against 1 for one of pure noise. More teaches to sharpen details, at the
            cost of what is painted.
    """

    weight: torch.Tensor
    prediction: str = "sample"
    shift: float = 8.0
    focus: float = 0.0
    has_gate: bool = False
    max_weight: float = 2.0

    def draw_sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Noise levels [count]: even ones where the clean frame is predicted, logit-normal ones for a velocity (Esser et al. 2024)."""
        draw = random_sigmas if self.prediction == "velocity" else even_sigmas
        return draw(count, self.shift, generator)

    def find_moved(self, frame: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """The places of a frame that differ from the frame before it, boolean [B, h, w]; all of a first frame."""
        if before is None or before.shape != frame.shape:
            return torch.ones_like(frame[:, 0], dtype=torch.bool)
        return (self._weight_on(frame) * (frame - before).square()).mean(1) > MOVED

    def choose_target(self, frame: torch.Tensor, before: torch.Tensor | None, moved: torch.Tensor) -> torch.Tensor:
        """What is to be predicted: the frame; with a copy gate `before` at places that stay, with all that is wrong in it."""
        if not self.has_gate or before is None or before.shape != frame.shape:
            return frame
        return torch.where(moved[:, None], frame, before)

    def read_output(self, output: torch.Tensor, before: torch.Tensor | None, channels: int) -> Prediction:
        """The DiT's output for a frame [B, C (+ 2), h, w]; where it has a copy gate, the frame is a mixture with the frame before."""
        frame, gate = split_gate(output, channels)
        if gate is None or before is None:
            return Prediction(frame)
        logit = gate_logit(frame, gate, before, self._weight_on(frame))
        return Prediction(torch.lerp(before, frame, logit.sigmoid()), logit)

    def compute_error(
        self, prediction: Prediction, target: torch.Tensor, noise: torch.Tensor, moved: torch.Tensor, is_first: bool
    ) -> torch.Tensor:
        """The error of each example, [B].

        Args:
            target, noise: what the noisy frame was mixed of, [B, C, h, w].
            moved: boolean [B, h, w]. `is_first`: no frame comes before, so all of it is equally new.
        """
        goal = noise - target if self.prediction == "velocity" else target
        error = (self._weight_on(goal) * (prediction.frame - goal).square()).mean(1)
        if not is_first:
            share = moved.float().mean((1, 2), keepdim=True).clamp(min=SMALLEST_SHARE)
            error = error * (1 + self.focus * moved / share)
        if prediction.logit is not None:
            wrong = F.binary_cross_entropy_with_logits(prediction.logit[:, 0], moved.float(), reduction="none")
            error = error + GATE_WEIGHT * wrong
        return error.mean((1, 2))

    def weigh_targets(self, sigma: torch.Tensor) -> torch.Tensor:
        """What targets of these noise levels count, like `sigma`."""
        return torch.ones_like(sigma) if self.prediction == "velocity" else (1 / sigma.square()).clamp(max=self.max_weight)

    def _weight_on(self, like: torch.Tensor) -> torch.Tensor:
        return self.weight.to(like.device)
