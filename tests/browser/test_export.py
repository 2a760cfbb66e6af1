"""Guides that leave the page: HTML, Markdown and PDF."""

from __future__ import annotations

import ctypes
import io
import zipfile
from pathlib import Path

import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from duogen.cli import main as cli
from duogen.conversation import Conversation, Image, save_conversation
from duogen.library.export import as_html, as_pdf, as_zip, export
from duogen.library.guide import guide_title, rest_of_question, sections
from duogen.library.markdown import markdown_lines
from tests.support.browser import browser_only

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


PICTURE = PILImage.new("RGB", (8, 8))


def test_words_without_steps_and_pictures_without_words():
    other = Conversation().say("user", "x").say("assistant", "First:\n1) Cut it.\n2. Fry it.", PICTURE, "Some words", PICTURE, PICTURE)
    (section,) = sections(other)
    found = [(block.number, block.words, block.picture is not None) for block in section.blocks]
    assert found == [(None, "First:", False), (1, "Cut it.", False), (2, "Fry it.", True), (None, "Some words", True), (None, "", True)]


@pytest.mark.parametrize(
    ("said", "number", "label", "words"),
    [
        ("Step 3. Cut.", 3, "Step 3", "Cut."),
        ("**Step 3:** Cut.", 3, "Step 3", "Cut."),
        ("**Step 3**: Cut.", 3, "Step 3", "Cut."),
        ("**Step 3: The cut**\nCut.", 3, "Step 3", "**The cut**\n\nCut."),
        ("### Step 3: The cut\n\nCut.", 3, "Step 3", "**The cut**\n\nCut."),
        ("## 3. The cut\nDo:\n1. Cut.\n2. Stop.", 3, "3", "**The cut**\nDo:\n1. Cut.\n2. Stop."),
        ("Step 3\n\n1. Cut.\n2. Stop.", 3, "Step 3", "1. Cut.\n2. Stop."),
        ("Schritt 3: Schneide.", 3, "Schritt 3", "Schneide."),
        ("第三步，剪开。", 3, "第三步", "剪开。"),
        ("步骤3：剪开。", 3, "步骤3", "剪开。"),
        ("3.5 cups of flour", None, "", "3.5 cups of flour"),
        ("Step 3 is the last one", None, "", "Step 3 is the last one"),
    ],
)
def test_ways_to_count(said, number, label, words):
    (section,) = sections(Conversation().say("user", "x").say("assistant", said, PICTURE))
    (block,) = section.blocks
    assert (block.number, block.label, block.words, block.picture is not None) == (number, label, words, True)


def test_markdown_is_laid_out():
    lines = markdown_lines("# Top\n\nSome **bold `x`** words\n\n3. three\n4. four\n   - below\n\n```\na < b\n```")
    assert [(line["kind"], line["number"], line["depth"]) for line in lines] == [
        ("heading", None, 0),
        ("text", None, 0),
        ("item", 3, 1),
        ("item", 4, 1),
        ("item", None, 2),
        ("code", None, 0),
    ]
    assert [run["text"] for run in lines[1]["runs"] if run["bold"]] == ["bold ", "x"] and lines[1]["runs"][2]["code"]


def test_html_holds_everything_and_runs_nothing():
    conversation = guide().say("user", "Go on").say("assistant", '<script>alert(1)</script> ![x](http://x.y/z.png) <img src="http://x.y">')
    page = as_html(conversation)
    assert page.count("data:image/png;base64,") == 4 and 'alt="A red one"' in page and "<em>house</em>" in page
    assert page.count("<script") == 1 and "alert(1)</script" not in page and 'src="http' not in page and "<b>a house</b>" not in page
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


def test_photographs_stay_small():
    photograph = PILImage.effect_noise((300, 300), 60).convert("RGB")
    conversation = Conversation().say("user", "x").say("assistant", "Step 1. Look.", photograph, "Step 2. Draw.", PICTURE)
    page, pdf = as_html(conversation), as_pdf(conversation)
    assert "data:image/jpeg;base64," in page and "data:image/png;base64," in page
    with zipfile.ZipFile(io.BytesIO(as_zip(conversation))) as packed:  # the originals
        png = packed.read("pictures/01.png")
        assert PILImage.open(io.BytesIO(png)).tobytes() == photograph.tobytes()
    assert len(pdf) < len(png) + 30_000 and pages(pdf)[0][1] == 2


def test_one_answer_alone():
    conversation = guide().say("user", "And a tree?").say("assistant", "1. A trunk.", PILImage.new("RGB", (8, 8)))
    assert len(sections(conversation)) == 2
    (section,) = sections(conversation, conversation.head)
    assert section.question == "And a tree?"
    with pytest.raises(ValueError, match="no answer"):
        sections(conversation, "x")
    with pytest.raises(ValueError, match="no answer"):
        as_pdf(Conversation().say("user", "hello"))


def test_a_long_question_stands_whole_below_its_title():
    question = "How do I fold a boat, " * 10 + "please?"
    conversation = Conversation().say("user", question).say("assistant", "So.")
    with zipfile.ZipFile(io.BytesIO(as_zip(conversation))) as packed:
        assert question in packed.read("guide.md").decode()
    assert question in as_html(conversation) and "please?" in pages(as_pdf(conversation))[0][0]


def test_a_picture_of_any_shape_fits_its_page():
    shapes = [(20, 900), (900, 20), (300, 400)]
    parts = [part for n, size in enumerate(shapes) for part in (f"Step {n + 1}. Draw.", PILImage.new("RGB", size, "red"))]
    pdf = pypdfium2.PdfDocument(as_pdf(Conversation().say("user", "x").say("assistant", *parts)))
    boxes = [each.get_bounds() for page in pdf for each in page.get_objects() if each.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE]
    width, height = pdf[0].get_size()
    assert len(boxes) == 3 and all(0 < left < right < width and 0 < low < high < height for left, low, right, high in boxes)
    for (wide, tall), (left, low, right, high) in zip(shapes, boxes, strict=True):
        assert (right - left) / (high - low) == pytest.approx(wide / tall, rel=0.02)
    pdf.close()


def test_every_letter_of_a_pdf_is_drawn():
    said = "好的！🎉 Schön – „süß“ 👍🏽 ok"
    ((text, _),) = pages(as_pdf(Conversation().say("user", "怎样画“红色”的房子？").say("assistant", said, PICTURE)))
    for words in ("怎样画“红色”的房子？", "好的！", "Schön – „süß“", "ok"):
        assert words in text
    pdf = pypdfium2.PdfDocument(as_pdf(Conversation().say("user", "x").say("assistant", "画画")))
    assert pdf.get_metadata_value("Title") == "x"
    pdf.close()


def test_pictures_and_emoji_alone_are_a_question():
    conversation = Conversation().say("user", "🏠").say("assistant", "``", PICTURE).say("user", PICTURE).say("assistant", "a\x07b", PICTURE)
    ((text, images),) = pages(as_pdf(conversation))
    assert images == 3 and "ab" in text
    assert "<h2>" not in as_html(conversation) and as_zip(conversation)


def text_of(data: bytes) -> str:
    return " ".join(text for text, _ in pages(data))


def say(words: str, question: str = "x", *pictures: PILImage.Image) -> Conversation:
    return Conversation().say("user", question).say("assistant", words, *pictures)


@pytest.mark.parametrize(
    ("said", "kept", "named"),
    [
        ("Step 1. Cut \U00031000 here.", "Cut □ here.", "CJK UNIFIED IDEOGRAPH-31000"),  # as rare as Chinese letters get
        ("Step 1. Runes \U00011580\U00011581 here", "Runes □□ here", "SIDDHAM LETTER AA"),
        ("Call the cook \U0001f9d1\u200d\U0001f373 now.", "Call the cook now.", "ADULT, COOKING"),
        ("A flag \U0001f3f3\ufe0f\u200d\U0001f308 and \U0001f44d\U0001f3fd twice \U0001f44d.", "A flag", "RAINBOW"),
    ],
)
def test_letters_without_a_font_are_replaced_and_named_once(said: str, kept: str, named: str):
    text = text_of(as_pdf(say(said, "x", PICTURE)))
    assert kept in text and text.lower().count(named.lower()) == 1 and "No font on this machine has" in text
    assert all(letter in as_html(say(said)) for letter in said.split()[-2])


def test_no_note_where_every_letter_has_its_font():
    assert "No font" not in text_of(as_pdf(say("Schön, 好, \u05d0, α, ☐, →, naïve \u200b\ufeffend", "Wie?")))


def test_drafts_are_left_out_unless_they_are_requested(tmp_path):
    drafts = tuple(
        Image(PILImage.new("RGB", (8, 8), colour), 1, alt=f"Step {at}. {colour}\n") for at, colour in enumerate(("red", "blue"), 1)
    )
    conversation = Conversation().say("user", "Draw it.").say("assistant", "All of it.", Image(drafts[1].picture, 1, drafts=drafts))
    save_conversation(conversation, tmp_path / "talk")
    for name, flags in {"plain": [], "drafts": ["--drafts"]}.items():
        assert cli.main(["export", str(tmp_path / "talk"), "--to", str(tmp_path / f"{name}.zip"), *flags]) == 0
    with zipfile.ZipFile(tmp_path / "plain.zip") as plain, zipfile.ZipFile(tmp_path / "drafts.zip") as whole:
        assert len(plain.namelist()) == 2 and "Step" not in plain.read("guide.md").decode()
        words = whole.read("guide.md").decode()
        assert [words.count(part) for part in ("**Step 1.** red", "Step 2", "![")] == [1, 0, 2]
        assert words.index("red") < words.index("pictures/01.png") < words.index("All of it.") < words.index("pictures/02.png")


@pytest.mark.parametrize("words", ["half \ud83d", "\x00\x1b\x85 control", "\ufeffmark \uffff", "# \udc00", "[x](http://\ud800)"])
def test_no_word_stops_an_export(words: str):
    conversation = Conversation().say("user", words).say("assistant", words, Image(PICTURE, alt=words), f"Step 1. {words}")
    for data in (as_pdf(conversation), as_html(conversation).encode(), as_zip(conversation)):
        assert len(data) > 300


GFM = """| Part | Length |
|:-----|-------:|
| Floor | 20 cm |

~~old~~ new

- [ ] saw
- [x] glue

See [the plan](https://example.org/plan) and https://example.org/bare or README.md
"""


def links(data: bytes) -> set[str]:
    """The addresses that can be clicked."""
    pdf = pypdfium2.PdfDocument(data)
    found, raw = set(), pypdfium2.raw
    for page in pdf:
        position, link = ctypes.c_int(0), raw.FPDF_LINK()
        while raw.FPDFLink_Enumerate(page.raw, position, link):
            action = raw.FPDFLink_GetAction(link)
            size = raw.FPDFAction_GetURIPath(pdf.raw, action, None, 0)
            buffer = ctypes.create_string_buffer(size)
            raw.FPDFAction_GetURIPath(pdf.raw, action, buffer, size)
            found.add(buffer.value.decode())
    pdf.close()
    return found


def test_tables_tasks_and_links_are_laid_out():
    page, pdf = as_html(say(GFM)), as_pdf(say(GFM))
    assert "<table>" in page and "<s>old</s>" in page and page.count('type="checkbox"') == 2
    bare = page[page.index('<a href="https://example.org/bare"') :].split(">")[0]
    assert 'class="bare"' in bare and "bare" not in page[page.index('<a href="https://example.org/plan"') :].split(">")[0]
    assert "README.md</a>" not in page
    text = text_of(pdf)
    for words in ("Part Length", "Floor 20 cm", "☐ saw", "☑ glue", "the plan (https://example.org/plan)", "https://example.org/bare"):
        assert words in text
    assert "|" not in text and "~~" not in text and "[" not in text
    assert links(pdf) == {"https://example.org/plan", "https://example.org/bare"}


def test_markdown_of_a_table_and_of_links():
    table, struck, saw, glue, link = markdown_lines(GFM)
    assert table["kind"] == "table" and table["aligns"] == ["left", "right"]
    assert [["".join(run["text"] for run in cell) for cell in row] for row in table["rows"]] == [["Part", "Length"], ["Floor", "20 cm"]]
    assert struck["runs"][0]["strike"] and not struck["runs"][1]["strike"] and (saw["done"], glue["done"]) == (False, True)
    assert [(run["text"], run["link"], run["address"]) for run in link["runs"] if run["link"]] == [
        ("the plan", "https://example.org/plan", True),
        ("https://example.org/bare", "https://example.org/bare", False),
    ]


@pytest.mark.parametrize(
    ("asked", "said", "language", "direction"),
    [
        ("كيف أرسم بيتاً؟", "الخطوة 1. ارسم مربعاً.", "ar", "rtl"),
        ("איך מציירים בית?", "1. ציירו ריבוע.", "he", "rtl"),
        ("Wie male ich ein Haus?", "Schritt 1. Zeichne ein rotes Haus mit einem Dach.", "de", "ltr"),
        ("家の描き方は？", "ステップ1。赤い家を描きます。", "ja", "ltr"),
        ("怎样画房子？", "第一步，画一个房子。", "zh", "ltr"),
        ("How do I write 你好?", "Step 1. Draw the strokes of 你, and then those of 好, from the top.", "en", "ltr"),
        ("Как нарисовать дом?", "Шаг 1. Нарисуйте красный дом.", "ru", "ltr"),
    ],
)
def test_language_and_direction_are_said(asked: str, said: str, language: str, direction: str):
    conversation = say(said, asked, PICTURE)
    page, pdf = as_html(conversation), as_pdf(conversation)
    assert f'<html lang="{language}" dir="{direction}">' in page and f'<section lang="{language}" dir="{direction}">' in page
    assert f"/Lang({language})".encode() in pdf
    (paper,) = pypdfium2.PdfDocument(pdf)
    words, picture = [[each.get_bounds() for each in paper.get_objects() if each.type == kind] for kind in (1, 3)]
    assert (picture[0][0] > 300) == (direction == "ltr"), "the picture stands behind the words"
    lefts, rights = [left for left, *_ in words], [right for _, _, right, _ in words]
    assert max(rights) > 530 if direction == "rtl" else min(lefts) < 60


def bounds(data: bytes) -> list[tuple[float, float, float, float]]:
    pdf = pypdfium2.PdfDocument(data)
    return [each.get_bounds() for page in pdf for each in page.get_objects()]


LONG = {
    "address": "Step 1. See https://example.org/" + "a" * 300 + " now.",
    "code": "Step 1. `" + "x" * 300 + "`",
    "block of code": "Step 1. Look:\n\n```\n" + "\n".join(f"2. line {n}" for n in range(120)) + "\n```",
    "many words": "Step 1. " + "Many words are said about it. " * 200,
    "table": "Step 1. So:\n\n" + "| a long name |" * 9 + "\n" + "|---|" * 9 + "\n" + "| Donaudampfschiff |" * 9,
    "lists": "\n".join("  " * depth + "- " + "W" * 60 for depth in range(12)),
    "bold": "Step 1. **" + "M" * 200 + "**",
}


@pytest.mark.parametrize("said", LONG)
def test_nothing_is_cut_off_by_the_paper(said: str):
    data = as_pdf(say(LONG[said], "W" * 1500, PICTURE))
    width, margin = 595.3, 56.7
    for left, low, right, _ in bounds(data):
        assert left > margin - 2 and right < width - margin + 2 and low > 0
    text = text_of(data)
    assert text.count("line 119") == (said == "block of code") and text.count("Many") == 200 * (said == "many words")


@pytest.mark.parametrize("end", ["", "All done!"])
def test_the_last_step_is_not_alone_on_a_page(end: str):
    parts = [part for n in range(4) for part in (f"Step {n + 1}. Draw it.\n", PILImage.new("RGB", (64, 64)))]
    found = pages(as_pdf(Conversation().say("user", "x").say("assistant", *parts, *[end] * bool(end))))
    assert [images for _, images in found] == [2, 2] and found[-1][0].count("Draw it.") == 2


def test_lines_of_code_are_no_steps():
    (section,) = sections(say("Step 1. Run:\n\n```\nStep 2. no\n```\n\nStep 2. Yes.", "x", PICTURE))
    assert [block.number for block in section.blocks] == [1, 2]


@pytest.mark.parametrize(
    ("question", "title", "rest"),
    [
        ("Draw a boat, please!!!", "Draw a boat, please", ""),
        ("How do I draw a boat??", "How do I draw a boat?", ""),
        ("How do I draw a boat? I have red paint only.", "How do I draw a boat?", "How do I draw a boat? I have red paint only."),
        ("Bake a cake ...", "Bake a cake", ""),
        ("怎样画房子？请一步一步来。", "怎样画房子？请一步一步来", ""),
        ("?!", "?!", ""),
        ("", "A guide", ""),
    ],
)
def test_a_title_is_no_raw_sentence(question: str, title: str, rest: str):
    found = sections(say("So.", question))
    assert (guide_title(found), rest_of_question(found)) == (title, rest)


@given(st.text(st.characters(), max_size=80), st.text("ab|-[]()<>`*_~#>.!1 \n\\:", max_size=80))
@settings(max_examples=25, deadline=None)
def test_any_words_leave_in_every_format(anything: str, marks: str):
    conversation = say(f"Step 1. {anything}\n{marks}", anything)
    assert as_pdf(conversation).startswith(b"%PDF") and "</html>" in as_html(conversation)
    assert b"guide.md" in as_zip(conversation)


@browser_only
def test_html_in_a_browser_prints_well_and_fits_a_phone(browser, tmp_path: Path):
    conversation = guide().say("user", "<script>ran=1</script>").say("assistant", "w" * 300)
    (tmp_path / "guide.html").write_text(as_html(conversation), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.goto((tmp_path / "guide.html").as_uri())
    assert page.evaluate("[document.documentElement.scrollWidth, typeof ran, document.images.length]") == [390, "undefined", 4]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    printed = page.pdf(prefer_css_page_size=True)
    page.close()
    found = pages(printed)
    assert len(found) > 1 and sum(images for _, images in found) == 4
    for text, images in found:
        assert text.count("Now more of it.") + text.count("red & small") == images


def test_the_command_line(tmp_path, capsys):
    save_conversation(guide(), tmp_path / "c")
    assert cli.main(["export", str(tmp_path / "c"), "--to", str(tmp_path / "guide.pdf")]) == 0
    assert len(pages((tmp_path / "guide.pdf").read_bytes())) == 2
    for wrong in (["c", "guide.doc"], ["d", "guide.pdf"], ["c", "no/such/guide.pdf"]):
        assert cli.main(["export", str(tmp_path / wrong[0]), "--to", str(tmp_path / wrong[1])]) == 2
    assert capsys.readouterr().err.count("duogen: ") == 3
    with pytest.raises(ValueError, match="ends|end in"):
        export(guide(), tmp_path / "guide")
