"""Enlarges pictures: by an upscaler that a person brought, of the families that the package spandrel knows, else by Lanczos."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from duogen.models.transformer_files import SAFETENSORS
from duogen.models.weight_files import check_file, read_header

if TYPE_CHECKING:  # whoever only wants to know what there is need not import it
    import torch

PACKAGE = "spandrel"
LANCZOS_SCALE = 2
TILE, OVERLAP = 384, 32  # pixels of what an upscaler is given at once


def is_installed() -> bool:
    """Whether the package is there that opens upscalers."""
    return importlib.util.find_spec(PACKAGE) is not None


def enlarge(picture: PILImage.Image, scale: int = LANCZOS_SCALE) -> PILImage.Image:
    """A picture `scale` times as large, by Lanczos."""
    return picture.resize((picture.width * scale, picture.height * scale), PILImage.Resampling.LANCZOS)


class Upscaler:
    """An opened upscaler.

    Attributes:
        scale: how many times as large a picture becomes.
    """

    def __init__(self, model: Callable[[torch.Tensor], torch.Tensor], scale: int, device: str = "cpu", tile: int = TILE) -> None:
        """`model` takes and returns pictures [1, 3, h, w] of numbers from 0 to 1; `tile` is 0 for pictures as a whole."""
        self.model, self.scale, self.device, self.tile = model, scale, device, tile

    def upscale(self, picture: PILImage.Image) -> PILImage.Image:
        """A picture `scale` times as large, tile by tile, each with a border of its neighbours."""
        import torch

        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        height, width, scale = picture.height, picture.width, self.scale
        made = torch.empty(3, height * scale, width * scale)
        tall, wide = self.tile or height, self.tile or width
        for top, left in ((top, left) for top in range(0, height, tall) for left in range(0, width, wide)):
            bottom, right = min(top + tall, height), min(left + wide, width)
            above, before = max(0, top - OVERLAP), max(0, left - OVERLAP)
            given = pixels[:, :, above : bottom + OVERLAP, before : right + OVERLAP].to(self.device)
            with torch.inference_mode():
                tile = self.model(given)[0, :, (top - above) * scale :, (left - before) * scale :].cpu()
            place = made[:, top * scale : bottom * scale, left * scale : right * scale]
            place.copy_(tile[:, : place.shape[1], : place.shape[2]])
        return PILImage.fromarray((made.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def open_upscaler(file: Path, device: str = "cpu") -> Upscaler:
    """Open the weights of an upscaler. A pickle is read as plain weights; code in it never runs.

    Raises:
        ValueError: it cannot be opened; one sentence that names the file.
    """
    if not is_installed():
        raise ValueError(f"Upscalers need the package {PACKAGE}; install it with: pip install -r requirements.txt {PACKAGE}")
    state = _read_weights(file)
    from spandrel import ImageModelDescriptor, ModelLoader, ModelTiling, UnsupportedModelError  # ty: ignore[import-not-found]

    try:
        model = ModelLoader(device).load_from_state_dict(state)
    except (UnsupportedModelError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file.name} is of no family of upscalers that {PACKAGE} knows; bring another one.") from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise ValueError(f"{file.name} does not enlarge pictures in colour; bring another upscaler.")
    return Upscaler(model, model.scale, device, TILE if model.tiling is ModelTiling.SUPPORTED else 0)


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Raises ValueError: the file is damaged, or holds something other than weights."""
    if file.suffix.lower() == SAFETENSORS:
        from safetensors.torch import load_file

        read_header(file)
        return load_file(file)
    import torch

    check_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever stands there
        raise ValueError(f"{file.name} is damaged, or holds code beside its weights; get it as safetensors.") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file.name} holds no weights by name; bring another upscaler.")
    return state
