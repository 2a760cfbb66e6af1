"""What fine-tuning gains: `python -m bench.finetune ratio` and `python -m bench.finetune lighthouse --out DIR`.

`ratio`: a step of stage 2 with cached states and latents against the same step without, measured in turn in one run. `lighthouse`:
thirty examples of a thing that the bundled pair has never seen; held-out requests before and after, and what the old kinds lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from duogen.adapters import Wanted
from duogen.conversation import Conversation, write_beside
from duogen.data.format import CONVERSATIONS, Example, Line, Picture, write
from duogen.data.readers import read
from duogen.engine import Engine
from duogen.evaluate import sketchbook
from duogen.evaluate.figures import share
from duogen.events import Done
from duogen.options import ImageOptions, Options, TextOptions
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import Part, Scene, Thing
from duogen.sketchbook.verify import check_scene
from duogen.sketchbook.words import BACKGROUND_WORDS
from duogen.teaching import FineTune
from duogen.train import finetune as work
from duogen.train.loop import Recipe
from duogen.train.taught import PaintStage, gathered

COLOURS = ("red", "blue", "green", "yellow", "purple", "brown")
ASKS = (
    "How do I draw a {wish}?", "Show me how to draw a {wish}.", "Teach me to draw a {wish}, please.", "I'd like to draw a {wish}.",
    "Can you show me how a {wish} is drawn?",
)  # fmt: skip
HELD_ASKS = ("Please show me how to draw a {wish}", "how do you draw a {wish}", "Let's draw a {wish} together!")


def lighthouse(tower: str, roof: str, steps: int = 3) -> Scene:
    """Its first `steps` parts, by the sea."""
    parts = (
        Part("rectangle", "tall", tower, "tower", stand="on the ground"),
        Part("square", "small", "yellow", "lamp", "on top of", 0),
        Part("triangle", "small", roof, "roof", "on top of", 1),
    )
    return Scene("sea", (Thing(None, parts[:steps]),))


def words(tower: str, roof: str) -> list[str]:
    """What each step says, in the manner of the bundled pair's guides."""
    place = BACKGROUND_WORDS["sea"].capitalize()
    opening = f"Let's draw a {tower} lighthouse with a {roof} roof.\n"
    return [
        f"{opening}Step 1. {place}, draw a tall {tower} rectangle on the ground for the tower.\n",
        "Step 2. Add a small yellow square on top of the tower for the lamp.\n",
        f"Step 3. Put a small {roof} triangle on top of the lamp for the roof.\n",
    ]


def combinations() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Colours of tower and roof: thirty less six to learn from, six that are held out."""
    every = [(tower, roof) for tower in COLOURS for roof in COLOURS if tower != roof]
    random.Random(1).shuffle(every)
    return every[6:], every[:6]


def examples(folder: Path, count: int = 30) -> Path:
    """Write the lessons: one of each combination that is not held out, some asked for in two ways."""
    learnt, _ = combinations()
    rng, made = random.Random(2), []
    for number in range(count):
        tower, roof = learnt[number % len(learnt)]
        parts: list[str | Picture] = []
        for step, said in enumerate(words(tower, roof), 1):
            file = folder / "drawn" / f"{tower}-{roof}-{step}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            draw(lighthouse(tower, roof, step)).save(file)
            parts += [said, Picture(file)]
        asked = rng.choice(ASKS).format(wish=f"{tower} lighthouse with a {roof} roof")
        made.append(Example(f"lighthouse-{number}", (Line("user", (asked,)), Line("assistant", tuple(parts)))))
    write(made, folder)
    assert (folder / CONVERSATIONS).exists()
    return folder


def right(engine: Engine, count: int) -> tuple[int, int, list[str]]:
    """How many of `count` held-out requests end in a picture of the whole lighthouse as asked for, and what was said."""
    _, held = combinations()
    about, good, said = engine.about, 0, []
    for number in range(count):
        tower, roof = held[number % len(held)]
        asked = HELD_ASKS[number // len(held) % len(HELD_ASKS)].format(wish=f"{tower} lighthouse with a {roof} roof")
        image = ImageOptions(steps=about["steps"], guidance=about["guidance"], max_images=4, preview_every=0)
        options = Options(number, TextOptions(temperature=0.0, max_tokens=160), image)
        *_, last = engine.answer(Conversation().say("user", asked), options)
        pictures = last.conversation.path()[-1].images() if isinstance(last, Done) else []
        good += bool(pictures) and check_scene(pictures[-1].picture, lighthouse(tower, roof)).right
        said.append(last.conversation.path()[-1].text())
    return good, count, said


def prove(given: argparse.Namespace) -> dict[str, Any]:
    """Before, teaching, after."""
    data = examples(given.out / "data")
    recipe = FineTune.load(given.recipe)
    order = work.Order(data, given.out / "adapter", None, "both", recipe, given.device)
    before = right(Engine.open(device=given.device), given.n)
    old = old_kinds(Engine.open(device=given.device), given.old)
    began = time.monotonic()
    known = work.finetune(order)
    if known["phase"] != "done":
        raise SystemExit(known["words"])
    minutes = (time.monotonic() - began) / 60
    worn = Engine.open(device=given.device, adapters=[Wanted(order.out)])
    after = right(worn, given.n)
    kept = old_kinds(worn, given.old)
    for name, (good, count, said) in {"before": before, "after": after}.items():
        print(f"{name}: {share([True] * good + [False] * (count - good)).words()} right, such as: {said[0][:160]!r}")
    print(f"taught in {minutes:.1f} minutes; old kinds right before {old}, after {kept}")
    return {"before": before[:2], "after": after[:2], "minutes": minutes, "old_before": old, "old_after": kept, "recipe": recipe.as_json()}


def old_kinds(engine: Engine, count: int) -> Any:
    """The share of right pictures on what the pair could do already."""
    if not count:
        return None
    figures = sketchbook.evaluate(engine, "held-out", count, 0, kinds=["house", "tree", "snowman"], say=lambda words: None)
    return {name: value for name, value in figures.items() if isinstance(value, dict) and "value" in value}


def ratio(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a stage-2 step, with caches and without, in turn: on guides of three pictures and on single ones.

    On a CPU these are seconds of computing, so that a busy machine says the same as an idle one.
    """
    about = {"cores": os.cpu_count(), "threads": given.threads, "system": platform.platform(), "torch": torch.__version__}
    figures: dict[str, Any] = {"machine": about, "pair": given.pair or "duogen-sketch", "steps": given.steps, "batch": given.batch}
    with tempfile.TemporaryDirectory() as room:
        for name, copies in (("guides", 2), ("single", 1)):
            data = examples(Path(room) / name, 12)
            if name == "single":
                write([_first_picture(each) for each in read(data).examples], data)
            recipe = FineTune.load("cpu")
            recipe = replace(recipe, paint=replace(recipe.paint, batch=given.batch, copies=copies))
            middle = _compared(given, work.Order(data, Path(room) / "out", given.pair, "2", recipe, given.device))
            figures[name] = {**middle, "ratio": middle["uncached"] / middle["cached"]}
            cached, uncached = middle["cached"], middle["uncached"]
            print(f"{name}: a step with caches {cached:.2f} s, without {uncached:.2f} s: {uncached / cached:.1f} times as fast", flush=True)
    return figures


def _first_picture(example: Example) -> Example:
    asked, answer = example.lines
    return replace(example, lines=(asked, Line("assistant", answer.parts[:2])))


def _compared(given: argparse.Namespace, order: work.Order) -> dict[str, float]:
    ready, own = work.prepared(order), order.recipe.paint
    files = {example.where: file for example, file in work._seen(ready, None)}
    see = work._seeing(ready.pair, ready, None)
    parts = work.open_parts(ready.pair, ("transformer", "vae"), ready.device)
    work._taught(parts.transformer, work.paint_config(parts.transformer, own), 0)
    loop: Recipe = work.loop_recipe(own, order.recipe)
    stage = PaintStage(loop, parts.transformer, parts.about, parts.vae, [files[each.where] for each in ready.train], own)

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
    with torch.autocast(stage.transformer.device.type, torch.bfloat16):
        loss, _ = stage.loss(batch(step), torch.Generator().manual_seed(step))
    loss.backward()
    stage.transformer.zero_grad()
    float(loss.detach())
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    fast, proof = commands.add_parser("ratio"), commands.add_parser("lighthouse")
    fast.add_argument("--steps", type=int, default=8)
    fast.add_argument("--batch", type=int, default=4)
    fast.add_argument("--pair", help="folder of a pair (default: the bundled one)")
    proof.add_argument("--out", type=Path, required=True, help="a new folder for data and adapter")
    proof.add_argument("--recipe", default="cpu", help="a preset or a recipe file")
    proof.add_argument("--n", type=int, default=30, help="held-out requests")
    proof.add_argument("--old", type=int, default=24, help="conversations about the old kinds; 0 leaves that out")
    for each in (fast, proof):
        each.add_argument("--device", default="auto")
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    figures = (ratio if given.what == "ratio" else prove)(given)
    if given.json:
        write_beside(given.json, json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
