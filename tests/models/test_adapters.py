"""Adapters of fine-tuning: on with effect, or refused in a sentence that names what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from duogen.engine import Engine
from duogen.models.adapters import AdapterSpec, set_adapters, write
from duogen.models.peft_layers import list_loaded
from duogen.models.pipeline import open_pair
from tests.support.tiny import tiny_pair

TARGETS = {"text_encoder": ["q_proj"], "transformer": ["to_q"]}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny pair, and an adapter of both of its parts."""
    home = tmp_path_factory.mktemp("place")
    pair = open_pair(tiny_pair(home / "pair"), "cpu", "fp32")
    for part, names in TARGETS.items():
        config = LoraConfig(r=2, target_modules=names, init_lora_weights=False)
        inject_adapter_in_model(config, getattr(pair, part), adapter_name="x")
        write(getattr(pair, part), "x", config, home / "adapter" / part)
    (home / "adapter" / "adapter.json").write_text("{}")
    return home


@pytest.fixture(scope="module")
def engine(place) -> Engine:
    return Engine.open(place / "pair", "cpu", "fp32")


@pytest.fixture
def adapter(place, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(place / "adapter", tmp_path / "adapter"))


def weights_of(file: Path, change) -> None:
    save_file(change(load_file(file)), file)


def drop_half(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(list(sorted(weights.items()))[::2])


def zero(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(weight) if "lora_B" in name else weight for name, weight in weights.items()}


def kohya(file: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2), "lora_unet_x.lora_up.weight": torch.ones(2, 2)}, file)


def lose_weights(folder: Path) -> None:
    for part in TARGETS:
        shutil.rmtree(folder / part)


def lose_weights_beside_another(folder: Path) -> None:
    lose_weights(folder)
    kohya(folder / "x.safetensors")


BOTH = "lacks text_encoder/adapter_model.safetensors and transformer/adapter_model.safetensors"
BREAKS = {
    "no weights": (lose_weights, f"{BOTH}; train or get it again"),
    "no weights beside another tool's": (lose_weights_beside_another, f"{BOTH}; x.safetensors is a file of another tool"),
    "other name": (
        lambda f: (f / "transformer" / WEIGHTS).rename(f / "transformer" / "pytorch_lora_weights.safetensors"),
        "lacks transformer/adapter_model.safetensors; pytorch_lora_weights.safetensors is a file of another tool",
    ),
    "no tensors": (lambda f: weights_of(f / "transformer" / WEIGHTS, lambda _: {}), "adapter_model.safetensors holds no weights"),
    "half of the tensors": (lambda f: weights_of(f / "transformer" / WEIGHTS, drop_half), "lacks 4 of its 8 weights"),
    "other tensors": (
        lambda f: weights_of(f / "transformer" / WEIGHTS, lambda w: {f"x.{name}": weight for name, weight in w.items()}),
        "was made for another pair, or is damaged",
    ),
    "the pointer of git-lfs": (
        lambda f: (f / "transformer" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "an absurd header": (lambda f: (f / "transformer" / WEIGHTS).write_bytes(b"\xff" * 400), "cut short or damaged"),
    "no configuration": (lambda f: (f / "transformer" / "adapter_config.json").unlink(), "was made for another pair, or is damaged"),
    "a configuration that is none": (lambda f: (f / "transformer" / "adapter_config.json").write_text("[" * 9999), "is damaged"),
    "adapter.json cut": (lambda f: (f / "adapter.json").write_text('{"a'), "adapter.json is damaged"),
    "adapter.json is a list": (lambda f: (f / "adapter.json").write_text("[1]"), "adapter.json is damaged"),
    "other base": (
        lambda f: (f / "adapter.json").write_text('{"base": "some-other/pair"}'),
        "was made for some-other/pair; open that pair",
    ),
    "another of the catalogue": (lambda f: (f / "adapter.json").write_text('{"base": "duogen-sketch"}'), "was made for duogen-sketch"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_an_adapter_without_effect_is_never_on(engine, adapter, how):
    change, words = BREAKS[how]
    change(adapter)
    with pytest.raises(ValueError) as caught:
        engine.set_adapters([AdapterSpec(adapter)])
    assert words in str(caught.value) and str(adapter) in str(caught.value) and "\n" not in str(caught.value)
    assert engine.adapters == () and not list_loaded(engine.pair.transformer) and not list_loaded(engine.pair.text_encoder)


def test_an_adapter_of_zeros_is_refused_unless_another_part_works(engine, adapter):
    weights_of(adapter / "transformer" / WEIGHTS, zero)
    engine.set_adapters([AdapterSpec(adapter)])
    assert len(engine.adapters) == 1
    engine.set_adapters([])
    weights_of(adapter / "text_encoder" / WEIGHTS, zero)
    with pytest.raises(ValueError, match="changes nothing: all of its weights are zero"):
        engine.set_adapters([AdapterSpec(adapter)])
    assert engine.adapters == ()


@pytest.mark.parametrize("base", ("", "/moved/since", "{pair}", "pair", 5, None))
def test_a_pair_that_was_moved_or_is_unknown_is_no_reason(engine, adapter, base):
    base = base.format(pair=engine.found.folder) if isinstance(base, str) else base
    (adapter / "adapter.json").write_text(json.dumps({"base": base}))
    engine.set_adapters([AdapterSpec(adapter)])
    assert len(engine.adapters) == 1
    engine.set_adapters([])


def test_a_pair_that_is_open_in_part_takes_the_part_that_fits(place, adapter):
    pair = open_pair(place / "pair", "cpu", "fp32")
    pair.transformer = None
    weights_of(adapter / "text_encoder" / WEIGHTS, zero)
    set_adapters(pair, [AdapterSpec(adapter)])
    assert list_loaded(pair.text_encoder)


def test_what_is_no_adapter_is_called_by_its_name(place, adapter, tmp_path):
    plain = adapter / "transformer"
    (tmp_path / "packed.zip").write_bytes(b"PK\3\4")
    kohya(tmp_path / "style.safetensors")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (plain, "is a plain peft adapter; only adapters that DuoGen's fine-tuning made, and LoRA files, can be used"),
        (tmp_path / "packed.zip", "is a zip; unpack it"),
        (tmp_path / "nowhere", "is no adapter: there is no such folder or file"),
        (tmp_path / "empty", "is no adapter: an adapter is a folder with adapter.json in it, or a LoRA file"),
    ):
        with pytest.raises(ValueError, match=words):
            AdapterSpec.parse(str(path))
    with pytest.raises(ValueError, match="is a LoRA of kohya; this pair takes only adapters that DuoGen's fine-tuning made"):
        set_adapters(open_pair(place / "pair", "cpu", "fp32"), [AdapterSpec.parse(str(tmp_path / "style.safetensors"))])
