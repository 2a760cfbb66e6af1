"""Training: exact resumption, saves that cannot be half made, and a painter that learns what serving will ask of it."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from duogen.conversation import Image, Text
from duogen.engine import Engine
from duogen.hub.assemble import trained_folder
from duogen.models.mllm import append_patch_positions
from duogen.models.pipeline import About, open_pair
from duogen.models.sequence import Tokens
from duogen.models.thinking import DRAFTING
from duogen.nn.flow import even_sigmas
from duogen.nn.scene_head import SCENE_HEAD, SceneHead
from duogen.nn.vae import PatchVAE
from duogen.sketchbook.draw import draw
from duogen.sketchbook.tasks import draw_turns
from duogen.train import __main__ as commands
from duogen.train import vision
from duogen.train.__main__ import open_base_mllm
from duogen.train.curriculum import sample_dialogue, sample_with_drafts
from duogen.train.dit import DiTStage, collate, new_transformer
from duogen.train.export import export
from duogen.train.mllm import MLLMStage
from duogen.train.padding import pad_conversations
from duogen.train.scene_head import label_scenes, read_scene_states, sample_conversation
from duogen.train.settings import CurriculumSettings, DiTSettings
from duogen.train.trainer import Recipe, autocast, build_state, collect_parameters, load_weights, save_state, train
from duogen.train.vae import any_scene, load_vae
from duogen.train.vision import VisionStage
from tests.support.tiny import BOV, tiny_pair

pytestmark = pytest.mark.usefixtures("as_before")


class Toy:
    """Learns random targets from random inputs, with noise and dropout."""

    def __init__(self, killed_at: int | None = None) -> None:
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
        self.modules, self.killed_at, self.losses = {"blocks": self.net}, killed_at, 0

    def batch(self, step: int) -> torch.Tensor:
        return torch.randn(5, 6, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        self.losses += 1
        if self.losses == self.killed_at:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.randn(5, 4, generator=generator)
        error = (self.net(batch[:, :4] + 0.1 * noise) - batch[:, 4:]).square().mean()
        return error, {"error": float(error.detach())}


def recipe(**changes) -> Recipe:
    return Recipe(**({"steps": 6, "learning_rate": 0.1, "warmup": 2, "ema": 0.9, "workers": 0, "log_every": 2} | changes))


UNKNOWN = [f'{{"dit": {{"steps": 1, "learning_rate": 1, "{name}": "best"}}}}' for name in ("optimizer", "precision", "schedule")]


def quiet(line: str) -> None:
    pass


def equal(one: object, two: object) -> bool:
    """Bit for bit, however deep."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "adamw"), ("bf16", "adamw"), ("bf16", "muon")])
@pytest.mark.parametrize("killed", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, precision, optimizer, killed):
    wish, handler = recipe(precision=precision, optimizer=optimizer), signal.getsignal(signal.SIGTERM)
    train(Toy(), wish, tmp_path / "whole", log=quiet)
    train(Toy(killed_at=3 if killed else None), wish, tmp_path / "parts", until=None if killed else 3, log=quiet)
    halves = torch.load(tmp_path / "parts" / "state.pt")
    assert halves["step"] == 3 and signal.getsignal(signal.SIGTERM) is handler
    train(Toy(), wish, tmp_path / "parts", log=quiet)
    assert len(halves["optimizers"]) == (2 if optimizer == "muon" else 1)
    whole, parts = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts"))
    assert whole["step"] == 6 and equal(whole, parts)
    assert not equal(whole["weights"], halves["weights"]) and not equal(whole["weights"], whole["ema"])


class Ends:
    """Ends a run before its batch number `last`, from 0."""

    def __init__(self, last: int) -> None:
        self.left = last

    def on_step(self, step: int, figures: dict[str, float]) -> str:
        return ""

    def is_ending(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_pause_between_two_batches_makes_the_step_again(tmp_path):
    wish = recipe(accumulate=3)
    train(Toy(), wish, tmp_path / "whole", log=quiet)
    assert train(Toy(), wish, tmp_path / "parts", log=quiet, callback=Ends(5)) == 1  # within the second step
    train(Toy(), wish, tmp_path / "parts", log=quiet)
    assert equal(*(torch.load(tmp_path / name / "state.pt") for name in ("whole", "parts")))


def test_what_learns_no_longer_stays_in_the_state(tmp_path):
    train(Toy(), recipe(), tmp_path, until=2, log=quiet)
    before, toy = torch.load(tmp_path / "state.pt"), Toy()
    toy.net[0].requires_grad_(False)
    train(toy, recipe(), tmp_path, until=4, log=quiet)
    assert torch.equal(toy.net[0].weight, before["ema"]["blocks.0.weight"])  # and is what the rest goes on learning with
    train(toy, recipe(), tmp_path, until=5, log=quiet)  # goes on once more: nothing is lost the second time either
    state, taken = torch.load(tmp_path / "state.pt"), Toy()
    assert state["weights"].keys() == before["weights"].keys() and len(state["optimizers"][0]["state"]) == 2
    load_weights(tmp_path, {"blocks": taken.net})
    assert torch.equal(taken.net[0].weight, before["ema"]["blocks.0.weight"])
    assert torch.equal(taken.net[2].weight, state["ema"]["blocks.2.weight"])
    train(Toy(), recipe(), tmp_path, log=quiet)  # all of it learns again, from there
    after = torch.load(tmp_path / "state.pt")
    assert not torch.equal(after["weights"]["blocks.0.weight"], state["weights"]["blocks.0.weight"])


def test_a_killed_save_leaves_the_old_state(tmp_path, monkeypatch):
    train(Toy(), recipe(), tmp_path, until=2, log=quiet)
    before = (tmp_path / "state.pt").read_bytes()

    def die(state: object, file: Path) -> None:
        Path(file).write_bytes(before[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            train(Toy(), recipe(), tmp_path, until=4, log=quiet)
    assert (tmp_path / "state.pt").read_bytes() == before
    train(Toy(), recipe(), tmp_path, log=quiet)
    train(Toy(), recipe(), tmp_path / "whole", log=quiet)
    assert equal(torch.load(tmp_path / "state.pt"), torch.load(tmp_path / "whole" / "state.pt"))


class Unreadable(Toy):
    def batch(self, step: int):
        if step == 2:
            raise ValueError("The kept states are of other dialogues.")
        return super().batch(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_in_a_worker_is_said_in_its_own_words_and_the_worker_ends(tmp_path, workers):
    others = multiprocessing.active_children()  # servers of other tests
    with pytest.raises(ValueError) as caught:
        train(Unreadable(), recipe(workers=workers), tmp_path, log=quiet)
    assert str(caught.value) == "The kept states are of other dialogues." and caught.traceback
    assert multiprocessing.active_children() == others


def test_averaged_weights_are_what_is_taken_out(tmp_path):
    train(Toy(), recipe(), tmp_path, log=quiet)
    state, toy = torch.load(tmp_path / "state.pt"), Toy()
    assert load_weights(tmp_path, {"blocks": toy.net}) == 6
    assert all(torch.equal(weight, state["ema"][f"blocks.{name}"]) for name, weight in toy.net.named_parameters())
    with pytest.raises(ValueError, match="no training state"):
        load_weights(tmp_path / "nothing", {"blocks": toy.net})


def test_a_wrong_recipe_gets_one_sentence(tmp_path):
    file = tmp_path / "recipe.json"
    with pytest.raises(ValueError, match="There is no recipe"):
        Recipe.load(file, "dit")
    for text, words in (("{", "cannot be read"), ("[]", "is no JSON object")):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            Recipe.load(file, "dit")
    for text in ("{}", '{"dit": {"steps": 1}}', '{"dit": {"steps": 1, "learning_rate": 1, "speed": 2}}', *UNKNOWN):
        file.write_text(text)
        with pytest.raises(ValueError, match="no usable entry 'dit'"):
            Recipe.load(file, "dit")


SETTINGS = {
    "see": True,
    "shift": 2.0,
    "training_shift": 1.0,
    "dropout": 0.1,
    "context_noise": 0.1,
    "timestep_scale": 1000.0,
    "fresh_bias": 1.5,
    "model": {"heads": 2, "head_dim": 12, "layers": 2, "adaln": 8},
    "groups": [
        {"name": "one", "frames": [1], "copies": 2, "targets": 4, "weight": 1.0, "tasks": {"shapes": 0.5, "first_step": 0.5}},
        {"name": "many", "frames": [2], "copies": 2, "targets": 4, "weight": 1.0, "tasks": {"thing_steps": 1.0}},
    ],
}


def test_the_autoencoder_keeps_what_its_components_span():
    torch.manual_seed(0)
    vae = PatchVAE(z_dim=12, patch_size=8, width=8, blocks=1)
    patches = torch.randn(500, 10) @ torch.randn(10, 3 * 8 * 8)  # ten directions: twelve components hold them all
    vae.fit_patches(patches)
    pixels = patches[:6].view(6, 3, 8, 8)[:, :, None]
    latents = vae.encode(pixels).latent_dist.mode()
    assert latents.shape == (6, 12, 1, 1, 1)
    assert (vae.decode(latents).sample - pixels).abs().max() < 1e-3
    spread = vae.encode(patches.view(500, 3, 1, 8, 8)).latent_dist.mode()[..., 0, 0, 0].std(0)
    sizes = torch.tensor(vae.config.latents_std)
    assert ((spread / sizes)[:10] > 0.2).all() and (sizes[:-1] >= sizes[1:]).all()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def tokens(pair):
    return Tokens(pair.tokenizer, pair.image_processor)


def painter_stage(pair, tokens: Tokens, wish: Recipe, z_dim: int = 8) -> DiTStage:
    torch.manual_seed(0)
    vae = PatchVAE(z_dim=z_dim, patch_size=32, width=8, blocks=1, latents_mean=[0.0] * z_dim, latents_std=[0.5] * z_dim)
    return DiTStage(wish, pair.text_encoder, tokens, vae, [1, 2])


GATED = {**SETTINGS, "model": {**SETTINGS["model"], "gate": True}}


@pytest.mark.parametrize("settings", [SETTINGS, GATED])
def test_a_painter_starts_from_a_smaller_one_with_a_copy_gate_fitted_to_it(pair, tokens, tmp_path, monkeypatch, settings):
    monkeypatch.setattr("duogen.train.dit.FIT_STEPS", 3)
    old = painter_stage(pair, tokens, recipe(settings=SETTINGS))
    torch.nn.init.normal_(old.transformer.proj_out.weight, std=0.02)
    old.transformer.save_pretrained(tmp_path / "old")
    stage = painter_stage(pair, tokens, recipe(settings=settings), z_dim=12)
    stage.start_from(tmp_path / "old")
    first, last = stage.transformer.patch_embed.proj.weight, stage.transformer.proj_out.weight
    assert torch.equal(first[:, :8], old.transformer.patch_embed.proj.weight[:, :8])
    assert torch.equal(last[:8], old.transformer.proj_out.weight) and not last[8:12].any()
    assert len(last) == (14 if settings is GATED else 12)
    if settings is not GATED:
        return

    @torch.no_grad()
    def wrong() -> float:
        """The share of places that the gate misjudges, on what it was fitted to."""
        hidden, distance, moved = (torch.cat(each) for each in zip(*stage._gate_examples(), strict=True))
        base, slope = (hidden @ last[-2:].T).unbind(1)
        return float(((base + (1 + slope) * distance > 0) != moved).float().mean())

    fitted, last.data[-2:] = wrong(), 0.0
    assert fitted < 0.8 * wrong()


def test_the_copy_gate_is_taught_to_copy_what_stays_with_all_that_is_wrong_in_it(pair, tokens):
    stage = painter_stage(pair, tokens, recipe(settings=GATED))
    data = collate(tokens, [sample_dialogue(random.Random(4), {"thing_steps": 1.0}, 3, CurriculumSettings())], 3, 0, see=True)
    batch = stage._add_noise(data, 2, torch.Generator().manual_seed(0), 0)
    clean = stage.encode(data.pixels)
    for index, time in enumerate(batch.times()):
        moved = batch.moved[0, index]
        if time == 0:
            assert moved.all() and torch.equal(batch.meant[:, 0], clean[:, 0])
            continue
        assert moved.any() and not moved.all()
        assert torch.equal(batch.meant[0, index][:, moved], clean[0, time][:, moved])
        assert torch.equal(batch.meant[0, index][:, ~moved], batch.packed[0, time - 1][:, ~moved])
    plain = painter_stage(pair, tokens, recipe(settings=SETTINGS))._add_noise(data, 2, torch.Generator().manual_seed(0), 0)
    assert torch.equal(plain.meant[:, -1], clean[:, 2])


def test_stage_one_learns_drafts_or_leaves_the_first_token_open(tokens, pair):
    """A batch has both ways; of an answer that could begin either way the first token is not learned, nor is what stands before drafts."""
    wish = recipe(settings={"rank": 2, "first_layer": 1, "tasks": {"edit": 1.0}, "drafts": 0.5, "core_kinds": ["house"], "core_share": 1.0})
    stage = MLLMStage(wish, copy.deepcopy(pair.text_encoder), tokens)
    mark, ways = tokens.text(DRAFTING), set()
    for seed in range(30):
        dialogue = sample_with_drafts("edit", random.Random(seed), stage.settings, 0.5)
        packed = stage._pack("edit", random.Random(seed))
        answers = [
            index
            for index in range(len(packed.ids))
            if packed.ids[index - len(tokens.opening("assistant")) : index] == tokens.opening("assistant")
        ]
        drafted = packed.ids[answers[-1] : answers[-1] + len(mark)] == mark
        learned = [packed.learn[index] for index in answers]
        turns = [index for index, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
        if drafted:
            assert learned == [False] * (len(answers) - 1) + [True] and not any(packed.learn[: answers[-1]])
        else:
            assert learned == [index not in dialogue.undecided for index in turns]
            assert all(packed.learn[index + 1] for index in answers)
        ways.add((drafted, bool(dialogue.undecided)))
    assert ways == {(True, False), (False, True), (False, False)}


def test_stage_one_begins_with_a_pairs_weights(tokens, pair, tmp_path):
    wish = recipe(settings={"rank": 2, "first_layer": 1, "tasks": {"talk": 1.0}})
    old = MLLMStage(wish, copy.deepcopy(pair.text_encoder), tokens)
    for name, parameter in old.peft.named_parameters():
        if "lora_" in name or "trainable_tokens" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    old.peft.save_pretrained(str(tmp_path / "text_encoder"), save_embedding_layers=False)
    save_file(old.mllm.model.visual.state_dict(), tmp_path / "text_encoder" / "vision.safetensors")
    again = replace(wish, settings=wish.settings | {"grow_from": str(tmp_path)})
    new = MLLMStage(again, copy.deepcopy(pair.text_encoder), tokens)
    assert equal(dict(new.peft.named_parameters()), dict(old.peft.named_parameters()))
    with pytest.raises(ValueError, match="other layers|cannot begin"):
        MLLMStage(replace(again, settings=again.settings | {"rank": 3}), copy.deepcopy(pair.text_encoder), tokens)


def test_a_recipe_of_stage_one_alone_exports_the_other_parts_of_its_pair(tmp_path, monkeypatch):
    old, out, file = tmp_path / "old", tmp_path / "new", tmp_path / "words.json"
    for part in ("text_encoder", "vae"):
        (old / part).mkdir(parents=True)
        (old / part / "config.json").write_text('{"of": "old"}')

    def write_mllm(recipe_file, source, runs, folder):
        (folder / "text_encoder").mkdir()
        return 500

    monkeypatch.setattr("duogen.train.export._export_mllm", write_mllm)
    wish = {"steps": 500, "learning_rate": 1e-4, "settings": {"tasks": {"talk": 1.0}}}
    file.write_text(json.dumps({"mllm": wish}))
    with pytest.raises(ValueError, match="name in its grow_from the pair"):
        export(file, tmp_path / "runs", out)
    assert not out.exists()
    wish["settings"]["grow_from"] = str(old)
    file.write_text(json.dumps({"mllm": wish}))
    assert export(file, tmp_path / "runs", out) == {"mllm": 500}
    assert (out / "vae" / "config.json").read_text() == '{"of": "old"}' and not list((out / "text_encoder").iterdir())


def write_grown_run(pair, tokens, tmp_path):
    """A run in `runs` that grew from the pair in `old`, with its recipe `toy.json`. Returns the stages of the recipe, and the modules."""
    old, runs, out = tmp_path / "old", tmp_path / "runs", tmp_path / "new"
    (old / "text_encoder").mkdir(parents=True)
    (old / "text_encoder" / "adapter_config.json").write_text("{}")
    out.mkdir()
    (out / "README.md").write_text("The card.")
    settings = GATED | {"grow_from": str(old), "layers": [1]}
    stage = painter_stage(pair, tokens, recipe(settings=settings))
    transformer = new_transformer(stage.settings.model, 8, 576)  # what one layer of the bundled MLLM says of a token
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    stage.vae.save_pretrained(runs / "vae" / "fitted")
    for name, modules in {"vae": {"vae": stage.vae}, "dit": {"transformer": transformer}}.items():
        save_state(runs / name, build_state(7, collect_parameters(modules), {}, []))
    stages = {"vae": {"steps": 1, "learning_rate": 1}, "dit": {"steps": 9, "learning_rate": 1, "settings": settings}}
    about = {"title": "Toy", "copy_below": -1.5, "steps": 4}
    (tmp_path / "toy.json").write_text(json.dumps(stages | {"about": about}))
    return stages | {"about": about}, stage, transformer


def test_a_run_that_grew_from_a_pair_exports_with_that_pairs_mllm_and_its_own_copy_gate(pair, tokens, tmp_path):
    """Such a run has no stage 1 of its own: its painter was trained on the states of the pair that it grew from."""
    old, runs, out = tmp_path / "old", tmp_path / "runs", tmp_path / "new"
    _, stage, transformer = write_grown_run(pair, tokens, tmp_path)
    assert export(tmp_path / "toy.json", runs, out) == {"mllm": 0, "vae": 7, "dit": 7}
    assert not (out / SCENE_HEAD).exists() and SCENE_HEAD not in json.loads((out / "model_index.json").read_text())
    SceneHead(576).save_pretrained(old / SCENE_HEAD)
    (runs / "vae").rename(old / "whole")  # nor need it have an autoencoder of its own
    (old / "whole" / "fitted").rename(old / "vae")
    (old / "duogen.json").write_text((out / "duogen.json").read_text().replace('"toy"', '"whole"'))
    assert export(tmp_path / "toy.json", runs, out) == {"mllm": 0, "vae": 0, "dit": 7}
    assert (out / "vae" / "config.json").read_text() == (old / "vae" / "config.json").read_text()
    assert load_vae(runs, str(old))[0].config.z_dim == stage.vae.config.z_dim
    with pytest.raises(ValueError, match="no fitted autoencoder"):
        load_vae(runs)
    assert SceneHead.from_pretrained(out / SCENE_HEAD).config.channels == 576
    assert not any(str(tmp_path) in file.read_text() for file in out.rglob("*.json"))
    assert json.loads((out / "model_index.json").read_text())[SCENE_HEAD] == ["duogen", "SceneHead"]
    assert (out / "text_encoder" / "adapter_config.json").read_text() == "{}" and (out / "README.md").read_text() == "The card."
    written = About.load(out)
    assert (written.copy_below, written.practised, written.steps) == (-1.5, "whole", 4), "its examples are of all stages"
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(weights["proj_out.weight"], transformer.proj_out.weight.bfloat16()) and len(weights["proj_out.weight"]) == 10


def test_a_painter_is_exported_as_a_mean_with_what_it_was(pair, tokens, tmp_path):
    old, runs, out = tmp_path / "old", tmp_path / "runs", tmp_path / "new"
    recipe, stage, transformer = write_grown_run(pair, tokens, tmp_path)
    settings = recipe["dit"]["settings"]
    for share, factor in ((0.0, 1.0), (0.25, 1.5), (1.0, 3.0)):  # the old painter's weights are three times as large
        other = new_transformer(stage.settings.model, 8, 576)
        other.load_state_dict({name: 3 * value for name, value in transformer.state_dict().items()})
        other.to(torch.bfloat16).save_pretrained(old / "transformer")
        recipe["dit"]["settings"] = settings | {"old_share": share}
        (tmp_path / "toy.json").write_text(json.dumps(recipe))
        export(tmp_path / "toy.json", runs, out)
        mixed = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")["proj_out.weight"].float()
        assert torch.allclose(mixed, factor * transformer.state_dict()["proj_out.weight"], rtol=0.02)
    new_transformer(stage.settings.model, 16, 576).save_pretrained(old / "transformer")
    with pytest.raises(ValueError, match="set old_share to 0"):
        export(tmp_path / "toy.json", runs, out)
    with pytest.raises(ValueError, match="old_share needs a pair"):
        DiTSettings.from_json(settings | {"old_share": 0.5, "grow_from": ""})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_painter_learns_in_forty_steps(pair, tokens, tmp_path, precision):
    wish = recipe(steps=40, learning_rate=0.004, ema=0.0, seed=2, settings=SETTINGS, precision=precision)
    stage = painter_stage(pair, tokens, wish)

    def loss() -> float:
        """On batches that the training does not see."""
        with torch.no_grad(), autocast(wish):
            return sum(float(stage.loss(stage.batch(step), torch.Generator().manual_seed(step))[0]) for step in (100, 101))

    before = loss()
    train(stage, wish, tmp_path, log=quiet)
    assert loss() < 0.9 * before
    assert all(not weight.requires_grad for weight in stage.mllm.parameters())


def test_the_painter_trains_on_the_states_that_serving_reads(pair, tokens):
    """What the engine's context holds for a conversation is what the stage computes for it, token by token."""
    stage = painter_stage(pair, tokens, recipe(settings=SETTINGS))
    turns = sample_dialogue(random.Random(4), {"thing_steps": 1.0}, 2, CurriculumSettings())
    data = collate(tokens, [turns], 2, 0, see=True)
    engine = Engine(pair)
    engine.mllm.layers = [1, 2]
    context = engine.memory.context
    packed = tokens.pack(turns)
    engine.mllm.prefill(context, packed)
    states = stage.states(data)[0, data.mask[0]].float()
    assert states.shape[0] == packed.slots[1].bov  # the last picture is read by no frame
    assert (states - context.condition(len(states))[0]).abs().max() < 1e-3
    for index, slot in enumerate(packed.slots[:2]):
        assert data.words[0, index].nonzero().flatten().tolist() == list(range(slot.bov))
        assert data.fewer[0, index].nonzero().flatten().tolist() == list(range(max(1, packed.last_segment(slot.bov))))
    latents = stage.encode(data.pixels)
    assert latents.shape == (1, 2, 8, 8, 8) and latents.abs().max() > 0.1


def test_what_moves_is_taught_as_going_and_coming_again():
    rng, seen = random.Random(4), set()
    for _ in range(20):
        question, answer = sample_dialogue(rng, {"moves": 1.0}, 3, CurriculumSettings(core_kinds=("house", "car"), core_share=1.0))
        said = [part.text for part in answer.parts if isinstance(part, Text)]
        seen.add(said[0].split(". ")[0])
        assert len(question.images()) == 1 and len(answer.images()) == len(said) >= 2
        assert all(words.startswith("Step ") or words.endswith(" gone.") for words in said)
    assert {"Now the house is gone.", "Now the car is gone.", "Step 1", "Step 2"} <= seen


def test_training_visits_noise_as_sampling_does():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    scheduler.set_timesteps(sigmas=[1 - step / 10 for step in range(10)])
    found = even_sigmas(40000, 4.0, torch.Generator().manual_seed(1)).sort(descending=True).values
    assert (found[:: len(found) // 10][:10] - scheduler.sigmas[:-1]).abs().max() < 0.02


def test_a_batch_is_padded_to_a_length_met_before():
    reads = [([7] * length, torch.arange(length).expand(3, -1)) for length in (3, 33)]
    ids, places, mask = pad_conversations(reads, 32)
    assert ids.shape == mask.shape == (2, 64) and places.shape == (3, 2, 64)
    assert mask.sum(1).tolist() == [3, 33] and pad_conversations(reads)[0].shape == (2, 33)


def test_a_blind_painter_reads_the_words_alone(tokens):
    turns = sample_dialogue(random.Random(4), {"thing_steps": 1.0}, 3, CurriculumSettings())
    data = collate(tokens, [turns], 3, 0, see=False)
    packed = tokens.pack(turns)
    assert data.vision is None and BOV not in data.ids
    for index, slot in enumerate(packed.slots[:3]):
        pictures = sum(earlier.end - earlier.bov for earlier in packed.slots[:index])
        assert int(data.words[0, index].sum()) == slot.bov - pictures
    assert [type(image) for image in turns[1].images()[:1]] == [Image]


def test_a_scene_begins_where_nothing_of_the_picture_before_is_left():
    """The labels come from the kinds of the answers; what the scenes hold says the same."""
    begun, kept, additions = 0, 0, 0
    for seed in range(120):
        dialogue = sample_conversation(random.Random(seed))
        drafted = [at for at, line in enumerate(dialogue.lines) if str(line.parts[0]).startswith(DRAFTING)]
        assert drafted in ([], [len(dialogue.lines) - 1]), "the drafts of an answer leave the context with it"
        additions += bool(drafted) and dialogue.lines[-1].kind == "edit"
        scenes, labels = dialogue.scenes(), label_scenes(dialogue)
        for before, scene, begins in zip(scenes, scenes[1:], labels[1:], strict=False):
            parts = [{part for thing in each.things for part in thing.parts} for each in (before, scene)]
            begun, kept = begun + begins, kept + (not begins)
            assert begins or parts[0] & parts[1] or before.background == scene.background
        assert labels == [] or labels[0]
    assert begun > 40 and kept > 100 and additions > 5


def test_the_scene_head_is_fitted_to_the_states_that_serving_reads(tmp_path, monkeypatch, capsys, pair, tokens):
    file, settings = tmp_path / "small.json", SETTINGS | {"layers": [1, 2]}
    file.write_text(json.dumps({"dit": {"steps": 1, "learning_rate": 0.001, "settings": settings}}))
    monkeypatch.setattr(commands, "FITTED_CONVERSATIONS", 30)
    monkeypatch.setattr(commands, "open_base_mllm", lambda: (pair.text_encoder, tokens))
    monkeypatch.setattr(commands, "load_trained_mllm", lambda mllm, *given: mllm)
    assert commands.main(["fit-scene-head", "--recipe", str(file), "--runs", str(tmp_path), "--threads", "1"]) == 0
    assert "% of the pictures right" in capsys.readouterr().out
    head = SceneHead.from_pretrained(tmp_path / "small" / SCENE_HEAD)
    monkeypatch.setattr("duogen.train.scene_head.LOSS", 1.0)
    assert commands.main(["fit-scene-head", "--recipe", str(file), "--runs", str(tmp_path / "even"), "--threads", "1"]) == 0
    even = SceneHead.from_pretrained(tmp_path / "even" / "small" / SCENE_HEAD)
    assert float(even.linear.bias - head.linear.bias) == pytest.approx(math.log(12), abs=1e-3), "a picture is lost only where it is sure"
    rng = random.Random(5)  # these are conversations that it was fitted to
    right, count = 0, 0
    for _ in range(10):
        dialogue = sample_conversation(rng)
        states = read_scene_states(pair.text_encoder, tokens, [1, 2], dialogue)
        right += int(((head(states) > 0) == torch.tensor(label_scenes(dialogue), dtype=torch.bool)).sum())
        count += len(states)
    assert right / count > 0.9
    engine, packed = Engine(pair), tokens.pack(draw_turns(dialogue))
    engine.mllm.layers = [1, 2]
    engine.mllm.prefill(engine.memory.context, packed)
    served = torch.stack([engine.memory.context.condition(slot.bov)[0, -1] for slot in packed.slots])
    assert len(served) and (served - states).abs().max() < 1e-3


@pytest.mark.parametrize("command", ["fit-last-layer", "refit"])
def test_a_command_fits_the_last_layer_of_a_vision_run(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(vision, "CELLS", 4)  # the tiny tower merges more patches
    monkeypatch.setattr(vision, "CELL", 64)
    model = open_pair(tiny_pair(tmp_path / "pair"), "cpu", "fp32")
    stage = VisionStage(recipe(settings={"batch": 1}), model.text_encoder, Tokens(model.tokenizer, model.image_processor))
    file, run = tmp_path / "small.json", tmp_path / "runs" / "small" / "vision"
    file.write_text(json.dumps({"vision": {"steps": 1, "learning_rate": 0.001, "workers": 0, "settings": {"batch": 1}}}))
    train(stage, Recipe.load(file, "vision"), run, log=quiet)
    before = stage.visual.merger.mlp[2].weight.clone()
    monkeypatch.setattr(commands, "FITTED_PICTURES", 20)
    monkeypatch.setattr(commands, "build_vision_stage", lambda given: stage)
    assert commands.main([command, "--recipe", str(file), "--runs", str(tmp_path / "runs"), "--threads", "1"]) == 0
    assert "of the variance" in capsys.readouterr().out
    state = torch.load(run / "state.pt")
    assert state["step"] == 1 and torch.equal(state["weights"]["visual.merger.mlp.2.weight"], stage.visual.merger.mlp[2].weight)
    assert not torch.equal(before, stage.visual.merger.mlp[2].weight)


@pytest.mark.slow
def test_refitting_brings_what_is_seen_among_the_words():
    mllm, tokens = open_base_mllm()
    mllm.model.visual.load_state_dict(load_file(trained_folder() / "text_encoder" / "vision.safetensors"))
    last = mllm.model.visual.merger.mlp[2]
    with torch.no_grad():
        last.weight.mul_(50)  # features that grew until nobody can read them
    assert VisionStage(recipe(), mllm, tokens).fit_last_layer(pictures=120, seed=1, ridge=1e-3) > 0.2
    pixels, grids = tokens.pixels([Image(draw(any_scene(random.Random(5)))) for _ in range(4)])
    with torch.no_grad():
        placed = append_patch_positions(pixels, grids, mllm.config.vision_config)
        lengths = mllm.model.visual(placed, grid_thw=grids).pooler_output.norm(dim=-1)
    assert 0.3 < float(lengths.mean() / mllm.get_input_embeddings().weight.norm(dim=-1).mean()) < 1.5


def test_a_recipe_without_steps_exports_its_pair_with_the_heads_of_the_run(pair, tokens, tmp_path):
    old, runs, out = tmp_path / "old", tmp_path / "runs", tmp_path / "new"
    recipe, _, _ = write_grown_run(pair, tokens, tmp_path)
    assert export(tmp_path / "toy.json", runs, tmp_path / "whole") == {"mllm": 0, "vae": 7, "dit": 7}
    shutil.rmtree(old)
    shutil.copytree(tmp_path / "whole", old)
    recipe["dit"]["steps"] = 0
    (tmp_path / "heads.json").write_text(json.dumps({"dit": recipe["dit"], "about": {"title": "Toy with heads"}}))
    SceneHead(12).save_pretrained(runs / SCENE_HEAD)
    assert export(tmp_path / "heads.json", runs, out) == {"dit": 0}
    assert SceneHead.from_pretrained(out / SCENE_HEAD).config.channels == 12
    entries = json.loads((out / "model_index.json").read_text())
    assert entries.pop(SCENE_HEAD) == ["duogen", "SceneHead"] and entries == json.loads((old / "model_index.json").read_text())
    assert json.loads((out / "duogen.json").read_text()) == json.loads((old / "duogen.json").read_text()) | {"title": "Toy with heads"}
    for file in ("transformer/diffusion_pytorch_model.safetensors", "text_encoder/adapter_config.json"):
        assert (out / file).read_bytes() == (old / file).read_bytes()
    recipe["dit"]["settings"]["grow_from"] = ""
    (tmp_path / "heads.json").write_text(json.dumps({"dit": recipe["dit"]}))
    with pytest.raises(ValueError, match="name in its grow_from the pair whose DiT is kept"):
        export(tmp_path / "heads.json", runs, out)
