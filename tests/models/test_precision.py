"""The number format follows the machine: it is measured once for each kind of CPU, and kept."""

from __future__ import annotations

import json

import pytest
import torch

from duogen import precision


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    precision._probe_machine.cache_clear()
    yield tmp_path
    precision._probe_machine.cache_clear()


def slow_at(slow):
    return lambda dtype: 2.0 if dtype == slow else 1.0


@pytest.mark.parametrize("slow, fast", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_faster_format_is_taken_and_kept(home, monkeypatch, slow, fast):
    monkeypatch.setattr(precision, "_product_seconds", slow_at(slow))
    assert precision.many_rows_dtype() == fast
    assert list(json.loads((home / precision.FILE).read_text()).values()) == [precision.NAMES[fast]]
    monkeypatch.setattr(precision, "_product_seconds", slow_at(fast))  # a busy moment later on
    precision._probe_machine.cache_clear()
    assert precision.many_rows_dtype() == fast


@pytest.mark.parametrize("damage", ["", "[]", '{"kind": 3}', "{"])
def test_a_damaged_answer_is_measured_anew(home, monkeypatch, damage):
    (home / precision.FILE).write_text(damage)
    monkeypatch.setattr(precision, "_product_seconds", slow_at(torch.bfloat16))
    assert precision.many_rows_dtype() == torch.float32
    assert json.loads((home / precision.FILE).read_text())[precision._cpu_kind()] == "fp32"


def test_a_gpu_is_not_probed(home):
    assert precision.many_rows_dtype("cuda") == torch.bfloat16
    assert not (home / precision.FILE).exists()


def test_another_instruction_set_is_another_machine(home, monkeypatch):
    before = precision._cpu_kind()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert precision._cpu_kind() != before
