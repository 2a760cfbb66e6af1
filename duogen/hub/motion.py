"""Video models on a machine: which there are, how one is opened here, and what an animation costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duogen.hub import timings
from duogen.hub.catalogue import Entry, Found, entries, find, find_folders, is_installed, locate_folder, own_defaults, video_models
from duogen.hub.load import check_whole, is_guarded, name_kernel
from duogen.hub.memory_plan import GB, NOTHING, Machine, Plan
from duogen.hub.memory_plan import plan as best_plan
from duogen.hub.timings import say_seconds
from duogen.models.pipeline import ABOUT, About
from duogen.options import LONGEST_MOTION, LoadOptions
from duogen.painters.motion import (
    FAMILIES,
    Family,
    VideoModel,
    count_frames,
    find_family,
    is_video_model,
    open_video_model,
    paints_no_stills,
    takes_last,
)

NO_LAST = "{title} cannot end with a second picture; animate this one alone, or choose a model that takes both, such as LTX-2."
HOW_TO_GET = "get one in the Models tab, or with: python -m duogen pull {id}"


@dataclass(frozen=True)
class MotionPlan:
    """How a video model is opened, and what an animation costs.

    Attributes:
        found: the model. `about`: what it animates best with. `plan`: how it is opened.
        frames, fps: of the animation. `takes_last`: whether it ends with a second picture.
        guarded: whether its licence asks for the guardrail.
    """

    found: Found
    about: dict[str, Any]
    plan: Plan
    frames: int
    fps: int
    takes_last: bool
    guarded: bool

    @property
    def title(self) -> str:
        return self.found.entry.title if self.found.entry else self.found.folder.name

    @property
    def seconds(self) -> float:
        """How long the animation plays."""
        return self.frames / self.fps

    def check_ends(self, two: bool) -> MotionPlan:
        """The same plan. Raises ValueError: the animation shall have `two` ends, and the model takes a first picture alone."""
        if two and not self.takes_last:
            raise ValueError(NO_LAST.format(title=self.title))
        return self

    def how(self) -> str:
        """All that makes a step faster or slower on one machine, as a word for `duogen.hub.timings`."""
        return f"{self.plan.how(self.about['guidance'] > 1)} {self.frames} frames"

    def sentences(self) -> list[str]:
        """What was chosen, and what it costs; or why it does not fit."""
        plan, (width, height) = self.plan, self.plan.size
        if not plan.fits:
            return plan.sentences()
        said = [f"{self.frames} frames of about {width} x {height} px, {self.seconds:.1f} seconds."]
        said += [f"Text encoder {plan.load.precision}, video model {plan.load.painter_precision}."]
        memory = f"It needs {plan.gpu / GB:.1f} GB on the GPU" if plan.gpu else f"It needs {plan.host / GB:.1f} GB of memory."
        host = "." if plan.load.offload == "none" else f" and {plan.host / GB:.1f} GB of host memory."
        said += [memory + host if plan.gpu else memory]
        measured = ", as measured here" if plan.measured else ""
        return [*said, *([f"An animation takes about {say_seconds(plan.seconds)}{measured}."] if plan.seconds else [])]


def list_video_models() -> list[tuple[str, str]]:
    """(id, title) of the models of the catalogue on this machine that set pictures in motion, pairs that do so too last."""
    found = [(each.id, each.title) for each in video_models().values() if is_installed(each)]
    return [*found, *((each.id, each.title) for each in entries().values() if _animates_too(each))]


def _animates_too(pair: Entry) -> bool:
    """Whether a pair of the catalogue is on this machine and sets pictures in motion."""
    folders = find_folders(pair) if pair.sources else {}
    return "pair" in folders and is_video_model(folders["pair"])


def animates_only(name: str) -> bool:
    """Whether a folder or repository on this machine is a video model that paints no stills."""
    if name in entries():
        return False
    try:
        return paints_no_stills(find(name).folder)
    except ValueError:
        return False  # whoever opens it says what is wrong


def explain_none() -> str:
    """What can be used where no video model is on this machine, and how to get it, in one sentence."""
    titles = [each.title for each in video_models().values()]
    smallest = min(video_models().values(), key=lambda each: each.download_bytes)
    first = next(iter(video_models().values()))
    how = HOW_TO_GET.format(id=first.id)
    size = f"{smallest.download_bytes / 1e9:.0f} GB"
    return f"No video model is on this machine: {', '.join(titles[:-1])} and {titles[-1]} can be used, from {size} on; {how}"


def find_video_model(name: str | Path | None = None) -> Found:
    """A video model by its id, repository or folder; by default the first that is on this machine.

    Raises:
        ValueError: one sentence that says what is missing, or what can be used.
    """
    if not name:
        here = list_video_models()
        if not here:
            raise ValueError(explain_none())
        name = here[0][0]
    if str(name) in entries() and not entries()[str(name)].sources:
        raise ValueError(f"{entries()[str(name)].title} paints pictures and cannot set them in motion. {explain_none()}")
    if str(name) not in entries() | video_models() and not (locate_folder(name) / "model_index.json").is_file():
        raise ValueError(f"{name} is not a video model: name one of the Models tab, or a pipeline's folder with a model_index.json in it.")
    found = find(name)
    find_family(found.folder)
    return found


def plan_motion(
    name: str | Path | None,
    requested: LoadOptions,
    seconds: float | None = None,
    steps: int | None = None,
    machine: Machine | None = None,
    closing: Plan | None = None,
) -> MotionPlan:
    """How a video model will be opened on a machine, by default this one, for an animation of so many seconds.

    Args:
        name: as of `find_video_model`.
        seconds: by default as long as the model was trained for. `steps`: by default the model's own.
        closing: how the pair is opened that is closed first, so that its memory is free.

    Raises:
        ValueError: there is no such model; a file of it is missing; this machine has no such device.
    """
    known = video_models().get(str(name or ""))
    if known is not None and not is_installed(known) and machine is not None:  # what it would need somewhere else
        return _plan(Found(Path("."), None, known), FAMILIES[known.about["pipeline"]], requested, seconds, steps, machine)
    found = find_video_model(name)
    check_whole(found)
    there = machine or Machine.here(requested.device)
    made = _plan(found, find_family(found.folder), requested, seconds, steps, there.with_room(closing) if closing else there)
    return _add_known(made) if machine is None and made.plan.fits else made


def _plan(found: Found, family: Family, requested: LoadOptions, seconds: float | None, steps: int | None, machine: Machine) -> MotionPlan:
    here = (found.folder / "model_index.json").is_file()
    about = (own_defaults(found.folder) if here else {}) | (found.entry.about if found.entry and "fps" in found.entry.about else {})
    if (found.folder / ABOUT).is_file():
        own = About.load(found.folder)
        about |= {"image_size": own.image_size, "steps": own.steps, "guidance": own.guidance}
    about |= {"steps": steps} if steps else {}
    fps, most = about["fps"], LONGEST_MOTION
    if seconds is not None and not 0 < seconds <= most:
        raise ValueError(f"The seconds of an animation must be more than 0 and at most {most:g}, not {seconds:g}.")
    frames = count_frames(family, seconds if seconds is not None else about["frames"] / fps, fps)
    latents = (frames - 1) // family.stride + 1
    costs = about | {"frames": False, "most_sources": 0, "latent_frames": latents, "decoded_frames": family.decodes or max(1, frames // 16)}
    parts = found.parts() | {"mllm": NOTHING}  # nobody talks
    if "transformer" not in parts:
        raise ValueError(f"The pipeline in {found.folder} has no transformer that could animate; choose another one.")
    plan = best_plan(parts, costs, machine, replace(requested, preset="", transformer=""))
    guarded = here and is_guarded(found)
    return MotionPlan(found, about, plan, frames, fps, here and takes_last(found.folder), guarded)


def _add_known(made: MotionPlan) -> MotionPlan:
    """A plan with what is known of this machine alone: its kernel, and how long steps took so far."""
    made = replace(made, plan=name_kernel(made.plan))
    step = timings.last_seconds(made.found.name(), made.how())
    return replace(made, plan=replace(made.plan, seconds=step * made.about["steps"], measured=True)) if step else made


def open_motion(made: MotionPlan) -> VideoModel:
    """Open a video model as planned. Raises ValueError, one sentence for the user."""
    width, height = made.plan.size
    return open_video_model(made.found.folder, made.plan.load, made.about | {"image_size": (width, height)})
