"""Guides that leave the page: HTML, Markdown and PDF."""

from __future__ import annotations

import io
import zipfile

import pypdfium2
import pytest
import typst
from PIL import Image as PILImage

from duogen import __main__ as cli
from duogen.conversation import Conversation, Image, save_conversation
from duogen.export import as_html, as_pdf, as_zip, export, sections

COLOURS = ("red", "green", "blue", "yellow")


def guide(steps: int = 4) -> Conversation:
    parts: list = ["Let's draw a *house*.\n\nStep 1. Draw it red & small.\n"]
    for index, colour in enumerate(COLOURS[:steps]):
        parts.append(Image(PILImage.new("RGB", (64, 64), colour), alt=f"A {colour} one"))
        parts.append(f"Step {index + 2}. Now more of it.\n" if index + 1 < steps else "All done, schön!")
    return Conversation().say("user", "How do I draw <b>a house</b>?").say("assistant", *parts)


def pages(data: bytes) -> list[tuple[str, int]]:
    """Text and number of pictures of every page."""
    found = []
    pdf = pypdfium2.PdfDocument(data)
    for page in pdf:
        images = sum(each.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE for each in page.get_objects())
        found.append((" ".join(page.get_textpage().get_text_range().split()), images))
    pdf.close()
    return found


def test_every_picture_stands_with_the_words_that_led_to_it():
    (section,) = sections(guide())
    lead, *steps, end = section.blocks
    assert lead.words == "Let's draw a *house*." and lead.picture is None
    assert [(step.number, step.picture.alt) for step in steps] == [(n + 1, f"A {colour} one") for n, colour in enumerate(COLOURS)]
    assert end.words == "All done, schön!" and end.number is None


def test_other_ways_to_count_and_words_without_steps():
    picture = PILImage.new("RGB", (8, 8))
    other = Conversation().say("user", "x").say("assistant", "First:\n1) Cut it.\n2. Fry it.", picture, "Some words", picture, picture)
    (section,) = sections(other)
    found = [(block.number, block.words, block.picture is not None) for block in section.blocks]
    assert found == [(None, "First:", False), (1, "Cut it.", False), (2, "Fry it.", True), (None, "Some words", True), (None, "", True)]


def test_html_holds_everything_and_runs_nothing():
    conversation = guide().say("user", "Go on").say("assistant", '<script>alert(1)</script> ![x](http://x.y/z.png) <img src="http://x.y">')
    page = as_html(conversation)
    assert page.count("data:image/png;base64,") == 4 and 'alt="A red one"' in page and "<em>house</em>" in page
    assert "<script" not in page and 'src="http' not in page and "<b>a house</b>" not in page
    assert "break-inside: avoid" in page


def test_markdown_comes_with_its_pictures():
    with zipfile.ZipFile(io.BytesIO(as_zip(guide()))) as packed:
        words = packed.read("guide.md").decode()
        names = [name for name in packed.namelist() if name.endswith(".png")]
        assert len(names) == 4 and all(f"]({name})" in words for name in names)
        assert PILImage.open(io.BytesIO(packed.read(names[2]))).getpixel((0, 0)) == (0, 0, 255)
    assert "**Step 2.** Now more of it." in words


def test_pdf_text_can_be_selected_and_no_step_is_parted_from_its_picture():
    found = pages(as_pdf(guide()))
    assert len(found) == 2 and sum(images for _, images in found) == 4
    assert "How do I draw <b>a house</b>?" in found[0][0] and "schön" in found[-1][0]
    for text, images in found:
        assert text.count("Now more of it.") + text.count("red & small") == images


def test_one_answer_alone():
    conversation = guide().say("user", "And a tree?").say("assistant", "1. A trunk.", PILImage.new("RGB", (8, 8)))
    assert len(sections(conversation)) == 2
    (section,) = sections(conversation, conversation.head)
    assert section.question == "And a tree?"
    with pytest.raises(ValueError, match="no answer"):
        sections(conversation, "x")
    with pytest.raises(ValueError, match="no answer"):
        as_pdf(Conversation().say("user", "hello"))


def test_letters_without_a_font_are_refused(monkeypatch):
    chinese = Conversation().say("user", "画一个房子").say("assistant", "好")
    monkeypatch.setattr(typst, "Fonts", lambda: type("Bare", (), {"families": lambda self: ["Libertinus Serif"]})())
    with pytest.raises(ValueError, match="font with Chinese letters"):
        as_pdf(chinese)
    assert "画一个房子" in as_html(chinese)


def test_the_command_line(tmp_path, capsys):
    save_conversation(guide(), tmp_path / "c")
    assert cli.main(["export", str(tmp_path / "c"), "--to", str(tmp_path / "guide.pdf")]) == 0
    assert len(pages((tmp_path / "guide.pdf").read_bytes())) == 2
    for wrong in (["c", "guide.doc"], ["d", "guide.pdf"], ["c", "no/such/guide.pdf"]):
        assert cli.main(["export", str(tmp_path / wrong[0]), "--to", str(tmp_path / wrong[1])]) == 2
    assert capsys.readouterr().err.count("duogen: ") == 3
    with pytest.raises(ValueError, match="ends|end in"):
        export(guide(), tmp_path / "guide")
