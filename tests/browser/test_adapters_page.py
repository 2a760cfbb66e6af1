"""LoRA files in the page's drawer: brought, switched on with effect, refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import save_file

from tests.support import public
from tests.support.browser import SHOTS, Server, browser_only
from ui.parts.adapters import keep_lora


def lora(file: Path, width: int = 64, **metadata: str) -> Path:
    """A LoRA in kohya's form for klein's first block; it fits where `width` is 64."""
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{name}.lora_down.weight": torch.ones(2, width), f"{name}.lora_up.weight": torch.ones(width, 2)}, file, metadata=metadata)
    return file


@pytest.fixture(scope="module")
def painter(tmp_path_factory) -> Server:
    """A server with a tiny diffusers pair."""
    home = tmp_path_factory.mktemp("home")
    folders = public.klein(home / "klein"), public.qwen3_mllm(home / "mllm")
    server = Server(home, "--pair", str(folders[0]), "--mllm", str(folders[1]), "--device", "cpu", "--painter-precision", "fp32")
    yield server
    server.end()


@browser_only
def test_a_lora_is_brought_and_switched_on(painter: Server, tab, tmp_path: Path) -> None:
    style = lora(tmp_path / "Ann ink.safetensors", **{"modelspec.trigger_phrase": "in <b>ink</b>"})
    other = lora(tmp_path / "other.safetensors", 96, ss_base_model_version="sdxl_base_v1-0")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    page = tab(painter.address)
    page.click("#drawer")
    page.click("#adapters button.label-wrap")
    for file, name in ((style, "Ann-ink"), (other, "other")):
        page.set_input_files("#adapters input[type=file]", file)
        page.wait_for_selector(f"#adapters-status:has-text('{name} is here now')")
    page.set_input_files("#adapters input[type=file]", tmp_path / "model.safetensors")
    page.wait_for_selector("#adapters-status:has-text('model.safetensors cannot be opened: git-lfs left a pointer')")
    expect(page.locator("#adapters .triggers.prose")).to_have_text("Trigger words: in <b>ink</b>")
    page.wait_for_selector("#status:has-text('Ready')")
    page.click("#adapter-Ann-ink input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('On: Ann-ink (1)')")
    page.screenshot(path=SHOTS / "lora.png")
    page.click("#adapter-other input[type=checkbox]")
    page.wait_for_selector("#adapters-status:has-text('was made for sdxl_base_v1-0 and does not fit this one')")
    expect(page.locator("#adapters-status")).to_contain_text("All adapters are off now.")


def test_a_lora_of_the_same_name_stays_beside_the_other(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    first = keep_lora(lora(tmp_path / "a b.safetensors"))
    assert first == keep_lora(lora(tmp_path / "a b.safetensors")) == tmp_path / "home" / "loras" / "a-b.safetensors"
    second = keep_lora(lora(tmp_path / "a b.safetensors", 32))
    assert second != first and {first, second} == set((tmp_path / "home" / "loras").iterdir())
