"""For all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' models are so small that more threads only wait for each other."""
    torch.set_num_threads(1)
