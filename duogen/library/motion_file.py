"""An animated picture as an MP4 file with its settings inside: our JSON in a box at its end, a line for other programs in its comment."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as PILImage

from duogen.content_credentials import sign_picture
from duogen.library.picture_file import LONGEST_TEXT, PictureInfo, format_parameters, from_json, to_json
from duogen.library.video_file import encode_mp4, pack_box, pack_origin, walk_boxes, walk_stream
from duogen.picture_input import MAX_PIXELS
from duogen.provenance import TERMS, Origin

SETTINGS_BOX = uuid.UUID("6a1f4c0e-5d0b-4a55-8f61-64756f67656e")
SIGNATURE_BOX = uuid.UUID("d8fec3d6-1b0e-483c-9297-5828877ec481")  # of C2PA
MOST_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class MotionHeader:
    """What a file says: its settings, the size of its frames in pixels, and how long it plays in seconds."""

    about: PictureInfo
    size: tuple[int, int]
    seconds: float


def encode_motion(frames: list[PILImage.Image], fps: int, about: PictureInfo) -> bytes:
    """Frames as a file that carries its settings and its origin, signed where a certificate is used."""
    origin = Origin(about.origin) if about.origin else None
    source = f"\nDigital source type: {TERMS}{origin}" if origin else ""
    video = encode_mp4(frames, fps, about.words[:200], format_parameters(about, frames[0].size) + source)
    return _finish(video + pack_origin(origin), about)


def _finish(video: bytes, about: PictureInfo) -> bytes:
    origin = Origin(about.origin) if about.origin else None
    return sign_picture(video + pack_box(SETTINGS_BOX, to_json(about).encode()), "MP4", origin)


def replace_motion_info(data: bytes, about: PictureInfo) -> bytes:
    """Replace the settings in a file without decoding it. A signed one is signed anew, and unsigned without a certificate."""
    kept = bytearray()
    for kind, start, end in walk_boxes(data):
        own = kind == b"uuid" and data[start + 8 : start + 24]
        if own == SETTINGS_BOX.bytes:
            continue
        box = bytearray(data[start:end])
        if own == SIGNATURE_BOX.bytes:
            box[4:8] = b"free"  # it holds no longer; its room stays, since what follows is named by its place
        kept += box
    return _finish(bytes(kept), about)


def is_motion(data: bytes) -> bool:
    """Whether bytes begin as an MP4."""
    return data[4:8] == b"ftyp"


def read_motion(file: Path) -> MotionHeader:
    """Read what a file says, without its frames.

    Raises:
        ValueError: it is no video that can be played, or too large.
    """
    import av

    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            found = next(_find_settings(opened, size), None)
        with av.open(file) as video:
            stream = video.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            seconds = float(video.duration or 0) / av.time_base
    except Exception as error:  # whatever a damaged file raises, it costs this video alone
        raise ValueError(f"{file.name} cannot be read as a video.") from error
    if size > MOST_BYTES or not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{file.name} is too large for an animated picture.")
    return MotionHeader(found or PictureInfo(painted=False, made=file.stat().st_mtime), (width, height), seconds)


def _find_settings(opened: io.BufferedIOBase, size: int) -> Iterator[PictureInfo]:
    """The settings in an open file; damaged ones count as none."""
    for kind, start, end in walk_stream(opened, size):
        opened.seek(start + 8)
        if kind == b"uuid" and end - start <= LONGEST_TEXT and opened.read(16) == SETTINGS_BOX.bytes:
            try:
                yield from_json(opened.read(end - start - 24).decode())
            except ValueError:
                return


def open_first_frame(file: Path) -> PILImage.Image:
    """The first frame. Raises ValueError: the file cannot be played."""
    import av

    try:
        with av.open(file) as video:
            return next(video.decode(video=0)).to_image()
    except Exception as error:  # whatever a damaged file raises
        raise ValueError(f"{file.name} cannot be read as a video.") from error
