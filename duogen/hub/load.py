"""Opening a pair on a machine: the plan, the parts, and what a picture costs here before it is painted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import transformers.utils.logging

from duogen.hub import timings
from duogen.hub.catalogue import Found, Part, Preset, list_missing, lora_file, own_defaults, preset_of
from duogen.hub.memory_plan import Machine, Plan, replan_size
from duogen.hub.memory_plan import plan as best_plan
from duogen.hub.model_files import find_transformer
from duogen.models import guardrail
from duogen.models.pipeline import About, DuoGenPipeline, open_pair, pick_devices
from duogen.models.placement import choose_kernel, explain_unused_gpu_here
from duogen.models.transformer_files import DENOISERS, read_transformer
from duogen.models.transformer_weights import check_fits
from duogen.models.weight_files import check_folder, describe_missing
from duogen.options import ImageOptions, LoadOptions
from duogen.painters.diffusers import DiffusersPair, check_paints, is_diffusers_pipeline, open_diffusers_pair, takes_sources
from duogen.painters.motion import refuse_as_painter


@dataclass
class Costs:
    """What a picture of a pair costs on a machine.

    Attributes:
        name: the pair's, in `timings`. `plan`: how it is opened there.
        parts, about: what was planned with. `machine`: as it was before the pair was opened.
    """

    name: str
    plan: Plan
    parts: dict[str, Part]
    about: dict[str, Any]
    machine: Machine

    def seconds(self, options: ImageOptions, size: tuple[int, int]) -> float:
        """Of a picture of this size: measured here before, else estimated; 0 where nobody knows."""
        width, height = self.plan.size
        if step := timings.last_seconds(self.name, self.plan.how(options.guidance > 1)):
            return step * options.steps * size[0] * size[1] / (width * height)
        return self._at(options, size).seconds

    def check(self, options: ImageOptions, size: tuple[int, int]) -> None:
        """Raises ValueError, with the number, when a picture larger than was planned for would not fit."""
        if size[0] * size[1] > self.plan.size[0] * self.plan.size[1]:
            wanted = self._at(options, size)
            if not wanted.fits:
                raise ValueError(wanted.why_not)

    def note(self, seconds: float, options: ImageOptions) -> None:
        """Write down what a picture of the planned size took, for the next estimate."""
        if options.side == 0 and options.picture_guidance <= 1:
            timings.note(self.name, self.plan.how(options.guidance > 1), seconds / options.steps)

    def _at(self, options: ImageOptions, size: tuple[int, int]) -> Plan:
        about = self.about | {"steps": options.steps, "guidance": max(options.guidance, options.picture_guidance)}
        return replan_size(self.plan, self.parts, about, self.machine, size)


def plan_pair(
    found: Found, requested: LoadOptions, machine: Machine | None = None, closing: Plan | None = None
) -> tuple[Costs, Preset | None]:
    """How a pair will be opened on a machine, by default this one, and the chosen few-step LoRA.

    Args:
        closing: how the pair is opened that is closed first, so that its memory is free.

    Raises:
        ValueError: the pair has no such preset, or this machine no such device or kernel.
    """
    about, stock, known = asdict(About.load(found.folder)), is_diffusers_pipeline(found.folder), found.entry
    if stock:
        refuse_as_painter(found.folder)
        check_paints(found.folder)
    check_whole(found, bool(requested.transformer))
    requested = _find_own_transformer(found, requested)
    if not stock:
        about["most_sources"] = 0
    if not (found.folder / "duogen.json").exists():
        about |= (own_defaults(found.folder) if stock else {}) | (known.about if known else {})
    presets = known.presets if known else ()
    preset = preset_of(presets, requested.preset)
    if preset:
        about |= preset.about()
    about["frames"] = not stock
    if stock and not takes_sources(found.folder):
        about["most_sources"] = 0
    own = Path(requested.transformer) if requested.transformer else None
    parts, there = dict(found.parts(own)), machine or Machine.here(requested.device)
    there = there.with_room(closing) if closing else there
    if preset:
        parts["lora"] = Part(preset.bytes // 2, 0, 1, 1)
    if guardrail.is_installed() and is_guarded(found):
        parts["guardrail"] = Part(guardrail.PARAMETERS, 0, 1, 1)
    if "transformer" not in parts:
        raise ValueError(f"The pipeline in {found.folder} has no transformer and no unet that could paint; choose another one.")
    costs = Costs(found.name(), best_plan(parts, about, there, requested, presets[0].title if presets else ""), parts, about, there)
    if machine is None:
        costs.plan = _add_known(costs)
    return costs, preset


def is_guarded(found: Found) -> bool:
    """Whether a pair's licence asks for the guardrail."""
    return (found.entry is not None and bool(found.entry.licence.guardrail)) or guardrail.names_guardrail(found.folder)


def _find_own_transformer(found: Found, requested: LoadOptions) -> LoadOptions:
    """A request with the path of the transformer's file that it names. Raises ValueError, one sentence: the pair cannot use it."""
    if not requested.transformer:
        return requested
    file = find_transformer(requested.transformer)
    about = read_transformer(file)
    if (found.folder / "model_index.json").is_file():
        check_fits(about, next((found.folder / name for name in DENOISERS if (found.folder / name).is_dir()), found.folder))
    return replace(requested, transformer=str(file))


def check_whole(found: Found, own_transformer: bool = False) -> None:
    """Raises ValueError, one sentence, when a file of a pair that is here is missing or cannot be opened.

    Args:
        own_transformer: the user's file takes the place of the pair's transformer, whose weights may be missing.
    """
    for folder, index in ((found.folder, "model_index.json"), (found.mllm, "config.json")):
        if folder is not None and (folder / index).is_file():
            missing = list_missing(folder)
            if own_transformer:
                missing = [name for name in missing if Path(name).parts[0] not in DENOISERS or Path(name).name == "config.json"]
            if missing:
                raise ValueError(describe_missing(folder, missing))
            check_folder(folder)


def _add_known(costs: Costs) -> Plan:
    """A plan with what is known of this machine alone: its kernel, and how long pictures took so far."""
    plan, about = name_kernel(costs.plan), costs.about
    step = timings.last_seconds(costs.name, plan.how(about["guidance"] > 1))
    return replace(plan, seconds=step * about["steps"], measured=True) if step else plan


def name_kernel(plan: Plan) -> Plan:
    """A plan for this machine with the kernel that runs here, and what to install for a GPU that PyTorch cannot use."""
    _, device = pick_devices(plan.load.device)
    unused = explain_unused_gpu_here(device) if plan.load.device == "auto" else ""
    return replace(plan, attention=choose_kernel(device, plan.load.attention), unused_gpu=unused)


def open_planned(found: Found, load: LoadOptions, preset: Preset | None = None) -> DuoGenPipeline | DiffusersPair:
    """Open a pair as planned. Raises ValueError, one sentence for the user."""
    for each in (diffusers.utils.logging, transformers.utils.logging):
        each.disable_progress_bar()  # sentences report the progress instead
    known = dict(found.entry.about) | {"title": found.entry.title, "summary": found.entry.summary} if found.entry else {}
    if preset:
        known |= preset.about()
    if is_diffusers_pipeline(found.folder):
        known = own_defaults(found.folder) | known
        few_steps = (lora_file(preset), preset.scheduler) if preset else ()
        return open_diffusers_pair(found.folder, found.mllm, load, known, *few_steps)
    pair = open_pair(found.folder, load=load)
    if known and not (found.folder / "duogen.json").exists():
        pair.about = replace(pair.about, **{name: value for name, value in known.items() if name != "image_size"})
    return pair
