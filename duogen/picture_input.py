"""The one door through which a picture that a person brings comes in: chat, Studio, Library, API, training data."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image as PILImage
from PIL import ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from duogen.files import read_bytes

MAX_PIXELS = 50_000_000
PICTURE_SIDE = 1536  # a photo from a phone takes 150 MB of memory, and no pair sees more
LARGEST_FILE = 512 << 20  # bytes
THINNEST = 200  # longer side / shorter side; the vision towers of Qwen take no more
MOST_SCANS = 100  # of a JPEG; a progressive one has about ten, and each is a pass over all pixels: with 50 megapixels 30 ms
SLOW_PIXELS = 2_500_000  # of what Pillow decodes in Python, which takes up to 2 s for a megapixel and lets no other thread work
ZEROS = 4096  # bytes at the end of a file that no encoder leaves there
KINDS = "PNG, JPEG, WebP, AVIF or HEIC"
# No format that runs another program (EPS), holds films or maps (MPEG, GRIB), or has no mark that tells it from rubbish.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP", "DIB", "ICO", "CUR", "ICNS", "JPEG2000"),
    *("PPM", "PSD", "QOI", "DDS", "SGI", "SUN", "PCX", "XBM", "XPM"),
)
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(he[iv][cxms]|m[is]f1)",
    "GIF": rb"GIF8",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS",
    "DDS": rb"DDS ",
    "QOI": rb"qoif",
    "icon": rb"\0\0[\x01\x02]\0|icns",
}
# What people take for a picture, by its first bytes, and what to do with it.
FOREIGN = {
    rb"version https://git-lfs": "is a git-lfs pointer without the picture itself; fetch it with: git lfs pull",
    rb"%PDF-": "is a PDF document; export the page as PNG and bring that.",
    rb"%!PS|\xc5\xd0\xd3\xc6": "is a PostScript drawing; export it as PNG and bring that.",
    rb"PK\x03\x04": "is a zip archive; unpack it and bring the pictures in it.",
    rb"\0\0\0\x0cJXL |\xff\x0a": "is a JPEG XL file; export it as PNG or JPEG and bring that.",
    rb"gimp xcf": "is a GIMP project; export it as PNG and bring that.",
    rb"FUJIFILMCCD-RAW|FOVb|\0MRM|II\*\0\x10\0\0\0CR|II(RO|RS|U\0)|MMOR|....ftypcrx": "",  # a camera's raw file: RAW
    rb"....ftyp(?!avi[fs]|he[iv][cxms]|m[is]f1)|....(moov|mdat|wide|pnot)|RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01|OggS": (
        "is a video; bring a single picture of it as PNG or JPEG."
    ),
}
RAW = "is a camera's raw file; export it as JPEG and bring that."
RAW_ENDINGS = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".nef", ".nrw"),
    *(".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
DNG_VERSION, SUBFILE_TYPE, SUB_IFDS, BITS = 50706, 254, 330, 258  # tags of TIFF
CUT_JPEG = re.compile("premature end|bad Huffman|instead of RST")  # what libjpeg warns of where pixels are missing
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a JPEG's segments, beside those without a length

pillow_heif.register_heif_opener()
# Also for pictures inside a picture, such as the PNG in an icon. Pillow refuses more than twice as many by itself.
PILImage.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=PILImage.DecompressionBombWarning)


class _Refusal(ValueError):
    """What is wrong with a picture, as a sentence without its first word."""


def open_picture(source: Path | str | bytes, *, letterbox: bool = False) -> PILImage.Image:
    """Read a picture that a person brought: first frame, upright, alpha laid on white, RGB in sRGB, without metadata.

    Args:
        letterbox: lay a picture that is too thin on white instead of refusing it. For pictures that were stored before they were refused.

    Raises:
        ValueError: it is no picture, is damaged or cut short, has more than 50 megapixels, or is thinner than 1 to 200; the message is
            one sentence that names the file and says what to do.
    """
    if isinstance(source, bytes):
        name, data = "The picture", source
    else:
        name, data = Path(source).name, read_bytes(Path(source), LARGEST_FILE)
    try:
        _refuse_foreign(name, data)
        picture = _decode(name, data, letterbox)
    except _Refusal as error:
        raise ValueError(f"{name} {error}") from error
    except PILImage.DecompressionBombError as error:  # raised before its size is known
        raise ValueError(f"{name} has far too many pixels; make it smaller than 50 megapixels.") from error
    except Exception as error:  # damaged files make decoders raise almost anything
        raise ValueError(f"{name} cannot be read as a picture{_explain(data, error)}") from error
    return pad_thin(picture) if letterbox else picture


def _refuse_foreign(name: str, data: bytes) -> None:
    """Raises _Refusal: the file is of another kind that people take for a picture."""
    for pattern, what in FOREIGN.items():
        if re.match(pattern, data, re.DOTALL):
            raise _Refusal(what or RAW)
    if name.lower().endswith(RAW_ENDINGS):
        raise _Refusal(RAW)
    text = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise _Refusal("is a web page; save the picture on it and bring that.")
    if text.startswith(b"<") and b"<svg" in text:
        raise _Refusal("is an SVG drawing; export it as PNG and bring that.")


def _explain(data: bytes, error: Exception) -> str:
    """Why a picture cannot be read and what to do, as the end of a sentence."""
    kind = next((kind for kind, pattern in SIGNATURES.items() if re.match(pattern, data, re.DOTALL)), "")
    if not data:
        return ": the file is empty; get it again."
    if isinstance(error, MemoryError):
        return ": there is not enough memory; make it smaller."
    if re.search("too large|too much memory", str(error), re.IGNORECASE):  # Pillow's limits on what a PNG says beside its pixels
        return ": it holds too much text or too large a colour profile; save it again as PNG or JPEG."
    if not kind or (isinstance(error, UnidentifiedImageError) and kind == "BMP"):  # two letters that many texts begin with
        return f"; bring a {KINDS} file."
    return f": the {kind} file is damaged or cut short; get it again, or bring a {KINDS} file."


def _decode(name: str, data: bytes, any_shape: bool) -> PILImage.Image:
    """Decode a picture whole. Raises whatever Pillow raises, or _Refusal."""
    is_targa = name.lower().endswith(".tga") or data[-18:].startswith(b"TRUEVISION-XFILE")  # the format has no mark at its beginning
    picture = PILImage.open(io.BytesIO(data), formats=("TGA",) if is_targa else FORMATS)
    _check_size(picture.size, any_shape)
    _check_decoder(picture)
    if picture.format in ("JPEG", "MPO"):
        _check_jpeg(data)
    tags: Mapping[int, Any] = getattr(picture, "tag_v2", {})
    if DNG_VERSION in tags or (SUB_IFDS in tags and tags.get(SUBFILE_TYPE) == 1):
        raise _Refusal(RAW)  # its first picture is a thumbnail
    if is_cut_off(data, picture.format):
        raise EOFError
    picture.load()
    _check_size(picture.size, any_shape)  # again: an icon may hold a picture of another size than it says
    profile = picture.info.get("icc_profile")
    picture = _turn_upright(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _scale_to_8_bits(picture, tags)
    picture, alpha = _split_alpha(picture)
    picture = _convert_to_srgb(picture, profile)
    if alpha is not None:
        white = PILImage.new("RGB", picture.size, "white")
        white.paste(picture, mask=alpha)
        picture = white
    picture.info = {}
    return picture


def _check_size(size: tuple[int, int], any_shape: bool) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _Refusal(f"has {width} x {height} pixels; make it smaller than 50 megapixels.")
    too_thin = max(size) > THINNEST * min(size)
    if too_thin and (not any_shape or math.prod(pad_size(size)) > MAX_PIXELS):
        raise _Refusal(f"has {width} x {height} pixels, which is thinner than 1 to {THINNEST}; crop it or add a border.")


def _check_decoder(picture: PILImage.Image) -> None:
    """Raises _Refusal: the picture is large and Pillow has no fast decoder for its kind (QOI, some DDS, PPM, BMP and XPM)."""
    slow = any(tile.codec_name in PILImage.DECODERS for tile in getattr(picture, "tile", ()))
    if slow and picture.width * picture.height > SLOW_PIXELS:
        size = f"{picture.width} x {picture.height}"
        raise _Refusal(f"has {size} pixels in a kind of file that takes too long to read; save it as PNG and bring that.")


def is_cut_off(data: bytes, kind: str | None) -> bool:
    """Whether a download laid out the whole file and stopped: zeros stand for the rest, and the decoders make colours of them."""
    pixels = data[: _find_pixel_end(data)] if kind == "WEBP" else data
    zeros = len(pixels) - len(pixels.rstrip(b"\0"))
    return (kind in ("WEBP", "AVIF", "HEIF") and zeros > ZEROS) or (kind == "PNG" and b"IEND" not in data)


def _find_pixel_end(data: bytes) -> int:
    """Where the pixels of a WebP file end; cameras fill the EXIF after them with zeros."""
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] not in (b"EXIF", b"XMP "):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return at


def pad_size(size: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) of `pad_thin`."""
    least = -(-max(size) // THINNEST)
    return max(size[0], least), max(size[1], least)


def pad_thin(picture: PILImage.Image) -> PILImage.Image:
    """The picture, on white if it is too thin for a vision tower."""
    size = pad_size(picture.size)
    return picture if size == picture.size else ImageOps.pad(picture, size, PILImage.Resampling.NEAREST, "white")


def _check_jpeg(data: bytes) -> None:
    """Raises an error for a JPEG whose pixels end before the picture does, or that takes too long to decode.

    Pillow fills what is missing with grey when the file has a mark of its end; libvips tells.
    """
    scans, has_end = walk_jpeg(data)
    if scans > MOST_SCANS:
        raise _Refusal("is stored in too many layers; save it again as PNG or JPEG.")
    if not has_end:
        raise EOFError
    import pyvips  # where the first JPEG is read: other programs start without it

    pyvips.cache_set_max(0)  # a cached operation would hold the file
    try:
        pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="warning", shrink=8).avg()
    except pyvips.Error as error:
        if CUT_JPEG.search(str(error)):
            raise EOFError from error


def walk_jpeg(data: bytes) -> tuple[int, bool]:
    """How many times a JPEG passes over its pixels, and whether it has a mark of its end."""
    scans, at = 0, 2
    while found := MARKER.search(data, at):
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9:
            return scans, True
        scans += kind == 0xDA
        at += int.from_bytes(data[at : at + 2], "big")
    return scans, False


def _turn_upright(picture: PILImage.Image) -> PILImage.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # the orientation is damaged, the pixels are not
        return picture


def _scale_to_8_bits(picture: PILImage.Image, tags: Mapping[int, Any]) -> PILImage.Image:
    """A grey picture of 16 or 32 bits or of floating-point numbers, as "L".

    The values of 32 bits and of floats have no agreed range: white is 1, 255 or 65,535, the smallest that holds all of them, or the largest
    value where that would leave the picture nearly black or where it is larger still.
    """
    import numpy as np

    values = np.nan_to_num(np.asarray(picture).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if picture.mode.startswith("I;16"):
        low, white = 0.0, 2.0 ** tags.get(BITS, (16,))[0]
    elif picture.format == "PPM" and picture.mode == "I":
        low, white = 0.0, 65535.0
    else:
        low, high = min(0.0, float(values.min())), float(values.max())
        white = next((each for each in (1.0, 255.0, 65535.0) if high <= each), high)
        white = high if low < 0 or high < white / 16 else white
    scaled = (values - low) * ((256 if picture.mode.startswith("I;16") else 255) / max(white - low, 1e-30))
    return PILImage.fromarray((scaled if picture.mode.startswith("I;16") else scaled.round()).clip(0, 255).astype(np.uint8))


def _split_alpha(picture: PILImage.Image) -> tuple[PILImage.Image, PILImage.Image | None]:
    """The colours in a mode that a colour profile may be of, and the opacity if there is one."""
    if not picture.has_transparency_data:
        return picture if picture.mode in ("L", "CMYK", "LAB") else picture.convert("L" if picture.mode == "1" else "RGB"), None
    plain = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    picture = picture.convert(plain) if plain else picture
    grey = picture.mode in ("1", "L", "LA")
    picture = picture.convert("LA" if grey else "RGBA")
    return picture.convert("L" if grey else "RGB"), picture.getchannel("A")


def _convert_to_srgb(picture: PILImage.Image, profile: Any) -> PILImage.Image:
    """RGB in sRGB. A profile that is damaged, or of another kind of picture, counts as none."""
    srgb = ImageCms.createProfile("sRGB")
    try:
        if picture.mode == "LAB":
            return ImageCms.profileToProfile(picture, ImageCms.createProfile("LAB"), srgb, outputMode="RGB") or picture
        if profile:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = given.profile.xcolor_space.strip()
            coloured = picture.convert("RGB") if space == "RGB" and picture.mode == "L" else picture
            if space == {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}[coloured.mode] and not is_srgb(given):
                return ImageCms.profileToProfile(coloured, given, srgb, outputMode="RGB") or picture
    except Exception:  # the profile is damaged, the pixels are not
        pass
    return picture.convert("RGB")


def is_srgb(profile: ImageCms.ImageCmsProfile) -> bool:
    """Whether a profile changes no colour: asked of 512 colours, since converting a large picture takes seconds."""
    if profile.profile.xcolor_space.strip() != "RGB":
        return False
    steps = range(0, 256, 32)
    cube = PILImage.new("RGB", (len(steps) ** 3, 1))
    cube.putdata([(red, green, blue) for red in steps for green in steps for blue in steps])
    converted = ImageCms.profileToProfile(cube, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # since it is not changed in place
    return max(ImageChops.difference(cube, converted).tobytes()) <= 1
