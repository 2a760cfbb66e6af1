"""The open pair in the head of the page: which others can be opened and what each costs, and the adapters."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gradio as gr
from gradio.events import Dependency

from duogen.hub.catalogue import Found, bundled_id, entries, find, is_installed
from ui import STATIC
from ui.parts.adapters import AdapterPanel
from ui.parts.i18n import translate
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Refusal, Updates, key_of, read_event, status_line, translate_html

if TYPE_CHECKING:
    from duogen.hub.memory_plan import Plan

OPENS = "The pair opens as soon as the earlier answers are done."
SCRIPT = STATIC / "pair_list.js"
GONE = "This pair is no longer there; fold this list and unfold it again."
HINT = "Choose a pair to open it, for everyone who uses this page; the tab Models has more."


class PairChoice(NamedTuple):
    """A pair that is here. `costs` are sentences; `possible` is false where it cannot be opened, or is open now."""

    pair: str
    mllm: str
    title: str
    costs: tuple[str, ...]
    possible: bool
    is_open: bool


class PairSwitch:
    """A button with the name of the open pair, and what it unfolds."""

    def __init__(self, loading: Loading, blocks: gr.Blocks, timer: gr.Timer) -> None:
        """`timer` is the timer of the page that polls the loading of a pair."""
        self.loading, self.timer = loading, timer
        with gr.Accordion(self.name(), open=False, elem_id="pair") as self.panel:
            self.status = gr.HTML(status_line(HINT), elem_id="pair-status")
            # One event for all buttons: one that is drawn anew under the pointer still asks for what it says.
            self.list = gr.HTML("", elem_id="pair-list", js_on_load=SCRIPT.read_text(encoding="utf-8"))
            self.adapters = AdapterPanel(loading, blocks, self.panel)
        self.has_looked = gr.State(False)  # whether the user of this page has unfolded the list
        self.panel.expand(self.list_choices, None, [self.has_looked, self.list, self.status, self.panel], **QUICK)
        self.list.click(self.choose, None, [self.status, self.timer, self.list], **QUICK)
        blocks.load(lambda: {self.panel: gr.Accordion(label=self.name())}, None, [self.panel], **QUICK)

    def wire(self, ticked: Dependency) -> None:
        """`ticked` is the page's look at the loading: only after it, because it stops the timer when that is over."""
        ticked.success(self.follow, [self.has_looked], [self.panel, self.status, self.has_looked, self.list], **QUICK)

    def name(self) -> str:
        """The title of the open pair, or what is the matter with it."""
        if self.loading.engine is not None:
            return self.loading.engine.about["title"]
        return translate("Loading ..." if self.loading.is_busy else "No pair")

    def list_choices(self) -> Updates:
        """Updates with the pairs that are here."""
        busy = self.loading.is_busy
        error = self.loading.error
        said = status_line(self.loading.words, "busy") if busy else status_line(error or HINT, "bad" if error else "")
        shown = {self.status: said, self.panel: gr.Accordion(label=self.name()), self.has_looked: True}
        return shown if busy else shown | {self.list: "".join(map(_choice_html, list_pairs(self.loading)))}

    def follow(self, has_looked: bool) -> Updates:
        """Updates while a pair is opened, and when that is over."""
        if has_looked or self.loading.is_busy:
            return self.list_choices()
        return {self.panel: gr.Accordion(label=self.name())}

    def choose(self, event: gr.EventData) -> Updates:
        """Open the pair whose key the browser gives."""
        try:
            (key,) = read_event(event, "pair")
            chosen = next((each for each in _name_pairs(self.loading) if key_of(*each) == key), None)
            if chosen is None:
                raise Refusal(GONE)
            return self.open_pair(*chosen)
        except Refusal as reason:
            return {self.status: status_line(str(reason), "bad")}

    def open_pair(self, pair: str, mllm: str) -> Updates:
        """Open another pair instead of the open one. Conversations stay."""
        self.loading.switch(None if pair == bundled_id() else pair, mllm or None, self.loading.load_for_others())
        return {self.status: status_line(OPENS, "busy"), self.timer: gr.Timer(active=True), self.list: ""}  # none while it is opened


def _choice_html(choice: PairChoice) -> str:
    """A button that opens a pair, with its costs. `pair_list.js` sends its key."""
    costs = ["Open now."] if choice.is_open else []
    words = " ".join(map(translate_html, [*costs, *choice.costs]))
    kind, off = "pair open" if choice.is_open else "pair", "" if choice.possible else " disabled"
    key = key_of(choice.pair, choice.mllm)
    return f'<button type="button" class="{kind}" value="{key}"{off}>{html.escape(choice.title)}\n{words}</button>'


def list_pairs(loading: Loading) -> list[PairChoice]:
    """The pairs that can be opened without a download, each with its costs, the catalogue's first."""
    mine = _key_of_open(loading)
    return [_describe(loading, *key, title, key == mine) for key, title in _name_pairs(loading).items()]


def _name_pairs(loading: Loading) -> dict[tuple[str, str], str]:
    """The titles of these pairs, by pair and MLLM."""
    pairs = {(each.id, ""): each.title for each in entries().values() if is_installed(each)} | loading.opened
    mine = _key_of_open(loading)
    return pairs if mine is None else pairs | {mine: loading.about["title"]}


def _key_of_open(loading: Loading) -> tuple[str, str] | None:
    return None if loading.engine is None else (loading.pair_id(), loading.mllm or "")


def _describe(loading: Loading, pair: str, mllm: str, title: str, is_open: bool) -> PairChoice:
    from duogen.hub.load import plan_pair  # imports torch

    plan: Plan | None = getattr(loading.engine, "plan", None)
    try:
        load = loading.load_options() if is_open else loading.load_for_others()
        chosen = plan_pair(_find(pair, mllm), load, closing=plan)[0].plan
    except ValueError as error:
        return PairChoice(pair, mllm, title, (str(error),), False, is_open)
    return PairChoice(pair, mllm, title, tuple(chosen.costs()), chosen.fits and not is_open, is_open)


def _find(pair: str, mllm: str) -> Found:
    """Where a pair is. The bundled one is not assembled for its costs alone: the catalogue knows them."""
    return Found(Path("."), None, entries()[pair]) if pair == bundled_id() else find(pair, mllm or None)
