"""The mark of origin inside a picture file: the IPTC digital source type, in XMP, as PNG, JPEG and WebP files carry it, or in a comment.

The terms are of https://cv.iptc.org/newscodes/digitalsourcetype. The mark is not signed: whoever wants to can remove it.
"""

from __future__ import annotations

import contextlib
import io
import re
from enum import StrEnum
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PNG_CHUNK = "XML:com.adobe.xmp"
LONGEST_PACKET = 1_000_000
DESCRIPTION = """ xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{words}</rdf:li></rdf:Alt></dc:description></rdf:Description>"""
PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 {source}xmp:CreatorTool="DuoGen"{about}
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


class Origin(StrEnum):
    """The digital source type of a picture that a model painted. A picture that was only brought has none."""

    PAINTED = "trainedAlgorithmicMedia"
    CHANGED = "compositeWithTrainedAlgorithmicMedia"  # a brought picture, of which a model painted a part or all anew


def write_packet(origin: Origin | None, description: str = "") -> bytes:
    """The XMP packet that names an origin.

    Args:
        description: what else is to know of the file.
    """
    source = f'Iptc4xmpExt:DigitalSourceType="{TERMS}{origin}" ' if origin else ""
    about = DESCRIPTION.format(words=escape(description)) if description else "/>"
    return PACKET.format(source=source, about=about).encode()


def encode_picture(picture: PILImage.Image, kind: str, origin: Origin | None, **settings: Any) -> bytes:
    """Encode a picture as a file that carries its origin.

    Args:
        kind: "PNG", "JPEG" or "WEBP".
        settings: what Pillow's `save` takes for that kind. `pnginfo` gets the mark too.
    """
    data = io.BytesIO()
    if origin and kind == "PNG":
        settings["pnginfo"] = settings.get("pnginfo") or PngInfo()
        settings["pnginfo"].add_itxt(PNG_CHUNK, write_packet(origin).decode())
    elif origin:
        settings["xmp"] = write_packet(origin)
    picture.save(data, kind, **settings)
    return data.getvalue()


def find_origin(file: Path | bytes) -> Origin | None:
    """The origin that a picture's file names, as `read_origin`; `None` where it cannot be read as a picture."""
    with contextlib.suppress(Exception), PILImage.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
        return read_origin(picture)
    return None


def read_origin(picture: PILImage.Image) -> Origin | None:
    """The origin that an opened file names, by any tool that writes IPTC's terms; `None` without such a mark.

    A damaged packet is no mark.
    """
    packet = picture.info.get("xmp") or picture.info.get(PNG_CHUNK) or picture.info.get("comment") or b""  # a GIF has no XMP
    text = packet.encode(errors="replace") if isinstance(packet, str) else bytes(packet)
    found = re.search(rb"digitalsourcetype/(\w+)", text[:LONGEST_PACKET])
    with contextlib.suppress(ValueError):
        return Origin(found[1].decode()) if found else None
    return None
