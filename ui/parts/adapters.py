"""Which adapters the pair wears: chosen in the drawer, for all who use this server."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr

from duogen.finetune.jobs import home
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Updates, sentence, status_line

HINT = "What Fine-tune makes can be switched on here, several at once; it holds for everybody who uses this page."


class Worn:
    """The part of the drawer with all adapters: on or off, and how strongly."""

    def __init__(self, loading: Loading, blocks: gr.Blocks) -> None:
        self.loading = loading
        with gr.Accordion("Adapters", open=False, elem_id="worn") as drawer:
            self.status = gr.HTML(status_line(HINT), elem_id="worn-status")
            self.look = gr.Button("Look for new ones", size="sm", elem_id="worn-look")
            # Rows are made anew only when there is something new: a click on a row that is just being replaced would be lost.
            known = gr.State(None)
            gr.on([blocks.load, drawer.expand, self.look.click], self.listed, None, [known], **QUICK)

            @gr.render(inputs=[known], triggers=[known.change], queue=False)
            def rows(listed: list[tuple[str, float]] | None) -> None:
                for folder, weight in listed or ():
                    self._row(Path(folder), weight)

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {self.status: status_line(HINT)}

    def listed(self) -> list[tuple[str, float]]:
        """All adapters with how strongly they are on, 0 for off."""
        return [(str(folder), self.loading.worn.get(folder, 0.0)) for folder in adapters(self.loading)]

    def _row(self, folder: Path, weight: float) -> None:
        with gr.Row(elem_classes="worn"):
            on = gr.Checkbox(value=bool(weight), label=folder.name, container=False, min_width=90, elem_id=f"worn-{folder.name}")
            strength = gr.Slider(
                0, 1.5, value=weight or 1.0, step=0.05, label="Weight", show_label=False, container=False, min_width=120,
                elem_id=f"weight-{folder.name}", buttons=[],
            )  # fmt: skip

        def changed(wanted: bool, how: float) -> str:
            return self.wear(folder, how if wanted else 0.0)

        on.input(changed, [on, strength], [self.status], **QUICK)
        strength.release(changed, [on, strength], [self.status], **QUICK)

    def wear(self, folder: Path, weight: float) -> str:
        """Change one, after the answers before; returns the status line."""
        before = dict(self.loading.worn)
        self.loading.worn = {**before, folder: weight} if weight else {each: how for each, how in before.items() if each != folder}
        try:
            with self.loading.line.place(lambda before: None, threading.Event()):
                self.loading.put_on()
        except ValueError as error:
            self.loading.worn = {}
            return status_line(f"{error} All adapters are off now.", "bad")
        on = ", ".join(f"{sentence(each.name)} ({how:g})" for each, how in self.loading.worn.items())
        return status_line(f"On: {on}." if on else "No adapter is on.")


def adapters(loading: Loading) -> list[Path]:
    """Folders of those that fine-tuning made here, and of those that the server was started with."""
    made = sorted(file.parent for file in home().glob("*/adapter.json"))
    return [*(each for each in loading.worn if each not in made), *made]
