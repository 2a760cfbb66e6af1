"""What a person who reads nothing does in a day, from the first question to the morning after a power cut. The engine is `stand_in.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from playwright.sync_api import expect

from duogen.library.pictures import Gallery, PictureQuery
from duogen.picture_input import open_picture
from tests.browser.test_chat import QUESTION, list_pictures, read_words
from tests.browser.test_studio import brush
from tests.support.browser import SHOTS, Server, act, browser_only, overflow_width, send, settle, stand_in

LOOKS = {"wide": {}, "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True}}
COLOURS = ("dark", "light")


class Day:
    """A browser window and the look it has; every station leaves a picture of itself, in dark and in light."""

    def __init__(self, page, look: str) -> None:
        self.page, self.look, self.shots = page, look, 0

    def shoot(self, name: str) -> None:
        self.shots += 1
        assert overflow_width(self.page) <= 0, name
        for colours in COLOURS:
            self.page.emulate_media(color_scheme=colours)
            settle(self.page)
            assert self.page.evaluate("document.body.classList.contains('dark')") == (colours == "dark")
            self.page.screenshot(path=SHOTS / f"day-{self.look}-{self.shots}-{name}-{colours}.png")

    def answered(self) -> None:
        self.page.wait_for_selector("text=All done!")
        self.page.wait_for_selector("#box .submit-button")

    def to(self, number: int) -> None:
        self.page.click(f"#tabs button[role=tab] >> nth={number}")
        settle(self.page)  # as `open_part` says


def ask_for_a_guide(day: Day) -> None:
    day.page.wait_for_selector("#talk .example")
    day.shoot("empty")
    day.page.click("#talk .example")
    day.answered()
    day.shoot("guide")


def repaint_the_second_picture(day: Day) -> list[str]:
    old = list_pictures(day.page)
    act(day.page, "again", 1)
    day.page.wait_for_selector("#talk .versions button >> nth=1")
    day.answered()
    new = list_pictures(day.page)
    assert [one == other for one, other in zip(old, new, strict=True)] == [True, False, True]
    day.page.locator("#talk .versions").scroll_into_view_if_needed()
    day.shoot("repainted")
    return new


def edit_and_come_back(day: Day, pictures: list[str]) -> None:
    page = day.page
    act(page, "edit", who="user")
    page.wait_for_function("document.querySelector('#box textarea').value != ''")
    send(page, "How do I draw a green boat?")
    page.wait_for_selector("#talk .user .count:has-text('2/2')")
    day.answered()
    assert "green boat" in read_words(page, "user")
    page.click("#talk .user button[title='The branch before']")
    page.wait_for_selector("#talk .user .count:has-text('1/2')")
    assert QUESTION in read_words(page, "user") and list_pictures(page) == pictures
    day.shoot("branch")


def change_with_a_mask(day: Day, home: Path) -> None:
    page = day.page
    act(page, "studio", 2)
    brush(page, (0.4, 0.5), (0.6, 0.55))
    page.fill("#studio-words textarea", "a pirate flag")
    day.shoot("mask")
    page.click("#studio-change")
    page.wait_for_selector("#studio-status:has-text('Here it is')")
    page.wait_for_selector("#studio-slider img")
    day.shoot("changed")
    gallery = Gallery(home)
    (entry,), count = gallery.find(PictureQuery("pirate flag"))
    before, after = (np.asarray(open_picture(each.file)).astype(int) for each in gallery.versions(entry.id))
    changed = np.argwhere((before != after).any(-1))
    assert count == 1 and len(changed) > 50
    assert len(changed) < before.shape[0] * before.shape[1] / 3, "outside what was painted over pixels changed"


def find_it_in_the_library(day: Day) -> None:
    day.to(2)
    day.page.fill("#library-words input, #library-words textarea", "pirate")
    day.page.wait_for_function("document.querySelector('#library-where').innerText.includes('1 picture')")
    day.page.click("#library-grid .thumbnail-item")
    day.page.wait_for_selector("#library-settings dd:has-text('a pirate flag')")
    day.shoot("library")
    day.to(0)


def leave_with_a_pdf(day: Day, file: Path) -> None:
    with day.page.expect_download() as waiting:
        act(day.page, "pdf")
    waiting.value.save_as(file)
    pages = list(pypdfium2.PdfDocument(file))
    words = " ".join(" ".join(each.get_textpage().get_text_range().split()) for each in pages)
    pictures = sum(part.type == pypdfium2.raw.FPDF_PAGEOBJ_IMAGE for each in pages for part in each.get_objects())
    assert QUESTION in words and "Put a mast on it" in words and pictures == 3
    pages[0].render(scale=1.2).to_pil().save(SHOTS / f"day-{day.look}-guide-pdf.png")


def cut_the_power(day: Day, server: Server) -> None:
    send(day.page, "And a ship, slowly?")
    day.page.wait_for_function("document.querySelectorAll('#talk .bot .card:not(.pending) img.picture').length == 5")
    day.page.wait_for_selector("#talk .pending progress")
    day.shoot("painting")
    server.end()


def find_everything(day: Day, home: Path, pictures: list[str]) -> None:
    page = day.page
    page.click("#open-side")
    page.click("#chats .open:has-text('Boat')")
    page.wait_for_selector("text=broken off")
    if day.page.locator("#side.open .toggle-button").count():
        page.click("#side .toggle-button")
    day.shoot("morning")
    assert list_pictures(page)[:3] == pictures and len(list_pictures(page)) == 5
    assert "And a ship, slowly?" in read_words(page, "user")
    expect(page.locator("#talk .user .count").first).to_have_text("1/2")
    expect(page.locator("#talk .versions button")).to_have_count(2)
    page.click("#talk .bot button:has-text('Go on')")
    page.wait_for_function("document.querySelectorAll('#talk .bot .card:not(.pending) img.picture').length == 6")
    day.to(2)
    page.fill("#library-words input, #library-words textarea", "pirate")
    page.wait_for_function("document.querySelector('#library-where').innerText.includes('1 picture')")
    assert Gallery(home).find(PictureQuery())[1] >= 8


@browser_only
@pytest.mark.parametrize("look", LOOKS)
def test_a_day(tab: Callable, tmp_path: Path, look: str) -> None:
    server = stand_in(tmp_path)
    try:
        day = Day(tab(server.address, **LOOKS[look]), look)
        ask_for_a_guide(day)
        pictures = repaint_the_second_picture(day)
        edit_and_come_back(day, pictures)
        change_with_a_mask(day, tmp_path)
        find_it_in_the_library(day)
        leave_with_a_pdf(day, tmp_path / "guide.pdf")
        cut_the_power(day, server)
    finally:
        server.end()
    again = stand_in(tmp_path)
    try:
        morning = Day(tab(again.address, **LOOKS[look]), f"{look}-after")
        find_everything(morning, tmp_path, pictures)
    finally:
        again.end()
