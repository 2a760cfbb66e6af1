"""Run the data engine over a Ray cluster. Results come back in the order of the pages.

Ray is optional. Every machine must see the pages and the output folder under the same path, since it writes pictures there, and must
have the packages of `requirements.txt`. The code itself is sent to the machines.
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
from duogen.data_engine.run import BATCH, ONE_THREAD, Mapper, PreparedPage, Work, prepare_batch
from duogen.paths import ROOT

CODE = ROOT
ALL_BUT = ["/*", "!.", "!/duogen", "!/assets"]  # as in a .gitignore: only the code is sent to the cluster
AT_ONCE = 512  # batches that Ray gets at a time, so memory does not grow with the number of pages
HERE = "local"


def ray_mapper(address: str, jobs: int) -> Mapper:
    """Connect to a cluster, or start one here. Returns the mapper that runs on it.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT" of a cluster; "local" starts one of `jobs` workers on this machine.

    Raises:
        ValueError: Ray is missing, or no cluster answers; one sentence that says what to do.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports by default
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise ValueError('--ray needs Ray, which is optional; install it with: pip install "ray[data]"') from error
    local: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if address == HERE else {}
    code = {"working_dir": str(CODE), "excludes": ALL_BUT, "env_vars": ONE_THREAD}
    try:
        _check_reachable(address)
        with _keep_signal_handlers():
            ray.init(address, runtime_env=code, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ValueError(f"There is no Ray cluster at {address} ({_root_cause(error)}); start one with: ray start --head") from error
    for name in ("ray.data", "ray.exceptions"):  # errors become one sentence here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True

    def run(found: Iterable[Place], work: Work) -> Iterator[PreparedPage]:
        source = iter(found)
        batches = iter(lambda: list(islice(source, BATCH)), [])
        try:
            while rows := [{"pages": pickle.dumps(batch)} for batch in islice(batches, AT_ONCE)]:
                for row in ray.data.from_items(rows, override_num_blocks=len(rows)).map(_PrepareBatch(work)).iter_rows():
                    if row["blind"]:
                        raise ValueError(f"A machine of the cluster does not see {row['blind']}; use a folder that all of them share.")
                    yield from pickle.loads(row["prepared"])
        except ray.exceptions.RayError as error:
            raise ValueError(f"The cluster at {address} failed: {_root_cause(error)}") from error
        finally:
            ray.shutdown()

    return run


def _check_reachable(address: str) -> None:
    """Check that something listens at the address, since Ray would retry for ever.

    Raises:
        OSError: nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=5).close()


class _PrepareBatch:
    """Prepares a batch of pages on a machine of the cluster. Pages are pickled, since Arrow has no columns for them."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Prepare one batch. `blind` in the result names a folder that this machine does not see."""
        blind = next((str(folder) for folder in (self.work.root, self.work.out) if not folder.exists()), "")
        done = [] if blind else prepare_batch(pickle.loads(row["pages"]), self.work)
        return {"prepared": pickle.dumps(done), "blind": blind}


def _root_cause(error: BaseException) -> str:
    """The root cause of an error, on one line."""
    cause = getattr(error, "cause", None) or error
    return next((line.strip() for line in reversed(str(cause).splitlines()) if line.strip()), type(cause).__name__)[:200]


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Ray replaces, so these signals still finish the current page."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
