"""The doors of the data engine: whatever a saved file is, it is learnt or named with its reason, and the run goes on."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import brotli
import numpy
import pytest
import pyvips
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageOps
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from duogen.data_engine import pages, run
from duogen.data_engine.limits import limit_time
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pages import FileTally, Place, list_pages, read_page
from duogen.data_engine.pictures import encode_picture, inspect_picture
from duogen.data_engine.report import write_report
from duogen.data_engine.run import Work, make_dataset, map_here, prepare_page, process_mapper
from duogen.data_engine.sample import Dropped, Picture, Sample
from duogen.data_engine.state import State
from duogen.text_decoding import find_rubbish

WORDS = "Fold the paper in half, press the edge with a nail, and open it again before you turn it over to the other side."
MORE = "Bend both wings down along the line, hold the plane at its middle, and throw it gently against the evening wind."
OPTIONS = DataOptions(language="", min_words=10)


@cache
def photo(seed: int, side: int = 220) -> PILImage.Image:
    small = numpy.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=numpy.uint8)
    return PILImage.fromarray(small).resize((side, side), PILImage.Resampling.BICUBIC)


@cache
def picture(seed: int = 1, form: str = "JPEG", side: int = 220) -> bytes:
    out = io.BytesIO()
    photo(seed, side).save(out, form, **({"quality": 70} if form == "JPEG" else {}))
    return out.getvalue()


def article(words: str = WORDS, image: str = "a.jpg", head: str = '<meta charset="utf-8">', title: str = "How to fold a plane") -> str:
    shown = f'<p>{words}</p><img src="{image}" alt="paper"><p>{MORE}</p>'
    return f"<!doctype html><html><head>{head}<title>{title}</title></head><body><article><h1>{title}</h1>{shown}</article></body></html>"


def note(words: str = WORDS, image: str = "a.jpg", title: str = "How to fold a plane") -> str:
    return f'---\ntitle: "{title}"\n---\n\n{words}\n\n![paper]({image})\n\n{MORE}\n'


Entry = tuple[str, str, bytes, Sequence[tuple[str, str]]]  # address, status, body, headers
PAGE = ("https://fold.org/plane", "200 OK", article().encode(), [("Content-Type", "text/html; charset=utf-8")])
SHOWN = ("https://fold.org/a.jpg", "200 OK", picture(), [("Content-Type", "image/jpeg")])
OTHER = ("https://fold.org/boat", "200 OK", article("Cut the boat " + MORE, title="A boat").encode(), [("Content-Type", "text/html")])


def crawl(*entries: Entry, packed: bool = True) -> bytes:
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    for address, status, body, headers in entries:
        said = StatusAndHeaders(status, list(headers), protocol="HTTP/1.1")
        writer.write_record(writer.create_warc_record(address, "response", io.BytesIO(body), http_headers=said))
    return out.getvalue()


def saved(page: bytes, headers: str = "Content-Type: text/html", encoding: str = "base64") -> bytes:
    """A page that a browser saved as MHTML."""
    body = base64.encodebytes(page) if encoding == "base64" else page
    start = "From: <Saved by Blink>\r\nSnapshot-Content-Location: https://fold.org/plane\r\nMIME-Version: 1.0\r\n"
    start += 'Content-Type: multipart/related; type="text/html"; boundary="x"\r\n\r\n--x\r\n'
    part = f"{start}{headers}\r\nContent-Transfer-Encoding: {encoding}\r\nContent-Location: https://fold.org/plane\r\n\r\n".encode()
    image = b"\r\n--x\r\nContent-Type: image/jpeg\r\nContent-Transfer-Encoding: base64\r\nContent-Location: https://fold.org/a.jpg\r\n\r\n"
    return part + body + image + base64.encodebytes(picture()) + b"\r\n--x--\r\n"


def book(*, chapters: Sequence[str] = ("c.xhtml",), more: dict[str, bytes] | None = None) -> bytes:
    out = io.BytesIO()
    items = "".join(f'<item id="{name}" href="{name}"/>' for name in chapters)
    spine = "".join(f'<itemref idref="{name}"/>' for name in chapters)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", '<container><rootfiles><rootfile full-path="o/p.opf"/></rootfiles></container>')
        archive.writestr("o/p.opf", f"<package><metadata/><manifest>{items}</manifest><spine>{spine}</spine></package>")
        archive.writestr("o/c.xhtml", article())
        archive.writestr("o/a.jpg", picture())
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return out.getvalue()


def put(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


def read_all(root: Path, tally: FileTally | None = None) -> dict[str, Sample | Dropped]:
    return {f"{place.file}#{place.member}": read_page(place, root) for place in list_pages(root, tally, root.parent / "scratch")}


def read_one(file: Path) -> Sample | Dropped:
    (found,) = read_all(file).values()
    return found


def reason(found: Sample | Dropped) -> str:
    assert isinstance(found, Dropped), found
    return found.reason


def shows(found: Sample | Dropped, data: bytes | None = None) -> bool:
    """Whether it is the page with its words and its picture."""
    assert isinstance(found, Sample), found
    (shown,) = found.pictures()
    return shown.bytes() == (picture() if data is None else data) and "Fold the paper" in found.text() and "evening wind" in found.text()


# What lies in a folder


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_every_file_of_a_folder_is_read_or_named_and_the_sums_add_up(tmp_path: Path):
    root = tmp_path / "in"
    for name in ("PAGE.HTML", "b.shtml", "c.php", "index.html?id=3", "noextension", "e.htm.orig"):
        put(root / name, article(title=f"How to fold {name}"))
    put(root / "zipped.html.gz", gzip.compress(article().encode()))
    put(root / "a.jpg", picture())
    put(root / "pictures.html" / "b.avif", b"none")
    put(root / "style.css", "a { color: red }")
    put(root / "list.txt", "milk, eggs")
    put(root / "book.pdf", b"%PDF-1.7 ...")
    put(root / "empty", b"")
    put(root / ".hidden.html", article())
    os.mkfifo(root / "pipe.html")
    (root / "gone.html").symlink_to(root / "nothing.html")
    (root / "loop.html").symlink_to(root / "loop.html")
    (root / "other").symlink_to(tmp_path, target_is_directory=True)
    tally = FileTally()
    found = read_all(root, tally)
    names = ["PAGE.HTML", "b.shtml", "c.php", "e.htm.orig", "index.html?id=3", "noextension", "zipped.html.gz"]
    assert [name.removesuffix("#") for name in found] == names and all(map(shows, found.values()))
    assert (tally.pages, tally.pictures, tally.assets, tally.passed) == (7, 2, 1, 7)
    assert tally.reasons == {
        "list.txt": "it is no page, it holds something else",
        "book.pdf": "it is no page, it holds a PDF file",
        "empty": "it is no page, it holds nothing",
        "pipe.html": "it is a pipe or a device, no file",
        "gone.html": "it is a link to a file that is not there",
        "loop.html": tally.reasons["loop.html"],
        "other": "it is a link to a folder; name that folder itself",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf_8_is_read_and_printable(tmp_path: Path):
    put(tmp_path / "in" / "a.jpg", picture())
    with open(os.fsencode(tmp_path / "in") + b"/Kn\xf6delsuppe.md", "wb") as out:
        out.write(note(title="").encode())
    state = make_dataset(tmp_path / "in", tmp_path / "set", OPTIONS, log=lambda words: None)
    (row,) = state.rows()
    assert (row.file, row.step, row.title) == ("Kn\\xf6delsuppe.md", "", "Knödelsuppe")
    assert "Kn\\xf6delsuppe.md" in write_report(state).read_text(encoding="utf-8")
    assert run.overrule(state, row.id, keep=True).record


def test_the_report_names_what_was_not_read(tmp_path: Path):
    root = tmp_path / "in"
    put(root / "good.md", note())
    put(root / "a.jpg", picture())
    put(root / "bad.epub", b"PK no book")
    put(root / "list.txt", "milk")
    state = make_dataset(root, tmp_path / "set", OPTIONS, log=lambda words: None)
    page = write_report(state).read_text(encoding="utf-8")
    assert "4 files were found: 2 hold pages, 1 are pictures, 0 are styles, scripts and media, and 1 were passed over." in page
    assert "<li>bad.epub <small>(cannot be read: its packed data is damaged (File is not a zip file))" in page and "<li>list.txt" in page
    raw = json.loads((tmp_path / "set" / "funnel.json").read_text(encoding="utf-8"))
    assert raw["files"]["found"] == 4 and [name for name, _ in raw["unread"]] == ["bad.epub", "list.txt"]
    assert not (tmp_path / "set" / run.SCRATCH).exists()
    with pytest.raises(ValueError, match=r"no pages in .* list.txt is passed over"):
        make_dataset(put(tmp_path / "texts" / "list.txt", "milk").parent, tmp_path / "none", OPTIONS, log=lambda words: None)


# Whatever a page raises


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "more memory than there is"), (RecursionError("maximum depth"), "nested too deeply"),
        (LookupError("unknown encoding: x"), "LookupError: unknown encoding: x"), (AssertionError(), "AssertionError"),
        (NotImplementedError("method 99"), "packed in a way that is not known here (method 99)"), (KeyError("it has no x"), "it has no x"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "no text"), (OSError(5, "Input/output error"), "Input/output error"),
    ],
)  # fmt: skip
def test_whatever_a_page_raises_drops_that_page_alone(error: Exception, said: str, tmp_path: Path, monkeypatch):
    put(tmp_path / "in" / "a.jpg", picture())
    put(tmp_path / "in" / "bad.html", article())
    put(tmp_path / "in" / "good.md", note())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(pages.READERS, "html", fail)
    state = make_dataset(tmp_path / "in", tmp_path / "set", OPTIONS, log=lambda words: None)
    bad, good = state.rows()
    assert (bad.step, good.step) == ("read", "") and bad.reason.startswith("cannot be read: ") and said in bad.reason


def test_a_filter_or_a_dialogue_that_fails_drops_that_page_alone(tmp_path: Path, monkeypatch):
    for name in ("a", "b", "c"):
        put(tmp_path / "in" / f"{name}.jpg", picture(ord(name)))
        put(tmp_path / "in" / f"{name}.md", note(" ".join([name] * 12), f"{name}.jpg", title=f"Page {name}"))
    chain = run._filter_chain(OPTIONS)

    def fail_at_a(sample: Sample) -> Sample:
        return chain["rewrite"](sample if sample.source.title != "Page a" else None)  # ty: ignore[invalid-argument-type]

    monkeypatch.setattr(run, "_filter_chain", lambda options: {**chain, "rewrite": fail_at_a})
    monkeypatch.setattr(run.Steps, "make_dialogue", lambda self, sample: (sample, []) if sample.source.title == "Page c" else 1 / 0)
    state = make_dataset(tmp_path / "in", tmp_path / "set", OPTIONS, log=lambda words: None)
    assert [row.step for row in state.rows()] == ["read", "dialogue", ""]
    assert "ZeroDivisionError" in state.rows()[1].reason


def test_a_full_disk_ends_the_run_since_a_later_one_can_go_on(tmp_path: Path, monkeypatch):
    put(tmp_path / "in" / "a.jpg", picture())
    put(tmp_path / "in" / "a.md", note())

    def fail(file: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_beside", fail)
    with pytest.raises(OSError, match="No space left"):
        make_dataset(tmp_path / "in", tmp_path / "set", OPTIONS, log=lambda words: None)
    state = State(tmp_path / "set")
    assert state.count_pages() == 0 and state.get_fact("state") == "stopped"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no alarm")
def test_a_page_that_takes_too_long_is_ended():
    with pytest.raises(TimeoutError, match=r"longer than 0.05 seconds"), limit_time(0.05):
        while True:
            time.sleep(0.01)
    with limit_time(0.02):
        pass
    time.sleep(0.03)  # no alarm is left


class EndsItsProcess:
    """What ends the process that reads it, as a crash of a library does."""

    def __reduce__(self) -> tuple[Callable, tuple[int]]:
        return os._exit, (1,)


@pytest.mark.slow
def test_a_page_that_ends_its_process_is_named_and_the_others_are_read(tmp_path: Path):
    put(tmp_path / "a.jpg", picture())
    for number in range(3):
        put(tmp_path / f"{number}.md", note())
    (tmp_path / "set" / "images").mkdir(parents=True)
    places = [Place("markdown", "0.md"), Place(EndsItsProcess(), "1.md"), Place("markdown", "2.md")]  # ty: ignore[invalid-argument-type]
    done = list(process_mapper(1)(places, Work(tmp_path, tmp_path / "set", OPTIONS)))
    assert [(each.place.file, each.step) for each in done] == [("0.md", ""), ("1.md", "read"), ("2.md", "")]
    assert done[1].reason == "cannot be read: it ended the process that read it"


# Web archives


def read_crawl(tmp_path: Path, data: bytes, name: str = "c.warc.gz") -> dict[str, Sample | Dropped]:
    return {member.partition("#")[2]: each for member, each in read_all(put(tmp_path / "in" / name, data).parent).items()}


@pytest.mark.parametrize("name", ["c.warc.gz", "c.warc", "c.wacz"])
@pytest.mark.parametrize("packed", ["each", "whole", ""])
def test_an_archive_is_read_however_it_is_packed(name: str, packed: str, tmp_path: Path):
    data = crawl(PAGE, SHOWN, packed=packed == "each")
    data = gzip.compress(data) if packed == "whole" else data
    if name == "c.wacz":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.warc.gz", data)
            archive.writestr("pages/pages.jsonl", "{}")
        data = out.getvalue()
    (found,) = read_crawl(tmp_path, data, name).values()
    assert shows(found)


def test_an_old_archive_is_read(tmp_path: Path):
    def record(address: str, kind: str, body: bytes) -> bytes:
        sent = f"HTTP/1.0 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode() + body
        return f"{address} 1.2.3.4 20040102030405 {kind} {len(sent)}\n".encode() + sent + b"\n"

    start = b"filedesc://c.arc 0.0.0.0 20040102030405 text/plain 76\n1 0 test\nURL IP-address Archive-date Content-type Archive-length\n"
    data = start + b"\n" * (76 - len(b"1 0 test\nURL IP-address Archive-date Content-type Archive-length\n")) + b"\n"
    data += record("https://fold.org/plane", "text/html", article().encode()) + record("https://fold.org/a.jpg", "image/jpeg", picture())
    (found,) = read_crawl(tmp_path, data, "c.arc").values()
    assert shows(found)


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_archive_is_read_around_the_damage(packed: bool, tmp_path: Path):
    parts = [crawl(each, packed=packed) for each in (PAGE, SHOWN, OTHER, PAGE)]
    data = bytearray(b"".join(parts))
    at = len(parts[0] + parts[1])
    data[at : at + 40] = b"\x55" * 40
    found = read_crawl(tmp_path, bytes(data), "c.warc.gz" if packed else "c.warc")
    assert [*found] == ["0", f"{at + len(parts[2])}", "damage 0"] and shows(found["0"])
    assert reason(found["damage 0"]).startswith(f"cannot be read: a part of it is damaged and lost (byte {at:,} to ")


@pytest.mark.parametrize("packed", ["each", "whole", ""])
def test_an_archive_that_was_cut_off_is_read_to_there(packed: str, tmp_path: Path):
    data = crawl(PAGE, SHOWN, packed=packed == "each")
    data += crawl(("https://fold.org/film", "200 OK", os.urandom(20_000), [("Content-Type", "video/mp4")]), packed=packed == "each")
    data = (gzip.compress(data) if packed == "whole" else data)[:-9000]
    found = read_crawl(tmp_path, data, "c.warc" if not packed else "c.warc.gz")
    *pages_of_it, damage = found.values()
    assert len(pages_of_it) == 1 and shows(pages_of_it[0]) and "what follows is lost" in reason(damage)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (article().encode(), "holds HTML"),
        (b"\x1f\x8b" + b"x" * 50, "a damaged gzip file"),
        (crawl(SHOWN), "holds no page"),
    ],
)
def test_what_is_no_archive_is_named(data: bytes, said: str, tmp_path: Path):
    (found,) = read_crawl(tmp_path, data).values()
    assert said in reason(found)


RAW = article().encode()
PACKED = gzip.compress(RAW, mtime=0)  # the time would give each process other names of tests
CHUNKS = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in (RAW[:100], RAW[100:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Encoding: br", brotli.compress(RAW)), ("Content-Encoding: gzip", PACKED),
        ("Content-Encoding: gzip, br", brotli.compress(PACKED)), ("Content-Encoding: BR", RAW), ("Content-Encoding: gzip", RAW),
        ("Content-Encoding: nonsense", RAW), ("Transfer-Encoding: chunked", CHUNKS), ("Transfer-Encoding: chunked", RAW),
    ],
)  # fmt: skip
def test_a_page_is_read_however_its_server_packed_it(header: str, body: bytes, tmp_path: Path):
    name, _, value = header.partition(": ")
    page = (PAGE[0], PAGE[1], body, [("Content-Type", "text/html"), (name, value)])
    (found,) = read_crawl(tmp_path, crawl(page, SHOWN)).values()
    assert shows(found)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("Content-Encoding: br", brotli.compress(RAW)[:60]), ("Content-Encoding: gzip", PACKED[:60]),
        ("Content-Encoding: gzip", b"\x1f\x8b" + b"rubbish" * 30), ("Content-Encoding: deflate", b"rubbish" * 30),
        ("Content-Encoding: zstd", b"\x28\xb5\x2f\xfd" + b"rubbish" * 30), ("Content-Encoding: x-own", b"rubbish" * 30),
        ("Transfer-Encoding: chunked", CHUNKS[:200]),
    ],
)  # fmt: skip
def test_a_page_whose_packing_is_damaged_is_named(header: str, body: bytes, tmp_path: Path):
    name, _, value = header.partition(": ")
    page = (PAGE[0], PAGE[1], body, [("Content-Type", "text/html"), (name, value)])
    (found,) = read_crawl(tmp_path, crawl(page, SHOWN)).values()
    assert reason(found).startswith("cannot be read: its ")


@pytest.mark.parametrize("image", ["http://fold.org/a.jpg", "//FOLD.org:443/a.jpg#x", "/%61.jpg", "/old", "/older"])
def test_a_picture_is_found_under_another_spelling_of_its_address(image: str, tmp_path: Path):
    page = (PAGE[0], PAGE[1], article(image=image).encode(), PAGE[3])
    moved = ("https://fold.org/old", "301 Moved", b"moved", [("Location", "/a.jpg"), ("Content-Type", "text/html")])
    twice = ("https://fold.org/older", "302 Found", b"", [("Location", "http://fold.org/old")])
    circle = ("https://fold.org/round", "302 Found", b"", [("Location", "/round")])
    (found,) = read_crawl(tmp_path, crawl(page, circle, moved, twice, SHOWN)).values()
    assert shows(found)


def test_a_query_in_another_order_and_a_second_visit_are_found(tmp_path: Path):
    page = (PAGE[0], PAGE[1], article(image="/again.jpg?b=2&amp;a=1").encode(), PAGE[3])
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=True)
    said = StatusAndHeaders("200 OK", [("Content-Type", "image/jpeg")], protocol="HTTP/1.1")
    address = "https://fold.org/again.jpg?a=1&b=2"
    writer.write_record(writer.create_revisit_record(address, "sha1:X", SHOWN[0], "2026-01-01T00:00:00Z", http_headers=said))
    (found,) = read_crawl(tmp_path, out.getvalue() + crawl(page, SHOWN)).values()
    assert shows(found)


def test_an_error_of_the_server_is_no_page(tmp_path: Path):
    gone = ("https://fold.org/gone", "404 Not Found", RAW, PAGE[3])
    found = read_crawl(tmp_path, crawl(gone, PAGE, SHOWN))
    assert "the server answered 404" in reason(found["0"]) and [shows(each) for each in list(found.values())[1:]] == [True]


def test_the_encoding_that_the_server_names_counts(tmp_path: Path):
    raw = article("Fold the paper: складка " + WORDS, head="").encode("cp1251")
    page = (PAGE[0], PAGE[1], raw, [("Content-Type", 'text/html; charset="cp1251"')])
    (found,) = read_crawl(tmp_path, crawl(page, SHOWN)).values()
    assert shows(found) and "складка" in found.text()


# MHTML and EPUB

GREETING = "Fold the paper — “Grüße” für Kürbis, naïve café. "


@pytest.mark.parametrize("label", ["", "; charset=utf-8", '; charset=""', "; charset=x-user-defined", "; charset=base64", '; charset="ä"'])
def test_a_page_saved_as_one_file_keeps_its_letters(label: str, tmp_path: Path):
    head = '<meta charset="iso-8859-1">' if label == "; charset=utf-8" else ""
    raw = saved(article(GREETING + WORDS, head=head).encode(), f"Content-Type: text/html{label}")
    found = read_one(put(tmp_path / "a.mht", raw))
    assert shows(found) and "— “Grüße” für Kürbis, naïve café." in found.text()


def test_what_is_no_saved_page_is_named(tmp_path: Path):
    assert "packed as x-own" in reason(read_one(put(tmp_path / "a.mht", saved(RAW, encoding="x-own"))))
    assert "holds no page" in reason(read_one(put(tmp_path / "b.mht", b"From: x\r\nContent-Type: text/plain\r\n\r\nhi")))
    assert "it holds a PDF file" in reason(read_one(put(tmp_path / "c.html", b"%PDF-1.7 " * 30)))
    put(tmp_path / "a.jpg", picture())
    assert shows(read_one(put(tmp_path / "d.mht", RAW))), "HTML with the ending of MHTML"
    assert shows(read_one(put(tmp_path / "e.html", saved(RAW)))), "MHTML with the ending of HTML"


def flip(data: bytes, name: bytes, by: int, value: int) -> bytes:
    """Change a byte before the name of a member in its own head and in the list of members of a ZIP file."""
    raw = bytearray(data)
    raw[raw.find(name) - 30 + by] = value
    raw[raw.rfind(name) - 46 + by + 2] = value
    return bytes(raw)


def test_a_book_is_read_as_far_as_it_is_sound(tmp_path: Path):
    locked, unknown = flip(book(), b"o/c.xhtml", 6, 1), flip(book(), b"o/c.xhtml", 8, 99)
    assert reason(read_one(put(tmp_path / "a.epub", locked))) == "cannot be read: it is locked with a password"
    assert "packed in a way that is not known here" in reason(read_one(put(tmp_path / "b.epub", unknown)))
    guard = {"META-INF/encryption.xml": b'<x><CipherReference URI="o/c.xhtml"/></x>'}
    assert "copy protection" in reason(read_one(put(tmp_path / "c.epub", book(more=guard))))
    damaged = bytearray(book())
    at = damaged.find(b"o/c.xhtml") + len(b"o/c.xhtml")
    damaged[at : at + 90] = b"\xff" * 90
    assert "packed data is damaged" in reason(read_one(put(tmp_path / "d.epub", bytes(damaged))))
    missing = read_all(put(tmp_path / "e.epub", book(chapters=("c.xhtml", "gone.xhtml"))))
    assert shows(missing["e.epub#o/c.xhtml"]) and "there is no o/gone.xhtml in it" in reason(missing["e.epub#o/gone.xhtml"])
    assert shows(read_one(put(tmp_path / "f.epub", book(chapters=())))), "a book without an order is read as it lies"


def test_a_damaged_picture_costs_the_picture_not_its_chapter(tmp_path: Path):
    raw = bytearray(book())
    at = raw.find(b"o/a.jpg") + len(b"o/a.jpg")
    raw[at : at + 200] = b"\xff" * 200
    found = read_one(put(tmp_path / "a.epub", bytes(raw)))
    assert isinstance(found, Sample) and "damaged in its archive" in inspect_picture(found.pictures()[0], OPTIONS)[1]


# Letters


def test_lost_letters_never_enter_a_set(tmp_path: Path):
    put(tmp_path / "a.jpg", picture())
    for number, words in enumerate(("caf\ufffd ", "caf\u0093 ", "&#xFFFD; ")):
        assert "letters that were lost" in reason(read_one(put(tmp_path / f"{number}.html", article(words + WORDS))))
    cut = article(head='<meta charset="utf-8"><meta name="description" content="caf*">').encode().replace(b"*", b"\xc3")
    assert shows(read_one(put(tmp_path / "cut.html", cut))), "a letter that is cut in what nobody sees costs nothing"
    assert shows(read_one(put(tmp_path / "nul.html", article(WORDS.replace("the", "t\0he"))))), "a browser leaves controls out"
    for name in ("rubbish.html", "rubbish.md"):
        assert "no text that can be read" in reason(read_one(put(tmp_path / name, bytes(range(256)) * 20)))


# Pictures


def look(data: bytes, name: str = "a") -> tuple[Picture, str]:
    return inspect_picture(Picture(name, data=data), OPTIONS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_a_picture_that_was_cut_off_is_broken(form: str):
    whole = picture(3, form)
    assert not look(whole)[1]
    assert [look(whole[: int(len(whole) * share)])[1][:6] for share in (0.4, 0.8, 0.99)] == ["broken"] * 3


def test_zeros_that_a_camera_leaves_behind_the_pixels_are_no_damage():
    out = io.BytesIO()
    photo(3, 240).save(out, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0" + b"\0" * 9000)
    assert not look(out.getvalue())[1]


def test_a_large_jpeg_that_was_cut_off_is_broken_though_it_is_read_small():
    whole = picture(4, side=2400)
    assert not look(whole)[1] and look(whole[: len(whole) * 4 // 10])[1].startswith("broken")
    assert look(whole[: len(whole) * 4 // 10] + b"\xff\xd9")[1].startswith("broken"), "with a mark of its end"
    assert look(article().encode())[1] == "broken: it holds HTML" and look(b"")[1].startswith("broken: it is empty")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", [1, 6])
def test_what_a_camera_writes_beside_the_pixels_stays_out_of_the_set(form: str, turn: int):
    exif = PILImage.Exif()
    exif[0x0112], exif[0x010F] = turn, "Maker"
    place = exif.get_ifd(0x8825)
    place[1], place[2] = "N", (52.0, 31.0, 12.0)
    out = io.BytesIO()
    more = {"quality": 70} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    photo(5, 240).crop((0, 0, 240, 200)).save(out, form, exif=exif, **more, **({"xmp": b"<xmp>Maker</xmp>"} if form != "PNG" else {}))
    before = ImageOps.exif_transpose(PILImage.open(io.BytesIO(out.getvalue() + b"Maker behind the end")))
    seen, why = look(out.getvalue() + b"Maker behind the end")
    data, suffix = encode_picture(seen, 1024)
    after = PILImage.open(io.BytesIO(data))
    assert not why and seen.shape == before.size and b"Maker" not in data and not after.getexif().get_ifd(0x8825)
    assert set(after.getexif()) <= {0x0112}
    shown = ImageOps.exif_transpose(after)
    if form == "JPEG" or turn == 1:
        assert shown.tobytes() == before.convert("RGB").tobytes(), "the pixels are the same"
    else:
        assert shown.size == before.size and suffix == ".jpg"


@pytest.mark.parametrize("form", ["jpegsave_buffer", "pngsave_buffer", "webpsave_buffer"])
def test_colours_of_another_profile_become_srgb(form: str):
    plain = photo(6, 240)
    image = pyvips.Image.new_from_memory(plain.tobytes(), 240, 240, 3, "uchar").copy(interpretation="srgb")
    wide = getattr(image.icc_transform("p3", input_profile="srgb"), form)(**({} if form == "pngsave_buffer" else {"Q": 98}))
    seen, why = look(wide)
    after = PILImage.open(io.BytesIO(encode_picture(seen, 1024)[0]))
    off = numpy.abs(numpy.asarray(after.convert("RGB"), dtype=int) - numpy.asarray(plain, dtype=int)).mean()
    assert not why and "icc_profile" not in after.info and off < 2


def test_a_tiff_is_upright_and_one_of_floats_is_not_black():
    exif = PILImage.Exif()
    exif[0x0112] = 6
    turned, floats = io.BytesIO(), io.BytesIO()
    photo(7, 240).crop((0, 0, 240, 200)).save(turned, "TIFF", exif=exif)
    PILImage.fromarray(numpy.asarray(photo(8).convert("L"), dtype=numpy.float32) / 255).save(floats, "TIFF")
    seen, _ = look(turned.getvalue())
    assert seen.shape == (200, 240) and PILImage.open(io.BytesIO(encode_picture(seen, 1024)[0])).size == (200, 240)
    assert not look(floats.getvalue())[1]


# Chance

CONTAINERS = {
    "a.html": RAW, "a.md": note().encode(), "a.mht": saved(RAW), "a.warc": crawl(PAGE, SHOWN, OTHER, packed=False),
    "a.warc.gz": crawl(PAGE, SHOWN, OTHER), "b.warc.gz": gzip.compress(crawl(PAGE, SHOWN, OTHER, packed=False), mtime=0), "a.epub": book(),
    "a.jpg": picture(), "a.png": picture(1, "PNG"), "a.webp": picture(1, "WEBP"),
}  # fmt: skip
HARM = st.tuples(st.sampled_from(["cut", "overwrite", "remove", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=40))
DAMAGE = st.lists(HARM, min_size=1, max_size=3)


def damage_bytes(data: bytes, harm: Sequence[tuple[str, float, bytes]]) -> bytes:
    for how, where, what in harm:
        at = int(where * len(data))
        rest = {"cut": b"", "overwrite": what + data[at + len(what) :], "remove": data[at + len(what) :], "insert": what + data[at:]}[how]
        data = data[:at] + rest
    return data


@pytest.mark.parametrize("name", CONTAINERS)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(harm=DAMAGE)
def test_whatever_is_damaged_is_learnt_or_named(name: str, harm: Sequence[tuple[str, float, bytes]], tmp_path_factory):
    root = tmp_path_factory.mktemp("in")
    put(root / name, damage_bytes(CONTAINERS[name], harm))
    if name in ("a.jpg", "a.png", "a.webp"):
        put(root / "a.md", note(image=name))
    elif name in ("a.html", "a.md"):
        put(root / "a.jpg", picture())
    work = Work(root, root / ".set", OPTIONS)
    (work.out / "images").mkdir(parents=True)
    tally = FileTally()
    done = list(map_here(list_pages(root, tally, root / ".scratch"), work))
    assert tally.pages + tally.pictures + tally.passed == sum(not each.name.startswith(".") for each in root.iterdir())
    assert done or tally.passed
    for prepared in done:
        assert bool(prepared.step) == bool(prepared.reason)
        if not prepared.step:
            assert prepared.sample is not None and not find_rubbish(prepared.sample.text()) and prepared.sample.pictures()
            assert all(PILImage.open(each.file).convert("RGB").size for each in prepared.sample.pictures() if each.file)


def test_a_file_that_went_away_is_named(tmp_path: Path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    found = prepare_page(Place("html", "gone.html"), Work(tmp_path, tmp_path / "set", OPTIONS))
    assert found.reason.startswith("cannot be read: There is no file")
