"""The users of a page that others can reach: a file of names and hashed passwords.

Each line is `name:salt:hash`, hexadecimal, hashed with scrypt (RFC 7914), which is slow on purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from pathlib import Path

from duogen.files import read_text, write_beside

NAME = re.compile(r"[\w.@-]{1,64}")
LEAST_LETTERS = 8


class Users:
    """The people in a file.

    Raises:
        ValueError: the file is missing, empty or damaged.
    """

    def __init__(self, file: Path) -> None:
        self._hashes = _read(file)
        if not self._hashes:
            raise ValueError(f"{file} holds no users; add one with: python app.py --auth {file} --add-user NAME")
        self._known: set[bytes] = set()  # digests of right passwords: scrypt takes a tenth of a second

    def accepts(self, name: str, password: str) -> bool:
        """Whether the name and the password are right. Unknown names take as long as wrong passwords."""
        digest = hashlib.sha256(f"{name}\0{password}".encode()).digest()
        if digest in self._known:
            return True
        salt, known = self._hashes.get(name, (bytes(16), b""))
        right = hmac.compare_digest(_hash(password, salt), known)
        if right:
            self._known.add(digest)
        return right

    def accepts_header(self, authorization: str) -> bool:
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
        return self.accepts(name, password)


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
    write_beside(file, "".join(lines).encode())
    file.chmod(0o600)


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


def _hash(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1)
