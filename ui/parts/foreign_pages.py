"""Refuse what the web page of another address makes a visitor's browser send to this server."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.parts.root_path import is_below, strip_root_path

OWN_API = "/v1"  # it asks for JSON or for a password in each request, which no foreign page can send unasked
FOREIGN = "A web page of another address may not use this server."
OTHER_NAME = "This server answers to localhost only; to reach it by another name, start it with --root-path https://NAME."


class ForeignPages:
    """Middleware that refuses requests of foreign pages, and names that are not this server's.

    A page whose name an attacker lets mean 127.0.0.1 (DNS rebinding) would be the server's own page; the name gives it away.
    """

    def __init__(self, app: ASGIApp, root_path: str = "", asks_passwords: bool = False) -> None:
        """
        Args:
            root_path: where a reverse proxy has the page; the host in it is a name of this server.
            asks_passwords: whether users sign in. Then any name will do: the browser knows the user by one name only.
        """
        self.app, self.root_path = app, root_path
        given = urlsplit(root_path)
        any_name = asks_passwords or (given.path and not given.netloc)  # a proxy hands on a name that nobody told
        self.names = None if any_name else {given.hostname} - {None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if self.names is not None and not self._is_own_name(read_hostname(headers.get("host", ""))):
                await PlainTextResponse(OTHER_NAME, 403)(scope, receive, send)
                return
            if not is_own_page(headers) and not is_below(OWN_API, strip_root_path(scope["path"], self.root_path)):
                await PlainTextResponse(FOREIGN, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _is_own_name(self, name: str) -> bool:
        return not name or is_local_name(name) or name in (self.names or ())


def is_own_page(headers: Mapping[str, str]) -> bool:
    """Whether a program sent the request, or a page of this server or, on this machine, of this machine.

    Browsers say which page sends a request, and newer ones whether it is the server's own, whatever name a proxy hands on.
    """
    origin = headers.get("origin")
    if origin is None or headers.get("sec-fetch-site") in ("same-origin", "none"):
        return True
    page, host = read_hostname(origin.partition("://")[2]), read_hostname(headers.get("host", ""))
    if is_local_name(page) and is_local_name(host):
        return True
    return page == host != "" and "sec-fetch-site" not in headers


def is_local_name(name: str) -> bool:
    """Whether a host of an address means this machine, whoever asks the name servers."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def read_hostname(host: str) -> str:
    """The name in a header such as `localhost:7860`, in small letters; "" for rubbish."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""
