"""The settings of the bundled pair's recipes: what a recipe may say, and how a wrong one is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from duogen.train import __main__ as commands
from duogen.train.settings import (
    FROM_NOTHING,
    STAGES,
    DiTModel,
    DiTSettings,
    MLLMSettings,
    RequestGroup,
    RewardSettings,
    StageSettings,
    TaskGroup,
    VAEModel,
    VAESettings,
    VisionSettings,
    settings_table,
)

ROOT = Path(__file__).parents[2]
GROUP = {"name": "one", "frames": [1, 2], "targets": 4, "tasks": {"guide": 1}}


WHOLE_RECIPES = [(recipe, kind) for recipe in ("duogen-sketch", "duogen-sketch-192") for kind in map(STAGES.get, FROM_NOTHING)]
PARTIAL_RECIPES = [
    ("duogen-sketch-words", MLLMSettings), ("duogen-sketch-edits", DiTSettings), ("duogen-sketch-reward", RewardSettings)
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "kind"), [*WHOLE_RECIPES, *PARTIAL_RECIPES])
def test_a_shipped_recipe_sets_what_it_says(recipe: str, kind: type[StageSettings]) -> None:
    raw = json.loads((ROOT / "assets" / "recipes" / f"{recipe}.json").read_text(encoding="utf-8"))[kind.stage]["settings"]
    settings = kind.from_json(raw)

    def check(value: Any, written: Any) -> None:
        if isinstance(written, dict) and not isinstance(value, dict):
            for name, own in written.items():
                check(getattr(value, name), own)
        elif isinstance(written, list):
            assert len(value) == len(written)
            for one, other in zip(value, written, strict=True):
                check(one, other)
        else:
            assert value == written

    check(settings, raw)


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        (VAESettings, {"batsch": 1}, "vae settings cannot be used: batsch is not known; known are styles, batch, noise, patches_from, "),
        (VAESettings, {"model": {"depth": 1}}, "model.depth is not known; known are z_dim, patch_size, width, blocks."),
        (VAESettings, {"batch": "8"}, "batch is '8', which is no int."),
        (VAESettings, {"batch": 0}, "batch must be between 1 and 4096, not 0."),
        (VAESettings, {"crowded": "many"}, "crowded is 'many', which is no float."),
        (VisionSettings, ["batch"], "must be an object."),
        (MLLMSettings, {"rank": 8}, "tasks is missing."),
        (MLLMSettings, {"tasks": {"guide": "often"}}, "tasks.guide is 'often', which is no float."),
        (MLLMSettings, {"tasks": {"guide": 1}, "train_vision": 1}, "train_vision is 1, which is no bool."),
        (DiTSettings, {"groups": GROUP}, "groups is {.*}, which is no list."),
        (DiTSettings, {"groups": []}, "groups and layers must not be empty."),
        (DiTSettings, {"groups": [GROUP, GROUP | {"copy": 2}]}, r"groups\[1\].copy is not known; known are name, frames, copies, "),
        (DiTSettings, {"groups": [GROUP | {"tasks": {}}]}, "the group one needs frames and tasks."),
        (DiTSettings, {"groups": [GROUP], "layers": [1, "2"]}, r"layers\[1\] is '2', which is no int."),
        (DiTSettings, {"groups": [GROUP], "model": {"gate": "yes"}}, "model.gate is 'yes', which is no bool."),
        (DiTSettings, {"groups": [GROUP], "predicts": "change"}, "predicts is not known"),
    ],
)
def test_a_wrong_recipe_gets_one_sentence(kind: type[StageSettings], raw: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        kind.from_json(raw)
    assert str(error.value).startswith(f"The recipe's {kind.stage} settings cannot be used: ")


def test_recipes_of_earlier_versions_are_read() -> None:
    assert VisionSettings.from_json({"hands": 0.25}) == VisionSettings.from_json({"styles": 0.25}) != VisionSettings.from_json(None)
    assert VisionSettings.from_json({"hands": 0.25, "styles": 0.5}).styles == 0.5
    with pytest.raises(ValueError, match="known are styles, "):
        VisionSettings.from_json({"hand": 0.25})
    gates = [DiTSettings.from_json({"groups": [GROUP], "model": {"gate": gate}}).model.gate for gate in (0.2, 0, True, False)]
    assert gates == [True, False, True, False]


def test_training_all_stages_begins_with_none_where_one_is_wrong(tmp_path: Path, monkeypatch, capsys) -> None:
    raw = json.loads((ROOT / "assets" / "recipes" / "duogen-sketch.json").read_text(encoding="utf-8"))
    raw["dit"]["settings"]["drop_out"] = 0.1
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(raw))
    monkeypatch.setattr(commands, "build_stage", lambda *_: pytest.fail("the autoencoder was trained first"))
    assert commands.main(["all", "--recipe", str(file), "--runs", str(tmp_path), "--threads", "1"]) == 2
    assert "dit settings cannot be used: drop_out is not known; known are" in capsys.readouterr().err


def test_the_command_prints_every_setting_and_imports_no_model() -> None:
    code = """
import sys
from duogen.train.__main__ import main
assert main(["settings"]) == 0
assert not {"torch", "numpy", "transformers", "diffusers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == settings_table() + "\n"
    for words in ("## vision", "| `model.z_dim` | `96` |", "| `groups[].frames` | required |", "| `layers` | `[1, 2, 3, 4, 6, 8]` |"):
        assert words in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    kinds = (*STAGES.values(), VAEModel, DiTModel, TaskGroup, RequestGroup)
    assert len(rows) == sum(len(fields(kind)) for kind in kinds) and all(len(row.split("|")) == 5 and row.endswith(". |") for row in rows)
