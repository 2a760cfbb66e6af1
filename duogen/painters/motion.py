"""Public video pipelines of diffusers that set a picture in motion: from it alone, or from it to a second one.

A family says which class runs a folder, and how that class is called. What it animates best with (size, steps, frames a second) is data:
`defaults` in the catalogue's file.
"""

from __future__ import annotations

import importlib
import inspect
import json
import threading
import unicodedata
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image as PILImage

from duogen.models.guardrail import CheckedBefore
from duogen.models.pipeline import About, explain_errors, pick_devices
from duogen.models.placement import DeviceSwapper, dtype_of
from duogen.options import LoadOptions, reshape_size
from duogen.painters.diffusers import DiffusersPair, denoiser_of, open_large_parts, place
from duogen.painters.masks import fit
from duogen.painters.pipeline_run import PipelineRun, Stopped

STILLS = (  # what a video model says when somebody wants to paint with it
    "{kind} in {folder} sets pictures in motion and paints none; animate a step of an answer with it, or a picture with"
    " python -m duogen animate PICTURE --model {folder}, and choose another pair to paint."
)


@dataclass(frozen=True)
class Clip:
    """What is to be made.

    Attributes:
        first: the picture it begins with. `last`: the one it ends with, `None` where that is open. Both in the size of the frames.
        prompt: what happens.
        frames: how many; `fps`: how many a second.
    """

    first: PILImage.Image
    last: PILImage.Image | None
    prompt: str
    frames: int
    fps: int


@dataclass(frozen=True)
class Family:
    """Video pipelines that are called alike.

    Attributes:
        pipeline: the class of diffusers that runs them.
        arguments: what its call takes of a clip, beside size, steps, guidance and seed.
        multiple: the sides of frames are multiples of it, in pixels. `stride`: frames are a multiple of it, and one.
        decodes: how many frames the autoencoder decodes at once, 0 for all of them in maps of a quarter of the side.
    """

    pipeline: str
    arguments: Callable[[Clip], dict[str, Any]]
    multiple: int
    stride: int
    decodes: int = 0


def _wan(clip: Clip) -> dict[str, Any]:
    return {"image": clip.first, "num_frames": clip.frames} | ({"last_image": clip.last} if clip.last else {})


def _ltx(clip: Clip) -> dict[str, Any]:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    ends = [LTXVideoCondition(image=clip.first, frame_index=0)]
    ends += [LTXVideoCondition(image=clip.last, frame_index=clip.frames - 1)] if clip.last else []
    return {"conditions": ends, "num_frames": clip.frames, "frame_rate": clip.fps}


def _ltx2(clip: Clip) -> dict[str, Any]:
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    ends = [LTX2VideoCondition(frames=clip.first, index=0)]
    ends += [LTX2VideoCondition(frames=clip.last, index=-1)] if clip.last else []  # counts latents
    return {"conditions": ends, "num_frames": clip.frames, "frame_rate": float(clip.fps)}


def _cosmos2(clip: Clip) -> dict[str, Any]:
    return {"image": clip.first, "num_frames": clip.frames, "fps": clip.fps}


def _cosmos25(clip: Clip) -> dict[str, Any]:
    """As a video of one frame, which is the same to the causal autoencoder as a picture; that way needs no torchvision."""
    return {"video": [clip.first], "num_latent_conditional_frames": 1, "num_frames": clip.frames}


WAN = Family("WanImageToVideoPipeline", _wan, 32, 4, decodes=4)
LTX = Family("LTXConditionPipeline", _ltx, 32, 8)
LTX2 = Family("LTX2ConditionPipeline", _ltx2, 32, 8)
COSMOS2 = Family("Cosmos2VideoToWorldPipeline", _cosmos2, 16, 4, decodes=4)
COSMOS25 = Family("Cosmos2_5_PredictBasePipeline", _cosmos25, 16, 4, decodes=4)
FAMILIES = {
    "WanImageToVideoPipeline": WAN, "WanPipeline": WAN, "LTXPipeline": LTX, "LTXImageToVideoPipeline": LTX, "LTXConditionPipeline": LTX,
    "LTX2Pipeline": LTX2, "LTX2ImageToVideoPipeline": LTX2, "LTX2ConditionPipeline": LTX2, "Cosmos2VideoToWorldPipeline": COSMOS2,
    "Cosmos2_5_PredictBasePipeline": COSMOS25,
}  # fmt: skip
PAINTS_TOO = ("Cosmos2_5_PredictBasePipeline",)  # it is a pair as well: `duogen.models.pipeline` opens it to paint


def read_index(folder: Path) -> dict[str, Any]:
    """A folder's `model_index.json`, empty where it has none that can be read."""
    try:
        found = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_family(folder: Path) -> Family:
    """The family of a folder's pipeline. Raises ValueError, one sentence: it sets no pictures in motion."""
    index = read_index(folder)
    kind = index.get("_class_name")
    found = FAMILIES.get(kind) if isinstance(kind, str) else None
    if found is None:
        known = "Wan, LTX-Video, LTX-2, Cosmos-Predict2 or Cosmos-Predict2.5"
        raise ValueError(f"{folder} holds no video model that starts from a picture; choose one of {known}.")
    if kind == "WanPipeline" and not index.get("expand_timesteps"):
        raise ValueError(f"The video model in {folder} starts from words alone; choose one that starts from a picture.")
    return found


def is_video_model(folder: Path) -> bool:
    """Whether a folder's pipeline sets pictures in motion."""
    try:
        return bool(find_family(folder))
    except ValueError:
        return False


def paints_no_stills(folder: Path) -> bool:
    """Whether a folder's pipeline makes videos alone."""
    kind = read_index(folder).get("_class_name")
    return isinstance(kind, str) and kind in FAMILIES and kind not in PAINTS_TOO


def refuse_as_painter(folder: Path) -> None:
    """Raises ValueError, one sentence that says what it is for, where a folder holds a video model that paints no stills."""
    if paints_no_stills(folder):
        raise ValueError(STILLS.format(kind=read_index(folder)["_class_name"], folder=folder))


def takes_last(folder: Path) -> bool:
    """Whether a folder's model was taught to end with a second picture.

    Wan's pipeline takes one from every model, but passes over it where the first frame comes as a latent (TI2V), and has no place for it
    among the picture's states where these are of one picture alone (2.1 I2V).
    """
    family, index = find_family(folder), read_index(folder)
    if family is not WAN:
        return family in (LTX, LTX2)
    try:
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    one_picture = config.get("image_dim") is not None and config.get("pos_embed_seq_len") is None
    return not index.get("expand_timesteps") and not one_picture


def count_frames(family: Family, seconds: float, fps: int) -> int:
    """How many frames play for so many seconds, as the model counts them; at least two latents."""
    return max(1, round(seconds * fps / family.stride)) * family.stride + 1


def frame_size(family: Family, own: tuple[int, int], picture: PILImage.Image) -> tuple[int, int]:
    """(width, height) of frames in the shape of a picture, with about the area of `own`."""
    width, height = (max(family.multiple, side // family.multiple * family.multiple) for side in reshape_size(own, picture.size))
    return width, height


class VideoModel:
    """A video pipeline that is open.

    Attributes:
        pair: its pipeline and where the parts lie; it has no MLLM.
        family: how it is called. `more`: what its call takes too, such as a negative prompt.
    """

    def __init__(self, pair: DiffusersPair, family: Family, more: dict[str, Any] | None = None) -> None:
        self.pair, self.family, self.more = pair, family, more or {}

    def animate(
        self, clip: Clip, steps: int, guidance: float, seed: int, stop: threading.Event | None = None
    ) -> Generator[int | list[PILImage.Image], None, None]:
        """Make a clip.

        Args:
            stop: set it to end the work after the step that is under way; then no frames come.

        Yields:
            The number of each finished denoising step, and at last the frames (RGB).

        Raises:
            ValueError, RuntimeError, torch.OutOfMemoryError: as the pipeline.
        """
        pipe = self.pair.pipe
        takes, (width, height) = inspect.signature(type(pipe).__call__).parameters, clip.first.size
        given = self.more | self.family.arguments(clip) | {
            "prompt": clip.prompt, "width": width, "height": height, "num_inference_steps": steps, "guidance_scale": guidance,
            "output_type": "pil",
            # Drawn on the CPU: the same seed gives the same video on every device.
            "generator": torch.Generator().manual_seed(seed),
        }  # fmt: skip
        run = PipelineRun(pipe, {name: value for name, value in given.items() if name in takes}, denoiser_of(pipe), _frames_of, stop)
        try:
            yield from run.steps()
            assert run.picture is not None  # since the steps ended without an error
            yield run.picture
        except Stopped:
            return
        finally:
            run.stop()
            self.pair.offload()

    def fit(self, picture: PILImage.Image, size: tuple[int, int]) -> PILImage.Image:
        """A picture in the size of the frames."""
        return fit(picture.convert("RGB"), size)


def _frames_of(made: Any) -> list[PILImage.Image]:
    return [frame.convert("RGB") for frame in made.frames[0]]


def open_video_model(folder: Path, load: LoadOptions, about: dict[str, Any]) -> VideoModel:
    """Open the pipeline in a folder to animate with it.

    Args:
        about: `image_size`, `steps`, `guidance`; `call` holds what its call takes too.

    Raises:
        ValueError: one sentence for the user.
    """
    family = find_family(folder)
    _, device = pick_devices(load.device)
    with explain_errors(folder):
        pipe = _open_pipeline(folder, family, load, device)
        known = About(title=folder.name, tuned=False, image_size=about["image_size"], steps=about["steps"], guidance=about["guidance"])
        pair = DiffusersPair(None, None, None, pipe, known, DeviceSwapper(None, [], device), load)
        place(pair, load, device)
    _pad_without_torchvision(denoiser_of(pipe))
    _clean_without_ftfy(pipe)
    return VideoModel(pair, family, about.get("call"))


def _open_pipeline(folder: Path, family: Family, load: LoadOptions, device: str) -> Any:
    """The family's own pipeline from the parts that a folder's index names, whichever pipeline that is of."""
    import diffusers

    kind = getattr(diffusers, family.pipeline)
    wanted, index = inspect.signature(kind.__init__).parameters, read_index(folder)
    parts = {name: part for name, part in open_large_parts(folder, kind, load, device).items() if part is not None and name in wanted}
    for name, value in index.items():
        if name not in wanted or name in parts or name == "prompt_enhancer":
            continue
        if name == "safety_checker":
            parts[name] = CheckedBefore()
        elif not isinstance(value, list):
            parts[name] = value  # a setting, such as how Wan marks its first frame
        elif all(value):
            parts[name] = _open_part(folder / name, *value, dtype_of(load.painter_precision, device))
    if "safety_checker" in wanted:
        parts["safety_checker"] = CheckedBefore()
    return kind(**parts)


def _open_part(folder: Path, library: str, cls: str, dtype: torch.dtype) -> Any:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    module = importlib.import_module(library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}")
    kind = getattr(module, f"{cls}Pil", None) if cls.endswith("ImageProcessor") else None  # torchvision may not be there
    kind = kind or getattr(module, cls)
    if not issubclass(kind, ModelMixin | PreTrainedModel):
        return kind.from_pretrained(folder, local_files_only=True)
    exact = torch.float32 if cls == "AutoencoderKLWan" else dtype  # in 16 bits it shows seams between frames
    return kind.from_pretrained(folder, dtype=exact, use_safetensors=True, local_files_only=True)


def _pad_without_torchvision(model: Any) -> None:
    """Cosmos' DiT resizes a mask of zeros with torchvision at every step; the same zeros are added where its patches are made."""
    if not getattr(model.config, "concat_padding_mask", False):
        return
    model.register_to_config(concat_padding_mask=False)
    model.patch_embed.register_forward_pre_hook(lambda module, given: (torch.cat([given[0], torch.zeros_like(given[0][:, :1])], 1),))


def _clean_without_ftfy(pipe: Any) -> None:
    """Wan's pipeline mends words with ftfy, and fails without it; our words come whole, so that its plain rules are enough."""
    module = importlib.import_module(type(pipe).__module__)
    if hasattr(module, "is_ftfy_available") and not module.is_ftfy_available():
        vars(module)["ftfy"] = SimpleNamespace(fix_text=_straighten)


def _straighten(words: str) -> str:
    """Words in composed letters, with straight quotes."""
    return unicodedata.normalize("NFC", words).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
