"""The roles of the pictures in the message box, as `picture_roles.js` writes them: JSON, from the end of a file's path to its role."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from duogen.conversation import ROLES


def read_roles(written: str | None, files: Sequence[str]) -> list[str]:
    """The roles of the files of the box, in order. What cannot be read is no role."""
    try:
        roles = json.loads(written or "{}")
    except ValueError:
        roles = {}
    found = [roles.get(_name_file(file)) if isinstance(roles, dict) else "" for file in files]
    return [role if role in ROLES else "" for role in found]


def write_roles(roles: Mapping[str, str]) -> str:
    """What `read_roles` reads, of files with a role."""
    return json.dumps({_name_file(file): role for file, role in roles.items() if role})


def _name_file(file: str) -> str:
    """The folder and the name of a file: an upload is in a folder of its own."""
    return "/".join(Path(file).parts[-2:])
