"""Samplers: every name gives a flow-matching scheduler that reaches the data, from the command line, the page and the API alike."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from duogen.engine import Engine
from duogen.models.pipeline import open_pair
from duogen.models.samplers import SAMPLERS, choose_scheduler
from duogen.nn.flow import sample
from duogen.options import ImageOptions
from duogen.painters.base import Frames, PaintRequest
from tests.support.tiny import tiny_pair

OWN = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("sampler", ["auto", *SAMPLERS])
def test_a_sampler_follows_a_flow_to_its_data(own, sampler):
    """Of a straight flow every sampler finds the data."""
    data, noise = torch.randn(2, 1, 4, 3, 3).unbind(0)
    scheduler = choose_scheduler(OWN[own], sampler)
    sigmas = []

    def velocity(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigmas.append(float(sigma))
        return noise - data

    *_, (latents, predicted) = sample(scheduler, velocity, noise, 6)
    assert len(sigmas) == 6 and sigmas[0] > 0.98 and sigmas == sorted(sigmas, reverse=True)
    assert (latents - data).abs().max() < 0.05 and (predicted - data).abs().max() < 0.05
    assert sigmas[3] > 0.6, "the pair's own schedule, moved towards noise, is kept"


def test_a_sampler_paints_its_own_picture(tmp_path):
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    states = torch.randn(1, 6, engine.pair.transformer.config.crossattn_proj_in_channels, generator=torch.Generator().manual_seed(0))

    def paint(sampler: str) -> torch.Tensor:
        *_, last = engine.painter.paint(Frames.empty(), PaintRequest(states, 0, ImageOptions(steps=4, sampler=sampler), 7))
        return last.latents

    pictures = {sampler: paint(sampler) for sampler in ("auto", *SAMPLERS)}
    assert torch.equal(pictures["auto"], pictures["euler"])  # this pair's own
    assert all((pictures["euler"] - other).abs().max() > 1e-3 for name, other in pictures.items() if name not in ("auto", "euler"))


@pytest.mark.parametrize("own", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)])
def test_what_no_other_sampler_fits_gets_a_sentence(own):
    with pytest.raises(ValueError, match="leave the sampler at auto"):
        choose_scheduler(own, "unipc")
    assert choose_scheduler(own, "auto") is own


def test_a_sampler_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="There is no sampler 'fast'; choose one of auto, euler"):
        ImageOptions(sampler="fast")
