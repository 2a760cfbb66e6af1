"""Presets: a user's own on disk, those that come with DuoGen beside them, on the command line and in the controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from duogen.cli.main import options_of, parser
from duogen.hub.catalogue import bundled_id
from duogen.library.presets import PresetStore, find_options
from duogen.options import ImageOptions, Options, TextOptions, preset_options
from ui.parts.controls import say_size

IMAGE = ImageOptions(steps=3, style_words="ink, soft light", aspect="3:2")
INK = Options(None, TextOptions(temperature=0.7, system_prompt="Be short."), IMAGE)
DAMAGE = ('{"pair": "klein", "na', "[]", '{"pair": "klein", "name": "A", "options": {"image": {"steps": 5000}}}', "null")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PresetStore:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    return PresetStore(tmp_path / "presets")


def names(store: PresetStore, pair: str = "klein") -> list[str]:
    return [each.name for each in store.list_presets(pair)[0]]


def test_a_preset_is_saved_for_its_pair_renamed_and_deleted(store: PresetStore) -> None:
    store.save("klein", "  Ink   wash ", replace(INK, seed=7))
    assert store.find("klein", "ink wash").options == INK, "the seed is not part of a preset"
    assert names(store) == ["Ink wash"] and names(store, "other") == []
    store.save("klein", "INK WASH", preset_options("quick", {}))
    assert names(store) == ["INK WASH"], "the same name in other letters is the same preset"
    store.save("klein", "Über / Öl", INK)
    with pytest.raises(ValueError, match="a preset called INK WASH already|a preset called ink wash already"):
        store.rename("klein", "Über / Öl", "ink wash")
    assert store.rename("klein", "INK WASH", "Ink Wash").name == "Ink Wash" and names(store) == ["Ink Wash", "Über / Öl"]
    assert store.rename("klein", "Ink Wash", "Wash").options == preset_options("quick", {}) and names(store) == ["Wash", "Über / Öl"]
    store.delete("klein", "wash")
    assert names(store) == ["Über / Öl"]
    with pytest.raises(ValueError, match="no preset called Wash; it has quick, balanced, fine, Über / Öl"):
        store.find("klein", "Wash")


def test_a_pair_in_a_folder_has_its_presets_however_it_is_named(store: PresetStore, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pair").mkdir()
    monkeypatch.chdir(tmp_path)
    store.save("pair", "Ink", INK)
    assert names(store, str(tmp_path / "pair")) == ["Ink"]


@pytest.mark.parametrize("name", ["Quick", " fine ", "", "x" * 61])
def test_a_name_that_cannot_be_is_refused(store: PresetStore, name: str) -> None:
    with pytest.raises(ValueError, match="comes with DuoGen|Give the preset a name|60 characters"):
        store.save("klein", name, INK)
    assert not store.folder.exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_costs_no_other_preset(store: PresetStore, damage: str) -> None:
    store.save("klein", "Ink", INK)
    (store.folder / "torn.json").write_text(damage)
    found, damaged = store.list_presets("klein")
    assert [each.options for each in found] == [INK]
    assert damaged == ["The preset in presets/torn.json cannot be read and is left out; mend the file or delete it."]
    assert (store.folder / "torn.json").read_text() == damage


def test_a_preset_of_another_version_is_read(store: PresetStore) -> None:
    """Fields that are not known are passed over; those that it lacks are as ever."""
    store.save("klein", "Ink", INK)
    (file,) = store.folder.glob("*.json")
    raw = json.loads(file.read_text())
    raw["options"]["image"]["glitter"] = 3
    del raw["options"]["image"]["aspect"]
    file.write_text(json.dumps(raw))
    assert store.find("klein", "Ink").options == replace(INK, image=replace(INK.image, aspect="auto"))


def test_the_command_line_takes_both_kinds_and_its_flags_go_before_them(store: PresetStore) -> None:
    store.save(bundled_id(), "Ink", INK)
    given = parser().parse_args(["ask", "x", "--options", "ink", "--steps", "9", "--seed", "4"])
    image = replace(INK.image, steps=9, preview_every=0)
    assert options_of(given, {"steps": 30}) == Options(4, INK.text, image)
    shipped = options_of(parser().parse_args(["ask", "x", "--options", "Quick"]), {"steps": 30, "max_tokens": 100})
    assert (shipped.image.steps, shipped.text.max_tokens) == (4, 50)
    with pytest.raises(ValueError, match="no preset called oil; it has quick, balanced, fine, Ink"):
        options_of(parser().parse_args(["chat", "--options", "oil"]))
    assert find_options("fine", "klein", {"steps": 30}, store) == preset_options("fine", {"steps": 30})


@pytest.mark.parametrize(
    ("about", "side", "aspect", "said"),
    [
        ({"image_size": (1024, 1024)}, 0, "auto", "1024 x 1024 px, or shaped as your picture"),
        ({"image_size": (1024, 1024)}, 0, "3:2", "1248 x 832 px"),
        ({"image_size": (1024, 1024)}, 512, "16:9", "512 x 288 px"),
        ({"image_size": (256, 256), "sees_previous": True}, 0, "3:2", ""),
        ({}, 0, "3:2", ""),
    ],
)
def test_the_true_size_of_a_shape_is_told(about: dict, side: int, aspect: str, said: str) -> None:
    assert say_size(about, side, aspect) == said
