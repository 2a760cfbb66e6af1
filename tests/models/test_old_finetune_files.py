"""Files and flags of earlier versions of fine-tuning stay readable: recipes, jobs, adapters, and the commands' old names."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from duogen.cli import finetune as command
from duogen.finetune import cost
from duogen.finetune.config import PRESETS, FineTuneConfig
from duogen.finetune.jobs import Job, list_jobs
from duogen.finetune.model_card import model_card
from duogen.finetune.prepare import FineTuneRequest
from duogen.hub import timings
from duogen.train.__main__ import _parser

OLD = Path(__file__).parents[1] / "support" / "old"


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter, where the page finds it, whose job an earlier version began."""
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    return Path(shutil.copytree(OLD / "adapter", tmp_path / "finetune" / "boats"))


def test_a_recipe_may_have_the_old_keys() -> None:
    recipe = FineTuneConfig.load(OLD / "recipe.json")
    assert (recipe.seed, recipe.replay, recipe.mllm.steps, recipe.mllm.rank) == (3, 0.2, 7, 4)
    assert (recipe.dit.steps, recipe.dit.connector, recipe.dit.ema) == (9, "full", 0.98)
    assert recipe == FineTuneConfig.from_json(recipe.as_json())
    assert all(FineTuneConfig.load(preset).mllm.batch for preset in PRESETS)


def test_a_request_may_have_the_old_keys(adapter: Path) -> None:
    request = FineTuneRequest.load(adapter)
    assert (request.stage, request.replay, request.recipe.mllm.steps, request.recipe.dit.steps) == ("dit", Path("/data/before"), 7, 9)
    Job(adapter).write_request(request.as_json())
    assert FineTuneRequest.load(adapter) == request and Job(adapter).read_request()["stage"] == "dit"
    assert FineTuneRequest(Path("a"), Path("b"), stage="1").stage == "mllm"


def test_a_job_goes_on_in_its_old_folders(adapter: Path) -> None:
    (job,) = list_jobs()
    assert job.folder == adapter and job.progress()["stage"] == "dit" and job.progress()["updated"] == 1.7e9
    job.report(phase="paused")
    assert {"told", "wants_card"}.isdisjoint(job.progress()) and job.progress()["updated"] > 1.7e9
    assert job.figures("mllm") == [{"step": 1, "loss": 2.5, "validation": 2.25}] and job.figures("dit") == [{"step": 1, "loss": 0.5}]
    assert [(each["stage"], each["step"]) for each in job.samples()] == [("mllm", 0), ("dit", 2)]
    assert job.has_sample("mllm", 0) and job.has_sample("dit", 2) and not job.has_sample("dit", 0)
    assert job.stage_folder("mllm") == job.run / "talk" and job.stage_folder("dit") == job.run / "paint"
    assert job.replay_folder("mllm") == job.run / "rehearsal" / "talk" and job.replay_folder("dit") == job.run / "replay" / "dit"
    other = Job(adapter.parent / "other")
    assert other.stage_folder("mllm") == other.run / "mllm" and other.replay_folder("dit") == other.run / "replay" / "dit"


def test_the_model_card_of_an_old_adapter_has_both_stages(adapter: Path) -> None:
    card = model_card(adapter)
    assert "| 1, what to say and when to draw | 1 | 4 | 0.0002 | 2.5000 |" in card and "| 2, how to paint it | 1 | 8 |" in card


def test_times_that_were_measured_under_the_old_names_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    timings.note("boats", cost._step_key("paint", "cpu"), 3.0)
    assert cost._recall_seconds(cost._step_key, Path("boats"), "dit", "cpu") == 3.0
    timings.note("boats", cost._step_key("dit", "cpu"), 2.0)
    assert cost._recall_seconds(cost._step_key, Path("boats"), "dit", "cpu") == 2.0


def test_the_commands_take_their_old_names(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_commands(parser.add_subparsers())
    for stage, name in (("1", "mllm"), ("mllm", "mllm"), ("2", "dit"), ("both", "both")):
        for flag in ("--rehearse", "--replay"):
            given = parser.parse_args(["finetune", "--stage", stage, flag, "before"])
            assert (given.stage, given.replay) == (name, Path("before"))
    assert parser.parse_args(["finetune"]).replay is None
    assert _parser().parse_args(["refit"]).stage == _parser().parse_args(["fit-last-layer"]).stage == "fit-last-layer"
    with pytest.raises(SystemExit):
        parser.parse_args(["finetune", "--help"])
    assert "rehearse" not in capsys.readouterr().out
