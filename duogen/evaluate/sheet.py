"""Contact sheets for people: each painted picture above the drawing of its words, with a caption below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

SIDE = 160  # pixels of a picture on the sheet
GAP = 10
LINES, LETTERS = 4, 27
CAPTION = 12 * LINES + 4
RIGHT, WRONG = (46, 140, 70), (200, 60, 50)


@dataclass(frozen=True)
class Panel:
    """One cell: the painted picture, the drawing of its words (`None` where they cannot be read), a caption.

    Attributes:
        right: sets the colour of the frame: green if true, red if false, no frame for `None` (an upload).
    """

    painted: PILImage.Image
    meant: PILImage.Image | None
    caption: str
    right: bool | None = None


def contact_sheet(rows: Sequence[Sequence[Panel]]) -> PILImage.Image:
    """Draw a sheet with one conversation a row.

    Raises:
        ValueError: there is nothing to show.
    """
    if not any(rows):
        raise ValueError("There is no picture to put on a sheet.")
    columns = max(len(row) for row in rows)
    height = 2 * SIDE + 4 + CAPTION + GAP
    sheet = PILImage.new("RGB", (columns * (SIDE + GAP) + GAP, len(rows) * height + GAP), "white")
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            _paste_panel(sheet, panel, (GAP + column * (SIDE + GAP), GAP + row * height))
    return sheet


def _paste_panel(sheet: PILImage.Image, panel: Panel, at: tuple[int, int]) -> None:
    left, top = at
    context, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    sheet.paste(panel.painted.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS), at)
    if panel.meant is not None:
        sheet.paste(panel.meant.resize((SIDE, SIDE), PILImage.Resampling.LANCZOS), (left, top + SIDE + 4))
    if panel.right is not None:
        context.rectangle((left - 3, top - 3, left + SIDE + 2, top + SIDE + 2), outline=RIGHT if panel.right else WRONG, width=3)
    for number, line in enumerate(wrap(panel.caption, LETTERS)[:LINES]):
        context.text((left, top + 2 * SIDE + 8 + 12 * number), line, "black", font)


def write_sheets(rows: Sequence[Sequence[Panel]], folder: Path, name: str, most: int = 8) -> Iterator[Path]:
    """Write sheets of at most `most` rows to `folder`: NAME-01.png, NAME-02.png ..."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [row for row in rows if row]
    for number, start in enumerate(range(0, len(shown), most), 1):
        file = folder / f"{name}-{number:02}.png"
        contact_sheet(shown[start : start + most]).save(file)
        yield file
