"""A Ray cluster that this process is connected to, and the pair that is open there."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duogen.hub.catalogue import bundled_id
from duogen.options import LoadOptions, from_flags
from duogen.ray_cluster import CODE, connect_ray, root_cause
from duogen.replicas.room import Share, list_machines, name_devices, plan_share

if TYPE_CHECKING:
    from duogen.models.adapters import AdapterSpec
    from duogen.replicas.engine import Replicas
    from duogen.replicas.replica import Opened, Opening

START_SECONDS = 900.0  # within which all replicas must have opened their pair
OBJECT_STORE_BYTES = 200_000_000  # of a cluster that is started here: a conversation and its pictures, once for each replica
WAITERS = 10_000  # calls that may wait at the desk: a few for each replica


def add_ray_flags(parser: argparse.ArgumentParser) -> None:
    about = "answer on the machines of a Ray cluster: auto or HOST:PORT; local begins one on this machine"
    parser.add_argument("--ray", metavar="ADDRESS", help=f'{about} (pip install "ray[serve]")')
    about = "how many engines answer at a time on the cluster (default: one for each GPU, else one for each machine)"
    parser.add_argument("--replicas", type=int, metavar="N", help=about)


def connect_as_flags_say(given: argparse.Namespace) -> RayCluster | None:
    """The cluster that --ray names, `None` without it. Raises ValueError: as of `RayCluster.connect`, or --replicas stands alone."""
    if given.ray is None:
        if given.replicas is not None:
            raise ValueError("--replicas is for a cluster; name one with --ray ADDRESS, such as --ray local.")
        return None
    return RayCluster.connect(given.ray, given.replicas, from_flags(given, LoadOptions).device, given.pair)


@dataclass
class RayCluster:
    """A cluster that this process is connected to, and the application of the pair that is open there.

    Attributes:
        replicas: how many were wanted, `None` for as many as there are GPUs, or machines.
    """

    replicas: int | None
    share: Share
    app: str = ""

    @classmethod
    def connect(cls, address: str, replicas: int | None, device: str = "auto", pair: str | None = None) -> RayCluster:
        """Connect to a cluster, or start one.

        Args:
            address: "auto" or "HOST:PORT" of a cluster that this machine is part of; "local" starts one here.
            device: what the replicas compute on, as of `LoadOptions`.
            pair: the pair that is opened first; the bundled one's weights go along.

        Raises:
            ValueError: Ray is missing, no cluster answers, or it has no room for so many; one sentence that says what to do.
        """
        if replicas is not None and replicas < 1:
            raise ValueError(f"--replicas must be at least 1, not {replicas}.")
        if address.startswith("ray://"):
            raise ValueError(f"{address} is for Ray's client, which cannot stream answers; name HOST:PORT of the cluster's head.")
        cpus = max(os.cpu_count() or 1, replicas or 1)
        weights = ("weights",) if pair in (None, bundled_id()) else ()
        connect_ray(address, "serve", {}, (*CODE, *weights), num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES)
        import ray

        try:
            return cls(replicas, plan_share(list_machines(ray.nodes()), replicas, device))
        except ValueError:
            ray.shutdown()
            raise

    def open(
        self,
        pair: str | None,
        *,
        progress: Callable[[str], None] | None = None,
        mllm: str | None = None,
        load: LoadOptions | None = None,
        adapters: Sequence[AdapterSpec] = (),
    ) -> Replicas:
        """Open a pair in every replica, in the place of the one that was open before, as `Engine.open` does.

        Raises:
            ValueError: one sentence for the user.
        """
        import ray
        from ray.exceptions import RayError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from duogen.replicas.engine import Replicas  # imports torch
        from duogen.replicas.replica import Desk, Opening

        say = progress or (lambda sentence: None)
        self.close_pair()
        actor: Any = ray.remote(Desk)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # it must be lost with the page alone
        desk = actor.options(num_cpus=0, max_concurrency=WAITERS, scheduling_strategy=here).remote()
        self.app = f"duogen-{uuid.uuid4().hex[:8]}"
        try:
            handle = self._deploy(desk, Opening(pair, mllm, name_devices(load or LoadOptions())))
            opened = self._wait_until_open(desk, say)
            engine = Replicas(handle, desk, opened)
            engine.set_adapters(adapters)
        except RayError as error:
            self.close_pair()
            raise ValueError(f"The cluster failed while the pair was opened: {root_cause(error)}") from error
        except BaseException:
            self.close_pair()
            raise
        say(opened[0].words)
        return engine

    def _deploy(self, desk: Any, opening: Opening) -> Any:
        """Let Ray Serve start the replicas; returns the handle of the deployment."""
        from ray import serve

        from duogen.replicas.replica import Replica

        quiet: Any = {"log_level": "ERROR", "enable_access_log": False}
        deployment: Any = serve.deployment(
            name="Replica",
            num_replicas=self.share.replicas,
            max_ongoing_requests=1,  # an engine makes one answer at a time
            graceful_shutdown_timeout_s=2,
            ray_actor_options={"num_cpus": self.share.cpus, "num_gpus": self.share.gpus},
            logging_config=quiet,
        )(Replica)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # a replica that dies is told in the answer
        target = serve.RunTarget(deployment.bind(desk, self.app, opening), self.app, route_prefix=None, logging_config=quiet)
        return serve.run_many([target], wait_for_applications_running=False)[0]

    def _wait_until_open(self, desk: Any, say: Callable[[str], None]) -> list[Opened]:
        """What the replicas say of themselves, when all have opened the pair.

        Raises:
            ValueError: one of them cannot, or they take too long.
        """
        import ray

        from duogen.replicas.replica import Opened
        from duogen.replicas.wire import Refusal

        opened: list[Opened] = []
        end, wanted = time.monotonic() + START_SECONDS, self.share.replicas
        say("The cluster starts a replica ..." if wanted == 1 else f"The cluster starts {wanted} replicas ...")
        reading = desk.read_report.remote()
        while len(opened) < wanted:
            ready, _ = ray.wait([reading], timeout=1)
            if not ready:
                self._check_start(time.monotonic() > end, len(opened))
                continue
            said, reading = ray.get(reading), desk.read_report.remote()
            match said:
                case Refusal(sentence):
                    raise ValueError(sentence)
                case Opened():
                    opened.append(said)
                    say(f"{len(opened)} of {wanted} replicas are ready ...")
                case _:
                    say(said)
        return opened

    def _check_start(self, late: bool, count: int) -> None:
        """Raises ValueError: the replicas cannot start, or it is too `late` for those that are missing."""
        from ray import serve

        found = serve.status().applications.get(self.app)
        if found is not None and found.status == "DEPLOY_FAILED":
            said = "; ".join(filter(None, (each.message for each in found.deployments.values()))) or found.message
            raise ValueError(f"The cluster cannot start the replicas: {root_cause(ValueError(said))}")
        if late:
            raise ValueError(f"Only {count} of {self.share.replicas} replicas have started; see with ray status what is busy.")

    def close_pair(self) -> None:
        """Take the replicas of the open pair from the cluster."""
        if self.app:
            from ray import serve

            with contextlib.suppress(Exception):  # the cluster is gone
                serve.delete(self.app)
            self.app = ""

    def close(self) -> None:
        """Leave the cluster as it was; one that was started here ends."""
        import ray

        if ray.is_initialized():
            self.close_pair()
        ray.shutdown()
