"""Any diffusers pipeline that takes text and pictures, as the painter of an MLLM that writes a prompt for each picture."""

from __future__ import annotations

import inspect
import json
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from duogen.kernels import Kernel
from duogen.models.pipeline import About, bnb_options, explain_errors, image_processor, is_mllm, open_mllm, pick_device, shrink_view
from duogen.models.placeholders import PictureRequest
from duogen.models.placement import (
    DeviceSwapper,
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
from duogen.options import ImageOptions, LoadOptions, scale_size
from duogen.painters.base import Frames, PaintRequest, PaintStep
from duogen.painters.masks import check_mask, composite_inside, fit
from duogen.precision import token_dtype

FRAME_PIPELINES = ("DuoGenPipeline", "Cosmos2_5_PredictBasePipeline")  # opened by `duogen.models.pipeline`
DEFAULTS = {"image_size": (1024, 1024), "steps": 28, "guidance": 4.0}  # where nobody says what a pipeline paints best with
DENOISERS = ("transformer", "unet")


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


def own_defaults(folder: Path) -> dict[str, Any]:
    """What a pipeline paints best with, as far as its folder tells: distilled ones want few steps, and no guidance."""
    try:
        distilled = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("is_distilled")
    except (OSError, ValueError, AttributeError):
        distilled = False
    return DEFAULTS | ({"steps": 4, "guidance": 1.0} if distilled else {})


def is_diffusers_pipeline(folder: Path) -> bool:
    """Whether a folder's pipeline is painted with as it is, not frame by frame."""
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return False  # `open_pair` says what is wrong with it
    return isinstance(kind, str) and kind not in FRAME_PIPELINES


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
    device = pick_device(load.device)
    if mllm_folder is None and not is_mllm(folder / "text_encoder"):
        raise ValueError(f"The text encoder of {folder} cannot talk; name a Qwen2.5-VL or Qwen3-VL folder with --mllm DIR.")
    known = _about(folder, about or {}, load)
    with explain_errors(folder):
        resting = load.offload not in ("auto", "none")
        home = mllm_folder or folder / "text_encoder"
        mllm = open_mllm(home, device if not resting or load.precision in ("nf4", "int8") else "cpu", load.precision)
        release_device(mllm, resting)
        words, eyes = _open_processor(folder, mllm_folder)
        pipe = _pipeline(folder, load, device, None if mllm_folder else mllm, (words, eyes))
        if lora is not None:
            pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
        if scheduler:
            pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, **scheduler})
        pair = DiffusersPair(mllm, words, shrink_view(eyes), pipe, known, DeviceSwapper(mllm, [], device), load)
        place(pair, load, device)
    return pair


def _about(folder: Path, known: dict[str, Any], load: LoadOptions) -> About:
    about = replace(About.load(folder), tuned=False)
    if not (folder / "duogen.json").exists():
        about = replace(about, **{"title": folder.name, **own_defaults(folder), **known})
    return replace(about, image_size=scale_size(about.image_size, load.picture_side)) if load.picture_side else about


def _open_processor(folder: Path, mllm_folder: Path | None) -> tuple[Any, Any]:
    """The MLLM's tokenizer and what prepares its pictures."""
    from transformers import AutoTokenizer

    home = mllm_folder or folder / "tokenizer"
    others = [] if mllm_folder else [folder / "processor", folder / "tokenizer"]
    eyes = image_processor(mllm_folder or folder / "text_encoder", *others)
    return AutoTokenizer.from_pretrained(home, local_files_only=True), eyes


def _pipeline(folder: Path, load: LoadOptions, device: str, shared: Any, reader: tuple[Any, Any]) -> Any:
    """The pipeline with its large parts opened in their precisions; `shared` is the MLLM where that is its text encoder too."""
    import diffusers
    import transformers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = getattr(diffusers, index["_class_name"], None)
    if kind is None:
        raise ValueError(f"diffusers {diffusers.__version__} has no {index['_class_name']}; update it.")
    given: dict[str, Any] = {}
    for name, value in index.items():
        library, cls = value if isinstance(value, list) and len(value) == 2 else ("", "")
        if name in DENOISERS and library == "diffusers":
            given[name] = open_painter(folder / name, getattr(diffusers, cls), load.painter_precision, device)
        elif name == "text_encoder" and shared is not None:
            given[name] = shared
        elif name.startswith("text_encoder") and library == "transformers":
            options = bnb_options("cpu" if load.precision not in ("nf4", "int8") else device, load.precision)
            encoder = getattr(transformers, cls).from_pretrained(folder / name, use_safetensors=True, local_files_only=True, **options)
            given[name] = release_device(encoder, load.offload not in ("auto", "none"))
        elif name == "processor" and "VLProcessor" in str(cls):
            given[name] = None  # set below
        elif name in ("safety_checker", "feature_extractor", "image_encoder") and library:
            given[name] = None
    dtype = dtype_of(load.painter_precision, device)
    pipe = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **given)
    if given.get("processor", pipe) is None:
        pipe.register_modules(processor=WordsAndPictures(*(reader if shared is not None else _open_processor(folder, None))))
    return pipe


def place(pair: DiffusersPair, load: LoadOptions, device: str) -> None:
    """Offload, tiling, kernel and the rest of `load` for a pair whose parts are opened."""
    pipe, resting = pair.pipe, load.offload not in ("auto", "none")
    denoiser = denoiser_of(pipe)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            if not resting and not is_quantised(part) and part is not pair.text_encoder:
                part.to(device)
    if any(part is pair.text_encoder for part in pipe.components.values()):
        pair.text_encoder.register_forward_pre_hook(_add_picture_marks, with_kwargs=True)
    _cast_prompts(pipe)
    if getattr(pipe, "vae", None) is not None:
        set_tiling(pipe.vae, load.tiling)
    pair.attention = set_attention(denoiser, device, load.attention)
    compile_model(denoiser, load)
    pipe.set_progress_bar_config(disable=True)
    if not resting:
        return
    if load.offload == "group":
        offload_layers(denoiser, device)
        others = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module) and part is not denoiser]
        pair.offload = offload_with_hooks(others, denoiser, device)
    else:
        pipe.enable_model_cpu_offload(device=device)
    pair.swapper = DeviceSwapper(pair.text_encoder, [], device, "cpu")


def denoiser_of(pipe: Any) -> Any:
    return next(getattr(pipe, name) for name in DENOISERS if getattr(pipe, name, None) is not None)


def _cast_prompts(pipe: Any) -> None:
    """What a text encoder in 16 bits says, for a painter in 32, as on a CPU: pipelines take for granted that both are alike."""
    if denoiser_of(pipe).dtype != torch.float32:
        return
    for name in ("encode_prompt", "_encode_prompt"):
        if hasattr(pipe, name):
            setattr(pipe, name, _cast_output(getattr(pipe, name)))


def _cast_output(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A prompt's encoder whose tensors are in 32 bits."""

    def wide(said: Any) -> Any:
        return said.float() if isinstance(said, torch.Tensor) and said.is_floating_point() else said

    def encode_wide(*given: Any, **named: Any) -> Any:
        said = encode(*given, **named)
        return tuple(map(wide, said)) if isinstance(said, tuple | list) else wide(said)

    return encode_wide


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

    def encode(self, picture: PILImage.Image, size: tuple[int, int] | None = None) -> PILImage.Image:
        return picture

    def decode(self, latents: PILImage.Image) -> PILImage.Image:
        return latents

    def prepare_inpaint(self, picture: PILImage.Image, mask: PILImage.Image, side: int = 0) -> PILImage.Image:
        """The picture as the pipeline shall see it. Raises ValueError, as `CosmosPainter.prepare_inpaint`."""
        check_mask(picture, mask)
        return fit(picture, self.about.picture_size(side))

    def composite(self, painted: PILImage.Image, picture: PILImage.Image, mask: PILImage.Image) -> PILImage.Image:
        """`picture` with what was painted where `mask` is white; outside not a pixel changes."""
        return composite_inside(painted, picture, mask)

    def fill_cache(self, frames: Frames) -> None:
        """Nothing is due: the pipeline reads the pictures themselves."""

    def remember(self, frames: Frames, latents: PILImage.Image, condition: Any, segment: int) -> None:
        """Add a final picture."""
        frames.past.append(latents)

    def sources(self, frames: Frames, asked: PictureRequest, masked: PILImage.Image | None = None) -> list[PILImage.Image]:
        """Pictures the pipeline starts from: the marked one, those that were named, then the latest, as many as it takes."""
        numbers = [each - 1 for each in asked.sources if 0 < each <= len(frames.past)]
        numbers += [each for each in reversed(range(len(frames.past))) if each not in numbers]
        pictures = [frames.past[each] for each in numbers]
        return ([masked] if masked else [])[:1] + pictures[: self.about.most_sources - bool(masked)]

    def paint(self, frames: Frames, request: PaintRequest) -> Iterator[PaintStep]:
        """Paint a picture from its words and the pictures so far.

        Yields:
            A `PaintStep` after every denoising step; the last one holds the picture.

        Raises:
            ValueError, RuntimeError, torch.OutOfMemoryError: as the pipeline.
        """
        options = request.options
        sources = self.sources(frames, request.condition, request.inpaint)
        pipe = self._pipe_for(sources)
        pipe.scheduler = choose_scheduler(self.scheduler, options.sampler)
        given = self._call(pipe, request.condition, options, request.seed, sources)
        set_block_cache(denoiser_of(pipe), options.steps, self.pair.load.caching)
        run = _Run(pipe, given)
        try:
            for step in run.steps():
                if step < options.steps:
                    yield PaintStep(step, None)
            assert run.picture is not None  # since the steps ended without an error
            yield PaintStep(options.steps, fit(run.picture.convert("RGB"), self.about.picture_size(options.side)))
        except (ValueError, TypeError) as error:
            if sources or "image" not in str(error):
                raise
            raise ValueError("This pair's painter can only change pictures; bring one to begin with.") from error
        finally:
            run.stop()
            self.pair.offload()

    def _pipe_for(self, sources: list[PILImage.Image]) -> Any:
        """Without a source picture an editing pipeline has nothing to edit: its relative that paints from words takes its parts."""
        from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

        pipe = self.pair.pipe
        if not sources and type(pipe).__name__.startswith("QwenImageEdit"):
            parts = {name: part for name, part in pipe.components.items() if name != "processor"}
            pipe = QwenImagePipeline(**parts)
            _cast_prompts(pipe)
            pipe.set_progress_bar_config(disable=True)
        return pipe

    def _call(self, pipe: Any, asked: PictureRequest, options: ImageOptions, seed: int, sources: list[PILImage.Image]) -> dict[str, Any]:
        """The arguments of the pipeline, as far as it knows them."""
        takes = inspect.signature(type(pipe).__call__).parameters
        width, height = self.about.picture_size(options.side)
        given: dict[str, Any] = {
            "prompt": asked.prompt, "width": width, "height": height, "num_inference_steps": options.steps,
            # Drawn on the CPU: the same seed gives the same picture on every device.
            "generator": torch.Generator().manual_seed(seed),
        }  # fmt: skip
        if "true_cfg_scale" in takes and not denoiser_of(pipe).config.get("guidance_embeds"):  # a distilled one takes guidance as a number
            given |= {"true_cfg_scale": options.guidance} | ({"negative_prompt": " "} if options.guidance > 1 else {})
        else:
            given |= {"guidance_scale": options.guidance, "image_guidance_scale": options.picture_guidance}
        if sources and "image" in takes:
            given["image"] = sources if _takes_many(pipe) else sources[0]
        return {name: value for name, value in given.items() if name in takes}


def _takes_many(pipe: Any) -> bool:
    """Whether a list of pictures is several sources of one picture; to most pipelines it is a batch."""
    wanted = str(inspect.signature(type(pipe).__call__).parameters["image"].annotation)
    return type(pipe).__name__.startswith("QwenImageEditPlus") or ("list[" in wanted.lower() and "ndarray" not in wanted)


class _Run:
    """A pipeline's call in a thread of its own, step by step for whoever consumes it."""

    def __init__(self, pipe: Any, given: dict[str, Any]) -> None:
        self.pipe, self.given, self.events = pipe, given, queue.SimpleQueue()
        self.picture: PILImage.Image | None = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, name="pipeline", daemon=True)

    def _work(self) -> None:
        try:
            self.picture = self.pipe(**self.given, callback_on_step_end=self._step).images[0]
            self.events.put(None)
        except BaseException as error:  # it belongs to whoever waits for the picture
            self.pipe.maybe_free_model_hooks()
            self.events.put(error)

    def _step(self, pipe: Any, step: int, timestep: Any, named: dict[str, Any]) -> dict[str, Any]:
        if self.stopped.is_set():
            pipe._interrupt = True  # diffusers passes over the remaining steps
            raise _Stopped
        self.events.put(step + 1)
        return named

    def steps(self) -> Iterator[int]:
        """Numbers of finished steps; raises what the pipeline raised."""
        self.thread.start()
        while (event := self.events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def stop(self) -> None:
        """End it after the step that is under way, and wait for that."""
        self.stopped.set()
        if self.thread.ident is not None:
            self.thread.join()


class _Stopped(Exception):
    """The user has gone."""
