"""The mark of origin: in every file that leaves, through every way back."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from pathlib import Path
from urllib.parse import unquote

import pypdfium2
import pytest
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from duogen.conversation import Conversation, Image, load_conversation, save_conversation
from duogen.events import ImageDone
from duogen.library.export import as_html, as_pdf, as_zip
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.provenance import PNG_CHUNK, Origin, encode_picture, find_origin, write_packet
from ui.chat.history import Answer, messages
from ui.parts.pictures import PictureFolder

TERM = b"http://cv.iptc.org/newscodes/digitalsourcetype/"


def plain(seed: int = 1) -> PILImage.Image:
    return PILImage.effect_noise((40, 30), 60 + seed).convert("RGB")


def talk(origin: Origin | None) -> Conversation:
    asked = Conversation().say("user", Image(plain(1)), "Make it blue.")
    return asked.say("assistant", "Step 1. It is blue.", Image(plain(2), seed=3, seconds=1.0, origin=origin))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("origin", Origin)
def test_a_file_of_each_kind_carries_it(kind: str, origin: Origin) -> None:
    data = encode_picture(plain(), kind, origin)
    assert data.count(TERM + origin.encode() + b'"') == 1 and find_origin(data) is origin
    assert find_origin(encode_picture(plain(), kind, None)) is None and b"iptc" not in encode_picture(plain(), kind, None)


@pytest.mark.parametrize("packet", ["", "\0" * 99, "digitalsourcetype/digitalCapture", "digitalsourcetype/" + "x" * 9999, "<x" * 999])
def test_a_damaged_or_other_mark_is_none(packet: str) -> None:
    chunks, data = PngInfo(), io.BytesIO()
    chunks.add_itxt(PNG_CHUNK, packet)
    plain().save(data, "PNG", pnginfo=chunks)
    assert find_origin(data.getvalue()) is None and find_origin(b"no picture") is None


def test_a_conversation_keeps_it_on_disk_and_gives_it_to_older_ones(tmp_path: Path) -> None:
    said = talk(Origin.CHANGED)
    save_conversation(said, tmp_path)
    brought, painted = (image for turn in load_conversation(tmp_path).path() for image in turn.images())
    assert (brought.origin, painted.origin) == (None, Origin.CHANGED)
    assert sorted(filter(None, map(find_origin, (tmp_path / "images").iterdir()))) == [Origin.CHANGED]
    file = tmp_path / "conversation.json"
    payload = json.loads(file.read_text())
    entry = payload["turns"][1]["parts"][1]
    entry["origin"] = "humanEdits"
    file.write_text(json.dumps(payload))
    with pytest.raises(ValueError, match="the origin of a picture"):
        load_conversation(tmp_path)
    del entry["origin"]
    file.write_text(json.dumps(payload))
    assert [image.origin for turn in load_conversation(tmp_path).path() for image in turn.images()] == [None, Origin.PAINTED]


@pytest.mark.parametrize("origin", Origin)
def test_every_export_carries_it_and_marks_nothing_brought(origin: Origin) -> None:
    page = as_html(talk(origin))
    marks = [find_origin(base64.b64decode(data)) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", page)]
    assert marks == [None, origin]
    with zipfile.ZipFile(io.BytesIO(as_zip(talk(origin)))) as packed:
        assert [find_origin(packed.read(name)) for name in packed.namelist() if name.endswith("png")] == [None, origin]
    assert pypdfium2.PdfDocument(as_pdf(talk(origin))).get_metadata_value("Keywords") == origin
    assert pypdfium2.PdfDocument(as_pdf(talk(None))).get_metadata_value("Keywords") == ""


def test_the_library_keeps_it_through_download_and_import(tmp_path: Path) -> None:
    gallery, other = Gallery(tmp_path / "one"), Gallery(tmp_path / "two")
    made = gallery.set_favourite(gallery.add(plain(), PictureInfo("x", origin=Origin.CHANGED)).id, True)
    assert find_origin(made.file) is Origin.CHANGED
    again, known = other.import_file(made.file)
    assert known and again.about.origin == Origin.CHANGED == find_origin(again.file)
    foreign = tmp_path / "foreign.jpg"
    plain(3).save(foreign, xmp=write_packet(Origin.PAINTED).replace(b"DuoGen", b"Another"))
    assert other.import_file(foreign)[0].about.origin == Origin.PAINTED, "another program painted it"


@pytest.mark.parametrize("origin", [*Origin, None])
def test_what_a_browser_saves_from_the_chat_carries_it(origin: Origin | None, tmp_path: Path) -> None:
    """Also where the picture was shown before, and in its whole size since it is small."""
    folder, talked = PictureFolder(tmp_path, 99), talk(origin)
    painted = talked.path()[-1].images()[0]
    folder.keep(painted.picture)
    making = Answer(folder, folder)
    making.take(ImageDone(0, painted))
    shown = " ".join(part["text"] for message in messages(talked, {}, folder) for part in message["content"])
    links = re.findall(r'(?:href|src)="gradio_api/file=([^"]+)"', shown)
    marks = [find_origin(Path(unquote(link))) for link in links]
    assert len(links) == 5 and marks == [None, None, origin, origin, origin], "two of what was brought; three of what was painted"
