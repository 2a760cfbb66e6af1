"""Any diffusers pipeline that takes text and pictures, as the painter of an MLLM that writes a prompt for each picture."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from duogen.kernels import Kernel
from duogen.models.picture_marks import PictureRequest
from duogen.models.pipeline import (
    About,
    bnb_options,
    explain_errors,
    image_processor,
    is_mllm,
    open_resting_mllm,
    pick_devices,
    shrink_view,
)
from duogen.models.placement import (
    DeviceSwapper,
    RemoteModel,
    compile_model,
    dtype_of,
    is_quantised,
    offload_layers,
    offload_with_hooks,
    open_painter,
    release_device,
    set_attention,
    set_block_cache,
    set_tiling,
)  # fmt: skip
from duogen.models.samplers import choose_scheduler
from duogen.models.transformer_files import DENOISERS
from duogen.models.transformer_weights import open_transformer
from duogen.options import ImageOptions, LoadOptions, scale_size
from duogen.painters.base import Frames, PaintRequest, PaintStep
from duogen.painters.masks import check_mask, composite_inside, fit
from duogen.painters.pipeline_run import PipelineRun
from duogen.picture_roles import name_pictures
from duogen.precision import token_dtype

FRAME_PIPELINES = ("DuoGenPipeline", "Cosmos2_5_PredictBasePipeline")  # opened by `duogen.models.pipeline`
DEFAULTS = {"image_size": (1024, 1024), "steps": 28, "guidance": 4.0}  # where nobody says what a pipeline paints best with
RELATIVES = {"QwenImageEdit": "QwenImagePipeline", "LongCatImageEdit": "LongCatImagePipeline"}  # what edits, and what begins
SECOND_DENOISER = "transformer_2"  # of pipelines whose last steps are another model's
LEAST_SOURCE = 64  # pixels of a source picture's shorter side


@dataclass
class DiffusersPair:
    """An MLLM and a diffusers pipeline.

    Attributes:
        text_encoder: the MLLM, named as in `DuoGenPipeline`; it may be the pipeline's own text encoder too.
        swapper: which part is on the GPU.
        attention: the painter's kernel.
        away: sends from the GPU what a finished picture left there.
    """

    text_encoder: Any
    tokenizer: Any
    image_processor: Any
    pipe: Any
    about: About
    swapper: DeviceSwapper
    load: LoadOptions = field(default_factory=LoadOptions)
    attention: Kernel = Kernel("native")
    offload: Callable[[], None] = lambda: None

    @property
    def token_dtype(self) -> torch.dtype | None:
        """As of `DuoGenPipeline`."""
        return token_dtype(self.load.precision)


def is_diffusers_pipeline(folder: Path) -> bool:
    """Whether a folder's pipeline is painted with as it is, not frame by frame."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return False  # `open_pair` says what is wrong with it
    return isinstance(kind, str) and kind not in FRAME_PIPELINES


def pipeline_class(folder: Path) -> Any:
    """The class of a folder's pipeline. Raises ValueError: diffusers has none of that name."""
    import diffusers

    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {name}; update it.")
    return kind


def check_paints(folder: Path) -> None:
    """Raises ValueError when a folder's pipeline makes no pictures from words; it would run for hours before that came out."""
    kind = pipeline_class(folder)
    made = {name for result in _outputs(kind) for name in result}
    if not made & {"images", "image"}:
        what = "videos" if "frames" in made else "sound" if made & {"audios", "audio"} else "something else"
        raise ValueError(f"{kind.__name__} in {folder} makes {what}, not pictures; choose a pipeline that paints pictures.")
    if "prompt" not in inspect.signature(kind.__call__).parameters:
        raise ValueError(f"{kind.__name__} in {folder} takes no words; choose a pipeline that paints from words.")


def takes_sources(folder: Path) -> bool:
    """Whether a folder's pipeline takes source pictures."""
    return "image" in inspect.signature(pipeline_class(folder).__call__).parameters


def _outputs(kind: type) -> Iterator[list[str]]:
    """The fields of what a pipeline's call may return: a pipeline's module knows its own kind of output alone."""
    from diffusers.utils import BaseOutput

    for each in vars(sys.modules[kind.__module__]).values():
        if isinstance(each, type) and issubclass(each, BaseOutput) and is_dataclass(each):
            yield [every.name for every in fields(each)]


def open_diffusers_pair(
    folder: Path,
    mllm_folder: Path | None,
    load: LoadOptions,
    about: dict[str, Any] | None = None,
    lora: Path | None = None,
    scheduler: dict[str, Any] | None = None,
) -> DiffusersPair:
    """Open a diffusers pipeline and the MLLM that writes its prompts.

    Args:
        mllm_folder: of a Qwen2.5-VL or Qwen3-VL; `None` where the pipeline's own text encoder is one.
        about: what the catalogue knows of it. `lora`: file of a few-step LoRA. `scheduler`: what that wants changed.

    Raises:
        ValueError: one sentence for the user.
    """
    check_paints(folder)
    mllm_device, device = pick_devices(load.device)
    if mllm_folder is None and not is_mllm(folder / "text_encoder"):
        raise ValueError(f"The text encoder of {folder} cannot talk; name a Qwen2.5-VL or Qwen3-VL folder with --mllm DIR.")
    known = _about(folder, about or {}, load)
    with explain_errors(folder):
        resting = load.offload not in ("auto", "none")
        home = mllm_folder or folder / "text_encoder"
        mllm = open_resting_mllm(home, load, mllm_device, resting and mllm_device == device)
        words, eyes = _open_processor(folder, mllm_folder)
        pipe = _pipeline(folder, load, device, None if mllm_folder else mllm, (words, eyes))
        if lora is not None:
            pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
        if scheduler:
            pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **scheduler})
        pair = DiffusersPair(mllm, words, shrink_view(eyes), pipe, known, DeviceSwapper(mllm, [], device), load)
        place(pair, load, device, mllm_device)
    return pair


def _about(folder: Path, known: dict[str, Any], load: LoadOptions) -> About:
    about = replace(About.load(folder), tuned=False, films=False)
    if not (folder / "duogen.json").exists():
        about = replace(about, **{"title": folder.name, **DEFAULTS, **known})
    return replace(about, image_size=scale_size(about.image_size, load.picture_side)) if load.picture_side else about


def _open_processor(folder: Path, mllm_folder: Path | None) -> tuple[Any, Any]:
    """The MLLM's tokenizer and what prepares its pictures."""
    from transformers import AutoTokenizer

    home = mllm_folder or folder / "tokenizer"
    others = [] if mllm_folder else [folder / "processor", folder / "text_processor", folder / "tokenizer"]
    eyes = image_processor(mllm_folder or folder / "text_encoder", *others)
    return AutoTokenizer.from_pretrained(home, local_files_only=True), eyes


def _pipeline(folder: Path, load: LoadOptions, device: str, shared: Any, reader: tuple[Any, Any]) -> Any:
    """The pipeline with its large parts opened in their precisions; `shared` is the MLLM where that is its text encoder too."""
    kind = pipeline_class(folder)
    given = open_large_parts(folder, kind, load, device, shared, reader)
    dtype = dtype_of(load.painter_precision, device)
    return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **given)


def open_large_parts(
    folder: Path, kind: Any, load: LoadOptions, device: str, shared: Any = None, reader: tuple[Any, Any] | None = None
) -> dict[str, Any]:
    """The parts of a pipeline that diffusers would not open in their precisions, by name, for its `from_pretrained`.

    Args:
        kind: the pipeline's class. `shared`, `reader`: as of `_pipeline`.
    """
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    given: dict[str, Any] = {}
    for name, value in index.items():
        library, cls = value if isinstance(value, list) and len(value) == 2 else ("", "")
        if name in (*DENOISERS, SECOND_DENOISER) and library == "diffusers":
            given[name] = _open_denoiser(folder / name, getattr(diffusers, cls), load, device)
        elif name == "text_encoder" and shared is not None:
            given[name] = shared
        elif name.startswith("text_encoder") and library == "transformers":
            options = bnb_options("cpu" if load.precision not in ("nf4", "int8") else device, load.precision, folder / name)
            encoder = getattr(transformers, cls).from_pretrained(folder / name, use_safetensors=True, local_files_only=True, **options)
            given[name] = release_device(encoder, load.offload not in ("auto", "none"))
        elif "VLProcessor" in str(cls):
            kind_of_it = type(cls, (WordsAndPictures, getattr(transformers, cls)), {})  # diffusers asks for the class that the index names
            given[name] = kind_of_it(*(reader if shared is not None and reader else _open_processor(folder, None)))
        elif name in kind._optional_components and name in ("safety_checker", "feature_extractor", "image_encoder") and library:
            given[name] = None  # they look for what is not to be seen, or serve adapters that nobody has
    return given


def _open_denoiser(part: Path, kind: Any, load: LoadOptions, device: str) -> Any:
    """The pipeline's own one, or that of the user's file."""
    if load.transformer:
        rests = load.offload not in ("auto", "none")
        return open_transformer(Path(load.transformer), part, load.painter_precision, device, rests)
    return open_painter(part, kind, load.painter_precision, device)


def place(pair: DiffusersPair, load: LoadOptions, device: str, mllm_device: str = "") -> None:
    """Offload, tiling, kernel and the rest of `load` for a pair whose parts are opened.

    Args:
        device: where the pipeline computes. `mllm_device`: where the MLLM does, "" for the same.
    """
    pipe, resting, apart = pair.pipe, load.offload not in ("auto", "none"), mllm_device not in ("", device)
    denoiser = denoiser_of(pipe)
    if apart and pipe.components.get("text_encoder") is pair.text_encoder:
        pipe.text_encoder = RemoteModel(pair.text_encoder, device)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            if not resting and not is_quantised(part) and part is not pair.text_encoder:
                part.to(device)
    reader = pipe.components.get("text_encoder")
    if getattr(getattr(reader, "config", None), "image_token_id", None) is not None:
        reader.register_forward_pre_hook(_add_picture_marks, with_kwargs=True)
    _cast_prompts(pipe)
    if getattr(pipe, "vae", None) is not None:
        set_tiling(pipe.vae, load.tiling)
    pair.attention = set_attention(denoiser, device, load.attention)
    compile_model(denoiser, load)
    pipe.set_progress_bar_config(disable=True)
    pair.swapper = DeviceSwapper(pair.text_encoder, [], device, "cpu" if resting else None, mllm_device if apart else "")
    if not resting:
        return
    if load.offload == "group":
        offload_layers(denoiser, device)
        others = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module) and part is not denoiser]
        pair.offload = offload_with_hooks(others, denoiser, device)
    else:
        pipe.enable_model_cpu_offload(device=device)


def denoiser_of(pipe: Any) -> Any:
    return next(getattr(pipe, name) for name in DENOISERS if getattr(pipe, name, None) is not None)


def _cast_prompts(pipe: Any) -> None:
    """What a text encoder in 16 bits says, for a painter in 32, or the other way round: pipelines take for granted that both are alike."""
    wanted, reader = denoiser_of(pipe).dtype, pipe.components.get("text_encoder")
    if torch.float32 not in (wanted, getattr(reader, "dtype", wanted)):
        return
    for name in ("encode_prompt", "_encode_prompt"):
        if hasattr(pipe, name):
            setattr(pipe, name, _cast_output(getattr(pipe, name), wanted))


def _cast_output(encode: Callable[..., Any], wanted: torch.dtype) -> Callable[..., Any]:
    """A prompt's encoder whose tensors are in the wanted number format."""

    def cast(said: Any) -> Any:
        return said.to(wanted) if isinstance(said, torch.Tensor) and said.is_floating_point() else said

    def encode_cast(*given: Any, **named: Any) -> Any:
        said = encode(*given, **named)
        return tuple(map(cast, said)) if isinstance(said, tuple | list) else cast(said)

    return encode_cast


def _add_picture_marks(model: Any, given: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Pipelines written for older transformers do not say which tokens are pictures; without it their positions would be those of words."""
    if named.get("image_grid_thw") is not None and named.get("mm_token_type_ids") is None and named.get("input_ids") is not None:
        named = {**named, "mm_token_type_ids": (named["input_ids"] == model.config.image_token_id).int()}
    return given, named


class WordsAndPictures:
    """What `Qwen2VLProcessor` does for words and pictures; that class cannot be opened where torchvision is not."""

    def __init__(self, tokenizer: Any, eyes: Any) -> None:
        self.tokenizer, self.image_processor = tokenizer, eyes

    def __call__(self, text: list[str], images: Any = None, padding: bool = True, return_tensors: str = "pt", **_: Any) -> Any:
        from transformers import BatchFeature

        seen: dict[str, Any] = {}
        if images is not None and (not isinstance(images, list) or images):
            seen = dict(self.image_processor(images=images if isinstance(images, list) else [images], return_tensors=return_tensors))
            area = self.image_processor.merge_size**2
            counts = iter((seen["image_grid_thw"].prod(-1) // area).tolist())
            text = [_repeat_marks(each, counts) for each in text]
        return BatchFeature({**self.tokenizer(text, padding=padding, return_tensors=return_tensors), **seen})


def _repeat_marks(text: str, counts: Iterator[int]) -> str:
    """One mark of a picture becomes one for each of its patches."""
    first, *rest = text.split("<|image_pad|>")
    return first + "".join("<|image_pad|>" * next(counts) + each for each in rest)


class DiffusersPainter:
    """Drives the pipeline of a `DiffusersPair`. It reads words; its latents are finished pictures."""

    reads_words = True

    def __init__(self, pair: DiffusersPair) -> None:
        self.pair, self.about, self.scheduler = pair, pair.about, pair.pipe.scheduler
        self.accepted = inspect.signature(type(pair.pipe).__call__).parameters

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return torch.device(self.pair.swapper.work)

    @property
    def most_frames(self) -> None:
        """As of `Painter`: it starts from the latest few, however many there are."""
        return None

    def encode(self, picture: PILImage.Image, size: tuple[int, int] | None = None) -> PILImage.Image:
        return picture

    def decode(self, latents: PILImage.Image) -> PILImage.Image:
        return latents

    def takes_pictures(self, options: ImageOptions) -> bool:
        """Whether the pipeline takes source pictures."""
        return "image" in self.accepted and self.about.most_sources > 0

    def find_sources(self, frames: Frames, condition: PictureRequest) -> list[int]:
        """Those that were named, then the latest, as many as the pipeline takes."""
        named = [each - 1 for each in condition.sources if 0 < each <= len(frames.past)]
        return [*named, *(each for each in reversed(range(len(frames.past))) if each not in named)][: self.about.most_sources]

    def source_shape(self, frames: Frames, condition: PictureRequest) -> tuple[int, int] | None:
        """(width, height) of the first of its source pictures."""
        sources = self.sources(frames, condition)
        return sources[0].size if sources else None

    def prepare_inpaint(self, picture: PILImage.Image, mask: PILImage.Image, size: tuple[int, int] | None = None) -> PILImage.Image:
        """The picture as the pipeline shall see it. Raises ValueError, as `CosmosPainter.prepare_inpaint`."""
        check_mask(picture, mask)
        return fit(picture, size or self.about.image_size)

    def composite(self, painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
        """`picture` with what was painted where `mask` is white; outside not a pixel changes."""
        return composite_inside(painted, picture, mask)

    def fill_cache(self, frames: Frames) -> None:
        """Nothing is due: the pipeline reads the pictures themselves."""

    def remember(self, frames: Frames, latents: PILImage.Image, condition: Any, segment: int, goes_on: bool = False) -> None:
        """Add a final picture."""
        frames.past.append(latents)

    def sources(self, frames: Frames, asked: PictureRequest, masked: PILImage.Image | None = None) -> list[PILImage.Image]:
        """Pictures the pipeline starts from: the marked one, then as `find_sources`, as many as it takes."""
        pictures = [frames.past[each] for each in self.find_sources(frames, asked)]
        return ([masked] if masked else []) + pictures[: self.about.most_sources - bool(masked)]

    def paint(self, frames: Frames, request: PaintRequest) -> Iterator[PaintStep]:
        """Paint a picture from its words and the pictures so far.

        Yields:
            A `PaintStep` after every denoising step; the last one holds the picture.

        Raises:
            ValueError, RuntimeError, torch.OutOfMemoryError: as the pipeline.
        """
        options, size = request.options, request.size or self.about.picture_size(request.options.side)
        sources = [_enlarge(each) for each in self.sources(frames, request.condition, request.inpaint)]
        pipe = self._pipe_for(sources)
        pipe.scheduler = choose_scheduler(self.scheduler, options.sampler)
        numbers = [0] * (request.inpaint is not None) + [each + 1 for each in self.find_sources(frames, request.condition)]
        prompt = name_pictures(request.condition.prompt, type(pipe).__name__, numbers[: len(sources)])
        given = self._call(pipe, replace(request, condition=PictureRequest(prompt)), size, sources)
        set_block_cache(denoiser_of(pipe), options.steps, self.pair.load.caching)
        run = PipelineRun(pipe, given, denoiser_of(pipe), _picture_of)
        try:
            for step in run.steps():
                if step < options.steps:
                    yield PaintStep(step, None)
            assert run.picture is not None  # since the steps ended without an error
            yield PaintStep(options.steps, fit(run.picture.convert("RGB"), size))
        except (ValueError, TypeError) as error:
            if sources or "image" not in str(error):
                raise
            raise ValueError("This pair's painter can only change pictures; bring one to begin with.") from error
        finally:
            run.stop()
            self.pair.offload()

    def _pipe_for(self, sources: list[PILImage.Image]) -> Any:
        """Without a source picture an editing pipeline has nothing to edit: its relative that paints from words takes its parts."""
        import diffusers

        pipe = self.pair.pipe
        relative = next((other for edits, other in RELATIVES.items() if type(pipe).__name__.startswith(edits)), None)
        if not sources and relative:
            kind = getattr(diffusers, relative)
            wanted = inspect.signature(kind.__init__).parameters
            pipe = kind(**{name: part for name, part in pipe.components.items() if name in wanted})
            _cast_prompts(pipe)
            pipe.set_progress_bar_config(disable=True)
        return pipe

    def _call(self, pipe: Any, request: PaintRequest, size: tuple[int, int], sources: list[PILImage.Image]) -> dict[str, Any]:
        """The arguments of the pipeline, as far as it knows them."""
        takes, options, (width, height) = inspect.signature(type(pipe).__call__).parameters, request.options, size
        given: dict[str, Any] = {
            "prompt": request.condition.prompt, "width": width, "height": height, "num_inference_steps": options.steps,
            "max_area": width * height,  # Kontext paints a megapixel whatever size it is told
            "enable_prompt_rewrite": False,  # of LongCat: the MLLM has written the prompt
            # Drawn on the CPU: the same seed gives the same picture on every device.
            "generator": torch.Generator().manual_seed(request.seed),
        }  # fmt: skip
        if "true_cfg_scale" in takes and not denoiser_of(pipe).config.get("guidance_embeds"):  # a distilled one takes guidance as a number
            given |= {"true_cfg_scale": options.guidance} | ({"negative_prompt": " "} if options.guidance > 1 else {})
        else:
            given |= {"guidance_scale": options.guidance, "image_guidance_scale": options.picture_guidance}
        if sources and "image" in takes:
            # A pipeline that is not told a size paints in that of its source.
            given["image"] = sources if _takes_many(pipe) else sources[0] if "width" in takes else fit(sources[0], size)
        return {name: value for name, value in given.items() if name in takes}


def _enlarge(source: PILImage.Image) -> PILImage.Image:
    """A source picture as large as pipelines want one at least."""
    factor = LEAST_SOURCE / min(source.size)
    return source if factor <= 1 else source.resize((round(source.width * factor), round(source.height * factor)))


def _picture_of(made: Any) -> PILImage.Image:
    """The picture in what a pipeline returns. Raises ValueError: there is none."""
    pictures = getattr(made, "images", None) or getattr(made, "image", None)
    if not isinstance(pictures, list) or not isinstance(pictures[0], PILImage.Image):
        raise ValueError("This pair's painter made no picture; choose another pipeline.")
    return pictures[0]


def _takes_many(pipe: Any) -> bool:
    """Whether a list of pictures is several sources of one picture; to most pipelines it is a batch."""
    wanted = str(inspect.signature(type(pipe).__call__).parameters["image"].annotation)
    return type(pipe).__name__.startswith("QwenImageEditPlus") or ("list[" in wanted.lower() and "ndarray" not in wanted)
