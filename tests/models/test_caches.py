"""The engine's caches, batches and short cuts change nothing: it equals the plain way in `oracle.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done
from duogen.models.mllm import nucleus
from duogen.models.pipeline import open_pair
from duogen.models.sequence import Packed
from duogen.nn.attention import frame_mask, word_scores
from duogen.nn.frames import embed_frames, forward_frames, project_condition, unpatchify
from duogen.options import ImageOptions, Options, TextOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.train.scene_head import regress
from tests.support import oracle
from tests.support.tiny import BOV, END, SIDE, script, tiny_pair

CLOSE = 1e-4
KINDS = {
    "causal": {"frame_attention": "block_causal"},
    "bidirectional": {"frame_attention": "bidirectional"},
    "cosmos": {"cosmos_layout": True},
    "gate": {"frame_attention": "block_causal", "gate": True},
}
COPY_BELOW = 1.5  # about half of the places of an untrained painter are copied then


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    opened = open_pair(tiny_pair(tmp_path_factory.mktemp("pair"), **KINDS[request.param]), "cpu", "fp32")
    opened.about = replace(opened.about, image_size=(SIDE, SIDE), tuned=True, copy_below=COPY_BELOW)
    return opened


@pytest.fixture
def engine(pair):
    return Engine(pair)


def options(seed: int, guidance: float = 1.0, steps: int = 2, pictures: float = 1.0) -> Options:
    words = TextOptions(temperature=1.0, top_p=1.0, max_tokens=200)
    return Options(seed, words, ImageOptions(steps=steps, guidance=guidance, picture_guidance=pictures, max_images=9))


def noise_picture(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def last(events) -> Done:
    *_, done = events
    assert isinstance(done, Done), done
    return done


def same(mine: list, other: list) -> None:
    assert [type(part) for part in mine] == [type(part) for part in other]
    for one, two in zip(mine, other, strict=True):
        if isinstance(one, str):
            assert one == two
        else:  # rounded to whole numbers, some before the next picture was painted after them
            assert np.abs(one - two).max() <= 1


@pytest.mark.parametrize(("uploads", "guidance"), [(0, 1.0), (1, 2.5)])
def test_a_whole_answer_is_the_plain_ones(engine, monkeypatch, uploads, guidance):
    conversation = Conversation().say("user", "Draw a red house.", *map(noise_picture, range(uploads)))
    say = ("Step 1. A red", BOV, "then", BOV, BOV, "done", END)
    script(monkeypatch, engine.tokens, *say)
    done = last(engine.answer(conversation, options(5, guidance)))
    script(monkeypatch, engine.tokens, *say)
    plain = oracle.answer(engine.pair, conversation.path(), options(5, guidance))
    assert [type(part) for part in plain] == [str, np.ndarray, str, np.ndarray, np.ndarray, str]
    same(oracle.parts_of(done.conversation.path()[-1]), plain)


def test_an_answer_in_words_of_its_own_is_the_plain_one(tmp_path):
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    conversation = Conversation().say("user", "Draw a red house.")
    for seed in range(50):
        done = last(engine.answer(conversation, options(seed)))
        if done.stats.images and done.stats.stopped == "end":
            break
    same(oracle.parts_of(done.conversation.path()[-1]), oracle.answer(engine.pair, conversation.path(), options(seed)))


def test_every_word_is_projected_once(tmp_path, monkeypatch):
    """The connector reads each hidden state once, however many pictures and turns come after it, and an edit makes it read anew."""
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    rows = []
    engine.pair.transformer.crossattn_proj.register_forward_pre_hook(lambda module, given: rows.append(given[0].shape[1]))
    script(monkeypatch, engine.tokens, "Step 1.", BOV, "good", BOV, END)
    done = last(engine.answer(Conversation().say("user", "Draw a house.", noise_picture(1)), options(3, guidance=2.0)))
    script(monkeypatch, engine.tokens, "Step 3.", BOV, END)
    last(engine.answer(done.conversation.say("user", "More."), options(4)))
    kept = engine.memory.slots[-1].bov
    assert sum(rows) == kept == engine.memory.frames.words.count
    assert len(rows) == len(engine.memory.slots)
    script(monkeypatch, engine.tokens, "Step 3.", BOV, END)
    last(engine.answer(done.conversation.say("user", "Less of it."), options(4)))
    assert len(rows) == len(engine.memory.slots) + 1 and 0 < rows[-1] < engine.memory.slots[-1].bov


def test_the_last_picture_costs_no_pass_of_its_own(tmp_path, monkeypatch):
    """Its keys and values are due when a picture comes after it; forgetting pictures forgets those that are due."""
    engine = Engine(open_pair(tiny_pair(tmp_path), "cpu", "fp32"))
    passes = []
    engine.pair.transformer.proj_out.register_forward_hook(lambda *given: passes.append(1))
    script(monkeypatch, engine.tokens, "One", BOV, "two", BOV, END)
    done = last(engine.answer(Conversation().say("user", "Draw."), options(3)))
    frames = engine.memory.frames
    assert len(passes) == 2 * 2 + 1
    assert (len(frames.past), frames.cache.frames, len(frames.word_ranges)) == (2, 1, 1)
    script(monkeypatch, engine.tokens, "Three", BOV, END)
    last(engine.answer(done.conversation.say("user", "More."), options(4)))
    assert len(passes) == 2 * 3 + 2
    assert (len(frames.past), frames.cache.frames, len(frames.word_ranges)) == (3, 2, 1)
    frames.keep(2, 5)
    assert (len(frames.past), frames.cache.frames, len(frames.word_ranges)) == (2, 2, 0)
    frames.keep(1, 5)
    assert (len(frames.past), frames.cache.frames, len(frames.word_ranges)) == (1, 1, 0)


def test_hidden_states_of_two_turns_are_the_plain_ones(engine, monkeypatch):
    first = Conversation().say("user", "Draw a house.", noise_picture(1))
    script(monkeypatch, engine.tokens, "Step 1.", BOV, "good", END)
    done = last(engine.answer(first, options(3)))
    context = engine.memory.context
    once = len(context.packed.ids)
    states, logits = oracle.read(engine.pair, engine.tokens, context.packed)
    assert (context.condition() - states).abs().max() < CLOSE
    assert torch.equal(context.logits.argmax(), logits.argmax())

    script(monkeypatch, engine.tokens, "Step 2.", BOV, "fine", END)
    done = last(engine.answer(done.conversation.say("user", "Add this: ", noise_picture(2), " go on"), options(4)))
    assert done.stats.prompt_tokens - done.stats.encoded_tokens == once
    states, logits = oracle.read(engine.pair, engine.tokens, context.packed)
    assert context is engine.memory.context and len(context.packed.ids) > once
    assert (context.condition() - states).abs().max() < CLOSE
    shown = context.logits.isfinite()
    assert (context.logits - logits)[shown].abs().max() < CLOSE


@pytest.mark.parametrize(("guidance", "pictures"), [(1.0, 1.0), (2.5, 1.0), (2.5, 1.7), (1.0, 1.7)])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_picture_after_others_is_the_plain_one(engine, count, guidance, pictures):
    """With earlier pictures among words of their own, and for one step alone, which shows the velocity itself."""
    packed = Packed()
    for index in range(count):
        packed.add(engine.tokens.text(f"Step {index}. red "), True)
        engine.tokens.add_image(packed, Conversation().say("user", noise_picture(index)).path()[0].images()[0], True)
    segment = len(packed.ids)
    packed.add(engine.tokens.text("and a blue door"), True)
    states, _ = oracle.read(engine.pair, engine.tokens, packed)
    earlier = [
        oracle.Earlier(oracle.encode(engine.pair, slot.image.picture), slot.bov, packed.last_segment(slot.bov)) for slot in packed.slots
    ]
    frames = Frames.empty()
    for slot, each in zip(packed.slots, earlier, strict=True):
        latents = engine.painter.encode(slot.image.picture)
        assert (latents - each.latents).abs().max() < CLOSE
        engine.painter.remember(frames, latents, states[:, : slot.bov], each.segment)
    for steps in (1, 4):
        wish = options(0, guidance, steps, pictures)
        *_, painted = engine.painter.paint(frames, PaintRequest(states, segment, wish.image, 7))
        plain = oracle.paint(engine.pair, earlier, states, segment, wish, 7)
        assert (painted.latents - plain).abs().max() < CLOSE
        assert painted.step == steps
        if engine.pair.transformer.config.out_channels > engine.pair.vae.config.z_dim and count:
            stays = (painted.latents == earlier[-1].latents).all(1)
            assert 0 < stays.float().mean() < 1
    picture = np.asarray(engine.painter.decode(painted.latents)).astype(np.float32)
    assert np.abs(picture - oracle.decode(engine.pair, plain)).max() <= 0.5 + 255 * CLOSE


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("begins", [1, 3])
def test_a_new_scene_is_painted_as_if_nothing_stood_before_it(tmp_path, begins, guidance):
    """Three pictures and a fourth, of which number `begins` opens a scene: what stands before it is neither seen nor read."""
    whole = open_pair(tiny_pair(tmp_path / "whole", frame_attention="block_causal", gate=True), "cpu", "fp32")
    whole.about = replace(whole.about, image_size=(SIDE, SIDE), copy_below=COPY_BELOW)
    tokens, packed = Engine(whole).tokens, Packed()
    for index in range(4):
        packed.add(tokens.text(f"Step {index}. red "), True)
        tokens.add_image(packed, Conversation().say("user", noise_picture(index)).path()[0].images()[0], True)
    bovs = [slot.bov for slot in packed.slots]
    states, _ = oracle.read(whole, tokens, packed.between(0, bovs[-1]))
    whole.scene_head = regress(states[0, [bov - 1 for bov in bovs]], torch.tensor([float(index == begins) for index in range(4)]))
    whole.register_modules(scene_head=whole.scene_head)
    whole.save_pretrained(tmp_path / "saved")
    painter, frames = Engine(open_pair(tmp_path / "saved", "cpu", "fp32")).painter, Frames.empty()
    starts = [packed.last_segment(bov) for bov in bovs]
    for slot, start in zip(packed.slots[:3], starts, strict=False):
        painter.remember(frames, painter.encode(slot.image.picture), states[:, : slot.bov], start)
    *_, painted = painter.paint(frames, PaintRequest(states, starts[3], options(0, guidance).image, 7))
    less = starts[begins] - 1  # words that nobody reads; the very first stays
    earlier = [
        oracle.Earlier(oracle.encode(whole, slot.image.picture), slot.bov - less, start - less)
        for slot, start in zip(packed.slots[begins:3], starts[begins:], strict=False)
    ]
    read = torch.cat([states[:, :1], states[:, starts[begins] :]], 1)
    plain = oracle.paint(whole, earlier, read, starts[3] - less, options(0, guidance), 7)
    assert (painted.latents - plain).abs().max() < CLOSE
    assert painter.find_sources(frames, states) == ([] if begins == 3 else [2])
    frames.keep(2, bovs[1])
    assert len(frames.scenes) == len(frames.past) == 2


def test_the_guidance_and_the_words_matter(engine):
    """Without this, the equalities above could hold for a painter that reads nothing."""
    packed = Packed()
    packed.add(engine.tokens.text("Draw a red house and a blue door"), True)
    states, _ = oracle.read(engine.pair, engine.tokens, packed)
    frames = Frames.empty()

    def painted(states, guidance):
        *_, final = engine.painter.paint(frames, PaintRequest(states, 0, options(0, guidance).image, 7))
        return final.latents

    plain = painted(states, 1.0)
    assert (plain - painted(states, 2.5)).abs().max() > 0.01
    assert (plain - painted(states[:, :5], 1.0)).abs().max() > 0.01
    engine.painter.remember(frames, engine.painter.encode(noise_picture(1)), states[:, :3], 0)
    assert (plain - painted(states, 1.0)).abs().max() > 0.01


def test_a_second_answer_after_reuse_is_that_of_a_fresh_engine(engine, monkeypatch):
    """Uploaded pictures only, so that a fresh engine can know them exactly."""
    script(monkeypatch, engine.tokens, "Hello", END)
    done = last(engine.answer(Conversation().say("user", "Hello", noise_picture(1)), options(0)))
    second = done.conversation.say("user", "Now draw, please.", noise_picture(2))
    fresh = Engine(engine.pair)
    fresh.memory.said = dict(engine.memory.said)  # the very tokens that were said
    turns = []
    for each in (engine, fresh):
        script(monkeypatch, engine.tokens, "Here", BOV, "and", BOV, END)
        done = last(each.answer(second, options(2, 2.5)))
        turns.append(oracle.parts_of(done.conversation.path()[-1]))
    assert done.stats.encoded_tokens == done.stats.prompt_tokens
    same(*turns)


@pytest.mark.parametrize("count", [1, 3])
def test_walk_is_the_models_own_forward(pair, count):
    model = pair.transformer
    torch.manual_seed(count)
    side, channels = SIDE // pair.vae.spatial_compression_ratio, pair.vae.config.z_dim
    latents = [torch.randn(1, channels, side, side) for _ in range(count)]
    timesteps = [0.0] * (count - 1) + [0.7 * pair.about.timestep_scale]
    states = torch.randn(1, 9, model.config.crossattn_proj_in_channels)
    with torch.no_grad():
        before = [None, *latents[:-1]] if pair.about.sees_previous else None
        frames = embed_frames(model, latents, list(range(count)), [True] * (count - 1) + [False], before)
        out, _ = forward_frames(model, frames, torch.tensor([timesteps]), project_condition(model, states))
        ours = unpatchify(model, out[:, -frames.lengths[-1] :], frames.sizes[-1])
    assert (ours - oracle.bidirectional(model, latents, timesteps, states)).abs().max() < CLOSE


def test_teacher_forcing_is_what_serving_does(tmp_path):
    """Clean frames and several noisy copies in one masked sequence, as in training: every copy comes out as it would alone."""
    pair = open_pair(tiny_pair(tmp_path), "cpu", "fp32")
    model = pair.transformer
    torch.manual_seed(0)
    clean = [torch.randn(1, 8, 4, 4) for _ in range(2)]
    order = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (2, 2)]
    copies = [torch.randn(1, 8, 4, 4) for _ in order[2:]]
    sigmas = [0.9, 0.2, 0.6, 0.4]
    states, reads = torch.randn(1, 12, model.config.crossattn_proj_in_channels), [4, 8, 12]
    size = 16
    fresh = [0, 5, 9]
    words = torch.stack([torch.arange(12) < reads[time] for time, _ in order])
    new = words & torch.stack([torch.arange(12) >= fresh[time] for time, _ in order])
    scores = word_scores(words, new, 1.5)[None, None].repeat_interleave(size, 2)
    alone_scores = [torch.where(torch.arange(until) >= since, 1.5, 0.0) for until, since in zip(reads, fresh, strict=True)]
    sees = frame_mask(order, order)
    with torch.no_grad():
        before = [clean[time - 1] if time else None for time, _ in order]
        frames = embed_frames(model, [*clean, *copies], [time for time, _ in order], [True, True] + [False] * 4, before)
        out, _ = forward_frames(model, frames, torch.tensor([[0.0, 0.0, *sigmas]]), project_condition(model, states), scores, sees)
    for index, (time, _) in enumerate(order[2:]):
        mine = unpatchify(model, out[:, (index + 2) * size : (index + 3) * size], (4, 4))
        alone = oracle.block_causal(
            model, [*clean[:time], copies[index]], [0.0] * time + [sigmas[index]], [states[:, : reads[each]] for each in range(time + 1)],
            alone_scores[: time + 1],
        )  # fmt: skip
        assert (mine - alone).abs().max() < CLOSE


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_the_nucleus_is_that_of_the_whole_sorted_vocabulary(top_p, spread):
    chances = (torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread).softmax(-1)
    plain, order = chances.sort(descending=True)
    plain[plain.cumsum(-1) - plain >= top_p] = 0
    found, ids = nucleus(chances, top_p)
    wanted = int((plain > 0).sum())
    assert 0 < int((found > 0).sum()) == wanted
    assert torch.equal(found[:wanted], plain[:wanted]) and torch.equal(ids[:wanted], order[:wanted])
