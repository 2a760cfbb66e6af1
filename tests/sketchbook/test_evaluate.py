"""The scores: a perfect reply gets them all, and every kind of mistake costs the score that it should cost."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.cli.main import main, parser
from duogen.conversation import Conversation, Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate import sketchbook
from duogen.evaluate.answers import answers_agree
from duogen.evaluate.figures import mean, share
from duogen.evaluate.scores import MOST_OFF, TurnCase, check_styled_edit, read_steps, score_turn
from duogen.evaluate.sheet import Panel, contact_sheet
from duogen.events import Done, Stats
from duogen.options import ImageOptions, Options
from duogen.sketchbook import words
from duogen.sketchbook.change import recolour_part
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import COLOURS as COLOURS_OF_WORLD
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.tasks import TASKS, sample
from duogen.sketchbook.world import HELD_OUT_KINDS, make_thing, things
from tests.support.tiny import tiny_pair

COLOURS = {"walls": "red", "roof": "brown", "door": "blue", "windows": "yellow"}


def replied(parts: tuple[str | Scene, ...] | list[str | Scene]) -> list[Piece]:
    """A reply with its scenes drawn."""
    return [Text(part) if isinstance(part, str) else Image(draw(part), 1, 0.5) for part in parts]


def house() -> Scene:
    names = [part.name for part in things()["house"].parts]
    return Scene("meadow", (make_thing("house", {name: COLOURS.get(name, "red") for name in names}),))


def steps(scene: Scene, opening: str = "Let's draw a house with a blue door.") -> list[str | Scene]:
    thing = scene.things[0]
    parts: list[str | Scene] = []
    for index in range(len(thing.parts)):
        text = f"Step {index + 1}. {words.step_sentence(scene, 0, index)}"
        parts += [text if index else f"{opening}\n\n{text}", replace(scene, things=(replace(thing, parts=thing.parts[: index + 1]),))]
    return parts


def guide() -> TurnCase:
    meant = steps(house())
    return TurnCase("guide", "how do i draw a house with a blue door?", tuple(meant), opening="Let's draw a house with a blue door.")


def in_colour(scene: Scene, name: str, colour: str) -> Scene:
    index = [part.name for part in scene.things[0].parts].index(name)
    return recolour_part(scene, 0, index, colour)


@pytest.mark.parametrize("task", TASKS)
def test_the_reference_answer_gets_every_score(task: str) -> None:
    for seed in range(4):
        line, answer = sample(task, random.Random(seed), held=True).lines[:2]
        before = (line.scenes() or [None])[-1]
        what = sketchbook.answer_kind(answer)
        text = " ".join(part for part in line.parts if isinstance(part, str)).lower()
        opening = str(answer.parts[0]).partition("\n")[0]
        turn = TurnCase(what, text, answer.parts, before, opening, shown=draw(before) if before else None, composed=len(line.scenes()) > 1)
        score = score_turn(turn, replied(answer.parts))
        assert score.words and score.draws and score.right and score.complete in (True, None), (text, answer.parts, score)
        for picture in score.pictures:
            assert picture.right and picture.attributes and picture.attributes[0] == picture.attributes[1] and picture.distance == 0
            assert picture.kept is not False and (picture.decibels or 99) == 99


def test_a_guide_that_goes_on_is_no_new_one() -> None:
    """Its answer is counted as a guide, and begins from the scene before."""
    found = (sample("guide", random.Random(seed)).lines for seed in range(99))
    lines = next(lines for lines in found if any(line.kind == "more" for line in lines))
    at = next(index for index, line in enumerate(lines) if line.kind == "more")
    before, answer = lines[at - 2].scenes()[-1], lines[at]
    opening = str(lines[1].parts[0]).partition("\n")[0]
    asked = TurnCase(sketchbook.answer_kind(answer), "go on", answer.parts, before, opening, shown=draw(before), continues=True)
    score = score_turn(asked, replied(answer.parts))
    assert asked.what == "guide" and score.right and score.pictures[0].kept and score.pictures[0].step == len(before.things[0].parts) + 1
    anew = score_turn(replace(asked, continues=False), replied(answer.parts)).pictures[0]
    assert anew.kept is None and anew.step == 1, "as the first answer of a guide is counted"


def test_what_the_wish_leaves_open_may_be_chosen() -> None:
    asked = guide()
    assert score_turn(asked, replied(steps(replace(in_colour(house(), "roof", "purple"), background="sea")))).right
    assert not score_turn(asked, replied(steps(in_colour(house(), "door", "green")))).words, "the requested blue door came green"
    assert not score_turn(replace(asked, ask=asked.ask + " at night"), replied(steps(house()))).words, "the request said at night"


def test_a_wrong_colour_costs_consistency() -> None:
    asked = guide()
    reply = replied(asked.meant)
    reply[-1] = Image(draw(in_colour(house(), "roof", "purple")))
    score = score_turn(asked, reply)
    assert score.words and score.complete and not score.right
    last = score.pictures[-1]
    assert not last.right and last.kept is False and last.decibels is not None and last.decibels < 30
    assert last.attributes == (last.attributes[1] - 1, last.attributes[1])
    assert all(picture.right for picture in score.pictures[:-1])


def test_a_missing_step_costs_completeness_of_words() -> None:
    asked = guide()
    missing = list(asked.meant[:2]) + list(asked.meant[4:])
    assert not score_turn(asked, replied(missing)).words
    short = score_turn(asked, replied(asked.meant[:-2]))
    assert not short.words and short.steps == (True,) * (len(asked.scenes()) - 1) + (False,)


def test_a_repeated_step_and_unreadable_words_are_no_right_steps() -> None:
    asked = guide()
    parts = list(asked.meant)
    twice = score_turn(asked, replied(parts[:4] + parts[2:]))
    assert not twice.words and not twice.complete
    parts[2] = "Step 2. Put something nice on it."
    blurred = score_turn(asked, replied(parts))
    assert blurred.steps[0] and not any(blurred.steps[1:])
    assert [picture.right for picture in blurred.pictures] == [True] + [False] * (len(blurred.pictures) - 1)


def test_a_wrong_number_of_pictures_costs_completeness_of_pictures() -> None:
    asked = guide()
    without = score_turn(asked, replied(asked.meant[:-1]))
    assert without.complete is False and not without.draws
    talking = TurnCase("talk", "hello", ("Hello!",))
    assert score_turn(talking, replied(["Hi!"])).right
    assert not score_turn(talking, replied(["Hi!", house()])).draws
    assert not score_turn(talking, replied([])).right


def test_an_edit_must_do_what_was_wished_and_nothing_else() -> None:
    before, after = house(), in_colour(house(), "door", "green")
    asked = TurnCase("edit", "make the door green", ("Now the house has a door in green.", after), before, shown=draw(before))
    assert score_turn(asked, replied(asked.meant)).right
    unpainted = score_turn(asked, replied([asked.meant[0], before]))
    assert unpainted.words and not unpainted.right
    other = score_turn(asked, replied(["Now the house has a door in pink.", in_colour(before, "door", "pink")]))
    assert not other.words and other.pictures[0].right
    moved = replace(after, background="night")
    damaged = score_turn(asked, replied([asked.meant[0], moved]))
    assert damaged.pictures[0].kept is False and not damaged.right


def test_read_steps_stops_at_the_first_sentence_that_says_nothing() -> None:
    scene = house()
    parts = replied(steps(scene)[:2] + ["Hm.", scene, "Now the scene is set at night.", scene])
    assert [found is not None for found in read_steps(parts, None)] == [True, False, False]


@pytest.mark.parametrize(
    ("said", "true", "alike"),
    [
        ("The door is blue.", "The door is blue.", True),
        ("It's blue!", "The door is blue.", True),
        ("The door is red.", "The door is blue.", False),
        ("The door is blue and red.", "The door is blue.", False),
        ("It is gray", "The roof is grey.", True),
        ("Yes.", "Yes, the door is blue.", True),
        ("Yes, it is red.", "Yes, the door is blue.", False),
        ("No, there is no boat.", "No, there is no boat.", True),
        ("Yes, there is a boat on the left.", "No, there is no boat.", False),
        ("2 houses", "There are two houses.", True),
        ("There is a house.", "There is one house.", True),
        ("There are three houses.", "There are two houses.", False),
        ("There are none.", "There are no buses.", True),
        ("On the left", "The tree is on the left.", True),
        ("The tree is on the left, up in the sky.", "The tree is on the left.", False),
        ("I see a car on the left and a house in the middle.", "I see a house in the middle and a car on the left.", True),
        ("I see a house on the left and a car in the middle.", "I see a house in the middle and a car on the left.", False),
        ("This is a house with red walls and a blue roof.", "This is a house with red walls and a blue roof.", True),
        ("This is a house with blue walls and a red roof.", "This is a house with red walls and a blue roof.", False),
        ("This is a boat with red walls and a blue roof.", "This is a house with red walls and a blue roof.", False),
        ("The house is bigger.", "The tree is bigger.", False),
        ("It is by the sea.", "It is by the sea.", True),
        ("It is night.", "It is day.", False),
        ("", "It is day.", False),
    ],
)
def test_answers_are_compared_by_their_facts(said: str, true: str, alike: bool) -> None:
    assert answers_agree(said, true) is alike


def test_intervals() -> None:
    figure = share([True] * 95 + [False] * 5)
    assert (figure.n, figure.value) == (100, 0.95)
    assert figure.low == pytest.approx(0.8882, abs=1e-4) and figure.high == pytest.approx(0.9785, abs=1e-4)  # Wilson 1927
    assert share([True] * 10).high == 1.0 and share([]).value is None
    assert mean([1.0, None, 3.0]).value == 2.0 and mean([1.0, None, 3.0]).n == 2


def test_tasks_are_divided_by_their_shares() -> None:
    tasks = sketchbook.allot_tasks(200, sketchbook.SHARES)
    assert {task: tasks.count(task) for task in sketchbook.SHARES} == {
        "guide": 70, "picture": 30, "edit": 30, "question": 40, "talk": 20, "ten-edits": 10,
    }  # fmt: skip
    assert len(sketchbook.allot_tasks(1, sketchbook.SHARES)) == 1 and len(sketchbook.allot_tasks(7, sketchbook.SHARES)) == 7


def test_a_sheet_shows_every_picture() -> None:
    red = Panel(draw(house()), draw(house()), "Step 1. " * 30, True)
    sheet = contact_sheet([[red, red], [red]])
    assert sheet.width > 2 * 160 and sheet.height > 4 * 160
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([[]])


class Perfect:
    """An engine that is asked for nothing but what a pair is."""

    about = {"steps": 8, "guidance": 1.0}


def perfect_answer(engine: Perfect, conversation: Conversation, asked: TurnCase, options: object) -> tuple[Conversation, Stats]:
    return conversation.say("assistant", *replied(asked.meant)), Stats(9, 9, 9, len(asked.scenes()), 0.1, 2.0, "end")


def test_a_perfect_pair_reaches_every_figure(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(sketchbook, "answer_freely", perfect_answer)
    said: list[str] = []
    figures = sketchbook.evaluate(Perfect(), "held-out", 12, 3, tmp_path, log=said.append)
    json.dumps(figures, allow_nan=False)
    for name, figure in figures["scores"].items():
        if name not in sketchbook.NOT_SHARES:
            assert figure["value"] == 1.0, name
    assert figures["scores"]["i_q_distance"]["value"] == 0.0 and figures["scores"]["seconds_per_reply"]["value"] == 2.0
    assert figures["scores"]["ten_edits_right"]["n"] == 10
    assert {"guide", "edit", "ten-edits"} <= {file.stem.rpartition("-")[0] for file in tmp_path.glob("*.png")}
    assert any("t_com" in line for line in said)


def test_how_pictures_are_painted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Options] = []

    def answer(engine: Perfect, conversation: Conversation, case: TurnCase, options: Options) -> tuple[Conversation, Stats]:
        asked.append(options)
        return perfect_answer(engine, conversation, case, options)

    monkeypatch.setattr(sketchbook, "answer_freely", answer)
    plain = sketchbook.evaluate(Perfect(), n=1, log=lambda line: None)
    chosen = sketchbook.evaluate(Perfect(), n=1, log=lambda line: None, painting={"steps": 20, "sampler": "dpm"})
    assert [plain[name] for name in ("steps", "guidance", "sampler")] == [8, 1.0, "auto"]
    assert [chosen[name] for name in ("steps", "guidance", "sampler")] == [20, 1.0, "dpm"] and plain["scores"] == chosen["scores"]
    assert asked[-1].image == ImageOptions(steps=20, guidance=1.0, sampler="dpm", preview_every=0)


class Shrugs:
    """An engine that answers with a word; `options` are those that it was given."""

    about = {"steps": 8, "guidance": 1.5}

    def __init__(self) -> None:
        self.options: list[Options] = []

    def answer(self, conversation: Conversation, options: Options, stop: object = None) -> Iterator[Done]:
        self.options.append(options)
        yield Done(conversation.say("assistant", "Hm."), Stats(1, 1, 1, 0, 0.1, 0.1, "end"))


@pytest.mark.parametrize(("name", "own"), [("shapes", (8, 1.5)), ("vague", (8, 1.5)), ("phrasings", (1, 1.0))])
def test_the_sisters_take_the_same_flags(name: str, own: tuple[int, float], monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    shrugs = Shrugs()
    monkeypatch.setattr("duogen.engine.Engine.open", lambda *_, **__: shrugs)
    command = ["evaluate", name, "--n", "1", "--json", str(tmp_path / "figures.json")]
    for flags, (steps, guidance, sampler) in (([], (*own, "auto")), (["--sampler", "euler", "--guidance", "2"], (own[0], 2.0, "euler"))):
        assert main([*command, *flags]) == 0
        image, told = shrugs.options[-1].image, json.loads((tmp_path / "figures.json").read_text())
        assert (image.steps, image.guidance, image.sampler) == (steps, guidance, sampler)
        assert (told["steps"], told["guidance"], told["sampler"]) == (steps, guidance, sampler)
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "autoencoder", "--steps", "4"])  # it paints nothing


@pytest.mark.parametrize("style", STYLES)
def test_drawings_in_another_style_are_edited(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    """A perfect pair edits them in their style. A pair that paints the picture before is wrong in every edit."""

    def answers(changes: bool):
        def answer(engine: Perfect, conversation: Conversation, asked: TurnCase, options: object) -> tuple[Conversation, Stats]:
            given = conversation.path()[0].images()[0].picture
            assert asked.renderer and given.tobytes() != draw(asked.before).tobytes()
            pictures = [asked.renderer(scene) if changes else asked.renderer(asked.before) for scene in asked.scenes()]
            parts = [Image(pictures.pop(0), 1, 0.5) if isinstance(part, Scene) else Text(part) for part in asked.meant]
            return conversation.say("assistant", *parts), Stats(9, 9, 9, len(asked.scenes()), 0.1, 2.0, "end")

        return answer

    for changes in (True, False):
        monkeypatch.setattr(sketchbook, "answer_freely", answers(changes))
        scores = sketchbook.evaluate(Perfect(), style, 8, 1, log=lambda line: None)["scores"]
        assert scores["edits_right"]["value"] == changes and scores["edits_right"]["n"] >= 4
        assert scores["questions_right"]["value"] == scores["edits_words"]["value"] == 1.0


def test_an_edit_of_such_a_drawing_in_another_colour_is_wrong() -> None:
    def render(scene: Scene) -> PILImage.Image:
        return apply_style(draw(scene), "child", 5)

    off = [math.dist(one, other) / math.sqrt(3) for one, other in combinations(COLOURS_OF_WORLD.values(), 2)]
    assert min(off) > MOST_OFF, "no two colours of the world are so near that one passes for the other"
    before, meant, other = house(), in_colour(house(), "walls", "green"), in_colour(house(), "walls", "purple")
    given = (render(before), render(meant), draw(meant))
    assert check_styled_edit(render(meant), *given)[0]
    assert not check_styled_edit(render(other), *given)[0] and not check_styled_edit(render(before), *given)[0]
    assert not check_styled_edit(draw(meant), *given)[0], "everything else was drawn anew"
    mixed = render(before)
    mixed.paste(draw(meant), mask=PILImage.fromarray(np.abs(np.int16(given[0]) - np.int16(given[1])).mean(-1) > 24))
    assert check_styled_edit(mixed, *given)[0], "what is new may be drawn cleanly"


def test_a_pair_that_fails_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> tuple[Conversation, Stats]:
        raise ValueError("Memory ran out.")

    monkeypatch.setattr(sketchbook, "answer_freely", fails)
    figures = sketchbook.evaluate(Perfect(), "held-out", 6, 0, log=lambda line: None)
    assert figures["scores"]["draws_when_it_should"]["value"] == 0.0 and len(figures["failures"]) == 6


def test_only_the_answer_to_the_second_of_two_requests_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(engine: Perfect, conversation: Conversation, asked: TurnCase, options: object) -> tuple[Conversation, Stats]:
        if len(conversation.path()) == 1:  # the first answer shows nothing
            return conversation.say("assistant", "No."), Stats(9, 9, 9, 0, 0.1, 2.0, "end")
        return perfect_answer(engine, conversation, asked, options)

    monkeypatch.setattr(sketchbook, "answer_freely", answer)
    figures = sketchbook.evaluate(Perfect(), "second-request", 8, 0, log=lambda line: None)
    assert set(figures["tasks"]) == {"guide", "picture"} and len(figures["turns"]) == 16
    assert figures["scores"]["draws_when_it_should"]["value"] == figures["scores"]["it_co"]["value"] == 1.0
    assert figures["scores"]["draws_when_it_should"]["n"] == 8


def test_the_command_line_knows_every_split() -> None:
    """It names them itself, so that --help imports nothing heavy."""
    for split in sketchbook.SPLITS:
        assert parser().parse_args(["evaluate", "sketchbook", "--split", split]).split == split


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="n must be at least 1"):
        sketchbook.evaluate(Perfect(), n=0)
    with pytest.raises(ValueError, match="no split"):
        sketchbook.evaluate(Perfect(), "tomorrow")
    with pytest.raises(ValueError, match="lighthouse"):
        sketchbook.evaluate(Perfect(), n=1, kinds=["lighthouse"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A tiny pair on one thread: its matrices are so small that more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Engine.open(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["held-out", "held-out-kinds", "reference-words"])
def test_a_pair_is_played_to_the_end(tiny: Engine, split: str, tmp_path) -> None:
    figures = sketchbook.evaluate(tiny, split, 6, 0, tmp_path, log=lambda line: None)
    json.dumps(figures, allow_nan=False)
    assert {"t_com", "i_com", "it_co", "i_co_scene", "i_co_psnr", "i_q_distance", "questions_right", "draws_when_it_should"} <= set(
        figures["scores"]
    )
    assert figures["failures"] == []
    shares = sketchbook.SHARES if split == "held-out" else sketchbook.PAINTER_SHARES
    assert set(figures["tasks"]) == set(sketchbook.allot_tasks(6, shares))
    if split != "held-out":
        assert figures["scores"]["t_com"]["value"] == 1.0, "the words were said for it"
        assert figures["scores"]["it_co"]["value"] == 0.0 and figures["scores"]["it_co"]["n"] > 6, "random weights paint nothing"
    if split == "held-out-kinds":
        assert set(figures["kinds"]) <= HELD_OUT_KINDS
    assert list(tmp_path.glob("*.png"))


def test_painting_after_given_words_depends_on_them_alone(tiny: Engine) -> None:
    options = Options(seed=4, image=ImageOptions(steps=2))
    asked = Conversation().say("user", "Draw a house.")
    first = tiny.generate_image(asked.say("assistant", "Step 1. A red house."), options)
    other = tiny.generate_image(asked.say("assistant", "Step 1. A blue door on the left."), options)
    again = tiny.generate_image(asked.say("assistant", "Step 1. A red house."), options)
    assert first.picture.tobytes() == again.picture.tobytes() != other.picture.tobytes()
    second = tiny.generate_image(asked.say("assistant", "Step 1. A red house.", again, "Step 2. A blue door."), options)
    assert second.picture.tobytes() != first.picture.tobytes()
    with pytest.raises(ValueError, match="no answer to paint"):
        tiny.generate_image(asked, options)
