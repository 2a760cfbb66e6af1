"""The data engine: readers, filters, rewriting and alignment with their validator, whole runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import unicodedata
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from PIL import Image as PILImage
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from duogen.cli.main import main
from duogen.conversation import Message
from duogen.data_engine.align import align_pictures, word_overlap_scorer
from duogen.data_engine.dialogue import find_violation, make_turns
from duogen.data_engine.filters import make_filters, mask_personal_data, normalise_letters
from duogen.data_engine.markdown import read_markdown
from duogen.data_engine.near import signature, similarity
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pages import list_pages, read_page
from duogen.data_engine.pictures import encode_picture, inspect_picture, perceptual_hash
from duogen.data_engine.report import funnel, write_report
from duogen.data_engine.rewrite import clean_page
from duogen.data_engine.run import Work, make_dataset, make_row, map_here, overrule, prepare_page, process_mapper
from duogen.data_engine.sample import Dropped, Picture, Sample, Source, Words
from duogen.data_engine.state import State
from duogen.data_engine.steps import Steps
from duogen.ray_cluster import REPORTS

STEPS = (
    "Peel two apples and cut them in thin slices.",
    "Roll out the pastry with a rolling pin.",
    "Bake everything at 180 C for 40 minutes.",
)
TART = (
    "Press the short crust into a round form and prick it with a fork.", "Whisk eggs, sugar, cream and the juice of four lemons together.",
    "Pour it over the crust, and let it set in the oven at low heat.", "Dust it with sugar once it is cold, and cut it with a wet knife.",
)  # fmt: skip
ARTICLE = """<html lang="en"><head><title>How to build a bird house | Garden</title><meta name="author" content="Ann Miller">
<link rel="license" href="https://creativecommons.org/licenses/by/4.0/"></head><body><nav><a href="/"><img
src="logo.png" alt="Logo"></a></nav>
<article><h1>How to build a bird house</h1><p>A bird house is a good first project. It takes an afternoon and a saw,
and birds come every year.</p>
<figure><img data-src="house.png" src="data:image/gif;base64,R0lGOD" alt="house"><figcaption>The finished house on its
pole.</figcaption></figure>
<ol><li>Saw the board into six pieces, each of them 20 cm long, as the drawing on the wood shows.</li><li>Drill a hole
of 32 mm into the front
piece. <a href="/drills">Click here</a> to see our drills.</li></ol><p><a href="x"><img src="hole.png" alt="hole in
the front piece"></a></p>
<p>Glue the sides to the floor and let everything dry over night before you hang it up in the
garden.</p></article></body></html>"""


def photo(seed: int, side: int = 240) -> PILImage.Image:
    """Something with as many colours as a photograph, unlike that of another seed."""
    small = numpy.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=numpy.uint8)
    return PILImage.fromarray(small).resize((side, side), PILImage.Resampling.BICUBIC)


def png(seed: int, side: int = 240) -> bytes:
    out = io.BytesIO()
    photo(seed, side).save(out, "PNG")
    return out.getvalue()


def recipe(title: str, pictures: list[str], words: str = "", steps: tuple[str, ...] = STEPS) -> str:
    """A page of a Hugo site."""
    shown = [f"![{name}](/pix/{name}.png)" for name in pictures]
    return (
        f'---\ntitle: "{title}"\nauthor: ann\ndate: 2024-01-02\n---\n\n{shown[0] if shown else ""}\n\n- \u23f2\ufe0f Prep time: 10 min\n\n'
        f"## Ingredients\n\n- 2 apples\n- 300 g of [jam](/jam)\n- {words or title} to taste\n\n## Directions\n\n"
        + "\n".join(f"{n}. {step}" for n, step in enumerate(steps, 1))
        + f"\n{' '.join(shown[1:])}\n\n## Notes\n\n{words} Keep what is left in the fridge, covered, "
        "for no more than three days or so. Write to ann@home.org.\n"
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Six pages: two good ones, one of them twice, one without a picture, one in German, one with a broken picture."""
    root = tmp_path / "site"
    (root / "content").mkdir(parents=True)
    pix = root / "static" / "pix"
    pix.mkdir(parents=True)
    for seed, name in enumerate(("strudel", "rolling-pastry", "tart", "kuchen")):
        photo(seed).save(pix / f"{name}.png")
    (pix / "broken.png").write_bytes(png(9)[:700])
    strudel = recipe("Apple strudel", ["strudel", "rolling-pastry"], "Warm vanilla sauce goes well with it.")
    german = (
        "---\ntitle: Apfelkuchen\n---\n![Kuchen](/pix/kuchen.png)\n\nDer Kuchen wird am besten, wenn man die Äpfel vorher schält und"
        " dann in dünne Scheiben schneidet. Der Teig kommt in die Form, und alles wird eine Stunde lang gebacken, bis es schön braun ist.\n"
    )
    pages = {
        "apple-strudel": strudel, "copy": strudel.replace("Apple strudel", "My strudel"), "words": recipe("No picture", []),
        "tart": recipe("Lemon tart", ["tart"], "Lemons give it zest.", TART), "german": german * 2,
        "broken": recipe("Broken bun", ["broken"], "Nothing is like a bun from the oven."),
    }  # fmt: skip
    for name, text in pages.items():
        (root / "content" / f"{name}.md").write_text(text, encoding="utf-8")
    return root


def outcomes(state: State) -> dict[str, str]:
    return {Path(row.file).stem: row.step for row in state.rows(most=1000)}


def test_a_site_becomes_a_set_that_training_reads(site: Path, tmp_path: Path):
    out = tmp_path / "set"
    state = make_dataset(site, out, DataOptions(licence="CC0"), log=lambda words: None)
    assert outcomes(state) == {
        "apple-strudel": "", "tart": "", "copy": "near-duplicate text", "words": "text only", "german": "wrong language",
        "broken": "useless pictures",
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "conversations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["source"]["title"] for line in lines] == ["Apple strudel", "Lemon tart"]
    assert lines[0]["source"]["licence"] == "CC0" and lines[0]["source"]["file"] == "content/apple-strudel.md"
    parts = [part for line in lines for turn in line["turns"] for part in turn["parts"]]
    named = {part["file"] for part in parts if part["type"] == "image"}
    assert len(named) == 3 and {f"images/{file.name}" for file in (out / "images").iterdir()} == named
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    assert "ann@home.org" not in text and "](/jam)" not in text and "300 g of jam" in text and "\u23f2" not in text
    assert [turn["role"] for turn in lines[1]["turns"]] == ["user", "assistant"] * 2, "the notes answer a follow-up"
    page = write_report(state).read_text(encoding="utf-8")
    assert "wrong language" in page and "Lemon tart" in page and page.count("<article") == 2
    steps = funnel(state)
    assert (steps[0].entered, steps[-1].left) == (6, 2) and all(a.left == b.entered for a, b in zip(steps, steps[1:], strict=False))


def test_parallel_interrupted_and_plain_runs_give_the_same_set(site: Path, tmp_path: Path):
    def lines(out: Path) -> bytes:
        return (out / "conversations.jsonl").read_bytes()

    plain, cores, twice = (tmp_path / name for name in ("plain", "cores", "twice"))
    make_dataset(site, plain, DataOptions(), log=lambda words: None).close()
    make_dataset(site, cores, DataOptions(), process_mapper(2), log=lambda words: None).close()
    stop, seen = threading.Event(), []

    def three(found, work):
        for prepared in map_here(found, work):
            seen.append(prepared.place.file)
            if len(seen) == 3:
                stop.set()
            yield prepared

    make_dataset(site, twice, DataOptions(), three, log=lambda words: None, stop=stop).close()
    stop.clear()
    assert len(seen) == 3 and lines(twice) != lines(plain)
    make_dataset(site, twice, DataOptions(), three, log=lambda words: None).close()
    assert len(seen) == len(set(seen)) == 6, "no page is read again"
    assert lines(cores) == lines(plain) == lines(twice)
    with pytest.raises(ValueError, match="other pages or options"):
        make_dataset(site, twice, DataOptions(min_words=1), log=lambda words: None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_cluster_gives_the_same_set(site: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("ray")
    from duogen.data_engine import cluster

    monkeypatch.setattr(cluster, "BATCH", 2)
    monkeypatch.setattr(cluster, "AT_ONCE", 2)  # three batches for two workers, the last one in a second round
    plain, many = tmp_path / "plain", tmp_path / "many"
    make_dataset(site, plain, DataOptions(), log=lambda words: None).close()
    state = make_dataset(site, many, DataOptions(), cluster.ray_mapper("local", 2), log=lambda words: None)
    assert [row.file for row in state.rows()] == [place.file for place in list_pages(site)]
    assert (many / "conversations.jsonl").read_bytes() == (plain / "conversations.jsonl").read_bytes()
    assert {file.name: file.read_bytes() for file in (many / "images").iterdir()} == {
        file.name: file.read_bytes() for file in (plain / "images").iterdir()
    }


def test_ray_reports_nothing_unless_asked():
    """A process that has left a cluster would go on to send metrics to it, from a thread that reads the environment while others write."""
    code = "import os, duogen.ray_cluster as ray_cluster; print(*(os.environ[name] for name in ray_cluster.REPORTS))"
    mine = {name: value for name, value in os.environ.items() if name not in REPORTS}
    for environment, values in ((mine, ["0", "0"]), (mine | {REPORTS[1]: "1"}, ["0", "1"])):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert found.stdout.split() == values


def test_a_machine_that_does_not_see_the_pages_says_so(site: Path, tmp_path: Path):
    from duogen.data_engine.cluster import _PrepareBatch

    pages = {"pages": pickle.dumps(list(list_pages(site)))}
    assert _PrepareBatch(Work(site, tmp_path / "gone", DataOptions()))(pages)["blind"] == str(tmp_path / "gone")
    (tmp_path / "set" / "images").mkdir(parents=True)
    done = _PrepareBatch(Work(site, tmp_path / "set", DataOptions()))(pages)
    assert not done["blind"] and len(pickle.loads(done["prepared"])) == 6


def test_a_cluster_that_is_not_there_is_said_in_a_sentence(site: Path, tmp_path: Path, capsys, monkeypatch):
    command = ["data", "make", str(site), "--out", str(tmp_path / "set"), "--ray", "127.0.0.1:9"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ray", None)
        assert main(command) == 2 and 'pip install "ray[data]"' in capsys.readouterr().err
    pytest.importorskip("ray")
    assert main(command) == 2 and "no Ray cluster at 127.0.0.1:9" in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_a_person_overrules(site: Path, tmp_path: Path):
    state = make_dataset(site, tmp_path / "set", DataOptions(), log=lambda words: None)
    ids = {Path(row.file).stem: row.id for row in state.rows()}
    overrule(state, ids["tart"], keep=False)
    overrule(state, ids["copy"], keep=True)
    assert [Path(record["source"]["file"]).stem for record in state.records()] == ["apple-strudel", "copy"]
    with pytest.raises(ValueError, match="no picture"):
        overrule(state, ids["words"], keep=True)
    assert state.get_row(ids["words"]).record is None and state.count_pages("kept") == 2


def test_the_command_line_makes_a_set_and_says_what_is_wrong(site: Path, tmp_path: Path, capsys):
    out = tmp_path / "set"
    assert main(["data", "make", str(site), "--out", str(out), "--jobs", "1"]) == 0
    assert "2 dialogues" in capsys.readouterr().out and (out / "report.html").exists()
    assert main(["data", "make", str(tmp_path / "none"), "--out", str(tmp_path / "x")]) == 2 and not (tmp_path / "x").exists()
    assert "name a folder of saved pages" in capsys.readouterr().err
    assert main(["data", "make", str(site), "--out", str(site), "--jobs", "1"]) == 2
    assert main(["data", "report", str(tmp_path)]) == 2


# Readers


def bird_house(sample: Sample | Dropped) -> None:
    assert isinstance(sample, Sample), sample
    assert "bird house" in sample.source.title.lower()
    pictures = sample.pictures()
    assert [picture.name.rpartition("/")[2] for picture in pictures] == ["house.png", "hole.png"]
    assert pictures[0].caption == "The finished house on its pole." and pictures[0].bytes() == png(1)
    before = [part.text for part in sample.parts[: sample.parts.index(pictures[1])] if isinstance(part, Words)]
    assert "Drill a hole of 32 mm" in before[-1] and sample.parts[-1].text.startswith("Glue")


def read_all(root: Path) -> list[Sample | Dropped]:
    return [read_page(place, root) for place in list_pages(root)]


def test_html_with_its_folder(tmp_path: Path):
    (tmp_path / "bird_files").mkdir()
    (tmp_path / "bird.html").write_text(ARTICLE.replace("house.png", "./bird_files/house.png"), encoding="utf-8")
    (tmp_path / "bird_files" / "house.png").write_bytes(png(1))
    (tmp_path / "bird_files" / "hole.png").write_bytes(png(2))
    (sample,) = read_all(tmp_path)
    bird_house(sample)
    assert (sample.source.author, sample.source.licence) == ("Ann Miller", "CC BY 4.0")
    cleaned = clean_page(sample)
    assert "Click here" not in cleaned.text() and "our drills" not in cleaned.text()


def test_mhtml(tmp_path: Path):
    from email.message import EmailMessage

    message = EmailMessage()
    message["Snapshot-Content-Location"] = "https://garden.org/bird"
    message.set_content(ARTICLE, subtype="html")
    message.make_related()
    for name, seed in (("house", 1), ("hole", 2)):
        message.add_related(png(seed), "image", "png", headers=[f"Content-Location: https://garden.org/{name}.png"])
    (tmp_path / "bird.mhtml").write_bytes(message.as_bytes())
    (sample,) = read_all(tmp_path)
    bird_house(sample)
    assert sample.source.url == "https://garden.org/bird"


def test_warc(tmp_path: Path):
    with (tmp_path / "crawl.warc.gz").open("wb") as stream:
        writer = WARCWriter(stream, gzip=True)
        parts = [("bird", "text/html", ARTICLE.encode()), ("house.png", "image/png", png(1)), ("hole.png", "image/png", png(2))]
        for name, kind, data in parts:
            headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.0")
            writer.write_record(writer.create_warc_record(f"https://garden.org/{name}", "response", io.BytesIO(data), http_headers=headers))
    (sample,) = read_all(tmp_path)
    bird_house(sample)
    assert sample.source.url == "https://garden.org/bird"


def test_epub(tmp_path: Path):
    opf = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>Garden</dc:title>'
        '<dc:creator>Ann</dc:creator><dc:rights>CC0</dc:rights></metadata><manifest><item id="a" href="text/bird.xhtml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>'
    )
    with zipfile.ZipFile(tmp_path / "garden.epub", "w") as book:
        book.writestr("META-INF/container.xml", '<container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>')
        book.writestr("OEBPS/book.opf", opf)
        book.writestr("OEBPS/text/bird.xhtml", ARTICLE.replace("house.png", "../house.png"))
        book.writestr("OEBPS/house.png", png(1))
        book.writestr("OEBPS/text/hole.png", png(2))
    (sample,) = read_all(tmp_path)
    bird_house(sample)
    assert (sample.source.author, sample.source.licence) == ("Ann", "CC0")
    (tmp_path / "garden.epub").write_bytes(b"PK damaged")
    (broken,) = read_all(tmp_path)
    assert isinstance(broken, Dropped) and "cannot be read" in broken.reason


def test_markdown_never_reads_outside_its_root(tmp_path: Path):
    photo(1).save(tmp_path / "secret.png")
    root = tmp_path / "site"
    root.mkdir()
    (root / "a.md").write_text('+++\ntitle = "T"\n+++\n![x](../secret.png) and <img src="/b.png" alt="b">\n', encoding="utf-8")
    source, blocks = read_markdown(root / "a.md", root)
    assert source.title == "T" and [block.file for block in blocks if isinstance(block, Picture)] == [None, None]


# Filters


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (Picture("a.png", data=png(1)), ""),
        (Picture("a.png", data=png(1, 90)), "too small"),
        (Picture("logo.png", data=png(1)), "logo"),
        (Picture("a.svg"), "icon"),
        (Picture("https://x.org/pixel.gif"), "tracking"),
        (Picture("a.png"), "not there"),
        (Picture("a.png", data=b"no picture"), "broken"),
    ],
)
def test_pictures_that_say_nothing(picture: Picture, why: str):
    found = inspect_picture(picture, DataOptions())[1]
    assert why in found if why else not found


def test_banners_flat_pictures_and_codes_say_nothing():
    def why(image: PILImage.Image) -> str:
        out = io.BytesIO()
        image.save(out, "PNG")
        return inspect_picture(Picture("a.png", data=out.getvalue()), DataOptions())[1]

    import zxingcpp

    code = zxingcpp.create_barcode("https://garden.org", zxingcpp.BarcodeFormat.QRCode).to_image(scale=8)
    assert "code" in why(PILImage.fromarray(numpy.asarray(code)))
    assert "banner" in why(photo(1).resize((900, 200)))
    assert "one colour" in why(PILImage.new("RGB", (300, 300), "beige"))


def slow_look(grey: PILImage.Image) -> list[bool]:
    """The bits of a perceptual hash by the sums that define the DCT-II."""
    tiny, at = numpy.asarray(grey.resize((32, 32), PILImage.Resampling.LANCZOS), dtype=numpy.float64), numpy.arange(32) + 0.5
    waves = [numpy.cos(numpy.pi * number * at / 32) * (0.5**0.5 if number == 0 else 1) for number in range(8)]
    low = [(tiny * down[:, None] * along[None, :]).sum() for down in waves for along in waves]
    return [each > numpy.median(low[1:]) for each in low]


@pytest.mark.parametrize("seed", range(8))
def test_a_perceptual_hash_is_that_of_its_definition(seed: int):
    coarse = numpy.random.default_rng(seed).integers(0, 256, (5, 7), dtype=numpy.uint8)
    grey = PILImage.fromarray(coarse).resize((256, 190), PILImage.Resampling.BICUBIC)
    assert [letter == "1" for letter in f"{perceptual_hash(grey):064b}"] == slow_look(grey)


@pytest.mark.parametrize("text", ["plain words, 1/2 cup (240 ml)", "cafe\u0301", "soft\u00adhyphen", "zero\u200bwidth", "a\tb\x07", ""])
def test_letters_have_one_spelling(text: str):
    slow = "".join(letter for letter in unicodedata.normalize("NFC", text) if unicodedata.category(letter) != "Cf")
    assert normalise_letters(text) == slow


def test_a_large_picture_is_made_smaller_only_where_that_saves_something():
    def kept(image: PILImage.Image, form: str) -> tuple[bytes, bytes, str]:
        out = io.BytesIO()
        image.save(out, form, quality=90)
        picture, why = inspect_picture(Picture("a.jpg", data=out.getvalue()), DataOptions())
        assert not why and picture.shape == image.size
        return out.getvalue(), *encode_picture(picture, 300)

    smooth = photo(1, 600)
    noise = numpy.random.default_rng(1).integers(0, 255, (600, 600, 3), dtype=numpy.uint8)
    before, data, suffix = kept(smooth, "WEBP")
    assert data == before and suffix == ".webp"
    before, data, suffix = kept(PILImage.fromarray(noise), "JPEG")
    assert suffix == ".jpg" and len(data) < len(before) / 2 and PILImage.open(io.BytesIO(data)).size == (300, 300)


def page(*parts: Words | Picture, title: str = "Apple strudel") -> Sample:
    return Sample("id", Source("a.md", title=title), parts)


def test_text_filters():
    chain = make_filters(DataOptions())
    assert isinstance(chain["text only"](page(Words("x"))), Dropped)
    assert isinstance(chain["too short"](page(Words("few words"))), Dropped)
    masked = mask_personal_data(
        page(Words("Call (555) 123-4567 or +49 30 1234567, in 2024, 20-30 min, 1-2 cups."), Picture("a", alt="a@b.org"))
    )
    assert masked.parts[0].text == "Call 555-0100 or 555-0100, in 2024, 20-30 min, 1-2 cups." and masked.parts[1].alt == "name@example.com"
    for said in ("0171 2345678", "030/1234567", "020 7946 0958", "1-800-555-0199", "Tel. 1234567", "Phone: 123 4567", "ann (at) home.org"):
        hidden = mask_personal_data(page(Words(f"Ask {said}.")))
        assert hidden.notes["masked"] == 1 and sum(each.isdigit() for each in hidden.text()) in (0, 7), hidden.text()
    for said in ("2024-01-02", "10.000.000", "1 234 567 g", "007 films", "0.125 l", "978-3-16-148410-0", "192.168.100.200", "at b.com"):
        assert mask_personal_data(page(Words(said))).text() == said


def test_block_list(tmp_path: Path):
    (tmp_path / "list.txt").write_text("# words\nspam\n", encoding="utf-8")
    block = make_filters(DataOptions(block=str(tmp_path / "list.txt")))["block list"]
    assert isinstance(block(page(Words("Buy SPAM now"))), Dropped) and isinstance(block(page(Words("spamming"))), Sample)
    with pytest.raises(ValueError, match="block list"):
        make_filters(DataOptions(block="nowhere.txt"))


def test_signatures_tell_texts_apart():
    words = [f"word{number}" for number in range(300)]
    text, other = " ".join(words), " ".join(reversed(words))
    changed = " ".join(words[:290] + ["new"] * 10)
    assert similarity(signature(text), signature(changed)) > 0.8 and similarity(signature(text), signature(other)) < 0.1


# Rewriting and alignment


def test_debris_goes_and_numbers_stay():
    dirty = page(
        Words("Apple strudel", "heading", "# "), Words("We use cookies. A strudel needs approx. 3 apples. Click here to subscribe!"),
        Words("Share this post", "item", "- "), Words("Empty", "heading", "## "),
        Words("Steps", "heading", "## "), Words("Cut 3 apples.", "item", "1. "),
    )  # fmt: skip
    kept = clean_page(dirty)
    assert [part.text for part in kept.parts] == ["A strudel needs approx. 3 apples.", "Steps", "Cut 3 apples."]
    assert Counter(each.why for each in kept.lost) == {"debris": 3}


def test_near_repeats_go_and_what_says_another_thing_stays():
    text = (
        "Fold the left corner over to the middle line. Fold the right corner over to the middle line. And then fold the left corners over"
        " to that middle line! Cut strips of 12 cm from the whole long board. Cut strips of 21 cm from the whole long board."
    )
    kept = clean_page(page(Words(text)))
    assert [each.what[:13] for each in kept.lost] == ["And then fold"] and len(kept.parts) == 4


def test_pictures_move_to_their_sentences_and_keep_their_order():
    steps = [Words(text, "item", f"{number}. ") for number, text in enumerate(STEPS, 1)]
    first, second = Picture("one.png", alt="sliced apples"), Picture("two.png", alt="rolling pin on pastry")
    moved = align_pictures(page(Words("Begin."), first, second, *steps), word_overlap_scorer("Apple strudel"), 0.34)
    assert [part if isinstance(part, Words) else part.name for part in moved.parts] == [
        Words("Begin."), steps[0], "one.png", steps[1], "two.png", steps[2]
    ]  # fmt: skip
    swapped = align_pictures(page(Words("Begin."), second, first, *steps), word_overlap_scorer("Apple strudel"), 0.34)
    assert [picture.name for picture in swapped.pictures()] == ["two.png", "one.png"]
    still = align_pictures(page(Words("It looks like this:"), first, *steps), word_overlap_scorer("Apple strudel"), 0.34)
    assert still.parts[1] is first, "what a sentence announces stays behind it"


def test_the_validator_sees_every_broken_rule():
    pictures = [Picture("one.png"), Picture("two.png")]
    sample = page(Words("Cut 3 apples."), pictures[0], Words("Bake at 180 C for 40 minutes."), pictures[1])
    good = make_turns(sample, random.Random(0))
    assert find_violation(sample, good) == ""

    def answer(*parts: str | Picture) -> str:
        return find_violation(sample, [good[0], Message("assistant", parts)])

    text = ("Cut 3 apples.", pictures[0], "Bake at 180 C for 40 minutes.")
    assert answer(*text, pictures[1]) == ""
    assert "missing" in answer(*text) and "missing" in answer(*text, pictures[1], pictures[1])
    assert "order" in answer("Cut 3 apples.", pictures[1], "Bake at 180 C for 40 minutes.", pictures[0])
    assert "invented" in answer(*text, Picture("three.png"))
    assert "numbers" in answer("Cut 4 apples.", *text[1:], pictures[1]) and "numbers" in answer("Cut apples.", *text[1:], pictures[1])
    assert "begins with a picture" in answer(pictures[0], "Cut 3 apples. Bake at 180 C for 40 minutes.", pictures[1])


class Scripted:
    """An MLLM that answers by the kind of question."""

    name, version = "scripted", "1"

    def __init__(self, **answers: str) -> None:
        self.answers = answers

    def ask(self, question: str, pictures, most: int = 512) -> str:
        kinds = {"caption": "Describe in one sentence", "rewrite": "Rewrite it", "place": "Which of these", "request": "Write the message"}
        return self.answers.get(next(kind for kind, words in kinds.items() if words in question), "I cannot.")


def test_a_model_words_the_page_and_falls_back_where_it_breaks_a_rule(tmp_path: Path):
    picture = Picture("one.png", file=tmp_path / "one.png", alt="apples")
    sample = page(Words("Cut 3 apples in slices and put them aside."), picture, Words("Bake all at 180 C."))
    good = {
        "caption": 'Sure! {"caption": "Apples in slices.", "kind": "photo",}',
        "rewrite": "Slice 3 apples; set them aside.\n\n<image 1>\n\nThen bake at 180 C.",
        "request": '```json\n{"request": "How is strudel made?"}\n```',
    }
    steps = Steps(DataOptions(), Scripted(**good))
    _, turns = steps.make_dialogue(sample)
    assert (
        turns[0].parts == ("How is strudel made?",)
        and "Slice 3 apples" in turns[1].text()
        and turns[1].pictures()[0].caption == "Apples in slices."
    )
    assert steps.fallbacks == {"place": 1}
    for broken in ("Slice 4 apples.\n\n<image 1>\n\nBake at 180 C.", "Slice 3 apples. Bake at 180 C.", "<image 1> <image 1> 3 180", ""):
        steps = Steps(DataOptions(), Scripted(**(good | {"rewrite": broken})))
        _, turns = steps.make_dialogue(sample)
        assert "Cut 3 apples" in turns[1].text() and steps.fallbacks["rewrite"] == 1 and len(turns[1].pictures()) == 1


def test_missing_pictures_are_counted_by_their_folder(tmp_path: Path):
    from ui.tabs.data import describe_missing_files

    words = "<p>Mix flour, water, salt and yeast in a big bowl until no dry flour is left, and let the dough rest.</p>" * 4
    for number in range(3):
        shown = f'<img src="pix/{number}.jpg"><img src="https://example.org/x.jpg">'
        (tmp_path / f"{number}.html").write_text(f"<html><body><article><h1>Bread {number}</h1>{words}{shown}</article></body></html>")
    state = State(tmp_path / "set")
    for place in list_pages(tmp_path):
        state.put_page(make_row(place, read_page(place, tmp_path), None, "useless pictures", "x"))
    assert "3 picture files were not found (pix/...)" in describe_missing_files(state)


def test_what_a_worker_gives_back_carries_no_pictures(site: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    work = Work(site, tmp_path, DataOptions())
    prepared = [prepare_page(place, work) for place in list_pages(site)]
    assert all(picture.data is None for each in prepared if each.sample for picture in each.sample.pictures())
    assert replace(prepared[0], sample=None).step == prepared[0].step


def test_topics_and_what_models_make_of_them(tmp_path: Path):
    from duogen.data_engine.synthesise import Makers, list_topics, synthesise
    from tests.unit.test_benchmarks import WELL, Painter, Says

    every = list_topics()
    assert len({domain for domain, _ in every}) == 8 and len(every) == len(set(every)) >= 80
    writer = Says(json.dumps({"requests": ["How do I fold a crane?", "How do I bake a dark bread?", "short"]}))
    good, weak = json.dumps({name: 4 for name in WELL}), json.dumps(WELL)
    judge = Says(good, weak)
    state = synthesise(Makers(writer, Painter(), judge), tmp_path, 2, log=lambda words: None)
    assert [row.reason for row in state.rows()] == ["", "judged too weak: i_co 2, i_q 0"]
    (line,) = (tmp_path / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    kept = json.loads(line)
    assert kept["turns"][0]["parts"][0]["text"] == "How do I fold a crane?"
    assert (tmp_path / kept["turns"][1]["parts"][1]["file"]).exists()
    asked = len(writer.asked)
    synthesise(Makers(writer, teacher := Painter(), judge), tmp_path, 2, log=lambda words: None)
    assert len(writer.asked) == asked and teacher.asked == [], "a run that goes on repeats nothing"
