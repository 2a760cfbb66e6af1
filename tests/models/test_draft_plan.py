"""Drafts of a general MLLM and a pipeline that edits: what the pipeline receives, and what is shown of them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.draft_plan import MOST_STROKES, NO_PLAN, read_plan
from duogen.engine import Engine
from duogen.events import AnswerBuilder, Done, Draft, ImageDone, ImageStarted, Notice, Thought
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from tests.support import public
from tests.support.pipelines import paint_noise, sources_of
from tests.support.tiny import END, script

SIDE = 64
STROKES = ["A green meadow.", "Add a white house.", "Add a red door."]
PROMPT = "a white house with a red door on a meadow"
WORDS = ("A house. <picture>", PROMPT, "</picture>")


def options(drafts: str = "on", **image) -> Options:
    text = TextOptions(temperature=1.0, top_p=1.0)
    return Options(1, text, ImageOptions(**{"steps": 2, "preview_every": 0, "drafts": drafts} | image))


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = public.qwen_edit(tmp_path_factory.mktemp("editor"))
    engine = Engine.open(folder, load=LoadOptions(device="cpu", precision="fp32", picture_side=SIDE))
    engine.pair.about = engine.painter.about = replace(engine.pair.about, most_sources=2)
    return engine


@pytest.fixture
def calls(editor, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(editor.painter, "_pipe_for", lambda sources: editor.pair.pipe)  # the one that is watched
    return paint_noise(editor, monkeypatch)


def prompts(calls: list[dict[str, Any]]) -> list[str]:
    return [call["prompt"] for call in calls]


def test_each_draft_is_an_edit_of_the_one_before(editor, calls, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, *WORDS, json.dumps(STROKES), END, " Done.", END)
    events = list(editor.answer(Conversation().say("user", "Draw a house."), options()))
    shown = [type(event) for event in events if isinstance(event, Draft | ImageStarted | ImageDone | Done)]
    assert shown == [Draft, Draft, Draft, ImageStarted, ImageDone, Done], events[-1]
    drafts = [event.image for event in events if isinstance(event, Draft)]
    assert prompts(calls) == STROKES == [each.alt for each in drafts]
    assert [[each.tobytes() for each in sources_of(call)] for call in calls] == [[], *[[each.picture.tobytes()] for each in drafts[:2]]]
    image = AnswerBuilder.from_events(events).images()[0]
    assert image.picture is drafts[-1].picture and image.alt == PROMPT and image.drafts == tuple(drafts)
    assert "".join(event.text for event in events if isinstance(event, Thought)).split("\n")[:-1] == STROKES
    assert events[-1].conversation.path()[-1].text() == "A house.  Done."
    assert len(editor.memory.slots) == len(editor.memory.frames.past) == 1 and editor.memory.frames.past[0] is image.picture
    script(monkeypatch, editor.tokens, *WORDS, END)
    later = list(editor.answer(events[-1].conversation.say("user", "Now at night."), options()))
    assert isinstance(later[-1], Done) and not any(isinstance(event, Draft) for event in later)
    assert calls[-1]["prompt"] == PROMPT and sources_of(calls[-1])[0].tobytes() == image.picture.tobytes(), (
        "it goes on from the picture, not from a draft"
    )


def test_paint_again_paints_the_same_drafts(editor, calls) -> None:
    said = Conversation().say("user", "Draw a house.").say("assistant", "A house.")
    events = list(editor.stream_image(said, options(), drafts=tuple(STROKES)))
    assert isinstance(events[-1], ImageDone) and prompts(calls) == STROKES
    assert [each.alt for each in events[-1].image.drafts] == STROKES and events[-1].image.alt == " ".join(STROKES)


@pytest.mark.parametrize("drafts", ["auto", "off"])
def test_without_the_option_there_are_none(editor, calls, drafts, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, *WORDS, END)
    *events, done = editor.answer(Conversation().say("user", "Draw a house."), options(drafts))
    assert isinstance(done, Done) and prompts(calls) == [PROMPT] and not any(isinstance(event, Draft) for event in events)


def test_a_change_of_a_picture_needs_no_drafts(editor, calls, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, *WORDS, END)
    *_, done = editor.answer(Conversation().say("user", PILImage.new("RGB", (SIDE, SIDE), "red"), "A door, please."), options())
    assert isinstance(done, Done) and prompts(calls) == [PROMPT]


def test_without_a_plan_the_picture_is_painted_at_once_and_one_sentence_says_so(editor, calls, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, *WORDS, "No idea.", END, END)
    events = list(editor.answer(Conversation().say("user", "Draw a house."), options()))
    assert isinstance(events[-1], Done) and prompts(calls) == [PROMPT]
    assert [event.message for event in events if isinstance(event, Notice)] == [NO_PLAN]


def test_a_stop_in_a_draft_leaves_no_draft_behind(editor, calls, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, *WORDS, json.dumps(STROKES), END, END)
    stop, events = threading.Event(), []
    for event in editor.answer(Conversation().say("user", "Draw a house."), options(), stop):
        events.append(event)
        if isinstance(event, Draft):
            stop.set()
    assert isinstance(events[-1], Done) and events[-1].stats.stopped == "user" and len(calls) == 2
    assert not editor.memory.slots and not editor.memory.frames.past and not events[-1].conversation.path()[-1].images()


@pytest.mark.parametrize(
    ("said", "plan"),
    [
        ('["one", "two"]', ["one", "two"]),
        ('Here it is: ```json\n["a  b", "", "c"]\n```', ["a b", "c"]),
        ('{"strokes": [{"number": 1, "stroke": "one"}, {"stroke": "two"}]}', ["one", "two"]),
        ('["one"]', []), ("no list", []), ("[1, 2, 3]", []), ("{}", []), ("", []),
    ],
)  # fmt: skip
def test_reading_a_plan(said: str, plan: list[str]) -> None:
    assert read_plan(said) == plan


def test_a_plan_that_is_too_long_keeps_its_words() -> None:
    long = [f"stroke {number}" for number in range(MOST_STROKES + 3)]
    plan = read_plan(json.dumps(long))
    assert len(plan) == MOST_STROKES and " ".join(plan) == " ".join(long)
