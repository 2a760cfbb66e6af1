"""A run of the data engine: pages in, dialogues out; parallel, resumable, with memory that stays flat.

Reading, filtering and cleaning of one page need nothing but that page and happen in worker processes. What looks
across pages, and the steps of a model, happen here in the order of the pages, so that every way of running gives the same set.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyvips

from duogen.conversation import write_beside
from duogen.data_engine.dialogue import Turn, kind_of
from duogen.data_engine.filters import filters, passed, word_count
from duogen.data_engine.near import Index, signature
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pages import Place, places, read
from duogen.data_engine.pictures import as_file
from duogen.data_engine.rewrite import clean
from duogen.data_engine.sample import Dropped, Lost, Sample, Words
from duogen.data_engine.state import Row, State
from duogen.data_engine.steps import Steps
from duogen.data_engine.write import IMAGES, as_record, write_records

BATCH = 16  # pages that a worker gets at a time
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VIPS_CONCURRENCY")}  # the pages are what is parallel
AHEAD = 4  # batches under way for each worker: memory does not grow with the number of pages


@dataclass(frozen=True)
class Work:
    """What a worker must know."""

    root: Path
    out: Path
    options: DataOptions


@dataclass(frozen=True)
class Prepared:
    """A page as far as it can be brought alone. `step` is where it was dropped; `sample` is what it was then."""

    place: Place
    sample: Sample | None
    step: str = ""
    reason: str = ""
    signed: bytes = b""


@lru_cache(maxsize=4)
def _chain(options: DataOptions) -> dict[str, Any]:
    return {**filters(options), "rewrite": clean}


def prepare(place: Place, work: Work) -> Prepared:
    """Read, filter and clean one page, and put its pictures into the folder of the set."""
    result: Sample | Dropped = read(place, work.root, work.options.licence)
    if isinstance(result, Dropped):
        return Prepared(place, None, "read", result.reason)
    sample = result
    for step, result in passed(sample, _chain(work.options)):
        if isinstance(result, Dropped):
            return Prepared(place, _light(sample), step, result.reason)
        sample = result
    try:
        sample = _with_files(sample, work)
    except (OSError, pyvips.Error) as error:
        return Prepared(place, _light(sample), "useless pictures", f"a picture cannot be kept: {error}"[:160])
    return Prepared(place, sample, signed=signature(sample.text()))


def prepare_all(batch: list[Place], work: Work) -> list[Prepared]:
    return [prepare(place, work) for place in batch]


def _light(sample: Sample) -> Sample:
    """What is needed of a page that was dropped: no picture travels."""
    return replace(sample, parts=tuple(part if isinstance(part, Words) else replace(part, data=None) for part in sample.parts))


def _with_files(sample: Sample, work: Work) -> Sample:
    """The page with its pictures as files of the set, named by content."""
    folder = work.out / IMAGES
    parts = []
    for part in sample.parts:
        if not isinstance(part, Words):
            data, suffix = as_file(part, work.options.max_side)
            file = folder / (hashlib.sha256(data).hexdigest()[:24] + suffix)
            if not file.exists():
                write_beside(file, data)
            part = replace(part, file=file, data=None)
        parts.append(part)
    return replace(sample, parts=tuple(parts))


Say = Callable[[str], None]
Mapper = Callable[[Iterable[Place], Work], Iterator[Prepared]]


def here(found: Iterable[Place], work: Work) -> Iterator[Prepared]:
    """All in this process."""
    return (prepare(place, work) for place in found)


def over_cores(jobs: int) -> Mapper:
    """Over `jobs` processes of this machine, results in the order of the pages."""

    def run(found: Iterable[Place], work: Work) -> Iterator[Prepared]:
        waiting: deque[Future[list[Prepared]]] = deque()
        source = iter(found)
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_quiet) as pool:
            try:
                while True:
                    while len(waiting) < jobs * AHEAD and (batch := list(islice(source, BATCH))):
                        waiting.append(pool.submit(prepare_all, batch, work))
                    if not waiting:
                        return
                    yield from waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    return run


def _quiet() -> None:
    os.environ.update(ONE_THREAD)


def make(
    root: Path,
    out: Path,
    options: DataOptions,
    mapper: Mapper = here,
    steps: Steps | None = None,
    say: Say = print,
    stop: threading.Event | None = None,
) -> State:
    """Make a set of dialogues from a folder of pages, or go on making it.

    Returns:
        The state of the run, open.

    Raises:
        ValueError: there are no pages, `out` holds something else, or it was begun with other options.
    """
    state = _begin(root, out, options, steps)
    work = Work(root.resolve(), out.resolve(), options)
    index, began, done = Index(state.database), time.monotonic(), 0
    fresh = (place for place in places(root) if not state.has(place.id))
    try:
        for prepared in mapper(fresh, work):
            _take(prepared, state, index, steps or Steps(options))
            done += 1
            if done % BATCH == 0:
                state.database.commit()
            if done % 1000 == 0:
                say(f"{done:,} pages, {done / (time.monotonic() - began):,.0f} a second")
            if stop is not None and stop.is_set():
                break
        state.database.commit()
        finish(state)
    except BaseException:
        state.database.commit()
        state.tell(state="stopped")
        raise
    if not state.number():
        raise ValueError(f"There are no pages in {root}; it needs HTML, MHTML, WARC, Markdown or EPUB files.")
    stopped = stop is not None and stop.is_set()
    state.tell(state="stopped" if stopped else "done", seconds=state.told("seconds", 0.0) + time.monotonic() - began)
    took = f"{done:,} pages in {time.monotonic() - began:.1f} s"
    say(f"{'Stopped' if stopped else 'Done'}: {took}, {state.number('kept'):,} dialogues in all.")
    return state


def _begin(root: Path, out: Path, options: DataOptions, steps: Steps | None) -> State:
    if not root.exists():
        raise ValueError(f"There is no {root}; name a folder of saved pages.")
    filters(options)  # a bad block list is found before anything is written
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "state.sqlite").exists())):
        raise ValueError(f"{out} holds something else; choose a new folder with --out.")
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    state = State(out)
    asked = {"root": str(root.resolve()), "options": asdict(options), "model": steps.model if steps else ""}
    before = state.told("asked")
    if before not in (None, asked):
        state.close()
        raise ValueError(f"{out} was begun with other pages or options; go on with those, or choose a new folder with --out.")
    state.tell(asked=asked, state="running", pid=os.getpid(), began=time.time())
    return state


def _take(prepared: Prepared, state: State, index: Index, steps: Steps) -> None:
    """Finish one page and write down what became of it."""
    place, sample = prepared.place, prepared.sample
    step, reason, turns = prepared.step, prepared.reason, None
    if not step and sample is not None:
        sample, step, reason = _across(sample, prepared.signed, index)
    if not step:
        sample, turns = steps.dialogue(sample)
        if isinstance(turns, Dropped):
            step, reason, turns = "dialogue", turns.reason, None
    if turns:
        index.add(place.id, prepared.signed, [picture.look for picture in sample.pictures() if picture.look is not None])
    state.put(row_of(place, sample, turns, step, reason))


def _across(sample: Sample, signed: bytes, index: Index) -> tuple[Sample, str, str]:
    """What looks across pages: texts and pictures that were seen before."""
    twin = index.text_like(signed)
    if twin:
        return sample, "near-duplicate text", f"nearly the text of page {twin}"
    gone = {}
    for at, part in enumerate(sample.parts):
        if not isinstance(part, Words) and part.look is not None and (other := index.look_like(part.look)):
            gone[at] = f"nearly a picture of page {other}"
    left = sample.without(gone, "near-duplicate pictures")
    return (left, "", "") if left.pictures() else (left, "near-duplicate pictures", "every picture was seen before")


def row_of(place: Place, sample: Sample | None, turns: list[Turn] | None, step: str, reason: str, verdict: str = "") -> Row:
    """A page as it is written down."""
    if sample is None:
        return Row(place.id, place.kind, place.file, place.member, Path(place.file).stem, step, reason)
    record, counted = None, {"lost": [f"{each.step}: {each.why.partition(' of page')[0]}" for each in sample.lost]}
    if turns:
        files = {picture.name: picture.file.name for turn in turns for picture in turn.pictures()}
        record = as_record(place.id, turns, sample.source, files)
        pictures = [picture for turn in turns for picture in turn.pictures()]
        moved = sample.notes.get("moved", 0)
        counted |= {
            "pictures in a dialogue": [_bucket(len(pictures), (1, 2, 3, 4, 6, 9, 13))],
            "words in a dialogue": [_bucket(sum(word_count(turn.text()) for turn in turns), (1, 50, 100, 200, 400, 800, 1600))],
            "kind of picture": [picture.kind for picture in pictures],
            "kind of page": [kind_of(sample)],
            "turns of the user": [f"{len(turns) // 2}" + (", one with a picture" if turns[0].pictures() else "")],
            "pictures moved": ["moved"] * moved + ["left where they were"] * (len(pictures) - moved),
            "worded by": [sample.notes.get("worded", "rules")],
        }
    said = {"source": sample.source.data(), "lost": [_lost(each) for each in sample.lost], "notes": sample.notes}
    return Row(place.id, place.kind, place.file, place.member, sample.source.title, step, reason, record, said, verdict, counted)


def _lost(each: Lost) -> list[str]:
    return [each.what, each.step, each.why]


def _bucket(value: int, starts: tuple[int, ...]) -> str:
    low = max(start for start in starts if start <= max(value, starts[0]))
    later = [start for start in starts if start > low]
    return f"{low}" if later and later[0] == low + 1 else f"{low}-{later[0] - 1}" if later else f"{low} or more"


def finish(state: State) -> None:
    """Write `conversations.jsonl`, and take away pictures that no dialogue has."""
    state.database.commit()
    write_records(state.folder, state.records())
    used = state.database.cursor()
    for entry in os.scandir(state.folder / IMAGES):
        if used.execute("SELECT 1 FROM files WHERE name = ?", (entry.name,)).fetchone() is None:
            os.unlink(entry.path)


def overrule(state: State, id: str, keep: bool) -> Row:
    """A person decides about a page. One that was dropped is made into a dialogue without the filters that look at its text.

    Raises:
        ValueError: nothing can be made of it; the message says why.
    """
    row = state.row(id)
    if row.record is not None:
        new = replace(row, verdict="keep" if keep else "drop")
    elif not keep:
        new = row
    else:
        new = _made_anyway(state, row)
    state.put(new)
    state.database.commit()
    finish(state)
    return new


def _made_anyway(state: State, row: Row) -> Row:
    asked = state.told("asked")
    options = DataOptions(**asked["options"])
    work = Work(Path(asked["root"]), state.folder.resolve(), options)
    place = Place(row.kind, row.file, row.member)
    result = read(place, work.root, options.licence)
    sample = result
    for name in ("useless pictures", "personal data", "rewrite"):
        if isinstance(sample, Dropped):
            break
        sample = _chain(options)[name](sample)
    if isinstance(sample, Dropped):
        raise ValueError(f"Nothing can be made of this page: {sample.reason}.")
    sample, turns = Steps(options).dialogue(_with_files(sample, work))
    if isinstance(turns, Dropped):
        raise ValueError(f"Nothing can be made of this page: {turns.reason}.")
    return row_of(place, sample, turns, row.step, row.reason, "keep")
