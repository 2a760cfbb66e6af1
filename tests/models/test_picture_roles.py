"""What the models receive for pictures with roles and for "@1": wording and order of a diffusers pipeline, frames of the bundled pair."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Reference
from duogen.engine import TOO_FEW, Engine
from duogen.events import Done, Notice
from duogen.models.pipeline import open_pair
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.provenance import Origin
from tests.support import public
from tests.support.tiny import END, script, tiny_pair

SIDE = 64
OPTIONS = Options(1, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(steps=2, preview_every=0))
MAKERS = {"qwen": public.qwen_edit, "klein": public.klein, "kontext": public.kontext, "longcat": public.longcat_edit}


def noise(seed: int, role: str = "") -> Image:
    return Image(PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)), role=role)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a checkpoint once."""
    home = tmp_path_factory.mktemp("roles")
    return functools.cache(lambda name: (MAKERS | {"mllm": public.qwen3_mllm})[name](home / name))


def watch_pipeline(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the pipeline is called with; its picture is black, so it need not run."""
    calls: list[dict] = []
    kind = type(engine.pair.pipe)

    @functools.wraps(kind.__call__)
    def call(self, **given):
        calls.append(given)
        return SimpleNamespace(images=[PILImage.new("RGB", (given.get("width", SIDE), given.get("height", SIDE)))])

    assert "prompt" in inspect.signature(call).parameters
    monkeypatch.setattr(kind, "__call__", call)
    return calls


def open_public(folders: Callable[[str], Path], name: str, most: int) -> Engine:
    mllm = folders("mllm") if name in ("klein", "kontext") else None
    engine = Engine.open(folders(name), mllm=mllm, load=LoadOptions(device="cpu", precision="fp32", picture_side=SIDE))
    engine.pair.about = engine.painter.about = replace(engine.pair.about, most_sources=most)
    return engine


@pytest.mark.parametrize(
    ("name", "most", "prompt", "order"),
    [
        ("qwen", 3, "the boat of Picture 2 in Picture 1, by another image", [2, 3, 1]),
        ("klein", 4, "the boat of image 2 in image 1, by another image", [2, 3, 1]),
        ("kontext", 1, "the boat of another image in the image, by another image", [2]),
        ("longcat", 1, "the boat of another image in the image, by another image", [2]),
    ],
)
def test_a_pipeline_gets_the_source_first_and_its_own_wording(folders, name, most, prompt, order, monkeypatch) -> None:
    engine = open_public(folders, name, most)
    calls = watch_pipeline(engine, monkeypatch)
    pictures = {1: noise(1), 2: noise(2, "source"), 3: noise(3, "reference")}
    asked = Conversation().say("user", pictures[1], "Look.").say("assistant", "Nice.")
    asked = asked.say("user", pictures[3], pictures[2], "The boat of @1 into @2.")  # numbers of the message: @3 and @2 of the conversation
    script(monkeypatch, engine.tokens, "<picture>", "the boat of @2 in @3, by @9", "</picture>", END)
    events = list(engine.answer(asked, OPTIONS))
    assert isinstance(events[-1], Done), events[-1]
    given = calls[0]["image"]
    shown = [given] if isinstance(given, PILImage.Image) else given
    assert [each.tobytes() for each in shown] == [pictures[number].picture.tobytes() for number in order]
    assert calls[0]["prompt"] == prompt
    told = [event.message for event in events if isinstance(event, Notice)]
    assert told == [TOO_FEW.format(most=1)] * (most == 1)
    read = engine.pair.tokenizer.decode(engine.memory.context.packed.ids)
    assert "The boat of @2 into @3. (Keep the looks of @2. Keep the pixels of @3.)" in read


def test_without_roles_and_marks_a_pipeline_gets_what_it_always_got(folders, monkeypatch) -> None:
    engine = open_public(folders, "qwen", 3)
    calls, pictures = watch_pipeline(engine, monkeypatch), [noise(1), noise(2)]
    script(monkeypatch, engine.tokens, "<picture>", "a boat", "</picture>", END)
    *_, done = engine.answer(Conversation().say("user", *pictures, "Both."), OPTIONS)
    assert isinstance(done, Done) and calls[0]["prompt"] == "a boat"
    assert [each.tobytes() for each in calls[0]["image"]] == [each.picture.tobytes() for each in reversed(pictures)]
    assert "(Keep" not in engine.pair.tokenizer.decode(engine.memory.context.packed.ids)


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A tiny pair whose copy gate copies every place, and whose scene head sees a new scene before each picture."""
    pair = open_pair(tiny_pair(tmp_path_factory.mktemp("pair"), gate=True), "cpu", "fp32")
    pair.about = replace(pair.about, copy_below=math.inf, tuned=True)
    pair.register_modules(scene_head=None)
    pair.scene_head = lambda state: torch.ones(1)
    return Engine(pair)


def paint(engine: Engine, said: Conversation) -> Image:
    return engine.generate_image(said.say("assistant", "Here:"), OPTIONS)


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        (("source", "reference"), 0),
        (("reference", "source"), 1),
        (("source", ""), 0),
        (("", "reference"), 0),
        (("reference", ""), 1),
        (("reference", "reference"), None),
        (("", ""), None),  # as ever: the scene head says that a new scene begins
    ],
)
def test_the_sources_pixels_are_kept_and_swapped_roles_keep_the_others(copier, roles, kept) -> None:
    pictures = [noise(seed, role) for seed, role in enumerate(roles)]
    made = paint(copier, Conversation().say("user", *pictures, "Put the boat into it."))
    same = [each.picture.tobytes() == made.picture.tobytes() for each in pictures]
    assert same == [index == kept for index in range(2)]
    assert made.origin is (Origin.PAINTED if kept is None else Origin.CHANGED)
    seen = copier.memory.frames.scenes[-1].frame  # of the painted one
    assert seen == (2 if roles == ("", "") else 0), "the references are in its scene"


def test_the_same_pictures_for_something_else_are_read_again(copier) -> None:
    one, other = noise(5), noise(6)
    asked = [(replace(one, role="reference"), replace(other, role=role)) for role in ("source", "reference", "source")]
    made = [paint(copier, Conversation().say("user", *pair, "Go.")).picture.tobytes() for pair in asked]
    assert made[0] == made[2] == other.picture.tobytes() != made[1]


def test_a_mark_calls_up_an_earlier_picture(copier) -> None:
    first, second = noise(7), noise(8)
    asked = Conversation().say("user", first, "A.").say("assistant", "B.").say("user", second, "C.").say("assistant", "D.")
    made = paint(copier, asked.say("user", "Make the roof of @1 red."))
    assert made.picture.tobytes() == first.picture.tobytes()
    assert "Make the roof of picture 1 red." in copier.pair.tokenizer.decode(copier.memory.context.packed.ids)
    # The message has one picture, so "@2" is the second of the conversation.
    made = paint(copier, asked.say("user", noise(9, "reference"), "The boat of @1 into @2."))
    assert made.picture.tobytes() == second.picture.tobytes()
    assert "The boat of picture 1 into picture 2." in copier.pair.tokenizer.decode(copier.memory.context.packed.ids)


def test_saved_references_have_the_numbers_of_the_conversation(folders, monkeypatch) -> None:
    engine = open_public(folders, "qwen", 3)
    watch_pipeline(engine, monkeypatch)
    boat = replace(noise(2, "reference"), reference=Reference("boat", "thing", "red"))
    asked = Conversation().say("user", noise(1), "Look.").say("assistant", "Nice.").say("user", boat, "Draw @boat beside @1")
    script(monkeypatch, engine.tokens, "Well.", END)
    *_, done = engine.answer(asked, OPTIONS)
    read = engine.pair.tokenizer.decode(engine.memory.context.packed.ids)
    assert isinstance(done, Done) and "Draw boat (red, see @2) beside @2 (Keep the looks of @2.)" in read


def test_a_change_by_example_is_said_in_words_and_painted_with_all_three_in_sight(folders, monkeypatch) -> None:
    engine = open_public(folders, "qwen", 3)
    calls, pictures = watch_pipeline(engine, monkeypatch), [noise(1, "reference"), noise(2, "reference"), noise(3, "source")]
    script(monkeypatch, engine.tokens, "The roof turned red.", '<picture from="3">', "@3 with a red roof, as in @2", "</picture>", END)
    asked = Conversation().say("user", *pictures, "Do to @3 what was done from @1 to @2.")
    *_, done = engine.answer(asked, OPTIONS)
    assert isinstance(done, Done) and done.conversation.path()[-1].text() == "The roof turned red."
    assert calls[0]["prompt"] == "Picture 1 with a red roof, as in Picture 3"
    assert [each.tobytes() for each in calls[0]["image"]] == [pictures[at].picture.tobytes() for at in (2, 0, 1)]
    assert "first say what changed there" in engine.pair.tokenizer.decode(engine.memory.context.packed.ids)
