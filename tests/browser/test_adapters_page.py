"""LoRA files in the page's head: brought, switched on with effect, refused in a sentence; and what ComfyUI has, in the Models tab."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import save_file

from tests.models.test_transformer_files import other_weights, write_gguf
from tests.support.browser import SHOTS, Server, browser_only, open_part, serve_klein, settle
from tests.support.waiting import until
from ui.parts.adapters import keep_lora


def lora(file: Path, width: int = 64, **metadata: str) -> Path:
    """A LoRA in kohya's form for klein's first block; it fits where `width` is 64."""
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(width, 2)}, file, metadata=metadata)
    return file


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> Iterator[Server]:
    """A server with a tiny diffusers pair."""
    server = serve_klein(tmp_path_factory.mktemp("home"))
    yield server
    server.end()


@browser_only
def test_a_lora_is_brought_and_switched_on(painter: Server, tab, tmp_path: Path) -> None:
    style = lora(tmp_path / "Ann ink.safetensors", **{"modelspec.trigger_phrase": "in <b>ink</b>"})
    other = lora(tmp_path / "other.safetensors", 96, ss_base_model_version="sdxl_base_v1-0")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    page = tab(painter.address)
    page.click("#pair button.label-wrap")
    for file, name in ((style, "Ann-ink"), (other, "other")):
        page.set_input_files("#adapters input[type=file]", file)
        page.wait_for_selector(f"#adapters-status:has-text('{name} is here now')")
    page.set_input_files("#adapters input[type=file]", tmp_path / "model.safetensors")
    page.wait_for_selector("#adapters-status:has-text('model.safetensors cannot be opened: git-lfs left a pointer')")
    expect(page.locator("#adapters .triggers")).to_have_text("Trigger words: in <b>ink</b>")
    page.wait_for_selector("#status:has-text('Ready')")
    page.click("#adapter-Ann-ink input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('On: Ann-ink (1)')")
    page.screenshot(path=SHOTS / "lora.png")
    page.click("#adapter-other input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('was made for sdxl_base_v1-0 and does not fit this one')")
    expect(page.locator("#adapters-status")).to_contain_text("All adapters are off now.")


@browser_only
def test_a_click_on_an_old_list_concerns_the_adapter_that_it_shows(painter: Server, tab, tmp_path: Path) -> None:
    """The list changes on the server, by other pages and programs, before a page shows it."""
    folder = painter.home / "loras"
    folder.mkdir(exist_ok=True)
    lora(folder / "middle.safetensors")
    page = tab(painter.address)
    page.wait_for_selector("#status:has-text('Ready')")
    open_part(page, "#pair button.label-wrap", "#adapter-middle")
    page.locator("#adapter-middle input[type=range]").fill("0.5")
    lora(folder / "first.safetensors")
    page.click("#adapter-middle input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('On: middle (0.5)')")
    page.wait_for_selector("#adapter-first")
    expect(page.locator("#adapter-middle input[type=checkbox]")).to_be_checked()
    expect(page.locator("#adapter-middle output")).to_have_text("0.5")
    expect(page.locator("#adapter-first input[type=checkbox]")).not_to_be_checked()
    for at in range(4):  # the list grows while its rows are clicked
        lora(folder / f"one-more-{at}.safetensors")
        page.click("#adapters-look")
        page.click("#adapter-middle input[type=checkbox]")
        page.wait_for_selector(f"#adapters-status:has-text('{'On: middle (0.5)' if at % 2 else 'No adapter is on.'}')")
    (folder / "first.safetensors").unlink()
    page.click("#adapter-first input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('This adapter is no longer there; look for new ones.')")
    page.wait_for_selector("#adapter-first", state="detached")
    expect(page.locator("#adapter-middle input[type=checkbox]")).to_be_checked()
    page.click("#adapter-middle input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('No adapter is on.')")
    for file in folder.iterdir():
        file.unlink()


@browser_only
def test_a_page_that_starts_slowly_keeps_what_was_said(painter: Server, tab, tmp_path: Path) -> None:
    """What the page does at its start may end late; it must not undo what its user has done by then."""
    style = lora(tmp_path / "Early.safetensors", **{"modelspec.trigger_phrase": "early"})
    page, held = tab(painter.address), []
    page.goto("about:blank")
    page.route("**/gradio_api/run/predict", lambda route: held.append(route))
    page.goto(painter.address)
    page.click("#pair button.label-wrap")
    page.set_input_files("#adapters input[type=file]", style)
    page.wait_for_selector("#adapters-status:has-text('Early is here now')")
    assert held
    for route in held:
        route.continue_()
        route.request.response().finished()
    page.unroute("**/gradio_api/run/predict")
    page.wait_for_selector("#adapter-Early")
    settle(page)
    expect(page.locator("#adapters-status")).to_contain_text("Early is here now")


@browser_only
def test_files_of_comfyui_are_listed_chosen_and_opened(painter: Server, tab, tmp_path: Path) -> None:
    models = tmp_path / "ComfyUI" / "models"
    for name in ("unet", "loras"):
        (models / name).mkdir(parents=True)
    write_gguf(other_weights(painter.home / "klein"), models / "unet" / "klein-Q8_0.gguf")
    lora(models / "loras" / "ink-of-comfy.safetensors")
    page = tab(painter.address)
    page.wait_for_selector("#status:has-text('Ready')")
    open_part(page, "button[role=tab]:has-text('Models')", "#models-choice")
    page.click("#models-choice label:has-text('Another folder')")
    for name, value in (("name", painter.home / "klein"), ("mllm", painter.home / "mllm")):
        page.fill(f"#models-{name} textarea, #models-{name} input", str(value))
        page.keyboard.press("Enter")
    open_part(page, "#models-own button.label-wrap", "#models-own-folder")
    page.fill("#models-own-folder textarea, #models-own-folder input", str(tmp_path / "nowhere"))
    page.keyboard.press("Enter")
    page.wait_for_selector("text=name the models folder of ComfyUI or Forge.")
    page.fill("#models-own-folder textarea, #models-own-folder input", str(tmp_path / "ComfyUI"))
    page.keyboard.press("Enter")
    for file in ("klein-Q8_0.gguf · GGUF", "ink-of-comfy.safetensors"):
        page.wait_for_selector(f"#models-own-files td:has-text('{file}')")
    page.click("#models-transformer input")
    page.click("[role=option]:has-text('klein-Q8_0.gguf')")
    page.wait_for_selector("#models-plan:has-text('On this machine: Language model')")
    before = painter.log.read_text().count("Ready: klein.")
    page.click("#models-use")
    until(lambda: painter.log.read_text().count("Ready: klein.") > before)
    page.wait_for_selector("#models-status:has-text('Open now: klein.')")
    page.locator("#models-own-files").scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "models-comfyui.png", full_page=True)
    page.click("button[role=tab]:has-text('Chat')")
    page.click("#pair button.label-wrap")
    page.click("#adapters-look")
    page.click("#adapter-ink-of-comfy input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('On: ink-of-comfy (1)')")
    page.screenshot(path=SHOTS / "lora-comfyui.png")
    page.click("#adapter-ink-of-comfy input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('No adapter is on.')")


def test_a_lora_of_the_same_name_stays_beside_the_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    first = keep_lora(lora(tmp_path / "a b.safetensors"))
    assert first == keep_lora(lora(tmp_path / "a b.safetensors")) == tmp_path / "home" / "loras" / "a-b.safetensors"
    second = keep_lora(lora(tmp_path / "a b.safetensors", 32))
    assert second != first and {first, second} == set((tmp_path / "home" / "loras").iterdir())
