"""What fine-tuning gains: `python -m bench.finetune ratio`, `... lighthouse --out DIR` and `... manner --out DIR`.

`ratio`: a step of stage 2 with cached states and latents against the same step without, measured in turn in one run. `lighthouse`:
thirty examples of a thing that the bundled pair has never seen; held-out requests before and after, and what the old kinds lost.
`manner`: thirty guides said in another manner, stage 1 alone; what is said before and after, and what the same words paint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import lessons
from bench.machine import host
from duogen.conversation import Conversation, Text, Turn, write_beside
from duogen.dataset.format import Example, Line, write
from duogen.dataset.readers import read
from duogen.engine import Engine
from duogen.evaluate import sketchbook
from duogen.evaluate.asking import own_image
from duogen.evaluate.figures import share
from duogen.evaluate.scores import Asked, TurnScore, failed_turn, score_turn
from duogen.events import Done
from duogen.finetune import prepare as lessons_of
from duogen.finetune.config import FineTune
from duogen.finetune.run import finetune
from duogen.finetune.stages import PaintStage, gathered, paint_config
from duogen.models.adapters import Wanted
from duogen.models.pipeline import open_parts
from duogen.options import Options, TextOptions
from duogen.sketchbook.tasks import Dialogue
from duogen.sketchbook.verify import check_scene
from duogen.train.trainer import Recipe, autocast

FIGURES = ("guide_steps_words", "guide_steps_pictures", "it_co", "it_co_attributes", "questions_right", "talk_right")


def answered(engine: Engine, ask: str, seed: int) -> Turn | None:
    """What the pair answers, at temperature 0 as the words are measured; `None` if it fails."""
    options = Options(seed, TextOptions(temperature=0.0, max_tokens=200), own_image(engine))
    *_, last = engine.answer(Conversation().say("user", ask), options)
    return last.conversation.path()[-1] if isinstance(last, Done) else None


def right(engine: Engine, requests: list[lessons.Request]) -> tuple[list[bool], list[str]]:
    """Which requests end in a picture of the whole thing as asked for, and what was said."""
    marks, said = [], []
    for number, request in enumerate(requests):
        turn = answered(engine, request.ask, number)
        pictures = turn.images() if turn else []
        marks.append(bool(pictures) and check_scene(pictures[-1].picture, request.scene).right)
        said.append(turn.text() if turn else "")
        print(f"{number + 1}/{len(requests)} {'right' if marks[-1] else 'wrong'}: {said[-1]!r}", flush=True)
    return marks, said


def taught(given: argparse.Namespace, data: Path, stage: str) -> tuple[Engine, float]:
    """The pair with what `python -m duogen finetune` makes of the lessons, and the minutes that took."""
    order = lessons_of.Order(data, given.out / "adapter", None, stage, FineTune.load(given.recipe), given.device)
    began = time.monotonic()
    known = finetune(order)
    if known["phase"] != "done":
        raise SystemExit(known["words"])
    return Engine.open(device=given.device, adapters=[Wanted(order.out)]), (time.monotonic() - began) / 60


def lighthouse(given: argparse.Namespace) -> dict[str, Any]:
    """A thing that the pair has never seen, before and after, and what the old kinds lost."""
    figures: dict[str, Any] = described(given)
    base = Engine.open(device=given.device)
    with lessons.known():
        data, requests = lessons.lighthouses(given.out / "data"), lessons.held_lighthouses(given.n)
        before, _ = right(base, requests)
    figures |= {"before": share(before).data(), "old_before": old_kinds(base, given.old)}
    worn, figures["minutes"] = taught(given, data, "both")
    with lessons.known():
        after, figures["said"] = right(worn, requests)
    figures |= {"after": share(after).data(), "old_after": old_kinds(worn, given.old)}
    print(f"right before {share(before).words()}, after {share(after).words()}; taught in {figures['minutes']:.1f} minutes")
    for name, value in (figures["old_before"] or {}).items():
        print(f"old kinds, {name}: {value['value']:.3f} before, {figures['old_after'][name]['value']:.3f} after (n = {value['n']})")
    return figures


def manner(given: argparse.Namespace) -> dict[str, Any]:
    """A manner of speech, taught with stage 1 alone: how often it is spoken, and what the same words paint, before and after."""
    figures: dict[str, Any] = described(given)
    base, asked = Engine.open(device=given.device), lessons.known_things(given.n)
    data = lessons.sailors(given.out / "data")
    worn, figures["minutes"] = taught(given, data, "1")
    for name, engine in (("before", base), ("after", worn)):
        turns = [answered(engine, lessons.asked(dialogue), number) for number, dialogue in enumerate(asked)]
        scores = [guide_score(dialogue, turn) for dialogue, turn in zip(asked, turns, strict=True)]
        painted = [picture.right for score in scores for picture in score.pictures]
        spoken = share(turn is not None and lessons.is_sailor(turn.text()) for turn in turns)
        words, pictures = share(step for score in scores for step in score.steps), share(painted)
        figures[name] = {"spoken": spoken.data(), "words_right": words.data(), "pictures_right": pictures.data()}
        print(f"{name}: spoken {spoken.words()}, words right {words.words()}, pictures right {pictures.words()}: {turns[0].text()!r}")
    equal = [pixels(base, dialogue) == pixels(worn, dialogue) for dialogue in asked]
    figures["same_words_same_picture"] = share(equal).data()
    print(f"the same words paint the same picture, bit for bit: {share(equal).words()}; taught in {figures['minutes']:.1f} minutes")
    return figures


def guide_score(dialogue: Dialogue, turn: Turn | None) -> TurnScore:
    """The answer's score, the sailor's hello and goodbye aside."""
    meant = dialogue.lines[1].parts
    asked = Asked("guide", lessons.asked(dialogue).lower(), meant, opening=str(meant[0]).partition("\n")[0])
    if turn is None:
        return failed_turn(asked, "no answer")
    plain = [Text(lessons.without_manner(part.text)) if isinstance(part, Text) else part for part in turn.parts]
    return score_turn(asked, plain)


def pixels(engine: Engine, dialogue: Dialogue) -> bytes:
    """The first picture of a guide whose words are said for the pair."""
    conversation = Conversation().say("user", lessons.asked(dialogue)).say("assistant", dialogue.lines[1].parts[0])
    return engine.paint_after(conversation, Options(0, image=own_image(engine))).picture.tobytes()


def described(given: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions and the settings."""
    return {
        "machine": host() | {"threads": given.threads},
        "torch": torch.__version__,
        "pair": "duogen-sketch",
        "recipe": FineTune.load(given.recipe).as_json(),
    }


def old_kinds(engine: Engine, count: int) -> dict[str, Any] | None:
    """The main figures of `python -m duogen evaluate sketchbook` on what the pair could do already."""
    if not count:
        return None
    figures = sketchbook.evaluate(engine, "held-out", count, 0, kinds=list(lessons.CORE))
    return {name: figures["scores"][name] for name in FIGURES}


def ratio(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a stage-2 step, with caches and without, in turn: on guides of three pictures and on single ones.

    On a CPU these are seconds of computing, so that a busy machine says the same as an idle one.
    """
    figures: dict[str, Any] = described(given) | {"pair": given.pair or "duogen-sketch", "steps": given.steps, "batch": given.batch}
    with tempfile.TemporaryDirectory() as room:
        for name, copies in (("guides", 2), ("single", 1)):
            with lessons.known():
                data = lessons.lighthouses(Path(room) / name, 12)
            if name == "single":
                write([_first_picture(each) for each in read(data).examples], data)
            recipe = FineTune.load("cpu")
            recipe = replace(recipe, paint=replace(recipe.paint, batch=given.batch, copies=copies))
            middle = _compared(given, lessons_of.Order(data, Path(room) / "out", given.pair, "2", recipe, given.device))
            figures[name] = {**middle, "ratio": middle["uncached"] / middle["cached"]}
            cached, uncached = middle["cached"], middle["uncached"]
            print(f"{name}: a step with caches {cached:.2f} s, without {uncached:.2f} s: {uncached / cached:.1f} times as fast", flush=True)
    return figures


def _first_picture(example: Example) -> Example:
    asked, answer = example.lines
    return replace(example, lines=(asked, Line("assistant", answer.parts[:2])))


def _compared(given: argparse.Namespace, order: lessons_of.Order) -> dict[str, float]:
    ready, own = lessons_of.prepared(order), order.recipe.paint
    files = dict(zip((each.where for each in ready.data.examples), lessons_of.seen(ready, ready.data.examples, None), strict=True))
    see = lessons_of.seeing(ready.pair, ready, None)
    parts = open_parts(ready.pair, ("transformer", "vae"), ready.device)
    lessons_of.taught(parts.transformer, paint_config(parts.transformer, own), 0)
    loop: Recipe = lessons_of.loop_recipe(own, order.recipe)
    stage = PaintStage(loop, parts, [files[each.where] for each in ready.train], own)

    def uncached(step: int) -> Any:
        return gathered([see(ready.train[index]) for index in stage.rounds[step]], stage.batch(step).targets)

    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    for step in range(given.steps + 1):
        for name, batch in (("cached", stage.batch), ("uncached", uncached)):
            taken = _timed(stage, batch, step)
            if step:  # the first warms up
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _timed(stage: PaintStage, batch: Callable[[int], Any], step: int) -> float:
    clock = time.process_time if stage.transformer.device.type == "cpu" else time.perf_counter
    began = clock()
    with autocast(stage.recipe):
        loss, _ = stage.loss(batch(step), torch.Generator().manual_seed(step))
    loss.backward()
    stage.transformer.zero_grad()
    float(loss.detach())
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    fast, *proofs = (commands.add_parser(name) for name in BENCHES)
    fast.add_argument("--steps", type=int, default=8)
    fast.add_argument("--batch", type=int, default=4)
    fast.add_argument("--pair", help="folder of a pair (default: the bundled one)")
    for each in proofs:
        each.add_argument("--out", type=Path, required=True, help="a new folder for data and adapter")
        each.add_argument("--n", type=int, default=36, help="held-out requests")
        each.add_argument("--old", type=int, default=60, help="conversations about the old kinds; 0 leaves that out")
    for each in (fast, *proofs):
        each.add_argument("--recipe", default="cpu", help="a preset or a recipe file")
        each.add_argument("--device", default="auto")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures = BENCHES[given.what](given)
    if given.json:
        write_beside(given.json, json.dumps(figures, indent=1).encode())


BENCHES = {"ratio": ratio, "lighthouse": lighthouse, "manner": manner}

if __name__ == "__main__":
    main()
