"""Several ideas for one wish: pictures of their own words, none of which is painted after another."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from duogen.conversation import Conversation, Image, Text
from duogen.engine import Engine
from duogen.events import AnswerBuilder, Done, Failed, Ideas, ImageDone, ImageStarted, TextDelta
from duogen.models.pipeline import open_pair
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from tests.support import public
from tests.support.tiny import BOV, END, script, tiny_pair

LINES = ("a red house", "a blue house", "a boat")
SAID = (LINES[0], BOV, " A red  house.", BOV, LINES[1], BOV, LINES[2], BOV)  # the second says what the first said, and is asked again


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def engine(pair) -> Engine:
    return Engine(pair)


def options(**image) -> Options:
    return Options(1, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(**{"steps": 2, "preview_every": 0} | image))


def ask(words: str = "Give me three ideas for a house") -> Conversation:
    return Conversation().say("user", "Draw a tree").say("assistant", "A tree.").say("user", words)


def spy(engine: Engine, monkeypatch) -> list[tuple[int, torch.Tensor]]:
    """How many frames the painter saw before each picture, and what it read."""
    asked: list[tuple[int, torch.Tensor]] = []
    paint = engine.painter.paint

    def note(frames, request):
        asked.append((len(frames.past), request.condition))
        return paint(frames, request)

    monkeypatch.setattr(engine.painter, "paint", note)
    return asked


def lines(parts) -> list[str]:
    return [part.text.strip() for part in parts if isinstance(part, Text)]


def test_each_idea_is_painted_as_a_single_picture(engine, monkeypatch):
    """The slow way: each idea's words in a conversation of their own."""
    painted = spy(engine, monkeypatch)
    script(monkeypatch, engine.tokens, *SAID)
    events = list(engine.answer(ask(), options()))
    answer = AnswerBuilder.from_events(events)
    kinds = [type(event) for event in events if type(event) in (Ideas, ImageStarted, ImageDone, Done)]
    assert kinds == [Ideas, *[ImageStarted, ImageDone] * 3, Done] and answer.ideas
    assert [event.index for event in events if isinstance(event, ImageStarted | ImageDone)] == [0, 0, 1, 1, 2, 2]
    turn = answer.conversation.path()[-1]
    assert turn.ideas and lines(turn.parts) == list(LINES) and len({image.seed for image in turn.images()}) == 3
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == turn.text() and answer.stats.images == 3
    slow = Engine(engine.pair)
    wanted = spy(slow, monkeypatch)
    for line in LINES:
        slow.generate_image(Conversation().say("user", "Draw a house.").say("assistant", line), options())
    assert [frames for frames, _ in painted] == [frames for frames, _ in wanted] == [0, 0, 0]
    for (_, read), (_, plain) in zip(painted, wanted, strict=True):
        assert torch.allclose(read, plain, atol=1e-4)
    script(monkeypatch, engine.tokens, "Fine.", END)
    *_, done = engine.answer(answer.conversation.say("user", "Make the second one red."), options())
    assert isinstance(done, Done) and len(engine.memory.slots) == 3


def test_an_idea_is_painted_again_by_its_own_words(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.answer(ask(), options())
    turn = done.conversation.path()[-1]
    painted = spy(engine, monkeypatch)
    again = engine.generate_image(done.conversation.with_turn(replace(turn, parts=turn.before(3))), options())
    assert painted[0][0] == 0 and again.alt == LINES[1]
    wanted = spy(slow := Engine(engine.pair), monkeypatch)
    slow.generate_image(Conversation().say("user", "Draw a house.").say("assistant", LINES[1]), options())
    assert torch.allclose(painted[0][1], wanted[0][1], atol=1e-4)


def test_an_answer_that_was_stopped_goes_on_with_the_ideas_that_are_missing(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    stop, events = threading.Event(), []
    for event in engine.answer(ask(), options(), stop):
        events.append(event)
        if isinstance(event, ImageDone):
            stop.set()
    assert events[-1].stats.stopped == "user" and lines(events[-1].conversation.path()[-1].parts) == [LINES[0]]
    script(monkeypatch, engine.tokens, *SAID)
    *_, done = engine.continue_answer(events[-1].conversation, options())
    assert lines(done.conversation.path()[-1].parts) == list(LINES) and done.conversation.path()[-1].ideas


def test_a_pair_that_answers_without_a_picture_answers_as_ever(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "No.", END, "A pie.", END)
    events = list(engine.answer(ask("Give me three ideas for dinner"), options()))
    assert not any(isinstance(event, Ideas) for event in events)
    turn = events[-1].conversation.path()[-1]
    assert not turn.ideas and turn.text() == "A pie."


def test_ideas_before_a_failure_stay(engine, monkeypatch):
    script(monkeypatch, engine.tokens, *SAID)
    paint, count = engine.painter.paint, iter(range(9))

    def fail(*given):
        if next(count):
            raise RuntimeError("no kernel")
        return paint(*given)

    monkeypatch.setattr(engine.painter, "paint", fail)
    *_, failed = engine.answer(ask(), options())
    assert isinstance(failed, Failed) and "no kernel" in failed.message
    assert failed.conversation.path()[-1].ideas and lines(failed.conversation.path()[-1].parts) == [LINES[0]]


def test_an_untrained_mllm_is_asked_for_one_scene_after_the_other(tmp_path, monkeypatch):
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=64)
    engine = Engine.open(public.klein(tmp_path / "klein"), mllm=public.qwen3_mllm(tmp_path / "mllm"), load=load)
    asked: list[str] = []
    pack = engine._prompt

    def note(path, begun, options):
        asked.append(path[-1].text())
        return pack(path, begun, options)

    monkeypatch.setattr(engine, "_prompt", note)
    script(monkeypatch, engine.tokens, "One.", *_wish(LINES[0]), *_wish(LINES[0]), *_wish(LINES[1]))
    *_, done = engine.answer(ask("Give me 2 ideas for a house"), options())
    first, image, second, other = done.conversation.path()[-1].parts
    assert isinstance(image, Image) and isinstance(other, Image)
    assert (first.text, image.alt, second.text.strip(), other.alt) == ("One.", LINES[0], LINES[1], LINES[1])
    assert len(asked) == 3 and asked[1] == asked[2]
    assert all("Give me 2 ideas for a house" in words for words in asked)
    assert "first of them" in asked[0] and f"- {LINES[0]}" in asked[1]


def _wish(words: str) -> tuple[str, str, str]:
    return ("<picture>", words, "</picture>")
