"""Fine-tuning: from a folder of examples to an adapter, in three steps. The work is a process of its own, which this tab only reads.

Nothing of a job is kept here: a browser that comes back, to this server or the next, finds it by its folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image as PILImage

from duogen.conversation import Conversation, save_conversation
from duogen.finetune.config import PRESETS, STAGES, FineTune
from duogen.finetune.jobs import ENDED, Job, home, jobs
from duogen.paths import ROOT, data_home
from ui.parts import controls
from ui.parts.i18n import choices
from ui.parts.pictures import PictureFolder
from ui.parts.shared import QUICK, Refused, Shared, Updates, kind_words, sentence, status_line
from ui.parts.training_view import bar, facts, plotted, shown_problems, shown_strip, shown_tiles

WHAT = {"both": "Both", "1": "What to say and when to draw", "2": "How to paint it"}
PRESET_NAMES = {"cpu": "This computer's processor"} | {name: f"A card with {name[:-2]} GB" for name in PRESETS[1:]}
TILES, TILE_PIXELS = 24, 192
POLL_SECONDS = 1.0
FIRST = "Bring a folder or zip with examples: pictures with .txt captions, before and after, conversations, or a dataset."
NOTHING = "Nothing is being trained."
IN_CHAT = "It is in the chat's Options, under Adapters."
CHOOSE_FIRST = "Choose an answer in the chat first: the hat below it makes it an example."
RUN_BUTTONS = ("sample", "save", "pause", "stop")
OBEYED = {
    "sample": "It looks at samples after this step.",
    "save": "It saves after this step.",
    "pause": "It pauses after this step ...",
    "stop": "It stops after this step, and keeps what it has learnt ...",
}


class Finetune:
    """The tab for all browsers. `local` is whether whoever uses the page may name folders of this machine."""

    def __init__(self, tab: gr.Tab, shared: Shared, pictures: PictureFolder, local: bool = True) -> None:
        self.shared, self.pictures, self.local = shared, pictures, local
        home().mkdir(parents=True, exist_ok=True)
        self.known: dict[Path, str] = {}
        self.zips: dict[tuple[str, float], str] = {}
        with tab, gr.Column(elem_id="finetune"):
            self._lay_out()
        self._wire(tab)

    # Laying out

    def _lay_out(self) -> None:
        self.source, self.told, self.timer = gr.State(""), gr.State(0.0), gr.Timer(POLL_SECONDS, active=False)
        with gr.Row(elem_id="finetune-body"):
            with gr.Column(scale=2, min_width=320):
                self._lay_out_steps()
            with gr.Column(scale=3, min_width=320, elem_id="finetune-job"):
                self._lay_out_job()

    def _lay_out_steps(self) -> None:
        gr.Markdown("## 1 · Examples", elem_classes="step")
        self.folder = gr.Textbox(
            label="Folder or zip on this machine", placeholder="/home/me/recipes", visible=self.local, elem_id="finetune-folder"
        )
        with gr.Row(elem_classes="buttons"):
            self.check = gr.Button("Look at it", size="sm", variant="primary", min_width=100, visible=self.local, elem_id="finetune-check")
            self.upload = gr.UploadButton("Bring a zip", file_types=[".zip"], size="sm", min_width=100, elem_id="finetune-upload")
            self.mine = gr.Button("Answers I chose in the chat", size="sm", min_width=170, elem_id="finetune-mine")
        self.report = gr.HTML(status_line(FIRST), elem_id="finetune-report")
        self.describe = gr.Button("Describe the pictures that have no words", size="sm", visible=False, elem_id="finetune-describe")
        self.tiles = gr.HTML("", elem_id="finetune-tiles")
        with gr.Accordion("What is wrong with some of it", open=False, visible=False, elem_id="finetune-wrong") as self.wrong:
            self.problems = gr.HTML("")
        gr.Markdown("## 2 · What to teach", elem_classes="step")
        self.what = gr.Radio(choices(WHAT), value="both", label="What", show_label=False, container=False, elem_id="finetune-what")
        self.machine = gr.Dropdown(choices(PRESET_NAMES), value="cpu", label="Where it runs", elem_id="finetune-machine")
        with gr.Accordion("All settings", open=False, elem_id="finetune-settings"):
            self.settings = controls.build(FineTune)
            for path, control in self.settings.items():
                control.value = _at(FineTune.load("cpu"), path)
        self.needs = gr.HTML("", elem_id="finetune-needs")
        gr.Markdown("## 3 · Start", elem_classes="step")
        self.name = gr.Textbox(label="Name of the adapter", value="my-style", max_lines=1, elem_id="finetune-name")
        self.start = gr.Button("Start", variant="primary", elem_id="finetune-start")

    def _lay_out_job(self) -> None:
        self.chosen = gr.Dropdown([], label="Training", elem_id="finetune-chosen", interactive=True)
        self.progress = gr.HTML(status_line(NOTHING), elem_id="finetune-progress")
        with gr.Row(elem_classes="buttons"):
            names = {"sample": "Sample now", "save": "Save now", "pause": "Pause", "stop": "Stop and keep"}
            self.buttons = {
                wish: gr.Button(names[wish], size="sm", min_width=90, visible=False, elem_id=f"finetune-{wish}") for wish in RUN_BUTTONS
            }
            self.resume = gr.Button("Resume", size="sm", variant="primary", min_width=90, visible=False, elem_id="finetune-resume")
            self.lower = gr.Button("Lower and go on", size="sm", variant="primary", min_width=130, visible=False, elem_id="finetune-lower")
        self.facts = gr.HTML("", elem_id="finetune-facts")
        self.plot = gr.LinePlot(
            x="step", y="loss", color="kind", x_title="Step", y_title="Loss", height=230, visible=False, show_label=False,
            elem_id="finetune-plot",
        )  # fmt: skip
        self.strip = gr.HTML("", elem_id="finetune-strip")
        with gr.Column(visible=False, elem_id="finetune-after") as self.after:
            self.said = gr.HTML(status_line(IN_CHAT), elem_id="finetune-said")
            with gr.Row(elem_classes="buttons"):
                self.download = gr.DownloadButton("Download", size="sm", min_width=90, elem_id="finetune-download")
                self.merge = gr.Button("Merge into a pair", size="sm", min_width=130, elem_id="finetune-merge")
            with gr.Row(elem_classes="buttons"):
                self.repository = gr.Textbox(placeholder="USER/NAME on the hub", show_label=False, container=False, max_lines=1, scale=2)
                self.publish = gr.Button("Publish", size="sm", min_width=90)
        with gr.Accordion("Log", open=False, elem_id="finetune-log"):
            self.log = gr.Code("", language=None, show_label=False, interactive=False, lines=8, max_lines=16)

    def _wire(self, tab: gr.Tab) -> None:
        self.looked = [
            self.folder, self.source, self.report, self.describe, self.tiles, self.wrong, self.problems, self.name, self.needs
        ]  # fmt: skip
        job = [
            self.chosen, self.told, self.timer, self.progress, *self.buttons.values(), self.resume, self.lower, self.facts, self.plot,
            self.strip, self.after, self.log, self.download,
        ]  # fmt: skip
        recipe = {self.source, self.what, *self.settings.values()}
        self.cost = cost = {"fn": self.estimate, "inputs": recipe, "outputs": [self.needs], **QUICK}
        self.check.click(self.look, [self.folder], self.looked, **QUICK).success(**cost)
        self.folder.submit(self.look, [self.folder], self.looked, **QUICK).success(**cost)
        self.upload.upload(self.look, [self.upload], self.looked, **QUICK).success(**cost)
        self.mine.click(self.look_at_mine, None, self.looked, **QUICK).success(**cost)
        self.describe.click(self.caption, [self.source], self.looked, **QUICK)
        self.machine.input(self.set_preset, [self.machine], list(self.settings.values()), **QUICK).success(**cost)
        touched = [self.what.input, *(each.input for each in self.settings.values())]
        gr.on(touched, trigger_mode="always_last", **cost)
        self.start.click(self.begin, recipe | {self.name}, [self.report, *job], **QUICK)
        self.timer.tick(self.follow, {self.chosen, self.told}, job, **QUICK)
        self.chosen.input(self.show, {self.chosen}, job, **QUICK)
        tab.select(self.arrive, {self.chosen}, job, **QUICK)
        for wish, button in self.buttons.items():
            button.click(self._asking(wish), [self.chosen], [self.progress], **QUICK)
        self.resume.click(self.go_on, [self.chosen], job, **QUICK)
        self.lower.click(self.go_on_lower, [self.chosen], job, **QUICK)
        self.merge.click(self.merge_in, [self.chosen], [self.said], **QUICK)
        self.publish.click(self.push, [self.chosen, self.repository], [self.said], **QUICK)

    def spoken(self) -> Updates:
        """What the browser cannot put into its language by itself."""
        return {
            self.what: gr.update(choices=choices(WHAT)),
            self.machine: gr.update(choices=choices(PRESET_NAMES)),
            self.report: status_line(FIRST),
            self.progress: status_line(NOTHING),
            self.said: status_line(IN_CHAT),
        }

    # Step 1

    def look(self, source: str | None) -> Iterator[Updates]:
        """Read and check what somebody brought, and show it."""
        yield from kind_words(self._looked(source), self.report)

    def look_at_mine(self) -> Iterator[Updates]:
        yield from kind_words(self._looked(str(home() / "examples"), CHOOSE_FIRST), self.report)

    def _looked(self, source: str | None, missing: str = "") -> Iterator[Updates]:
        if not source or not str(source).strip():
            raise Refused("Name a folder or a zip with examples.")
        path = Path(str(source).strip()).expanduser()
        if missing and not path.is_dir():
            raise Refused(missing)
        if not self.local and not path.resolve().is_relative_to(data_home().resolve()):
            raise Refused("Only who sits at this machine may name its folders; bring a zip.")
        yield {self.report: status_line("Looking at it ...", "busy")}
        from duogen.dataset.describe import describe, rows
        from duogen.dataset.readers import read

        try:
            data = read(path)
            report = describe(data, self._tokens(), FineTune().max_tokens, FineTune().validation)
        except (ValueError, Refused) as error:
            yield {self.report: status_line(str(error), "bad"), self.tiles: "", self.source: ""}
            return
        said = "".join(f"<li>{words}</li>" for words in map(sentence, report.sentences()))
        name = re.sub(r"[^\w-]+", "-", path.stem).strip("-").lower() or "my-style"
        yield {
            self.source: str(path), self.report: f"<ul class='plain'>{said}</ul>",
            self.describe: gr.Button(visible=bool(report.loose)), self.tiles: self._tiles(data.examples),
            self.wrong: gr.Accordion(visible=bool(data.problems)), self.problems: shown_problems(rows(data)), self.name: _free(name),
        }  # fmt: skip

    def _tokens(self) -> Any:
        if self.shared.loading.engine is None:
            raise Refused(self.shared.loading.error or "The pair is still loading; try again in a moment.")
        return self.shared.loading.engine.tokens

    def _tiles(self, examples: list) -> str:
        from duogen.dataset.describe import words_of

        tiles = []
        for example in examples[:TILES]:
            pictures = example.pictures()[:4]
            tiles.append(([self._small(picture.file) for picture in pictures], words_of(example, 120)))
        return shown_tiles(tiles, len(examples))

    def _small(self, file: Path) -> str:
        with PILImage.open(file) as opened:
            opened.draft("RGB", (TILE_PIXELS, TILE_PIXELS))
            small = opened.convert("RGB")
            small.thumbnail((TILE_PIXELS, TILE_PIXELS))
        return self.pictures.keep(small)

    def _served(self, file: Path) -> str:
        """A copy of a sample where browsers may fetch it: a job's folder holds more than pictures."""
        if file not in self.known:
            with PILImage.open(file) as opened:
                self.known[file] = self.pictures.keep(opened.convert("RGB"))
        return self.known[file]

    def caption(self, source: str) -> Iterator[Updates]:
        """The pair describes what has no words; the .txt files are there to be corrected."""

        def done() -> Iterator[Updates]:
            from duogen.dataset.readers import read
            from duogen.finetune.captions import caption_all

            self._tokens()
            loose, loading = read(Path(source)).loose, self.shared.loading
            with loading.line.place(lambda before: None, threading.Event()):
                for count, (picture, words) in enumerate(caption_all(loading.engine, loose), 1):
                    yield {self.report: status_line(f"{count} of {len(loose)}: {picture.name}: {words}", "busy", share=count / len(loose))}
            yield from self._looked(source)

        yield from kind_words(done(), self.report)

    # Step 2

    def set_preset(self, machine: str) -> Updates:
        recipe = FineTune.load(machine)
        return {control: _at(recipe, path) for path, control in self.settings.items()}

    def _recipe(self, values: dict) -> FineTune:
        return controls.read(FineTune, self.settings, values)

    def estimate(self, values: dict) -> Updates:
        try:
            return {self.needs: self._needs(values[self.source], values[self.what], self._recipe(values))}
        except ValueError as error:
            return {self.needs: status_line(str(error), "bad")}

    def _needs(self, source: str, what: str, recipe: FineTune) -> str:
        """The estimate, in sentences."""
        if not source or self.shared.loading.engine is None:
            return ""
        from duogen.dataset.describe import describe
        from duogen.dataset.readers import read
        from duogen.finetune.cost import cost
        from duogen.hub.catalogue import find

        device = self.shared.loading.engine.device
        report = describe(read(Path(source)), self._tokens(), recipe.max_tokens, recipe.validation)
        pair = find(self.shared.loading.pair).folder
        return "".join(f"<p>{sentence(cost(pair, recipe, stage, report, device).sentence())}</p>" for stage in STAGES[what])

    # Step 3

    def begin(self, values: dict) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            if not values[self.source]:
                raise Refused("Look at a folder of examples first (step 1).")
            name = re.sub(r"[^\w-]+", "-", values[self.name] or "").strip("-")
            if not name or name in RESERVED:
                raise Refused("Give the adapter a name of letters and digits.")
            if (home() / name).exists():
                raise Refused(f"There is an adapter {name} already; choose another name.")
            recipe, job = self._recipe(values), Job(home() / name)
            job.write_order(
                {
                    "data": values[self.source], "pair": self.shared.loading.pair, "stage": values[self.what],
                    "device": self.shared.loading.wishes().device, "recipe": recipe.as_json(),
                }
            )  # fmt: skip
            job.start("finetune", "--out", str(job.folder), "--resume")
            yield self._shown(job, True)

        yield from kind_words(done(), self.report)

    # The job

    def _asking(self, wish: str) -> Any:
        def ask(name: str | None) -> str:
            if name:
                job_of(name).ask(wish)
            return status_line(OBEYED[wish], "busy")

        return ask

    def arrive(self, values: dict) -> Updates:
        """The newest training, or the one that was looked at."""
        known = jobs()
        job = next((each for each in known if each.name == values[self.chosen]), known[0] if known else None)
        return self._shown(job, True) if job else {self.timer: gr.Timer(active=True)}

    def show(self, values: dict) -> Updates:
        return self._shown(job_of(values[self.chosen]), True) if values[self.chosen] else {self.timer: gr.skip()}

    def follow(self, values: dict) -> Updates:
        if not values[self.chosen]:
            return {self.timer: gr.skip()}
        job = job_of(values[self.chosen])
        known = job.progress()
        if known.get("told") == values[self.told] and known["phase"] not in ("killed",):
            return {self.timer: gr.skip()}
        return self._shown(job, False)

    def go_on(self, name: str) -> Iterator[Updates]:
        yield from kind_words((self._again(job_of(each), None) for each in [name]), self.progress)

    def go_on_lower(self, name: str) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            job = job_of(name)
            known, order = job.progress(), job.order()
            recipe, stage = FineTune.of(order["recipe"]), known.get("stage") or ("paint" if order["stage"] == "2" else "talk")
            lower = recipe.with_smaller_steps(stage) if known.get("kind") == "loss" else recipe.with_less_memory(stage)
            yield self._again(job, order | {"recipe": lower.as_json()})

        yield from kind_words(done(), self.progress)

    def _again(self, job: Job, order: dict | None) -> Updates:
        if job.alive():
            raise Refused("It is running.")
        if order is not None:
            job.write_order(order)
        job.start("finetune", "--out", str(job.folder), "--resume")
        return self._shown(job, True)

    def _shown(self, job: Job, whole: bool) -> Updates:
        known, figures = job.progress(), {name: job.figures(name) for name in ("talk", "paint")}
        phase, running = known["phase"], known["phase"] not in ENDED
        lowers = phase == "failed" and known.get("kind") in ("memory", "loss")
        table, samples = plotted(figures), job.run / "samples"
        strip = shown_strip(job.samples(), lambda name: self._served(samples / name))
        mood = "busy" if running else "bad" if phase in ("failed", "killed") else ""
        updates = {
            self.told: known.get("told", 0.0), self.progress: bar(known, mood), self.facts: facts(known) if running else "",
            self.plot: gr.LinePlot(table, visible=len(table) > 0), self.strip: strip,
            self.resume: gr.Button(visible=phase in ("paused", "killed", "failed")), self.lower: gr.Button(visible=lowers),
            self.after: gr.Column(visible=(job.folder / "adapter.json").is_file() and not running), self.log: job.log(),
            **{button: gr.Button(visible=running) for button in self.buttons.values()},
        }  # fmt: skip
        if (job.folder / "adapter.json").is_file() and not running:
            updates[self.download] = gr.DownloadButton(value=self._packed(job, known.get("told", 0.0)))
        if whole:
            updates |= {self.chosen: gr.Dropdown([each.name for each in jobs()], value=job.name), self.timer: gr.Timer(active=True)}
        return updates

    # Afterwards

    def _packed(self, job: Job, told: float) -> str:
        """The adapter as a zip, without its states; made once."""
        if (job.name, told) not in self.zips:
            from duogen.finetune.model_card import packed

            self.zips[job.name, told] = str(packed(job.folder))
        return self.zips[job.name, told]

    def merge_in(self, name: str) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            out = home().parent / "pairs" / job_of(name).name
            if out.exists():
                raise Refused(f"It is there already: start with python app.py --pair {out}")
            yield {self.said: status_line("Merging ...", "busy")}
            pair = ["--pair", self.shared.loading.pair] if self.shared.loading.pair else []
            command = [sys.executable, "-m", "duogen", "merge", "--adapter", str(home() / name), "--out", str(out), *pair]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if ended.returncode:
                raise Refused(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "It could not be merged.")
            yield {self.said: status_line(f"The new pair is there: python app.py --pair {out}")}

        yield from kind_words(done(), self.said)

    def push(self, name: str, repository: str) -> Iterator[Updates]:
        def done() -> Iterator[Updates]:
            from duogen.finetune.model_card import push

            yield {self.said: status_line("Publishing ...", "busy")}
            yield {self.said: status_line(f"It is at {push(job_of(name).folder, repository)}, for you alone until you open it.")}

        yield from kind_words(done(), self.said)


def keep_example(conversation: Conversation) -> None:
    """The branch that is shown, as an example; the same one again takes its own place."""
    path = {turn.id: turn for turn in conversation.path()}
    save_conversation(replace(conversation, turns=path), home() / "examples" / str(conversation.head))


def job_of(name: str) -> Job:
    """Raises Refused unless it is the name of a job of ours."""
    if not re.fullmatch(r"[\w-]+", name or "") or not Job(home() / name).order():
        raise Refused("There is no such training.")
    return Job(home() / name)


RESERVED = ("cache", "unpacked", "examples")


def _free(name: str) -> str:
    """A name that no adapter has."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10_000))
    return next(each for each in names if not (home() / each).exists() and each not in RESERVED)


def _at(recipe: Any, path: controls.Path) -> Any:
    for name in path:
        recipe = getattr(recipe, name)
    return str(recipe) if path == ("seed",) else recipe
