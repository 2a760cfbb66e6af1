"""Pages a second of the data engine without an MLLM, and its memory: python -m bench.data PAGES [--jobs 2] [--copies 4]

The pages are copied so that a run takes long enough; copies are near-duplicates, but all that costs time happens before that is known.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.machine import host

os.environ.setdefault("VIPS_CONCURRENCY", "1")  # read when libvips is loaded

from duogen.data_engine.options import DataOptions  # noqa: E402
from duogen.data_engine.pages import list_pages  # noqa: E402
from duogen.data_engine.run import Work, make_dataset, map_here, prepare_batch, prepare_page, process_mapper  # noqa: E402

WARM = 50  # pages before the processor's clock is read: among them is one that loads the model of languages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # PyTorch, which names the kind of CPU, would count as the engine's memory
        machine = apart.submit(host).result()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "pages")
        for number in range(given.copies):
            shutil.copytree(given.pages, root / f"{number:03}")
        found: dict[str, Any] = {"machine": machine, "pages_with_pictures": _measured(root, Path(folder, "set"), given.jobs)}
        for file in root.rglob("*"):
            if file.is_dir() and file.name == "static":
                shutil.rmtree(file)
        found["text_alone"] = _measured(root, Path(folder, "text"), given.jobs)
    found["memory_of_first_and_last_tenth_mb"] = _memory(given.pages)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _measured(root: Path, out: Path, jobs: int) -> dict[str, float]:
    """What starting the processes costs is paid once in a run, whatever its length; the clock runs from the first page that is done.

    Processor seconds of one process beside it: on a busy machine the clock says little.
    """
    times: list[float] = []
    mapper = process_mapper(jobs) if jobs > 1 else map_here

    def timed(found, work):
        for prepared in mapper(found, work):
            times.append(time.perf_counter())
            yield prepared

    state = make_dataset(root, out, DataOptions(), timed, log=lambda words: None)
    found = list(list_pages(root))
    alone = out.with_name(out.name + "-alone")
    (alone / "images").mkdir(parents=True)
    prepare_batch(found[:WARM], Work(root, out, DataOptions()))
    work = Work(root, alone, DataOptions())
    began = time.process_time()
    for place in found[:: max(1, len(found) // 351)]:
        prepare_page(place, work)
    core = len(found[:: max(1, len(found) // 351)]) / (time.process_time() - began)
    return {
        "pages": len(times),
        "dialogues": state.count_pages("kept"),
        "jobs": jobs,
        "pages_per_second": round((len(times) - 1) / (times[-1] - times[0]), 1),
        "pages_per_processor_second": round(core, 1),
    }


def _memory(pages: Path) -> list[float]:
    """Resident memory of one process after a tenth of the pages and after all of them, three times over."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "images").mkdir()
        work, every = Work(pages, Path(folder), DataOptions()), list(list_pages(pages)) * 3
        sizes = []
        for number, place in enumerate(every, 1):
            prepare_page(place, work)
            if number in (len(every) // 10, len(every)):
                sizes.append(round(_resident() / 1e6, 1))
        return sizes


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
