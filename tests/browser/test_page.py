"""The page in a real browser with the shipped pair; the parts beneath it without one."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import gradio as gr
import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

import app
from duogen.conversation import Conversation, Image, Text
from duogen.events import Done, Event, Failed, ImageDone, ImageStarted, ImageStep, Notice, Stats, TextDelta, Thought
from duogen.library.conversations import ConversationStore
from duogen.library.pictures import PictureQuery
from duogen.options import Options
from tests.support.browser import ROOT, SHOTS, Server, act, browser_only, loaded_pictures, overflow_width, send, settle, wait_until_answered
from tests.support.waiting import patience, run_apart, until
from ui.chat.answers import Job, Task, answer_task, repaint_work
from ui.chat.history import Answer, messages, text_part
from ui.chat.panel import View
from ui.chat.welcome import FILMS, SOURCES, make_examples
from ui.page import Page
from ui.parts import controls
from ui.parts.i18n import translate_into
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

GUIDE = "How do I draw a red house with a blue door?"
BUNDLED = ROOT / "weights" / "duogen-sketch"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the shipped pair, started as people start it."""
    server = Server(tmp_path_factory.mktemp("home"), fresh=True)
    yield server
    server.end()


@browser_only
def test_is_up_at_once_and_explains_itself(server: Server, tab) -> None:
    page = tab(server.address)
    expect(page.locator("#status")).to_contain_text(re.compile(r"\S"))
    page.wait_for_selector("#talk .example")
    expect(page.locator("#status")).to_contain_text("Ready")
    expect(page.locator("#talk .placeholder h2")).to_contain_text(re.compile(r"\S"))
    expect(page.locator("#talk .limits")).to_contain_text("no photographs")
    page.screenshot(path=SHOTS / "empty-light.png")
    page.click("#talk .limits button")
    page.reload()
    page.wait_for_selector("#talk .example")
    expect(page.locator("#talk .limits"), "what a person has read stays away").not_to_be_visible()
    page.click("#drawer")
    page.wait_for_selector("#options input[type=range]")
    settle(page)
    page.screenshot(path=SHOTS / "options.png")
    dark = tab(server.address, color_scheme="dark")
    dark.wait_for_selector("#talk .example")
    dark.screenshot(path=SHOTS / "empty-dark.png")
    dark.click("#look")
    dark.wait_for_function("!document.body.classList.contains('dark')")


@browser_only
def test_words_then_pictures_come_and_can_be_had_anew(server: Server, tab) -> None:
    page = tab(server.address)
    send(page, GUIDE)
    page.wait_for_selector("#talk .bot img.picture")
    expect(page.locator("#talk .bot").first).to_contain_text(re.compile(r"\S.{3}"))
    page.screenshot(path=SHOTS / "painting.png")
    page.wait_for_function(
        "[...document.querySelectorAll('#talk .bot img.picture')].some(img => img.naturalWidth && !/svg$/.test(img.src))"
    )
    wait_until_answered(page)
    assert loaded_pictures(page, 2) >= 2
    assert all(words.strip() for words in page.eval_on_selector_all("#talk .bot img.picture", "imgs => imgs.map(img => img.alt)"))
    expect(page.locator("#talk .bot .about").first).to_contain_text("seed")
    page.screenshot(path=SHOTS / "guide-light.png")
    before = page.text_content("#talk .bot .chat-actions .about")
    act(page, "retry")
    page.wait_for_selector("#box .stop-button")
    wait_until_answered(page)
    expect(page.locator("#talk .bot .chat-actions .about").first).not_to_have_text(before)
    expect(page.locator("#talk .user button.i-edit")).to_have_count(1)
    page.click("#look")
    settle(page)
    page.screenshot(path=SHOTS / "guide-dark.png")
    page.click("#new")
    page.wait_for_selector("#talk .example")
    expect(page.locator("#talk .bot")).to_have_count(0)


@browser_only
def test_pictures_can_be_brought(server: Server, tab, tmp_path: Path) -> None:
    PILImage.new("RGB", (320, 200), "red").save(tmp_path / "red.png")
    PILImage.new("RGBA", (200, 200), (0, 0, 255, 128)).save(tmp_path / "blue.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    page = tab(server.address)
    page.wait_for_selector("#talk .example")
    (tmp_path / "notes.txt").write_text("no picture either")
    page.set_input_files("#box input[type=file]", tmp_path / "notes.txt")
    page.wait_for_selector("text=Only pictures can be brought; this is none: notes.txt")
    expect(page.locator(".toast-title").first).to_contain_text("That did not work")
    page.set_input_files("#box input[type=file]", tmp_path / "broken.png")
    page.wait_for_selector("#box .thumbnail-item")
    send(page, "What is this?")
    page.wait_for_selector("text=cannot be read as a picture")
    expect(page.locator("#box textarea")).to_have_value("What is this?")
    expect(page.locator("#talk .user")).to_have_count(0)
    page.click("#new")
    page.wait_for_function("document.querySelector('#box textarea').value == ''")
    page.set_input_files("#box input[type=file]", [tmp_path / "red.png", tmp_path / "blue.png"])
    page.wait_for_function("document.querySelectorAll('#box .thumbnail-item').length == 2")
    send(page, "Which colour do you see in the first picture?")
    page.wait_for_selector("#talk .user img.picture")
    wait_until_answered(page)
    assert loaded_pictures(page, 2, ".user") == 2
    expect(page.locator("#talk .user .number")).to_have_text(["1", "2"])
    page.screenshot(path=SHOTS / "upload.png")


@browser_only
def test_is_at_home_on_a_phone_and_runs_nobodys_code(server: Server, tab) -> None:
    page = tab(server.address, viewport={"width": 390, "height": 844}, has_touch=True)
    page.wait_for_selector("#talk .example")
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "phone-empty.png")
    send(page, 'hello <img src=x onerror="window.ran=1"> <script>window.ran=1</script> & ![x](http://127.0.0.1:9/x.png)')
    page.wait_for_selector("#talk .user")
    expect(page.locator("#talk .user").first).to_contain_text("<script>")
    expect(page.locator("#talk .user img")).to_have_count(0)
    wait_until_answered(page)
    assert not page.evaluate("window.ran")
    page.click("#new")
    page.click("#talk .example >> nth=0")
    page.wait_for_selector("#talk .bot img.picture")
    wait_until_answered(page)
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "phone-guide.png")
    page.click("#drawer")
    settle(page)
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "phone-options.png")


@browser_only
def test_a_pair_that_does_not_open_gets_a_sentence(tab, tmp_path: Path) -> None:
    server = Server(tmp_path, "--pair", str(tmp_path / "nowhere"))
    try:
        page = tab(server.address)
        page.wait_for_selector("#status:has-text('nowhere')")
        send(page, "hello")
        page.wait_for_selector(".toast-body:has-text('nowhere')")
        assert page.input_value("#box textarea") == "hello"
        settle(page)
        page.screenshot(path=SHOTS / "no-pair.png")
    finally:
        server.end()


class Scripted:
    """An engine that does what it is told, for what a sound one never does."""

    about = {"title": "Scripted", "summary": "", "examples": (), "image_size": (8, 8), "steps": 5, "thinks": False}

    def __init__(self, script: Callable[[Conversation], Iterator[Event]]) -> None:
        self.script = script

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event) -> Iterator[Event]:
        return self.script(conversation)


def page_with(script: Callable, home: Path) -> Page:
    loading = Loading(engine=Scripted(script), words="Ready")
    loading.finished.set()
    return Page(loading, ConversationStore(home / "conversations"), home / "shown")


def run_answer(script: Callable, home: Path, before: Conversation | None = None) -> tuple[Page, Job, Conversation]:
    """A page whose engine has played `script` for "hello", the job of that, and the conversation as it is kept."""
    page = page_with(script, home)
    back = before.head if before else None
    asked = page.store.save((before or Conversation()).say("user", "hello"))
    work = lambda engine, stop: engine.answer(asked, Options(seed=7), stop)  # noqa: E731
    job = page.jobs.start(Task(asked.id, asked.head, work, Options(seed=7), back or asked.head))
    until(lambda: job.done)
    assert not page.jobs.running_chats(), "nobody could ever ask again"
    return page, job, page.store.open(asked.id)


def crash(conversation: Conversation) -> Iterator[Event]:
    yield TextDelta("Well,")
    raise RuntimeError("out of luck")


def fail(conversation: Conversation) -> Iterator[Event]:
    yield TextDelta("Well,")
    yield Failed("There is too little memory.", conversation)


@pytest.mark.parametrize(("script", "words"), [(crash, "out of luck"), (fail, "too little memory")])
def test_a_failure_says_why_and_keeps_the_question(script: Callable, words: str, tmp_path: Path) -> None:
    page, job, kept = run_answer(script, tmp_path)
    assert job.bad and words in job.status
    assert [turn.text() for turn in kept.path()] == ["hello"]


def test_a_failed_question_leaves_the_earlier_answer(tmp_path: Path) -> None:
    before = Conversation().say("user", "hi").say("assistant", "Hello!")
    page, job, kept = run_answer(fail, tmp_path, before)
    assert [turn.text() for turn in kept.path()] == ["hi", "Hello!"]
    assert any(turn.text() == "hello" for turn in kept.turns.values())


def test_a_failure_keeps_what_was_made_before_it(tmp_path: Path) -> None:
    page, job, kept = run_answer(lambda said: (event for event in [Failed("Too big.", said.say("assistant", "Step 1."))]), tmp_path)
    assert [turn.role for turn in kept.path()] == ["user", "assistant"] and job.status == "Too big."


def test_an_answer_ends_with_its_note(tmp_path: Path) -> None:
    picture = Image(PILImage.new("RGB", (8, 8), "red"), seed=1, seconds=1.0)
    stats = Stats(1, 1, 1, 1, 0.1, 2.0, "end")
    page, job, kept = run_answer(lambda said: (event for event in [Done(said.say("assistant", "Here.", picture), stats)]), tmp_path)
    assert page.store.read_about(kept.id)["notes"][kept.head]["line"] == "1 picture · 2.0 s · seed 7"
    assert "1 picture · 2.0 s · seed 7" in page.chat.messages(kept)[-1]["content"][-1]["text"]


def test_a_notice_is_said_while_the_answer_comes_and_stays_under_it(tmp_path: Path) -> None:
    told, seen = "The pair reads 400 tokens at most, so the oldest messages (4) are left out.", []

    def script(said: Conversation) -> Iterator[Event]:
        yield Notice(told)
        yield TextDelta("Here.")
        seen.append(page_of[0].jobs.find(said.id).status)
        yield Done(said.say("assistant", "Here."), Stats(1, 1, 1, 0, 0.1, 2.0, "max_context"))

    page_of = [page_with(script, tmp_path)]
    asked = page_of[0].store.save(Conversation().say("user", "hello"))
    job = page_of[0].jobs.start(answer_task(asked, Options(seed=7)))
    until(lambda: job.done)
    kept = page_of[0].store.open(asked.id)
    line = page_of[0].store.read_about(kept.id)["notes"][kept.head]["line"]
    assert line == f"2.0 s · seed 7 · {told} · cut at the most that the pair can read"
    under = page_of[0].chat.messages(kept)[-1]["content"][-1]["text"]
    assert told in under and 'value="on ' in under, "an answer that was cut offers to go on"
    assert translate_into("de", f"Writing ... {told}").startswith("Schreibt ... Das Paar liest höchstens 400 Token")
    assert seen and seen[0] == f"Writing ... {told}"


@pytest.mark.parametrize(
    "words", ["", "\u200b", "\u2060 \ufeff", "\u00ad", "\u202e", "\u3164", "\u2800", "\ufe0f", "\0", "\n\u200d\t", "\U000e0041"]
)
def test_a_message_of_which_nothing_is_to_be_seen_is_empty(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, said = page_with(fail, tmp_path), []
    monkeypatch.setattr("ui.chat.panel.show_warning", lambda reason: said.append(str(reason)))
    request = SimpleNamespace(session_hash="one", query_params={})
    page.chat.submit({page.box: {"text": words, "files": []}, page.view: View(), page.search: ""}, request)
    assert said == ["Type what you would like to know or see."] and not page.store.list_entries()


def test_half_an_emoji_in_a_message_is_cleaned(tmp_path: Path) -> None:
    page = page_with(lambda said: (event for event in [Done(said.say("assistant", "Yes."), Stats(1, 1, 1, 0, 0.1, 2.0, "end"))]), tmp_path)
    values = {page.box: {"text": " \ud83d\ude42 \ud800 hello", "files": []}, page.view: View(), page.search: ""}
    values |= {control: control.value for control in page.controls.values()}
    page.chat.submit(values, SimpleNamespace(session_hash="one", query_params={}))
    until(lambda: not page.jobs.running_chats())
    (entry,) = page.store.list_entries()
    assert page.store.open(entry.id).path()[0].text() == "\U0001f642 \ufffd hello" and "\ud800" not in entry.title


def test_thoughts_are_folded_and_stay_with_their_answer(tmp_path: Path) -> None:
    def script(said: Conversation) -> Iterator[Event]:
        yield Thought("First the <b>walls")
        yield Thought("</b>, then the roof.")
        yield TextDelta("Step 1.")
        yield Done(said.say("assistant", "Step 1."), Stats(1, 1, 1, 0, 0.1, 2.0, "end"))

    page, job, kept = run_answer(script, tmp_path)
    (shown,) = page.chat.messages(kept)[-1]["content"]
    folded, words, _ = shown["text"].split("\n\n")
    assert folded.startswith('<details class="thoughts"') and "First the &lt;b&gt;walls&lt;/b&gt;, then the roof." in folded
    assert words == "<p>Step 1.</p>" and kept.path()[-1].text() == "Step 1."


def start_answer(folder: Path) -> tuple[Page, Job, SimpleNamespace, threading.Event]:
    """A page with an answer that stands still until a gate is opened, and the request of a browser that comes to it."""
    gate = threading.Event()

    def script(said: Conversation) -> Iterator[Event]:
        yield TextDelta("Step 1.")
        gate.wait(patience())
        yield Done(said.say("assistant", "Step 1. That is all."), Stats(1, 1, 1, 0, 0.1, 2.0, "end"))

    page = page_with(script, folder)
    asked = page.store.save(Conversation().say("user", "hello"))
    job = page.jobs.start(answer_task(asked, Options(seed=7)))
    return page, job, SimpleNamespace(session_hash="one", query_params={"c": asked.id}), gate


def test_an_answer_that_ends_while_its_page_opens_is_shown_whole(tmp_path: Path) -> None:
    page, job, request, gate = start_answer(tmp_path)
    arrived = page.chat.open_page({page.search: ""}, request)
    gate.set()
    until(lambda: job.done)
    values = {page.view: arrived[page.view], page.search: ""}

    async def follow() -> list:
        return [update async for update in page.chat.follow(values, request)]

    drawn = run_apart(follow())
    assert "That is all." not in str(arrived[page.chatbot]) and "That is all." in str(drawn[-1][page.chatbot])
    assert page.chat.finish(values, request)[page.box].submit_btn, "nobody could ask again"


def follow_beside(page: Page, values: dict, request: SimpleNamespace, act: Callable[[dict], dict]) -> tuple[list[dict], list[dict]]:
    """The updates of a call of `follow` in whose first update `act` gives another view, and those of the call that comes after it."""

    async def collect(values: dict) -> list[dict]:
        return [update async for update in page.chat.follow(values, request)]

    async def follow() -> tuple[list[dict], list[dict]]:
        drawn, later = [], None
        async for update in page.chat.follow(values, request):
            if later is None:
                later = asyncio.create_task(collect(values | {page.view: act(values)[page.view]}))
                await asyncio.sleep(0.1)  # the browser gets this update after what the click changed
            drawn.append(update)
        return drawn, await later

    return run_apart(follow())


def test_what_is_drawn_late_gives_way_to_where_a_person_went(tmp_path: Path) -> None:
    page, _, request, gate = start_answer(tmp_path)
    values = {page.view: page.chat.open_page({page.search: ""}, request)[page.view], page.search: ""}
    drawn, later = follow_beside(page, values, request, lambda values: page.chat.start_over(values, request))
    gate.set()
    assert "hello" in str(drawn[0][page.chatbot]) and len(drawn) == 1
    assert later[-1][page.chatbot] == [] and "Writing" not in later[-1][page.status]


def test_an_answer_drawn_late_gives_way_to_another_branch(tmp_path: Path) -> None:
    page, job, request, gate = start_answer(tmp_path)
    arrived = page.chat.open_page({page.search: ""}, request)
    gate.set()
    until(lambda: job.done)
    values, chat = {page.view: arrived[page.view], page.search: ""}, job.task.chat

    def show_branch(values: dict) -> dict:
        page.store.save(page.store.open(chat).at(None).say("user", "another question"))
        return page.chat.render(values, View(chat), "")

    drawn, later = follow_beside(page, values, request, show_branch)
    assert "That is all." in str(drawn[-1][page.chatbot])
    assert "another question" in str(later[-1][page.chatbot]), "the old branch would stay on the page"
    assert page.chat.finish(values, request)[page.box].submit_btn


def test_an_answer_that_ends_while_it_is_drawn_frees_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, job, request, gate = start_answer(tmp_path)
    render = page.chat.render

    def render_slowly(*given: object, **more: object) -> dict:
        shown = render(*given, **more)
        gate.set()
        until(lambda: job.done and page.chat.jobs.find(job.task.chat) is None)
        return shown

    monkeypatch.setattr(page.chat, "render", render_slowly)
    arrived = page.chat.open_page({page.search: ""}, request)
    monkeypatch.setattr(page.chat, "render", render)
    assert arrived[page.box].stop_btn
    values = {page.view: arrived[page.view], page.search: ""}

    async def collect() -> list[dict]:
        return [update async for update in page.chat.follow(values, request)]

    assert "That is all." in str(run_apart(collect())[-1][page.chatbot])
    assert not page.chat.finish(values, request)[page.box].stop_btn, "the box would stay busy"


def test_finished_parts_are_on_disk_while_the_answer_goes_on(tmp_path: Path) -> None:
    seen = []

    def script(said: Conversation) -> Iterator[Event]:
        yield TextDelta("Step 1.")
        yield ImageStarted(0, 1, 1)
        yield ImageDone(0, Image(PILImage.new("RGB", (8, 8), "red"), 1, 0.1))
        fresh = ConversationStore(tmp_path / "conversations").open(said.id)  # what a new process would find
        seen.extend(type(part).__name__ for part in fresh.path()[-1].parts)
        yield Done(said.say("assistant", "Step 1."), Stats(1, 1, 1, 1, 0.1, 2.0, "end"))

    run_answer(script, tmp_path)
    assert seen == ["Text", "Image"]


def test_tries_that_were_not_chosen_are_versions_of_their_picture(tmp_path: Path) -> None:
    """As after Paint again, and of Paint again itself."""
    red, blue, green, grey = (Image(PILImage.new("RGB", (8, 8), name), seed) for seed, name in enumerate(("red", "blue", "green", "grey")))

    def script(said: Conversation) -> Iterator[Event]:
        kept = said.say("assistant", "Step 1.", blue, "Done.")
        version = kept.path()[-1].with_image(1, red)
        yield Done(kept.with_turn(version).at(kept.head), Stats(1, 1, 1, 1, 0.1, 2.0, "end"), (version,))

    page, job, said = run_answer(script, tmp_path)
    turn = said.path()[-1]
    assert [said.turns[id].images()[0].seed for id in said.branches(turn.id)] == [0, 1] and turn.images()[0].seed == 1
    assert job.kept == 1 and page.gallery.find(PictureQuery())[1] == 2
    shown = str(messages(said, {}, PictureFolder(tmp_path / "a", 9))[-1]["content"])
    assert shown.count('class="act tile') == 2 and 'tile chosen" value="branch ' + turn.id in shown
    engine = SimpleNamespace(stream_image=lambda *given, **more: iter([ImageDone(0, grey, (green,))]))
    (done,) = (each for each in repaint_work(said, turn, 1, Options(), (9,))(engine, threading.Event()) if isinstance(each, Done))
    assert [each.images()[0].seed for each in (*done.versions, done.conversation.path()[-1])] == [2, 3]
    assert {each.id for each in done.versions} < set(done.conversation.branches(turn.id)) and done.versions[0].parts[2] == turn.parts[2]


def test_the_drawer_takes_what_the_pair_paints_best_with(tmp_path: Path) -> None:
    page = page_with(fail, tmp_path)
    page.loading.finished.clear()
    assert set(page.update_loading()) == {page.status}
    page.loading.finished.set()
    updates = page.update_loading()
    assert updates[page.opened] == page.update_loading()[page.opened] != ""
    assert updates[page.controls["image", "steps"]]["value"] == 5 and page.controls["image", "guidance"] not in updates
    assert updates[page.controls["image", "side"]]["visible"] and not updates[page.controls["text", "think"]]["visible"]
    quick = page.presets.set_shipped("quick")
    assert quick[page.controls["image", "steps"]]["value"] == 4 and page.controls["seed",] not in quick
    assert page.presets.set_shipped("balanced")[page.controls["image", "steps"]]["value"] == 5


def test_an_answer_in_the_making(tmp_path: Path) -> None:
    pictures, previews = PictureFolder(tmp_path / "a", 9), PictureFolder(tmp_path / "b", 9)
    answer, red = Answer(pictures, previews), PILImage.new("RGB", (8, 8), "red")
    for event in (TextDelta("Step 1. "), TextDelta("A <b>red</b> dot."), ImageStarted(0, 1, 2), ImageStep(0, 1, 2, red)):
        answer.take(event)
    assert "step 1 of 2" in answer.status and answer.finished_parts() == (Text("Step 1. A <b>red</b> dot."),)
    (card,) = (part["text"] for part in answer.message()["content"])
    assert str(previews.folder.name) in card and "s left" in card and "<span>Step 1. A &lt;b&gt;red&lt;/b&gt; dot.</span>" in card
    answer.take(ImageDone(0, Image(red, 1, 0.5)))
    (card,) = (part["text"] for part in answer.message()["content"])
    assert '>1</b><div class="said">\n\n<p>A &#60;b&#62;red&#60;/b&#62; dot.</p>\n\n</div><figure' in card
    assert 'alt="Step 1. A &lt;b&gt;red&lt;/b&gt; dot."' in card
    assert len(list(pictures.folder.iterdir())) == 1


def test_words_stay_words() -> None:
    assert text_part("a <script> `<b>` ![x](y)")["text"] == "<p>a &#60;script&#62; <code>&#60;b&#62;</code> &#33;&#91;x&#93;(y)</p>"


def shown_parts(tmp_path: Path, *parts) -> str:
    said = Conversation().say("user", "hello").say("assistant", *parts)
    return messages(said, {}, PictureFolder(tmp_path, 9))[-1]["content"][0]["text"]


def test_a_step_is_a_card_by_its_place_and_not_by_its_words(tmp_path: Path) -> None:
    red, blue = (PILImage.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    cards = shown_parts(tmp_path, "Aluksi runko.", red, "Sitten masto.", blue, "Valmis.")
    assert cards.count('<div class="step">') == 2 and '<b class="number"' not in cards and "<p>Valmis.</p>" in cards
    assert [place for place in ("again", "words") if re.search(rf'value="{place} \w+ 3"', cards)] == ["again", "words"]
    counted = shown_parts(tmp_path, "First:\n1. Cut.\n2. Fry.", red)
    assert re.findall(r'<b class="number" title="\d">(\d)</b>', counted) == ["1", "2"] and counted.count("<figure") == 1
    assert 'class="step"' not in shown_parts(tmp_path, "Here is a red house.", red), "a free answer flows"
    assert "<ol>" in shown_parts(tmp_path, "1. Cut.\n2. Fry."), "and a list is a list"


def test_facts_are_a_detail_and_what_was_cut_is_said(tmp_path: Path) -> None:
    said = Conversation().say("user", "hello").say("assistant", "Step 1.")
    note = {"line": "3 pictures · 2.0 s · seed 7 · cut at the longest answer that Options allow"}
    (shown,) = messages(said, {said.head: note}, PictureFolder(tmp_path, 9))[-1]["content"]
    assert '<p class="about">3 pictures · 2.0 s · seed 7</p>' in shown["text"]
    assert "<small>cut at the longest answer that Options allow</small>" in shown["text"] and ">Go on</button>" in shown["text"]


def test_a_question_without_an_answer_offers_one(tmp_path: Path) -> None:
    asked, folder = Conversation().say("user", "hello"), PictureFolder(tmp_path, 9)
    offered = [">Answer it</button>" in str(messages(asked, {}, folder, idle)) for idle in (False, True)]
    assert offered == [False, True] and ">Answer it<" not in str(messages(asked.say("assistant", "Yes."), {}, folder, True))


def test_what_is_asked_while_the_pair_loads_gets_its_best_settings(tmp_path: Path) -> None:
    given = []

    def script(said: Conversation) -> Iterator[Event]:
        yield Done(said.say("assistant", "A boat."), Stats(1, 1, 1, 0, 0.1, 2.0, "end"))

    page = page_with(script, tmp_path)
    engine, page.loading.engine = page.loading.engine, None
    page.loading.finished.clear()
    assert "You can ask now." in page.update_loading()[page.status]
    asked = page.store.save(Conversation().say("user", "hello"))
    options = replace(Options(seed=7), image=replace(Options().image, guidance=2.5))
    job = page.jobs.start(answer_task(asked, options))
    answer, engine.about = engine.answer, engine.about | {"steps": 35, "guidance": 7.0}
    engine.answer = lambda said, options, stop: given.append(options) or answer(said, options, stop)
    page.loading.engine = engine
    page.loading.finished.set()
    until(lambda: job.done)
    assert [(each.seed, each.image.steps, each.image.guidance) for each in given] == [(7, 35, 2.5)]
    assert page.store.open(asked.id).path()[-1].text() == "A boat."


def test_pictures_painted_again_are_versions_and_no_branches(tmp_path: Path) -> None:
    pictures = [PILImage.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green", "grey")]
    house, other_house, tree, other_tree = (Image(each) for each in pictures)
    asked = Conversation().say("user", "hello")
    said = asked
    for parts in ((house, tree), (other_house, tree), (other_house, other_tree)):  # first the one, then the other
        said = said.at(asked.head).say("assistant", "A.", parts[0], "B.", parts[1])
    shown = str(messages(said, {}, PictureFolder(tmp_path, 9)))
    assert shown.count('class="versions"') == 2 and shown.count("tile chosen") == 2 and shown.count("act tile") == 4
    assert 'class="count"' not in shown
    other = said.at(asked.head).say("assistant", "C.", house, "D.", tree)
    shown = str(messages(other, {}, PictureFolder(tmp_path, 9)))
    assert '<span class="count">2/2</span>' in shown and 'class="versions"' not in shown
    assert f'value="branch {said.head}"' in shown, "back to what was painted last"


def test_the_first_page_has_requests_of_the_pairs_kind() -> None:
    about = json.loads((BUNDLED / "duogen.json").read_text(encoding="utf-8"))
    own = make_examples(about)
    assert [each["text"] for each in own] == about["examples"] and len(own) == 4
    assert all(PILImage.open(each["icon"]).size == (256, 256) for each in own), "python -m bench.welcome paints them"
    kinds = [{"most_sources": 0}, {"most_sources": 3}, {"most_sources": 0, "films": True}]
    others = [make_examples({"examples": ()} | kind) for kind in kinds]
    assert all(len(each) == 4 and "icon" not in example for each in others for example in each)
    assert [(SOURCES in str(each), FILMS in str(each)) for each in others] == [(False, False), (True, False), (False, True)]


def test_history_holds_files_not_pictures(tmp_path: Path) -> None:
    said = Conversation().say("user", PILImage.new("RGB", (2000, 10)), "What is it?").say("assistant", "A line.")
    shown = messages(said, {said.head: {"line": "0.1 s"}}, PictureFolder(tmp_path, 9))
    assert all(isinstance(part["text"], str) for message in shown for part in message["content"])
    assert sorted(PILImage.open(file).width for file in tmp_path.glob("*.png")) == [768, 2000]


def test_a_picture_folder_is_bounded(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path, 3)
    shades = {shade: PILImage.new("RGB", (4, 4), (shade, 0, 0)) for shade in (1, 2, 3, 4)}
    paths = [folder.keep(shades[shade]) for shade in (1, 2, 3, 1, 4)]
    assert {file.name for file in tmp_path.iterdir()} == {Path(path).name for path in paths[2:]}
    assert len(PictureFolder(tmp_path, 3)._files) == 3


def field_paths(options: type, at: tuple = ()) -> set[tuple]:
    hints, found = get_type_hints(options), set()
    for each in fields(options):
        path = (*at, each.name)
        found |= field_paths(hints[each.name], path) if is_dataclass(hints[each.name]) else {path}
    return found


def test_every_option_has_a_control_and_comes_back() -> None:
    with gr.Blocks():
        made = controls.build(Options)
    assert set(made) == field_paths(Options)
    values = {control: control.value for control in made.values()}
    assert controls.read(Options, made, values) == Options()
    assert controls.read(Options, made, values | {made["seed",]: "7", made["image", "steps"]: 12.0}).image.steps == 12
    with pytest.raises(ValueError, match="Seed must be a whole number"):
        controls.read(Options, made, values | {made["seed",]: "blue"})
    with pytest.raises(ValueError, match="between"):
        controls.read(Options, made, values | {made["image", "steps"]: 1000})


@pytest.mark.parametrize("flag", ["--mllm", "--brain"])
def test_the_flag_of_the_mllm_keeps_its_old_name(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setattr("sys.argv", ["app.py", flag, "somewhere"])
    assert app.parse_arguments().mllm == "somewhere"
    monkeypatch.setattr("sys.argv", ["app.py"])
    assert app.parse_arguments().mllm is None
