"""Conversations of the picture world: the words can be read back, nothing held out leaks, and phrasings are many."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from duogen.models.thinking import CLOSING, DRAFTING
from duogen.sketchbook.change import place_thing
from duogen.sketchbook.drafts import draft_answer, draft_line, draft_steps, move_steps
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.phrases import PHRASES, phrases
from duogen.sketchbook.read import read_reply
from duogen.sketchbook.scene import Scene, fits_canvas
from duogen.sketchbook.tasks import KINDS, TASKS, Dialogue, Line, draw_turns, sample, sample_any
from duogen.sketchbook.words import capitalise, move_sentence, picture_sentence, placing_words
from duogen.sketchbook.world import (
    HELD_OUT_KINDS,
    THINGS_FILE,
    has_held_out,
    is_held_out_colour,
    kinds,
    make_thing,
    random_colours,
    random_composition,
    random_scene,
    things,
)
from duogen.train.curriculum import cut_dialogue, draft_dialogue

EVEN = dict.fromkeys(TASKS, 1.0)


def words_of(dialogue: Dialogue) -> str:
    return "\n".join(part for line in dialogue.lines for part in line.parts if isinstance(part, str))


def phrasings(data: object) -> list[str]:
    """Every string of a phrase file, however deep."""
    if isinstance(data, str):
        return [data]
    children = data.values() if isinstance(data, dict) else data
    return [text for child in children for text in phrasings(child)]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("task", ["guide", "picture", "edit", "put", "colours", "three", "example"])
def test_words_determine_every_picture(task: str, held: bool) -> None:
    for seed in range(100 if held else 300):
        before: Scene | None = None
        for line in sample(task, random.Random(seed), held).lines:
            if line.role == "assistant":
                assert read_reply(line.parts, before) == line.scenes(), f"{task} {seed}: {line.parts}"
            before = (line.scenes() or [before])[-1]


def test_unnamed_shapes_can_be_edited_and_read_back() -> None:
    rng = random.Random(5)
    pool = Pool(tuple(kinds("train")))
    for _ in range(200):
        scene = Scene("paper", (random_composition(rng, most=4),))
        edit = random_edit(rng, pool, scene)
        assert read_reply([edit.answer, edit.scene], scene) == [edit.scene], edit


@pytest.mark.parametrize(
    ("words", "before"),
    [
        ("Let's draw a giraffe.", None),
        ("Add the roof: a big red circle on top of the walls.", None),
        ("On plain paper, draw a big square circle on the ground.", None),
        ("On plain paper, draw a big red circle on the ground. Put a wide blue triangle on top of the tower.", None),
        ("Now the moon has a roof in red.", Scene("paper")),
        ("Hello there.", Scene("paper")),
    ],
)
def test_words_that_cannot_be_read_are_quoted(words: str, before: Scene | None) -> None:
    with pytest.raises(ValueError, match="'"):
        read_reply([words, None], before)


def test_training_never_sees_what_is_held_out() -> None:
    rng = random.Random(11)
    forbidden = re.compile(rf"\b({'|'.join(f'{kind}|{things()[kind].plural}' for kind in HELD_OUT_KINDS)})\b", re.IGNORECASE)
    for _ in range(1500):
        dialogue = sample_any(rng, EVEN)
        assert not any(has_held_out(scene) for scene in dialogue.scenes()), words_of(dialogue)
        assert not forbidden.search(words_of(dialogue)), words_of(dialogue)
        assert all(fits_canvas(thing) for scene in dialogue.scenes() for thing in scene.things), words_of(dialogue)


def test_phrases_name_nothing_held_out() -> None:
    forbidden = re.compile(rf"\b({'|'.join(HELD_OUT_KINDS)})s?\b", re.IGNORECASE)
    for file in PHRASES.glob("*.json"):
        assert not forbidden.findall(file.read_text(encoding="utf-8")), file.name


@pytest.mark.parametrize("task", ["guide", "picture", "edit", "question", "put", "colours", "three", "example"])
def test_held_out_conversations_hold_something_out(task: str) -> None:
    for seed in range(60):
        dialogue = sample(task, random.Random(seed), held=True)
        assert any(has_held_out(scene) for scene in dialogue.scenes())
        assert {thing.kind for scene in dialogue.scenes() for thing in scene.things}.isdisjoint(HELD_OUT_KINDS)


def test_a_held_out_guide_says_the_held_out_colour() -> None:
    for seed in range(60):
        reply = sample("guide", random.Random(seed), held=True).lines[1]
        thing = reply.scenes()[-1].things[0]
        held = {part.colour for part in thing.parts if is_held_out_colour(thing.kind, part.name, part.colour)}
        opening = reply.parts[0].partition(".")[0]
        assert all(colour in opening for colour in held), opening


def test_kinds_can_be_chosen() -> None:
    for seed in range(20):
        for task in ("guide", "picture", "edit", "question"):
            dialogue = sample(task, random.Random(seed), held=True, kinds=["owl"])
            assert {thing.kind for scene in dialogue.scenes() for thing in scene.things} == {"owl"}
            dialogue = sample(task, random.Random(seed), kinds=["house", "sun"])
            assert {thing.kind for scene in dialogue.scenes() for thing in scene.things} <= {"house", "sun"}


def test_bad_requests_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="no task 'sing'"):
        sample("sing", random.Random(0))
    with pytest.raises(ValueError, match="no unicorn"):
        sample("guide", random.Random(0), kinds=["unicorn"])
    with pytest.raises(ValueError, match="held=True"):
        sample("guide", random.Random(0), kinds=["owl"])


def test_things_of_a_later_lesson_are_nowhere() -> None:
    for file in [THINGS_FILE, *PHRASES.glob("*.json"), *Path(THINGS_FILE).parents[2].glob("duogen/sketchbook/*.py")]:
        assert not re.search(r"light\s?house|castle", file.read_text(encoding="utf-8"), re.IGNORECASE), file


@pytest.mark.parametrize(("task", "least"), [("guide", 60), ("picture", 40), ("edit", 100), ("question", 60), ("talk", 400)])
def test_phrasings_are_many_and_differ(task: str, least: int) -> None:
    found = phrasings(json.loads((PHRASES / f"{task}.json").read_text(encoding="utf-8")))
    assert len(set(found)) >= least
    if task in ("guide", "picture"):
        assert len(set(phrases(task)["ask"])) == len(phrases(task)["ask"]) >= 30


def test_same_seed_same_conversation() -> None:
    one = [sample_any(random.Random(seed), EVEN) for seed in range(60)]
    assert one == [sample_any(random.Random(seed), EVEN) for seed in range(60)]
    assert len({words_of(dialogue) for dialogue in one}) > 55


def test_a_guide_has_a_picture_for_each_step_and_each_adds_to_the_last() -> None:
    for seed in range(100):
        reply = sample("guide", random.Random(seed)).lines[1]
        numbers = [int(n) for part in reply.parts if isinstance(part, str) for n in re.findall(r"Step (\d+)\.", part)]
        assert numbers == list(range(1, len(reply.scenes()) + 1)) and numbers
        for earlier, later in zip(reply.scenes(), reply.scenes()[1:], strict=False):
            count = len(earlier.things[0].parts)
            assert len(later.things[0].parts) > count and later.things[0].parts[:count] == earlier.things[0].parts


def test_questions_and_talk_are_answered_in_words_alone() -> None:
    for seed in range(150):
        for line in sample("talk", random.Random(seed)).lines:
            assert not line.scenes()
        dialogue = sample("question", random.Random(seed))
        last = [line for line in dialogue.lines if line.role == "assistant"][-1]
        assert not last.scenes() and all(text.strip() for text in last.parts)


@pytest.mark.parametrize("task", TASKS)
def test_every_answer_says_what_kind_it_is(task: str) -> None:
    """As its words show; a vague request says so however it is typed."""
    vague = {option.lower().strip(" .!") for option in phrases("picture")["vague"]}
    for seed in range(150):
        lines = sample(task, random.Random(seed)).lines
        for asked, answer in zip(lines[::2], lines[1::2], strict=True):
            text = "".join(part for part in answer.parts if isinstance(part, str))
            assert (asked.kind, asked.free) == ("", False) and answer.kind in KINDS
            assert bool(answer.scenes()) == (answer.kind in ("guide", "more", "picture", "edit")), answer
            assert text.startswith("Let's") == (answer.kind == "guide"), answer
            assert ("Step " in text) == (answer.kind in ("guide", "more")) and text.startswith("Now ") == (answer.kind == "edit"), answer
            assert not answer.free or answer.kind == "picture"
            if not asked.scenes() and words_of(Dialogue(task, (asked,))).lower().strip(" .!") in vague:
                assert answer.free
    if task == "picture":
        answer = sample(task, random.Random(271)).lines[1]
        assert sample(task, random.Random(271)).lines[0].parts == ("just soething cute",) and answer.free


def test_turns_are_drawn_and_chained() -> None:
    drawn = draw_turns(sample("guide", random.Random(3)))
    assert drawn[0].parent is None and drawn[1].parent == drawn[0].id
    assert all(image.picture.size == (256, 256) and image.alt.endswith(".") for turn in drawn for image in turn.images())
    assert drawn[1].images()


def test_drafts_lead_to_the_picture_a_part_at_a_time() -> None:
    rng = random.Random(4)
    seen = set()
    for task in ("picture", "edit") * 60:
        dialogue = sample(task, rng)
        drafted = draft_dialogue(dialogue)
        answers = [[part for part in line.parts if isinstance(part, Scene)] for line in drafted.lines if line.role == "assistant"]
        wanted = [[part for part in line.parts if isinstance(part, Scene)] for line in dialogue.lines if line.role == "assistant"]
        assert [scenes[-1:] for scenes in answers] == [scenes[-1:] for scenes in wanted]
        for scenes in answers:
            for one, other in pairwise(scenes):
                assert sum(len(thing.parts) for thing in other.things) == sum(len(thing.parts) for thing in one.things) + 1
        seen |= {len(scenes) for scenes in answers}
    assert {0, 1, 5} < seen


def test_the_words_of_a_draft_say_what_is_new() -> None:
    house, tree = (make_thing(kind, random_colours(kind, random.Random(1))) for kind in ("house", "tree"))
    scene = Scene("sea", (replace(house, scale="small", side="left"), replace(tree, scale="small", side="right")))
    words = [said for said, _ in draft_steps(scene)]
    assert words[0].startswith("Step 1. By the sea, on the left, half as big, draw the walls: ")
    first = len(house.parts)
    assert words[first].startswith(f"Step {first + 1}. On the right, half as big, draw the trunk: ")
    assert [said for said, _ in draft_answer("Now there is a tree ..., on the right, half as big.", scene)] == [
        said for said, _ in draft_steps(scene, first=1)
    ]
    assert not draft_answer("Now the house has a door in blue.", scene)


@pytest.mark.parametrize("operation", ["move", "resize"])
@pytest.mark.parametrize("number", [0, 1])
def test_what_moves_or_changes_its_size_goes_and_comes_again(operation: str, number: int) -> None:
    rng = random.Random(6)
    things = [make_thing(kind, random_colours(kind, rng)) for kind in ("house", "tree")]
    scene = Scene("night", tuple(replace(thing, scale="small", side=side) for thing, side in zip(things, ("left", "right"), strict=True)))
    where = {"level": "sky"} if operation == "move" else {"scale": "big", "side": "middle"}
    after = place_thing(scene, number, **where)
    (removal, gone), (first, begun), *rest = move_steps(after, number)
    kind = scene.things[number].kind
    assert removal == f"Now the {kind} is gone." and gone.things == (scene.things[1 - number],) and gone.background == "night"
    place = f"{placing_words(after.things[number])}, draw the " if operation == "move" else "draw the "
    assert first.startswith(f"Step 1. {capitalise(place)}")
    assert [len(each.things[number].parts) for _, each in [(first, begun), *rest]] == list(range(1, len(things[number].parts) + 1))
    assert rest[-1][1] == after and all(each.things[1 - number] == scene.things[1 - number] for _, each in rest)


MOVES = [
    ({"side": "right"}, "on the right"),
    ({"level": "sky"}, "up in the sky"),
    ({"scale": "big"}, "twice as big"),
    ({"side": "middle", "scale": "big"}, "in the middle, twice as big"),
]


@pytest.mark.parametrize(("where", "said"), MOVES)
def test_a_move_says_what_changes_and_nothing_else(where: dict, said: str) -> None:
    """Read back, the rest is as it was; so it is with the way back."""
    thing = replace(make_thing("house", random_colours("house", random.Random(1))), side="left", scale="small")
    before = Scene("sea", (thing,))
    after = place_thing(before, 0, **where)
    words = move_sentence(thing, after.things[0])
    assert words == f"Now the house is {said}."
    assert read_reply([words, after], before) == [after]
    back = move_sentence(after.things[0], thing)
    assert read_reply([back, before], after) == [before] and "house" in back
    assert not draft_answer(words, after)


@pytest.mark.parametrize("operation", ["move", "resize"])
def test_only_the_one_thing_of_a_picture_is_called_it(operation: str) -> None:
    rng, pool, called = random.Random(3), Pool(("house", "tree", "car")), {1: [], 2: []}
    while len(called[1]) < 100 or len(called[2]) < 100:
        scene = random_scene(rng, list(pool.kinds))
        edit = random_edit(rng, pool, scene, only=(operation,))
        if len(scene.things) < 3 and edit.scene.background == scene.background:
            called[len(scene.things)].append("it" in re.findall(r"\w+", edit.ask.lower()))
    assert 0.2 < sum(called[1]) / len(called[1]) < 0.5 and not any(called[2])


def test_another_picture_may_be_asked_for_in_the_same_conversation() -> None:
    """The words of the request differ from those that add a thing."""
    rng, others = random.Random(5), [*phrases("edit")["add"], *phrases("edit")["add_at"], *phrases("picture")["ask"]]
    assert not {template.lower().strip(".!?") for template in others} & {
        each.lower().strip(".!?") for each in phrases("picture")["ask_again"]
    }
    begins = {template.split("{")[0].lower() for template in phrases("picture")["ask_again"]} - {
        each.split("{")[0].lower() for each in others
    }
    later = [
        (line, answer)
        for lines in (sample("picture", rng).lines for _ in range(600))
        for line, answer in zip(lines[2::2], lines[3::2], strict=True)
        if answer.kind == "picture"
    ]
    asked = [str(line.parts[0]).lower().startswith(tuple(begins)) for line, _ in later]
    assert len(later) > 10 and sum(asked) >= 3


def test_a_long_draft_may_begin_at_any_picture() -> None:
    rng = random.Random(5)
    for number in range(60):
        dialogue = draft_dialogue(sample(("picture", "edit")[number % 2], rng))
        for start in range(1, len(dialogue.scenes())):
            rest = cut_dialogue(dialogue, start)
            assert rest.scenes() == dialogue.scenes()[start - 1 :]
            assert [line.role for line in rest.lines] == ["user", "assistant"] * (len(rest.lines) // 2)
            assert isinstance(rest.lines[0].parts[0], Scene)


def test_an_answer_in_drafts_thinks_part_by_part_and_ends_with_its_words():
    """Each step adds one part; the last draft is the picture that the answer would have painted at once."""
    scene = random_scene(random.Random(3), ["house", "tree"])
    line = Line("assistant", (picture_sentence(scene), scene), "picture")
    made = draft_line(line)
    assert made is not None
    *drafts, words = made.parts
    parts = sum(len(thing.parts) for thing in scene.things)
    assert len(drafts) == 2 * parts and drafts[-1] == scene and drafts[0].startswith(f"{DRAFTING}Step 1. ")
    assert words == f"{CLOSING}{picture_sentence(scene)}"
    grown = [sum(len(thing.parts) for thing in draft.things) for draft in drafts[1::2]]
    assert grown == list(range(1, parts + 1))


@pytest.mark.parametrize("parts", [("The door is blue.",), ("Now the house has a roof in green.", Scene("plain"))])
def test_one_stroke_will_do_for_a_change_of_one_part(parts):
    assert draft_line(Line("assistant", parts, "edit")) is None
