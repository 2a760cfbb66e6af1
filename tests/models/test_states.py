"""The MLLM's states in training: slices equal the whole, kept ones equal those read anew, and the projection folds away."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from safetensors.torch import load_file

from duogen.models.pipeline import open_pair
from duogen.models.sequence import Tokens
from duogen.nn.frames import project_condition
from duogen.nn.vae import PatchVAE
from duogen.train import states as kept_states
from duogen.train.__main__ import keep_projection, main
from duogen.train.curriculum import sample_dialogue
from duogen.train.dit import DiTStage, collate
from duogen.train.settings import CurriculumSettings
from duogen.train.states import PROJECTION, KeptStates, Projection, StateStore, fold_connector, name_store, narrow_connector, read_states
from duogen.train.trainer import Recipe, train
from tests.models.test_training import SETTINGS, quiet, recipe
from tests.support.tiny import tiny_pair

pytestmark = pytest.mark.usefixtures("as_before")
KEPT = {**SETTINGS, "layers": [1, 2], "dialogues": 12, "states": 100, "dropout": 0.0}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def tokens(pair):
    return Tokens(pair.tokenizer, pair.image_processor)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(kept_states, "CHUNK", 4)
    monkeypatch.setattr("duogen.train.dit.READ_AT_ONCE", 3)


def stage_of(pair, tokens: Tokens, wish: Recipe, folder: Path | None) -> DiTStage:
    torch.manual_seed(0)
    vae = PatchVAE(z_dim=8, patch_size=32, width=8, blocks=1, latents_mean=[0.0] * 8, latents_std=[0.5] * 8)
    return DiTStage(wish, pair.text_encoder, tokens, vae, [1, 2], folder)


def own_ids(tokens: Tokens, turns: list, frames: int) -> tuple[int, ...]:
    data = collate(tokens, [turns], frames, 0, see=True)
    return tuple(data.ids[0, data.mask[0]].tolist())


@pytest.mark.parametrize("words", [1, 150, 10_000])
def test_slices_read_what_the_whole_reads(pair, tokens, words):
    """Conversations of different lengths, with pictures in them, against each of them alone."""
    turns = [sample_dialogue(random.Random(seed), {"thing_steps": 0.5, "shape_steps": 0.5}, 2, CurriculumSettings()) for seed in range(5)]
    data = collate(tokens, turns, 2, 0, see=True)
    assert len(set(data.mask.sum(1).tolist())) > 2
    states = read_states(pair.text_encoder, [1, 2], data.ids, data.places, data.mask, data.vision, words)
    for row, own in enumerate(turns):
        one = collate(tokens, [own], 2, 0, see=True)
        length = int(one.mask.sum())
        alone = read_states(pair.text_encoder, [1, 2], one.ids[:, :length], one.places[..., :length], one.mask[:, :length], one.vision)
        assert (states[row, :length] - alone[0]).abs().max() < 1e-4
        assert not states[row, length:].any()


def test_the_frozen_model_ends_where_the_connector_reads_no_more(pair, tokens):
    stage = stage_of(pair, tokens, recipe(settings=SETTINGS), None)
    assert len(stage.mllm.model.language_model.layers) == 2 < len(pair.text_encoder.model.language_model.layers)


def test_training_from_kept_states_has_the_same_loss(pair, tokens, tmp_path):
    stage = stage_of(pair, tokens, recipe(settings=KEPT), tmp_path)
    stage.fill_states(quiet)
    torch.nn.init.normal_(stage.transformer.proj_out.weight, std=0.05)  # a new DiT paints nothing, whatever it reads
    for block in stage.transformer.transformer_blocks:
        torch.nn.init.normal_(block.norm2.linear_2.weight, std=0.1)
    batch = stage.batch(3)
    kept = stage.loss(batch, torch.Generator().manual_seed(1))[0]
    whole = stage_of(pair, tokens, recipe(settings=SETTINGS), None)
    whole.transformer = copy.deepcopy(stage.transformer)
    fold_connector(whole.transformer, stage.projection)
    turns = {}
    for group, data in zip(stage.settings.groups, batch, strict=True):
        known = [stage.make_dialogue(group, number) for number in range(stage.store.counts[group.name])]
        read = {own_ids(tokens, own, group.frames[0]): own for own in known}
        turns[group.name] = [read[tuple(ids[mask].tolist())] for ids, mask in zip(data.ids, data.mask, strict=True)]
    anew = [collate(tokens, turns[g["name"]], g["frames"][0], data.first, True) for g, data in zip(SETTINGS["groups"], batch, strict=True)]
    assert all(data.kept is None and data.ids.equal(old.ids) for data, old in zip(anew, batch, strict=True))
    read = whole.loss(anew, torch.Generator().manual_seed(1))[0]
    for data in anew:  # other words must show
        data.ids = data.ids.flip(0)
    other = whole.loss(anew, torch.Generator().manual_seed(1))[0]
    assert abs(kept - read) < 0.01 * abs(read) and abs(kept - read) < 0.2 * abs(other - read)


def test_kept_states_are_made_once_and_go_on_where_they_were(pair, tokens, tmp_path):
    def fill(stop: int) -> tuple[DiTStage, list[str]]:
        stage, said = stage_of(pair, tokens, recipe(settings=KEPT), tmp_path), []

        def say(line: str) -> None:
            said.append(line)
            if len(said) == stop:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            stage.fill_states(say)
        return stage, said

    stage, _ = fill(3)  # the axes, one file, and the beginning of the second
    files = {file: file.stat().st_mtime_ns for file in stage.store.folder.glob("*-*.safetensors")}
    assert len(files) == 1 and stage.store.list_missing()
    again, said = fill(0)
    assert not again.store.list_missing() and not any("axes" in line for line in said)
    assert all(file.stat().st_mtime_ns == when for file, when in files.items())
    assert fill(0)[1] == [] and not list(again.store.folder.glob("*.part"))
    tensors = load_file(next(iter(files)))
    assert tensors["states"].dtype == torch.int8 and tensors["states"].shape[1] == 100
    assert sum(again.store.counts.values()) == 12
    next(iter(files)).write_bytes(b"damage")
    with pytest.raises(ValueError, match="cannot be read; remove the file"):
        again.store.get("many" if "many" in next(iter(files)).name else "one", 0)


def test_kept_states_of_other_dialogues_are_refused(pair, tokens, tmp_path, monkeypatch):
    stage = stage_of(pair, tokens, recipe(settings=KEPT), tmp_path)
    stage.fill_states(quiet)
    stage.batch(0)
    monkeypatch.setattr("duogen.train.dit.sample_dialogue", lambda rng, *rest: sample_dialogue(random.Random(rng.random() + 1), *rest))
    with pytest.raises(ValueError, match="of other dialogues"):
        stage.batch(0)


def test_a_store_is_named_by_all_that_its_states_depend_on(pair, tokens):
    stage = stage_of(pair, tokens, recipe(settings=SETTINGS), None)
    name = name_store(KEPT, 1, stage.mllm)
    assert name == name_store({**KEPT, "dialogues": 99, "dropout": 0.3}, 1, stage.mllm)
    changed = ((KEPT, 2), (KEPT | {"states": 5}, 1), (KEPT | {"see": False}, 1))
    others = [name_store(settings, seed, stage.mllm) for settings, seed in changed]
    weight = stage.mllm.model.language_model.layers[0].mlp.up_proj.weight.data
    weight[0, 0] += 1
    others.append(name_store(KEPT, 1, stage.mllm))
    weight[0, 0] -= 1
    assert len({name, *others}) == 5


def test_a_store_keeps_the_name_that_earlier_versions_gave_it():
    """Folders of states that are on disk must be found: numbers stay as the recipe writes them, and defaults are left out."""
    layer = torch.nn.Linear(2, 2)
    layer.load_state_dict({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([5.0, 6.0])})
    stub = SimpleNamespace(model=layer)
    group = {"name": "one", "frames": [1], "copies": 2, "targets": 4, "weight": 1.0, "tasks": {"shapes": 1, "guide": 0.5}}
    more = {"layers": [1, 2], "see": True, "core_kinds": ["house"], "core_share": 1, "states": 384, "focus": 0.5}
    names = [name_store({"groups": [group], **given}, 61, stub) for given in ({}, more | {"styles": 0.15}, more | {"hands": 0.15})]
    assert names == ["7dd838c358413b88", "82577d1d89b9c721", "82577d1d89b9c721"]


def known_projection(rank: int) -> tuple[Projection, torch.Tensor]:
    """One fitted to states of `rank` directions, and such states."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(400, rank, generator=generator) @ torch.randn(rank, 128, generator=generator)
    return Projection.fit([states[:150], states[150:]], rank), states


def test_the_projection_keeps_what_the_states_span():
    projection, states = known_projection(20)
    states = states + 3.0
    projected = projection.project(states)
    back = projected @ torch.linalg.pinv(projection.axes).T + projection.mean
    assert (back - states).abs().max() > 0.1  # what lies outside of it is lost
    inside = projection.project(states - 3.0)
    assert 0.9 < float(inside.square().mean()) < 1.1
    assert (inside @ torch.linalg.pinv(projection.axes).T + projection.mean - (states - 3.0)).abs().max() < 1e-3
    packed, scale = projection.pack(states - 3.0)
    assert packed.dtype == torch.int8 and packed.abs().max() >= 126
    off = projection.unpack(packed, scale) - inside
    assert off.abs().max() > 0 and off.norm() < 0.02 * inside.norm()
    with pytest.raises(ValueError, match="cannot be kept"):
        Projection.fit([states], 129)


def test_a_folded_connector_reads_whole_states_as_it_read_projected_ones(pair, tmp_path):
    projection, states = known_projection(20)
    narrow, whole = copy.deepcopy(pair.transformer), copy.deepcopy(pair.transformer)
    narrow_connector(narrow, projection)
    assert narrow.config.crossattn_proj_in_channels == 20
    one = project_condition(narrow, projection.project(states)[None])
    for (key, value), (own_key, own_value) in zip(one, project_condition(whole, states[None]), strict=True):  # all of it lies in the span
        assert (key - own_key).abs().max() < 1e-3 and (value - own_value).abs().max() < 1e-3
    fold_connector(narrow, projection)
    assert narrow.config.crossattn_proj_in_channels == 128
    outside = states + torch.randn(states.shape, generator=torch.Generator().manual_seed(3))
    inner = copy.deepcopy(pair.transformer)
    narrow_connector(inner, projection)
    expected = inner.crossattn_proj(projection.project(outside)).detach()
    narrow.save_pretrained(tmp_path)
    for folded in (narrow, CosmosTransformer3DModel.from_pretrained(tmp_path)):
        assert (folded.crossattn_proj(outside) - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_a_run_keeps_its_own_projection(pair, tokens, tmp_path):
    wish = recipe(steps=2, settings=KEPT)
    stage = stage_of(pair, tokens, wish, tmp_path / "states")
    stage.fill_states(quiet)
    keep_projection(stage, tmp_path / "dit")
    assert train(stage, wish, tmp_path / "dit", log=quiet) == 2
    assert torch.equal(Projection.load(tmp_path / "dit" / PROJECTION).axes, stage.projection.axes)
    keep_projection(stage, tmp_path / "dit")
    for settings in ({**KEPT, "states": 90}, SETTINGS):
        other = stage_of(pair, tokens, recipe(settings=settings), tmp_path / "states")
        other.fill_states(quiet)
        with pytest.raises(ValueError, match="began with other states"):
            keep_projection(other, tmp_path / "dit")
    (tmp_path / "dit" / "state.pt").unlink()  # the run is thrown away: the next one may have others, or none
    keep_projection(other, tmp_path / "dit")
    assert not (tmp_path / "dit" / PROJECTION).exists()


def test_two_processes_share_the_work(tmp_path):
    """A file that another process makes is left to it, and made here after all if it never comes."""
    store, made = StateStore(tmp_path, {"one": 8}), []
    lock = kept_states.FileLock(tmp_path / ".one-00000.lock")
    lock.acquire()

    def make(group: str, numbers: range) -> list[KeptStates]:
        made.append(numbers.start)
        if numbers.start == 4:
            lock.release()  # the other one was killed
        return [KeptStates(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, dtype=torch.float16), number) for number in numbers]

    store.fill(make, quiet)
    assert made == [4, 0] and not store.list_missing()
    assert store.get("one", 5).check == 5 and store.get("one", 5).packed.shape == (2, 3)


def test_the_commands_make_states_and_train_from_them(pair, tokens, tmp_path, monkeypatch):
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"dit": {"steps": 2, "learning_rate": 0.01, "workers": 0, "settings": KEPT}}))
    monkeypatch.setattr("duogen.train.__main__.build_dit_stage", lambda wish, file, runs: stage_of(pair, tokens, wish, runs / "states"))
    runs = tmp_path / "runs" / "small"
    given = ["--recipe", str(file), "--runs", str(tmp_path / "runs"), "--threads", "1"]
    assert main(["states", *given]) == 0
    made = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    counts = stage_of(pair, tokens, Recipe.load(file, "dit"), runs / "states").store.counts
    assert len(made) == 1 + sum(-(-count // 4) for count in counts.values())  # the projection, and files of four
    assert main(["dit", *given]) == 0
    assert (runs / "dit" / PROJECTION).exists() and torch.load(runs / "dit" / "state.pt")["step"] == 2
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
