"""Make conversations for training and evaluation from a seed: guides, single pictures, edits, questions and talk.

A conversation is data (`Dialogue`): words and scenes in order. `draw_turns` draws the scenes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL.Image import Image as Picture

from duogen.conversation import Image, Message, Turn
from duogen.sketchbook import words, world
from duogen.sketchbook.change import loose_parts, remove_part
from duogen.sketchbook.compose import Composition, compose_three, follow_example, give_colours, keep_thing, put_thing
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Edit, Pool, random_edit
from duogen.sketchbook.phrases import background_phrase, fill_template, make_untidy, phrases, placing_phrase, shapes_phrase, thing_phrase
from duogen.sketchbook.questions import random_question
from duogen.sketchbook.scene import BACKGROUNDS, SIDES, Scene, Thing, fits_canvas
from duogen.sketchbook.world import (
    HELD_OUT_KINDS,
    has_held_out,
    is_held_out_colour,
    make_thing,
    random_colours,
    random_composition,
    random_scene,
    relation,
    things,
    use_expected_colours,
)

TRIES = 500
KINDS = ("guide", "more", "picture", "edit", "question", "talk")  # of answers; "more" goes on with a guide


@dataclass(frozen=True)
class Line(Message[Scene]):
    """A message whose pictures are scenes.

    Attributes:
        kind: what kind an answer is, one of `KINDS`; "" for the user's words.
        free: nothing fixes what the answer's picture shows: the request left all of it open, or accepted what was offered.
    """

    kind: str = ""
    free: bool = False

    def scenes(self) -> list[Scene]:
        return self.pictures()


@dataclass(frozen=True)
class Dialogue:
    """A conversation as data."""

    task: str
    lines: tuple[Line, ...]

    def scenes(self) -> list[Scene]:
        """Every scene in order, including the user's uploads."""
        return [scene for line in self.lines for scene in line.scenes()]


def sample(task: str, rng: random.Random, held: bool = False, kinds: Sequence[str] | None = None) -> Dialogue:
    """Sample a conversation of a task.

    Args:
        held: the conversation holds at least one held-out kind, coloured part or relation (talk has none); else never any.
        kinds: show only these kinds, and no unnamed shapes; by default all kinds of the training split.

    Raises:
        ValueError: there is no such task or kind, or the kinds and `held` contradict each other.
    """
    if task not in TASKS:
        raise ValueError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    unknown = [kind for kind in kinds or () if kind not in things()]
    if unknown:
        raise ValueError(f"The world has no {', '.join(unknown)}; choose from {', '.join(things())}.")
    if not held and any(kind in HELD_OUT_KINDS for kind in kinds or ()):
        raise ValueError(f"{', '.join(sorted(HELD_OUT_KINDS))} are held out of training; pass held=True to see them.")
    pool = Pool(tuple(kinds or world.kinds("train")), held, shapes=not held and kinds is None)
    for _ in range(TRIES):
        dialogue = Dialogue(task, tuple(TASKS[task](rng, pool)))
        if task == "talk" or any(map(has_held_out, dialogue.scenes())) == held:
            return dialogue
    raise ValueError(f"No {task} conversation about {', '.join(pool.kinds)} has something held out; choose other kinds.")


def sample_any(rng: random.Random, weights: dict[str, float], held: bool = False) -> Dialogue:
    """Sample a conversation of a random task, chosen with `weights`."""
    return sample(rng.choices(list(weights), list(weights.values()))[0], rng, held)


def draw_turns(dialogue: Dialogue, renderer: Callable[[Scene], Picture] = draw) -> list[Turn]:
    """The turns of a conversation, with scenes drawn by `renderer`. The parent of each turn is the turn before it."""
    chain: list[Turn] = []
    for line in dialogue.lines:
        parent = chain[-1].id if chain else None
        chain.append(line.make_turn(lambda scene: Image(renderer(scene), alt=words.picture_sentence(scene)), parent))
    return chain


def _user_line(rng: random.Random, *parts: str | Scene) -> Line:
    return Line("user", tuple(make_untidy(part, rng) if isinstance(part, str) else part for part in parts))


def _assistant_line(kind: str, *parts: str | Scene, free: bool = False) -> Line:
    return Line("assistant", parts, kind, free)


def _pick_phrase(rng: random.Random, task: str, key: str, **fields: str) -> str:
    return fill_template(rng.choice(phrases(task)[key]), **fields)


# Guides


@dataclass(frozen=True)
class GuideRequest:
    """The request for a guide: a scene of one thing, the parts whose colour it names, and the parts it leaves out."""

    scene: Scene
    named: tuple[int, ...] = ()
    missing: tuple[str, ...] = ()
    background: bool = False

    @property
    def thing(self) -> Thing:
        return self.scene.things[0]


def _make_guide_request(rng: random.Random, pool: Pool) -> GuideRequest:
    """Make a request for a guide that fixes nothing, some or all. What it leaves open is random."""
    kind = rng.choice(pool.kinds)
    is_specific = rng.random() < 0.65 or pool.held
    colours = random_colours(kind, rng, natural=0.4 if is_specific else 0.85, held=pool.held)
    thing = make_thing(kind, colours)
    if rng.random() < 0.08:
        thing = replace(thing, side=rng.choice(SIDES))
        thing = thing if fits_canvas(thing) else replace(thing, side="middle")
    missing: tuple[str, ...] = ()
    if rng.random() < 0.08 and loose_parts(thing):
        index = rng.choice(loose_parts(thing))
        missing = (str(thing.parts[index].name),)
        thing = remove_part(thing, index)
    named = _pick_named_parts(rng, thing, pool) if is_specific else ()
    thing = use_expected_colours(thing, named, rng) if is_specific else thing
    scene = Scene(rng.choice(BACKGROUNDS), (thing,))
    return GuideRequest(scene, named, missing, background=rng.random() < 0.3 or thing.side != "middle")


def _pick_named_parts(rng: random.Random, thing: Thing, pool: Pool) -> tuple[int, ...]:
    """Pick the parts whose colour the request names. Held-out colours are always named, so the words test them."""
    free = [index for index in range(len(thing.parts)) if words.can_be_named(thing, index)]
    count = rng.choices((0, 1, 2, 3, len(free)), (0.12, 0.4, 0.26, 0.1, 0.12))[0]
    named = set(rng.sample(free, min(count, len(free))))
    if pool.held and thing.kind not in HELD_OUT_KINDS:
        parts = enumerate(thing.parts)
        named |= {index for index, part in parts if is_held_out_colour(str(thing.kind), str(part.name), part.colour)}
    return tuple(sorted(named))


def _make_guide(rng: random.Random, pool: Pool) -> list[Line]:
    if pool.shapes and rng.random() < 0.2:
        return _make_shapes_guide(rng, pool)
    request = _make_guide_request(rng, pool)
    ask = _phrase_guide_request(rng, request)
    total = len(request.thing.parts)
    roll = rng.random()
    if roll < 0.14 and total > 2:
        return _make_guide_in_pieces(rng, pool, request, ask)
    ends = list(range(1, total + 1))
    if roll < 0.3 and total > 2:
        count = rng.randint(2, total - 1)
        ends = sorted(rng.sample(range(1, total), count - 1)) + [total]
        ask = _pick_phrase(rng, "guide", "steps", ask=ask, n=rng.choice(phrases("guide")["numbers"][str(count)]))
    opening = words.opening_sentence(request.thing, request.named, request.missing)
    parts = _make_steps(rng, request.scene, ends, opening)
    lines = [_user_line(rng, ask), _assistant_line("guide", *parts, _pick_closing(rng, request.thing))]
    return lines + _make_follow_ups(rng, pool, request.scene, 0.35)


def make_guide_line(rng: random.Random, scene: Scene, named: Sequence[int]) -> Line:
    """Make the answer that draws the one thing of a scene part by part, for a request that names the colours of the parts `named`."""
    thing = scene.things[0]
    steps = _make_steps(rng, scene, list(range(1, len(thing.parts) + 1)), words.opening_sentence(thing, named))
    return _assistant_line("guide", *steps, _pick_closing(rng, thing))


def _phrase_guide_request(rng: random.Random, request: GuideRequest) -> str:
    """The user's words of a request for a guide."""
    thing, data = request.thing, phrases("guide")
    kind = str(thing.kind)
    entry, common = things()[kind], phrases("common")
    verb = rng.choice(common["verbs"].get(kind, common["verbs"][entry.family]))
    if not request.named and not request.missing and not request.background:
        if kind in data["german_things"] and rng.random() < 0.05:
            return _pick_phrase(rng, "guide", "german", a=data["german_things"][kind])
        if rng.random() < 0.15:
            return _pick_phrase(rng, "guide", "plural" if entry.article else "plain_many", things=entry.plural, verb=verb)
    phrase = thing_phrase(thing, request.named, request.missing, rng)
    if request.background:
        phrase += f" {background_phrase(request.scene, rng)}"
        phrase += f", {placing_phrase(thing, rng)}" if thing.side != "middle" else ""
    return _pick_phrase(rng, "guide", "ask", a=phrase, verb=verb)


def _make_steps(rng: random.Random, scene: Scene, ends: list[int], opening: str = "", start: int = 0, number: int = 1) -> list[str | Scene]:
    """Numbered steps, each followed by its picture. `ends` are the numbers of parts after which a step ends."""
    parts: list[str | Scene] = []
    thing = scene.things[0]
    for count, end in enumerate(ends):
        sentences = [words.step_sentence(scene, 0, index, rng.choice(words.VERBS)) for index in range(start, end)]
        text = f"Step {number + count}. {' '.join(sentences)}"
        so_far = replace(scene, things=(replace(thing, parts=thing.parts[:end]),))
        parts += [f"{opening}\n\n{text}" if opening and not count else text, so_far]
        start = end
    return parts


def _pick_closing(rng: random.Random, thing: Thing) -> str:
    if thing.kind is None:
        return _pick_phrase(rng, "guide", "closings_shapes")
    return _pick_phrase(rng, "guide", "closings_many" if words.is_many(thing) else "closings", the=f"the {thing.kind}")


def _make_guide_in_pieces(rng: random.Random, pool: Pool, request: GuideRequest, ask: str) -> list[Line]:
    """Make a guide that stops after its first steps and continues when asked to."""
    total = len(request.thing.parts)
    given = 1 if rng.random() < 0.5 else rng.randint(2, total - 1)
    key = "first" if given == 1 else "first_some"
    ask = _pick_phrase(rng, "guide", key, ask=ask, n=rng.choice(phrases("guide")["numbers"][str(given)]))
    opening = words.opening_sentence(request.thing, request.named, request.missing)
    first = _make_steps(rng, request.scene, list(range(1, given + 1)), opening)
    lines = [_user_line(rng, ask), _assistant_line("guide", *first, _pick_phrase(rng, "guide", "waits"))]
    while given < total:
        rest = rng.random() < 0.35
        end = total if rest else given + 1
        parts = _make_steps(rng, request.scene, list(range(given + 1, end + 1)), start=given, number=given + 1)
        last = _pick_closing(rng, request.thing) if end == total else _pick_phrase(rng, "guide", "waits")
        lines += [_user_line(rng, _pick_phrase(rng, "guide", "go_on_all" if rest else "go_on")), _assistant_line("more", *parts, last)]
        given = end
        if given < total and rng.random() < 0.25:
            break
    return lines


def _make_shapes_guide(rng: random.Random, pool: Pool) -> list[Line]:
    scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=5),))
    thing = scene.things[0]
    phrase = shapes_phrase(thing, rng)
    if rng.random() < 0.4:
        phrase += f", {background_phrase(scene, rng)}" if rng.random() < 0.5 else f", all {background_phrase(scene, rng)}"
    ask = _pick_phrase(rng, "guide", "shapes", shapes=phrase)
    parts = _make_steps(rng, scene, list(range(1, len(thing.parts) + 1)), words.opening_sentence(thing))
    return [_user_line(rng, ask), _assistant_line("guide", *parts, _pick_closing(rng, thing))] + _make_follow_ups(rng, pool, scene, 0.15)


# Follow-ups that any conversation about a picture may have


def _make_follow_ups(rng: random.Random, pool: Pool, scene: Scene, chance: float) -> list[Line]:
    """Make random follow-ups: edits, questions, another picture, small talk or thanks; often none."""
    lines: list[Line] = []
    while rng.random() < chance and len(lines) < 4:
        roll = rng.random()
        if roll < 0.15:
            lines += _question_lines(rng, pool, scene)
        elif roll < 0.28:
            more, scene = _picture_lines(rng, pool, "ask_again" if rng.random() < 0.6 else "ask")
            lines += more
        elif roll < 0.34:
            lines += _chat_lines(rng)
        else:
            edit = random_edit(rng, pool, scene)
            lines += _edit_lines(rng, edit)
            scene = edit.scene
    return lines + (_thanks_lines(rng) if rng.random() < 0.06 else [])


def _edit_lines(rng: random.Random, edit: Edit) -> list[Line]:
    return [_user_line(rng, _pick_phrase(rng, "edit", "follow", ask=edit.ask)), _assistant_line("edit", edit.answer, edit.scene)]


def _question_lines(rng: random.Random, pool: Pool, scene: Scene) -> list[Line]:
    question = random_question(rng, pool, scene)
    return [_user_line(rng, _pick_phrase(rng, "question", "follow", ask=question.ask)), _assistant_line("question", question.answer)]


def _thanks_lines(rng: random.Random) -> list[Line]:
    thanks = phrases("common")["thanks"]
    return [_user_line(rng, rng.choice(thanks["ask"])), _assistant_line("talk", rng.choice(thanks["answer"]))]


# Single pictures


def _make_picture(rng: random.Random, pool: Pool) -> list[Line]:
    lines, scene = _offer_lines(rng) if pool.shapes and rng.random() < 0.04 else _picture_lines(rng, pool)
    return lines + _make_follow_ups(rng, pool, scene, 0.2)


def _offer_lines(rng: random.Random) -> tuple[list[Line], Scene]:
    """A request outside the world; the offered alternative is accepted and painted."""
    lines, near = _outside_lines(rng, foreign=False)
    scene = Scene(rng.choice(BACKGROUNDS), (make_thing(near, random_colours(near, rng, natural=0.7)),))
    yes = rng.choice(phrases("talk")["outside"]["yes"])
    return lines + [_user_line(rng, yes), _assistant_line("picture", words.picture_sentence(scene), scene, free=True)], scene


def _picture_lines(rng: random.Random, pool: Pool, key: str = "ask") -> tuple[list[Line], Scene]:
    """A request for one picture, and the answer. `key`: of the phrasings of the request."""
    roll = rng.random()
    if pool.shapes and roll < 0.27:
        scene = Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=3),))
        phrase = shapes_phrase(scene.things[0], rng)
    elif roll < 0.4 and not pool.held:
        scene = _make_several(rng, pool)
        phrase = _several_phrase(rng, scene)
    else:
        scene = random_scene(rng, list(pool.kinds), pool.held)
        named = [_pick_few_parts(rng, pool, thing) for thing in scene.things]
        pairs = zip(scene.things, named, strict=True)
        scene = replace(scene, things=tuple(use_expected_colours(thing, few, rng) for thing, few in pairs))
        phrase = _scene_phrase(rng, scene, named)
    if rng.random() < 0.5:
        phrase += f" {background_phrase(scene, rng)}"
    ask = _pick_phrase(rng, "picture", key, a=phrase)
    vague = not pool.held and rng.random() < 0.06
    if vague:
        ask = _pick_phrase(rng, "picture", "vague")
    return [_user_line(rng, ask), _assistant_line("picture", words.picture_sentence(scene), scene, free=vague)], scene


def _make_several(rng: random.Random, pool: Pool) -> Scene:
    """Two or three small things of one kind, mostly in the same colours."""
    kind = rng.choice(pool.kinds)
    level = "sky" if rng.random() < 0.25 else "ground"
    colours = random_colours(kind, rng)
    alike = rng.random() < 0.75
    chosen = rng.sample(SIDES, rng.choice((2, 3)))
    sides = [side for side in SIDES if side in chosen]
    each = [colours if alike else random_colours(kind, rng) for _ in sides]
    placed = [make_thing(kind, chosen, scale="small", side=side, level=level) for chosen, side in zip(each, sides, strict=True)]
    return Scene(rng.choice(BACKGROUNDS), tuple(placed))


def _several_phrase(rng: random.Random, scene: Scene) -> str:
    """ "two trees", "three small red houses in the sky"."""
    thing, count = scene.things[0], str(len(scene.things))
    words_ = [rng.choice(phrases("picture")["counts"][count])]
    words_ += [rng.choice(("small", "little"))] if rng.random() < 0.35 else []
    main = words.main_part(thing)
    if all(other.parts == thing.parts for other in scene.things) and words.can_be_named(thing, main) and rng.random() < 0.5:
        words_.append(thing.parts[main].colour)
    words_.append(things()[str(thing.kind)].plural)
    if thing.level == "sky" or rng.random() < 0.1:
        words_.append("in the sky" if thing.level == "sky" else "on the ground")
    return " ".join(words_)


def _scene_phrase(rng: random.Random, scene: Scene, named: Sequence[tuple[int, ...]]) -> str:
    """The user's words for the things with the colours of their parts `named` and, for two things, their relation."""
    wanted = [thing_phrase(thing, few, (), rng) for thing, few in zip(scene.things, named, strict=True)]
    if len(wanted) == 1:
        thing = scene.things[0]
        tell = (thing.side, thing.level) != ("middle", "ground") and rng.random() < 0.7
        return f"{wanted[0]} {placing_phrase(thing, rng)}" if tell else wanted[0]
    data = phrases("picture")
    if len(wanted) == 2:
        key = relation(scene.things[1], scene.things[0])
        templates = data["relations"][key] if rng.random() < 0.65 else data["and"]
        return rng.choice(templates).format(first=wanted[0], other=wanted[1])
    if rng.random() < 0.5:
        wanted = [f"{phrase} {placing_phrase(thing, rng)}" for phrase, thing in zip(wanted, scene.things, strict=True)]
    return words.join_list(wanted)


def _pick_few_parts(rng: random.Random, pool: Pool, thing: Thing) -> tuple[int, ...]:
    """Pick the parts to name for a single picture: mostly the main part or none; held-out colours always."""
    main = words.main_part(thing)
    if pool.held or rng.random() < 0.4:
        return _pick_named_parts(rng, thing, pool)
    return (main,) if rng.random() < 0.5 and words.can_be_named(thing, main) else ()


# Edits and questions


def _make_upload_scene(rng: random.Random, pool: Pool) -> Scene:
    if pool.shapes and rng.random() < 0.22:
        return Scene(rng.choice(BACKGROUNDS), (random_composition(rng, most=4),))
    scene = random_scene(rng, list(pool.kinds), pool.held)
    thing = scene.things[0]
    if rng.random() < 0.12 and loose_parts(thing):
        scene = scene.with_thing(0, remove_part(thing, rng.choice(loose_parts(thing))))
    return scene


def _upload_line(rng: random.Random, task: str, scene: Scene, ask: str) -> Line:
    text = _pick_phrase(rng, task, "upload", ask=ask)
    return _user_line(rng, scene, text) if rng.random() < 0.75 else _user_line(rng, text, scene)


def _make_edits(rng: random.Random, pool: Pool) -> list[Line]:
    """Make one to four edits in a row, of an upload or of a picture painted before."""
    if rng.random() < 0.25:
        lines, scene = _picture_lines(rng, pool)
    else:
        lines, scene = [], _make_upload_scene(rng, pool)
    for count in range(rng.choices((1, 2, 3, 4), (0.4, 0.3, 0.18, 0.12))[0]):
        edit = random_edit(rng, pool, scene)
        if lines or count:
            lines += _edit_lines(rng, edit)
        else:
            lines += [_upload_line(rng, "edit", scene, edit.ask), _assistant_line("edit", edit.answer, edit.scene)]
        scene = edit.scene
    return lines + (_thanks_lines(rng) if rng.random() < 0.05 else [])


def _make_questions(rng: random.Random, pool: Pool) -> list[Line]:
    """Make one to three questions about an upload or a picture painted before."""
    if rng.random() < 0.2:
        lines, scene = _picture_lines(rng, pool)
    else:
        lines, scene = _upload_question_lines(rng, pool)
    more = rng.choices((0, 1, 2), (0.5, 0.3, 0.2))[0]
    for _ in range(max(more, 1) if lines[-1].scenes() else more):
        lines += _question_lines(rng, pool, scene)
    return lines + (_thanks_lines(rng) if rng.random() < 0.05 else [])


def _upload_question_lines(rng: random.Random, pool: Pool) -> tuple[list[Line], Scene]:
    scene = _make_upload_scene(rng, pool)
    question = random_question(rng, pool, scene)
    return [_upload_line(rng, "question", scene, question.ask), _assistant_line("question", question.answer)], scene


def _make_quiz(rng: random.Random, pool: Pool) -> list[Line]:
    """Make many questions about one upload, so training gets more out of one picture."""
    lines, scene = _upload_question_lines(rng, pool)
    for _ in range(rng.randint(4, 7)):
        lines += _question_lines(rng, pool, scene)
    return lines


def _make_description(rng: random.Random, pool: Pool) -> list[Line]:
    """Make a full description of an upload, from left to right."""
    scene = _make_upload_scene(rng, pool)
    ask = fill_template(rng.choice(phrases("question")["detail"]))
    ordered = sorted(scene.things, key=lambda thing: (SIDES.index(thing.side), thing.level))
    said = words.picture_sentence(replace(scene, things=tuple(ordered)))
    return [_upload_line(rng, "question", scene, ask), _assistant_line("question", said)]


# Several pictures


def _compose(make: Callable[[random.Random, Pool], Composition], rng: random.Random, pool: Pool, kind: str = "edit") -> list[Line]:
    """One request about one or several uploads, and the last of them changed."""
    made = make(rng, pool)
    parts = (*made.scenes, made.ask) if rng.random() < 0.75 else (made.ask, *made.scenes)
    return [_user_line(rng, *parts), _assistant_line(kind, made.answer, made.scene)]


# Talk


def _make_talk(rng: random.Random, pool: Pool) -> list[Line]:
    """Make small talk, general questions and requests outside the world, answered in words alone."""
    lines: list[Line] = []
    for _ in range(rng.choices((1, 2, 3), (0.6, 0.28, 0.12))[0]):
        lines += _outside_lines(rng)[0] if rng.random() < 0.3 else _chat_lines(rng)
    return lines


def _chat_lines(rng: random.Random) -> list[Line]:
    data = phrases("talk")
    entry = rng.choice(data["chat"] if rng.random() < 0.45 else data["general"])
    return [_user_line(rng, rng.choice(entry["ask"])), _assistant_line("talk", rng.choice(entry["answer"]))]


def _outside_lines(rng: random.Random, foreign: bool = True) -> tuple[list[Line], str]:
    """A request outside the world: the answer declines and offers a similar kind. Returns the lines and that kind.

    Args:
        foreign: requests in other languages too; the answer says in that language that English is understood.
    """
    data = phrases("talk")["outside"]
    group = rng.choice([each for each in data["groups"] if foreign or each["kind"] not in data["languages"]])
    phrase, near = rng.choice(group["wishes"]), rng.choice(group["near"])
    templates = {"thing": data["asks"], "howto": data["ways"]}.get(group["kind"], ["{a}"])
    ask = rng.choice(templates).format(a=phrase)
    answer = rng.choice(data["sorry"][group["kind"]]).format(a=re.sub(r"\bmy\b", "your", phrase), near=things()[near].name_with_article())
    return [_user_line(rng, ask), _assistant_line("talk", answer)], near


TASKS: dict[str, Callable[[random.Random, Pool], list[Line]]] = {
    "guide": _make_guide,
    "picture": _make_picture,
    "edit": _make_edits,
    "question": _make_questions,
    "quiz": _make_quiz,
    "described": _make_description,
    "talk": _make_talk,
    "put": partial(_compose, put_thing),
    "colours": partial(_compose, give_colours),
    "three": partial(_compose, compose_three),
    "example": partial(_compose, follow_example),
    "approved": partial(_compose, keep_thing, kind="picture"),
}
