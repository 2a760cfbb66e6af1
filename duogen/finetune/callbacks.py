"""What is seen of a training run while it runs: progress, validation loss, samples that show how it changes; and wishes obeyed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from duogen.conversation import Text, Turn, write_beside
from duogen.dataset.format import Example
from duogen.finetune.cost import spoken
from duogen.finetune.feature_cache import Seen
from duogen.finetune.jobs import Job
from duogen.models.mllm import MLLM, Context
from duogen.options import ImageOptions, TextOptions
from duogen.painters.cosmos import FramePainter, Frames
from duogen.train.trainer import Recipe, Stage, autocast, rate_at

SAMPLES, SAMPLE_TOKENS, CHECKED_BATCHES = 4, 120, 8
TELL_SECONDS = 0.5

Shown = dict[str, Any]


class Sampler(Protocol):
    """Makes samples from the same prompts and seeds at any step; pictures go into the folder it is given."""

    def __call__(self, folder: Path, prefix: str) -> list[Shown]: ...


def cast_inputs(model: nn.Module, wished: bool) -> None:
    """Whether adapters bring their input to their own precision. Autocast brings it back at once, twice for every layer and step."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = wished


@contextlib.contextmanager
def serving(model: nn.Module) -> Iterator[None]:
    """A model that learns, used for a while as it will be used later."""
    training = model.training
    cast_inputs(model.eval(), True)
    try:
        yield
    finally:
        cast_inputs(model.train(training), False)


class TalkSampler:
    """What the MLLM answers to the first question of some examples: its words; where it wants to draw, the example's own picture stands."""

    def __init__(self, mllm: MLLM, examples: list[Example]) -> None:
        self.mllm, self.examples = mllm, examples[:SAMPLES]

    @torch.no_grad()
    def __call__(self, folder: Path, prefix: str) -> list[Shown]:
        with serving(self.mllm.model):
            return [self._answer(example, index) for index, example in enumerate(self.examples)]

    def _answer(self, example: Example, seed: int) -> Shown:
        tokens, context = self.mllm.tokens, Context()
        asked, answer = example.turns()[:2]
        packed = tokens.pack([asked])
        packed.add(tokens.opening("assistant"), False)
        generator, text, left = torch.Generator().manual_seed(seed), "", SAMPLE_TOKENS
        pictures = iter(enumerate(answer.images(), 1))
        while True:
            self.mllm.prefill(context, packed)
            said, draws = self._say(context, generator, left)
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
        return {"prompt": asked.text().strip(), "text": text.strip()}

    def _say(self, context: Context, generator: torch.Generator, most: int) -> tuple[list[int], bool]:
        """The next words, and whether a picture comes after them."""
        said: list[int] = []
        for token in self.mllm.talk(context, TextOptions(temperature=0.0), generator):
            if token in (self.mllm.tokens.end, self.mllm.tokens.bov) or len(said) >= most:
                return said, token == self.mllm.tokens.bov
            said.append(token)
        return said, False


class PaintSampler:
    """The last picture of some examples, painted from their words and earlier pictures, always from the same noise."""

    def __init__(self, painter: FramePainter, seen: list[tuple[Example, Seen]]) -> None:
        self.painter, self.seen = painter, seen[:SAMPLES]

    @torch.no_grad()
    def __call__(self, folder: Path, prefix: str) -> list[Shown]:
        shown = []
        for index, (example, seen) in enumerate(self.seen):
            with serving(self.painter.model):
                picture = self._paint(seen, index)
            name = f"{prefix}-{index}.png"
            picture.save(folder / f".{name}.part", "PNG")
            (folder / f".{name}.part").replace(folder / name)
            prompt = next(line.words().strip() for line in example.lines)
            shown.append({"prompt": prompt, "text": last_words(example.turns()), "picture": name})
        return shown

    def _paint(self, seen: Seen, seed: int) -> Any:
        about, device = self.painter.about, self.painter.model.device
        last = max(index for index, painted in enumerate(seen.painted) if painted)
        frames = Frames.empty()
        states = seen.states.to(device)[None].float()
        for latents, (until, since) in zip(seen.latents[:last], seen.cuts[:last], strict=True):
            self.painter.remember(frames, latents[None].to(device), states[:, :until], since)
        until, since = seen.cuts[last]
        options = ImageOptions(steps=about.steps, guidance=about.guidance, preview_every=0)
        *_, painted = self.painter.paint(frames, states[:, :until], since, options, seed)
        return self.painter.decode(painted.latents)


def last_words(turns: list[Turn]) -> str:
    said = [part.text for turn in turns for part in turn.parts if isinstance(part, Text)]
    return " ".join(said[-1].split())[-200:] if said else ""


class Watcher:
    """Looks on after every step; `ending` is "pause" or "stop" once somebody wished that. Without a sampler it looks at no samples."""

    def __init__(self, job: Job, name: str, recipe: Recipe, every: int, sampler: Sampler | None, held: Stage | None) -> None:
        self.job, self.name, self.recipe, self.every = job, name, recipe, every
        self.sampler, self.held = sampler, held
        self.ending = ""
        self.told, self.last, self.pace, self.look_seconds = 0.0, time.monotonic(), 0.0, 0.0
        self.known: dict[str, Any] = {}

    def begin(self) -> None:
        """The samples from before, if they are not there yet."""
        if not (self.job.run / "samples" / f"{self.name}-{0:07d}.json").exists():
            self.look(0)
        self.last = time.monotonic()

    def after(self, step: int, figures: dict[str, float]) -> str:
        now = time.monotonic()
        self.pace = now - self.last if not self.pace else 0.9 * self.pace + 0.1 * (now - self.last)
        wishes = self.job.asked()
        self.ending = next((wish for wish in wishes if wish in ("pause", "stop")), self.ending)
        looks = self.recipe.steps // self.every - step // self.every if self.every else 1
        left = self.pace * (self.recipe.steps - step) + self.look_seconds * looks
        self.known = {
            "stage": self.name, "step": step, "steps": self.recipe.steps, "loss": figures["loss"], "seconds_left": left,
            "learning_rate": self.recipe.learning_rate * rate_at(step, self.recipe), "memory": memory(),
        }  # fmt: skip
        if now - self.told > TELL_SECONDS or self.ending or step == self.recipe.steps:
            self.told = now
            words = f"Stage {1 if self.name == 'talk' else 2}: step {step} of {self.recipe.steps}, about {spoken(left)} left"
            self.job.tell(phase="training", words=words, **self.known)
        if "sample" in wishes or (self.every and step % self.every == 0) or step == self.recipe.steps:
            self.look(step)
        self.last = time.monotonic()
        return "pause" if self.ending else "save" if "save" in wishes else ""

    def look(self, step: int) -> None:
        """Samples and the validation loss. Both use generators of their own, so that training goes on as without them."""
        if self.sampler is None:
            return
        self.job.tell(phase="sampling", words=f"Looking at samples of step {step} ...", **self.known)
        began, folder = time.monotonic(), self.job.run / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        shown = self.sampler(folder, f"{self.name}-{step:07d}")
        entry = {"stage": self.name, "step": step, "shown": shown}
        if self.held is not None:
            entry["validation"] = validation(self.held, self.recipe)
            (self.job.run / self.name).mkdir(exist_ok=True)
            with (self.job.run / self.name / "validation.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "validation": entry["validation"]}) + "\n")
            self.job.tell(validation=entry["validation"])
        write_beside(folder / f"{self.name}-{step:07d}.json", json.dumps(entry, ensure_ascii=False).encode())
        self.look_seconds = time.monotonic() - began


@torch.no_grad()
def validation(stage: Stage, recipe: Recipe) -> float:
    """The mean loss of the examples that are kept back, always with the same noise."""
    losses = []
    for number in range(min(CHECKED_BATCHES, stage.rounds.batches)):
        torch.manual_seed(number)
        with autocast(recipe):
            losses.append(float(stage.loss(stage.batch(number), torch.Generator().manual_seed(number))[0]))
    return round(sum(losses) / len(losses), 5)


def memory() -> int:
    """Bytes in use: the most on the card so far, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
