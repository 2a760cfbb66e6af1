"""What is ordered, looked at and made ready: the two stages of fine-tuning as lessons for the loop, and what they cost here."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from duogen.dataset.describe import Report, describe
from duogen.dataset.format import Data, Example, split
from duogen.dataset.readers import read
from duogen.finetune.callbacks import PaintSampler, Sampler, TalkSampler, cast_inputs
from duogen.finetune.config import STAGES, FineTune, Pace
from duogen.finetune.cost import Cost, cost, note
from duogen.finetune.feature_cache import Cache, Seeing, fingerprint
from duogen.finetune.feature_cache import read as read_seen
from duogen.finetune.jobs import Job, home
from duogen.finetune.replay import rehearsals
from duogen.finetune.stages import PaintStage, Rehearsed, TalkStage, lowest_layer, paint_config, talk_config
from duogen.hub.catalogue import find
from duogen.models.adapters import Wanted, put_on
from duogen.models.mllm import MLLM
from duogen.models.pipeline import About, open_parts, pick_device
from duogen.models.placement import free
from duogen.models.sequence import Tokens
from duogen.painters.cosmos import FramePainter
from duogen.precision import resolve_precision
from duogen.train import fsdp as shards
from duogen.train.states import truncated
from duogen.train.trainer import Recipe, autocast

NAME = "taught"  # the adapter's name among peft's
MEASURED_STEPS = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is asked for. `stage` is "1", "2" or "both"; `pair` an id, a repository or a folder, `None` for the bundled one; `rehearse`
    a folder of examples of what the pair should not forget, where its `duogen.json` does not say what it practised.
    """

    data: Path
    out: Path
    pair: str | None = None
    stage: str = "both"
    recipe: FineTune = FineTune()
    device: str = "auto"
    rehearse: Path | None = None

    def as_json(self) -> dict[str, Any]:
        plain = {"data": str(self.data.resolve()), "pair": self.pair, "stage": self.stage, "device": self.device}
        return plain | {"recipe": self.recipe.as_json(), "rehearse": str(self.rehearse.resolve()) if self.rehearse else None}

    @staticmethod
    def of(out: Path) -> Order:
        """The order of a job that was begun. Raises ValueError when there is none."""
        raw = Job(out).order()
        if not raw:
            raise ValueError(f"There is nothing to resume in {out}; start without --resume.")
        rehearse = Path(raw["rehearse"]) if raw.get("rehearse") else None
        return Order(Path(raw["data"]), out, raw["pair"], raw["stage"], FineTune.of(raw["recipe"]), raw["device"], rehearse)


@dataclass
class Ready:
    """An order whose data and pair have been looked at."""

    order: Order
    pair: Path
    device: str
    data: Data
    report: Report
    train: list[Example]
    held: list[Example]
    costs: list[Cost]


class Asked(Exception):
    """Somebody asked to pause or stop while nothing was being trained."""


def prepared(order: Order, say: Say = print) -> Ready:
    """Read and check the data, and estimate.

    Raises:
        ValueError: one sentence: what is wrong with the data, the pair or the device.
    """
    device = pick_device(order.device)
    pair = find(order.pair, progress=say).folder
    data = read(order.data)
    parts = open_parts(pair, (), device)
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    report = describe(data, tokens, order.recipe.max_tokens, order.recipe.validation)
    if not data.examples:
        first = f" ({data.problems[0].where}: {data.problems[0].what})" if data.problems else ""
        hint = "; write a .txt file with words beside each picture" if data.loose else ""
        raise ValueError(f"There is nothing to learn in {order.data}{first}{hint}.")
    if "paint" in STAGES[order.stage] and not report.painted:
        raise ValueError(f"No answer in {order.data} has a picture, which stage 2 needs; choose --stage 1.")
    train_on, held = split(data.examples, order.recipe.validation)
    costs = [cost(pair, order.recipe, stage, report, device) for stage in STAGES[order.stage]]
    return Ready(order, pair, device, data, report, train_on, held, costs)


def loop_recipe(own: Pace, whole: FineTune, **settings: Any) -> Recipe:
    """The loop's recipe for a stage's settings."""
    kept = ("steps", "learning_rate", "warmup", "weight_decay", "clip", "ema", "optimizer", "accumulate")
    return Recipe(
        **{name: getattr(own, name) for name in kept}, schedule="cosine", betas=(0.9, 0.99), seed=whole.seed, workers=0,
        save_minutes=whole.save_minutes, keep=whole.keep, log_every=1, precision=settings.pop("precision", "auto"), settings=settings,
    )  # fmt: skip


def taught(module: nn.Module, config: LoraConfig | None, seed: int) -> None:
    """Make a part learn: an adapter in it, or all of it."""
    module.requires_grad_(config is None)
    if config is not None:
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=NAME)
        cast_inputs(module, False)
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # steps are too small for bf16


@dataclass
class Lesson:
    """A stage that is ready to be learnt, what is kept back to check it, who makes samples (`None` where the weights are shared out, which
    only all processes together can use), and the adapter's shape.
    """

    name: str
    stage: Any
    held: Any
    sampler: Sampler | None
    config: LoraConfig | None


def learner(ready: Ready, stage: str, device: str) -> tuple[Any, nn.Module, LoraConfig | None]:
    """The parts that a stage needs, the one that learns, ready to learn, and its adapter's shape."""
    if stage == "talk":
        own = ready.order.recipe.talk
        parts = open_parts(ready.pair, ("text_encoder",), device, resolve_precision(own.precision, ready.device))
        module = parts.text_encoder
        first = lowest_layer(own, parts.about, module.config.text_config.num_hidden_layers)
        config = talk_config(module, own, first) if own.rank else None
    else:
        own = ready.order.recipe.paint
        parts = open_parts(ready.pair, ("transformer", "vae"), device)
        module = parts.transformer
        config = paint_config(module, own) if own.rank else None
    taught(module, config, ready.order.recipe.seed)
    return parts, module, config


def _place(ready: Ready) -> str:
    """Where weights are read to: what is shared out goes from the CPU's memory to the cards."""
    return "cpu" if shards.wished() else ready.device


def talk_lesson(ready: Ready, job: Job | None) -> Lesson:
    """Stage 1."""
    order, own = ready.order, ready.order.recipe.talk
    if job is not None:
        job.tell(phase="starting", words="Opening the language model ...")
    parts, mllm, config = learner(ready, "talk", _place(ready))
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    mllm.train()
    if ready.device == "cpu":  # plain matrix products: PyTorch's fused attention is slow there with a mask
        mllm.set_attn_implementation({"text_config": "eager"})
    if own.checkpointing:
        mllm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learns = own.vision or not own.rank
    recipe = loop_recipe(own, order.recipe, train_vision=learns, precision="bf16" if own.precision == "nf4" else own.precision)
    old = _rehearsals("talk", ready, job)
    stage = TalkStage(recipe, mllm, tokens, ready.train, own.batch, Rehearsed(old, order.recipe.rehearse))
    held = TalkStage(recipe, mllm, tokens, ready.held, own.batch) if ready.held else None
    sampler = TalkSampler(MLLM(mllm, tokens, list(parts.about.layers or [1])), ready.held or ready.train)
    return Lesson("talk", stage, held, None if shards.wished() else sampler, config)


def paint_lesson(ready: Ready, job: Job | None) -> Lesson:
    """Stage 2: states and latents once, then without MLLM."""
    order, own = ready.order, ready.order.recipe.paint
    painters = [example for example in ready.data.examples if example.pictures("assistant")]
    old = _rehearsals("paint", ready, job)
    with _main_first():
        files = seen(ready, [*painters, *old], job)
    clear()
    if job is not None:
        job.tell(phase="starting", words="Opening the painter ...")
    parts, transformer, config = learner(ready, "paint", _place(ready))
    if own.checkpointing:
        transformer.enable_gradient_checkpointing()
    recipe = loop_recipe(own, order.recipe)
    kept = {example.where: file for example, file in zip(painters, files, strict=False)}
    held_files = [kept[example.where] for example in ready.held if example.where in kept]
    own_files = [kept[example.where] for example in ready.train if example.where in kept] or held_files
    rehearsed = Rehearsed(files[len(painters) :], order.recipe.rehearse)
    stage = PaintStage(recipe, parts, own_files, own, rehearsed)
    held = PaintStage(recipe, parts, held_files, own) if held_files else None
    shown = [example for example in (ready.held or ready.train) if example in painters] or painters
    sampler = PaintSampler(FramePainter(parts), [(example, read_seen(kept[example.where])) for example in shown[:4]])
    return Lesson("paint", stage, held, None if shards.wished() else sampler, config)


LESSONS: dict[str, Callable[[Ready, Job | None], Lesson]] = {"talk": talk_lesson, "paint": paint_lesson}


@contextlib.contextmanager
def _main_first() -> Iterator[None]:
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield


def _rehearsals(stage: str, ready: Ready, job: Job | None) -> list[Example]:
    """What the pair practised before, if any of that is wished and known."""
    order = ready.order
    if not order.recipe.rehearse:
        return []
    if job is not None:
        job.tell(phase="starting", words="Making examples of what the pair can do already ...")
    with _main_first():
        return rehearsals(order.rehearse, About.load(ready.pair), stage, order.recipe.seed, order.out / "run" / "rehearsal" / stage)


def seen(ready: Ready, examples: list[Example], job: Job | None) -> list[Path]:
    """The files of examples that have a picture to paint, computed where they are not there."""
    order, recipe = ready.order, ready.order.recipe
    adapter = order.out / "text_encoder" if order.stage == "both" and recipe.talk.rank else None
    base = new_pair(ready) if order.stage == "both" and not recipe.talk.rank else ready.pair
    adapter = adapter if adapter is not None and adapter.is_dir() else None
    precision = resolve_precision(recipe.talk.precision, ready.device)
    name = fingerprint(base, precision, adapter, recipe.paint.buckets)
    cache = Cache(home() / "cache" / name)
    missing = [example for example in examples if not cache.file(example).exists()]
    see: Any = None
    if missing:
        _check_room(ready)
        if job is not None:
            job.tell(phase="caching", words="Opening the models that look at the examples ...")
        see = seeing(base, ready, adapter)

    def told(done: int, count: int) -> None:
        if job is not None:
            job.tell(phase="caching", words=f"Looking at the examples: {done} of {count} ...")
            for wish in job.asked() if see else ():
                if wish in ("pause", "stop"):
                    raise Asked(wish)

    return cache.fill(examples, lambda example: see(example), told)


def _check_room(ready: Ready) -> None:
    """Raises ValueError when the caches will not fit on the disk."""
    home().mkdir(parents=True, exist_ok=True)
    need, free = sum(each.disk for each in ready.costs), shutil.disk_usage(home()).free
    if need > free:
        raise ValueError(f"The examples need about {need / 1e9:.1f} GB of disk while stage 2 learns, and {free / 1e9:.1f} GB are free.")


def seeing(base: Path, ready: Ready, adapter: Path | None) -> Seeing:
    precision = resolve_precision(ready.order.recipe.talk.precision, ready.device)
    parts = open_parts(base, ("text_encoder", "vae"), ready.device, precision)
    if adapter is not None:
        put_on(parts, [Wanted(adapter.parent)])
    count = parts.text_encoder.config.text_config.num_hidden_layers
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    layers = list(parts.about.layers or range(1, count + 1))
    model = parts.text_encoder if max(layers) == count else truncated(parts.text_encoder, max(layers))  # what is above is not read
    mllm = MLLM(model, tokens, layers)
    return Seeing(mllm, FramePainter(parts), ready.order.recipe.paint.buckets)


def new_pair(ready: Ready) -> Path:
    """The pair that full training makes, at first a copy of the base."""
    target = ready.order.out / "pair"
    if not target.is_dir():
        part = target.with_name(f".pair.{os.getpid()}.part")
        shutil.copytree(ready.pair, part)
        part.replace(target)
    return target


def step_seconds(stage: Any, count: int) -> float:
    """What a batch takes, forward and back: the median of some that are made and thrown away; the first of all warms up."""
    taken = []
    for number in range(count + 1):
        began = time.perf_counter()
        with autocast(stage.recipe):
            loss, _ = stage.loss(stage.batch(number), torch.Generator().manual_seed(number))
        loss.backward()
        float(loss.detach())
        for module in stage.modules.values():
            module.zero_grad()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def measured(ready: Ready, say: Say = print) -> list[Cost]:
    """The estimate with steps that were really made: three of each stage, on as few examples as they take."""
    order, costs = ready.order, []
    few = replace(ready, train=ready.train[: max(order.recipe.paint.batch, 1)], held=[])
    few.data = replace(ready.data, examples=few.train)
    few.order = replace(order, stage="2" if order.stage == "both" else order.stage, recipe=replace(order.recipe, rehearse=0.0))
    for stage, before in zip(STAGES[order.stage], ready.costs, strict=True):
        say(f"Measuring a step of stage {1 if stage == 'talk' else 2} ...")
        lesson = LESSONS[stage](few, None)
        seconds = step_seconds(lesson.stage, MEASURED_STEPS) * getattr(order.recipe, stage).accumulate
        note(before, ready.pair, ready.device, seconds)
        costs.append(cost(ready.pair, order.recipe, stage, ready.report, ready.device))
        del lesson
        clear()
    return costs


def clear() -> None:
    """Between two stages; the next may want another precision, which accelerate keeps for the whole process."""
    AcceleratorState._reset_state()
    free()
