"""Near-duplicates across pages, through an index on disk: memory stays flat however many pages there are."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy

from duogen.data_engine.sample import WORD

HASHES, BANDS = 64, 16  # MinHash (Broder 1997) with bands of four: texts that share some three quarters of their shingles meet
SHINGLE = 4
ALIKE = 0.7
CHUNKS = 5  # 64 bits in five pieces: two pictures that differ in at most four bits have one piece in common
APART = 4


@lru_cache(maxsize=1)
def _family() -> tuple[numpy.ndarray, numpy.ndarray]:
    rng = numpy.random.default_rng(2602)
    # Factors of 64 bits: with smaller ones the products do not wrap, and every hash has the same minimum.
    return rng.integers(0, 1 << 64, HASHES, dtype=numpy.uint64) | numpy.uint64(1), rng.integers(0, 1 << 64, HASHES, dtype=numpy.uint64)


def signature(text: str) -> bytes:
    """64 minima of multiply-shift hashes over the text's shingles of four words."""
    words = WORD.findall(text.lower())
    shingles = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    hashed = numpy.fromiter((zlib.crc32(each.encode()) for each in shingles), dtype=numpy.uint64, count=len(shingles))
    factors, shifts = _family()
    with numpy.errstate(over="ignore"):
        minima = ((hashed[:, None] * factors + shifts) >> numpy.uint64(32)).min(axis=0)
    return minima.astype(numpy.uint32).tobytes()


def alike(one: bytes, other: bytes) -> float:
    """How many of their shingles two texts share, as their signatures estimate it."""
    return float((numpy.frombuffer(one, numpy.uint32) == numpy.frombuffer(other, numpy.uint32)).mean())


def pieces(look: int) -> list[int]:
    """The pieces of a perceptual hash, each with its number."""
    cuts = [round(64 * number / CHUNKS) for number in range(CHUNKS + 1)]
    return [(number << 16) | ((look >> low) & ((1 << (high - low)) - 1)) for number, (low, high) in enumerate(pairwise(cuts))]


class Index:
    """Texts and pictures seen so far, in tables of a database that the caller commits."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        database.executescript(
            """CREATE TABLE IF NOT EXISTS texts (page TEXT PRIMARY KEY, signature BLOB) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS bands (band INTEGER, page TEXT, PRIMARY KEY (band, page)) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS looks (piece INTEGER, look INTEGER, page TEXT, PRIMARY KEY (piece, look, page)) WITHOUT ROWID;"""
        )

    def text_like(self, signed: bytes) -> str | None:
        """The page whose text is nearly this one."""
        marks = ",".join("?" * BANDS)
        rows = self.database.execute(
            f"SELECT DISTINCT page, signature FROM bands JOIN texts USING (page) WHERE band IN ({marks})", _bands(signed)
        )
        found = [(alike(signed, other), page) for page, other in rows]
        return max(found)[1] if found and max(found)[0] >= ALIKE else None

    def look_like(self, look: int) -> str | None:
        """The page that has nearly this picture."""
        marks = ",".join("?" * CHUNKS)
        rows = self.database.execute(f"SELECT look, page FROM looks WHERE piece IN ({marks})", pieces(look))
        return min((page for other, page in rows if ((other + (1 << 63)) ^ look).bit_count() <= APART), default=None)

    def add(self, page: str, signed: bytes, looks: Sequence[int]) -> None:
        """Remember a page; the hashes are kept as signed numbers, which is what the database has."""
        self.database.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (page, signed))
        self.database.executemany("INSERT OR REPLACE INTO bands VALUES (?, ?)", [(band, page) for band in _bands(signed)])
        rows = [(piece, look - (1 << 63), page) for look in looks for piece in pieces(look)]
        self.database.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", rows)


def _bands(signed: bytes) -> list[int]:
    wide = len(signed) // BANDS
    pieces_of_it = [at.to_bytes(2, "big") + signed[at : at + wide] for at in range(0, len(signed), wide)]
    return [int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest(), "big") >> 1 for piece in pieces_of_it]
