"""Estimates, before fine-tuning starts, how much memory, disk and time it needs.

Memory is a rough sum over the shapes in the weight files' headers. The time comes from earlier trainings on this machine, or from the steps
that `python -m duogen finetune --estimate` makes, or else from the speed of a matrix product. `duogen.hub.memory_plan` does the same for
answers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from duogen.dataset.describe import Report
from duogen.finetune.config import OLD_NAMES, REPLAY_EXAMPLES, FineTuneConfig, StageConfig
from duogen.finetune.preferences import KIND
from duogen.hub import timings
from duogen.hub.memory_plan import BYTES
from duogen.models.pipeline import About
from duogen.precision import many_rows_dtype, resolve_precision

GB = 1024**3
START_SECONDS = 5.0
UNIT = 1e13  # operations; they take a handy number of seconds on every machine
BASE_BYTES = {"cpu": 0.9 * GB, "cuda": 0.8 * GB}  # the libraries themselves
PASSES = {"mllm": 8, "dit": 32}  # through the examples, as in the recipe that learnt new things from thirty guides
LEAST_STEPS = {"mllm": 60, "dit": 150}  # fewer teach nothing
REACHED = 0.35  # share of a matrix product's speed that a training step reaches
VOTE_ANSWERS, REFERENCE = 2, 4 / 3  # a vote has two answers, and each goes forward once more, with the adapter off
FACTOR = {False: 4, True: 6}  # floating-point operations for each weight and token: forward and backward, LoRA or full


@dataclass(frozen=True)
class Cost:
    """What one stage needs.

    Attributes:
        stage: "mllm" or "dit".
        memory, disk: in bytes.
        seconds: for all steps, the caches and the samples.
        work: floating-point operations of one step.
        guessed: whether the time is a guess, as nothing was measured yet.
        steps, step_seconds: the number of steps, and what one takes.
        before: seconds before the first step.
        examples, practice: examples to learn from, and those of them that the pair practised before.
    """

    stage: str
    memory: float
    disk: float
    seconds: float
    work: float = 0.0
    guessed: bool = False
    steps: int = 0
    step_seconds: float = 0.0
    before: float = 0.0
    examples: int = 0
    practice: int = 0

    def sentences(self) -> list[str]:
        """What it needs, and what the time is spent on."""
        said = [self.sentence()]
        if self.practice:
            count = f"{self.practice:,} of its {self.examples + self.practice:,} examples"
            said.append(f"It takes {self.steps:,} steps; {count} are the pair's own practice, so that it forgets nothing.")
        elif self.steps:
            said.append(f"It takes {self.steps:,} steps.")
        return said

    def sentence(self) -> str:
        disk = f" and {self.disk / GB:.1f} GB of disk" if self.disk > 0.05 * GB else ""
        duration = f"{'perhaps' if self.guessed else 'some'} {format_duration(self.seconds)}"
        rest = f"about {self.memory / GB:.1f} GB of memory{disk}, and {duration}"
        rest += ", a guess until something was trained here" if self.guessed else ""
        return f"Stage 1 (what to say) needs {rest}." if self.stage == "mllm" else f"Stage 2 (how to paint it) needs {rest}."


def format_duration(seconds: float) -> str:
    """ "40 seconds", "12 minutes", "3.5 hours"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


@dataclass(frozen=True)
class Shapes:
    """The shapes of one part of a pair, read from its files alone.

    Attributes:
        weights: how many there are in all.
        linears: (in, out) of each matrix of the repeated layers.
    """

    weights: int
    linears: list[tuple[int, int]]

    @staticmethod
    def read(folder: Path, within: str) -> Shapes:
        from safetensors import safe_open

        weights, linears = 0, []
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  it is no dict
                    shape = opened.get_slice(name).get_shape()
                    weights += int(torch.tensor(shape).prod()) if shape else 1
                    if within in name and len(shape) == 2:
                        linears.append((shape[1], shape[0]))
        return Shapes(weights, linears)

    def count_adapter_weights(self, rank: int) -> int:
        return sum(rank * (wide + tall) for wide, tall in self.linears)

    def count_layer_weights(self) -> int:
        return sum(wide * tall for wide, tall in self.linears)


def estimate_cost(pair: Path, recipe: FineTuneConfig, stage: str, report: Report, device: str) -> Cost:
    """Estimate what one stage ("mllm" or "dit") needs on a device."""
    cost = (_estimate_mllm if stage == "mllm" else _estimate_dit)(pair, recipe, report, device)
    return replace(cost, steps=getattr(recipe, stage).steps, examples=report.examples, practice=count_practice(pair, recipe, stage))


def count_practice(pair: Path, recipe: FineTuneConfig, stage: str) -> int:
    """How many examples of what the pair was trained on before a stage replays, where no folder of them was brought."""
    return REPLAY_EXAMPLES[stage] if recipe.replay and About.load(pair).practised else 0


def size_steps(pair: Path, recipe: FineTuneConfig, stages: Sequence[str], report: Report, device: str) -> FineTuneConfig:
    """The recipe with a number of steps where it has 0: what the examples need, or fewer where the minutes do not suffice for that."""
    sized = [stage for stage in stages if not getattr(recipe, stage).steps]
    for stage in sized:
        own = getattr(recipe, stage)
        share = 1 - recipe.replay if count_practice(pair, recipe, stage) else 1.0
        needed = math.ceil(PASSES[stage] * report.examples / (own.batch * own.accumulate * share))
        recipe = replace(recipe, **{stage: replace(own, steps=max(LEAST_STEPS[stage], needed))})
    costs = [estimate_cost(pair, recipe, stage, report, device) for stage in stages]
    stepping = sum(each.steps * each.step_seconds for each in costs if each.stage in sized)
    room = recipe.minutes * 60 - sum(each.seconds for each in costs) + stepping
    for cost in costs if stepping > room else ():
        if cost.stage in sized:
            fewer = max(LEAST_STEPS[cost.stage], int(cost.steps * max(room, 0) / stepping))
            recipe = replace(recipe, **{cost.stage: replace(getattr(recipe, cost.stage), steps=fewer)})
    return recipe


def _trained_bytes(shapes: Shapes, own: StageConfig) -> float:
    """Bytes of the trained part: weights (float32), gradients, the optimiser's two moments, the average."""
    count = shapes.count_adapter_weights(own.rank) if own.rank else shapes.weights
    return count * (4 + 4 + (2 if own.optimizer == "adamw8bit" else 8) + (4 if own.ema else 0))


def _activation_bytes(linears: list[tuple[int, int]], tokens: float, checkpointing: bool, depth: int) -> float:
    """Bytes kept for the backward pass: two for each input and output of every matrix, or of one layer and the inputs of the others."""
    each = sum(wide + tall for wide, tall in linears) * 2 * 1.5 * tokens
    if not checkpointing or not depth:
        return each
    return each / depth + depth * tokens * min(wide for wide, _ in linears) * 4


def _estimate_mllm(pair: Path, recipe: FineTuneConfig, report: Report, device: str) -> Cost:
    own = recipe.mllm
    config = json.loads((pair / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    shapes = Shapes.read(pair / "text_encoder", "layers.")
    inner = shapes.count_layer_weights()
    size = BYTES[resolve_precision(own.precision, device)]
    base = inner * size + (shapes.weights - inner) * max(2, size) if own.rank else 0.0
    answers = VOTE_ANSWERS if report.kind == KIND else 1
    tokens = own.batch * _typical_tokens(report) * answers
    logits = tokens * text["vocab_size"] * 4 * 3 * 0.6  # the assistant's share of the words
    active = _activation_bytes(shapes.linears, own.batch * report.tokens[2] * answers, own.checkpointing, text["num_hidden_layers"])
    memory = BASE_BYTES[_kind(device)] + base + _trained_bytes(shapes, own) + active + logits
    work = tokens * own.accumulate * shapes.weights * FACTOR[not own.rank] * _count_passes(own, report)
    return _add_time(Cost("mllm", memory, 0.0, 0.0, work), pair, recipe, 0.0, device)


def _estimate_dit(pair: Path, recipe: FineTuneConfig, report: Report, device: str) -> Cost:
    own, about = recipe.dit, About.load(pair)
    shapes = Shapes.read(pair / "transformer", "transformer_blocks.")
    config: dict[str, Any] = json.loads((pair / "transformer" / "config.json").read_text(encoding="utf-8"))
    vae = json.loads((pair / "vae" / "config.json").read_text(encoding="utf-8"))
    ratio = vae["patch_size"] if vae.get("_class_name") == "PatchVAE" else 2 ** (len(vae.get("dim_mult", (1, 2, 4, 4))) - 1)
    width, height = (side // ratio // config["patch_size"][1] for side in about.image_size)
    frames = max(1.0, (report.painted + report.seen) / max(1, report.examples))
    tokens = width * height * own.batch * (frames * own.copies + frames - 1)
    mllm = Shapes.read(pair / "text_encoder", "layers.")
    size = BYTES[resolve_precision(recipe.mllm.precision, device)]
    caching = mllm.count_layer_weights() * size + (mllm.weights - mllm.count_layer_weights()) * max(2, size)
    base = shapes.weights * (4 if _kind(device) == "cpu" else 2) if own.rank else 0.0
    active = _activation_bytes(shapes.linears, tokens, own.checkpointing, config["num_layers"])
    training = base + _trained_bytes(shapes, own) + active
    words = (report.examples + count_practice(pair, recipe, "dit")) * _typical_tokens(report)
    states = config.get("crossattn_proj_in_channels", 0) if config.get("use_crossattn_projection") else config["text_embed_dim"]
    work = tokens * own.accumulate * shapes.weights * FACTOR[not own.rank] * _count_passes(own, report)
    cost = Cost("dit", BASE_BYTES[_kind(device)] + max(training, caching), words * states * 2.0, 0.0, work)
    return _add_time(cost, pair, recipe, 2 * words * mllm.weights, device)


def _count_passes(own: StageConfig, report: Report) -> float:
    """How much more a step computes than forward and backward once."""
    return (4 / 3 if own.checkpointing else 1) * (REFERENCE if report.kind == KIND else 1)


def _add_time(cost: Cost, pair: Path, recipe: FineTuneConfig, before: float, device: str) -> Cost:
    """The cost of a stage with its times. `before` are the operations before the first step."""
    steps, guess = getattr(recipe, cost.stage).steps, measure_speed(device)
    measured = _recall_seconds(_step_key, pair, cost.stage, device) / UNIT
    sampling = _recall_seconds(_sampling_key, pair, cost.stage, device)
    samplings = 2 + (steps - 1) // recipe.sample_every if recipe.sample_every else 2
    each, first = cost.work * (measured or 1 / guess), START_SECONDS + before / guess
    seconds = first + each * steps + samplings * sampling
    return replace(cost, seconds=seconds, guessed=not measured, step_seconds=each, before=first)


def _recall_seconds(key: Callable[[str, str], str], pair: Path, stage: str, device: str) -> float:
    """Seconds as measured last, 0 where nothing was; older versions stored them under the stage's old name."""
    old = next(name for name, new in OLD_NAMES.items() if new == stage)
    return timings.last_seconds(pair.name, key(stage, device)) or timings.last_seconds(pair.name, key(old, device))


def record_times(cost: Cost, pair: Path, device: str, step: float, sampling: float = 0.0) -> None:
    """Store the measured seconds of a stage's step, and of its samples at one step, for the next estimate."""
    timings.note(pair.name, _step_key(cost.stage, device), step / cost.work * UNIT)
    if sampling:
        timings.note(pair.name, _sampling_key(cost.stage, device), sampling)


def _step_key(stage: str, device: str) -> str:
    return f"{UNIT:.0e} operations of training {stage} on {device}"


def _sampling_key(stage: str, device: str) -> str:
    return f"samples of {stage} on {device}"


def _typical_tokens(report: Report) -> float:
    return max(8.0, (report.tokens[1] + report.tokens[2]) / 2)


def _kind(device: str) -> str:
    return "cuda" if device.startswith("cuda") else "cpu"


def measure_speed(device: str) -> float:
    """Measure how many floating-point operations a second training reaches on a device.

    The fastest of some matrix products counts: what else the machine does at this moment is no property of it.
    """
    where = torch.device(device)
    one = torch.randn(1024, 1024, device=where, dtype=many_rows_dtype(where))
    one @ one
    rounds, fastest, until = 1 if where.type == "cpu" else 64, math.inf, time.perf_counter() + 0.15
    while fastest == math.inf or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(rounds):
            out = one @ one
        float(out[0, 0])  # waits for the device
        fastest = min(fastest, (time.perf_counter() - began) / rounds)
    return max(1e9, 2 * 1024**3 / fastest * REACHED)
