"""Requests about several pictures: what they ask for can be seen in the pictures, and the exact check wants nothing else."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageChops

from duogen.conversation import Image, Text
from duogen.evaluate import sketchbook
from duogen.evaluate.scores import TurnCase, compare_approved, mark_thing, score_turn
from duogen.evaluate.sketchbook import PlayedConversation, play_conversation
from duogen.sketchbook.compose import Composition, compose_three, follow_example, give_colours, keep_thing, put_thing
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool
from duogen.sketchbook.scene import Scene, Thing
from duogen.sketchbook.world import kinds

POOLS = [Pool(tuple(kinds("train"))), Pool(tuple(kinds("train")), held=True, shapes=False)]


def make_compositions(make, count: int = 80) -> list[Composition]:
    return [make(random.Random(seed), POOLS[seed % 2]) for seed in range(count)]


def looks(thing: Thing) -> dict:
    return {part.name: part.colour for part in thing.parts}


def test_a_thing_of_one_picture_is_put_into_another() -> None:
    for each in make_compositions(put_thing):
        (donor, source), new = each.scenes, each.scene.things[-1]
        assert each.scene.things[:-1] == source.things and each.scene.background == source.background
        assert (new.kind, looks(new)) == (donor.things[0].kind, looks(donor.things[0]))
        assert "picture 2" in each.ask.lower() and f"{donor.things[0].kind} of picture 1" in each.ask


def test_colours_of_one_picture_for_another() -> None:
    for each in make_compositions(give_colours):
        (reference, source), wanted = each.scenes, looks(each.scenes[0].things[0])
        changed = [new for new, old in zip(each.scene.things, source.things, strict=True) if new != old]
        assert len(changed) == 1 and looks(changed[0]) == {name: wanted[name] for name in looks(changed[0])}
        assert changed[0].kind == reference.things[0].kind


def test_three_pictures_are_made_into_one() -> None:
    ways = set()
    for each in make_compositions(compose_three):
        new = each.scene.things[len(each.scenes[2].things) :]
        donors = [scene.things[0] for scene in each.scenes[:2]]
        ways.add(len(new))
        wanted = donors if len(new) == 2 else [donors[1]]
        assert [(thing.kind, looks(thing)) for thing in new] == [(thing.kind, looks(thing)) for thing in wanted]
        assert len(new) == 2 or (donors[0].kind == donors[1].kind and donors[0] != donors[1])
    assert ways == {1, 2}


def test_an_example_shows_the_change_and_no_words_say_it() -> None:
    seen = set()
    for each in make_compositions(follow_example, 150):
        one, two, three = each.scenes
        assert one != two and three != each.scene and not re.search(r"red|blue|house|night|bigger", each.ask)
        seen.add(" ".join(each.answer.split()[:2]) if "set" in each.answer or "there" in each.answer else each.answer.split()[-1])
        if one.background != two.background:
            assert each.scene == replace(three, background=two.background)
        elif len(two.things) > len(one.things):
            assert each.scene == replace(three, things=(*three.things, two.things[-1]))
    assert {"Now the", "Now there", "gone."} <= seen and len(seen) > 6


def make_reply(answer: str, scene: Scene) -> list:
    return [Text(answer), Image(draw(scene))]


@pytest.mark.parametrize("make", [put_thing, compose_three])
def test_another_look_than_the_pictures_is_wrong(make) -> None:
    each = make(random.Random(3), POOLS[1])
    turn = TurnCase("edit", each.ask.lower(), (each.answer, each.scene), each.scenes[-1], shown=draw(each.scenes[-1]), composed=True)
    assert score_turn(turn, make_reply(each.answer, each.scene)).right
    colour = each.scene.things[-1].parts[0].colour
    other = "blue" if colour != "blue" else "red"
    false = each.answer[::-1].replace(colour[::-1], other[::-1], 1)[::-1]
    assert not score_turn(turn, make_reply(false, each.scene)).words
    assert not score_turn(turn, make_reply(each.answer, each.scenes[-1])).right


@pytest.mark.parametrize(("split", "task"), [("composing", "three"), ("by-example", "example")])
def test_the_pair_is_shown_every_picture_with_its_role(split, task, monkeypatch) -> None:
    asked = []

    def answer(engine, conversation, case, options):
        asked.append((conversation.path()[-1].images(), case))
        raise ValueError("enough")

    monkeypatch.setattr(sketchbook, "answer_freely", answer)
    played: PlayedConversation = play_conversation(sketchbook.Player(None, sketchbook.Options()), task, random.Random(1), split)
    (images, case), panels = asked[0], [panel.painted for panel in played.panels]
    assert [image.role for image in images] == ["reference", "reference", "source"] and case.composed
    assert [image.picture.tobytes() for image in images] == [picture.tobytes() for picture in panels]
    assert case.shown.tobytes() == images[-1].picture.tobytes() and len({picture.tobytes() for picture in panels}) == 3


def test_a_thing_stays_and_the_rest_is_another_scene() -> None:
    for each in make_compositions(keep_thing, 40):
        [before] = each.scenes
        kept = [thing for thing in each.scene.things if thing in before.things]
        assert len(kept) == 1 and before.background != each.scene.background and str(kept[0].kind) in each.ask.lower()
        assert not {thing.kind for thing in each.scene.things} & {thing.kind for thing in before.things} - {kept[0].kind}


def test_what_is_approved_is_marked_kept_and_scored(monkeypatch) -> None:
    asked = []

    def answer(engine, conversation, case, options):
        asked.append((conversation.path()[-1].images(), case))
        raise ValueError("enough")

    monkeypatch.setattr(sketchbook, "answer_freely", answer)
    play_conversation(sketchbook.Player(None, sketchbook.Options()), "approved", random.Random(1), "approved")
    [([image], case)] = asked
    marked, wanted = mark_thing(case.approved), case.scenes()[-1]
    before, new = image.picture, draw(wanted)
    assert image.mask is not None and ImageChops.invert(image.mask).tobytes() == marked.tobytes() and 0 < np.mean(np.asarray(marked)) < 250
    said = [Text(words) for words in case.meant if isinstance(words, str)]
    laid = PILImage.composite(before, new, marked)  # as a painter that paints the new scene to the pixel would have it laid back
    [right] = score_turn(case, [*said, Image(laid)]).pictures
    assert right.approved and right.renewed > 0.5 and right.right and right.words
    [false] = score_turn(case, [*said, Image(before)]).pictures
    assert false.approved and false.renewed == 0 and not false.right
    shifted = ImageChops.offset(laid, 1, 0)
    assert compare_approved(before, shifted, marked)[0] is False
    assert not score_turn(case, [Text("Now it is night."), Image(laid)]).words or len(case.before.things) == 1
