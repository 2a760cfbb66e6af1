"""`bench.gpu` with toy models on the CPU: every cap, kernel and number of earlier pictures, and a table that grows row by row."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bench import gpu
from duogen.hub.catalogue import entries
from duogen.hub.memory_plan import GPU_SIZES

COSMOS, EDIT = "cosmos-predict2.5-2b", "qwen-image-edit-2511"


@pytest.fixture(autouse=True)
def no_card(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "free", lambda: None)  # toys leave nothing that is worth the time


def rows_of(file) -> list[dict]:
    return json.loads(file.read_text())["rows"]


@pytest.mark.slow
def test_a_tiny_run_fills_the_table(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--pairs", COSMOS, "--out", str(out)]) == 0
    rows = rows_of(out)
    assert len(rows) == len(GPU_SIZES) * 3 + 2 * len(gpu.KERNELS) * 3
    failed = [row for row in rows if "failed" in row]
    assert {row["kernel"] for row in failed} <= {"xformers", "flash"}, failed
    whole = next(row for row in rows if row["card"] == 12 and row["earlier"] == 8)
    assert whole["step_seconds"] > 0 and whole["tokens_per_second"] > 0 and whole["planned_gb"] > 8
    assert len(out.with_suffix(".md").read_text().splitlines()) == len(rows) + 4
    capsys.readouterr()
    monkeypatch.setattr(gpu, "opened", None)  # what is there is not measured again
    assert gpu.main(["--tiny", "--pairs", COSMOS, "--out", str(out)]) == 0 and rows_of(out) == rows
    assert gpu.main(["--out", str(out)]) == 2 and "no CUDA device" in capsys.readouterr().err


def test_offloaded_pipelines_and_rows_that_fail(tmp_path, monkeypatch) -> None:
    """Layer by layer and in turn; every row is on the disk before the next is begun."""
    out, plain, seen = tmp_path / "gpu.json", gpu.attempt, []

    def attempt(engine, device, scale, row):
        seen.append(len(rows_of(out)) if out.exists() else 0)
        return plain(engine, device, scale, row)

    monkeypatch.setattr(gpu, "attempt", attempt)
    monkeypatch.setattr(gpu, "GPU_SIZES", (12, 16))
    monkeypatch.setattr(gpu, "KERNELS", ())
    assert gpu.main(["--tiny", "--pairs", EDIT, "--out", str(out)]) == 0
    assert [row["offload"] for row in rows_of(out)] == ["group"] * 3 + ["model"] * 3
    assert not [row for row in rows_of(out) if "failed" in row] and seen == list(range(6))

    def full(*given, **named):
        raise torch.OutOfMemoryError("77 GiB\nmore")

    monkeypatch.setattr(gpu, "opened", full)
    assert gpu.main(["--tiny", "--pairs", "flux2-klein-4b", "--out", str(out)]) == 0
    assert [row["failed"] for row in rows_of(out)[6:]] == ["77 GiB"] * 2


@pytest.mark.parametrize("name", [name for name in gpu.TOYS if "vae" not in name])
def test_the_real_sizes_can_be_built(name, monkeypatch) -> None:
    """But for their weights, which stay without memory."""
    filled: list = []
    monkeypatch.setattr(gpu.Workshop, "_fill", lambda self, module: filled.extend(module.parameters(recurse=False)))
    gpu.Workshop("cpu", "cpu", False).built(name, "bf16")
    raw = gpu.RAW["parts"][name]
    tied = raw["config"].get("tie_word_embeddings", False) or name == "t5-xxl"
    again = raw["config"].get("text_config", raw["config"])
    twice = again["vocab_size"] * again.get("hidden_size", again.get("d_model")) if tied else 0
    assert sum(weight.numel() for weight in filled) in (raw["parameters"], raw["parameters"] + twice)
    assert all(weight.is_meta for weight in filled)


def test_its_pairs_are_those_of_the_catalogue() -> None:
    built = [pair for pair in gpu.RAW["pairs"] if pair["id"].startswith(gpu.BUILT)]
    assert {name for pair in built for name in pair["parts"].values()} == set(gpu.TOYS)
    assert {COSMOS, EDIT} <= {pair["id"] for pair in built} < set(entries())
    with pytest.raises(ValueError, match="bench.gpu cannot build duogen-sketch yet"):
        gpu.opened("duogen-sketch", gpu.LoadOptions(), "cpu", gpu.TINY)


@pytest.mark.parametrize("id", ["z-image-turbo", "flux1-kontext-dev"])
def test_a_painter_in_4_bits_is_compared_with_the_whole_one(id, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "PROMPTS", gpu.PROMPTS[:2])
    made, plain = {}, gpu.paint_all

    def paint_all(id, precision, device, scale):
        made[precision] = plain(id, precision, device, scale)
        return made[precision]

    monkeypatch.setattr(gpu, "paint_all", paint_all)
    assert gpu.main(["--tiny", "--compare", "--pairs", id, "--out", str(tmp_path / "gpu.json")]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {id}")]
    with Image.open(tmp_path / f"nf4-{id}.png") as sheet:
        assert sheet.size == (2 * made["bf16"][0].width, 2 * made["bf16"][0].height)
    assert [row[2:4] for row in rows] == [[" random ", f" {words} "] for words in gpu.PROMPTS]
    for row, one, other in zip(rows, made["bf16"], made["nf4"], strict=True):
        error = ((np.asarray(one, dtype=float) / 255 - np.asarray(other, dtype=float) / 255) ** 2).mean()
        assert error > 0 and float(row[4]) == pytest.approx(error, rel=0.01)
        assert float(row[5]) == pytest.approx(10 * np.log10(1 / error), abs=0.06)
    again = plain(id, "bf16", "cpu", gpu.TINY)
    assert [each.tobytes() for each in again] == [each.tobytes() for each in made["bf16"]], "the same weights and seeds each time"
