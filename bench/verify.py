"""How well pictures are read back: `python -m bench.verify --n 1000`."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import LEVELS, SIDES, Scene, Thing, fits_canvas, part_boxes
from duogen.sketchbook.verify import check_scene, read_scene
from duogen.sketchbook.world import kinds, make_thing, random_colours, random_composition, random_scene

Spoil = Callable[[Image.Image, random.Random], Image.Image]


def some_scene(rng: random.Random) -> Scene:
    """A scene of any kinds; half of them a guide's picture, whose last thing has only its first parts yet."""
    scene = random_scene(rng, kinds("all"), held=rng.random() < 0.3)
    if rng.random() < 0.5:
        last = scene.things[-1]
        scene = scene.with_thing(len(scene.things) - 1, replace(last, parts=last.parts[: rng.randint(1, len(last.parts))]))
    return scene


def clean(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture


def add_noise(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Shifted by up to 2 pixels, blurred (radius 1.5), with noise (sigma 10)."""
    wide = Image.fromarray(np.pad(np.asarray(picture), ((2, 2), (2, 2), (0, 0)), mode="edge"))
    x, y = rng.randint(0, 4), rng.randint(0, 4)
    moved = wide.crop((x, y, x + picture.width, y + picture.height)).filter(ImageFilter.GaussianBlur(1.5))
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 10, (picture.height, picture.width, 3))
    return Image.fromarray((np.asarray(moved) + noise).clip(0, 255).astype(np.uint8))


def blotchy(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Blurred, with soft blotches (sigma 14, 16 pixels wide), as a painter leaves them."""
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 14, (16, 16, 3))
    grey = Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    return ImageChops.add(picture.filter(ImageFilter.GaussianBlur(1.2)), grey, offset=-128)


SPOILS: dict[str, Spoil] = {"clean": clean, "noisy": add_noise, "blotchy": blotchy}


def recoloured(scene: Scene, rng: random.Random) -> Scene:
    """One part has another of the colours that it may have."""
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    index = rng.randrange(len(thing.parts))
    part = thing.parts[index]
    other = rng.choice([name for name in ("red", "yellow", "green", "blue", "purple", "pink", "brown", "black") if name != part.colour])
    return scene.with_thing(number, replace(thing, parts=thing.parts[:index] + (replace(part, colour=other),) + thing.parts[index + 1 :]))


def lacking(scene: Scene, rng: random.Random) -> Scene:
    """The last part of a thing is missing."""
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    return scene.with_thing(number, replace(thing, parts=thing.parts[:-1])) if len(thing.parts) > 1 else replace(scene, things=())


def other_kind(scene: Scene, rng: random.Random) -> Scene:
    """A whole thing of another kind stands in the place of one."""
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    while True:
        kind = rng.choice([kind for kind in kinds("all") if kind != thing.kind])
        other = make_thing(kind, random_colours(kind, rng), scale=thing.scale, side=thing.side, level=thing.level)
        if fits_canvas(other):
            return scene.with_thing(number, other)


def moved(scene: Scene, rng: random.Random) -> Scene:
    """A thing stands in another slot."""
    number = rng.randrange(len(scene.things))
    thing = scene.things[number]
    taken = [(thing.side, thing.level) for thing in scene.things]
    slots = [(side, level) for side in SIDES for level in LEVELS if (side, level) not in taken]
    others = [replace(thing, side=side, level=level) for side, level in slots]
    return scene.with_thing(number, rng.choice([other for other in others if fits_canvas(other)]))


def with_another(scene: Scene, rng: random.Random) -> Scene:
    """A thing more than meant."""
    taken = {(thing.side, level) for thing in scene.things for level in LEVELS}
    sides = [side for side in SIDES if (side, "ground") not in taken] or list(SIDES)
    kind = rng.choice(kinds("all"))
    return replace(scene, things=(make_thing(kind, random_colours(kind, rng), scale="small", side=rng.choice(sides)), *scene.things))


WRONGS = {"wrong colour": recoloured, "missing part": lacking, "wrong kind": other_kind, "moved thing": moved, "a thing more": with_another}


def differs(one: Scene, other: Scene, least: int = 40) -> bool:
    """Whether the drawings differ by at least `least` clearly different pixels; else a "wrong" picture is right."""
    far = np.abs(np.asarray(draw(one), np.int16) - np.asarray(draw(other), np.int16)).max(-1) > 40
    return int(far.sum()) >= least


def agreement(meant: Scene, read: Scene) -> tuple[int, int]:
    """(right, all) attributes of a reading: the background; of every thing its slot and the number of parts; of every part
    its shape, size, colour and boxes. Things are compared by slot, parts in their order; a thing too many is one wrong.
    """
    right, total = int(meant.background == read.background), 1
    slots = {(thing.side, thing.scale, thing.level): thing for thing in read.things}
    for thing in meant.things:
        found = slots.pop((thing.side, thing.scale, thing.level), None)
        total += 2 + 4 * len(thing.parts)
        if found is None:
            continue
        right += 1 + (len(found.parts) == len(thing.parts))
        for (part, boxes), (other, places) in zip(_placed(thing), _placed(found), strict=False):
            right += (part.shape == other.shape) + (part.size == other.size) + (part.colour == other.colour) + (boxes == places)
    return right, total + len(slots)


def _placed(thing: Thing) -> list[tuple]:
    return list(zip(thing.parts, part_boxes(thing), strict=True))


def measure_checks(n: int, spoil: Spoil, seed: int) -> tuple[float, float, float]:
    """(share of attributes right, share of pictures right, mean seconds) of right pictures."""
    rng = random.Random(seed)
    right = total = whole = 0
    seconds = 0.0
    for _ in range(n):
        scene = some_scene(rng)
        picture = spoil(draw(scene), rng)
        start = time.process_time()
        check = check_scene(picture, scene)
        seconds += time.process_time() - start
        right, total, whole = right + check.attributes[0], total + check.attributes[1], whole + check.right
    return right / total, whole / n, seconds / n


def measure_compositions(n: int, spoil: Spoil, seed: int) -> float:
    """Share of attributes right of unnamed compositions."""
    rng = random.Random(seed)
    counts = []
    for _ in range(n):
        scene = Scene(rng.choice(("meadow", "night", "paper", "sea")), (random_composition(rng),))
        counts.append(check_scene(spoil(draw(scene), rng), scene).attributes)
    return sum(right for right, _ in counts) / sum(total for _, total in counts)


def measure_rejections(n: int, spoil: Spoil, wrong: str, seed: int) -> float:
    """Share of wrong pictures that are found wrong."""
    rng = random.Random(seed)
    rejected = tried = 0
    while tried < n:
        scene = some_scene(rng)
        shown = WRONGS[wrong](scene, rng)
        if differs(scene, shown):
            tried += 1
            rejected += not check_scene(spoil(draw(shown), rng), scene).right
    return rejected / n


def measure_readings(n: int, spoil: Spoil, seed: int) -> tuple[float, float, float, float]:
    """(share of attributes read right, share of scenes, mean confidence, mean seconds), without a hint."""
    rng = random.Random(seed)
    right = total = whole = 0
    confidence = seconds = 0.0
    for _ in range(n):
        scene = some_scene(rng)
        picture = spoil(draw(scene), rng)
        start = time.process_time()
        reading = read_scene(picture)
        seconds += time.process_time() - start
        good, of = agreement(scene, reading.scene)
        right, total, whole = right + good, total + of, whole + (good == of)
        confidence += reading.confidence
    return right / total, whole / n, confidence / n, seconds / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="pictures per row")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.n < 1:
        parser.error("--n must be at least 1.")
    n, seed = chosen.n, chosen.seed
    for name, spoil in SPOILS.items():
        shares, whole, seconds = measure_checks(n, spoil, seed)
        print(f"check {name:8}: attributes {shares:7.2%}  pictures {whole:7.2%}  {1000 * seconds:5.0f} ms", flush=True)
        print(f"check {name:8}: attributes {measure_compositions(n, spoil, seed):7.2%} of unnamed compositions", flush=True)
        for wrong in WRONGS:
            print(f"check {name:8}: {wrong:13} rejected {measure_rejections(n, spoil, wrong, seed):7.2%}", flush=True)
        shares, whole, confidence, seconds = measure_readings(n, spoil, seed)
        print(f"read  {name:8}: attributes {shares:7.2%}  scenes {whole:7.2%}  confidence {confidence:.2f}  {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
