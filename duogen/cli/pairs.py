"""The commands about pairs: python -m duogen pairs | pull | remove | plan"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duogen.options import LoadOptions, add_flags, from_flags

if TYPE_CHECKING:
    from duogen.hub.catalogue import Entry, Part, Preset
    from duogen.hub.memory_plan import Machine, Plan


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands to the parser's."""
    listing = commands.add_parser("pairs", help="which pairs there are", description="Lists the pairs, or shows the model card of one.")
    listing.add_argument("pair", nargs="?", metavar="ID", help="show all that is known of this one")
    pulling = commands.add_parser("pull", help="fetch a pair", description="Fetches a pair; Ctrl-C pauses, the same command goes on.")
    pulling.add_argument("pair", metavar="ID", help="a pair's id, or a repository such as owner/name or owner/name@revision")
    pulling.add_argument("--preset", default="", help="fetch this few-step LoRA of the pair too")
    pulling.add_argument("--verify", action="store_true", help="check what is here, and fetch anew what is damaged")
    removing = commands.add_parser("remove", help="throw a pair away", description="Throws a pair's files away.")
    removing.add_argument("pair", metavar="ID")
    about = "Lists the transformers, LoRAs and pairs in the models folder of ComfyUI or Forge, for --transformer, --adapter and --pair."
    listing_files = commands.add_parser("files", help="what other tools have here", description=about)
    listing_files.add_argument("folder", nargs="?", metavar="DIR", help="name that folder, for this and all later starts")
    planning = commands.add_parser("plan", help="what fits on which GPU", description="Says how a pair would be opened; no GPU is needed.")
    planning.add_argument("--pair", metavar="PAIR", help="one pair (default: a table of all pairs and GPU sizes)")
    planning.add_argument("--mllm", "--brain", dest="mllm", metavar="DIR", help="the MLLM of a painter that cannot talk")
    vram = "memory of the GPU, 0 for none, or two: of the language model's and of the painter's (default: this machine's)"
    planning.add_argument("--vram", type=read_gigabytes, metavar="GB[,GB]", help=vram)
    planning.add_argument("--ram", type=float, metavar="GB", help="free memory of the host (default: this machine's)")
    add_flags(planning, LoadOptions)


def read_gigabytes(words: str) -> list[float]:
    """The value of --vram. Raises ValueError: it is not one or two numbers."""
    found = [float(each) for each in words.split(",")]
    if len(found) > 2:
        raise ValueError("There are more than two GPUs.")
    return found


def pairs(given: argparse.Namespace) -> int:
    """`python -m duogen pairs`."""
    from duogen.hub.catalogue import entries, entry, is_installed, video_models

    if given.pair:
        print(show_card(video_models().get(given.pair) or entry(given.pair)))
        return 0
    for known, what in ((entries(), ""), (video_models(), " (animates pictures)")):
        for each in known.values():
            state = "here" if is_installed(each) else f"{each.download_bytes / 1e9:.1f} GB to fetch"
            print(f"{each.id:30}  {state:17}  {each.title}{what}")
    return 0


def show_card(pair: Entry) -> str:
    """A pair's model card as plain text."""
    from duogen.hub.catalogue import is_installed, video_models
    from duogen.hub.memory_plan import weigh_precisions
    from duogen.models.guardrail import DOWNLOAD_BYTES

    state = "on this machine" if is_installed(pair) else f"to fetch: {pair.download_bytes / 1e9:.1f} GB"
    verb = "animates" if pair.id in video_models() else "paints"
    lines = [pair.title, pair.summary, f"It {verb} {pair.paints}.", "", f"id         {pair.id} ({state})"]
    lines += [f"from       {source.repo}, revision {source.revision} ({source.role})" for source in pair.sources]
    lines += [f"licence    {pair.licence.name}, {pair.licence.url}"]
    lines += [f"           {pair.licence.conditions}"] if pair.licence.conditions else []
    if pair.licence.guardrail:
        lines += [f"guardrail  {pair.licence.guardrail} fetches {DOWNLOAD_BYTES / 1e9:.1f} GB more when it is first opened"]
    lines += [f"preset     {preset.id}: {preset.title}, from {preset.repo}" for preset in pair.presets]
    lines += ["weights    " + ", ".join(f"{size:.1f} GB in {precision}" for precision, size in weigh_precisions(pair.parts).items())]
    return "\n".join(lines)


def files(given: argparse.Namespace) -> int:
    """`python -m duogen files`. Raises ValueError: there is no such folder."""
    from duogen.hub.model_files import VARIABLE, find_model_files, keep_models_folder, models_folder

    if given.folder:
        keep_models_folder(given.folder)
    if models_folder() is None:
        raise ValueError(f"No models folder is named yet; name it with: python -m duogen files DIR, or in {VARIABLE}.")
    for each in find_model_files():
        print(f"{each.kind:12}  {each.form or 'whole':8}  {each.bytes / 1e9:7.2f} GB  {each.path}")
    return 0


def plan(given: argparse.Namespace) -> int:
    """`python -m duogen plan`."""
    from duogen.hub.catalogue import find, is_installed, replace_transformer, video_models
    from duogen.hub.memory_plan import GB, Machine
    from duogen.hub.model_files import find_transformer

    load = from_flags(given, LoadOptions)
    if given.pair is None:  # of no machine in particular: nothing has to be asked of this one, which takes importing torch
        print(table(64 * GB if given.ram is None else given.ram * GB))
        return 0
    from duogen.hub.load import name_kernel
    from duogen.hub.load import plan_pair as planned_here
    from duogen.hub.motion import animates_only

    here = Machine.here(load.device)
    host = here.host if given.ram is None else given.ram * GB
    machine = replace(here, host=host)
    if given.vram is not None:
        two = len(given.vram) > 1 or here.mllm_gpu is not None
        machine = Machine.with_gpu(given.vram[-1], host, here.cores, given.vram[0] if two else None)
    known, this_one = _known(given.pair), given.vram is None and given.ram is None
    if given.pair in video_models() or animates_only(given.pair):
        print(_plan_video(given.pair, load, machine, this_one))
        return 0
    if known is not None and not given.mllm and not (this_one and is_installed(known)):
        parts = replace_transformer(known.parts, find_transformer(load.transformer)) if load.transformer else known.parts
        chosen = plan_pair(parts, known.about, machine, load, known.presets)
        print((name_kernel(chosen) if this_one else chosen).line())
        return 0

    costs, _ = planned_here(find(given.pair, given.mllm), load, None if this_one else machine)
    print(costs.plan.line())
    return 0


def _plan_video(model: str, load: LoadOptions, machine: Machine, this_one: bool) -> str:
    """What an animation of a video model costs on a machine, in one line."""
    from duogen.hub.catalogue import is_installed, video_models
    from duogen.hub.motion import plan_motion

    here = this_one and (model not in video_models() or is_installed(video_models()[model]))
    return " ".join(plan_motion(model, load, machine=None if here else machine).sentences())


def pull(given: argparse.Namespace) -> int:
    """`python -m duogen pull`. A worker process does it; ending this command pauses it."""
    from duogen.hub import download

    pair = given.pair
    if given.verify:
        bad = download.verify(pair)
        print(f"{len(bad)} files are damaged: {', '.join(bad)}" if bad else "All files are sound.")
    conditions = download.find_download(pair).licence
    print(f"Licence: {conditions.name} ({conditions.url}). {conditions.conditions}".strip())
    download.start(pair, given.preset)
    now = None
    try:
        for now in download.watch_progress(pair):
            if sys.stderr.isatty():
                print(f"\r{now.line():<78}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        download.pause(pair)
        *_, now = download.watch_progress(pair)
        print(f"\n{now.line()} Go on with: python -m duogen pull {pair}")
        return 130
    now = download.status(pair) or now
    if now is None or now.state != "done":
        raise ValueError(now.line() if now else f"The download of {pair} did not start.")
    print(f"\n{now.line()}")
    return 0


def remove(given: argparse.Namespace) -> int:
    """`python -m duogen remove`."""
    from duogen.hub import download

    print(f"{download.remove(given.pair) / 1e9:.2f} GB are free again.")
    return 0


def plan_pair(parts: dict[str, Part], about: dict[str, Any], machine: Machine, load: LoadOptions, presets: Sequence[Preset] = ()) -> Plan:
    """`memory.plan`, with the pair's few-step preset named or taken into account. Raises ValueError: it has no such preset."""
    from duogen.hub.catalogue import preset_of
    from duogen.hub.memory_plan import plan as decide

    chosen = preset_of(presets, load.preset)
    about = about | (chosen.about() if chosen else {})
    return decide(parts, about, machine, load, presets[0].title if presets else "")


def _known(name: str) -> Entry | None:
    from duogen.hub.catalogue import entries

    return entries().get(name)


def table(host: float) -> str:
    """All pairs by all GPU sizes, as Markdown: what the plan needs on each."""
    from duogen.hub.catalogue import entries
    from duogen.hub.memory_plan import GPU_SIZES, Machine

    rows = ["| pair (planned) | " + " | ".join(f"{size} GB" for size in GPU_SIZES) + " |", "|---" * (len(GPU_SIZES) + 1) + "|"]
    for each in entries().values():
        plans = [plan_pair(each.parts, each.about, Machine.with_gpu(size, host), LoadOptions(), each.presets) for size in GPU_SIZES]
        rows.append(f"| {each.title} | " + " | ".join(_cell(one) for one in plans) + " |")
    return "\n".join(rows)


def _cell(one: Plan) -> str:
    if not one.fits:
        return "does not fit"
    load = one.load
    how = {"none": "", "model": ", parts in turn", "group": ", layer by layer"}[load.offload]
    return f"{load.precision} + {load.painter_precision}{how}, {max(one.size)} px, {one.gpu / 2**30:.1f} GB"


COMMANDS = {"pairs": pairs, "pull": pull, "remove": remove, "files": files, "plan": plan}
