"""Examples for the benchmarks of fine-tuning, made with the sketchbook, and held-out requests: a new thing, and a new manner of speech."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from duogen.finetune.replay import write_turns
from duogen.sketchbook import tasks, words, world
from duogen.sketchbook.phrases import fill_template, phrases
from duogen.sketchbook.scene import Scene

THING = Path(__file__).with_name("lighthouse.json")
KIND = "lighthouse"
COUNT = 30
CORE = ("house", "tree", "snowman", "car", "flower", "rocket")  # the bundled pair was trained on these most
HELLO, GOODBYE = "Ahoy, matey! ", " Fair winds to ye!"


@dataclass(frozen=True)
class Request:
    """A user's words, and the scene that the last picture of the answer should show."""

    words: str
    scene: Scene


@contextlib.contextmanager
def lighthouse_world() -> Iterator[None]:
    """Add the lighthouse to the sketchbook's world for a while, so that it can be named, drawn and recognised."""
    ((kind, fields),) = json.loads(THING.read_text(encoding="utf-8")).items()
    world.things()[kind] = world.parse_entry(kind, fields)
    try:
        yield
    finally:
        del world.things()[kind]


def _lighthouse_scene(tower: str, roof: str) -> Scene:
    return Scene("sea", (world.make_thing(KIND, {"tower": tower, "lamp": "yellow", "roof": roof}),))


def _combinations() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Colours of tower and roof: thirty to learn from, twelve that are held out."""
    tower, _, roof = world.things()[KIND].parts
    every = [(one, other) for one in tower.colours for other in roof.colours if one != other]
    random.Random(1).shuffle(every)
    return every[:COUNT], every[COUNT:]


def _phrasings() -> tuple[list[str], list[str]]:
    """Phrasings to learn from, and others that are held out."""
    every = list(phrases("guide")["ask"])
    random.Random(2).shuffle(every)
    return every[12:], every[:12]


def write_lighthouses(folder: Path, count: int = COUNT) -> Path:
    """Write thirty guides to a lighthouse by the sea, each in other colours, as a user would bring them."""
    learnt, _ = _combinations()
    rng, made = random.Random(3), []
    for tower, roof in learnt[:count]:
        scene = _lighthouse_scene(tower, roof)
        ask = fill_template(rng.choice(_phrasings()[0]), a=words.request_words(scene.things[0], (0, 2)), verb="draw")
        made.append(tasks.Dialogue("guide", (tasks.Line("user", (ask,)), tasks.make_guide_line(rng, scene, (0, 2)))))
    write_turns(map(tasks.draw_turns, made), folder)
    return folder


def sample_held_lighthouses(count: int) -> list[Request]:
    """Requests whose combination of colours, and whose phrasing, is in no example."""
    _, held = _combinations()
    asks, made = _phrasings()[1], []
    for number in range(count):
        scene = _lighthouse_scene(*held[number % len(held)])
        ask = asks[(number + number // len(held)) % len(asks)]
        made.append(Request(fill_template(ask, a=words.request_words(scene.things[0], (0, 2)), verb="draw"), scene))
    return made


def write_sailors(folder: Path) -> Path:
    """Write thirty guides to things that the pair knows, in a sailor's manner: only hello and goodbye are new."""
    rng, made = random.Random(4), []
    while len(made) < COUNT:
        dialogue = tasks.sample("guide", rng, kinds=CORE)
        if len(dialogue.lines) == 2:  # one question, one answer
            question, answer = dialogue.lines
            first, *middle, last = answer.parts
            made.append(replace(dialogue, lines=(question, tasks.Line("assistant", (HELLO + first, *middle, last + GOODBYE)))))
    write_turns(map(tasks.draw_turns, made), folder)
    return folder


def is_sailor(text: str) -> bool:
    return text.startswith(HELLO.strip()) and text.rstrip().endswith(GOODBYE.strip())


def strip_manner(text: str) -> str:
    return text.replace(HELLO, "").replace(GOODBYE, "")


def sample_known_things(count: int) -> list[tasks.Dialogue]:
    """Guides to things that the pair knows, which are in no example."""
    rng, made = random.Random(5), []
    while len(made) < count:
        dialogue = tasks.sample("guide", rng, held=True, kinds=CORE)
        if len(dialogue.lines) == 2:
            made.append(dialogue)
    return made


def question_words(dialogue: tasks.Dialogue) -> str:
    return str(dialogue.lines[0].parts[0])
