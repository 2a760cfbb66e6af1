"""Visual drafts: hidden pictures on the way to the one that is shown."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from duogen.conversation import Conversation, Image, Text, load_conversation, save_conversation
from duogen.engine import Engine
from duogen.events import AnswerBuilder, Done, Draft, Failed, ImageDone, ImageStarted, TextDelta, Thought
from duogen.models import thinking
from duogen.models.pipeline import open_pair
from duogen.options import ImageOptions, Options, TextOptions
from duogen.painters.base import PaintRequest
from tests.support.tiny import BOV, END, script, tiny_pair

STEPS = ("Step 1. walls \n", "Step 2. a door \n")
WORDS = "a red house"
SAID = (STEPS[0], BOV, STEPS[1], BOV, "</think>", WORDS, END)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def engine(pair, monkeypatch):
    monkeypatch.setattr(pair, "about", replace(pair.about, draws_drafts=True))
    return Engine(pair)


def options(drafts: str = "on", seed: int = 1, **image) -> Options:
    words = TextOptions(temperature=1.0, top_p=1.0)
    return Options(seed, words, ImageOptions(**{"steps": 2, "preview_every": 0, "drafts": drafts} | image))


def ask(words: str = "Draw a red house.") -> Conversation:
    return Conversation().say("user", words)


def words_of(drafts: tuple[Image, ...]) -> tuple[str, ...]:
    return tuple(each.alt for each in drafts)


def decode(engine: Engine) -> str:
    return engine.pair.tokenizer.decode(engine.memory.context.packed.ids)


def test_the_last_draft_is_the_picture_and_the_words_come_before_it(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    events = list(engine.answer(ask(), options()))
    kinds = [type(event) for event in events]
    shown = [kind for kind in kinds if kind not in (Thought, TextDelta)]
    assert shown == [Draft, Draft, ImageStarted, ImageDone, Done] and kinds.index(TextDelta) > kinds.index(Draft)
    assert "".join(event.text for event in events if isinstance(event, Thought)) == "".join(STEPS)
    drafts = [event for event in events if isinstance(event, Draft)]
    assert [draft.number for draft in drafts] == [1, 2] and drafts[0].image.picture.tobytes() != drafts[1].image.picture.tobytes()
    words, image = events[-1].conversation.path()[-1].parts
    assert isinstance(words, Text) and words.text == WORDS and isinstance(image, Image)
    assert image.picture.tobytes() == drafts[1].image.picture.tobytes() and words_of(image.drafts) == STEPS and image.alt == WORDS
    assert [each.picture for each in image.drafts] == [each.image.picture for each in drafts]
    assert events[-1].stats.images == 1 and events[-1].stats.stopped == "end"


def test_a_builder_shows_drafts_as_a_picture_in_the_making(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    answer, pending = AnswerBuilder(), []
    for event in engine.answer(ask(), options()):
        answer.take(event)
        if isinstance(event, Draft):
            assert answer.pending is not None and answer.pending.preview is event.image.picture
            pending.append(answer.pending.drafts)
    assert pending == [1, 2] and answer.pending is None and len(answer.images()) == 1


def test_drafts_leave_the_context_with_their_answer(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(ask(), options())
    assert len(engine.memory.slots) == 2 and decode(engine).count("Step") == 2
    script(monkeypatch, engine.tokens, "Fine.", END)
    *_, more = engine.answer(done.conversation.say("user", "And now?"), options("off"))
    assert isinstance(more, Done) and len(engine.memory.slots) == 1 and "Step" not in decode(engine)
    other = Engine(engine.pair)
    script(monkeypatch, other.tokens, "Fine.", END)
    *_, fresh = other.answer(done.conversation.say("user", "And now?"), options("off"))
    assert fresh.stats.prompt_tokens == more.stats.prompt_tokens and decode(other) == decode(engine)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_picture_is_painted_again_by_the_words_of_its_drafts(engine, monkeypatch, seed):
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(ask(), options())
    words, image = done.conversation.path()[-1].parts
    begun = ask().say("assistant", words)
    *_, again = engine.stream_image(begun, options(seed=seed), drafts=words_of(image.drafts))
    assert isinstance(again, ImageDone) and words_of(again.image.drafts) == STEPS and again.image.alt == WORDS
    assert (again.image.picture.tobytes() == image.picture.tobytes()) == (seed == 1)


def spy(engine: Engine, monkeypatch) -> list[tuple[int, PaintRequest]]:
    """What the painter is asked for: the number of frames before, and the request."""
    asked: list[tuple[int, PaintRequest]] = []
    paint = engine.painter.paint

    def note(frames, request):
        asked.append((len(frames.past), request))
        return paint(frames, request)

    monkeypatch.setattr(engine.painter, "paint", note)
    return asked


def test_each_draft_is_painted_as_the_step_of_a_guide(engine, monkeypatch):
    """The slow way: an answer whose words and pictures stand in the conversation, painted picture by picture."""
    asked = spy(engine, monkeypatch)
    script(monkeypatch, engine.tokens, *SAID)
    drafts = [event.image.picture for event in engine.answer(ask(), options()) if isinstance(event, Draft)]
    slow = Engine(engine.pair)
    wanted, parts = spy(slow, monkeypatch), []
    for words, draft in zip((thinking.DRAFTING + STEPS[0], STEPS[1]), drafts, strict=True):
        parts.append(words)
        slow.generate_image(ask().say("assistant", *parts), options("off"))
        parts.append(draft)
    assert [count for count, _ in asked] == [count for count, _ in wanted] == [0, 1]
    for (_, fast), (_, plain) in zip(asked, wanted, strict=True):
        assert fast.segment == plain.segment and torch.allclose(fast.condition, plain.condition, atol=1e-4)


def test_off_and_auto_leave_the_choice_where_it_belongs(engine, monkeypatch):
    """With "off" the answer cannot begin with drafts; with "auto" the MLLM decides: an untaught one does not."""
    for drafts in ("off", "auto"):
        script(monkeypatch, engine.tokens, WORDS, BOV, END)
        events = list(engine.answer(ask(), options(drafts)))
        assert not any(isinstance(event, Draft | Thought) for event in events) and events[-1].stats.images == 1
    mark = engine.tokens.text(thinking.DRAFTING)[0]
    script(monkeypatch, engine.tokens, *SAID)
    read = engine._read_prompt

    def eager(packed):
        encoded = read(packed)
        engine.memory.context.logits[:] = 0.0
        engine.memory.context.logits[mark] = 50.0
        return encoded

    monkeypatch.setattr(engine, "_read_prompt", eager)
    assert sum(isinstance(event, Draft) for event in engine.answer(ask(), options("auto"))) == 2


@pytest.mark.parametrize("said", [(STEPS[0], BOV, END), (STEPS[0], BOV, "</think>", END), (*[STEPS[0], BOV] * 30, END)])
def test_drafts_that_end_early_still_give_a_picture(engine, monkeypatch, said):
    script(monkeypatch, engine.tokens, *said, END)
    events = list(engine.answer(ask(), options()))
    assert isinstance(events[-1], Done) and events[-1].stats.images == 1
    assert sum(isinstance(event, Draft) for event in events) == min(said.count(BOV), thinking.MOST_DRAFTS)


def test_stop_between_drafts_shows_none_of_them(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    stop, events = threading.Event(), []
    for event in engine.answer(ask(), options(), stop):
        events.append(event)
        if isinstance(event, Draft):
            stop.set()
    assert sum(isinstance(event, Draft) for event in events) == 1 and not any(isinstance(event, ImageDone) for event in events)
    assert isinstance(events[-1], Done) and events[-1].stats.stopped == "user"


def test_a_failed_draft_fails_the_answer_in_one_sentence(engine, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel")

    script(monkeypatch, engine.tokens, *SAID)
    monkeypatch.setattr(engine.painter, "paint", fail)
    *_, failed = engine.answer(ask(), options())
    assert isinstance(failed, Failed) and "no kernel" in failed.message and failed.conversation.path()[-1].role == "user"


def test_drafts_are_kept_on_disk(engine, monkeypatch, tmp_path):
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(ask(), options())
    save_conversation(done.conversation, tmp_path)
    for lazily in (False, True):
        (kept,) = load_conversation(tmp_path, lazily).path()[-1].images()
        (made,) = done.conversation.path()[-1].images()
        assert kept == made and [each.picture.tobytes() for each in kept.drafts] == [each.picture.tobytes() for each in made.drafts]
    file = tmp_path / "conversation.json"
    file.write_text(file.read_text().replace('"drafts": [', '"drafts": [{"type": "image", "file": 5}, '))
    with pytest.raises(ValueError, match="the name of a picture is of the type int"):
        load_conversation(tmp_path)
