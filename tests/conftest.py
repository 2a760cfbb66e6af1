"""For all tests."""

from __future__ import annotations

import os
import signal

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the servers and commands that tests start, which run side by side


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' models are so small that more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def as_before():
    """For tests that train: the loop takes over the signals that stop it, and accelerate keeps its state for the whole process."""
    from accelerate.state import AcceleratorState  # only they need it

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
    AcceleratorState._reset_state(reset_partial_state=True)
