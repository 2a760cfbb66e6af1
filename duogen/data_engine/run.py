"""A run of the data engine: pages in, dialogues out. It is parallel and resumable, with constant memory.

Worker processes read, filter and clean single pages. Comparisons across pages and the steps of a model happen in the main process in
the order of the pages, so every mapper gives the same set.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pyvips

from duogen.conversation import Message
from duogen.data_engine.dialogue import page_kind
from duogen.data_engine.filters import make_filters, run_filters
from duogen.data_engine.limits import limit_time
from duogen.data_engine.near import Index, signature
from duogen.data_engine.options import DataOptions
from duogen.data_engine.pages import FileTally, Place, list_pages, read_page
from duogen.data_engine.pictures import ADDRESS, NOT_THERE, encode_picture, is_missing
from duogen.data_engine.reasons import describe_error, group_reason
from duogen.data_engine.report import MISSING
from duogen.data_engine.rewrite import clean_page
from duogen.data_engine.sample import Dropped, Filter, Lost, Picture, Sample, Words
from duogen.data_engine.state import Row, State
from duogen.data_engine.steps import Steps
from duogen.data_engine.write import IMAGES, make_record, write_records
from duogen.files import write_beside
from duogen.text_decoding import count_words, find_rubbish

BATCH = 16  # pages that a worker gets at a time
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VIPS_CONCURRENCY")}  # pages run in parallel already
SCRATCH = ".archives"  # the folder in that of the set for the indices of archives while a run is under way
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
AHEAD = 4  # batches in flight for each worker, so memory does not grow with the number of pages


@dataclass(frozen=True)
class Work:
    """The input of a worker: folders and options."""

    root: Path
    out: Path
    options: DataOptions


@dataclass(frozen=True)
class PreparedPage:
    """The result of a worker for one page. `step` is the step that dropped it, "" if none; `sample` is the page at that point."""

    place: Place
    sample: Sample | None
    step: str = ""
    reason: str = ""
    signed: bytes = b""


@lru_cache(maxsize=4)
def _filter_chain(options: DataOptions) -> dict[str, Filter]:
    return {**make_filters(options), "rewrite": clean_page}


def prepare_page(place: Place, work: Work) -> PreparedPage:
    """Read, filter and clean one page, and put its pictures into the folder of the set. Whatever the page raises drops the page alone.

    Raises:
        OSError: the disk is full.
    """
    try:
        with limit_time():
            return _prepare_page(place, work)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        return PreparedPage(place, None, "read", f"cannot be read: {describe_error(error)}")


def _prepare_page(place: Place, work: Work) -> PreparedPage:
    result: Sample | Dropped = read_page(place, work.root, work.options.licence, work.out / SCRATCH)
    if isinstance(result, Dropped):
        return PreparedPage(place, None, "read", result.reason)
    sample = result
    for step, result in run_filters(sample, _filter_chain(work.options)):
        if isinstance(result, Dropped):
            return PreparedPage(place, _drop_picture_data(sample), step, result.reason)
        sample = result
    try:
        sample = _save_pictures(sample, work)
    except (pyvips.Error, ValueError) as error:
        return PreparedPage(place, _drop_picture_data(sample), "useless pictures", f"a picture cannot be kept ({describe_error(error)})")
    return PreparedPage(place, sample, signed=signature(sample.text()))


def prepare_batch(batch: list[Place], work: Work) -> list[PreparedPage]:
    return [prepare_page(place, work) for place in batch]


def _drop_picture_data(sample: Sample) -> Sample:
    """Remove the bytes of pictures, which a dropped page does not need."""
    return replace(sample, parts=tuple(part if isinstance(part, Words) else replace(part, data=None) for part in sample.parts))


def _save_pictures(sample: Sample, work: Work) -> Sample:
    """Write the pictures of a page as files of the set, named by content. Returns the page with these files."""
    folder = work.out / IMAGES
    parts = []
    for part in sample.parts:
        if not isinstance(part, Words):
            data, suffix = encode_picture(part, work.options.max_side)
            file = folder / (hashlib.sha256(data).hexdigest()[:24] + suffix)
            if not file.exists():
                write_beside(file, data)
            part = replace(part, file=file, data=None)
        parts.append(part)
    return replace(sample, parts=tuple(parts))


Log = Callable[[str], None]
Mapper = Callable[[Iterable[Place], Work], Iterator[PreparedPage]]


def map_here(found: Iterable[Place], work: Work) -> Iterator[PreparedPage]:
    """Prepare all pages in this process."""
    return (prepare_page(place, work) for place in found)


def process_mapper(jobs: int) -> Mapper:
    """A mapper over `jobs` processes. Results come in the order of the pages."""

    def run(found: Iterable[Place], work: Work) -> Iterator[PreparedPage]:
        source, pending = iter(found), deque[list[Place]]()
        while True:
            yield from _map_while_all_live(jobs, source, pending, work)
            if not pending:
                return
            yield from _prepare_apart(pending.popleft(), work)

    return run


def _open_pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_limit_threads)


def _map_while_all_live(jobs: int, source: Iterator[Place], pending: deque[list[Place]], work: Work) -> Iterator[PreparedPage]:
    """Prepare batches in processes until one of these ends. `pending` then holds the batches under way, in order."""
    batches, futures = deque[list[Place]](), deque[Future[list[PreparedPage]]]()
    with _open_pool(jobs) as pool:
        try:
            while True:
                while len(futures) < jobs * AHEAD and (batch := pending.popleft() if pending else list(islice(source, BATCH))):
                    batches.append(batch)
                    futures.append(pool.submit(prepare_batch, batch, work))
                if not futures:
                    return
                prepared = futures.popleft().result()
                batches.popleft()
                yield from prepared
        except BrokenProcessPool:
            pending.extendleft(reversed(batches))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_apart(batch: list[Place], work: Work) -> list[PreparedPage]:
    """Prepare pages one at a time, so that the one that ends its process (a library crashes, memory runs out) costs no other page.

    Raises:
        BrokenProcessPool: no process lives at all.
    """
    done, ended = [], 0
    pool = _open_pool(1)
    for place in batch:
        try:
            done.append(pool.submit(prepare_page, place, work).result())
        except BrokenProcessPool:
            ended += 1
            if ended == len(batch) > 1:
                raise
            done.append(PreparedPage(place, None, "read", "cannot be read: it ended the process that read it"))
            pool = _open_pool(1)
    pool.shutdown(wait=False)
    return done


def _limit_threads() -> None:
    os.environ.update(ONE_THREAD)


def make_dataset(
    root: Path,
    out: Path,
    options: DataOptions,
    mapper: Mapper = map_here,
    steps: Steps | None = None,
    log: Log = print,
    stop: threading.Event | None = None,
) -> State:
    """Make a set of dialogues from a folder of pages, or resume a stopped run.

    Returns:
        The state of the run, open.

    Raises:
        ValueError: there are no pages, `out` holds something else, or it was started with other options.
    """
    state = _open_state(root, out, options, steps)
    work = Work(root.resolve(), out.resolve(), options)
    index, began, done, tally = Index(state.database), time.monotonic(), 0, FileTally()
    fresh = (place for place in list_pages(root, tally, work.out / SCRATCH) if not state.has_page(place.id))
    try:
        for prepared in mapper(fresh, work):
            _record_page(prepared, state, index, steps or Steps(options))
            done += 1
            if done % BATCH == 0:
                state.database.commit()
            if done % 1000 == 0:
                log(f"{done:,} pages, {done / (time.monotonic() - began):,.0f} a second")
            if stop is not None and stop.is_set():
                break
        state.database.commit()
        write_dataset(state)
    except BaseException:
        state.database.commit()
        state.set_facts(state="stopped", files=asdict(tally))
        raise
    stopped = stop is not None and stop.is_set()
    state.set_facts(files=asdict(tally))
    if not stopped:
        shutil.rmtree(work.out / SCRATCH, ignore_errors=True)
    if not state.count_pages():
        passed = next((f" {name} is passed over: {why}." for name, why in tally.reasons.items()), "")
        raise ValueError(f"There are no pages in {root}; it needs HTML, MHTML, WARC, Markdown or EPUB files.{passed}")
    state.set_facts(state="stopped" if stopped else "done", seconds=state.get_fact("seconds", 0.0) + time.monotonic() - began)
    took = f"{done:,} pages in {time.monotonic() - began:.1f} s"
    log(f"{'Stopped' if stopped else 'Done'}: {took}, {state.count_pages('kept'):,} dialogues in all.")
    return state


def _open_state(root: Path, out: Path, options: DataOptions, steps: Steps | None) -> State:
    if not root.exists():
        raise ValueError(f"There is no {root}; name a folder of saved pages.")
    make_filters(options)  # a bad block list is found before anything is written
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "state.sqlite").exists())):
        raise ValueError(f"{out} holds something else; choose a new folder with --out.")
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    state = State(out)
    asked = {"root": str(root.resolve()), "options": asdict(options), "model": steps.model if steps else ""}
    before = state.get_fact("asked")
    if before not in (None, asked):
        state.close()
        raise ValueError(f"{out} was begun with other pages or options; go on with those, or choose a new folder with --out.")
    state.set_facts(asked=asked, state="running", pid=os.getpid(), began=time.time())
    return state


def _record_page(prepared: PreparedPage, state: State, index: Index, steps: Steps) -> None:
    """Finish one page and record the result."""
    place, sample = prepared.place, prepared.sample
    step, reason, turns = prepared.step, prepared.reason, None
    if not step and sample is not None:
        sample, step, reason = _drop_duplicates(sample, prepared.signed, index)
        if not step:
            sample, made = _make_dialogue(sample, steps)
            if isinstance(made, Dropped):
                step, reason = "dialogue", made.reason
            else:
                turns = made
                index.add(place.id, prepared.signed, [picture.phash for picture in sample.pictures() if picture.phash is not None])
    state.put_page(make_row(place, sample, turns, step, reason))


def _make_dialogue(sample: Sample, steps: Steps) -> tuple[Sample, list[Message[Picture]] | Dropped]:
    """Make the dialogue of a page. What the page raises drops it; what a model raises (memory of a GPU runs out) ends the run."""
    try:
        sample, made = steps.make_dialogue(sample)
    except Exception as error:
        if steps.model:
            raise
        return sample, Dropped(f"no dialogue can be made of it ({describe_error(error)})")
    if not isinstance(made, Dropped) and find_rubbish("\n".join(turn.text("\n") for turn in made)):
        return sample, Dropped("its words have letters that were lost")
    return sample, made


def _drop_duplicates(sample: Sample, signed: bytes, index: Index) -> tuple[Sample, str, str]:
    """Compare a page with earlier ones. Returns it without repeated pictures, and the step and reason if it is dropped."""
    twin = index.find_text(signed)
    if twin:
        return sample, "near-duplicate text", f"nearly the text of page {twin}"
    gone = {}
    for at, part in enumerate(sample.parts):
        if not isinstance(part, Words) and part.phash is not None and (other := index.find_picture(part.phash)):
            gone[at] = f"nearly a picture of page {other}"
    left = sample.drop_parts(gone, "near-duplicate pictures")
    return (left, "", "") if left.pictures() else (left, "near-duplicate pictures", "every picture was seen before")


def make_row(place: Place, sample: Sample | None, turns: list[Message[Picture]] | None, step: str, reason: str, verdict: str = "") -> Row:
    """The database row of a page."""
    if sample is None:
        return Row(place.id, place.kind, place.file, place.member, Path(place.file).stem, step, reason)
    record, counted = None, {"lost": [f"{each.step}: {group_reason(each.why)}" for each in sample.lost]}
    counted[MISSING] = _list_missing(sample)
    if turns:
        files = {picture.name: picture.file.name for turn in turns for picture in turn.pictures() if picture.file is not None}
        record = make_record(place.id, turns, sample.source, files)
        pictures = [picture for turn in turns for picture in turn.pictures()]
        moved = sample.notes.get("moved", 0)
        counted |= {
            "pictures in a dialogue": [_bucket(len(pictures), (1, 2, 3, 4, 6, 9, 13))],
            "words in a dialogue": [_bucket(sum(count_words(turn.text("\n")) for turn in turns), (1, 50, 100, 200, 400, 800, 1600))],
            "kind of picture": [picture.kind for picture in pictures],
            "kind of page": [page_kind(sample)],
            "turns of the user": [f"{len(turns) // 2}" + (", one with a picture" if turns[0].pictures() else "")],
            "pictures moved": ["moved"] * moved + ["left where they were"] * (len(pictures) - moved),
            "worded by": [sample.notes.get("worded", "rules")],
        }
    said = {"source": sample.source.as_dict(), "lost": [_lost_fields(each) for each in sample.lost], "notes": sample.notes}
    return Row(place.id, place.kind, place.file, place.member, sample.source.title, step, reason, record, said, verdict, counted)


def _list_missing(sample: Sample) -> list[str]:
    """The folder, as the page writes it, of each picture whose file is not there; "" for one beside the page."""
    names = [picture.name for picture in sample.pictures() if is_missing(picture)]
    names += [each.what for each in sample.lost if each.why == NOT_THERE and not ADDRESS.match(each.what)]
    return [posixpath.dirname(name.replace("\\", "/")) for name in names]


def _lost_fields(each: Lost) -> list[str]:
    return [each.what, each.step, each.why]


def _bucket(value: int, starts: tuple[int, ...]) -> str:
    low = max(start for start in starts if start <= max(value, starts[0]))
    later = [start for start in starts if start > low]
    return f"{low}" if later and later[0] == low + 1 else f"{low}-{later[0] - 1}" if later else f"{low} or more"


def write_dataset(state: State) -> None:
    """Write `conversations.jsonl`, and delete pictures that no dialogue uses."""
    state.database.commit()
    write_records(state.folder, state.records())
    used = state.database.cursor()
    for entry in os.scandir(state.folder / IMAGES):
        if used.execute("SELECT 1 FROM files WHERE name = ?", (entry.name,)).fetchone() is None:
            os.unlink(entry.path)


def overrule(state: State, id: str, keep: bool) -> Row:
    """Apply a person's decision about a page. A dropped page becomes a dialogue without the filters of its text.

    Raises:
        ValueError: the page cannot become a dialogue; the message says why.
    """
    row = state.get_row(id)
    if row.record is not None:
        new = replace(row, verdict="keep" if keep else "drop")
    elif not keep:
        new = row
    else:
        new = _convert_unfiltered(state, row)
    state.put_page(new)
    state.database.commit()
    write_dataset(state)
    return new


def _convert_unfiltered(state: State, row: Row) -> Row:
    asked = state.get_fact("asked")
    options = DataOptions(**asked["options"])
    work = Work(Path(asked["root"]), state.folder.resolve(), options)
    place = Place(row.kind, row.file, row.member)
    result = read_page(place, work.root, options.licence)  # archives are indexed anew, in a temporary folder
    sample = result
    for name in ("useless pictures", "personal data", "rewrite"):
        if isinstance(sample, Dropped):
            break
        sample = _filter_chain(options)[name](sample)
    if isinstance(sample, Dropped):
        raise ValueError(f"Nothing can be made of this page: {sample.reason}.")
    sample, turns = Steps(options).make_dialogue(_save_pictures(sample, work))
    if isinstance(turns, Dropped):
        raise ValueError(f"Nothing can be made of this page: {turns.reason}.")
    return make_row(place, sample, turns, row.step, row.reason, "keep")
