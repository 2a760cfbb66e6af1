"""Fetching public weights into the hub's cache: a worker process that can be paused, resumed and killed, and what others see of it.

The hub's own client lists the files and moves the bytes (so `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`, tokens and proxies hold); but it
forgets what came of a file when it is interrupted, so parts are kept here, beside the finished ones: python -m duogen.download ID
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from duogen.catalogue import UNSAFE, UNWANTED_FILES, WANTED_FILES, Entry, Source, entries, missing, snapshot, wanted
from duogen.conversation import write_beside
from duogen.store import data_home
from duogen.timings import spoken

WRITE_SECONDS = 0.3
SPEED_SECONDS = 5.0  # over which the speed is measured
CHUNK = 1 << 22
WATCH_SECONDS = 0.2
CAN_BE_WOKEN = hasattr(signal, "pthread_kill")  # from waiting for bytes that do not come; not on Windows
PIECE = 1 << 16  # bytes between two looks at the clock; the hub's own 10 MB are minutes on a slow line


class Paused(Exception):
    """Someone wants the download to rest."""


@dataclass(frozen=True)
class Wanted:
    """A file to fetch. `etag` names its blob: the sha256 of a large file, git's hash of a small one."""

    source: Source
    commit: str
    name: str
    size: int
    etag: str


@dataclass
class Progress:
    """What a worker writes down for all who look.

    Attributes:
        state: "listing", "running", "paused", "done" or "failed".
        message: one sentence for the user, when it failed.
        files: size and bytes here, by file.
        speed: bytes a second.
    """

    id: str
    state: str = "listing"
    message: str = ""
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    speed: float = 0.0
    changed: float = 0.0

    @property
    def total(self) -> int:
        return sum(size for size, _ in self.files.values())

    @property
    def done(self) -> int:
        return sum(here for _, here in self.files.values())

    @property
    def seconds_left(self) -> float:
        """0 where it cannot be told."""
        return (self.total - self.done) / self.speed if self.speed > 0 else 0.0

    def line(self) -> str:
        """Where it stands, in one sentence."""
        if self.state in ("failed", "listing"):
            return self.message or "Asking the hub what there is to fetch ..."
        share = f"{self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB"
        if self.state == "done":
            return f"All {self.total / 1e9:.2f} GB are here."
        if self.state == "paused":
            return f"Paused at {share}."
        if not self.speed:
            return f"{share}, 0.0 MB/s."
        return f"{share}, {self.speed / 1e6:.1f} MB/s, {spoken(self.seconds_left)} left."


def _file(id: str, ending: str) -> Path:
    return data_home() / "downloads" / (re.sub(r"[^\w.-]+", "--", id) + ending)


def _lock(id: str) -> Any:
    from filelock import FileLock

    _file(id, ".lock").parent.mkdir(parents=True, exist_ok=True)
    return FileLock(_file(id, ".lock"))


def running(id: str) -> bool:
    """Whether a worker fetches it now."""
    from filelock import Timeout

    try:
        with _lock(id).acquire(timeout=0):
            return False
    except Timeout:
        return True


def status(id: str) -> Progress | None:
    """Where a download stands, `None` when it was never begun. One whose worker was killed is paused."""
    try:
        raw = json.loads(_file(id, ".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = Progress(**{**raw, "files": {name: tuple(each) for name, each in raw["files"].items()}})
    if known.state in ("listing", "running") and not running(id):
        return replace(known, state="paused", speed=0.0)
    return known


def start(id: str, preset: str = "") -> None:
    """Start a worker, or go on where the last one stopped; it outlives whoever calls this. Nothing happens when one runs.

    Raises:
        ValueError: there is no such pair or preset.
    """
    things(wanted(id), preset)
    if running(id):
        return
    _file(id, ".pause").unlink(missing_ok=True)
    _write(Progress(id))
    log = _file(id, ".log")
    command = [sys.executable, "-m", "duogen.download", id, *([preset] if preset else [])]
    with log.open("wb") as out:
        detached = {"creationflags": 0x00000208} if os.name == "nt" else {"start_new_session": True}
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=Path(__file__).parents[1], **detached)
    for _ in range(1200):  # until it holds the lock, or has ended already
        if worker.poll() is not None or running(id):
            return
        time.sleep(0.05)


def pause(id: str) -> None:
    """Let the worker stop within a moment; what came is kept."""
    if running(id):
        _file(id, ".pause").touch()


def _write(progress: Progress) -> None:
    progress.changed = time.time()
    target = _file(progress.id, ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_beside(target, json.dumps(asdict(progress)).encode())


def things(pair: Entry, preset: str = "") -> list[tuple[Source, str]]:
    """Repositories to fetch, each with the one file that is wanted of it, or "" for all that are needed.

    Raises:
        ValueError: the pair has no such preset.
    """
    found: list[tuple[Source, str]] = [(source, "") for source in pair.sources]
    if preset:
        chosen = next((each for each in pair.presets if each.id == preset), None)
        if chosen is None:
            raise ValueError(f"{pair.title} has no preset {preset!r}; it has {', '.join(each.id for each in pair.presets) or 'none'}.")
        found.append((Source("lora", chosen.repo, chosen.revision), chosen.file))
    return found


def listed(source: Source, only: str = "") -> list[Wanted]:
    """The files of a repository that are needed to open it.

    Raises:
        ValueError: it has no safetensors. Others: as huggingface_hub.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    files = [
        Wanted(source, info.sha, each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id)
        for each in info.siblings or []
    ]
    if only:
        chosen = [each for each in files if each.name == only]
        if not chosen or Path(only).suffix in UNSAFE:
            raise ValueError(f"{source.repo} has no file {only}.")
        return chosen
    pipeline = any(each.name == "model_index.json" for each in files)
    chosen = [each for each in files if _needed(each.name, pipeline)]
    if not any(each.name.endswith(".safetensors") for each in chosen):
        raise ValueError(f"{source.repo} has no weights as safetensors; others can run code when they are opened and are not fetched.")
    return chosen


def _needed(name: str, pipeline: bool) -> bool:
    if Path(name).suffix in UNSAFE or any(fnmatch.fnmatch(name, each) for each in UNWANTED_FILES):
        return False
    if pipeline and "/" not in name and name.endswith(".safetensors"):
        return False  # the same weights once more, in one file for other programs
    return any(fnmatch.fnmatch(Path(name).name, each) for each in WANTED_FILES)


class Fetching:
    """One download under way."""

    def __init__(self, pair: Entry, preset: str = "", say: Callable[[Progress], None] = _write) -> None:
        self.pair, self.preset, self.say = pair, preset, say
        self.progress = Progress(pair.id)
        self.moments: list[tuple[float, int]] = []
        self.written = 0.0

    def run(self) -> None:
        """Fetch all that is not here yet.

        Raises:
            Paused, ValueError, OSError, and what huggingface_hub raises.
        """
        files = [each for source, only in things(self.pair, self.preset) for each in listed(source, only)]
        self.progress.files = {label(each): (each.size, here(each)) for each in files}
        self.progress.state = "running"
        self._note(0, force=True)
        self._check_room()
        for each in files:
            self._fetch(each)
        for source, only in things(self.pair, self.preset):
            lacking = [] if only else missing(snapshot(source) or Path())
            if lacking:
                raise ValueError(f"{source.repo} has no {lacking[0]} at revision {source.revision}; choose another repository or revision.")
        self.progress.state, self.progress.speed = "done", 0.0
        self.say(self.progress)

    def _check_room(self) -> None:
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        lacking, free = self.progress.total - self.progress.done, shutil.disk_usage(cache).free
        if lacking > free:
            raise ValueError(f"{lacking / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free in {cache}: make room there.")

    def _fetch(self, wanted: Wanted) -> None:
        blob, part = blob_of(wanted), part_of(wanted)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            with part.open("ab") as stream:
                if stream.tell() > wanted.size:
                    stream.truncate(0)
                self._receive(wanted, stream)
            if digest(part, wanted.etag) != wanted.etag:
                part.unlink()
                raise ValueError(f"{wanted.name} came damaged and was thrown away; start the download again.")
            part.replace(blob)
        _point(wanted, blob)
        self.progress.files[label(wanted)] = (wanted.size, wanted.size)
        self._note(0)

    def _receive(self, wanted: Wanted, stream: BinaryIO) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        fetching, begun = self, stream.tell()

        class Bar:
            """What `http_get` reports its bytes to."""

            def __init__(self, *_: Any, **__: Any) -> None:
                self.total = wanted.size

            def update(self, count: int = 1) -> None:
                fetching._came(wanted, count)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: Any) -> None:
                pass

        self.progress.files[label(wanted)] = (wanted.size, begun)
        constants.DOWNLOAD_CHUNK_SIZE = PIECE
        url = hf_hub_url(wanted.source.repo, wanted.name, revision=wanted.commit)
        http_get(url, stream, resume_size=begun, headers=build_hf_headers(), expected_size=wanted.size, tqdm_class=Bar)

    def _came(self, wanted: Wanted, count: int) -> None:
        size, before = self.progress.files[label(wanted)]
        self.progress.files[label(wanted)] = (size, max(0, before + count))
        self._note(count)
        if not CAN_BE_WOKEN and _file(self.pair.id, ".pause").exists():
            raise Paused

    def _note(self, count: int, force: bool = False) -> None:
        """Write the progress down, a few times a second."""
        now = time.monotonic()
        self.moments = [(at, bytes) for at, bytes in self.moments if now - at < SPEED_SECONDS] + ([(now, count)] if count else [])
        if force or now - self.written > WRITE_SECONDS:
            span = now - self.moments[0][0] if self.moments else 0.0
            self.progress.speed = sum(bytes for _, bytes in self.moments) / span if span > 0.2 else 0.0
            self.written = now
            self.say(self.progress)


def label(wanted: Wanted) -> str:
    return f"{wanted.source.repo.partition('/')[2]}/{wanted.name}"


def here(wanted: Wanted) -> int:
    """How many bytes of it are on this machine."""
    for file in (blob_of(wanted), part_of(wanted)):
        if file.exists():
            return min(file.stat().st_size, wanted.size)
    return 0


def _home(source: Source) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}"


def blob_of(wanted: Wanted) -> Path:
    return _home(wanted.source) / "blobs" / wanted.etag


def part_of(wanted: Wanted) -> Path:
    return _home(wanted.source) / "blobs" / f"{wanted.etag}.part"


def digest(file: Path, like: str) -> str:
    """The hash of a file, of the kind that `like` is: sha256 (64 digits), or git's (40)."""
    kind = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            kind.update(chunk)
    return kind.hexdigest()


def _point(wanted: Wanted, blob: Path) -> None:
    """Put a file where the cache's readers look for it, and note which commit the revision is."""
    home = _home(wanted.source)
    pointer = home / "snapshots" / wanted.commit / wanted.name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not pointer.exists():
        pointer.unlink(missing_ok=True)
        try:
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError:  # Windows without the right to make links
            shutil.copyfile(blob, pointer)
    if wanted.commit != wanted.source.revision:
        ref = home / "refs" / wanted.source.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_beside(ref, wanted.commit.encode())


def said(error: BaseException, pair: Entry) -> str:
    """What went wrong, in one sentence that says what to do."""
    import httpx2
    from huggingface_hub import errors

    repos = " and ".join(source.repo for source in pair.sources)
    page = f"https://huggingface.co/{pair.sources[0].repo}"
    again = "Start the download again later; it goes on where it stopped."
    code = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.GatedRepoError():
            return f"{repos} is open only to those who agree to its conditions: do so at {page} and log in with: hf auth login"
        case errors.RevisionNotFoundError():
            return f"{repos} has no revision {pair.sources[0].revision}; choose another one, as owner/name@revision."
        case errors.RepositoryNotFoundError():
            return f"There is no repository {repos}, or it is private: check its name, or log in with: hf auth login"
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing is fetched; unset it and start the download again."
        case errors.HfHubHTTPError() if code == 429:
            return f"The hub asks to wait: too many requests. {again}"
        case errors.HfHubHTTPError() if code in (401, 403):
            return f"The hub does not let you have {repos}: log in with: hf auth login"
        case errors.HfHubHTTPError():
            return f"The hub answered with an error ({code}). {again}"
        case httpx2.HTTPError() | ConnectionError():
            return f"The hub cannot be reached. Check the network (and HF_ENDPOINT, and the proxy). {again}"
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "The disk is full: make room and start the download again; it goes on where it stopped."
        case OSError() if "size" in str(error):
            return f"A file was cut short. {again}"
    return f"The download failed ({' '.join(str(error).split())[:200] or type(error).__name__}). {again}"


def work(id: str, preset: str = "") -> int:
    """What the worker process does; returns its exit status."""
    from filelock import Timeout

    fetching = Fetching(wanted(id), preset)

    def stop(*_: Any) -> None:
        raise Paused

    signal.signal(signal.SIGTERM, stop)
    try:
        with _lock(id).acquire(timeout=0):
            try:
                with _listening(id):
                    fetching.run()
                return 0
            except Paused:
                fetching.progress.state = "paused"
            except ValueError as error:
                fetching.progress.state, fetching.progress.message = "failed", str(error)
            except Exception as error:  # every one is a sentence
                fetching.progress.state, fetching.progress.message = "failed", said(error, fetching.pair)
            fetching.progress.speed = 0.0
            with contextlib.suppress(OSError):  # a full disk
                _write(fetching.progress)
            return 3 if fetching.progress.state == "paused" else 2
    except Timeout:
        return 0  # another one is at it
    finally:
        _file(id, ".pause").unlink(missing_ok=True)


@contextlib.contextmanager
def _listening(id: str) -> Iterator[None]:
    """A wish to pause reaches the worker while it waits for bytes too, on a line that has gone dead."""
    over, worker = threading.Event(), threading.get_ident()

    def listen() -> None:
        while not over.wait(WATCH_SECONDS):
            if _file(id, ".pause").exists():
                signal.pthread_kill(worker, signal.SIGTERM)
                return

    if CAN_BE_WOKEN:
        threading.Thread(target=listen, name="pause", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def watched(id: str, seconds: float = 0.5) -> Iterator[Progress]:
    """The progress of a worker until it ends."""
    while True:
        alive = running(id)
        if (now := status(id)) is not None:
            yield now
        if not alive:
            return
        time.sleep(seconds)


def verify(id: str) -> list[str]:
    """Names of files that are not what the hub has; they are thrown away, so that the next download brings them anew.

    Raises:
        ValueError: nothing of it is here.
    """
    folders = [there for source in wanted(id).sources if (there := snapshot(source)) is not None]
    if not folders:
        raise ValueError(f"Nothing of {id} is on this machine.")
    bad = []
    for folder in folders:
        for file in sorted(file for file in folder.rglob("*") if file.is_symlink()):
            etag = file.readlink().name
            if not file.exists() or digest(file, etag) != etag:
                bad.append(str(file.relative_to(folder)))
                file.resolve().unlink(missing_ok=True)
                file.unlink()
    return bad


def remove(id: str) -> int:
    """Throw a pair's files away, but for those that another pair on this machine needs; returns the bytes that became free.

    Raises:
        ValueError: there is no such pair, it is being fetched, or nothing of it is here.
    """
    pair = wanted(id)
    if not pair.sources:
        raise ValueError(f"{pair.title} comes with the program and cannot be removed.")
    if running(id):
        raise ValueError(f"{pair.title} is being fetched; pause that first.")
    others = {source.repo for other in entries().values() if other.id != id and status(other.id) for source in other.sources}
    freed = 0
    for home in [_home(source) for source, _ in things(pair) if source.repo not in others]:
        if home.is_dir():
            freed += sum(file.stat().st_size for file in home.rglob("*") if file.is_file() and not file.is_symlink())
            gone = home.with_name(home.name + ".gone")
            home.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
    known = status(id) is not None
    for ending in (".json", ".log", ".pause"):
        _file(id, ending).unlink(missing_ok=True)
    if not freed and not known:
        raise ValueError(f"Nothing of {pair.title} is on this machine.")
    return freed


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(work(*sys.argv[1:3]))
