"""The tab Data in a real browser, with a tiny pair: pages become a set, a person looks through it, overrules, and teaches with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect

from tests.support.browser import SHOTS, Server, browser_only, open_part, overflow_width, settle
from tests.unit.test_data import site  # noqa: F401


@browser_only
def test_pages_become_a_set_that_a_person_overrules(tiny: Server, tab: Callable, site: Path) -> None:  # noqa: F811
    page = tab(tiny.address)
    open_part(page, "button[role=tab]:has-text('Data')", "#data-pages")
    page.fill("#data-pages textarea, #data-pages input", str(site / "nowhere"))
    page.click("#data-make")
    page.wait_for_selector("text=There is no folder")
    page.fill("#data-pages textarea, #data-pages input", str(site))
    page.fill("#data-name textarea, #data-name input", "recipes")
    page.click("#data-make")
    page.wait_for_selector("#data-status:has-text('2 dialogues from 6 pages.')")
    expect(page.locator("#data-funnel")).to_contain_text("wrong language")
    page.wait_for_selector("#data-page h2:has-text('Apple strudel')")
    page.wait_for_function("[...document.querySelectorAll('#data-page img')].every(each => each.complete && each.naturalWidth > 0)")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 860})
        settle(page)
        page.screenshot(path=SHOTS / f"data-set-{width}.png")
        table, reader = (page.locator(each).bounding_box() for each in ("#data-funnel table", "#data-look"))
        beside, above = table["x"] + table["width"] <= reader["x"], table["y"] + table["height"] <= reader["y"]
        assert (beside or above) and overflow_width(page) <= 0, "the table lies under the reader"
    assert page.evaluate("getComputedStyle(document.querySelector('#data-funnel table')).borderTopWidth") == "0px"
    page.screenshot(path=SHOTS / "data.png")
    page.click("#data-next")
    page.wait_for_selector("#data-page h2:has-text('Lemon tart')")
    page.click("#data-overrule")
    page.wait_for_selector("#data-status:has-text('1 dialogue from 6 pages.')")
    page.click("#data-which label:has-text('Dropped')")
    page.wait_for_selector("#data-page .why")
    for number in range(2, 6):
        if page.locator("#data-page h2:has-text('My strudel')").count():
            break
        page.click("#data-next")
        page.wait_for_selector(f"#data-page small:has-text('{number} / 5')")
    page.screenshot(path=SHOTS / "data-dropped.png")
    page.click("#data-overrule")
    page.wait_for_selector("#data-status:has-text('2 dialogues from 6 pages.')")
    written = (tiny.home / "sets" / "recipes" / "conversations.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["source"]["title"] for line in written.splitlines()] == ["Apple strudel", "My strudel"]
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "data-phone.png")
    page.click("#data-send")
    page.wait_for_selector("#finetune-report li:has-text('Read as conversations: 2 examples')")
    page.wait_for_selector("#finetune-tiles img >> nth=2")
    page.wait_for_selector("#finetune-needs p")
    assert page.input_value("#finetune-name input, #finetune-name textarea") == "recipes"
    assert page.input_value("#finetune-folder input, #finetune-folder textarea").endswith("/sets/recipes") and overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "data-sent.png")
