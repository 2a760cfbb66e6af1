"""The Fine-tune tab: from a folder of examples to an adapter, in three steps. The training is its own process; this tab reads its files.

The tab keeps nothing of a job: after a reload or a restart it finds the job by its folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image as PILImage

from duogen.conversation import Conversation, save_conversation
from duogen.evaluate.arena import arena_home
from duogen.files import write_beside
from duogen.finetune.config import PRESETS, STAGES, FineTuneConfig
from duogen.finetune.jobs import ENDED, Job, finetune_home, list_jobs
from duogen.mentions import spell_out
from duogen.options import split_device
from duogen.paths import ROOT, data_home
from duogen.text_decoding import clean_message
from ui import STATIC
from ui.parts import controls
from ui.parts.i18n import translate, translate_choices
from ui.parts.offered_files import OfferedFiles
from ui.parts.pictures import PictureFolder
from ui.parts.shared import QUICK, Refusal, Shared, Updates, catch_refusals, status_line, translate_html
from ui.parts.training_view import Tile, figures_html, loss_points, problems_html, progress_html, samples_html, tiles_html
from ui.tabs.crop_tool import CropTool, dialog_html

if TYPE_CHECKING:
    from duogen.answerer import Answerer
    from duogen.dataset.format import Data

WHAT = {"both": "Both", "mllm": "What to say and when to draw", "dit": "How to paint it"}
PRESET_NAMES = {"cpu": "This computer's processor"} | {name: f"A GPU with {name[:-2]} GB" for name in PRESETS[1:]}
TILES = 48
LONGEST_CAPTION = 10_000
TILE_SCRIPTS = [STATIC / "captions.js", STATIC / "crops.js"]
POLL_SECONDS = 1.0
FIRST = "Bring a folder or zip with examples: pictures with .txt captions, before and after, conversations, or a dataset."
NOTHING = "Nothing is being trained."
IN_CHAT = "It is in the head under the pair's name, among the adapters."
CHOOSE_FIRST = "Choose an answer in the chat first: the hat below it makes it an example."
OBEYED = {
    "sample": "It looks at samples after this step.",
    "save": "It saves after this step.",
    "pause": "It pauses within seconds ...",
    "stop": "It stops within seconds, and keeps what it has learnt ...",
}


class Finetune:
    """The tab for all browsers. `local` is whether users of the page may name folders of this machine."""

    def __init__(self, tab: gr.Tab, shared: Shared, pictures: PictureFolder, local: bool = True) -> None:
        self.shared, self.pictures, self.local = shared, pictures, local
        finetune_home().mkdir(parents=True, exist_ok=True)
        self.known: dict[Path, str] = {}
        self.zips: dict[tuple[str, float], str] = {}
        self.captions, self.crops = OfferedFiles(), CropTool(shared, pictures)  # what browsers may change, by the keys in their tiles
        with tab, gr.Column(elem_id="finetune"):
            self._lay_out()
        self._wire(tab)

    # Laying out

    def _lay_out(self) -> None:
        self.source, self.last_report, self.timer = gr.State(""), gr.State(0.0), gr.Timer(POLL_SECONDS, active=False)
        with gr.Row(elem_id="finetune-body"):
            with gr.Column(scale=2, min_width=320):
                self._lay_out_steps()
            with gr.Column(scale=3, min_width=320, elem_id="finetune-job"):
                self._lay_out_job()
        with gr.Row(visible=False, elem_id="finetune-now") as self.now:
            self._lay_out_now()

    def _lay_out_steps(self) -> None:
        gr.Markdown("## 1 · Examples", elem_classes="step")
        self.folder = gr.Textbox(
            label="Folder or zip on this machine", placeholder="/home/me/recipes", visible=self.local, elem_id="finetune-folder"
        )
        with gr.Row(elem_classes="buttons"):
            self.check = gr.Button("Look at it", size="sm", variant="primary", min_width=100, visible=self.local, elem_id="finetune-check")
            self.upload = gr.UploadButton("Bring a zip", file_types=[".zip"], size="sm", min_width=100, elem_id="finetune-upload")
            self.mine = gr.Button("Answers I chose in the chat", size="sm", min_width=170, elem_id="finetune-mine")
            self.votes = gr.Button("Learn from my votes", size="sm", min_width=150, elem_id="finetune-votes")
        self.report = gr.HTML(status_line(FIRST), elem_id="finetune-report")
        with gr.Row(elem_classes="buttons"):
            self.describe = gr.Button("Describe the pictures that have no words", size="sm", visible=False, elem_id="finetune-describe")
        script = "\n".join(file.read_text(encoding="utf-8") for file in TILE_SCRIPTS)
        functions = [self._make_caption_keeper(), *self.crops.make_functions()]
        self.tiles = gr.HTML("", elem_id="finetune-tiles", js_on_load=script, server_functions=functions)
        with gr.Accordion("What is wrong with some of it", open=False, visible=False, elem_id="finetune-wrong") as self.wrong:
            self.problems = gr.HTML("")
        gr.Markdown("## 2 · What to teach", elem_classes="step")
        self.what = gr.Radio(
            translate_choices(WHAT), value="both", label="What", show_label=False, container=False, elem_id="finetune-what"
        )
        self.machine = gr.Dropdown(translate_choices(PRESET_NAMES), value="cpu", label="Where it runs", elem_id="finetune-machine")
        self.trigger = gr.Textbox(
            label="A word that calls it up", info="It begins every request of the examples; empty needs none.", max_lines=1,
            elem_id="finetune-trigger",
        )  # fmt: skip
        self.prompts = gr.Textbox(
            label="Samples of your own", info="Requests to paint and answer while it learns, one a line; empty takes some of the examples.",
            lines=2, max_lines=4, elem_id="finetune-prompts",
        )  # fmt: skip
        with gr.Accordion("All settings", open=False, elem_id="finetune-settings"):
            self.settings = controls.build(FineTuneConfig)
            for path, control in self.settings.items():
                control.value = _value_at(FineTuneConfig.load("cpu"), path)
        form = "#finetune-what, #finetune-settings"
        self.needs = gr.HTML("", elem_id="finetune-needs", js_on_load=controls.FORM_SCRIPT, form=form)
        gr.Markdown("## 3 · Start", elem_classes="step")
        self.name = gr.Textbox(label="Name of the adapter", value="my-style", max_lines=1, elem_id="finetune-name")
        self.start = gr.Button("Start", variant="primary", elem_id="finetune-start")

    def _lay_out_job(self) -> None:
        self.chosen = gr.Dropdown([], label="Training", elem_id="finetune-chosen", interactive=True)
        self.idle = gr.HTML(status_line(NOTHING), elem_id="finetune-idle")
        with gr.Row(elem_classes="buttons"):
            self.buttons = _lay_out_buttons({"sample": "Sample now", "save": "Save now"})
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

    def _lay_out_now(self) -> None:
        """What the training does at this moment: at the lower edge of the window, wherever the tab is scrolled."""
        self.progress = gr.HTML("", elem_id="finetune-progress")
        with gr.Row(elem_classes="buttons"):
            self.buttons |= _lay_out_buttons({"pause": "Pause", "stop": "Stop and keep"})
            self.resume = gr.Button("Resume", size="sm", variant="primary", min_width=90, visible=False, elem_id="finetune-resume")
            self.lower = gr.Button("Lower and go on", size="sm", variant="primary", min_width=130, visible=False, elem_id="finetune-lower")

    def _wire(self, tab: gr.Tab) -> None:
        self.example_outputs = [
            self.folder, self.source, self.report, self.describe, self.tiles, self.wrong, self.problems, self.name, self.needs
        ]  # fmt: skip
        job = [
            self.chosen, self.last_report, self.timer, self.progress, *self.buttons.values(), self.resume, self.lower, self.facts,
            self.plot, self.strip, self.after, self.said, self.log, self.download, self.now, self.idle,
        ]  # fmt: skip
        recipe = {self.source, self.what, *self.settings.values()}
        cost: dict[str, Any] = {"fn": self.estimate, "inputs": recipe, "outputs": [self.needs], **QUICK}
        self.cost = cost
        self.check.click(self.read_examples, [self.folder], self.example_outputs, **QUICK).success(**cost)
        self.folder.submit(self.read_examples, [self.folder], self.example_outputs, **QUICK).success(**cost)
        self.upload.upload(self.read_examples, [self.upload], self.example_outputs, **QUICK).success(**cost)
        self.mine.click(self.read_chat_examples, None, self.example_outputs, **QUICK).success(**cost)
        self.votes.click(self.read_votes, None, self.example_outputs, **QUICK).success(**cost)
        self.describe.click(self.caption_pictures, [self.source], self.example_outputs, **QUICK)
        self.machine.input(self.set_preset, [self.machine], list(self.settings.values()), **QUICK).success(**cost)
        self.needs.input(trigger_mode="always_last", **cost)
        self.start.click(self.start_training, recipe | {self.name, self.trigger, self.prompts}, [self.report, *job], **QUICK)
        self.timer.tick(self.follow, {self.chosen, self.last_report}, job, **QUICK)
        self.chosen.input(self.show_job, {self.chosen}, job, **QUICK)
        tab.select(self.refresh, {self.chosen}, job, **QUICK).then(self.show_votes, None, [self.votes], **QUICK)
        for command, button in self.buttons.items():
            button.click(self._send_command(command), [self.chosen], [self.progress], **QUICK)
        self.resume.click(self.resume_job, [self.chosen], job, **QUICK)
        self.lower.click(self.resume_lower, [self.chosen], job, **QUICK)
        self.merge.click(self.merge_adapter, [self.chosen], [self.said], **QUICK)
        self.publish.click(self.publish_adapter, [self.chosen, self.repository], [self.said], **QUICK)

    def translate(self) -> Updates:
        """Updates for the texts that the browser cannot translate by itself."""
        return {
            self.what: gr.update(choices=translate_choices(WHAT)),
            self.machine: gr.update(choices=translate_choices(PRESET_NAMES)),
        }

    # Step 1

    def read_examples(self, source: str | None) -> Iterator[Updates]:
        """Read, check and show a folder or zip of examples."""
        yield from catch_refusals(self._read_source(source), self.report)

    def read_chat_examples(self) -> Iterator[Updates]:
        yield from catch_refusals(self._read_source(str(finetune_home() / "examples"), CHOOSE_FIRST), self.report)

    def show_votes(self) -> Updates:
        """Show how many votes there are to learn from."""
        from duogen.finetune.preferences import count_votes

        count = count_votes(arena_home())
        return {self.votes: gr.Button(translate(f"Learn from my votes ({count})") if count else translate("Learn from my votes"))}

    def read_votes(self) -> Iterator[Updates]:
        """Show what the votes of the Arena and the marks of the chat can teach."""

        def updates() -> Iterator[Updates]:
            yield {self.report: status_line("Looking at it ...", "busy")}
            from duogen.dataset.describe import problem_rows
            from duogen.finetune.preferences import KIND, choose_stages, read_preferences

            data = read_preferences(arena_home())
            choose_stages("both", data.examples)
            problems = problem_rows(data)
            yield {
                self.source: str(arena_home()), self.report: status_line(f"{len(data.examples)} votes to learn from."),
                self.describe: gr.Button(visible=False), self.tiles: "", self.wrong: gr.Accordion(visible=bool(problems)),
                self.problems: problems_html(problems), self.name: _free_name(KIND),
            }  # fmt: skip

        yield from catch_refusals(updates(), self.report)

    def _read_source(self, source: str | None, missing: str = "") -> Iterator[Updates]:
        if not source or not str(source).strip():
            raise Refusal("Name a folder or a zip with examples.")
        path = Path(str(source).strip()).expanduser()
        if missing and not path.is_dir():
            raise Refusal(missing)
        if not self.local and not path.resolve().is_relative_to(data_home().resolve()):
            raise Refusal("Only a user on this machine can name its folders; upload a zip.")
        yield {self.report: status_line("Looking at it ...", "busy")}
        from duogen.dataset.describe import describe, problem_rows
        from duogen.dataset.readers import read_dataset

        try:
            data = read_dataset(path)
            report = describe(data, self._engine().tokens, FineTuneConfig().max_tokens, FineTuneConfig().validation)
        except (ValueError, Refusal) as error:
            yield {self.report: status_line(str(error), "bad"), self.tiles: "", self.source: ""}
            return
        said = "".join(f"<li>{words}</li>" for words in map(translate_html, report.sentences()))
        name = re.sub(r"[^\w-]+", "-", path.stem).strip("-").lower() or "my-style"
        problems = problem_rows(data)
        yield {
            self.source: str(path), self.report: f"<ul class='plain'>{said}</ul>",
            self.describe: gr.Button(visible=bool(report.loose)), self.tiles: self._tiles_html(data),
            self.wrong: gr.Accordion(visible=bool(problems)), self.problems: problems_html(problems),
            self.name: _free_name(name),
        }  # fmt: skip

    def _engine(self) -> Answerer:
        """Raises Refusal: no pair is open."""
        if self.shared.loading.engine is None:
            raise Refusal(self.shared.loading.error or "The pair is still loading; try again in a moment.")
        return self.shared.loading.engine

    def _tiles_html(self, data: Data) -> str:
        """The first examples, and pictures that have no words yet. Captions in files of their own and crops can be changed in place."""
        from duogen.dataset.describe import example_text
        from duogen.dataset.format import Picture
        from duogen.dataset.layouts.captions import find_caption_file
        from duogen.finetune.captions import caption_files

        tiles = []
        for picture, words in caption_files(data.loose).items():
            tiles.append(Tile([self.crops.make_tile(Picture(picture).with_crop())], "", self.captions.offer(words)))
        for example in data.examples[: max(0, TILES - len(tiles))]:
            pictures, words = [self.crops.make_tile(picture) for picture in example.pictures()[:4]], find_caption_file(example)
            said = example_text(example, LONGEST_CAPTION if words else 120)
            tiles.append(Tile(pictures, said, self.captions.offer(words) if words else ""))
        return tiles_html(tiles[:TILES], len(data.examples) + len(data.loose)) + dialog_html()

    def _make_caption_keeper(self) -> Callable[[Any], str]:
        def keep_caption(given: Any) -> str:
            """Write a caption that was changed in its tile, given as key and words; returns which of `CAPTION_WORDS` to say."""
            key, words = map(str, given) if isinstance(given, list) and len(given) == 2 else ("", "")
            file, said = self.captions.find(key), clean_message(words)[:LONGEST_CAPTION]
            if file is None:
                return "gone"
            if not said:
                return "empty"
            try:
                write_beside(file, said.encode())
            except OSError:
                return "failed"
            return "kept"

        return keep_caption

    def _serve_sample(self, file: Path) -> str:
        """A copy of a sample that browsers may fetch: the folder of a job holds more than pictures."""
        if file not in self.known:
            with PILImage.open(file) as opened:
                self.known[file] = self.pictures.keep(opened.convert("RGB"))
        return self.known[file]

    def caption_pictures(self, source: str) -> Iterator[Updates]:
        """Let the pair describe pictures without words, into .txt files that a person can correct."""

        def updates() -> Iterator[Updates]:
            from duogen.dataset.readers import read_dataset
            from duogen.finetune.captions import caption_all

            self._engine()
            loose, loading = read_dataset(Path(source)).loose, self.shared.loading
            with loading.queue.wait_turn(lambda before: None, threading.Event()):
                for count, (picture, words) in enumerate(caption_all(self._engine(), loose), 1):
                    yield {self.report: status_line(f"{count} of {len(loose)}: {picture.name}: {words}", "busy", share=count / len(loose))}
            yield from self._read_source(source)

        yield from catch_refusals(updates(), self.report)

    # Step 2

    def set_preset(self, machine: str) -> Updates:
        recipe = FineTuneConfig.load(machine)
        return {control: _value_at(recipe, path) for path, control in self.settings.items()}

    def _recipe(self, values: dict) -> FineTuneConfig:
        return controls.read(FineTuneConfig, self.settings, values)

    def estimate(self, values: dict) -> Updates:
        try:
            return {self.needs: self._cost_html(values[self.source], values[self.what], self._recipe(values))}
        except ValueError as error:
            return {self.needs: status_line(str(error), "bad")}

    def _cost_html(self, source: str, what: str, recipe: FineTuneConfig) -> str:
        """The estimate, in sentences."""
        engine = self.shared.loading.engine
        if not source or engine is None:
            return ""
        from duogen.dataset.describe import describe
        from duogen.finetune.cost import estimate_cost, size_steps
        from duogen.finetune.preferences import choose_stages, read_examples
        from duogen.hub.catalogue import find

        data = read_examples(Path(source), _are_votes(source))
        if _are_votes(source):
            what, recipe = choose_stages(what, data.examples), replace(recipe, replay=0.0)
        report = describe(data, engine.tokens, recipe.max_tokens, recipe.validation)
        pair = find(self.shared.loading.pair).folder
        sized = size_steps(pair, recipe, STAGES[what], report, engine.device)
        costs = [estimate_cost(pair, sized, stage, report, engine.device) for stage in STAGES[what]]
        return "".join(f"<p>{' '.join(map(translate_html, each.sentences()))}</p>" for each in costs)

    # Step 3

    def start_training(self, values: dict) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            if not values[self.source]:
                raise Refusal("Look at a folder of examples first (step 1).")
            name = re.sub(r"[^\w-]+", "-", values[self.name] or "").strip("-")
            if not name or name in RESERVED:
                raise Refusal("Give the adapter a name of letters and digits.")
            if (finetune_home() / name).exists():
                raise Refusal(f"There is an adapter {name} already; choose another name.")
            recipe, job, votes = self._recipe(values), Job(finetune_home() / name), _are_votes(values[self.source])
            data = _keep_votes(job, values[self.what]) if votes else values[self.source]
            job.write_request(
                {
                    "data": str(data), "votes": votes, "pair": self.shared.loading.pair, "stage": values[self.what],
                    "device": split_device(self.shared.loading.load_options().device)[1], "recipe": recipe.as_json(),
                    "trigger": clean_message(values[self.trigger] or ""), "prompts": _read_lines(values[self.prompts]),
                }
            )  # fmt: skip
            job.start("finetune", "--out", str(job.folder), "--resume")
            yield self._render(job, True)

        yield from catch_refusals(updates(), self.report)

    # The job

    def _send_command(self, command: str) -> Callable[[str | None], str]:
        def send(name: str | None) -> str:
            if name:
                find_job(name).send_command(command)
            return status_line(OBEYED[command], "busy")

        return send

    def refresh(self, values: dict) -> Updates:
        """Show the chosen training, else the newest."""
        known = list_jobs()
        job = next((each for each in known if each.name == values[self.chosen]), known[0] if known else None)
        return self._render(job, True) if job else {self.timer: gr.Timer(active=True)}

    def show_job(self, values: dict) -> Updates:
        return self._render(find_job(values[self.chosen]), True) if values[self.chosen] else {self.timer: gr.skip()}

    def follow(self, values: dict) -> Updates:
        if not values[self.chosen]:
            return {self.timer: gr.skip()}
        job = find_job(values[self.chosen])
        known = job.progress()
        if known.get("updated") == values[self.last_report] and known["phase"] not in ("killed",):
            return {self.timer: gr.skip()}
        return self._render(job, False)

    def resume_job(self, name: str) -> Iterator[Updates]:
        yield from catch_refusals((self._restart(find_job(each), None) for each in [name]), self.progress)

    def resume_lower(self, name: str) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            job = find_job(name)
            known, request = job.progress(), job.read_request()
            recipe, stage = FineTuneConfig.from_json(request["recipe"]), known.get("stage") or STAGES[request["stage"]][0]
            lower = recipe.with_smaller_steps(stage) if known.get("kind") == "loss" else recipe.with_less_memory(stage)
            yield self._restart(job, request | {"recipe": lower.as_json()})

        yield from catch_refusals(updates(), self.progress)

    def _restart(self, job: Job, request: dict | None) -> Updates:
        if job.is_alive():
            raise Refusal("It is running.")
        if request is not None:
            job.write_request(request)
        job.start("finetune", "--out", str(job.folder), "--resume")
        return self._render(job, True)

    def _render(self, job: Job, whole: bool) -> Updates:
        known, figures = job.progress(), {name: job.figures(name) for name in STAGES["both"]}
        phase, running = known["phase"], known["phase"] not in ENDED
        lowers = phase == "failed" and known.get("kind") in ("memory", "loss")
        table, samples = loss_points(figures), job.run / "samples"
        strip = samples_html(job.samples(), lambda name: self._serve_sample(samples / name))
        mood = "busy" if running else "bad" if phase in ("failed", "killed") else ""
        updates = {
            self.last_report: known.get("updated", 0.0), self.progress: progress_html(known, mood), self.now: gr.Row(visible=True),
            self.idle: gr.HTML(visible=False), self.said: status_line(_say_where(job)),
            self.facts: figures_html(known) if running else "",
            self.plot: gr.LinePlot(table, visible=len(table) > 0), self.strip: strip,
            self.resume: gr.Button(visible=phase in ("paused", "killed", "failed")), self.lower: gr.Button(visible=lowers),
            self.after: gr.Column(visible=(job.folder / "adapter.json").is_file() and not running), self.log: job.log(),
            **{button: gr.Button(visible=running) for button in self.buttons.values()},
        }  # fmt: skip
        if (job.folder / "adapter.json").is_file() and not running:
            updates[self.download] = gr.DownloadButton(value=self._pack_adapter(job, known.get("updated", 0.0)))
        if whole:
            updates |= {self.chosen: gr.Dropdown([each.name for each in list_jobs()], value=job.name), self.timer: gr.Timer(active=True)}
        return updates

    # Afterwards

    def _pack_adapter(self, job: Job, updated: float) -> str:
        """The adapter as a zip without its training states; made once."""
        if (job.name, updated) not in self.zips:
            from duogen.finetune.model_card import zip_adapter

            self.zips[job.name, updated] = str(zip_adapter(job.folder))
        return self.zips[job.name, updated]

    def merge_adapter(self, name: str) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            out = finetune_home().parent / "pairs" / find_job(name).name
            if out.exists():
                raise Refusal(f"It is there already: start with python app.py --pair {out}")
            yield {self.said: status_line("Merging ...", "busy")}
            pair = ["--pair", self.shared.loading.pair] if self.shared.loading.pair else []
            command = [sys.executable, "-m", "duogen", "merge", "--adapter", str(finetune_home() / name), "--out", str(out), *pair]
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if ended.returncode:
                raise Refusal(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "It could not be merged.")
            yield {self.said: status_line(f"The new pair is there: python app.py --pair {out}")}

        yield from catch_refusals(updates(), self.said)

    def publish_adapter(self, name: str, repository: str) -> Iterator[Updates]:
        def updates() -> Iterator[Updates]:
            from duogen.finetune.model_card import push

            yield {self.said: status_line("Publishing ...", "busy")}
            yield {self.said: status_line(f"It is at {push(find_job(name).folder, repository)}, for you alone until you open it.")}

        yield from catch_refusals(updates(), self.said)


def keep_example(conversation: Conversation) -> None:
    """Save the current branch as an example. The same branch replaces its earlier example."""
    path = {turn.id: spell_out(turn) for turn in conversation.path()}
    save_conversation(replace(conversation, turns=path), finetune_home() / "examples" / str(conversation.head))


def _are_votes(source: str) -> bool:
    return Path(source) == arena_home()


def _keep_votes(job: Job, what: str) -> Path:
    """Copy the votes for a job. Raises ValueError: there are too few."""
    from duogen.finetune.preferences import choose_stages, copy_votes, read_preferences

    choose_stages(what, read_preferences(arena_home()).examples)
    copy_votes(arena_home(), job.votes_folder())
    return job.votes_folder()


def find_job(name: str) -> Job:
    """The job of this name. Raises Refusal: there is none."""
    if not re.fullmatch(r"[\w-]+", name or "") or not Job(finetune_home() / name).read_request():
        raise Refusal("There is no such training.")
    return Job(finetune_home() / name)


def _lay_out_buttons(names: dict[str, str]) -> dict[str, gr.Button]:
    """Buttons that send a command to a running job; they are hidden while none runs."""
    return {
        command: gr.Button(name, size="sm", min_width=90, visible=False, elem_id=f"finetune-{command}") for command, name in names.items()
    }


def _say_where(job: Job) -> str:
    """Where the adapter is, and the word that calls it up."""
    word = job.read_request().get("trigger")
    return f"{IN_CHAT} Begin a request with {word}, and it does what it learnt." if word else IN_CHAT


def _read_lines(words: str | None) -> list[str]:
    return [line for each in (words or "").splitlines() if (line := clean_message(each))]


RESERVED = ("cache", "unpacked", "examples")


def _free_name(name: str) -> str:
    """A name that no adapter has."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, 10_000))
    return next(each for each in names if not (finetune_home() / each).exists() and each not in RESERVED)


def _value_at(recipe: Any, path: controls.Path) -> Any:
    for name in path:
        recipe = getattr(recipe, name)
    return str(recipe) if path == ("seed",) else recipe
