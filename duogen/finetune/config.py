"""The settings of fine-tuning: recipe files on the command line and the page's advanced settings are both made of these classes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen.files import read_text
from duogen.options import RangeChecked, option, read_options
from duogen.paths import ASSETS

RECIPES = ASSETS / "recipes"
PRESETS = ("cpu", "8gb", "12gb", "16gb", "24gb")
REPLAY_EXAMPLES = {"mllm": 480, "dit": 240}  # examples of what the pair was trained on before
STAGES = {"mllm": ("mllm",), "dit": ("dit",), "both": ("mllm", "dit")}
STAGE_ALIASES = {"1": "mllm", "2": "dit"}  # other names of a choice in `STAGES`
OLD_NAMES = {"talk": "mllm", "paint": "dit"}  # stages, as files call them that older versions wrote
OLD_KEYS = OLD_NAMES | {"rehearse": "replay"}


@dataclass(frozen=True)
class StageConfig(RangeChecked):
    """The settings that both stages have."""

    steps: int = option(200, "Steps in all; 0 sizes them to the examples and to the minutes.", 0, 1_000_000, 1)
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
class MLLMConfig(StageConfig):
    """The settings of stage 1, which trains the MLLM."""

    precision: str = option("auto", "Of the model that is adapted: auto, bf16, fp32, or nf4 to save memory (QLoRA).")
    first_layer: int = option(-1, "The lowest layer that learns; -1 leaves those alone that the painter reads.", -1, 1000, 1)
    vision: bool = option(False, "The vision tower learns too.")
    beta: float = option(0.1, "Of votes: how closely it stays at what the pair says already.", 0.001, 10.0, 0.001)


@dataclass(frozen=True)
class DiTConfig(StageConfig):
    """The settings of stage 2, which trains the DiT with its connector."""

    connector: str = option("lora", "lora, or full for an update of the connector of full rank.")
    copies: int = option(2, "Noisy versions of each picture in a batch.", 1, 64, 1)
    dropout: float = option(0.1, "How often the latest words are hidden, as guidance needs it.", 0.0, 1.0, 0.01)
    context_noise: float = option(0.1, "Noise on earlier pictures, as the painter's own are not perfect.", 0.0, 1.0, 0.01)
    shift: float = option(0.0, "How much of the practice is on very noisy pictures; 0 as the pair was trained.", 0.0, 20.0, 0.1)
    focus: float = option(0.3, "How much more the new places of a picture count than those that stay.", 0.0, 10.0, 0.1)
    beta: float = option(20.0, "Of votes: how closely it stays at what the pair paints already.", 0.1, 100_000.0, 0.1)
    buckets: bool = option(False, "Pictures keep their shape, in buckets of equal area; else they are fitted as in the chat.")


@dataclass(frozen=True)
class FineTuneConfig(RangeChecked):
    """All settings of fine-tuning.

    Attributes:
        mllm, dit: the settings of stage 1 and of stage 2.
    """

    seed: int = option(0, "The same seed, data and settings give the same adapter.")
    validation: float = option(0.1, "Share of the examples that are kept back to check on.", 0.0, 0.9, 0.01)
    max_tokens: int = option(2048, "Longer examples are cut after an answer, or left out.", 16, 131_072, 1)
    sample_every: int = option(50, "Steps between samples; 0 for the first and the last only.", 0, 1_000_000, 1)
    save_minutes: float = option(2.0, "Minutes between saved states.", 0.0, 600.0, 0.1)
    replay: float = option(0.6, "Share of the practice on what the pair could do before, where that is known; 0 forgets.", 0.0, 0.9, 0.05)
    keep: int = option(2, "Saved states that stay.", 1, 100, 1)
    minutes: float = option(20.0, "Minutes that stages whose steps are 0 take together, where that is enough.", 1, 10_000, 1)
    best: bool = option(True, "The weights that do best on the kept-back examples stay, not the last ones.")
    patience: int = option(4, "Looks at the kept-back examples without a better one until it ends early; 0 never ends early.", 0, 1000, 1)
    mllm: MLLMConfig = field(default_factory=MLLMConfig, metadata={"low": None, "high": None, "label": "What to say (MLLM)"})
    dit: DiTConfig = field(
        default_factory=lambda: DiTConfig(learning_rate=1e-3, steps=400, ema=0.98),
        metadata={"low": None, "high": None, "label": "How to paint it (DiT)"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in (self.mllm, self.dit):
            if stage.optimizer not in ("adamw", "adamw8bit", "muon"):
                raise ValueError(f"optimizer must be adamw, adamw8bit or muon, not {stage.optimizer}.")
        if self.mllm.precision not in ("auto", "bf16", "nf4", "fp32"):
            raise ValueError(f"precision must be auto, bf16, nf4 or fp32, not {self.mllm.precision}.")
        if self.mllm.precision == "nf4" and not self.mllm.rank:
            raise ValueError("A quantised model can only be adapted; choose a rank above 0, or the precision auto.")
        if self.dit.connector not in ("lora", "full"):
            raise ValueError(f"connector must be lora or full, not {self.dit.connector}.")

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Any) -> FineTuneConfig:
        """Build the settings from a decoded recipe file. A setting that the file does not name keeps its default.

        Raises:
            ValueError: a name is not known, or a value is of the wrong kind or out of its range.
        """
        return read_options(FineTuneConfig, rename_old_keys(raw), default=FineTuneConfig())

    @staticmethod
    def load(file: Path | str) -> FineTuneConfig:
        """Read a recipe file, or a preset by its name ("cpu", "8gb" ...).

        Raises:
            ValueError: one sentence.
        """
        path = RECIPES / f"finetune-{file}.json" if str(file) in PRESETS else Path(file)
        if not path.exists():
            raise ValueError(f"There is no recipe {path}; the presets are {', '.join(PRESETS)}.")
        try:
            return FineTuneConfig.from_json(json.loads(read_text(path)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The recipe {path} cannot be used: {error}") from error

    def with_less_memory(self, stage: str) -> FineTuneConfig:
        """The settings to try after memory ran out: first smaller batches that add up to the same size, then recomputation.

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

    def with_smaller_steps(self, stage: str) -> FineTuneConfig:
        """The settings to try after the loss was not a number."""
        own = getattr(self, stage)
        return replace(self, **{stage: replace(own, learning_rate=max(1e-7, own.learning_rate / 3))})


def rename_old_keys(raw: Any) -> Any:
    """The same recipe with today's names for the keys that older versions wrote."""
    return {OLD_KEYS.get(key, key): value for key, value in raw.items()} if isinstance(raw, dict) else raw
