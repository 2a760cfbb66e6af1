"""Damaged and odd pictures through every door: python -m bench.reliability.pictures

A door may refuse a picture with the error that its documentation names, and nothing else. Each has five seconds of a core for it, and
one process reads all of them, so that its memory tells what a picture takes and leaves behind.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageCms

from bench.machine import host
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pictures import inspect_picture as inspect_of_page
from duogen.data_engine.sample import Picture
from duogen.dataset.pictures import inspect_picture as inspect_example
from duogen.library.pictures import Gallery
from duogen.picture_input import open_picture
from duogen.provenance import find_origin
from ui.api.images import parse_sources
from ui.api.pictures import parse_picture
from ui.api.requests import RequestError
from ui.parts.shared import open_upload

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")
CONTAINERS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "HEIF", "GIF", "TIFF", "BMP", "DIB", "ICO", "ICNS", "JPEG2000", "PPM", "QOI", "DDS", "SGI", "PCX"),
    *("TGA", "XBM", "MPO"),
)
SIZES = ((1, 1), (2, 1), (1, 200), (1, 201), (48, 36), (257, 129), (1000, 9), (65_535, 1), (1, 65_535), (65_500, 330), (2048, 2048))
DOORS_EVERY = 3  # of how many pictures one goes through the other doors too
MOST_SECONDS, MOST_MEGABYTES = 5.0, 1500.0
MANY = 200

Door = Callable[[Path], Any]


def draw(rng: random.Random, size: tuple[int, int], mode: str) -> PILImage.Image:
    """A picture of random colours in one of Pillow's modes."""
    seeded = np.random.default_rng(rng.randrange(1 << 30))
    small = PILImage.fromarray(seeded.integers(0, 255, (min(size[1], 64), min(size[0], 64), 3), dtype=np.uint8))
    picture = small.resize(size, PILImage.Resampling.BILINEAR)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB") or picture
    if mode in ("I;16", "I", "F"):
        deep = np.asarray(picture.convert("L")).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 257
        return PILImage.fromarray(deep)
    return picture.convert(mode)


def encode(rng: random.Random) -> tuple[str, bytes]:
    """A whole picture: any container, the mode and size that it takes, sometimes with a profile, EXIF or several frames."""
    kind, mode = rng.choice(CONTAINERS), rng.choice(MODES)
    picture = draw(rng, rng.choice(SIZES[:7] if rng.random() < 0.85 else SIZES), mode)
    options: dict[str, Any] = {"icc_profile": rng.randbytes(rng.randrange(400))} if rng.random() < 0.2 else {}
    if rng.random() < 0.2:
        options["exif"] = b"Exif\0\0" + rng.choice((b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08")) + rng.randbytes(rng.randrange(200))
    if rng.random() < 0.1:
        options |= {"save_all": True, "append_images": [picture.copy()] * 3}
    for given, mode in ((options, picture.mode), ({}, picture.mode), ({}, "RGB"), ({}, "L"), ({}, "1")):
        out = io.BytesIO()
        try:
            picture.convert(mode).save(out, kind, **given)
        except Exception:  # the container takes no such mode, size or profile
            continue
        return kind, out.getvalue()
    return encode(rng)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Flip bits, cut, repeat, fill with zeros, or write a huge number over a small one."""
    if not data:
        return data
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 96))  # half of them in the head
    match rng.randrange(7):
        case 0:
            spoilt = bytearray(data)
            for _ in range(rng.choice((1, 3, 40))):
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
            return bytes(spoilt)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + bytes(rng.choice((1, 64, 5000))) + data[at:]
        case 3:
            return data[:at] + bytes(len(data) - at)
        case 4:
            huge = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff", b"\xff\xff", b"\0\0\0\0"))
            return data[:at] + huge + data[at + len(huge) :]
        case 5:
            return data[:at] + data[rng.randrange(len(data)) :]
    return data[:at] + rng.randbytes(rng.randrange(1, 200)) + data[at + 7 :]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that say that they hold much."""
    head = b"\x89PNG\r\n\x1a\n"
    for width, height in ((50_000, 50_000), (7071, 7071), (2**31 - 1, 1), (65_535, 65_535), (7000, 7000), (1_000_000, 1)):
        rows = zlib.compress(bytes(1 << 22), 9)
        size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        yield "PNG", head + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    yield "GIF", b"GIF89a" + struct.pack("<HH3s6xcHHHHB", 65_535, 65_535, b"\x80\0\0", b",", 0, 0, 65_535, 65_535, 0)
    yield "BMP", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "QOI", b"qoif" + struct.pack(">II", 2**32 - 1, 2**32 - 1) + b"\3\0" + bytes(64)
    yield "PPM", b"P6 999999999 999999999 255\n" + bytes(64)
    for text in (b"zTXt", b"iCCP"):
        size = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
        yield "PNG", head + size + png_chunk(text, b"x\0\0" + zlib.compress(bytes(200_000_000), 9)) + png_chunk(b"IEND", b"")
    out = io.BytesIO()
    frames = [PILImage.new("P", (2000, 2000), n) for n in range(40)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    yield "GIF", out.getvalue()


def make_heavy() -> Iterator[tuple[str, bytes]]:
    """Whole pictures of many pixels in the kinds that take long to decode."""
    noise = np.random.default_rng(1).integers(0, 255, (1600, 1600, 3), dtype=np.uint8)
    for kind in ("QOI", "DDS", "JPEG2000", "ICNS", "SGI"):
        out = io.BytesIO()
        PILImage.fromarray(noise).save(out, kind)
        yield kind, out.getvalue()
    yield "PPM", b"P6 1600 1600 65535\n" + (noise.astype(">u2") * 257).astype(">u2").tobytes()
    yield "PPM", b"P3 1600 1600 255\n" + b" ".join(b"%d" % value for value in noise.tobytes())
    out = io.BytesIO()
    PILImage.new("RGB", (7000, 7000), "red").save(out, "JPEG", progressive=True)
    data, at = out.getvalue(), out.getvalue().rindex(b"\xff\xda")
    yield "JPEG", data[:at] + data[at:-2] * 80 + data[-2:]


def make_pictures(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Kind and bytes: one whole picture of five, and four damaged ones; where there are many, first the bombs and the heavy ones."""
    special, rng = [*make_bombs(), *make_heavy()] if count >= MANY else [], random.Random(seed)
    yield from special
    for index in range(count - len(special)):
        kind, data = encode(rng)
        for _ in range(0 if index % 5 == 0 else rng.randrange(1, 3)):
            data = damage(rng, data)
        yield kind, data


def make_doors(home: Path) -> dict[str, Door]:
    """Each reads a file as the product does there."""
    gallery = Gallery(home)

    def send_as_mask(file: Path) -> None:
        data = file.read_bytes()
        parse_sources({}, {"image": [data], "mask": [data]})

    return {
        "chat": open_upload,
        "library": gallery.import_file,
        "api": lambda file: parse_picture("data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()),
        "edit": send_as_mask,
        "training": inspect_example,
        "data engine": lambda file: inspect_of_page(Picture(name=file.name, data=file.read_bytes()), DataOptions()),
        "origin": lambda file: find_origin(file.read_bytes()),
        "stored": lambda file: open_picture(file, letterbox=True),
    }


def try_door(door: Door, file: Path) -> tuple[str, float]:
    """How it ended ("taken", "refused", or the error that nobody documented), and the seconds of a core that it took."""
    began = time.thread_time()
    try:
        door(file)
        outcome = "taken"
    except (ValueError, RequestError) as error:
        said = str(error)
        named = type(error) in (ValueError, RequestError)
        outcome = "refused" if named and "\n" not in said and len(said) < 400 else f"no sentence: {type(error).__name__} {said[:200]!r}"
    except Exception as error:
        outcome = f"undocumented {type(error).__name__}: {str(error)[:200]}"
    return outcome, time.thread_time() - began


def read_memory(name: str) -> float:
    """`VmRSS`, the memory of this process now, or `VmHWM`, the most since `forget_peak`, in megabytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def forget_peak() -> None:
    """So that a peak of the encoders, which are no part of the product, does not count."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def try_pictures(count: int, seed: int, folder: Path, keep: Path | None = None) -> dict[str, Any]:
    """What became of `count` pictures. Those with a fault are kept in `keep`."""
    warnings.simplefilter("ignore")
    doors = make_doors(folder / "home")
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    slowest, peak, memory = 0.0, 0.0, read_memory("VmRSS")
    for index, (kind, data) in enumerate(make_pictures(count, seed)):
        file = folder / f"{index}.{'tga' if kind == 'TGA' else 'png'}"
        file.write_bytes(data)
        chosen = {"door": open_picture} | (doors if index % DOORS_EVERY == 0 else {})
        for name, door in chosen.items():
            forget_peak()
            before = read_memory("VmRSS")
            outcome, seconds = try_door(door, file)
            slowest, peak = max(slowest, seconds), max(peak, read_memory("VmHWM") - before)
            outcomes[f"{name}: {outcome if outcome in ('taken', 'refused') else 'fault'}"] += 1
            if outcome not in ("taken", "refused") or seconds > MOST_SECONDS:
                faults.append(f"{index} {kind} {name} {seconds:.1f} s {outcome}")
                if keep:
                    (keep / file.name).write_bytes(data)
        file.unlink()
    return {
        "pictures": count, "seed": seed, "outcomes": dict(sorted(outcomes.items())), "faults": faults,
        "slowest_seconds": round(slowest, 2), "peak_mb": round(peak), "kept_mb": round(read_memory("VmRSS") - memory),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged and odd pictures through every door.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=26)
    parser.add_argument("--keep", type=Path, help="a folder for the pictures that found a fault")
    parser.add_argument("--out", type=Path, help="a file for the result as JSON")
    given = parser.parse_args()
    machine = host()
    with tempfile.TemporaryDirectory(prefix="duogen-pictures-") as folder:
        result = {"machine": machine, **try_pictures(given.count, given.seed, Path(folder), given.keep)}
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    sys.exit(1 if result["faults"] or result["peak_mb"] > MOST_MEGABYTES else 0)


if __name__ == "__main__":
    main()
