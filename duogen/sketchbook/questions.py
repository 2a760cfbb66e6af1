"""Make questions about a scene, with answers of one short sentence."""

from __future__ import annotations

import random
from dataclasses import dataclass

from duogen.sketchbook import words
from duogen.sketchbook.edits import Pool, is_unique, part_phrase, unnamed_parts
from duogen.sketchbook.phrases import fill_template, phrases
from duogen.sketchbook.scene import PAIRED, PART_COLOURS, Scene, Thing
from duogen.sketchbook.world import entry_of, is_held_out_colour, kinds, things

BACKGROUND_ANSWERS = {
    "meadow": "It is on a sunny meadow.",
    "night": "It is at night.",
    "paper": "It is on plain paper.",
    "sea": "It is by the sea.",
}
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A question in the user's words and its answer."""

    ask: str
    answer: str


def random_question(rng: random.Random, pool: Pool, scene: Scene) -> Question:
    """Make a question that the picture answers."""
    while True:
        question = rng.choices(list(QUESTIONS), list(QUESTIONS.values()))[0](rng, pool, scene)
        if question is not None:
            return question


def _pick_phrase(rng: random.Random, key: str, **fields: str) -> str:
    return fill_template(rng.choice(phrases("question")[key]), **fields)


def where_words(thing: Thing) -> str:
    """The place of a thing, without its size: "on the left, up in the sky"."""
    return words.SIDE_WORDS[thing.side] + (", up in the sky" if thing.level == "sky" else "")


def _thing_words(thing: Thing) -> str:
    return things()[thing.kind].name_with_article() if thing.kind else words.shape_words(thing.parts[0])


def _ask_what(rng: random.Random, pool: Pool, scene: Scene) -> Question:
    ask = _pick_phrase(rng, "what")
    if len(scene.things) == 1:
        thing = scene.things[0]
        if thing.kind:
            return Question(ask, f"{'These are' if words.is_many(thing) else 'This is'} {words.thing_words(thing)}.")
        return Question(ask, f"I see {words.join_list([words.shape_words(part) for part in thing.parts])}.")
    seen = [f"{_thing_words(thing)} {where_words(thing)}" for thing in scene.things]
    return Question(ask, f"I see {words.join_list(seen)}.")


def _ask_colour(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    """Ask for the colour of a part, or whether it has a certain colour."""
    number = rng.randrange(len(scene.things))
    if not is_unique(scene, number):
        return None
    thing = scene.things[number]
    index = rng.randrange(len(thing.parts))
    part = thing.parts[index]
    if thing.kind is None:
        if sum(other.shape == part.shape for other in unnamed_parts(scene, number)) > 1:
            return None
        name, many = part.shape + ("s" if part.place in PAIRED else ""), part.place in PAIRED
    else:
        name, many = part_phrase(scene, number, index, rng), part.place in PAIRED or words.is_plural(str(part.name))
    shared = thing.kind and sum(other.name == part.name for each in scene.things for other in each.parts) > 1
    called = f"The {part.name} of the {thing.kind}" if shared else f"The {part.name or name}"
    truth = f"{called.lower()} {'are' if many else 'is'} {part.colour}."
    plural = "_many" if many else ""
    if rng.random() < 0.75:
        return Question(_pick_phrase(rng, f"colour{plural}", part=name), words.capitalise(truth))
    colours = [c for c in PART_COLOURS if thing.kind is None or pool.held or not is_held_out_colour(thing.kind, str(part.name), c)]
    colour = part.colour if rng.random() < 0.5 else rng.choice(colours)
    ask = _pick_phrase(rng, f"is_colour{plural}", part=name, colour=colour)
    return Question(ask, f"{'Yes' if colour == part.colour else 'No'}, {truth}")


def _ask_count(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    if any(thing.kind is None for thing in scene.things):
        return None
    if rng.random() < 0.2:
        count = len(scene.things)
        return Question(_pick_phrase(rng, "count_all"), f"There {'is one thing' if count == 1 else f'are {NUMBERS[count]} things'}.")
    present = [str(thing.kind) for thing in scene.things if not words.is_many(thing)]
    absent = [kind for kind in kinds("train") if things()[kind].article]
    kind = rng.choice(present) if present and rng.random() < 0.85 else rng.choice(absent)
    count, entry = sum(thing.kind == kind for thing in scene.things), things()[kind]
    many = f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {entry.kind if count == 1 else entry.plural}."
    return Question(_pick_phrase(rng, "count", things=entry.plural), many)


def _ask_where(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    if thing.kind is None or not is_unique(scene, number):
        return None
    many = words.is_many(thing)
    ask = _pick_phrase(rng, "where_many" if many else "where", the=f"the {thing.kind}")
    return Question(ask, f"The {thing.kind} {'are' if many else 'is'} {where_words(thing)}.")


def _ask_presence(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    """Ask whether a kind is in the picture. Present and absent kinds are asked for equally often."""
    present = [thing for thing in scene.things if thing.kind]
    if present and rng.random() < 0.5:
        thing = rng.choice(present)
        same = [other for other in present if other.kind == thing.kind]
        entry = entry_of(thing)
        ask = _pick_phrase(rng, "there", a=entry.name_with_article())
        if len(same) > 1:
            return Question(ask, f"Yes, there are {NUMBERS[len(same)]} {entry.plural}.")
        return Question(ask, f"Yes, there {'are' if words.is_many(thing) else 'is'} {entry.name_with_article()} {where_words(thing)}.")
    kind = rng.choice([kind for kind in kinds("train") if kind not in {thing.kind for thing in present}])
    entry = things()[kind]
    return Question(_pick_phrase(rng, "there", a=entry.name_with_article()), f"No, there {'is' if entry.article else 'are'} no {kind}.")


def _ask_background(rng: random.Random, pool: Pool, scene: Scene) -> Question:
    return Question(_pick_phrase(rng, "background"), BACKGROUND_ANSWERS[scene.background])


def _ask_day(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    if scene.background == "paper":
        return None
    return Question(_pick_phrase(rng, "day"), "It is night." if scene.background == "night" else "It is day.")


def _ask_bigger(rng: random.Random, pool: Pool, scene: Scene) -> Question | None:
    if len(scene.things) != 2 or scene.things[0].kind == scene.things[1].kind or any(thing.kind is None for thing in scene.things):
        return None
    if scene.things[0].scale == scene.things[1].scale:
        return None
    big = next(thing for thing in scene.things if thing.scale == "big")
    one, other = (f"the {thing.kind}" for thing in rng.sample(scene.things, 2))
    return Question(_pick_phrase(rng, "bigger", one=one, other=other), f"The {big.kind} {'are' if words.is_many(big) else 'is'} bigger.")


QUESTIONS = {
    _ask_what: 0.16, _ask_colour: 0.36, _ask_count: 0.12, _ask_where: 0.12, _ask_presence: 0.16, _ask_background: 0.1, _ask_day: 0.03,
    _ask_bigger: 0.06,
}  # fmt: skip
