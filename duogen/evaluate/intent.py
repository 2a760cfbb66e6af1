"""Check whether a scene fits a request, given what the request fixes and what it leaves open.

The reference conversation shows one scene of the many that fit the request. The pair may choose another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from duogen.sketchbook import words
from duogen.sketchbook.phrases import phrases
from duogen.sketchbook.scene import COLOURS, Part, Scene, Thing
from duogen.sketchbook.world import relation, scene_relations

Named = frozenset[tuple[str, str]]  # (part, colour)


def find_named_parts(opening: str, thing: Thing) -> Named:
    """The parts whose colour the opening sentence of a guide repeats from the request, with their colours."""
    main = words.main_part(thing) if thing.kind else -1
    found = set()
    for index, part in enumerate(thing.parts if thing.kind else ()):
        whole = index == main and f"{part.colour} {thing.kind}" in opening
        if whole or re.search(rf"\b{re.escape(words.coloured_words(part))}\b", opening):
            found.add((str(part.name), part.colour))
    return frozenset(found)


def find_background(ask: str) -> str | None:
    """The background that a request names; `None` if it leaves it open."""
    for name, options in phrases("common")["backgrounds"].items():
        if any(option in ask for option in options):
            return name
    return None


def find_colours(ask: str) -> set[str]:
    """The colours that a request names, by any of their names."""
    for options in phrases("common")["backgrounds"].values():
        for option in options:
            ask = ask.replace(option, " ")  # "in a green field" is no green thing
    names = {name: name for name in COLOURS}
    for colour, others in phrases("common")["colours"].items():
        names |= dict.fromkeys(others, colour)
    return {colour for name, colour in names.items() if re.search(rf"\b{name}\b", ask)}


def matches_part(said: Part, meant: Part, ask: str, named: Named = frozenset()) -> bool:
    """Whether a guide's part is the reference part: in shape, size and place, and in colour where the request named it."""
    if meant.name is None:
        same = (said.name, said.shape, said.place, said.of) == (None, meant.shape, meant.place, meant.of)
        return same and (said.colour == meant.colour or meant.colour not in find_colours(ask))
    if (said.name, said.shape, said.size, said.place, said.of, said.stand) != (
        meant.name, meant.shape, meant.size, meant.place, meant.of, meant.stand,
    ):  # fmt: skip
        return False
    requested = {colour for name, colour in named if name == said.name}
    return not requested or said.colour in requested


def matches_picture(said: Scene, meant: Scene, ask: str) -> bool:
    """Whether a picture fits the request that `meant` answers: the things, and what the request says about them."""
    if Counter(thing.kind for thing in said.things) != Counter(thing.kind for thing in meant.things):
        return False
    if find_background(ask) not in (None, said.background):
        return False
    pairs = _pair_things(said.things, meant.things)
    same = all(_has_same_parts(one, other) for one, other in pairs)
    return same and _has_requested_colours(pairs, ask) and _has_requested_places(said, meant, ask)


def matches_edit(said: Scene, before: Scene, meant: Scene, ask: str) -> bool:
    """Whether an edit does what was requested. Only the look of a new thing or part may differ from the reference."""
    if said == meant:
        return True
    if len(meant.things) == len(before.things) + 1:
        if said.background != before.background or said.things[:-1] != before.things:
            return False
        thing, other = said.things[-1], meant.things[-1]
        if thing.kind != other.kind or not _has_same_parts(thing, other):
            return False
        return _has_requested_colours([(thing, other)], ask) and _has_requested_side(thing, other, ask)
    return _differs_in_open_colour(said, before, meant, ask)


def matches_composition(said: Scene, before: Scene, meant: Scene, ask: str) -> bool:
    """Whether what was put into `before` looks as in the picture that it comes from; only its place may differ from the reference."""
    if said == meant:
        return True
    kept = len(before.things)
    new, wanted = said.things[kept:], meant.things[kept:]
    if said.background != before.background or said.things[:kept] != before.things or not new or len(new) != len(wanted):
        return False
    pairs = zip(new, wanted, strict=True)
    return all(one.kind == other.kind and one.parts == other.parts and _has_requested_side(one, other, ask) for one, other in pairs)


def keeps_thing(said: Scene, before: Scene, kept: Thing) -> bool:
    """Whether `kept` stays as it is in `before` and nothing else of it does: the other things go or change, or there are new ones."""
    others = [thing for thing in before.things if thing != kept]
    return kept in said.things and said != before and not any(thing in said.things for thing in others)


def _differs_in_open_colour(said: Scene, before: Scene, meant: Scene, ask: str) -> bool:
    """Whether only the colour of a new part differs, and the request names no colour."""
    if (said.background, len(said.things)) != (meant.background, len(meant.things)) or find_colours(ask):
        return False
    for one, other, old in zip(said.things, meant.things, before.things, strict=False):
        if one == other:
            continue
        came_new = len(other.parts) == len(old.parts) + 1
        if not came_new or one.parts[:-1] != other.parts[:-1] or not _has_same_parts(one, other):
            return False
    return True


def _has_same_parts(one: Thing, other: Thing) -> bool:
    """Whether both have the same parts in any colours. A named kind may list them in another order."""
    if one.kind is None:
        return [(part.shape, part.place, part.of) for part in one.parts] == [(part.shape, part.place, part.of) for part in other.parts]
    return Counter(part.name for part in one.parts) == Counter(part.name for part in other.parts)


def _pair_things(said: Collection[Thing], meant: Collection[Thing]) -> list[tuple[Thing, Thing]]:
    """Pair each thing with a reference thing of its kind."""
    left = list(meant)
    pairs = []
    for thing in said:
        other = next(each for each in left if each.kind == thing.kind)
        left.remove(other)
        pairs.append((thing, other))
    return pairs


def _has_requested_colours(pairs: list[tuple[Thing, Thing]], ask: str) -> bool:
    """Whether every colour of the request is on one of the parts that should have it."""
    for colour in find_colours(ask):
        meant = [(one, part) for one, other in pairs for part in other.parts if part.colour == colour]
        if meant and not any(_has_part(one, part) for one, part in meant):
            return False
    return True


def _has_part(thing: Thing, meant: Part) -> bool:
    return any((part.name, part.shape, part.colour) == (meant.name, meant.shape, meant.colour) for part in thing.parts)


def _has_requested_places(said: Scene, meant: Scene, ask: str) -> bool:
    if len(meant.things) == 1:
        return _has_requested_side(said.things[0], meant.things[0], ask)
    requested = _find_relations(ask)
    if len(meant.things) == 2 and scene_relations(meant) and meant.things[0].kind != meant.things[1].kind and requested:
        first = next(thing for thing in said.things if thing.kind == meant.things[0].kind)
        other = next(thing for thing in said.things if thing.kind == meant.things[1].kind)
        true = relation(meant.things[1], meant.things[0])
        return true not in requested or relation(other, first) == true
    if any(option in ask for option in phrases("common")["sky"]):
        levels = (Counter((thing.kind, thing.level) for thing in scene.things) for scene in (said, meant))
        return next(levels) == next(levels)
    return True


def _find_relations(ask: str) -> set[str]:
    """The relations that the request phrases."""
    found = set()
    for name, templates in phrases("picture")["relations"].items():
        links = [re.split(r"\{\w+\}", template) for template in templates]
        if any(all(link.strip() in ask for link in pieces if link.strip()) for pieces in links):
            found.add(name)
    return found


def _has_requested_side(said: Thing, meant: Thing, ask: str) -> bool:
    common = phrases("common")
    side = any(option in ask for option in common["sides"][meant.side])
    sky = meant.level == "sky" and any(option in ask for option in common["sky"])
    return (not side or said.side == meant.side) and (not sky or said.level == "sky")
