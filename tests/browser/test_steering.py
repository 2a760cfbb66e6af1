"""Steering an answer: pictures painted again from one on, words edited in place, and a new conversation from an answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.events import Done, Event, Failed, ImageDone
from duogen.library.conversations import ConversationStore
from duogen.options import Options
from duogen.stored_picture import StoredPicture
from tests.browser.test_chat import list_pictures, open_answered, read_words
from tests.support.browser import SHOTS, Server, act, browser_only, loaded_pictures, overflow_width, send, settle, wait_until_answered
from ui.chat.answers import repaint_rest_work
from ui.chat.correct import reword
from ui.chat.history import find_outdated, messages
from ui.parts.pictures import PictureFolder
from ui.parts.shared import Refusal


def make_image(colour: str, *drafts: Image) -> Image:
    return Image(PILImage.new("RGB", (8, 8), colour), 1, alt=colour, drafts=drafts)


def make_guide(*colours: str) -> Conversation:
    parts = [part for number, colour in enumerate(colours, 1) for part in (f"Step {number}. A {colour} dot.\n\n", make_image(colour))]
    return Conversation(title="Dots").say("user", "How?").say("assistant", *parts)


class Painter:
    """An engine that paints white pictures and remembers after which; it fails at picture `broken`."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.after: list[list[str]] = []
        self.seeds: list[int | None] = []

    def stream_image(
        self, conversation: Conversation, options: Options, stop: threading.Event, drafts: tuple[str, ...] = ()
    ) -> Iterator[Event]:
        before = conversation.path()[-1].images()
        self.after.append([image.alt for image in before])
        self.seeds.append(options.seed)
        if len(self.after) == self.broken:
            yield Failed("Too little memory.", conversation)
        else:
            yield ImageDone(len(before), make_image("white"))


def answer_of(said: Conversation) -> Turn:
    return said.path()[-1]


@pytest.mark.parametrize(("broken", "alts"), [(None, ["red", "white", "white"]), (2, ["red", "white", "blue"])])
def test_later_pictures_are_painted_after_the_new_ones(broken: int | None, alts: list[str]) -> None:
    said = make_guide("red", "green", "blue")
    old, painter = answer_of(said), Painter(broken)
    events = list(repaint_rest_work(said, old, (3, 5), Options(), (7, 8))(cast(Any, painter), threading.Event()))
    assert painter.after == [["red"], ["red", "white"]] and painter.seeds == [7, 8]
    kept = [event.conversation for event in events if isinstance(event, Done)][-1]
    assert [image.alt for image in answer_of(kept).images()] == alts, "a failure leaves what was painted before it"
    assert [image.alt for image in kept.turns[old.id].images()] == ["red", "green", "blue"], "the old answer stays"


def test_pictures_that_stand_after_something_else_than_they_were_painted_after(tmp_path: Path) -> None:
    said = make_guide("red", "green", "blue")
    old = answer_of(said)
    assert find_outdated(said, old) == set()
    first = said.with_turn(old.with_image(1, make_image("white")))
    assert find_outdated(first, answer_of(first)) == {3, 5} and find_outdated(first, old) == set()
    second = first.with_turn(answer_of(first).with_image(3, make_image("grey")))
    assert find_outdated(second, answer_of(second)) == {5}
    other = Turn("assistant", (*old.parts[:2], Text("Step 2. A lime dot."), *old.parts[3:]), parent=old.parent)
    assert find_outdated(said.with_turn(other), other) == {3, 5}, "other words before them"
    shown = str(messages(second, {}, PictureFolder(tmp_path, 9))[-1])
    assert shown.count("Paint again from here</button>") == 1 and f'value="rest {second.head} 5"' in shown


def test_what_a_rejected_picture_stands_before_was_not_painted_after_it() -> None:
    said = make_guide("red", "green")
    asked, turn = said.path()
    rejected = turn.with_image(1, make_image("white"))
    tree = Conversation({asked.id: asked}, asked.id).with_turn(rejected).with_turn(turn)
    assert find_outdated(tree, turn, {rejected.id}) == set() and find_outdated(tree, rejected, {rejected.id}) == {3}


def test_words_of_an_answer_change_and_pictures_and_gaps_stay() -> None:
    turn = answer_of(make_guide("red", "green").say("assistant", "\n\nOne.\n", make_image("red"), " ", make_image("blue"), "Two."))
    red, blue = turn.images()
    assert reword(turn, ["One.", "Two."]) == turn.parts
    assert reword(turn, [" Uno. ", ""]) == (Text("\n\nUno.\n"), red, Text(" "), blue)
    for said in ([], ["One."], [" ", ""]):
        with pytest.raises(Refusal):
            reword(turn, said)


def test_a_new_conversation_holds_what_was_said_up_to_an_answer(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path)
    said = Conversation(title="Dots").say("user", "How?").say("assistant", "So.", make_image("red", make_image("grey"), make_image("red")))
    answer = answer_of(said).id
    said = store.save(said.say("user", "And then?").say("assistant", "Thus."))
    store.save_note(said.id, answer, {"line": "1 picture", "thoughts": "Hm."})
    new = store.copy_until(said.id, answer)
    assert [turn.text() for turn in new.path()] == ["How?", "So."] and len(new.turns) == 2 and new.id != said.id
    assert store.read_about(new.id)["notes"] == {answer: {"line": "1 picture", "thoughts": "Hm."}}
    assert [store.copy_until(new.id, answer).title, new.title, store.open(said.id).title] == ["Dots (3)", "Dots (2)", "Dots"]
    assert len(store.open(said.id).path()) == 4
    store.delete(said.id)
    (image,) = answer_of(store.open(new.id)).images()
    assert image.picture.getpixel((0, 0)) == (255, 0, 0) and image.drafts[0].picture.getpixel((0, 0)) == (128, 128, 128)
    assert isinstance(image.source, StoredPicture) and image.source.file.parent.parent.name == new.id
    with pytest.raises(KeyError):
        store.copy_until(new.id, answer_of(said).id)


def shoot(page, name: str) -> None:
    """At the widths of a phone and of a desk."""
    for width, height in ((390, 844), (1280, 900)):
        page.set_viewport_size({"width": width, "height": height})
        settle(page)
        page.screenshot(path=SHOTS / f"{name}-{width}.png")
        assert overflow_width(page) <= 0


def same_pictures(old: list[str], new: list[str]) -> list[bool]:
    return [one == other for one, other in zip(old, new, strict=True)]


@browser_only
def test_later_pictures_offer_to_be_painted_again(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    assert page.locator("#talk button[value^='rest ']").count() == 0
    act(page, "again", 0)
    page.wait_for_selector("#talk button[value^='rest ']", state="attached")
    page.wait_for_selector("#box .submit-button")
    assert page.locator("#talk button[value^='rest ']").count() == 2, "the two after it"
    changed = list_pictures(page)
    assert same_pictures(old, changed) == [False, True, True]
    page.locator("#talk figure.card").nth(1).locator("summary").focus()
    page.keyboard.press("Enter")
    shoot(page, "paint-from-here-menu")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#talk button:focus")).to_have_text("Paint again from here")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk button[value^='rest ']", state="detached")
    page.wait_for_selector("#talk .versions >> nth=2")
    page.wait_for_selector("#box .submit-button")
    assert same_pictures(changed, list_pictures(page)) == [True, False, False] and "All done!" in read_words(page)
    assert page.locator("#talk .versions button").count() == 6, "the old ones are versions"
    assert page.locator("#talk .bot .count").count() == 0
    shoot(page, "painted-from-here")


@browser_only
def test_the_words_of_an_answer_are_edited_in_its_place(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    old = list_pictures(page)
    act(page, "reword")
    boxes = page.locator("#talk form.words textarea")
    expect(boxes).to_have_count(4)
    expect(boxes.first).to_be_focused()
    expect(boxes.nth(1)).to_have_attribute("aria-label", "The words before picture 2")
    page.keyboard.press("Escape")
    expect(boxes).to_have_count(0)
    expect(page.locator("#talk .bot .chat-actions summary")).to_be_focused()
    act(page, "reword")
    boxes.nth(1).fill("Step 2. Put a **tall** mast on it.")
    shoot(page, "edit-words")
    boxes.nth(1).press("Control+Enter")
    page.wait_for_selector("#talk .bot .count:has-text('2/2')")
    expect(boxes).to_have_count(0)
    assert "Put a tall mast on it." in read_words(page) and list_pictures(page) == old
    assert page.locator("#talk button[value^='rest ']").count() == 2, "the mast and the sail were painted after other words"
    page.click("#talk .bot button[title='The branch before']")
    page.wait_for_selector("#talk .bot .count:has-text('1/2')")
    assert "Put a mast on it." in read_words(page)


@browser_only
def test_an_answer_goes_on_in_a_new_conversation(fast: Server, tab) -> None:
    page = open_answered(tab, fast)
    send(page, "And a ship?")
    page.wait_for_selector("#talk .bot:has-text('All done!') >> nth=1")
    wait_until_answered(page)
    page.wait_for_url("**/?c=*")
    old, address = list_pictures(page), page.url
    act(page, "split", 0)
    page.wait_for_selector("#status:has-text('This is a new conversation')")
    page.wait_for_function("address => location.href != address", arg=address)
    assert loaded_pictures(page, 3) == 3 and "And a ship?" not in read_words(page, "user")
    shoot(page, "continued-apart")
    page.goto(address)
    page.wait_for_selector("#talk .user:has-text('And a ship?')")
    assert list_pictures(page) == old
