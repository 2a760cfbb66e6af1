"""Saved references in the page: saved from a picture, mentioned by the keyboard, shown with the question; pictures that fit, styles."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as PILImage
from playwright.sync_api import Route, expect

from duogen.conversation import Image, Reference, Turn
from duogen.library.conversations import ConversationStore
from duogen.library.references import ReferenceStore
from tests.browser.test_everyone import faults
from tests.browser.test_tags import shoot
from tests.support.browser import SHOTS, Server, act, browser_only, loaded_pictures, send, settle, wait_until_answered

BOAT = Reference("boat", "thing", "a red boat with a white sail")


def ask_for_boat(page, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#status:has-text('Ready')")
    send(page, "How do I draw a boat?")
    wait_until_answered(page)


def add_reference(home: Path, about: Reference, colour: str) -> None:
    ReferenceStore(home / "references").add(about, [Image(PILImage.new("RGB", (64, 64), colour))])


def save_third_picture(page) -> None:
    """As "boat", after a name that cannot be one."""
    act(page, "reference", 2)
    form = page.locator("dialog.asking")
    form.locator("input[name=name]").fill("1")
    form.locator("button[type=submit]").click()
    expect(form.locator(".problem")).to_contain_text("with a letter in it")
    form.locator("input[name=name]").fill("boat")
    form.locator("select[name=kind]").select_option("thing")
    form.locator("textarea").fill("a red boat with a white sail.")
    shoot(page, "reference-form")
    assert faults(page, "dialog.asking") == []
    form.locator("button[type=submit]").click()
    expect(page.locator("#status")).to_contain_text("Saved. Type @boat in a message")


def read_turns(home: Path, role: str) -> list[Turn]:
    """The turns of the newest conversation."""
    store = ConversationStore(home / "conversations")
    return [turn for turn in store.open(store.list_entries()[0].id).turns.values() if turn.role == role]


@browser_only
def test_a_saved_picture_is_mentioned_by_the_keyboard_and_goes_along(fast: Server, tab) -> None:
    page = tab(fast.address)
    ask_for_boat(page, fast.address)
    save_third_picture(page)
    add_reference(fast.home, Reference("Bö", "character", "a friendly bear"), "brown")
    box, names = page.locator("#box textarea"), page.locator("#names li")
    box.press_sequentially("Write to me@b, not @1")
    expect(names).to_have_count(0)
    box.fill("")
    box.press_sequentially("Draw @B")
    expect(names).to_have_count(2)
    shoot(page, "reference-names")
    assert faults(page, "#box") == []
    assert box.get_attribute("aria-activedescendant") == "name-0"
    box.press("ArrowDown")
    expect(names.nth(1)).to_have_attribute("aria-selected", "true")
    box.press("Escape")
    expect(names.first).to_be_hidden()
    assert box.input_value() == "Draw @B", "Escape leaves the words"
    box.fill("Draw ")
    box.press_sequentially("@bo")
    expect(names.nth(0)).to_be_visible()
    box.press("Enter")
    expect(box).to_have_value("Draw @boat ")
    box.press_sequentially("at night")
    box.press("Enter")
    expect(page.locator("#talk .user a.reference")).to_have_text("@boat")
    expect(page.locator("#talk .bot .chat-actions")).to_have_count(2)
    expect(page.locator("#box .submit-button")).to_be_visible()
    page.locator("#talk a.reference").scroll_into_view_if_needed()
    settle(page)
    page.screenshot(path=SHOTS / "reference-chip.png")
    asked = read_turns(fast.home, "user")[-1]
    painted = read_turns(fast.home, "assistant")[0].images()[2]
    assert asked.text() == "Draw @boat at night", "the conversation keeps what was typed"
    assert [image.reference for image in asked.images()] == [BOAT] and asked.images()[0].picture.tobytes() == painted.picture.tobytes()
    act(page, "edit", 1, "user")
    expect(box).to_have_value("Draw @boat at night")
    assert page.locator("#box .thumbnail-item").count() == 0, "its words bring the picture again"


@browser_only
def test_pictures_that_fit_are_offered_and_one_is_brought(fast: Server, tab) -> None:
    page = tab(fast.address)
    ask_for_boat(page, fast.address)
    page.click("#new")
    box, offered = page.locator("#box textarea"), page.locator("#fitting button:not(.close)")
    box.press_sequentially("A boat in a storm")
    expect(offered).to_have_count(1)
    shoot(page, "reference-fitting")
    assert faults(page, "#box") == []
    assert page.locator("#box .thumbnail-item").count() == 0, "nothing goes along by itself"
    box.press("Escape")
    expect(offered.first).to_be_hidden()
    box.press_sequentially("!")
    page.wait_for_timeout(1000)
    expect(offered.first).to_be_hidden()
    box.fill("")
    box.press_sequentially("A boat")
    offered.first.click()
    expect(page.locator("#box .thumbnail-item")).to_have_count(1)
    expect(box).to_have_value("A boat")
    box.fill("A dragon")
    page.wait_for_timeout(1000)
    expect(offered.first).to_be_hidden()


@browser_only
def test_what_is_written_while_a_new_chat_opens_stays(fast: Server, tab) -> None:
    page = tab(fast.address)
    ask_for_boat(page, fast.address)
    page.fill("#box textarea", "old words")
    held = []
    page.route("**/gradio_api/run/predict**", lambda route: held.append(route))
    page.click("#new")
    box = page.locator("#box textarea")
    expect(box).to_have_value("")
    box.press_sequentially("A boat in a storm")
    page.wait_for_timeout(1500)  # it has been searched for, while the old conversation was open
    assert held
    for route in held:
        route.continue_()
    page.unroute("**/gradio_api/run/predict**")
    expect(page.locator("#fitting button:not(.close)")).to_have_count(1)
    expect(box).to_have_value("A boat in a storm")


@browser_only
def test_what_is_written_while_a_message_is_sent_stays(fast: Server, tab) -> None:
    """The server's answer empties the box."""
    page, joined = tab(fast.address), "**/gradio_api/queue/join**"
    box, mine = page.locator("#box textarea"), page.locator("#talk .user").first

    def send_and_go_on(words: str, held: list[Route]) -> None:
        page.route(joined, lambda route: held.append(route))
        box.fill(words)
        with page.expect_request(joined):
            box.press("Enter")
        box.press_sequentially(" And")

    send_and_go_on("How do I draw a boat?", held := [])
    for route in held:
        route.continue_()
    page.unroute(joined)
    expect(mine).to_contain_text("How do I draw a boat?")
    expect(box).to_have_value("And")
    assert "And" not in mine.inner_text()
    wait_until_answered(page)
    send_and_go_on("A car", [])
    expect(box).to_have_value("A car And")
    page.evaluate("document.querySelector('#box textarea').value = ''")  # as the server's answer does, between two letters
    box.press_sequentially(" in a storm?")
    expect(box).to_have_value("And in a storm?")


# Frames and timers are late from Enter on, as on a machine whose processors paint.
SLOW_FRAMES = """document.addEventListener('keydown', event => {
    if (event.key !== 'Enter') return;
    const timer = window.setTimeout;
    window.requestAnimationFrame = draw => timer(() => draw(performance.now()), 300);
    window.setTimeout = (act, wait, ...more) => timer(act, (wait || 0) + 300, ...more);
}, true)"""


@browser_only
def test_what_is_written_at_once_after_enter_is_no_part_of_the_message(fast: Server, tab) -> None:
    """Gradio reads the box a frame after Enter."""
    page = tab(fast.address)
    settle(page)
    page.evaluate(SLOW_FRAMES)
    box = page.locator("#box textarea")
    box.fill("How do I draw a boat?")
    box.press("Enter")
    box.press_sequentially(" Ann")
    box.press("Backspace")
    box.press_sequentially("d")
    expect(box).to_have_value("And")
    assert page.locator("#talk .user").first.inner_text().split("\n")[0] == "How do I draw a boat?"


@browser_only
def test_an_answer_is_painted_again_in_a_style_as_one_version(fast: Server, tab) -> None:
    add_reference(fast.home, Reference("ink", "style", "black ink"), "black")
    page = tab(fast.address)
    ask_for_boat(page, fast.address)
    act(page, "restyle")
    tiles = page.locator("dialog.asking .tile")
    expect(tiles).to_have_count(4)  # the style, and the pictures of the answer in the Library
    shoot(page, "reference-styles")
    assert faults(page, "dialog.asking") == []
    page.locator("dialog.asking .tile:has-text('@ink')").click()
    expect(page.locator("#talk .bot .count")).to_have_text("2/2")
    wait_until_answered(page)
    assert loaded_pictures(page, 3) >= 3
    old, new = read_turns(fast.home, "assistant")
    assert old.text() == new.text() and old.parent == new.parent
    pairs = zip(old.images(), new.images(), strict=True)
    assert all(one.picture.tobytes() != other.picture.tobytes() for one, other in pairs)
    assert [turn.images() for turn in read_turns(fast.home, "user")] == [[]], "the question stays as it was asked"


@browser_only
def test_references_are_listed_changed_and_deleted_in_the_library(fast: Server, tab) -> None:
    add_reference(fast.home, BOAT, "red")
    page = tab(fast.address)
    ask_for_boat(page, fast.address)
    page.get_by_role("tab", name="Library").click()
    items = page.locator("#references li")
    expect(items).to_have_count(1)
    page.locator("#library-grid .thumbnail-item").first.click()
    page.locator("#library-keep button").click()
    form = page.locator("dialog.asking")
    form.locator("select[name=to]").select_option("boat")
    form.locator("button[type=submit]").click()
    expect(items.first).to_contain_text("2 pictures")
    items.first.scroll_into_view_if_needed()
    settle(page)
    page.screenshot(path=SHOTS / "references-library.png")
    assert faults(page, "#library-references") == []
    items.first.get_by_role("button", name="Edit").click()
    form.locator("input[name=name]").fill("ship")
    form.locator("button[type=submit]").click()
    expect(items.first).to_contain_text("@ship")
    items.first.get_by_role("button", name="Delete").click()
    expect(items).to_have_count(0)
    page.locator("#references .undo").click()
    expect(items.first).to_contain_text("@ship")
    (saved,) = ReferenceStore(fast.home / "references").list_references()
    assert saved.about == Reference("ship", BOAT.kind, BOAT.words) and len(saved.files) == 2
