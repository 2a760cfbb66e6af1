"""Tell what a file holds: by its ending, else by its first bytes."""

from __future__ import annotations

import mimetypes
import re
import zlib
from pathlib import PurePath

KINDS = {
    **dict.fromkeys((".md", ".markdown", ".mkd", ".mkdn", ".mdown", ".mdwn", ".mdx", ".qmd", ".rmd"), "markdown"),
    **dict.fromkeys((".html", ".htm", ".xhtml", ".xht", ".shtml", ".shtm"), "html"),
    **dict.fromkeys((".mhtml", ".mht"), "mhtml"),
    **dict.fromkeys((".warc", ".arc", ".wacz"), "warc"),
    ".epub": "epub",
}
PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".avif", ".heic", ".heif", ".bmp", ".tif", ".tiff", ".svg", ".svgz", ".ico")
ASSETS = (".css", ".js", ".mjs", ".map", ".json", ".scss", ".sass", ".less", ".ts", ".wasm", ".woff", ".woff2", ".ttf", ".otf", ".eot")
GZIP = b"\x1f\x8b"
ZIP = b"PK\x03\x04"
HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*|<!--.*?(?:-->|\Z)\s*)*<(?:!doctype\s+html|(?:html|head|title|meta|body|article|main|div|h[1-6]|p|table|iframe)\b)",
    re.I | re.S,
)
MAIL = re.compile(rb"(?:from|mime-version|content-type|subject|date|snapshot-content-location|x-[\w-]+):.*multipart/related", re.I | re.S)
MAGIC = {
    "PDF": b"%PDF", "ZIP": ZIP, "RAR": b"Rar!", "7z": b"7z\xbc\xaf", "zstd": b"\x28\xb5\x2f\xfd", "Word": b"\xd0\xcf\x11\xe0",
    "JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG", "GIF": b"GIF8", "WebP": b"RIFF", "bzip2": b"BZh", "XZ": b"\xfd7zXZ", "gzip": GZIP,
}  # fmt: skip
HEAD = 1024  # bytes that tell
OTHER = "something else"


def kind_of_name(name: str) -> str:
    """The kind of page, "picture" or "asset" that the ending of a name says, "" if none."""
    suffixes = [each.lower() for each in PurePath(name).suffixes[-2:]]
    if not suffixes:
        return ""
    last = suffixes[-1]
    if last == ".gz":
        kind = KINDS.get(suffixes[0], "")
        return kind if kind in ("html", "mhtml", "warc") else ""
    if last in PICTURES:
        return "picture"
    main = (mimetypes.guess_type(f"a{last}")[0] or "").partition("/")[0]
    return KINDS.get(last) or ("asset" if last in ASSETS or main in ("audio", "video", "font") else "picture" if main == "image" else "")


def kind_of_bytes(head: bytes) -> str:
    """The kind of page that begins with these bytes, "" if it is none."""
    if head.startswith(GZIP):
        head = unpack_head(head)
    if head.startswith((b"WARC/", b"filedesc://")):
        return "warc"
    if head.startswith(ZIP):
        return "epub" if b"mimetypeapplication/epub+zip" in head[:120] else ""
    if MAIL.match(head):
        return "mhtml"
    return "html" if HTML.match(head.lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"")) else ""


def name_content(head: bytes) -> str:
    """What begins with these bytes, in words for a reason."""
    if not head:
        return "nothing"
    if head.startswith(GZIP) and not unpack_head(head):
        return "a damaged gzip file"
    kind = {"warc": "a web archive", "epub": "an EPUB book", "mhtml": "an MHTML page", "html": "HTML"}.get(kind_of_bytes(head), "")
    return kind or next((f"a {name} file" for name, magic in MAGIC.items() if head.startswith(magic)), OTHER)


def unpack_head(head: bytes) -> bytes:
    """What the beginning of a gzip file unpacks to; nothing if it is damaged."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD)
    except zlib.error:
        return b""
