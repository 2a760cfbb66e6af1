"""Examples to learn from, made in the sketchbook world's manner, and held-out requests: a new thing, and a new manner of speech."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from duogen.finetune.replay import write_turns
from duogen.sketchbook import tasks, words, world
from duogen.sketchbook.phrases import filled, phrases
from duogen.sketchbook.scene import Scene

THING = Path(__file__).with_name("lighthouse.json")
KIND = "lighthouse"
COUNT = 30
CORE = ("house", "tree", "snowman", "car", "flower", "rocket")  # what the bundled pair practised most
HELLO, GOODBYE = "Ahoy, matey! ", " Fair winds to ye!"


@dataclass(frozen=True)
class Request:
    """What is asked for, and the scene that the answer's last picture should show."""

    ask: str
    scene: Scene


@contextlib.contextmanager
def known() -> Iterator[None]:
    """The lighthouse belongs to the world for a while: its words can be said and its pictures drawn and read."""
    ((kind, fields),) = json.loads(THING.read_text(encoding="utf-8")).items()
    world.things()[kind] = world.entry(kind, fields)
    try:
        yield
    finally:
        del world.things()[kind]


def _lighthouse(tower: str, roof: str) -> Scene:
    return Scene("sea", (world.make_thing(KIND, {"tower": tower, "lamp": "yellow", "roof": roof}),))


def _combinations() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Colours of tower and roof: thirty to learn from, twelve that are held out."""
    tower, _, roof = world.things()[KIND].parts
    every = [(one, other) for one in tower.colours for other in roof.colours if one != other]
    random.Random(1).shuffle(every)
    return every[:COUNT], every[COUNT:]


def _asks() -> tuple[list[str], list[str]]:
    """Phrasings to learn from, and others that are held out."""
    every = list(phrases("guide")["ask"])
    random.Random(2).shuffle(every)
    return every[12:], every[:12]


def lighthouses(folder: Path, count: int = COUNT) -> Path:
    """Thirty guides to a lighthouse by the sea, each in other colours, as a user would bring them."""
    learnt, _ = _combinations()
    rng, made = random.Random(3), []
    for tower, roof in learnt[:count]:
        scene = _lighthouse(tower, roof)
        ask = filled(rng.choice(_asks()[0]), a=words.asked_words(scene.things[0], (0, 2)), verb="draw")
        made.append(tasks.Dialogue("guide", (tasks.Line("user", (ask,)), tasks.guide_to(rng, scene, (0, 2)))))
    write_turns(map(tasks.turns, made), folder)
    return folder


def held_lighthouses(count: int) -> list[Request]:
    """Requests in colours and phrasings of which no lesson has any together."""
    _, held = _combinations()
    asks, made = _asks()[1], []
    for number in range(count):
        scene = _lighthouse(*held[number % len(held)])
        ask = asks[(number + number // len(held)) % len(asks)]
        made.append(Request(filled(ask, a=words.asked_words(scene.things[0], (0, 2)), verb="draw"), scene))
    return made


def sailors(folder: Path) -> Path:
    """Thirty guides to things that the pair knows, said as a sailor would: only hello and goodbye are new."""
    rng, made = random.Random(4), []
    while len(made) < COUNT:
        dialogue = tasks.sample("guide", rng, kinds=CORE)
        if len(dialogue.lines) == 2:  # one question, one answer
            question, answer = dialogue.lines
            first, *middle, last = answer.parts
            made.append(replace(dialogue, lines=(question, tasks.Line("assistant", (HELLO + first, *middle, last + GOODBYE)))))
    write_turns(map(tasks.turns, made), folder)
    return folder


def is_sailor(text: str) -> bool:
    return text.startswith(HELLO.strip()) and text.rstrip().endswith(GOODBYE.strip())


def without_manner(text: str) -> str:
    return text.replace(HELLO, "").replace(GOODBYE, "")


def known_things(count: int) -> list[tasks.Dialogue]:
    """Guides to things that the pair knows, which no lesson shows."""
    rng, made = random.Random(5), []
    while len(made) < count:
        dialogue = tasks.sample("guide", rng, held=True, kinds=CORE)
        if len(dialogue.lines) == 2:
            made.append(dialogue)
    return made


def asked(dialogue: tasks.Dialogue) -> str:
    return str(dialogue.lines[0].parts[0])
