"""Learning from votes: they become pairs of answers, the losses are those of the papers, and forty votes turn what is painted."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image as PILImage
from PIL import ImageStat

from duogen.cli.main import main
from duogen.conversation import Conversation, Turn
from duogen.evaluate import arena
from duogen.evaluate.arena import VOTED, VOTES, Contestant, add_mark, arena_home, rating_table, read_votes
from duogen.finetune.config import FineTuneConfig
from duogen.finetune.feature_cache import read
from duogen.finetune.preference_stages import DiTPreferenceStage, MLLMPreferenceStage, match_frames
from duogen.finetune.preferences import LEAST_PAIRS, choose_stages, read_preferences
from duogen.finetune.prepare import FineTuneRequest, build_stage, prepare_run
from duogen.finetune.run import finetune
from duogen.finetune.stages import DiTStage
from duogen.models.adapters import AdapterSpec, set_adapters
from duogen.models.mllm import MLLM, Context
from duogen.models.pipeline import open_pair, open_parts
from duogen.models.sequence import Tokens
from duogen.options import ImageOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.cosmos import CosmosPainter
from duogen.train.mllm import collate
from tests.support.tiny import SIDE, tiny_pair

RECIPE: dict[str, Any] = {
    "max_tokens": 300, "sample_every": 0, "best": False, "save_minutes": 9.0,
    "mllm": {"steps": 16, "batch": 4, "rank": 4, "warmup": 1, "learning_rate": 0.036, "precision": "fp32"},
    "dit": {"steps": 24, "batch": 4, "rank": 4, "ema": 0.5, "warmup": 1, "learning_rate": 0.024, "beta": 5.0},
}  # fmt: skip
ME = Contestant("Tiny", "tiny")
RED, BLUE = (210, 60, 60), (60, 60, 210)

pytestmark = pytest.mark.usefixtures("as_before")


def quiet(words: str) -> None:
    pass


def draw(tint: tuple[int, int, int], seed: int) -> PILImage.Image:
    made = PILImage.new("RGB", (SIDE, SIDE), tint)
    made.paste((seed * 40 % 200, 200, 90), (seed, 8, seed + 20, 28))
    return made


def answer(asked: Conversation, *parts: str | PILImage.Image) -> Turn:
    return asked.say("assistant", *parts).path()[-1]


def mark(home: Path, number: int, tints: tuple = (RED, BLUE), words: tuple[str, str] = ("aa", "bb")) -> None:
    asked = Conversation().say("user", f"Draw a house {'abcd'[number % 4]}")
    better, worse = (answer(asked, said, draw(tint, number % 30)) for said, tint in zip(words, tints, strict=True))
    add_mark(home / VOTES, asked.path(), better, worse, ME)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair whose autoencoder knows colours, and a home with forty votes for red pictures and for the words "aa"."""
    folder = tmp_path_factory.mktemp("votes")
    pair = open_pair(tiny_pair(folder / "pair"), "cpu", "fp32")
    pair.vae.fit_patches((torch.rand(64, 3, 1) * 2 - 1).expand(-1, -1, 256).flatten(1) + 0.05 * torch.randn(64, 768))
    pair.save_pretrained(folder / "pair")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    for number in range(40):
        mark(folder / "home" / "arena", number)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(place / "home"))


def make_request(place: Path, out: Path, stage: str = "both") -> FineTuneRequest:
    return FineTuneRequest(arena_home(), out, str(place / "pair"), stage, FineTuneConfig.from_json(RECIPE), "cpu", votes=True)


def test_votes_become_pairs_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / VOTES
    asked = Conversation().say("user", "Hi").say("assistant", "Ho").say("user", "Draw a boat.")
    one, two, three = (answer(asked, words, draw(tint, 3)) for words, tint in (("A boat.", RED), ("A boat.", BLUE), ("Boat!", RED)))
    for better, worse in ((one, two), (two, one), (three, one), (two, three)):
        add_mark(file, asked.path(), better, worse, ME)
    pairs = read_preferences(tmp_path).examples
    said = [([line.text() for line in each.lines], [line.text() for line in each.worse.lines]) for each in pairs]
    assert all(each[:-1] == ["Hi", "Ho", "Draw a boat."] for pair in said for each in pair)
    answers = [(better[-1], worse[-1]) for better, worse in said]
    assert answers == [("A boat.", "A boat."), ("Boat!", "A boat."), ("A boat.", "Boat!")]
    colours = [[each.lines[-1].pictures()[0].open().getpixel((0, 0)) for each in (pair, pair.worse)] for pair in pairs]
    assert colours == [[BLUE, RED], [RED, RED], [BLUE, RED]], "of two marks between the same versions the last one counts"
    assert [[pair.can_teach(stage) for stage in ("mllm", "dit")] for pair in pairs] == [[False, True], [True, False], [True, True]]
    assert rating_table(read_votes(file)[0]) == [], "versions of one contestant rate nobody"
    with pytest.raises(ValueError, match="differ in words or pictures, and has 2; vote in the Arena"):
        choose_stages("both", pairs)
    assert choose_stages("both", pairs[:1] * LEAST_PAIRS) == "dit" and choose_stages("both", pairs[2:] * LEAST_PAIRS) == "both"
    damaged = next((tmp_path / VOTED / read_votes(file)[0][-1].answers / "images").iterdir())
    damaged.write_bytes(b"no picture")
    data = read_preferences(tmp_path)
    assert len(data.examples) == 2 and len(data.problems) == 1
    monkeypatch.setattr(arena, "KEPT_ANSWERS", 2)
    add_mark(file, asked.path(), one, two, ME)
    assert {folder.name for folder in (tmp_path / VOTED).iterdir()} == {vote.answers for vote in read_votes(file)[0][-2:]}


@pytest.fixture
def stages(place: Path, tmp_path: Path) -> dict[str, MLLMPreferenceStage | DiTPreferenceStage]:
    """Both stages, whose adapters have learnt something."""
    made = {}
    run = prepare_run(make_request(place, tmp_path / "out"), quiet)
    for name in ("mllm", "dit"):
        made[name] = build_stage(name, run, None).stage
        torch.manual_seed(1)
        for weight in made[name].modules[{"mllm": "mllm", "dit": "transformer"}[name]].parameters():
            if weight.requires_grad:
                weight.data += 0.03 * torch.randn_like(weight)
    return made


def loss_by_hand(own: tuple[float, float], base: tuple[float, float], scale: float) -> float:
    return math.log(1 + math.exp(scale * ((own[0] - base[0]) - (own[1] - base[1]))))


def test_stage_1_is_dpo(place: Path, stages: dict) -> None:
    """Token by token, one answer at a time, with a model that never had an adapter as the reference."""
    stage, base = stages["mllm"], open_parts(place / "pair", ("text_encoder",), "cpu", "fp32").text_encoder
    tokens = stage.tokens

    def surprise(model: torch.nn.Module, turns: list[Turn]) -> float:
        packed = tokens.pack(turns)
        batch = collate(tokens, [packed])
        out = model(input_ids=batch.ids, position_ids=batch.places, pixel_values=batch.vision[0], image_grid_thw=batch.vision[1]).logits
        learnt = [place for place in range(1, len(packed.ids)) if packed.learn[place]]
        return sum(-float(out[0, place - 1].float().log_softmax(-1)[packed.ids[place]]) for place in learnt)

    with torch.no_grad():
        loss, figures = stage.loss(stage.batch(0), torch.Generator())
        pairs = [stage.examples[index] for index in stage.batch_sampler[0]]
        both = [[tuple(surprise(model, each.turns()) for each in (pair, pair.worse)) for model in (stage.mllm, base)] for pair in pairs]
    meant = [loss_by_hand(own, reference, 0.1) for own, reference in both]
    assert float(loss) == pytest.approx(sum(meant) / len(meant), rel=1e-3) and len(set(meant)) > 1
    assert figures["right"] == sum(each < math.log(2) for each in meant) / len(meant)


def test_stage_2_is_diffusion_dpo(place: Path, stages: dict) -> None:
    """The errors of each side with the same noise, and those of a DiT that never had an adapter."""
    stage = stages["dit"]
    base = DiTStage(stage.recipe, open_parts(place / "pair", ("transformer", "vae"), "cpu"), stage.flow.files, stage.flow.own)
    better, worse = stage.batch(3)
    assert better.painted.all() and not torch.equal(better.latents[0], worse.latents[0])
    with torch.no_grad():
        loss, _ = stage.loss((better, worse), torch.Generator().manual_seed(5))
        sides = [
            [error * weight for error, weight in (flow.compute_errors(each, torch.Generator().manual_seed(5)) for each in (better, worse))]
            for flow in (stage.flow, base)
        ]
    (own_better, own_worse), (base_better, base_worse) = ([side.flatten().tolist() for side in each] for each in sides)
    rows = zip(own_better, own_worse, base_better, base_worse, strict=True)
    meant = [loss_by_hand((one, two), (three, four), 5.0 / 2) for one, two, three, four in rows]
    assert float(loss) == pytest.approx(sum(meant) / len(meant), rel=1e-4) and len(meant) == 4 * stage.flow.own.copies
    assert float(loss) != pytest.approx(math.log(2), rel=1e-4)


def test_only_pictures_that_differ_are_compared(stages: dict) -> None:
    one, other = (read(file) for file in stages["dit"].pairs[0])
    three = [replace(each, latents=[one.latents[0], each.latents[0]], cuts=each.cuts * 2, painted=[True, True]) for each in (one, other)]
    better, worse = match_frames(*three)
    assert better.painted == worse.painted == [False, True] and len(better.latents) == 2
    wide = replace(three[1], latents=[three[1].latents[0], torch.zeros(8, 4, 6)])
    assert match_frames(three[0], wide)[0].painted == [False]


def paint_mean(pair: Path, *adapters: AdapterSpec) -> torch.Tensor:
    """The mean colour of what is painted for some requests and seeds, from 0 to 1."""
    parts = open_pair(pair, "cpu", "fp32")
    set_adapters(parts, adapters)
    tokens = Tokens(parts.tokenizer, parts.image_processor, parts.about.bov)
    mllm, painter, seen = MLLM(parts.text_encoder, tokens, list(parts.about.layers)), CosmosPainter(parts), []
    for seed, letter in enumerate("abcdxy"):
        context = Context()
        packed = tokens.pack([Conversation().say("user", f"Draw a house {letter}").path()[-1]])
        packed.add([*tokens.opening("assistant"), *tokens.text("aa")], False)
        mllm.prefill(context, packed)
        *_, painted = painter.paint(
            Frames.empty(), PaintRequest(context.condition(), 0, ImageOptions(steps=4, guidance=1.0, preview_every=0), seed)
        )
        picture = painter.decode(painted.latents)
        seen.append(torch.tensor([mean / 255 for mean in ImageStat.Stat(picture).mean]))
    return torch.stack(seen).mean(0)


def test_forty_votes_turn_what_is_painted(place: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "adapter", place / "pair"
    argv = ["finetune", "--votes", "--pair", str(pair), "--device", "cpu", "--recipe", str(place / "recipe.json"), "--out", str(out)]
    assert main(argv) == 0
    before, after = paint_mean(pair), paint_mean(pair, AdapterSpec(out))
    redder = (after - before)[0] - (after - before)[2]
    assert redder > 0.1, (before, after)
    shown = json.loads((out / "adapter.json").read_text())
    assert (shown["data"], shown["stage"], shown["examples"], shown["recipe"]["replay"]) == ("votes", "both", 40, 0.0)
    figures = [json.loads(line) for line in (out / "run" / "mllm" / "log.jsonl").read_text().splitlines()]
    assert figures[-1]["right"] == 1.0 and figures[-1]["loss"] < 0.3 < figures[0]["loss"]


def test_a_run_keeps_its_own_votes_and_goes_on_with_them(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    for number in range(8):
        mark(arena_home(), number)
    short = FineTuneConfig.from_json({**RECIPE, "dit": RECIPE["dit"] | {"steps": 2}})
    request = replace(make_request(place, tmp_path / "out", "dit"), recipe=short).with_own_votes()
    shutil.rmtree(tmp_path / "home" / "arena")
    assert finetune(request, quiet)["phase"] == "done"
    again = FineTuneRequest.load(tmp_path / "out")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (again.votes, again.data) == (True, request.data) and len(prepare_run(again, quiet).data.examples) == 8


def test_what_is_wrong_with_votes_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = {**RECIPE, "dit": RECIPE["dit"] | {"rank": 0}}
    (tmp_path / "full.json").write_text(json.dumps(full))
    argv = ["finetune", "--votes", "--pair", str(place / "pair"), "--device", "cpu", "--out", str(tmp_path / "o")]
    assert main([*argv, "--recipe", str(tmp_path / "full.json")]) == 2
    assert "choose a rank above 0" in capsys.readouterr().err
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    for number in range(7):
        mark(arena_home(), number, words=("aa", "aa"))
    for stage, said in (("both", "words or pictures, and has 7"), ("mllm", "words, and has 0")):
        assert main([*argv, "--recipe", str(place / "recipe.json"), "--stage", stage]) == 2
        assert f"Learning needs 8 votes between answers that differ in {said}" in capsys.readouterr().err
    mark(arena_home(), 9, words=("aa", "aa"))
    assert main([*argv, "--recipe", str(place / "recipe.json"), "--estimate"]) == 0
    told = capsys.readouterr().out
    assert "Read as votes: 8 examples" in told and "Stage 2" in told and "Stage 1" not in told
    assert not (tmp_path / "o").exists()
