"""Pictures set in motion: a video model is opened, asked, and gives a video file that carries its settings."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image as PILImage

from duogen.heaps import return_memory
from duogen.hub import timings
from duogen.hub.memory_plan import Plan
from duogen.hub.motion import MotionPlan, open_motion, plan_motion
from duogen.library.motion_file import encode_motion
from duogen.library.picture_file import PictureInfo
from duogen.models import guardrail
from duogen.models.pipeline import pick_devices
from duogen.models.placement import free
from duogen.options import MOST_MOTION_STEPS, LoadOptions
from duogen.painters.motion import Clip, VideoModel, frame_size
from duogen.provenance import Origin

NO_WORDS = "Say what happens, in a few words: they lead the animation."


@dataclass(frozen=True)
class MotionRequest:
    """What is to be animated.

    Attributes:
        first: the picture to begin with. `last`: the picture to end with, `None` where that is open.
        prompt: what happens.
        seconds: how long it plays, `None` for what the model was trained for. `steps`: `None` for the model's own.
        seed: `None` for a new one.
        origin: how the pictures came to be, `None` for brought ones.
    """

    first: PILImage.Image
    prompt: str
    last: PILImage.Image | None = None
    seconds: float | None = None
    steps: int | None = None
    seed: int | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: something is missing or out of range; one sentence."""
        if not self.prompt.strip():
            raise ValueError(NO_WORDS)
        if self.steps is not None and not 1 <= self.steps <= MOST_MOTION_STEPS:
            raise ValueError(f"The steps of an animation must be from 1 to {MOST_MOTION_STEPS}, not {self.steps}.")


@dataclass(frozen=True)
class MotionStep:
    """A denoising step is done; `step` counts from 1."""

    step: int
    steps: int


@dataclass(frozen=True)
class MotionNotice:
    """Something that the user should know, in one sentence."""

    message: str


@dataclass(frozen=True)
class MotionDone:
    """The animation is complete.

    Attributes:
        data: the MP4 file. `about`: the settings inside it.
        seconds: how long making it took.
    """

    data: bytes
    about: PictureInfo
    seconds: float


MotionEvents = Generator[MotionStep | MotionNotice | MotionDone, None, None]


class Animator:
    """A video model that is open."""

    def __init__(self, model: VideoModel, plan: MotionPlan, guard: guardrail.Guardrail | None = None) -> None:
        self.model, self.plan, self.guard = model, plan, guard

    @staticmethod
    def open(plan: MotionPlan, progress: Callable[[str], None] | None = None) -> Animator:
        """Open a video model as planned. Raises ValueError, one sentence: it does not fit, or cannot be opened."""
        say = progress or (lambda sentence: None)
        if not plan.plan.fits:
            raise ValueError(f"{plan.title} cannot be opened here. {' '.join(plan.sentences())}")
        say(f"Loading the video model: {' '.join(plan.sentences())}")
        guard = guardrail.open_guardrail(pick_devices(plan.plan.load.device)[1]) if plan.guarded else None
        return Animator(open_motion(plan), plan, guard)

    def animate(self, request: MotionRequest, stop: threading.Event | None = None, about: PictureInfo | None = None) -> MotionEvents:
        """Set a picture in motion.

        Args:
            stop: set it to stop within one denoising step; then no `MotionDone` comes.
            about: what the file shall say of where it came from.

        Raises:
            ValueError: one sentence for the user; memory that runs out becomes one too.
        """
        plan, stop = self.plan, stop or threading.Event()
        plan.check_ends(request.last is not None)
        if plan.guarded and self.guard is None:
            yield MotionNotice(f"The licence of {plan.title} asks for a guardrail: pip install {guardrail.PACKAGE}")
        if self.guard:
            self.guard.read(request.prompt)
        seed = random.SystemRandom().randrange(1_000_000) if request.seed is None else request.seed
        size = frame_size(self.model.family, plan.plan.size, request.first)
        ends = [self.model.fit(each, size) for each in (request.first, request.last) if each is not None]
        clip = Clip(ends[0], ends[1] if len(ends) > 1 else None, request.prompt, plan.frames, plan.fps)
        steps, guidance, began = request.steps or plan.about["steps"], plan.about["guidance"], time.monotonic()
        frames: list[PILImage.Image] = []
        try:
            with return_memory(), closing(self.model.animate(clip, steps, guidance, seed, stop)) as made:
                for each in made:
                    if isinstance(each, list):
                        frames = each
                    elif stop.is_set():
                        return
                    else:
                        yield MotionStep(each, steps)
        except torch.OutOfMemoryError as error:
            raise ValueError("The memory ran out; animate fewer seconds, or a smaller picture (--picture-side).") from error
        if not frames:  # it was stopped
            return
        frames = self.guard.look_at_frames(frames) if self.guard else frames
        took = time.monotonic() - began
        timings.note(plan.found.name(), plan.how(), took / steps)
        yield MotionDone(*self._encode(frames, request, about or PictureInfo(), (steps, guidance, seed)), took)

    def _encode(
        self, frames: list[PILImage.Image], request: MotionRequest, about: PictureInfo, settings: tuple[int, float, int]
    ) -> tuple[bytes, PictureInfo]:
        """The file and the settings inside it."""
        (steps, guidance, seed), fps = settings, self.plan.fps
        motion = {"steps": steps, "guidance": guidance, "frames": len(frames), "fps": fps, "ends_with_a_picture": request.last is not None}
        # A brought picture stands in the first frames as it was.
        origin = Origin.PAINTED if request.origin is Origin.PAINTED else Origin.CHANGED
        known = replace(
            about, words=request.prompt, painted=True, seed=seed, model=self.plan.title, options={"motion": motion}, origin=origin.value,
        )  # fmt: skip
        return encode_motion(frames, fps, known), known

    def close(self) -> None:
        """Give its memory back; it cannot be used any more."""
        del self.model
        free()


def open_animator(
    model: str | Path | None,
    request: MotionRequest,
    load: LoadOptions,
    progress: Callable[[str], None] | None = None,
    closing: Plan | None = None,
) -> Animator:
    """Plan and open a video model for a request. Raises ValueError, one sentence; a missing second end is told before it is opened.

    Args:
        closing: as of `plan_motion`.
    """
    plan = plan_motion(model, load, request.seconds, request.steps, closing=closing)
    return Animator.open(plan.check_ends(request.last is not None), progress)
