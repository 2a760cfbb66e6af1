"""The memory plan against sums made by hand from the public configurations, and on machines with two GPUs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from duogen.cli.main import main
from duogen.hub.catalogue import entries
from duogen.hub.memory_plan import GB, Machine, Plan, plan
from duogen.models.pipeline import pick_device, pick_devices
from duogen.options import LoadOptions, split_device
from ui.parts.i18n import TABLES, translate_into

NF4 = 4 / 8 + 32 / 8 / 64  # bytes: 4 bits, and a scale of 32 bits for 64 weights
TENTH = GB / 10
# Weights of linear layers, by hand; all weights are as the classes of the libraries count them (tests/models/test_catalogue.py).
QWEN25_VL = 28 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944)  # queries and output, keys and values of 4 heads, three of the MLP
QWEN25_VL_ALL = 8_292_166_656
QWEN3_4B = 36 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)
QWEN3_VL_ALL, QWEN3_ALL = 4_437_815_808, 4_022_468_096
KLEIN, KLEIN_ALL = 3_822_059_520, 3_875_544_576
COSMOS_14B_ALL = 14_368_047_104
QWEN_IMAGE, QWEN_IMAGE_ALL = 20_384_317_440, 20_430_401_088
FLUX2_VAE, WAN_VAE = 84_046_115, 126_892_531


def nf4(linear: int, all_weights: int) -> float:
    return linear * NF4 + (all_weights - linear) * 2


def sum_of_klein_in_24_gb() -> float:
    """All parts at once, the painter whole: the most is needed while the picture is painted from four sources."""
    weights = nf4(QWEN3_4B, QWEN3_VL_ALL) + nf4(QWEN3_4B, QWEN3_ALL) + KLEIN_ALL * 2 + FLUX2_VAE * 2
    read = 36 * 2 * (8 * 128) * 6144 * 2  # layers, keys and values, channels, tokens, bytes
    tokens = (1024 // 16) * (1024 // 16) * (1 + 4) + 512
    paint = tokens * (24 * 128) * 2 * 20 + 2 * TENTH  # 20 maps of 16 bits
    decode = 1024 * 1024 * 128 * 2 * 8 + TENTH  # 8 maps of the first width
    assert decode < paint
    return weights + read + paint


def sum_of_qwen_edit_in_16_gb() -> float:
    """The parts take turns, the painter in 4 bits: beside it lies what the MLLM has read."""
    read = 28 * 2 * (4 * 128) * 6144 * 2
    tokens = 64 * 64 * (1 + 3) + 512
    paint = nf4(QWEN_IMAGE, QWEN_IMAGE_ALL) + tokens * 3072 * 2 * 20 + 2 * TENTH
    talk = nf4(QWEN25_VL, QWEN25_VL_ALL) + 1024 * 3584 * 2 * 24 + TENTH
    assert talk < paint
    return read + paint


def sum_of_cosmos_14b_in_8_gb() -> float:
    """Layer by layer: three of 36 blocks lie there while a picture is painted, so the MLLM needs the most."""
    read = 28 * 2 * (4 * 128) * 6144 * 2
    talk = nf4(QWEN25_VL, QWEN25_VL_ALL) + 1024 * 3584 * 2 * 24 + TENTH
    tokens = (1280 // 16) * (704 // 16) + 512
    paint = COSMOS_14B_ALL * 2 / 36 * 3 + 2 * tokens * (40 * 128) * 2 * 20 + 2 * TENTH  # two branches of guidance at once
    decode = WAN_VAE * 2 + 1280 * 704 * 96 * 2 * 8 + TENTH
    assert max(paint, decode) < talk
    return read + talk


@pytest.mark.parametrize(
    ("id", "gigabytes", "load", "by_hand", "said"),
    [
        ("flux2-klein-4b", 24, ("nf4", "bf16", "none", "off"), sum_of_klein_in_24_gb, "16.9 GB on the GPU."),
        ("qwen-image-edit-2511", 16, ("nf4", "nf4", "model", "off"), sum_of_qwen_edit_in_16_gb, "13.2 GB on the GPU and"),
        ("cosmos-predict2.5-14b", 8, ("nf4", "bf16", "group", "off"), sum_of_cosmos_14b_in_8_gb, "7.3 GB on the GPU and"),
    ],
)
def test_the_table_is_what_the_sums_by_hand_are(id, gigabytes, load, by_hand, said) -> None:
    pair = entries()[id]
    chosen = plan(pair.parts, pair.about, Machine.with_gpu(gigabytes, 64 * GB))
    assert (chosen.load.precision, chosen.load.painter_precision, chosen.load.offload, chosen.load.tiling) == load
    assert chosen.gpu == pytest.approx(by_hand(), rel=1e-9) and f"It needs {said}" in chosen.line()


def test_a_tuned_pairs_hidden_states_are_counted() -> None:
    """Cosmos after stage 2 reads 28 layers of 3584 channels in 32 bits for every token."""
    pair, machine = entries()["cosmos-predict2.5-2b"], Machine(80 * GB, 64 * GB)
    tuned = pair.about | {"tuned": True, "frame_attention": "block_causal"}
    frames = 7 * (80 * 44) * 28 * 2 * 2048 * 2  # keys and values of the earlier pictures
    assert plan(pair.parts, tuned, machine).gpu - plan(pair.parts, pair.about, machine).gpu == 6144 * 28 * 3584 * 4 + frames


def test_two_gpus_are_planned_one_by_one() -> None:
    pair, read = entries()["flux2-klein-4b"], 36 * 2 * (8 * 128) * 6144 * 2
    chosen = plan(pair.parts, pair.about, Machine.with_gpu(24, 64 * GB, mllm_gigabytes=12))
    assert (chosen.load.precision, chosen.load.painter_precision, chosen.load.offload) == ("bf16", "bf16", "none")
    assert chosen.mllm_gpu == pytest.approx(QWEN3_VL_ALL * 2 + read + 640 * 640 / 14**2 * 1280 * 2 * 24 + TENTH)  # it looks at a picture
    tokens = 64 * 64 * (1 + 4) + 512
    assert chosen.gpu == pytest.approx((QWEN3_ALL + KLEIN_ALL + FLUX2_VAE) * 2 + tokens * 3072 * 2 * 20 + 2 * TENTH)
    assert "The language model needs 9.3 GB on its GPU. The painter needs 17.5 GB on its GPU. Attention" in chosen.line()
    small = plan(pair.parts, pair.about, Machine.with_gpu(8, 64 * GB, mllm_gigabytes=8))
    assert small.load.offload == "model" and f"It needs {small.host / GB:.1f} GB of memory." in small.line()
    least = plan(pair.parts, pair.about, Machine.with_gpu(2, 64 * GB, mllm_gigabytes=4))
    assert not least.fits and least.line() == (
        f"It does not fit: it would need {(least.mllm_gpu or 0) / GB:.1f} GB on the language model's GPU, where 3.4 GB are free"
        f" and {least.gpu / GB:.1f} GB on the painter's GPU, where 1.4 GB are free."
    )


def test_an_mllm_on_the_cpu_beside_a_painter_on_a_gpu() -> None:
    pair = entries()["qwen-image-edit-2511"]
    machine = replace(Machine.with_gpu(24, 64 * GB, mllm_gigabytes=0), precision="mixed")
    chosen = plan(pair.parts, pair.about, machine)
    assert (chosen.load.precision, chosen.mllm_gpu) == ("mixed", 0) and chosen.host > QWEN25_VL_ALL * 6
    assert "language model needs" not in chosen.line() and f"It needs {chosen.host / GB:.1f} GB of memory." in chosen.line()


def test_a_painter_of_frames_has_nobody_to_take_turns_with_on_its_own_gpu() -> None:
    pair, machine = entries()["cosmos-predict2.5-14b"], Machine.with_gpu(12, 64 * GB, mllm_gigabytes=12)
    chosen = plan(pair.parts, pair.about, machine, LoadOptions(offload="model", painter_precision="bf16"))
    assert chosen.load.offload == "group" and chosen.gpu > COSMOS_14B_ALL * 2 / 36 * 3 + WAN_VAE * 2


def test_a_painter_in_4_bits_carries_a_warning_until_its_pictures_were_compared() -> None:
    pair, machine = entries()["qwen-image-edit-2511"], Machine.with_gpu(24, 64 * GB)
    warned = plan(pair.parts, pair.about, machine)
    assert warned.load.painter_precision == "nf4" and "Nobody has compared pictures of this painter in 4 bits" in warned.line()
    assert "Nobody" not in plan(pair.parts, pair.about | {"nf4_compared": True}, machine).line()
    assert "Nobody" not in plan(pair.parts, pair.about, machine, LoadOptions(painter_precision="bf16", offload="group")).line()


def test_every_sentence_of_a_plan_is_translated() -> None:
    pair, two = entries()["flux2-klein-4b"], Plan(LoadOptions(), (64, 64), GB, GB, True, mllm_gpu=GB, uncompared=True)
    said = two.sentences() + plan(pair.parts, pair.about, Machine.with_gpu(8, 64 * GB, mllm_gigabytes=8)).sentences()
    said += [
        plan(pair.parts, pair.about, Machine.with_gpu(gpu, 64 * GB, mllm_gigabytes=own)).line() for gpu, own in ((2, 2), (2, 12), (12, 2))
    ]
    assert len({words.split()[0] for words in said}) > 4
    for language in TABLES:
        assert [words for words in said if translate_into(language, words) == words] == []


# The names of devices.


def test_two_devices_are_the_mllms_and_the_painters(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {None: 3 * GB, 0: 3 * GB, 1: 7 * GB}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=None: (free[index], 24 * GB))
    assert pick_devices("cuda:0,cuda:1") == ("cuda:0", "cuda:1") == pick_devices("cuda, cuda:1")
    assert pick_devices("cuda:1") == ("cuda:1", "cuda:1") and pick_devices("cpu,cuda") == ("cpu", "cuda:0")
    assert split_device("cuda,cuda") == ("cuda:0", "cuda:0")
    here = Machine.here("cuda:0,cuda:1")
    assert (here.mllm_gpu, here.gpu) == (3 * GB, 7 * GB) and Machine.here("cuda:1").gpu == 7 * GB
    assert Machine.here("cuda:1,cuda:1").mllm_gpu is None and Machine.here("cpu,cuda:1").mllm_gpu == 0
    for device, message in (
        ("cuda:0,cuda:2", "There is no cuda:2 here; the last one is cuda:1."),
        ("cuda:0,gpu", "There is no device called 'gpu'; use auto, cpu, cuda or mps."),
        ("cuda:0,cuda:1,cpu", "cuda:0,cuda:1,cpu are 3 devices; name one, or two: of the language model and of the painter."),
        ("xpu:0", "There is no xpu:0 here; use --device cpu."),
    ):
        with pytest.raises(ValueError) as raised:
            pick_devices(device)
        assert str(raised.value) == message
    with pytest.raises(ValueError, match="^Two devices are for answers only; name one of cuda:0,cuda:1.$"):
        pick_device("cuda:0,cuda:1")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--vram", "12,24"], 0, "The language model needs 9.3 GB on its GPU. The painter needs 17.5 GB on its GPU."),
        (["--vram", "8", "--device", "cuda:0,cuda:1"], 0, "The language model needs 4.5 GB on its GPU."),
        (["--device", "cpu,cpu,cpu"], 2, "cpu,cpu,cpu are 3 devices; name one, or two"),
        (["--device", "cuda:0,cuda:1"], 2, "There is no CUDA device here; use --device cpu."),
    ],
)
def test_the_command_plans_for_two_gpus(words, status, said, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", "--pair", "flux2-klein-4b", *words, "--ram", "64"][: None if "--vram" in words else -2]) == status
    out, err = capsys.readouterr()
    assert said in out + err


def test_intel_and_apple_gpus_are_asked_for_their_memory(monkeypatch) -> None:
    for kind in (torch.xpu, torch.backends.mps):
        monkeypatch.setattr(kind, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda *_: (11 * GB, 16 * GB))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 20 * GB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 19 * GB)
    intel, apple = Machine.here("xpu"), Machine.here("mps")
    assert (intel.gpu, intel.unified, intel.quantises) == (11 * GB, False, True)
    assert (apple.gpu, apple.unified, apple.quantises) == (1 * GB, True, False)
    pair = entries()["flux2-klein-4b"]
    shared = plan(pair.parts, pair.about, Machine(40 * GB, 12 * GB, 8, unified=True, quantises=False))
    assert re.match(r"It does not fit: it would need [\d.]+ GB of free host memory, where 12.0 GB are", shared.line())
