"""Which number format multiplies fastest on this machine, by a probe of a small model's own products.

A CPU with bf16 instructions wants bf16 everywhere. One without (AVX2 alone: most laptops) is bound by memory at one row, where bf16
halves the bytes, and emulates bf16 slowly from a few rows on: there reading, training and caching want float32.
"""

from __future__ import annotations

import functools
import json
import os
import time

import torch
import torch.nn.functional as F

from duogen.files import read_record, write_beside
from duogen.paths import data_home

FILE = "precision.json"
WIDTH, INNER, MANY = 576, 1536, 128  # a layer of the bundled MLLM, and the rows of a prompt
REPEATS = 8
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def many_rows_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The number format for products of many rows: reading a prompt, training, caching hidden states.

    bf16 on a GPU. On a CPU, whichever a probe finds faster; the answer is kept in `DUOGEN_HOME`, so it stays the same from run to run.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if _probe_machine() == "bf16" else torch.float32


def resolve_precision(requested: str, device: str | torch.device = "cpu") -> str:
    """The precision that a request stands for: "auto" is the format for products of many rows on `device`, all else itself."""
    return NAMES[many_rows_dtype(device)] if requested == "auto" else requested


def best_precision(device: str | torch.device = "cpu") -> str:
    """The MLLM's precision where nobody asked for one: "bf16", or "mixed" where reading many rows wants float32."""
    return "bf16" if many_rows_dtype(device) == torch.bfloat16 else "mixed"


def token_dtype(precision: str) -> torch.dtype | None:
    """The number format of an MLLM's weights for single tokens, which memory bounds; `None` for the model's own."""
    return torch.bfloat16 if precision == "mixed" else None


@functools.cache
def _probe_machine() -> str:
    """The faster of "bf16" and "fp32", measured once for each kind of CPU."""
    kind = _cpu_kind()
    known = read_record(data_home() / FILE)
    if known.get(kind) not in NAMES.values():
        known[kind] = NAMES[min(NAMES, key=_product_seconds)]
        try:
            data_home().mkdir(parents=True, exist_ok=True)
            write_beside(data_home() / FILE, json.dumps(known).encode())
        except OSError:  # a full or read-only disk: the next start measures again
            pass
    return known[kind]


def _cpu_kind() -> str:
    """What decides the speed of products: the instructions that PyTorch and oneDNN use here."""
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return f"{torch.backends.cpu.get_cpu_capability()} {native} {os.environ.get('ONEDNN_MAX_CPU_ISA', '')} torch {torch.__version__}"


def _product_seconds(dtype: torch.dtype) -> float:
    """The least time of one product of many rows, [128, 576] x [576, 1536]; the first one warms up."""
    rows, weight = torch.ones(MANY, WIDTH, dtype=dtype), torch.ones(INNER, WIDTH, dtype=dtype)
    seconds = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        F.linear(rows, weight)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
