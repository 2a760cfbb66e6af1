"""Take out of a picture file what is not pixels (places, dates, programs, thumbnails, colour profiles) without coding it again."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image as PILImage

ORIENTATION = 0x0112  # a tag of EXIF
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the first marker that is no part of a JPEG's pixels
END, SCAN, JFIF, ADOBE, COMMENT = 0xD9, 0xDA, 0xE0, 0xEE, 0xFE
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
WEBP_KEPT = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
WEBP_FLAGS = 0x2C  # of the chunk VP8X: a profile, EXIF, XMP


def strip_metadata(data: bytes, suffix: str, orientation: int = 1) -> bytes | None:
    """The same pixels alone, and how a JPEG is to be turned. `None` where that needs the picture to be coded again."""
    try:
        if suffix == ".jpg":
            return b"".join(_list_jpeg_parts(data, orientation))
        if orientation != 1:
            return None
        return b"".join(_list_png_parts(data)) if suffix == ".png" else _strip_webp(data)
    except (IndexError, ValueError):  # it is not laid out as its kind
        return None


def _list_jpeg_parts(data: bytes, orientation: int) -> Iterator[bytes]:
    """What is kept of a JPEG, up to its end; more pictures may follow, and they are dropped.

    Raises:
        IndexError, ValueError: something else than a segment stands where one begins.
    """
    yield data[:2]
    if orientation != 1:
        exif = PILImage.Exif()
        exif[ORIENTATION] = orientation
        said = exif.tobytes()
        yield b"\xff\xe1" + (len(said) + 2).to_bytes(2, "big") + said
    at = 2
    while True:
        while data[at + 1] == 0xFF:  # filling
            at += 1
        kind, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at] != 0xFF:
            raise ValueError("no segment")
        if kind == END:
            yield b"\xff\xd9"
            return
        if kind == JFIF and data[at + 4 : at + 9] == b"JFIF\0":
            yield b"\xff\xe0\x00\x10" + data[at + 4 : at + 16] + b"\0\0"  # without its thumbnail
        elif not JFIF <= kind < 0xF0 and kind != COMMENT or kind == ADOBE:
            yield data[at:end]
        at = end
        if kind == SCAN:
            found = SCAN_END.search(data, at)
            if found is None:
                raise ValueError("no end")
            yield data[at : found.start()]
            at = found.start()


def _list_png_parts(data: bytes) -> Iterator[bytes]:
    yield PNG_START
    at, name = len(PNG_START), b""
    while name != b"IEND":
        end, name = at + 12 + int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if end > len(data):
            raise ValueError("cut off")
        if name in PNG_KEPT:
            yield data[at:end]
        at = end


def _strip_webp(data: bytes) -> bytes:
    parts = [b"WEBP"]
    for name, chunk in _list_webp_chunks(data):
        if name == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_FLAGS]) + chunk[9:]
        if name in WEBP_KEPT:
            parts.append(chunk)
    body = b"".join(parts)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _list_webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The names of the parts of a WebP file, and the parts with their heads."""
    at, most = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= most:
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at : at + 8 + size + size % 2]
        at += 8 + size + size % 2


class Metadata(NamedTuple):
    """What a picture file says of its pixels."""

    orientation: int
    profile: bytes
    cmyk: bool = False


def read_metadata(data: bytes, suffix: str) -> Metadata:
    """What a JPEG, PNG or WebP file says of its pixels.

    Raises:
        OSError: it is no picture.
    """
    if suffix == ".webp":  # Pillow opens it slowly
        chunks = dict(_list_webp_chunks(data))
        exif = PILImage.Exif()
        with contextlib.suppress(Exception):  # damaged tags say nothing
            exif.load(chunks.get(b"EXIF", b"")[8:])
        return Metadata(_check_orientation(exif.get(ORIENTATION)), chunks.get(b"ICCP", b"")[8:])
    header = PILImage.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    return Metadata(read_orientation(header), header.info.get("icc_profile") or b"", header.mode == "CMYK")


def read_orientation(image: PILImage.Image) -> int:
    """How the pixels of a file are to be turned, by its EXIF: 1 to 8. Pillow has turned a TIFF and a HEIF picture already."""
    if image.format in ("TIFF", "HEIF"):
        return 1
    try:
        return _check_orientation(image.getexif().get(ORIENTATION))
    except Exception:  # damaged tags say nothing
        return 1


def _check_orientation(said: object) -> int:
    return said if isinstance(said, int) and 1 <= said <= 8 else 1
