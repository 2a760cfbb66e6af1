"""The settings of the stages that train the bundled pair: what `settings` may hold in a recipe file, `assets/recipes/duogen-*.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Self, get_args, get_type_hints

from duogen.options import RangeChecked, choice, option, read_options

REWARDED_TASKS = ("guide", "picture", "edit", "drafts")  # whose pictures the exact check can judge
OLD_KEYS = {"hands": "styles"}  # as recipes call them that older versions wrote


@dataclass(frozen=True, kw_only=True)
class StageSettings(RangeChecked):
    """The settings that all stages have."""

    stage: ClassVar[str] = ""

    styles: float = option(0.0, "Share of the pictures that are drawn in another style.", 0.0, 1.0)

    @classmethod
    def from_json(cls, raw: Any) -> Self:
        """Build the settings from a recipe's `settings`. What they do not name keeps its default.

        Raises:
            ValueError: a name is not known, a required one is missing, or a value is of the wrong kind or out of its range.
        """
        try:
            return read_options(cls, cls._rename_old_keys({} if raw is None else raw))
        except ValueError as error:
            raise ValueError(f"The recipe's {cls.stage} settings cannot be used: {str(error).rstrip('.')}.") from error

    @classmethod
    def _rename_old_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        today = {name: value for name, value in raw.items() if name not in OLD_KEYS}
        return {OLD_KEYS[name]: raw[name] for name in OLD_KEYS if name in raw} | today


@dataclass(frozen=True, kw_only=True)
class CurriculumSettings(StageSettings):
    """What the dialogues of stage 1 and stage 2 show."""

    stage = "curriculum"

    styles: float = option(0.0, "Share of the dialogues in which the user's pictures are drawn in another style.", 0.0, 1.0)
    core_kinds: tuple[str, ...] = option((), "Kinds of things that come more often than the others; none for all alike.")
    core_share: float = option(0.5, "Share of the dialogues that show the core kinds alone.", 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class VAEModel(RangeChecked):
    """The sizes of a new `PatchVAE`."""

    z_dim: int = option(96, "Channels of the latents.", 1, 16_384)
    patch_size: int = option(32, "Side of a patch in pixels; a patch becomes one place of the latents.", 8, 256)
    width: int = option(64, "Channels of the decoder's correction, a multiple of 8.", 8, 4096)
    blocks: int = option(4, "Residual blocks of the decoder's correction.", 0, 100)


@dataclass(frozen=True, kw_only=True)
class VAESettings(StageSettings):
    """The settings of the VAE stage."""

    stage = "vae"

    batch: int = option(8, "Pictures in a batch.", 1, 4096)
    noise: float = option(0.25, "The most noise on the latents, as a share of their spread; half of the pictures have none.", 0.0, 10.0)
    patches_from: int = option(1500, "Pictures that the patches' axes are fitted to.", 1, 10_000_000)
    grow_from: str = option("", "Folder of an autoencoder to start from: its channels come first, and of `model` only `z_dim` is used.")
    model: VAEModel = option(VAEModel(), "Sizes of the autoencoder.")
    crowded: float | None = option(None, "Share of the scenes that hold two or three things of half size; none for any scenes.", 0.0, 1.0)
    edits: float = option(0.0, "Share of the scenes that are shown after an edit.", 0.0, 1.0)
    tiny: float = option(0.0, "Additional weight of tiny parts: of their pixels in the loss, of their patches in the fit.", 0.0, 1000.0)
    old_only: float = option(
        0.0, "Share of the pictures with zeros in the channels that were added, as a painter without these channels gives them.", 0.0, 1.0
    )


@dataclass(frozen=True, kw_only=True)
class VisionSettings(StageSettings):
    """The settings of the vision stage."""

    stage = "vision"

    batch: int = option(16, "Pictures in a batch.", 1, 4096)


@dataclass(frozen=True, kw_only=True)
class MLLMSettings(CurriculumSettings):
    """The settings of stage 1, which trains the MLLM."""

    stage = "mllm"

    rank: int = option(16, "The LoRA adapter's rank.", 1, 4096)
    first_layer: int = option(8, "The lowest layer with an adapter; the painter reads those below, which stay as they are.", 0, 1000)
    tokens: int = option(1600, "The most tokens of a batch, padding included.", 1, 10_000_000)
    tasks: dict[str, float] = option(MISSING, "Tasks of the dialogues and their weights, such as guide, picture, edit, question.")
    train_vision: bool = option(True, "The vision tower and the rows of the special tokens learn too.")
    drafts: float = option(0.0, "Share of the dialogues whose picture of many parts is drawn in drafts, where they have one.", 0.0, 1.0)
    grow_from: str = option("", "Folder of a pair whose adapter and vision tower the training begins with.")


@dataclass(frozen=True, kw_only=True)
class DiTModel(RangeChecked):
    """The sizes of a new DiT."""

    heads: int = option(4, "Attention heads.", 1, 1024)
    head_dim: int = option(48, "Channels of a head.", 1, 1024)
    layers: int = option(8, "Transformer blocks.", 1, 1000)
    adaln: int = option(64, "Rank of the modulation by the noise level.", 1, 16_384)
    gate: bool = option(False, "A copy gate: two more outputs say for each place whether it is painted or copied from the frame before.")


@dataclass(frozen=True, kw_only=True)
class TaskGroup(RangeChecked):
    """Dialogues that make up one part of every batch of stage 2."""

    name: str = option(MISSING, "The group's name, in logs and in the names of stored states.")
    frames: tuple[int, ...] = option(MISSING, "How many pictures its dialogues have; for each batch one number is drawn.")
    copies: int = option(2, "Noisy copies of each picture.", 1, 1024)
    targets: int = option(MISSING, "About the noisy pictures of a batch, of all its dialogues.", 1, 1_000_000)
    weight: float = option(1.0, "What the group's loss counts.", 0.0, 1000.0)
    tasks: dict[str, float] = option(MISSING, "Tasks of its dialogues and their weights, such as shapes, first_step, guide, picture, edit.")
    skip: int = option(0, "How many of the first pictures are no targets.", 0, 1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frames or not self.tasks:
            raise ValueError(f"the group {self.name} needs frames and tasks")


@dataclass(frozen=True, kw_only=True)
class DiTSettings(CurriculumSettings):
    """The settings of stage 2, which trains the connector and the DiT."""

    stage = "dit"

    layers: tuple[int, ...] = option((1, 2, 3, 4, 6, 8), "Layers of the MLLM whose hidden states the connector reads.")
    see: bool = option(True, "The MLLM reads the pictures too; else the words alone.")
    shift: float = option(4.0, "Moves the noise levels of sampling towards pure noise, in the exported scheduler.", 0.01, 100.0)
    training_shift: float = option(8.0, "Moves the noise levels of training towards pure noise.", 0.01, 100.0)
    dropout: float = option(0.1, "How often the latest words are hidden, as guidance needs it.", 0.0, 1.0)
    context_noise: float = option(0.15, "The most noise on earlier pictures, as the painter's own are not perfect.", 0.0, 10.0)
    timestep_scale: float = option(1000.0, "The DiT's timestep is the noise level times this.", 0.001, 1_000_000.0)
    fresh_bias: float = option(2.0, "Added to the attention scores of the words since the picture before.", -100.0, 100.0)
    focus: float = option(0.0, "How much more the new places of a picture count than those that stay.", 0.0, 1000.0)
    dialogues: int = option(0, "Fixed dialogues whose hidden states are stored on disk; 0 for new dialogues at every step.", 0, 100_000_000)
    states: int = option(384, "Channels of the stored hidden states.", 1, 1_000_000)
    grow_from: str = option("", "Folder of a pair whose painter the training begins with; it may have fewer latent channels.")
    old_share: float = option(
        0.0, "What the painter in `grow_from` counts in the exported weights; the rest is what was trained.", 0.0, 1.0
    )
    model: DiTModel = option(DiTModel(), "Sizes of the DiT.")
    groups: tuple[TaskGroup, ...] = option(MISSING, "Groups of dialogues; every batch has dialogues of each.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups or not self.layers:
            raise ValueError("groups and layers must not be empty")
        if self.old_share and not self.grow_from:
            raise ValueError("old_share needs a pair in grow_from")

    @classmethod
    def _rename_old_keys(cls, raw: Any) -> Any:
        raw = super()._rename_old_keys(raw)
        model = raw.get("model") if isinstance(raw, dict) else None
        if isinstance(model, dict) and type(model.get("gate")) in (int, float):  # older versions gave the gate's weight
            return raw | {"model": model | {"gate": model["gate"] > 0}}
        return raw


@dataclass(frozen=True, kw_only=True)
class RequestGroup(RangeChecked):
    """Requests that make up one part of every batch of the reward stage."""

    name: str = option(MISSING, "The group's name, in logs.")
    frames: tuple[int, ...] = option(MISSING, "Which picture of its dialogues is painted, from 1; for each batch one number is drawn.")
    tasks: dict[str, float] = option(MISSING, "Tasks of its dialogues and their weights: guide, picture, edit or drafts.")
    requests: int = option(4, "Requests in a batch.", 1, 4096)
    weight: float = option(1.0, "What the group's loss counts.", 0.0, 1000.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frames or not self.tasks or min(self.frames) < 1:
            raise ValueError(f"the group {self.name} needs frames, counted from 1, and tasks")
        unknown = [task for task in self.tasks if task not in REWARDED_TASKS]
        if unknown:
            raise ValueError(f"the group {self.name} has the task {unknown[0]}; known are {', '.join(REWARDED_TASKS)}")


@dataclass(frozen=True, kw_only=True)
class RewardSettings(CurriculumSettings):
    """The settings of the reward stage, in which the DiT learns from the checks of what it paints."""

    stage = "reward"

    method: str = choice("nft", "How it learns from the checks.", "nft", "rejection")
    grow_from: str = option(MISSING, "Folder of the pair whose painter is trained.")
    groups: tuple[RequestGroup, ...] = option(MISSING, "Groups of requests; every batch has requests of each.")
    pictures: int = option(8, "Pictures that are painted for each request.", 2, 1024)
    noises: int = option(2, "Noisy copies of each painted picture that is learnt from.", 1, 1024)
    kept: int = option(2, "Of rejection: the most pictures of a request that are learnt from.", 1, 1024)
    sampling_steps: int = option(0, "Denoising steps of a painted picture; 0 for the pair's own number.", 0, 1000)
    bonus: float = option(1.0, "Added to the share of right marks where a picture is wholly right.", 0.0, 100.0)
    beta: float = option(1.0, "Of nft: how far the positive and the negative painter go from the old one, in steps to the new.", 0.01, 10.0)
    clip: float = option(2.0, "Of nft: standard deviations from the mean reward at which a picture is all good or all bad.", 0.1, 100.0)
    kl: float = option(0.001, "Of nft: what the squared distance to the painter in `grow_from` counts.", 0.0, 1000.0)
    training_shift: float = option(8.0, "Moves the noise levels of training towards pure noise.", 0.01, 100.0)
    context_noise: float = option(0.1, "The most noise on earlier pictures, as the painter's own are not perfect.", 0.0, 10.0)
    focus: float = option(0.5, "Of rejection: how much more the new places of a picture count than those that stay.", 0.0, 1000.0)
    watch_every: int = option(20, "Every so many steps held-out requests are painted and checked for the log; 0 for never.", 0, 1_000_000)
    watched: int = option(8, "Held-out requests of each group that are watched.", 1, 4096)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups:
            raise ValueError("groups must not be empty")
        if self.styles:
            raise ValueError("styles must be 0, as the check reads the world's own drawings")


_KINDS: tuple[type[StageSettings], ...] = (VAESettings, VisionSettings, MLLMSettings, DiTSettings, RewardSettings)
STAGES: dict[str, type[StageSettings]] = {kind.stage: kind for kind in _KINDS}
FROM_NOTHING = ("vae", "vision", "mllm", "dit")  # the stages of a pair, in order; the reward stage goes on with one


def settings_table() -> str:
    """All settings of all stages in Markdown: a heading and a table for each stage."""
    return "\n\n".join(
        "\n".join([f"## {stage}", "", "| Setting | Default | What it is |", "|---|---|---|", *_table_rows(kind)])
        for stage, kind in STAGES.items()
    )


def _table_rows(kind: type[RangeChecked], where: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for each in fields(kind):
        hint, name = hints[each.name], where + each.name
        yield f"| `{name}` | {_default(each)} | {each.metadata['help']} |"
        for inner in (hint, *get_args(hint)):
            if isinstance(inner, type) and issubclass(inner, RangeChecked):
                yield from _table_rows(inner, f"{name}." if inner is hint else f"{name}[].")


def _default(each: Field[Any]) -> str:
    if each.default is MISSING:
        return "required"
    if is_dataclass(each.default) or each.default in (None, "", ()):
        return ""
    return f"`{json.dumps(each.default)}`"
