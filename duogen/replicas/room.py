"""How many replicas a cluster has room for, and what each of them gets of its machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from duogen.options import LoadOptions, split_device


@dataclass(frozen=True)
class Machine:
    """What Ray may give away of a machine."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Share:
    """What each of `replicas` gets. Ray lets its libraries use as many threads as it has cores."""

    replicas: int
    cpus: int
    gpus: int


def list_machines(nodes: Sequence[dict[str, Any]]) -> list[Machine]:
    """The machines that are there, of those that `ray.nodes()` lists."""
    found = [each["Resources"] for each in nodes if each["Alive"]]
    return [Machine(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in found]


def plan_share(machines: Sequence[Machine], replicas: int | None, device: str) -> Share:
    """The largest share that leaves room for all replicas.

    Args:
        replicas: by default one for each GPU, and where there is none one for each machine.
        device: as of `LoadOptions`.

    Raises:
        ValueError: there are not so many GPUs or cores.
    """
    gpus = _count_gpus(device, any(each.gpus for each in machines))
    if gpus:
        slots = [each.cpus // (each.gpus // gpus) for each in machines for _ in range(each.gpus // gpus)]
        wanted = len(slots) if replicas is None else replicas
        if not 0 < wanted <= len(slots):
            raise ValueError(f"The cluster has GPUs for {len(slots)} replicas, not for {max(1, wanted)}; start fewer, or add --device cpu.")
        return Share(wanted, max(1, sorted(slots, reverse=True)[wanted - 1]), gpus)
    wanted = sum(each.cpus > 0 for each in machines) if replicas is None else replicas
    for cpus in range(max((each.cpus for each in machines), default=0), 0, -1):
        if 0 < wanted <= sum(each.cpus // cpus for each in machines):
            return Share(wanted, cpus, 0)
    raise ValueError(f"The cluster has cores for {sum(each.cpus for each in machines)} replicas, not for {max(1, wanted)}; start fewer.")


def _count_gpus(device: str, has_gpus: bool) -> int:
    """How many GPUs a replica needs."""
    named = {each for each in split_device(device) if each.startswith("cuda")}
    return int(has_gpus) if device == "auto" else len(named)


def name_devices(load: LoadOptions) -> LoadOptions:
    """The options as a replica reads them: Ray shows it its own GPUs alone, which count from 0."""
    named = split_device(load.device)
    cuda = list(dict.fromkeys(each for each in named if each.startswith("cuda")))
    renamed = [f"cuda:{cuda.index(each)}" if each in cuda else each for each in named]
    return replace(load, device=",".join(dict.fromkeys(renamed))) if cuda else load
