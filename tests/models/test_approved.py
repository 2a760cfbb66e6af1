"""Approved parts: what "I like the house, change the rest" keeps to the pixel, and what the models read."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from duogen import engine as engine_module
from duogen.approved import CANNOT_POINT, FILLS_ALL, NOT_FOUND
from duogen.conversation import Conversation, Image
from duogen.engine import Engine
from duogen.events import Done, Failed, ImageDone
from duogen.models.pipeline import open_pair
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.provenance import Origin
from tests.support import public
from tests.support.pipelines import paint_noise, sources_of
from tests.support.tiny import BOV, END, script, tiny_pair

SIDE = 64
BOX = (8, 16, 32, 48)
ASK = "I like the house, change the rest"
OPTIONS = Options(1, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(steps=2, preview_every=0))
SAID = ("A winter scene. <picture>", "the house in deep snow", "</picture>", END)


def noise(seed: int, size: tuple[int, int] = (SIDE, SIDE), **more) -> Image:
    return Image(PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)), **more)


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = public.qwen_edit(tmp_path_factory.mktemp("editor"))
    engine = Engine.open(folder, load=LoadOptions(device="cpu", precision="fp32", picture_side=SIDE))
    engine.pair.about = engine.painter.about = replace(engine.pair.about, most_sources=1)
    return engine


@pytest.fixture(autouse=True)
def calls(editor, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    return paint_noise(editor, monkeypatch)


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PILImage.Image, str]]:
    """What the MLLM is asked to find; it sees the same box each time."""
    asked: list[tuple[PILImage.Image, str]] = []

    def find(mllm, picture, words, stop=None):
        asked.append((picture, words))
        return [BOX]

    monkeypatch.setattr(engine_module, "find_boxes", find)
    return asked


def same_inside(one: PILImage.Image, other: PILImage.Image, box: tuple[int, int, int, int]) -> bool:
    return one.crop(box).tobytes() == other.crop(box).tobytes()


def find_picture(events) -> Image:
    return next(event.image for event in events if isinstance(event, ImageDone))


def test_the_named_part_stays_to_the_pixel_and_the_rest_is_painted(editor, boxes, monkeypatch) -> None:
    """Also at the size of the picture that is changed, which is not the painter's."""
    shown = noise(1, (90, 60))
    asked = Conversation().say("user", noise(2), "Draw a house").say("assistant", "A house.", replace(shown, seed=3, origin=Origin.PAINTED))
    asked = asked.say("user", ASK)
    script(monkeypatch, editor.tokens, *SAID)
    *events, done = editor.answer(asked, OPTIONS)
    assert isinstance(done, Done), done
    assert [(picture.size, words) for picture, words in boxes] == [((90, 60), "the house")]
    made = find_picture(events)
    assert made.picture.size == (90, 60) and same_inside(made.picture, shown.picture, BOX)
    rest = np.asarray(made.picture) != np.asarray(shown.picture)
    rest[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    assert rest.any(-1).mean() > 0.9 and made.origin is Origin.PAINTED and made.alt == "the house in deep snow"
    path = done.conversation.path()
    assert path[-2].text() == ASK and path[-1].text() == "A winter scene. ", "the user's words stay"
    read = editor.pair.tokenizer.decode(editor.memory.context.packed.ids)
    assert f"{ASK}\n\nYou are asked for one new picture" in read and "the house stays exactly as it is" in read


def test_the_pipeline_sees_the_picture_that_is_kept_in_part(editor, boxes, calls, monkeypatch) -> None:
    first, last = noise(4), noise(5)
    script(monkeypatch, editor.tokens, *SAID)
    *events, done = editor.answer(Conversation().say("user", first, last, "Keep the house of @1, change the rest"), OPTIONS)
    assert isinstance(done, Done) and boxes[0][1] == "the house"
    assert sources_of(calls[0])[0].tobytes() == first.picture.tobytes() and same_inside(find_picture(events).picture, first.picture, BOX)
    assert find_picture(events).origin is Origin.CHANGED


def test_paint_again_and_go_on_keep_the_part_too(editor, boxes, monkeypatch) -> None:
    shown = noise(6)
    asked = Conversation().say("user", shown, ASK)
    script(monkeypatch, editor.tokens, "the house at night", "</picture>", END)
    again = editor.generate_image(asked.say("assistant", "Another:"), OPTIONS)
    assert same_inside(again.picture, shown.picture, BOX) and again.picture.tobytes() != shown.picture.tobytes()
    script(monkeypatch, editor.tokens, *SAID)
    *events, done = editor.continue_answer(asked.say("assistant", "So far"), OPTIONS)
    assert isinstance(done, Done) and same_inside(find_picture(events).picture, shown.picture, BOX)
    script(monkeypatch, editor.tokens, "the house again", "</picture>", END)
    later = editor.generate_image(asked.say("assistant", "One.", again, "Two."), OPTIONS)
    assert not same_inside(later.picture, shown.picture, BOX), "only the first picture of an answer keeps it"


@pytest.mark.parametrize(("found", "sentence"), [([], NOT_FOUND), ([(0, 0, SIDE, SIDE)], FILLS_ALL)])
def test_a_part_that_cannot_be_kept_is_said_in_one_sentence(editor, found, sentence, monkeypatch) -> None:
    monkeypatch.setattr(engine_module, "find_boxes", lambda *given: found)
    asked = Conversation().say("user", noise(7), ASK)
    [failed] = editor.answer(asked, OPTIONS)
    assert isinstance(failed, Failed) and failed.message == sentence.format(part="the house") and failed.conversation is asked


def test_the_mllm_itself_is_asked_where_the_part_is(editor, monkeypatch) -> None:
    """Through the real grounding: it says a box in the pixels that it sees."""
    shown = noise(8)
    script(monkeypatch, editor.tokens, '[{"bbox_2d": [0, 0, 1, 1]}]', END, *SAID)
    *events, done = editor.answer(Conversation().say("user", shown, ASK), OPTIONS)
    assert isinstance(done, Done), done
    made = find_picture(events).picture
    assert made.getpixel((0, 0)) == shown.picture.getpixel((0, 0)) and made.tobytes() != shown.picture.tobytes()


def test_without_a_picture_the_message_is_answered_as_ever(editor, boxes, monkeypatch) -> None:
    script(monkeypatch, editor.tokens, "Which house?", END)
    *_, done = editor.answer(Conversation().say("user", ASK), OPTIONS)
    assert isinstance(done, Done) and done.conversation.path()[-1].text() == "Which house?" and not boxes


def test_a_mask_says_what_stays_where_a_language_model_cannot_point(tmp_path, monkeypatch) -> None:
    pair = open_pair(tiny_pair(tmp_path), "cpu", "fp32")
    monkeypatch.setattr(pair, "about", replace(pair.about, check_questions=((r"(?P<answer>\w+)", "Is it {answer}?"),)))
    engine, mask = Engine(pair), PILImage.new("L", (SIDE, SIDE), 255)
    [failed] = engine.answer(Conversation().say("user", noise(9), ASK), OPTIONS, threading.Event())
    assert isinstance(failed, Failed) and failed.message == CANNOT_POINT
    mask.paste(0, BOX)
    shown = noise(9, mask=mask)
    for words, read in ((ASK, ASK), ("Keep what is marked, change the rest: a night", "a night")):
        script(monkeypatch, engine.tokens, "It.", BOV, END)
        *events, done = engine.answer(Conversation().say("user", shown, words), OPTIONS)
        assert isinstance(done, Done) and same_inside(find_picture(events).picture, shown.picture, BOX)
        said = engine.pair.tokenizer.decode(engine.memory.context.packed.ids)
        assert f"{read}<" in said.replace("\n", "") and ("marked" in said) is ("marked" in read)
