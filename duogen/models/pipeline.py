"""A pair: the parts of a model folder, opened, saved and placed by diffusers, and what diffusers has no field for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors import SafetensorError

import duogen.nn.change_head
import duogen.nn.scene_head
import duogen.nn.vae  # noqa: F401  diffusers loads a part by its module's name only where that has been imported
from duogen.files import write_beside
from duogen.kernels import Kernel
from duogen.models.placement import (
    DeviceSwapper,
    dtype_of,
    explain_unused_gpu_here,
    is_quantised,
    offload_layers,
    open_painter,
    quantisation,
    release_device,
    set_attention,
    set_tiling,
    stored_quantisation,
)
from duogen.models.transformer_weights import open_transformer
from duogen.models.weight_files import check_file, check_folder
from duogen.nn.frames import BlockForward, forward_block
from duogen.options import LoadOptions, TextOptions, picture_size, scale_size, split_device
from duogen.precision import best_precision, token_dtype

ABOUT = "duogen.json"
UNTUNED_TOKENS = 2048  # of an answer of a public MLLM, which says more in a step than the bundled one


@dataclass(frozen=True)
class About:
    """`duogen.json`: what a pair is, and how its painter reads the MLLM. The defaults fit the plain layout of Cosmos-Predict2.5.

    Attributes:
        bov: the token that asks for a picture.
        layers: indices into the MLLM's hidden states that the connector reads; `None` for all of them but the embeddings.
        frame_attention: "block_causal" or "bidirectional".
        prediction: what the DiT predicts, "velocity" or "sample".
        copy_below: where the DiT has a copy gate, the logit below which a place of the frame before is copied as it is.
        keep_below: where the pair has a change head, the logit below which a place of the frame before is copied as it is.
        limits: what it cannot do, in a sentence or two for who meets it for the first time.
        timestep_scale: the DiT's timestep is sigma times this.
        fresh_bias: added to the cross-attention scores of the words since the picture before; block-causal pairs only.
        sees_previous: the DiT has channels for the latents of the frame before; block-causal pairs only.
        image_size: (width, height) of painted pictures.
        steps, guidance: what the pair paints best with.
        max_tokens: the longest answer where nobody asks for another, in tokens.
        thinks: the MLLM can think before it answers.
        draws_drafts: the MLLM was taught to draw a picture of many parts in drafts.
        tuned: the MLLM was taught to write `bov` itself; else a system message tells it to write placeholders (`models.placeholders`).
        films: an untuned Cosmos-Predict2.5, which can go on from a picture as a video.
        most_sources: of pipelines that take source pictures, how many at once.
        nf4_compared: pictures of the painter in 4 bits were compared with those of the whole one (`python -m bench.gpu --compare`).
        check_questions: how the MLLM is asked whether a picture shows its words, where it answers short questions only: patterns to look
            for in the words, whose group "answer" the answer must hold, each with its question, in which a match may be quoted.
        practised: the recipe in `assets/recipes` whose dialogues the pair learnt from, for what teaches it more.
    """

    title: str = "A pair without a name"
    summary: str = ""
    limits: str = ""
    examples: tuple[str, ...] = ()
    licence: str = ""
    bov: str = "<|vision_start|>"
    layers: tuple[int, ...] | None = None
    frame_attention: str = "bidirectional"
    prediction: str = "velocity"
    copy_below: float = 0.0
    keep_below: float = -2.0
    timestep_scale: float = 1.0
    fresh_bias: float = 0.0
    sees_previous: bool = False
    image_size: tuple[int, int] = (1280, 704)
    steps: int = 36
    guidance: float = 7.0
    max_tokens: int = TextOptions.max_tokens
    thinks: bool = True
    draws_drafts: bool = False
    tuned: bool = True
    films: bool = False
    most_sources: int = 3
    nf4_compared: bool = False
    check_questions: tuple[tuple[str, str], ...] = ()
    practised: str = ""

    def __post_init__(self) -> None:
        if self.frame_attention not in ("bidirectional", "block_causal"):
            raise ValueError(f"frame_attention is {self.frame_attention!r}")
        if (self.fresh_bias or self.sees_previous) and self.frame_attention == "bidirectional":
            raise ValueError("fresh_bias and sees_previous are for block_causal frame attention")
        if not self.tuned and self.frame_attention != "bidirectional":
            raise ValueError("an untuned pair has bidirectional frame attention")
        if self.prediction not in ("velocity", "sample"):
            raise ValueError(f"prediction is {self.prediction!r}")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size!r}")
        for pattern, _ in self.check_questions:
            if "answer" not in re.compile(pattern).groupindex:
                raise ValueError(f"check_questions has a pattern without a group called answer, {pattern!r}")

    @property
    def any_size(self) -> bool:
        """Whether pictures may differ in size: not where a frame must lie upon the one before it."""
        return not self.sees_previous

    def picture_size(self, side: int, shape: tuple[int, int] | None = None) -> tuple[int, int]:
        """(width, height) of a picture whose longer side shall have `side` pixels, 0 for the pair's own area.

        Args:
            shape: a (width, height) that it shall have the shape of, `None` for the pair's own; passed over where pictures cannot differ.

        Raises:
            ValueError: the pair paints its own size only.
        """
        if not self.any_size:
            if side not in (0, max(self.image_size)):
                width, height = self.image_size
                raise ValueError(f"This pair paints pictures of {width} x {height} pixels only; set the side of pictures to 0.")
            return self.image_size
        return picture_size(self.image_size, side, shape)

    @staticmethod
    def load(folder: Path) -> About:
        """Read `duogen.json`, or the defaults where there is none.

        Raises:
            ValueError: it is not JSON, or a value is not possible. Fields that are not known are passed over.
        """
        file = folder / ABOUT
        if not file.exists():
            return About(title=folder.name, tuned=False, films=True, max_tokens=UNTUNED_TOKENS)
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            known = {each.name for each in fields(About)}
            said: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in raw.items() if name in known
            }
            if not said.get("tuned", True):
                said.setdefault("max_tokens", UNTUNED_TOKENS)
            return About(**said)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error}); get the pair again.") from error

    def write(self, folder: Path) -> None:
        """Write `duogen.json`."""
        raw = {name: value for name, value in asdict(self).items() if value is not None}
        write_beside(folder / ABOUT, json.dumps(raw, indent=1, ensure_ascii=False).encode())


class DuoGenPipeline(DiffusionPipeline):
    """The parts of a pair, named as in diffusers' Cosmos-Predict2.5 pipeline.

    Args:
        text_encoder: the MLLM, a `Qwen2_5_VLForConditionalGeneration`.
        tokenizer: its tokenizer.
        image_processor: prepares pictures for its vision tower.
        transformer: the DiT, a `CosmosTransformer3DModel`; its `crossattn_proj` is the connector.
        vae: encodes and decodes frames.
        scheduler: a diffusers flow-matching scheduler.
        scene_head: a `SceneHead`, `None` where every picture goes on from the one before.
        change_head: a `ChangeHead`, `None` where the painter alone knows what stays.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["image_processor", "safety_checker", "scene_head", "change_head"]

    def __init__(
        self,
        text_encoder: Any,
        tokenizer: Any,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        *,
        image_processor: Any = None,
        safety_checker: Any = None,
        scene_head: Any = None,
        change_head: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            text_encoder=text_encoder, tokenizer=tokenizer, image_processor=image_processor, transformer=transformer, vae=vae,
            scheduler=scheduler, safety_checker=safety_checker, scene_head=scene_head, change_head=change_head,
        )  # fmt: skip
        self.about = About()
        self.attention, self.caching = Kernel("native"), "off"
        self.block_forward: BlockForward = forward_block
        self.swapper = DeviceSwapper(text_encoder, [], "cpu")
        self.token_dtype: torch.dtype | None = None

    def save_pretrained(self, save_directory: str | os.PathLike, *given: Any, **options: Any) -> None:
        """diffusers' own, plus `duogen.json`."""
        super().save_pretrained(save_directory, *given, **options)
        self.about.write(Path(save_directory))


PRECISIONS = ("auto", "bf16", "mixed", "fp32", "nf4", "int8")


def open_pair(folder: Path, device: str = "auto", precision: str = "auto", load: LoadOptions | None = None) -> DuoGenPipeline:
    """Open a pair folder.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps"; two, as in "cuda:0,cuda:1", are the MLLM's and the painter's.
        precision: of the MLLM: "bf16", "fp32", "mixed" (float32, but single tokens in bf16; for CPUs), or quantised by bitsandbytes:
            "nf4", "int8"; "auto" is "mixed" on a CPU without bf16 instructions, else bf16. The DiT and the VAE are small and exact on a CPU
            (float32) and bf16 elsewhere.
        load: all choices at once, instead of the two.

    Raises:
        ValueError: one sentence: what is wrong with the folder, the device or the precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    load = load or LoadOptions(device=device, precision=precision)
    mllm_device, device = pick_devices(load.device)
    if load.precision == "auto":
        load = replace(load, precision=best_precision(mllm_device))
    check_parts(folder)
    about = About.load(folder)
    if load.picture_side:
        about = replace(about, image_size=scale_size(about.image_size, load.picture_side))
    with explain_errors(folder):
        pair = _open(folder, load, mllm_device, device)
        place(pair, load, device, mllm_device)
    pair.about = about
    pair.token_dtype = token_dtype(load.precision)
    if not about.tuned:
        pair.image_processor = shrink_view(pair.image_processor)
    return pair


def _open(folder: Path, load: LoadOptions, mllm_device: str, device: str) -> DuoGenPipeline:
    resting = load.offload not in ("auto", "none")
    dtype = dtype_of(load.painter_precision, device)
    mllm = open_resting_mllm(folder / "text_encoder", load, mllm_device, resting and mllm_device == device)
    given = _image_processor(folder)
    if load.transformer:
        own = Path(load.transformer)
        given["transformer"] = open_transformer(own, folder / "transformer", load.painter_precision, device, resting)
    elif quantisation(load.painter_precision) or stored_quantisation(folder / "transformer"):
        given["transformer"] = open_painter(folder / "transformer", CosmosTransformer3DModel, load.painter_precision, device)
    pair = DuoGenPipeline.from_pretrained(
        folder, text_encoder=mllm, safety_checker=None, dtype=dtype, use_safetensors=True, local_files_only=True, **given
    )
    for name in ("transformer", "vae"):
        part = getattr(pair, name)
        _check_weights(name, [each for each, weight in part.named_parameters() if weight.is_meta])
        part.eval().requires_grad_(False)
        if not resting and not is_quantised(part):
            part.to(device)
    return pair


def open_resting_mllm(folder: Path, load: LoadOptions, device: str, resting: bool) -> Any:
    """Open the MLLM on `device`, or where it is `resting` in host memory; what is quantised there passes through the device."""
    mllm = open_mllm(folder, device if not resting or load.precision in ("nf4", "int8") else "cpu", load.precision)
    return release_device(mllm, resting)


def place(pair: DuoGenPipeline, load: LoadOptions, device: str, mllm_device: str = "") -> None:
    """Offload, tiling, kernel and the rest of `load` for a pair whose parts are opened.

    Args:
        device: where the painter computes. `mllm_device`: where the MLLM does, "" for the same.
    """
    set_tiling(pair.vae, load.tiling)
    pair.caching = load.caching
    pair.attention = set_attention(pair.transformer, device, load.attention)
    # Compiling takes long at the first picture of a size.
    pair.block_forward = torch.compile(forward_block) if load.compile == "on" else forward_block
    painter, rest, apart = [pair.transformer, pair.vae], None, mllm_device not in ("", device)
    if load.offload == "group":
        offload_layers(pair.transformer, device, by_part=True)
        painter, rest = [pair.vae], "cpu"
    elif load.offload == "model":
        rest = "cpu"
    if apart and rest:  # nobody to take turns with
        rest = None
        for part in painter:
            part.to(device)
    pair.swapper = DeviceSwapper(pair.text_encoder, painter, device, rest, mllm_device if apart else "")


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """What the libraries raise while they open a folder becomes a ValueError for the user."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"A weight file of the pair in {folder} is damaged; get the pair again.") from error
    except MemoryError as error:
        raise ValueError(f"The pair in {folder} does not fit into the memory of this machine; choose another precision.") from error
    except Exception as error:  # whatever a damaged folder makes the libraries raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"The pair in {folder} cannot be opened: {first}") from error


def open_parts(folder: Path, parts: tuple[str, ...], device: str, precision: str = "bf16") -> DuoGenPipeline:
    """Some parts of a pair for training, the others `None`: of "text_encoder", "transformer" and "vae". The small parts always come.

    Raises:
        ValueError: as `open_pair` does.
    """
    check_parts(folder)
    about = About.load(folder)
    left_out = {name: None for name in ("text_encoder", "transformer", "vae") if name not in parts}
    try:
        if "text_encoder" in parts:
            left_out["text_encoder"] = open_mllm(folder / "text_encoder", device, precision)
        pair = DuoGenPipeline.from_pretrained(
            folder, safety_checker=None, dtype=torch.float32 if device == "cpu" else torch.bfloat16, use_safetensors=True,
            local_files_only=True, **left_out, **_image_processor(folder),
        )  # fmt: skip
    except Exception as error:
        raise ValueError(f"The pair in {folder} cannot be opened ({' '.join(str(error).split())[:200]}).") from error
    for name in set(parts) - {"text_encoder"}:
        getattr(pair, name).to(device).eval().requires_grad_(False)
    pair.about = about
    return pair


def _check_weights(part: str, missing: list[str]) -> None:
    """The libraries fill in what a weight file lacks with random numbers."""
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} of its weights, {missing[0]} first; get the pair again.")


def check_parts(folder: Path) -> None:
    """Raises ValueError, one sentence, when a part of the pair is missing (where a configuration is, the libraries take a 7B model's)."""
    if (folder / "model_index.json").is_file():
        check_file(folder / "model_index.json")
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        parts = {name for name, value in index.items() if isinstance(value, list) and value[0]} - {"safety_checker"}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{folder} is not a pair: a pair is a folder with a model_index.json in it.") from error
    except (json.JSONDecodeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder / 'model_index.json'} is damaged; get the pair again.") from error
    files = {"text_encoder": "config.json", "transformer": "config.json", "vae": "config.json", "tokenizer": "", "scheduler": ""}
    for name in sorted(parts | set(files)):
        if not (folder / name / files.get(name, "")).exists():
            raise ValueError(f"The pair in {folder} lacks {Path(name, files.get(name, ''))}; get the pair again.")
    check_folder(folder)


def _image_processor(folder: Path) -> dict[str, Any]:
    """The vision tower's preparation as a component of a pair."""
    return {"image_processor": image_processor(folder / "text_encoder", *(folder / name for name in PROCESSORS))}


def image_processor(mllm: Path, *others: Path) -> Any:
    """What prepares pictures for an MLLM's vision tower; the PIL version, since torchvision may not be there.

    Args:
        mllm: the MLLM's folder. `others`: folders that may hold the preparation's settings too.
    """
    from transformers import AutoConfig, Qwen2VLImageProcessorPil

    for there in (*others, mllm):
        if (there / "preprocessor_config.json").exists():
            return Qwen2VLImageProcessorPil.from_pretrained(there)
    # The plain layout of Cosmos-Predict2.5 has none: what its vision tower takes stands in the MLLM's configuration.
    vision = AutoConfig.from_pretrained(mllm).vision_config
    sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size, "merge_size": vision.spatial_merge_size}
    return Qwen2VLImageProcessorPil(**sizes)


def shrink_view(eyes: Any) -> Any:
    """A picture preparation that shows an MLLM at most `SEEN_PIXELS` of a picture: a long guide must fit into its context."""
    sizes = {name: getattr(eyes, name) for name in ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")}
    least, most = eyes.size["shortest_edge"], eyes.size["longest_edge"]
    return type(eyes)(min_pixels=min(least, SEEN_PIXELS), max_pixels=min(most, SEEN_PIXELS), **sizes)


SEEN_PIXELS = 640 * 640  # 529 tokens of a Qwen2.5-VL
PROCESSORS = ("image_processor", "processor", "tokenizer")
TALKERS = {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "qwen3_vl": "Qwen3VLForConditionalGeneration"}


def is_mllm(folder: Path) -> bool:
    """Whether the model in a folder is an MLLM that can chat."""
    config = folder / "config.json"
    if config.is_file():
        check_file(config)
    return config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("model_type") in TALKERS


def bnb_options(device: str, precision: str, folder: Path) -> dict[str, Any]:
    """What transformers' `from_pretrained` takes to open the model in a folder in a precision.

    Vision tower and output head are never quantised. What lies there quantised already stays so.

    Raises:
        ValueError: the package that opens quantised weights is not here.
    """
    from transformers import BitsAndBytesConfig

    whole = precision == "fp32" or (precision == "mixed" and device == "cpu")
    options: dict[str, Any] = {"dtype": torch.float32 if whole else torch.bfloat16, "device_map": device}
    skip = ["lm_head", "model.visual"]
    if stored_quantisation(folder):
        return options
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=skip
        )
    elif precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return options


def open_mllm(folder: Path, device: str, precision: str) -> Any:
    """Open the MLLM, a Qwen2.5-VL or a Qwen3-VL, in a precision."""
    import transformers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type", "qwen2_5_vl")
    if kind not in TALKERS:
        raise ValueError(f"{folder} holds a {kind} model, which cannot chat; choose a Qwen2.5-VL or Qwen3-VL.")
    maker, options = getattr(transformers, TALKERS[kind]), bnb_options(device, precision, folder)
    model, report = maker.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    _check_weights("text_encoder", sorted(report["missing_keys"]))
    return model.eval().requires_grad_(False)


def pick_devices(device: str) -> tuple[str, str]:
    """Where the MLLM computes, and where the painter does. Raises ValueError, one sentence, when a device is not there."""
    mllm, painter = map(pick_device, split_device(device))
    return mllm, painter


def pick_device(device: str) -> str:
    """Raises ValueError, one sentence, when the device is not there, or two are named."""
    if "," in device:
        raise ValueError(f"Two devices are for answers only; name one of {device}.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        unused, none = explain_unused_gpu_here("cpu"), "There is no CUDA device here; use --device cpu."
        raise ValueError(f"There is no CUDA device here; use --device cpu. {unused}" if unused else none)
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("There is no Apple GPU here; use --device cpu.")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device called {device!r}; use auto, cpu, cuda or mps.") from error
    count = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}.get(found.type, lambda: 1 + (found.index or 0))()
    if (found.index or 0) >= count:
        there = f"the last one is {found.type}:{count - 1}" if count else "use --device cpu"
        raise ValueError(f"There is no {device} here; {there}.")
    return str(found)
