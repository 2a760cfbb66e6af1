"""The library: all pictures, found by their words, with their settings and the way back to where they came from."""

from __future__ import annotations

import html
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from duogen.library.picture_file import About
from duogen.library.pictures import Entry, Wanted
from ui.parts.i18n import choices, say
from ui.parts.shared import QUICK, Shared, Updates, kind_words, status_line

PER_PAGE = 60
SORT_NAMES = {"new": "Newest first", "old": "Oldest first", "large": "Largest first"}
HINT = "Choose a picture to see how it was made."
FREEABLE = "What can be made again, and what was deleted, can be freed."
NO_SETTINGS = "The picture is in the library now; it carries no settings, for it was not made here or they were taken out."


@dataclass(frozen=True)
class Ways:
    """Where one can go from a picture; each gives updates of `outputs`.

    Attributes:
        to_studio: given a picture's id.
        to_conversation: given the ids of a conversation and of a turn in it, and who asks; raises ValueError if it is gone.
        to_settings: puts words and options of a picture where one can ask with them again.
    """

    outputs: list[Component]
    to_studio: Callable[[str], Updates]
    to_conversation: Callable[[str, str, gr.Request], Updates]
    to_settings: Callable[[About], Updates]


class Library:
    """The tab for all browsers; what belongs to one of them is in its states."""

    def __init__(self, tab: gr.Tab, shared: Shared, ways: Ways) -> None:
        self.shared, self.ways = shared, ways
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
                choices(SORT_NAMES), value="new", label="Sort", show_label=False, container=False, scale=1, min_width=175
            )
            self.starred = gr.Checkbox(label="★ Favourites only", container=False, scale=1, min_width=150, elem_id="library-starred")
        with gr.Row(elem_id="library-line"):
            self.status = gr.HTML(status_line(HINT), elem_id="library-status")
            self.undelete = gr.Button("↶ Undo delete", size="sm", min_width=110, visible=False, elem_id="library-undelete")
        with gr.Row(elem_id="library-two", visible=False) as self.two:
            self.pair = [self._lay_out_compared(number) for number in (1, 2)]
        with gr.Row(elem_id="library-body"):
            with gr.Column(scale=3, min_width=300):
                self._lay_out_grid()
            with gr.Column(scale=2, min_width=280, elem_id="library-side"):
                with gr.Column(visible=False, elem_id="library-detail") as self.detail:
                    self._lay_out_detail()
                self.drop = gr.File(
                    label="Bring a picture, or drop one to see its settings", file_types=["image"], height=140, elem_id="library-drop"
                )
                with gr.Accordion("Disk space", open=False, elem_id="library-space"):
                    self.room = gr.HTML(status_line(FREEABLE))
                    with gr.Row(elem_classes="buttons"):
                        self.look = gr.Button("What would be freed?", size="sm", elem_id="library-look")
                        self.free = gr.Button("Free it", size="sm", variant="stop", visible=False, elem_id="library-free")

    def _lay_out_compared(self, number: int) -> tuple[gr.Image, gr.HTML]:
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
        with gr.Row(elem_classes="buttons"):
            self.star = gr.Button("☆ Favourite", size="sm", min_width=100, elem_id="library-star")
            self.edit = gr.Button("Edit in studio", size="sm", min_width=110, elem_id="library-edit")
            self.again = gr.Button("Use its settings", size="sm", min_width=120, elem_id="library-again")
            self.talk = gr.Button("Open conversation", size="sm", min_width=130, elem_id="library-talk")
            self.compare = gr.Button("Compare", size="sm", min_width=90, elem_id="library-compare")
            self.delete = gr.Button("Delete", size="sm", min_width=80, elem_id="library-delete")
        self.settings = gr.HTML(elem_id="library-settings")

    def _wire(self, tab: gr.Tab) -> None:
        wanted = {self.words, self.sort, self.starred}
        inputs = wanted | {self.page, self.listed, self.chosen, self.deleted, self.other}
        compared = [each for pair in self.pair for each in pair]
        outputs = [
            *wanted, self.page, self.listed, self.chosen, self.deleted, self.other, self.status, self.undelete, self.two, *compared,
            self.grid, self.earlier, self.where, self.later, self.detail, self.picture, self.star, self.talk, self.settings, self.drop,
        ]  # fmt: skip
        away = [*dict.fromkeys([*self.ways.outputs, self.status])]
        tab.select(self.refresh, inputs, outputs, **QUICK)
        gr.on([self.words.change, self.sort.input, self.starred.input], self.search, inputs, outputs, trigger_mode="always_last", **QUICK)
        self.earlier.click(self.back, inputs, outputs, **QUICK)
        self.later.click(self.forth, inputs, outputs, **QUICK)
        self.grid.select(self.choose, inputs, outputs, **QUICK)
        self.star.click(self.favour, inputs, outputs, **QUICK)
        self.delete.click(self.remove, inputs, outputs, **QUICK)
        self.undelete.click(self.bring_back, inputs, outputs, **QUICK)
        self.compare.click(self.begin_comparing, inputs, outputs, **QUICK)
        self.drop.upload(self.bring, [self.drop], outputs, **QUICK)
        self.edit.click(self.to_studio, [self.chosen], away, **QUICK)
        self.opened = self.talk.click(self.to_conversation, [self.chosen], away, **QUICK)
        self.again.click(self.to_settings, [self.chosen], away, **QUICK)
        self.look.click(self.weigh, None, [self.room, self.free], **QUICK)
        self.free.click(self.clear, None, [self.room, self.free], **QUICK)

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {
            self.sort: gr.update(choices=choices(SORT_NAMES)),
            self.status: status_line(HINT),
            self.room: status_line(FREEABLE),
        }

    def _page(self, values: dict, page: int) -> Updates:
        """A page of what is searched for; the last one where there are fewer."""
        wanted = Wanted(values[self.words] or "", bool(values[self.starred]), values[self.sort])
        entries, total = self.shared.gallery.find(wanted, page * PER_PAGE, PER_PAGE)
        pages = max(1, math.ceil(total / PER_PAGE))
        if page >= pages:
            return self._page(values, pages - 1)
        ids = [entry.id for entry in entries]
        chosen = ids.index(values[self.chosen]) if values[self.chosen] in ids else None
        count = f"Page {page + 1} of {pages} · {total:,} {'picture' if total == 1 else 'pictures'}"
        return {
            self.page: page,
            self.listed: ids,
            self.grid: gr.Gallery([(str(self.shared.gallery.thumbnail(entry)), title(entry)) for entry in entries], selected_index=chosen),
            self.where: say(count if total else "Nothing is found." if wanted.words or wanted.favourites else "No pictures yet."),
            self.earlier: gr.Button(interactive=page > 0),
            self.later: gr.Button(interactive=page + 1 < pages),
        }

    def refresh(self, values: dict) -> Updates:
        self.shared.gallery.sync()
        return self._page(values, values[self.page])

    def search(self, values: dict) -> Updates:
        return self._page(values, 0)

    def back(self, values: dict) -> Updates:
        return self._page(values, max(0, values[self.page] - 1))

    def forth(self, values: dict) -> Updates:
        return self._page(values, values[self.page] + 1)

    def choose(self, values: dict, event: gr.SelectData) -> Iterator[Updates]:
        def chosen() -> Iterator[Updates]:
            for id in values[self.listed][event.index : event.index + 1]:
                entry = self.shared.gallery.entry(id)
                yield self._compared(values, entry) if values[self.other] else self._chosen(entry)

        yield from kind_words(chosen(), self.status)

    def _chosen(self, entry: Entry) -> Updates:
        return {
            self.chosen: entry.id,
            self.detail: gr.Column(visible=True),
            self.picture: str(entry.file),
            self.star: say("★ Favourite" if entry.about.favourite else "☆ Favourite"),
            self.talk: gr.Button(interactive=bool(entry.about.conversation)),
            self.settings: settings(entry),
            self.two: gr.Row(visible=False),
            self.other: "",
            self.status: status_line(title(entry)),
        }

    def favour(self, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            entry = self.shared.gallery.entry(values[self.chosen])
            yield self._chosen(self.shared.gallery.favour(entry.id, not entry.about.favourite)) | self._page(values, values[self.page])

        yield from kind_words(done(), self.status)

    def remove(self, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
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
            yield gone | said | self._page(values, values[self.page])

        yield from kind_words(done(), self.status)

    def bring_back(self, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            entry = self.shared.gallery.restore(values[self.deleted])
            over = {self.deleted: "", self.undelete: gr.Button(visible=False)}
            yield over | self._chosen(entry) | self._page(values | {self.chosen: entry.id}, values[self.page])

        yield from kind_words(done(), self.status)

    def begin_comparing(self, values: dict) -> Updates:
        return {self.other: values[self.chosen], self.status: status_line("Choose the picture to compare it with.")}

    def _compared(self, values: dict, entry: Entry) -> Updates:
        """Two pictures beside each other, each with its settings, those that differ in bold."""
        both = [self.shared.gallery.entry(values[self.other]), entry]
        known = [facts(each) for each in both]
        shown = {
            self.two: gr.Row(visible=True),
            self.other: "",
            self.status: status_line("What differs is in bold; choose a picture to go on."),
        }
        for at, (picture, words) in enumerate(self.pair):
            differing = {name for name in known[at] if known[at][name] != known[1 - at].get(name)}
            shown |= {picture: str(both[at].file), words: facts_html(known[at], differing)}
        return shown

    def bring(self, file: str | None) -> Iterator[Updates]:
        """A picture that was dropped: into the library, and its settings to be seen."""

        def done() -> Iterator[Updates]:
            if file:
                entry, known = self.shared.gallery.bring(Path(file))
                everything = {self.words: "", self.starred: False, self.sort: "new", self.chosen: entry.id}
                news = {} if known else {self.status: status_line(NO_SETTINGS)}
                yield self._chosen(entry) | news | self._page(everything, 0) | everything | {self.drop: None}

        yield from kind_words(done(), self.status)

    def to_studio(self, id: str) -> Iterator[Updates]:
        yield from kind_words((self.ways.to_studio(id) for id in [id]), self.status)

    def to_conversation(self, id: str, request: gr.Request) -> Iterator[Updates]:
        def opened() -> Iterator[Updates]:
            about = self.shared.gallery.entry(id).about
            yield self.ways.to_conversation(about.conversation, about.turn, request)

        yield from kind_words(opened(), self.status)

    def to_settings(self, id: str) -> Iterator[Updates]:
        yield from kind_words((self.ways.to_settings(self.shared.gallery.entry(id).about) for id in [id]), self.status)

    def weigh(self) -> Updates:
        room = self.shared.space.freeable()
        words = (
            f"{room.copies:,} small and shown copies, {size_words(room.copy_bytes)}, are made again when they are needed. "
            f"Gone for good are then: {room.pictures:,} deleted pictures, {size_words(room.picture_bytes)}, "
            f"and {room.conversations:,} deleted conversations, {size_words(room.conversation_bytes)}."
        )
        return {self.room: status_line(words), self.free: gr.Button(visible=True)}

    def clear(self) -> Updates:
        room = self.shared.space.freeable()
        self.shared.space.free()
        return {self.room: status_line(f"{size_words(room.bytes)} freed."), self.free: gr.Button(visible=False)}


def size_words(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def title(entry: Entry) -> str:
    """What stands under a picture in the grid, and what a screen reader says of it."""
    words = " ".join((entry.about.caption or entry.about.words).split())
    return ("★ " if entry.about.favourite else "") + (words[:80] or say("Brought in"))


def facts(entry: Entry) -> dict[str, str]:
    """The settings of a picture as names and words."""
    about = entry.about
    known: dict[str, Any] = {
        "Words": about.words,
        "Caption": about.caption,
        "Made" if about.painted else "Brought": time.strftime("%Y-%m-%d %H:%M", time.localtime(about.made)),
        "Size": f"{entry.width} × {entry.height}, {size_words(entry.bytes)}",
        "Model": about.model,
        "Seed": about.seed,
    }
    known |= {name.replace("_", " ").capitalize(): value for name, value in leaves(about.options) if name != "seed"}
    return {name: str(value) for name, value in known.items() if value not in (None, "")}


def leaves(options: dict) -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield str(name), value


def settings(entry: Entry) -> str:
    return facts_html(facts(entry), set())


def facts_html(known: dict[str, str], differing: set[str]) -> str:
    rows = (
        f'<dt>{html.escape(say(name))}</dt><dd class="{"differs" if name in differing else ""}">{html.escape(value)}</dd>'
        for name, value in known.items()
    )
    return f'<dl class="facts">{"".join(rows)}</dl>'
