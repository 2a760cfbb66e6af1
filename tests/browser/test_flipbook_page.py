"""An answer as a flipbook: played in the page, and saved from it."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.conversation import Conversation
from duogen.library.conversations import ConversationStore
from duogen.library.guide import sections
from tests.browser.test_chat import open_answered
from tests.browser.test_everyone import faults
from tests.support.browser import SHOTS, act, browser_only, overflow_width, settle
from ui.chat.actions import make_packer, show_flipbook
from ui.chat.history import messages
from ui.parts.pictures import PictureFolder


def test_what_the_page_plays_and_where_it_offers_to(tmp_path: Path) -> None:
    store, pictures = ConversationStore(tmp_path / "talks"), PictureFolder(tmp_path / "pictures", 10)
    parts = [each for n in (1, 2) for each in (f"Step {n}. See <b>**it**</b>.\n", PILImage.new("RGB", (20 * n, 10), (90 * n, 0, 0)))]
    whole, single = (Conversation().say("user", "x").say("assistant", *parts[:many]) for many in (4, 2))
    played = show_flipbook(*sections(whole), pictures)
    assert [(each["shape"], each["milliseconds"]) for each in played["frames"]] == [(2, 3600), (4, 3600)]
    assert "&lt;b&gt;<strong>it</strong>&lt;/b&gt;" in played["frames"][0]["words"] and played["direction"] == "ltr"
    offered = [str(messages(each, {}, pictures)) for each in (whole, single)]
    assert ['value="play ' in each and 'value="mp4 ' in each for each in offered] == [True, False]
    pack = make_packer(store, tmp_path / "exports", pictures)
    saved = store.save(single)
    for kind in ("play", "webp", "gif", "mp4"):
        said = pack(f"{kind} {saved.id} {saved.head}")
        assert said == {"error": "A flipbook needs at least two pictures; save this as a PDF or as a web page instead."}


@browser_only
def test_an_answer_plays_by_itself_and_by_keyboard(fast, tab) -> None:
    page = open_answered(tab, fast)
    page.clock.install()
    page.clock.pause_at(datetime.now() + timedelta(seconds=1))
    act(page, "play")
    count, words, toggle = (page.locator(f".flipbook {each}") for each in (".count", ".words", ".toggle"))
    expect(count).to_have_text("1 / 3")
    expect(toggle).to_be_focused()
    expect(toggle).to_have_text("Pause")
    page.clock.run_for(4400)
    expect(count).to_have_text("2 / 3")
    expect(words).to_contain_text("Put a mast on it")
    page.keyboard.press("Space")
    expect(toggle).to_have_text("Play")
    page.clock.run_for(9000)
    expect(count).to_have_text("2 / 3")
    for key, shown in (("ArrowRight", "3"), ("ArrowRight", "3"), ("Home", "1"), ("End", "3"), ("ArrowLeft", "2"), ("ArrowRight", "3")):
        page.keyboard.press(key)
        expect(count).to_have_text(f"{shown} / 3")
    expect(words).to_have_attribute("aria-live", "polite")
    toggle.click()
    expect(count).to_have_text("1 / 3")
    for second in (2, 3):
        page.clock.run_for(5000)
        expect(count).to_have_text(f"{second} / 3")
    expect(toggle).to_have_text("Play")
    page.keyboard.press("Escape")
    expect(page.locator(".flipbook")).to_have_count(0)
    expect(page.locator("#talk .chat-actions .more > summary").last).to_be_focused()


@browser_only
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_flipbook_fits_a_phone_and_waits_where_motion_is_unwanted(fast, tab, theme: str) -> None:
    page = open_answered(tab, fast, viewport={"width": 390, "height": 844}, color_scheme=theme, reduced_motion="reduce")
    page.click("#talk .bot-row .chat-actions .more > summary")
    settle(page)
    page.screenshot(path=SHOTS / f"flipbook-menu-{theme}.png")
    right = "selector => document.querySelector(selector).getBoundingClientRect().right"
    assert page.evaluate(right, "#talk .bot-row details[open] .menu") <= page.evaluate(right, "#talk .bot-row .chat-actions")
    page.click("#talk .menu button[value^='play ']")
    expect(page.locator(".flipbook .toggle")).to_have_text("Play")
    assert faults(page, ".flipbook") == [] and overflow_width(page) <= 0
    assert page.evaluate("document.querySelector('.flipbook .shown').naturalWidth") == 256
    expect(page.locator(".flipbook .row").last).to_be_in_viewport(ratio=1)
    page.screenshot(path=SHOTS / f"flipbook-390-{theme}.png")


@browser_only
def test_a_flipbook_is_saved_from_the_menu(fast, tab, tmp_path: Path) -> None:
    page = open_answered(tab, fast, "How do I draw a raft?")
    for kind, begins in (("webp", b"RIFF"), ("gif", b"GIF89a"), ("mp4", b"ftyp")):
        with page.expect_download() as waiting:
            act(page, kind)
        waiting.value.save_as(tmp_path / "saved")
        data = (tmp_path / "saved").read_bytes()
        assert waiting.value.suggested_filename == f"Raft.{kind}" and begins in data[:12]
        assert kind == "mp4" or PILImage.open(io.BytesIO(data)).n_frames == 3
