"""Roles of pictures on the page and for programs: chips, what is sent, reload, edit, the waiting list, export and import."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation
from duogen.library.conversations import ConversationStore
from tests.support.browser import SHOTS, Server, browser_only, send, wait_until_answered
from ui.api.messages import parse_messages
from ui.api.requests import RequestError
from ui.chat.picture_roles import read_roles, write_roles

COLOURS = ("red", "blue", "green")
CHIPS = "#box .thumbnail-item .role"


def attach_pictures(page, folder: Path) -> None:
    for colour in COLOURS:
        PILImage.new("RGB", (320, 200), colour).save(folder / f"{colour}.png")
    page.wait_for_selector("#talk .example, #talk .bot")
    page.set_input_files("#box input[type=file]", [folder / f"{colour}.png" for colour in COLOURS])
    expect(page.locator(CHIPS)).to_have_text(["1", "2", "3"])


def only_conversation(server: Server) -> Conversation:
    store = ConversationStore(server.home / "conversations")
    [entry] = store.list_entries()
    return store.open(entry.id)


def roles(conversation: Conversation) -> list[str]:
    return [image.role for image in conversation.path()[-2].images()]


@browser_only
def test_roles_are_tapped_sent_shown_and_come_back(fast: Server, tab, tmp_path: Path) -> None:
    page = tab(fast.address)
    attach_pictures(page, tmp_path)
    for at, taps in ((1, 1), (2, 2)):
        for _ in range(taps):
            page.locator(CHIPS).nth(at).click()
    expect(page.locator(CHIPS)).to_have_text(["1", "2 Source", "3 Reference"])
    expect(page.locator(CHIPS).nth(1)).to_have_attribute("aria-label", "@2: Source: its pixels are kept")
    page.screenshot(path=SHOTS / "roles-box.png")
    page.locator("#box .thumbnail-item .delete-button").first.click()
    expect(page.locator(CHIPS)).to_have_text(["1 Source", "2 Reference"])
    send(page, "Put the boat of @2 into @1")
    wait_until_answered(page)
    shown = page.locator("#talk .user .number")
    expect(shown).to_have_text(["1 · Source", "2 · Reference"])
    assert roles(only_conversation(fast)) == ["source", "reference"]
    page.screenshot(path=SHOTS / "roles-sent.png")
    page.reload()
    expect(shown).to_have_text(["1 · Source", "2 · Reference"])
    expect(page.locator("#talk .bot .called")).to_have_text(["@3", "@4", "@5"])
    page.locator("#talk .user .act[value^='edit ']").first.click()
    expect(page.locator(CHIPS)).to_have_text(["1 Source", "2 Reference"])
    page.locator(CHIPS).nth(1).click()  # none again
    expect(page.locator(CHIPS)).to_have_text(["1 Source", "2"])
    send(page, "Now so")
    wait_until_answered(page)
    expect(shown).to_have_text(["1 · Source", "2"])
    assert roles(only_conversation(fast)) == ["source", ""]
    attach_pictures(page, tmp_path)  # what a file was in another message is over


@browser_only
def test_a_message_that_waits_keeps_its_roles(fast: Server, tab, tmp_path: Path) -> None:
    page = tab(fast.address)
    page.wait_for_selector("#talk .example")
    send(page, "Draw a boat slowly")
    page.wait_for_selector("#talk .pending")
    attach_pictures(page, tmp_path)
    page.locator(CHIPS).nth(2).click()
    send(page, "Next")
    page.wait_for_selector("#waiting-list li")
    page.locator("#waiting-list [value^='wait-edit ']").click()
    expect(page.locator(CHIPS)).to_have_text(["1", "2", "3 Source"])
    send(page, "Next")
    page.wait_for_selector("#waiting-list li")
    (fast.home / "go").touch()
    expect(page.locator("#talk .user .number")).to_have_text(["1 · @4", "2 · @5", "3 · Source · @6"])
    wait_until_answered(page)
    assert roles(only_conversation(fast)) == ["", "", "source"]


def data_url(colour: str) -> str:
    made = io.BytesIO()
    PILImage.new("RGB", (8, 8), colour).save(made, "PNG")
    return "data:image/png;base64," + base64.b64encode(made.getvalue()).decode()


def message(role: object) -> list[dict]:
    picture = {"type": "image_url", "image_url": {"url": data_url("red")}, **({} if role is None else {"role": role})}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "Change it"}]}]


@pytest.mark.parametrize(("role", "read"), [(None, ""), ("", ""), ("source", "source"), ("reference", "reference")])
def test_programs_give_roles_in_the_parts_of_pictures(role, read) -> None:
    conversation, notices = parse_messages(message(role))
    assert [image.role for image in conversation.path()[0].images()] == [read] and not notices


@pytest.mark.parametrize("role", ["mask", 3, ["source"]])
def test_an_unknown_role_is_refused(role) -> None:
    with pytest.raises(RequestError, match="A picture's role is source or reference, not"):
        parse_messages(message(role))


def test_roles_that_cannot_be_read_are_none() -> None:
    files = ["/tmp/a/x.png", "/tmp/b/x.png"]
    assert read_roles(write_roles({files[1]: "source", files[0]: ""}), files) == ["", "source"]
    for written in (None, "", "no JSON", "[1]", '{"a/x.png": "mask"}', '{"a/x.png": ["source"]}'):
        assert read_roles(written, files) == ["", ""]
