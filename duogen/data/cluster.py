"""The same functions over a cluster, by Ray Data: an optional requirement, `pip install "ray[data]"`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple
from itertools import islice
from pickle import dumps, loads
from typing import Any

from duogen.data.pages import Place
from duogen.data.run import BATCH, Prepared, Work, prepare_all

AT_ONCE = 4096  # pages that are listed ahead: memory stays flat, and results keep the order of the pages


def over_ray(address: str, processes: int | None = None) -> Callable[[Iterable[Place], Work], Iterator[Prepared]]:
    """Over the cluster at `address`, or one of this machine for "local".

    Raises:
        ValueError: Ray is not installed, or nothing answers at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("Running over a cluster needs one more package: pip install 'ray[data]'") from error
    if not ray.is_initialized():
        try:
            where = "local" if address == "local" else address
            ray.init(where, num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(f"No Ray cluster answers at {address} ({str(error).splitlines()[0]}).") from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False

    def run(found: Iterable[Place], work: Work) -> Iterator[Prepared]:
        source = iter(found)

        def prepared(batch: dict[str, Any]) -> dict[str, list[bytes]]:
            places = [Place(*loads(raw)) for raw in batch["place"]]
            return {"prepared": [dumps(each) for each in prepare_all(places, work)]}

        while listed := list(islice(source, AT_ONCE)):
            rows = [{"place": dumps(astuple(place))} for place in listed]
            blocks = ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // BATCH))
            for row in blocks.map_batches(prepared, batch_size=BATCH).iter_rows():
                yield loads(row["prepared"])

    return run
