"""Benchmarks of fine-tuning: `python -m bench.finetune ratio`, `... lighthouse --out DIR` and `... manner --out DIR`.

`ratio` times a step of stage 2 with cached states and latents, and without, in turn in one run. `lighthouse` trains on thirty examples of
a thing that the bundled pair has never seen, and measures held-out requests and the old kinds before and after. `manner` trains stage 1
alone on thirty guides in another manner of speech, and measures the words, and what the same words paint, before and after.
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

from bench import finetune_examples as examples
from bench.machine import host
from duogen.conversation import Conversation, Message, Text, Turn
from duogen.dataset.format import Example, write_examples
from duogen.dataset.readers import read_dataset
from duogen.engine import Engine
from duogen.evaluate import sketchbook
from duogen.evaluate.figures import share
from duogen.evaluate.replies import default_image_options
from duogen.evaluate.scores import TurnCase, TurnScore, score_failed_turn, score_turn
from duogen.events import Done
from duogen.files import write_beside
from duogen.finetune import prepare
from duogen.finetune.config import FineTuneConfig
from duogen.finetune.run import finetune
from duogen.finetune.stages import DiTStage, collate, dit_lora_config
from duogen.models.adapters import AdapterSpec
from duogen.models.pipeline import open_parts
from duogen.options import Options, TextOptions
from duogen.sketchbook.tasks import Dialogue
from duogen.sketchbook.verify import check_scene
from duogen.train.trainer import Recipe, autocast

FIGURES = ("guide_steps_words", "guide_steps_pictures", "it_co", "it_co_attributes", "questions_right", "talk_right")


def answer_request(engine: Engine, request: str, seed: int) -> Turn | None:
    """The pair's answer, at temperature 0 so that it is always the same; `None` if it fails."""
    options = Options(seed, TextOptions(temperature=0.0, max_tokens=200), default_image_options(engine))
    *_, last = engine.answer(Conversation().say("user", request), options)
    return last.conversation.path()[-1] if isinstance(last, Done) else None


def check_answers(engine: Engine, requests: list[examples.Request]) -> tuple[list[bool], list[str]]:
    """Answer requests; returns whether each answer ends in a picture of the whole thing as requested, and the words of the answers."""
    marks, said = [], []
    for number, request in enumerate(requests):
        turn = answer_request(engine, request.words, number)
        pictures = turn.images() if turn else []
        marks.append(bool(pictures) and check_scene(pictures[-1].picture, request.scene).right)
        said.append(turn.text() if turn else "")
        print(f"{number + 1}/{len(requests)} {'right' if marks[-1] else 'wrong'}: {said[-1]!r}", flush=True)
    return marks, said


def train_adapter(given: argparse.Namespace, data: Path, stage: str) -> tuple[Engine, float]:
    """Fine-tune on the examples as `python -m duogen finetune` does; returns the pair with the adapter, and the minutes of training."""
    request = prepare.FineTuneRequest(data, given.out / "adapter", None, stage, FineTuneConfig.load(given.recipe), given.device)
    began = time.monotonic()
    known = finetune(request)
    if known["phase"] != "done":
        raise SystemExit(known["words"])
    return Engine.open(device=given.device, adapters=[AdapterSpec(request.out)]), (time.monotonic() - began) / 60


def lighthouse(given: argparse.Namespace) -> dict[str, Any]:
    """Teach a thing that the pair has never seen: requests for it, and the old kinds, before and after."""
    figures: dict[str, Any] = describe_setup(given)
    base = Engine.open(device=given.device)
    with examples.lighthouse_world():
        data, requests = examples.write_lighthouses(given.out / "data"), examples.sample_held_lighthouses(given.n)
        before, _ = check_answers(base, requests)
    figures |= {"before": share(before).as_dict(), "old_before": evaluate_old_kinds(base, given.old)}
    tuned, figures["minutes"] = train_adapter(given, data, "both")
    with examples.lighthouse_world():
        after, figures["said"] = check_answers(tuned, requests)
    figures |= {"after": share(after).as_dict(), "old_after": evaluate_old_kinds(tuned, given.old)}
    print(f"right before {share(before).format()}, after {share(after).format()}; taught in {figures['minutes']:.1f} minutes")
    for name, value in (figures["old_before"] or {}).items():
        print(f"old kinds, {name}: {value['value']:.3f} before, {figures['old_after'][name]['value']:.3f} after (n = {value['n']})")
    return figures


def manner(given: argparse.Namespace) -> dict[str, Any]:
    """Teach a manner of speech with stage 1 alone: how often the answers have it, and what the same words paint, before and after."""
    figures: dict[str, Any] = describe_setup(given)
    base, asked = Engine.open(device=given.device), examples.sample_known_things(given.n)
    data = examples.write_sailors(given.out / "data")
    tuned, figures["minutes"] = train_adapter(given, data, "mllm")
    for name, engine in (("before", base), ("after", tuned)):
        turns = [answer_request(engine, examples.question_words(dialogue), number) for number, dialogue in enumerate(asked)]
        scores = [guide_score(dialogue, turn) for dialogue, turn in zip(asked, turns, strict=True)]
        painted = [picture.right for score in scores for picture in score.pictures]
        spoken = share(turn is not None and examples.is_sailor(turn.text()) for turn in turns)
        words, pictures = share(step for score in scores for step in score.steps), share(painted)
        figures[name] = {"spoken": spoken.as_dict(), "words_right": words.as_dict(), "pictures_right": pictures.as_dict()}
        print(f"{name}: spoken {spoken.format()}, words right {words.format()}, pictures right {pictures.format()}: {turns[0].text()!r}")
    equal = [pixels(base, dialogue) == pixels(tuned, dialogue) for dialogue in asked]
    figures["same_words_same_picture"] = share(equal).as_dict()
    print(f"the same words paint the same picture, bit for bit: {share(equal).format()}; taught in {figures['minutes']:.1f} minutes")
    return figures


def guide_score(dialogue: Dialogue, turn: Turn | None) -> TurnScore:
    """The score of an answer without the sailor's hello and goodbye."""
    meant = dialogue.lines[1].parts
    asked = TurnCase("guide", examples.question_words(dialogue).lower(), meant, opening=str(meant[0]).partition("\n")[0])
    if turn is None:
        return score_failed_turn(asked, "no answer")
    plain = [Text(examples.strip_manner(part.text)) if isinstance(part, Text) else part for part in turn.parts]
    return score_turn(asked, plain)


def pixels(engine: Engine, dialogue: Dialogue) -> bytes:
    """The first picture of a guide whose words are given to the pair."""
    conversation = Conversation().say("user", examples.question_words(dialogue)).say("assistant", dialogue.lines[1].parts[0])
    return engine.generate_image(conversation, Options(0, image=default_image_options(engine))).picture.tobytes()


def describe_setup(given: argparse.Namespace) -> dict[str, Any]:
    """The machine, the versions and the settings."""
    return {
        "machine": host() | {"threads": given.threads},
        "torch": torch.__version__,
        "pair": "duogen-sketch",
        "recipe": FineTuneConfig.load(given.recipe).as_json(),
    }


def evaluate_old_kinds(engine: Engine, count: int) -> dict[str, Any] | None:
    """The main figures of `python -m duogen evaluate sketchbook` on kinds that the pair was trained on before."""
    if not count:
        return None
    figures = sketchbook.evaluate(engine, "held-out", count, 0, kinds=list(examples.CORE))
    return {name: figures["scores"][name] for name in FIGURES}


def ratio(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a stage-2 step, in turn with caches and without, on guides of three pictures and on single pictures.

    On a CPU these are seconds of CPU time, so that a busy machine gives about the same as an idle one.
    """
    figures: dict[str, Any] = describe_setup(given) | {"pair": given.pair or "duogen-sketch", "steps": given.steps, "batch": given.batch}
    with tempfile.TemporaryDirectory() as room:
        for name, copies in (("guides", 2), ("single", 1)):
            with examples.lighthouse_world():
                data = examples.write_lighthouses(Path(room) / name, 12)
            if name == "single":
                write_examples([_first_picture(each) for each in read_dataset(data).examples], data)
            recipe = FineTuneConfig.load("cpu")
            recipe = replace(recipe, dit=replace(recipe.dit, batch=given.batch, copies=copies))
            middle = _compare_steps(given, prepare.FineTuneRequest(data, Path(room) / "out", given.pair, "dit", recipe, given.device))
            figures[name] = {**middle, "ratio": middle["uncached"] / middle["cached"]}
            cached, uncached = middle["cached"], middle["uncached"]
            print(f"{name}: a step with caches {cached:.2f} s, without {uncached:.2f} s: {uncached / cached:.1f} times as fast", flush=True)
    return figures


def _first_picture(example: Example) -> Example:
    asked, answer = example.lines
    return replace(example, lines=(asked, Message("assistant", answer.parts[:2])))


def _compare_steps(given: argparse.Namespace, request: prepare.FineTuneRequest) -> dict[str, float]:
    run, own = prepare.prepare_run(request), request.recipe.dit
    files = dict(zip((each.where for each in run.data.examples), prepare.cache_features(run, run.data.examples, None), strict=True))
    extract = prepare.open_extractor(run.pair, run, None)
    parts = open_parts(run.pair, ("transformer", "vae"), run.device)
    prepare.make_trainable(parts.transformer, dit_lora_config(parts.transformer, own), 0)
    trainer_recipe: Recipe = prepare.build_recipe(own, request.recipe)
    stage = DiTStage(trainer_recipe, parts, [files[each.where] for each in run.train], own)

    def uncached(step: int) -> Any:
        return collate([extract(run.train[index]) for index in stage.batch_sampler[step]], stage.batch(step).targets)

    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    for step in range(given.steps + 1):
        for name, batch in (("cached", stage.batch), ("uncached", uncached)):
            taken = _time_step(stage, batch, step)
            if step:  # the first warms up
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _time_step(stage: DiTStage, batch: Callable[[int], Any], step: int) -> float:
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
