"""Training in two processes, as `accelerate launch` starts them: each with all weights, and with the weights shared out."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from duogen.finetune.config import FineTuneConfig
from duogen.finetune.jobs import Job
from duogen.finetune.run import finetune
from duogen.train.fsdp import fsdp_requested
from duogen.train.trainer import train
from tests.models.test_finetune import RECIPE, order, place, processes, quiet  # noqa: F401
from tests.models.test_training import Toy, recipe

pytestmark = pytest.mark.usefixtures("as_before")


def one_of_two(rank: int, port: int, sharded: bool, work: Callable, *given: Any) -> None:
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in settings.items()} | {"ACCELERATE_USE_CPU": "true"})
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    work(*given)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the first process holds the store through which the other still connects


def in_two(processes, sharded: bool, work: Callable, *given: Any) -> list[int | None]:  # noqa: F811
    """The exit codes of two processes that do the same together."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = [processes.Process(target=one_of_two, args=(rank, port, sharded, work, *given)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def curve(file: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


def half(folder: Path) -> None:
    """Stopped and gone on with in the middle."""
    wish, toy = recipe(precision="fp32", accumulate=2, log_every=1), Toy()
    assert train(toy, wish, folder, until=3, log=quiet) == 3
    weight = toy.net[0].weight
    kept = weight.to_local() if isinstance(weight, DTensor) else weight
    assert kept.numel() == weight.numel() // (2 if fsdp_requested() else 1)
    assert train(Toy(), wish, folder, log=quiet) == 6


def refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="muon needs whole weights; choose adamw"):
        train(Toy(), recipe(optimizer="muon"), folder, log=quiet)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_do_what_one_does_that_accumulates_twice(processes, tmp_path, sharded):  # noqa: F811
    assert in_two(processes, sharded, half, tmp_path / "two") == [0, 0]
    wish = recipe(precision="fp32", log_every=1)
    train(Toy(), replace(wish, accumulate=4), tmp_path / "one", log=quiet)
    two, one = (torch.load(tmp_path / name / "state.pt") for name in ("two", "one"))
    assert two["step"] == one["step"] == 6
    for part in ("weights", "ema"):
        assert all(torch.allclose(two[part][name], one[part][name], atol=1e-6) for name in one[part])
    curves = [curve(tmp_path / name / "log.jsonl") for name in ("two", "one")]
    assert len(curves[1]) == 6 and curves[0] == pytest.approx(curves[1], abs=2e-5)


def train_both(place: Path, out: str, accumulate: int, rank: int) -> None:  # noqa: F811
    """Both stages; with a rank of 0 all weights are trained."""
    raw = {"mllm": RECIPE["mllm"] | {"precision": "fp32"}, "dit": RECIPE["dit"]}
    plain = FineTuneConfig.from_json(RECIPE | {name: own | {"accumulate": accumulate, "rank": rank} for name, own in raw.items()})
    known = finetune(replace(order(place, out), recipe=plain), quiet)
    assert not known or known["phase"] == "done", known


def test_weights_that_are_shared_out_learn_the_same(place, processes):  # noqa: F811
    assert in_two(processes, True, refused, place / "refused") == [0, 0]
    for name, rank in (("adapter", 4), ("all", 0)):
        assert in_two(processes, True, train_both, place, f"two-{name}", 1, rank) == [0, 0]
        train_both(place, f"one-{name}", 2, rank)
        two, one = place / f"two-{name}", place / f"one-{name}"
        for stage, near in (("mllm", 1e-4), ("dit", 0.03)):  # stage 2 computes in bf16
            assert curve(two / "run" / stage / "log.jsonl") == pytest.approx(curve(one / "run" / stage / "log.jsonl"), rel=near)
        files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
        assert len(files) > 1 and files == sorted(file.relative_to(two) for file in two.rglob("*.safetensors"))
        for file in files:
            some, others = load_file(two / file), load_file(one / file)
            assert some.keys() == others.keys()
            far = max(float((some[key].float() - others[key].float()).abs().max()) for key in some)
            assert far < 0.02, (file, far)
        assert Job(two).progress()["phase"] == "done"
