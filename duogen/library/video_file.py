"""Videos as MP4 files (H.264), and the boxes of such a file that hold what it says of itself."""

from __future__ import annotations

import io
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from PIL import Image as PILImage

from duogen.provenance import Origin, write_packet

PAPER = "white"
XMP_BOX = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")  # the box of an MP4 that holds XMP


def encode_mp4(pictures: Iterable[PILImage.Image], rate: int, title: str, comment: str, stills: bool = False) -> bytes:
    """Pictures of one size as a video with `rate` of them a second. An odd size gets a white line more.

    Args:
        stills: most pictures are the same as the one before; the same object is converted once.
    """
    import av
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    colours = {"format": "yuv420p", "dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
    tune = {"tune": "stillimage"} if stills else {}
    before: PILImage.Image | None = None
    frame = None
    with tempfile.TemporaryDirectory(prefix="duogen-video-") as folder:  # the index goes to the front, so the file is written twice
        file = Path(folder) / "video.mp4"
        with av.open(file, "w", options={"movflags": "faststart"}) as out:
            out.metadata.update({"title": title, "comment": comment})
            stream = out.add_stream("libx264", rate, options={"crf": "18", "preset": "veryfast", **tune})
            for tick, picture in enumerate(pictures):
                if not tick:
                    stream.width, stream.height, stream.pix_fmt = *(side + side % 2 for side in picture.size), "yuv420p"
                    about = stream.codec_context
                    about.colorspace, about.color_range = Colorspace.ITU709, ColorRange.MPEG
                    about.color_primaries, about.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
                if frame is None or picture is not before:
                    even = PILImage.new("RGB", (stream.width, stream.height), PAPER)
                    even.paste(picture)
                    frame = av.VideoFrame.from_image(even).reformat(**colours)
                    frame.time_base = Fraction(1, rate)
                before, frame.pts = picture, tick
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return file.read_bytes()


def pack_box(kind: uuid.UUID, content: bytes) -> bytes:
    """A box that is put at the end of an MP4."""
    body = kind.bytes + content
    return (len(body) + 8).to_bytes(4, "big") + b"uuid" + body


def pack_origin(origin: Origin | None, description: str = "") -> bytes:
    """The mark of origin as a box, nothing where there is nothing to say."""
    return pack_box(XMP_BOX, write_packet(origin, description)) if origin or description else b""


def walk_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the outermost boxes of an MP4; ends where they are damaged."""
    yield from walk_stream(io.BytesIO(data), len(data))


def walk_stream(file: io.BufferedIOBase, size: int) -> Iterator[tuple[bytes, int, int]]:
    """As `walk_boxes`, of an open file of `size` bytes, of which only the heads of boxes are read."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:16], "big") if length == 1 else size - at if length == 0 else length
        if length < 8 or at + length > size:
            return
        yield kind, at, at + length
        at += length
