"""`python -m duogen.train STAGE --recipe FILE`: make the bundled pair, stage by stage.

`refit`, after the vision stage, fits the tower's last layer in closed form; `states` reads the fixed dialogues of the `dit` stage, which
that stage does itself otherwise, and several processes may do it side by side; `export` puts the whole into `weights/`, and `all` does
everything, from nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from duogen.models.sequence import Tokens
    from duogen.nn.vae import PatchVAE
    from duogen.train.dit import DiTStage
    from duogen.train.trainer import Recipe, Stage

# What importing torch and the models costs (seconds) is paid inside the functions, so that --help and wrong input answer at once.

STAGES = ("vae", "vision", "mllm", "dit")


def main(argv: list[str] | None = None) -> int:
    """Run one stage, or export; bad input ends with one sentence on stderr and status 2."""
    options = _parser().parse_args(argv)
    import torch

    from duogen.train.export import export
    from duogen.train.trainer import Recipe

    try:
        torch.set_num_threads(options.threads)
        runs = options.runs / options.recipe.stem
        if options.stage == "export":
            export(options.recipe, runs, options.out)
            return 0
        if options.stage == "refit":
            print(f"The last layer explains {refit_vision(options.recipe, runs):.0%} of what is to be seen.")
            return 0
        if options.stage == "states":
            build("dit", Recipe.load(options.recipe, "dit"), options.recipe, runs).fill_states()
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
    """Train the stage that is asked for, or all; returns whether nobody stopped it before the end of a stage that others follow."""
    from duogen.train.trainer import Recipe, train

    for stage in STAGES if options.stage == "all" else [options.stage]:
        recipe = Recipe.load(options.recipe, stage)
        built = build(stage, recipe, options.recipe, runs)
        if stage == "dit":
            built.fill_states()
            keep_projection(built, runs / "dit")
            source = (recipe.settings or {}).get("grow_from")
            if source and not (runs / "dit" / "state.pt").exists():
                built.start_from(Path(source) / "transformer")
        done = train(built, recipe, runs / stage, options.until)
        if options.stage == "all" and done < recipe.steps:
            return False
        if options.stage == "all" and stage == "vision":
            refit_vision(options.recipe, runs)
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m duogen.train", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "refit", "states", "export", "all"])
    parser.add_argument("--recipe", type=Path, default=Path("assets/recipes/duogen-sketch.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where states and logs are kept")
    parser.add_argument("--out", type=Path, default=Path("weights/duogen-sketch"), help="where export writes")
    parser.add_argument("--until", type=int, help="stop after this step; the same command without it goes on")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the trainer")
    return parser


def build(stage: str, recipe: Recipe, file: Path, runs: Path) -> Stage:
    """The stage with everything that earlier stages made."""
    import torch

    from duogen.train.trainer import load_weights

    if stage == "vae":
        from duogen.train.vae import VAEStage

        return VAEStage(recipe, runs / "vae")
    if stage == "dit":
        from duogen.precision import resolve_precision
        from duogen.train.dit import DiTStage

        mllm, tokens = brain()
        if recipe.settings["see"]:  # the painter reads what the MLLM sees: its vision tower and token rows
            mllm = trained_mllm(mllm, tokens, recipe, file, runs)
        mllm = mllm.to(torch.bfloat16 if resolve_precision(recipe.precision) == "bf16" else torch.float32)
        return DiTStage(recipe, mllm, tokens, fitted_vae(runs), recipe.settings["layers"], runs / "states")
    if stage == "vision":
        from duogen.train.vision import VisionStage

        return VisionStage(recipe, *brain())
    from duogen.train.mllm import MLLMStage

    mllm, tokens = brain()
    load_weights(runs / "vision", {"visual": mllm.model.visual})
    return MLLMStage(recipe, mllm, tokens)


def trained_mllm(mllm: nn.Module, tokens: Tokens, recipe: Recipe, file: Path, runs: Path) -> nn.Module:
    """The MLLM after stage 1: of this run, or of the pair that the recipe grows from where stage 1 is not trained anew."""
    from duogen.hub.assemble import with_trained
    from duogen.train.mllm import stage_one
    from duogen.train.trainer import Recipe

    source = recipe.settings.get("grow_from")
    if source and not (runs / "mllm" / "state.pt").exists():
        return with_trained(mllm, Path(source) / "text_encoder")
    return stage_one(mllm, tokens, Recipe.load(file, "mllm"), runs)[0].merge_and_unload()


def keep_projection(stage: DiTStage, folder: Path) -> None:
    """Put the projection of the stage's states beside the run's, for `export`, and hold that a run goes on with its own.

    Raises:
        ValueError: the run began with other states.
    """
    import torch

    from duogen.train.states import PROJECTION, Projection

    file, own = folder / PROJECTION, stage.projection
    if not (folder / "state.pt").exists():
        file.unlink(missing_ok=True)  # of a run that was thrown away
        if own is not None:
            folder.mkdir(parents=True, exist_ok=True)
            own.write(file)
        return
    kept = Projection.load(file) if file.exists() else None
    if (own is None) != (kept is None) or (own is not None and not torch.equal(own.axes, kept.axes)):
        raise ValueError(f"The run in {folder} began with other states of the MLLM; go on with the recipe it began with, or move it away.")


def refit_vision(file: Path, runs: Path) -> float:
    """Fit the vision tower's last layer in closed form, after the vision stage; returns the share of variance it explains."""
    from duogen.train.trainer import Recipe, load_weights, named, save_state, whole_state

    stage = build("vision", Recipe.load(file, "vision"), file, runs)
    step = load_weights(runs / "vision", stage.modules, ema=False)
    explained = stage.refit(pictures=3200, seed=21)
    save_state(runs / "vision", whole_state(step, named(stage.modules), {}, []))
    return explained


def brain() -> tuple[nn.Module, Tokens]:
    """The base model, float32, and its tokens."""
    import torch

    from duogen.hub.assemble import base_model, processor
    from duogen.models.sequence import Tokens

    mllm, tokenizer = base_model(torch.float32)
    # Plain matrix products: on a CPU PyTorch's fused attention takes a quarter of stage 1's time, and these a twentieth.
    mllm.set_attn_implementation({"text_config": "eager"})
    return mllm, Tokens(tokenizer, processor())


def fitted_vae(runs: Path) -> PatchVAE:
    """Raises ValueError when the autoencoder has not been fitted yet."""
    from duogen.nn.vae import PatchVAE

    folder = runs / "vae" / "fitted"
    if not folder.exists():
        raise ValueError("There is no fitted autoencoder yet; run `python -m duogen.train vae` first.")
    return PatchVAE.from_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
