"""Benchmark of training: seconds of a step of the bundled pair's `dit` recipe, by part: `python -m bench.training`.

The stage is built from the bundled pair and the recipe's own batches. A step's parts are making the batch (in a real run a worker process
does that), reading the words with the frozen MLLM, the DiT forward and backward, and the optimisers. `now` is how the repository trains.
`before` lacks the optimisations that are measured here: it uses bf16 everywhere, pads conversations to the longest of the batch and to 64
words, and has PyTorch's own Muon. `kept` takes the words' states from a store, as a recipe with `"dialogues"` does; here they are random
numbers, and the disk, which a worker process reads, is left out. The ways are timed in turn, on the same batches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.machine import host
from duogen.files import write_beside
from duogen.hub.catalogue import find
from duogen.models.mllm import embed, normalise_states
from duogen.models.pipeline import open_parts
from duogen.models.sequence import Tokens
from duogen.precision import resolve_precision
from duogen.train.dit import DiTStage, FrameBatch
from duogen.train.settings import DiTSettings
from duogen.train.states import Projection, narrow_connector
from duogen.train.trainer import Recipe, autocast, collect_parameters, make_optimizers

RECIPE = Path("assets/recipes/duogen-sketch.json")
OLD_MULTIPLE = 64


class Clock:
    """Adds up the seconds of a step's parts: wall time, and CPU time, which is about the same on a busy machine as on an idle one."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
        return result


class Way:
    """One way of computing a step: a stage and its optimisers."""

    def __init__(self, recipe: Recipe) -> None:
        precision = resolve_precision(recipe.precision)
        parts = open_parts(find(None).folder, ("text_encoder", "vae"), "cpu", precision)
        parts.text_encoder.set_attn_implementation({"text_config": "eager"})  # as `duogen.train` has it
        tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
        self.stage = DiTStage(recipe, parts.text_encoder, tokens, parts.vae.float(), list(DiTSettings.from_json(recipe.settings).layers))
        self.optimizers = make_optimizers(collect_parameters(self.stage.modules), recipe)

    def batch(self, step: int) -> list[FrameBatch]:
        return self.stage.batch(step)

    def read(self, data: FrameBatch) -> torch.Tensor:
        return self.stage.states(data)

    def time_step(self, step: int) -> tuple[Clock, int]:
        """Time the parts of one step; returns them, and the number of targets."""
        clock, stage = Clock(), self.stage
        batch = clock.time("batch", lambda: self.batch(step))
        states = iter([clock.time("words", lambda each=each: self.read(each)) for each in batch])
        stage.states = lambda data: next(states)  # type: ignore[method-assign]
        with autocast(stage.recipe):
            loss = clock.time("forward", lambda: stage.loss(batch, torch.Generator().manual_seed(step))[0])
        clock.time("backward", loss.backward)
        for each in self.optimizers:
            clock.time("muon" if isinstance(each, torch.optim.Muon) else "adamw", each.step)
            each.zero_grad()
        del stage.states
        groups = zip(stage.settings.groups, batch, strict=True)
        return clock, sum(len(data.pixels) * (data.pixels.shape[1] - group.skip) * group.copies for group, data in groups)


class OldWay(Way):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(replace(recipe, precision="bf16"))
        adamw, muon = self.optimizers
        rate = {name: muon.defaults[name] for name in ("lr", "weight_decay")}
        self.optimizers = [adamw, torch.optim.Muon(muon.param_groups[0]["params"], adjust_lr_fn="match_rms_adamw", **rate)]

    def batch(self, step: int) -> list[FrameBatch]:
        return [self._pad_batch(data) for data in self.stage.batch(step)]

    def _pad_batch(self, data: FrameBatch) -> FrameBatch:
        more = -data.ids.shape[1] % OLD_MULTIPLE
        wider = {name: F.pad(getattr(data, name), (0, more)) for name in ("ids", "places", "mask", "words", "fewer")}
        return replace(data, **wider)

    @torch.no_grad()
    def read(self, data: FrameBatch) -> torch.Tensor:
        """Reads all conversations at once, including their padding."""
        mllm = self.stage.mllm
        embeds = embed(mllm, data.ids, *(data.vision or (None, None)))
        out = mllm.model.language_model(
            inputs_embeds=embeds, position_ids=data.places, attention_mask=data.mask.long(), output_hidden_states=True, use_cache=False
        )
        return torch.cat([normalise_states(out.hidden_states[layer]) for layer in self.stage.layers], -1).to(torch.bfloat16)


class KeptWay(Way):
    def __init__(self, recipe: Recipe, channels: int) -> None:
        super().__init__(recipe)
        old = self.stage.transformer.config.crossattn_proj_in_channels
        self.stage.projection = Projection(torch.zeros(old), torch.eye(channels, old), torch.ones(channels))
        narrow_connector(self.stage.transformer, self.stage.projection)
        self.optimizers = make_optimizers(collect_parameters(self.stage.modules), recipe)

    def batch(self, step: int) -> list[FrameBatch]:
        return [replace(data, vision=None, kept=self._states(data)) for data in self.stage.batch(step)]

    def _states(self, data: FrameBatch) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*data.ids.shape, len(self.stage.projection.spread))
        return torch.randint(-127, 128, shape, dtype=torch.int8), torch.full(data.ids.shape, 1 / 64, dtype=torch.float16)


def mean_figures(taken: list[tuple[Clock, int]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind in ("wall", "cpu"):
        parts = {name: statistics.mean(getattr(clock, kind)[name] for clock, _ in taken) for name in taken[0][0].wall}
        figures[kind] = {name: round(value, 3) for name, value in parts.items()}
        figures[kind]["step"] = round(sum(value for name, value in parts.items() if name != "batch"), 3)
    targets = statistics.mean(count for _, count in taken)
    return figures | {"targets": targets, "targets_per_cpu_second": round(targets / figures["cpu"]["step"], 2)}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    recipe = replace(Recipe.load(given.recipe, "dit"), precision=given.precision)
    if given.copies:
        groups = [group | {"copies": given.copies} for group in recipe.settings["groups"]]
        recipe = replace(recipe, settings=recipe.settings | {"groups": groups})
    makers = {"before": lambda: OldWay(recipe), "now": lambda: Way(recipe), "kept": lambda: KeptWay(recipe, given.states)}
    ways = {name: makers[name]() for name in given.ways}
    taken: dict[str, list[tuple[Clock, int]]] = {name: [] for name in ways}
    for step in range(given.warm + given.steps):
        for name, way in ways.items():
            result = way.time_step(step)
            if step >= given.warm:
                taken[name].append(result)
    return {name: mean_figures(results) for name, results in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--ways", nargs="+", choices=("before", "now", "kept"), default=["before", "now", "kept"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--warm", type=int, default=1, help="steps before those that count")
    parser.add_argument("--copies", type=int, default=0, help="noisy versions of a picture (default: the recipe's), targets as before")
    parser.add_argument("--precision", default="auto", help="auto, bf16 or fp32 for `now` and `kept`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--states", type=int, default=384, help="channels that `kept` keeps")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures: dict[str, Any] = {"machine": host() | {"threads": given.threads, "isa": torch.backends.cpu.get_cpu_capability()}}
    figures["onednn_max_isa"] = os.environ.get("ONEDNN_MAX_CPU_ISA", "")  # AVX2 makes a large CPU like a laptop's
    figures |= {"torch": torch.__version__, "precision": resolve_precision(given.precision), "steps": given.steps, "copies": given.copies}
    figures |= measure(given)
    for name in given.ways:
        own = figures[name]
        parts = "  ".join(f"{part} {seconds:.2f}" for part, seconds in own["wall"].items() if part != "step")
        print(f"{name}: a step {own['wall']['step']:.2f} s ({parts}); {own['targets_per_cpu_second']:.1f} targets a CPU second", flush=True)
    for name in given.ways[1:]:
        ratio = figures[given.ways[0]]["wall"]["step"] / figures[name]["wall"]["step"]
        print(f"{name}: {ratio:.2f} times as fast as {given.ways[0]}")
    if given.json:
        write_beside(given.json, json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
