"""Score one turn by exact versions of the paper's five scores (DuoGen, section 4).

The words can be read back as scenes and the pictures can be checked against them.

T-Com: every step is said and right. I-Com: every picture is there. IT-Co: a picture shows what the words say.
I-Co: what should stay has not changed. I-Q: how far a picture is from a clean drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as PILImage
from PIL.Image import Image as Picture

from duogen.conversation import Image, Piece, Text
from duogen.evaluate.answers import answers_agree
from duogen.evaluate.intent import (
    Named,
    find_background,
    find_named_parts,
    keeps_thing,
    matches_composition,
    matches_edit,
    matches_part,
    matches_picture,
)
from duogen.sketchbook import verify
from duogen.sketchbook.draw import draw
from duogen.sketchbook.read import read_reply
from duogen.sketchbook.scene import BACKGROUNDS, CANVAS, Scene, Thing, part_boxes

MOST_DECIBELS = 99.0  # stands for equal pictures, whose PSNR is infinite
CHANGED = 24.0  # mean difference of the channels, in 0..255, from which a place is part of an edit
MOST_OFF = 36.0  # RMSE up to which an edit of a drawing in another style is right: less than between orange and yellow (40)
LEAST_KEPT = 24.0  # PSNR from which such a drawing counts as kept
DRAWS = ("guide", "picture", "edit")


@dataclass(frozen=True)
class TurnCase:
    """One turn that the pair is asked, with the reference answer.

    Attributes:
        what: "guide", "picture", "edit", "question" or "talk".
        ask: the user's words.
        meant: the reference answer, words and scenes in order.
        before: the scene before the answer: an upload, or the scene of the earlier words.
        opening: the first sentence of the guide, which repeats the request. A guide's later turns share it.
        free: the request leaves everything open ("draw something").
        shown: the picture before the answer.
        renderer: draws a scene in the style of the upload; `None` for the world's own style.
        continues: the answer goes on with a guide that an earlier one began.
        composed: the request is about several uploads, which say how what is new looks.
        approved: the thing that is to stay while the rest changes; `None` where the request is none of that kind.
    """

    what: str
    ask: str
    meant: tuple[str | Scene, ...]
    before: Scene | None = None
    opening: str = ""
    free: bool = False
    shown: Picture | None = None
    renderer: Callable[[Scene], Picture] | None = None
    continues: bool = False
    composed: bool = False
    approved: Thing | None = None

    def scenes(self) -> list[Scene]:
        return [part for part in self.meant if isinstance(part, Scene)]


@dataclass(frozen=True)
class PictureScore:
    """One painted picture.

    Attributes:
        kind: the thing it shows, `None` for shapes and for several things.
        step: its number among the steps of a guide, from 1 (1 for a single picture).
        words: whether the words before it are right.
        right: IT-Co, whether it shows what the words say in every attribute.
        attributes: how many attributes it shows right, of how many; `None` if the words cannot be read.
        kept: I-Co, whether everything that was there before and should stay is right; `None` with nothing before.
        decibels: I-Co, PSNR against the picture before, where nothing should change.
        distance: I-Q, RMSE to the clean drawing of its words at the best small shift, in 0..255.
        approved: whether not a pixel of what was approved has changed; `None` where nothing was.
        renewed: the share of all other places that have visibly changed.
    """

    kind: str | None
    step: int
    words: bool
    right: bool
    attributes: tuple[int, int] | None = None
    kept: bool | None = None
    decibels: float | None = None
    distance: float | None = None
    seconds: float | None = None
    approved: bool | None = None
    renewed: float | None = None


@dataclass(frozen=True)
class TurnScore:
    """One answer.

    Attributes:
        words: T-Com for guides; whether the words are right for the others.
        steps: for each step that should be there, whether its words are right.
        draws: whether it painted as many pictures as it should (none where words are wanted).
        complete: I-Com, whether all pictures are there; `None` where none is wanted.
        right: words and pictures.
        scenes: what the words log, one scene for each picture; `None` where they cannot be read.
        seconds, first: seconds of the whole answer, and until its first word.
    """

    what: str
    words: bool
    steps: tuple[bool, ...]
    draws: bool
    complete: bool | None
    right: bool
    pictures: tuple[PictureScore, ...] = ()
    scenes: tuple[Scene | None, ...] = ()
    seconds: float | None = None
    first: float | None = None
    task: str = ""
    failed: str = ""


def score_turn(asked: TurnCase, reply: Sequence[Piece]) -> TurnScore:
    """Score a reply."""
    images = [part for part in reply if isinstance(part, Image)]
    text = "".join(part.text for part in reply if isinstance(part, Text))
    wanted = len(asked.scenes())
    if asked.what not in DRAWS:
        true = "".join(part for part in asked.meant if isinstance(part, str))
        words = bool(text.strip()) and (asked.what == "talk" or answers_agree(text, true))
        return TurnScore(asked.what, words, (), not images, None, words and not images)
    said = read_steps(reply, asked.before)
    steps = check_steps(asked, said)
    pictures = score_pictures(asked, images, said, steps)
    draws = len(images) == wanted
    words = all(steps) and len(steps) == wanted
    right = words and draws and all(picture.right for picture in pictures)
    return TurnScore(asked.what, words, tuple(steps), draws, draws, right, tuple(pictures), tuple(said))


def score_failed_turn(asked: TurnCase, message: str) -> TurnScore:
    """The score of an answer that failed."""
    wanted = asked.what in DRAWS
    return TurnScore(asked.what, False, (False,) * len(asked.scenes()), False, False if wanted else None, False, failed=message)


def read_steps(reply: Sequence[Piece], before: Scene | None) -> list[Scene | None]:
    """The scene before each picture, read from the words; `None` from the first unreadable sentence on."""
    parts = [part.text if isinstance(part, Text) else part for part in reply]
    ends = [index + 1 for index, part in enumerate(reply) if isinstance(part, Image)]
    scenes: list[Scene | None] = []
    for end in ends:
        try:
            scenes.append(read_reply(parts[:end], before)[-1])
        except ValueError:
            return scenes + [None] * (len(ends) - len(scenes))
    return scenes


def check_steps(asked: TurnCase, said: Sequence[Scene | None]) -> list[bool]:
    """For each picture, expected or painted, whether its words match the request."""
    meant = asked.scenes()
    if asked.what == "guide":
        return _check_guide_steps(asked, said, meant)
    right = []
    for one, other in zip(said, meant, strict=False):
        if one is None:
            right.append(False)
        elif asked.approved:
            right.append(keeps_thing(one, asked.before or other, asked.approved))
        elif asked.what == "picture":
            right.append(asked.free or matches_picture(one, other, asked.ask))
        else:
            matches = matches_composition if asked.composed else matches_edit
            right.append(matches(one, asked.before or other, other, asked.ask))
    return right + [False] * (max(len(said), len(meant)) - len(right))


def _check_guide_steps(asked: TurnCase, said: Sequence[Scene | None], meant: Sequence[Scene]) -> list[bool]:
    """A step is right if it adds the due parts as requested and all steps before it are right."""
    final = meant[-1].things[0]
    named = find_named_parts(asked.opening, final)
    counts = [len(scene.things[0].parts) for scene in meant]
    start = len(asked.before.things[0].parts) if asked.before and asked.continues else 0
    free = [late - early for early, late in zip([start, *counts], counts, strict=False)] != [1] * len(counts)
    right: list[bool] = []
    done = start
    for index in range(max(len(said), len(meant))):
        scene = said[index] if index < len(said) else None
        if scene is None or not all(right) or len(scene.things) != 1:
            right.append(False)
            continue
        thing = scene.things[0]
        last = index == len(meant) - 1
        due = counts[min(index, len(counts) - 1)]
        in_time = len(thing.parts) == due if last or not free else done < len(thing.parts) < counts[-1]
        right.append(in_time and index < len(meant) and _matches_guide(asked, scene, meant[-1], named))
        done = len(thing.parts)
    return right


def _matches_guide(asked: TurnCase, said: Scene, meant: Scene, named: Named) -> bool:
    thing, final = said.things[0], meant.things[0]
    if thing.kind != final.kind or find_background(asked.ask) not in (None, said.background):
        return False
    if final.side != "middle" and thing.side != final.side:
        return False
    return all(matches_part(one, other, asked.ask, named) for one, other in zip(thing.parts, final.parts, strict=False))


def score_pictures(asked: TurnCase, images: Sequence[Image], said: Sequence[Scene | None], steps: Sequence[bool]) -> list[PictureScore]:
    """Score every picture against its own words and the picture before it."""
    starts_anew = asked.what == "picture" or (asked.what == "guide" and not asked.continues)
    scene, shown = (None, None) if starts_anew else (asked.before, asked.shown)
    scores = []
    for index, (image, now) in enumerate(zip(images, said, strict=True)):
        words = index < len(steps) and steps[index]
        goes_on = asked.what == "guide" and not starts_anew and now is not None and now.things
        number = len(now.things[0].parts) if goes_on else index + 1
        blank = PictureScore(None, number, words, False, seconds=image.seconds)
        if asked.approved and asked.shown and not index:
            kept, renewed = compare_approved(asked.shown, image.picture, mark_thing(asked.approved))
            blank = replace(blank, approved=kept, renewed=renewed)
        if asked.renderer and not starts_anew and now is not None and scene is not None:
            right, kept = check_styled_edit(resize_to_canvas(image.picture), asked.renderer(scene), asked.renderer(now), draw(now))
            scores.append(replace(blank, right=right, decibels=kept))
        else:
            scores.append(_score_picture(image, now, scene, shown, blank))
        scene, shown = now, image.picture
    return scores


def mark_thing(thing: Thing) -> Picture:
    """The pixels of a thing on the canvas, white in an "L" picture, as taps on all its parts would mark them."""
    marked = np.zeros((CANVAS, CANVAS), bool)
    for background in BACKGROUNDS:  # on one of its own colour a part could not be seen
        plain, drawn = (np.asarray(draw(Scene(background, things))) for things in ((), (thing,)))
        marked |= (plain != drawn).any(-1)
    return PILImage.fromarray(marked.astype(np.uint8) * 255)


def compare_approved(before: Picture, painted: Picture, marked: Picture) -> tuple[bool, float]:
    """Whether not a pixel where `marked` is white has changed, and the share of the others that visibly have."""
    if painted.size != before.size:
        return False, 1.0
    old, new, stays = np.asarray(before), np.asarray(painted), np.asarray(marked) > 0
    changed = np.abs(old.astype(np.float32) - new).mean(-1) > CHANGED
    return bool((old == new)[stays].all()), float(changed[~stays].mean())


def check_styled_edit(picture: Picture, before: Picture, after: Picture, clean: Picture) -> tuple[bool, float | None]:
    """Whether an edit of a drawing in another style is right, and the PSNR of everything else.

    No scene can be read from such a drawing, so it is compared with a drawing of the reference in the same style. The new part may
    also be drawn in the world's own style (`clean`).
    """
    drawn, old, new, neat = (np.asarray(each, np.float32) for each in (picture, before, after, clean))
    changed = np.abs(old - new).mean(-1) > CHANGED
    kept = capped_psnr(before, picture, ~changed)
    if not np.any(changed):
        return False, kept
    off_new, off_neat, still = (float(np.sqrt(np.square(drawn - each)[changed].mean())) for each in (new, neat, old))
    return min(off_new, off_neat) < min(MOST_OFF, still / 2) and (kept is None or kept >= LEAST_KEPT), kept


def _score_picture(image: Image, now: Scene | None, before: Scene | None, shown: Picture | None, score: PictureScore) -> PictureScore:
    if now is None:
        return score
    picture = resize_to_canvas(image.picture)
    check = verify.check_scene(picture, now)
    kind = now.things[0].kind if len(now.things) == 1 else None
    score = replace(score, kind=kind, right=check.right, attributes=check.attributes, distance=verify.nearest_distance(picture, now))
    if before is None or shown is None:
        return score
    same = capped_psnr(resize_to_canvas(shown), picture, verify.unchanged_mask(before, now))
    return replace(score, kept=is_rest_kept(check, before, now), decibels=same)


def capped_psnr(one: Picture, other: Picture, mask: np.ndarray | None = None) -> float | None:
    """PSNR in dB of two pictures of one size, within `mask` if given, at most `MOST_DECIBELS`; `None` if the mask is empty."""
    return None if mask is not None and not np.any(mask) else min(MOST_DECIBELS, verify.psnr(one, other, mask))


def is_rest_kept(check: verify.Check, before: Scene, now: Scene) -> bool | None:
    """Whether everything that should stay is unchanged; `None` if nothing should."""
    old = {drawn for thing in before.things for drawn in _visible_parts(thing)}
    new = {(number, index): drawn for number, thing in enumerate(now.things) for index, drawn in enumerate(_visible_parts(thing))}
    marks = [part.right for part in check.parts if new[part.thing, part.part] in old]
    marks += [check.background] if before.background == now.background else []
    return all(marks) and not check.extra if marks else None


def _visible_parts(thing: Thing) -> list[tuple]:
    """What is visible of each part. Two parts that are equal here look the same at the same place."""
    boxes = part_boxes(thing)
    return [(thing.kind, part.shape, part.colour, part.name, tuple(at)) for part, at in zip(thing.parts, boxes, strict=True)]


def resize_to_canvas(picture: Picture) -> Picture:
    """The picture at the size of the world's drawings."""
    return picture if picture.size == (CANVAS, CANVAS) else picture.resize((CANVAS, CANVAS), PILImage.Resampling.LANCZOS)
