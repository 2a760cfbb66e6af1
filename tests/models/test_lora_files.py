"""LoRA files of other tools on diffusers pipelines: read by their headers, put on whole or refused, and never on without effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.models.adapters import AdapterSpec
from duogen.models.lora_files import read_lora
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from tests.support import public
from tests.support.tiny import END, script, tiny_pair

RANK = 4
SIDE = 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    home = tmp_path_factory.mktemp("pairs")
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=SIDE)
    return Engine.open(public.klein(home / "klein"), mllm=public.qwen3_mllm(home / "mllm"), load=load)


@pytest.fixture(autouse=True)
def nothing_on(engine) -> Iterator[None]:
    yield
    engine.set_adapters([])


def lora(seed: int = 0, width: int = 64) -> dict[str, torch.Tensor]:
    """A LoRA of the query, key and value of klein's first block, whose three parts share their first matrix, as fused formats want it."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(RANK, width, generator=generator)
    parts = {"down": down, "up": torch.randn(3 * width, RANK, generator=generator)}
    return parts


def in_format(form: str, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    down, up = parts["down"], parts["up"]
    fused = "double_blocks.0.img_attn.qkv"
    match form:
        case "kohya":
            name = f"lora_unet_{fused.replace('.', '_')}"
            return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(float(RANK))}
        case "ai-toolkit":
            return {f"diffusion_model.{fused}.lora_A.weight": down, f"diffusion_model.{fused}.lora_B.weight": up}
        case "peft":
            return {f"base_model.model.{fused}.lora_A.weight": down, f"base_model.model.{fused}.lora_B.weight": up}
    weights = {}
    for name, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
        layer = f"transformer.transformer_blocks.0.attn.{name}"
        weights |= {f"{layer}.lora_A.weight": down.clone(), f"{layer}.lora_B.weight": rows.contiguous()}
    return weights


def write(file: Path, weights: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(weights, file, metadata=metadata or None)
    return file


def paint(engine: Engine, monkeypatch: pytest.MonkeyPatch, *on: AdapterSpec) -> np.ndarray:
    """What the engine paints with these adapters."""
    engine.set_adapters(on)
    script(monkeypatch, engine.tokens, "<picture>", "a red house", "</picture>", END)
    asked = Conversation().say("user", "Draw")
    done = list(engine.answer(asked, Options(1, TextOptions(), ImageOptions(steps=2, preview_every=0))))[-1]
    (image,) = done.conversation.path()[-1].images()
    return np.asarray(image.picture).astype(int)


@pytest.mark.parametrize("form", ("diffusers", "kohya", "ai-toolkit", "peft"))
def test_every_key_format_paints_the_same_other_picture(engine, monkeypatch, tmp_path, form):
    plain = paint(engine, monkeypatch)
    known = paint(engine, monkeypatch, AdapterSpec(write(tmp_path / "known.safetensors", in_format("diffusers", lora()))))
    with_lora = paint(engine, monkeypatch, AdapterSpec(write(tmp_path / "lora.safetensors", in_format(form, lora()))))
    assert np.abs(with_lora - plain).max() > 5, "it is on with effect"
    assert np.abs(with_lora - known).max() <= 1, "and with that of the same numbers in another format"
    assert (paint(engine, monkeypatch) == plain).all(), "and comes off again"


def test_its_strength_counts_and_several_work_at_once(engine, monkeypatch, tmp_path):
    first, second = (write(tmp_path / f"{seed}.safetensors", in_format("kohya", lora(seed))) for seed in (1, 2))
    plain, whole = paint(engine, monkeypatch), paint(engine, monkeypatch, AdapterSpec(first))
    half = paint(engine, monkeypatch, AdapterSpec(first, 0.5))
    assert (paint(engine, monkeypatch, AdapterSpec(first, 0.0)) == plain).all()
    assert (half != whole).any() and (half != plain).any()
    both = paint(engine, monkeypatch, AdapterSpec(first), AdapterSpec(second))
    assert (both != whole).any() and (both != paint(engine, monkeypatch, AdapterSpec(second))).any()
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(first.read_bytes())
    two_halves = paint(engine, monkeypatch, AdapterSpec(first, 0.5), AdapterSpec(twin, 0.5))
    assert np.abs(two_halves - whole).max() <= 1


def test_a_lora_of_the_pair_itself_goes_on(engine, monkeypatch, tmp_path):
    few_steps = write(tmp_path / "few.safetensors", in_format("diffusers", lora(3)))
    plain = paint(engine, monkeypatch)
    engine.pair.pipe.load_lora_weights(str(tmp_path), weight_name=few_steps.name)
    engine.pair.pipe.enable_lora()  # as in a pipeline that has had no other before
    own = paint(engine, monkeypatch)
    style = AdapterSpec(write(tmp_path / "style.safetensors", in_format("kohya", lora(4))))
    styled = paint(engine, monkeypatch, style)
    assert (own != plain).any() and (styled != own).any()
    assert (paint(engine, monkeypatch) == own).all()
    engine.pair.pipe.delete_adapters(["default_0"])
    assert (paint(engine, monkeypatch, style) != styled).any()


def test_on_a_qwen_pipeline_whose_encoder_talks(tmp_path, monkeypatch):
    for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", SIDE * SIDE)
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=SIDE)
    engine = Engine.open(public.qwen_edit(tmp_path / "pair"), load=load)
    plain, painted = paint(engine, monkeypatch), []
    layers = {"kohya": "lora_unet_transformer_blocks_0_attn_to_q", "ComfyUI": "diffusion_model.transformer_blocks.0.attn.to_q"}
    for form, layer in layers.items():
        down, up = ("lora_down", "lora_up") if form == "kohya" else ("lora_A", "lora_B")
        weights = {f"{layer}.{down}.weight": torch.ones(RANK, 64), f"{layer}.{up}.weight": torch.linspace(-1, 1, 64 * RANK).view(64, RANK)}
        painted.append(paint(engine, monkeypatch, AdapterSpec(write(tmp_path / f"{form}.safetensors", weights))))
    assert (painted[0] != plain).any() and np.abs(painted[0] - painted[1]).max() <= 1


def refuse(engine: Engine, file: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        engine.set_adapters([AdapterSpec(file)])
    assert str(caught.value).count("\n") == 0 and file.name in str(caught.value)
    assert engine.adapters == () and not engine.pair.pipe.get_list_adapters().get("transformer")


@pytest.mark.parametrize("form", ("diffusers", "kohya", "ai-toolkit"))
def test_a_lora_for_another_base_gets_one_sentence(engine, monkeypatch, tmp_path, form):
    plain = paint(engine, monkeypatch)
    other = write(tmp_path / "other.safetensors", in_format(form, lora(width=96)), **{"modelspec.architecture": "flux-1-dev/lora"})
    refuse(engine, other, "was made for flux-1-dev and does not fit this one; open the pair")
    assert (paint(engine, monkeypatch) == plain).all()


def test_a_lora_with_a_layer_that_is_not_here_is_refused_whole(engine, tmp_path):
    weights = in_format("diffusers", lora())
    weights |= {name.replace("transformer_blocks.0", "transformer_blocks.7"): weight.clone() for name, weight in weights.items()}
    refuse(engine, write(tmp_path / "deeper.safetensors", weights), "was made for another painter and does not fit")
    weights = in_format("kohya", lora())
    weights |= {name.replace("img_attn_qkv", "img_mod_lin"): weight.clone() for name, weight in weights.items()}
    refuse(engine, write(tmp_path / "odd.safetensors", weights), "was made for another painter and does not fit")
    clip = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8)}
    clip |= {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 4)}
    refuse(engine, write(tmp_path / "sdxl.safetensors", clip, ss_base_model_version="sdxl_base_v1-0"), "was made for sdxl_base_v1-0")


def test_a_lora_without_effect_is_never_on(engine, tmp_path):
    weights = in_format("kohya", lora())
    weights["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"].zero_()
    refuse(engine, write(tmp_path / "zero.safetensors", weights), "changes nothing: all of its weights are zero")
    weights = in_format("diffusers", lora())
    del weights["transformer.transformer_blocks.0.attn.to_k.lora_B.weight"]
    refuse(engine, write(tmp_path / "half.safetensors", weights), "lacks half of the weights of 1 of its 3 layers")
    refuse(engine, write(tmp_path / "none.safetensors", {}), "holds no weights")


def test_files_that_are_no_lora_are_called_by_their_name(engine, tmp_path):
    model = write(tmp_path / "model.safetensors", {"transformer_blocks.0.attn.to_q.weight": torch.ones(4, 4)})
    refuse(engine, model, "is no LoRA: it holds a model's own weights")
    dora = in_format("diffusers", lora()) | {"transformer.transformer_blocks.0.attn.to_q.dora_scale": torch.ones(64)}
    refuse(engine, write(tmp_path / "dora.safetensors", dora), "is a DoRA, which diffusers cannot put on a painter")
    loha = {"lora_unet_double_blocks_0_img_attn_proj.hada_w1_a": torch.ones(4, 4)}
    refuse(engine, write(tmp_path / "loha.safetensors", loha), "is a LoHa")
    others = {"old.ckpt": "is a pickle, which can run code", "packed.zip": "is a zip; unpack it", "a.txt": "is no LoRA file"}
    for name, words in others.items():
        (tmp_path / name).write_bytes(b"words")
        refuse(engine, tmp_path / name, words)
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")
    refuse(engine, pointer, "git lfs pull")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(write(tmp_path / "whole.safetensors", in_format("kohya", lora())).read_bytes()[:-40])
    refuse(engine, cut, "cut short or damaged")


def test_an_adapter_of_fine_tuning_is_refused_by_its_base(engine, tmp_path):
    folder = tmp_path / "mine"
    (folder / "transformer").mkdir(parents=True)
    (folder / "adapter.json").write_text('{"base": "duogen-sketch"}')
    write(folder / "transformer" / "adapter_model.safetensors", in_format("diffusers", lora()))
    refuse(engine, folder, "was made for duogen-sketch; this pair's painter takes LoRA files only")


def test_a_file_says_whose_it_is_and_what_calls_it(tmp_path):
    tags = {"10_cats": {"a cat of Ann": 12, "on grass": 3}, "5_dogs": {"a cat of Ann": 2, "a dog": 9}}
    kohya = write(
        tmp_path / "kohya.safetensors", in_format("kohya", lora()), ss_tag_frequency=json.dumps(tags), ss_output_name="Ann's cats",
        ss_base_model_version="flux2",
    )  # fmt: skip
    about = read_lora(kohya)
    assert (about.tool, about.title, about.base) == ("kohya", "Ann's cats", "flux2")
    assert about.triggers == ("a cat of Ann", "a dog", "on grass")
    spec = {"trigger_phrase": "in the style of\n Ann", "title": "Ann\x07's ink", "architecture": "flux-2/lora"}
    spec = {f"modelspec.{name}": words for name, words in spec.items()}
    about = read_lora(write(tmp_path / "spec.safetensors", in_format("ai-toolkit", lora()), **spec, ss_tag_frequency=json.dumps(tags)))
    assert (about.tool, about.base, about.triggers) == ("ComfyUI or ai-toolkit", "flux-2", ("in the style of Ann",))
    assert about.title == "Ann's ink"
    for damaged in ("[[[[", "[1, 2]", '{"a": 5}', "[" * 100_000):
        file = write(tmp_path / "odd.safetensors", in_format("diffusers", lora()), ss_tag_frequency=damaged)
        assert (read_lora(file).tool, read_lora(file).triggers, read_lora(file).title) == ("diffusers", (), "odd")


def test_a_pair_that_paints_frame_by_frame_names_the_tool(tmp_path):
    engine = Engine.open(tiny_pair(tmp_path / "pair"), load=LoadOptions(device="cpu", precision="fp32", painter_precision="fp32"))
    file = write(tmp_path / "style.safetensors", in_format("kohya", lora()))
    with pytest.raises(ValueError, match=r"style\.safetensors is a LoRA of kohya; this pair takes only adapters that DuoGen's"):
        engine.set_adapters([AdapterSpec(file)])


def test_a_path_names_a_file_or_a_folder_with_one(tmp_path):
    file = write(tmp_path / "style.safetensors", in_format("kohya", lora()))
    assert AdapterSpec.parse(f"{file}:0.8") == AdapterSpec(file, 0.8) and AdapterSpec.parse(str(tmp_path)) == AdapterSpec(file)
    write(tmp_path / "other.safetensors", load_file(file))
    with pytest.raises(ValueError, match="holds 2 LoRA files; name one of them, such as other.safetensors"):
        AdapterSpec.parse(str(tmp_path))
