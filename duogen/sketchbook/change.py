"""Change a scene. Making conversations and reading them back use the same functions."""

from __future__ import annotations

from dataclasses import replace

from duogen.sketchbook.scene import Part, Scene, Thing
from duogen.sketchbook.world import entry_of


def recolour_part(scene: Scene, number: int, index: int, colour: str) -> Scene:
    """Give part `index` of thing `number` another colour."""
    thing = scene.things[number]
    part = replace(thing.parts[index], colour=colour)
    return scene.with_thing(number, replace(thing, parts=thing.parts[:index] + (part,) + thing.parts[index + 1 :]))


def loose_parts(thing: Thing) -> list[int]:
    """The indices of parts that no other part stands on. The first part is never among them."""
    anchors = {part.of for part in thing.parts}
    return [index for index in range(1, len(thing.parts)) if index not in anchors]


def remove_part(thing: Thing, index: int) -> Thing:
    """Remove a part that nothing stands on.

    Raises:
        ValueError: another part stands on it.
    """
    if any(part.of == index for part in thing.parts):
        raise ValueError(f"Part {index} cannot go: another part stands on it.")
    kept = thing.parts[:index] + thing.parts[index + 1 :]
    return replace(thing, parts=tuple(replace(part, of=part.of - 1) if part.of is not None and part.of > index else part for part in kept))


def add_part(thing: Thing, name: str, colour: str) -> Thing:
    """Add one of the parts of its kind to a thing, as the last part.

    Raises:
        ValueError: the kind has no such part, or the part it stands on is missing.
    """
    entry = entry_of(thing)
    names = [part.name for part in thing.parts]
    found = next((part for part in entry.parts if part.name == name), None)
    if found is None or found.of is None or entry.parts[found.of].name not in names:
        raise ValueError(f"A {thing.kind} as it is here cannot get a part called {name!r}.")
    part = Part(found.shape, found.size, colour, name, found.place, names.index(entry.parts[found.of].name))
    return replace(thing, parts=thing.parts + (part,))


def remove_thing(scene: Scene, number: int) -> Scene:
    return replace(scene, things=scene.things[:number] + scene.things[number + 1 :])


def add_thing(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, things=scene.things + (thing,))


def place_thing(scene: Scene, number: int, **placing: str) -> Scene:
    """Give thing `number` another place or size (`scale`, `side`, `level`)."""
    return scene.with_thing(number, replace(scene.things[number], **placing))
