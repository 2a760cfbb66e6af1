"""`python -m duogen.train STAGE --recipe FILE`: make the bundled pair, stage by stage.

`fit-last-layer`, after the vision stage, fits the tower's last layer in closed form. `fit-scene-head`, after the `mllm` stage, fits what
tells a picture that begins a new scene from one that goes on. `fit-change-head` fits what tells the places that a picture changes, to the
MLLM and the autoencoder. `states` computes the MLLM's states of the fixed dialogues of the `dit`
stage; several processes may do that at the same time, and `dit` does it itself where it was not done. `reward` goes on with a pair's
painter, which learns from the checks of what it paints; `all` leaves it out. `export` writes the trained pair into `weights/`. `all` does
everything from the beginning. `settings` prints what a recipe can set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen import silence_libraries
from duogen.train.settings import FROM_NOTHING, STAGES, DiTSettings, MLLMSettings, RewardSettings, settings_table

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

    from duogen.models.sequence import Tokens
    from duogen.train.dit import DiTStage
    from duogen.train.trainer import Recipe, Stage
    from duogen.train.vision import VisionStage

# torch and the models take seconds to import: the functions import them, so that --help and wrong input answer at once.

COMMANDS = (*STAGES, "fit-last-layer", "fit-scene-head", "fit-change-head", "states", "export", "all", "settings")
FITTED_PICTURES = 3200  # that `fit-last-layer` fits to
FITTED_CONVERSATIONS = 1000  # that `fit-scene-head` fits to, less a tenth that it is tested with
CHANGE_DIALOGUES, CHANGE_STEPS = 6000, 2000  # that `fit-change-head` reads, less a twentieth that it is tested with; and its steps
ALIASES = {"refit": "fit-last-layer"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; bad input ends with one sentence on stderr and status 2."""
    options = _parser().parse_args(argv)
    if options.stage == "settings":
        print(settings_table())
        return 0
    silence_libraries()
    import torch

    from duogen.train.export import export
    from duogen.train.trainer import Recipe

    try:
        torch.set_num_threads(options.threads)
        runs = options.runs / options.recipe.stem
        if options.stage == "export":
            export(options.recipe, runs, options.out)
            return 0
        if options.stage == "fit-last-layer":
            print(f"The last layer explains {fit_vision_layer(options.recipe, runs):.0%} of the variance of what is in the pictures.")
            return 0
        if options.stage == "fit-scene-head":
            print(f"The scene head tells {fit_scenes(options.recipe, runs):.1%} of the pictures right that it was not fitted to.")
            return 0
        if options.stage == "fit-change-head":
            found = fit_changes(options.recipe, runs)
            print(f"The change head tells {found['places']:.1%} of the places right, all of a picture in {found['pictures']:.1%}.")
            if {"kinds", "motions", "colours"} <= set(found):
                shares = ", ".join(f"{found[name]:.1%} of the {name}" for name in ("kinds", "motions", "colours"))
                print(f"Of the transforms it tells {shares} right.")
            return 0
        if options.stage == "states":
            build_dit_stage(Recipe.load(options.recipe, "dit"), options.recipe, runs).fill_states()
            return 0
        if not _train(options, runs):
            return 130
        if options.stage == "all":
            export(options.recipe, runs, options.out)
        return 0
    except ValueError as error:
        print(f"duogen.train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from the last saved state.", file=sys.stderr)
        return 130


def _train(options: argparse.Namespace, runs: Path) -> bool:
    """Train one stage, or all; returns whether to go on: `False` where one of all stages was stopped before its end."""
    from duogen.train.trainer import Recipe, train

    recipes = {stage: Recipe.load(options.recipe, stage) for stage in (FROM_NOTHING if options.stage == "all" else [options.stage])}
    for stage, recipe in recipes.items():
        STAGES[stage].from_json(recipe.settings)  # a wrong one ends here, before the stages ahead of it are trained
    for stage, recipe in recipes.items():
        built = prepare_dit_stage(recipe, options.recipe, runs) if stage == "dit" else build_stage(stage, recipe, runs)
        done = train(built, recipe, runs / stage, options.until)
        if options.stage == "all" and done < recipe.steps:
            return False
        if options.stage == "all" and stage == "vision":
            fit_vision_layer(options.recipe, runs)
        if options.stage == "all" and stage == "mllm":
            fit_scenes(options.recipe, runs)
            fit_changes(options.recipe, runs)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m duogen.train", description=__doc__)
    parser.add_argument("stage", choices=COMMANDS, type=lambda name: ALIASES.get(name, name), help="a stage, or another command")
    parser.add_argument("--recipe", type=Path, default=Path("assets/recipes/duogen-sketch.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where states and logs are kept")
    parser.add_argument("--out", type=Path, default=Path("weights/duogen-sketch"), help="where export writes")
    parser.add_argument("--until", type=int, help="stop after this step; the same command without it goes on")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the trainer")
    return parser


def build_stage(stage: str, recipe: Recipe, runs: Path) -> Stage:
    """Build the stage "vae", "vision", "mllm" or "reward", with the results of the stages before it."""
    if stage == "vae":
        from duogen.train.vae import VAEStage

        return VAEStage(recipe, runs / "vae")
    if stage == "reward":
        return build_reward_stage(recipe, runs)
    if stage == "vision":
        return build_vision_stage(recipe)
    from duogen.train.mllm import MLLMStage
    from duogen.train.trainer import load_weights

    mllm, tokens = open_base_mllm()
    if not MLLMSettings.from_json(recipe.settings).grow_from:  # else the vision tower comes from that pair
        load_weights(runs / "vision", {"visual": mllm.model.visual})
    return MLLMStage(recipe, mllm, tokens)


def build_vision_stage(recipe: Recipe) -> VisionStage:
    """Build the vision stage on the base model."""
    from duogen.train.vision import VisionStage

    return VisionStage(recipe, *open_base_mllm())


def build_reward_stage(recipe: Recipe, runs: Path) -> Stage:
    """Build the reward stage on the pair in its `grow_from`: a folder of trained parts, as `weights/` has them, or a whole pair."""
    from duogen.hub.assemble import assemble_bundled
    from duogen.models.pipeline import open_pair
    from duogen.precision import resolve_precision
    from duogen.train.reward import RewardStage

    source = Path(RewardSettings.from_json(recipe.settings).grow_from)
    if not (source / "model_index.json").is_file():
        raise ValueError(f"The reward stage goes on with the pair in {source}, which is none; name one in grow_from.")
    folder = source if (source / "tokenizer").is_dir() else assemble_bundled(source, runs / "pairs", print)
    return RewardStage(recipe, open_pair(folder, "cpu", resolve_precision(recipe.precision)))


def build_dit_stage(recipe: Recipe, file: Path, runs: Path) -> DiTStage:
    """Build stage 2, with the results of the stages before it. `file` holds the recipe of stage 1 too."""
    import torch

    from duogen.precision import resolve_precision
    from duogen.train.dit import DiTStage
    from duogen.train.vae import load_vae

    settings = DiTSettings.from_json(recipe.settings)
    mllm, tokens = open_base_mllm()
    if settings.see:  # the painter reads what the MLLM sees: its vision tower and token rows
        mllm = load_trained_mllm(mllm, tokens, settings.grow_from, file, runs)
    mllm = mllm.to(torch.bfloat16 if resolve_precision(recipe.precision) == "bf16" else torch.float32)
    return DiTStage(recipe, mllm, tokens, load_vae(runs, settings.grow_from)[0], list(settings.layers), runs / "states")


def prepare_dit_stage(recipe: Recipe, file: Path, runs: Path) -> DiTStage:
    """Build stage 2 with its states, and with the weights that it begins with where this run has none."""
    stage = build_dit_stage(recipe, file, runs)
    stage.fill_states()
    keep_projection(stage, runs / "dit")
    if stage.settings.grow_from and not (runs / "dit" / "state.pt").exists():
        stage.start_from(Path(stage.settings.grow_from) / "transformer")
    return stage


def load_trained_mllm(
    mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, source: str, file: Path, runs: Path
) -> Qwen2_5_VLForConditionalGeneration:
    """The MLLM after stage 1: of this run, or where this run has no stage 1, of the pair in the folder `source`."""
    from duogen.hub.assemble import add_trained_weights
    from duogen.train.mllm import load_adapted_mllm
    from duogen.train.trainer import Recipe

    if source and not (runs / "mllm" / "state.pt").exists():
        return add_trained_weights(mllm, Path(source) / "text_encoder")
    peft: Any = load_adapted_mllm(mllm, tokens, Recipe.load(file, "mllm"), runs)[0]
    return peft.merge_and_unload()


def keep_projection(stage: DiTStage, folder: Path) -> None:
    """Write the projection of the stage's states into the run's folder, for `export`, and check that a resumed run has the same one.

    Raises:
        ValueError: the run began with other states.
    """
    import torch

    from duogen.train.states import PROJECTION, Projection

    file, own = folder / PROJECTION, stage.projection
    if not (folder / "state.pt").exists():
        file.unlink(missing_ok=True)  # left by a run whose state was deleted
        if own is not None:
            folder.mkdir(parents=True, exist_ok=True)
            own.write(file)
        return
    kept = Projection.load(file) if file.exists() else None
    if own is not kept and (own is None or kept is None or not torch.equal(own.axes, kept.axes)):
        raise ValueError(f"The run in {folder} began with other states of the MLLM; go on with the recipe it began with, or move it away.")


def fit_vision_layer(file: Path, runs: Path) -> float:
    """Fit the vision tower's last layer in closed form, after the vision stage; returns the share of variance it explains."""
    from duogen.train.trainer import Recipe, build_state, collect_parameters, load_weights, save_state

    stage = build_vision_stage(Recipe.load(file, "vision"))
    step = load_weights(runs / "vision", stage.modules, ema=False)
    explained = stage.fit_last_layer(FITTED_PICTURES, seed=21)
    save_state(runs / "vision", build_state(step, collect_parameters(stage.modules), {}, []))
    return explained


def fit_scenes(file: Path, runs: Path) -> float:
    """Fit the scene head to the MLLM after stage 1; returns the share of new pictures that it tells right."""
    from duogen.nn.scene_head import SCENE_HEAD
    from duogen.train.scene_head import fit_scene_head
    from duogen.train.trainer import Recipe

    recipe = Recipe.load(file, "dit")
    settings = DiTSettings.from_json(recipe.settings)
    mllm, tokens = open_base_mllm()
    mllm = load_trained_mllm(mllm, tokens, settings.grow_from, file, runs)
    head, right = fit_scene_head(mllm, tokens, list(settings.layers), FITTED_CONVERSATIONS, seed=5)
    head.save_pretrained(runs / SCENE_HEAD)
    return right


def fit_changes(file: Path, runs: Path) -> dict[str, float]:
    """Fit the change head to the MLLM after stage 1 and to the autoencoder; returns its figures on dialogues that it was not fitted to.

    The fit begins with the head of the pair in `grow_from`, where that has one.
    """
    from duogen.nn.change_head import CHANGE_HEAD, ChangeHead
    from duogen.train.change_head import ChangeReader, fit_change_head
    from duogen.train.states import truncate_layers
    from duogen.train.trainer import Recipe
    from duogen.train.vae import load_vae

    settings = DiTSettings.from_json(Recipe.load(file, "dit").settings)
    mllm, tokens = open_base_mllm()
    mllm = load_trained_mllm(mllm, tokens, settings.grow_from, file, runs)
    layers, (vae, _) = list(settings.layers), load_vae(runs, settings.grow_from)
    reader = ChangeReader(truncate_layers(mllm, max(layers)).eval(), tokens, layers, vae)
    earlier = Path(settings.grow_from) / CHANGE_HEAD
    old = ChangeHead.from_pretrained(earlier) if settings.grow_from and earlier.is_dir() else None
    head, figures = fit_change_head(reader, settings, CHANGE_DIALOGUES, CHANGE_STEPS, seed=6, old=old)
    head.save_pretrained(runs / CHANGE_HEAD)
    return figures


def open_base_mllm() -> tuple[Qwen2_5_VLForConditionalGeneration, Tokens]:
    """Open the base model, in float32, and its tokens."""
    import torch

    from duogen.hub.assemble import base_model, processor
    from duogen.models.sequence import Tokens

    mllm, tokenizer = base_model(torch.float32)
    # Eager attention is plain matrix products. On a CPU PyTorch's fused attention takes a quarter of stage 1's time, eager a twentieth.
    mllm.set_attn_implementation({"text_config": "eager"})
    return mllm, Tokens(tokenizer, processor())


if __name__ == "__main__":
    sys.exit(main())
