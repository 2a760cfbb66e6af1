"""The head of the page and what stands beside it: the switch of pairs with their costs, presets of one's own, shapes of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from playwright.sync_api import expect

from duogen.hub.catalogue import bundled_id
from duogen.hub.memory_plan import Machine, Plan
from duogen.library.conversations import ConversationStore
from duogen.options import LoadOptions
from tests.support import public
from tests.support.browser import SHOTS, Server, browser_only, overflow_width, serve_klein, settle
from ui.page import Page
from ui.parts.controls import ASPECT, pair_updates
from ui.parts.loading import Loading
from ui.parts.pair_switch import list_pairs
from ui.parts.shared import key_of


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """With an open pair that does nothing, and `DUOGEN_HOME` in `tmp_path`."""
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    about = {"title": "Nothing", "summary": "", "examples": (), "image_size": (64, 64), "steps": 5}
    loading = Loading("nothing", engine=SimpleNamespace(about=about))
    loading.finished.set()
    return Page(loading, ConversationStore(tmp_path / "conversations"), tmp_path / "shown")


def test_what_a_pair_does_not_use_is_hidden_and_emptied(page: Page) -> None:
    updates = pair_updates(page.controls, {"sees_previous": True})
    for path, value in {ASPECT: "auto", ("image", "side"): 0, ("text", "system_prompt"): ""}.items():
        assert updates[page.controls[path]]["visible"] is False and updates[page.controls[path]]["value"] == value
    shown = pair_updates(page.controls, {"tuned": False})
    assert shown[page.controls[ASPECT]]["visible"] and shown[page.controls["text", "system_prompt"]]["visible"]


def test_the_drawer_saves_sets_renames_and_deletes_a_preset(page: Page) -> None:
    panel, steps, words = page.presets, page.controls["image", "steps"], page.controls["image", "style_words"]
    values = {control: control.value for control in page.controls.values()} | {page.controls["seed",]: "7"}
    saved = panel.save(values | {steps: 3, words: "ink", panel.name: "Ink"})
    assert "Ink is saved." in saved[panel.status] and panel.store.find("nothing", "Ink").options.image.style_words == "ink"
    updates = panel.set_own("Ink")
    assert (updates[steps], updates[words], updates[page.controls[ASPECT]]) == (3, "ink", "auto") and page.controls["seed",] not in updates
    assert panel.rename_chosen("Ink", "Wash")[panel.name] == "Wash"
    (panel.store.folder / "torn.json").write_text("{")
    assert "presets/torn.json cannot be read" in panel.list_own()[panel.status]
    panel.delete_chosen("Wash", "")
    assert panel.store.list_presets("nothing")[0] == []
    assert set(panel.save(values | {panel.name: "Quick"})) == {panel.status}, "a preset that comes with DuoGen stays"


def test_pairs_are_listed_with_their_costs(tmp_path: Path) -> None:
    """As if the open pair, which holds all the memory there is, were closed."""
    painter, mllm = public.klein(tmp_path / "klein"), public.qwen3_mllm(tmp_path / "mllm")
    loading = Loading(load=LoadOptions(device="cpu"), opened={(str(painter), str(mllm)): "klein", (str(tmp_path / "gone"), ""): "gone"})
    loading.engine = SimpleNamespace(about={"title": "Sketch"}, plan=Plan(LoadOptions(), (64, 64), 0.0, 1e12, True))
    loading.finished.set()
    listed = {each.pair: each for each in list_pairs(loading)}
    own, klein, gone = (listed[each] for each in (bundled_id(), str(painter), str(tmp_path / "gone")))
    assert own.title == "Sketch" and own.is_open and not own.possible and "It needs" in own.costs[0]
    assert klein.possible and "of memory" in klein.costs[0] and klein.mllm == str(mllm)
    assert not gone.possible and "is not a pair" in gone.costs[0]


def test_what_is_open_counts_as_room() -> None:
    machine, plan = Machine(4e9, 2e9), Plan(LoadOptions(), (64, 64), 3e9, 1e9, True)
    assert (machine.with_room(plan).gpu, machine.with_room(plan).host) == (7e9, 3e9)
    assert Machine(0, 2e9).with_room(plan).gpu == 0


def test_a_few_step_lora_and_a_transformer_do_not_go_to_another_pair() -> None:
    loading = Loading(load=LoadOptions(device="cpu", preset="lightning-4", transformer="a.gguf"))
    assert loading.load_for_others() == LoadOptions(device="cpu")


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> Iterator[Server]:
    """A server with a tiny diffusers pair, which paints any shape."""
    server = serve_klein(tmp_path_factory.mktemp("home"))
    yield server
    server.end()


def choose_shape_and_save(page) -> None:
    """Choose 3:2 by the keyboard, save that as a preset, and take it back by one that comes with DuoGen."""
    own, own_size = page.locator("#shapes input[name=shape]"), page.locator("#size")
    expect(own_size).to_contain_text("px, or shaped as your picture")
    own.nth(0).focus()
    for shape in ("1:1", "4:3", "3:4", "3:2"):
        page.keyboard.press("ArrowRight")
        expect(page.locator("#shapes label.selected")).to_have_text(shape)
    expect(own_size).not_to_contain_text("shaped")
    page.click("#drawer")
    page.fill("#preset-name :is(input, textarea)", "Wide")
    page.keyboard.press("Enter")
    page.wait_for_selector("#preset-status:has-text('Wide is saved.')")
    settle(page)
    page.screenshot(path=SHOTS / "presets.png")
    page.click("#presets button >> nth=0")
    expect(page.locator("#shapes label.selected")).to_have_text("Auto")
    page.click("#options .toggle-button")


def test_no_list_is_laid_out_while_the_page_runs(page: Page) -> None:
    """`gr.render` gives its rows other events each time, so a click that comes then asks for one that is gone and is lost."""
    assert not page.blocks.renderables


@pytest.mark.parametrize("sent", [None, {}, {"pair": "nothing"}, {"pair": ["nothing"]}])
def test_a_pair_that_is_not_listed_is_not_opened(page: Page, sent: object) -> None:
    updates = page.pair_switch.choose(gr.EventData(None, sent))
    assert list(updates) == [page.pair_switch.status] and not page.loading.is_busy
    assert "open the page anew" in updates[page.pair_switch.status] or "no longer there" in updates[page.pair_switch.status]


@pytest.mark.parametrize("sent", [None, {}, {"command": 3}, {"command": "name x"}, {"command": "animate x 0"}, {"command": "open"}])
def test_an_act_that_makes_no_sense_is_refused(page: Page, sent: object) -> None:
    assert list(page.actions.run({}, gr.EventData(None, sent), SimpleNamespace(session_hash="tab"))) == [page.actions.status]


@pytest.mark.parametrize("weight", ["1", True, float("nan"), -0.1, 1.6, None])
def test_a_weight_is_a_number_in_its_range(page: Page, tmp_path: Path, weight: object) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "ink.safetensors").touch()
    panel = page.pair_switch.adapters
    said, rows = panel.change(gr.EventData(None, {"adapter": key_of(tmp_path / "loras" / "ink.safetensors"), "weight": weight}))
    assert "The weight of an adapter is a number from 0 to 1.5." in said and "adapter-ink" in rows and "checked" not in rows


@browser_only
def test_a_day_with_two_pairs_by_keyboard(painter: Server, tab) -> None:
    page = tab(painter.address)
    page.wait_for_selector("#status:has-text('Ready')")
    choose_shape_and_save(page)
    name = page.locator("#pair > button")
    expect(name).to_have_attribute("aria-label", "Pair and adapters: klein")
    name.focus()
    page.keyboard.press("Enter")
    expect(name).to_have_attribute("aria-expanded", "true")
    expect(page.locator("#pair button.pair.open")).to_contain_text("Open now. It needs")
    other = page.locator("#pair button.pair:not(.open)")
    expect(other).to_contain_text("of memory")
    settle(page)
    page.screenshot(path=SHOTS / "pairs.png")
    page.set_viewport_size({"width": 390, "height": 844})
    settle(page)
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "pairs-phone.png")
    other.focus()
    page.keyboard.press("Enter")
    expect(name).to_be_focused()
    expect(name).to_have_attribute("aria-label", "Pair and adapters: DuoGen Sketch")
    expect(page.locator("#shapes")).not_to_be_visible()
    expect(page.locator("#size")).to_have_text("")
    page.wait_for_selector("#pair button.pair:has-text('klein')")
    page.keyboard.press("Escape")
    expect(name).to_have_attribute("aria-expanded", "false")
    page.click("#drawer")
    expect(page.locator("#preset-chosen")).not_to_be_visible()
    page.click("#options .toggle-button")
    name.click()
    page.click("#pair button.pair:has-text('klein')")
    expect(name).to_have_attribute("aria-label", "Pair and adapters: klein")
    page.click("#box textarea")
    expect(name).to_have_attribute("aria-expanded", "false")
    page.click("#drawer")
    page.click("#preset-chosen input")
    page.click("[role=option]:has-text('Wide')")
    page.wait_for_selector("#preset-status:has-text('Wide is set.')")
    expect(page.locator("#shapes label.selected")).to_have_text("3:2")
