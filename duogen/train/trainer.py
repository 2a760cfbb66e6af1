"""The trainer of all stages: the training loop, its states on disk, several processes.

A stage gives the modules to train, a batch for each step number, and a loss. All random numbers of a step are drawn from a seed made of
the recipe's seed and the step number, so a run that is killed and resumed ends with the same weights, bit for bit.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from torch.utils.data import DataLoader, Dataset

from duogen.files import move, read_text, sync_file
from duogen.precision import resolve_precision
from duogen.train import fsdp
from duogen.train.muon import Float32Muon

OPTIMIZERS = ("adamw", "adamw8bit", "muon")
PRECISIONS = ("auto", "bf16", "fp32")
BEST = "best.pt"


class Diverged(ValueError):
    """The loss is no longer a number. The last saved state is from before that."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a stage is trained.

    `settings` holds the settings of that stage alone, as the file writes them; the stage reads them by `duogen.train.settings`.

    Attributes:
        steps: optimiser steps in all.
        warmup: steps of linear warm-up.
        decay: share of the steps, at the end, over which the learning rate falls to `final_rate` of its peak.
        ema: decay of the averaged weights, 0 for none.
        workers: processes that make batches.
        save_minutes: how often the state is written.
        precision: "bf16", "fp32", or "auto" for the one in which this machine multiplies fastest.
        optimizer: "adamw", "adamw8bit" (bitsandbytes, GPUs only), or "muon" for the matrices of the repeated blocks with AdamW for
            everything else.
        schedule: "linear", or "cosine" from the end of the warm-up to the last step.
        accumulate: batches whose gradients are averaged in one step, in each process.
        keep: how many of the last saved states are kept.
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
    precision: str = "auto"
    optimizer: str = "adamw"
    schedule: str = "linear"
    accumulate: int = 1
    keep: int = 1
    settings: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise TypeError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer}")
        if self.schedule not in ("linear", "cosine"):
            raise TypeError(f"schedule must be linear or cosine, not {self.schedule}")
        if self.precision not in PRECISIONS:
            raise TypeError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision}")

    def step_seed(self, step: int) -> int:
        """The seed of all random numbers of a step, including those of its batch."""
        return self.seed * 1_000_003 + step

    @staticmethod
    def load(file: Path, stage: str) -> Recipe:
        """The entry of `stage` in a recipe file.

        Raises:
            ValueError: the file or the entry is missing, or a field is not known.
        """
        stages = Recipe.list_stages(file)
        try:
            entry = stages[stage]
            if "betas" in entry:
                entry["betas"] = tuple(entry["betas"])
            return Recipe(**entry)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The recipe {file} has no usable entry {stage!r}: {error}.") from error

    @staticmethod
    def list_stages(file: Path) -> dict[str, Any]:
        """The entries of a recipe file, by stage. Raises ValueError: the file is missing, or it is no JSON object."""
        if not file.exists():
            raise ValueError(f"There is no recipe {file}.")
        try:
            stages = json.loads(read_text(file))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The recipe {file} cannot be read: {error}.") from error
        if not isinstance(stages, dict):
            raise ValueError(f"The recipe {file} is no JSON object with an entry for each stage.")
        return stages


class Stage(Protocol):
    """What the trainer needs of a stage."""

    modules: dict[str, nn.Module]

    def batch(self, step: int) -> Any:
        """The batch of a step: a pure function of the step number, called in a worker process."""

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss and figures for the log."""


@runtime_checkable
class AverageReader(Protocol):
    """A stage that reads the averaged weights while it learns, such as one that learns from what they paint."""

    def read_average(self, averaged: dict[str, torch.Tensor]) -> None:
        """Called once, before a state is loaded, with the tensors by their names in it; loading and every step change them in place."""


class Batches(Dataset):
    def __init__(self, make: Callable[[int], Any], steps: int) -> None:
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Any:
        """A batch, or the error that making it raised: the loader would add its own traceback to the words of the error."""
        try:
            return self.make(index)
        except Exception as error:
            return error


class Callback(Protocol):
    """Called after every step, in the process that has one."""

    def on_step(self, step: int, figures: dict[str, float]) -> str:
        """Returns the trainer's next command: "" to go on, "save", "best" to save and keep that, or "pause" to save and end.

        `step` counts the steps done.
        """

    def is_ending(self) -> bool:
        """Whether the run shall end before its next batch; it is asked before each one."""


def kind_of_device() -> str:
    """The kind of the device that training computes on: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(recipe: Recipe) -> torch.autocast:
    """The context in which a stage computes in the recipe's precision."""
    kind = kind_of_device()
    return torch.autocast(kind, torch.bfloat16, enabled=resolve_precision(recipe.precision, kind) == "bf16")


def train(
    stage: Stage, recipe: Recipe, folder: Path, until: int | None = None, log: Callable[[str], None] = print,
    callback: Callback | None = None, warn: Callable[[str], None] | None = None,
) -> int:  # fmt: skip
    """Train `stage`, resuming from the state in `folder` if there is one; stop after step `until` (default: all).

    `log` gets the figures of the steps, `warn` (by default `log`) messages that a user must know.

    Under `accelerate launch` every process computes its share of a step's batches: P processes that accumulate A batches each do the same
    as one that accumulates P * A. With FSDP each process also keeps only its share of the weights.

    Returns:
        The steps done in all.

    Raises:
        Diverged: the loss is not finite; the saved state is from before.
        ValueError: the optimizer needs whole weights, and FSDP splits them.
    """
    precision = resolve_precision(recipe.precision, kind_of_device())
    accelerator = _open_accelerator(precision)
    whole = _distribute(stage, recipe, accelerator)
    names = _trainable(stage)
    optimizers = make_optimizers(names, recipe)
    averaged = _copy_average(stage, names, recipe)
    tell = (warn or log) if accelerator.is_main_process else (lambda words: None)
    start, frozen, before = load_state(folder, stage.modules, names, averaged, optimizers, warn=tell)
    if before not in ("", precision):
        tell(f"This run began in {before}; it goes on in {precision}, not to the bit.")
    last, done = min(recipe.steps, until or recipe.steps), start
    steps_log, shares = Log(folder, recipe, log), _ProcessShare(recipe, accelerator, whole or stage.loss)
    kept = (names, averaged, optimizers, frozen, precision)
    with Pause(callback) as pause:
        for step, batches in zip(range(start, last), shares.batches(stage, start, last), strict=True):
            figures = shares.accumulate_gradients(step, batches, pause.is_requested)
            if figures is None:  # the step is made again when the run goes on
                shares.save(folder, done, *kept)
                break
            norm = _make_step(step, recipe, names, averaged, optimizers)
            figures = _check_finite({"loss": figures.pop("loss"), "grad": norm, **figures}, step)
            if accelerator.is_main_process:
                steps_log.add(step, figures)
            done = step + 1
            command = callback.on_step(done, figures) if callback else ""
            ends = shares.any_process(pause.signalled or command == "pause" or done == last)
            if shares.any_process(steps_log.is_due() or command in ("save", "best")) or ends:
                shares.save(folder, done, *kept, best=command == "best")
            if ends:
                break
    return done


def _copy_average(stage: Stage, names: dict[str, nn.Parameter], recipe: Recipe) -> dict[str, torch.Tensor]:
    averaged = {name: value.detach().clone() for name, value in names.items()} if recipe.ema else {}
    if isinstance(stage, AverageReader):
        stage.read_average(averaged)
    return averaged


def _open_accelerator(precision: str) -> Accelerator:
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a batch without pictures leaves the vision tower out
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, cpu=not torch.cuda.is_available(), kwargs_handlers=[unused])


def _make_step(
    step: int, recipe: Recipe, names: dict[str, nn.Parameter], averaged: dict[str, torch.Tensor], optimizers: list[torch.optim.Optimizer]
) -> float:
    """Change the weights by their gradients; returns the length of the gradient."""
    norm = fsdp.full_state_dict(nn.utils.clip_grad_norm_(list(names.values()), recipe.clip))
    _step_optimizers(optimizers, recipe.learning_rate * rate_at(step, recipe))
    _average(averaged, names, min(recipe.ema, (step + 1) / (step + 10)))
    return float(norm)


def _step_optimizers(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for each in optimizers:
        for group in each.param_groups:
            group["lr"] = rate
        each.step()
        each.zero_grad(set_to_none=True)


def _check_finite(figures: dict[str, float], step: int) -> dict[str, float]:
    if not (math.isfinite(figures["loss"]) and math.isfinite(figures["grad"])):
        raise Diverged(f"The loss of step {step + 1} is not a number.")
    return figures


class _StageModule(nn.Module):
    """A stage as one module, so that accelerate averages its gradients over the processes."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(stage.modules)
        self.compute = stage.loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        loss, figures = self.compute(batch, generator)
        return fsdp.touch_all(loss, self.parameters()) if fsdp.fsdp_requested() else loss, figures


def _distribute(stage: Stage, recipe: Recipe, accelerator: Accelerator) -> nn.Module | None:
    """Wrap the stage for several processes; returns `None` where there is only one."""
    if accelerator.num_processes == 1:
        return None
    if not fsdp.fsdp_requested():
        return accelerator.prepare(_StageModule(stage))
    if recipe.optimizer != "adamw":
        raise ValueError(f"The optimizer {recipe.optimizer} needs whole weights; choose adamw, or launch without FSDP.")
    return fsdp.shard_module(_StageModule(stage), accelerator.device.type, accelerator.num_processes)


class _ProcessShare:
    """This process's share of every step. Batches are numbered through all steps: a step of N batches has the numbers from step * N."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator, compute: Callable) -> None:
        self.recipe, self.accelerator, self.compute = recipe, accelerator, compute
        self.count = accelerator.num_processes * recipe.accumulate
        self.first = accelerator.process_index * recipe.accumulate

    def numbers(self, step: int) -> range:
        return range(step * self.count + self.first, step * self.count + self.first + self.recipe.accumulate)

    def batches(self, stage: Stage, start: int, last: int) -> Iterator[list[tuple[int, Any]]]:
        numbers = [number for step in range(start, last) for number in self.numbers(step)]
        workers = self.recipe.workers
        loader = DataLoader(
            Batches(stage.batch, self.recipe.steps * self.count), batch_size=None, sampler=numbers, num_workers=workers,
            prefetch_factor=4 if workers else None, worker_init_fn=_ignore_signals,
        )  # fmt: skip
        numbered = iter(zip(numbers, loader, strict=True))
        try:
            for _ in range(start, last):
                group = [next(numbered) for _ in range(self.recipe.accumulate)]
                for error in (batch for _, batch in group if isinstance(batch, Exception)):
                    raise error
                yield group
        finally:
            del numbered  # ends the workers, which ignore signals; an error's traceback would keep them, and the process waits for them

    def accumulate_gradients(self, step: int, batches: Iterable[tuple[int, Any]], is_ending: Callable[[], bool]) -> dict[str, float] | None:
        """Add up the gradients of a step; returns the mean of its loss and figures, `None` where the run ends between two batches."""
        sums: dict[str, list[float]] = {}
        for number, batch in batches:
            if self.any_process(is_ending()):
                return None
            generator = torch.Generator().manual_seed(self.recipe.step_seed(number))
            torch.manual_seed(self.recipe.step_seed(number))
            with self.accelerator.autocast():
                loss, figures = self.compute(batch, generator)
            self.accelerator.backward(loss / self.recipe.accumulate)
            for name, value in {"loss": self._mean(loss.detach()), **figures}.items():
                sums.setdefault(name, []).append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _mean(self, loss: torch.Tensor) -> float:
        return float(self.accelerator.reduce(loss, "mean") if self.accelerator.num_processes > 1 else loss)

    def any_process(self, condition: bool) -> bool:
        """Whether a condition holds in any process."""
        if self.accelerator.num_processes == 1:
            return condition
        return bool(self.accelerator.reduce(torch.tensor(float(condition), device=self.accelerator.device), "sum"))

    def save(self, folder: Path, step: int, *parts: Any, best: bool = False) -> None:
        state = fsdp.full_state_dict(build_state(step, *parts))
        if self.accelerator.is_main_process:
            save_state(folder, state, self.recipe.keep)
            if best:
                _link_beside(folder / "state.pt", folder / BEST)
        self.accelerator.wait_for_everyone()


def _ignore_signals(worker: int) -> None:
    """Have a worker ignore signals, which reach the whole process group: the trainer needs its workers until it has saved.

    The worker ends with its parent.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Pause:
    """Requested by SIGTERM or SIGINT, or by a callback: the trainer then saves after the current batch and ends."""

    def __init__(self, callback: Callback | None) -> None:
        self.signalled, self.callback = False, callback
        self._handlers: dict[int, Any] = {}  # of the program, by signal

    def __enter__(self) -> Pause:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {name: signal.signal(name, self._request) for name in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)

    def _request(self, number: int, frame: object) -> None:
        self.signalled = True

    def is_requested(self) -> bool:
        return self.signalled or (self.callback is not None and self.callback.is_ending())


def collect_parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """All weights of a stage's modules, by their names in a state."""
    return {f"{part}.{name}": parameter for part, module in modules.items() for name, parameter in module.named_parameters()}


def _trainable(stage: Stage) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in collect_parameters(stage.modules).items() if parameter.requires_grad}


def make_optimizers(names: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Make the recipe's optimizers.

    Muon (Jordan et al., 2024) is scaled to AdamW's step size (Liu et al., 2025, arXiv 2502.16982), so that one learning rate fits both.
    """
    matrices = {name: p for name, p in names.items() if recipe.optimizer == "muon" and p.ndim == 2 and "blocks." in name}
    rest = [p for name, p in names.items() if name not in matrices]
    if recipe.optimizer == "adamw8bit":
        import bitsandbytes  # slow to import, and useful on a GPU only

        return [bitsandbytes.optim.AdamW8bit(rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)]
    adamw = torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    if not matrices:
        return [adamw]
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if resolve_precision("auto", rest[0].device if rest else kind_of_device()) == "fp32":
        return [adamw, Float32Muon(list(matrices.values()), **options)]
    return [adamw, torch.optim.Muon(list(matrices.values()), adjust_lr_fn="match_rms_adamw", **options)]


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate at a step, as a share of its peak.

    With "linear": warm-up, constant, then linear down to `final_rate`, so that a run can be extended. With "cosine": warm-up, then cosine.
    """
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.schedule == "cosine":
        share = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.final_rate + (1 - recipe.final_rate) * (1 + math.cos(math.pi * share)) / 2
    left = (recipe.steps - step) / max(1, recipe.steps * recipe.decay)
    return max(recipe.final_rate, min(1.0, left))


@torch.no_grad()
def _average(averaged: dict[str, torch.Tensor], names: dict[str, nn.Parameter], decay: float) -> None:
    for name, value in averaged.items():
        value.lerp_(names[name].detach(), 1 - decay)


def build_state(
    step: int, names: dict[str, nn.Parameter], averaged: dict[str, torch.Tensor], optimizers: list[torch.optim.Optimizer],
    frozen: dict[str, torch.Tensor] | None = None, precision: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Collect everything that a run needs to resume. `frozen` are weights that earlier runs of the training changed and this does not."""
    state = {"step": step, "precision": precision, "weights": (frozen or {}) | {k: v.detach() for k, v in names.items()}, "ema": averaged}
    return state | {"learning": list(names), "optimizers": [each.state_dict() for each in optimizers]}


def save_state(folder: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write a state from `build_state` beside the old one, then rename it: a killed save leaves the old. The last `keep` are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".state.*.part"):  # of a process that was killed
        left.unlink(missing_ok=True)
    beside = folder / f".state.{os.getpid()}.part"
    torch.save(state, beside)
    sync_file(beside)
    if keep > 1:
        _link_beside(beside, folder / f"state-{state['step']:07d}.pt")
        for old in sorted(folder.glob("state-*.pt"))[:-keep]:
            old.unlink()
    move(beside, folder / "state.pt")


def _link_beside(file: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, part)
    part.replace(target)


def read_state(folder: Path, warn: Callable[[str], None] = print) -> dict[str, Any] | None:
    """Read what `save_state` wrote, `None` where it wrote nothing. Where the last state is damaged, the newest whole one beside it is read.

    Raises:
        ValueError: all states are damaged; the message names what to remove.
    """
    last = folder / "state.pt"
    if not last.exists():
        return None
    for file in [last, *sorted(folder.glob("state-*.pt"), reverse=True)]:
        state = _read_whole(file)
        if state is None:
            continue
        if file != last:
            warn(f"The last saved state, {last}, is damaged; training goes on from {file.name}, after step {state['step']}.")
        return state
    raise ValueError(f"The saved state {last} is damaged, and no older one is beside it; remove it, and this stage begins again.")


def _read_whole(file: Path) -> dict[str, Any] | None:
    """Read one state, `None` where it is missing or damaged."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return state | {"step": int(state["step"])} if {"weights", "ema", "optimizers"} <= state.keys() else None
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise
        return None


def load_state(
    folder: Path, modules: dict[str, nn.Module], names: dict[str, nn.Parameter], averaged: dict[str, torch.Tensor],
    optimizers: list[torch.optim.Optimizer], *, warn: Callable[[str], None] = print,
) -> tuple[int, dict[str, torch.Tensor], str]:  # fmt: skip
    """Restore what `save_state` wrote, including weights that are not trained any more.

    Parameters that the earlier run did not train stay as they are. Where the parameters or the optimizer differ, the moments start anew.

    Returns:
        The next step, 0 when there is no state; the weights that are not trained any more, by name; the precision of the last save.
    """
    state = read_state(folder, warn)
    if state is None:
        return 0, {}, ""
    frozen = {name: state["ema"].get(name, value) for name, value in state["weights"].items() if name not in names}
    every = collect_parameters(modules)
    with torch.no_grad():
        for known, saved in ((every, state["weights"]), (averaged, state["weights"] | state["ema"]), (every, frozen)):
            for name in known.keys() & saved.keys():
                fsdp.copy_into(known[name], saved[name])
    if len(state["optimizers"]) == len(optimizers) and state.get("learning", list(state["weights"])) == list(names):
        for each, saved in zip(optimizers, state["optimizers"], strict=True):
            each.load_state_dict(fsdp.shard_moments(saved, each))
    return state["step"], frozen, state.get("precision", "")


@torch.no_grad()
def load_weights(folder: Path, modules: dict[str, nn.Module], ema: bool = True, best: bool = False) -> int:
    """Load a run's weights into `modules`, averaged ones with `ema`; returns the steps that they were trained for.

    Args:
        best: take the state that a callback called the best, if there is one.

    Raises:
        ValueError: the folder holds no state, or a damaged one.
    """
    state = (_read_whole(folder / BEST) if best else None) or read_state(folder)
    if state is None:
        raise ValueError(f"There is no training state in {folder}.")
    weights = state["weights"] | (state["ema"] if ema else {})
    for name, parameter in collect_parameters(modules).items():
        if name in weights:
            parameter.copy_(weights[name])
    return state["step"]


class Log:
    """Writes running means to `log.jsonl` and to a function, and says when the next state is due."""

    def __init__(self, folder: Path, recipe: Recipe, log: Callable[[str], None]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.recipe, self.log = folder / "log.jsonl", recipe, log
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
        self.log("  ".join(f"{name} {value}" for name, value in entry.items()))
        self.sums, self.logged = {}, now

    def is_due(self) -> bool:
        if time.monotonic() - self.saved < self.recipe.save_minutes * 60:
            return False
        self.saved = time.monotonic()
        return True
