"""Where a page is that another server passes on below a path of its own, as reverse proxies do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from fastapi import Request

PATH = re.compile(r"(?:/[\w.~-]+)+")


def parse_root_path(given: str) -> str:
    """The path with a slash before it and none behind it, "" for none. An address (https://example.org/path) stays one.

    Raises:
        ValueError: it is neither.
    """
    trimmed = given.strip().rstrip("/")
    address = urlsplit(trimmed)
    if address.scheme in ("http", "https") and address.netloc:
        if address.path and not PATH.fullmatch(address.path):
            raise ValueError(f"--root-path {given} is no address of a page; give one such as https://example.org/duogen")
        return trimmed
    path = "/" + trimmed.lstrip("/") if trimmed else ""
    if path and not PATH.fullmatch(path):
        raise ValueError(f"--root-path {given} is no path; give one such as /duogen")
    return path


def strip_root_path(path: str, root_path: str) -> str:
    """The path of a request without the path that a proxy may or may not have taken off."""
    base = urlsplit(root_path).path
    return path.removeprefix(base) if base and is_below(base, path) else path


def is_below(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def set_page_base(root_path: str) -> None:
    """Let every address in the page begin with the path, whether the browser opened it with or without a slash at its end."""
    from gradio.routes import templates  # not above: gradio reads the environment when it is imported, and app.py sets it later

    base = urlsplit(root_path).path + "/"

    def name_base(request: Request) -> dict[str, str]:
        return {"base_url": base}

    templates.context_processors.append(name_base)
