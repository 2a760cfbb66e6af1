"""Connect to a Ray cluster, or start one on this machine. Ray is optional.

The code goes to the machines with the connection; they must have the packages of `requirements.txt`, and the same versions of Ray and
Python.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from duogen.paths import ROOT

HERE = "local"  # the address that starts a cluster on this machine
CODE = ("duogen", "assets")  # the folders of the repository that every machine of a cluster gets
PATIENCE = 5  # seconds within which a cluster must answer
# Ray reads these when it is imported: no usage reports, and no metrics. A process that has left a cluster would go on to send metrics.
# For that a thread of Ray reads the environment again and again, and the process crashes if Python adds a variable in that moment.
REPORTS = ("RAY_USAGE_STATS_ENABLED", "RAY_enable_metrics_collection")
os.environ.update({name: os.environ.get(name, "0") for name in REPORTS})


def connect_ray(address: str, part: str, env: Mapping[str, str], folders: Collection[str] = CODE, **local: Any) -> None:
    """Connect this process to a cluster. `ray.shutdown()` ends the connection, and a cluster that was started here.

    Args:
        address: "auto", "HOST:PORT" or "ray://HOST:PORT" of a cluster; "local" starts one on this machine.
        part: what of Ray is used, "data" or "serve".
        env: variables of the processes on the machines.
        folders: what of the repository is sent to the machines.
        local: how a cluster is started here, as `ray.init` takes it.

    Raises:
        ValueError: Ray is missing, or no cluster answers; one sentence that says what to do.
    """
    try:
        import ray

        import_module(f"ray.{part}")
    except ImportError as error:
        raise ValueError(f'--ray needs Ray, which is optional; install it with: pip install "ray[{part}]"') from error
    here: dict[str, Any] = {"include_dashboard": False, **local} if address == HERE else {}
    excludes = ["/*", "!.", *(f"!/{folder}" for folder in folders)]  # as in a .gitignore
    code = {"working_dir": str(ROOT), "excludes": excludes, "env_vars": dict(env)}
    cure = "free memory or cores of this machine" if address == HERE else "start one with: ray start --head"
    try:
        _check_reachable(address)
        with _keep_signal_handlers():
            ray.init(address, runtime_env=code, logging_level=logging.ERROR, log_to_driver=False, **here)
    except Exception as error:  # where a process of the cluster does not start in time, Ray raises a bare `Exception`
        ray.shutdown()
        raise ValueError(f"There is no Ray cluster at {address} ({root_cause(error)}); {cure}") from error


def _check_reachable(address: str) -> None:
    """Check that a cluster listens at the address, since Ray would retry for minutes, and end this process.

    Raises:
        OSError: nothing listens there, or something else than a cluster.
        ValueError: it is no address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address in (HERE, "auto"):
            return
        raise ValueError("name HOST:PORT of its head, auto or local")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port")
    socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    try:
        import grpc  # comes with Ray Serve, not with Ray Data
    except ImportError:
        return
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    with grpc.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=PATIENCE)
        except grpc.FutureTimeoutError as error:
            raise OSError("what listens there is no Ray cluster") from error


def root_cause(error: BaseException) -> str:
    """The root cause of an error of Ray, on one line."""
    cause = getattr(error, "cause", None) or error
    return next((line.strip() for line in reversed(str(cause).splitlines()) if line.strip()), type(cause).__name__)[:200]


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM, which Ray replaces, so these signals still end the work as the program wants it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
