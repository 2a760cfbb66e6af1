"""For all tests."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the servers and commands that tests start, which run side by side


def pytest_configure(config: pytest.Config) -> None:
    """The home folder of whoever runs the tests stays as it was. All workers share another one: the bundled pair is assembled once."""
    if "DUOGEN_HOME" not in os.environ:
        os.environ["DUOGEN_HOME"] = config.borrowed_home = tempfile.mkdtemp(prefix="duogen-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := getattr(config, "borrowed_home", None):
        shutil.rmtree(home, ignore_errors=True)
        del os.environ["DUOGEN_HOME"]


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
