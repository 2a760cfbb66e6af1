"""`python -m duogen data ...`"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from duogen.data_engine.options import DataOptions

if TYPE_CHECKING:
    from duogen.data_engine.run import Mapper


def add_to(data: argparse.ArgumentParser) -> None:
    """Add the subcommands. Imports nothing heavy."""
    what = data.add_subparsers(dest="what", required=True, metavar="WHAT")
    make = what.add_parser("make", help="pages in, illustrated dialogues out", description=MAKE)
    make.add_argument("pages", type=Path, help="a folder of saved pages (HTML, MHTML, WARC, Markdown, EPUB), or one file")
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the set; give the same again to go on after a stop")
    make.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one for each core)")
    about = "work over a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; 'local' begins one of --jobs workers here"
    make.add_argument("--ray", metavar="ADDRESS", help=f'{about} (pip install "ray[data]")')
    make.add_argument("--mllm", metavar="PAIR", help="a pair or Qwen2.5-VL checkpoint that captions, places and words; rules alone without")
    make.add_argument("--device", default="auto", help="of --mllm: auto, cpu, cuda, mps ...")
    make.add_argument("--precision", default="auto", help="of --mllm: auto, nf4, int8, bf16, mixed or fp32")
    hints = get_type_hints(DataOptions)
    for each in fields(DataOptions):
        flag, about = f"--{each.name.replace('_', '-')}", each.metadata["help"]
        about += f" Default: {each.default or 'none'}."
        make.add_argument(flag, type=hints[each.name], default=each.default, metavar="X", help=about)
    making = what.add_parser("synthesise", help="requests by a model, answers by a teacher pair, judged", description=SYNTHESISE)
    making.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the set; give the same again to go on")
    making.add_argument("--n", type=int, default=100, help="how many requests (default: 100)")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument("--teacher", metavar="PAIR", help="the pair that answers (default: the bundled one)")
    making.add_argument("--mllm", metavar="PAIR", help="a pair or Qwen2.5-VL checkpoint that words the requests and judges")
    making.add_argument("--least", type=float, default=3.0, metavar="X", help="each of the five scores must reach it, 0 to 5 (default: 3)")
    making.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ...")
    making.add_argument("--precision", default="auto", help="auto, nf4, int8, bf16, mixed or fp32")
    report = what.add_parser("report", help="write the report of a run again", description="Writes report.html and funnel.json.")
    report.add_argument("folder", type=Path, help="the folder of a run")
    report.add_argument("--samples", type=int, default=50, metavar="N", help="dialogues by chance to show (default: 50)")
    for name, does in (("keep", "take a page that was dropped into the set"), ("drop", "take a page out of the set")):
        overrule = what.add_parser(name, help=does)
        overrule.add_argument("folder", type=Path, help="the folder of a run")
        overrule.add_argument("page", help="the page's id, as the report and the page name it")


SYNTHESISE = "Makes dialogues from seed topics: a model words requests, a teacher pair answers, the model judges, the good ones stay."
MAKE = "Makes a set of dialogues that fine-tuning reads, with a report. A run that was stopped goes on where it was."


def run(given: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        ValueError: one sentence for the user.
    """
    os.environ.setdefault("VIPS_CONCURRENCY", "1")  # pages run in parallel already; libvips reads this when it loads
    from duogen.data_engine.report import write_report
    from duogen.data_engine.run import overrule
    from duogen.data_engine.state import State

    if given.what == "make":
        return _make(given)
    if given.what == "synthesise":
        return _synthesise(given)
    state = State(given.folder, writes=False)
    if given.what == "report":
        if given.samples < 1:
            raise ValueError(f"--samples must be at least 1, not {given.samples}.")
    else:
        overrule(state, given.page, given.what == "keep")
    print(write_report(state, getattr(given, "samples", 50)))
    return 0


def _make(given: argparse.Namespace) -> int:
    from duogen.data_engine.report import write_report
    from duogen.data_engine.run import make_dataset, map_here, process_mapper
    from duogen.data_engine.steps import Steps

    if given.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {given.jobs}.")
    options = DataOptions(**{each.name: getattr(given, each.name) for each in fields(DataOptions)})
    vision_qa = None
    if given.mllm:
        from duogen.vision_qa import open_vision_qa

        vision_qa = open_vision_qa(given.mllm, given.device, given.precision)
    mapper = _open_ray_mapper(given) if given.ray else process_mapper(given.jobs) if given.jobs > 1 else map_here
    with _catch_stop_signals() as stop:
        steps, log = Steps(options, vision_qa), partial(print, flush=True)
        state = make_dataset(given.pages, given.out, options, mapper, steps, log, stop)
        print(write_report(state))
    return 130 if stop.is_set() else 0


def _open_ray_mapper(given: argparse.Namespace) -> Mapper:
    from duogen.data_engine.cluster import ray_mapper

    if not given.pages.exists():  # known at once; a cluster takes a while
        raise ValueError(f"There is no {given.pages}; name a folder of saved pages.")
    return ray_mapper(given.ray, given.jobs)


def _synthesise(given: argparse.Namespace) -> int:
    from duogen.data_engine.report import write_report
    from duogen.data_engine.synthesise import Makers, synthesise
    from duogen.engine import Engine
    from duogen.vision_qa import open_vision_qa

    if given.n < 1 or not 0 <= given.least <= 5:
        raise ValueError("--n must be at least 1, and --least between 0 and 5.")
    vision_qa = open_vision_qa(given.mllm, given.device, given.precision)
    teacher = Engine.open(given.teacher, given.device, given.precision)
    log = partial(print, flush=True)
    state = synthesise(Makers(vision_qa, teacher, vision_qa), given.out, given.n, given.seed, given.least, log)
    print(write_report(state))
    return 0


@contextlib.contextmanager
def _catch_stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set. The current page is finished, and a later run resumes after it."""
    stop = threading.Event()
    before = {each: signal.signal(each, lambda *_: stop.set()) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
