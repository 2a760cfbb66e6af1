"""Where files lie: what comes with the repository, and what DuoGen keeps for a user."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.files import DISK_FULL, read_record, write_beside

if TYPE_CHECKING:
    from filelock import BaseFileLock

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"
VARIABLE = "DUOGEN_HOME"
SERVER = ".server.json"  # below the home: where its server is
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
PROBED = 1 << 20  # bytes that must find room at a start


def data_home() -> Path:
    """The folder for a user's files: `DUOGEN_HOME`, by default the platform's folder for user data.

    A relative `DUOGEN_HOME` is made absolute at the first call, also for processes that this one starts in another folder.

    Raises:
        ValueError: `DUOGEN_HOME` begins with the name of a user who is not there.
    """
    import platformdirs  # of use only where the variable is not set, and to be imported at every start

    named = os.environ.get(VARIABLE)
    if not named:
        return Path(platformdirs.user_data_dir("duogen", appauthor=False))
    try:
        home = Path(named).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{VARIABLE} is {named}, and there is no such user; set it to a folder.") from error
    if not home.is_absolute():
        home = home.absolute()
        os.environ[VARIABLE] = str(home)
    return home


def check_home() -> Path:
    """Make the folder for a user's files where it is missing, and write into it to see that it can be written.

    Raises:
        ValueError: it cannot be made or written; one sentence that names it.
    """
    home = data_home()
    probe = home / f".{os.getpid()}.part"
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBED))
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ValueError(f"The disk of {home} is full; make room on it and start again.") from error
        raise ValueError(_name_refusal(home, error)) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return home


def explain_home(error: BaseException) -> str:
    """What a user can do where the rights of a file below the home refuse it, in one sentence; "" for any other error."""
    refused = isinstance(error, OSError) and error.errno in REFUSED and isinstance(error.filename, str | os.PathLike)
    if not refused or not Path(error.filename).is_relative_to(data_home()):
        return ""
    return _name_refusal(data_home(), error)


def _name_refusal(home: Path, error: OSError) -> str:
    return f"The folder {home} cannot be used ({error.strerror or error}); set {VARIABLE} to a folder that you may write."


def lock_home(home: Path, address: str = "") -> BaseFileLock | None:
    """Take the lock that the one server of a home holds while it runs; `None` where the file system knows no locks.

    Args:
        address: where the server will be, for those who come later.

    Raises:
        ValueError: another server holds it; one sentence that names the folder, and where that server is.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(home / ".server.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        known = read_record(home / SERVER).get("address")
        first = f"{home}, at {known}" if isinstance(known, str) else home
        raise ValueError(f"Another DuoGen runs on {first}; end it first, or set {VARIABLE} to another folder for this one.") from error
    except (NotImplementedError, OSError):
        return None
    if address:
        write_beside(home / SERVER, json.dumps({"address": address}).encode())
    return lock
