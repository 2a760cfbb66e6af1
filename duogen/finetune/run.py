"""Fine-tuning on a user's examples, from a folder to an adapter: stage 1, stage 2 or both, with the loop that made the bundled pair.

`--out` becomes an adapter (see `duogen.models.adapters`); `run/` in it holds the job: states, progress, samples. Where a stage's rank is 0
its weights are trained in full, and `--out/pair` is a whole new pair.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from filelock import Timeout
from peft import LoraConfig
from torch import nn

from duogen.conversation import write_beside
from duogen.finetune.callbacks import Watcher
from duogen.finetune.config import STAGES
from duogen.finetune.cost import note
from duogen.finetune.jobs import Job, device_lock, serving_lock
from duogen.finetune.prepare import LESSONS, NAME, Asked, Lesson, Order, Ready, Say, clear, learner, new_pair, prepared
from duogen.models.adapters import ADAPTER, write
from duogen.models.pipeline import About
from duogen.train import fsdp as shards
from duogen.train.trainer import Diverged, load_weights, train

PART = {"talk": "text_encoder", "paint": "transformer"}
TITLES = {"talk": "what to say and when to draw", "paint": "how to paint it"}

FAILURES = {
    "memory": "Memory ran out. With smaller batches it may fit: lower them and go on from the last save.",
    "loss": "The loss is no number any more, so training was stopped; the last good state is kept. Lower the learning rate and go on.",
    "disk": "The disk is full. Make room, then resume: it goes on from the last save.",
}
DISK_SIGNS = ("failed writing file", "unexpected pos", "No space", "GB are free")  # as torch and safetensors put it


def finetune(order: Order, say: Say = print) -> dict[str, Any]:
    """Do what is ordered, or go on with it; returns the job's last progress. Nothing is raised for what can go wrong on the way:
    it is told in plain words, with what to do, as `phase` "failed".

    Raises:
        ValueError: another process works on it.
    """
    job = Job(order.out)
    if shards.wished():
        shards.read_whole()
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
            lesson = LESSONS[stage](ready, job)
            ending = _learn(lesson, ready, job, say)
            del lesson
            clear()
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


def _learn(lesson: Lesson, ready: Ready, job: Job | None, say: Say) -> str:
    """The loop, then what it made; returns "" when all steps are done, else what was asked for."""
    name, stage, watch = lesson.name, lesson.stage, None
    folder, recipe = ready.order.out / "run" / name, stage.recipe
    if job is not None:
        watch = Watcher(job, name, recipe, ready.order.recipe.sample_every, lesson.sampler, lesson.held)
        watch.begin()
    done = train(stage, recipe, folder, say=lambda line: None, watch=watch, warn=say)
    ending = watch.ending if watch is not None else ""
    if not ending and done < recipe.steps:
        ending = "pause"  # a signal asked for it
    if watch is not None and watch.pace:
        estimate = next(each for each in ready.costs if each.stage == name)
        note(estimate, ready.pair, ready.device, watch.pace, watch.look_seconds)
    if ending != "pause" and job is not None and (folder / "state.pt").exists():
        ((part, module),) = stage.modules.items()
        if shards.wished():  # this process has only its share of the weights
            module = learner(ready, name, "cpu")[1]
        load_weights(folder, {part: module})
        _export(name, module, lesson.config, ready)
    return ending


def _export(stage: str, module: nn.Module, config: LoraConfig | None, ready: Ready) -> None:
    """What a stage made: a part of the adapter, or of a new pair."""
    out, part = ready.order.out, PART[stage]
    if config is None:
        target = new_pair(ready) / part
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
