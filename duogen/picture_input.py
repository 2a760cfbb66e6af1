"""The one door through which a picture that a person brings comes in: chat, Studio, Library, API, training data, saved pages."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000


def open_picture(source: Path | str | bytes) -> PILImage.Image:
    """Read a picture that a person brought: first frame, upright, alpha laid on white, RGB.

    Raises:
        ValueError: it is no picture, is cut short, or has more than 50 megapixels; the message says what to do.
    """
    name = "The picture" if isinstance(source, bytes) else Path(source).name
    try:
        picture = PILImage.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{name} has {picture.width} x {picture.height} pixels; make it smaller than 50 megapixels.")
        picture.seek(0)
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16-bit greys would clip to white
            picture = picture.convert("I").point(lambda value: value / 256).convert("L")
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = PILImage.alpha_composite(PILImage.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
        return picture.convert("RGB")
    except PILImage.DecompressionBombError as error:  # raised before its size is to be had
        raise ValueError(f"{name} has far too many pixels; make it smaller than 50 megapixels.") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"There is no file {source}.") from error
        raise ValueError(f"{name} cannot be read as a picture; bring a PNG, JPEG or WebP file.") from error
