"""The adapters of the pair, and other tools' LoRA files: switched on and off in the head, for all users of this server."""

from __future__ import annotations

import hashlib
import html
import math
import re
import threading
from pathlib import Path

import gradio as gr

from duogen.files import read_bytes, write_beside
from duogen.finetune.jobs import finetune_home
from duogen.hub.model_files import find_model_files
from duogen.models.lora_files import SUFFIX, read_lora
from duogen.paths import data_home
from ui import STATIC
from ui.parts.loading import Loading
from ui.parts.shared import QUICK, Refusal, key_of, read_event, status_line, tell_scripts, translate_html

LARGEST_LORA = 4 << 30  # bytes
LARGEST_WEIGHT = 1.5
SCRIPT = STATIC / "adapter_list.js"
GONE = "This adapter is no longer there; look for new ones."
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
            # One event for all rows: a row that is drawn anew under the pointer still asks for what it says.
            self.rows = gr.HTML("", elem_id="adapters-list", js_on_load=SCRIPT.read_text(encoding="utf-8"))
            gr.on([blocks.load, panel.expand, self.look.click], self.render_rows, None, [self.rows], **QUICK)
            self.bring.upload(self.add_file, [self.bring], [self.status, self.rows], **QUICK)
            changed = self.rows.input(self.change, None, [self.status, self.rows], trigger_mode="multiple", **QUICK)
            changed.then(None, None, None, js=tell_scripts("adapters"))

    def render_rows(self) -> str:
        """All adapters, each with its switch and its weight, as HTML."""
        return self._render(list_adapters(self.loading))

    def _render(self, paths: list[Path]) -> str:
        return "".join(_row_html(path, self.loading.adapters.get(path, 0.0)) for path in paths)

    def change(self, event: gr.EventData) -> tuple[str, str]:
        """Set what the browser asks for: the key of an adapter, and its weight. Returns the status line and the new list."""
        paths = list_adapters(self.loading)  # once: it looks through whole folders
        try:
            key, weight = read_event(event, "adapter", "weight")
            path = next((each for each in paths if key_of(each) == key), None)
            if path is None:
                raise Refusal(GONE)
            said = self.set_adapter(path, _read_weight(weight))
        except Refusal as reason:
            said = status_line(str(reason), "bad")
        return said, self._render(paths)

    def add_file(self, brought: str) -> tuple[str, str]:
        """Keep a LoRA file that was brought. Returns the status line and the new list."""
        try:
            file = keep_lora(Path(brought))
        except ValueError as error:
            return status_line(str(error).replace(brought, Path(brought).name), "bad"), self.render_rows()
        words = describe_triggers(file)
        return status_line(f"{title_of(file)} is here now; switch it on below. {words}".strip()), self.render_rows()

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


def _row_html(path: Path, weight: float) -> str:
    """The switch and the weight of an adapter; `weight` is 0 for off. `adapter_list.js` sends what the user changes."""
    title = html.escape(title_of(path))
    about = f'aria-label="{translate_html("Weight")}: {title}"'
    slider = f'<input type="range" min="0" max="{LARGEST_WEIGHT}" step="0.05" value="{weight or 1.0:g}" {about}>'
    on = f'<label><input type="checkbox"{" checked" if weight else ""}><span>{title}</span></label>'
    words = describe_triggers(path)
    told = f'<small class="triggers">{translate_html(words)}</small>' if words else ""
    return f'<div class="adapter" id="adapter-{title}" data-key="{key_of(path)}">{on}{slider}<output>{weight or 1.0:g}</output>{told}</div>'


def _read_weight(value: object) -> float:
    """Raises Refusal: it is no weight."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= LARGEST_WEIGHT:
        raise Refusal(f"The weight of an adapter is a number from 0 to {LARGEST_WEIGHT:g}.")
    return float(value)


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
