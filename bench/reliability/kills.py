"""A server that is killed at random moments: python -m bench.reliability.kills [--kills N] [--servers N] [--starts N] [--seed N]

A process does what a person asks of a server (`bench.reliability.person`) and is killed (SIGKILL) in the middle of an act. Then everything
is opened again, and compared with what was acknowledged; the next process goes on in the same home. `--servers` kills a whole server
instead, the tests' stand-in, while it answers, and `--starts` one while it starts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.machine import host
from bench.reliability.person import ACTS, Claims, Ledger, Person, find_leftovers, find_lost, read_home
from duogen.files import write_beside

FILE = Path(__file__).parents[1] / "results" / "kills.json"
LIVES = 24  # kills in one home
PATIENCE = 120.0  # seconds without a word from the process
QUESTION = {"messages": [{"role": "user", "content": "How do I draw a boat?"}], "stream": True}


def live(home: Path, seed: int, act: str, wire: Connection) -> None:
    """Do an act, and others between, until the process is killed."""
    os.environ["DUOGEN_HOME"] = str(home)
    person = Person(home, seed, lambda told: wire.send_bytes(json.dumps(told).encode()))
    while True:
        person.do(act)
        person.do(person.rng.choice(ACTS))


def open_context() -> Any:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.reliability.person"])
    return context


def kill_once(context: Any, home: Path, seed: int, act: str, claims: Claims) -> tuple[Ledger, list[str]]:
    """Let a process live until it is in the middle of an act for the second time. Returns what it told, and what went wrong until then."""
    ledger, rng = Ledger(claims), random.Random(seed)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=live, args=(home, seed, act, there))
    process.start()
    there.close()
    began, took = 0.0, 0.0
    try:
        while here.poll(PATIENCE):
            told = json.loads(here.recv_bytes())
            ledger.take(told)
            if told.get("begin") == act and took:
                time.sleep(rng.uniform(0, took))
                break
            began = time.perf_counter() if told.get("begin") == act else began
            took = time.perf_counter() - began if told.get("done") == act else took
    except EOFError:
        pass
    process.kill()
    process.join()
    try:
        while True:
            ledger.take(json.loads(here.recv_bytes()))
    except EOFError:
        pass
    return ledger, [] if process.exitcode == -signal.SIGKILL else [f"the process ended by itself while it did: {ledger.act or act}"]


def kill_often(home: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill so many processes in homes below `home`; every act of `ACTS` in turn. Returns the figures."""
    context, rng = open_context(), random.Random(seed)
    faults: list[str] = []
    during, done = Counter[str](), Counter[str]()
    checked, claims, leftovers = 0, Claims(), 0
    for number in range(kills):
        folder = home / f"home-{number // LIVES}"
        folder.mkdir(exist_ok=True)
        claims = claims if number % LIVES else {}
        act = ACTS[number % len(ACTS)]
        ledger, wrong = kill_once(context, folder, rng.randrange(2**31), act, claims)
        found, damaged = read_home(folder)
        lost = find_lost(ledger.claims, ledger.touched, found)
        faults += [f"kill {number} during {ledger.act or 'nothing'}: {each}" for each in (*wrong, *damaged, *lost)]
        during[ledger.act or "between two acts"] += 1
        done += ledger.done
        checked, claims = checked + len(ledger.claims), found
        if number == kills - 1 or not (number + 1) % LIVES:
            leftovers += len(find_leftovers(folder))
    figures = {"kills": kills, "during": dict(during), "acts_acknowledged": done.total(), "claims_checked": checked}
    return figures | {"files_left_beside": leftovers, "faults": faults}


def kill_servers(home: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a whole server while it answers two clients; then start it again, until it serves."""
    from bench.browser import served
    from bench.reliability.soak import find_server

    rng, faults, said = random.Random(seed), list[str](), 0
    for number in range(kills):
        with served(home) as address:
            body, kind = json.dumps(QUESTION).encode(), {"content-type": "application/json"}
            asked = [urllib.request.Request(f"{address}v1/chat/completions", body, kind) for _ in range(2)]
            opened = [urllib.request.urlopen(each, timeout=60) for each in asked]
            time.sleep(rng.uniform(0, 2))
            said += sum(bool(answer.readline()) for answer in opened)
            os.kill(find_server(home), signal.SIGKILL)
        _, damaged = read_home(home)
        faults += [f"server {number}: {each}" for each in damaged]
    return {"servers_killed": kills, "answers_begun": said, "faults": faults}


def kill_starts(home: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a server at a random moment of its start, each time in the same home; then start it, until it serves what was there before."""
    from bench.browser import ROOT, find_port, served

    person, rng, faults = Person(home, seed, lambda told: None), random.Random(seed), list[str]()
    for act in ACTS:
        person.do(act)
    before, _ = read_home(home)
    with served(home):
        began = time.monotonic()
    with served(home):
        whole = time.monotonic() - began  # seconds
    for number in range(kills):
        command = [sys.executable, "tests/support/stand_in.py", "--seconds", "0", "--port", str(find_port()), "--no-browser"]
        with (home / "killed.log").open("w") as log:
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "DUOGEN_HOME": str(home)}, stdout=log, stderr=log)
        time.sleep(rng.uniform(0, whole))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            faults.append(f"start {number}: it ended by itself: {(home / 'killed.log').read_text()[-200:]}")
        try:
            with served(home):
                found, damaged = read_home(home)
        except ValueError as error:
            faults.append(f"start {number}: {error}")
            continue
        faults += [f"start {number}: {each}" for each in damaged + ["something is missing"] * (found != before)]
    return {"starts_killed": kills, "whole_start_seconds": round(whole, 1), "kept": len(before), "faults": faults}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.kills", description=__doc__.splitlines()[0])
    top.add_argument("--kills", type=int, default=200)
    top.add_argument("--servers", type=int, default=6)
    top.add_argument("--starts", type=int, default=20)
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    began = time.monotonic()
    machine = host()
    with tempfile.TemporaryDirectory(prefix="duogen-kills-") as folder:
        figures = kill_often(Path(folder), given.kills, given.seed)
        print(json.dumps(figures, indent=1), flush=True)
        for name, kill, count in (("servers", kill_servers, given.servers), ("starts", kill_starts, given.starts)):
            (Path(folder) / name).mkdir()
            figures[name] = kill(Path(folder) / name, count, given.seed)
            print(json.dumps(figures[name], indent=1), flush=True)
    figures |= {"seed": given.seed, "minutes": round((time.monotonic() - began) / 60, 1)}
    write_beside(given.out, (json.dumps({"machine": machine, **figures}, indent=1) + "\n").encode())
    return 1 if any(each["faults"] for each in (figures, figures["servers"], figures["starts"])) else 0


if __name__ == "__main__":
    raise SystemExit(main())
