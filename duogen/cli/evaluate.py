"""`python -m duogen evaluate NAME` for the benchmarks, and `evaluate compare`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from duogen.evaluate.benchmarks import benchmark_names, describe_benchmark
from duogen.options import ImageOptions, LoadOptions, from_flags, split_device
from duogen.replicas.cluster import add_ray_flags, connect_as_flags_say

if TYPE_CHECKING:
    from duogen.engine import Engine
    from duogen.evaluate.benchmark import Scorer
    from duogen.evaluate.detector import Detector
    from duogen.evaluate.replies import Painting
    from duogen.evaluate.tasks import Benchmark, Task

SKETCHBOOK = "sketchbook"
PAIRS_OWN = "the pair's own"
PAINTING = ("steps", "guidance", "sampler", "check")  # fields of `ImageOptions` that a measure may be given


class Measure(NamedTuple):
    """A measure of a pair of the sketchbook world: what it is, how many there are of what, and how pictures are painted by default.

    `paints` is "" where none are painted.
    """

    about: str
    most: int
    of: str
    paints: str = PAIRS_OWN


OWN = {  # a module each
    "phrasings": Measure(
        "on requests written by hand: the right kind of reply, the requested things and colours", 200, "requests", "one step, no guidance"
    ),
    "shapes": Measure("on compositions of plain shapes asked for by hand: words and pictures", 100, "requests"),
    "vague": Measure("on requests that leave everything open, each with eight seeds: different scenes?", 5, "requests"),
    "autoencoder": Measure("of the painter: what it loses of drawings, read back by the exact check", 400, "drawings", paints=""),
}
DATA = "folder of the benchmark as its authors publish it (default: GenEval and DPG come with DuoGen, the others are fetched from the hub)"


def add_to(what: Any, add_pair: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the subcommands. Imports nothing heavy."""
    names = benchmark_names()
    for name in names:
        each = what.add_parser(name, help=describe_benchmark(name).replace("%", "%%"))
        each.add_argument("--limit", type=int, metavar="N", help="only so many tasks, spread evenly over all")
        each.add_argument("--out", type=Path, metavar="DIR", help=f"folder of answers and results (default: ./output/{name})")
        each.add_argument("--resume", action="store_true", help="go on with the answers that are in --out")
        each.add_argument("--score-only", action="store_true", help="score stored answers, of any system, without answering")
        each.add_argument("--answer-only", action="store_true", help="answer without scoring")
        each.add_argument("--seed", type=int, default=0)
        add_painting(each)
        _add_scoring(each)
        again = "share of the answers that is judged again blindly, to print how often verdicts agree; 0.1 is a tenth (default: none)"
        each.add_argument("--rejudge", type=float, default=0.0, metavar="SHARE", help=again)
        each.add_argument("--second-judge", metavar="J", help="who judges again (default: --judge, which tells only that verdicts repeat)")
        add_pair(each)
        add_ray_flags(each)
    compare = what.add_parser("compare", help="folders of answers side by side, as a web page")
    compare.add_argument("name", choices=names, help="the benchmark that the answers are of")
    compare.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of answers, as --out of a benchmark has them")
    compare.add_argument("--out", type=Path, default=Path("side-by-side.html"), metavar="FILE", help="the page to write")
    compare.add_argument("--limit", type=int, metavar="N", help="only so many tasks, spread evenly over all")
    _add_scoring(compare)
    compare.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ...")
    compare.add_argument("--precision", default="auto", help="auto, nf4, int8, bf16, mixed or fp32")


def add_painting(command: argparse.ArgumentParser, default: str = PAIRS_OWN) -> None:
    """The flags of how pictures are painted; what is not given is absent from the result."""
    hints = get_type_hints(ImageOptions)
    for each in fields(ImageOptions):
        if each.name in PAINTING:
            possible = ", ".join(each.metadata.get("values", ())) or f"from {each.metadata['low']} to {each.metadata['high']}"
            about = f"{each.metadata['help']} ({possible}; default: {default})"
            command.add_argument(f"--{each.name}", type=hints[each.name], default=argparse.SUPPRESS, metavar="X", help=about)


def add_ideas(command: argparse.ArgumentParser) -> None:
    """The flag that measures requests for ideas."""
    about = "ask for so many ideas for each of --n wishes instead (2 to 6)"
    command.add_argument("--ideas", type=int, default=0, choices=range(2, 7), metavar="N", help=about)


def painting_of(given: argparse.Namespace) -> Painting:
    """How the flags say that pictures are painted.

    Raises:
        ValueError: a value is not possible.
    """
    chosen: Any = {name: value for name, value in vars(given).items() if name in PAINTING}
    ImageOptions(**chosen)
    return chosen


def measure(given: argparse.Namespace, engine: Engine, log: Callable[[str], None]) -> dict[str, Any]:
    """The figures of a measure in `OWN`."""
    chosen: dict[str, Any] = {"painting": painting_of(given)} if OWN[given.what].paints else {}
    if given.what == "vague":
        chosen["ideas"] = given.ideas
    return import_module(f"duogen.evaluate.{given.what}").evaluate(engine, given.n, given.seed, log, **chosen)


def _add_scoring(each: argparse.ArgumentParser) -> None:
    each.add_argument("--data", type=Path, metavar="DIR", help=DATA)
    each.add_argument("--judge", metavar="J", help="a pair or Qwen2.5-VL checkpoint, as a folder or by its name on the hub")
    about = f"of GenEval: a Mask2Former checkpoint, as a folder or by its name on the hub, or {SKETCHBOOK!r} for drawings"
    each.add_argument("--detector", metavar="D", help=about)


def run(given: argparse.Namespace, open_engine: Callable[[argparse.Namespace], Engine]) -> int:
    """Answer, score, or both.

    Raises:
        ValueError: one sentence for the user.
    """
    from duogen.evaluate.benchmarks import find_benchmark
    from duogen.evaluate.tasks import check_pictures, load_tasks

    if given.limit is not None and given.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {given.limit}.")
    if given.what == "compare":
        return _compare(given)
    _check_rejudging(given)
    benchmark = find_benchmark(given.what)
    painting_of(given)
    benchmark.check_prompt()
    tasks = load_tasks(benchmark, given.data, given.limit)
    check_pictures(tasks)
    out = given.out or Path("output") / given.what
    if (out / "answers").exists() and not (given.resume or given.score_only):
        raise ValueError(f"{out} holds answers already; go on with --resume, or choose a new folder with --out.")
    # Opened before any answer is made, so a missing judge is noticed at once and not after hours.
    scorer = None if given.answer_only else _open_scorer(given, benchmark.kind)
    if not given.score_only:
        _answer(given, benchmark, tasks, out, open_engine)
    if scorer is not None:
        from duogen.evaluate.benchmark import score_all

        score_all(benchmark, tasks, out, scorer, _log)
    return 0


def _answer(
    given: argparse.Namespace, benchmark: Benchmark, tasks: list[Task], out: Path, open_engine: Callable[[argparse.Namespace], Engine]
) -> None:
    """Answer the tasks here, or on the machines of a cluster."""
    from duogen.evaluate.answer_files import answer_all

    painting, cluster = painting_of(given), connect_as_flags_say(given)
    out.mkdir(parents=True, exist_ok=True)
    if cluster is None:
        answer_all(open_engine(given), benchmark, tasks, out, given.seed, _log, painting=painting)
        return
    from duogen.models.adapters import AdapterSpec

    try:
        adapters = [AdapterSpec.parse(each) for each in given.adapter]
        engine = cluster.open(given.pair, mllm=given.mllm, load=from_flags(given, LoadOptions), adapters=adapters)
        answer_all(engine, benchmark, tasks, out, given.seed, _log, painting=painting, at_once=cluster.share.replicas)
    finally:
        cluster.close()


def _check_rejudging(given: argparse.Namespace) -> None:
    """Check `--rejudge` and `--second-judge`.

    Raises:
        ValueError: they make no sense; one sentence.
    """
    if not 0 <= given.rejudge <= 1:
        raise ValueError(f"--rejudge is a share of the answers, such as 0.1, not {given.rejudge:g}.")
    if given.second_judge and not given.rejudge:
        raise ValueError("--second-judge judges a share of the answers again; name it with --rejudge, such as --rejudge 0.1.")


def _log(words: str) -> None:
    print(words, flush=True)


def _open_scorer(given: argparse.Namespace, kind: str) -> Scorer:
    from duogen.evaluate.benchmark import Scorer

    load = from_flags(given, LoadOptions)
    device, _ = split_device(load.device)
    if kind == "detected" and given.rejudge:
        raise ValueError(f"{given.what} has no judge whose verdicts --rejudge could ask for again; leave it out.")
    if kind == "detected":
        return Scorer(detector=_open_detector(given.detector, device))
    if not given.judge:
        raise ValueError("Name a judge with --judge, or answer now and score later: --answer-only.")
    from duogen.vision_qa import open_vision_qa

    judge = open_vision_qa(given.judge, device, load.precision)
    second = open_vision_qa(given.second_judge, device, load.precision) if given.second_judge else None
    return Scorer(judge=judge, rejudge=given.rejudge, second=second)


def _open_detector(name: str | None, device: str) -> Detector:
    """Open the named detector. Without a name: the usual one, or where that is missing the one for sketchbook drawings."""
    from duogen.evaluate.detector import DETECTOR, Mask2Former
    from duogen.models.pipeline import pick_device

    if name != SKETCHBOOK:
        try:
            return Mask2Former(name or DETECTOR, pick_device(device))
        except ValueError:
            if name:
                raise
    from duogen.evaluate.drawings import ALL, DrawingDetector

    if name is None:
        _log(
            f"GenEval's detector is missing ({DETECTOR}; name its folder with --detector), so the pictures are read as drawings of the"
            f" sketchbook world, which has {len(DrawingDetector.known_classes)} of the {ALL} objects: every prompt with another object"
            " counts as wrong."
        )
    return DrawingDetector()


def _compare(given: argparse.Namespace) -> int:
    from duogen.evaluate.benchmarks import find_benchmark
    from duogen.evaluate.side import System, compute_win_rates, write_side_by_side
    from duogen.evaluate.tasks import load_tasks

    missing = next((folder for folder in given.folders if not (folder / "answers").is_dir()), None)
    if missing is not None:
        raise ValueError(f"{missing} holds no answers; make them with: python -m duogen evaluate {given.name} --out {missing}")
    systems = [System(folder.resolve().name, folder) for folder in given.folders]
    tasks = load_tasks(find_benchmark(given.name), given.data, given.limit)
    rates, judge = {}, ""
    if given.judge:
        from duogen.evaluate.judge import check_pair_prompt
        from duogen.vision_qa import open_vision_qa

        check_pair_prompt()
        vision_qa = open_vision_qa(given.judge, given.device, given.precision)
        judge = f"{vision_qa.name} {vision_qa.version}"
        rates = compute_win_rates(systems, tasks, vision_qa, _log)
    print(write_side_by_side(given.name, systems, tasks, given.out, rates, judge))
    return 0
