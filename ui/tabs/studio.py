"""The studio: one picture is changed by words, inside a mask, or beyond its edges; every version is kept."""

from __future__ import annotations

import contextlib
import contextvars
import html
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import quote

import gradio as gr

from duogen.conversation import Conversation, Image, open_picture
from duogen.events import Event, ImageStarted, ImageStep, TextDelta
from duogen.library.picture_file import About
from duogen.library.pictures import Entry
from duogen.options import Options
from ui import STATIC
from ui.parts.i18n import choices, say
from ui.parts.picture_change import PLACES, REFERENCE, SOURCE, Outcome, Work, extended, grown, mask_of, request
from ui.parts.shared import QUICK, Refused, Shared, Updates, kind_words, status_line

MOST_CANVAS = 300
OTHERS = 4
BATCH = 4
REDRAW_SECONDS = 0.2
MARK, COMPARE, CHOOSE = "mark", "compare", "choose"
VIEWS = {MARK: "Mark", COMPARE: "Before / after", CHOOSE: "Choose"}
KINDS = {SOURCE: "source: keep its pixels", REFERENCE: "reference: keep its looks"}
PLACE_NAMES = {place: place.capitalize() for place in PLACES}
CANVAS = STATIC / "canvas.js"
EMPTY = "Drop or choose a picture\n\nor send one here from the chat or the library"
READY = "Say what to change. Paint over a part, and only that part changes."


class Studio:
    """The tab for all browsers; what belongs to one of them is in its session, and while something is made, in `stops`."""

    def __init__(self, tab: gr.Tab, shared: Shared) -> None:
        self.shared = shared
        self.stops: dict[str, threading.Event] = {}
        with tab:
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.open = gr.BrowserState("", storage_key="duogen-studio", secret="which picture is open is no secret")
        self.current, self.listed, self.offered = gr.State(""), gr.State([]), gr.State([])
        self.upload = gr.Image(
            type="filepath", sources=["upload", "clipboard"], label="Open a picture", placeholder=EMPTY, height=380, elem_id="studio-upload"
        )
        with gr.Row(visible=False, elem_id="studio") as self.bench:
            with gr.Column(scale=3, min_width=320):
                self._lay_out_view()
            with gr.Column(scale=2, min_width=280):
                self._lay_out_form()

    def _lay_out_view(self) -> None:
        self.view = gr.Radio(choices(VIEWS), value=MARK, show_label=False, container=False, elem_id="studio-view")
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
        self.slider = gr.ImageSlider(
            label="Before and after", type="filepath", interactive=False, visible=False, height=420, elem_id="studio-slider"
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
        self.strip = gr.Gallery(
            label="Versions",
            show_label=False,
            height=112,
            columns=12,
            fit_columns=False,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            elem_id="studio-strip",
        )
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
        with gr.Row(elem_classes="buttons"):
            self.change = gr.Button("Change", variant="primary", min_width=90, elem_id="studio-change")
            self.four = gr.Button("Four versions", min_width=110, elem_id="studio-four")
            self.stop = gr.Button("Stop", variant="stop", min_width=70, visible=False, elem_id="studio-stop")
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
            self.anchor = gr.Dropdown(choices(PLACE_NAMES), value="middle", label="The picture stays at")
        with gr.Accordion("More pictures", open=False, elem_id="studio-others"):
            gr.Markdown("The picture above is picture 1. Bring up to four more, and name them in your words: *picture 2* ...")
            self.others = [self._lay_out_other(number) for number in range(2, OTHERS + 2)]

    def _lay_out_other(self, number: int) -> tuple[gr.Image, gr.Radio]:
        with gr.Row(elem_classes="other"):
            picture = gr.Image(
                type="filepath",
                sources=["upload", "clipboard"],
                label=f"Picture {number}",
                height=130,
                min_width=120,
                elem_id=f"studio-picture-{number}",
            )
            return picture, gr.Radio(choices(KINDS), value=REFERENCE, label=f"Picture {number} is a", min_width=120)

    def _wire(self, tab: gr.Tab) -> None:
        self.outputs = [
            self.open, self.current, self.listed, self.offered, self.upload, self.bench, self.view, self.editor, self.slider, self.choices,
            self.preview, self.strip, self.undo, self.redo, self.status, self.change, self.four, self.stop, self.width, self.height,
            self.canvas,
        ]  # fmt: skip
        size = [self.width, self.height, self.anchor]
        others = [each for pair in self.others for each in pair]
        inputs = {self.current, self.view, self.editor, self.words, *size, *others, *self.shared.drawer.values()}
        tab.select(self.resume, [self.open, self.current], self.outputs, **QUICK)
        self.upload.upload(self.bring, self.upload, self.outputs, **QUICK)
        gr.on([self.change.click, self.words.submit], self.make_one, inputs, self.outputs, **QUICK)
        self.four.click(self.make_four, inputs, self.outputs, **QUICK)
        self.stop.click(self.end, None, None, queue=False, **QUICK)
        self.view.input(self.look_at, [self.view], [self.editor, self.slider, self.choices], **QUICK)
        self.strip.select(self.pick, [self.listed], self.outputs, **QUICK)
        self.choices.select(self.pick, [self.offered], self.outputs, **QUICK)
        self.undo.click(self.back, [self.current], self.outputs, **QUICK)
        self.redo.click(self.forth, [self.current], self.outputs, **QUICK)
        self.close.click(self.put_away, None, self.outputs, **QUICK)
        self.canvas.click(self.pull, None, size, **QUICK)
        gr.on([each.change for each in size], self.frame, [self.current, *size], self.canvas, **QUICK)

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {kind: gr.update(choices=choices(KINDS)) for _, kind in self.others} | {
            self.view: gr.update(choices=choices(VIEWS)),
            self.anchor: gr.update(choices=choices(PLACE_NAMES)),
            self.status: status_line(READY),
        }

    def resume(self, open: str, shown: str) -> Updates:
        """What a browser had open before it was reloaded."""
        if not open or open == shown:
            return {self.status: gr.skip()}
        with contextlib.suppress(ValueError):
            return self.showing(open)
        return {self.open: ""}

    def bring(self, file: str | None) -> Iterator[Updates]:
        def opened() -> Iterator[Updates]:
            if file:
                yield self.showing(self._kept(file)) | {self.upload: gr.Image(value=None, visible=False)}

        yield from kind_words(opened(), self.status)

    def _kept(self, file: str) -> str:
        """The id of a picture that a person brought."""
        return self.shared.gallery.bring(Path(file))[0].id

    def put_away(self) -> Updates:
        return {self.open: "", self.current: "", self.bench: gr.Row(visible=False), self.upload: gr.Image(value=None, visible=True)}

    def showing(self, id: str, view: str = MARK) -> Updates:
        """A version and those beside it.

        Raises:
            ValueError: there is no such picture.
        """
        gallery = self.shared.gallery
        entry, family = gallery.entry(id), gallery.versions(id)
        names = {each.id: str(number) for number, each in enumerate(family, 1)}
        pictures = [(str(gallery.thumbnail(each)), caption(each, names)) for each in family]
        before = str(next((each.file for each in family if each.id == entry.about.parent), entry.file))
        return {
            self.open: id,
            self.current: id,
            self.listed: list(names),
            self.bench: gr.Row(visible=True),
            self.upload: gr.Image(visible=False),
            self.strip: gr.Gallery(value=pictures, selected_index=list(names).index(id)),
            self.editor: gr.ImageEditor(value={"background": str(entry.file), "layers": [], "composite": None}, visible=view == MARK),
            self.slider: gr.ImageSlider(value=(before, str(entry.file)), visible=view == COMPARE),
            self.choices: gr.Gallery(visible=view == CHOOSE),
            self.view: view,
            self.undo: gr.Button(interactive=entry.about.parent in names),
            self.redo: gr.Button(interactive=any(each.about.parent == id for each in family)),
            self.width: 100,
            self.height: 100,
            self.canvas: frame(entry, (entry.width, entry.height), "middle"),
            self.status: status_line(READY),
        }

    def look_at(self, view: str) -> Updates:
        return {
            self.editor: gr.ImageEditor(visible=view == MARK),
            self.slider: gr.ImageSlider(visible=view == COMPARE),
            self.choices: gr.Gallery(visible=view == CHOOSE),
        }

    def pick(self, ids: list[str], event: gr.SelectData) -> Iterator[Updates]:
        yield from kind_words((self.showing(id) for id in ids[event.index : event.index + 1]), self.status)

    def back(self, shown: str) -> Iterator[Updates]:
        """To the version that this one was made from."""
        yield from kind_words((self.showing(self.shared.gallery.entry(id).about.parent, COMPARE) for id in [shown]), self.status)

    def forth(self, shown: str) -> Iterator[Updates]:
        """To the newest version that was made from this one."""
        made = [each.id for each in self.shared.gallery.versions(shown) if each.about.parent == shown]
        yield from kind_words((self.showing(id, COMPARE) for id in made[-1:]), self.status)

    def frame(self, shown: str, width: float, height: float, anchor: str) -> str:
        try:
            entry = self.shared.gallery.entry(shown)
            return frame(entry, grown((entry.width, entry.height), width, height), anchor)
        except ValueError:
            return ""

    def pull(self, event: gr.EventData) -> Updates:
        """An edge or corner of the canvas was pulled: the sliders follow."""
        given = event._data
        place = next((name for name, at in PLACES.items() if at == (given["across"], given["down"])), "middle")
        return {self.width: given["wide"], self.height: given["high"], self.anchor: place}

    def make_one(self, values: dict, session: gr.Request) -> Iterator[Updates]:
        yield from kind_words(self._make(values, session.session_hash, 1), self.status)

    def make_four(self, values: dict, session: gr.Request) -> Iterator[Updates]:
        yield from kind_words(self._make(values, session.session_hash, BATCH), self.status)

    def end(self, session: gr.Request) -> None:
        if stop := self.stops.get(session.session_hash):
            stop.set()

    def _make(self, values: dict, session: str, count: int) -> Iterator[Updates]:
        """Paint `count` versions. It goes on where a browser that leaves cannot end it: what is finished is kept."""
        if session in self.stops:
            raise Refused("The picture is still being painted; wait for it, or press Stop first.")
        work, stop = self._work(values), threading.Event()
        self.stops[session] = stop
        updates: SimpleQueue[Updates | None] = SimpleQueue()

        def paint() -> None:
            try:
                with self.shared.loading.line.place(lambda before: updates.put(waiting(before)), stop) as mine:
                    for update in self._painted(work, count if mine else 0, stop):
                        updates.put(update)
            except Exception as error:  # whatever it is, the page must say so instead of waiting for ever
                traceback.print_exc()
                updates.put(self._busy(False) | {self.status: status_line(f"Painting failed ({type(error).__name__}: {error}).", "bad")})
            finally:
                del self.stops[session]
                updates.put(None)

        def waiting(before: int) -> Updates:
            return {self.status: status_line(f"Waiting; {before} before this ...", "busy")}

        # With its context: that knows the language of the browser.
        threading.Thread(target=contextvars.copy_context().run, args=(paint,), name="studio", daemon=True).start()
        yield self._busy(True) | {self.status: status_line("Beginning ...", "busy")}
        while (update := updates.get()) is not None:
            yield update

    def _painted(self, work: Work, count: int, stop: threading.Event) -> Iterator[Updates]:
        """As many versions with as many seeds, each shown when it comes."""
        made, outcome = [], Outcome()
        for number in range(count):
            options = replace(work.options, seed=work.options.seed + number)
            outcome = Outcome()
            yield from self._follow(replace(work, options=options), outcome, stop)
            if outcome.image:
                made.append(self._keep(work, outcome.image, options))
                yield self._offered(made) if count > 1 else {self.preview: gr.HTML(visible=False)}
            if stop.is_set() or outcome.failure:
                break
        yield self._made(work, made, outcome, stop.is_set(), count)

    def _work(self, values: dict) -> Work:
        """Raises: ValueError: what is asked for cannot be done; one sentence."""
        if self.shared.loading.error:
            raise Refused(self.shared.loading.error)
        entry = self.shared.gallery.entry(values[self.current])
        picture = open_picture(entry.file)
        mask = mask_of((values[self.editor] or {}).get("layers") or [], picture.size)
        size = grown(picture.size, values[self.width], values[self.height])
        words = (values[self.words] or "").strip()
        if not words and size == picture.size:
            raise Refused("Say what should change." if mask is None else "Say what belongs where you painted.")
        words = words or "Continue the picture beyond its old edges."
        picture, mask = extended(picture, mask, size, values[self.anchor])
        others = [(values[file], values[kind]) for file, kind in self.others if values[file]]
        brought = [Image(open_picture(self.shared.gallery.entry(self._kept(file)).file)) for file, _ in others]
        options = self.shared.options(values)
        asked = Conversation().say("user", Image(picture, mask=mask), *brought, request(words, [kind for _, kind in others]))
        return Work(entry, words, asked, replace(options, image=replace(options.image, max_images=1)))

    def _follow(self, work: Work, outcome: Outcome, stop: threading.Event) -> Iterator[Updates]:
        """Take one answer up to its first picture, which is all that is wanted."""
        while not self.shared.loading.finished.wait(REDRAW_SECONDS):
            yield {self.status: status_line(self.shared.loading.words, "busy")}
            if stop.is_set():
                return
        if self.shared.loading.engine is None:
            outcome.failure = self.shared.loading.error
            return
        drawn = 0.0
        with contextlib.closing(self.shared.loading.engine.answer(work.asked, work.options, stop)) as events:
            for event in events:
                outcome.take(event)
                if outcome.image or outcome.failure:
                    return
                if not isinstance(event, TextDelta) or time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._progress(event, outcome)

    def _progress(self, event: Event, outcome: Outcome) -> Updates:
        match event:
            case TextDelta():
                return {self.status: status_line(outcome.words.strip() or "Thinking ...", "busy")}
            case ImageStarted(_, _, steps):
                return {self.status: status_line(f"Painting, step 0 of {steps} ...", "busy", share=0.0)}
            case ImageStep(_, step, steps, preview):
                left = f"{outcome.seconds_left(step, steps):.0f} s left"
                shown = {self.status: status_line(f"Painting, step {step} of {steps}, {left} ...", "busy", share=step / steps)}
                if preview is None:
                    return shown
                file = quote(self.shared.previews.keep(preview), safe="/:")
                name = html.escape(say("The picture in the making"))
                return shown | {self.preview: gr.HTML(f'<img src="gradio_api/file={file}" alt="{name}">', visible=True)}
        return {self.status: gr.skip()}

    def _keep(self, work: Work, image: Image, options: Options) -> str:
        before = work.entry
        about = About(
            work.words,
            seed=options.seed,
            model=self.shared.loading.engine.about["title"],
            options=asdict(options),
            conversation=before.about.conversation,
            turn=before.about.turn,
            parent=before.id,
            root=before.about.root or before.id,
        )
        return self.shared.gallery.add(image.picture, about).id

    def _offered(self, made: list[str]) -> Updates:
        entries = [self.shared.gallery.entry(id) for id in made]
        files = [(str(entry.file), say(f"Seed {entry.about.seed}")) for entry in entries]
        shown = self.look_at(CHOOSE) | {self.choices: gr.Gallery(files, visible=True, selected_index=None)}
        return shown | {self.offered: made, self.view: CHOOSE, self.preview: gr.HTML(visible=False)}

    def _made(self, work: Work, made: list[str], outcome: Outcome, stopped: bool, count: int) -> Updates:
        """The end: the new version, or what hindered it; nothing that was there is lost."""
        over = self._busy(False)
        if made and count == 1:
            over |= self.showing(made[0], COMPARE)
        elif made:
            over |= {key: value for key, value in self.showing(work.entry.id, CHOOSE).items() if key is not self.choices}
        if outcome.failure:
            return over | {self.status: status_line(outcome.failure, "bad")}
        if stopped:
            return over | {self.status: status_line("Stopped.")}
        if made == [work.entry.id]:
            return over | {self.status: status_line("The picture came out as it was; try other words or another seed.")}
        if made:
            return over | {self.status: status_line("Here it is." if count == 1 else "Choose one; all are kept among the versions.")}
        said = outcome.words.strip()
        return over | {
            self.status: status_line(f"No picture came, but words: “{said}”" if said else "No picture came; say it in other words.")
        }

    def _busy(self, busy: bool) -> Updates:
        return {
            self.change: gr.Button(visible=not busy),
            self.four: gr.Button(visible=not busy),
            self.stop: gr.Button(visible=busy),
            self.preview: gr.HTML(visible=False),
        }


def caption(entry: Entry, names: dict[str, str]) -> str:
    """Number, origin and words of a version."""
    came = names.get(entry.about.parent)
    origin = f"{names[entry.id]} ← {came}" if came else names[entry.id]
    words = " ".join(entry.about.words.split())
    return f"{origin} {words[:40]}".strip()


def frame(entry: Entry, size: tuple[int, int], place: str) -> str:
    """How the picture will lie on its new canvas, drawn small, with grips to pull; `canvas.js` moves them."""
    shares = [old / max(new, old) for old, new in zip((entry.width, entry.height), size, strict=True)]
    across, down = PLACES[place]
    left, top = (100 * at * (1 - share) for at, share in zip((across, down), shares, strict=True))
    file = html.escape(quote(str(entry.file), safe="/:"))
    lies = f"left:{left:.2f}%;top:{top:.2f}%;width:{100 * shares[0]:.2f}%"
    picture = f'<img src="gradio_api/file={file}" alt="" draggable="false" style="{lies}">'
    grips = "".join(f'<span class="grip" data-side="{side}"></span>' for side in ("n", "e", "s", "w", "ne", "se", "sw", "nw"))
    known = {"width": entry.width, "height": entry.height, "wide": 100 / shares[0], "high": 100 / shares[1], "across": across, "down": down}
    data = " ".join(f'data-{name}="{value:g}"' for name, value in known.items())
    name, pixels = html.escape(say("The new canvas")), html.escape(say(f"{size[0]} × {size[1]} pixels"))
    box = f'<div class="frame" {data} style="aspect-ratio:{size[0]}/{size[1]}" role="img" aria-label="{name}">{picture}{grips}</div>'
    return f"{box}<small>{pixels}</small>"
