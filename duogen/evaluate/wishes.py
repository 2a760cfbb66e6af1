"""What a user's words fix and what they leave open: whether a said scene is one that the user may have meant.

The reference conversation chose one scene of the many that fit the wish; the pair may choose another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from duogen.sketchbook import words
from duogen.sketchbook.phrases import phrases
from duogen.sketchbook.scene import COLOURS, Part, Scene, Thing
from duogen.sketchbook.world import relation, relations_of

Named = frozenset[tuple[str, str]]  # (part, colour)


def named_parts(opening: str, thing: Thing) -> Named:
    """The parts whose colour a guide's opening sentence repeats from the wish, with their colours."""
    main = words.main_part(thing) if thing.kind else -1
    found = set()
    for index, part in enumerate(thing.parts if thing.kind else ()):
        whole = index == main and f"{part.colour} {thing.kind}" in opening
        if whole or re.search(rf"\b{re.escape(words.coloured_words(part))}\b", opening):
            found.add((str(part.name), part.colour))
    return frozenset(found)


def wished_background(ask: str) -> str | None:
    """The background that a wish names, `None` if it leaves it open."""
    for name, options in phrases("common")["backgrounds"].items():
        if any(option in ask for option in options):
            return name
    return None


def wished_colours(ask: str) -> set[str]:
    """The colours that a wish names, whatever it calls them."""
    for options in phrases("common")["backgrounds"].values():
        for option in options:
            ask = ask.replace(option, " ")  # "in a green field" is no green thing
    names = {name: name for name in COLOURS}
    for colour, others in phrases("common")["colours"].items():
        names |= dict.fromkeys(others, colour)
    return {colour for name, colour in names.items() if re.search(rf"\b{name}\b", ask)}


def part_as_meant(said: Part, meant: Part, ask: str, named: Named = frozenset()) -> bool:
    """Whether a guide's part is the meant one: shape, size and place always, its colour where the wish named it."""
    if meant.name is None:
        same = (said.name, said.shape, said.place, said.of) == (None, meant.shape, meant.place, meant.of)
        return same and (said.colour == meant.colour or meant.colour not in wished_colours(ask))
    if (said.name, said.shape, said.size, said.place, said.of, said.stand) != (
        meant.name, meant.shape, meant.size, meant.place, meant.of, meant.stand,
    ):  # fmt: skip
        return False
    wished = {colour for name, colour in named if name == said.name}
    return not wished or said.colour in wished


def picture_as_meant(said: Scene, meant: Scene, ask: str) -> bool:
    """Whether a said picture grants the wish that `meant` was made from: the things, and what the wish names of them."""
    if Counter(thing.kind for thing in said.things) != Counter(thing.kind for thing in meant.things):
        return False
    if wished_background(ask) not in (None, said.background):
        return False
    pairs = _matched(said.things, meant.things)
    return all(_same_parts(one, other) for one, other in pairs) and _colours_granted(pairs, ask) and _placed_as_meant(said, meant, ask)


def edit_as_meant(said: Scene, before: Scene, meant: Scene, ask: str) -> bool:
    """Whether an edit led where the wish said; only a new thing's or part's looks may be open."""
    if said == meant:
        return True
    if len(meant.things) == len(before.things) + 1:
        if said.background != before.background or said.things[:-1] != before.things:
            return False
        thing, other = said.things[-1], meant.things[-1]
        if thing.kind != other.kind or not _same_parts(thing, other):
            return False
        return _colours_granted([(thing, other)], ask) and _side_granted(thing, other, ask)
    return _only_open_colour(said, before, meant, ask)


def _only_open_colour(said: Scene, before: Scene, meant: Scene, ask: str) -> bool:
    """A part came new and nobody said in which colour."""
    if (said.background, len(said.things)) != (meant.background, len(meant.things)) or wished_colours(ask):
        return False
    for one, other, old in zip(said.things, meant.things, before.things, strict=False):
        if one == other:
            continue
        came_new = len(other.parts) == len(old.parts) + 1
        if not came_new or one.parts[:-1] != other.parts[:-1] or not _same_parts(one, other):
            return False
    return True


def _same_parts(one: Thing, other: Thing) -> bool:
    """The same parts whatever their colours; a named kind may list them in another order."""
    if one.kind is None:
        return [(part.shape, part.place, part.of) for part in one.parts] == [(part.shape, part.place, part.of) for part in other.parts]
    return Counter(part.name for part in one.parts) == Counter(part.name for part in other.parts)


def _matched(said: Collection[Thing], meant: Collection[Thing]) -> list[tuple[Thing, Thing]]:
    """Each said thing with a meant one of its kind."""
    left = list(meant)
    pairs = []
    for thing in said:
        other = next(each for each in left if each.kind == thing.kind)
        left.remove(other)
        pairs.append((thing, other))
    return pairs


def _colours_granted(pairs: list[tuple[Thing, Thing]], ask: str) -> bool:
    """Every colour of the wish is on one of the parts that were meant to have it."""
    for colour in wished_colours(ask):
        meant = [(one, part) for one, other in pairs for part in other.parts if part.colour == colour]
        if meant and not any(_has(one, part) for one, part in meant):
            return False
    return True


def _has(thing: Thing, meant: Part) -> bool:
    return any((part.name, part.shape, part.colour) == (meant.name, meant.shape, meant.colour) for part in thing.parts)


def _placed_as_meant(said: Scene, meant: Scene, ask: str) -> bool:
    if len(meant.things) == 1:
        return _side_granted(said.things[0], meant.things[0], ask)
    wished = _relation_words(ask)
    if len(meant.things) == 2 and relations_of(meant) and meant.things[0].kind != meant.things[1].kind and wished:
        first = next(thing for thing in said.things if thing.kind == meant.things[0].kind)
        other = next(thing for thing in said.things if thing.kind == meant.things[1].kind)
        true = relation(meant.things[1], meant.things[0])
        return true not in wished or relation(other, first) == true
    if any(option in ask for option in phrases("common")["sky"]):
        levels = (Counter((thing.kind, thing.level) for thing in scene.things) for scene in (said, meant))
        return next(levels) == next(levels)
    return True


def _relation_words(ask: str) -> set[str]:
    """The relations whose phrasing stands in the wish."""
    found = set()
    for name, templates in phrases("picture")["relations"].items():
        links = [re.split(r"\{\w+\}", template) for template in templates]
        if any(all(link.strip() in ask for link in pieces if link.strip()) for pieces in links):
            found.add(name)
    return found


def _side_granted(said: Thing, meant: Thing, ask: str) -> bool:
    common = phrases("common")
    side = any(option in ask for option in common["sides"][meant.side])
    sky = meant.level == "sky" and any(option in ask for option in common["sky"])
    return (not side or said.side == meant.side) and (not sky or said.level == "sky")
