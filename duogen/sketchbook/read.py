"""Reads the assistant's words back into scenes: the inverse of `words.py`.

Evaluation compares what was painted with what the words before it say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from duogen.sketchbook import change
from duogen.sketchbook.scene import COLOURS, PAIRED, PLACES, SHAPES, SIZES, STANDS, Part, Scene, Thing
from duogen.sketchbook.words import BACKGROUND_WORDS, SIDE_WORDS, VERBS, anchor_words, capital, name_words
from duogen.sketchbook.world import things


def _any(options: Sequence[str]) -> str:
    """A pattern for any of the options, the longest first, so that none hides another."""
    return "(?:" + "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True)) + ")"


_BACKGROUND = _any(list(BACKGROUND_WORDS.values()))
_SIDE = _any(list(SIDE_WORDS.values()))
_PLACING = rf"(?:(?P<side>{_SIDE})(?P<sky>, up in the sky)?(?P<small>, half as big)?)"
_PLACING_FIRST = re.compile(rf"^{_PLACING}, ")
_PLACING_LAST = re.compile(rf", {_PLACING}$")
_SHAPE = rf"(?P<count>a|two) (?P<size>{_any(list(SIZES))}) (?P<colour>{_any(list(COLOURS))}) (?P<shape>{_any(SHAPES)})s?"
_WHERE = rf"(?:(?P<stand>{_any(list(STANDS))})|(?P<place>{_any(list(PLACES))}) (?P<anchor>the .+?))"
_PART = re.compile(rf"^{_SHAPE} {_WHERE}$")
_NAMED = re.compile(rf"^(?:{_any(VERBS)}) the (?P<name>.+)$")
_COLOURED = re.compile(rf"^(?:an? )?(?P<name>.+) in (?P<colour>{_any(list(COLOURS))})$")
_STEP = re.compile(rf"^(?:{_any(VERBS)}) (?P<what>(?:a|two) .+)$")
_FIRST = re.compile(rf"^(?P<background>{_BACKGROUND}), (?P<rest>.+)$", re.IGNORECASE)
_PICTURE = re.compile(rf"^(?P<background>{_BACKGROUND}): (?P<rest>.+)$", re.IGNORECASE)
_OPENING = re.compile(r"^Let's (?:draw|make) (?P<what>.+)$")
_BACKGROUNDS = {words: name for name, words in BACKGROUND_WORDS.items()}
_SIDES = {words: side for side, words in SIDE_WORDS.items()}


@dataclass
class _Reader:
    """What was read so far: the scene, and the kind that a guide announced (`None`: unnamed shapes)."""

    scene: Scene | None
    kind: str | None = None

    def read(self, sentence: str) -> None:
        """Apply one sentence, given without its full stop."""
        for pattern, apply in _SENTENCES:
            match = pattern.match(sentence)
            if match and apply(self, match):
                return
        raise ValueError(f"This sentence says nothing that can be drawn: {sentence!r}.")

    def settled(self) -> Scene:
        if self.scene is None:
            raise ValueError("The words before the picture do not say where to begin; the first step names the background.")
        return self.scene


def read_reply(parts: Sequence[object], before: Scene | None = None) -> list[Scene]:
    """The scenes that a reply's words describe, one for each of its pictures.

    Args:
        parts: the reply in order; strings are words, everything else stands for a picture. Words after the last picture
            are not read.
        before: the scene before the reply, which edits change and "go on" continues.

    Raises:
        ValueError: a sentence before a picture cannot be read, or does not fit the scene so far; it is quoted.
    """
    reader = _Reader(before, before.things[-1].kind if before and before.things else None)
    scenes: list[Scene] = []
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        for sentence in sentences(text):
            try:
                reader.read(sentence)
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"Cannot read {sentence!r}: {error}") from error
        scenes.append(reader.settled())
        text = ""
    return scenes


def sentences(text: str) -> list[str]:
    """The sentences of a text without full stops; "Step 2." is none."""
    found = re.split(r"(?<=[.!?])\s+", text.strip())
    return [sentence.removesuffix(".") for sentence in found if sentence and not re.fullmatch(r"Step \d+[.:]?", sentence)]


def _opening(reader: _Reader, match: re.Match) -> bool:
    what = match["what"]
    reader.scene = None
    reader.kind = None if what == "it step by step" else _announced(what)
    return True


def _announced(what: str) -> str:
    """The kind in "a red house with a blue door, without windows"."""
    words = re.sub(r"^an? ", "", re.split(r" with |,? without ", what)[0])
    for kind in (words, words.partition(" ")[2]):
        if kind in things():
            return kind
    raise ValueError(f"the world has no {words!r}")


def _first_step(reader: _Reader, match: re.Match) -> bool:
    background = _BACKGROUNDS[match["background"].lower()]
    placing, rest = _placing_first(match["rest"])
    part = _step_part(Thing(reader.kind, ()), rest)
    if part is None:
        return False
    reader.scene = Scene(background, (Thing(reader.kind, (part,), **placing),))
    return True


def _placing_first(words: str) -> tuple[dict[str, str], str]:
    match = _PLACING_FIRST.match(words)
    return (_placing(match), words[match.end() :]) if match else ({}, words)


def _placing(match: re.Match) -> dict[str, str]:
    return {"side": _SIDES[match["side"]], "level": "sky" if match["sky"] else "ground", "scale": "small" if match["small"] else "big"}


def _step_part(thing: Thing, words: str) -> Part | None:
    """The part that a step's sentence adds to `thing`, `None` if the sentence is no step."""
    lead, colon, what = words.partition(": ")
    if not colon:
        step = _STEP.match(capital(words))
        what = step["what"] if step else ""
    match = _PART.match(what)
    if match is None:
        return None
    return _part(thing, match, _led(thing.kind, capital(lead)) if colon else None)


def _led(kind: str | None, lead: str) -> str:
    """The part whose step begins with `lead`: "Put the patty on the bottom bun", "Then draw the roof"."""
    parts = things()[kind].parts if kind else ()
    by_lead = {capital(part.lead): part.name for part in parts if part.lead}
    named = _NAMED.match(lead)
    name = by_lead.get(lead) or (named["name"] if named else None)
    if name is None:
        raise ValueError(f"{lead!r} is no step of {kind or 'plain shapes'}")
    return name


def _nameless(thing: Thing, words: str) -> Part:
    """ "a big red circle on top of the blue square" as a part of `thing`."""
    match = _PART.match(words)
    if match is None:
        raise ValueError(f"{words!r} is no shape with a size, a colour and a place")
    return _part(thing, match, None)


def _part(thing: Thing, match: re.Match, name: str | None) -> Part:
    """The part that a shape and a place say."""
    if (match["count"] == "two") != (match["place"] in PAIRED):
        raise ValueError(f"{match.string!r} does not say how many of them there are")
    if match["stand"]:
        return Part(match["shape"], match["size"], match["colour"], name, stand=match["stand"])
    anchor = next((index for index in range(len(thing.parts)) if anchor_words(thing, index) == match["anchor"]), None)
    if anchor is None:
        raise ValueError(f"there is no part called {match['anchor']!r} yet")
    return Part(match["shape"], match["size"], match["colour"], name, match["place"], anchor)


def _next_step(reader: _Reader, match: re.Match) -> bool:
    if reader.scene is None or not reader.scene.things:
        return False
    thing = reader.scene.things[-1]
    part = _step_part(thing, match.string)
    if part is None:
        return False
    reader.scene = reader.scene.with_thing(len(reader.scene.things) - 1, replace(thing, parts=thing.parts + (part,)))
    return True


def _picture(reader: _Reader, match: re.Match) -> bool:
    found = []
    for phrase in match["rest"].split("; "):
        placing, rest = _placing_first(phrase)
        found.append(_thing(rest, placing))
    reader.scene = Scene(_BACKGROUNDS[match["background"].lower()], tuple(found))
    return True


def _thing(words: str, placing: dict[str, str]) -> Thing:
    """ "a house with walls in red and a door in blue", or shapes one after the other, as a thing."""
    named, _, listed = words.partition(" with ")
    kind = _kinds_by_name().get(named)
    if kind is None:
        thing = Thing(None, (), **placing)
        for phrase in words.split(", "):
            thing = replace(thing, parts=thing.parts + (_nameless(thing, phrase),))
        return thing
    return _with_parts(kind, re.split(r", | and ", listed), placing)


@lru_cache(maxsize=1)
def _kinds_by_name() -> dict[str, str]:
    return {entry.named(): kind for kind, entry in things().items()}


def _with_parts(kind: str, phrases: list[str], placing: dict[str, str]) -> Thing:
    """A thing of a known kind that has the parts of the phrases, in their order."""
    entries = {part.name: part for part in things()[kind].parts}
    first, *others = (_coloured(phrase) for phrase in phrases)
    start = entries[first[0]]
    if start.of is not None:
        raise ValueError(f"a {kind} cannot begin with its {start.name}")
    thing = Thing(kind, (Part(start.shape, start.size, first[1], start.name, stand=start.stand),), **placing)
    for name, colour in others:
        thing = change.with_part(thing, name, colour)
    return thing


def _coloured(words: str) -> tuple[str, str]:
    """The name and the colour in "a door in blue"."""
    match = _COLOURED.match(words)
    if match is None:
        raise ValueError(f"{words!r} is no part with a colour")
    return match["name"], match["colour"]


def _edited_part(reader: _Reader, match: re.Match) -> bool:
    """ "Now the house has a door in blue": the door gets the colour, or comes new."""
    number = _number(reader.scene, f"the {match['kind']}")
    name, colour = _coloured(match["part"])
    thing = reader.scene.things[number]
    index = next((index for index, part in enumerate(thing.parts) if part.name == name), None)
    if index is None:
        reader.scene = reader.scene.with_thing(number, change.with_part(thing, name, colour))
    else:
        reader.scene = change.recoloured(reader.scene, number, index, colour)
    return True


def _number(scene: Scene | None, name: str) -> int:
    """Which thing is called `name`."""
    for number, thing in enumerate(scene.things if scene else ()):
        if thing.parts and name_words(thing) == name:
            return number
    raise ValueError(f"there is nothing called {name!r} in the picture")


def _shape(scene: Scene | None, name: str) -> tuple[int, int]:
    """Which thing and which of its parts an unnamed shape is."""
    for number, thing in enumerate(scene.things if scene else ()):
        for index in range(len(thing.parts) if thing.kind is None else 0):
            if anchor_words(thing, index) == name:
                return number, index
    raise ValueError(f"there is no shape called {name!r} in the picture")


def _edited_shape(reader: _Reader, match: re.Match) -> bool:
    number, index = _shape(reader.scene, match["name"])
    reader.scene = change.recoloured(reader.scene, number, index, match["colour"])
    return True


def _edited_background(reader: _Reader, match: re.Match) -> bool:
    reader.scene = replace(reader.settled(), background=_BACKGROUNDS[match["background"]])
    return True


def _edited_place(reader: _Reader, match: re.Match) -> bool:
    number = _number(reader.scene, match["name"])
    reader.scene = change.placed(reader.scene, number, **_placing(match))
    return True


def _edited_more(reader: _Reader, match: re.Match) -> bool:
    words = match["what"]
    last = _PLACING_LAST.search(words)
    thing = _thing(words[: last.start()], _placing(last)) if last else _thing(words, {})
    reader.scene = change.added(reader.settled(), thing)
    return True


def _gone_part(reader: _Reader, match: re.Match) -> bool:
    number = _number(reader.scene, match["thing"])
    thing = reader.scene.things[number]
    index = [part.name for part in thing.parts].index(match["name"])
    reader.scene = reader.scene.with_thing(number, change.without_part(thing, index))
    return True


def _gone(reader: _Reader, match: re.Match) -> bool:
    kinds = [thing.kind for thing in reader.settled().things]
    if match["name"].removeprefix("the ") in kinds:
        reader.scene = change.without_thing(reader.scene, _number(reader.scene, match["name"]))
        return True
    number, index = _shape(reader.scene, match["name"])
    thing = reader.scene.things[number]
    if index:
        reader.scene = reader.scene.with_thing(number, change.without_part(thing, index))
    else:
        reader.scene = change.without_thing(reader.scene, number)
    return True


# The first pattern whose function accepts the sentence wins, so the particular ones come first.
_SENTENCES = (
    (_OPENING, _opening),
    (_PICTURE, _picture),
    (_FIRST, _first_step),
    (re.compile(r".+"), _next_step),
    (re.compile(rf"^Now the scene is set (?P<background>{_BACKGROUND})$"), _edited_background),
    (re.compile(r"^Now there (?:is|are) (?P<what>.+)$"), _edited_more),
    (re.compile(rf"^Now (?P<name>the .+?) (?:is|are) (?:big, )?{_PLACING}$"), _edited_place),
    (re.compile(rf"^Now (?P<name>the .+?) (?:is|are) (?P<colour>{_any(list(COLOURS))})$"), _edited_shape),
    (re.compile(r"^Now the (?P<name>[^.]+?) of (?P<thing>the .+?) (?:is|are) gone$"), _gone_part),
    (re.compile(r"^Now (?P<name>the .+?) (?:is|are) gone$"), _gone),
    (re.compile(r"^Now the (?P<kind>.+?) (?:has|have) (?P<part>.+)$"), _edited_part),
)
