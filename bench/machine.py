"""What the figures of a benchmark were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def host() -> dict[str, Any]:
    """The machine itself. `load` is how many programs want a core at this moment: ask before the benchmark makes its own."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
