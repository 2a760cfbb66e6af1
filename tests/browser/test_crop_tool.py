"""The crop tool of the Fine-tune tab: the part of a picture that is trained, by keyboard or by drag, and shown as it is trained."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.dataset.crops import Crop, crop_file, read_crop
from duogen.dataset.format import Picture
from duogen.dataset.readers import read_dataset
from duogen.files import write_beside
from tests.browser.test_everyone import faults
from tests.browser.test_finetune_page import shared, to_tab
from tests.browser.test_tags import shoot
from tests.support.browser import Server, browser_only
from tests.unit.test_crops import write_noise
from tests.unit.test_examples import picture
from ui.parts.pictures import PictureFolder
from ui.tabs.crop_tool import CropTool


def test_a_part_is_chosen_by_its_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    file, pixels = tmp_path / "set" / "boat.png", write_noise(tmp_path / "set" / "boat.png")
    with gr.Blocks():
        tool = CropTool(shared(tmp_path), PictureFolder(tmp_path / "shown", 9))
    find, keep = tool.make_functions()
    key, chosen = tool.make_tile(Picture(file)).key, Crop(8, 4, 32, 32)
    assert (find(key)["width"], find(key)["height"], find(key)["crop"], find(key)["shape"]) == (64, 48, None, 1)
    kept = keep([key, chosen._asdict()])
    with PILImage.open(tmp_path / "shown" / Path(kept["picture"]).name) as shown:
        assert kept["said"] == "kept" and np.array_equal(np.asarray(shown.convert("RGB")), pixels[4:36, 8:40])
    assert read_crop(file, (64, 48)) == chosen and find(key)["crop"] == chosen._asdict()
    assert tool.make_tile(Picture(file).with_crop()).cropped
    bad = [[key, chosen._asdict() | {"width": 999}], [key, "x"], ["../boat", chosen._asdict()], None, [key]]
    assert [keep(given)["said"] for given in bad] == ["wrong", "wrong", "gone", "gone", "gone"] and read_crop(file, (64, 48)) == chosen
    crop_file(file).write_bytes(b"x")
    assert find(key)["crop"] is None and keep([key, None])["said"] == "whole" and not crop_file(file).exists()
    monkeypatch.setattr("duogen.dataset.crops.write_beside", lambda *_: write_beside(tmp_path / "no" / "x", b""))
    assert keep([key, chosen._asdict()])["said"] == "failed"
    file.unlink()
    assert find(key) == {"said": "gone"} and keep([key, chosen._asdict()])["said"] == "gone"


def make_examples(folder: Path) -> Path:
    for at, name in enumerate(("boat", "tree", "sun")):
        large = PILImage.open(picture(folder / f"{name}.png", at + 2)).resize((300, 200))
        large.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A {name}")
    return folder


@browser_only
def test_the_part_that_is_trained_is_chosen_by_keyboard_and_by_drag(tiny: Server, tab, tmp_path: Path) -> None:
    data = make_examples(tmp_path / "set")
    page = tab(tiny.address, viewport={"width": 1280, "height": 900})
    page.wait_for_selector("#status:has-text('Ready')")
    to_tab(page)
    page.fill("#finetune-folder :is(textarea, input)", str(data))
    page.click("#finetune-check")
    tile, said = page.locator("#finetune-tiles button[data-crop]").first, page.locator("#finetune-tiles .kept")
    whole = tile.locator("img").get_attribute("src")
    tile.focus()
    tile.press("Enter")
    dialog, slide = page.locator("dialog.crop"), lambda name: page.locator(f"dialog.crop [name={name}]")
    expect(dialog).to_be_visible()
    expect(slide("wide")).to_have_value("200")
    for name, keys in (("wide", ["Home", *["ArrowRight"] * 84]), ("left", ["Home", "ArrowRight", "ArrowRight"]), ("top", ["End"])):
        for key in keys:
            slide(name).press(key)
    expect(dialog.locator("output")).to_have_text(["100 × 100", "2", "100"])
    box = dialog.locator(".stage").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.75)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    expect(dialog.locator("output")).to_have_text(["100 × 100", "152", "50"])
    shoot(page, "crop")
    assert faults(page, "dialog.crop") == []
    dialog.get_by_role("button", name="Save crop").click()
    expect(said).to_have_text("This part is trained.")
    expect(tile).to_be_focused()
    first = read_dataset(data).examples[0].pictures()[0]
    assert first.crop == Crop(152, 50, 100, 100)
    expect(page.locator("#finetune-tiles button.chosen")).to_have_count(1)
    expect(tile.locator("img")).not_to_have_attribute("src", whole or "")
    page.wait_for_function("document.querySelector('#finetune-tiles button.chosen img').naturalWidth > 0")
    shoot(page, "crop-tiles")
    tile.press("Enter")
    expect(dialog).to_be_visible()
    expect(dialog.locator("output")).to_have_text(["100 × 100", "152", "50"])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    tile.press("Enter")
    dialog.get_by_role("button", name="Whole picture").click()
    expect(said).to_have_text("The whole picture is trained.")
    expect(tile.locator("img")).to_have_attribute("src", whole or "")
    assert not crop_file(first.file).exists()
