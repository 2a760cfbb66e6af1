"""Samplers: which of diffusers' flow-matching schedulers integrates from noise to a picture."""

from __future__ import annotations

from typing import Any

# One evaluation of the painter a step, the same result for the same seed. To add one, name its class and what makes it a flow scheduler.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "dpm": ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
}


def choose_scheduler(own: Any, sampler: str) -> Any:
    """The scheduler of a sampler, with the noise schedule of a pair's `own` one; "auto" is that one itself.

    Raises:
        ValueError: the pair's painter does no flow matching, so no other sampler fits it.
    """
    if sampler == "auto":
        return own
    import diffusers

    name, flow = SAMPLERS[sampler]
    config = own.config
    shift = config.get("shift", config.get("flow_shift") if config.get("use_flow_sigmas") else None)
    if shift is None:
        raise ValueError("This pair's painter does no flow matching; leave the sampler at auto.")
    if config.get("use_dynamic_shifting"):
        raise ValueError("This pair's noise schedule depends on a picture's size, which no other sampler knows; leave the sampler at auto.")
    if type(own).__name__ == name:
        return own
    return getattr(diffusers, name)(**({"flow_shift": shift, **flow} if flow else {"shift": shift}))
