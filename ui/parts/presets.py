"""The presets in the drawer: those that come with DuoGen, and the user's own for the open pair."""

from __future__ import annotations

import functools
from typing import Any

import gradio as gr
from gradio.components import Component

from duogen.library.presets import PresetStore
from duogen.options import PRESETS
from duogen.paths import data_home
from ui.parts import controls
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Refusal, Shared, Updates, show_warning, status_line

HINT = "Save these settings under a name, for this pair; the seed is not part of it."


class PresetPanel:
    """The buttons and the list above the controls of the drawer."""

    def __init__(self, loading: Loading) -> None:
        self.loading, self.store = loading, PresetStore(data_home() / "presets")
        with gr.Row(elem_id="presets"):
            self.shipped = {name: gr.Button(name.capitalize(), size="sm", min_width=60) for name in PRESETS}
        with gr.Column(elem_id="own-presets"):
            self.chosen = gr.Dropdown([], value=None, label="Your presets", elem_id="preset-chosen", visible=False)
            with gr.Row():
                self.name = gr.Textbox(label="Name of the preset", placeholder="Name of the preset", max_lines=1, show_label=False,
                                       container=False, min_width=120, scale=3, elem_id="preset-name")  # fmt: skip
                self.keep = gr.Button("Save preset", size="sm", min_width=90, scale=2, elem_id="preset-save")
            with gr.Row(visible=False) as self.changes:
                self.rename = gr.Button("Rename", size="sm", min_width=80, elem_id="preset-rename")
                self.delete = gr.Button("Delete", size="sm", min_width=80, elem_id="preset-delete")
                self.sure = gr.Button("Yes, delete it", size="sm", variant="stop", min_width=100, visible=False, elem_id="preset-sure")
            self.status = gr.HTML(status_line(HINT), elem_id="preset-status")
        self.outputs = [self.chosen, self.changes, self.name, self.delete, self.sure, self.status]

    def wire(self, shared: Shared, opened: list[Any]) -> None:
        """Connect the events. `shared` has the drawer's controls; at each of the events `opened` the list is read anew."""
        self.shared, drawer = shared, list(shared.drawer.values())
        quick: dict[str, Any] = {**QUICK, "trigger_mode": "multiple", "queue": False}
        for name, button in self.shipped.items():
            button.click(functools.partial(self.set_shipped, name), None, [*drawer, *self.outputs], **quick)
        self.chosen.input(self.set_own, [self.chosen], [*drawer, *self.outputs], **quick)
        named: dict[str, Any] = {"inputs": [self.chosen, self.name], "outputs": self.outputs, **quick}
        saved: dict[str, Any] = {"fn": self.save, "inputs": {self.name, *drawer}, "outputs": self.outputs, **quick}
        gr.on([self.keep.click, self.name.submit], **saved)
        self.rename.click(self.rename_chosen, **named)
        self.delete.click(lambda: {self.sure: gr.Button(visible=True), self.delete: gr.Button(visible=False)}, None, self.outputs, **quick)
        self.sure.click(self.delete_chosen, **named)
        for event in opened:
            event(self.list_own, [self.chosen], self.outputs, **quick)

    def list_own(self, chosen: str | None = None, said: str = "") -> Updates:
        """Updates with the presets of the open pair. `said` is what has happened; a damaged file goes before it."""
        presets, damaged = self.store.list_presets(self.loading.pair_id())
        names = [each.name for each in presets]
        kept = chosen if chosen in names else None
        words, mood = (damaged[0], "bad") if damaged else (said or HINT, "")
        return {
            self.chosen: gr.Dropdown(names, value=kept, visible=bool(names)),
            self.changes: gr.Row(visible=kept is not None),
            self.delete: gr.Button(visible=True),
            self.sure: gr.Button(visible=False),
            self.status: status_line(words, mood),
        }

    def set_shipped(self, name: str) -> Updates:
        """Updates that set the controls to a preset that comes with DuoGen."""
        return controls.preset_updates(name, self.shared.drawer, self.loading.about) | self.list_own()

    def set_own(self, chosen: str | None) -> Updates:
        """Updates that set the controls to a preset of the user's."""
        if not chosen:
            return self.list_own()
        try:
            preset = self.store.find(self.loading.pair_id(), chosen)
        except ValueError as error:
            return self._refuse(error)
        updates = controls.options_updates(preset.options, self.shared.drawer)
        return updates | self.list_own(preset.name, f"{preset.name} is set.") | {self.name: preset.name}

    def save(self, values: dict[Component, Any]) -> Updates:
        """Save the controls as they are under the name in the box."""
        try:
            options = self.shared.options(values)
            preset = self.store.save(self.loading.pair_id(), values[self.name] or "", options)
        except (Refusal, ValueError) as error:
            return self._refuse(error)
        return self.list_own(preset.name, f"{preset.name} is saved.") | {self.name: preset.name}

    def rename_chosen(self, chosen: str | None, name: str) -> Updates:
        try:
            preset = self.store.rename(self.loading.pair_id(), chosen or "", name or "")
        except ValueError as error:
            return self._refuse(error)
        return self.list_own(preset.name, f"{chosen} is called {preset.name} now.") | {self.name: preset.name}

    def delete_chosen(self, chosen: str | None, name: str) -> Updates:
        self.store.delete(self.loading.pair_id(), chosen or "")
        return self.list_own(None, f"{chosen} is deleted.") | {self.name: ""}

    def _refuse(self, error: Exception) -> Updates:
        show_warning(error)
        return {self.status: gr.skip()}
