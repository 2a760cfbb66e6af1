"""Fine-tuning on a user's examples, from a folder to an adapter: stage 1, stage 2 or both, with the trainer of the bundled pair.

`--out` becomes an adapter (see `duogen.models.adapters`); `run/` in it holds the job: states, progress, samples. Where a stage's rank is 0,
all its weights are trained, and `--out/pair` is a whole new pair.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from filelock import FileLock, Timeout
from peft import LoraConfig
from torch import nn

from duogen.files import DISK_FULL, place_folder, write_beside
from duogen.finetune.callbacks import Looks, TrainerCallback
from duogen.finetune.config import STAGES
from duogen.finetune.cost import record_times
from duogen.finetune.jobs import Job, device_lock, serving_lock
from duogen.finetune.prepare import (
    ADAPTER_NAME,
    FineTuneRequest,
    LogFunction,
    PreparedRun,
    StageRun,
    StopRequested,
    build_stage,
    make_new_pair,
    open_trainable,
    prepare_run,
    release_memory,
    settle_steps,
)
from duogen.models.adapters import ADAPTER, write
from duogen.models.pipeline import About
from duogen.train import fsdp
from duogen.train.trainer import Diverged, load_weights, train

PART = {"mllm": "text_encoder", "dit": "transformer"}  # the part of a pair that a stage trains
FAILURES = {
    "memory": "Memory ran out. With smaller batches it may fit: lower them and go on from the last save.",
    "loss": "The loss is no number any more, so training was stopped; the last good state is kept. Lower the learning rate and go on.",
    "disk": "The disk is full. Make room, then resume: it goes on from the last save.",
}
DISK_SIGNS = ("failed writing file", "unexpected pos", "No space", "GB are free")  # as torch and safetensors put it


def finetune(request: FineTuneRequest, log: LogFunction = print) -> dict[str, Any]:
    """Run a fine-tuning, or resume it; returns the job's last progress.

    A failure during the run is not raised: the progress then has the `phase` "failed", and says in plain words what to do.

    Raises:
        ValueError: another process works on it.
    """
    job = Job(request.out)
    if fsdp.fsdp_requested():
        fsdp.read_whole_files()
    if not PartialState(cpu=not torch.cuda.is_available()).is_main_process:
        _run_without_report(request)
        return {}
    with job.hold_lock():
        job.write_request(request.as_json())
        job.report(phase="checking", words="Looking at the data ...", kind="", device=request.device)
        try:
            _run_stages(request, job, log)
        except StopRequested as command:
            job.report(phase="paused" if str(command) == "pause" else "stopped", words="Stopped before anything was learnt.")
        except (Exception, KeyboardInterrupt) as error:
            if not isinstance(error, ValueError | KeyboardInterrupt):
                traceback.print_exc()
            job.report(phase="failed", **describe_failure(error))
        known = job.progress()
        log(known["words"])
        return known


def describe_failure(error: BaseException) -> dict[str, str]:
    """Describe a failure: `words` in plain language, and its `kind`: "memory", "loss", "disk", "data" or "other"."""
    text = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno in DISK_FULL
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


def _run_without_report(request: FineTuneRequest) -> None:
    """Run the same training in a process of `accelerate launch` that is not the main one, and report nothing."""
    _run_stages(request, None, lambda words: None)


def _run_stages(request: FineTuneRequest, job: Job | None, log: LogFunction) -> None:
    run = prepare_run(request, log)
    request = replace(request, stage=run.request.stage)
    with _hold_device(run.device, job):
        run = settle_steps(request, run, job, log)
        for words in [*run.report.sentences(), *(words for each in run.costs for words in each.sentences())]:
            log(words)
        for stage in STAGES[request.stage]:
            built = build_stage(stage, run, job)
            ending = _train_stage(built, run, job, log)
            del built
            release_memory()
            if ending == "pause":
                if job is not None:
                    job.report(phase="paused", words="Paused; Resume goes on from here.")
                return
            if ending == "stop":
                break
        if job is not None:
            job.report(phase="stopped" if ending == "stop" else "done", words=_say_done(request, job), seconds_left=0)


def _say_done(request: FineTuneRequest, job: Job) -> str:
    """The last words, with the steps whose weights the adapter has where those are not the last."""
    if not any((request.out / part).is_dir() for part in (*PART.values(), "pair")):
        return "Stopped before anything was learnt."
    said = f"Done: the adapter is in {request.out}."
    kept = job.progress().get("kept", {})
    for stage, (step, done) in kept.items() if isinstance(kept, dict) else ():
        if step < done:
            said += f" Stage {1 if stage == 'mllm' else 2} did best on the kept-back examples at step {step} of {done}; that is kept."
    return said


@contextlib.contextmanager
def _hold_device(device: str, job: Job | None) -> Iterator[None]:
    """Wait until no other job computes on the device, and until the chat has left the GPU; then hold it."""
    if job is None:
        yield
        return
    where = device if ":" in device or device == "cpu" else f"{device}:0"
    job.report(device=where)
    with contextlib.ExitStack() as held:
        held.enter_context(_wait_for_lock(device_lock(where), "Waiting for another training to end ...", job, wants_gpu=False))
        if where != "cpu":
            held.enter_context(_wait_for_lock(serving_lock(where), "Waiting for the chat to leave the GPU ...", job, wants_gpu=True))
        yield


@contextlib.contextmanager
def _wait_for_lock(lock: FileLock, words: str, job: Job, wants_gpu: bool) -> Iterator[None]:
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            job.report(phase="waiting", words=words, wants_gpu=wants_gpu)
        for command in job.take_commands():
            if command in ("pause", "stop"):
                raise StopRequested(command)
    try:
        yield
    finally:
        lock.release()


def _train_stage(built: StageRun, run: PreparedRun, job: Job | None, log: LogFunction) -> str:
    """Train a stage and export the result; returns "" when all steps are done, else "pause" or "stop"."""
    name, stage, callback = built.name, built.stage, None
    folder, recipe = Job(run.request.out).stage_folder(name), stage.recipe
    if job is not None:
        own = run.request.recipe
        looks, rest = Looks(own.sample_every, own.best, own.patience), run.seconds_after(name)
        callback = TrainerCallback(job, name, recipe, looks=looks, sampler=built.sampler, held=built.held, rest=rest)
        callback.on_start()
    done = train(stage, recipe, folder, log=lambda line: None, callback=callback, warn=log)
    ending = callback.ending if callback is not None else ""
    if not ending and done < recipe.steps:
        ending = "pause"  # by a signal
    if ending == "stop" and not done:
        return ending
    if callback is not None and callback.step_seconds:
        record_times(run.cost_of(name), run.pair, run.device, callback.step_seconds, callback.sampling_seconds)
    if ending != "pause" and job is not None and (folder / "state.pt").exists():
        ((part, module),) = stage.modules.items()
        if fsdp.fsdp_requested():  # this process has only its share of the weights
            module = open_trainable(run, name, "cpu")[1]
        kept = load_weights(folder, {part: module}, best=run.request.recipe.best)
        job.report(kept={**job.progress().get("kept", {}), name: [kept, done]})
        _export(name, module, built.config, run)
    return ending


def _export(stage: str, module: nn.Module, config: LoraConfig | None, run: PreparedRun) -> None:
    """Write what a stage trained: a part of the adapter, or of a new pair."""
    out, part = run.request.out, PART[stage]
    if config is None:
        target = make_new_pair(run) / part
        beside = target.with_name(f".{part}.part")
        shutil.rmtree(beside, ignore_errors=True)
        whole: Any = module.to(torch.bfloat16)
        whole.save_pretrained(beside)
        shutil.rmtree(target, ignore_errors=True)
        place_folder(beside, target)
        if stage == "mllm":
            replace(About.load(target.parent), tuned=True).write(target.parent)
        return
    config.base_model_name_or_path = run.pair.name
    beside = out / f".{part}.part"
    shutil.rmtree(beside, ignore_errors=True)
    write(module, ADAPTER_NAME, config, beside)
    shutil.rmtree(out / part, ignore_errors=True)
    place_folder(beside, out / part)
    about = {
        "format": 1, "title": out.name, "base": run.request.pair or "duogen-sketch", "stage": run.request.stage,
        "examples": run.report.examples, "data": run.report.kind, "trigger": run.request.trigger,
        "recipe": run.request.recipe.as_json(),
    }  # fmt: skip
    write_beside(out / ADAPTER, json.dumps(about, indent=1, ensure_ascii=False).encode())
