"""Requests that wait for the answers before them: their order, their pictures, Stop and errors, and the list in a real browser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation
from duogen.events import Done, Event, Stats
from duogen.options import ImageOptions, Options
from tests.browser.test_everyone import faults
from tests.browser.test_page import fail, page_with
from tests.support.browser import SHOTS, Server, browser_only, overflow_width, send, settle
from tests.support.waiting import patience, until
from ui.chat.answers import Job, answer_task
from ui.chat.waiting_list import MOST_WAITING, Request, WaitingLists
from ui.page import Page
from ui.parts.shared import Refusal


class Line:
    """A conversation whose answers wait for `gate`, with a request under way; what says "fail" fails."""

    def __init__(self, home: Path, words: str = "hello") -> None:
        self.gate, self.home = threading.Event(), home
        self.page: Page = page_with(self.script, home)
        self.chat = self.page.store.save(Conversation().say("user", words)).id
        self.job: Job = self.page.jobs.start(answer_task(self.page.store.open(self.chat), Options(seed=7)))

    def script(self, said: Conversation) -> Iterator[Event]:
        self.gate.wait(patience())
        if said.path()[-1].text() == "fail":
            yield from fail(said)
        else:
            yield Done(said.say("assistant", "A boat."), Stats(1, 1, 1, 0, 0.1, 2.0, "end"))

    def enqueue(self, words: str, *files: str, **given) -> None:
        assert self.page.jobs.enqueue(self.chat, Request(words, files, Options(seed=8, **given)))

    def list_requests(self) -> list[str]:
        return [each.words for each in WaitingLists(self.page.store).read(self.chat)]

    def list_questions(self) -> list[str]:
        """All questions, once nothing is under way."""
        self.gate.set()
        until(lambda: not self.page.jobs.running_chats())
        return [turn.text() for turn in self.page.store.open(self.chat).path() if turn.role == "user"]


def test_what_waits_is_sent_in_its_order_without_a_browser(tmp_path: Path) -> None:
    line = Line(tmp_path)
    PILImage.new("RGB", (2000, 16), "red").save(tmp_path / "red.png")
    kept = str(line.page.shared.keep_upload(tmp_path / "red.png"))
    (tmp_path / "red.png").unlink()
    line.enqueue("one")
    line.enqueue("two", kept, image=ImageOptions(steps=3))
    line.enqueue("three")
    lists, (one, two, three) = line.page.jobs.waiting, line.page.jobs.waiting.read(line.chat)
    lists.move(line.chat, two.id, -1)
    lists.move(line.chat, two.id, -1)
    assert line.list_requests() == ["two", "one", "three"]
    assert lists.remove(line.chat, three.id).words == "three"
    assert line.list_questions() == ["hello", "two", "one"] and line.list_requests() == []
    path = line.page.store.open(line.chat).path()
    assert [image.picture.size for image in path[2].images()] == [(1536, 12)]
    note = line.page.store.read_about(line.chat)["notes"][path[3].id]
    assert note["seed"] == 8 and note["options"]["image"]["steps"] == 3
    assert not line.page.jobs.enqueue(line.chat, one), "no answer is under way"
    with pytest.raises(Refusal, match="asked already"):
        lists.move(line.chat, one.id, 1)


def test_between_two_answers_of_a_list_there_is_always_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(tmp_path)
    line.enqueue("one")
    jobs, found = line.page.jobs, []
    make = jobs._new_answer
    monkeypatch.setattr(jobs, "_new_answer", lambda task: (found.append(jobs.find(line.chat)), make(task))[1])
    assert line.list_questions() == ["hello", "one"]
    assert line.job in found and None not in found


@pytest.mark.parametrize("end", ["stop", "fail"])
def test_the_list_waits_after_stop_and_after_an_error(tmp_path: Path, end: str) -> None:
    line = Line(tmp_path, "fail" if end == "fail" else "hello")
    line.enqueue("a <b>boat")
    if end == "stop":
        line.job.stop.set()
    first = line.list_questions()
    shown = line.page.chat.render_waiting(line.chat)
    assert len(first) == 1 and "The list waits" in shown and 'value="go-on"' in shown and "a &lt;b&gt;boat" in shown
    line.gate.clear()
    line.page.jobs.start(answer_task(line.page.store.open(line.chat), Options(seed=9)))  # such as Answer again
    assert "The list waits" in line.page.chat.render_waiting(line.chat)
    assert line.list_questions() == first and line.list_requests() == ["a <b>boat"], "nobody went on with it"
    line.page.chat.go_on(line.chat)
    assert line.list_questions() == [*first, "a <b>boat"] and line.page.chat.render_waiting(line.chat) == ""


def test_a_damaged_picture_keeps_its_request(tmp_path: Path) -> None:
    line = Line(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    line.enqueue("what is this?", str(tmp_path / "torn.png"))
    assert line.list_questions() == ["hello"] and line.list_requests() == ["what is this?"]
    with pytest.raises(ValueError, match="cannot be sent"):
        line.page.chat.go_on(line.chat)


def test_a_list_has_an_end_and_an_old_question_is_on_it(tmp_path: Path) -> None:
    store, lists = (line := Line(tmp_path)).page.store, line.page.jobs.waiting
    about = store.folder / line.chat / "about.json"
    about.write_text('{"unasked": {"text": "old", "files": ["gone.png"]}}')
    (old,) = lists.read(line.chat)
    assert (old.words, old.files, old.options.image) == ("old", (), ImageOptions())
    for _ in range(MOST_WAITING - 1):
        line.enqueue("more")
    with pytest.raises(Refusal, match="30 requests wait"):
        line.enqueue("too much")
    line.job.stop.set()


def read_list(page, count: int) -> list[str]:
    """The words of the requests, once there are so many: an update of the answer that was under way can show fewer for a moment."""
    words = "[...document.querySelectorAll('#waiting-list .words')].map(each => each.innerText)"
    return page.wait_for_function(f"({words}).length === {count} && {words}").json_value()


@browser_only
@pytest.mark.parametrize(("width", "look"), [(1280, "light"), (390, "dark")])
def test_the_list_is_ordered_edited_and_kept(fast: Server, tab, tmp_path: Path, width: int, look: str) -> None:
    page = tab(fast.address, viewport={"width": width, "height": 820}, color_scheme=look)
    page.wait_for_selector("#talk .example")
    send(page, "How do I draw a boat? Go slowly.")
    page.wait_for_selector("#talk .pending")
    for count, words in enumerate(("And a green one?", "And one with two masts, a long red flag and a cat on its deck?", "And a ship?"), 1):
        if count == 2:
            PILImage.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
            page.set_input_files("#box input[type=file]", tmp_path / "red.png")
            page.wait_for_selector("#box .thumbnail-item")
        send(page, words)
        expect(page.locator("#waiting-list li")).to_have_count(count)
        expect(page.locator("#box textarea")).to_have_value("")
    green, masts, ship = read_list(page, 3)
    page.wait_for_function("document.querySelector('#waiting-list img').naturalWidth > 0")
    settle(page)
    page.screenshot(path=SHOTS / f"waiting-list-{width}-{look}.png")
    assert overflow_width(page) <= 0 and faults(page) == []
    page.locator("#waiting-list li").nth(2).locator(".i-wait-up").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#waiting-list .words")).to_have_text([green, ship, masts])
    page.keyboard.press("Enter")
    expect(page.locator("#waiting-list .words")).to_have_text([ship, green, masts])
    expect(page.locator("#waiting-list li:first-child .i-wait-up"), "the focus stays with its request").to_be_focused()
    page.locator("#waiting-list li:first-child .i-wait-cancel").click()
    expect(page.locator("#waiting-list .words")).to_have_text([green, masts])
    expect(page.locator("#waiting-list li:first-child .i-wait-cancel")).to_be_focused()
    page.locator("#waiting-list li").nth(1).locator(".i-wait-edit").click()
    expect(page.locator("#box textarea")).to_have_value(masts)
    expect(page.locator("#box .thumbnail-item")).to_have_count(1)
    expect(page.locator("#box textarea")).to_be_focused()
    send(page, "Two masts?")
    expect(page.locator("#waiting-list .words")).to_have_text([green, "Two masts?"])
    page.wait_for_url("**/?c=*")
    address = page.url
    page.reload()
    expect(page.locator("#waiting-list .words")).to_have_text([green, "Two masts?"])
    page.click("#new")
    expect(page.locator("#waiting-list li"), "another conversation has its own").to_have_count(0)
    (fast.home / "go").touch()
    page.goto(address)
    page.wait_for_selector("#talk .user:has-text('Two masts?')")
    expect(page.locator("#waiting-list li")).to_have_count(0)
    expect(page.locator("#talk .user img.picture")).to_have_count(1)
    page.wait_for_selector("#box .submit-button")


@browser_only
@pytest.mark.parametrize(("width", "look"), [(1280, "dark"), (390, "light")])
def test_stop_holds_the_list_until_it_is_gone_on_with(fast: Server, tab, width: int, look: str) -> None:
    page = tab(fast.address, viewport={"width": width, "height": 820}, color_scheme=look)
    page.wait_for_selector("#talk .example")
    send(page, "How do I draw a boat? Go slowly.")
    page.wait_for_selector("#talk .pending")
    for count, words in enumerate(("And a green one?", "And a ship?"), 1):
        send(page, words)
        expect(page.locator("#waiting-list li")).to_have_count(count)
    page.click("#box .stop-button")
    page.wait_for_selector("#waiting-list:has-text('The list waits') button[value=go-on]")
    page.wait_for_selector("#box .submit-button")
    settle(page)
    page.screenshot(path=SHOTS / f"waiting-list-held-{width}-{look}.png")
    assert overflow_width(page) <= 0 and faults(page) == []
    page.locator("#waiting-list button[value=go-on]").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .bot:has-text('All done!') >> nth=1")
    expect(page.locator("#waiting-list li")).to_have_count(0)
    page.wait_for_selector("#box .submit-button")
    asked = page.locator("#talk .user").all_inner_texts()
    assert [words for words in asked if words.startswith(("And", "How"))] == [
        "How do I draw a boat? Go slowly.",
        "And a green one?",
        "And a ship?",
    ]
