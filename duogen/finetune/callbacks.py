"""Callbacks of a training run: they report progress, validation loss and samples, and obey commands such as "pause"."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from peft.tuners.lora import LoraLayer
from PIL.Image import Image as Picture
from torch import nn

from duogen.conversation import Text, Turn
from duogen.dataset.format import Example
from duogen.files import write_beside
from duogen.finetune.cost import format_duration
from duogen.finetune.feature_cache import CachedExample
from duogen.finetune.jobs import Job
from duogen.finetune.stages import BatchSampler
from duogen.models.mllm import MLLM, Context
from duogen.options import ImageOptions, TextOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.cosmos import CosmosPainter
from duogen.provenance import Origin, encode_picture
from duogen.train.trainer import Recipe, Stage, autocast, rate_at

SAMPLES, SAMPLE_TOKENS, CHECKED_BATCHES = 4, 120, 8
REPORT_SECONDS = 0.5

Sample = dict[str, Any]


class FineTuneStage(Stage, Protocol):
    """What fine-tuning needs of a stage, beside what the trainer needs."""

    recipe: Recipe
    batch_sampler: BatchSampler


@dataclass(frozen=True)
class Looks:
    """How often a run looks at samples and at the kept-back examples, and what follows from it.

    Attributes:
        every: steps between two looks; 0 for the first and the last only.
        best: whether the state is kept that did best on the kept-back examples.
        patience: looks without a better one until the run ends early, 0 for any number.
    """

    every: int
    best: bool = False
    patience: int = 0


class Sampler(Protocol):
    """Makes samples one by one, at every step from the same prompts and seeds; writes their pictures into a folder."""

    def __call__(self, folder: Path, prefix: str) -> Generator[Sample]: ...


def set_input_cast(model: nn.Module, enabled: bool) -> None:
    """Set whether adapters cast their input to their own precision. Under autocast that cast is wasted: autocast reverts it at once."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = enabled


@contextlib.contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in training into the mode of inference, for a while."""
    training = model.training
    set_input_cast(model.eval(), True)
    try:
        yield
    finally:
        set_input_cast(model.train(training), False)


class MLLMSampler:
    """Samples the MLLM's answers to the first question of some examples.

    Only words are sampled: where the MLLM begins a picture, the example's own picture is inserted.
    """

    def __init__(self, mllm: MLLM, examples: list[Example]) -> None:
        self.mllm, self.examples = mllm, examples[:SAMPLES]

    def __call__(self, folder: Path, prefix: str) -> Generator[Sample]:
        for index, example in enumerate(self.examples):
            with inference_mode(self.mllm.model):
                sample = self._sample_answer(example, index)
            yield sample

    @torch.no_grad()
    def _sample_answer(self, example: Example, seed: int) -> Sample:
        tokens, context = self.mllm.tokens, Context()
        question, answer = example.turns()[:2]
        packed = tokens.pack([question])
        packed.add(tokens.opening("assistant"), False)
        generator, text, left = torch.Generator().manual_seed(seed), "", SAMPLE_TOKENS
        pictures = iter(enumerate(answer.images(), 1))
        while True:
            self.mllm.prefill(context, packed)
            said, draws = self._generate_words(context, generator, left)
            left -= len(said) + 1
            text += tokens.tokenizer.decode(said)
            if not draws or left <= 0:
                break
            number, picture = next(pictures, (0, None))
            text += f" [picture {number or ''}] "
            if picture is None:
                break
            packed = context.packed.between(0)
            tokens.add_image(packed, picture, True)
        return {"prompt": question.text().strip(), "text": text.strip()}

    def _generate_words(self, context: Context, generator: torch.Generator, most: int) -> tuple[list[int], bool]:
        """Generate the words up to the next picture or the end; returns them, and whether a picture follows."""
        said: list[int] = []
        for token in self.mllm.generate(context, TextOptions(temperature=0.0), generator):
            if token in (self.mllm.tokens.end, self.mllm.tokens.bov) or len(said) >= most:
                return said, token == self.mllm.tokens.bov
            said.append(token)
        return said, False


class DiTSampler:
    """Samples the last picture of some examples, from their words and earlier pictures, always from the same noise."""

    def __init__(self, painter: CosmosPainter, examples: list[tuple[Example, CachedExample]]) -> None:
        self.painter, self.examples = painter, examples[:SAMPLES]

    def __call__(self, folder: Path, prefix: str) -> Generator[Sample]:
        for index, (example, cached) in enumerate(self.examples):
            with inference_mode(self.painter.model):
                picture = self._sample_picture(cached, index)
            name = f"{prefix}-{index}.png"
            write_beside(folder / name, encode_picture(picture, "PNG", Origin.PAINTED))
            prompt = next(line.text().strip() for line in example.lines)
            yield {"prompt": prompt, "text": last_words(example.turns()), "picture": name}

    @torch.no_grad()
    def _sample_picture(self, example: CachedExample, seed: int) -> Picture:
        about, device = self.painter.about, self.painter.model.device
        last = max(index for index, painted in enumerate(example.painted) if painted)
        frames = Frames.empty()
        states = example.states.to(device)[None].float()
        for latents, (until, since) in zip(example.latents[:last], example.cuts[:last], strict=True):
            self.painter.remember(frames, latents[None].to(device), states[:, :until], since)
        until, since = example.cuts[last]
        options = ImageOptions(steps=about.steps, guidance=about.guidance, preview_every=0)
        *_, painted = self.painter.paint(frames, PaintRequest(states[:, :until], since, options, seed))
        return self.painter.decode(painted.latents)


def last_words(turns: list[Turn]) -> str:
    said = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
    return " ".join(said[-1].split())[-200:] if said else ""


class TrainerCallback:
    """Called after every training step: reports progress, makes samples every `every` steps, and obeys the job's commands.

    Attributes:
        stage: "mllm" or "dit".
        sampler: makes the samples; with `None` there are no samples and no validation.
        held: the stage on the examples that are kept back, `None` where there are none.
        looks: how the looks at the kept-back examples shall count.
        rest: estimated seconds of the stages after this one.
        ending: "pause" or "stop" after that command, "early" where the kept-back examples get no better any more, else "".
        losses: the validation loss by step.
        step_seconds, sampling_seconds: how long a step takes, and samples with validation took last.
        progress: what was reported last.
    """

    def __init__(
        self,
        job: Job,
        stage: str,
        recipe: Recipe,
        *,
        looks: Looks,
        sampler: Sampler | None,
        held: FineTuneStage | None,
        rest: float = 0.0,
    ) -> None:
        self.job, self.stage, self.recipe, self.looks, self.rest = job, stage, recipe, looks, rest
        self.sampler, self.held = sampler, held
        self.ending, self.wanted = "", set[str]()
        self.losses = {round(each["step"]): each["validation"] for each in job.figures(stage) if "validation" in each and each["step"]}
        self.last_report, self.last_step, self.step_seconds, self.sampling_seconds = 0.0, time.monotonic(), 0.0, 0.0
        self.progress: dict[str, Any] = {}

    def on_start(self) -> None:
        """Make the samples of step 0 if there are none yet."""
        self.job.report(phase="sampling", words="Looking at what it can do before ...", stage=self.stage)
        if self._is_over():
            self.ending = "early"  # it had ended so before it was resumed
        elif not self.job.has_sample(self.stage, 0):
            self.evaluate_and_sample(0)
        self.last_step = time.monotonic()

    def is_ending(self) -> bool:
        for command in self.job.take_commands():
            if command in ("pause", "stop"):
                self.ending = command
            else:
                self.wanted.add(command)
        return bool(self.ending)

    def best_step(self) -> int | None:
        """The step after which the kept-back examples did best; `None` where nobody looked, or where the last weights stay."""
        return self._find_best() if self.looks.best else None

    def _find_best(self) -> int | None:
        return min(self.losses, key=lambda step: (self.losses[step], step), default=None)

    def _is_over(self) -> bool:
        """Whether too many looks at the kept-back examples were no better than the best."""
        best = self._find_best() or 0
        return 0 < self.looks.patience <= sum(step > best for step in self.losses)

    def on_step(self, step: int, figures: dict[str, float]) -> str:
        now = time.monotonic()
        self.step_seconds = now - self.last_step if not self.step_seconds else 0.9 * self.step_seconds + 0.1 * (now - self.last_step)
        self.is_ending()
        every = self.looks.every
        samplings = self.recipe.steps // every - step // every if every else 1
        left = self.step_seconds * (self.recipe.steps - step) + self.sampling_seconds * samplings + self.rest
        self.progress = {
            "stage": self.stage, "step": step, "steps": self.recipe.steps, "loss": figures["loss"], "seconds_left": left,
            "learning_rate": self.recipe.learning_rate * rate_at(step, self.recipe), "memory": memory_used(),
        }  # fmt: skip
        if now - self.last_report > REPORT_SECONDS or self.ending or step == self.recipe.steps:
            self.last_report = now
            words = f"Stage {1 if self.stage == 'mllm' else 2}: step {step} of {self.recipe.steps}, about {format_duration(left)} left"
            self.job.report(phase="training", words=words, **self.progress)
        due = "sample" in self.wanted or (every and step % every == 0)
        if (due and not self.ending) or step == self.recipe.steps:
            self.evaluate_and_sample(step)
            self.ending = self.ending or ("early" if self._is_over() else "")
        self.last_step = time.monotonic()
        command = "best" if step == self.best_step() else "pause" if self.ending else "save" if "save" in self.wanted else ""
        self.wanted.clear()
        return command

    def evaluate_and_sample(self, step: int) -> None:
        """Make samples and compute the validation loss; nothing is kept of them where a command ends the run meanwhile.

        Both use generators of their own, so that they do not change the training.
        """
        if self.sampler is None:
            return
        self.job.report(phase="sampling", words=f"Looking at samples of step {step} ...", **self.progress)
        began, folder = time.monotonic(), self.job.run / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        entry: dict[str, Any] = {"stage": self.stage, "step": step, "shown": []}
        for sample in self.sampler(folder, f"{self.stage}-{step:07d}"):
            entry["shown"].append(sample)
            if self.is_ending():
                return
        if self.held is not None:
            entry["validation"] = validation_loss(self.held, self.recipe, self.is_ending)
            if entry["validation"] is None:
                return
            self._keep_loss(step, entry["validation"])
        write_beside(folder / f"{self.stage}-{step:07d}.json", json.dumps(entry, ensure_ascii=False).encode())
        self.sampling_seconds = time.monotonic() - began

    def _keep_loss(self, step: int, loss: float) -> None:
        figures = self.job.stage_folder(self.stage)
        figures.mkdir(exist_ok=True)
        with (figures / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "validation": loss}) + "\n")
        if step:  # the weights of step 0 are the pair's own
            self.losses[step] = loss
        self.job.report(validation=loss)


@torch.no_grad()
def validation_loss(stage: FineTuneStage, recipe: Recipe, is_ending: Callable[[], bool] = lambda: False) -> float | None:
    """The mean loss of the examples that are kept back, always with the same noise; `None` where the run ends meanwhile."""
    losses = []
    for number in range(min(CHECKED_BATCHES, stage.batch_sampler.batches)):
        if is_ending():
            return None
        torch.manual_seed(number)
        with autocast(recipe):
            losses.append(float(stage.loss(stage.batch(number), torch.Generator().manual_seed(number))[0]))
    return round(sum(losses) / len(losses), 5)


def memory_used() -> int:
    """Bytes in use: the most on the GPU so far, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
