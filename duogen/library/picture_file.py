"""A picture as a PNG file with its settings inside: the text chunk `parameters` for other tools, and our JSON in `duogen`."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

from PIL import Image as PILImage
from PIL.PngImagePlugin import PngImageFile, PngInfo

from duogen.content_credentials import encode_signed, sign_picture
from duogen.picture_input import MAX_PIXELS, open_picture
from duogen.provenance import Origin, read_origin
from duogen.text_decoding import clean_text

PARAMETERS, OURS = "parameters", "duogen"
MANIFEST = b"caBX"  # the chunk of a signature
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PAIR = re.compile(r'\s*([A-Za-z][\w ]*): ("(?:\\.|[^"])*"|[^,]*)(?:,|$)')
LONGEST_TEXT = 100_000
DAMAGED = "The settings inside the picture are damaged."


@dataclass(frozen=True)
class PictureInfo:
    """The origin and settings of a picture.

    Attributes:
        words: the request; the search looks in it and in the caption.
        caption: the words of the answer before the picture.
        painted: whether DuoGen painted it; otherwise it was uploaded.
        seed: the seed of its answer, `None` for an upload.
        model: the title of the pair.
        options: the options of its answer, as nested dicts.
        conversation: the id of its conversation, "" for none.
        turn: the id of its turn in that conversation.
        parent: the id of the picture that it was made from, "" for none.
        root: the id of the first of its ancestors, "" for a first picture.
        made: seconds since 1970.
        favourite: whether a person marked it.
        parameters: the settings that another tool wrote, "" for none.
        origin: how a model painted it, one of `Origin`; "" for a picture without a mark of origin.
    """

    words: str = ""
    caption: str = ""
    painted: bool = True
    seed: int | None = None
    model: str = ""
    options: dict = field(default_factory=dict)
    conversation: str = ""
    turn: str = ""
    parent: str = ""
    root: str = ""
    made: float = field(default_factory=time.time)
    favourite: bool = False
    parameters: str = ""
    origin: str = ""


KINDS = {name: int | float if kind is float else kind for name, kind in get_type_hints(PictureInfo).items()}


def format_parameters(about: PictureInfo, size: tuple[int, int]) -> str:
    """Format the settings as other tools do: the prompt, then a line of names and values."""
    if about.parameters:
        return about.parameters
    image = about.options.get("image")
    known = {
        "Steps": image.get("steps") if isinstance(image, dict) else None,
        "Seed": about.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": about.model.replace(",", "") or None,
    }
    return (
        "\n".join(filter(None, [about.words, about.caption]))
        + "\n"
        + ", ".join(f"{name}: {value}" for name, value in known.items() if value is not None)
    )


def encode_png(picture: PILImage.Image, about: PictureInfo, signed: bool = True) -> bytes:
    """Encode an RGB picture with its settings as a PNG file. `signed`: it is signed if it was painted."""
    chunks = PngInfo()
    chunks.add_text(PARAMETERS, format_parameters(about, picture.size))
    chunks.add_itxt(OURS, to_json(about))
    origin = Origin(about.origin) if about.origin else None
    return encode_signed(picture, "PNG", origin, about.painted and signed, pnginfo=chunks, compress_level=4)


def to_json(about: PictureInfo) -> str:
    return clean_text(json.dumps(asdict(about), ensure_ascii=False))


def from_json(text: str) -> PictureInfo:
    """Raises: ValueError: the text was not written by `to_json`."""
    try:
        given = json.loads(text)
        known: dict[str, Any] = {name: given[name] for name in KINDS if name in given}
        known |= {name: clean_text(value) for name, value in known.items() if isinstance(value, str)}
        sound = isinstance(given, dict) and all(isinstance(value, KINDS[name]) for name, value in known.items())
        about = PictureInfo(**known) if sound else None
        if about and 0 <= about.made < 1e11 and abs(about.seed or 0) < 2**63 and about.origin in ("", *Origin):
            to_json(about)  # options that are nested too deep could not be written again
            return about
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(DAMAGED) from error
    raise ValueError(DAMAGED)


def replace_info(data: bytes, about: PictureInfo) -> bytes:
    """Replace the settings in a PNG file without decoding its pixels. A signed one is signed anew, and unsigned without a certificate.

    Raises:
        ValueError: it is no PNG.
    """
    if data[:8] != SIGNATURE or len(data) < 20:
        raise ValueError("Only a PNG file can hold settings; save the picture as one first.")
    kept = [chunk for kind, name, chunk in _split_chunks(data) if name != OURS.encode() and kind != MANIFEST]
    body = b"iTXt" + OURS.encode() + b"\0\0\0\0\0" + to_json(about).encode()
    ours = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    written = SIGNATURE + kept[0] + ours + b"".join(kept[1:])
    origin = Origin(about.origin) if about.origin else None
    return sign_picture(written, "PNG", origin) if about.painted and is_signed(data) else written


def is_signed(data: bytes) -> bool:
    """Whether a PNG file holds a signature, valid or not."""
    return any(kind == MANIFEST for kind, _, _ in _split_chunks(data))


def _split_chunks(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The chunks of a PNG file: each with its kind, and the name of a text, empty for other chunks."""
    found, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        name = data[at + 8 :].split(b"\0", 1)[0] if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        found.append((kind, name, data[at:end]))
        at = end
    return found


def read_header(file: Path) -> tuple[PictureInfo, tuple[int, int]]:
    """Read the settings before the pixels of a PNG file, and its size.

    Raises:
        ValueError: it is no picture, or too large.
    """
    try:
        with PILImage.open(file, formats=["PNG"]) as picture:
            about, size, origin = _parse_texts(picture.info), picture.size, read_origin(picture) or ""
    except Exception as error:  # whatever a damaged file raises, it costs this picture alone
        raise ValueError(f"{file.name} cannot be read as a PNG picture.") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{file.name} has more than {MAX_PIXELS // 10**6} megapixels.")
    return about or PictureInfo(painted=False, made=file.stat().st_mtime, origin=origin), size


def read_upload(file: Path) -> tuple[PILImage.Image, PictureInfo | None, str]:
    """Read an uploaded picture, its settings, ours or those of another tool, and its mark of origin; `None` and "" if it has none.

    Raises:
        ValueError: it cannot be read; one sentence.
    """
    picture = open_picture(file)
    texts: Mapping[Any, Any] = {}
    origin = ""
    with contextlib.suppress(Exception), PILImage.open(file) as again:  # the picture is sound; settings that cannot be read are none
        texts, origin = again.info, read_origin(again) or ""
        texts = again.text if isinstance(again, PngImageFile) else {}  # reads what stands after the pixels too
    return picture, _parse_texts(texts), origin


def _parse_texts(texts: Mapping[Any, Any]) -> PictureInfo | None:
    """The settings in the text chunks of a file; damaged settings count as none."""
    if isinstance(texts.get(OURS), str) and len(texts[OURS]) <= LONGEST_TEXT:
        with contextlib.suppress(ValueError):
            return from_json(texts[OURS])
    foreign = texts.get(PARAMETERS)
    return parse_parameters(foreign) if isinstance(foreign, str) and len(foreign) <= LONGEST_TEXT else None


def parse_parameters(text: str) -> PictureInfo | None:
    """Parse the settings of another tool: prompt, perhaps a negative prompt, then a line that begins with the steps; else `None`."""
    lines = text.strip().splitlines()
    if not lines or not re.match(r"\s*Steps: \d+", lines[-1]):
        return None
    known = {name.strip(): value.strip() for name, value in PAIR.findall(lines[-1])}
    prompt = "\n".join(lines[:-1]).split("Negative prompt:")[0].strip()
    seed = int(known["Seed"]) if re.fullmatch(r"\d{1,18}", known.get("Seed", "")) else None
    options = {"image": {"steps": int(known["Steps"])}} if re.fullmatch(r"\d{1,4}", known["Steps"]) else {}
    return PictureInfo(prompt, painted=False, seed=seed, model=known.get("Model", ""), options=options, parameters=text)


def clear_links(about: PictureInfo | None) -> PictureInfo:
    """The settings of an uploaded picture without its links: the conversation and pictures that they name are not here."""
    plain = {"conversation": "", "turn": "", "parent": "", "root": "", "favourite": False, "made": time.time()}
    return replace(about, **plain) if about else PictureInfo(painted=False)
