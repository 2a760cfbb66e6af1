"""A step set in motion in the page: the dialog, the video beside its picture, and what comes back after a reload."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import expect

from duogen.library.conversations import ConversationStore
from duogen.library.motion_file import read_motion
from tests.browser.test_chat import open_answered
from tests.browser.test_everyone import faults
from tests.support.browser import SHOTS, act, browser_only, overflow_width, settle

PLAYS = "async video => { video.muted = true; await video.play(); return [video.videoWidth > 0, video.error === null] }"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.video import small_wan

    return small_wan(tmp_path_factory.mktemp("models") / "wan")


def open_dialog(page, command: str, nth: int = 0):
    act(page, command, nth)
    dialog = page.locator("dialog.motion-dialog")
    expect(dialog).to_be_visible()
    return dialog


def animate(page, model: Path, command: str = "animate", nth: int = 0) -> None:
    dialog = open_dialog(page, command, nth)
    dialog.locator("[name=model]").select_option("another")
    dialog.locator("[name=other]").fill(str(model))
    dialog.locator("[name=seconds]").fill("0.5")
    expect(dialog.locator(".plan")).to_contain_text("9 frames")
    dialog.locator(".save").click()


@browser_only
def test_a_step_is_animated_plays_stays_and_goes(fast, tab, model: Path) -> None:
    page = open_answered(tab, fast)
    animate(page, model, "animate-on")
    video = page.locator("#talk .motion video")
    expect(video).to_have_count(1)
    assert video.evaluate(PLAYS) == [True, True]
    expect(page.locator("#status")).to_contain_text("The picture is animated")
    (entry,) = ConversationStore(fast.home / "conversations").list_entries()
    (file,) = (fast.home / "conversations" / entry.id / "images").glob("*.mp4")
    about = read_motion(file).about
    assert about.conversation == entry.id and about.options["motion"]["ends_with_a_picture"] and about.origin == "trainedAlgorithmicMedia"
    page.reload()
    assert video.evaluate(PLAYS) == [True, True]
    page.click("#tab-library-button, button[role=tab]:has-text('Library')")
    page.locator("#library-grid button.thumbnail-item[aria-label^='▶']").click()
    shown = page.locator("#library-video video")
    assert shown.evaluate(PLAYS) == [True, True]
    expect(page.locator("#library-settings")).to_contain_text("wan")
    page.click("button[role=tab]:has-text('Chat')")
    act(page, "still")
    expect(video).to_have_count(0)
    page.click("#status button[value='undo']")
    expect(video).to_have_count(1)
    if os.environ.get("DUOGEN_SHOTS"):
        settle(page)
        page.screenshot(path=SHOTS / "motion-chat.png")


@browser_only
@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_the_dialog_says_which_models_can_be_used_and_fits_a_phone(fast, tab, theme: str, width: int) -> None:
    page = open_answered(tab, fast, viewport={"width": width, "height": 844}, color_scheme=theme)
    dialog = open_dialog(page, "animate")
    expect(dialog.locator(".hint")).to_contain_text("No video model is on this machine: Wan2.2-TI2V-5B")
    expect(dialog.locator(".hint")).to_contain_text("python -m duogen pull wan2.2-ti2v-5b")
    expect(dialog.locator(".save")).to_be_disabled()
    dialog.locator("[name=other]").fill(str(fast.home))
    expect(dialog.locator(".plan")).to_contain_text("is not a video model")
    assert faults(page, ".motion-dialog") == [] and overflow_width(page) <= 0
    settle(page)
    page.screenshot(path=SHOTS / f"motion-dialog-{width}-{theme}.png")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


@browser_only
def test_a_model_that_cannot_is_told_and_changes_nothing(fast, tab, model: Path, tmp_path: Path) -> None:
    from tests.support.video import wan_first_only

    page, before = open_answered(tab, fast), list(fast.home.rglob("*.mp4"))
    dialog = open_dialog(page, "animate-on")
    dialog.locator("[name=model]").select_option("another")
    dialog.locator("[name=other]").fill(str(wan_first_only(tmp_path / "wan")))
    expect(dialog.locator(".plan")).to_contain_text("cannot end with a second picture")
    dialog.locator(".save").click()
    expect(page.locator(".toast-message-text")).to_contain_text("cannot end with a second picture")
    expect(page.locator("#talk .motion")).to_have_count(0)
    assert list(fast.home.rglob("*.mp4")) == before
