"""`python -m duogen finetune`, `merge` and `publish`: what they take, and what they do with it."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from duogen.finetune.config import PRESETS, STAGES, FineTune

PAIR = "a pair's id, repository or folder (default: the bundled one)"
STATUS = {"done": 0, "stopped": 0, "paused": 130}


def add_commands(commands: Any) -> None:
    """Add the subcommands to the parser's."""
    _add_finetune(commands.add_parser("finetune", help="teach a pair from examples", description="Makes an adapter from a folder."))
    _add_merge(commands.add_parser("merge", help="adapters into a pair of their own", description="Writes a new pair."))
    _add_publish(commands.add_parser("publish", help="an adapter to the hub", description="Uploads it with a model card."))


def _add_finetune(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pair", metavar="PAIR", help=PAIR)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ...")
    command.add_argument("--stage", choices=STAGES, default="both", help="1: what to say and when to draw; 2: how to paint it")
    command.add_argument("--data", type=Path, metavar="DIR", help="a folder or zip of examples; needed, but with --resume")
    command.add_argument("--out", type=Path, metavar="DIR", help="the adapter's folder; needed, but with --estimate")
    command.add_argument("--recipe", metavar="FILE", help=f"a JSON file, or a preset: {', '.join(PRESETS)} (default: by the machine)")
    command.add_argument("--rehearse", type=Path, metavar="DIR", help="what the pair should not forget; the bundled one knows it by itself")
    command.add_argument("--resume", action="store_true", help="go on with what was begun in --out")
    command.add_argument("--estimate", action="store_true", help="look at the data, make a step or two, say memory and time, and end")
    command.add_argument("--caption", action="store_true", help="first have the pair describe pictures that have no words, into .txt files")


def finetune(given: argparse.Namespace) -> int:
    """Raises ValueError, one sentence, for what is wrong before anything begins."""
    from duogen.finetune import run as work
    from duogen.finetune.prepare import measured

    order = _resumed(given) if given.resume else _ordered(given)
    if given.caption:
        _caption(given)
    if given.estimate:
        ready = work.prepared(order)
        for words in ready.report.sentences():
            print(words)
        for cost in measured(ready):
            print(cost.sentence())
        for problem in ready.data.problems:
            print(f"- {problem.where}: {problem.what}" + (f" ({problem.fix})" if problem.fix else " (left out)"))
        return 0
    if not given.resume:
        work.prepared(order, lambda words: None)  # what is wrong with data or pair is said before a folder is made
    known = work.finetune(order, lambda words: print(words, flush=True))
    if known.get("phase") == "failed":
        raise ValueError(known["words"])
    return STATUS.get(known.get("phase", "done"), 0)


def _ordered(given: argparse.Namespace):
    from duogen.finetune.prepare import Order

    if given.data is None:
        raise ValueError("Say what to learn from: --data DIR")
    if given.out is None and not given.estimate:
        raise ValueError("Say where the adapter should go: --out DIR")
    out = given.out or Path("adapter")
    if not given.estimate and out.exists() and (not out.is_dir() or any(each.name != "run" for each in out.iterdir()) or _begun(out)):
        raise ValueError(f"{out} is there already; choose a new folder, or go on with it: --resume.")
    recipe = FineTune.load(given.recipe or fitting_preset(given.device))
    return Order(given.data, out, given.pair, given.stage, recipe, given.device, given.rehearse)


def _begun(out: Path) -> bool:
    return any((out / "run" / stage / "state.pt").exists() for stage in ("talk", "paint"))


def _resumed(given: argparse.Namespace):
    from duogen.finetune.prepare import Order

    if given.out is None:
        raise ValueError("Say what to go on with: --out DIR")
    order = Order.of(given.out)
    if given.data is not None:
        order = replace(order, data=given.data)
    return replace(order, recipe=FineTune.load(given.recipe)) if given.recipe else order


def fitting_preset(device: str) -> str:
    """The preset for the memory of a device."""
    import torch

    if device not in ("auto", "cuda") and not device.startswith("cuda"):
        return "cpu"
    if not torch.cuda.is_available():
        return "cpu"
    room = torch.cuda.get_device_properties(0).total_memory / 1024**3
    return next((f"{size}gb" for size in (24, 16, 12) if room > size - 1.5), "8gb")


def _caption(given: argparse.Namespace) -> None:
    from duogen.dataset.readers import read
    from duogen.engine import Engine
    from duogen.finetune.captions import caption_all

    loose = read(given.data).loose
    if not loose:
        return
    engine = Engine.open(given.pair, given.device)
    for picture, words in caption_all(engine, loose):
        print(f"{picture.name}: {words}")


def _add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("--adapter", action="append", required=True, metavar="DIR[:WEIGHT]", help="may be given again")
    command.add_argument("--pair", metavar="PAIR", help=PAIR)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new pair's folder")


def merge(given: argparse.Namespace) -> int:
    """Adapters into a pair of their own."""
    from duogen.models.adapters import Wanted

    merged_pair(given.pair, [Wanted.parse(each) for each in given.adapter], given.out)
    print(given.out)
    return 0


def merged_pair(pair: str | None, wanted: list, out: Path) -> None:
    """Write a pair with adapters merged in, whole or not at all.

    Raises:
        ValueError: an adapter does not fit, or `out` is there.
    """
    import torch

    from duogen.hub.catalogue import find
    from duogen.models.adapters import PARTS, merged, put_on, write_safely
    from duogen.models.pipeline import open_parts

    if out.exists():
        raise ValueError(f"{out} is there already; choose a new folder.")
    folder = find(pair).folder
    parts = open_parts(folder, PARTS, "cpu", "fp32")
    put_on(parts, wanted)
    taught = any(each.weight and (each.folder / "text_encoder").is_dir() for each in wanted)

    def fill(part: Path) -> None:
        shutil.copytree(folder, part, ignore=lambda where, _: list(PARTS) if Path(where) == folder else [])
        for name in PARTS:
            module = getattr(parts, name)
            merged(module)
            module.to(torch.bfloat16).save_pretrained(part / name)
        if taught:
            replace(parts.about, tuned=True).write(part)

    write_safely(out, fill)


def _add_publish(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapter", type=Path, help="an adapter's folder")
    command.add_argument("--to", required=True, metavar="USER/NAME", help="the repository on the hub; made if it is not there")
    command.add_argument("--public", action="store_true", help="let everybody see it")


def publish(given: argparse.Namespace) -> int:
    from duogen.finetune.model_card import push

    print(push(given.adapter, given.to, private=not given.public))
    return 0


COMMANDS = {"finetune": finetune, "merge": merge, "publish": publish}
