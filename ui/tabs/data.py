"""The Data tab: makes a set from a folder of saved pages, and shows what was dropped and why, for a person to overrule.

`python -m duogen data ...` does the work in its own process; the page reads its state, also after a reload. Reasons for dropping a page
are in English, as in the report on the disk; everything else is in the language of the browser.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.blocks import Block
from markdown_it import MarkdownIt

from duogen.data_engine.report import MISSING, FunnelStep, funnel
from duogen.data_engine.state import STEPS, Row, State
from duogen.paths import ROOT, data_home
from duogen.picture_input import open_picture
from ui.chat.history import address
from ui.parts.i18n import translate, translate_choices
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, status_line, translate_html

FIRST = "Name a folder of saved pages: HTML, MHTML, WARC, Markdown or EPUB."
KEPT, DROPPED, ALL = "in", "out", "all"
SETS = {KEPT: "In the set", DROPPED: "Dropped"}
REASONS = {ALL: "every reason", **{step: step for step in STEPS}}
HERE = ("127.0.0.1", "::1", "localhost")
SIDE = 360  # pixels of a picture that is shown


class Data:
    """The tab for all browsers. `processes` holds the processes that this server started, by the folder of the set."""

    def __init__(self, tab: gr.Tab, shared: Shared, local: bool = True) -> None:
        """`local` is whether users of the page may name folders of this machine."""
        self.shared, self.local = shared, local
        self.processes: dict[Path, subprocess.Popen] = {}
        with tab, gr.Column(elem_id="data"):
            self._lay_out()
        self._wire(tab)

    def _lay_out(self) -> None:
        self.at = gr.State(0)
        self.timer = gr.Timer(1.0, active=False)
        with gr.Row(elem_id="data-new"):
            self.pages = gr.Textbox(
                label="Folder of saved pages", placeholder="/home/me/saved-pages", scale=3, visible=self.local, elem_id="data-pages"
            )
            self.name = gr.Textbox(label="Name of the set", placeholder="recipes", scale=1, visible=self.local, elem_id="data-name")
        with gr.Row(elem_id="data-line", elem_classes="buttons"):
            self.make = gr.Button("Make a set", size="sm", variant="primary", min_width=100, visible=self.local, elem_id="data-make")
            self.stop = gr.Button("Stop", size="sm", min_width=70, visible=False, elem_id="data-stop")
            self.chosen = gr.Dropdown([], label="Set", show_label=False, container=False, min_width=160, elem_id="data-chosen")
        self.status = gr.HTML(status_line(FIRST), elem_id="data-status")
        with gr.Row(elem_id="data-body"):
            with gr.Column(scale=2, min_width=300):
                self.funnel = gr.HTML("", elem_id="data-funnel")
                self.where = gr.HTML("", elem_id="data-where")
                with gr.Row(elem_classes="buttons"):
                    self.send = gr.Button("Send to Fine-tune", size="sm", variant="primary", visible=False, elem_id="data-send")
            with gr.Column(scale=3, min_width=320, visible=False, elem_id="data-look") as self.look:
                with gr.Row(elem_id="data-filter"):
                    self.which = gr.Radio(
                        translate_choices(SETS), value=KEPT, label="Which", show_label=False, container=False, elem_id="data-which"
                    )
                    self.why = gr.Dropdown(
                        translate_choices(REASONS), value=ALL, label="Why", show_label=False, container=False, elem_id="data-why"
                    )
                with gr.Row(elem_classes="buttons"):
                    self.earlier = gr.Button("‹ Back", size="sm", min_width=70, elem_id="data-back")
                    self.later = gr.Button("Next ›", size="sm", min_width=70, elem_id="data-next")
                    self.overrule = gr.Button("Take it out", size="sm", min_width=100, elem_id="data-overrule")
                self.page = gr.HTML("", elem_id="data-page")

    def _wire(self, tab: gr.Tab) -> None:
        inputs: set[Block] = {self.pages, self.name, self.chosen, self.which, self.why, self.at}
        outputs = [
            self.status, self.funnel, self.where, self.send, self.look, self.page, self.at, self.chosen, self.stop, self.timer,
            self.overrule, self.earlier, self.later,
        ]  # fmt: skip
        tab.select(self.refresh, inputs, outputs, **QUICK)
        self.make.click(self.start_making, inputs, outputs, **QUICK)
        self.stop.click(self.stop_making, inputs, outputs, **QUICK)
        self.timer.tick(self.follow, inputs, outputs, **QUICK)
        self.chosen.input(self.show_first, inputs, outputs, **QUICK)
        gr.on([self.which.input, self.why.input], self.show_first, inputs, outputs, **QUICK)
        self.earlier.click(self.move_by(-1), inputs, outputs, **QUICK)
        self.later.click(self.move_by(1), inputs, outputs, **QUICK)
        self.overrule.click(self.decide, inputs, outputs, **QUICK)

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself."""
        return {self.which: gr.update(choices=translate_choices(SETS)), self.why: gr.update(choices=translate_choices(REASONS))}

    # The sets

    def list_sets(self) -> list[str]:
        """Newest first."""
        found = [file.parent for file in (data_home() / "sets").glob("*/state.sqlite")]
        return [folder.name for folder in sorted(found, key=lambda folder: -folder.stat().st_mtime)]

    def folder(self, name: str) -> Path:
        return data_home() / "sets" / name

    def start_making(self, values: dict, request: gr.Request) -> Iterator[Updates]:
        """Start the process that makes a set, or continues one of the same name and pages."""

        def updates() -> Iterator[Updates]:
            if not self.local or (request.client and request.client.host not in HERE):
                raise Refusal("Only a user on this machine can name its folders.")
            named = (values[self.pages] or "").strip()
            pages = Path(named).expanduser()
            if not named or not pages.exists():
                raise Refusal(f"There is no folder {pages}; name one with saved pages in it." if named else FIRST)
            name = re.sub(r"[^\w-]+", "-", (values[self.name] or pages.resolve().name).strip()).strip("-") or "set"
            out = self.folder(name)
            if self._is_running(out):
                raise Refusal("This set is being made already.")
            out.parent.mkdir(parents=True, exist_ok=True)
            with (out.parent / f"{name}.log").open("wb") as log:
                command = [sys.executable, "-m", "duogen", "data", "make", str(pages.resolve()), "--out", str(out)]
                self.processes[out] = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            yield {self.status: status_line("Starting ...", "busy"), self.timer: gr.Timer(active=True), self.stop: gr.Button(visible=True),
                   self.at: 0, self.chosen: gr.Dropdown(list(dict.fromkeys([name, *self.list_sets()])), value=name)}  # fmt: skip

        yield from catch_refusals(updates(), self.status)

    def stop_making(self, values: dict) -> Iterator[Updates]:
        """Stop the process. Finished work stays; "Make a set" with the same folder and name continues it."""
        process = self.processes.get(self.folder(values[self.chosen] or ""))
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        yield {self.status: status_line("Stopping ...", "busy")}

    def _is_running(self, folder: Path) -> bool:
        process = self.processes.get(folder)
        if process is not None:
            return process.poll() is None
        with contextlib.suppress(ValueError, OSError):  # started before this server
            state = State(folder, writes=False)
            if state.get_fact("state") == "running":
                os.kill(state.get_fact("pid"), 0)
                return True
        return False

    def refresh(self, values: dict) -> Iterator[Updates]:
        names = self.list_sets()
        name = values[self.chosen] if values[self.chosen] in names else next(iter(names), None)
        listed = {self.chosen: gr.Dropdown(names, value=name)}
        shown = self._render(values | {self.chosen: name}) if name else {self.status: status_line(FIRST)}
        yield listed | shown

    def follow(self, values: dict) -> Iterator[Updates]:
        """Show the funnel and the progress while the process works; everything when it has ended."""
        folder = self.folder(values[self.chosen] or "")
        if self._is_running(folder):
            with contextlib.suppress(ValueError):
                state = State(folder, writes=False)
                count, kept = state.count_pages(), state.count_pages("kept")
                words = status_line(f"{count:,} pages read, {kept:,} dialogues ...", "busy")
                yield {self.status: words, self.funnel: funnel_html(funnel(state))}
                return
            yield {self.status: status_line("Starting ...", "busy")}
            return
        over = {self.timer: gr.Timer(active=False), self.stop: gr.Button(visible=False)}
        process = self.processes.get(folder)
        if process is not None and process.returncode not in (0, 130):
            log = folder.parent / f"{folder.name}.log"
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if log.exists() else []
            said = "".join(last).removeprefix("duogen: ") or "It ended before it was done."
            yield over | {self.status: status_line(said, "bad")}
            return
        yield over | self._render(values)  # at the shown page: a tick can come after a person has moved on

    # Looking through

    def show_first(self, values: dict) -> Iterator[Updates]:
        yield from catch_refusals((self._render(values | {self.at: 0}) for _ in range(1)), self.status)

    def move_by(self, by: int) -> Callable[[dict], Iterator[Updates]]:
        def move(values: dict) -> Iterator[Updates]:
            yield from catch_refusals((self._render(values | {self.at: max(0, values[self.at] + by)}) for _ in range(1)), self.status)

        return move

    def _find_row(self, state: State, values: dict) -> tuple[Row | None, int, int]:
        """The shown page, its position, and the number of pages."""
        where, given = ("kept", ()) if values[self.which] == KEPT else ("NOT kept", ())
        if values[self.which] == DROPPED and values[self.why] != ALL:
            where, given = "NOT kept AND step = ?", (values[self.why],)
        count = state.count_pages(where, given)
        at = min(values[self.at], max(0, count - 1))
        rows = state.rows(where, given, 1, skip=at)
        return (rows[0] if rows else None), at, count

    def _render(self, values: dict) -> Updates:
        """Updates with everything about the chosen set."""
        folder = self.folder(values[self.chosen] or "")
        if self._is_running(folder):
            return {self.timer: gr.Timer(active=True), self.stop: gr.Button(visible=folder in self.processes)}
        state = State(folder, writes=False)
        row, at, count = self._find_row(state, values)
        total, kept = state.count_pages(), state.count_pages("kept")
        said = translate(f"1 dialogue from {total:,} pages." if kept == 1 else f"{kept:,} dialogues from {total:,} pages.")
        if state.get_fact("state") != "done":
            said += " " + translate("It was stopped; make it again under this name to go on.")
        kept_now = values[self.which] == KEPT
        return {
            self.status: status_line(said),
            self.funnel: describe_missing_files(state) + funnel_html(funnel(state)),
            self.where: _place_html("The set is in this folder:", str(folder)),
            self.send: gr.Button(visible=kept > 0),
            self.look: gr.Column(visible=True),
            self.at: at,
            self.page: self._page_html(folder, row, at, count),
            self.overrule: gr.Button(translate("Take it out" if kept_now else "Take it in after all"), interactive=row is not None),
            self.earlier: gr.Button(interactive=at > 0),
            self.later: gr.Button(interactive=at + 1 < count),
        }

    def decide(self, values: dict) -> Iterator[Updates]:
        """Let a person overrule the filters. It runs in its own process, because making a dialogue takes the whole data engine."""

        def updates() -> Iterator[Updates]:
            folder = self.folder(values[self.chosen] or "")
            row, _, _ = self._find_row(State(folder, writes=False), values)
            if row is None:
                raise Refusal("There is no page to decide about.")
            yield {self.status: status_line("One moment ...", "busy")}
            does = "drop" if values[self.which] == KEPT else "keep"
            command = [sys.executable, "-m", "duogen", "data", does, str(folder), row.id]
            ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if ended.returncode:
                yield {self.status: status_line(ended.stderr.strip().removeprefix("duogen: "), "bad")}
                return
            yield self._render(values)

        yield from catch_refusals(updates(), self.status)

    def _page_html(self, folder: Path, row: Row | None, at: int, count: int) -> str:
        if row is None:
            return f"<p>{translate_html('Nothing here.')}</p>"
        source = row.about.get("source", {})
        head = (
            f"<small>{at + 1:,} / {count:,} · {html.escape(source.get('file', row.file))}</small>"
            f"<h2>{html.escape(row.title or row.file)}</h2>"
        )
        reason = f"<b>{translate_html(row.step)}</b>: <span lang='en'>{html.escape(row.reason)}</span>"
        why = f"<p class='why'>{translate_html('Dropped at')} {reason}</p>" if row.step else ""
        lost = "".join(
            f"<li>{html.escape(what)} <small>({translate_html(step)}: <span lang='en'>{html.escape(why)}</span>)</small></li>"
            for what, step, why in row.about["lost"]
        )
        taken = translate_html(f"{len(row.about['lost'])} taken out of it")
        lost = f"<details><summary>{taken}</summary><ul>{lost}</ul></details>" if lost else ""
        turns = (row.record or {"turns": []})["turns"]
        return head + why + "".join(self._turn_html(folder, turn) for turn in turns) + lost

    def _turn_html(self, folder: Path, turn: dict[str, Any]) -> str:
        said = ""
        for part in turn["parts"]:
            if part["type"] == "text":
                said += MarkdownIt("commonmark", {"html": False}).render(part["text"])
            else:
                with contextlib.suppress(ValueError):
                    file = self.shared.previews.keep(open_picture(folder / part["file"]), SIDE)
                    said += f'<img src="{address(file)}" alt="{html.escape(part["alt"])}" title="{html.escape(part["alt"])}">'
        return f'<div class="{turn["role"]}">{said}</div>'


def describe_missing_files(state: State) -> str:
    """How many pictures of the pages have no file, and where it was looked for; "" where all have one."""
    folders = state.counts(MISSING)
    count, root = sum(folders.values()), str(state.get_fact("asked", {}).get("root", ""))
    if not count:
        return ""
    named = ", ".join([f"{folder}/..." if folder else "..." for folder in folders][:3])
    files = "1 picture file was not found" if count == 1 else f"{count:,} picture files were not found"
    return _place_html(f"{files} ({named}). Pictures are looked for beside their page and from this folder on:", root)


def _place_html(words: str, folder: str) -> str:
    return f"<p>{translate_html(words)}<br><code>{html.escape(folder)}</code></p>"


def funnel_html(steps: list[FunnelStep]) -> str:
    """The funnel as a table with bars."""
    most = max(1, steps[0].entered)
    rows = ""
    for step in steps:
        dropped = f"{step.dropped:,}" if step.dropped else ""
        left = translate_html(f"{step.left:,} left")
        bar = f'<progress max="{most}" value="{step.left}" aria-label="{left}"></progress>'
        rows += f"<tr><td>{translate_html(step.name)}</td><td>{dropped}</td><td>{step.left:,}</td><td>{bar}</td></tr>"
    heads = "".join(f'<th scope="col">{translate_html(name)}</th>' for name in ("step", "dropped", "left", "share"))
    return f"<table><tr>{heads}</tr>{rows}</table>"
