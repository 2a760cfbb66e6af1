"""Inspect pictures: whether they are valid and useful, their kind and their perceptual hash."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import lru_cache

import numpy
import pyvips
import zxingcpp
from PIL import Image as PILImage
from PIL import ImageCms, UnidentifiedImageError

from duogen.data_engine.kinds import HEAD, kind_of_bytes, name_content
from duogen.data_engine.limits import LARGEST_PAGE
from duogen.data_engine.options import DataOptions
from duogen.data_engine.picture_metadata import read_metadata, read_orientation, strip_metadata
from duogen.data_engine.reasons import describe_error
from duogen.data_engine.sample import Picture
from duogen.files import read_bytes
from duogen.picture_input import CUT_JPEG, FORMATS, MAX_PIXELS, MOST_SCANS, is_cut_off, is_srgb, open_picture, walk_jpeg

NOT_THERE = "its file is not there"
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:|//", re.I)  # of another site, or data in place of a file
TRACKER = re.compile(r"pixel\.|/pixel|beacon|tracking|doubleclick|googlesyndication|analytics|1x1|spacer|blank\.gif", re.I)
FURNITURE = re.compile(
    r"(?:^|[\W_])(?:logos?|icons?|favicon|avatar|gravatar|badge|sprite|emoji|button|btn|banner|advert\w*|ads?|sponsor\w*|rss|share|social|"
    r"facebook|twitter|pinterest|instagram|youtube|paypal|patreon|donate|qr(?:-?code)?|captcha)(?:[\W_]|$)",
    re.I,
)
AD_SIZES = {(728, 90), (468, 60), (300, 250), (336, 280), (160, 600), (120, 600), (970, 250), (970, 90), (320, 50), (320, 100), (250, 250)}
SUFFIXES = {
    "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif", "AVIF": ".avif",
    "HEIF": ".heic",
}  # fmt: skip
FAST = ("JPEG", "MPO", "PNG", "WEBP")
THINNEST = 3.2  # longer side / shorter side
THUMB = 256
KEPT = (".jpg", ".png", ".webp")  # what training reads as it is
FREQUENCIES = numpy.cos(numpy.pi / 32 * (numpy.arange(32) + 0.5) * numpy.arange(8)[:, None])  # [8, 32], DCT-II
FREQUENCIES[0] *= 0.5**0.5  # orthonormal but for one factor, which the median takes out
PER_PIXEL = 0.2  # bytes of a photograph as JPEG of quality 92: a file below that would not get smaller

pyvips.cache_set_max(0)  # no operation is repeated, so a cache only costs memory


def inspect_picture(picture: Picture, options: DataOptions) -> tuple[Picture, str]:
    """Return the picture with shape, hash and guessed kind, and why it is useless ("" if it is not)."""
    if picture.unread:
        return picture, picture.unread
    said = f"{picture.name} {picture.alt}"
    if TRACKER.search(picture.name):
        return picture, "a tracking pixel"
    if picture.name.lower().split("?")[0].endswith(".svg") or picture.name.startswith("data:image/svg"):
        return picture, "an icon or a drawing as SVG"
    if FURNITURE.search(said) and len(picture.caption) < 20:
        return picture, "an icon, a logo or an ad by its name"
    try:
        data = _read_bytes(picture)
    except FileNotFoundError:
        return picture, NOT_THERE
    except ValueError as error:
        return picture, f"broken: {describe_error(error)}"
    try:
        image = PILImage.open(io.BytesIO(data), formats=FORMATS)
        why = _check_shape(image.size, options)
        if why:
            return replace(picture, shape=image.size), why
        turned = read_metadata(data, ".webp").orientation if image.format == "WEBP" else read_orientation(image)
        shape = image.size[::-1] if turned >= 5 else image.size
        small = scale_picture(data, THUMB, image)
    except TimeoutError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        return picture, _explain(data, error) if data or picture.file else "broken: it is empty or damaged in its archive"
    grey = small.convert("L")
    seen = replace(picture, shape=shape, phash=perceptual_hash(grey), kind=guess_kind(small), suffix=SUFFIXES.get(image.format or "", ""))
    return seen, _check_pixels(grey)


def is_missing(picture: Picture) -> bool:
    """Whether a page names a picture of its own site whose file is not there."""
    return picture.data is None and picture.file is None and not picture.unread and not ADDRESS.match(picture.name)


def _read_bytes(picture: Picture) -> bytes:
    """The bytes of a picture.

    Raises:
        FileNotFoundError: its file is not there.
        ValueError: it is no regular file, too large, or cannot be read.
    """
    if picture.data is not None:
        return picture.data
    if picture.file is None or not picture.file.exists():
        raise FileNotFoundError(picture.name)
    return read_bytes(picture.file, LARGEST_PAGE)


def _explain(data: bytes, error: Exception) -> str:
    """Why a picture cannot be decoded."""
    if isinstance(error, PILImage.DecompressionBombError):
        return "more than 50 megapixels"
    if isinstance(error, UnidentifiedImageError) and kind_of_bytes(data[:HEAD]):
        return f"broken: it holds {name_content(data[:HEAD])}"
    return "broken: it is empty" if not data else "broken: it is damaged, cut off or of an unknown kind"


def scale_picture(data: bytes, most: int, header: PILImage.Image | None = None) -> PILImage.Image:
    """Decode a whole picture at no more than `most` pixels a side, upright, RGB in sRGB on white.

    libvips decodes the usual kinds directly at that size; `open_picture` reads the others. `header` is the picture as Pillow opens it.

    Raises:
        ValueError, pyvips.Error: the picture is broken or cut off.
    """
    header = header or PILImage.open(io.BytesIO(data), formats=FORMATS)
    image = _scale_fast(data, most, header) if header.format in FAST and header.mode != "CMYK" else None
    if image is None:
        picture = open_picture(data)
        picture.thumbnail((most, most), PILImage.Resampling.LANCZOS)
        return picture
    return PILImage.frombuffer("RGB", (image.width, image.height), image.write_to_memory())


def _scale_fast(data: bytes, most: int, header: PILImage.Image) -> pyvips.Image | None:
    """The picture by libvips as three bytes a pixel, `None` where it has a form that is rare."""
    if is_cut_off(data, header.format):
        raise ValueError("it is cut off")
    image = _load_scaled(data, most, header.format in ("JPEG", "MPO"))
    if image.interpretation not in ("srgb", "b-w", "rgb16", "grey16"):
        return None
    profile = header.info.get("icc_profile")
    if profile and not _keeps_colours(profile):
        image = image.icc_transform("srgb", embedded=True)
    if image.interpretation != "srgb":
        image = image.colourspace("srgb")
    if image.hasalpha():
        image = image.flatten(background=[255])
    return image if image.format == "uchar" else image.cast("uchar")


def _load_scaled(data: bytes, most: int, is_jpeg: bool) -> pyvips.Image:
    """Decode at a size. The options of the loader go as text: libvips 8.18 forgets `fail_on` otherwise.

    Of what libjpeg warns of, only missing pixels are damage.
    """

    def load(fail_on: str) -> pyvips.Image:
        small = pyvips.Image.thumbnail_buffer(data, most, height=most, size="down", option_string=f"[fail_on={fail_on}]")
        return small.copy_memory()

    if not is_jpeg:
        return load("error")
    scans, has_end = walk_jpeg(data)
    if not has_end or scans > MOST_SCANS:
        raise ValueError("it is cut off")
    try:
        return load("warning")
    except pyvips.Error as error:
        if CUT_JPEG.search(str(error)):
            raise
        return load("error")


@lru_cache(maxsize=64)
def _keeps_colours(profile: bytes) -> bool:
    """Whether a colour profile is sRGB, or so damaged that it counts as none."""
    try:
        return is_srgb(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (OSError, ImageCms.PyCMSError, TypeError):
        return True


def _check_shape(size: tuple[int, int], options: DataOptions) -> str:
    width, height = size
    if width * height > MAX_PIXELS:
        return "more than 50 megapixels"
    if max(size) <= 4:
        return "a tracking pixel"
    if size in AD_SIZES:
        return "an ad by its size"
    if min(size) < options.min_side:
        return "too small"
    return "a banner by its shape" if max(size) > THINNEST * min(size) else ""


def _check_pixels(grey: PILImage.Image) -> str:
    """Why a picture is useless by its pixels (one colour, a bar code), "" if it is not."""
    counts = numpy.array(grey.histogram())
    levels, pixels = numpy.arange(256), counts.sum()
    middle = (counts * levels).sum() / pixels
    if ((counts * (levels - middle) ** 2).sum() / pixels) ** 0.5 < 6:
        return "nearly one colour"
    # Codes are black and white; the histogram spares the search in nearly all photographs.
    if (counts[:64].sum() + counts[193:].sum()) / pixels > 0.8 and zxingcpp.read_barcodes(grey):
        return "a code for machines"
    return ""


def perceptual_hash(grey: PILImage.Image) -> int:
    """pHash (Zauner 2010): 64 bits of the low frequencies. Near-duplicates differ in few of them."""
    tiny = numpy.asarray(grey.resize((32, 32), PILImage.Resampling.LANCZOS), dtype=numpy.float32)
    low = (FREQUENCIES @ tiny @ FREQUENCIES.T).flatten()
    bits = low > numpy.median(low[1:])
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def guess_kind(small: PILImage.Image) -> str:
    """Guess the kind from the pixels: photographs have many colours and no flat areas; paper is white with little ink."""
    tiny = small.resize((64, 64), PILImage.Resampling.BOX)
    pixels = numpy.asarray(tiny, dtype=numpy.int16)
    flat_share = float((numpy.abs(numpy.diff(pixels, axis=1)).max(axis=2) <= 2).mean())
    white = float((pixels.min(axis=2) > 235).mean())
    colourful = float((pixels.max(axis=2) - pixels.min(axis=2)).mean())
    if white > 0.6 and colourful < 12:
        return "document"
    if flat_share > 0.75:
        return "chart" if white > 0.5 else "drawing" if colourful > 20 else "screenshot"
    return "photo"


def encode_picture(picture: Picture, most: int) -> tuple[bytes, str]:
    """The bytes to store and their suffix: the same pixels without metadata, or scaled down and upright as JPEG (PNG for drawings).

    A large photograph that is well compressed keeps its pixels, since coding it again would lose detail and take more bytes.

    Raises:
        OSError, ValueError, pyvips.Error: the picture is gone or broken since it was inspected.
    """
    data = _read_bytes(picture)
    if picture.suffix in KEPT and picture.shape:
        width, height = picture.shape
        scale = min(1.0, most / max(width, height))
        kept = _strip(data, picture.suffix) if scale == 1.0 or len(data) <= PER_PIXEL * width * height * scale**2 else None
        if kept is not None:
            return kept, picture.suffix
    image = scale_picture(data, most)
    out = io.BytesIO()
    drawn = picture.kind in ("drawing", "chart", "screenshot", "document")
    image.save(out, "PNG") if drawn else image.save(out, "JPEG", quality=92)
    return out.getvalue(), ".png" if drawn else ".jpg"


def _strip(data: bytes, suffix: str) -> bytes | None:
    """The file without metadata and profile; `None` where its colours would change."""
    about = read_metadata(data, suffix)
    if about.cmyk or (about.profile and not _keeps_colours(about.profile)):
        return None
    return strip_metadata(data, suffix, about.orientation)
