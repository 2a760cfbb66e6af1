"""The same work over a cluster: Ray Data gives batches of pages to the machines and brings the results back in the order of the pages.

Ray is optional. Every machine must see the pages and the folder of the set under the same path, since pictures are written where
they are looked at, and must have what `requirements.txt` lists; the code itself travels.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from duogen.data_engine.pages import Place
from duogen.data_engine.run import BATCH, ONE_THREAD, Mapper, Prepared, Work, prepare_all
from duogen.paths import ROOT

CODE = ROOT
ALL_BUT = ["/*", "!.", "!/duogen", "!/assets"]  # as in a .gitignore: the code is all that is sent to the cluster
AT_ONCE = 512  # batches that are handed to Ray together: memory does not grow with the number of pages
HERE = "local"


def over_ray(address: str, jobs: int) -> Mapper:
    """Connect to a cluster, or begin one here.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT" of a cluster; "local" begins one of `jobs` workers on this machine.

    Raises:
        ValueError: Ray is missing, or no cluster answers; one sentence that says what to do.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported anywhere unless somebody asks for it
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError('--ray needs Ray, which is optional; install it with: pip install "ray[data]"') from error
    local = {"num_cpus": jobs, "include_dashboard": False} if address == HERE else {}
    code = {"working_dir": str(CODE), "excludes": ALL_BUT, "env_vars": ONE_THREAD}
    try:
        _knock(address)
        with _own_signals():
            ray.init(address, runtime_env=code, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"There is no Ray cluster at {address} ({_first(error)}); start one with: ray start --head") from error
    for name in ("ray.data", "ray.exceptions"):  # what goes wrong is said in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True

    def run(found: Iterable[Place], work: Work) -> Iterator[Prepared]:
        source = iter(found)
        batches = iter(lambda: list(islice(source, BATCH)), [])
        try:
            while rows := [{"pages": pickle.dumps(batch)} for batch in islice(batches, AT_ONCE)]:
                for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(_Prepare(work)).iter_rows():
                    if row["blind"]:
                        raise ValueError(f"A machine of the cluster does not see {row['blind']}; use a folder that all of them share.")
                    yield from pickle.loads(row["prepared"])
        except ray.exceptions.RayError as error:
            raise ValueError(f"The cluster at {address} could not go on: {_first(error)}") from error
        finally:
            ray.shutdown()

    return run


def _knock(address: str) -> None:
    """Raises OSError where nothing listens: Ray would go on trying for ever."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=5).close()


class _Prepare:
    """A batch of pages on a machine of the cluster; pickled, since Arrow has no columns of pages."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """`blind` names a folder that this machine does not have: each page would be dropped as one that cannot be read."""
        blind = next((str(folder) for folder in (self.work.root, self.work.out) if not folder.exists()), "")
        done = [] if blind else prepare_all(pickle.loads(row["pages"]), self.work)
        return {"prepared": pickle.dumps(done), "blind": blind}


def _first(error: BaseException) -> str:
    """What went wrong at the bottom of it, on one line."""
    cause = getattr(error, "cause", None) or error
    return next((line.strip() for line in reversed(str(cause).splitlines()) if line.strip()), type(cause).__name__)[:200]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; a polite end of the process must still finish the page under way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
