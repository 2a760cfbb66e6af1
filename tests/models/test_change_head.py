"""The change head: what it is fitted to, what it reads when a pair serves, and what the painter then keeps."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.models.pipeline import open_pair
from duogen.models.sequence import Packed, Tokens
from duogen.nn.change_head import CHANGE_HEAD, ChangeHead
from duogen.nn.vae import PatchVAE
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.masks import fit, to_pixels
from duogen.provenance import encode_picture
from duogen.sketchbook.tasks import draw_turns
from duogen.train import __main__ as commands
from duogen.train.change_head import (
    Change,
    ChangeReader,
    collate,
    fold_head,
    measure_head,
    narrow_head,
    sample_changes,
    train_head,
    widen_change,
)
from duogen.train.settings import DiTSettings
from duogen.train.states import Projection
from tests.models.test_caches import noise_picture, options
from tests.models.test_training import SETTINGS
from tests.support.tiny import BOV, END, SIDE, script, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair"), gate=True), "cpu", "fp32")


@pytest.fixture(scope="module")
def vae():
    """An autoencoder with as many places as the tiny MLLM has tokens for a picture."""
    torch.manual_seed(0)
    return PatchVAE(z_dim=8, patch_size=64, width=8, blocks=1, latents_mean=[0.0] * 8, latents_std=[0.5] * 8)


def make_changes(count: int = 40, places: int = 4, pictures: bool = False) -> list[Change]:
    """Changes whose words name the kind of place that moves: a rule that only words and places together obey.

    With `pictures`, a place that moves becomes grey where it is red, and where it is green it stays.
    """
    generator = torch.Generator().manual_seed(3)
    kinds, made = torch.eye(6), []
    for _ in range(count):
        seen = torch.randint(0, 6, (places,), generator=generator)
        wanted = seen[torch.randint(0, places, (1,), generator=generator)]
        moved = seen == wanted
        files = _draw_halves(moved, int(torch.randint(2, 7, (1,), generator=generator))) if pictures else None
        made.append(Change(kinds[seen], torch.cat([kinds[wanted], torch.zeros(1, 6)]), moved, files))
    return made


def _draw_halves(moved: torch.Tensor, edge: int) -> tuple[bytes, bytes]:
    """Before and after: 2 x 2 places of 8 x 8 pixels, red to the left of `edge` and green to the right of it."""
    before = np.zeros((16, 16, 3), np.uint8)
    before[..., 1] = 255
    before[:, [column for column in range(16) if column % 8 < edge]] = (255, 0, 0)
    where = moved.view(2, 2).repeat_interleave(8, 0).repeat_interleave(8, 1).numpy() & (before[..., 0] > 0)
    after = np.where(where[..., None], np.uint8(128), before)
    return encode_picture(PILImage.fromarray(before), "PNG", None), encode_picture(PILImage.fromarray(after), "PNG", None)


def test_a_head_learns_which_places_words_name():
    head = train_head(make_changes(200), 150, seed=0, log=lambda words: None)
    assert measure_head(head, make_changes(230)[200:])["places"] > 0.95


def test_a_head_learns_which_pixels_of_the_places_change():
    head = train_head(make_changes(200, pictures=True), 200, seed=0, log=lambda words: None)
    figures = measure_head(head, make_changes(230, pictures=True)[200:])
    assert figures["changed pixels"] > 0.9 and figures["kept pixels"] > 0.9 and figures["places"] > 0.95


def test_each_place_marks_its_own_pixels():
    """The fast path against a loop over pixels."""
    torch.manual_seed(0)
    head, pictures = ChangeHead(6, (2, 3), pixels=4).eval(), torch.rand(1, 3, 10, 12) * 2 - 1
    read = head.read(torch.randn(1, 6, 6), torch.randn(1, 2, 6), torch.tensor([2]))
    marked, queries = head.mark_pixels(read, pictures)[0], head.to_query(read)[0]
    within = torch.stack([torch.linspace(-1, 1, 5)[:, None].expand(5, 4), torch.linspace(-1, 1, 4).expand(5, 4)]).repeat(1, 2, 3)
    found = head.stem(torch.cat([pictures, within[None]], 1))[0]
    for row in range(10):
        for column in range(12):
            query = queries[row // 5 * 3 + column // 4]
            assert torch.allclose(marked[row, column], query[0] + query[1:] @ found[:, row, column], atol=1e-5)


def test_padding_changes_nothing():
    head, (one, other) = train_head(make_changes(8), 2, seed=0), make_changes(2)
    longer = replace(other, words=torch.cat([other.words, torch.ones(5, 6)]))
    alone = head(*collate([one])[:3])
    assert torch.allclose(head(*collate([one, longer])[:3])[:1], alone, atol=1e-5)


def test_a_folded_head_says_of_whole_states_what_it_said_of_projected_ones():
    states = torch.randn(100, 10, generator=torch.Generator().manual_seed(1)) + 3
    projection = Projection.fit([states], 6)
    head = train_head(make_changes(8), 2, seed=0)
    places, words = states[:4], states[4:9]
    said = head(projection.project(places)[None], projection.project(words)[None], torch.tensor([5]))
    folded = fold_head(head, projection)
    assert folded.config.channels == 10 and torch.allclose(folded(places[None], words[None], torch.tensor([5])), said, atol=1e-4)


def test_a_fit_begins_with_an_earlier_head():
    """Of places alone, and of whole states; what it did not know is new."""
    states = torch.randn(100, 10, generator=torch.Generator().manual_seed(1)) + 3
    projection, early = Projection.fit([states], 6), train_head(make_changes(8), 2, seed=0)
    narrow = narrow_head(fold_head(early, projection), projection)
    assert all(torch.allclose(narrow.state_dict()[name], weight, atol=1e-4) for name, weight in early.state_dict().items())
    later = train_head(make_changes(8, pictures=True), 0, seed=1, old=narrow).state_dict()
    assert all(torch.equal(later[name], weight) for name, weight in narrow.state_dict().items()) and len(later) > len(early.state_dict())


def test_what_comes_anew_changes_all_of_the_ground_under_it():
    """2 x 2 places of 8 x 8 pixels: on a sky of two near shades a window comes anew, a wall beside it changes its colour."""
    before = torch.ones(3, 16, 16)
    before[:, 4:] -= 2 / 255  # a shade below the first, but one colour
    before[:, :, 12:] = -1.0  # the wall
    moved = torch.zeros(16, 16, dtype=torch.bool)
    moved[2:6, 2:6] = True
    moved[:8, 12:] = True
    found, expected = widen_change(before, moved, 2), torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, :8] = True  # the place with the window
    expected[:8, 12:] = True  # of the next place the wall alone
    assert torch.equal(found, expected)
    speck = torch.zeros(16, 16, dtype=torch.bool)
    speck[9, 9] = True  # an edge that was drawn a little otherwise: a sixty-fourth of its colour
    assert torch.equal(widen_change(before, speck, 2), speck)


def test_fit_change_head_reads_what_serving_reads(tmp_path, monkeypatch, capsys, pair, vae):
    tokens = Tokens(pair.tokenizer, pair.image_processor)
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"dit": {"steps": 1, "learning_rate": 0.001, "settings": SETTINGS | {"layers": [1, 2]}}}))
    monkeypatch.setattr(commands, "CHANGE_DIALOGUES", 12)
    monkeypatch.setattr(commands, "CHANGE_STEPS", 20)
    monkeypatch.setattr(commands, "open_base_mllm", lambda: (pair.text_encoder, tokens))
    monkeypatch.setattr(commands, "load_trained_mllm", lambda mllm, *given: mllm)
    monkeypatch.setattr("duogen.train.vae.load_vae", lambda runs, source: (vae, True))
    assert commands.main(["fit-change-head", "--recipe", str(file), "--runs", str(tmp_path), "--threads", "1"]) == 0
    assert "of the places right, all of a picture in" in capsys.readouterr().out
    head = ChangeHead.from_pretrained(tmp_path / "small" / CHANGE_HEAD)
    reader, rng = ChangeReader(pair.text_encoder, tokens, [1, 2], vae), random.Random(6)
    settings = DiTSettings.from_json(SETTINGS)
    dialogue = next(each for each in (sample_changes(rng, settings) for _ in range(50)) if reader.read(each))
    changes = reader.read(dialogue)
    engine, packed = Engine(pair), tokens.pack(draw_turns(dialogue))
    engine.mllm.layers = [1, 2]
    engine.mllm.prefill(engine.memory.context, packed)
    slot = next(slot for slot in packed.slots if len(changes[0].words) == slot.bov - packed.last_segment(slot.bov) > 0)
    served, segment = engine.memory.context.condition(slot.bov), packed.last_segment(slot.bov)
    assert (served[0, segment:].flip(0) - changes[0].words).abs().max() < 1e-3
    assert (served[0, segment - 17 : segment - 1] - changes[0].places).abs().max() < 1e-3
    assert head(*collate(changes)[:3]).shape == (len(changes), 16)


def test_a_head_of_another_grid_is_refused(pair):
    tokens = Tokens(pair.tokenizer, pair.image_processor)
    finer = PatchVAE(z_dim=8, patch_size=32, width=8, blocks=1, latents_mean=[0.0] * 8, latents_std=[0.5] * 8)
    reader = ChangeReader(pair.text_encoder, tokens, [1, 2], finer)
    assert reader.read(sample_changes(random.Random(6), DiTSettings.from_json(SETTINGS))) == []


@pytest.mark.parametrize("pixels", [0, 4])
@pytest.mark.parametrize("kept", [(), (0, 5, 15), tuple(range(16))])
def test_the_painter_keeps_the_places_that_the_head_keeps(tmp_path, kept, pixels):
    """The head is saved with a pair and opened with it; a mask of the user counts more."""
    whole = open_pair(tiny_pair(tmp_path / "whole", gate=True), "cpu", "fp32")
    whole.about = replace(whole.about, image_size=(SIDE, SIDE), copy_below=-1e9, keep_below=0.0)  # the gate alone copies nothing
    tokens, packed = Engine(whole).tokens, Packed()
    packed.add(tokens.text("red"), False)
    tokens.add_image(packed, Conversation().say("user", noise_picture(1)).path()[0].images()[0], False)
    packed.add(tokens.text("and a blue door"), True)
    context = Engine(whole)
    context.mllm.prefill(context.memory.context, packed)
    states, segment = context.memory.context.condition(), packed.last_segment(len(packed.ids))
    whole.register_modules(change_head=make_head(states.shape[-1], kept, pixels))
    whole.save_pretrained(tmp_path / "saved")
    painter, frames = Engine(open_pair(tmp_path / "saved", "cpu", "fp32")).painter, Frames.empty()
    before = painter.encode(noise_picture(1))
    slot = packed.slots[0]
    painter.remember(frames, before, states[:, : slot.bov], packed.last_segment(slot.bov))
    *_, painted = painter.paint(frames, PaintRequest(states, segment, options(0).image, 7))
    assert painted.stays.shape == ((1, 1, SIDE, SIDE) if pixels else (1, 1, 4, 4))
    places = painted.stays[0, 0].float().unflatten(1, (4, -1)).unflatten(0, (4, -1)).mean((1, 3)).flatten()
    assert places.nonzero().flatten().tolist() == list(kept) and set(places.tolist()) <= {0.0, 1.0}
    assert (painted.latents == before).all(1).flatten().nonzero().flatten().tolist() == list(kept)
    *_, painted = painter.paint(frames, PaintRequest(states, segment, options(0).image, 7, is_step=True))
    assert not painted.stays.any()
    mask = painter.prepare_inpaint(noise_picture(1), PILImage.new("L", (SIDE, SIDE), 255))
    *_, painted = painter.paint(frames, PaintRequest(states, segment, options(0).image, 7, mask))
    assert not painted.stays.any()


def make_head(channels: int, kept: tuple[int, ...], pixels: int = 0) -> ChangeHead:
    """A head that keeps these places of 4 x 4 whatever it reads."""
    head = ChangeHead(channels, (4, 4), layers=1, width=8, heads=1, pixels=pixels)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.place_table[:, 0] = 1
        head.place_table[list(kept), 0] = -1
        head.to_logit.weight[0, 0] = 1
        if pixels:
            head.to_query.weight[0, 0] = 1
    return head.eval()


def test_an_answer_keeps_the_pixels_that_the_head_keeps(tmp_path, monkeypatch):
    """Of a brought picture that is larger than what the pair paints, too; the next picture goes on from the one that is shown."""
    pair = open_pair(tiny_pair(tmp_path, gate=True), "cpu", "fp32")
    pair.about = replace(pair.about, image_size=(SIDE, SIDE), copy_below=-1e9, keep_below=0.0)
    engine = Engine(pair)
    head = make_head(len(engine.mllm.layers) * pair.text_encoder.config.text_config.hidden_size, (), 4)
    with torch.no_grad():  # the left half of every place stays
        head.stem[0].weight[0, 4, 1, 1] = 5  # 4: from left to right in the place
        head.stem[2].weight[0, 0, 1, 1] = head.stem[4].weight[0, 0, 0, 0] = 1
        head.to_query.weight.zero_()
        head.to_query.bias[:2] = torch.tensor([-0.1, 1.0])
    pair.register_modules(change_head=head)
    brought = noise_picture(1).resize((2 * SIDE, 2 * SIDE), PILImage.Resampling.NEAREST)
    script(monkeypatch, engine.tokens, "Here", BOV, END)
    seen, mark = [], ChangeHead.mark_pixels
    monkeypatch.setattr(ChangeHead, "mark_pixels", lambda self, read, pictures: seen.append(pictures) or mark(self, read, pictures))
    *_, done = engine.answer(Conversation().say("user", "Change it", brought), options(2))
    (image,) = done.conversation.path()[-1].images()
    assert torch.equal(seen[0], to_pixels([fit(brought, (SIDE, SIDE))]))  # as it is shown, not as the autoencoder keeps it
    assert image.picture.size == brought.size
    same = (np.asarray(image.picture) == np.asarray(brought)).all(-1).reshape(2 * SIDE, 4, 2, SIDE // 4)
    assert same[:, :, 0].all() and same[:, :, 1].mean() < 0.1
    assert torch.allclose(engine.memory.frames.past[-1], engine.painter.encode(image.picture), atol=1e-5)
