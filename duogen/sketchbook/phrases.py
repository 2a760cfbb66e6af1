"""The user's words: phrasings from `assets/sketchbook/phrases/`, filled in and made untidy as people type.

The assistant's small regular language is in `words.py`. Nothing here has to be read back.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Collection
from functools import lru_cache

from duogen.paths import ASSETS
from duogen.sketchbook.scene import PAIRED, Part, Scene, Thing
from duogen.sketchbook.words import capitalise, coloured_words, join_list, main_part, request_words
from duogen.sketchbook.world import entry_of

PHRASES = ASSETS / "sketchbook" / "phrases"


@lru_cache(maxsize=16)
def phrases(name: str) -> dict:
    """The phrasings of a task, or those that all tasks share ("common")."""
    return json.loads((PHRASES / f"{name}.json").read_text(encoding="utf-8"))


def fill_template(template: str, **fields: str) -> str:
    """Fill a template. "{Ask}" is the field "ask" with a capital first letter, "{ask_lower}" with a small one."""
    capitals = {key.capitalize(): capitalise(value) for key, value in fields.items()}
    lowered = {f"{key}_lower": value[:1].lower() + value[1:] for key, value in fields.items()}
    return template.format(**capitals, **lowered, **fields)


def make_untidy(text: str, rng: random.Random) -> str:
    """Make a request untidy: sometimes lower case, no full stop, a typo, another word for a colour."""
    for colour, others in phrases("common")["colours"].items():
        if rng.random() < 0.35:
            text = re.sub(rf"\b{colour}\b", lambda _, others=others: rng.choice(others), text)
    if rng.random() < 0.12:
        text = _add_typo(text, rng)
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.25 and text[-1:] in ".?!":
        text = text[:-1]
    return text


def _add_typo(text: str, rng: random.Random) -> str:
    """Swap two letters or drop one, in a word that carries no fact."""
    found = [match for match in re.finditer(r"\w+", text) if match.group().lower() in phrases("common")["typos"]]
    if not found:
        return text
    match = rng.choice(found)
    word = match.group()
    at = rng.randrange(1, len(word) - 1)
    wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :] if rng.random() < 0.6 else word[:at] + word[at + 1 :]
    return text[: match.start()] + wrong + text[match.end() :]


def thing_phrase(thing: Thing, named: Collection[int], missing: Collection[str], rng: random.Random) -> str:
    """The user's words for a thing of a known kind, with the colours of the parts `named`: "a house with a blue door"."""
    common = phrases("common")
    if not named and not missing and thing.kind in common["other_names"] and rng.random() < 0.25:
        return rng.choice(common["other_names"][thing.kind])
    roll = rng.random()
    if not named or roll < 0.6:
        words = request_words(thing, named, missing)
        if thing.scale == "small" and rng.random() < 0.4:
            words = re.sub(r"^an? ", f"a {rng.choice(('small', 'little', 'tiny', 'small'))} ", words)
        return words
    entry = entry_of(thing)
    main = main_part(thing)
    # The main part is its own colour here, so that "house, red walls" and "a red house" mean the same.
    parts = [thing.parts[index] for index in sorted(named)]
    bare = [f"no {name}" for name in missing]
    if roll < 0.75:
        words = [f"two {part.colour} {part.name}" if part.place in PAIRED else coloured_words(part) for part in parts]
        return f"{entry.name_with_article()} with {join_list(words + bare)}"
    if roll < 0.85 or main not in named:
        short = [f"{part.colour} {part.name}" for part in parts]
        listed = ", ".join(short + bare)
        return f"{entry.name_with_article()} ({listed})" if roll < 0.92 else f"{entry.name_with_article()}, {listed}"
    rest = [coloured_words(part) for part in parts if part is not thing.parts[main]]
    be = "is" if entry.article else "are"
    more = f" and has {join_list(rest + bare)}" if rest or bare else ""
    return f"{entry.name_with_article()} that {be} {thing.parts[main].colour}{more}"


def shapes_phrase(thing: Thing, rng: random.Random) -> str:
    """The user's words for an unnamed composition: "a big blue circle with a small star inside it"."""
    if len(thing.parts) == 2 and rng.random() < 0.35:
        anchor, other = (_add_article(_bare_phrase(part, True, rng), part) for part in thing.parts)
        return f"{other} {rng.choice(phrases('common')['places'][thing.parts[1].place]).format(it=anchor)}"
    words = [_shape_phrase(thing, index, rng) for index in range(len(thing.parts))]
    if len(words) == 1:
        return words[0]
    if len(words) == 2:
        return rng.choice(("{} with {}", "{} and {}", "{}, {}", "{} and then {}", "{}. {}.", "first {}, then {}")).format(*words)
    return join_list(words) if rng.random() < 0.6 else rng.choice((", ", ". ", "; ")).join(words)


def _bare_phrase(part: Part, coloured: bool, rng: random.Random) -> str:
    """A shape with its colour if `coloured`, and mostly its size."""
    size = "" if rng.random() < 0.35 else rng.choice(phrases("common")["sizes"][part.size]) + " "
    return f"{size}{part.colour + ' ' if coloured else ''}{part.shape}"


def _add_article(words: str, part: Part) -> str:
    return f"two {words}s" if part.place in PAIRED else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _shape_phrase(thing: Thing, index: int, rng: random.Random) -> str:
    common = phrases("common")
    part = thing.parts[index]
    alone = sum(other.shape == part.shape for other in thing.parts) == 1
    words = _add_article(_bare_phrase(part, not alone or rng.random() >= 0.12, rng), part)
    if part.of is None:
        return f"{words} {rng.choice(common['stands'][part.stand or 'on the ground'])}".strip()
    it = "it" if part.of == index - 1 and thing.parts[part.of].place not in PAIRED and rng.random() < 0.6 else shape_name(thing, part.of)
    place = rng.choice(common["places"][part.place]).format(it=it)
    return f"{place} {words}" if rng.random() < 0.15 else f"{words} {place}"


def shape_name(thing: Thing, index: int, rng: random.Random | None = None) -> str:
    """The user's words for one of several shapes: "the star", or "the red star" where there are two stars."""
    part = thing.parts[index]
    alone = sum(other.shape == part.shape for other in thing.parts) == 1
    words = part.shape if alone and (rng is None or rng.random() < 0.5) else f"{part.colour} {part.shape}"
    return f"the {words}s" if part.place in PAIRED else f"the {words}"


def background_phrase(scene: Scene, rng: random.Random) -> str:
    """The user's words for the background."""
    return rng.choice(phrases("common")["backgrounds"][scene.background])


def placing_phrase(thing: Thing, rng: random.Random) -> str:
    """The user's words for the place of a thing: "on the left", "in the sky on the right"."""
    common = phrases("common")
    side = rng.choice(common["sides"][thing.side])
    return f"{rng.choice(common['sky'])} {side}" if thing.level == "sky" else side
