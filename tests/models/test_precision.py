"""The number format follows the machine: it is measured once for each kind of CPU, and kept."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.utils import torch_utils
from PIL import Image as PILImage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from duogen import precision
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import ImageDone
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.painters.pipeline_run import PipelineRun
from tests.support import public
from tests.support.tiny import tiny_pair


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


class Refuses(TorchDispatchMode):
    """A device without some number formats, as Apple's is without float64 and older ones are without bf16."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.dtypes = dtypes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            # A number has no place on a device, and what comes from numpy is on the CPU.
            if isinstance(each, torch.Tensor) and each.dtype in self.dtypes and each.ndim and "lift_fresh" not in str(func):
                raise TypeError(f"{func} makes {each.dtype}, which this device does not support")
        return out


def test_the_device_refuses() -> None:
    with Refuses(torch.float64), pytest.raises(TypeError, match="float64"):
        torch.zeros(2).double()


@pytest.mark.parametrize("name", ["own", "cosmos", "klein", "qwen_edit"])
def test_a_reply_needs_no_format_that_apples_gpu_lacks(name, tmp_path, monkeypatch) -> None:
    lacks = Refuses(torch.float64, torch.bfloat16)
    monkeypatch.setitem(torch_utils._DTYPE_UNSUPPORTED_DEVICES, torch.float64, {"cpu"})  # where diffusers takes float32 instead
    work = PipelineRun._work

    def work_there(self: PipelineRun) -> None:  # a mode belongs to its thread
        with Refuses(*lacks.dtypes):
            work(self)

    monkeypatch.setattr(PipelineRun, "_work", work_there)
    folder = tiny_pair(tmp_path / name) if name == "own" else getattr(public, name)(tmp_path / name)
    mllm = public.qwen2_mllm(tmp_path / "mllm") if name == "klein" else None
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=0 if name == "own" else 64)
    engine = Engine.open(folder, mllm=mllm, load=load)
    asked = Conversation().say("user", "Draw.", PILImage.new("RGB", (64, 64), "red")).say("assistant", "Step 1.\n")
    with lacks:
        *_, done = engine.stream_image(asked, Options(1, TextOptions(), ImageOptions(steps=2, preview_every=1)))
    assert isinstance(done, ImageDone), done
