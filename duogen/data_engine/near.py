"""Find near-duplicates across pages through an index on disk, so memory does not grow with the number of pages."""

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
def _hash_family() -> tuple[numpy.ndarray, numpy.ndarray]:
    rng = numpy.random.default_rng(2602)
    # Factors of 64 bits: with smaller ones the products do not wrap, and every hash has the same minimum.
    return rng.integers(0, 1 << 64, HASHES, dtype=numpy.uint64) | numpy.uint64(1), rng.integers(0, 1 << 64, HASHES, dtype=numpy.uint64)


def signature(text: str) -> bytes:
    """The MinHash signature of a text: 64 minima of multiply-shift hashes over its shingles of four words."""
    words = WORD.findall(text.lower())
    shingles = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
    hashed = numpy.fromiter((zlib.crc32(each.encode()) for each in shingles), dtype=numpy.uint64, count=len(shingles))
    factors, shifts = _hash_family()
    with numpy.errstate(over="ignore"):
        minima = ((hashed[:, None] * factors + shifts) >> numpy.uint64(32)).min(axis=0)
    return minima.astype(numpy.uint32).tobytes()


def similarity(one: bytes, other: bytes) -> float:
    """The estimated Jaccard similarity of the shingles of two texts, from their signatures."""
    return float((numpy.frombuffer(one, numpy.uint32) == numpy.frombuffer(other, numpy.uint32)).mean())


def hash_pieces(phash: int) -> list[int]:
    """Cut a perceptual hash into pieces, each combined with its number."""
    cuts = [round(64 * number / CHUNKS) for number in range(CHUNKS + 1)]
    return [(number << 16) | ((phash >> low) & ((1 << (high - low)) - 1)) for number, (low, high) in enumerate(pairwise(cuts))]


class Index:
    """The texts and pictures so far, in tables of a database. The caller commits."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        database.executescript(
            """CREATE TABLE IF NOT EXISTS texts (page TEXT PRIMARY KEY, signature BLOB) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS bands (band INTEGER, page TEXT, PRIMARY KEY (band, page)) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS looks (piece INTEGER, look INTEGER, page TEXT, PRIMARY KEY (piece, look, page)) WITHOUT ROWID;"""
        )

    def find_text(self, signed: bytes) -> str | None:
        """The page with nearly this text, `None` if there is none."""
        marks = ",".join("?" * BANDS)
        rows = self.database.execute(
            f"SELECT DISTINCT page, signature FROM bands JOIN texts USING (page) WHERE band IN ({marks})", _hash_bands(signed)
        )
        found = [(similarity(signed, other), page) for page, other in rows]
        return max(found)[1] if found and max(found)[0] >= ALIKE else None

    def find_picture(self, phash: int) -> str | None:
        """The page with nearly this picture, `None` if there is none."""
        marks = ",".join("?" * CHUNKS)
        rows = self.database.execute(f"SELECT look, page FROM looks WHERE piece IN ({marks})", hash_pieces(phash))
        return min((page for other, page in rows if ((other + (1 << 63)) ^ phash).bit_count() <= APART), default=None)

    def add(self, page: str, signed: bytes, phashes: Sequence[int]) -> None:
        """Add a page. The hashes are stored as signed numbers, since the database has no unsigned ones."""
        self.database.execute("INSERT OR REPLACE INTO texts VALUES (?, ?)", (page, signed))
        self.database.executemany("INSERT OR REPLACE INTO bands VALUES (?, ?)", [(band, page) for band in _hash_bands(signed)])
        rows = [(piece, phash - (1 << 63), page) for phash in phashes for piece in hash_pieces(phash)]
        self.database.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?)", rows)


def _hash_bands(signed: bytes) -> list[int]:
    wide = len(signed) // BANDS
    pieces_of_it = [at.to_bytes(2, "big") + signed[at : at + wide] for at in range(0, len(signed), wide)]
    return [int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest(), "big") >> 1 for piece in pieces_of_it]
