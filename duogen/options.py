"""The options of an answer: the one source for the page's controls, the command line's flags and the API's fields."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

LONGEST_SHAPE = 4  # longer side to shorter one; of longer pictures the painters make nothing good
SAME_AREA = 0.15
MOST_TOKENS = 8192  # of an answer
LONGEST_MOTION = 20.0  # seconds of an animation
MOST_MOTION_STEPS = 100  # denoising steps of an animation


def option(default: Any, help: str, low: float | None = None, high: float | None = None, step: float | None = None, label: str = "") -> Any:
    """A dataclass field that carries what a control needs: a help sentence, for numbers its range, and a label that is not its name."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "step": step, "label": label})


@dataclass(frozen=True)
class RangeChecked:
    """Refuses values outside the ranges, and other words than those, that the fields declare."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value, values = getattr(self, each.name), each.metadata.get("values")
            if values and value not in values:
                raise ValueError(f"There is no {each.name.replace('_', ' ')} {value!r}; choose one of {', '.join(values)}.")
            low, high = each.metadata["low"], each.metadata["high"]
            if value is None or low is None:
                continue
            if not low <= value <= high:
                raise ValueError(f"{each.name} must be between {low} and {high}, not {value}.")


Checked = TypeVar("Checked", bound=RangeChecked)
JSON_NAMES = {tuple: "list", dict: "object"}  # of types, in messages about JSON


def choice(default: str, help: str, *values: str) -> Any:
    """A field of words; `values` are all that it may be, none for anything."""
    return field(default=default, metadata={"help": help, "low": None, "high": None, "step": None, "values": values})


@dataclass(frozen=True)
class TextOptions(RangeChecked):
    temperature: float = option(0.4, "How freely words are chosen; 0 always takes the likeliest.", 0.0, 2.0, 0.05)
    top_p: float = option(0.9, "Only the likeliest words that make up this share are considered.", 0.05, 1.0, 0.05)
    max_tokens: int = option(
        512, "The longest answer, in tokens; the words that a picture is painted from do not count.", 1, MOST_TOKENS, 1
    )  # fmt: skip
    think: bool = option(False, "Think before the answer; the thoughts can be unfolded.")
    system_prompt: str = choice("", "What a language model that follows such words should keep to in every answer.")


@dataclass(frozen=True)
class ImageOptions(RangeChecked):
    steps: int = option(8, "Denoising steps for each picture; fewer are faster.", 1, 100, 1)
    guidance: float = option(1.0, "How strongly a picture follows the latest words; 1 is off, for some painters 0.", 0.0, 10.0, 0.1)
    picture_guidance: float = option(1.0, "How strongly it keeps to the pictures before it; 1 is off, more takes longer.", 1.0, 10.0, 0.1)
    side: int = option(0, "Longer side of a picture in pixels; 0 is the pair's own.", 0, 4096, 16)
    aspect: str = choice(
        "auto", "Width to height of pictures: auto keeps the shape of a picture that is changed, else the pair's own.",
        "auto", "1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16",
    )  # fmt: skip
    world: str = choice(
        "off", "Experimental, where the painter can film: 93 frames from the latest picture, of which the last one stays; on or off.",
        "off", "on",
    )  # fmt: skip
    drafts: str = choice(
        "auto", "Draw a picture of many parts step by step: auto where the pair was taught to, on wherever it can, or off.",
        "auto", "on", "off",
    )  # fmt: skip
    sampler: str = choice(
        "auto", "How noise becomes a picture: auto is the pair's own sampler.",
        "auto", "euler", "unipc", "dpm",
    )  # fmt: skip
    max_images: int = option(8, "The most pictures in one answer.", 0, 64, 1)
    check: int = option(
        0, "How often a picture that does not show its words is painted again, as the language model sees it; 0 never looks.",
        0, 4, 1, label="Look again",
    )  # fmt: skip
    style_words: str = choice("", "Words that every picture is painted in, such as: ink and watercolour, soft light.")
    preview_every: int = option(2, "Show the picture in the making after every so many steps; 0 never.", 0, 100, 1)

    @property
    def shape(self) -> tuple[int, int] | None:
        """The chosen aspect as (width, height), `None` for auto."""
        if self.aspect == "auto":
            return None
        width, _, height = self.aspect.partition(":")
        return int(width), int(height)


@dataclass(frozen=True)
class Options:
    """All options of one answer. `seed` fixes words and pictures; `None` draws a new one."""

    seed: int | None = None
    text: TextOptions = field(default_factory=TextOptions)
    image: ImageOptions = field(default_factory=ImageOptions)


@dataclass(frozen=True)
class LoadOptions(RangeChecked):
    """How a pair is opened. What is "auto" (or 0) is chosen by `duogen.hub.memory_plan` for this machine; anything else overrules it."""

    device: str = choice("auto", "auto, cpu, cuda, mps ..., or two: of the language model and of the painter, such as cuda:0,cuda:1.")
    precision: str = choice("auto", "Of the language model: auto, nf4, int8, bf16, mixed or fp32.", "auto", "nf4", "int8", "bf16", "mixed",
                            "fp32")  # fmt: skip
    painter_precision: str = choice("auto", "Of the painter: auto, nf4, int8, bf16 or fp32.", "auto", "nf4", "int8", "bf16", "fp32")
    offload: str = choice("auto", "What leaves the GPU while it rests: none, model (a whole part) or group (layer by layer).",
                          "auto", "none", "model", "group")  # fmt: skip
    tiling: str = choice("auto", "Encode and decode pictures in tiles, which needs less memory: on or off.", "auto", "on", "off")
    picture_side: int = option(0, "Longer side of painted pictures in pixels; 0 for the pair's own.", 0, 4096, 16)
    attention: str = choice("auto", "Attention kernel of the painter: xformers, native, flash, sage ...")
    caching: str = choice("auto", "Skip steps that change little, from 9 steps on: on or off.", "auto", "on", "off")
    compile: str = choice("off", "Compile the painter: slow to start, faster afterwards; on or off.", "on", "off")
    preset: str = choice("", "A few-step LoRA of the pair, by its id in the catalogue.")
    transformer: str = choice("", "A file that takes the place of the pair's own transformer: GGUF, or safetensors in 16 bits or fp8.")


def split_device(device: str) -> tuple[str, str]:
    """The MLLM's device and the painter's: the same one, unless two are named, as in "cuda:0,cuda:1".

    Raises:
        ValueError: more than two are named.
    """
    named = [each.strip() for each in device.split(",")]
    if len(named) == 1:
        return device, device
    if len(named) > 2:
        raise ValueError(f"{device} are {len(named)} devices; name one, or two: of the language model and of the painter.")
    first, second = ("cuda:0" if each == "cuda" else each for each in named)
    return first, second


def add_flags(command: argparse.ArgumentParser, kind: type[RangeChecked]) -> None:
    """One flag for each field of `kind`; what is not given is absent from the result."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        values = [f"default: {each.default}"] if each.default else []
        command.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=hints[each.name],
            default=argparse.SUPPRESS,
            metavar="N" if hints[each.name] is int else "NAME",
            help=" ".join([each.metadata["help"], *(f"({value})" for value in values)]),
        )


def from_flags(given: argparse.Namespace, kind: type[Checked]) -> Checked:
    """Raises ValueError: a value is not possible."""
    return kind(**{each.name: value for each in fields(kind) if (value := vars(given).get(each.name)) is not None})


def read_options(kind: type[Checked], raw: Any, where: str = "", default: Checked | None = None) -> Checked:
    """Build options from decoded JSON. What `raw` does not name is as in `default`, or as the fields of `kind` declare it.

    Args:
        where: goes before a field's name in messages, such as "model.".

    Raises:
        ValueError: a name is not known, one without a default is missing, or a value is of the wrong kind or out of its range.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where.rstrip('.') or 'the recipe'} must be an object")
    known, hints = {each.name: each for each in fields(kind)}, get_type_hints(kind)
    for name in raw:
        if name not in known:
            raise ValueError(f"{where}{name} is not known; known are {', '.join(known)}")
    values = {name: _read_value(hints[name], value, where + name, getattr(default, name, None)) for name, value in raw.items()}
    if default is not None:
        return replace(default, **values)
    for name, each in known.items():
        if name not in raw and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where}{name} is missing")
    return kind(**values)


def _read_value(hint: Any, value: Any, name: str, default: Any = None) -> Any:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        hint = next(each for each in inner if each is not NoneType)
        return None if value is None else _read_value(hint, value, name, default)
    if is_dataclass(kind):
        return read_options(kind, value, f"{name}.", default)
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(_read_value(inner[0], each, f"{name}[{index}]") for index, each in enumerate(value))
    if kind is dict and isinstance(value, dict):
        return {key: _read_value(inner[1], each, f"{name}.{key}") for key, each in value.items()}
    return _read_scalar(kind, value, name)


def _read_scalar(kind: type, value: Any, name: str) -> Any:
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{name} is {value!r}, which is no {JSON_NAMES.get(kind, kind.__name__)}")
    return kind(value)


def scale_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of the same shape with `side` as its longer one, in steps of 16 px."""
    factor = side / max(size)
    width, height = (max(16, round(each * factor / 16) * 16) for each in size)
    return width, height


def reshape_size(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with the area of `size` in the shape of `shape`, in steps of 32 px (16 px for small pictures).

    A `shape` that is such a size already stays as it is, so that a guide keeps one size from picture to picture.
    """
    area, step = size[0] * size[1], 32 if max(size) >= 512 else 16
    if size[0] * shape[1] == size[1] * shape[0]:
        return size
    if not any(each % step for each in shape) and abs(shape[0] * shape[1] / area - 1) < SAME_AREA:
        return shape
    ratio = min(max(shape[0] / shape[1], 1 / LONGEST_SHAPE), LONGEST_SHAPE)
    width, height = (area * ratio) ** 0.5, (area / ratio) ** 0.5
    return max(step, round(width / step) * step), max(step, round(height / step) * step)


def picture_size(own: tuple[int, int], side: int, shape: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of a picture in a shape, `None` for that of `own`; its longer side has `side` pixels, 0 for the area of `own`."""
    if side in (0, max(own)):
        return reshape_size(own, shape) if shape else own
    return scale_size(shape or own, side)


GROUPS = {"text": TextOptions, "image": ImageOptions}  # the fields of `Options` that are groups

# By field, as the path of names from `Options`; what a preset does not name takes the pair's own default.
PRESETS: dict[str, dict[tuple[str, ...], Any]] = {
    "quick": {("image", "steps"): 4, ("image", "max_images"): 4, ("image", "preview_every"): 0},
    "balanced": {},
    "fine": {("image", "steps"): 16, ("image", "max_images"): 12},
}
ANSWER_LENGTHS = {"quick": 0.5, "balanced": 1.0, "fine": 2.0}  # of the pair's own `max_tokens`


def preset_values(name: str, about: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """All that a preset sets, by field: what `about` says the pair does best with, and on top of it what the preset names."""
    own = {(kind, each.name): _own_value(each, about) for kind, group in GROUPS.items() for each in fields(group)}
    length = ("text", "max_tokens")
    own[length] = min(int(own[length] * ANSWER_LENGTHS[name]), MOST_TOKENS)
    return own | PRESETS[name]


def _own_value(each: Field, about: Mapping[str, Any]) -> Any:
    """What the pair does best with. What it says of itself under the same name, but of another kind, is something else."""
    value = about.get(each.name, each.default)
    alike = all(isinstance(value, kind) == isinstance(each.default, kind) for kind in (str, bool))
    return value if alike else each.default


def fit_defaults(options: Options, about: Mapping[str, Any]) -> Options:
    """Options that were chosen before the pair was known: what is still as at the start becomes what the pair does best with."""
    fitted = {}
    for kind, group in GROUPS.items():
        chosen = getattr(options, kind)
        values = {each.name: _own_value(each, about) for each in fields(group) if getattr(chosen, each.name) == each.default}
        fitted[kind] = replace(chosen, **values)
    return replace(options, **fitted)


def preset_options(name: str, about: Mapping[str, Any], seed: int | None = None) -> Options:
    """The options of a preset for a pair."""
    values = preset_values(name, about)
    text, image = ({each.name: values[kind, each.name] for each in fields(group)} for kind, group in GROUPS.items())
    return Options(seed, TextOptions(**text), ImageOptions(**image))
