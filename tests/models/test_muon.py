"""Muon in float32: the same step as PyTorch's, but for the rounding of bf16; chosen where bf16 is slow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from duogen.train.muon import Float32Muon, orthogonalise
from duogen.train.trainer import collect_parameters, make_optimizers, train
from tests.models.test_training import Toy, equal, quiet, recipe

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
pytestmark = pytest.mark.usefixtures("as_before")


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((12, 30), (30, 12), (16, 16))]


def step(optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


def make_optimizer(kind: type, own: list[nn.Parameter], **options) -> torch.optim.Optimizer:
    return kind(own, lr=0.02, weight_decay=0.1, **({} if kind is Float32Muon else {"adjust_lr_fn": "match_rms_adamw"}), **options)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_pytorchs_but_for_rounding(nesterov):
    ours, theirs = weights(), weights()
    start = copy.deepcopy(ours)
    optimizers = [make_optimizer(Float32Muon, ours, nesterov=nesterov), make_optimizer(torch.optim.Muon, theirs, nesterov=nesterov)]
    for number in range(3):
        for each in optimizers:
            step(each, number)
    for one, other, old in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.02 * (other - old).norm()
        assert not torch.equal(one, other)


def test_the_iteration_does_to_each_singular_value_what_the_polynomial_does():
    """Exact: in float32 it changes singular values alone, as the quintic says, five times over."""
    generator = torch.Generator().manual_seed(2)
    for shape in ((10, 24), (24, 10)):
        matrix = torch.randn(shape, generator=generator)
        u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
        s = s / s.norm()
        a, b, c = COEFFICIENTS
        for _ in range(5):
            s = a * s + b * s**3 + c * s**5
        out = orthogonalise(matrix, COEFFICIENTS, 5, 1e-7)
        assert out.dtype == torch.float32 and (out - u @ torch.diag(s) @ vh).abs().max() < 1e-4


def test_either_reads_the_others_state():
    for one, other in ((Float32Muon, torch.optim.Muon), (torch.optim.Muon, Float32Muon)):
        first = make_optimizer(one, weights())
        step(first, 0)
        second = make_optimizer(other, weights())
        second.load_state_dict(first.state_dict())
        assert equal(second.state_dict()["state"], first.state_dict()["state"])
        step(second, 1)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, Float32Muon), (torch.bfloat16, torch.optim.Muon)])
def test_the_machine_chooses(monkeypatch, dtype, kind):
    monkeypatch.setattr("duogen.precision.many_rows_dtype", lambda device="cpu": dtype)
    adamw, muon = make_optimizers(collect_parameters(Toy().modules), recipe(optimizer="muon"))
    assert type(muon) is kind and {weight.ndim for weight in muon.param_groups[0]["params"]} == {2}


@pytest.mark.parametrize("began", ["bf16", "fp32"])
def test_a_run_goes_on_on_another_kind_of_machine_and_says_so(tmp_path, monkeypatch, began):
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    now = "fp32" if began == "bf16" else "bf16"
    wish = recipe(optimizer="muon")
    monkeypatch.setattr("duogen.precision.many_rows_dtype", lambda device="cpu": dtypes[began])
    train(Toy(), wish, tmp_path, until=3, log=quiet)
    assert torch.load(tmp_path / "state.pt")["precision"] == began
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    monkeypatch.setattr("duogen.precision.many_rows_dtype", lambda device="cpu": dtypes[now])
    said, warned = [], []
    assert train(Toy(), wish, tmp_path, until=5, log=said.append, warn=warned.append) == 5
    assert warned == [f"This run began in {began}; it goes on in {now}, not to the bit."]
    assert torch.load(tmp_path / "state.pt")["precision"] == now
    assert train(Toy(), wish, tmp_path, log=said.append, warn=warned.append) == 6 and len(warned) == 1
