"""The loop shared by every training stage.

A stage brings the modules to train, a batch for a step number and a loss. Everything random is drawn from a seed made of the
recipe's seed and the step number, so a run that was killed and resumed ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a stage learns. `settings` holds what only that stage understands.

    Attributes:
        steps: optimiser steps in all.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the learning rate falls to `final_rate` of its peak.
        ema: decay of the averaged weights, 0 for none.
        workers: processes that make batches.
        save_minutes: how often the state is written.
        optimizer: "adamw", or "muon" for the matrices of the repeated blocks with AdamW for everything else.
    """

    steps: int
    learning_rate: float
    warmup: int = 200
    decay: float = 0.3
    final_rate: float = 0.03
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    workers: int = 1
    save_minutes: float = 5.0
    log_every: int = 20
    precision: str = "bf16"
    optimizer: str = "adamw"
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise TypeError(f"optimizer must be adamw or muon, not {self.optimizer}")

    def step_seed(self, step: int) -> int:
        """What everything random in a step is drawn from, its batch included."""
        return self.seed * 1_000_003 + step

    @staticmethod
    def load(file: Path, stage: str) -> Recipe:
        """The entry of `stage` in a recipe file.

        Raises:
            ValueError: the file or the entry is missing, or a field is not known.
        """
        try:
            entry = json.loads(file.read_text(encoding="utf-8"))[stage]
            if "betas" in entry:
                entry["betas"] = tuple(entry["betas"])
            return Recipe(**entry)
        except FileNotFoundError as error:
            raise ValueError(f"There is no recipe {file}.") from error
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"The recipe {file} has no usable entry {stage!r}: {error}.") from error


class Stage(Protocol):
    """What a stage brings to the loop."""

    modules: dict[str, nn.Module]

    def batch(self, step: int) -> Any:
        """The batch of a step: a pure function of the step number, called in a worker process."""

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and figures for the log."""


class Batches(Dataset):
    def __init__(self, make: Callable[[int], Any], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def train(stage: Stage, recipe: Recipe, folder: Path, until: int | None = None, say: Callable[[str], None] = print) -> None:
    """Train `stage`, going on from the state in `folder` if there is one; stop after step `until` (default: all)."""
    accelerator = Accelerator(mixed_precision=recipe.precision if recipe.precision != "fp32" else "no", cpu=not torch.cuda.is_available())
    names = _trainable(stage)
    parameters = list(names.values())
    optimizers = [accelerator.prepare(each) for each in _optimizers(names, recipe)]
    averaged = {name: value.detach().clone() for name, value in names.items()} if recipe.ema else {}
    start = load_state(folder, names, averaged, optimizers)
    last = min(recipe.steps, until or recipe.steps)
    loader = DataLoader(
        Batches(stage.batch, recipe.steps), batch_size=None, sampler=range(start, last), num_workers=recipe.workers,
        prefetch_factor=4 if recipe.workers else None, worker_init_fn=_stay,
    )  # fmt: skip
    log = Log(folder, recipe, say)
    pause = Pause()
    for step, batch in zip(range(start, last), loader, strict=True):
        for group in [group for each in optimizers for group in each.param_groups]:
            group["lr"] = recipe.learning_rate * rate_at(step, recipe)
        generator = torch.Generator().manual_seed(recipe.step_seed(step))
        torch.manual_seed(recipe.step_seed(step))
        with accelerator.autocast():
            loss, figures = stage.loss(batch, generator)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, recipe.clip)
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)
        _average(averaged, names, min(recipe.ema, (step + 1) / (step + 10)))
        log.add(step, {"loss": float(loss.detach()), "grad": float(norm), **figures})
        if log.due() or pause.asked or step + 1 == last:
            save_state(folder, step + 1, names, averaged, optimizers)
        if pause.asked:
            break


def _stay(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal: the loop needs its workers until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Pause:
    """Set by SIGTERM or SIGINT: the loop then saves after the running step and ends."""

    def __init__(self) -> None:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True


def _trainable(stage: Stage) -> dict[str, nn.Parameter]:
    return {f"{part}.{name}": p for part, module in stage.modules.items() for name, p in module.named_parameters() if p.requires_grad}


def _optimizers(names: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024), scaled to AdamW's step size (Liu et al., 2025, arXiv 2502.16982), so that one rate serves both."""
    matrices = {name: p for name, p in names.items() if recipe.optimizer == "muon" and p.ndim == 2 and "blocks." in name}
    rest = [p for name, p in names.items() if name not in matrices]
    adamw = torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        list(matrices.values()), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def rate_at(step: int, recipe: Recipe) -> float:
    """Warm-up, constant, then linear down to `final_rate`: a run that is made longer goes on as it was."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    left = (recipe.steps - step) / max(1, recipe.steps * recipe.decay)
    return max(recipe.final_rate, min(1.0, left))


@torch.no_grad()
def _average(averaged: dict[str, torch.Tensor], names: dict[str, nn.Parameter], decay: float) -> None:
    for name, value in averaged.items():
        value.lerp_(names[name].detach(), 1 - decay)


def save_state(folder: Path, step: int, names: dict[str, nn.Parameter], averaged: dict[str, torch.Tensor], optimizers: list[Any]) -> None:
    """Write the whole state beside the old one, then rename: a killed save leaves the old state."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "weights": {k: v.detach() for k, v in names.items()}, "ema": averaged}
    state["optimizers"] = [each.state_dict() for each in optimizers]
    beside = folder / f".state.{os.getpid()}.part"
    torch.save(state, beside)
    beside.replace(folder / "state.pt")


def load_state(folder: Path, names: dict[str, nn.Parameter], averaged: dict[str, torch.Tensor], optimizers: list[Any]) -> int:
    """Restore what `save_state` wrote; returns the next step, 0 when there is nothing.

    Parameters that the earlier run did not train stay as they are; with those or another optimizer, the moments start anew.
    """
    file = folder / "state.pt"
    if not file.exists():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for known, saved in ((names, state["weights"]), (averaged, state["ema"])):
            for name in known.keys() & saved.keys():
                known[name].copy_(saved[name])
    if len(state["optimizers"]) == len(optimizers) and state["weights"].keys() == names.keys():
        for each, saved in zip(optimizers, state["optimizers"], strict=True):
            each.load_state_dict(saved)
    return state["step"]


@torch.no_grad()
def load_weights(folder: Path, modules: dict[str, nn.Module], ema: bool = True) -> int:
    """Put a run's (averaged) weights into `modules`; returns the steps they saw.

    Raises:
        ValueError: the folder holds no state.
    """
    file = folder / "state.pt"
    if not file.exists():
        raise ValueError(f"There is no training state in {folder}.")
    state = torch.load(file, map_location="cpu", weights_only=True)
    weights = state["ema"] if ema and state["ema"] else state["weights"]
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if f"{part}.{name}" in weights:
                parameter.copy_(weights[f"{part}.{name}"])
    return state["step"]


class Log:
    """Running means to the console and to `log.jsonl`, and the clock for saving."""

    def __init__(self, folder: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.recipe, self.say = folder / "log.jsonl", recipe, say
        self.sums: dict[str, list[float]] = {}
        self.saved = self.logged = time.monotonic()

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.sums.setdefault(name, []).append(value)
        if (step + 1) % self.recipe.log_every:
            return
        now = time.monotonic()
        entry = {"step": step + 1, "seconds": round((now - self.logged) / self.recipe.log_every, 3)}
        entry |= {name: round(sum(values) / len(values), 5) for name, values in self.sums.items()}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")
        self.say("  ".join(f"{name} {value}" for name, value in entry.items()))
        self.sums, self.logged = {}, now

    def due(self) -> bool:
        if time.monotonic() - self.saved < self.recipe.save_minutes * 60:
            return False
        self.saved = time.monotonic()
        return True
