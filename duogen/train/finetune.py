"""Fine-tuning on a user's examples, from a folder to an adapter: stage 1, stage 2 or both, with the loop that made the bundled pair.

`--out` becomes an adapter (see `duogen.adapters`); `run/` in it holds the job: states, progress, samples. Where a stage's rank is 0 its
weights are trained in full, and `--out/pair` is a whole new pair.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from filelock import Timeout
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from duogen.adapters import ADAPTER, Wanted, put_on, write
from duogen.catalogue import find
from duogen.conversation import write_beside
from duogen.data.cost import Cost, cost
from duogen.data.describe import Report, describe
from duogen.data.format import Data, Example, split
from duogen.data.readers import read
from duogen.jobs import Job, device_lock, home, serving_lock
from duogen.mllm import MLLM
from duogen.painter import FramePainter
from duogen.pipeline import About, open_parts, pick_device
from duogen.placement import free
from duogen.sequence import Tokens
from duogen.teaching import STAGES, FineTune, Pace
from duogen.train.cache import Cache, Seeing, fingerprint
from duogen.train.cache import read as read_seen
from duogen.train.dit import truncated
from duogen.train.loop import Diverged, Recipe, load_weights, train
from duogen.train.taught import PaintStage, TalkStage, lowest_layer, paint_config, talk_config
from duogen.train.watching import PaintSampler, TalkSampler, Watcher

NAME = "taught"  # the adapter's name among peft's
PART = {"talk": "text_encoder", "paint": "transformer"}
TITLES = {"talk": "what to say and when to draw", "paint": "how to paint it"}

FAILURES = {
    "memory": "Memory ran out. With smaller batches it may fit: lower them and go on from the last save.",
    "loss": "The loss is no number any more, so training was stopped; the last good state is kept. Lower the learning rate and go on.",
    "disk": "The disk is full. Make room, then resume: it goes on from the last save.",
}
DISK_SIGNS = ("failed writing file", "unexpected pos", "No space", "GB are free")  # as torch and safetensors put it

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is asked for. `stage` is "1", "2" or "both"; `pair` an id, a repository or a folder, `None` for the bundled one."""

    data: Path
    out: Path
    pair: str | None = None
    stage: str = "both"
    recipe: FineTune = FineTune()
    device: str = "auto"

    def as_json(self) -> dict[str, Any]:
        plain = {"data": str(self.data.resolve()), "pair": self.pair, "stage": self.stage, "device": self.device}
        return plain | {"recipe": self.recipe.as_json()}

    @staticmethod
    def of(out: Path) -> Order:
        """The order of a job that was begun. Raises ValueError when there is none."""
        raw = Job(out).order()
        if not raw:
            raise ValueError(f"There is nothing to resume in {out}; start without --resume.")
        return Order(Path(raw["data"]), out, raw["pair"], raw["stage"], FineTune.of(raw["recipe"]), raw["device"])


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


def finetune(order: Order, say: Say = print) -> dict[str, Any]:
    """Do what is ordered, or go on with it; returns the job's last progress. Nothing is raised for what can go wrong on the way:
    it is told in plain words, with what to do, as `phase` "failed".

    Raises:
        ValueError: another process works on it.
    """
    job = Job(order.out)
    if not PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        _follow(order)
        return {}
    with job.living():
        job.write_order(order.as_json())
        job.tell(phase="checking", words="Looking at the data ...", kind="", device=order.device)
        try:
            _work(order, job, say)
        except Asked as asked:
            job.tell(phase="paused" if str(asked) == "pause" else "stopped", words="Stopped before anything was learnt.")
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, ValueError | KeyboardInterrupt):
                traceback.print_exc()
            job.tell(phase="failed", **failure(error))
        known = job.progress()
        say(known["words"])
        return known


def failure(error: BaseException) -> dict[str, str]:
    """What went wrong in plain words, and its `kind`: "memory", "loss", "disk", "data" or "other"."""
    text = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return {"kind": "memory", "words": FAILURES["memory"]}
    if isinstance(error, Diverged):
        return {"kind": "loss", "words": FAILURES["loss"]}
    if full or any(sign in text for sign in DISK_SIGNS):
        return {"kind": "disk", "words": FAILURES["disk"]}
    if isinstance(error, FileNotFoundError) or (isinstance(error, ValueError) and "There is no f" in text):
        return {"kind": "data", "words": f"A file of the data is gone ({text.rstrip('.')}). Put it back, then resume."}
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "other", "words": "Stopped by hand; resume goes on from the last save."}
    if isinstance(error, ValueError):
        return {"kind": "data", "words": text}
    return {"kind": "other", "words": f"Something went wrong ({type(error).__name__}: {text[:200]}); resume tries again."}


def _follow(order: Order) -> None:
    """What the other processes of `accelerate launch` do: the same training, with nothing to tell."""
    _work(order, None, lambda words: None)


def _work(order: Order, job: Job | None, say: Say) -> None:
    ready = prepared(order, say)
    for words in [*ready.report.sentences(), *(each.sentence() for each in ready.costs)]:
        say(words)
    with _device(ready.device, job):
        for stage in STAGES[order.stage]:
            step = _talk if stage == "talk" else _paint
            ending = step(ready, job, say)
            _clear()
            if ending == "pause":
                if job is not None:
                    job.tell(phase="paused", words="Paused; Resume goes on from here.")
                return
            if ending == "stop":
                break
        if job is not None:
            job.tell(phase="stopped" if ending == "stop" else "done", words=f"Done: the adapter is in {order.out}.", seconds_left=0)


@contextlib.contextmanager
def _device(device: str, job: Job | None) -> Iterator[None]:
    """Wait until no other job computes on the device, and until the chat has left the card."""
    if job is None:
        yield
        return
    where = device if ":" in device or device == "cpu" else f"{device}:0"
    job.tell(device=where)
    with contextlib.ExitStack() as held:
        locks = [(device_lock(where), "Waiting for another training to end ...")]
        if where != "cpu":
            locks.append((serving_lock(where), "Waiting for the chat to leave the card ..."))
        for lock, words in locks:
            held.enter_context(_waited(lock, words, job))
        yield


@contextlib.contextmanager
def _waited(lock: Any, words: str, job: Job) -> Iterator[None]:
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            job.tell(phase="waiting", words=words, wants_card="card" in words)
        for wish in job.asked():
            if wish in ("pause", "stop"):
                raise Asked(wish)
    try:
        yield
    finally:
        lock.release()


def _clear() -> None:
    """Between two stages; the next may want another precision, which accelerate keeps for the whole process."""
    AcceleratorState._reset_state()
    free()


def loop_recipe(own: Pace, whole: FineTune, **settings: Any) -> Recipe:
    """The loop's recipe for a stage's settings."""
    kept = ("steps", "learning_rate", "warmup", "weight_decay", "clip", "ema", "optimizer", "accumulate")
    return Recipe(
        **{name: getattr(own, name) for name in kept}, schedule="cosine", betas=(0.9, 0.99), seed=whole.seed, workers=0,
        save_minutes=whole.save_minutes, keep=whole.keep, log_every=1, precision=settings.pop("precision", "bf16"), settings=settings,
    )  # fmt: skip


def _taught(module: nn.Module, config: LoraConfig | None, seed: int) -> None:
    """Make a part learn: an adapter in it, or all of it."""
    module.requires_grad_(config is None)
    if config is not None:
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=NAME)
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # steps are too small for bf16


def _run(stage: Any, recipe: Recipe, job: Job | None, watch: Watcher | None, folder: Path) -> str:
    """The loop; returns "" when all steps are done, else what was asked for."""
    if watch is not None:
        watch.begin()
    done = train(stage, recipe, folder, say=lambda line: None, watch=watch)
    if watch is not None and watch.ending:
        return watch.ending
    return "" if done >= recipe.steps else "pause"  # a signal asked for it


def _talk(ready: Ready, job: Job | None, say: Say) -> str:
    """Stage 1."""
    order, own = ready.order, ready.order.recipe.talk
    folder = order.out / "run" / "talk"
    if job is not None:
        job.tell(phase="starting", words="Opening the language model ...")
    parts = open_parts(ready.pair, ("text_encoder",), ready.device, own.precision)
    mllm, tokens = parts.text_encoder, Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    first = lowest_layer(own, parts.about, mllm.config.text_config.num_hidden_layers)
    config = talk_config(mllm, own, first) if own.rank else None
    _taught(mllm, config, order.recipe.seed)
    mllm.train()
    if ready.device == "cpu":  # plain matrix products: PyTorch's fused attention is slow there with a mask
        mllm.set_attn_implementation({"text_config": "eager"})
    if own.checkpointing:
        mllm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    learns = own.vision or not own.rank
    recipe = loop_recipe(own, order.recipe, train_vision=learns, precision="fp32" if own.precision == "fp32" else "bf16")
    stage = TalkStage(recipe, mllm, tokens, ready.train, own.batch)
    held = TalkStage(recipe, mllm, tokens, ready.held, own.batch) if ready.held else None
    sampler = TalkSampler(MLLM(mllm, tokens, list(parts.about.layers or [1])), ready.held or ready.train)
    watch = Watcher(job, "talk", recipe, order.recipe.sample_every, sampler, held) if job is not None else None
    ending = _run(stage, recipe, job, watch, folder)
    if ending != "pause" and job is not None and (folder / "state.pt").exists():
        load_weights(folder, {"mllm": mllm})
        _export("talk", mllm, config, ready)
    return ending


def _paint(ready: Ready, job: Job | None, say: Say) -> str:
    """Stage 2: states and latents once, then without MLLM."""
    order, own = ready.order, ready.order.recipe.paint
    folder = order.out / "run" / "paint"
    with _main_first():
        files = _seen(ready, job)
    _clear()
    if job is not None:
        job.tell(phase="starting", words="Opening the painter ...")
    parts = open_parts(ready.pair, ("transformer", "vae"), ready.device)
    transformer = parts.transformer
    config = paint_config(transformer, own) if own.rank else None
    _taught(transformer, config, order.recipe.seed)
    if own.checkpointing:
        transformer.enable_gradient_checkpointing()
    recipe = loop_recipe(own, order.recipe)
    kept, painters = {example.where: file for example, file in files}, [example for example, _ in files]
    held_files = [kept[example.where] for example in ready.held if example.where in kept]
    own_files = [kept[example.where] for example in ready.train if example.where in kept] or held_files
    stage = PaintStage(recipe, transformer, parts.about, parts.vae, own_files, own)
    held = PaintStage(recipe, transformer, parts.about, parts.vae, held_files, own) if held_files else None
    shown = [example for example in (ready.held or ready.train) if example in painters] or painters
    sampler = PaintSampler(FramePainter(parts), [(example, read_seen(kept[example.where])) for example in shown[:4]])
    watch = Watcher(job, "paint", recipe, order.recipe.sample_every, sampler, held) if job is not None else None
    ending = _run(stage, recipe, job, watch, folder)
    if ending != "pause" and job is not None and (folder / "state.pt").exists():
        load_weights(folder, {"transformer": transformer})
        _export("paint", transformer, config, ready)
    return ending


@contextlib.contextmanager
def _main_first() -> Iterator[None]:
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield


def _seen(ready: Ready, job: Job | None) -> list[tuple[Example, Path]]:
    """The files of all examples that have a picture to paint, computed where they are not there."""
    order, recipe = ready.order, ready.order.recipe
    adapter = order.out / "text_encoder" if order.stage == "both" and recipe.talk.rank else None
    base = _new_pair(ready) if order.stage == "both" and not recipe.talk.rank else ready.pair
    adapter = adapter if adapter is not None and adapter.is_dir() else None
    name = fingerprint(base, recipe.talk.precision, adapter, recipe.paint.buckets)
    cache = Cache(home() / "cache" / name)
    examples = [example for example in ready.data.examples if example.pictures("assistant")]
    missing = [example for example in examples if not cache.file(example).exists()]
    see: Any = None
    if missing:
        _check_room(ready)
        if job is not None:
            job.tell(phase="caching", words="Opening the models that look at the examples ...")
        see = _seeing(base, ready, adapter)

    def told(done: int, count: int) -> None:
        if job is not None:
            job.tell(phase="caching", words=f"Looking at the examples: {done} of {count} ...")
            for wish in job.asked() if see else ():
                if wish in ("pause", "stop"):
                    raise Asked(wish)

    return list(zip(examples, cache.fill(examples, lambda example: see(example), told), strict=True))


def _check_room(ready: Ready) -> None:
    """Raises ValueError when the caches will not fit on the disk."""
    need, free = sum(each.disk for each in ready.costs), shutil.disk_usage(home()).free
    if need > free:
        raise ValueError(f"The examples need about {need / 1e9:.1f} GB of disk while stage 2 learns, and {free / 1e9:.1f} GB are free.")


def _seeing(base: Path, ready: Ready, adapter: Path | None) -> Seeing:
    parts = open_parts(base, ("text_encoder", "vae"), ready.device, ready.order.recipe.talk.precision)
    if adapter is not None:
        put_on(parts, [Wanted(adapter.parent)])
    count = parts.text_encoder.config.text_config.num_hidden_layers
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    layers = list(parts.about.layers or range(1, count + 1))
    model = parts.text_encoder if max(layers) == count else truncated(parts.text_encoder, max(layers))  # what is above is not read
    mllm = MLLM(model, tokens, layers)
    return Seeing(mllm, FramePainter(parts), ready.order.recipe.paint.buckets)


def _export(stage: str, module: nn.Module, config: LoraConfig | None, ready: Ready) -> None:
    """What a stage made: a part of the adapter, or of a new pair."""
    out, part = ready.order.out, PART[stage]
    if config is None:
        target = _new_pair(ready) / part
        beside = target.with_name(f".{part}.part")
        shutil.rmtree(beside, ignore_errors=True)
        module.to(torch.bfloat16).save_pretrained(beside)
        shutil.rmtree(target, ignore_errors=True)
        beside.replace(target)
        if stage == "talk":
            replace(About.load(target.parent), tuned=True).write(target.parent)
        return
    config.base_model_name_or_path = ready.pair.name
    beside = out / f".{part}.part"
    shutil.rmtree(beside, ignore_errors=True)
    write(module, NAME, config, beside)
    shutil.rmtree(out / part, ignore_errors=True)
    beside.replace(out / part)
    about = {
        "format": 1, "title": out.name, "base": ready.order.pair or "duogen-sketch", "stage": ready.order.stage,
        "examples": ready.report.examples, "data": ready.report.kind, "recipe": ready.order.recipe.as_json(),
    }  # fmt: skip
    write_beside(out / ADAPTER, json.dumps(about, indent=1, ensure_ascii=False).encode())


def _new_pair(ready: Ready) -> Path:
    """The pair that full training makes, at first a copy of the base."""
    target = ready.order.out / "pair"
    if not target.is_dir():
        part = target.with_name(f".pair.{os.getpid()}.part")
        shutil.copytree(ready.pair, part)
        part.replace(target)
    return target

