"""A hub on 127.0.0.1: repositories are folders, and it can be slow, cut files short, damage them, or refuse."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """
    Attributes:
        repos: folders by repository id, "datasets/ID" for one of the datasets. `revisions`: by repository; others are unknown.
        refuse: {path part: (status, X-Error-Code)}; `times` counts down how often, -1 for ever.
        cut: bytes after which a file's connection is closed, once each. `damage`: names of files sent with wrong bytes.
        pace: seconds for every 64 kB. `stall`: bytes after which a file comes no further, once, until the other side hangs up.
        left: files that are still sent, before all others wait for a higher number; -1 for all.
        asked: (path, Range) of every file request. `hosts`: what was asked for in full, as of a proxy.
    """

    repos: dict[str, Path]
    revisions: dict[str, str] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    times: int = -1
    cut: int = 0
    damage: set[str] = field(default_factory=set)
    pace: float = 0.0
    stall: int = 0
    left: int = -1
    hosts: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    address: str = ""

    def calm(self) -> None:
        """Forget all moods."""
        self.refuse, self.times, self.cut, self.damage, self.pace, self.stall, self.left = {}, -1, 0, set(), 0.0, 0, -1
        self.asked.clear()
        self.hosts.clear()
        self.tokens.clear()


def etag(file: Path) -> tuple[str, bool]:
    """The blob's name, and whether it is a large file."""
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return hashlib.sha256(data).hexdigest(), True
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest(), False


def siblings(folder: Path) -> list[dict]:
    found = []
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        name, large = etag(file)
        entry = {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "blobId": name if not large else "0" * 40}
        found.append(entry | ({"lfs": {"sha256": name, "size": entry["size"], "pointerSize": 130}} if large else {}))
    return found


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """What the hub's client asks before it fetches a file."""
        repo, _, name = unquote(urlsplit(self.path).path).removeprefix("/").partition(f"/resolve/{COMMIT}/")
        file = self.hub.repos[repo] / name
        self.send_response(200)
        for key, value in {"ETag": f'"{etag(file)[0]}"', "X-Repo-Commit": COMMIT, "Content-Length": str(file.stat().st_size)}.items():
            self.send_header(key, value)
        self.end_headers()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.hosts.add(urlsplit(self.path).netloc)
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        for part, (status, code) in self.hub.refuse.items():
            if part in path and self.hub.times:
                self.hub.times -= 1
                named = {"X-Error-Code": code} if code else {}
                return self.answer(status, b'{"error": "no"}', {"Retry-After": "0"} | named)
        if path.startswith("/api/models/"):
            return self.info(path.removeprefix("/api/models/"))
        if path.startswith("/api/datasets/"):
            return self.info(path.removeprefix("/api/"))
        return self.file(path)

    def info(self, rest: str) -> None:
        repo, tree, _ = rest.partition("/tree/")
        if tree and repo in self.hub.repos:
            named = siblings(self.hub.repos[repo])
            files = [{"type": "file", "path": each["rfilename"], "size": each["size"], "oid": each["blobId"]} for each in named]
            return self.answer(200, json.dumps(files).encode(), {"Content-Type": "application/json"})
        repo, _, revision = rest.partition("/revision/")
        if repo not in self.hub.repos:
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision != self.hub.revisions.get(repo, "main"):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        body = {"id": repo, "sha": COMMIT, "siblings": siblings(self.hub.repos[repo]), "private": False, "tags": [], "downloads": 0}
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def file(self, path: str) -> None:
        repo, _, name = path.removeprefix("/").partition(f"/resolve/{COMMIT}/")
        if repo not in self.hub.repos:  # the hub's client asks for more than files
            return self.answer(404, b"{}", {})
        data = (self.hub.repos[repo] / name).read_bytes()
        asked = self.headers.get("Range", "")
        self.hub.asked.append((name, asked))
        while self.hub.left == 0:
            time.sleep(0.02)
        self.hub.left -= self.hub.left > 0
        if name in self.hub.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        with suppress(ConnectionError):  # whoever pauses hangs up
            self.answer(206 if asked else 200, data[start:], span)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        cut, self.hub.cut = (self.hub.cut, 0) if self.hub.cut and len(body) > self.hub.cut and status in (200, 206) else (0, self.hub.cut)
        stall, self.hub.stall = (self.hub.stall, 0) if len(body) > self.hub.stall else (0, self.hub.stall)
        sent = body[: cut or stall or None]
        for at in range(0, len(sent), 1 << 16):
            self.wfile.write(sent[at : at + (1 << 16)])
            time.sleep(self.hub.pace)
        if cut or stall:
            self.close_connection = True
        if stall:
            self.wfile.flush()
            self.connection.recv(1)  # nothing comes but the end

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(repos: dict[str, Path], revisions: dict[str, str] | None = None) -> Iterator[Hub]:
    hub = Hub(repos, revisions or {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
