"""Exports of a conversation: one HTML file, Markdown with its pictures as a zip, a PDF like a printed guide, or a flipbook.

The templates are in `assets/export/`: a Jinja template with its style, and a Typst document that reads the same data.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import zipfile
from pathlib import Path

from duogen import paths
from duogen.conversation import Conversation, Image
from duogen.files import write_beside
from duogen.library.flipbook import FLIPBOOKS, FlipbookOptions
from duogen.library.guide import guess_language, guide_title, place_in_steps, rest_of_question, sections, text_direction
from duogen.library.guide_pdf import as_pdf
from duogen.library.guide_pictures import alt_text, data_url, encode_png
from duogen.library.markdown import render_html

ASSETS = paths.ASSETS / "export"
FOLLOW_SCRIPT, FOLLOW_STYLE = ASSETS / "follow.js", ASSETS / "follow.css"  # of the page too


def as_html(conversation: Conversation, answer: str | None = None) -> str:
    """One HTML file with everything in it, and one script, which shows its steps one by one. Raises ValueError as `sections` does."""
    import jinja2

    found = sections(conversation, answer)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"markdown": render_html, "data": data_url, "alt": alt_text}
    templates.filters |= {"language": guess_language, "direction": text_direction, "steps": place_in_steps}
    style, script = FOLLOW_STYLE.read_text(encoding="utf-8"), FOLLOW_SCRIPT.read_text(encoding="utf-8")
    style = (ASSETS / "guide.css").read_text(encoding="utf-8") + style
    return templates.get_template("guide.html").render(
        title=guide_title(found), asked=rest_of_question(found), language=guess_language(*found), sections=found,
        style=style, script=script, hash=hash_script(script.encode()),
    )  # fmt: skip


def hash_script(code: bytes) -> str:
    """A script as a Content-Security-Policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"


def as_zip(conversation: Conversation, answer: str | None = None) -> bytes:
    """`guide.md` and the folder `pictures` beside it. Raises ValueError as `sections` does."""
    found = sections(conversation, answer)
    lines = [f"# {guide_title(found)}", ""]
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as packed:  # PNG does not get smaller

        def save_picture(image: Image, words: str = "") -> str:
            name = f"pictures/{len(packed.namelist()) + 1:02}.png"
            packed.writestr(zipfile.ZipInfo(name), encode_png(image))  # without a date: a clock may stand before 1980
            alt = re.sub(r"[\[\]\\]", "", alt_text(image, words))
            return f"![{alt}]({name})"

        for index, section in enumerate(found):
            question = f"## {' '.join(section.question.split())}" if index else rest_of_question(found)
            lines += [question, ""] if section.question and question else []
            lines += [line for image in section.brought for line in (save_picture(image), "")]
            for block in section.blocks:
                lines += [f"**{block.label}.** {block.words}" if block.number is not None else block.words, ""]
                lines += [save_picture(block.picture, block.words), ""] if block.picture else []
        packed.writestr(zipfile.ZipInfo("guide.md"), "\n".join(lines).rstrip() + "\n")
    return data.getvalue()


WRITERS = {".html": lambda *what: as_html(*what).encode(), ".zip": as_zip, ".pdf": as_pdf}


def export(conversation: Conversation, file: Path, answer: str | None = None, flipbook: FlipbookOptions | None = None) -> None:
    """Write a guide to `file`, in the format of its suffix.

    Args:
        flipbook: how a flipbook plays.

    Raises:
        ValueError: the ending is none of those of `WRITERS` and `FLIPBOOKS`, there is nothing to export, or the file cannot be written.
    """
    kind = file.suffix.lower()
    if kind in FLIPBOOKS:
        data = FLIPBOOKS[kind](conversation, answer, flipbook)
    elif flipbook:
        raise ValueError(f"{file.name} is no flipbook, and only a flipbook has seconds and a crossfade; end it in {', '.join(FLIPBOOKS)}.")
    elif kind in WRITERS:
        data = WRITERS[kind](conversation, answer)
    else:
        raise ValueError(f"{file.name} must end in {', '.join([*WRITERS, *FLIPBOOKS])}; that says what to write.")
    try:
        write_beside(file, data)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}); choose another place.") from error
