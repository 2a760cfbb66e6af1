"""Prepare fine-tuning: check data and pair, build the two stages for the trainer, cache features, and measure what a stage costs."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from duogen.dataset.describe import Report, TokenCounter, describe
from duogen.dataset.folder import shorten
from duogen.dataset.format import Data, Example, Problem, split_examples
from duogen.dataset.layouts.captions import make_caption_example
from duogen.files import fill_folder
from duogen.finetune.callbacks import DiTSampler, FineTuneStage, MLLMSampler, Sampler, set_input_cast
from duogen.finetune.config import STAGE_ALIASES, STAGES, FineTuneConfig, StageConfig
from duogen.finetune.cost import Cost, estimate_cost, format_duration, record_times, size_steps
from duogen.finetune.feature_cache import CachedExample, FeatureCache, FeatureExtractor, fingerprint
from duogen.finetune.feature_cache import read as read_features
from duogen.finetune.jobs import Job, finetune_home
from duogen.finetune.preference_stages import DiTPreferenceStage, MLLMPreferenceStage, select_matching
from duogen.finetune.preferences import Preference, choose_stages, copy_votes, read_examples, select_pairs
from duogen.finetune.replay import load_replay_examples
from duogen.finetune.stages import DiTStage, MLLMStage, Replay, dit_lora_config, lowest_layer, mllm_lora_config
from duogen.hub.catalogue import find
from duogen.models.adapters import AdapterSpec, set_adapters
from duogen.models.mllm import MLLM
from duogen.models.pipeline import About, DuoGenPipeline, open_parts, pick_device
from duogen.models.placement import free
from duogen.models.sequence import Tokens
from duogen.painters.cosmos import CosmosPainter
from duogen.precision import resolve_precision
from duogen.train import fsdp
from duogen.train.states import truncate_layers
from duogen.train.trainer import Recipe, autocast

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

ADAPTER_NAME = "taught"  # the adapter's name in peft; it is part of the weights' names in states on disk
MEASURED_STEPS = 2
VOTE_RATE = 1 / 6  # of the learning rate for examples; with the whole of it the first steps lead further than votes ask for

LogFunction = Callable[[str], None]


@dataclass(frozen=True)
class FineTuneRequest:
    """What a user wants to be fine-tuned.

    Attributes:
        data: folder or zip of examples.
        out: folder of the adapter.
        pair: id, repository or folder; `None` for the bundled one.
        stage: "mllm", "dit" or "both".
        replay: folder of examples of what the pair should not forget, where its `duogen.json` does not name what it was trained on.
        trigger: a word that is put before every request of the examples, so that it calls up what was learnt.
        prompts: requests to make samples from, in place of those of examples.
        votes: `data` is a folder of votes. The reference keeps the pair from forgetting, so nothing is replayed.
    """

    data: Path
    out: Path
    pair: str | None = None
    stage: str = "both"
    recipe: FineTuneConfig = FineTuneConfig()
    device: str = "auto"
    replay: Path | None = None
    trigger: str = ""
    prompts: tuple[str, ...] = ()
    votes: bool = False

    def __post_init__(self) -> None:
        if self.votes:
            object.__setattr__(self, "recipe", replace(self.recipe, replay=0.0))
        object.__setattr__(self, "stage", STAGE_ALIASES.get(self.stage, self.stage))

    def as_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"data": str(self.data.resolve()), "pair": self.pair, "stage": self.stage, "device": self.device}
        plain |= {"trigger": self.trigger, "prompts": list(self.prompts), "votes": self.votes}
        return plain | {"recipe": self.recipe.as_json(), "replay": str(self.replay.resolve()) if self.replay else None}

    @staticmethod
    def load(out: Path) -> FineTuneRequest:
        """Read the request of a job that was begun. Raises ValueError when there is none."""
        raw = Job(out).read_request()
        if not raw:
            raise ValueError(f"There is nothing to resume in {out}; start without --resume.")
        replay = Path(raw["replay"]) if raw.get("replay") else None
        recipe = FineTuneConfig.from_json(raw["recipe"])
        own = raw.get("trigger") or "", tuple(raw.get("prompts") or ()), bool(raw.get("votes"))
        return FineTuneRequest(Path(raw["data"]), out, raw["pair"], raw["stage"], recipe, raw["device"], replay, *own)

    def with_own_votes(self) -> FineTuneRequest:
        """Copy the votes into the job's folder, so that those that come or go meanwhile change nothing; the request for the copy."""
        copy_votes(self.data, Job(self.out).votes_folder())
        return replace(self, data=Job(self.out).votes_folder())


@dataclass
class PreparedRun:
    """A request with its data read and checked, its pair found, and its costs estimated.

    Attributes:
        pair: folder of the pair.
        train, held: the examples to learn from, and those that are kept back to check on.
        costs: of each stage.
    """

    request: FineTuneRequest
    pair: Path
    device: str
    data: Data
    report: Report
    train: list[Example]
    held: list[Example]
    costs: list[Cost]

    def cost_of(self, stage: str) -> Cost:
        return next(each for each in self.costs if each.stage == stage)

    def seconds_after(self, stage: str) -> float:
        """Estimated seconds of the stages after a stage."""
        return sum(each.seconds for each in self.costs[self.costs.index(self.cost_of(stage)) + 1 :])


class StopRequested(Exception):
    """A command "pause" or "stop" came before training began; the message is the command."""


def prepare_run(request: FineTuneRequest, log: LogFunction = print) -> PreparedRun:
    """Read and check the data, find the pair, and estimate the costs.

    Raises:
        ValueError: one sentence: what is wrong with the data, the pair or the device.
    """
    device = pick_device(request.device)
    pair = find(request.pair, progress=log).folder
    data = read_examples(request.data, request.votes)
    data.examples = [example.with_trigger(request.trigger) for example in data.examples]
    parts = open_parts(pair, (), device)
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    if request.votes:
        request = _settle_votes(request, data, tokens)
    report = describe(data, tokens, request.recipe.max_tokens, request.recipe.validation)
    if not data.examples:
        wrong = [*data.problems, *data.unread]
        first = f" ({wrong[0].where}: {wrong[0].what})" if wrong else ""
        hint = "; write a .txt file with words beside each picture" if data.loose else ""
        raise ValueError(f"There is nothing to learn in {shorten(str(request.data))}{first}{hint}.")
    if "dit" in STAGES[request.stage] and not report.painted:
        raise ValueError(f"No answer in {shorten(str(request.data))} has a picture, which stage 2 needs; choose --stage mllm.")
    train_on, held = split_examples(data.examples, request.recipe.validation)
    request = replace(request, recipe=size_steps(pair, request.recipe, STAGES[request.stage], report, device))
    costs = [estimate_cost(pair, request.recipe, stage, report, device) for stage in STAGES[request.stage]]
    return PreparedRun(request, pair, device, data, report, train_on, held, costs)


def _settle_votes(request: FineTuneRequest, data: Data, tokens: Tokens) -> FineTuneRequest:
    """Leave out votes between answers that are too long; returns the request for the stages that the others are enough for.

    Raises:
        ValueError: there are too few votes, or a stage has no adapter that could be switched off.
    """
    length, most = TokenCounter(tokens), request.recipe.max_tokens
    longest = {each: max(length(each.lines), length(each.worse.lines)) for each in data.examples if isinstance(each, Preference)}
    data.problems += [
        Problem(each.where, f"it has {count:,} tokens, and {most:,} are allowed") for each, count in longest.items() if count > most
    ]
    data.examples = [each for each, count in longest.items() if count <= most]
    request = replace(request, stage=choose_stages(request.stage, data.examples))
    if not all(getattr(request.recipe, stage).rank for stage in STAGES[request.stage]):
        raise ValueError("Votes are learnt with an adapter; choose a rank above 0.")
    return request


def settle_steps(request: FineTuneRequest, run: PreparedRun, job: Job | None, log: LogFunction) -> PreparedRun:
    """The run with the numbers of steps that it keeps, in every process and after a resume. `request` is as the user gave it.

    Where the request leaves a number open and no training was timed on this machine yet, some steps are timed.
    """
    if all(getattr(request.recipe, stage).steps for stage in STAGES[request.stage]):
        return run
    recipe, several = run.request.recipe, PartialState().num_processes > 1
    if any(each.guessed for each in run.costs) and not several:
        _report_start(job, "Timing some steps on this machine ...")
        measure_costs(run, log)
        recipe = size_steps(run.pair, request.recipe, STAGES[request.stage], run.report, run.device)
    if several:
        (recipe,) = broadcast_object_list([recipe])
    settled = replace(request, recipe=recipe)
    if job is not None:
        job.write_request(settled.as_json())
    return replace(run, request=settled, costs=[estimate_cost(run.pair, recipe, each.stage, run.report, run.device) for each in run.costs])


def build_recipe(own: StageConfig, whole: FineTuneConfig, **settings: Any) -> Recipe:
    """The trainer's recipe for a stage's settings."""
    kept = ("steps", "learning_rate", "warmup", "weight_decay", "clip", "ema", "optimizer", "accumulate")
    return Recipe(
        **{name: getattr(own, name) for name in kept}, schedule="cosine", betas=(0.9, 0.99), seed=whole.seed, workers=0,
        save_minutes=whole.save_minutes, keep=whole.keep, log_every=1, precision=settings.pop("precision", "auto"), settings=settings,
    )  # fmt: skip


def _slow_down(own: StageConfig, request: FineTuneRequest) -> StageConfig:
    """A stage's settings with the learning rate that the request needs."""
    return replace(own, learning_rate=max(1e-7, own.learning_rate * VOTE_RATE)) if request.votes else own


def make_trainable(module: nn.Module, config: LoraConfig | None, seed: int) -> None:
    """Make a part trainable: an adapter that is put in, or without `config` all of its weights."""
    module.requires_grad_(config is None)
    if config is not None:
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=ADAPTER_NAME)
        set_input_cast(module, False)
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # steps are too small for bf16


@dataclass
class StageRun:
    """A stage that is ready for the trainer.

    Attributes:
        name: "mllm" or "dit".
        held: the same stage on the examples that are kept back, `None` where there are none.
        sampler: makes samples; `None` with FSDP, where one process alone cannot use the weights.
        config: of the adapter, `None` where all weights are trained.
    """

    name: str
    stage: FineTuneStage
    held: FineTuneStage | None
    sampler: Sampler | None
    config: LoraConfig | None


def open_trainable(run: PreparedRun, stage: str, device: str) -> tuple[DuoGenPipeline, nn.Module, LoraConfig | None]:
    """Open the parts that a stage needs; returns them, the trainable one, and its adapter's configuration."""
    if stage == "mllm":
        own = run.request.recipe.mllm
        parts = open_parts(run.pair, ("text_encoder",), device, resolve_precision(own.precision, run.device))
        module = parts.text_encoder
        first = lowest_layer(own, parts.about, module.config.text_config.num_hidden_layers)
        config = mllm_lora_config(module, own, first) if own.rank else None
    else:
        own = run.request.recipe.dit
        parts = open_parts(run.pair, ("transformer", "vae"), device)
        module = parts.transformer
        config = dit_lora_config(module, own) if own.rank else None
    make_trainable(module, config, run.request.recipe.seed)
    return parts, module, config


def _load_device(run: PreparedRun) -> str:
    """The device that weights are loaded to. With FSDP that is the CPU: from there each process takes its share to its GPU."""
    return "cpu" if fsdp.fsdp_requested() else run.device


def build_mllm_stage(run: PreparedRun, job: Job | None) -> StageRun:
    """Build stage 1."""
    request, own = run.request, run.request.recipe.mllm
    _report_start(job, "Opening the language model ...")
    parts, _, config = open_trainable(run, "mllm", _load_device(run))
    mllm: Qwen2_5_VLForConditionalGeneration = parts.text_encoder
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    mllm.train()
    if run.device == "cpu":  # plain matrix products: PyTorch's fused attention is slow there with a mask
        mllm.set_attn_implementation({"text_config": "eager"})
    if own.checkpointing:
        mllm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    train_vision = own.vision or not own.rank
    precision = "bf16" if own.precision == "nf4" else own.precision
    recipe = build_recipe(_slow_down(own, request), request.recipe, train_vision=train_vision, precision=precision)
    replay = Replay(_load_replay("mllm", run, job), request.recipe.replay)
    stage: FineTuneStage
    held: FineTuneStage | None
    if request.votes:
        pairs, held_pairs = (select_pairs(each, "mllm") for each in (run.train, run.held))
        stage = MLLMPreferenceStage(recipe, mllm, tokens, pairs or held_pairs, own)
        held = MLLMPreferenceStage(recipe, mllm, tokens, held_pairs, own) if held_pairs else None
    else:
        stage = MLLMStage(recipe, mllm, tokens, run.train, own.batch, replay)
        held = MLLMStage(recipe, mllm, tokens, run.held, own.batch) if run.held else None
    sampler = MLLMSampler(MLLM(mllm, tokens, list(parts.about.layers or [1])), make_prompt_examples(run) or run.held or run.train)
    return StageRun("mllm", stage, held, None if fsdp.fsdp_requested() else sampler, config)


def build_dit_stage(run: PreparedRun, job: Job | None) -> StageRun:
    """Build stage 2, which trains on cached states and latents, without the MLLM."""
    request, own = run.request, run.request.recipe.dit
    painted = [example for example in run.data.examples if example.pictures("assistant")]
    if request.votes:
        painted = [*select_pairs(run.data.examples, "dit")]
    worse = [each.worse for each in painted if isinstance(each, Preference)]
    old = _load_replay("dit", run, job)
    with _main_process_first():
        asked = make_prompt_examples(run)
        files = cache_features(run, [*painted, *worse, *asked, *old], job, len(old))
    release_memory()
    _report_start(job, "Opening the painter ...")
    parts, _, config = open_trainable(run, "dit", _load_device(run))
    if own.checkpointing:
        parts.transformer.enable_gradient_checkpointing()
    recipe = build_recipe(_slow_down(own, request), request.recipe)
    kept = dict(zip([*painted, *worse, *asked], files, strict=False))
    stage, held = _make_dit_stages(run, recipe, parts, kept, Replay(files[len(files) - len(old) :], request.recipe.replay))
    shown = asked or [example for example in (run.held or run.train) if example in painted] or painted
    sampler = DiTSampler(CosmosPainter(parts), [(example, read_features(kept[example])) for example in shown[:4]])
    return StageRun("dit", stage, held, None if fsdp.fsdp_requested() else sampler, config)


def _make_dit_stages(
    run: PreparedRun, recipe: Recipe, parts: DuoGenPipeline, kept: dict[Example, Path], replay: Replay
) -> tuple[FineTuneStage, FineTuneStage | None]:
    """Stage 2 on the examples to learn from and on those that are kept back. `kept` are the files of cached features.

    Raises:
        ValueError: no vote is between pictures that can be compared.
    """
    own = run.request.recipe.dit
    if run.request.votes:
        pairs, held_pairs = (
            select_matching((kept[each], kept[each.worse]) for each in select_pairs(examples, "dit")) for examples in (run.train, run.held)
        )
        if not (pairs or held_pairs):
            raise ValueError("No vote is between pictures of one size, which stage 2 needs; choose --stage mllm.")
        stage = DiTPreferenceStage(recipe, parts, pairs or held_pairs, own)
        return stage, DiTPreferenceStage(recipe, parts, held_pairs, own) if held_pairs else None
    held_files = [kept[example] for example in run.held if example in kept]
    own_files = [kept[example] for example in run.train if example in kept] or held_files
    return DiTStage(recipe, parts, own_files, own, replay), DiTStage(recipe, parts, held_files, own) if held_files else None


def _report_start(job: Job | None, words: str) -> None:
    """Report what is opened next. Raises StopRequested: a command came to end before that."""
    if job is not None:
        job.report(phase="starting", words=words)
        obey_commands(job)


def obey_commands(job: Job) -> None:
    """Raises StopRequested: a command came to end. Where something was learnt before, it waits for the trainer, which keeps that."""
    learnt = any((job.stage_folder(stage) / "state.pt").exists() for stage in STAGES["both"])
    for command in () if learnt else job.take_commands():
        if command in ("pause", "stop"):
            raise StopRequested(command)


def make_prompt_examples(run: PreparedRun) -> list[Example]:
    """Examples of the user's own sample prompts. The picture in them only holds the place of the one to be painted."""
    pictures = [picture for example in run.data.examples for picture in example.pictures()]
    wanted = run.request.prompts if pictures else ()
    return [make_caption_example(words, pictures[0].file, "a sample prompt").with_trigger(run.request.trigger) for words in wanted]


def build_stage(name: str, run: PreparedRun, job: Job | None) -> StageRun:
    """Build the stage "mllm" or "dit"; `job` gets the progress."""
    return build_mllm_stage(run, job) if name == "mllm" else build_dit_stage(run, job)


@contextlib.contextmanager
def _main_process_first() -> Iterator[None]:
    state = PartialState(cpu=not torch.cuda.is_available())
    with state.main_process_first():
        yield


def _load_replay(stage: str, run: PreparedRun, job: Job | None) -> list[Example]:
    """Examples of what the pair was trained on before; none where the request wants none, or where they are not known."""
    request = run.request
    if not request.recipe.replay:
        return []
    _report_start(job, "Making examples of what the pair can do already ...")
    with _main_process_first():
        return load_replay_examples(request.replay, About.load(run.pair), stage, request.recipe.seed, Job(request.out).replay_folder(stage))


def cache_features(run: PreparedRun, examples: list[Example], job: Job | None, practice: int = 0) -> list[Path]:
    """Compute the features of examples where they are not cached yet; returns the files. Each example needs a picture to paint.

    `practice` is how many of them the pair practised before.
    """
    request, recipe = run.request, run.request.recipe
    adapter = request.out / "text_encoder" if request.stage == "both" and recipe.mllm.rank else None
    base = make_new_pair(run) if request.stage == "both" and not recipe.mllm.rank else run.pair
    adapter = adapter if adapter is not None and adapter.is_dir() else None
    precision = resolve_precision(recipe.mllm.precision, run.device)
    name = fingerprint(base, precision, adapter, recipe.dit.buckets)
    cache = FeatureCache(finetune_home() / "cache" / name)
    missing = [example for example in examples if not cache.has(example)]
    extractor: FeatureExtractor | None = None
    if missing:
        _check_disk_space(run)

    began, about = time.monotonic(), f", {practice} of them its own practice" if practice else ""

    def report(done: int, count: int) -> None:
        if job is None or not missing:
            return
        looking = (time.monotonic() - began) / done * (count - done) if done else 0.0
        cost = run.cost_of("dit")
        left = looking + cost.seconds - cost.before + run.seconds_after("dit")
        words = f"Looking at {count} examples{about}: {done} done, about {format_duration(left)} left in all"
        job.report(phase="caching", words=words, seconds_left=left)
        obey_commands(job)

    def extract(example: Example) -> CachedExample:
        nonlocal extractor
        if extractor is None:
            if job is not None:
                job.report(phase="caching", words="Opening the models that look at the examples ...")
            extractor = open_extractor(base, run, adapter)
        return extractor(example)

    return cache.fill(examples, extract, report)


def _check_disk_space(run: PreparedRun) -> None:
    """Raises ValueError when the caches will not fit on the disk."""
    finetune_home().mkdir(parents=True, exist_ok=True)
    need, free = sum(each.disk for each in run.costs), shutil.disk_usage(finetune_home()).free
    if need > free:
        raise ValueError(f"The examples need about {need / 1e9:.1f} GB of disk while stage 2 learns, and {free / 1e9:.1f} GB are free.")


def open_extractor(base: Path, run: PreparedRun, adapter: Path | None) -> FeatureExtractor:
    """Open the MLLM and the VAE of the pair in `base`, with the MLLM's adapter if there is one."""
    precision = resolve_precision(run.request.recipe.mllm.precision, run.device)
    parts = open_parts(base, ("text_encoder", "vae"), run.device, precision)
    if adapter is not None:
        set_adapters(parts, [AdapterSpec(adapter.parent)])
    count = parts.text_encoder.config.text_config.num_hidden_layers
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    layers = list(parts.about.layers or range(1, count + 1))
    model = parts.text_encoder if max(layers) == count else truncate_layers(parts.text_encoder, max(layers))  # layers above are not read
    mllm = MLLM(model, tokens, layers)
    return FeatureExtractor(mllm, CosmosPainter(parts), run.request.recipe.dit.buckets)


def make_new_pair(run: PreparedRun) -> Path:
    """The folder of the pair that full training makes; at first a copy of the base is put there."""
    target = run.request.out / "pair"
    if not target.is_dir():
        with fill_folder(target) as part:
            shutil.copytree(run.pair, part, dirs_exist_ok=True)
    return target


def time_step(stage: FineTuneStage, count: int) -> float:
    """The median seconds of `count` batches, forward and backward, after one that warms up. No weight is changed."""
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


def measure_costs(run: PreparedRun, log: LogFunction = print) -> list[Cost]:
    """Estimate again, after timing a few steps of each stage on as few examples as they need."""
    request, costs = run.request, []
    most = None if request.votes else max(request.recipe.dit.batch, 1)  # not every vote teaches every stage
    few = replace(run, train=run.train[:most], held=[])
    few.data = replace(run.data, examples=few.train)
    few.request = replace(request, stage="dit" if request.stage == "both" else request.stage, recipe=replace(request.recipe, replay=0.0))
    for stage, before in zip(STAGES[request.stage], run.costs, strict=True):
        log(f"Measuring a step of stage {1 if stage == 'mllm' else 2} ...")
        built = build_stage(stage, few, None)
        seconds = time_step(built.stage, MEASURED_STEPS) * getattr(request.recipe, stage).accumulate
        record_times(before, run.pair, run.device, seconds)
        costs.append(estimate_cost(run.pair, request.recipe, stage, run.report, run.device))
        del built
        release_memory()
    return costs


def release_memory() -> None:
    """Free memory between two stages, and have accelerate forget the precision, which may differ in the next stage."""
    AcceleratorState._reset_state()
    free()
