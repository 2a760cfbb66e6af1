"""The benchmarks that do not come with DuoGen, fetched once from where their authors publish them on the hub."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from duogen.paths import data_home

HUB, DATASETS = "huggingface.co/", "datasets/"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
Say = Callable[[str], None]


def fetched(name: str, hub: str, files: tuple[str, ...] = (), say: Say = print) -> Path:
    """The folder of a benchmark, unpacked; fetched when it is not there, and gone on with where that was stopped.

    Args:
        hub: its page; "huggingface.co/datasets/OWNER/NAME" or "huggingface.co/OWNER/NAME" is fetched.
        files: patterns of what is needed of it; all where there are none.

    Raises:
        ValueError: it is not on the hub, or cannot be fetched; one sentence that says what to do instead.
    """
    folder = data_home() / "benchmarks" / name
    if folder.is_dir():
        return folder
    instead = f"get it ({hub}) and name its folder with --data."
    if not hub.startswith(HUB):
        raise ValueError(f"{name} does not come with DuoGen; {instead}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = hub.removeprefix(HUB)
    kind, repo = ("dataset", path.removeprefix(DATASETS)) if path.startswith(DATASETS) else ("model", path)
    part = folder.with_name(f".{name}.part")
    say(f"Fetching {name} from {hub} ...")
    try:
        snapshot_download(repo, repo_type=kind, allow_patterns=list(files) or None, local_dir=part)
        _unpack(part)
    except GatedRepoError as error:
        raise ValueError(f"{name} asks you to accept its terms: do so on {hub}, log in with 'hf auth login', and try again.") from error
    except (OSError, HfHubHTTPError, HFValidationError, tarfile.TarError, zipfile.BadZipFile) as error:
        why = "it cannot be reached" if isinstance(error, LocalEntryNotFoundError) else type(error).__name__
        raise ValueError(f"{name} cannot be fetched from the hub ({why}); {instead}") from error
    shutil.rmtree(part / ".cache", ignore_errors=True)  # what the hub's client notes down
    part.rename(folder)
    return folder


def _unpack(folder: Path) -> None:
    """Every archive where it lies; nothing in it may lead outside. It stays until all of them are unpacked."""
    found = [file for file in folder.rglob("*") if file.name.lower().endswith(ARCHIVES) and ".cache" not in file.parts]
    for file in found:
        if file.suffix.lower() == ".zip":
            with zipfile.ZipFile(file) as archive:
                archive.extractall(file.parent)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(file.parent, filter="data")
    for file in found:
        file.unlink()
