"""What a start imports: lists of modules, since seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import tiny_pair

ROOT = Path(__file__).parents[2]
MODELS = {"torch", "transformers", "diffusers", "peft", "accelerate", "numpy", "gradio", "pandas", "scipy"}
NOT_CALLED = {
    "peft", "bitsandbytes", "xformers", "xformers.ops", "scipy", "scipy.stats", "scipy.optimize", "torch._inductor.compile_fx", "pandas",
    "datasets", "sklearn", "trafilatura", "gradio", "torchvision", "matplotlib",
}  # fmt: skip
READ = """
import json, sys
from duogen.lazy_imports import is_read
print("READ " + json.dumps([name for name in list(sys.modules) if is_read(name)]))
"""


def read_after(code: str, *given: str) -> set[str]:
    """The modules that a fresh interpreter has imported, stand-ins left out, after some code."""
    command = [sys.executable, "-c", code + READ, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("READ ")[2]))


def test_the_engine_imports_no_package_that_it_may_never_call() -> None:
    found = read_after("import duogen.engine")
    assert "torch" in found and not NOT_CALLED & found


def test_a_pair_opens_and_answers_without_them(tmp_path: Path) -> None:
    tiny_pair(tmp_path / "pair")
    code = """
import sys
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.options import ImageOptions, Options, TextOptions
engine = Engine.open(sys.argv[1], "cpu", "fp32")
options = Options(1, TextOptions(max_tokens=8), ImageOptions(steps=1, max_images=1))
*_, last = engine.answer(Conversation().say("user", "a house"), options)
assert type(last).__name__ == "Done", last
"""
    found = read_after(code, str(tmp_path / "pair"))
    assert "diffusers" in found and not NOT_CALLED & found


@pytest.mark.parametrize(
    "command", ["app", "duogen.train.__main__", "duogen.cli.main", "duogen.__main__ ask", "duogen.__main__ data", "duogen.__main__ plan"]
)
def test_help_imports_no_model(command: str) -> None:
    module, *words = command.split()
    code = f"""
import runpy, sys
sys.argv = ["it", *{words!r}, "--help"]
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
"""
    assert not MODELS & read_after(code)


def test_a_plan_of_all_pairs_imports_no_model() -> None:
    code = "from duogen.cli.main import main\nassert main(['plan']) == 0"
    assert not (MODELS - {"numpy"}) & read_after(code)


def test_the_page_imports_no_model_before_it_is_up() -> None:
    found = read_after("import app, ui.page, ui.api.openai, ui.parts.gpu_sharing, ui.api.endpoint, ui.parts.theme")
    assert "gradio" in found and not {"torch", "transformers", "diffusers", "peft", "scipy"} & found


def test_a_stand_in_becomes_the_module_at_its_first_use() -> None:
    code = """
import importlib.util, sys
import duogen
import diffusers.hooks.layerwise_casting as by_name
from diffusers.quantizers.bitsandbytes import utils
from duogen.lazy_imports import LazyModule, LazyName, is_read
assert isinstance(by_name.BaseTunerLayer, LazyName) and not is_read("peft")
assert not isinstance(object(), by_name.BaseTunerLayer) and not is_read("peft"), "nothing is of a class that nobody has read"
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
assert isinstance(LoraConfig, type) and isinstance(BaseTunerLayer, type), "our own code must get the real thing"
model = inject_adapter_in_model(LoraConfig(target_modules=["0"], r=2), torch.nn.Sequential(torch.nn.Linear(4, 4)))
assert isinstance(model[0], by_name.BaseTunerLayer) and issubclass(type(model[0]), by_name.BaseTunerLayer)
assert not isinstance(model, by_name.BaseTunerLayer)
class Layer(by_name.BaseTunerLayer): pass
assert BaseTunerLayer in Layer.__mro__
assert isinstance(sys.modules["scipy"], LazyModule) and importlib.util.find_spec("scipy").origin
import scipy.special
assert is_read("scipy") and scipy.special.expit(0.0) == 0.5
from scipy.optimize import linear_sum_assignment
assert linear_sum_assignment([[1.0]])[0].tolist() == [0]
"""
    assert "peft" in read_after(code)


def test_a_start_shows_no_bars_of_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    code = """
import sys
import app
sys.argv = ["app.py"]
app.serve = lambda given, users: None
app.main()
import gradio
from transformers.utils import logging
assert not logging.is_progress_bar_enabled()
"""
    assert "transformers" in read_after(code)
