"""The catalogue and the memory plan: numbers against parameters counted from the public configurations, and sense for every card."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from duogen.cli.main import main
from duogen.hub.catalogue import FILE, Part, count_parts, entries, find, list_missing, refuse_unsafe
from duogen.hub.memory_plan import GB, GPU_SIZES, Machine, frame_cache, frame_tokens, painter_work, plan, weights
from duogen.models.pipeline import About, open_pair
from duogen.models.placement import KEPT_WHOLE, open_painter, stored_quantisation
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


@pytest.mark.parametrize(
    ("kind", "config", "width", "layers"),
    [
        ("ZImageTransformer2DModel", {"dim": 3840, "n_layers": 30, "n_heads": 30}, 3840, 30),
        ("Lumina2Transformer2DModel", {"hidden_size": 2304, "num_layers": 26}, 2304, 26),
        ("T5EncoderModel", {"d_model": 4096, "d_kv": 64, "num_heads": 64, "num_layers": 24}, 4096, 24),
        ("UNet2DConditionModel", {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20]}, 320, 3),
        ("Flux", {"num_attention_heads": 24, "attention_head_dim": 128, "num_layers": 19, "num_single_layers": 38}, 3072, 57),
        ("GPT2", {"n_embd": 768, "n_heads": 12, "depth": 12}, 768, 12),
    ],
)  # fmt: skip
def test_width_and_layers_by_whatever_name(kind, config, width, layers) -> None:
    part = Part.of({"_class_name": kind} | config, 1000, 900)
    assert (part.width, part.layers) == (width, layers)


def test_a_configuration_that_does_not_say_is_counted_from_its_weights(tmp_path) -> None:
    weights = {f"trunk.blocks.{index}.mlp.weight": torch.zeros(24, 48) for index in range(5)} | {"head.weight": torch.zeros(24, 24)}
    (tmp_path / "transformer").mkdir()
    save_file(weights, tmp_path / "transformer" / "model.safetensors")
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "NobodyKnows"}')
    part = count_parts(tmp_path)["transformer"]
    assert (part.width, part.layers) == (24, 5)


def test_nothing_is_planned_with_zeros() -> None:
    pair = entries()["flux2-klein-4b"]
    parts = pair.parts | {"transformer": replace(pair.parts["transformer"], layers=0)}
    with pytest.raises(ValueError, match="this pair's transformer does not say how wide and deep it is"):
        plan(parts, pair.about, Machine(24 * GB, 64 * GB))


def quantised(folder: Path, method: str, **about) -> Path:
    folder.mkdir(parents=True)
    save_file({"blocks.0.weight": torch.zeros(512, 1, dtype=torch.uint8)}, folder / "model.safetensors")
    said = {"quantization_config": {"quant_method": method} | about, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_what_came_quantised_is_planned_by_its_true_size(tmp_path) -> None:
    quantised(tmp_path / "transformer", "bitsandbytes", load_in_4bit=True)
    part = count_parts(tmp_path)["transformer"]
    size = (tmp_path / "transformer" / "model.safetensors").stat().st_size
    assert part.bytes == size and {weights(part, precision) for precision in ("bf16", "nf4", "fp32")} == {size}


OPENED_BY = [("awq", "gptqmodel"), ("gptq", "gptqmodel"), ("torchao", "torchao"), ("quanto", "optimum-quanto")]


@pytest.mark.parametrize(("method", "package"), OPENED_BY)
def test_quantised_weights_name_the_package_that_opens_them(method, package, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("duogen.models.placement._is_installed", lambda module: False)
    quantised(tmp_path / "transformer", method)
    with pytest.raises(ValueError, match=f"quantised with {method}, which the package {package} opens: pip install {package}"):
        count_parts(tmp_path)


def test_weights_saved_in_nf4_open_as_they_are(tmp_path) -> None:
    from diffusers import Flux2Transformer2DModel

    from tests.support import public

    folder = public.klein(tmp_path / "klein")
    saved = open_painter(folder / "transformer", Flux2Transformer2DModel, "nf4", "cpu")
    saved.save_pretrained(tmp_path / "nf4")
    again = open_painter(tmp_path / "nf4", Flux2Transformer2DModel, "auto", "cpu")
    kinds = [type(module).__name__ for module in again.modules()]
    assert "Linear4bit" in kinds
    assert stored_quantisation(tmp_path / "nf4") == "bitsandbytes" and not stored_quantisation(folder / "transformer")


def test_the_plan_counts_what_a_long_conversation_holds() -> None:
    """Hand sums of what is added, for three ways to see earlier pictures."""
    cosmos, klein = entries()["cosmos-predict2.5-2b"], entries()["flux2-klein-4b"]
    painter, size = cosmos.parts["transformer"], (1280, 704)
    frame = 80 * 44  # tokens of 16 x 16 pixels
    assert painter.width == 16 * 128 and frame_tokens(painter, size) == frame
    untuned, tuned = cosmos.about, cosmos.about | {"tuned": True, "frames": True}
    assert painter_work(painter, tuned, size) - painter_work(painter, untuned, size) == pytest.approx(2 * 7 * frame * 2048 * 2 * 20)
    cached = tuned | {"frame_attention": "block_causal"}
    assert painter_work(painter, cached, size) == painter_work(painter, untuned, size)
    assert frame_cache(painter, cached, size) == 7 * frame * 28 * 2 * 2048 * 2 and frame_cache(painter, tuned, size) == 0
    sources = {most: painter_work(klein.parts["transformer"], klein.about | {"most_sources": most}, (1024, 1024)) for most in (0, 4)}
    assert sources[4] - sources[0] == pytest.approx(4 * 64 * 64 * 3072 * 2 * 20)


def test_the_plan_counts_the_bus_the_guardrail_and_a_lora() -> None:
    pair = entries()["qwen-image-edit-2511"]
    small = plan(pair.parts, pair.about, Machine.with_gpu(8, 64 * GB))
    assert small.load.offload == "group" and small.moved == 2 * 40 * weights(pair.parts["transformer"], "bf16")
    assert "That moves 3044.4 GB to the GPU for each picture." in small.line() and small.host > 40 * GB
    wish = LoadOptions(precision="nf4", painter_precision="nf4", offload="none", tiling="off")
    whole = plan(pair.parts, pair.about, Machine(80 * GB, 64 * GB), wish)
    more = pair.parts | {"lora": Part(10**8, 0, 1, 1), "guardrail": Part(2 * 10**8, 0, 1, 1)}
    assert plan(more, pair.about, Machine(80 * GB, 64 * GB), wish).gpu - whole.gpu == pytest.approx(2 * 3 * 10**8)


def test_an_apple_gpu_shares_the_memory_of_its_host_and_does_not_quantise() -> None:
    pair = entries()["flux2-klein-4b"]
    chosen = plan(pair.parts, pair.about, Machine(40 * GB, 48 * GB, 8, unified=True, quantises=False))
    assert chosen.fits and (chosen.load.precision, chosen.load.painter_precision) == ("bf16", "bf16") and chosen.gpu > 20 * GB
    assert not plan(pair.parts, pair.about, Machine(40 * GB, 12 * GB, 8, unified=True, quantises=False)).fits


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
        (["plan", "--pair", "cosmos-predict2.5-14b", "--vram", "8", "--ram", "64"], "layer by layer"),
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
