"""Plays whole conversations of the picture world with a pair and measures words, pictures and seconds.

Splits: "train", "held-out" (known things in combinations that training never showed), "held-out-kinds" (things that training never
showed: the evaluation says the steps' words itself and only the painter paints), "child" and "marker" (held-out combinations as such a
hand draws them, brought to be changed or asked about).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Piece, Text
from duogen.engine import Engine
from duogen.evaluate.asking import own_image
from duogen.evaluate.figures import Figure, mean, share
from duogen.evaluate.scores import DRAWS, Asked, PictureScore, TurnScore, canvas, failed_turn, score_turn
from duogen.evaluate.sheet import Panel, write_sheets
from duogen.events import Done, Failed, Stats
from duogen.options import Options
from duogen.sketchbook import world
from duogen.sketchbook.draw import draw
from duogen.sketchbook.edits import Pool, random_edit
from duogen.sketchbook.hands import HANDS, by_hand
from duogen.sketchbook.phrases import filled, phrases, untidy
from duogen.sketchbook.questions import random_question
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.tasks import Dialogue, Line, sample
from duogen.sketchbook.world import HELD_OUT_KINDS, holds_out, random_scene

SHARES = {"guide": 0.35, "picture": 0.15, "edit": 0.15, "question": 0.2, "talk": 0.1, "ten-edits": 0.05}
HAND_SHARES = {"edit": 0.5, "question": 0.5}
PAINTER_SHARES = {"guide": 0.6, "picture": 0.2, "edit": 0.2}
SPLITS = ("held-out", "train", "held-out-kinds", *HANDS)
TEN = 10
Say = Callable[[str], None]


@dataclass
class Played:
    """A conversation as it went: where it stands, its scores, its pictures for the contact sheet and its words for whoever looks closer."""

    conversation: Conversation = field(default_factory=Conversation)
    pen: Callable[[Scene], PILImage.Image] | None = None
    scene: Scene | None = None
    shown: PILImage.Image | None = None
    opening: str = ""
    scores: list[TurnScore] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    words: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Player:
    """Who answers: the pair, or the painter alone with the words said for it."""

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
    say: Say = print,
) -> dict[str, Any]:
    """Play `n` conversations, divided over the tasks, and measure.

    Args:
        split: one of `SPLITS`.
        seed: the same seed plays the same conversations.
        out: a folder for contact sheets.
        kinds: only these things; by default all of the split.

    Returns:
        Figures ready for JSON; each is {"value", "low", "high", "n"} with its 95 % interval. `turns` holds every turn's words.

    Raises:
        ValueError: there is no such split or kind, or `n` < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; choose one of {', '.join(SPLITS)}.")
    forced = split == "held-out-kinds"
    image = own_image(engine)
    player = Player(engine, Options(image=image), forced)
    played: list[Played] = []
    shares = HAND_SHARES if split in HANDS else PAINTER_SHARES if forced else SHARES
    for number, task in enumerate(tasks_of(n, shares)):
        played.append(play(player, task, random.Random(f"{seed}/{number}"), split, kinds))
        right = sum(score.right for score in played[-1].scores)
        say(f"{number + 1}/{n} {task}: {right} of {len(played[-1].scores)} answers right")
    figures = summary([score for each in played for score in each.scores])
    played_as = {"split": split, "n": n, "seed": seed, "only": kinds, "steps": image.steps, "guidance": image.guidance}
    figures = {**played_as, **figures}
    figures["turns"] = [turn for each in played for turn in each.words]
    for line in table(figures):
        say(line)
    if out is not None:
        for file in _sheets(played, out):
            say(f"Wrote {file}")
    return figures


def tasks_of(n: int, shares: dict[str, float]) -> list[str]:
    """`n` tasks in these shares, by largest remainder."""
    counts = {task: int(share * n) for task, share in shares.items()}
    rest = sorted(shares, key=lambda task: counts[task] - shares[task] * n)
    for task in rest[: n - sum(counts.values())]:
        counts[task] += 1
    return [task for task, count in counts.items() for _ in range(count)]


# Playing


def play(player: Player, task: str, rng: random.Random, split: str, only: Sequence[str] | None = None) -> Played:
    """Play one conversation to its end, or until an answer fails."""
    held = split != "train"
    names = tuple(only or (sorted(HELD_OUT_KINDS) if split == "held-out-kinds" else world.kinds("train")))
    pool = Pool(names, held, shapes=not held and only is None)
    played = Played()
    if split in HANDS:
        seed = rng.randrange(2**31)
        played.pen = lambda scene: by_hand(draw(scene), split, seed)
    if task == "ten-edits":
        for asked, line in _ten_edits(played, rng, pool):
            if not _turn(player, played, asked, line, rng):
                break
    else:
        dialogue = sample(task, rng, held, names if held or only else None)
        while played.pen and not dialogue.lines[0].scenes():  # one that starts with what a person brings
            dialogue = sample(task, rng, held, names if held or only else None)
        for index in range(0, len(dialogue.lines) - 1, 2):
            asked, line = _asked(played, dialogue, index, rng, pool)
            if not _turn(player, played, asked, line, rng):
                break
    played.scores = [replace(score, task=task) for score in played.scores]
    return played


def _ten_edits(played: Played, rng: random.Random, pool: Pool) -> Iterator[tuple[Asked, Line]]:
    """Ten edits in a row of one upload, each asked of the scene as the words before left it."""
    scene = random_scene(rng, list(pool.kinds), pool.held)
    while pool.held and not holds_out(scene):
        scene = random_scene(rng, list(pool.kinds), pool.held)
    for number in range(TEN):
        edit = random_edit(rng, pool, played.scene or scene)
        line = _follow_up(rng, "edit", edit.ask)
        if not number:
            line = Line("user", (scene, *line.parts))
            _see(played, scene)
        yield Asked("edit", _text(line), (edit.answer, edit.scene), played.scene, shown=played.shown, pen=played.pen), line


def _asked(played: Played, dialogue: Dialogue, index: int, rng: random.Random, pool: Pool) -> tuple[Asked, Line]:
    """The next turn. Where the pair chose something else than the reference, edits and questions are asked anew of its choice."""
    line, answer = dialogue.lines[index], dialogue.lines[index + 1]
    reference = next((scene for each in reversed(dialogue.lines[:index]) for scene in reversed(each.scenes())), None)
    what = what_of(dialogue, index + 1)
    meant = answer.parts
    for scene in line.scenes():
        reference = scene
        _see(played, scene)
    if played.scene is not None and played.scene != reference and what in ("edit", "question"):
        if what == "edit":
            edit = random_edit(rng, pool, played.scene)
            line, meant = _follow_up(rng, "edit", edit.ask), (edit.answer, edit.scene)
        else:
            question = random_question(rng, pool, played.scene)
            line, meant = _follow_up(rng, "question", question.ask), (question.answer,)
    if what == "guide" and "Let's" in str(meant[0]):
        played.opening = str(meant[0]).partition("\n")[0]
    text = _text(line)
    free = what == "picture" and (index > 0 and not any(each.scenes() for each in dialogue.lines[:index]) or _vague(text))
    return Asked(what, text, meant, played.scene, played.opening, free, played.shown, played.pen), line


def what_of(dialogue: Dialogue, index: int) -> str:
    """What an answer of a dialogue is: "guide", "picture", "edit", "question" or "talk"."""
    line = dialogue.lines[index]
    text = "".join(part for part in line.parts if isinstance(part, str))
    if line.scenes():
        return "guide" if "Step " in text else "edit" if text.startswith("Now ") else "picture"
    talk = phrases("talk")
    said = set(phrases("common")["thanks"]["answer"]) | {answer for entry in talk["chat"] + talk["general"] for answer in entry["answer"]}
    offers = dialogue.task == "picture" and index == 1
    return "talk" if dialogue.task == "talk" or text in said or offers else "question"


def _vague(text: str) -> bool:
    return any(text.strip(" .!") == option.lower().strip(" .!") for option in phrases("picture")["vague"])


def _follow_up(rng: random.Random, task: str, ask: str) -> Line:
    return Line("user", (untidy(filled(rng.choice(phrases(task)["follow"]), ask=ask), rng),))


def _text(line: Line) -> str:
    return " ".join(part for part in line.parts if isinstance(part, str)).lower()


def _see(played: Played, scene: Scene) -> None:
    """The user brings a picture."""
    played.scene, played.shown = scene, (played.pen or draw)(scene)
    played.panels.append(Panel(played.shown, None, "(upload)"))


def _turn(player: Player, played: Played, asked: Asked, line: Line, rng: random.Random) -> bool:
    """Put one turn to the pair and score the answer; `False` if it failed."""
    parts = [played.shown if isinstance(part, Scene) else part for part in line.parts]
    conversation = played.conversation.say("user", *parts)
    options = replace(player.options, seed=rng.randrange(2**31))
    try:
        answer = forced_answer if player.forced else free_answer
        played.conversation, stats = answer(player.engine, conversation, asked, options)
    except ValueError as error:
        played.scores.append(failed_turn(asked, str(error)))
        return False
    reply = played.conversation.path()[-1].parts
    score = score_turn(asked, reply)
    if stats is not None:
        score = replace(score, seconds=stats.seconds, first=stats.first_text_seconds)
    played.scores.append(score)
    said, meant = _words(reply), _words(asked.meant)
    played.words.append(
        {"what": asked.what, "asked": asked.ask, "said": said, "reference": meant, "right": score.right, "words": score.words}
    )
    _show(played, asked, reply, score)
    return True


def _words(parts: Sequence[object]) -> str:
    """A reply with its pictures as marks."""
    return "".join(part if isinstance(part, str) else part.text if isinstance(part, Text) else " [picture] " for part in parts)


def free_answer(engine: Engine, conversation: Conversation, asked: Asked, options: Options) -> tuple[Conversation, Stats]:
    """The pair answers.

    Raises:
        ValueError: it failed; the sentence says how.
    """
    for event in engine.answer(conversation, options):
        if isinstance(event, Failed):
            raise ValueError(event.message)
        if isinstance(event, Done):
            return event.conversation, event.stats
    raise ValueError("The answer ended without an end.")


def forced_answer(engine: Engine, conversation: Conversation, asked: Asked, options: Options) -> tuple[Conversation, None]:
    """The reference answer's words are said for the pair, and the painter paints after each piece of them."""
    parts: list[Piece] = []
    for number, part in enumerate(asked.meant):
        if isinstance(part, Scene):
            seed = replace(options, seed=(options.seed or 0) + number)
            parts.append(engine.paint_after(conversation.say("assistant", *parts), seed))
        else:
            parts.append(Text(part))
    return conversation.say("assistant", *parts), None


def _show(played: Played, asked: Asked, reply: Sequence[Piece], score: TurnScore) -> None:
    """Move the conversation's scene and picture on, and put the pictures on its sheet."""
    if asked.what not in DRAWS:
        return
    words = ""
    number = 0
    for part in reply:
        if isinstance(part, Text):
            words = " ".join(part.text.split())
        elif isinstance(part, Image):
            scene = score.scenes[number]
            meant = (played.pen or draw)(scene) if scene is not None else None
            caption = f"[{asked.ask}] {words}" if not number and asked.what != "guide" else words
            played.panels.append(Panel(canvas(part.picture), meant, caption, score.pictures[number].right))
            played.shown = part.picture
            number += 1
    wanted = asked.scenes()[-1]
    played.scene = (score.scenes[-1] if score.scenes else played.scene) or wanted


def _sheets(played: list[Played], out: Path) -> Iterator[Path]:
    for task in dict.fromkeys(score.task for each in played for score in each.scores):
        yield from write_sheets([each.panels for each in played if each.scores and each.scores[0].task == task], out, task)


# Figures


def summary(scores: Sequence[TurnScore]) -> dict[str, Any]:
    """All figures of some answers: `scores`, `tasks`, `kinds` and `steps`, each figure as data."""
    guides = [score for score in scores if score.what == "guide"]
    painted = [picture for score in guides for picture in score.pictures]
    names = sorted({kind_of(picture) for picture in painted})
    tasks = {task: [score for score in scores if score.task == task] for task in dict.fromkeys(score.task for score in scores)}
    return {
        "scores": {name: figure.data() for name, figure in measured(scores).items()},
        "tasks": {task: _of_task(found) for task, found in tasks.items()},
        "kinds": {name: share(p.right for p in painted if kind_of(p) == name).data() for name in names},
        "steps_of_guides": {
            str(step): share(p.right for p in painted if p.step == step).data() for step in sorted({p.step for p in painted})
        },
        "failures": [score.failed for score in scores if score.failed],
    }


def measured(scores: Sequence[TurnScore]) -> dict[str, Figure]:
    """The figures by name."""
    by = {what: [score for score in scores if score.what == what] for what in ("guide", "picture", "edit", "question", "talk")}
    pictures = [picture for score in scores for picture in score.pictures]
    ten = [score for score in by["edit"] if score.task == "ten-edits"]
    one = [score for score in by["edit"] if score.task != "ten-edits"]
    kept = [picture.decibels for picture in pictures if picture.decibels is not None]
    return {
        "t_com": share(score.words for score in by["guide"]),
        "i_com": share(score.complete for score in scores if score.complete is not None),
        "it_co": share(picture.right for picture in pictures),
        "it_co_attributes": share(mark for picture in pictures for mark in _marks(picture)),
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
    }


def kind_of(picture: PictureScore) -> str:
    return picture.kind or "shapes or unreadable"


def _marks(picture: PictureScore) -> list[bool]:
    right, every = picture.attributes or (0, 0)
    return [True] * right + [False] * (every - right)


def _of_task(scores: Sequence[TurnScore]) -> dict[str, dict]:
    """The same four figures for every task."""
    pictures = [picture for score in scores for picture in score.pictures]
    return {
        "words": share(score.words for score in scores).data(),
        "pictures": share(picture.right for picture in pictures).data(),
        "draws": share(score.draws for score in scores).data(),
        "right": share(score.right for score in scores).data(),
    }


NOT_SHARES = ("i_co_psnr", "i_q_distance", "seconds_per_picture", "seconds_per_reply", "seconds_first_word")


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as lines to read."""
    lines = [f"{figures['split']}, {figures['n']} conversations, seed {figures['seed']}; 95 % intervals", ""]
    lines += [f"{name:24} {Figure(**data).words(name not in NOT_SHARES)}" for name, data in figures["scores"].items()]
    for task, found in figures["tasks"].items():
        lines += ["", *(f"{f'{task}, {name}':24} {Figure(**data).words()}" for name, data in found.items())]
    for title, key in (("kind", "kinds"), ("step", "steps_of_guides")):
        lines += ["", f"guide steps, picture = words, by {title}"]
        lines += [f"{name:24} {Figure(**data).words()}" for name, data in figures[key].items()]
    return lines + [f"failed: {sentence}" for sentence in figures["failures"]]
