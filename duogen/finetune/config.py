"""How a pair is fine-tuned: the one source for the command line's recipes and the page's advanced settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from duogen.options import Checked, option
from duogen.paths import ASSETS

RECIPES = ASSETS / "recipes"
PRESETS = ("cpu", "8gb", "12gb", "16gb", "24gb")
REHEARSED = {"talk": 480, "paint": 240}  # examples of what the pair practised before
STAGES = {"1": ("talk",), "2": ("paint",), "both": ("talk", "paint")}


@dataclass(frozen=True)
class Pace(Checked):
    """What both stages have."""

    steps: int = option(200, "Steps in all.", 1, 1_000_000, 1)
    learning_rate: float = option(2e-4, "The size of a step; too large ends in nonsense.", 1e-7, 0.05, 1e-6)
    batch: int = option(4, "Examples computed together; fewer need less memory.", 1, 1024, 1)
    accumulate: int = option(1, "Batches averaged for a step; more make it steadier without more memory.", 1, 1024, 1)
    rank: int = option(16, "The adapter's size; 0 trains every weight and makes a new pair.", 0, 1024, 1)
    warmup: int = option(10, "Steps until the full learning rate.", 0, 100_000, 1)
    weight_decay: float = option(0.0, "Pulls weights towards zero.", 0.0, 1.0, 0.001)
    clip: float = option(1.0, "The longest gradient.", 0.0, 1000.0, 0.1)
    ema: float = option(0.0, "Averages the weights over steps; 0 is off.", 0.0, 0.99999, 0.001)
    optimizer: str = option("adamw", "adamw, or adamw8bit to save memory on a GPU.")
    checkpointing: bool = option(False, "Compute again instead of remembering: less memory, a third slower.")


@dataclass(frozen=True)
class TalkRecipe(Pace):
    """Stage 1: the MLLM."""

    precision: str = option("auto", "Of the model that is adapted: auto, bf16, fp32, or nf4 to save memory (QLoRA).")
    first_layer: int = option(-1, "The lowest layer that learns; -1 leaves those alone that the painter reads.", -1, 1000, 1)
    vision: bool = option(False, "The vision tower learns too.")


@dataclass(frozen=True)
class PaintRecipe(Pace):
    """Stage 2: the DiT with its connector."""

    connector: str = option("lora", "lora, or full for an update of the connector of full rank.")
    copies: int = option(2, "Noisy versions of each picture in a batch.", 1, 64, 1)
    dropout: float = option(0.1, "How often the latest words are hidden, as guidance needs it.", 0.0, 1.0, 0.01)
    context_noise: float = option(0.1, "Noise on earlier pictures, as the painter's own are not perfect.", 0.0, 1.0, 0.01)
    shift: float = option(2.0, "How much of the practice is on very noisy pictures.", 0.1, 20.0, 0.1)
    buckets: bool = option(False, "Pictures keep their shape, in buckets of equal area; else they are fitted as in the chat.")


@dataclass(frozen=True)
class FineTune(Checked):
    """
    Attributes:
        talk, paint: stage 1 and stage 2.
    """

    seed: int = option(0, "The same seed, data and settings give the same adapter.")
    validation: float = option(0.1, "Share of the examples that are kept back to check on.", 0.0, 0.9, 0.01)
    max_tokens: int = option(2048, "Longer examples are cut after an answer, or left out.", 16, 131_072, 1)
    sample_every: int = option(50, "Steps between samples; 0 for the first and the last only.", 0, 1_000_000, 1)
    save_minutes: float = option(2.0, "Minutes between saved states.", 0.0, 600.0, 0.1)
    rehearse: float = option(0.6, "Share of the practice on what the pair could do before, where that is known; 0 forgets.", 0.0, 0.9, 0.05)
    keep: int = option(2, "Saved states that stay.", 1, 100, 1)
    talk: TalkRecipe = field(default_factory=TalkRecipe, metadata={"low": None, "high": None})
    paint: PaintRecipe = field(
        default_factory=lambda: PaintRecipe(learning_rate=1e-3, steps=400, ema=0.98), metadata={"low": None, "high": None}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in (self.talk, self.paint):
            if stage.optimizer not in ("adamw", "adamw8bit", "muon"):
                raise ValueError(f"optimizer must be adamw, adamw8bit or muon, not {stage.optimizer}.")
        if self.talk.precision not in ("auto", "bf16", "nf4", "fp32"):
            raise ValueError(f"precision must be auto, bf16, nf4 or fp32, not {self.talk.precision}.")
        if self.talk.precision == "nf4" and not self.talk.rank:
            raise ValueError("A quantised model can only be adapted; choose a rank above 0, or the precision auto.")
        if self.paint.connector not in ("lora", "full"):
            raise ValueError(f"connector must be lora or full, not {self.paint.connector}.")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(raw: Any) -> FineTune:
        """The settings that a decoded recipe file stands for; what it does not name keeps its default.

        Raises:
            ValueError: a name is not known, or a value is of the wrong kind or out of its range.
        """
        return _built(FineTune(), raw, "")

    @staticmethod
    def load(file: Path | str) -> FineTune:
        """A recipe file, or a preset by its name ("cpu", "8gb" ...).

        Raises:
            ValueError: one sentence.
        """
        path = RECIPES / f"finetune-{file}.json" if str(file) in PRESETS else Path(file)
        try:
            return FineTune.of(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"There is no recipe {path}; the presets are {', '.join(PRESETS)}.") from error
        except ValueError as error:
            raise ValueError(f"The recipe {path} cannot be used: {error}") from error

    def with_less_memory(self, stage: str) -> FineTune:
        """What to try after memory ran out: smaller batches that add up to the same, then recomputation.

        Raises:
            ValueError: nothing is left to lower.
        """
        own = getattr(self, stage)
        if own.batch > 1:
            own = replace(own, batch=(own.batch + 1) // 2, accumulate=own.accumulate * 2)
        elif not own.checkpointing:
            own = replace(own, checkpointing=True)
        elif self.max_tokens > 256:
            return replace(self, max_tokens=self.max_tokens // 2)
        else:
            raise ValueError("There is nothing left to lower; take smaller pictures, shorter examples or a smaller pair.")
        return replace(self, **{stage: own})

    def with_smaller_steps(self, stage: str) -> FineTune:
        """What to try after the loss was no number any more."""
        own = getattr(self, stage)
        return replace(self, **{stage: replace(own, learning_rate=max(1e-7, own.learning_rate / 3))})


def _built(default: Any, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'the recipe'} must be an object")
    hints = get_type_hints(type(default))
    unknown = [name for name in raw if name not in hints]
    if unknown:
        raise ValueError(f"{where}{unknown[0]} is not known; known are {', '.join(hints)}")
    values = {}
    for each in fields(default):
        own = getattr(default, each.name)
        if each.name not in raw:
            values[each.name] = own
        elif is_dataclass(own):
            values[each.name] = _built(own, raw[each.name], f"{each.name}.")
        else:
            values[each.name] = _value(raw[each.name], hints[each.name], where + each.name)
    return type(default)(**values)


def _value(value: Any, kind: Callable, name: str) -> Any:
    fits = isinstance(value, bool) == (kind is bool) and isinstance(value, (int, float) if kind is float else kind)
    if kind is int and isinstance(value, float) and value.is_integer() and not isinstance(value, bool):
        return int(value)
    if not fits:
        raise ValueError(f"{name} is {value!r}, which is no {kind.__name__}")
    return kind(value)
