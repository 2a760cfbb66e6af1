"""Changes to a scene that a wish can ask for; the same functions serve making conversations and reading them back."""

from __future__ import annotations

from dataclasses import replace

from duogen.sketchbook.scene import Part, Scene, Thing
from duogen.sketchbook.world import things


def recoloured(scene: Scene, number: int, index: int, colour: str) -> Scene:
    """The scene with part `index` of thing `number` in another colour."""
    thing = scene.things[number]
    part = replace(thing.parts[index], colour=colour)
    return scene.with_thing(number, replace(thing, parts=thing.parts[:index] + (part,) + thing.parts[index + 1 :]))


def loose_parts(thing: Thing) -> list[int]:
    """Indices of the parts that no other part stands on; the first part is never among them."""
    anchors = {part.of for part in thing.parts}
    return [index for index in range(1, len(thing.parts)) if index not in anchors]


def without_part(thing: Thing, index: int) -> Thing:
    """The thing without a part that nothing stands on.

    Raises:
        ValueError: another part stands on it.
    """
    if any(part.of == index for part in thing.parts):
        raise ValueError(f"Part {index} cannot go: another part stands on it.")
    kept = thing.parts[:index] + thing.parts[index + 1 :]
    return replace(thing, parts=tuple(replace(part, of=part.of - 1) if part.of is not None and part.of > index else part for part in kept))


def with_part(thing: Thing, name: str, colour: str) -> Thing:
    """A thing of a known kind with one of its kind's parts added last.

    Raises:
        ValueError: the kind has no such part, or the part it stands on is missing.
    """
    entry = things()[thing.kind]
    names = [part.name for part in thing.parts]
    found = next((part for part in entry.parts if part.name == name), None)
    if found is None or found.of is None or entry.parts[found.of].name not in names:
        raise ValueError(f"A {thing.kind} as it is here cannot get a part called {name!r}.")
    part = Part(found.shape, found.size, colour, name, found.place, names.index(entry.parts[found.of].name))
    return replace(thing, parts=thing.parts + (part,))


def without_thing(scene: Scene, number: int) -> Scene:
    return replace(scene, things=scene.things[:number] + scene.things[number + 1 :])


def added(scene: Scene, thing: Thing) -> Scene:
    return replace(scene, things=scene.things + (thing,))


def placed(scene: Scene, number: int, **placing: str) -> Scene:
    """The scene with thing `number` at another place or in another size (`scale`, `side`, `level`)."""
    return scene.with_thing(number, replace(scene.things[number], **placing))
