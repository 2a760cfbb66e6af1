"""The adapters of the pair, and other tools' LoRA files: switched on and off in the head, for all users of this server."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

import gradio as gr

from duogen.files import read_bytes, write_beside
from duogen.finetune.jobs import finetune_home
from duogen.hub.model_files import find_model_files
from duogen.models.lora_files import SUFFIX, read_lora
from duogen.paths import data_home
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, status_line, translate_html

LARGEST_LORA = 4 << 30  # bytes
HINT = "Turn adapters on or off here, several at once; this applies to everyone who uses this page."


class AdapterPanel:
    """A list of all adapters, each with a switch and a weight."""

    def __init__(self, loading: Loading, blocks: gr.Blocks, panel: gr.Accordion) -> None:
        """`panel` is what it is laid out in: it is listed anew when that opens."""
        self.loading = loading
        with gr.Column(elem_id="adapters"):
            gr.Markdown("## Adapters", elem_classes="group-title")
            self.status = gr.HTML(status_line(HINT), elem_id="adapters-status")
            with gr.Row():
                self.look = gr.Button("Look for new ones", size="sm", min_width=100, elem_id="adapters-look")
                self.bring = gr.UploadButton("Add a LoRA file", file_types=[SUFFIX], size="sm", min_width=100, elem_id="adapters-bring")
            # Rows are rebuilt only when the list changes: a click on a row that is being replaced would be lost.
            known = gr.State(None)
            gr.on([blocks.load, panel.expand, self.look.click], self.list_weights, None, [known], **QUICK)
            self.bring.upload(self.add_file, [self.bring], [self.status, known], **QUICK)

            @gr.render(inputs=[known], triggers=[known.change], queue=False)
            def rows(listed: list[tuple[str, float]] | None) -> None:
                for folder, weight in listed or ():
                    self._lay_out_row(Path(folder), weight)

    def list_weights(self) -> list[tuple[str, float]]:
        """All adapters with their weights, 0 for off."""
        return [(str(path), self.loading.adapters.get(path, 0.0)) for path in list_adapters(self.loading)]

    def _lay_out_row(self, path: Path, weight: float) -> None:
        with gr.Row(elem_classes="adapter"):
            on = gr.Checkbox(value=bool(weight), label=title_of(path), container=False, min_width=90, elem_id=f"adapter-{title_of(path)}")
            strength = gr.Slider(
                0, 1.5, value=weight or 1.0, step=0.05, label="Weight", show_label=False, container=False, min_width=120,
                elem_id=f"adapter-weight-{title_of(path)}", buttons=[],
            )  # fmt: skip
        if words := describe_triggers(path):
            gr.HTML(f"<small>{translate_html(words)}</small>", elem_classes="triggers")

        def change(wanted: bool, how: float) -> str:
            return self.set_adapter(path, how if wanted else 0.0)

        on.input(change, [on, strength], [self.status], **QUICK)
        strength.release(change, [on, strength], [self.status], **QUICK)

    def add_file(self, brought: str) -> tuple[str, list[tuple[str, float]]]:
        """Keep a LoRA file that was brought. Returns the status line and the new list."""
        try:
            file = keep_lora(Path(brought))
        except ValueError as error:
            return status_line(str(error).replace(brought, Path(brought).name), "bad"), self.list_weights()
        words = describe_triggers(file)
        return status_line(f"{title_of(file)} is here now; switch it on below. {words}".strip()), self.list_weights()

    def set_adapter(self, path: Path, weight: float) -> str:
        """Set the weight of one adapter (0: off) after the answers before it in the queue. Returns the status line."""
        before = dict(self.loading.adapters)
        self.loading.adapters = {**before, path: weight} if weight else {each: how for each, how in before.items() if each != path}
        try:
            with self.loading.queue.wait_turn(lambda before: None, threading.Event(), alone=True):
                self.loading.set_adapters()
        except ValueError as error:
            self.loading.adapters = {}
            return status_line(f"{error} All adapters are off now.", "bad")
        on = ", ".join(f"{translate_html(title_of(each))} ({how:g})" for each, how in self.loading.adapters.items())
        return status_line(f"On: {on}." if on else "No adapter is on.")


def loras_home() -> Path:
    """The folder of LoRA files: what is put there stands in the list."""
    return data_home() / "loras"


def list_adapters(loading: Loading) -> list[Path]:
    """What fine-tuning made here, the LoRA files in their folder and in that of ComfyUI or Forge, and what the server was started with."""
    made = sorted(file.parent for file in finetune_home().glob("*/adapter.json"))
    elsewhere = [each.path for each in find_model_files("LoRA")]
    found = [*made, *sorted(loras_home().glob(f"*{SUFFIX}")), *elsewhere]
    return [*(each for each in loading.adapters if each not in found), *found]


def title_of(path: Path) -> str:
    return path.name if path.is_dir() else path.name.removesuffix(SUFFIX)


def keep_lora(brought: Path) -> Path:
    """Copy a LoRA file into its folder, as `keep_weights`. Raises ValueError: it is no LoRA."""
    read_lora(brought)
    return keep_weights(brought, loras_home(), LARGEST_LORA)


def keep_weights(brought: Path, folder: Path, largest: int) -> Path:
    """Copy a weight file into a folder; one of the same name and other contents stays beside it. Raises ValueError: it is too large."""
    data = read_bytes(brought, largest)
    name = re.sub(r"[^\w.-]+", "-", brought.stem).strip("-.") or "weights"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}{brought.suffix.lower()}"
    if file.exists() and file.read_bytes() != data:
        file = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}{file.suffix}"
    if not file.exists():
        write_beside(file, data)
    return file


def describe_triggers(path: Path) -> str:
    """The words that call up what a LoRA learnt, "" for none."""
    if path.is_dir():
        return ""
    try:
        triggers = read_lora(path).triggers
    except ValueError as error:
        return str(error)
    return f"Trigger words: {', '.join(triggers)}" if triggers else ""
