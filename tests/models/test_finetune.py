"""Fine-tuning from a folder to an adapter, on a tiny pair: exact resumption, caches, adapters that come and go, merging."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import CosmosTransformer3DModel
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from bench import finetune_examples as proof
from duogen.cli import finetune as command
from duogen.conversation import Conversation
from duogen.dataset.format import Picture
from duogen.dataset.readers import read_dataset as read_data
from duogen.engine import Engine
from duogen.events import Done
from duogen.finetune import model_card as card
from duogen.finetune import prepare
from duogen.finetune import run as work
from duogen.finetune.config import PRESETS, REPLAY_EXAMPLES, DiTConfig, FineTuneConfig
from duogen.finetune.cost import LEAST_STEPS, PASSES, START_SECONDS, estimate_cost, record_times, size_steps
from duogen.finetune.feature_cache import FeatureExtractor, bucket
from duogen.finetune.feature_cache import read as read_seen
from duogen.finetune.jobs import Job, device_lock
from duogen.finetune.prepare import FineTuneRequest, build_recipe, build_stage, cache_features, measure_costs, prepare_run
from duogen.finetune.replay import load_replay_examples
from duogen.finetune.run import describe_failure, finetune
from duogen.finetune.stages import BatchSampler, DiTStage, collate, lowest_layer
from duogen.models.adapters import PARTS, AdapterSpec, set_adapters
from duogen.models.pipeline import About, open_pair, open_parts
from duogen.options import ImageOptions, Options, TextOptions
from duogen.painters.base import PaintRequest
from duogen.painters.cosmos import CosmosPainter
from duogen.sketchbook.draw import draw
from duogen.sketchbook.verify import check_scene
from duogen.sketchbook.words import request_words
from duogen.sketchbook.world import things
from duogen.train import trainer as loop
from duogen.train.trainer import Diverged, load_weights, rate_at, train
from tests.models.test_training import Toy, equal, recipe
from tests.support.browser import fork_context
from tests.support.tiny import BOV, END, script, tiny_pair
from tests.support.waiting import until
from tests.unit.test_data import site  # noqa: F401
from tests.unit.test_examples import conversations, picture

RECIPE = {
    "sample_every": 2, "save_minutes": 0.0, "max_tokens": 300, "mllm": {"steps": 4, "batch": 2, "rank": 4, "warmup": 1},
    "dit": {"steps": 4, "batch": 2, "rank": 4, "ema": 0.5, "warmup": 1, "learning_rate": 0.01},
}  # fmt: skip


def quiet(words: str) -> None:
    pass


pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny pair, six examples and a recipe, with a home of its own."""
    folder = tmp_path_factory.mktemp("place")
    tiny_pair(folder / "pair")
    rows = [
        [("user", [f"Draw a {name}."]), ("assistant", [f"The {name}.", f"images/{at}.png", "More.", f"images/{at + 6}.png", "Done."])]
        for at, name in enumerate(("boat", "tree", "car", "sun", "cat", "dog"))
    ]
    data = conversations(folder / "data", *rows)
    for at in range(12):
        picture(data / "images" / f"{at}.png", at)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    before = os.environ.get("DUOGEN_HOME")
    os.environ["DUOGEN_HOME"] = str(folder / "home")
    yield folder
    os.environ.pop("DUOGEN_HOME") if before is None else os.environ.update(DUOGEN_HOME=before)


@pytest.fixture(scope="module")
def processes(place):
    """Starts processes that have imported everything already, and used nothing of it."""
    return fork_context()


def order(place: Path, out: str, stage: str = "both", **changes) -> FineTuneRequest:
    recipe = replace(FineTuneConfig.from_json(RECIPE), **changes)
    return FineTuneRequest(place / "data", place / out, str(place / "pair"), stage, recipe, "cpu")


@pytest.fixture(scope="module")
def adapter(place) -> Path:
    """What an uninterrupted run makes."""
    known = finetune(order(place, "whole"), quiet)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert known["phase"] == "done", known
    return place / "whole"


def state(out: Path, stage: str) -> dict:
    return torch.load(out / "run" / stage / "state.pt")


def test_a_run_leaves_an_adapter_and_its_story(adapter):
    job = Job(adapter)
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter.json", "run", "text_encoder", "transformer"]
    for stage in ("mllm", "dit"):
        figures = job.figures(stage)
        assert [entry["step"] for entry in figures] == [0, 1, 2, 3, 4] and all(entry["loss"] > 0 for entry in figures[1:])
        assert [entry["step"] for entry in figures if "validation" in entry] == [0, 2, 4]
    samples = job.samples()
    assert [(each["stage"], each["step"]) for each in samples] == [(name, at) for name in ("mllm", "dit") for at in (0, 2, 4)]
    shown = samples[-1]["shown"][0]
    assert (job.run / "samples" / shown["picture"]).is_file() and shown["prompt"].startswith("Draw a ")
    assert not job.is_alive() and job.progress()["phase"] == "done"
    assert not list(adapter.rglob("*.part"))


def test_peft_and_diffusers_read_it_by_themselves(place, adapter):
    pair = place / "pair"
    mllm = PeftModel.from_pretrained(Qwen2_5_VLForConditionalGeneration.from_pretrained(pair / "text_encoder"), adapter / "text_encoder")
    written = load_file(adapter / "text_encoder" / "adapter_model.safetensors")
    layer = mllm.base_model.model.model.language_model.layers[2].mlp.up_proj
    name = "base_model.model.model.language_model.layers.2.mlp.up_proj.lora_B.weight"
    assert layer.lora_B["default"].weight.abs().max() > 0 and torch.equal(layer.lora_B["default"].weight, written[name])
    for read in ("peft", "diffusers"):
        transformer = CosmosTransformer3DModel.from_pretrained(pair / "transformer")
        if read == "peft":
            transformer = PeftModel.from_pretrained(transformer, adapter / "transformer").base_model.model
        else:
            transformer.load_lora_adapter(adapter / "transformer", weight_name="adapter_model.safetensors", prefix="base_model.model")
        (weight,) = transformer.transformer_blocks[1].attn2.to_v.lora_B.values()
        assert weight.weight.abs().max() > 0


def finetune_until_killed(wish: FineTuneRequest, folder: Path) -> None:
    """Killed when the second state of a stage is to be written: what came after the first one is lost."""
    save, saved = loop.save_state, []

    def save_or_die(there: Path, *given) -> None:
        if there == folder and saved:
            os.kill(os.getpid(), signal.SIGKILL)
        saved.extend([there] * (there == folder))
        save(there, *given)

    loop.save_state = save_or_die
    finetune(wish, quiet)


@pytest.mark.parametrize("killed", ["mllm", "dit"])
def test_after_a_kill_it_ends_with_the_same_bits(place, adapter, processes, tmp_path, killed):
    out = tmp_path / "killed"
    wish = replace(order(place, "x"), out=out)
    if killed == "dit":  # stage 1 is there already
        shutil.copytree(adapter / "run" / "mllm", out / "run" / "mllm")
    child = processes.Process(target=finetune_until_killed, args=(wish, out / "run" / killed))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert Job(out).progress()["phase"] == "killed"
    assert 0 < state(out, killed)["step"] < 4
    known = finetune(FineTuneRequest.load(out), quiet)
    assert known["phase"] == "done", known
    for stage in ("mllm", "dit"):
        assert equal(state(out, stage), state(adapter, stage))
        part = work.PART[stage]
        written = [load_file(folder / part / "adapter_model.safetensors") for folder in (out, adapter)]
        assert equal(*written)


def test_the_caches_hold_what_serving_reads_and_serve_again(place, adapter, monkeypatch):
    caches = list((place / "home" / "finetune" / "cache").iterdir())
    assert len(caches) == 1 and len(list(caches[0].iterdir())) == 6
    monkeypatch.setattr(prepare, "open_extractor", lambda *_: pytest.fail("what was seen already is looked at again"))
    ready = prepare_run(order(place, "whole"), quiet)
    example = ready.data.examples[0]
    (file,) = cache_features(ready, [example], None)
    kept = read_seen(file)
    engine = Engine(open_pair(place / "pair", "cpu", "bf16"))
    engine.set_adapters([AdapterSpec(adapter)])
    packed = engine.tokens.pack(example.turns())
    engine._read_prompt(packed)
    until = packed.slots[1].bov
    assert len(kept.states) == until and [cut[0] for cut in kept.cuts] == [slot.bov for slot in packed.slots]
    assert (kept.states.float() - engine.memory.context.condition(until)[0]).abs().max() < 0.05
    assert all(torch.equal(mine, past[0]) for mine, past in zip(kept.latents, engine.memory.frames.past, strict=True))


def test_adapters_come_and_go_without_opening_the_pair_anew(place, adapter):
    engine = Engine(open_pair(place / "pair", "cpu", "fp32"))
    options = Options(3, TextOptions(temperature=0.0, max_tokens=4), ImageOptions(steps=2))

    def heard(*worn: AdapterSpec) -> torch.Tensor:
        engine.set_adapters(worn)
        packed = engine.tokens.pack([])
        packed.add([*engine.tokens.text("Draw a boat")], False)
        engine.mllm.prefill(engine.memory.context, packed)
        frame = engine.memory.context.condition()
        *_, painted = engine.painter.paint(engine.memory.frames, PaintRequest(frame, 0, options.image, 1))
        return torch.cat([engine.memory.context.logits.flatten(), painted.latents.flatten()])

    plain = heard()
    whole, half = heard(AdapterSpec(adapter)), heard(AdapterSpec(adapter, 0.5))
    finite = plain.isfinite()
    assert not torch.equal(plain[finite], whole[finite]) and not torch.equal(half[finite], whole[finite])
    assert torch.equal(heard(AdapterSpec(adapter, 0.0))[finite], plain[finite])
    other = adapter.with_name("other")
    shutil.copytree(adapter, other, dirs_exist_ok=True)
    both = heard(AdapterSpec(adapter, 0.5), AdapterSpec(other, 0.5))
    assert (both - whole)[finite].abs().max() < 1e-4  # two halves of the same
    assert torch.equal(heard()[finite], plain[finite])
    bad = adapter.with_name("bad")
    shutil.copytree(adapter, bad, dirs_exist_ok=True)
    shutil.copytree(adapter / "transformer", bad / "text_encoder", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="made for another pair"):
        engine.set_adapters([AdapterSpec(bad)])
    assert torch.equal(heard()[finite], plain[finite])
    for text, words in (("nowhere", "is no adapter"), (f"{adapter}:2", "from 0 to 1.5"), (":1", "names no adapter")):
        with pytest.raises(ValueError, match=words):
            AdapterSpec.parse(text)
    assert AdapterSpec.parse(f"{adapter}:0.3") == AdapterSpec(adapter, 0.3)


def test_merged_into_a_pair_it_says_the_same(place, adapter):
    command.merge_pair(str(place / "pair"), [AdapterSpec(adapter)], place / "merged")
    worn, merged = open_parts(place / "pair", ("transformer",), "cpu"), open_pair(place / "merged", "cpu", "fp32")
    set_adapters(worn, [AdapterSpec(adapter)])
    frame = torch.randn(3, 128)
    outs = [pair.transformer.crossattn_proj(frame) for pair in (worn, merged)]
    assert (outs[0] - outs[1]).abs().max() < 0.03  # bf16
    assert merged.about == worn.about
    with pytest.raises(ValueError, match="is there already"):
        command.merge_pair(str(place / "pair"), [AdapterSpec(adapter)], place / "merged")


def test_a_run_of_an_earlier_version_is_resumed_and_merged(place, adapter):
    """Its folders and keys have the stages' old names."""
    out, names = place / "old", {"mllm": "talk", "dit": "paint"}
    shutil.copytree(adapter, out)
    for name, old in names.items():
        (out / "run" / name).rename(out / "run" / old)
        shutil.rmtree(out / work.PART[name])
    for file in (out / "run" / "samples").iterdir():
        name, _, rest = file.name.partition("-")
        file.rename(file.with_name(f"{names[name]}-{rest}"))
    request = json.loads((out / "run" / "request.json").read_text())
    recipe = {names.get(key, key): value for key, value in request.pop("recipe").items()}
    recipe["rehearse"], request["rehearse"] = recipe.pop("replay"), request.pop("replay")
    (out / "run" / "request.json").unlink()
    (out / "run" / "order.json").write_text(json.dumps(request | {"recipe": recipe}))
    before = {file.name for file in (out / "run" / "samples").iterdir()}
    known = finetune(FineTuneRequest.load(out), quiet)
    assert known["phase"] == "done" and before == {file.name for file in (out / "run" / "samples").iterdir()}
    assert not any((out / "run" / name).exists() for name in names) and (out / "run" / "request.json").exists()
    for part in PARTS:
        assert equal(*(load_file(folder / part / "adapter_model.safetensors") for folder in (out, adapter)))
    command.merge_pair(str(place / "pair"), [AdapterSpec(out)], place / "merged-old")
    assert About.load(place / "merged-old")


@pytest.mark.slow
def test_full_training_makes_a_new_pair(place):
    whole = {name: RECIPE[name] | {"rank": 0, "steps": 2} for name in ("mllm", "dit")}
    recipe = FineTuneConfig.from_json(RECIPE | whole)
    assert finetune(replace(order(place, "full"), recipe=recipe), quiet)["phase"] == "done"
    base, made = open_pair(place / "pair", "cpu", "fp32"), open_pair(place / "full" / "pair", "cpu", "fp32")
    for part in ("text_encoder", "transformer"):
        one, other = getattr(base, part).state_dict(), getattr(made, part).state_dict()
        assert one.keys() == other.keys() and any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_plain_cosmos_layout_learns_too(place, tmp_path):
    """Bidirectional, velocity, AutoencoderKLWan, all layers read; with buckets, recomputation and a connector of full rank."""
    tiny_pair(tmp_path / "cosmos", cosmos_layout=True)
    (tmp_path / "cosmos" / "duogen.json").write_text('{"tuned": false, "image_size": [64, 64], "steps": 2, "guidance": 1.0}')
    dit = {**RECIPE["dit"], "steps": 2, "buckets": True, "checkpointing": True, "connector": "full"}
    recipe = FineTuneConfig.from_json({**RECIPE, "mllm": {**RECIPE["mllm"], "steps": 2, "checkpointing": True}, "dit": dit})
    wish = FineTuneRequest(place / "data", tmp_path / "out", str(tmp_path / "cosmos"), "both", recipe, "cpu")
    known = finetune(wish, quiet)
    assert known["phase"] == "done", known
    written = load_file(tmp_path / "out" / "transformer" / "adapter_model.safetensors")
    assert written["base_model.model.crossattn_proj.0.lora_A.weight"].shape == (24, 192)
    assert all(value.abs().max() > 0 for value in written.values())
    set_adapters(open_parts(tmp_path / "cosmos", ("transformer",), "cpu"), [AdapterSpec(tmp_path / "out")])
    engine = Engine(open_pair(tmp_path / "cosmos", "cpu", "fp32"))
    for adapters, taught in (([AdapterSpec(tmp_path / "out")], True), ([AdapterSpec(tmp_path / "out", 0.0)], False), ([], False)):
        engine.set_adapters(adapters)
        assert engine.tuned == engine.tokens.tuned == engine.mllm.remembers == (engine.tokens.bov not in engine.mllm.unsaid) == taught
    command.merge_pair(str(tmp_path / "cosmos"), [AdapterSpec(tmp_path / "out")], tmp_path / "merged")
    assert About.load(tmp_path / "merged").tuned and not About.load(tmp_path / "cosmos").tuned


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_the_machine_chooses_the_number_format(place, monkeypatch, dtype, name):
    """Of the MLLM that learns, of the one that is frozen, of both stages; and the run says which it was."""
    monkeypatch.setattr("duogen.precision.many_rows_dtype", lambda device="cpu": dtype)
    opened = []

    def watched(*given):
        parts = open_parts(*given)
        opened.append(parts.text_encoder.model.language_model.layers[0].mlp.up_proj.weight.dtype if "text_encoder" in given[1] else None)
        return parts

    monkeypatch.setattr(prepare, "open_parts", watched)
    known = finetune(order(place, f"in-{name}", replay=0.0), quiet)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert known["phase"] == "done", known
    assert {each for each in opened if each} == {dtype}  # once or twice: the states may be kept from another test
    assert {state(place / f"in-{name}", stage)["precision"] for stage in ("mllm", "dit")} == {name}


def test_recomputation_changes_nothing(place, adapter):
    ready = prepare_run(order(place, "whole"), quiet)
    files = cache_features(ready, ready.data.examples, None)
    gradients = []
    for again in (False, True):
        parts = open_parts(place / "pair", ("transformer", "vae"), "cpu")
        parts.transformer.requires_grad_(True)
        if again:
            parts.transformer.enable_gradient_checkpointing()
        own = DiTConfig(batch=2)
        stage = DiTStage(build_recipe(own, FineTuneConfig()), parts, files, own)
        stage.loss(stage.batch(1), torch.Generator().manual_seed(1))[0].backward()
        gradients.append({name: weight.grad for name, weight in parts.transformer.named_parameters() if weight.grad is not None})
    assert equal(*gradients) and len(gradients[0]) > 20


def test_a_damaged_cache_is_computed_again(place, adapter):
    ready = prepare_run(order(place, "whole"), quiet)
    (file,) = cache_features(ready, ready.data.examples[:1], None)
    before, data = read_seen(file), file.read_bytes()
    for damaged in (b"damage", b"", data[: len(data) // 2], data.replace(b"painted", b"unknown"), data.replace(b"states", b"others")):
        file.unlink()  # what was read of it is mapped into memory
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="resume, and they are computed again"):
            read_seen(file)
        assert cache_features(ready, ready.data.examples[:1], None) == [file]
        assert torch.equal(read_seen(file).states, before.states)


def test_a_batch_reads_words_and_frames_as_serving_does(place, adapter):
    ready = prepare_run(order(place, "whole"), quiet)
    files = cache_features(ready, ready.data.examples, None)
    kept = [read_seen(file) for file in files[:2]]
    batch = collate(kept, [0, 1])
    assert batch.words[0, 1].sum() == kept[0].cuts[1][0] and batch.fewer[0, 1].sum() == kept[0].cuts[1][1]
    assert batch.fewer[0, 0].sum() == 1 and batch.painted.all() and batch.latents[1].shape == (2, 8, 4, 4)
    rounds = BatchSampler([0, 0, 1, 0, 1], 2, 5)
    assert sorted(index for number in range(3) for index in rounds[number]) == [0, 1, 2, 3, 4]
    assert all(len({(0, 0, 1, 0, 1)[index] for index in rounds[number]}) == 1 for number in range(9))
    assert rounds[4] == BatchSampler([0, 0, 1, 0, 1], 2, 5)[4]


@pytest.mark.slow
def test_what_the_pair_could_do_before_is_practised_again(place, tmp_path, monkeypatch):
    old, plain = BatchSampler([0, 0, 1], 2, 5, [7, 7, 7, 7], 0.5), BatchSampler([0, 0, 1], 2, 5)
    assert [old[number] for number in (0, 2, 4)] == [plain[number] for number in range(3)]
    assert sorted(index for number in (1, 3) for index in old[number]) == [3, 4, 5, 6]
    about = open_parts(place / "pair", (), "cpu").about
    monkeypatch.setitem(REPLAY_EXAMPLES, "mllm", 8)
    monkeypatch.setitem(REPLAY_EXAMPLES, "dit", 6)
    named = replace(about, practised="duogen-sketch")
    made = {stage: load_replay_examples(None, named, stage, 0, tmp_path / stage) for stage in ("mllm", "dit")}
    assert len(made["mllm"]) == 8 and len({example.key() for example in made["mllm"]}) == 8
    assert {len(example.pictures()) for example in made["dit"]} <= {1, 4, 5} and len(made["dit"]) == 6
    assert all(isinstance(example.lines[-1].parts[-1], Picture) for example in made["dit"])
    again = load_replay_examples(None, named, "mllm", 0, tmp_path / "again")
    assert [example.key() for example in again] == [example.key() for example in made["mllm"]]
    assert load_replay_examples(None, about, "mllm", 0, tmp_path / "none") == []
    wish = replace(order(place, "x"), out=tmp_path / "out", replay=tmp_path / "dit")
    Job(wish.out).write_request(wish.as_json())
    assert FineTuneRequest.load(wish.out) == replace(wish, out=wish.out, replay=tmp_path / "dit")
    ready = prepare_run(wish, quiet)
    for name in ("mllm", "dit"):
        stage = build_stage(name, ready, None).stage
        assert len(stage.examples if name == "mllm" else stage.files) == len(ready.train) + 6
        assert max(stage.batch_sampler[1]) >= len(ready.train) > max(stage.batch_sampler[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert stage.loss(stage.batch(1), torch.Generator())[0] > 0


def test_the_lessons_of_the_proof_are_new_and_leave_the_world_as_it_was(tmp_path):
    with proof.lighthouse_world():
        data, requests = read_data(proof.write_lighthouses(tmp_path / "lighthouses")), proof.sample_held_lighthouses(12)
        assert all(check_scene(draw(request.scene), request.scene).right for request in requests)
        named = [request_words(request.scene.things[0], (0, 2)) for request in requests]
    assert proof.KIND not in things() and len(data.examples) == proof.COUNT and not data.problems
    learnt = " ".join(example.lines[0].text() for example in data.examples)
    assert all(name in request.words and name not in learnt for name, request in zip(named, requests, strict=True))
    sailors = read_data(proof.write_sailors(tmp_path / "sailors")).examples
    answers = [example.lines[1].text() for example in sailors]
    assert all(map(proof.is_sailor, answers)) and not any(proof.is_sailor(proof.strip_manner(each)) for each in answers)


@pytest.mark.slow
def test_the_estimate_is_measured(place, tmp_path, monkeypatch):
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    ready = prepare_run(order(place, "x"), quiet)
    assert all(each.guessed and "guess" in each.sentence() for each in ready.costs)
    assert not any(each.guessed or "guess" in each.sentence() for each in measure_costs(ready, quiet))
    for each in ready.costs:
        for _ in range(5):
            record_times(each, ready.pair, "cpu", 100.0, 7.0)  # a hundred seconds a step, seven a look
        steps = getattr(ready.request.recipe, each.stage).steps
        told = estimate_cost(ready.pair, ready.request.recipe, each.stage, ready.report, "cpu")
        assert -0.01 <= told.seconds - 100 * steps - 7 * 3 - START_SECONDS < 60  # before, at step 2 and at step 4; and what is cached


@pytest.mark.parametrize(("minutes", "scale"), [(1e4, 1.0), (1.0, 0.02), (20.0, 0.5)])
def test_steps_are_sized_to_the_examples_and_the_minutes(place, tmp_path, monkeypatch, minutes, scale):
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    ready = prepare_run(order(place, "x", minutes=minutes), quiet)
    own, many = ready.request.recipe, replace(ready.report, examples=600, painted=1200)
    needed = {"mllm": 8 * 600 // own.mllm.batch, "dit": 32 * 600 // own.dit.batch}
    seconds = 1200 / sum(needed.values()) / 0.5  # so that all steps take 40 minutes
    for each in ready.costs:
        for _ in range(5):
            record_times(each, ready.pair, "cpu", seconds)
    open_ = replace(own, mllm=replace(own.mllm, steps=0), dit=replace(own.dit, steps=0))
    sized = size_steps(ready.pair, open_, ("mllm", "dit"), many, "cpu")
    for stage, count in needed.items():
        assert getattr(sized, stage).steps == pytest.approx(max(LEAST_STEPS[stage], count * scale), rel=0.05)
    assert size_steps(ready.pair, own, ("mllm", "dit"), many, "cpu") == own


def test_a_word_calls_up_what_was_learnt_and_samples_are_of_own_prompts(place, monkeypatch):
    monkeypatch.setitem(LEAST_STEPS, "dit", 2)
    monkeypatch.setitem(PASSES, "dit", 1)
    request = replace(order(place, "called", "dit"), trigger="sks", prompts=("A boat", "An sks car"))
    request = replace(request, recipe=replace(request.recipe, dit=replace(request.recipe.dit, steps=0)))
    assert finetune(request, quiet)["phase"] == "done"
    job, again = Job(place / "called"), FineTuneRequest.load(place / "called")
    assert [each["prompt"] for each in job.samples()[-1]["shown"]] == ["sks, A boat", "An sks car"]
    assert (again.trigger, again.prompts, again.recipe.dit.steps) == ("sks", ("A boat", "An sks car"), 3)
    assert json.loads((place / "called" / "adapter.json").read_text())["trigger"] == "sks"
    assert all(example.lines[0].text().startswith("sks, Draw a") for example in prepare_run(again, quiet).data.examples)


def test_the_best_weights_stay_and_it_ends_early(place, monkeypatch):
    losses = iter([0.1, 0.5, 0.6, 0.7])  # of steps 0, 2, 4, 6
    monkeypatch.setattr("duogen.finetune.callbacks.validation_loss", lambda stage, recipe, is_ending: next(losses))
    request = order(place, "best", "dit", patience=2)
    known = finetune(replace(request, recipe=replace(request.recipe, dit=replace(request.recipe.dit, steps=20))), quiet)
    assert known["phase"] == "done" and "did best on the kept-back examples at step 2 of 6" in known["words"]
    best = torch.load(place / "best" / "run" / "dit" / "best.pt")
    assert (best["step"], state(place / "best", "dit")["step"]) == (2, 6)
    written = load_file(place / "best" / "transformer" / "adapter_model.safetensors")
    name = "transformer_blocks.0.attn1.to_q.lora_B"
    averaged = next(value for key, value in best["ema"].items() if name in key)
    assert any(torch.equal(value, averaged.to(value)) for key, value in written.items() if name in key)
    assert finetune(FineTuneRequest.load(place / "best"), quiet)["phase"] == "done"
    assert state(place / "best", "dit")["step"] == 6


def test_the_painters_reading_is_left_alone_where_it_can_be(place):
    about = open_parts(place / "pair", (), "cpu").about
    mllm = FineTuneConfig().mllm
    assert lowest_layer(mllm, replace(about, layers=(1, 2)), 3) == 2 and lowest_layer(mllm, replace(about, layers=None), 3) == 0
    assert lowest_layer(replace(mllm, first_layer=1), about, 3) == 1


def test_a_pair_whose_painter_reads_no_upper_layers_learns_to_paint(place, tmp_path):
    """As the bundled pair's: its MLLM is cut to the layers that are read, and writes no words then."""
    pair = tmp_path / "pair"
    shutil.copytree(place / "pair", pair)
    about = json.loads((pair / "duogen.json").read_text())
    (pair / "duogen.json").write_text(json.dumps(about | {"layers": [1, 2]}))
    request = replace(order(place, "cut", "dit"), out=tmp_path / "out", pair=str(pair))
    known = finetune(request, quiet)
    assert known["phase"] == "done", known
    assert (tmp_path / "out" / "transformer").is_dir()


def test_pictures_keep_their_shape_in_buckets(place):
    parts = open_parts(place / "pair", ("vae",), "cpu")
    seeing = FeatureExtractor(None, CosmosPainter(parts), True)
    for size, meant in (((100, 100), (64, 64)), ((400, 100), (128, 32)), ((100, 390), (32, 128))):
        assert bucket(size, seeing.painter) == meant


def test_pausing_stopping_and_the_line_for_the_device(place, monkeypatch):
    out = place / "commands"
    wish = order(place, "commands", "dit")
    asked = iter([["save"], ["pause"], ["sample"], ["stop"]])
    monkeypatch.setattr(Job, "take_commands", lambda self: next(asked, []) if (self.run / "dit" / "log.jsonl").exists() else [])
    assert finetune(wish, quiet)["phase"] == "paused"
    paused = state(out, "dit")["step"]
    assert paused == 1 and not (out / "adapter.json").exists()
    assert finetune(FineTuneRequest.load(out), quiet)["phase"] == "stopped"
    assert (out / "transformer" / "adapter_model.safetensors").exists()
    with device_lock("cpu"):
        monkeypatch.setattr(Job, "take_commands", lambda self: ["stop"])
        assert finetune(order(place, "waits"), quiet)["phase"] == "stopped"
    with Job(out).hold_lock(), pytest.raises(ValueError, match="being trained already"):
        monkeypatch.setattr("duogen.finetune.jobs.LOCK_SECONDS", 0.1)
        finetune(FineTuneRequest.load(out), quiet)


def test_failures_are_told_in_plain_words(place, monkeypatch):
    kinds = {
        "memory": [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
        "loss": [Diverged("x")],
        "disk": [OSError(errno.EDQUOT, "Disk quota exceeded"), RuntimeError("PytorchStreamWriter failed writing file data/0")]
        + [OSError(28, "No space left on device")],
        "data": [FileNotFoundError("a.png"), ValueError("There is no file a.png.")],
        "other": [RuntimeError("boom")],
    }
    for kind, errors in kinds.items():
        for error in errors:
            told = describe_failure(error)
            assert told["kind"] == kind and told["words"].endswith("."), (error, told)
    wish = order(place, "nan", "dit")
    high = replace(wish, recipe=replace(wish.recipe, dit=replace(wish.recipe.dit, learning_rate=0.05, steps=3)))
    loss = DiTStage.loss
    monkeypatch.setattr(DiTStage, "loss", lambda self, batch, generator: (loss(self, batch, generator)[0] * float("nan"), {}))
    known = finetune(high, quiet)
    assert known["phase"] == "failed" and known["kind"] == "loss" and not (wish.out / "adapter.json").exists()
    lower = FineTuneConfig().with_less_memory("mllm")
    assert (lower.mllm.batch, lower.mllm.accumulate) == (2, 2)
    one = replace(FineTuneConfig(), mllm=replace(FineTuneConfig().mllm, batch=1))
    assert one.with_less_memory("mllm").mllm.checkpointing
    assert FineTuneConfig().with_smaller_steps("dit").dit.learning_rate < 4e-4


def test_recipes_are_checked():
    for preset in PRESETS:
        assert FineTuneConfig.from_json(json.loads(json.dumps(FineTuneConfig.load(preset).as_json()))) == FineTuneConfig.load(preset)
    for raw, words in (
        ({"speed": 1}, "speed is not known"), ({"mllm": {"steps": "many"}}, "mllm.steps is 'many'"), ({"mllm": {"steps": -1}}, "between"),
        ({"mllm": {"precision": "nf4", "rank": 0}}, "quantised"), ({"dit": {"connector": "x"}}, "connector"), ([], "must be an object"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            FineTuneConfig.from_json(raw)
    with pytest.raises(ValueError, match="There is no recipe"):
        FineTuneConfig.load("nowhere.json")


def test_the_command_line_says_what_is_wrong(place, adapter, capsys):
    from duogen.cli.main import main

    pair = ["--pair", str(place / "pair"), "--recipe", str(place / "recipe.json")]
    for argv, words in (
        (["--data", str(place / "none"), "--out", str(place / "o")], "no folder or zip"),
        (["--data", str(place / "data"), "--out", str(adapter)], "is there already"),
        (["--data", str(place / "data")], "--out DIR"),
        (["--out", str(place / "o"), "--resume"], "nothing to resume"),
        (["--data", str(place / "data"), "--out", str(place / "o"), "--recipe", "none"], "no recipe"),
    ):
        assert main(["finetune", *pair, *argv]) == 2
        out, err = capsys.readouterr()
        assert words in err and len(err.strip().splitlines()) == 1, err
    assert not (place / "o").exists()
    assert main(["finetune", *pair, "--data", str(place / "data"), "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "6 examples" in said and "Stage 1" in said and "GB of memory" in said and "Stage 2" in said


class Signalled(Toy):
    """The whole process group gets SIGTERM in its third step, as from a service manager, and the worker time to die of it."""

    def loss(self, batch, generator):
        if self.losses == 2:
            os.killpg(0, signal.SIGTERM)
            for worker in multiprocessing.active_children():
                worker.join(0.3)
        return super().loss(batch, generator)


def grouped(folder: Path) -> None:
    os.setpgrp()
    assert train(Signalled(), recipe(workers=1), folder, log=quiet) == 3


class Forsaken(Toy):
    """Killed in its first step; its worker's number stays behind."""

    def loss(self, batch, generator):
        (worker,) = multiprocessing.active_children()
        Path("worker").write_text(str(worker.pid))
        os.kill(os.getpid(), signal.SIGKILL)


def forsaken(folder: Path) -> None:
    os.chdir(folder)
    train(Forsaken(), recipe(workers=1), folder, log=quiet)


def test_the_worker_outlives_a_signal_to_the_group_but_not_the_loop(processes, tmp_path):
    for target, code in ((grouped, 0), (forsaken, -signal.SIGKILL)):
        child = processes.Process(target=target, args=(tmp_path,))
        child.start()
        child.join()
        assert child.exitcode == code
    assert torch.load(tmp_path / "state.pt")["step"] == 3
    worker = int((tmp_path / "worker").read_text())
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE)


def test_the_newest_states_stay(tmp_path):
    train(Toy(), recipe(keep=2, save_minutes=0.0), tmp_path, log=quiet)
    assert sorted(file.name for file in tmp_path.glob("*.pt")) == ["state-0000005.pt", "state-0000006.pt", "state.pt"]
    assert equal(torch.load(tmp_path / "state.pt"), torch.load(tmp_path / "state-0000006.pt"))


@pytest.mark.parametrize("damage", ["cut", "empty", "another file", "part of a state"])
def test_a_damaged_state_falls_back_to_the_whole_one_before_it(tmp_path, damage):
    train(Toy(), recipe(keep=3, save_minutes=0.0), tmp_path / "whole", log=quiet)
    folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / "damaged"))
    for file in (folder / "state.pt", folder / "state-0000006.pt"):  # one file under two names
        spoil_state(file, damage)
    told: list[str] = []
    assert train(Toy(), recipe(keep=3, save_minutes=0.0), folder, log=quiet, warn=told.append) == 6
    assert len(told) == 1 and "damaged; training goes on from state-0000005.pt, after step 5" in told[0]
    assert equal(torch.load(folder / "state.pt"), torch.load(tmp_path / "whole" / "state.pt"))
    for file in folder.glob("*.pt"):
        spoil_state(file, damage)
    for begin in (lambda: train(Toy(), recipe(), folder, log=quiet), lambda: load_weights(folder, Toy().modules)):
        with pytest.raises(ValueError, match="is damaged, and no older one is beside it; remove it"):
            begin()


def spoil_state(file: Path, damage: str) -> None:
    whole = torch.load(file)
    file.unlink()
    match damage:
        case "cut":
            torch.save(whole, file)
            file.write_bytes(file.read_bytes()[:-200])
        case "part of a state":
            torch.save({"step": 6, "weights": whole["weights"]}, file)
        case _:
            file.write_bytes(b"" if damage == "empty" else b"no state")


def test_the_cosine_ends_where_it_should():
    wish = recipe(steps=100, warmup=10, schedule="cosine")
    assert rate_at(0, wish) == 0.1 and rate_at(10, wish) == 1.0 and rate_at(55, wish) == pytest.approx(0.515)
    assert rate_at(99, wish) < 0.04


def test_what_others_get_of_an_adapter(place, adapter, monkeypatch):
    with zipfile.ZipFile(card.zip_adapter(adapter)) as packed:
        names = {name.partition("/")[2] for name in packed.namelist()}
        about, told = (packed.read(f"{adapter.name}/{name}").decode() for name in ("adapter.json", "README.md"))
    assert names == {f"{part}/{name}" for part in PARTS for name in ("adapter_config.json", "adapter_model.safetensors")} | {
        "adapter.json", "README.md",
    }  # fmt: skip
    assert str(place) not in about + told and "| 2, how to paint it | 4 | 4 |" in told and "→" in told
    uploads = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, name, **how: f"https://hub/{name}")
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, **how: uploads.append(sorted(os.listdir(how["folder_path"]))))
    monkeypatch.setattr(card, "_token", lambda: "secret")
    assert card.push(adapter, "anna/boats") == "https://hub/anna/boats"
    assert uploads == [["README.md", "adapter.json", "text_encoder", "transformer"]]
    monkeypatch.setattr(card, "_token", lambda: None)
    for name, words in (("anna/boats", "token"), ("boats", "USER/NAME")):
        with pytest.raises(ValueError, match=words):
            card.push(adapter, name)


def test_examples_without_pictures_to_paint_are_for_stage_1_only(place, tmp_path):
    data = conversations(tmp_path / "d", *[[("user", ["Hi"]), ("assistant", [f"Ho {at}."])] for at in range(3)])
    wish = replace(order(place, "x"), data=data)
    with pytest.raises(ValueError, match="choose --stage mllm"):
        prepare_run(wish, quiet)
    assert len(prepare_run(replace(wish, stage="mllm"), quiet).train) == 3


@pytest.mark.slow
def test_saved_pages_become_an_adapter_that_answers(place, site, tmp_path, monkeypatch):  # noqa: F811
    from duogen.cli.main import main

    raw = RECIPE | {"max_tokens": 700, "sample_every": 9, "mllm": RECIPE["mllm"] | {"steps": 2}, "dit": RECIPE["dit"] | {"steps": 2}}
    (tmp_path / "recipe.json").write_text(json.dumps(raw))
    recipe, out = str(tmp_path / "recipe.json"), tmp_path / "adapter"
    assert main(["data", "make", str(site), "--out", str(tmp_path / "set"), "--jobs", "1"]) == 0
    pair = ["--pair", str(place / "pair"), "--device", "cpu"]
    assert main(["finetune", *pair, "--data", str(tmp_path / "set"), "--out", str(out), "--recipe", recipe]) == 0
    for part in PARTS:
        written = load_file(out / part / "adapter_model.safetensors")
        assert any(weight.abs().max() > 0 for name, weight in written.items() if "lora_B" in name), f"{part} has learnt nothing"
    engine = Engine.open(place / "pair", "cpu", "fp32")
    asked, options = Conversation().say("user", "How do I make apple strudel?"), Options(3, image=ImageOptions(steps=2))
    pictures = []
    for worn in ([AdapterSpec(out)], []):
        engine.set_adapters(worn)
        script(monkeypatch, engine.tokens, "Peel two apples.", BOV, "Done.", END)
        *_, last = engine.answer(asked, options)
        assert isinstance(last, Done), last
        answer = last.conversation.path()[-1]
        assert answer.text() == "Peel two apples.Done."
        pictures += [image.picture.tobytes() for image in answer.images()]
    assert len(pictures) == 2 and pictures[0] != pictures[1], "the adapter changes nothing of what is painted"


def test_no_wish_is_lost_to_a_job_that_looks_just_then(tmp_path):
    job, came = Job(tmp_path), []
    job.run.mkdir()
    writer = threading.Thread(target=lambda: [Job(tmp_path).send_command(wish) for wish in ("save", "sample") * 400])
    writer.start()
    while writer.is_alive():
        came += job.take_commands()
    assert came + job.take_commands() == ["save", "sample"] * 400
