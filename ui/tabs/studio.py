"""The Studio tab: changes one picture by words, inside a mask or beyond its edges, and keeps every version."""

from __future__ import annotations

import contextlib
import contextvars
import html
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.blocks import Block
from PIL import Image as PILImage
from PIL import ImageOps

from duogen.conversation import Conversation, Image
from duogen.events import AnswerBuilder, Event, ImageStarted, ImageStep, Notice, Restarted, TextDelta
from duogen.faults import describe_fault
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Entry
from duogen.options import Options
from duogen.picture_input import open_picture
from duogen.text_decoding import clean_message
from ui import STATIC
from ui.parts.i18n import translate, translate_choices
from ui.parts.picture_change import (
    PLACES,
    REFERENCE,
    SOURCE,
    PictureChange,
    brush_mask,
    change_request,
    extend_canvas,
    lay_on_canvas,
    scale_size,
)
from ui.parts.pictures import PictureBox
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, read_event, session_of, show_warning, status_line
from ui.tabs.studio_example import ExampleForm, ask_by_example
from ui.tabs.studio_tools import TOOLS, RegionPicker, Reshaper, frame_html, version_caption

MOST_CANVAS = 300
OTHERS = 4
BATCH = 4
REDRAW_SECONDS = 0.2
MARK, PICK, COMPARE, CHOOSE = "mark", "pick", "compare", "choose"
VIEWS = {MARK: "Mark", PICK: "Tap", COMPARE: "Before / after", CHOOSE: "Choose"}
KINDS = {SOURCE: "source: keep its pixels", REFERENCE: "reference: keep its looks"}
PLACE_NAMES = {place: place.capitalize() for place in PLACES}
CANVAS = STATIC / "canvas.js"
EMPTY = "Drop or choose a picture\n\nor send one here from the chat or the library"
CHANGED_ALIKE = "Here it is. The words say what was changed; to mend them, go back with Undo, change them and press Change."
KEEP = "Keep what is marked, change the rest"
READY = "Say what to change. Paint over a part, and only that part changes."


class Studio:
    """The tab for all browsers. The state of one browser is in its session, and while a picture is painted, in `stops`."""

    def __init__(self, tab: gr.Tab, shared: Shared) -> None:
        self.shared = shared
        self.stops: dict[str, threading.Event] = {}
        with tab:
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.open = gr.BrowserState("", storage_key="duogen-studio", secret="which picture is open is no secret")
        self.current, self.listed, self.offered = gr.State(""), gr.State([]), gr.State([])
        self.upload = PictureBox(
            type="filepath", sources=["upload", "clipboard"], label="Open a picture", placeholder=EMPTY, height=380, elem_id="studio-upload"
        )
        with gr.Row(visible=False, elem_id="studio") as self.bench:
            with gr.Column(scale=3, min_width=320):
                self._lay_out_view()
            with gr.Column(scale=2, min_width=280):
                self._lay_out_form()

    def _lay_out_view(self) -> None:
        self.view = gr.Radio(translate_choices(VIEWS), value=MARK, show_label=False, container=False, elem_id="studio-view")
        self.editor = gr.ImageEditor(
            type="pil",
            label="Paint over what should change",
            show_label=False,
            sources=[],
            transforms=[],
            layers=False,
            brush=gr.Brush(colors=["rgba(139, 92, 246, 0.55)"], color_mode="fixed"),
            buttons=["fullscreen"],
            height=420,
            elem_id="studio-editor",
        )
        self.picker = RegionPicker(self.shared)
        self.slider = gr.ImageSlider(
            label="Before and after",
            show_label=False,
            type="filepath",
            interactive=False,
            visible=False,
            height=420,
            elem_id="studio-slider",
        )
        self.choices = gr.Gallery(
            label="Choose one",
            show_label=False,
            visible=False,
            columns=2,
            allow_preview=False,
            height=420,
            object_fit="contain",
            buttons=[],
            elem_id="studio-choices",
        )
        self.preview = gr.HTML(visible=False, elem_id="studio-preview")
        self._lay_out_versions()

    def _lay_out_versions(self) -> None:
        self.strip = gr.Gallery(
            label="Versions",
            show_label=False,
            height=176,
            columns=12,
            fit_columns=False,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="studio-strip",
        )
        self.version = gr.HTML(elem_id="studio-version")
        with gr.Row(elem_classes="buttons"):
            self.undo = gr.Button("↶ Undo", size="sm", min_width=80)
            self.redo = gr.Button("↷ Redo", size="sm", min_width=80)
            self.close = gr.Button("Open another", size="sm", min_width=110)

    def _lay_out_form(self) -> None:
        self.status = gr.HTML(status_line(READY), elem_id="studio-status")
        self.words = gr.Textbox(
            label="What should change",
            placeholder="Make the door red. / With a part painted over: a round window",
            lines=3,
            elem_id="studio-words",
        )
        self.keep = gr.Checkbox(label=KEEP, elem_id="studio-keep")
        with gr.Row(elem_classes="buttons"):
            self.change = gr.Button("Change", variant="primary", min_width=90, elem_id="studio-change")
            self.four = gr.Button("Four versions", min_width=110, elem_id="studio-four")
            self.stop = gr.Button("Stop", variant="stop", min_width=70, visible=False, elem_id="studio-stop")
        self.reshaper = Reshaper(self.shared)
        with gr.Accordion("Canvas size", open=False, elem_id="studio-canvas"):
            self.canvas = gr.HTML(elem_id="studio-frame", js_on_load=CANVAS.read_text(encoding="utf-8"))
            self.width = gr.Slider(
                100,
                MOST_CANVAS,
                100,
                step=5,
                label="Width, percent",
                info="Pull an edge or a corner above. What is new is painted; the old pixels stay.",
            )
            self.height = gr.Slider(100, MOST_CANVAS, 100, step=5, label="Height, percent")
            self.anchor = gr.Dropdown(translate_choices(PLACE_NAMES), value="middle", label="The picture stays at")
        with gr.Accordion("More pictures", open=False, elem_id="studio-others"):
            gr.Markdown("The picture above is picture 1. Bring up to four more, and name them in your words: *picture 2* ...")
            self.others = [self._lay_out_other(number) for number in range(2, OTHERS + 2)]
        self.example = ExampleForm(self.shared, self._import_file)

    def _lay_out_other(self, number: int) -> tuple[gr.Image, gr.Radio]:
        with gr.Row(elem_classes="other"):
            picture = PictureBox(
                type="filepath",
                sources=["upload", "clipboard"],
                label=f"Picture {number}",
                height=130,
                min_width=120,
                elem_id=f"studio-picture-{number}",
            )
            return picture, gr.Radio(translate_choices(KINDS), value=REFERENCE, label=f"Picture {number} is a", min_width=120)

    def _wire(self, tab: gr.Tab) -> None:
        self.outputs = [
            self.open, self.current, self.listed, self.offered, self.upload, self.bench, self.view, self.editor, self.slider, self.choices,
            self.preview, self.strip, self.undo, self.redo, self.status, self.change, self.four, self.stop, self.width, self.height,
            self.canvas, self.picker.view, self.picker.picture, self.version, self.words,
        ]  # fmt: skip
        self.views = [self.editor, self.slider, self.choices, self.picker.view]
        size = [self.width, self.height, self.anchor]
        others = [each for pair in self.others for each in pair]
        given = [self.current, self.view, self.editor, self.words, self.keep, *size, *others, *self.example.pictures]
        inputs: set[Block] = {*given, *self.shared.drawer.values()}
        self.example.wire(self.words, self.status)
        tab.select(self.resume, [self.open, self.current], self.outputs, **QUICK)
        self.upload.upload(self.open_file, self.upload, self.outputs, **QUICK)
        gr.on([self.change.click, self.words.submit], self.make_one, inputs, self.outputs, **QUICK)
        self.four.click(self.make_four, inputs, self.outputs, **QUICK)
        self.stop.click(self.stop_painting, None, None, queue=False, **QUICK)
        self.view.input(self.set_view, [self.view], self.views, **QUICK)
        self.picker.wire(self.current, self.editor, self.status, [*self.views, self.view, self.status], self.show_marks)
        self.reshaper.wire(self.current, self.editor, self.status, self.outputs, self.show)
        self.strip.select(self.pick, [self.listed], self.outputs, **QUICK)
        self.choices.select(self.pick, [self.offered], self.outputs, **QUICK)
        self.undo.click(self.show_parent, [self.current], self.outputs, **QUICK)
        self.redo.click(self.show_child, [self.current], self.outputs, **QUICK)
        self.close.click(self.close_picture, None, self.outputs, **QUICK)
        self.canvas.click(self.resize_canvas, None, size, **QUICK)
        gr.on([each.change for each in size], self.render_frame, [self.current, *size], self.canvas, **QUICK)

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself."""
        return {kind: gr.update(choices=translate_choices(KINDS)) for _, kind in self.others} | {
            self.view: gr.update(choices=translate_choices(VIEWS)),
            self.anchor: gr.update(choices=translate_choices(PLACE_NAMES)),
        }

    def resume(self, open: str, shown: str) -> Updates:
        """Show the picture that a browser had open before a reload."""
        if not open or open == shown:
            return {self.status: gr.skip()}
        with contextlib.suppress(ValueError):
            return self.show(open)
        return {self.open: ""}

    def open_file(self, file: str | None) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            if file:
                yield self.show(self._import_file(file)) | {self.upload: gr.Image(value=None, visible=False)}

        yield from catch_refusals(updates(), self.status)

    def _import_file(self, file: str) -> str:
        """Add an uploaded picture to the library; returns its id."""
        return self.shared.gallery.import_file(Path(file))[0].id

    def close_picture(self) -> Updates:
        return {self.open: "", self.current: "", self.bench: gr.Row(visible=False), self.upload: gr.Image(value=None, visible=True)}

    def show(self, id: str, view: str = MARK) -> Updates:
        """Show a version and its siblings.

        Raises:
            ValueError: there is no such picture.
        """
        gallery = self.shared.gallery
        entry, family = gallery.entry(id), gallery.versions(id)
        names = {each.id: str(number) for number, each in enumerate(family, 1)}
        pictures = [(str(gallery.thumbnail(each)), version_caption(each, names)) for each in family]
        about = html.escape(version_caption(entry, names))
        return {
            self.open: id,
            self.current: id,
            self.listed: list(names),
            self.bench: gr.Row(visible=True),
            self.upload: gr.Image(visible=False),
            self.strip: gr.Gallery(value=pictures, selected_index=list(names).index(id)),
            self.version: f"<p>{about}</p>",
            **self.set_view(view),
            self.editor: gr.ImageEditor(value={"background": str(entry.file), "layers": [], "composite": None}, visible=view == MARK),
            self.slider: gr.ImageSlider(value=(self._find_before(entry, family), str(entry.file)), visible=view == COMPARE),
            self.picker.picture: str(entry.file),
            self.view: view,
            self.undo: gr.Button(interactive=entry.about.parent in names),
            self.redo: gr.Button(interactive=any(each.about.parent == id for each in family)),
            self.width: 100,
            self.height: 100,
            self.canvas: frame_html(entry, (entry.width, entry.height), "middle"),
            self.status: status_line(READY),
        }

    def _find_before(self, entry: Entry, family: list[Entry]) -> str:
        """The file of the version that this one was made from; laid where it is in this one, if that grew around it."""
        parent = next((each for each in family if each.id == entry.about.parent), entry)
        if (parent.width, parent.height) != (entry.width, entry.height) and entry.about.words not in TOOLS:
            laid = lay_on_canvas(open_picture(parent.file), open_picture(entry.file))
            if laid is not None:
                return self.shared.previews.keep(laid)
        return str(parent.file)

    def show_marks(self, entry: Entry, layer: PILImage.Image) -> Iterator[Updates]:
        """Show a picture in the editor with a layer over it."""
        value: Any = {"background": str(entry.file), "layers": [layer], "composite": None}
        size = entry.width, entry.height  # the editor lays layers on the middle of a canvas of its own size
        yield self.set_view(MARK) | {self.view: MARK, self.editor: gr.ImageEditor(value=value, canvas_size=size, visible=True)}

    def set_view(self, view: str) -> Updates:
        return {
            self.editor: gr.ImageEditor(visible=view == MARK),
            self.picker.view: gr.Column(visible=view == PICK),
            self.slider: gr.ImageSlider(visible=view == COMPARE),
            self.choices: gr.Gallery(visible=view == CHOOSE),
        }

    def pick(self, ids: list[str], event: gr.SelectData) -> Iterator[Updates]:
        yield from catch_refusals((self.show(id) for id in ids[event.index : event.index + 1]), self.status)

    def show_parent(self, shown: str) -> Iterator[Updates]:
        """Show the version that this one was made from."""
        yield from catch_refusals((self.show(self.shared.gallery.entry(id).about.parent, COMPARE) for id in [shown]), self.status)

    def show_child(self, shown: str) -> Iterator[Updates]:
        """Show the newest version that was made from this one."""
        made = [each.id for each in self.shared.gallery.versions(shown) if each.about.parent == shown]
        yield from catch_refusals((self.show(id, COMPARE) for id in made[-1:]), self.status)

    def render_frame(self, shown: str, width: float, height: float, anchor: str) -> str:
        try:
            entry = self.shared.gallery.entry(shown)
            return frame_html(entry, scale_size((entry.width, entry.height), width, height), anchor)
        except ValueError:
            return ""

    def resize_canvas(self, event: gr.EventData) -> Updates:
        """Set the sliders to the canvas whose edge or corner was pulled."""
        try:
            across, down, wide, high = read_event(event, "across", "down", "wide", "high")
        except Refusal as reason:
            show_warning(reason)
            return {self.anchor: gr.skip()}
        place = next((name for name, at in PLACES.items() if at == (across, down)), "middle")
        return {self.width: wide, self.height: high, self.anchor: place}

    def make_one(self, values: dict, session: gr.Request) -> Iterator[Updates]:
        yield from catch_refusals(self._make(values, session_of(session), 1), self.status)

    def make_four(self, values: dict, session: gr.Request) -> Iterator[Updates]:
        yield from catch_refusals(self._make(values, session_of(session), BATCH), self.status)

    def stop_painting(self, session: gr.Request) -> None:
        if stop := self.stops.get(session_of(session)):
            stop.set()

    def _make(self, values: dict, session: str, count: int) -> Iterator[Updates]:
        """Paint `count` versions in a thread, so that a browser that leaves does not end the work. Finished versions are kept."""
        if session in self.stops:
            raise Refusal("The picture is still being painted; wait for it, or press Stop first.")
        work, stop = self._read_change(values), threading.Event()
        self.stops[session] = stop
        updates: SimpleQueue[Updates | None] = SimpleQueue()

        def paint() -> None:
            try:
                with self.shared.loading.queue.wait_turn(lambda before: updates.put(show_place(before)), stop) as mine:
                    for update in self._paint_versions(work, count if mine else 0, stop):
                        updates.put(update)
            except Exception as error:  # the page must show every error instead of waiting for ever
                updates.put(self._set_busy(False) | {self.status: status_line(f"Painting failed ({describe_fault(error)}).", "bad")})
            finally:
                del self.stops[session]
                updates.put(None)

        def show_place(before: int) -> Updates:
            return {self.status: status_line(f"Waiting; {before} before this ...", "busy")}

        # In this context, which knows the language of the browser.
        threading.Thread(target=contextvars.copy_context().run, args=(paint,), name="studio", daemon=True).start()
        yield self._set_busy(True) | {self.status: status_line("Beginning ...", "busy")}
        while (update := updates.get()) is not None:
            yield update

    def _paint_versions(self, work: PictureChange, count: int, stop: threading.Event) -> Iterator[Updates]:
        """Paint `count` versions with different seeds, and show each when it is done."""
        made, answer = [], AnswerBuilder()
        for number in range(count):
            options = replace(work.options, seed=(work.options.seed or 0) + number)
            answer = AnswerBuilder()
            yield from self._paint_one(replace(work, options=options), answer, stop)
            work = replace(work, words=work.words or answer.text().strip() or next((each.alt for each in answer.images()), ""))
            for image in answer.images():
                made.append(self._save(work, image, options))
                yield self._render_offer(made) if count > 1 else {self.preview: gr.HTML(visible=False)}
            if stop.is_set() or answer.error:
                break
        yield self._render_result(work, made, answer, stop.is_set(), count)

    def _read_change(self, values: dict) -> PictureChange:
        """The change in the form. Raises: ValueError: it cannot be done; one sentence."""
        if self.shared.loading.error:
            raise Refusal(self.shared.loading.error)
        entry = self.shared.gallery.entry(values[self.current])
        picture = open_picture(entry.file)
        mask = brush_mask((values[self.editor] or {}).get("layers") or [], picture.size)
        size = scale_size(picture.size, values[self.width], values[self.height])
        words = clean_message(values[self.words] or "")
        example = [] if words else self.example.read([values[each] for each in self.example.pictures])
        if values[self.keep]:
            if mask is None:
                raise Refusal("Paint over what should stay, or tap it.")
            mask, words = ImageOps.invert(mask), words if example else f"{KEEP}{f': {words}' if words else '.'}"
        if not words and not example and size == picture.size:
            raise Refusal("Say what should change." if mask is None else "Say what belongs where you painted.")
        picture, mask = extend_canvas(picture, mask, size, values[self.anchor])
        words = words or ("" if example else "Continue the picture beyond its old edges.")
        asked = self._word_request(values, Image(picture, mask=mask), words, example)
        options = self.shared.options(values)
        before = picture if mask is None and not options.image.side and options.image.shape is None else None
        options = replace(options, image=replace(options.image, max_images=1))
        return PictureChange(entry, words, asked, options, before, by_example=bool(example))

    def _word_request(self, values: dict, picture: Image, words: str, example: list[Image]) -> Conversation:
        """What the pair is asked: by words and with the other pictures, or by an example."""
        if example:
            return ask_by_example(example, picture)
        others = [(values[file], values[kind]) for file, kind in self.others if values[file]]
        brought = [Image(open_picture(self.shared.gallery.entry(self._import_file(file)).file)) for file, _ in others]
        return Conversation().say("user", picture, *brought, change_request(words, [kind for _, kind in others]))

    def _paint_one(self, work: PictureChange, answer: AnswerBuilder, stop: threading.Event) -> Iterator[Updates]:
        """Follow one answer up to its first picture; the rest is not needed."""
        while not self.shared.loading.finished.wait(REDRAW_SECONDS):
            yield {self.status: status_line(self.shared.loading.words, "busy")}
            if stop.is_set():
                return
        if self.shared.loading.engine is None:
            answer.error = self.shared.loading.error
            return
        drawn = 0.0
        with contextlib.closing(self.shared.loading.engine.answer(work.asked, work.options, stop)) as events:
            for event in events:
                answer.take(event)
                if answer.images() or answer.error:
                    return
                if not isinstance(event, TextDelta) or time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._render_progress(event, answer)

    def _render_progress(self, event: Event, answer: AnswerBuilder) -> Updates:
        match event:
            case TextDelta():
                return {self.status: status_line(answer.text().strip() or "Thinking ...", "busy")}
            case Notice(words) | Restarted(words):
                return {self.status: status_line(words, "busy")}
            case ImageStarted(_, _, steps):
                return {self.status: status_line(f"Painting, step 0 of {steps} ...", "busy", share=0.0)}
            case ImageStep(_, step, steps, preview):
                left = answer.pending.seconds_left() if answer.pending else None
                about = f"Painting, step {step} of {steps}, {left or 0:.0f} s left ..."
                shown = {self.status: status_line(about, "busy", share=step / steps)}
                if preview is None:
                    return shown
                file = quote(self.shared.previews.keep(preview), safe="/:")
                name = html.escape(translate("The picture in the making"))
                return shown | {self.preview: gr.HTML(f'<img src="gradio_api/file={file}" alt="{name}">', visible=True)}
        return {self.status: gr.skip()}

    def _save(self, work: PictureChange, image: Image, options: Options) -> str:
        before, engine, picture = work.entry, self.shared.loading.engine, image.picture
        if work.before and engine:
            picture = engine.keep_unchanged(picture, work.before)
        about = PictureInfo(
            work.words,
            seed=options.seed,
            model=self.shared.loading.about["title"],
            options=asdict(options),
            conversation=before.about.conversation,
            turn=before.about.turn,
            parent=before.id,
            root=before.about.root or before.id,
            origin=image.origin or "",
        )
        return self.shared.gallery.add(picture, about).id

    def _render_offer(self, made: list[str]) -> Updates:
        entries = [self.shared.gallery.entry(id) for id in made]
        files = [(str(entry.file), translate(f"Seed {entry.about.seed}")) for entry in entries]
        shown = self.set_view(CHOOSE) | {self.choices: gr.Gallery(files, visible=True, selected_index=None)}
        return shown | {self.offered: made, self.view: CHOOSE, self.preview: gr.HTML(visible=False)}

    def _render_result(self, work: PictureChange, made: list[str], answer: AnswerBuilder, stopped: bool, count: int) -> Updates:
        """Show the new version, or why there is none. Earlier versions stay."""
        over = self._set_busy(False)
        if made and count == 1:
            over |= self.show(made[0], COMPARE)
        elif made:
            over |= {key: value for key, value in self.show(work.entry.id, CHOOSE).items() if key is not self.choices}
        if answer.error:
            return over | {self.status: status_line(answer.error, "bad")}
        if stopped:
            return over | {self.status: status_line("Stopped.")}
        if made == [work.entry.id]:
            return over | {self.status: status_line("The picture came out as it was; try other words or another seed.")}
        if made and work.by_example:
            return over | {self.words: work.words, self.status: status_line(CHANGED_ALIKE)}
        if made:
            return over | {self.status: status_line("Here it is." if count == 1 else "Choose one; all are kept among the versions.")}
        said = answer.text().strip()
        return over | {
            self.status: status_line(f"No picture came, but words: “{said}”" if said else "No picture came; say it in other words.")
        }

    def _set_busy(self, busy: bool) -> Updates:
        return {
            self.change: gr.Button(visible=not busy),
            self.four: gr.Button(visible=not busy),
            self.stop: gr.Button(visible=busy),
            self.preview: gr.HTML(visible=False),
        }
