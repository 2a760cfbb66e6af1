"""The crop tool of the Fine-tune tab: a browser chooses the part of a picture that is trained; `crops.js` shows it."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from duogen.dataset.crops import parse_crop, write_crop
from duogen.dataset.format import Picture
from duogen.picture_input import open_picture
from ui.chat.history import address
from ui.parts.i18n import translate
from ui.parts.offered_files import OfferedFiles
from ui.parts.pictures import PictureFolder
from ui.parts.shared import Shared, translate_html
from ui.parts.training_view import TilePicture

TILE_PIXELS, SHOWN_PIXELS = 256, 1024
WORDS = {  # what is said when a part was chosen
    "kept": "This part is trained.",
    "whole": "The whole picture is trained.",
    "wrong": "This is no part of the picture; choose it again.",
    "gone": "This picture can no longer be cropped; look at the folder again.",
    "failed": "The crop could not be written; make room on the disk.",
}
SLIDERS = {"wide": "Width", "left": "From the left", "top": "From the top"}


class CropTool:
    """Shows pictures of examples as they are trained, and keeps the parts that browsers choose of them."""

    def __init__(self, shared: Shared, pictures: PictureFolder) -> None:
        self.shared, self.pictures = shared, pictures
        self.offered = OfferedFiles()

    def make_tile(self, picture: Picture) -> TilePicture:
        """A picture of a tile, with a key by which a browser may choose its part."""
        return TilePicture(self._show(picture), self.offered.offer(picture.file), picture.crop is not None)

    def _show(self, picture: Picture) -> str:
        """A small picture as the training sees it: its shape is kept, on a ground of its edge colour."""
        from duogen.painters.masks import fit

        size = self.shared.loading.about.get("image_size")
        shown = fit(picture.open(), tuple(size)) if size else picture.open()
        shown.thumbnail((TILE_PIXELS, TILE_PIXELS))
        return self.pictures.keep(shown)

    def make_functions(self) -> list[Callable[[Any], dict[str, Any]]]:
        """The functions that `crops.js` calls."""

        def find_crop(key: Any) -> dict[str, Any]:
            """The whole picture of a key, its size, its crop, and the shape that the pair trains; `said` where it is gone."""
            file = self.offered.find(str(key))
            try:
                whole = open_picture(file) if file else None
            except ValueError:
                whole = None
            if file is None or whole is None:
                return {"said": "gone"}
            width, height = whole.size
            try:
                crop = Picture(file).with_crop().crop
            except ValueError:
                crop = None  # a new choice replaces what is damaged
            trained = self.shared.loading.about.get("image_size") or (1, 1)
            shown = address(self.pictures.keep(whole, SHOWN_PIXELS))
            return {"picture": shown, "width": width, "height": height, "crop": crop and crop._asdict(), "shape": trained[0] / trained[1]}

        def keep_crop(given: Any) -> dict[str, Any]:
            """Write the crop of a key, given as both, or take it away where it is null; returns what to say, and the tile's picture."""
            key, chosen = given if isinstance(given, list) and len(given) == 2 else ("", None)
            file = self.offered.find(str(key))
            return {"said": "gone"} if file is None else self._keep(file, chosen)

        return [find_crop, keep_crop]

    def _keep(self, file: Path, chosen: Any) -> dict[str, Any]:
        try:
            crop = None if chosen is None else parse_crop(chosen, Picture(file).inspect().size)
            if chosen is not None and crop is None:
                return {"said": "wrong"}
            write_crop(file, crop)
            shown = self._show(replace(Picture(file), crop=crop))
        except OSError:
            return {"said": "failed"}
        except ValueError:  # the picture is gone or damaged by now
            return {"said": "gone"}
        return {"said": "kept" if crop else "whole", "picture": address(shown)}


def dialog_html() -> str:
    """The window in which a part is chosen; `crops.js` opens it."""
    said = "".join(f' data-{kind}="{html.escape(translate(words))}"' for kind, words in WORDS.items())
    shapes = (("1", "Square"), ("trained", "As the pair paints"))
    radios = "".join(f'<label><input type="radio" name="shape" value="{value}"> {translate_html(name)}</label>' for value, name in shapes)
    sliders = "".join(
        f'<label>{translate_html(words)}<input type="range" name="{name}" step="1"><output></output></label>'
        for name, words in SLIDERS.items()
    )
    ends = (("whole", "Whole picture"), ("leave", "Cancel"), ("save", "Save crop"))
    buttons = "".join(f'<button type="button" class="{kind}">{translate_html(name)}</button>' for kind, name in ends)
    stage = '<div class="stage"><img alt="" draggable="false"><div class="part"><span class="grip"></span></div></div>'
    title = f'<h2 id="crop-title">{translate_html("Choose the part that is trained")}</h2>'
    fields = f'<fieldset class="shapes"><legend class="sr">{translate_html("Shape")}</legend>{radios}</fieldset>'
    inside = f'{title}{stage}{fields}{sliders}<div class="ends">{buttons}</div>'
    return f'<dialog class="crop" aria-labelledby="crop-title"{said}>{inside}</dialog>'
