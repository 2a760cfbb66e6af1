"""Read a page that a browser saved as one file with its pictures (MHTML, RFC 2557)."""

from __future__ import annotations

import email
import email.header
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from duogen.data_engine.web_addresses import address_key, join_address
from duogen.text_decoding import decode_page

ENCODINGS = ("", "7bit", "8bit", "binary", "base64", "quoted-printable", "x-uuencode", "uuencode", "uue", "x-uue")
PAGES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class SavedPage:
    """A page and the pictures that were saved with it, by the keys of their addresses."""

    url: str
    text: str
    pictures: dict[str, bytes]

    def load(self, name: str) -> tuple[Path | None, bytes | None]:
        """The bytes of the picture at an address of the page."""
        found = self.pictures.get(address_key(name))
        return None, self.pictures.get(address_key(join_address(self.url, name))) if found is None else found


def read_mhtml(raw: bytes) -> SavedPage:
    """Read the page that was saved, and its pictures.

    Raises:
        ValueError: it holds no page, or is packed in an unknown way.
    """
    message = email.message_from_bytes(raw)  # by the older rules, which raise no errors
    pages, pictures = [], {}
    for part in message.walk():
        where = _header(part, "Content-Location")
        if part.get_content_type() in PAGES:
            pages.append((where, part))
        elif part.get_content_maintype() in ("image", "application"):
            data = _payload(part)
            pictures.setdefault(address_key(where), data)
            if part.get("Content-ID"):
                pictures.setdefault(address_key("cid:" + _header(part, "Content-ID").strip("<>")), data)
    if not pages:
        raise ValueError("it holds no page")
    saved = _header(message, "Snapshot-Content-Location")
    url, page = next((each for each in pages if saved and each[0] == saved), pages[0])
    if (encoding := _encoding(page)) not in ENCODINGS:
        raise ValueError(f"its page is packed as {encoding[:40]}, which is not known here")
    return SavedPage(saved or url, decode_page(_payload(page), _charset(page)), pictures)


def _payload(part: Message) -> bytes:
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _encoding(part: Message) -> str:
    return str(part.get("Content-Transfer-Encoding", "")).strip().lower()


def _charset(part: Message) -> str:
    said = part.get_param("charset", "")
    return str(said[2] if isinstance(said, tuple) else said)


def _header(part: Message, name: str) -> str:
    """A header on one line, with its words decoded."""
    raw = "".join(str(part.get(name, "")).split())
    try:
        return str(email.header.make_header(email.header.decode_header(raw)))
    except Exception:  # words of an unknown encoding, or damaged ones
        return raw
