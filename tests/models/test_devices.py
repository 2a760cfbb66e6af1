"""Two GPUs, the MLLM on the first and the painter on the second: every tensor that passes between them is moved, and nothing else is."""

from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done
from duogen.heaps import return_memory
from duogen.models import pipeline
from duogen.models.placement import DeviceSwapper, RemoteModel, swap_devices
from duogen.options import LoadOptions
from duogen.painters.pipeline_run import PipelineRun
from tests.models.test_public import SAID, SIDE, options
from tests.support import public
from tests.support.devices import TwoGPUs
from tests.support.tiny import BOV, END, script, tiny_pair

TAUGHT = ("Here", BOV, "more", BOV)
PAIRS = {"block-causal": (tiny_pair, TAUGHT), "cosmos": (public.cosmos, SAID[1:4]), "qwen": (public.qwen_edit, SAID[1:4])}
MIXED = [
    lambda one, two: one + two,
    lambda one, two: torch.cat([one, two]),
    lambda one, two: torch.where(one > 0, one, two),
    lambda one, two: torch.nn.functional.linear(one, two[None].repeat(4, 1)),
    lambda one, two: one @ two,
    lambda one, two: one.masked_scatter(two > 0, one),
]
FINE = [
    lambda one, two: one + torch.tensor(2.0),
    lambda one, two: one.copy_(two),
    lambda one, two: two.to(one.device) * one,
    lambda one, two: two.new_zeros(4) + two.to(two),
    lambda one, two: one[torch.tensor([0, 1])],
]


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch, tmp_path) -> None:
    """torch says that it has two, and what opens the MLLM puts it there as transformers would."""
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # the pipeline scales source pictures to a megapixel
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", SIDE * SIDE)
    for name, value in (("is_available", True), ("device_count", 2), ("mem_get_info", (8 * 2**30, 8 * 2**30)), ("empty_cache", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *given, value=value: value)
    plain = pipeline.open_mllm
    monkeypatch.setattr(pipeline, "open_mllm", lambda folder, device, precision: plain(folder, "cpu", precision).to(device))


@pytest.mark.parametrize("act", MIXED + FINE)
def test_the_double_refuses_what_torch_refuses(act) -> None:
    """`meta` and `cpu` are the two devices that every torch has."""

    def works(device: str, other: str) -> bool:
        try:
            act(torch.ones(4, device=device), torch.ones(4, device=other))
        except RuntimeError as error:
            assert "device" in str(error)
            return False
        return True

    with TwoGPUs():
        assert works("cuda:0", "cuda:1") == works("meta", "cpu") == (act in FINE)


def answer_on(folder: Path, device: str, said: tuple, monkeypatch, **load: str) -> tuple[Engine, list[np.ndarray]]:
    whole = LoadOptions(device=device, precision="fp32", painter_precision="fp32", attention="native", picture_side=SIDE, **load)
    engine = Engine.open(folder, load=whole)
    script(monkeypatch, engine.tokens, *said, END)
    *_, done = engine.answer(Conversation().say("user", "Draw", PILImage.new("RGB", (SIDE, SIDE), "red")), options(guidance=2.0))
    assert isinstance(done, Done), done
    return engine, [np.asarray(image.picture).astype(int) for image in done.conversation.path()[-1].images()]


@pytest.mark.parametrize(("name", "offload"), [*((name, "none") for name in PAIRS), ("qwen", "model")])
def test_a_pair_on_two_gpus_paints_what_it_paints_on_one(name, offload, tmp_path, monkeypatch) -> None:
    write, said = PAIRS[name]
    folder = write(tmp_path / name)
    _, wanted = answer_on(folder, "cpu", said, monkeypatch)
    gpus, work = TwoGPUs(), PipelineRun._work

    def work_there(self: PipelineRun) -> None:  # modes are of one thread
        with gpus:
            work(self)

    monkeypatch.setattr(PipelineRun, "_work", work_there)
    with gpus:
        engine, made = answer_on(folder, "cuda:0,cuda:1", said, monkeypatch, offload=offload)
        assert (str(engine.mllm.model.device), engine.device, engine.devices) == ("cuda:0", "cuda:1", ["cuda:0", "cuda:1"])
    planned = engine.plan.line() if engine.plan else ""
    assert "The language model needs" in planned and "The painter needs" in planned
    assert made and max(np.abs(one - other).max() for one, other in zip(made, wanted, strict=True)) == 0
    assert ("cuda:0", "cuda:1") in gpus.moves
    assert (("cuda:1", "cuda:0") in gpus.moves) == (name == "qwen"), "to the text encoder that is the MLLM"


def test_a_film_reads_words_from_the_other_gpu(tmp_path, monkeypatch) -> None:
    from duogen.painters.base import Frames, PaintRequest
    from duogen.painters.cosmos import CosmosPainter

    given: list[dict] = []

    class Run(SimpleNamespace):
        def __init__(self, pipe, named, *_) -> None:
            given.append(named)
            super().__init__(steps=lambda: iter(()), stop=lambda: None, picture=PILImage.new("RGB", (SIDE, SIDE)))

    monkeypatch.setattr("duogen.painters.cosmos.PipelineRun", Run)
    monkeypatch.setattr("duogen.painters.cosmos.importlib.util.find_spec", lambda name: True)
    folder = public.cosmos(tmp_path / "cosmos")
    with TwoGPUs():
        load = LoadOptions(device="cuda:0,cuda:1", precision="fp32", attention="native", picture_side=SIDE)
        engine = Engine.open(folder, load=load)
        assert isinstance(engine.painter, CosmosPainter)
        words, negative = engine.mllm.read_prompt("a house")[0], engine.mllm.read_prompt("blur")[0]
        frames = Frames(past=[engine.painter.encode(PILImage.new("RGB", (64, 32)))])
        request = PaintRequest(words, 0, options(world="on", guidance=3.0).image, 1, None, (64, 32), negative)
        assert [step.step for step in engine.painter.paint(frames, request)] == [2]
        found = {str(given[0][name].device) for name in ("prompt_embeds", "negative_prompt_embeds")}
        assert str(words.device) == "cuda:0" and found == {"cuda:1"}


def test_memory_that_runs_out_on_the_painters_gpu_leaves_the_mllm_where_it_is() -> None:
    moves: list = []
    mllm = SimpleNamespace(device=torch.device("cuda:0"), to=moves.append)
    pipe = SimpleNamespace(enable_model_cpu_offload=lambda device: moves.append(("pipe", device)))
    pair = SimpleNamespace(text_encoder=mllm, pipe=pipe, swapper=DeviceSwapper(mllm, [], "cuda:1", None, "cuda:0"))
    assert swap_devices(pair) and moves == [("pipe", "cuda:1")] and pair.swapper.mllm_device == "cuda:0"
    pair.swapper.use_mllm()
    assert moves == [("pipe", "cuda:1")]
    frames = SimpleNamespace(text_encoder=mllm, swapper=DeviceSwapper(mllm, [mllm], "cuda:1", None, "cuda:0"))
    assert not swap_devices(frames) and len(moves) == 1


def test_a_remote_model_is_no_module_and_carries_what_comes_and_goes(monkeypatch) -> None:
    with TwoGPUs():
        model, words = torch.nn.Linear(2, 2).requires_grad_(False).to("cuda:0"), torch.ones(2, device="cuda:1")
        monkeypatch.setattr(torch.nn.Linear, "device", torch.device("cuda:0"), raising=False)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            model(words)
        remote = RemoteModel(model, "cuda:1")
        assert str(remote(words).device) == str(remote(input=words).device) == "cuda:1"
    assert not isinstance(remote, torch.nn.Module) and str(remote.device) == "cuda:1" and remote.in_features == 2
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = remote.nothing


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
def test_the_system_gets_back_what_an_answer_freed() -> None:
    process = psutil.Process()
    with return_memory():
        blocks = [b"x" * 100_000 for _ in range(2000)]  # 200 MB
        last = b"y" * 100_000  # the heap cannot shrink below it
        full = process.memory_info().rss
        del blocks
        kept = process.memory_info().rss
    assert full - process.memory_info().rss > 150e6, f"{full - kept:,} bytes before"
    assert last
