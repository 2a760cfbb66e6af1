"""The commands `python -m duogen finetune`, `merge` and `publish`."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.files import fill_folder
from duogen.finetune.config import PRESETS, STAGE_ALIASES, STAGES, FineTuneConfig

if TYPE_CHECKING:
    from duogen.finetune.prepare import FineTuneRequest
    from duogen.models.adapters import AdapterSpec

PAIR = "a pair's id, repository or folder (default: the bundled one)"
STATUS = {"done": 0, "stopped": 0, "paused": 130}


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands to the parser's."""
    _add_finetune(commands.add_parser("finetune", help="fine-tune a pair on examples", description="Makes an adapter from a folder."))
    _add_merge(commands.add_parser("merge", help="merge adapters into a new pair", description="Writes a new pair."))
    _add_publish(commands.add_parser("publish", help="upload an adapter to the hub", description="Uploads it with a model card."))


def _add_finetune(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pair", metavar="PAIR", help=PAIR)
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps ...")
    command.add_argument(
        "--stage", choices=STAGES, default="both", type=lambda name: STAGE_ALIASES.get(name, name),
        help="mllm (or 1): what to say and when to draw; dit (or 2): how to paint it",
    )  # fmt: skip
    source = command.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, metavar="DIR", help="a folder or zip of examples; without --resume this or --votes")
    source.add_argument("--votes", action="store_true", help="learn from the votes of the Arena and the marks of the chat")
    command.add_argument("--out", type=Path, metavar="DIR", help="the adapter's folder; required without --estimate")
    command.add_argument("--recipe", metavar="FILE", help=f"a JSON file, or a preset: {', '.join(PRESETS)} (default: by the machine)")
    command.add_argument("--replay", type=Path, metavar="DIR", help="examples that the pair should not forget; the bundled pair needs none")
    command.add_argument("--rehearse", dest="replay", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # the old name
    command.add_argument("--trigger", default="", metavar="WORD", help="a word that calls up what was learnt; it begins every request")
    command.add_argument("--sample", action="append", default=[], metavar="TEXT", help="a request to make samples from; may be given again")
    command.add_argument("--resume", action="store_true", help="resume the run in --out")
    command.add_argument("--estimate", action="store_true", help="check the data, time a few steps, print memory and time, and end")
    command.add_argument("--caption", action="store_true", help="first have the pair describe pictures that have no words, into .txt files")


def finetune(given: argparse.Namespace) -> int:
    """Run a fine-tuning, or estimate it. Raises ValueError, one sentence, when the input is wrong; nothing has begun then."""
    from duogen.dataset.describe import problem_rows
    from duogen.finetune import run as work
    from duogen.finetune.prepare import measure_costs, prepare_run

    request = _load_request(given) if given.resume else _new_request(given)
    if given.caption and given.data is not None:
        _caption(given)
    if given.estimate:
        run = prepare_run(request)
        for words in run.report.sentences():
            print(words)
        for words in (words for cost in measure_costs(run) for words in cost.sentences()):
            print(words)
        for where, what, done in problem_rows(run.data):
            print(f"- {where}: {what} ({done})")
        return 0
    if not given.resume:
        prepare_run(request, lambda words: None)  # so that wrong data or a wrong pair is reported before a folder is made
        request = request.with_own_votes() if request.votes else request
    known = work.finetune(request, lambda words: print(words, flush=True))
    if known.get("phase") == "failed":
        raise ValueError(known["words"])
    return STATUS.get(known.get("phase", "done"), 0)


def _new_request(given: argparse.Namespace) -> FineTuneRequest:
    from duogen.evaluate.arena import arena_home
    from duogen.finetune.prepare import FineTuneRequest

    if given.data is None and not given.votes:
        raise ValueError("Say what to learn from: --data DIR, or --votes")
    if given.out is None and not given.estimate:
        raise ValueError("Say where the adapter should go: --out DIR")
    out = given.out or Path("adapter")
    if not given.estimate and out.exists() and (not out.is_dir() or any(each.name != "run" for each in out.iterdir()) or _has_state(out)):
        raise ValueError(f"{out} is there already; choose a new folder, or go on with it: --resume.")
    recipe = FineTuneConfig.load(given.recipe or choose_preset(given.device))
    data, rest = arena_home() if given.votes else given.data, (given.trigger, tuple(given.sample), given.votes)
    return FineTuneRequest(data, out, given.pair, given.stage, recipe, given.device, given.replay, *rest)


def _has_state(out: Path) -> bool:
    from duogen.finetune.jobs import Job

    return any((Job(out).stage_folder(stage) / "state.pt").exists() for stage in STAGES["both"])


def _load_request(given: argparse.Namespace) -> FineTuneRequest:
    from duogen.finetune.prepare import FineTuneRequest

    if given.out is None:
        raise ValueError("Say what to go on with: --out DIR")
    request = FineTuneRequest.load(given.out)
    if given.data is not None:
        request = replace(request, data=given.data)
    return replace(request, recipe=FineTuneConfig.load(given.recipe)) if given.recipe else request


def choose_preset(device: str) -> str:
    """Choose the preset that fits the memory of a device."""
    import torch

    if device not in ("auto", "cuda") and not device.startswith("cuda"):
        return "cpu"
    if not torch.cuda.is_available():
        return "cpu"
    room = torch.cuda.get_device_properties(0).total_memory / 1024**3
    return next((f"{size}gb" for size in (24, 16, 12) if room > size - 1.5), "8gb")


def _caption(given: argparse.Namespace) -> None:
    from duogen.dataset.readers import read_dataset
    from duogen.engine import Engine
    from duogen.finetune.captions import caption_all

    loose = read_dataset(given.data).loose
    if not loose:
        return
    engine = Engine.open(given.pair, given.device)
    for picture, words in caption_all(engine, loose):
        print(f"{picture.name}: {words}".encode(errors="replace").decode())


def _add_merge(command: argparse.ArgumentParser) -> None:
    command.add_argument("--adapter", action="append", required=True, metavar="DIR[:WEIGHT]", help="may be given again")
    command.add_argument("--pair", metavar="PAIR", help=PAIR)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new pair's folder")


def merge(given: argparse.Namespace) -> int:
    """Merge adapters into a new pair."""
    from duogen.models.adapters import AdapterSpec

    merge_pair(given.pair, [AdapterSpec.parse(each) for each in given.adapter], given.out)
    print(given.out)
    return 0


def merge_pair(pair: str | None, adapters: list[AdapterSpec], out: Path) -> None:
    """Write a pair with adapters merged in; the folder is written as a whole or not at all.

    Raises:
        ValueError: an adapter does not fit, or `out` is there.
    """
    import torch

    from duogen.hub.catalogue import find
    from duogen.models.adapters import PARTS, merge_adapters, set_adapters
    from duogen.models.pipeline import open_parts

    if out.exists():
        raise ValueError(f"{out} is there already; choose a new folder.")
    folder = find(pair).folder
    parts = open_parts(folder, PARTS, "cpu", "fp32")
    set_adapters(parts, adapters)
    tunes_mllm = any(each.changes("text_encoder") for each in adapters)

    with fill_folder(out) as part:
        shutil.copytree(folder, part, ignore=lambda where, _: list(PARTS) if Path(where) == folder else [], dirs_exist_ok=True)
        for name in PARTS:
            module = getattr(parts, name)
            merge_adapters(module)
            module.to(torch.bfloat16).save_pretrained(part / name)
        if tunes_mllm:
            replace(parts.about, tuned=True).write(part)


def _add_publish(command: argparse.ArgumentParser) -> None:
    command.add_argument("adapter", type=Path, help="an adapter's folder")
    command.add_argument("--to", required=True, metavar="USER/NAME", help="the repository on the hub; made if it is not there")
    command.add_argument("--public", action="store_true", help="let everybody see it")


def publish(given: argparse.Namespace) -> int:
    from duogen.finetune.model_card import push

    print(push(given.adapter, given.to, private=not given.public))
    return 0


COMMANDS = {"finetune": finetune, "merge": merge, "publish": publish}
