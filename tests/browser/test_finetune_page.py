"""The Fine-tune tab in a real browser: from a folder to an adapter in the chat, with browser and server gone in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import fields
from pathlib import Path

import gradio as gr
import pytest
from filelock import Timeout
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation, load_conversation
from duogen.finetune.config import DiTConfig, FineTuneConfig, MLLMConfig
from duogen.finetune.jobs import Job
from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery
from duogen.options import Options
from tests.browser.test_everyone import LOOKS, faults
from tests.browser.test_languages import english_on
from tests.support.browser import SHOTS, Server, browser_only, open_part, overflow_width, send, settle, wait_until_answered
from tests.support.tiny import tiny_pair
from tests.support.waiting import patience, until
from tests.unit.test_examples import conversations, picture
from ui.parts import controls
from ui.parts.disk_space import DiskSpace
from ui.parts.gpu_sharing import GPUSharing
from ui.parts.i18n import TABLES, translate_into
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.parts.shared import Shared
from ui.parts.training_view import loss_points, samples_html
from ui.tabs.finetune import Finetune, keep_example


def examples(folder: Path) -> Path:
    names = ("boat", "tree", "car", "sun", "cat", "dog")
    rows = [[("user", [f"Draw a {name}."]), ("assistant", [f"The {name}.", f"images/{at}.png"])] for at, name in enumerate(names)]
    data = conversations(folder, *rows, [("user", ["Hi"])])
    for at in range(len(rows)):
        picture(data / "images" / f"{at}.png", at)
    return data


def to_tab(page) -> None:
    if not page.locator("button[role=tab]:has-text('Fine-tune')").is_visible():
        page.click(".overflow-menu > button")  # a narrow window keeps the last tabs there
        page.click(".overflow-dropdown button:has-text('Fine-tune')")
    else:
        page.click("button[role=tab]:has-text('Fine-tune')")
    page.wait_for_selector("#finetune-start")
    settle(page)  # as `open_part` says


def start_training(page, data: Path) -> None:
    """Look at the folder, choose few steps for stage 1 and no end of them for stage 2, and start; returns once it learns to paint."""
    to_tab(page)
    page.fill("#finetune-folder textarea, #finetune-folder input", str(data))
    page.click("#finetune-check")
    page.wait_for_selector("#finetune-tiles .tile img")
    expect(page.locator("#finetune-report")).to_contain_text("6 examples")
    expect(page.locator("#finetune-report")).to_contain_text("1 example left out")
    page.wait_for_selector("#finetune-needs p")
    needs = page.inner_text("#finetune-needs")
    each_steps = "#finetune-settings input[aria-label='number input for Steps']"
    open_part(page, "#finetune-settings button.label-wrap", each_steps)
    steps = page.locator(each_steps)
    for each, count in ((steps.first, "8"), (steps.last, "1000000")):
        each.fill(count)
        each.press("Tab")
        expect(page.locator("#finetune-needs")).not_to_have_text(needs, use_inner_text=True)
        needs = page.inner_text("#finetune-needs")
    page.click("#finetune-settings button.label-wrap")
    page.screenshot(path=SHOTS / "finetune-start.png", full_page=True)
    page.click("#finetune-start")
    page.wait_for_selector("#finetune-progress:has-text('Stage 2: step')")


@browser_only
def test_from_a_folder_to_the_chat_while_browser_and_server_go(tab, tmp_path: Path) -> None:
    data, home = examples(tmp_path / "my-boats"), tmp_path / "home"
    home.mkdir()
    pair = ["--pair", str(tiny_pair(tmp_path / "pair"))]
    server, job = Server(home, *pair), Job(home / "finetune" / "my-boats")
    try:
        page = tab(server.address)
        page.wait_for_selector("#status:has-text('Ready')")
        start_training(page, data)
        page.context.close()
        server.end()
        assert job.is_alive()
        server = Server(home, *pair)
        page = tab(server.address)
        to_tab(page)
        page.wait_for_selector("#finetune-progress:has-text('Stage 2: step')")
        page.wait_for_selector("#finetune-strip .dit td img >> nth=1")  # a stop makes no more samples; fast machines get there late
        page.click("#finetune-stop")
        page.wait_for_selector("#finetune-progress:has-text('Done')")
        page.wait_for_selector("#finetune-after", state="visible")
        for shown in ("#finetune-strip .dit td img", "#finetune-strip .mllm td p"):
            page.wait_for_selector(f"{shown} >> nth=1")
        page.wait_for_function("[...document.querySelectorAll('#finetune-strip img')].every(img => img.naturalWidth > 0)")
        page.wait_for_selector("#finetune-plot :is(canvas, svg.marks)")
        page.screenshot(path=SHOTS / "finetune-done.png", full_page=True)
        assert overflow_width(page) <= 0
        page.click("button[role=tab]:has-text('Chat')")
        page.click("#pair button.label-wrap")
        page.click("#adapter-my-boats input[type=checkbox]")
        page.wait_for_selector("#adapters-status:has-text('On: my-boats (1)')")
        page.screenshot(path=SHOTS / "finetune-adapters.png")
        send(page, "Draw a boat.")
        wait_until_answered(page)
    finally:
        server.end()
        if job.is_alive():
            os.kill(job.progress()["pid"], signal.SIGKILL)


@browser_only
@pytest.mark.parametrize("look", LOOKS)
def test_the_tab_is_for_everyone(fast, tab, look: str) -> None:
    page = tab(fast.address, **LOOKS[look])
    page.wait_for_selector("#talk .example")
    to_tab(page)
    page.click("#finetune-settings button.label-wrap")
    settle(page)
    page.screenshot(path=SHOTS / f"finetune-{look.replace(', ', '-')}.png")
    assert faults(page) == [] and overflow_width(page) <= 0


@browser_only
@pytest.mark.parametrize(("locale", "name"), [("de-DE", "Anlernen"), ("zh-CN", "微调")])
def test_the_tab_speaks_the_language_of_the_browser(fast, tab, locale: str, name: str) -> None:
    page = tab(fast.address, locale=locale)
    page.wait_for_selector("#talk .example")
    page.click(f"button[role=tab]:has-text('{name}')")
    page.wait_for_selector("#finetune-start")
    page.click("#finetune-settings button.label-wrap")
    settle(page)
    page.screenshot(path=SHOTS / f"finetune-{locale[:2]}.png")
    assert english_on(page) == [] and overflow_width(page) <= 0


def settings(kind: type) -> set[str]:
    """Names and helps of a recipe's fields, as the tab shows them."""
    helps = {each.metadata.get("help") for each in fields(kind)} | {each.name.replace("_", " ").capitalize() for each in fields(kind)}
    helps |= {f"## {each.metadata['label']}" for each in fields(kind) if each.metadata.get("label")}
    return helps - {None, "Mllm", "Dit"}


@pytest.mark.parametrize("language", TABLES)
def test_settings_and_reports_are_in_every_language(language: str) -> None:
    from duogen.dataset.describe import Report
    from duogen.finetune.cost import Cost

    assert set().union(*map(settings, (FineTuneConfig, MLLMConfig, DiTConfig))) - set(TABLES[language]) == set()
    report = Report("conversations", 12, 1, 24, (5, 7, 9), 1, 2, 3, {"64 x 64": 3}, 1, 2, [("a", "b")])
    costs = [Cost(stage, 1e9, 0.0, 3e3, guessed=guessed) for stage in ("mllm", "dit") for guessed in (False, True)]
    words = report.sentences() + [each.sentence() for each in costs]
    said = [translate_into(language, each) for each in words]
    assert not [each for each in said if re.search(r"\b(example|picture|minute|the|and|of)", each)], said


def test_a_chosen_answer_becomes_an_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from duogen.dataset.readers import read_dataset

    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    talk = Conversation().say("user", "Draw a boat.").say("assistant", "Here.", PILImage.new("RGB", (9, 9), "red"))
    keep_example(talk)
    keep_example(talk)
    keep_example(talk.say("user", "And a tree?").say("assistant", "Here too."))
    data = read_dataset(tmp_path / "finetune" / "examples")
    assert sorted(len(example.lines) for example in data.examples) == [2, 4] and not data.problems
    assert len(load_conversation(tmp_path / "finetune" / "examples" / talk.head).turns) == 2


def shared(home: Path) -> Shared:
    loading = Loading(words="Ready")
    loading.finished.set()
    gallery = Gallery(home)
    space = DiskSpace(gallery, ConversationStore(home / "conversations"), (), home / "uploads")
    return Shared(loading, gallery, space, PictureFolder(home / "previews", 9), controls.build(Options))


def test_what_is_shown_of_a_job_in_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    with gr.Blocks():
        own = Finetune(gr.Tab("Fine-tune"), shared(tmp_path), PictureFolder(tmp_path / "p", 9))
    job = Job(tmp_path / "finetune" / "boats")
    order = {"stage": "dit", "recipe": FineTuneConfig().as_json(), "data": "x", "pair": None, "device": "cpu"}
    job.write_request(order)
    with job.hold_lock():
        job.report(phase="training", words="Stage 2: step 3 of 9", step=3, steps=9, loss=0.5)
        shown = own.refresh({own.chosen: None})
        assert "step 3" in shown[own.progress] and shown[own.buttons["pause"]].visible and not shown[own.resume].visible
    shown = own.show_job({own.chosen: "boats"})
    assert "killed" in shown[own.progress] and shown[own.resume].visible and not shown[own.buttons["pause"]].visible
    started = []
    monkeypatch.setattr(Job, "start", lambda self, *arguments: started.append(arguments))
    job.report(phase="failed", kind="memory", words="Memory ran out.", stage="dit")
    assert own.show_job({own.chosen: "boats"})[own.lower].visible
    list(own.resume_lower("boats"))
    assert started == [("finetune", "--out", str(job.folder), "--resume")] and job.read_request()["recipe"]["dit"]["batch"] == 2
    values = {control: control.value for control in own.settings.values()} | {own.source: str(tmp_path), own.what: "both"}
    values |= {own.trigger: " sks ", own.prompts: "A boat\n\n A car "}
    for name, right in (("boats", False), ("cache", False), ("", False), ("ships", True)):
        list(own.start_training(values | {own.name: name}))
        assert (tmp_path / "finetune" / "ships").exists() == right
    request = Job(tmp_path / "finetune" / "ships").read_request()
    assert (request["trigger"], request["prompts"]) == ("sks", ["A boat", "A car"])
    assert request["recipe"] == FineTuneConfig.load("cpu").as_json()
    assert "Begin a request with sks" in own.show_job({own.chosen: "ships"})[own.said]


def test_a_caption_is_changed_in_its_tile_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from duogen.dataset.readers import read_dataset

    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    with gr.Blocks():
        own = Finetune(gr.Tab("Fine-tune"), shared(tmp_path), PictureFolder(tmp_path / "p", 9))
    keep = own._make_caption_keeper()
    for name in ("a", "b"):
        picture(tmp_path / "data" / f"{name}.png", 1)
    (tmp_path / "data" / "a.txt").write_text("A <house")
    html = own._tiles_html(read_dataset(tmp_path / "data"))
    assert html.count("A &lt;house") == 1 and html.count("<textarea") == 2
    loose, house = re.findall(r'data-key="([^"]+)"', html)
    assert [keep([house, "A red house\n"]), keep([loose, "A tree"]), keep([house, " "]), keep(["../a", "x"]), keep(None)] == [
        "kept", "kept", "empty", "gone", "gone"
    ]  # fmt: skip
    assert [example.lines[0].text() for example in read_dataset(tmp_path / "data").examples] == ["A red house", "A tree"]


def test_curve_and_strip(tmp_path: Path) -> None:
    figures = {"mllm": [{"step": 0, "validation": 2.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0, "validation": 1.5}], "dit": []}
    table = loss_points(figures)
    assert set(table["kind"]) == {"What to say", "What to say, kept back"} and len(table) == 4
    samples = [{"stage": "mllm", "step": step, "shown": [{"prompt": "<b>Hi", "text": f"<i>{step}"}]} for step in range(20)]
    shown = samples_html(samples, lambda name: name)
    assert "&lt;b&gt;Hi" in shown and "&lt;i&gt;0" in shown and "&lt;i&gt;19" in shown and "<i>" not in shown
    assert shown.count("<th>") == 8


def test_the_pair_leaves_the_gpu_for_a_training_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duogen.models.pipeline  # noqa: F401  giving up the GPU needs it, and importing it takes longer than this test may wait
    from duogen.finetune.jobs import serving_lock

    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    monkeypatch.setattr("ui.parts.gpu_sharing.POLL_SECONDS", 0.02)
    opened = []

    class Engine:
        devices = ("cuda:1", "cuda:0")

    def start(loading: Loading) -> None:
        loading.engine = Engine()
        loading.finished.set()
        opened.append(time.monotonic())

    monkeypatch.setattr(Loading, "start", start)
    loading = Loading(words="Ready")
    loading.start()
    GPUSharing(loading).start()
    job = Job(tmp_path / "finetune" / "boats")
    job.write_request({"stage": "dit"})

    def held() -> bool:
        try:
            with serving_lock("cuda:0").acquire(timeout=0):
                return False
        except Timeout:
            return True

    until(held)
    with job.hold_lock():
        job.report(phase="waiting", words="Waiting", device="cuda:0", wants_gpu=True)
        with serving_lock("cuda:0").acquire(timeout=patience()):
            job.report(phase="training", words="Training", wants_gpu=False)
            assert loading.engine is None and "training" in loading.words and not loading.finished.is_set()
        until(lambda: loading.engine is not None and loading.finished.is_set())
    assert len(opened) >= 2 and json.dumps(job.read_request())
