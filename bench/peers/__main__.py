"""DuoGen beside its nearest peers, in one run: python -m bench.peers [time | equality] [--families A,B] [--threads N] [--repeats N]

Each family is built once, small, of the real classes with random weights. The same conversation (four pictures in four steps each, words
between them, then a second turn with one more) is then made by a script of diffusers and transformers alone and by DuoGen's engine, in
turn: A B A B ... What is printed: the seconds of each way's best round, tokens encoded, forwards of the DiT and the tokens in them, peak
memory, and what the same calls cost where there is hardly any arithmetic. `equality` paints single pictures both ways and compares them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from bench.machine import host
from bench.peers.equality import CASES, compare
from bench.peers.families import FAMILIES, Size
from bench.peers.measure import WAYS, measure
from duogen.files import write_beside

RESULTS = Path(__file__).parents[1] / "results"
THIN = {"width": 64, "side": 64}  # of the run that counts what Python costs
TINY = Size(64, 2, 64)
ROWS = {  # key of a way: head, and how it is written
    "seconds": ("seconds", "{:.2f}"), "cpu_seconds": ("CPU s", "{:.2f}"), "tokens": ("tokens encoded", "{}"),
    "forwards": ("DiT forwards", "{}"), "painted": ("tokens in them", "{}"), "peak_mb": ("peak MB", "{:.0f}"),
    "overhead_seconds": ("overhead s", "{:.2f}"),
}  # fmt: skip


def machine(size: Size, threads: int, repeats: int) -> dict[str, Any]:
    """What the figures were measured on, and at what size."""
    kind = {"capability": torch.backends.cpu.get_cpu_capability(), "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "")}
    versions = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    known = {name: value for name, value in host().items() if name != "load"}  # which every family has of its own
    return {**known, **kind, "threads": threads, **versions, "precision": "fp32", "repeats": repeats, **vars(size)}


def as_table(families: dict[str, dict[str, Any]]) -> str:
    """A line for each family: the libraries alone / DuoGen, and the ratio of seconds."""
    heads = ["family", "beside", *(head for head, _ in ROWS.values()), "times as fast (least to most)", "by CPU s", "goal"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for each in families.values():
        pairs = [" / ".join(form.format(each[way][key]) for way in WAYS) for key, (_, form) in ROWS.items()]
        ratio = f"{each['ratio']:.2f} ({each['ratio_least']:.2f} to {each['ratio_most']:.2f})"
        last = [ratio, f"{each['cpu_ratio']:.2f}", f"{each['goal']:.0f}"]
        lines.append("| " + " | ".join([each["title"], f"`{each['peer']}`", *pairs, *last]) + " |")
    return "\n".join(lines)


def run_time(names: list[str], size: Size, given: argparse.Namespace) -> None:
    """Measure, print and write. A file of the same machine and size keeps the families that are not measured now."""
    about = machine(size, given.threads, given.repeats)
    kind = re.sub(r"[^A-Za-z0-9]+", "-", f"{about['cpu']} {about['capability']}").strip("-")
    file = given.out or RESULTS / f"peers-{kind}-{given.threads}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    families = old["families"] if old.get("machine") == about else {}
    thin = Size(THIN["width"], size.layers, min(THIN["side"], size.side), size.steps)
    for name in names:
        load = host()["load"]
        families[name] = each = {"load": load} | measure(FAMILIES[name], size, thin, given.repeats)
        seconds = " / ".join(f"{each[way]['seconds']:.2f}" for way in WAYS)
        print(f"{name:20} {seconds} s = {each['ratio']:.2f}, by CPU seconds {each['cpu_ratio']:.2f}", flush=True)
        families = {key: families[key] for key in FAMILIES if key in families}
        write_beside(file, (json.dumps({"machine": about, "families": families}, indent=1) + "\n").encode())
    print(as_table(families))
    print(f"Wrote {file}")


def run_equality(names: list[str]) -> int:
    """Compare and print; 1 where a case is not equal."""
    print("| family | earlier pictures | guidance | greatest difference | allowed |\n|---|---|---|---|---|")
    wrong = 0
    for case in CASES:
        if case.family not in names:
            continue
        found = compare(case)
        wrong += found > case.allowed
        print(f"| {case.family} | {case.earlier} | {case.guidance:g} | {found:.2g} | {case.allowed:.2g} |", flush=True)
    return int(wrong > 0)


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.splitlines()[0])
    top.add_argument("what", nargs="?", default="time", choices=["time", "equality"])
    top.add_argument("--families", metavar="A,B", help=f"of {', '.join(FAMILIES)} (default: all)")
    top.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    top.add_argument("--repeats", type=int, default=3, help="timed rounds, of which the best counts")
    top.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default: bench/results/peers-CPU-THREADS.json)")
    top.add_argument("--tiny", action="store_true", help="as small as can be: shows that it runs, measures nothing")
    given = top.parse_args(argv)
    known = {*FAMILIES, *(case.family for case in CASES)}
    names = given.families.split(",") if given.families else list(FAMILIES if given.what == "time" else known)
    unknown = [name for name in names if name not in (FAMILIES if given.what == "time" else known)]
    if unknown or given.repeats < 1 or given.threads < 1:
        wrong = f"there is no family {unknown[0]}" if unknown else "--repeats and --threads must be at least 1"
        print(f"bench.peers: {wrong}.", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    if given.what == "equality":
        return run_equality(names)
    run_time(names, TINY if given.tiny else Size(), given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
