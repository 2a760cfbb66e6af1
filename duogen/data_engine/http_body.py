"""Undo how a server packed what it sent: chunks of the transfer, and encodings of the content."""

from __future__ import annotations

import re
import zlib

import brotli

from duogen.data_engine.limits import LARGEST_PAGE, check_size

CHUNK = re.compile(rb"([0-9a-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n", re.I)
PLAIN = re.compile(rb"\s*<|\xff\xd8\xff|\x89PNG|GIF8|RIFF")  # a page or a picture that is not packed


def unpack_body(body: bytes, transfer: str, content: str) -> bytes:
    """What a server sent, by its headers `Transfer-Encoding` and `Content-Encoding`.

    Raises:
        ValueError: the packing is cut off or unknown, or it is too large; the libraries that unpack raise errors of their own for damage.
    """
    if "chunked" in transfer.lower():
        body = _join_chunks(body)
    for encoding in reversed(content.lower().split(",")):
        body = check_size(_unpack(body, encoding.strip()))
    return body


def _join_chunks(body: bytes) -> bytes:
    """Join the chunks of a transfer. What does not begin with a chunk was joined before it was stored.

    Raises:
        ValueError: a chunk is damaged or cut off.
    """
    at, chunks = 0, []
    while found := CHUNK.match(body, at):
        size = int(found[1], 16)
        if not size:
            return b"".join(chunks)
        at = found.end() + size + 2
        if at > len(body):
            break
        chunks.append(body[found.end() : at - 2])
    if not chunks and found is None:
        return body
    raise ValueError("its transfer was cut off")


def _unpack(body: bytes, encoding: str) -> bytes:
    """Undo one content encoding. Some archives name one that was undone before it was stored."""
    try:
        match encoding:
            case "" | "identity" | "none":
                return body
            case "gzip" | "x-gzip":
                return _inflate(body, 16 + zlib.MAX_WBITS)
            case "deflate":
                return _inflate(body, zlib.MAX_WBITS if body[:1] == b"\x78" else -zlib.MAX_WBITS)
            case "br":
                packer = brotli.Decompressor()
                unpacked = packer.process(body, output_buffer_limit=LARGEST_PAGE + 1)
                return _check_end(unpacked, packer.is_finished())
            case "zstd":
                return _read_zstd(body)
        raise ValueError(f"its content is packed as {encoding}, which is not known here")
    except Exception:  # whatever damage raises
        if PLAIN.match(body):
            return body
        raise


def _read_zstd(body: bytes) -> bytes:
    import pyarrow  # comes with datasets

    try:
        return pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd").read(LARGEST_PAGE + 1)
    except OSError as error:
        raise ValueError(f"its packed data is damaged ({error})") from error


def _inflate(body: bytes, window: int) -> bytes:
    packer = zlib.decompressobj(window)
    return _check_end(packer.decompress(body, LARGEST_PAGE + 1), packer.eof)


def _check_end(unpacked: bytes, ended: bool) -> bytes:
    if not ended and len(unpacked) <= LARGEST_PAGE:
        raise ValueError("its packed content is cut off")
    return unpacked
