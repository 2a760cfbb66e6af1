"""Run the data engine over a Ray cluster. Results come back in the order of the pages.

Ray is optional. Every machine must see the pages and the output folder under the same path, since it writes pictures there, and must
have the packages of `requirements.txt`. The code itself is sent to the machines.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from duogen.data_engine.pages import Place
from duogen.data_engine.run import BATCH, ONE_THREAD, Mapper, PreparedPage, Work, prepare_batch
from duogen.ray_cluster import connect_ray, root_cause

AT_ONCE = 512  # batches that Ray gets at a time, so memory does not grow with the number of pages


def ray_mapper(address: str, jobs: int) -> Mapper:
    """Connect to a cluster, or start one here. Returns the mapper that runs on it.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT" of a cluster; "local" starts one of `jobs` workers on this machine.

    Raises:
        ValueError: Ray is missing, or no cluster answers; one sentence that says what to do.
    """
    connect_ray(address, "data", ONE_THREAD, num_cpus=jobs)
    import ray.data
    import ray.exceptions

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
            raise ValueError(f"The cluster at {address} failed: {root_cause(error)}") from error
        finally:
            ray.shutdown()

    return run


class _PrepareBatch:
    """Prepares a batch of pages on a machine of the cluster. Pages are pickled, since Arrow has no columns for them."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Prepare one batch. `blind` in the result names a folder that this machine does not see."""
        blind = next((str(folder) for folder in (self.work.root, self.work.out) if not folder.exists()), "")
        done = [] if blind else prepare_batch(pickle.loads(row["pages"]), self.work)
        return {"prepared": pickle.dumps(done), "blind": blind}
