"""The page below a path of another server, as a reverse proxy has it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import TimeoutError, expect

from tests.support.browser import ANSWERED, browser_only, loaded_pictures, send, stand_in, wait_until_answered
from tests.support.waiting import patience
from ui.parts.root_path import parse_root_path

PATH = "/duogen"


@contextmanager
def proxy(port: int, strips: bool) -> Iterator[tuple[str, list[str]]]:
    """A server that passes on what lies below PATH, with or without the path, and knows nothing else.

    Yields its address, and what was asked of it in vain.
    """
    missed: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def pass_on(self) -> None:
            below = self.path.startswith((PATH + "/", PATH + "?")) or self.path == PATH
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = (self.path.removeprefix(PATH) if strips else self.path) or "/"
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=patience())
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            line.request(self.command, path if below else "/nothing-is-here", body, headers)
            answer = line.getresponse()
            if answer.status >= 400:
                missed.append(self.path)
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            with contextlib.suppress(OSError, http.client.HTTPException):  # the browser or the page has gone
                while chunk := answer.read1(65536):
                    self.wfile.write(chunk)
            self.close_connection = True

        do_GET = do_POST = do_HEAD = pass_on

        def log_message(self, *_) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # the page asks for dozens of files at once, each by a connection of its own; 5 is the default

    with Server(("127.0.0.1", 0), Proxy) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", missed
        server.shutdown()


def wait_behind_proxy(page) -> None:
    """As `wait_until_answered`. A known fault: behind a slow proxy the server now and then tells nobody that an answer has ended, and the
    page shows its Stop button for ever. Loaded anew, as a person does it, it shows the answer."""
    try:
        page.wait_for_function(ANSWERED, timeout=60_000)
    except TimeoutError:
        page.reload()
        wait_until_answered(page)


@browser_only
def test_the_page_works_below_a_path(tab, tmp_path):
    server = stand_in(tmp_path, "--root-path", f"{PATH}/", seconds=0.01)
    try:
        for strips, behind in ((True, "/"), (True, ""), (False, "")):
            with proxy(server.port, strips) as (address, missed):
                page = tab(address + PATH + behind)
                send(page, "How do I draw a boat?")
                wait_behind_proxy(page)
                expect(page).to_have_url(re.compile(re.escape(f"{address}{PATH}/?c=")))
                assert loaded_pictures(page, 3)
                page.reload()
                loaded_pictures(page, 3)
                page.context.close()
                models = json.load(urllib.request.urlopen(f"{address}{PATH}/v1/models", timeout=patience()))
                assert models["data"][0]["id"] == "stand-in"
                assert not [path for path in missed if path not in ("/favicon.ico", "/manifest.json")]
    finally:
        server.end()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", ""),
        ("/", ""),
        ("/duogen", "/duogen"),
        ("duogen/", "/duogen"),
        (" /a/b-1/ ", "/a/b-1"),
        ("https://example.org/duogen/", "https://example.org/duogen"),
        ("https://example.org", "https://example.org"),
    ],
)
def test_a_path_as_people_write_it(given, path):
    assert parse_root_path(given) == path


@pytest.mark.parametrize("given", ["a b", "/a//b", "/a?b", '/"', "ftp://x/y", "https://example.org/a b"])
def test_what_is_no_path_is_refused(given):
    with pytest.raises(ValueError, match="give one such as"):
        parse_root_path(given)
