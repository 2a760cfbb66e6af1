"""Grade a picture against the scene that it should show, as one number: what the reward stage of the training learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from duogen.sketchbook.scene import Scene, Thing
from duogen.sketchbook.verify import check_scene


@dataclass(frozen=True)
class Grade:
    """How much of a picture is right.

    Attributes:
        share: of the marks, 0..1: the background, nothing besides, and for every part presence, colour, shape, size and place. Where a
            picture goes on from another one, what is new counts half and what stays the other half, however many parts either has.
        right: everything is.
    """

    share: float
    right: bool

    def reward(self, bonus: float) -> float:
        """The share, and `bonus` more for a picture that is wholly right."""
        return self.share + bonus * self.right


def grade_picture(picture: Image.Image, meant: Scene, before: Scene | None = None) -> Grade:
    """Grade a picture by the exact check.

    Args:
        before: the scene that the picture goes on from, `None` where it is a new one.
    """
    check = check_scene(picture, meant)
    new = list_new_parts(meant, before)
    marks: dict[bool, list[bool]] = {False: [check.background, not check.extra], True: []}
    for part in check.parts:
        marks[(part.thing, part.part) in new] += [part.present, part.colour, part.shape, part.size, part.place]
    if before is None:
        marks = {True: marks[False] + marks[True], False: []}
    elif meant.background != before.background:
        marks[True].append(check.background)
    elif not new:  # something has gone
        marks[True].append(not check.extra)
    shares = [sum(each) / len(each) for each in marks.values() if each]
    return Grade(sum(shares) / len(shares), check.right)


def list_new_parts(meant: Scene, before: Scene | None) -> set[tuple[int, int]]:
    """The parts (thing, part) of a scene that the scene before does not show alike in the same place; all where there is none."""
    known = {_look(thing, index) for thing in before.things for index in range(len(thing.parts))} if before else set()
    return {
        (number, index)
        for number, thing in enumerate(meant.things)
        for index in range(len(thing.parts))
        if _look(thing, index) not in known
    }


def _look(thing: Thing, index: int) -> tuple[Any, ...]:
    """All that fixes how a part looks and where: itself and the parts that it hangs on."""
    chain, at = [], index
    while True:
        part = thing.parts[at]
        chain.append((part.shape, part.size, part.colour if at == index else None, part.name, part.place, part.stand))
        if part.of is None:
            return (thing.kind, thing.scale, thing.side, thing.level, *chain)
        at = part.of
