"""The catalogue and the memory plan: numbers against parameters counted from the public configurations, and sense for every card."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from duogen.cli.main import main
from duogen.hub.catalogue import FILE, Part, entries, find, list_missing, refuse_unsafe
from duogen.hub.memory_plan import GB, GPU_SIZES, Machine, plan, weights
from duogen.models.pipeline import About, open_pair
from duogen.models.placement import KEPT_WHOLE
from duogen.options import LoadOptions
from tests.support.tiny import tiny_pair

RAW = json.loads(FILE.read_text(encoding="utf-8"))
PUBLIC = [name for name in RAW["parts"] if not name.startswith("duogen-sketch")]


@pytest.mark.parametrize("name", PUBLIC)
def test_parameters_are_those_of_the_public_configuration(name: str) -> None:
    import diffusers
    import transformers

    part = RAW["parts"][name]
    kind = getattr({"diffusers": diffusers, "transformers": transformers}[part["library"]], part["class"])
    with torch.device("meta"):
        if part["library"] == "transformers":
            model = kind(kind.config_class(**part["config"]))
            model.tie_weights()
        else:
            model = kind(**part["config"])
    whole = ("visual", "lm_head", *KEPT_WHOLE)
    linear = [each for path, each in model.named_modules() if isinstance(each, torch.nn.Linear) and not set(path.split(".")) & set(whole)]
    assert part["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert part["quantisable"] == (0 if "vae" in name else sum(each.weight.numel() for each in linear))


def test_every_pair_has_a_plan_for_every_card() -> None:
    for pair in entries().values():
        before = None
        for card in GPU_SIZES:
            machine = Machine.with_gpu(card, 64 * GB, 8)
            chosen = plan(pair.parts, pair.about, machine)
            assert chosen.fits and chosen.gpu <= machine.gpu and chosen.host <= machine.host, (pair.id, card)
            assert chosen.line().endswith(".") and "GB on the GPU" in chosen.line()
            rank = ["group", "model", "none"].index(chosen.load.offload), max(chosen.size)
            assert before is None or rank >= before or chosen.load.painter_precision != "nf4", "a larger card is used better"
            before = rank
        assert plan(pair.parts, pair.about, Machine(0, 200 * GB, 8)).seconds > 0


def test_the_target_for_qwen_and_the_small_painter() -> None:
    pair = entries()["cosmos-predict2.5-2b"]
    wish = LoadOptions(precision="nf4", painter_precision="nf4", offload="none")
    assert plan(pair.parts, pair.about, Machine(24 * GB, 64 * GB), wish).gpu <= 11 * GB


def test_wishes_overrule_the_plan() -> None:
    pair = entries()["flux2-klein-4b"]
    wish = LoadOptions(precision="int8", painter_precision="bf16", offload="model", tiling="on", picture_side=512)
    chosen = plan(pair.parts, pair.about, Machine.with_gpu(24, 64 * GB), wish)
    assert chosen.load == wish and chosen.size == (512, 512)
    with pytest.raises(ValueError, match="no offload"):
        LoadOptions(offload="sideways")


def test_what_cannot_fit_is_refused_with_the_number() -> None:
    pair = entries()["qwen-image-edit-2511"]
    small = plan(pair.parts, pair.about, Machine.with_gpu(4, 64 * GB))
    assert not small.fits and "on the GPU, where 3.4 GB are free" in small.line()
    swaps = plan(pair.parts, pair.about, Machine(0, 8 * GB, 2))
    assert not swaps.fits and "would swap" in swaps.line() and "where 8.0 GB are" in swaps.line()


def test_parts_of_a_folder_are_counted_from_its_files(tmp_path) -> None:
    folder = tiny_pair(tmp_path / "pair")
    parts, pair = find(folder).parts(), open_pair(folder, "cpu", "fp32")
    assert set(parts) == {"text_encoder", "transformer", "vae"}
    for name in ("text_encoder", "transformer"):
        assert parts[name].parameters == sum(weight.numel() for weight in getattr(pair, name).parameters())
    talker = pair.text_encoder.config.text_config
    assert (parts["text_encoder"].width, parts["text_encoder"].layers) == (talker.hidden_size, talker.num_hidden_layers)
    assert plan(parts, asdict(About.load(folder)), Machine(0, 8 * GB, 1)).fits


def test_nf4_is_counted_as_bitsandbytes_stores_it() -> None:
    assert weights(Part(3000, 1000), "nf4") == 1000 * 0.5625 + 2000 * 2


def test_missing_files_and_foreign_code(tmp_path) -> None:
    folder = tiny_pair(tmp_path / "pair")
    assert list_missing(folder) == []
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(shards))
    assert list_missing(folder) == [
        "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors", "vae/*.safetensors",
    ]  # fmt: skip
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("{", '{"auto_map": {},', 1))
    with pytest.raises(ValueError, match="never run"):
        refuse_unsafe(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pairs"], "flux2-klein-4b"),
        (["pairs", "cosmos-predict2.5-2b"], "cosmos_guardrail"),
        (["plan", "--pair", "cosmos-predict2.5-14b", "--vram", "12", "--ram", "64"], "layer by layer"),
        (["plan", "--pair", "qwen-image-edit-2511", "--vram", "16", "--ram", "64", "--preset", "lightning-4"], "take turns"),
    ],
)
def test_the_commands(words, said, capsys) -> None:
    assert main(words) == 0
    assert said in capsys.readouterr().out


def test_a_pair_that_is_not_here_is_told_with_the_command(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["plan", "--pair", "someone/something"]) == 2
    assert "python -m duogen pull someone/something" in capsys.readouterr().err
    assert main(["plan", "--pair", "qwen-image-edit-2511", "--vram", "16", "--preset", "lightning-5"]) == 2
    assert "no preset 'lightning-5'; it has lightning-" in capsys.readouterr().err
    assert main(["ask", "hello", "--pair", "flux2-klein-4b"]) == 2
    assert "python -m duogen pull flux2-klein-4b" in capsys.readouterr().err


def test_the_docs_have_the_table_that_plan_prints(capsys) -> None:
    assert main(["plan"]) == 0
    assert capsys.readouterr().out in (FILE.parents[1] / "docs" / "models.md").read_text(encoding="utf-8")


def test_an_estimate_on_a_cpu_is_of_the_right_size() -> None:
    """The bundled pair paints in 0.2 to 0.3 seconds on two cores, without guidance in half of that."""
    pair = entries()["duogen-sketch"]
    assert 0.05 < plan(pair.parts, pair.about, Machine(0, 8 * GB, 2)).seconds < 0.6
