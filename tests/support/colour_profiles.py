"""ICC profiles (version 2) as a test needs them: made here from their definitions, since the well-known files are not ours."""

from __future__ import annotations

import struct
from itertools import product

# Columns of the matrix from RGB to XYZ, adapted to D50, and the exponent.
SPACES = {
    "display-p3": (((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2),
    "adobe-rgb": (((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.2),
    "linear-rgb": (((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)), 1.0),
}
D50 = (0.9642, 1.0, 0.8249)


def matrix_profile(name: str) -> bytes:
    """One of `SPACES`, or "linear-grey"."""
    if name == "linear-grey":
        return _profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _curve(1.0)})
    (red, green, blue), gamma = SPACES[name]
    tags = {b"wtpt": _xyz(D50), b"rXYZ": _xyz(red), b"gXYZ": _xyz(green), b"bXYZ": _xyz(blue)}
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags | {name: _curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")})


def cmyk_profile(inks: dict[tuple[int, int, int, int], tuple[float, float, float]]) -> bytes:
    """A printer's profile: the colour (L, a, b) of some full inks; all others are mid grey."""
    table = b""
    for corner in product((0, 255), repeat=4):
        lightness, a, b = inks.get(corner, (50.0, 0.0, 0.0))
        table += bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])
    straight = bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = head + straight * 4 + table + straight * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": lut})


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)


def _profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    words = b"test\0"
    named = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(79), b"cprt": b"text" + bytes(4) + words} | tags
    at, table, body = 132 + 12 * len(named), b"", b""
    for name, data in named.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytes(4) + b"lcms" + struct.pack(">I", 0x02400000) + kind + space + connection + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    head += bytes(128 - len(head))
    whole = head + struct.pack(">I", len(named)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]
