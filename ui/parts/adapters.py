"""The adapters of the pair: switched on and off in the drawer, for all users of this server."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr

from duogen.finetune.jobs import finetune_home
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Updates, status_line, translate_html

HINT = "Turn adapters on or off here, several at once; this applies to everyone who uses this page."


class AdapterPanel:
    """The part of the drawer that lists all adapters, each with a switch and a weight."""

    def __init__(self, loading: Loading, blocks: gr.Blocks) -> None:
        self.loading = loading
        with gr.Accordion("Adapters", open=False, elem_id="adapters") as drawer:
            self.status = gr.HTML(status_line(HINT), elem_id="adapters-status")
            self.look = gr.Button("Look for new ones", size="sm", elem_id="adapters-look")
            # Rows are rebuilt only when the list changes: a click on a row that is being replaced would be lost.
            known = gr.State(None)
            gr.on([blocks.load, drawer.expand, self.look.click], self.list_weights, None, [known], **QUICK)

            @gr.render(inputs=[known], triggers=[known.change], queue=False)
            def rows(listed: list[tuple[str, float]] | None) -> None:
                for folder, weight in listed or ():
                    self._lay_out_row(Path(folder), weight)

    def translate(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {self.status: status_line(HINT)}

    def list_weights(self) -> list[tuple[str, float]]:
        """All adapters with their weights, 0 for off."""
        return [(str(folder), self.loading.adapters.get(folder, 0.0)) for folder in list_adapters(self.loading)]

    def _lay_out_row(self, folder: Path, weight: float) -> None:
        with gr.Row(elem_classes="adapter"):
            on = gr.Checkbox(value=bool(weight), label=folder.name, container=False, min_width=90, elem_id=f"adapter-{folder.name}")
            strength = gr.Slider(
                0, 1.5, value=weight or 1.0, step=0.05, label="Weight", show_label=False, container=False, min_width=120,
                elem_id=f"adapter-weight-{folder.name}", buttons=[],
            )  # fmt: skip

        def change(wanted: bool, how: float) -> str:
            return self.set_adapter(folder, how if wanted else 0.0)

        on.input(change, [on, strength], [self.status], **QUICK)
        strength.release(change, [on, strength], [self.status], **QUICK)

    def set_adapter(self, folder: Path, weight: float) -> str:
        """Set the weight of one adapter (0: off) after the answers before it in the queue. Returns the status line."""
        before = dict(self.loading.adapters)
        self.loading.adapters = {**before, folder: weight} if weight else {each: how for each, how in before.items() if each != folder}
        try:
            with self.loading.queue.wait_turn(lambda before: None, threading.Event()):
                self.loading.set_adapters()
        except ValueError as error:
            self.loading.adapters = {}
            return status_line(f"{error} All adapters are off now.", "bad")
        on = ", ".join(f"{translate_html(each.name)} ({how:g})" for each, how in self.loading.adapters.items())
        return status_line(f"On: {on}." if on else "No adapter is on.")


def list_adapters(loading: Loading) -> list[Path]:
    """Folders of the adapters that fine-tuning made here and of those that the server was started with."""
    made = sorted(file.parent for file in finetune_home().glob("*/adapter.json"))
    return [*(each for each in loading.adapters if each not in made), *made]
