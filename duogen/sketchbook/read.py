"""Read the assistant's words back into scenes: the inverse of `words.py`.

Evaluation compares each picture with the words before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from duogen.sketchbook import change
from duogen.sketchbook.scene import COLOURS, PAIRED, PLACES, SHAPES, SIZES, STANDS, Part, Scene, Thing
from duogen.sketchbook.words import BACKGROUND_WORDS, PLACING_WORDS, SIDE_WORDS, VERBS, anchor_words, capitalise, name_words
from duogen.sketchbook.world import things


def _any_of(options: Sequence[str]) -> str:
    """A pattern that matches any of the options. Longer ones come first, so no prefix hides them."""
    return "(?:" + "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True)) + ")"


_BACKGROUND = _any_of(list(BACKGROUND_WORDS.values()))
_SIDE = _any_of(list(SIDE_WORDS.values()))
_PLACING = rf"(?:(?P<side>{_SIDE})(?P<sky>, up in the sky)?(?P<small>, half as big)?)"
_PLACING_FIRST = re.compile(rf"^{_PLACING}, ")
_PLACING_LAST = re.compile(rf", {_PLACING}$")
_SHAPE = rf"(?P<count>a|two) (?P<size>{_any_of(list(SIZES))}) (?P<colour>{_any_of(list(COLOURS))}) (?P<shape>{_any_of(SHAPES)})s?"
_WHERE = rf"(?:(?P<stand>{_any_of(list(STANDS))})|(?P<place>{_any_of(list(PLACES))}) (?P<anchor>the .+?))"
_PART = re.compile(rf"^{_SHAPE} {_WHERE}$")
_NAMED = re.compile(rf"^(?:{_any_of(VERBS)}) the (?P<name>.+)$")
_COLOURED = re.compile(rf"^(?:an? )?(?P<name>.+) in (?P<colour>{_any_of(list(COLOURS))})$")
_STEP = re.compile(rf"^(?:{_any_of(VERBS)}) (?P<what>(?:a|two) .+)$")
_FIRST = re.compile(rf"^(?P<background>{_BACKGROUND}), (?P<rest>.+)$", re.IGNORECASE)
_PICTURE = re.compile(rf"^(?P<background>{_BACKGROUND}): (?P<rest>.+)$", re.IGNORECASE)
_OPENING = re.compile(r"^Let's (?:draw|make) (?P<what>.+)$")
_BACKGROUNDS = {words: name for name, words in BACKGROUND_WORDS.items()}
_SIDES = {words: side for side, words in SIDE_WORDS.items()}
_PLACINGS = {words: (name, value) for name, said in PLACING_WORDS.items() for value, words in said.items()}
_WHERE_TO = _any_of(list(_PLACINGS))


@dataclass
class _ReplyParser:
    """The state of reading: the scene so far, and the kind that a guide announced (`None`: unnamed shapes)."""

    scene: Scene | None
    kind: str | None = None

    def read_sentence(self, sentence: str) -> None:
        """Apply one sentence, given without its full stop."""
        for pattern, apply in _SENTENCES:
            match = pattern.match(sentence)
            if match and apply(self, match):
                return
        raise ValueError(f"This sentence says nothing that can be drawn: {sentence!r}.")

    def require_scene(self) -> Scene:
        """The scene.

        Raises:
            ValueError: there is none yet.
        """
        if self.scene is None:
            raise ValueError("The words before the picture do not say where to begin; the first step names the background.")
        return self.scene


def read_reply(parts: Sequence[object], before: Scene | None = None) -> list[Scene]:
    """Read the scenes that the words of a reply describe, one for each of its pictures.

    Args:
        parts: the reply in order; strings are words, everything else counts as a picture. Words after the last picture are
            ignored.
        before: the scene before the reply, which edits change and "go on" continues.

    Raises:
        ValueError: a sentence before a picture cannot be read, or does not fit the scene so far; it is quoted.
    """
    parser = _ReplyParser(before, before.things[-1].kind if before and before.things else None)
    scenes: list[Scene] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        for sentence in split_sentences(text):
            try:
                parser.read_sentence(sentence)
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"Cannot read {sentence!r}: {error}") from error
        scenes.append(parser.require_scene())
        text = ""
    return scenes


def split_sentences(text: str) -> list[str]:
    """The sentences of a text without full stops. "Step 2." is no sentence."""
    found = re.split(r"(?<=[.!?])\s+", text.strip())
    return [sentence.removesuffix(".") for sentence in found if sentence and not re.fullmatch(r"Step \d+[.:]?", sentence)]


def _read_opening(parser: _ReplyParser, match: re.Match) -> bool:
    what = match["what"]
    parser.scene = None
    parser.kind = None if what == "it step by step" else _find_announced_kind(what)
    return True


def _find_announced_kind(what: str) -> str:
    """The kind in "a red house with a blue door, without windows"."""
    words = re.sub(r"^an? ", "", re.split(r" with |,? without ", what)[0])
    for kind in (words, words.partition(" ")[2]):
        if kind in things():
            return kind
    raise ValueError(f"the world has no {words!r}")


def _read_first_step(parser: _ReplyParser, match: re.Match) -> bool:
    background = _BACKGROUNDS[match["background"].lower()]
    placing, rest = _split_placing(match["rest"])
    part = _parse_step(Thing(parser.kind, ()), rest)
    if part is None:
        return False
    parser.scene = Scene(background, (Thing(parser.kind, (part,), **placing),))
    return True


def _split_placing(words: str) -> tuple[dict[str, str], str]:
    match = _PLACING_FIRST.match(words)
    return (_parse_placing(match), words[match.end() :]) if match else ({}, words)


def _parse_placing(match: re.Match) -> dict[str, str]:
    return {"side": _SIDES[match["side"]], "level": "sky" if match["sky"] else "ground", "scale": "small" if match["small"] else "big"}


def _parse_step(thing: Thing, words: str) -> Part | None:
    """The part that the sentence of a step adds to `thing`; `None` if the sentence is no step."""
    lead, colon, what = words.partition(": ")
    if not colon:
        step = _STEP.match(capitalise(words))
        what = step["what"] if step else ""
    match = _PART.match(what)
    if match is None:
        return None
    return _make_part(thing, match, _find_led_part(thing.kind, capitalise(lead)) if colon else None)


def _find_led_part(kind: str | None, lead: str) -> str:
    """The name of the part whose step begins with `lead`: "Put the patty on the bottom bun", "Then draw the roof"."""
    parts = things()[kind].parts if kind else ()
    by_lead = {capitalise(part.lead): part.name for part in parts if part.lead}
    named = _NAMED.match(lead)
    name = by_lead.get(lead) or (named["name"] if named else None)
    if name is None:
        raise ValueError(f"{lead!r} is no step of {kind or 'plain shapes'}")
    return name


def _parse_shape(thing: Thing, words: str) -> Part:
    """Parse "a big red circle on top of the blue square" into a part of `thing`."""
    match = _PART.match(words)
    if match is None:
        raise ValueError(f"{words!r} is no shape with a size, a colour and a place")
    return _make_part(thing, match, None)


def _make_part(thing: Thing, match: re.Match, name: str | None) -> Part:
    """Make the part from the shape and the place in `match`."""
    if (match["count"] == "two") != (match["place"] in PAIRED):
        raise ValueError(f"{match.string!r} does not say how many of them there are")
    if match["stand"]:
        return Part(match["shape"], match["size"], match["colour"], name, stand=match["stand"])
    anchor = next((index for index in range(len(thing.parts)) if anchor_words(thing, index) == match["anchor"]), None)
    if anchor is None:
        raise ValueError(f"there is no part called {match['anchor']!r} yet")
    return Part(match["shape"], match["size"], match["colour"], name, match["place"], anchor)


def _read_next_step(parser: _ReplyParser, match: re.Match) -> bool:
    if parser.scene is None or not parser.scene.things:
        return False
    thing = parser.scene.things[-1]
    part = _parse_step(thing, match.string)
    if part is None:
        return False
    parser.scene = parser.scene.with_thing(len(parser.scene.things) - 1, replace(thing, parts=thing.parts + (part,)))
    return True


def _read_picture(parser: _ReplyParser, match: re.Match) -> bool:
    found = []
    for phrase in match["rest"].split("; "):
        placing, rest = _split_placing(phrase)
        found.append(_parse_thing(rest, placing))
    parser.scene = Scene(_BACKGROUNDS[match["background"].lower()], tuple(found))
    return True


def _parse_thing(words: str, placing: dict[str, str]) -> Thing:
    """Parse "a house with walls in red and a door in blue", or a list of shapes, into a thing."""
    named, _, listed = words.partition(" with ")
    kind = _kinds_by_name().get(named)
    if kind is None:
        thing = Thing(None, (), **placing)
        for phrase in words.split(", "):
            thing = replace(thing, parts=thing.parts + (_parse_shape(thing, phrase),))
        return thing
    return _make_thing(kind, re.split(r", | and ", listed), placing)


@lru_cache(maxsize=1)
def _kinds_by_name() -> dict[str, str]:
    return {entry.name_with_article(): kind for kind, entry in things().items()}


def _make_thing(kind: str, phrases: list[str], placing: dict[str, str]) -> Thing:
    """Make a thing of a known kind with the parts of the phrases, in their order."""
    entries = {part.name: part for part in things()[kind].parts}
    first, *others = (_parse_coloured(phrase) for phrase in phrases)
    start = entries[first[0]]
    if start.of is not None:
        raise ValueError(f"a {kind} cannot begin with its {start.name}")
    thing = Thing(kind, (Part(start.shape, start.size, first[1], start.name, stand=start.stand),), **placing)
    for name, colour in others:
        thing = change.add_part(thing, name, colour)
    return thing


def _parse_coloured(words: str) -> tuple[str, str]:
    """Parse "a door in blue" into name and colour."""
    match = _COLOURED.match(words)
    if match is None:
        raise ValueError(f"{words!r} is no part with a colour")
    return match["name"], match["colour"]


def _read_part_edit(parser: _ReplyParser, match: re.Match) -> bool:
    """Read "Now the house has a door in blue": recolour the door, or add it."""
    number = _find_thing(parser.scene, f"the {match['kind']}")
    name, colour = _parse_coloured(match["part"])
    scene = parser.require_scene()
    thing = scene.things[number]
    index = next((index for index, part in enumerate(thing.parts) if part.name == name), None)
    if index is None:
        parser.scene = scene.with_thing(number, change.add_part(thing, name, colour))
    else:
        parser.scene = change.recolour_part(scene, number, index, colour)
    return True


def _find_thing(scene: Scene | None, name: str) -> int:
    """The number of the thing called `name`."""
    for number, thing in enumerate(scene.things if scene else ()):
        if thing.parts and name_words(thing) == name:
            return number
    raise ValueError(f"there is nothing called {name!r} in the picture")


def _find_shape(scene: Scene | None, name: str) -> tuple[int, int]:
    """The number of the thing and of its part that the name of an unnamed shape means."""
    for number, thing in enumerate(scene.things if scene else ()):
        for index in range(len(thing.parts) if thing.kind is None else 0):
            if anchor_words(thing, index) == name:
                return number, index
    raise ValueError(f"there is no shape called {name!r} in the picture")


def _read_shape_edit(parser: _ReplyParser, match: re.Match) -> bool:
    number, index = _find_shape(parser.scene, match["name"])
    parser.scene = change.recolour_part(parser.require_scene(), number, index, match["colour"])
    return True


def _read_background_edit(parser: _ReplyParser, match: re.Match) -> bool:
    parser.scene = replace(parser.require_scene(), background=_BACKGROUNDS[match["background"]])
    return True


def _read_place_edit(parser: _ReplyParser, match: re.Match) -> bool:
    number = _find_thing(parser.scene, match["name"])
    placing = dict(_PLACINGS[words] for words in match["where"].split(", "))
    parser.scene = change.place_thing(parser.require_scene(), number, **placing)
    return True


def _read_addition(parser: _ReplyParser, match: re.Match) -> bool:
    words = match["what"]
    last = _PLACING_LAST.search(words)
    thing = _parse_thing(words[: last.start()], _parse_placing(last)) if last else _parse_thing(words, {})
    parser.scene = change.add_thing(parser.require_scene(), thing)
    return True


def _read_part_removal(parser: _ReplyParser, match: re.Match) -> bool:
    number = _find_thing(parser.scene, match["thing"])
    scene = parser.require_scene()
    thing = scene.things[number]
    index = [part.name for part in thing.parts].index(match["name"])
    parser.scene = scene.with_thing(number, change.remove_part(thing, index))
    return True


def _read_removal(parser: _ReplyParser, match: re.Match) -> bool:
    scene = parser.require_scene()
    if match["name"].removeprefix("the ") in [thing.kind for thing in scene.things]:
        parser.scene = change.remove_thing(scene, _find_thing(scene, match["name"]))
        return True
    number, index = _find_shape(scene, match["name"])
    if index:
        parser.scene = scene.with_thing(number, change.remove_part(scene.things[number], index))
    else:
        parser.scene = change.remove_thing(scene, number)
    return True


# The first pattern whose function accepts the sentence wins, so the specific ones come first.
_SENTENCES = (
    (_OPENING, _read_opening),
    (_PICTURE, _read_picture),
    (_FIRST, _read_first_step),
    (re.compile(r".+"), _read_next_step),
    (re.compile(rf"^Now the scene is set (?P<background>{_BACKGROUND})$"), _read_background_edit),
    (re.compile(r"^Now there (?:is|are) (?P<what>.+)$"), _read_addition),
    (re.compile(rf"^Now (?P<name>the .+?) (?:is|are) (?P<where>{_WHERE_TO}(?:, {_WHERE_TO})*)$"), _read_place_edit),
    (re.compile(rf"^Now (?P<name>the .+?) (?:is|are) (?P<colour>{_any_of(list(COLOURS))})$"), _read_shape_edit),
    (re.compile(r"^Now the (?P<name>[^.]+?) of (?P<thing>the .+?) (?:is|are) gone$"), _read_part_removal),
    (re.compile(r"^Now (?P<name>the .+?) (?:is|are) gone$"), _read_removal),
    (re.compile(r"^Now the (?P<kind>.+?) (?:has|have) (?P<part>.+)$"), _read_part_edit),
)
