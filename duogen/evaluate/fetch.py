"""Fetch the benchmarks that do not ship with DuoGen from their authors' pages on the hub."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from duogen.files import place_folder
from duogen.paths import data_home

HUB, DATASETS = "huggingface.co/", "datasets/"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
Log = Callable[[str], None]


def fetch_benchmark(name: str, hub: str, files: tuple[str, ...] = (), log: Log = print) -> Path:
    """Return the unpacked folder of a benchmark. Fetches it when it is missing, and resumes a stopped fetch.

    Args:
        hub: its page; "huggingface.co/datasets/OWNER/NAME" or "huggingface.co/OWNER/NAME" is fetched.
        files: patterns of what is needed of it; all where there are none.

    Raises:
        ValueError: it is not on the hub, or cannot be fetched; one sentence that says what to do instead.
    """
    folder = data_home() / "benchmarks" / name
    if folder.is_dir():
        return folder
    instead = f"get it ({hub}) and name its folder with --data." if hub else "name its folder with --data."
    if not hub.startswith(HUB):
        raise ValueError(f"{name} does not come with DuoGen; {instead}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = hub.removeprefix(HUB)
    kind, repo = ("dataset", path.removeprefix(DATASETS)) if path.startswith(DATASETS) else ("model", path)
    part = folder.with_name(f".{name}.part")
    log(f"Fetching {name} from {hub} ...")
    try:
        snapshot_download(repo, repo_type=kind, allow_patterns=list(files) or None, local_dir=part)
        _unpack_archives(part)
    except GatedRepoError as error:
        raise ValueError(f"{name} asks you to accept its terms: do so on {hub}, log in with 'hf auth login', and try again.") from error
    except (OSError, HfHubHTTPError, HFValidationError, tarfile.TarError, zipfile.BadZipFile) as error:
        why = "it cannot be reached" if isinstance(error, LocalEntryNotFoundError) else type(error).__name__
        raise ValueError(f"{name} cannot be fetched from the hub ({why}); {instead}") from error
    shutil.rmtree(part / ".cache", ignore_errors=True)  # notes of the hub's client
    place_folder(part, folder)
    return folder


def _unpack_archives(folder: Path) -> None:
    """Unpack every archive in place and then delete them all. No member may lead outside of the folder."""
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
