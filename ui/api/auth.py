"""The users of a page that others can reach: a file of names and hashed passwords.

Each line is `name:salt:hash`, hexadecimal, hashed with scrypt (RFC 7914), which is slow on purpose.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path

from duogen.files import read_text, write_beside

NAME = re.compile(r"[\w.@-]{1,64}")
LEAST_LETTERS = 8
FREE_TRIES = 5  # wrong passwords in a row, of one address for one name, that cost no wait
LONGEST_WAIT, FORGOTTEN_AFTER = 300.0, 3600.0  # seconds
MOST_REMEMBERED = 10_000  # addresses and names
CLIENT: ContextVar[str] = ContextVar("client", default="")  # the address of whoever sent the request that is served in this context


class TooManyTries(Exception):
    """So many wrong passwords came that the next one is not looked at yet.

    Attributes:
        seconds: until one is.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("Too many wrong passwords; wait a while, then try again.")
        self.seconds = seconds


class Tries:
    """Wrong passwords by address and name: after five in a row each further one doubles the wait for the next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wrong: dict[tuple[str, str], tuple[int, float]] = {}  # how many, and when the last one came

    def check(self, key: tuple[str, str]) -> None:
        """Raises TooManyTries: it is too early for another one."""
        count, last = self._wrong.get(key, (0, 0.0))
        wait = min(LONGEST_WAIT, 2.0 ** (count - FREE_TRIES + 1)) if count >= FREE_TRIES else 0.0
        left = last + wait - self._clock()
        if left > 0:
            raise TooManyTries(left)

    def count(self, key: tuple[str, str], right: bool) -> None:
        count, last = self._wrong.pop(key, (0, 0.0))
        if right:
            return
        now = self._clock()
        if len(self._wrong) >= MOST_REMEMBERED:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[key] = (1 if now - last > FORGOTTEN_AFTER else count + 1, now)


class Users:
    """The people in a file.

    Raises:
        ValueError: the file is missing, empty or damaged, or others may write into it.
    """

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._hashes = _read(file)
        _check_rights(file)
        if not self._hashes:
            raise ValueError(f"{file} holds no users; add one with: python app.py --auth {file} --add-user NAME")
        self._known: set[bytes] = set()  # digests of right passwords: scrypt takes a tenth of a second
        self._tries = Tries(clock)
        self._checker = ThreadPoolExecutor(1, "passwords")  # one at a time: a flood of wrong ones takes one core, and no other threads

    async def admits(self, name: str, password: str) -> bool:
        """As `accepts`, while the server serves others."""
        if self._is_known(name, password):
            return True
        return await asyncio.get_running_loop().run_in_executor(self._checker, copy_context().run, self.accepts, name, password)

    async def admits_header(self, authorization: str) -> bool:
        """The same for an HTTP `Authorization` header: Basic, or Bearer with `name:password`."""
        kind, _, given = authorization.partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        name, _, password = given.strip().partition(":")
        return await self.admits(name, password)

    def accepts(self, name: str, password: str) -> bool:
        """Whether the name and the password are right. Unknown names take as long as wrong passwords.

        Raises:
            TooManyTries: the address in `CLIENT` sent many wrong passwords for this name.
        """
        if self._is_known(name, password):
            return True
        salt, known = self._hashes.get(name, (bytes(16), bytes(64)))
        right = hmac.compare_digest(_hash(password, salt), known) and name in self._hashes
        self._tries.count((CLIENT.get(), name), right)
        if right:
            self._known.add(_digest(name, password))
        return right

    def _is_known(self, name: str, password: str) -> bool:
        """Whether a password was right before. Raises TooManyTries."""
        key = (CLIENT.get(), name)
        self._tries.check(key)  # first: otherwise it would tell whoever waits which password is right
        known = _digest(name, password) in self._known
        if known:
            self._tries.count(key, right=True)
        return known


def add_user(file: Path, name: str, password: str) -> None:
    """Add a person to the file, or give a known one a new password.

    Raises:
        ValueError: the name or the password will not do.
    """
    if not NAME.fullmatch(name):
        raise ValueError("A user's name has 1 to 64 letters, digits, dots, dashes or underscores.")
    if len(password) < LEAST_LETTERS:
        raise ValueError(f"The password needs at least {LEAST_LETTERS} characters.")
    salt = secrets.token_bytes(16)
    users = (_read(file) if file.exists() else {}) | {name: (salt, _hash(password, salt))}
    lines = [f"{each}:{salt.hex()}:{known.hex()}\n" for each, (salt, known) in users.items()]
    write_beside(file, "".join(lines).encode(), private=True)


def _read(file: Path) -> dict[str, tuple[bytes, bytes]]:
    try:
        if not file.exists():
            raise ValueError(f"There is no file {file}; make it with: python app.py --auth {file} --add-user NAME")
        lines = [line.strip().split(":") for line in read_text(file).splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}.") from error
    try:
        return {name: (bytes.fromhex(salt), bytes.fromhex(known)) for name, salt, known in lines}
    except ValueError as error:
        raise ValueError(f"{file} is no file of users; make a new one with: python app.py --auth FILE --add-user NAME") from error


def _check_rights(file: Path) -> None:
    """Raises ValueError: another user of this machine may write into the file, and so let people in."""
    if os.name == "posix" and file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"Others may write into {file}; keep it to yourself with: chmod 600 {file}")


def _digest(name: str, password: str) -> bytes:
    return hashlib.sha256(f"{name}\0{password}".encode()).digest()


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
