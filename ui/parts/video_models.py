"""A video model in the memory of the open pair, or in its place, for one animation; for the chat and the API alike."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ui.parts.loading import Loading

if TYPE_CHECKING:
    from duogen.hub.memory_plan import Plan
    from duogen.hub.motion import MotionPlan
    from duogen.motion import Animator, MotionEvents

WORDS = "A picture is being animated; the chat goes on when that is done."


def open_plan(loading: Loading) -> Plan | None:
    """How the open pair lies in memory, `None` where nobody knows."""
    return getattr(loading.engine, "plan", None)


def stream_motion(
    loading: Loading, work: Callable[[Animator], MotionEvents], plan: Callable[[Plan | None], MotionPlan]
) -> Generator[Any, None, None]:
    """The events of an animation. The pair leaves the memory meanwhile where both do not fit, and comes back.

    Whoever calls it holds the queue of the models alone.

    Args:
        work: makes the events with an `Animator`. `plan`: plans the video model, given how the pair lies that would leave, or `None`.

    Raises:
        ValueError: one sentence for the user.
    """
    from duogen.motion import Animator

    with loading.lend_engines(WORDS):
        beside, known = plan(None), open_plan(loading)
        if not beside.plan.fits and known is not None:
            beside = plan(known)
            if beside.plan.fits:
                loading.unload(WORDS)
        animator = Animator.open(beside)
        try:
            with closing(work(animator)) as events:
                yield from events
        finally:
            animator.close()
