"""Play whole conversations of the picture world with a pair and measure words, pictures and seconds.

Splits: "train"; "held-out" (known things in combinations that training never showed); "held-out-kinds" (things that training never
showed: the words are those of the reference and only the painter is tested); "reference-words" (held-out combinations, painted after the
reference words likewise); "second-request" (held-out combinations, after a guide or a
picture of something else in the same conversation; the answer to the second request counts); "child" and "marker" (uploads of held-out
combinations in these drawing styles, which the user asks about or wants changed); "composing" (two or three uploads of held-out
combinations, made into one), "by-example" (a change seen between two uploads, done to a third) and "approved" (a thing of an upload that
is to stay to the pixel while the rest is painted anew; it is marked as taps in the Studio mark it).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image as PILImage
from PIL import ImageOps

from duogen.conversation import REFERENCE, SOURCE, Conversation, Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate.figures import Figure, mean, share
from duogen.evaluate.replies import Painting, default_image_options, painting_fields
from duogen.evaluate.scores import DRAWS, PictureScore, TurnCase, TurnScore, mark_thing, resize_to_canvas, score_failed_turn, score_turn
from duogen.evaluate.sheet import Panel, write_sheets
from duogen.events import AnswerBuilder, Stats
from duogen.options import Options
from duogen.sketchbook import world
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.phrases import fill_template, make_untidy, phrases
from duogen.sketchbook.questions import random_question
from duogen.sketchbook.scene import Scene, Thing
from duogen.sketchbook.styles import STYLES, apply_style
from duogen.sketchbook.tasks import Dialogue, Line, sample
from duogen.sketchbook.world import HELD_OUT_KINDS, has_held_out, random_scene

SHARES = {"guide": 0.35, "picture": 0.15, "edit": 0.15, "question": 0.2, "talk": 0.1, "ten-edits": 0.05}
STYLE_SHARES = {"edit": 0.5, "question": 0.5}
PAINTER_SHARES = {"guide": 0.6, "picture": 0.2, "edit": 0.2}
COMPOSING_SHARES = {"put": 0.34, "colours": 0.33, "three": 0.33}
SECOND = "second-request"
SECOND_SHARES = {"guide": 0.5, "picture": 0.5}
APPROVED = "approved"
REFERENCE_WORDS = "reference-words"
FORCED = ("held-out-kinds", REFERENCE_WORDS)
LEAST_RENEWED = 0.05  # share of the other places from which they count as changed: a small thing covers as much
SPLITS = ("held-out", "train", "held-out-kinds", SECOND, *STYLES, "composing", "by-example", APPROVED, REFERENCE_WORDS)
SPLIT_SHARES = {
    **dict.fromkeys(FORCED, PAINTER_SHARES), SECOND: SECOND_SHARES, "composing": COMPOSING_SHARES, "by-example": {"example": 1.0},
    APPROVED: {APPROVED: 1.0}, **dict.fromkeys(STYLES, STYLE_SHARES),
}  # fmt: skip
TEN = 10
Log = Callable[[str], None]


@dataclass
class PlayedConversation:
    """A played conversation: its current scene and picture, its scores, the panels of its contact sheet and its words."""

    conversation: Conversation = field(default_factory=Conversation)
    renderer: Callable[[Scene], PILImage.Image] | None = None
    scene: Scene | None = None
    shown: PILImage.Image | None = None
    opening: str = ""
    scores: list[TurnScore] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Player:
    """Who answers: the pair, or with `forced` the painter alone after the words of the reference."""

    engine: Engine
    options: Options
    forced: bool = False


def evaluate(
    engine: Engine,
    split: str = "held-out",
    n: int = 200,
    seed: int = 0,
    out: Path | None = None,
    kinds: list[str] | None = None,
    log: Log = print,
    *,
    painting: Painting | None = None,
) -> dict[str, Any]:
    """Play `n` conversations, divided over the tasks, and compute the figures.

    Args:
        split: one of `SPLITS`.
        seed: the same seed plays the same conversations.
        out: a folder for contact sheets.
        kinds: only these things; by default all of the split.
        painting: how the pictures are painted, where not as the pair does by itself.

    Returns:
        Figures ready for JSON; each is {"value", "low", "high", "n"} with its 95 % interval. `turns` holds every turn's words.

    Raises:
        ValueError: there is no such split or kind, or `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    forced = split in FORCED
    image = default_image_options(engine, painting)
    player = Player(engine, Options(image=image), forced)
    played: list[PlayedConversation] = []
    for number, task in enumerate(allot_tasks(n, SPLIT_SHARES.get(split, SHARES))):
        played.append(play_conversation(player, task, random.Random(f"{seed}/{number}"), split, kinds))
        right = sum(score.right for score in played[-1].scores)
        log(f"{number + 1}/{n} {task}: {right} of {len(played[-1].scores)} answers right")
    figures = summarise_turns([score for each in played for score in each.scores])
    figures = {"split": split, "n": n, "seed": seed, "only": kinds, **painting_fields(image), **figures}
    figures["turns"] = [turn for each in played for turn in each.words]
    for line in figures_table(figures):
        log(line)
    if out is not None:
        for file in _write_sheets(played, out):
            log(f"Wrote {file}")
    return figures


def allot_tasks(n: int, shares: dict[str, float]) -> list[str]:
    """Divide `n` conversations over the tasks in these shares, by largest remainder."""
    counts = {task: int(share * n) for task, share in shares.items()}
    rest = sorted(shares, key=lambda task: counts[task] - shares[task] * n)
    for task in rest[: n - sum(counts.values())]:
        counts[task] += 1
    return [task for task, count in counts.items() for _ in range(count)]


# Playing


def play_conversation(player: Player, task: str, rng: random.Random, split: str, only: Sequence[str] | None = None) -> PlayedConversation:
    """Play one conversation to its end or until an answer fails."""
    held = split != "train"
    names = tuple(only or (sorted(HELD_OUT_KINDS) if split == "held-out-kinds" else world.kinds("train")))
    pool = Pool(names, held, shapes=not held and only is None)
    played = PlayedConversation()
    if split in STYLES:
        seed = rng.randrange(2**31)
        played.renderer = lambda scene: apply_style(draw(scene), split, seed)
    if task == "ten-edits":
        for asked, line in _plan_ten_edits(played, rng, pool):
            if not _play_turn(player, played, asked, line, rng):
                break
    else:
        dialogue = sample(task, rng, held, names if held or only else None)
        while played.renderer and not dialogue.lines[0].scenes():  # one that begins with an upload
            dialogue = sample(task, rng, held, names if held or only else None)
        if split == SECOND:
            earlier = sample(rng.choice(list(SECOND_SHARES)), rng, held, names)
            dialogue = Dialogue(task, (*earlier.lines[:2], *dialogue.lines[:2]))
        for index in range(0, len(dialogue.lines) - 1, 2):
            asked, line = _plan_turn(played, dialogue, index, rng, pool)
            if not _play_turn(player, played, asked, line, rng):
                break
    scores = played.scores[1:] if split == SECOND else played.scores
    played.scores = [replace(score, task=task) for score in scores]
    return played


def _plan_ten_edits(played: PlayedConversation, rng: random.Random, pool: Pool) -> Iterator[tuple[TurnCase, Line]]:
    """Ten edits in a row of one upload. Each edit applies to the scene that the words before it describe."""
    scene = random_scene(rng, list(pool.kinds), pool.held)
    while pool.held and not has_held_out(scene):
        scene = random_scene(rng, list(pool.kinds), pool.held)
    for number in range(TEN):
        edit = random_edit(rng, pool, played.scene or scene)
        line = _follow_up_line(rng, "edit", edit.ask)
        if not number:
            line = Line("user", (scene, *line.parts))
            _add_upload(played, scene)
        meant = (edit.answer, edit.scene)
        yield TurnCase("edit", _line_text(line), meant, played.scene, shown=played.shown, renderer=played.renderer), line


def _plan_turn(played: PlayedConversation, dialogue: Dialogue, index: int, rng: random.Random, pool: Pool) -> tuple[TurnCase, Line]:
    """The next turn. Where the pair's scene differs from the reference, a new edit or question is made for the pair's scene."""
    line, answer = dialogue.lines[index], dialogue.lines[index + 1]
    reference = next((scene for each in reversed(dialogue.lines[:index]) for scene in reversed(each.scenes())), None)
    what = answer_kind(answer)
    meant = answer.parts
    for scene in line.scenes():
        reference = scene
        _add_upload(played, scene)
    if played.scene is not None and played.scene != reference and what in ("edit", "question"):
        if what == "edit":
            edit = random_edit(rng, pool, played.scene)
            line, meant = _follow_up_line(rng, "edit", edit.ask), (edit.answer, edit.scene)
        else:
            question = random_question(rng, pool, played.scene)
            line, meant = _follow_up_line(rng, "question", question.ask), (question.answer,)
    if answer.kind == "guide":
        played.opening = str(meant[0]).partition("\n")[0]
    asked = TurnCase(what, _line_text(line), meant, played.scene, played.opening, answer.free, played.shown, played.renderer)
    kept = _find_kept(dialogue, index) if dialogue.task == APPROVED else None
    return replace(asked, continues=answer.kind == "more", composed=len(line.scenes()) > 1, approved=kept), line


def _find_kept(dialogue: Dialogue, index: int) -> Thing | None:
    """The thing that both the question's upload and the answer's scene show."""
    before, after = (next(iter(line.scenes()), None) for line in dialogue.lines[index : index + 2])
    return next((thing for thing in after.things if thing in before.things), None) if before and after else None


def answer_kind(answer: Line) -> str:
    """How the scores count an answer: "guide" (also where it goes on with one), "picture", "edit", "question" or "talk"."""
    return "guide" if answer.kind == "more" else answer.kind


def _follow_up_line(rng: random.Random, task: str, ask: str) -> Line:
    return Line("user", (make_untidy(fill_template(rng.choice(phrases(task)["follow"]), ask=ask), rng),))


def _line_text(line: Line) -> str:
    return " ".join(part for part in line.parts if isinstance(part, str)).lower()


def _add_upload(played: PlayedConversation, scene: Scene) -> None:
    """The user uploads a drawing of `scene`."""
    played.scene, played.shown = scene, (played.renderer or draw)(scene)
    played.panels.append(Panel(played.shown, None, "(upload)"))


def _bring_uploads(played: PlayedConversation, line: Line, approved: Thing | None = None) -> list[str | Image]:
    """The parts of a message with its uploads; where they are several, the last is to be changed, but for an approved thing."""
    mask = None if approved is None else ImageOps.invert(mark_thing(approved))
    most = len(line.scenes()) - 1
    roles = iter([*[REFERENCE] * most, SOURCE] if most > 0 else [""])
    draw_upload = played.renderer or draw
    return [Image(draw_upload(part), role=next(roles), mask=mask) if isinstance(part, Scene) else part for part in line.parts]


def _play_turn(player: Player, played: PlayedConversation, asked: TurnCase, line: Line, rng: random.Random) -> bool:
    """Ask the pair one turn and score the answer. Returns `False` if it failed."""
    conversation = played.conversation.say("user", *_bring_uploads(played, line, asked.approved))
    options = replace(player.options, seed=rng.randrange(2**31))
    try:
        answer = answer_as_reference if player.forced else answer_freely
        played.conversation, stats = answer(player.engine, conversation, asked, options)
    except ValueError as error:
        played.scores.append(score_failed_turn(asked, str(error)))
        return False
    reply = played.conversation.path()[-1].parts
    score = score_turn(asked, reply)
    if stats is not None:
        score = replace(score, seconds=stats.seconds, first=stats.first_text_seconds)
    played.scores.append(score)
    said, meant = _reply_text(reply), _reply_text(asked.meant)
    played.words.append(
        {"what": asked.what, "asked": asked.ask, "said": said, "reference": meant, "right": score.right, "words": score.words}
    )
    _advance(played, asked, reply, score)
    return True


def _reply_text(parts: Sequence[object]) -> str:
    """A reply as text, with a mark for each picture."""
    return "".join(part if isinstance(part, str) else part.text if isinstance(part, Text) else " [picture] " for part in parts)


def answer_freely(engine: Engine, conversation: Conversation, asked: TurnCase, options: Options) -> tuple[Conversation, Stats]:
    """Let the pair answer.

    Raises:
        ValueError: it failed; the sentence says how.
    """
    answer = AnswerBuilder.from_events(engine.answer(conversation, options))
    if answer.stats is None:
        raise ValueError(answer.error or "The answer ended without an end.")
    return answer.conversation, answer.stats


def answer_as_reference(engine: Engine, conversation: Conversation, asked: TurnCase, options: Options) -> tuple[Conversation, None]:
    """Use the words of the reference answer and let only the painter paint, after each piece of them."""
    parts: list[Piece] = []
    for number, part in enumerate(asked.meant):
        if isinstance(part, Scene):
            seed = replace(options, seed=(options.seed or 0) + number)
            parts.append(engine.generate_image(conversation.say("assistant", *parts), seed))
        else:
            parts.append(Text(part))
    return conversation.say("assistant", *parts), None


def _advance(played: PlayedConversation, asked: TurnCase, reply: Sequence[Piece], score: TurnScore) -> None:
    """Set the current scene and picture after a reply, and add its pictures to the contact sheet."""
    if asked.what not in DRAWS:
        return
    words = ""
    number = 0
    for part in reply:
        if isinstance(part, Text):
            words = " ".join(part.text.split())
        elif isinstance(part, Image):
            scene = score.scenes[number]
            meant = (played.renderer or draw)(scene) if scene is not None else None
            caption = f"[{asked.ask}] {words}" if not number and asked.what != "guide" else words
            played.panels.append(Panel(resize_to_canvas(part.picture), meant, caption, score.pictures[number].right))
            played.shown = part.picture
            number += 1
    wanted = asked.scenes()[-1]
    played.scene = (score.scenes[-1] if score.scenes else played.scene) or wanted


def _write_sheets(played: list[PlayedConversation], out: Path) -> Iterator[Path]:
    for task in dict.fromkeys(score.task for each in played for score in each.scores):
        yield from write_sheets([each.panels for each in played if each.scores and each.scores[0].task == task], out, task)


# Figures


def summarise_turns(scores: Sequence[TurnScore]) -> dict[str, Any]:
    """All figures of some answers as data: over all, and by task, kind and step."""
    guides = [score for score in scores if score.what == "guide"]
    painted = [picture for score in guides for picture in score.pictures]
    names = sorted({picture_kind(picture) for picture in painted})
    tasks = {task: [score for score in scores if score.task == task] for task in dict.fromkeys(score.task for score in scores)}
    return {
        "scores": {name: figure.as_dict() for name, figure in compute_figures(scores).items()},
        "tasks": {task: _task_figures(found) for task, found in tasks.items()},
        "kinds": {name: share(p.right for p in painted if picture_kind(p) == name).as_dict() for name in names},
        "steps_of_guides": {
            str(step): share(p.right for p in painted if p.step == step).as_dict() for step in sorted({p.step for p in painted})
        },
        "failures": [score.failed for score in scores if score.failed],
    }


def compute_figures(scores: Sequence[TurnScore]) -> dict[str, Figure]:
    """The figures over all answers, by name."""
    by = {what: [score for score in scores if score.what == what] for what in ("guide", "picture", "edit", "question", "talk")}
    pictures = [picture for score in scores for picture in score.pictures]
    ten = [score for score in by["edit"] if score.task == "ten-edits"]
    one = [score for score in by["edit"] if score.task != "ten-edits"]
    kept = [picture.decibels for picture in pictures if picture.decibels is not None]
    return {
        "t_com": share(score.words for score in by["guide"]),
        "i_com": share(score.complete for score in scores if score.complete is not None),
        "it_co": share(picture.right for picture in pictures),
        "it_co_attributes": share(mark for picture in pictures for mark in _list_marks(picture)),
        "i_co_scene": share(picture.kept for picture in pictures if picture.kept is not None),
        "i_co_psnr": mean(kept),
        "i_co_psnr_30": share(value >= 30 for value in kept),
        "i_q_distance": mean(picture.distance for picture in pictures),
        "guide_steps_words": share(step for score in by["guide"] for step in score.steps),
        "guide_steps_pictures": share(picture.right for score in by["guide"] for picture in score.pictures),
        "pictures_words": share(score.words for score in by["picture"]),
        "pictures_right": share(score.right for score in by["picture"]),
        "edits_words": share(score.words for score in one),
        "edits_right": share(score.right for score in one),
        "ten_edits_right": share(score.right for score in ten),
        "ten_edits_words": share(score.words for score in ten),
        "questions_right": share(score.right for score in by["question"]),
        "talk_right": share(score.right for score in by["talk"]),
        "draws_when_it_should": share(score.draws for score in scores),
        "seconds_per_picture": mean(picture.seconds for picture in pictures),
        "seconds_per_reply": mean(score.seconds for score in scores),
        "seconds_first_word": mean(score.first for score in scores),
    } | _compute_approved(pictures)


def _compute_approved(pictures: Sequence[PictureScore]) -> dict[str, Figure]:
    """The figures of pictures with an approved part; none where there are none."""
    renewed = [picture.renewed for picture in pictures if picture.renewed is not None]
    if not renewed:
        return {}
    return {
        "approved_kept": share(picture.approved for picture in pictures if picture.approved is not None),
        "approved_rest_changed": share(value >= LEAST_RENEWED for value in renewed),
        "approved_rest_share": mean(renewed),
    }


def picture_kind(picture: PictureScore) -> str:
    return picture.kind or "shapes or unreadable"


def _list_marks(picture: PictureScore) -> list[bool]:
    right, every = picture.attributes or (0, 0)
    return [True] * right + [False] * (every - right)


def _task_figures(scores: Sequence[TurnScore]) -> dict[str, dict]:
    """The same four figures for every task."""
    pictures = [picture for score in scores for picture in score.pictures]
    return {
        "words": share(score.words for score in scores).as_dict(),
        "pictures": share(picture.right for picture in pictures).as_dict(),
        "draws": share(score.draws for score in scores).as_dict(),
        "right": share(score.right for score in scores).as_dict(),
    }


NOT_SHARES = ("i_co_psnr", "i_q_distance", "seconds_per_picture", "seconds_per_reply", "seconds_first_word")


def figures_table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [f"{figures['split']}, {figures['n']} conversations, seed {figures['seed']}; 95 % intervals", ""]
    lines += [f"{name:24} {Figure(**data).format(name not in NOT_SHARES)}" for name, data in figures["scores"].items()]
    for task, found in figures["tasks"].items():
        lines += ["", *(f"{f'{task}, {name}':24} {Figure(**data).format()}" for name, data in found.items())]
    for title, key in (("kind", "kinds"), ("step", "steps_of_guides")):
        lines += ["", f"guide steps, picture = words, by {title}"]
        lines += [f"{name:24} {Figure(**data).format()}" for name, data in figures[key].items()]
    return lines + [f"failed: {sentence}" for sentence in figures["failures"]]
