"""What the figures of a benchmark were measured on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from duogen.files import write_beside


def host() -> dict[str, Any]:
    """The machine itself. `load` is how many programs want a core at this moment: ask before the benchmark makes its own."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {
        "cpu": cpu,
        "cpu_kind": cpu_kind(),
        "cores": os.cpu_count(),
        "load": load,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def report(figures: dict[str, Any], machine: dict[str, Any], out: Path) -> None:
    """Print figures, and write them to a file with the machine that they are of."""
    print(json.dumps(figures, indent=1))
    write_beside(out, (json.dumps({"machine": machine, **figures}, indent=1) + "\n").encode())


def cpu_kind() -> str:
    """The instructions that PyTorch uses, and whether bf16 pays: "AVX512 with bf16" or "AVX2"; of an emulated CPU, what it emulates."""
    import torch  # seconds, and most of the memory of a benchmark that computes nothing with it

    from duogen import precision

    bf16 = precision.many_rows_dtype() == torch.bfloat16
    return torch.backends.cpu.get_cpu_capability() + (" with bf16" if bf16 else "")
