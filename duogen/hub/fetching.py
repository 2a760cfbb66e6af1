"""The files of a download: which are wanted, how their bytes come and go on where they stopped, and what went wrong, in a sentence.

The hub's own client lists the files and moves the bytes (so `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HOME`, tokens and proxies hold); but it
forgets what came of a file when it is interrupted, so parts are kept here, beside the finished ones.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from duogen.files import move, sync_file, write_beside
from duogen.hub.catalogue import UNSAFE, UNWANTED_FILES, WANTED_FILES, Entry, Source, list_missing, preset_of, snapshot
from duogen.hub.timings import say_seconds

WRITE_SECONDS = 0.3
SPEED_SECONDS = 5.0  # over which the speed is measured
CHUNK = 1 << 22
PIECE = 1 << 16  # bytes between two looks at the clock; the hub's own 10 MB are minutes on a slow line


class Paused(Exception):
    """Someone wants the download to rest."""


@dataclass(frozen=True)
class WantedFile:
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
        return sum(count_bytes_here for _, count_bytes_here in self.files.values())

    @property
    def seconds_left(self) -> float:
        """0 where nobody knows."""
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
        return f"{share}, {self.speed / 1e6:.1f} MB/s, {say_seconds(self.seconds_left)} left."


def things(pair: Entry, preset: str = "") -> list[tuple[Source, str]]:
    """Repositories to fetch, each with the one file that is wanted of it, or "" for all that are needed.

    Raises:
        ValueError: the pair has no such preset.
    """
    found: list[tuple[Source, str]] = [(source, "") for source in pair.sources]
    if chosen := preset_of(pair.presets, preset):
        found.append((Source("lora", chosen.repo, chosen.revision), chosen.file))
    return found


def repositories(pair: Entry) -> list[Source]:
    """All that may lie here of a pair, few-step LoRAs too."""
    return [*pair.sources, *(Source("lora", preset.repo, preset.revision) for preset in pair.presets)]


def list_files(source: Source, only: str = "") -> list[WantedFile]:
    """The files of a repository that are needed to open it.

    Raises:
        ValueError: it has no safetensors. Others: as huggingface_hub.
    """
    from huggingface_hub import HfApi

    info: Any = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
    files = [
        WantedFile(source, info.sha, each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else each.blob_id)
        for each in info.siblings or []
    ]
    if only:
        chosen = [each for each in files if each.name == only]
        if not chosen or Path(only).suffix in UNSAFE:
            raise ValueError(f"{source.repo} has no file {only}.")
        return chosen
    pipeline = any(each.name == "model_index.json" for each in files)
    chosen = [each for each in files if _is_needed(each.name, pipeline)]
    chosen.sort(key=lambda each: each.name.endswith(".safetensors"))  # what is small first: it says which weights there will be
    if not any(each.name.endswith(".safetensors") for each in chosen):
        raise ValueError(f"{source.repo} has no weights as safetensors; others can run code when they are opened and are not fetched.")
    return chosen


def _is_needed(name: str, pipeline: bool) -> bool:
    if Path(name).suffix in UNSAFE or any(fnmatch.fnmatch(name, each) for each in UNWANTED_FILES):
        return False
    if pipeline and "/" not in name and name.endswith(".safetensors"):
        return False  # the same weights once more, in one file for other programs
    return any(fnmatch.fnmatch(Path(name).name, each) for each in WANTED_FILES)


class Fetch:
    """One download under way. `say` hears how far it is; `rests` tells whether it shall pause."""

    def __init__(
        self, pair: Entry, preset: str = "", *, say: Callable[[Progress], None], rests: Callable[[], bool] = lambda: False
    ) -> None:
        self.pair, self.preset, self.say, self.rests = pair, preset, say, rests
        self.progress = Progress(pair.id)
        self.moments: list[tuple[float, int]] = []
        self.written = 0.0

    def run(self) -> None:
        """Fetch all that is not here yet.

        Raises:
            Paused, ValueError, OSError, and what huggingface_hub raises.
        """
        files = [each for source, only in things(self.pair, self.preset) for each in list_files(source, only)]
        self.progress.files = {label(each): (each.size, count_bytes_here(each)) for each in files}
        self.progress.state = "running"
        self._note(0, force=True)
        self._check_room()
        for each in files:
            self._fetch(each)
        for source, only in things(self.pair, self.preset):
            lacking = [] if only else list_missing(snapshot(source) or Path())
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

    def _fetch(self, wanted: WantedFile) -> None:
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
            sync_file(part)
            move(part, blob)
        _link_blob(wanted, blob)
        self.progress.files[label(wanted)] = (wanted.size, wanted.size)
        self._note(0)

    def _receive(self, wanted: WantedFile, stream: BinaryIO) -> None:
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        fetching, begun = self, stream.tell()

        class Bar:
            """What `http_get` reports its bytes to: as much of a `tqdm` as it uses."""

            def __init__(self, *_: Any, **__: Any) -> None:
                self.total = wanted.size

            def update(self, count: int = 1) -> None:
                fetching._count_bytes(wanted, count)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: Any) -> None:
                pass

        self.progress.files[label(wanted)] = (wanted.size, begun)
        constants.DOWNLOAD_CHUNK_SIZE = PIECE  # ty: ignore[invalid-assignment]  # not that number for ever
        url = hf_hub_url(wanted.source.repo, wanted.name, revision=wanted.commit)
        bar: Any = Bar
        http_get(url, stream, resume_size=begun, headers=build_hf_headers(), expected_size=wanted.size, tqdm_class=bar)

    def _count_bytes(self, wanted: WantedFile, count: int) -> None:
        size, before = self.progress.files[label(wanted)]
        self.progress.files[label(wanted)] = (size, max(0, before + count))
        self._note(count)
        if self.rests():
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


def label(wanted: WantedFile) -> str:
    return f"{wanted.source.repo.partition('/')[2]}/{wanted.name}"


def count_bytes_here(wanted: WantedFile) -> int:
    """How many bytes of it are on this machine."""
    for file in (blob_of(wanted), part_of(wanted)):
        if file.exists():
            return min(file.stat().st_size, wanted.size)
    return 0


def home_of(source: Source) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}"


def blob_of(wanted: WantedFile) -> Path:
    return home_of(wanted.source) / "blobs" / wanted.etag


def part_of(wanted: WantedFile) -> Path:
    return home_of(wanted.source) / "blobs" / f"{wanted.etag}.part"


def digest(file: Path, like: str) -> str:
    """The hash of a file, of the kind that `like` is: sha256 (64 digits), or git's (40)."""
    kind = hashlib.sha256() if len(like) == 64 else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            kind.update(chunk)
    return kind.hexdigest()


def _link_blob(wanted: WantedFile, blob: Path) -> None:
    """Put a file where the cache's readers look for it, and note which commit the revision is."""
    home = home_of(wanted.source)
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


def explain_failure(error: BaseException, pair: Entry) -> str:
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
