"""OpenAI's API for videos: a picture set in motion, as a job that a program asks about until it is done."""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from duogen.conversation import Image
from duogen.faults import describe_fault
from duogen.text_decoding import clean_message
from ui.api.chat import unread_fields
from ui.api.pictures import decode_address, find_address, read_picture
from ui.api.requests import RequestError, parse_fraction, parse_number
from ui.parts.loading import Loading
from ui.parts.video_models import stream_motion

if TYPE_CHECKING:
    from duogen.motion import MotionRequest

MOST_KEPT = 16  # finished jobs, the oldest of which go first
READ = {"model", "prompt", "input_reference", "last_image", "seconds", "steps", "seed", "user"}


@dataclass(frozen=True)
class VideoRequest:
    """A request as a program sent it.

    Attributes:
        model: id, repository or folder of the video model, "" for the first one that is here.
        last: the picture to end with, `None` where that is open.
        seconds, steps, seed: `None` where the request leaves them to the model.
        notices: what of the request has no effect, a sentence each.
    """

    model: str
    prompt: str
    first: Image
    last: Image | None
    seconds: float | None
    steps: int | None
    seed: int | None
    notices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, asked: dict[str, Any], files: dict[str, list[bytes]]) -> VideoRequest:
        """Raises RequestError: a field is missing, wrong or out of range."""
        prompt = asked.get("prompt")
        if not isinstance(prompt, str) or not (prompt := clean_message(prompt)):
            raise RequestError("There is no prompt; say what happens.", param="prompt")
        first, last = _read_end("input_reference", asked, files), _read_end("last_image", asked, files)
        if first is None:
            raise RequestError("There is no picture to begin with; send it in the field input_reference.", param="input_reference")
        model = asked.get("model") or ""
        if not isinstance(model, str):
            raise RequestError("model must be a word.", param="model")
        seconds = parse_fraction("seconds", asked["seconds"]) if asked.get("seconds") not in (None, "") else None
        steps, seed = (parse_number(name, asked[name]) if asked.get(name) not in (None, "") else None for name in ("steps", "seed"))
        return cls(model, prompt, first, last, seconds, steps, seed, tuple(unread_fields(asked, READ)))

    def request(self) -> MotionRequest:
        """What the video model is asked. Raises ValueError: out of range, one sentence."""
        from duogen.motion import MotionRequest

        last = self.last.picture if self.last else None
        return MotionRequest(self.first.picture, self.prompt, last, self.seconds, self.steps, self.seed, self.first.origin)


def _read_end(name: str, asked: dict[str, Any], files: dict[str, list[bytes]]) -> Image | None:
    """A picture of a request: a file of the form, or a data URL. Raises RequestError: it cannot be read."""
    brought = next(iter(files.get(name, [])), None)
    if brought is None and asked.get(name):
        brought = decode_address(find_address(asked[name]))
    return read_picture(brought) if brought is not None else None


@dataclass
class VideoJob:
    """A video that is asked for. `status` is OpenAI's: "queued", "in_progress", "completed" or "failed"."""

    id: str
    asked: VideoRequest
    model: str
    seconds: float
    created: int = field(default_factory=lambda: int(time.time()))
    status: str = "queued"
    progress: int = 0
    error: str = ""
    data: bytes = b""
    stop: threading.Event = field(default_factory=threading.Event)
    notices: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The job in OpenAI's shape."""
        about: dict[str, Any] = {"id": self.id, "object": "video", "model": self.model, "status": self.status}
        about |= {"progress": self.progress, "created_at": self.created, "prompt": self.asked.prompt, "seconds": f"{self.seconds:g}"}
        about |= {"error": {"code": "video_failed", "message": self.error}} if self.error else {}
        return about | ({"notices": self.notices} if self.notices else {})


class VideoJobs:
    """The videos of all programs, kept until the server ends; of the finished ones the last few."""

    def __init__(self, loading: Loading) -> None:
        self.loading = loading
        self._jobs: OrderedDict[str, VideoJob] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, asked: VideoRequest) -> VideoJob:
        """Start a job. What can be wrong is looked at first. Raises RequestError: the model is not here, or cannot do this."""
        try:
            request = asked.request()
            plan = self._plan(asked, None)
        except ValueError as error:
            raise RequestError(str(error), param=None) from error
        job = VideoJob(f"video_{uuid.uuid4().hex}", asked, plan.found.name(), plan.seconds, notices=list(asked.notices))
        with self._lock:
            self._jobs[job.id] = job
            over = [id for id, each in self._jobs.items() if each.status in ("completed", "failed")]
            for id in over[: max(0, len(over) - MOST_KEPT)]:
                del self._jobs[id]
        threading.Thread(target=self._run, args=(job, request), name="video", daemon=True).start()
        return job

    def find(self, id: str) -> VideoJob:
        """Raises RequestError: there is none of this id."""
        with self._lock:
            if id not in self._jobs:
                raise RequestError(f"There is no video {id!r} here; it may be too old.", 404, "not_found", "video_id")
            return self._jobs[id]

    def delete(self, id: str) -> None:
        """Stop and forget a job. Raises RequestError: there is none of this id."""
        self.find(id).stop.set()
        with self._lock:
            self._jobs.pop(id, None)

    def _plan(self, asked: VideoRequest, closing: Any) -> Any:
        from duogen.hub.motion import plan_motion

        plan = plan_motion(asked.model, self.loading.load_for_others(), asked.seconds, asked.steps, closing=closing)
        return plan.check_ends(asked.last is not None)

    def _run(self, job: VideoJob, request: MotionRequest) -> None:
        from duogen.motion import MotionDone, MotionNotice, MotionStep

        try:
            while not job.stop.is_set() and not self.loading.finished.wait(0.1):
                pass
            with self.loading.queue.wait_turn(lambda before: None, job.stop, alone=True) as mine:
                if not mine:
                    return
                job.status = "in_progress"
                work = lambda animator: animator.animate(request, job.stop)  # noqa: E731
                for event in stream_motion(self.loading, work, lambda closed: self._plan(job.asked, closed)):
                    match event:
                        case MotionStep(step, steps):
                            job.progress = min(99, 100 * step // steps)
                        case MotionNotice(message):
                            job.notices.append(message)
                        case MotionDone(data):
                            job.data, job.progress, job.status = data, 100, "completed"
        except Exception as error:  # a program must learn of every error
            sentence = str(error) if isinstance(error, ValueError) else f"The video failed ({describe_fault(error)})."
            job.error, job.status = sentence, "failed"
