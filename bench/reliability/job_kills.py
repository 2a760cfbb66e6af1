"""Jobs that are killed at random moments: python -m bench.reliability.job_kills [--kills N] [--jobs NAME ...] [--seed N]

Fine-tuning of a tiny pair, a data engine's run, and the answers of an evaluation are killed (SIGKILL) and started again until one of them
ends. What they made is compared with an uninterrupted one: an adapter and its optimisers to the bit, a set to the byte, answers but for
their seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from bench.machine import host
from bench.reliability.person import Painter, make_noise
from duogen.conversation import Conversation
from duogen.events import Event
from duogen.files import write_beside

FILE = Path(__file__).parents[1] / "results" / "job-kills.json"
PAGES, TASKS, EXAMPLES = 24, 24, 6
WORDS = "Roll the dough thin, cut it into strips and lay them over the apples one after the other. "
RECIPE = {
    "sample_every": 2, "save_minutes": 0.0, "max_tokens": 300, "mllm": {"steps": 6, "batch": 2, "rank": 4, "warmup": 1},
    "dit": {"steps": 6, "batch": 2, "rank": 4, "ema": 0.5, "warmup": 1, "learning_rate": 0.01},
}  # fmt: skip
Job = Callable[[Path, Path], None]  # from a place into a folder


def finetune_tiny(place: Path, out: Path) -> None:
    from duogen.finetune.config import FineTuneConfig
    from duogen.finetune.prepare import FineTuneRequest
    from duogen.finetune.run import finetune

    wish = FineTuneRequest(place / "data", out, str(place / "pair"), "both", FineTuneConfig.from_json(RECIPE), "cpu")
    known = finetune(wish, lambda words: None)
    if known["phase"] != "done":
        raise ValueError(known["words"])


def make_set(place: Path, out: Path) -> None:
    from duogen.data_engine.options import DataOptions
    from duogen.data_engine.run import make_dataset

    make_dataset(place / "pages", out, DataOptions(), log=lambda words: None).close()


def answer_tasks(place: Path, out: Path) -> None:
    from duogen.evaluate.answer_files import answer_all
    from duogen.evaluate.benchmarks import find_benchmark
    from duogen.evaluate.tasks import load_tasks

    benchmark = find_benchmark("dpg")
    engine: Any = SamePainter(random.Random(0))
    answer_all(engine, benchmark, load_tasks(benchmark, None, limit=TASKS), out, log=lambda words: None)


class SamePainter(Painter):
    """Answers the same whenever it is asked the same."""

    def answer(self, asked: Conversation, *given: Any) -> Iterator[Event]:
        self.rng = random.Random(asked.path()[-1].text())
        return super().answer(asked, *given)


TUNING = "fine-tuning"
JOBS: dict[str, tuple[Job, str]] = {
    TUNING: (finetune_tiny, "run/*/state.pt text_encoder/*.safetensors transformer/*.safetensors"),
    "data engine": (make_set, "conversations.jsonl images/*"),
    "evaluation": (answer_tasks, "answers/[!.]*/answer.json"),
}


def lay_out_pages(place: Path) -> None:
    """Pages for the data engine."""
    rng = random.Random(0)
    (place / "pages").mkdir(parents=True)
    for number in range(PAGES):
        make_noise(rng).resize((200, 160), PILImage.Resampling.BICUBIC).save(place / "pages" / f"{number}.png")
        steps = "".join(f"{WORDS}This is step {step} of cake {number}, with {rng.randrange(10**6)} grains.\n\n" for step in range(5))
        (place / "pages" / f"{number:02}.md").write_text(f"# Cake {number}\n\n{steps}![A cake with apples]({number}.png)\n\n{steps}")


def lay_out_examples(place: Path) -> None:
    """A tiny pair of the tests, and examples for it."""
    from tests.support.tiny import tiny_pair

    rng = random.Random(0)
    (place / "data" / "images").mkdir(parents=True)
    with (place / "data" / "conversations.jsonl").open("w") as out:
        for number in range(EXAMPLES):
            make_noise(rng).save(place / "data" / "images" / f"{number}.png")
            said = [{"type": "text", "text": f"Here is {number}."}, {"type": "image", "file": f"images/{number}.png", "alt": "A cake"}]
            turns = [{"role": "user", "parts": [{"type": "text", "text": f"Draw {number}."}]}, {"role": "assistant", "parts": said}]
            out.write(json.dumps({"id": str(number), "turns": turns}) + "\n")
    tiny_pair(place / "pair")


def run_job(name: str, place: Path, out: Path) -> None:
    os.environ["DUOGEN_HOME"] = str(place / "home")
    JOBS[name][0](place, out)


def describe_result(name: str, out: Path) -> dict[str, str]:
    """A hash of each file that the job made; of a state, of what is in it."""
    found = {}
    for pattern in JOBS[name][1].split():
        for file in sorted(out.glob(pattern)):
            found[str(file.relative_to(out))] = hashlib.sha256(_read_result(file)).hexdigest()[:16]
    return found


def _read_result(file: Path) -> bytes:
    if file.suffix == ".pt":
        import torch

        return repr(_flatten(torch.load(file))).encode()
    if file.name == "answer.json":
        return json.dumps(json.loads(file.read_text()) | {"seconds": 0}).encode()
    return file.read_bytes()


def _flatten(value: Any) -> Any:
    """A state with the bytes of its tensors in their places."""
    if hasattr(value, "numpy"):
        return hashlib.sha256(value.detach().contiguous().float().numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {key: _flatten(each) for key, each in value.items() if key != "seconds"}
    return [_flatten(each) for each in value] if isinstance(value, list | tuple) else value


def kill_job(context: Any, name: str, place: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a job so often, in as many runs as that takes; each run is gone on with until it ends."""
    rng, done, runs, faults = random.Random(seed), 0, 0, list[str]()
    for out in (place / name / "first", place / name / "whole"):  # the first one also imports
        began = time.monotonic()
        if _run(context, name, place, out, None):
            return {"kills": 0, "faults": ["the uninterrupted run fails"]}
        seconds = time.monotonic() - began
    whole = describe_result(name, place / name / "whole")
    faults += [] if whole == describe_result(name, place / name / "first") else ["two uninterrupted runs differ"]
    while done < kills:
        out, runs = place / name / f"killed-{runs}", runs + 1
        while (code := _run(context, name, place, out, rng.uniform(0, seconds) if done < kills else None)) == -signal.SIGKILL:
            done += 1
        made = describe_result(name, out)
        faults += [f"run {runs} ended with {code}"] if code else []
        faults += [f"run {runs}: {file} differs" for file in whole.keys() | made.keys() if whole.get(file) != made.get(file)]
        shutil.rmtree(out, ignore_errors=True)
    return {"kills": done, "runs": runs, "files_compared": len(whole), "seconds_of_whole_run": round(seconds, 1), "faults": faults}


def _run(context: Any, name: str, place: Path, out: Path, seconds: float | None) -> int | None:
    """Run a job for at most so long; returns its exit status."""
    process = context.Process(target=run_job, args=(name, place, out))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


def kill_jobs(place: Path, kills: int, seed: int, names: Sequence[str] = tuple(JOBS)) -> dict[str, Any]:
    """The figures of each job."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["duogen.data_engine.run", "duogen.evaluate.answer_files", *(["duogen.finetune.run"] * (TUNING in names))]
    )
    lay_out_pages(place)
    if TUNING in names:
        lay_out_examples(place)
    return {name: kill_job(context, name, place, kills, seed) for name in names}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.job_kills", description=__doc__.splitlines()[0])
    top.add_argument("--kills", type=int, default=20, help="of each job")
    top.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    machine, began = host(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="duogen-jobs-") as folder:
        figures = kill_jobs(Path(folder), given.kills, given.seed, given.jobs)
    print(json.dumps(figures, indent=1))
    minutes = round((time.monotonic() - began) / 60, 1)
    write_beside(given.out, (json.dumps({"machine": machine, **figures, "seed": given.seed, "minutes": minutes}, indent=1) + "\n").encode())
    return 1 if any(each["faults"] for each in figures.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
