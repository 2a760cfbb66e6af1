"""Tools of the Studio beside the painter: mark a part by a tap or by its name; crop, turn and enlarge a picture."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
from PIL import Image as PILImage

from duogen.hub.model_files import PICKLE, find_model_files
from duogen.library.picture_file import is_signed
from duogen.library.pictures import Entry
from duogen.models.transformer_files import SAFETENSORS
from duogen.paths import data_home
from duogen.picture_input import open_picture
from duogen.provenance import Origin
from duogen.text_decoding import clean_message
from duogen.upscale import LANCZOS_SCALE, enlarge, is_installed, open_upscaler
from ui.parts.adapters import keep_weights
from ui.parts.i18n import translate
from ui.parts.picture_change import MAX_SIDE, PLACES, box_mask, brush_mask, find_region, paint_layer
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, status_line, translate_html

CROPPED, TURNED, ENLARGED = "Cropped", "Turned", "Enlarged"
TOOLS = (CROPPED, TURNED, ENLARGED)  # the words of versions that these tools made
LANCZOS, LANCZOS_TITLE = "lanczos", "Lanczos, twice as large"
LARGEST_UPSCALER = 2 << 30  # bytes
TOLERANCE = 24
UPSCALER_TYPES = [SAFETENSORS, PICKLE]
ShowMarks = Callable[[Entry, PILImage.Image], Iterator[Updates]]
MARKED = "Marked. Paint more or erase, then say what belongs there."


class RegionPicker:
    """Marks a part of the picture: what is tapped, or what the MLLM finds under a name."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        with gr.Column(visible=False, elem_id="studio-pick") as self.view:
            self.picture = gr.Image(
                type="filepath",
                interactive=False,
                show_label=False,
                label="Tap the part to mark",
                buttons=[],
                height=420,
                elem_id="studio-tap",
            )
            with gr.Row(elem_classes="pick"):
                self.words = gr.Textbox(label="Name the part", placeholder="the roof", min_width=160, elem_id="studio-part")
                self.find = gr.Button("Mark it", min_width=90, scale=0, elem_id="studio-find")
            self.tolerance = gr.Slider(
                0, 120, TOLERANCE, step=4, label="Colours that belong together",
                info="For a tap on the picture: how much a colour may differ from the one under the tap.",
            )  # fmt: skip

    def wire(self, current: gr.State, editor: gr.ImageEditor, status: gr.HTML, outputs: list, show: ShowMarks) -> None:
        """`show` shows a picture in the editor with a layer over it."""
        self.show, self.status = show, status
        gr.on([self.find.click, self.words.submit], self.mark_named, [current, editor, self.words], outputs, **QUICK)
        self.picture.select(self.mark_tapped, [current, editor, self.tolerance], outputs, **QUICK)

    def mark_tapped(self, shown: str, drawn: dict | None, tolerance: float, event: gr.SelectData) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            entry = self.shared.gallery.entry(shown)
            picture = open_picture(entry.file)
            across, down = event.index
            point = min(max(0, int(across)), picture.width - 1), min(max(0, int(down)), picture.height - 1)
            yield from self._add_marks(entry, drawn, find_region(picture, point, int(tolerance)))

        yield from catch_refusals(updates(), self.status)

    def mark_named(self, shown: str, drawn: dict | None, words: str) -> Iterator[Updates]:
        """Mark what the MLLM finds in the picture under a name."""
        yield from catch_refusals(self._mark_named(shown, drawn, clean_message(words or "")), self.status)

    def _mark_named(self, shown: str, drawn: dict | None, words: str) -> Iterator[Updates]:
        entry, loading = self.shared.gallery.entry(shown), self.shared.loading
        if not words:
            raise Refusal("Name the part, such as the roof, or tap it.")
        if loading.engine is None:
            raise Refusal(loading.error or loading.words)
        yield {self.status: status_line("Looking for it ...", "busy")}
        picture = open_picture(entry.file)
        with loading.queue.wait_turn(lambda before: None, threading.Event()):
            boxes = loading.engine.find_boxes(picture, words)
        if not boxes:
            yield {self.status: status_line("The language model did not find it; tap it instead.")}
            return
        yield from self._add_marks(entry, drawn, box_mask(picture.size, boxes))

    def _add_marks(self, entry: Entry, drawn: dict | None, mask: PILImage.Image) -> Iterator[Updates]:
        """Show the picture with what was marked before and `mask`."""
        before = brush_mask((drawn or {}).get("layers") or [], mask.size)
        if before:
            mask.paste(255, mask=before)
        yield from self.show(entry, paint_layer(mask))
        yield {self.status: status_line(MARKED)}


class Reshaper:
    """Crops, turns and enlarges a picture; each makes a new version."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        with gr.Accordion("Crop, turn, enlarge", open=False, elem_id="studio-reshape") as self.drawer:
            with gr.Row(elem_classes="buttons"):
                self.crop = gr.Button("Crop to what is marked", size="sm", min_width=150, elem_id="studio-crop")
                self.left = gr.Button("↺ Turn left", size="sm", min_width=100)
                self.right = gr.Button("↻ Turn right", size="sm", min_width=100, elem_id="studio-right")
            with gr.Row(elem_classes="pick"):
                own = (translate(LANCZOS_TITLE), LANCZOS)  # the others are looked for when the drawer is opened
                self.by = gr.Dropdown([own], value=LANCZOS, label="Enlarge by", min_width=160, elem_id="studio-by")
                self.enlarge = gr.Button("Enlarge", min_width=90, scale=0, elem_id="studio-enlarge")
            self.about = gr.HTML(elem_id="studio-upscalers")
            self.bring = gr.UploadButton("Bring an upscaler", file_types=UPSCALER_TYPES, size="sm", elem_id="studio-bring")

    def wire(self, current: gr.State, editor: gr.ImageEditor, status: gr.HTML, outputs: list, show: Callable[[str], Updates]) -> None:
        """`show` shows a version by its id."""
        self.show, self.status = show, status
        self.crop.click(self.crop_marked, [current, editor], outputs, **QUICK)
        self.left.click(self.turn_left, [current], outputs, **QUICK)
        self.right.click(self.turn_right, [current], outputs, **QUICK)
        self.enlarge.click(self.enlarge_picture, [current, self.by], outputs, **QUICK)
        self.bring.upload(self.add_file, [self.bring], [self.by, self.about, status], **QUICK)
        self.drawer.expand(self.list_again, None, [self.by, self.about], **QUICK)

    def list_again(self) -> Updates:
        """The upscalers that are there now."""
        found = list_upscalers()
        return {self.by: gr.update(choices=found), self.about: upscalers_html(found)}

    def crop_marked(self, shown: str, drawn: dict | None) -> Iterator[Updates]:
        """Crop to the box around what is marked."""
        layers = (drawn or {}).get("layers") or []
        yield from catch_refusals(self._add_version(shown, CROPPED, lambda it: crop_to_marks(it, layers)), self.status)

    def turn_left(self, shown: str) -> Iterator[Updates]:
        yield from catch_refusals(self._add_version(shown, TURNED, lambda it: it.transpose(PILImage.Transpose.ROTATE_90)), self.status)

    def turn_right(self, shown: str) -> Iterator[Updates]:
        yield from catch_refusals(self._add_version(shown, TURNED, lambda it: it.transpose(PILImage.Transpose.ROTATE_270)), self.status)

    def enlarge_picture(self, shown: str, by: str) -> Iterator[Updates]:
        yield from catch_refusals(self._enlarge(shown, by), self.status)

    def _enlarge(self, shown: str, by: str) -> Iterator[Updates]:
        loading = self.shared.loading
        if by == LANCZOS:
            yield from self._add_version(shown, ENLARGED, lambda picture: enlarge(check_scale(picture, LANCZOS_SCALE)))
            return
        if by not in (value for _, value in list_upscalers()):
            raise Refusal("This upscaler is no longer here; choose another one.")
        yield {self.status: status_line("Enlarging ...", "busy")}
        with loading.queue.wait_turn(lambda before: None, threading.Event()):
            upscaler = open_upscaler(Path(by), loading.engine.device if loading.engine else "cpu")
            yield from self._add_version(
                shown, ENLARGED, lambda picture: upscaler.upscale(check_scale(picture, upscaler.scale)), painted=True
            )

    def _add_version(
        self, shown: str, words: str, change: Callable[[PILImage.Image], PILImage.Image], painted: bool = False
    ) -> Iterator[Updates]:
        """Keep a changed picture as a version; `painted` says that a model made its pixels."""
        entry = self.shared.gallery.entry(shown)
        about, picture = entry.about, change(open_picture(entry.file))
        made = replace(
            about, words=words, caption=about.caption or about.words, made=time.time(), favourite=False, parent=entry.id,
            root=about.root or entry.id,
        )  # fmt: skip
        if painted:
            made = replace(made, origin=about.origin or Origin.CHANGED, painted=True)
        signed = painted or is_signed(entry.file.read_bytes())  # turning a brought picture is no painting
        yield self.show(self.shared.gallery.add(picture, made, signed=signed).id)

    def add_file(self, brought: str) -> tuple[Any, str, str]:
        """Keep an upscaler that was brought. Returns the list with it, what is said of it, and the status line."""
        try:
            open_upscaler(Path(brought))
            file = keep_weights(Path(brought), upscalers_home(), LARGEST_UPSCALER)
        except ValueError as error:
            return gr.skip(), upscalers_html(list_upscalers()), status_line(str(error).replace(brought, Path(brought).name), "bad")
        found = list_upscalers()
        return gr.update(choices=found, value=str(file)), upscalers_html(found), status_line(f"{file.name} is here now.")


def crop_to_marks(picture: PILImage.Image, layers: list[PILImage.Image]) -> PILImage.Image:
    """The box around what is marked. Raises Refusal: nothing is."""
    mask = brush_mask(layers, picture.size)
    if mask is None:
        raise Refusal("Paint over what should remain, then crop.")
    return picture.crop(mask.getbbox())


def check_scale(picture: PILImage.Image, scale: int) -> PILImage.Image:
    """The picture. Raises Refusal: `scale` times as large it has too many pixels."""
    if max(picture.size) * scale > MAX_SIDE:
        raise Refusal(f"A picture may have at most {MAX_SIDE} pixels a side; this one would have {max(picture.size) * scale}.")
    return picture


def upscalers_home() -> Path:
    """The folder of upscalers that were brought."""
    return data_home() / "upscalers"


def list_upscalers() -> list[tuple[str, str]]:
    """Names and files of the upscalers that can be opened, after Lanczos, which is always there."""
    own = [file for file in sorted(upscalers_home().glob("*")) if file.suffix in UPSCALER_TYPES]
    found = [*own, *(each.path for each in find_model_files("upscaler"))] if is_installed() else []
    return [(translate(LANCZOS_TITLE), LANCZOS), *((file.name, str(file)) for file in found)]


def upscalers_html(found: list[tuple[str, str]]) -> str:
    """Why pictures are enlarged by Lanczos only, and what to do; "" where there is an upscaler."""
    words = "There is no upscaler here, so Lanczos enlarges; bring the weights of one for finer detail."
    if not is_installed():
        words = "Lanczos enlarges; for trained upscalers, install the package spandrel."
    return f"<small>{translate_html(words)}</small>" if len(found) == 1 else ""


def version_caption(entry: Entry, names: dict[str, str]) -> str:
    """The number, origin and words of a version."""
    came = names.get(entry.about.parent)
    origin = f"{names[entry.id]} ← {came}" if came else names[entry.id]
    return f"{origin} {translate(' '.join(entry.about.words.split()))}".strip()


def frame_html(entry: Entry, size: tuple[int, int], place: str) -> str:
    """A small view of the picture on its new canvas, with grips to pull, which `canvas.js` moves."""
    shares = [old / max(new, old) for old, new in zip((entry.width, entry.height), size, strict=True)]
    across, down = PLACES[place]
    left, top = (100 * at * (1 - share) for at, share in zip((across, down), shares, strict=True))
    file = html.escape(quote(str(entry.file), safe="/:"))
    lies = f"left:{left:.2f}%;top:{top:.2f}%;width:{100 * shares[0]:.2f}%"
    picture = f'<img src="gradio_api/file={file}" alt="" draggable="false" style="{lies}">'
    grips = "".join(f'<span class="grip" data-side="{side}"></span>' for side in ("n", "e", "s", "w", "ne", "se", "sw", "nw"))
    known = {"width": entry.width, "height": entry.height, "wide": 100 / shares[0], "high": 100 / shares[1], "across": across, "down": down}
    data = " ".join(f'data-{name}="{value:g}"' for name, value in known.items())
    name, pixels = html.escape(translate("The new canvas")), html.escape(translate(f"{size[0]} × {size[1]} pixels"))
    box = f'<div class="frame" {data} style="aspect-ratio:{size[0]}/{size[1]}" role="img" aria-label="{name}">{picture}{grips}</div>'
    return f"{box}<small>{pixels}</small>"
