"""Transformers as the single files that other tools keep: each paints what its weights paint from a folder, or is refused in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Thread

import gguf
import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file, save_file

from duogen.cli.main import main
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done
from duogen.hub.catalogue import Found, entries
from duogen.hub.load import plan_pair
from duogen.hub.memory_plan import GB, Machine, weights
from duogen.hub.model_files import find_model_files, find_transformer, keep_models_folder, models_folder
from duogen.models.adapters import AdapterSpec
from duogen.models.placement import open_painter, stored_quantisation
from duogen.models.transformer_files import read_transformer
from duogen.models.transformer_weights import check_fits, open_transformer
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from tests.models.test_catalogue import quantised
from tests.support import public
from tests.support.tiny import END, script

SIDE = 64
Weights = dict[str, torch.Tensor]
Q8_0, Q4_0, BF16 = (gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_0", "BF16"))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("pairs")
    makers = {
        "klein": public.klein,
        "z-image": public.z_image,
        "qwen": public.qwen_image,
        "cosmos": public.cosmos,
        "mllm": public.qwen3_mllm,
    }
    return {name: write(home / name) for name, write in makers.items()}


def other_weights(folder: Path) -> Weights:
    """Weights of the transformer of a pair, but not its own: those of another training."""
    generator = torch.Generator().manual_seed(7)
    own = {name: weight for file in sorted((folder / "transformer").glob("*.safetensors")) for name, weight in load_file(file).items()}
    return {name: weight + 0.05 * torch.randn(weight.shape, generator=generator) for name, weight in own.items()}


def pair_of(folder: Path, state: Weights, home: Path) -> Path:
    """The same pair with these weights, as a folder."""
    shutil.copytree(folder, home)
    for file in (home / "transformer").glob("*.safetensors*"):
        file.unlink()
    save_file({name: weight.contiguous() for name, weight in state.items()}, home / "transformer" / "diffusion_pytorch_model.safetensors")
    return home


def open_engine(folders: dict[str, Path], name: str, folder: Path | None = None, **load) -> Engine:
    mllm = folders["mllm"] if name in ("klein", "z-image") else None
    options = LoadOptions(device="cpu", precision="fp32", picture_side=SIDE, **{"painter_precision": "fp32"} | load)
    return Engine.open(folder or folders[name], mllm=mllm, load=options)


@pytest.fixture(scope="module")
def engines(folders) -> Callable[[str], Engine]:
    """The pairs with their own transformers, each opened once."""
    return cache(lambda name: open_engine(folders, name))


def paint(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    script(monkeypatch, engine.tokens, "<picture>", "a red house", "</picture>", END)
    asked = Conversation().say("user", "Draw")
    done = list(engine.answer(asked, Options(1, TextOptions(), ImageOptions(steps=2, preview_every=0))))[-1]
    assert isinstance(done, Done), done
    (image,) = done.conversation.path()[-1].images()
    return np.asarray(image.picture).astype(int)


# The forms of files. Each writes one and returns the weights that it stands for, under diffusers' names.


def write_plain(state: Weights, file: Path) -> Weights:
    state = {name: weight.bfloat16() for name, weight in state.items()}
    save_file(state, file)
    return state


def write_checkpoint(state: Weights, file: Path) -> Weights:
    """As Forge has it: a text encoder and an autoencoder beside it."""
    others = {"first_stage_model.decoder.conv_in.weight": torch.ones(4, 4), "text_encoders.t5.shared.weight": torch.ones(4, 4)}
    save_file({f"model.diffusion_model.{name}": weight for name, weight in state.items()} | others, file)
    return state


def write_klein_original(state: Weights, file: Path) -> Weights:
    """The names of Black Forest Labs: query, key and value are one matrix."""
    rows = [
        ("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"), (".linear.weight", ".lin.weight"),
        ("proj_out", "final_layer.linear"), ("single_transformer_blocks", "single_blocks"), ("transformer_blocks", "double_blocks"),
        ("attn.to_qkv_mlp_proj", "linear1"), ("single_blocks.0.attn.to_out", "single_blocks.0.linear2"), ("attn.to_out.0", "img_attn.proj"),
        ("attn.to_add_out", "txt_attn.proj"), ("ff.linear_in", "img_mlp.0"), ("ff.linear_out", "img_mlp.2"),
        ("ff_context.linear_in", "txt_mlp.0"), ("ff_context.linear_out", "txt_mlp.2"),
        ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"), ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
        ("single_blocks.0.attn.norm_q.weight", "single_blocks.0.norm.query_norm.scale"),
        ("single_blocks.0.attn.norm_k.weight", "single_blocks.0.norm.key_norm.scale"),
        ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"), ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    ]  # fmt: skip
    told, left = {}, dict(state)
    block = "transformer_blocks.0.attn"
    for parts, name in ((("to_q", "to_k", "to_v"), "img_attn"), (("add_q_proj", "add_k_proj", "add_v_proj"), "txt_attn")):
        told[f"double_blocks.0.{name}.qkv.weight"] = torch.cat([left.pop(f"{block}.{each}.weight") for each in parts])
    scale, shift = left.pop("norm_out.linear.weight").chunk(2)
    told["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    for name, weight in left.items():
        for ours, theirs in rows:
            name = name.replace(ours, theirs)
        told[name] = weight
    return write_checkpoint(told, file) and state


def write_z_image_original(state: Weights, file: Path) -> Weights:
    rows = [("all_final_layer.2-1", "final_layer"), ("all_x_embedder.2-1", "x_embedder"), ("to_out.0", "out")]
    rows += [("norm_k", "k_norm"), ("norm_q", "q_norm")]
    told, left = {}, dict(state)
    for name in [name for name in left if name.endswith("attention.to_q.weight")]:
        fused = [left.pop(name.replace("to_q", each)) for each in ("to_q", "to_k", "to_v")]
        told[name.replace("to_q", "qkv")] = torch.cat(fused)
    for name, weight in left.items():
        for ours, theirs in rows:
            name = name.replace(ours, theirs)
        told[name] = weight
    save_file(told, file)
    return state


def write_fp8(state: Weights, file: Path) -> Weights:
    """All of it in fp8, as people cast their files; and a mark of ComfyUI's."""
    small = {name: weight.to(torch.float8_e4m3fn) for name, weight in state.items()}
    save_file(small | {"__index_timestep_zero__": torch.ones(0)}, file)
    return {name: weight.float() for name, weight in small.items()}


def write_scaled_fp8(state: Weights, file: Path, names: tuple[str, str] = ("scale_weight", "scale_input"), rows: bool = False) -> Weights:
    told: Weights = {"scaled_fp8": torch.ones(2).to(torch.float8_e4m3fn)}
    same = dict(state)
    for name, weight in state.items():
        if weight.ndim < 2 or not name.endswith(".weight"):
            told[name] = weight.bfloat16()
            same[name] = told[name].float()
            continue
        layer = name.removesuffix(".weight")
        scale = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().amax()) / 448
        told[name] = (weight / scale).to(torch.float8_e4m3fn)
        told |= {f"{layer}.{names[0]}": scale, f"{layer}.{names[1]}": torch.ones(())}
        same[name] = told[name].float() * scale
    save_file({f"model.diffusion_model.{name}": weight for name, weight in told.items()}, file)
    return same


def write_row_fp8(state: Weights, file: Path) -> Weights:
    return write_scaled_fp8(state, file, ("weight_scale", "comfy_quant"), rows=True)


def write_gguf(state: Weights, file: Path, kind: gguf.GGMLQuantizationType = Q8_0, architecture: str = "qwen_image") -> Weights:
    """As ComfyUI's converter does it: matrices quantised, vectors in 32 bits."""
    writer, same = gguf.GGUFWriter(file, architecture), {}
    for name, weight in state.items():
        numbers = weight.float().numpy()
        whole = numbers.ndim < 2 or numbers.shape[-1] % 32
        packed = numbers if whole else gguf.quants.quantize(numbers, kind)
        writer.add_tensor(name, packed, raw_dtype=None if whole else kind)
        same[name] = torch.from_numpy(numbers if whole else gguf.quants.dequantize(packed, kind).reshape(numbers.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return same


def choose_suffix(is_gguf: bool) -> str:
    return f"other.{'gguf' if is_gguf else 'safetensors'}"


FORMS: list[tuple[str, Callable[[Weights, Path], Weights], str]] = [
    ("klein", write_plain, ""), ("klein", write_klein_original, ""),
    ("klein", write_scaled_fp8, "fp8"), ("klein", write_gguf, "GGUF"),
    ("z-image", write_z_image_original, ""), ("z-image", write_row_fp8, "fp8"),
    ("z-image", lambda state, file: write_gguf(state, file, BF16), "GGUF"),
    ("qwen", write_checkpoint, ""), ("qwen", write_fp8, "fp8"),
    ("qwen", lambda state, file: write_gguf(state, file, Q4_0), "GGUF"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "form"), FORMS)
def test_a_file_paints_what_its_weights_paint_from_a_folder(name, write, form, folders, engines, tmp_path, monkeypatch):
    file, engine, part = tmp_path / choose_suffix(form == "GGUF"), engines(name), folders[name] / "transformer"
    pipe = engine.pair.pipe
    own = pipe.transformer
    same = pair_of(folders[name], write(other_weights(folders[name]), file), tmp_path / "pair") / "transformer"
    painted = {}
    for each in ("own", "folder", "file"):
        if each != "own":
            pipe.transformer = (
                open_painter(same, type(own), "fp32", "cpu") if each == "folder" else open_transformer(file, part, "fp32", "cpu")
            )
        painted[each] = paint(engine, monkeypatch)
    pipe.transformer = own
    assert np.abs(painted["file"] - painted["own"]).max() > 5, "it is not the pair's own"
    assert np.abs(painted["file"] - painted["folder"]).max() <= 1
    assert read_transformer(file).form == form and read_transformer(file).parameters == sum(each.numel() for each in own.parameters())


@pytest.mark.parametrize(("name", "write"), (("klein", write_gguf), ("cosmos", write_fp8), ("cosmos", write_gguf)))
def test_a_pair_opens_with_a_file_and_without_weights_of_its_own(name, write, folders, tmp_path, monkeypatch):
    file = tmp_path / choose_suffix(write is write_gguf)
    same = pair_of(folders[name], write(other_weights(folders[name]), file), tmp_path / "pair")
    wanted = paint(open_engine(folders, name, same), monkeypatch)
    for weight in (same / "transformer").glob("*.safetensors"):
        weight.unlink()  # whoever has the file needs no other weights
    engine = open_engine(folders, name, same, transformer=str(file))
    assert engine.costs is not None
    assert np.abs(paint(engine, monkeypatch) - wanted).max() <= 1
    assert engine.costs.parts["transformer"].bytes == read_transformer(file).bytes > 0


def write_unet_checkpoint(state: Weights, file: Path) -> None:
    """A checkpoint of Stable Diffusion with a UNet of two levels of one layer each, as Forge has it."""
    rows = [
        ("time_embedding.linear_", "time_embed."), ("conv_in", "input_blocks.0.0"), ("down_blocks.0.resnets.0", "input_blocks.1.0"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.2.0.op"), ("down_blocks.1.resnets.0", "input_blocks.3.0"),
        ("down_blocks.1.attentions.0", "input_blocks.3.1"), ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"), ("mid_block.resnets.1", "middle_block.2"),
        ("up_blocks.0.resnets.", "output_blocks.*.0"), ("up_blocks.0.attentions.", "output_blocks.*.1"),
        ("up_blocks.0.upsamplers.0", "output_blocks.1.2"), ("up_blocks.1.resnets.0", "output_blocks.2.0"),
        ("up_blocks.1.resnets.1", "output_blocks.3.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"), (".conv1.", ".in_layers.2."),
        ("time_emb_proj", "emb_layers.1"), (".conv2.", ".out_layers.3."),
        ("conv_shortcut", "skip_connection"), ("time_embed.1", "time_embed.0"),
    ]  # fmt: skip
    told = {}
    for name, weight in state.items():
        if "transformer_blocks" not in name:
            name = name.replace(".norm1.", ".in_layers.0.").replace(".norm2.", ".out_layers.0.")
        for ours, theirs in rows:
            level = name.partition(ours)[2][:1]
            name = name.replace(ours + level, theirs.replace("*", level)) if "*" in theirs and ours in name else name.replace(ours, theirs)
        told[f"model.diffusion_model.{name}"] = weight
    save_file(told | {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.ones(4, 4)}, file)


def test_a_checkpoint_of_stable_diffusion_gives_its_unet(tmp_path):
    folder = public.pix2pix(tmp_path / "pair")
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    write_unet_checkpoint(state, tmp_path / "sd.safetensors")
    model = open_transformer(tmp_path / "sd.safetensors", folder / "unet", "fp32", "cpu")
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_weights_that_are_whole_take_the_painters_precision(folders, tmp_path):
    write_klein_original(other_weights(folders["klein"]), tmp_path / "klein.safetensors")
    model = open_transformer(tmp_path / "klein.safetensors", folders["klein"] / "transformer", "nf4", "cpu")
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["transformer_blocks.0.attn.to_q"] == "Linear4bit" and kinds["x_embedder"] == "Linear"


@pytest.mark.parametrize("write", (write_fp8, write_gguf))
def test_a_lora_goes_on_top_of_quantised_weights(write, folders, engines, tmp_path, monkeypatch):
    file, engine = tmp_path / choose_suffix(write is write_gguf), engines("klein")
    same = pair_of(folders["klein"], write(other_weights(folders["klein"]), file), tmp_path / "pair") / "transformer"
    generator, layer = torch.Generator().manual_seed(0), "lora_unet_double_blocks_0_img_attn_qkv"
    down, up = torch.randn(4, 64, generator=generator), torch.randn(192, 4, generator=generator)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    own, painted = engine.pair.pipe.transformer, []
    for model in (open_painter(same, type(own), "fp32", "cpu"), open_transformer(file, same, "fp32", "cpu")):
        engine.pair.pipe.transformer = model
        plain = paint(engine, monkeypatch)
        engine.set_adapters([AdapterSpec(tmp_path / "lora.safetensors")])
        painted.append(paint(engine, monkeypatch))
        engine.set_adapters([])
        assert np.abs(painted[-1] - plain).max() > 5
    engine.pair.pipe.transformer = own
    assert np.abs(painted[0] - painted[1]).max() <= 1


# What is refused.


def cut(write: Callable[[Weights, Path], Weights], by: int) -> Callable[[Weights, Path], None]:
    def write_cut(state: Weights, file: Path) -> None:
        write(state, file)
        file.write_bytes(file.read_bytes()[:-by])

    return write_cut


def store(**state: torch.Tensor) -> Callable[[Weights, Path], None]:
    return lambda _, file: save_file({name.replace("__", "."): weight for name, weight in state.items()}, file)


def without(name: str) -> Callable[[Weights, Path], None]:
    return lambda state, file: save_file({each: weight for each, weight in state.items() if each != name}, file)


NIBBLES, NORM = torch.ones(4, 4, dtype=torch.uint8), "single_transformer_blocks.0.attn.norm_q.weight"
REFUSED: list[tuple[str, Callable[[Weights, Path], object], str]] = [
    ("cut.safetensors", cut(write_plain, 9), "is cut short or damaged; get it again"),
    ("cut.gguf", cut(write_gguf, 400), "is cut short or damaged; get it again"),
    ("half.gguf", lambda _, file: file.write_bytes(b"GGUF\x03\0\0"), "is cut short or damaged; get it again"),
    ("words.gguf", lambda _, file: file.write_text("words"), "is cut short or damaged; get it again"),
    ("pointer.gguf", lambda _, file: file.write_bytes(POINTER), "git-lfs left a pointer in its place"),
    ("pointer.safetensors", lambda _, file: file.write_bytes(POINTER), "git-lfs left a pointer in its place"),
    ("empty.safetensors", store(), "holds no weights; get the transformer again"),
    ("old.ckpt", lambda _, file: file.write_bytes(b"x"), "is a pickle, which can run code"),
    ("words.txt", lambda _, file: file.write_bytes(b"x"), "is no transformer; choose a .safetensors or .gguf file"),
    ("t5.safetensors", store(encoder__block__0__layer__0__SelfAttention__q__weight=torch.ones(4, 4)), "is a text encoder, not a transf"),
    ("qwen.safetensors", store(model__embed_tokens__weight=torch.ones(4, 4)), "is a text encoder, not a transformer; choose"),
    ("qwen.gguf", lambda state, file: write_gguf(state, file, architecture="qwen2vl"), "is a text encoder, not a transformer; choose"),
    ("vae.safetensors", store(decoder__conv_in__weight=torch.ones(4, 4)), "is an autoencoder, not a transformer; choose"),
    ("lora.safetensors", store(diffusion_model__a__lora_A__weight=torch.ones(4, 4)), "is a LoRA, not a transformer; choose"),
    ("svdq.safetensors", store(transformer_blocks__0__qkv_proj__qweight=NIBBLES), "are quantised by Nunchaku, which cannot be read here"),
    ("nvfp4.safetensors", store(layers__0__weight=NIBBLES), "are quantised by nvfp4 or int8, which cannot be read here"),
    ("deeper.safetensors", lambda state, file: save_file(state | {"transformer_blocks.1.attn.to_q.weight": torch.ones(64, 64)}, file),
     "does not fit the Flux2Transformer2DModel of this pair; open the pair that it belongs to"),
    ("lacking.safetensors", without(NORM), "does not fit the Flux2Transformer2DModel"),
    ("wider.safetensors", lambda state, file: save_file(state | {NORM: torch.ones(32)}, file), "does not fit the Flux2Transformer2DModel"),
    ("mxfp4.gguf", lambda state, file: write_gguf(state, file, gguf.GGMLQuantizationType.MXFP4),
     "is quantised as MXFP4, which diffusers cannot read"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "words"), REFUSED, ids=[each[0] for each in REFUSED])
def test_a_file_that_does_not_fit_gets_one_sentence(name, write, words, folders, tmp_path):
    write(other_weights(folders["klein"]), tmp_path / name)
    with pytest.raises(ValueError, match=words) as caught:
        plan_pair(Found(folders["klein"], folders["mllm"]), LoadOptions(device="cpu", transformer=str(tmp_path / name)))
    assert "\n" not in str(caught.value) and name in str(caught.value) and str(caught.value).count(". ") == 0


def test_looking_at_a_file_empties_no_model_of_another_thread(folders, tmp_path, monkeypatch):
    """The page plans while another thread opens a pair."""
    write_plain(other_weights(folders["klein"]), tmp_path / "klein.safetensors")
    real, made = Flux2Transformer2DModel.from_config, []

    def from_config(config: dict) -> object:
        other = Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        other.start()
        other.join()
        return real(config)

    monkeypatch.setattr(Flux2Transformer2DModel, "from_config", from_config)
    check_fits(read_transformer(tmp_path / "klein.safetensors"), folders["klein"] / "transformer")
    assert not made[0].weight.is_meta


def test_a_file_of_another_family_is_refused_by_each(folders, tmp_path):
    for owner in ("klein", "z-image", "qwen"):
        write_plain(other_weights(folders[owner]), tmp_path / f"{owner}.safetensors")
        for name in {"klein", "z-image", "qwen", "cosmos"} - {owner}:
            mllm = folders["mllm"] if name in ("klein", "z-image") else None
            with pytest.raises(ValueError, match=rf"{owner}\.safetensors does not fit the \w+ of this pair"):
                plan_pair(Found(folders[name], mllm), LoadOptions(device="cpu", transformer=str(tmp_path / f"{owner}.safetensors")))


def test_the_plan_counts_the_true_size(folders, tmp_path, capsys):
    state = other_weights(folders["klein"])
    write_gguf(state, tmp_path / "q4.gguf", Q4_0)
    write_fp8(state, tmp_path / "fp8.safetensors")
    machine, asked = Machine(24 * GB, 64 * GB), LoadOptions(precision="bf16", painter_precision="bf16", offload="none", tiling="off")
    found, gpu = Found(folders["klein"], folders["mllm"]), {}
    for file in ("", "q4.gguf", "fp8.safetensors"):
        costs, _ = plan_pair(found, replace(asked, transformer=str(tmp_path / file) if file else ""), machine)
        gpu[file] = costs.plan.gpu
    packed = sum(each.numel() for each in state.values() if each.ndim == 2 and each.shape[1] % 32 == 0)
    blocks = sum(each.numel() for name, each in state.items() if each.ndim == 2 and "blocks." in name)
    whole = sum(each.numel() for each in state.values()) - packed
    assert gpu[""] - gpu["q4.gguf"] == packed * (2 - 18 / 32) - whole * 2  # 4 bits and a scale for each 32, and vectors in 32 bits
    assert gpu[""] - gpu["fp8.safetensors"] == blocks
    with_file = ["plan", "--pair", "flux2-klein-4b", "--vram", "24", "--painter-precision", "bf16", "--offload", "none"]
    assert main(with_file) == 0 and main([*with_file, "--transformer", str(tmp_path / "q4.gguf")]) == 0
    plain, small = capsys.readouterr().out.splitlines()
    assert plain != small and weights(entries()["flux2-klein-4b"].parts["transformer"], "bf16") > GB


# The folder of ComfyUI or Forge.


@pytest.fixture
def comfy(folders, tmp_path, monkeypatch) -> Path:
    """An installation of ComfyUI."""
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DUOGEN_MODELS", raising=False)
    models, state = tmp_path / "ComfyUI" / "models", other_weights(folders["klein"])
    for name in ("unet/flux2", "diffusion_models", "loras", "text_encoders", "diffusers"):
        (models / name).mkdir(parents=True)
    write_gguf(state, models / "unet" / "flux2" / "klein-Q8_0.gguf")
    write_gguf(state, models / "unet" / "qwen2.5-vl.gguf", architecture="qwen2vl")
    write_fp8(state, models / "diffusion_models" / "klein-fp8.safetensors")
    (models / "diffusion_models" / "pointer.safetensors").write_bytes(POINTER)
    lora = {f"diffusion_model.a.lora_{each}.weight": torch.ones(4, 4) for each in "AB"}
    save_file(lora, models / "loras" / "ink.safetensors")
    save_file({"shared.weight": torch.ones(4, 4)}, models / "text_encoders" / "t5.safetensors")
    quantised(models / "diffusers" / "klein-sdnq" / "transformer", "sdnq")
    (models / "diffusers" / "klein-sdnq" / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    return models


def test_a_folder_of_models_is_named_once_and_searched(comfy, monkeypatch, capsys):
    assert find_model_files() == [] and models_folder() is None
    assert main(["files"]) == 2 and "No models folder is named yet" in capsys.readouterr().err
    assert keep_models_folder(str(comfy.parent)) == comfy == models_folder()
    found = [(each.kind, each.path.name, each.form) for each in find_model_files()]
    assert found == [
        ("LoRA", "ink.safetensors", ""), ("pair", "klein-sdnq", "sdnq"), ("transformer", "klein-fp8.safetensors", "fp8"),
        ("transformer", "klein-Q8_0.gguf", "GGUF"),
    ]  # fmt: skip
    assert find_transformer("klein-Q8_0") == comfy / "unet" / "flux2" / "klein-Q8_0.gguf"
    with pytest.raises(ValueError, match="There is no transformer nobody, neither as a file nor in the models folder"):
        find_transformer("nobody")
    assert main(["files"]) == 0 and str(comfy / "loras" / "ink.safetensors") in capsys.readouterr().out
    for wrong, words in ((comfy / "nowhere", "There is no folder"), (comfy / "loras", "holds none of diffusion_models, unet")):
        assert main(["files", str(wrong)]) == 2 and words in capsys.readouterr().err
    assert models_folder() == comfy
    monkeypatch.setenv("DUOGEN_MODELS", str(comfy / "loras"))
    assert models_folder() == comfy / "loras"
    monkeypatch.delenv("DUOGEN_MODELS")
    assert keep_models_folder("") is None and models_folder() is None


def test_a_transformer_is_opened_by_its_name(comfy, folders, monkeypatch):
    keep_models_folder(str(comfy))
    by_name = open_engine(folders, "klein", transformer="klein-fp8")
    assert by_name.plan is not None and by_name.plan.load.transformer == str(comfy / "diffusion_models" / "klein-fp8.safetensors")
    assert "klein-fp8.safetensors" in by_name.plan.how(False)


OPENED_BY = {"sdnq": "pip install sdnq", "torchao": "pip install torchao", "nunchaku_lite": "pip install kernels", "nunchaku": "https://"}


@pytest.mark.parametrize(("method", "words"), OPENED_BY.items())
def test_folders_that_a_library_opens_name_it(method, words, tmp_path, monkeypatch):
    monkeypatch.setattr("duogen.models.placement._is_installed", lambda module: False)
    quantised(tmp_path / "transformer", method)
    with pytest.raises(ValueError, match=words):
        stored_quantisation(tmp_path / "transformer")
