"""A conversation that is longer than its pair can read: the oldest turns are left out, and the rest is answered as if it were all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.engine import Engine
from duogen.events import Done, Failed, Notice
from duogen.models.pipeline import open_pair
from duogen.models.sequence import Packed, find_start
from duogen.options import ImageOptions, Options, TextOptions
from duogen.painters.cosmos import CosmosPainter
from tests.support import oracle
from tests.support.tiny import BOV, END, SIDE, script, tiny_pair

MOST = 400


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def engine(pair):
    made = Engine(pair)
    assert made.most_tokens == 4096 == pair.text_encoder.config.text_config.max_position_embeddings
    made.most_tokens = MOST
    return made


def options(most_images: int = 2, most_words: int = 60) -> Options:
    return Options(1, TextOptions(1.0, 1.0, most_words), ImageOptions(steps=2, preview_every=0, max_images=most_images))


def grey(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def long_talk(exchanges: int) -> Conversation:
    """Some 60 tokens an exchange, with a picture in every second one, and a question at the end."""
    said = Conversation()
    for index in range(exchanges):
        picture = [Image(grey(index))] if index % 2 else []
        said = said.say("user", f"Question {index}, please.", *picture).say("assistant", f"Answer {index} comes.")
    return said.say("user", "And a blue door?")


def read_turns(engine: Engine, path: list[Turn]) -> list[Turn]:
    """The turns that the engine has in its context, found by comparing ids from the end."""
    for start in range(len(path)):
        whole = engine.tokens.pack(path[start:])
        if engine.memory.context.packed.ids[: len(whole.ids)] == whole.ids:
            return path[start:]
    raise AssertionError("The context holds no end of this conversation.")


def same(mine: list, other: list) -> None:
    assert [type(part) for part in mine] == [type(part) for part in other]
    for one, two in zip(mine, other, strict=True):
        assert one == two if isinstance(one, str) else np.abs(one - two).max() <= 1


SAID = ("Step 1. A red", BOV, "then", BOV, "done", END)


@pytest.mark.parametrize("exchanges", [4, 9, 30])
def test_what_is_left_of_a_long_talk_is_answered_as_if_it_were_all(engine, monkeypatch, exchanges) -> None:
    conversation = long_talk(exchanges)
    script(monkeypatch, engine.tokens, *SAID)
    *events, done = engine.answer(conversation, options())
    assert isinstance(done, Done)
    path = conversation.path()
    kept = read_turns(engine, path)
    assert kept[-1] is path[-1] and kept[0].role == "user"
    notices = [event.message for event in events if isinstance(event, Notice)]
    left_out = len(path) - len(kept)
    assert (left_out > 0) == (exchanges > 4)
    assert notices == ([f"The pair reads 400 tokens at most, so the oldest messages ({left_out}) are left out."] if left_out else [])
    if notices:
        assert isinstance(events[0], Notice)
    script(monkeypatch, engine.tokens, *SAID)
    same(oracle.parts_of(done.conversation.path()[-1]), oracle.answer(engine.pair, kept, options()))
    assert done.stats.prompt_tokens == len(engine.tokens.pack(kept).ids) + len(engine.tokens.opening("assistant"))
    assert len(engine.memory.context.packed.ids) <= MOST
    assert len(engine.memory.frames.past) == len(engine.memory.slots) == sum(len(turn.images()) for turn in kept) + 2
    assert [slot.image for slot in engine.memory.slots[:-2]] == [image for turn in kept for image in turn.images()]
    assert engine.memory.context.cache.get_seq_length() == len(engine.memory.context.packed.ids)


def test_a_talk_that_grows_beyond_the_limit_is_read_as_a_fresh_engine_reads_it(engine, pair, monkeypatch) -> None:
    """The caches of earlier answers serve as long as the start stays, and every answer is the one without them."""
    conversation, encoded, starts = Conversation(), [], []
    for index in range(8):
        conversation = conversation.say("user", f"Question {index}, please.", *([grey(index)] if index % 3 == 0 else []))
        script(monkeypatch, engine.tokens, f"Step {index}", BOV, "and so on", END)
        *_, done = engine.answer(conversation, options(1))
        other = Engine(pair)
        other.most_tokens = MOST
        other.memory.said = dict(engine.memory.said)
        other.memory.said.pop(done.conversation.head)
        script(monkeypatch, engine.tokens, f"Step {index}", BOV, "and so on", END)
        *_, fresh = other.answer(conversation, options(1))
        assert done.stats.prompt_tokens == fresh.stats.prompt_tokens == fresh.stats.encoded_tokens <= MOST
        assert other.memory.context.packed.ids == engine.memory.context.packed.ids
        mine, its = (each.memory.context.logits.nan_to_num(neginf=0) for each in (engine, other))
        assert torch.allclose(mine, its, atol=0.05)  # of painted pictures a fresh engine knows the pixels, not the latents
        encoded.append(done.stats.encoded_tokens < done.stats.prompt_tokens / 2)
        starts.append(engine.memory.context.packed.ids[:20])
        conversation = done.conversation
    moves = [index for index in range(1, 8) if starts[index] != starts[index - 1]]
    assert 1 <= len(moves) <= 3, "the start moves, but seldom"
    assert all(encoded[index] for index in range(1, 8) if index not in moves)


def test_a_question_that_alone_is_too_long_is_refused(engine) -> None:
    conversation = long_talk(3).at(None).say("user", "word " * 500)
    tokens = len(engine.tokens.pack(conversation.path()).ids) + len(engine.tokens.opening("assistant"))
    (failed,) = engine.answer(conversation, options())
    assert isinstance(failed, Failed) and failed.conversation is conversation
    assert failed.message == f"This message has {tokens:,} tokens, and the pair reads 400 at most, answer included; make it shorter."
    assert not engine.memory.context.packed.ids


def test_a_long_question_lets_all_before_it_go_and_gets_the_answer_that_fits(engine, monkeypatch) -> None:
    conversation = long_talk(3).say("assistant", "Yes.").say("user", "word " * 60)
    script(monkeypatch, engine.tokens, *["abcdefghij"] * 40)
    notice, *_, done = engine.answer(conversation, options(most_words=500))
    assert isinstance(notice, Notice) and "oldest messages (8)" in notice.message
    assert done.stats.stopped == "max_context" and 0 < done.stats.text_tokens < 400
    assert len(engine.memory.context.packed.ids) == MOST
    assert read_turns(engine, conversation.path()) == conversation.path()[-1:]


def test_an_answer_with_many_pictures_ends_where_the_context_does(engine, monkeypatch) -> None:
    script(monkeypatch, engine.tokens, *["go", BOV] * 30)
    *_, done = engine.answer(Conversation().say("user", "Draw."), options(most_images=30))
    assert done.stats.stopped == "max_context" and 10 < done.stats.images <= engine.painter.most_frames
    assert len(engine.memory.context.packed.ids) <= MOST


def test_the_painters_frames_are_a_limit_too(engine, monkeypatch) -> None:
    monkeypatch.setattr(CosmosPainter, "most_frames", 4)
    engine.most_tokens = 4096
    conversation = Conversation()
    for index in range(4):
        conversation = conversation.say("user", "Look", Image(grey(index))).say("assistant", "Yes.")
    conversation = conversation.say("user", "Draw.")
    script(monkeypatch, engine.tokens, "Here", BOV, "and", BOV, "and", BOV, "and", BOV, END)
    notice, *_, done = engine.answer(conversation, options(most_images=8))
    assert notice.message == "The pair can follow 4 pictures at most, so the oldest messages (4) are left out."
    assert (done.stats.stopped, done.stats.images) == ("max_context", 2) and len(engine.memory.frames.past) == 4
    assert [slot.image for slot in engine.memory.slots][0] is conversation.path()[-5].images()[0]
    (failed,) = engine.answer(Conversation().say("user", "Look", *[grey(0)] * 5), options())
    assert failed.message == "This message has 5 pictures, and the pair can follow 4 at most; bring fewer."


def test_going_on_and_painting_again_leave_out_the_same(engine, monkeypatch) -> None:
    conversation = long_talk(9)
    script(monkeypatch, engine.tokens, *SAID)
    first, *_, done = engine.answer(conversation, options())
    head = done.conversation.path()[-1]
    begun = done.conversation.with_turn(Turn("assistant", head.parts[:1], parent=head.parent))
    notice, *_, again = engine.stream_image(begun, options())
    assert notice == first and again.image.picture.tobytes() == head.images()[0].picture.tobytes()
    script(monkeypatch, engine.tokens, BOV, "then", BOV, "done", END)
    notice, *_, more = engine.continue_answer(begun, options())
    assert notice == first
    assert [part.text for part in more.conversation.path()[-1].parts if isinstance(part, Text)] == ["Step 1. A red", "then", "done"]


def sized(*sizes: int) -> list[tuple[Packed, bool]]:
    return [(Packed([0] * size, [False] * size), index % 2 == 0) for index, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "start"),
    [
        ([10], 0),
        ([200], 0),  # nothing else can go; the engine refuses it
        ([30, 30, 40], 0),
        ([30, 30, 41], 2),
        ([30, 30, 60], 2),
        ([10, 10, 10, 10, 61], 4),  # more than half alone: nothing stands beside it
        ([10, 10, 10, 10, 10, 10, 41], 6),
        ([10, 10, 10, 10, 10, 10, 10, 10, 21], 6),
        ([90, 500, 5], 2),
    ],
)
def test_the_start_moves_by_whole_exchanges_until_half_is_free(sizes, start) -> None:
    assert find_start(sized(*sizes), 100, 9) == start


def test_the_start_stays_while_there_is_room() -> None:
    rng, starts, sizes = np.random.default_rng(0), [], []
    for _ in range(200):
        sizes += [int(rng.integers(1, 30)), int(rng.integers(1, 30))]
        start = find_start(sized(*sizes[:-1]), 100, 9)
        assert start % 2 == 0 and sum(sizes[start:-1]) <= 100
        starts.append(start)
    assert starts == sorted(starts) and len(set(starts)) < 140
