"""The Library tab: searches all pictures by their words, and shows their settings and their conversation."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from gradio.components import Component

from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Entry, PictureQuery
from duogen.provenance import Origin
from duogen.text_decoding import cut_text
from ui.chat.history import address, button
from ui.parts.i18n import translate, translate_choices
from ui.parts.pictures import UPLOAD_TYPES
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, status_line

PER_PAGE = 60
TITLE_LETTERS = 400
SORT_NAMES = {"new": "Newest first", "old": "Oldest first", "large": "Largest first"}
HINT = "Choose a picture to see how it was made."
FREEABLE = "Copies that can be made again and deleted items can be freed."
NO_SETTINGS = "The picture is in the library now. It has no settings: it was not made here, or they were removed."


@dataclass(frozen=True)
class Destinations:
    """Where a picture can be opened; each function returns updates of `outputs`.

    Attributes:
        to_studio: takes the id of a picture.
        to_conversation: takes the ids of a conversation and of a turn in it, and the request; raises ValueError if it is gone.
        to_settings: sets the message and the options to those of a picture.
    """

    outputs: list[Component]
    to_studio: Callable[[str], Updates]
    to_conversation: Callable[[str, str, gr.Request], Updates]
    to_settings: Callable[[PictureInfo], Updates]


class Library:
    """The tab for all browsers. The state of one browser is in its `gr.State`s."""

    def __init__(self, tab: gr.Tab, shared: Shared, ways: Destinations) -> None:
        self.shared, self.destinations = shared, ways
        with tab, gr.Column(elem_id="library"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.page, self.listed, self.chosen, self.deleted, self.other = gr.State(0), gr.State([]), gr.State(""), gr.State(""), gr.State("")
        with gr.Row(elem_id="library-search"):
            self.words = gr.Textbox(
                label="Search",
                show_label=False,
                container=False,
                placeholder="Search by words",
                scale=3,
                min_width=180,
                elem_id="library-words",
            )
            self.sort = gr.Dropdown(
                translate_choices(SORT_NAMES), value="new", label="Sort", show_label=False, container=False, scale=1, min_width=175
            )
            self.starred = gr.Checkbox(label="★ Favourites only", container=False, scale=1, min_width=150, elem_id="library-starred")
        with gr.Row(elem_id="library-line"):
            self.status = gr.HTML(status_line(HINT), elem_id="library-status")
            self.undelete = gr.Button("↶ Undo delete", size="sm", min_width=110, visible=False, elem_id="library-undelete")
        with gr.Row(elem_id="library-two", visible=False) as self.two:
            self.pair = [self._lay_out_comparison(number) for number in (1, 2)]
        with gr.Row(elem_id="library-body"):
            with gr.Column(scale=3, min_width=300):
                self._lay_out_grid()
            with gr.Column(scale=2, min_width=280, elem_id="library-side"):
                with gr.Column(visible=False, elem_id="library-detail") as self.detail:
                    self._lay_out_detail()
                self.drop = gr.File(
                    label="Bring a picture, or drop one to see its settings", file_types=UPLOAD_TYPES, height=140, elem_id="library-drop"
                )
                with gr.Accordion("References", elem_id="library-references"):
                    gr.HTML('<div id="references"></div>')
                with gr.Accordion("Disk space", open=False, elem_id="library-space"):
                    self.space = gr.HTML(status_line(FREEABLE))
                    with gr.Row(elem_classes="buttons"):
                        self.measure = gr.Button("What would be freed?", size="sm", elem_id="library-look")
                        self.free = gr.Button("Free it", size="sm", variant="stop", visible=False, elem_id="library-free")

    def _lay_out_comparison(self, number: int) -> tuple[gr.Image, gr.HTML]:
        with gr.Column(min_width=160):
            picture = gr.Image(
                show_label=False, label=f"Picture {number} of the comparison", interactive=False, buttons=["fullscreen"], height=320
            )
            return picture, gr.HTML()

    def _lay_out_grid(self) -> None:
        self.grid = gr.Gallery(
            label="Pictures",
            show_label=False,
            columns=6,
            fit_columns=False,
            allow_preview=False,
            object_fit="cover",
            buttons=[],
            height="auto",
            elem_id="library-grid",
        )
        with gr.Row(elem_id="library-pages", elem_classes="buttons"):
            self.earlier = gr.Button("‹ Back", size="sm", min_width=70, elem_id="library-back")
            self.where = gr.HTML(elem_id="library-where")
            self.later = gr.Button("Next ›", size="sm", min_width=70, elem_id="library-next")

    def _lay_out_detail(self) -> None:
        self.picture = gr.Image(
            show_label=False,
            label="The chosen picture",
            interactive=False,
            buttons=["download", "fullscreen"],
            height=300,
            elem_id="library-picture",
        )
        self.video = gr.HTML(elem_id="library-video", visible=False)
        with gr.Row(elem_classes="buttons"):
            self.star = gr.Button("☆ Favourite", size="sm", min_width=100, elem_id="library-star")
            self.edit = gr.Button("Edit in studio", size="sm", min_width=110, elem_id="library-edit")
            self.again = gr.Button("Use its settings", size="sm", min_width=120, elem_id="library-again")
            self.open_button = gr.Button("Open conversation", size="sm", min_width=130, elem_id="library-talk")
            self.compare = gr.Button("Compare", size="sm", min_width=90, elem_id="library-compare")
            self.keep = gr.HTML(elem_id="library-keep")
            self.delete = gr.Button("Delete", size="sm", min_width=80, elem_id="library-delete")
        self.settings = gr.HTML(elem_id="library-settings")

    def _wire(self, tab: gr.Tab) -> None:
        wanted: set[Block] = {self.words, self.sort, self.starred}
        inputs: set[Block] = wanted | {self.page, self.listed, self.chosen, self.deleted, self.other}
        compared = [each for pair in self.pair for each in pair]
        outputs = [
            *wanted, self.page, self.listed, self.chosen, self.deleted, self.other, self.status, self.undelete, self.two, *compared,
            self.grid, self.earlier, self.where, self.later, self.detail, self.picture, self.video, self.star, self.open_button,
            self.edit, self.again, self.compare, self.keep, self.settings, self.drop,
        ]  # fmt: skip
        away = [*dict.fromkeys([*self.destinations.outputs, self.status])]
        tab.select(self.refresh, inputs, outputs, **QUICK)
        gr.on([self.words.change, self.sort.input, self.starred.input], self.search, inputs, outputs, trigger_mode="always_last", **QUICK)
        self.earlier.click(self.show_previous, inputs, outputs, **QUICK)
        self.later.click(self.show_next, inputs, outputs, **QUICK)
        self.grid.select(self.choose, inputs, outputs, **QUICK)
        self.star.click(self.toggle_favourite, inputs, outputs, **QUICK)
        self.delete.click(self.remove, inputs, outputs, **QUICK)
        self.undelete.click(self.restore, inputs, outputs, **QUICK)
        self.compare.click(self.start_comparison, inputs, outputs, **QUICK)
        self.drop.upload(self.import_picture, [self.drop], outputs, **QUICK)
        self.edit.click(self.open_in_studio, [self.chosen], away, **QUICK)
        self.conversation_opened = self.open_button.click(self.open_conversation, [self.chosen], away, **QUICK)
        self.again.click(self.apply_settings, [self.chosen], away, **QUICK)
        self.measure.click(self.measure_space, None, [self.space, self.free], **QUICK)
        self.free.click(self.free_space, None, [self.space, self.free], **QUICK)

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself."""
        return {self.sort: gr.update(choices=translate_choices(SORT_NAMES))}

    def _render_page(self, values: dict, page: int) -> Updates:
        """A page of the search result; the last page if there are fewer."""
        wanted = PictureQuery(values[self.words] or "", bool(values[self.starred]), values[self.sort])
        entries, total = self.shared.gallery.find(wanted, page * PER_PAGE, PER_PAGE)
        pages = max(1, math.ceil(total / PER_PAGE))
        if page >= pages:
            return self._render_page(values, pages - 1)
        ids = [entry.id for entry in entries]
        selected = ids.index(values[self.chosen]) if values[self.chosen] in ids else None
        count = f"Page {page + 1} of {pages} · {total:,} {'picture' if total == 1 else 'pictures'}"
        return {
            self.page: page,
            self.listed: ids,
            self.grid: gr.Gallery(
                [(str(self.shared.gallery.thumbnail(entry)), picture_title(entry)) for entry in entries], selected_index=selected
            ),
            self.where: translate(count if total else "Nothing is found." if wanted.words or wanted.favourites else "No pictures yet."),
            self.earlier: gr.Button(interactive=page > 0),
            self.later: gr.Button(interactive=page + 1 < pages),
        }

    def refresh(self, values: dict) -> Updates:
        self.shared.gallery.sync()
        return self._render_page(values, values[self.page])

    def search(self, values: dict) -> Updates:
        return self._render_page(values, 0)

    def show_previous(self, values: dict) -> Updates:
        return self._render_page(values, max(0, values[self.page] - 1))

    def show_next(self, values: dict) -> Updates:
        return self._render_page(values, values[self.page] + 1)

    def choose(self, values: dict, event: gr.SelectData) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            for id in values[self.listed][event.index : event.index + 1]:
                entry = self.shared.gallery.entry(id)
                yield self._render_comparison(values, entry) if values[self.other] else self._render_chosen(entry)

        yield from catch_refusals(updates(), self.status)

    def _render_chosen(self, entry: Entry) -> Updates:
        return {
            self.chosen: entry.id,
            self.detail: gr.Column(visible=True),
            self.picture: gr.Image(None if entry.moves else str(entry.file), visible=not entry.moves),
            self.video: gr.HTML(video_html(entry) if entry.moves else "", visible=entry.moves),
            **{each: gr.Button(visible=not entry.moves) for each in (self.edit, self.again, self.compare)},
            self.star: translate("★ Favourite" if entry.about.favourite else "☆ Favourite"),
            self.open_button: gr.Button(interactive=bool(entry.about.conversation)),
            self.keep: "" if entry.moves else button("reference", "Save as a reference", "library", entry.id, words="Save as a reference"),
            self.settings: settings_html(entry),
            self.two: gr.Row(visible=False),
            self.other: "",
            self.status: status_line(picture_title(entry)),
        }

    def toggle_favourite(self, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            entry = self.shared.gallery.entry(values[self.chosen])
            yield self._render_chosen(self.shared.gallery.set_favourite(entry.id, not entry.about.favourite)) | self._render_page(
                values, values[self.page]
            )

        yield from catch_refusals(updates(), self.status)

    def remove(self, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            self.shared.gallery.delete(values[self.chosen])
            gone = {
                self.chosen: "",
                self.deleted: values[self.chosen],
                self.detail: gr.Column(visible=False),
                self.two: gr.Row(visible=False),
            }
            said = {
                self.status: status_line("Deleted; it can be had back for a month."),
                self.undelete: gr.Button(visible=True),
                self.other: "",
            }
            yield gone | said | self._render_page(values, values[self.page])

        yield from catch_refusals(updates(), self.status)

    def restore(self, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            entry = self.shared.gallery.restore(values[self.deleted])
            over = {self.deleted: "", self.undelete: gr.Button(visible=False)}
            yield over | self._render_chosen(entry) | self._render_page(values | {self.chosen: entry.id}, values[self.page])

        yield from catch_refusals(updates(), self.status)

    def start_comparison(self, values: dict) -> Updates:
        return {self.other: values[self.chosen], self.status: status_line("Choose the picture to compare it with.")}

    def _render_comparison(self, values: dict, entry: Entry) -> Updates:
        """Two pictures side by side with their settings; differences are in bold."""
        if entry.moves:
            raise Refusal("An animation cannot be compared; choose a picture.")
        both = [self.shared.gallery.entry(values[self.other]), entry]
        known = [picture_facts(each) for each in both]
        shown = {
            self.two: gr.Row(visible=True),
            self.other: "",
            self.status: status_line("Differences are in bold; choose a picture to go on."),
        }
        for at, (picture, words) in enumerate(self.pair):
            differing = {name for name in known[at] if known[at][name] != known[1 - at].get(name)}
            shown |= {picture: str(both[at].file), words: facts_html(known[at], differing)}
        return shown

    def import_picture(self, file: str | None) -> Iterator[Updates]:
        """Add a dropped picture to the library, and show its settings."""

        def updates() -> Iterator[Updates]:
            if file:
                entry, known = self.shared.gallery.import_file(Path(file))
                everything = {self.words: "", self.starred: False, self.sort: "new", self.chosen: entry.id}
                news = {} if known else {self.status: status_line(NO_SETTINGS)}
                yield self._render_chosen(entry) | news | self._render_page(everything, 0) | everything | {self.drop: None}

        yield from catch_refusals(updates(), self.status)

    def open_in_studio(self, id: str) -> Iterator[Updates]:
        yield from catch_refusals((self.destinations.to_studio(id) for id in [id]), self.status)

    def open_conversation(self, id: str, request: gr.Request) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            about = self.shared.gallery.entry(id).about
            yield self.destinations.to_conversation(about.conversation, about.turn, request)

        yield from catch_refusals(updates(), self.status)

    def apply_settings(self, id: str) -> Iterator[Updates]:
        yield from catch_refusals((self.destinations.to_settings(self.shared.gallery.entry(id).about) for id in [id]), self.status)

    def measure_space(self) -> Updates:
        room = self.shared.disk_space.freeable()
        words = (
            f"{room.copies:,} small and shown copies, {size_words(room.copy_bytes)}, are made again when they are needed. "
            f"Gone for good are then: {room.pictures:,} deleted pictures, {size_words(room.picture_bytes)}, "
            f"and {room.conversations:,} deleted conversations, {size_words(room.conversation_bytes)}."
        )
        return {self.space: status_line(words), self.free: gr.Button(visible=True)}

    def free_space(self) -> Updates:
        room = self.shared.disk_space.freeable()
        self.shared.disk_space.delete_freeable()
        return {self.space: status_line(f"{size_words(room.bytes)} freed."), self.free: gr.Button(visible=False)}


def video_html(entry: Entry) -> str:
    """An animation, to be played and saved."""
    file, save = address(entry.file), html.escape(translate("Save as video"))
    shown = f'<video src="{file}" title="{html.escape(picture_title(entry))}" controls loop muted playsinline preload="metadata"></video>'
    return f'{shown}<a class="act worded" href="{file}" download="duogen.mp4">{save}</a>'


def size_words(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def picture_title(entry: Entry) -> str:
    """The words under a picture in the grid, also for screen readers."""
    words = " ".join((entry.about.caption or entry.about.words).split())
    moving = "▶ " if entry.moves else ""
    return ("★ " if entry.about.favourite else "") + moving + (cut_text(words, TITLE_LETTERS) or translate("Brought in"))


ORIGINS: dict[str, str] = {
    Origin.PAINTED: "Painted by a model (marked in the file)",
    Origin.CHANGED: "A brought picture, changed by a model (marked in the file)",
}


def picture_facts(entry: Entry) -> dict[str, str]:
    """The settings of a picture as names and words."""
    about = entry.about
    known: dict[str, Any] = {
        "Words": about.words,
        "Caption": about.caption,
        "Made" if about.painted else "Brought": time.strftime("%Y-%m-%d %H:%M", time.localtime(about.made)),
        "Size": f"{entry.width} × {entry.height}, {size_words(entry.bytes)}",
        "Model": about.model,
        "Seed": about.seed,
        "Origin": translate(ORIGINS[about.origin]) if about.origin else "",
    }
    known |= {name.replace("_", " ").capitalize(): value for name, value in flatten_options(about.options) if name != "seed"}
    return {name: str(value) for name, value in known.items() if value not in (None, "")}


def flatten_options(options: dict) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from flatten_options(value)
        else:
            yield str(name), value


def settings_html(entry: Entry) -> str:
    return facts_html(picture_facts(entry), set())


def facts_html(known: dict[str, str], differing: set[str]) -> str:
    rows = (
        f'<dt>{html.escape(translate(name))}</dt><dd class="{"differs" if name in differing else ""}">{html.escape(value)}</dd>'
        for name, value in known.items()
    )
    return f'<dl class="facts">{"".join(rows)}</dl>'
