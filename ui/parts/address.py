"""Where the page listens, and whether this machine can show it in a browser."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import webbrowser

PORTS = range(1, 65536)
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where a browser of this machine finds what listens on all of them


def read_host(given: str) -> str:
    """An address as sockets take it: IPv6 without brackets."""
    return given.removeprefix("[").removesuffix("]")


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bracket_host(host: str) -> str:
    """An address as URLs take it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def check_address(host: str, port: int) -> None:
    """Raises ValueError: nothing can listen there; one sentence that says why and what to do."""
    if port not in PORTS:
        raise ValueError(f"--port must be from {PORTS[0]} to {PORTS[-1]}, not {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            if os.name == "posix":  # a port that was left a moment ago is free; elsewhere the option means another thing
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{host} is no address; give one of this machine with --host, such as 127.0.0.1.") from error
    except OSError as error:
        raise ValueError(explain_refusal(host, port, error)) from error


def explain_refusal(host: str, port: int, error: OSError) -> str:
    """Why nothing can listen on a port of an address."""
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"{host} is no address of this machine; give one that is with --host, such as 127.0.0.1."
    if error.errno == errno.EACCES:
        return f"Port {port} is kept for the system's administrator; choose one above 1023 with --port."
    return f"Port {port} of {host} cannot be used; choose another with --port."


def show_page(host: str, port: int) -> None:
    """Open the page in a browser, where there is a screen; a browser inside the terminal would take the terminal."""
    if sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        webbrowser.open(f"http://{bracket_host(EVERY_ADDRESS.get(host, host))}:{port}")
