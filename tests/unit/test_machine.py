"""Each figure of a benchmark names the kind of CPU that it was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from bench.machine import host
from duogen import precision


@pytest.mark.parametrize("fastest, ending", [(torch.bfloat16, " with bf16"), (torch.float32, "")])
def test_the_kind_of_cpu_is_its_instructions_and_whether_bf16_pays(monkeypatch, fastest, ending):
    monkeypatch.setattr(precision, "many_rows_dtype", lambda: fastest)
    assert host()["cpu_kind"] == torch.backends.cpu.get_cpu_capability() + ending


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is of x86")
def test_an_emulated_cpu_is_named_as_what_it_emulates(tmp_path):
    emulated = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DUOGEN_HOME": str(tmp_path)}
    command = [sys.executable, "-c", "from bench.machine import host; print(host()['cpu_kind'])"]
    said = subprocess.run(command, env=os.environ | emulated, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "AVX2"
