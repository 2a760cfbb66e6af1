"""The Studio: what is marked stays while the rest changes, and a change by an example of two other pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from duogen.engine import CANNOT_WORD
from tests.browser.test_studio import layer, make, noise, pair, pixels, studio, values
from tests.support.browser import SHOTS, Server, browser_only, open_part, overflow_width, settle
from tests.support.tiny import BOV, END, script
from ui.parts.picture_change import REFERENCE, SOURCE
from ui.parts.shared import Refusal
from ui.tabs.studio import CHANGED_ALIKE, KEEP, Studio
from ui.tabs.studio_example import ASK, NOTHING_SEEN, SAID

__all__ = ["pair", "studio", "values"]  # fixtures


def write_example(folder: Path) -> list[str]:
    files = [folder / "before.png", folder / "after.png"]
    for number, file in enumerate(files):
        noise(20 + number, (300, 200)).save(file)
    return [str(file) for file in files]


@pytest.mark.parametrize(("words", "said"), [("", f"{KEEP}."), ("a night", f"{KEEP}: a night")])
def test_what_is_marked_stays_and_the_rest_is_painted(studio: Studio, values: dict, words: str, said: str, monkeypatch) -> None:
    marked = {studio.editor: {"layers": [layer((90, 50), 10, 10, 30, 20)]}, studio.keep: True, studio.words: words}
    assert studio._read_change(values | marked).asked.path()[-1].text() == said
    script(monkeypatch, studio.shared.loading.engine.tokens, BOV, END)
    after = make(studio, values | marked)
    old, new = pixels(studio, values[studio.current]), pixels(studio, after[studio.current])
    stays = np.zeros((50, 90), bool)
    stays[10:20, 10:30] = True
    assert (old == new)[stays].all() and (old != new).any(-1)[~stays].mean() > 0.9


def test_to_keep_something_it_must_be_marked(studio: Studio, values: dict) -> None:
    with pytest.raises(Refusal, match="what should stay"):
        studio._read_change(values | {studio.keep: True, studio.words: "a night"})


def test_an_example_is_asked_for_with_its_roles(studio: Studio, values: dict, tmp_path: Path, monkeypatch) -> None:
    files = dict(zip(studio.example.pictures, write_example(tmp_path), strict=True))
    turn = studio._read_change(values | files).asked.path()[-1]
    assert turn.text() == ASK and [image.role for image in turn.images()] == [REFERENCE, REFERENCE, SOURCE]
    assert [image.picture.tobytes() for image in turn.images()] == [noise(20, (300, 200)).tobytes(), noise(21, (300, 200)).tobytes(),
                                                                    noise(1).tobytes()]  # fmt: skip
    by_words = studio._read_change(values | files | {studio.words: "Paint it red."}).asked.path()[-1]
    assert by_words.text() == "Paint it red." and len(by_words.images()) == 1
    with pytest.raises(Refusal, match="both pictures"):
        studio._read_change(values | {studio.example.pictures[1]: files[studio.example.pictures[1]]})
    script(monkeypatch, studio.shared.loading.engine.tokens, "Now it is red.", BOV, END)
    after = make(studio, values | files)
    assert after[studio.words] == "Now it is red." and CHANGED_ALIKE in after[studio.status]
    assert studio.shared.gallery.entry(after[studio.current]).about.words == "Now it is red."


def test_a_change_is_put_into_words(studio: Studio, tmp_path: Path, monkeypatch) -> None:
    form, engine, files = studio.example, studio.shared.loading.engine, write_example(tmp_path)
    script(monkeypatch, engine.tokens, "Paint it red.\nIt was blue.", END, END)
    *_, said = form.say_change(*files)
    assert said[studio.words] == "Paint it red." and SAID in said[studio.status]
    *_, nothing = form.say_change(*files)
    assert studio.words not in nothing and NOTHING_SEEN in nothing[studio.status]
    with pytest.warns(UserWarning, match="both pictures"):
        *_, half = form.say_change(files[0], None)
    assert studio.words not in half
    monkeypatch.setattr(engine.pair, "about", replace(engine.pair.about, check_questions=((r"(?P<answer>\w+)", "Is it {answer}?"),)))
    *_, cannot = form.say_change(*files)
    assert CANNOT_WORD in cannot[studio.status] and studio.words not in cannot


@browser_only
def test_an_example_in_the_browser(fast: Server, tab: Callable, tmp_path: Path) -> None:
    files = write_example(tmp_path)
    noise(4, (320, 240)).save(tmp_path / "brought.png")
    page = tab(fast.address, viewport={"width": 1280, "height": 900})
    page.click("button[role=tab]:has-text('Studio')")
    page.set_input_files("#studio-upload input[type=file]", str(tmp_path / "brought.png"))
    page.wait_for_selector("#studio-editor canvas")
    open_part(page, "#studio-example button >> nth=0", "#studio-before")
    for name, file in zip(("before", "after"), files, strict=True):
        page.set_input_files(f"#studio-{name} input[type=file]", file)
        page.wait_for_selector(f"#studio-{name} img")
    page.click("#studio-say-change")
    expect(page.locator("#studio-words textarea")).to_have_value("Paint the hull red.")
    settle(page)
    page.screenshot(path=SHOTS / "studio-example-1280.png", full_page=True)
    page.fill("#studio-words textarea", "")
    page.click("#studio-change")
    page.wait_for_selector("#studio-status:has-text('The words say what was changed')")
    expect(page.locator("#studio-words textarea")).to_have_value("Step 1. Draw the hull of the boat.")
    page.screenshot(path=SHOTS / "studio-example-changed.png")
    phone = tab(fast.address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.click("button[role=tab]:has-text('Studio')")
    phone.set_input_files("#studio-upload input[type=file]", str(tmp_path / "brought.png"))
    phone.wait_for_selector("#studio-editor canvas")
    phone.locator("#studio-example button").first.click()
    phone.wait_for_selector("#studio-say-change")
    assert overflow_width(phone) <= 0
    phone.locator("#studio-say-change").scroll_into_view_if_needed()
    settle(phone)
    phone.screenshot(path=SHOTS / "studio-example-390.png")
