"""Pictures in requests and responses of programs: the spellings of a data URL, masks, and the files that pictures are sent as."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any
from urllib.parse import unquote_to_bytes

from PIL import Image as PILImage
from PIL import ImageOps

from duogen.content_credentials import encode_signed
from duogen.conversation import Image
from duogen.faults import describe_fault
from duogen.picture_input import PICTURE_SIDE, open_picture
from duogen.provenance import find_origin
from ui.api.requests import RequestError

MOST_PICTURES = 64
FORMATS = {"png": "PNG", "jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
TRANSPARENT = 128  # of 255: a place with less is one that may change

LINK = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
HEAD = re.compile(r"(?:data:)?[^,]*?;?\s*base64\s*(?:;[^,]*)?,", re.IGNORECASE)
PLAIN_HEAD = re.compile(r"data:[^,]*,", re.IGNORECASE)
LONGEST_HEAD = 400  # of a data URL, in letters
BASE64 = re.compile(r"[A-Za-z0-9+/_=-]+")
LEAST_LETTERS = 64  # of base64 that stands alone; less is a word or a path
HOLDERS = ("url", "data", "b64_json", "file_data", "image_url", "image", "source", "file", "inline_data", "inlineData")
NO_DATA = "Send pictures as data URLs (data:image/png;base64,...); links and files are not fetched."


def parse_picture(address: Any) -> Image:
    """A data URL, however it is spelled, or bare base64 as a picture. Links are refused: a client could make this machine fetch them.

    Raises:
        RequestError: it is neither, or no picture.
    """
    return read_picture(decode_address(address))


def decode_address(address: Any) -> bytes:
    """The bytes in a data URL or in bare base64.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(address, str) or LINK.match(address.strip()):
        raise RequestError(NO_DATA)
    address = address.strip()
    head = HEAD.match(address, 0, LONGEST_HEAD)
    if head:
        return _decode_base64(address[head.end() :])
    plain = PLAIN_HEAD.match(address, 0, LONGEST_HEAD)
    if plain:
        return unquote_to_bytes(address[plain.end() :])
    bare = "".join(address.split())
    if len(bare) < LEAST_LETTERS or not BASE64.fullmatch(bare):
        raise RequestError(NO_DATA)
    return _decode_base64(bare)


def _decode_base64(data: str) -> bytes:
    """As browsers read it: blanks, line ends and padding do not matter; the URL-safe alphabet and percent signs are read too."""
    if "%" in data:
        data = unquote_to_bytes(data).decode("ascii", "replace")
    data = "".join(data.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise RequestError("A picture's base64 is damaged; encode it anew.") from error


def read_picture(brought: bytes) -> Image:
    """A file that a program sent as a picture, at most `PICTURE_SIDE` pixels a side.

    Raises:
        RequestError: it is no picture.
    """
    try:
        picture = open_picture(brought)
    except ValueError as error:
        raise RequestError(str(error)) from error
    except Exception as error:  # whatever a decoder raises, the picture is what is wrong
        raise RequestError(f"A picture cannot be read ({describe_fault(error)}); bring a PNG, JPEG, WebP, AVIF or HEIC file.") from error
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return Image(picture, origin=find_origin(brought))


def find_address(value: Any, depth: int = 4) -> Any:
    """The data URL in a picture's part of any maker's shape: a text, or an object that holds one; `None` if there is none."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not depth:
        return None
    found = (find_address(value[name], depth - 1) for name in HOLDERS if name in value)
    return next((address for address in found if address), None)


def mark_transparent(image: Image, picture: bytes, mask: bytes | None) -> Image:
    """The image with the places that may change: those that are transparent in `mask`, or without one in the picture itself.

    Args:
        picture: the file that `image` was read from.

    Raises:
        RequestError: the mask is no picture, of another size than the picture, or has no transparent places.
    """
    if mask is not None and _has_alpha(mask) and read_picture(mask).picture.size != image.picture.size:
        raise RequestError("The mask must have the size of the picture.", param="mask")
    marked = _find_transparent(picture if mask is None else mask, image.picture.size)
    if marked is None and mask is not None:
        raise RequestError("The mask has no transparent places; make transparent what may change.", param="mask")
    return replace(image, mask=marked)


def _find_transparent(brought: bytes, size: tuple[int, int]) -> PILImage.Image | None:
    """The transparent places of a picture that `read_picture` could read, white on black; `None` if it has none."""
    if not _has_alpha(brought):
        return None
    picture = ImageOps.exif_transpose(PILImage.open(io.BytesIO(brought)))
    alpha = picture.convert("RGBA").getchannel("A").resize(size, PILImage.Resampling.BOX)
    mask = alpha.point(lambda value: 255 if value < TRANSPARENT else 0)
    return mask if mask.getbbox() else None


def _has_alpha(brought: bytes) -> bool:
    """Whether the head of a picture speaks of transparency, which costs no decoding; also where it cannot be read."""
    try:
        picture = PILImage.open(io.BytesIO(brought))
    except Exception:  # `read_picture` says what is wrong
        return True
    return "A" in picture.getbands() or "transparency" in picture.info


def encode_base64(image: Image, kind: str = "PNG", quality: int = 100) -> str:
    """A picture as base64. `quality`, from 1 to 100, is of JPEG and WebP."""
    settings = {} if kind == "PNG" else {"quality": quality}
    return base64.b64encode(encode_signed(image.picture, kind, image.origin, image.is_painted, **settings)).decode()


def data_url(image: Image) -> str:
    return "data:image/png;base64," + encode_base64(image)
