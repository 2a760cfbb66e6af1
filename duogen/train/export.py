"""Export: write the weights that a training changed, from its states into the folder that ships, as bf16 safetensors."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from duogen.files import place_folder
from duogen.hub.assemble import base_model, processor
from duogen.models.pipeline import ABOUT, About
from duogen.models.sequence import Tokens
from duogen.nn.change_head import CHANGE_HEAD, ChangeHead
from duogen.nn.scene_head import SCENE_HEAD, SceneHead
from duogen.nn.vae import PatchVAE
from duogen.train.dit import new_transformer
from duogen.train.grow import mix_transformers
from duogen.train.mllm import load_adapted_mllm
from duogen.train.settings import DiTSettings, MLLMSettings, RewardSettings
from duogen.train.states import PROJECTION, Projection, fold_connector
from duogen.train.trainer import Recipe, load_weights
from duogen.train.vae import load_vae

MODEL_INDEX = {
    "_class_name": "DuoGenPipeline",
    "_diffusers_version": "0.42.1",
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "image_processor": ["transformers", "Qwen2VLImageProcessorPil"],
    "transformer": ["diffusers", "CosmosTransformer3DModel"],
    "vae": ["duogen", "PatchVAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}


def export(recipe_file: Path, runs: Path, out: Path) -> dict[str, int]:
    """Write the trained parts of every stage, the model index and `duogen.json`; returns the steps of each stage, 0 for one that was kept.

    A recipe of stage 1 or of the reward stage alone gives the pair that it grew from, with another MLLM or DiT, and one whose stage 2 has
    0 steps with other heads. The old folder is replaced as a whole at the end; its model card is kept.

    Raises:
        ValueError: a stage has no state, or a recipe that trains no DiT from its beginning grows from no pair.
    """
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    has_painter = "dit" in Recipe.list_stages(recipe_file)
    write = (_export_stages if Recipe.load(recipe_file, "dit").steps else _export_heads_onto_pair) if has_painter else _export_onto_pair
    steps = write(recipe_file, runs, beside)
    _forget_places(beside)
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", beside / "README.md")
    shutil.rmtree(out, ignore_errors=True)
    place_folder(beside, out)
    return steps


def _export_stages(recipe_file: Path, runs: Path, out: Path) -> dict[str, int]:
    dit = DiTSettings.from_json(Recipe.load(recipe_file, "dit").settings)
    steps = {"mllm": _export_mllm(recipe_file, dit.grow_from, runs, out)}
    vae, steps["vae"] = _export_vae(dit.grow_from, runs, out)
    projection = runs / "dit" / PROJECTION
    width = dit.states if projection.exists() else 576 * len(dit.layers)
    transformer = new_transformer(dit.model, vae.config.z_dim, width)
    steps["dit"] = load_weights(runs / "dit", {"transformer": transformer})
    if projection.exists():  # it was trained on projected states, and reads whole ones from now on
        fold_connector(transformer, Projection.load(projection))
    transformer.to(torch.bfloat16)
    if dit.old_share:
        old: Any = CosmosTransformer3DModel.from_pretrained(Path(dit.grow_from) / "transformer", torch_dtype=torch.bfloat16)
        mix_transformers(transformer, old, dit.old_share)
    transformer.save_pretrained(out / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=dit.shift).save_pretrained(out / "scheduler")
    index = MODEL_INDEX | _export_heads(dit.grow_from, runs, out)
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / ABOUT).write_text(json.dumps(_about(recipe_file, dit), indent=1, ensure_ascii=False) + "\n")
    return steps


def _export_vae(source: str, runs: Path, out: Path) -> tuple[PatchVAE, int]:
    """Write the run's autoencoder, or where it has none, that of the pair in the folder `source`. Returns it and its steps."""
    vae, is_own = load_vae(runs, source)
    steps = load_weights(runs / "vae", {"vae": vae}) if is_own else 0
    vae.save_pretrained(out / "vae")
    return vae, steps


def _export_onto_pair(recipe_file: Path, runs: Path, out: Path) -> dict[str, int]:
    """Write the pair that a recipe without a `dit` stage grew from, with the one part that it trained."""
    stage = "reward" if "reward" in Recipe.list_stages(recipe_file) else "mllm"
    kind: type[RewardSettings | MLLMSettings] = RewardSettings if stage == "reward" else MLLMSettings
    source = kind.from_json(Recipe.load(recipe_file, stage).settings).grow_from
    if not source:
        raise ValueError(f"The recipe {recipe_file} has no stage 2; name in its grow_from the pair whose other parts are kept.")
    if stage == "reward":
        shutil.copytree(source, out, dirs_exist_ok=True)
        transformer: Any = CosmosTransformer3DModel.from_pretrained(out / "transformer", torch_dtype=torch.float32)
        steps = load_weights(runs / stage, {"transformer": transformer})
        transformer.to(torch.bfloat16).save_pretrained(out / "transformer")
        return {stage: steps}
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("text_encoder"))
    return {stage: _export_mllm(recipe_file, "", runs, out)}


def _export_heads_onto_pair(recipe_file: Path, runs: Path, out: Path) -> dict[str, int]:
    """Write the pair that a recipe whose stage 2 has no steps grew from, with the heads of the run and what the recipe says about it."""
    source = DiTSettings.from_json(Recipe.load(recipe_file, "dit").settings).grow_from
    if not source:
        raise ValueError(f"Stage 2 of the recipe {recipe_file} has 0 steps; name in its grow_from the pair whose DiT is kept.")
    shutil.copytree(source, out, dirs_exist_ok=True)
    index = out / "model_index.json"
    entries = json.loads(index.read_text(encoding="utf-8")) | _export_heads(source, runs, out)
    index.write_text(json.dumps(entries, indent=2) + "\n")
    about = json.loads((out / ABOUT).read_text(encoding="utf-8")) | Recipe.list_stages(recipe_file).get("about", {})
    (out / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return {"dit": 0}


def _export_mllm(recipe_file: Path, source: str, runs: Path, out: Path) -> int:
    """Write stage 1's weights; a run without stage 1 keeps those of the pair in the folder `source`, which its painter was trained with."""
    if source and not (runs / "mllm" / "state.pt").exists():
        shutil.copytree(Path(source) / "text_encoder", out / "text_encoder")
        return 0
    recipe = Recipe.load(recipe_file, "mllm")
    mllm, tokenizer = base_model(torch.float32)
    tokens = Tokens(tokenizer, processor())
    peft, seen = load_adapted_mllm(mllm, tokens, recipe, runs)
    folder = out / "text_encoder"
    peft.to(torch.bfloat16).save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    vision = {name: value.to(torch.bfloat16).contiguous() for name, value in mllm.model.visual.state_dict().items()}
    save_file(vision, folder / "vision.safetensors", metadata={"format": "pt"})
    return seen


def _export_heads(source: str, runs: Path, out: Path) -> dict[str, list[str]]:
    """Write the heads of the run, or of the pair that the run grew from; returns their entries in `model_index.json`."""
    entries = {}
    for name, kind in ((SCENE_HEAD, SceneHead), (CHANGE_HEAD, ChangeHead)):
        found = [folder / name for folder in (runs, Path(source)) if (folder / name).is_dir()]
        if found:
            kind.from_pretrained(found[0], torch_dtype=torch.bfloat16).save_pretrained(out / name)
            entries[name] = ["duogen", kind.__name__]
    return entries


def _forget_places(folder: Path) -> None:
    """Leave out where on this machine each part came from, which diffusers writes into configurations."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _about(recipe_file: Path, dit: DiTSettings) -> dict[str, Any]:
    stages = Recipe.list_stages(recipe_file)
    shown, practised, source = stages["about"], recipe_file.stem, Path(dit.grow_from)
    if "mllm" not in stages and dit.grow_from and (source / ABOUT).is_file():
        practised = About.load(source).practised  # its dialogues are of stage 1 too
    about = About(
        layers=dit.layers, frame_attention="block_causal", prediction="sample",
        timestep_scale=dit.timestep_scale, fresh_bias=dit.fresh_bias, sees_previous=True,
        image_size=(256, 256), practised=practised, **shown,
    )  # fmt: skip
    return asdict(about)
