"""The door of a server that others can reach: how often a password may be wrong, cookies, foreign pages, names, the users file."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.queueing import Event
from gradio.route_utils import FnIndexInferError
from gradio.routes import App
from gradio.server_messages import HeartbeatMessage
from gradio.state_holder import SessionState
from httpx import InvalidURL
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from bench.reliability.licences import KNOWN, list_licences
from duogen.faults import describe_fault
from tests.support.waiting import run_apart
from ui.api import auth
from ui.api.auth import CLIENT, FREE_TRIES, LONGEST_WAIT, TooManyTries, Users, add_user
from ui.parts.checked_bodies import CheckedBodies
from ui.parts.fault_answers import SESSIONS, FaultAnswers, ReportingBlocks
from ui.parts.foreign_pages import ForeignPages
from ui.parts.login import mark_cookies

POSIX = pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of one user, hashed quickly."""
    monkeypatch.setattr(auth, "_hash", lambda password, salt: auth.hashlib.sha512(salt + password.encode()).digest())
    add_user(tmp_path / "users", "anna", "correct horse")
    return tmp_path / "users"


def try_password(users: Users, name: str, password: str, address: str = "10.0.0.1") -> bool | int:
    """Whether it is right, or how many seconds one has to wait."""
    CLIENT.set(address)
    try:
        return run_apart(users.admits(name, password))
    except TooManyTries as early:
        return round(early.seconds)


def test_wrong_passwords_are_slowed_and_a_right_one_gets_no_answer_meanwhile(file: Path) -> None:
    now = [1000.0]
    users = Users(file, lambda: now[0])
    assert try_password(users, "anna", "correct horse") is True
    assert [try_password(users, "anna", f"wrong {n}") for n in range(FREE_TRIES + 2)] == [False] * FREE_TRIES + [2, 2]
    assert try_password(users, "anna", "correct horse") == 2, "it would tell an attacker that it is right"
    assert try_password(users, "anna", "correct horse", "10.0.0.2") is True, "other addresses do not wait"
    assert try_password(users, "nobody", "x") is False, "nor do other names"
    waits = []
    for _ in range(12):
        now[0] += LONGEST_WAIT
        assert try_password(users, "anna", "wrong") is False
        waits.append(try_password(users, "anna", "wrong"))
    assert waits[:3] == [4, 8, 16] and waits[-1] == LONGEST_WAIT
    now[0] += LONGEST_WAIT
    assert try_password(users, "anna", "correct horse") is True
    assert try_password(users, "anna", "wrong") is False and try_password(users, "anna", "wrong") is False


def test_a_flood_in_parallel_gets_no_more_tries(file: Path) -> None:
    users = Users(file, lambda: 0.0)

    async def flood() -> list:
        return await asyncio.gather(*(users.admits("anna", f"wrong {n}") for n in range(40)), return_exceptions=True)

    CLIENT.set("10.0.0.1")
    answers = run_apart(flood())
    assert answers.count(False) == FREE_TRIES and sum(isinstance(each, TooManyTries) for each in answers) == 40 - FREE_TRIES


def test_an_unknown_name_costs_as_much_as_a_wrong_password(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    quick = auth._hash
    monkeypatch.setattr(auth, "_hash", lambda password, salt: hashed.append(password) or quick(password, salt))
    users = Users(file)
    assert not users.accepts("nobody", "one") and not users.accepts("anna", "two")
    assert hashed == ["one", "two"]


@POSIX
def test_the_users_file_is_private_from_its_first_byte(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: modes.append(stat.S_IMODE(self.stat().st_mode)) or replace(self, to))
    add_user(file, "ben", "battery staple")
    assert modes == [0o600] and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o620)
    with pytest.raises(ValueError, match="Others may write into .*chmod 600"):
        Users(file)


@pytest.mark.parametrize(
    ("is_safe", "second"), [(False, "b=2; HttpOnly; Path=/; SameSite=Lax"), (True, "b=2; HttpOnly; Path=/; SameSite=Lax; Secure")]
)
def test_cookies_go_to_own_pages_only(is_safe: bool, second: str) -> None:
    headers = MutableHeaders()
    headers.append("set-cookie", "a=1; HttpOnly; Path=/; SameSite=none; Secure")
    headers.append("set-cookie", "b=2; HttpOnly; Path=/")
    mark_cookies(headers, is_safe)
    assert headers.getlist("set-cookie") == ["a=1; HttpOnly; Path=/; SameSite=Lax; Secure", second]


async def say_ok(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize(
    ("root_path", "asks", "host", "sent", "status"),
    [
        ("", False, "127.0.0.1:7860", {}, 200),
        ("", False, "localhost", {"Origin": "http://127.0.0.1:3000"}, 200),
        ("", False, "[::1]:7860", {"Origin": "http://[::1]:7860"}, 200),
        ("", False, "evil.example:7860", {}, 403),
        ("", False, "evil.example:7860", {"Origin": "http://evil.example:7860", "Sec-Fetch-Site": "same-origin"}, 403),
        ("", False, "127.0.0.1.evil.example", {}, 403),
        ("", False, "localhost:7860", {"Origin": "https://evil.example"}, 403),
        ("", False, "localhost:7860", {"Origin": "null"}, 403),
        ("", False, "localhost:7860", {"Origin": "http://[", "Sec-Fetch-Site": "cross-site"}, 403),
        ("https://me.example/duogen", False, "me.example", {"Origin": "https://me.example"}, 200),
        ("https://me.example/duogen", False, "evil.example", {}, 403),
        ("/duogen", False, "me.example", {"Origin": "https://me.example"}, 200),
        ("", True, "me.example:7860", {"Origin": "http://me.example:7860"}, 200),
        ("", True, "me.example:7860", {"Origin": "http://evil.example"}, 403),
        ("", True, "10.0.0.9", {"Origin": "https://me.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ("", True, "me.example", {"Origin": "https://me.example", "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/login"])
def test_foreign_pages_and_names_are_refused(root_path: str, asks: bool, host: str, sent: dict, status: int, path: str) -> None:
    client = TestClient(ForeignPages(say_ok, root_path, asks))
    assert client.post(path, headers={"Host": host, **sent}).status_code == status


def test_programs_of_other_pages_reach_the_api_alone() -> None:
    client, foreign = TestClient(ForeignPages(say_ok, "/duogen")), {"Host": "localhost", "Origin": "https://example.org"}
    asked = ("/v1/models", "/duogen/v1/models", "/v10", "/duogen/config", "/config/v1/")
    assert [client.post(path, headers=foreign).status_code for path in asked] == [200, 200, 403, 403, 403]


FAILURES = [
    ("/bad", 400, KeyError("component_id")),
    ("/url", 400, InvalidURL("x")),
    ("/fn", 400, FnIndexInferError()),
    ("/odd", 500, RuntimeError("boom")),
]


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("too late") from HTTPException(404)
    raise next(error for path, _, error in FAILURES if path == scope["path"])


def test_a_route_that_fails_answers_with_the_number_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(FaultAnswers(fail))
    for path, status, error in FAILURES:
        answer = client.post(path)
        number = re.search(r"fault (\d{6})", answer.json()["detail"])
        assert answer.status_code == status and number and "boom" not in answer.text
        assert caplog.records[-1].getMessage() == f"Fault {number[1]}" and caplog.records[-1].exc_info[0] is type(error)
    assert client.get("/late").status_code == 200 and client.get("/x%00.png").status_code == 400 and len(caplog.records) == len(FAILURES)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("mcp/", b'{"id": 1}', 200),
        *(("mcp/", body, 400) for body in (b"{", b"\x96", b"[" * 100_000, b'{"id": "\\ud800"}')),
        ("run/x", b'{"fn_index": 0, "data": [1]}', 200),
        *(("run/x", body, 200) for body in (b"{", b'{"fn_index": 9, "data": []}', b'{"fn_index": {}, "data": 1}', b'{"fn_index": 0}')),
        ("api/x", b'{"fn_index": 0, "data": []}', 400),
        ("run/x", b'{"fn_index": 1, "data": []}', 400),
    ],
)
def test_gradios_routes_get_only_what_they_can_read(path: str, body: bytes, status: int) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        got = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": got["body"]})

    functions = {0: SimpleNamespace(fn=print, inputs=["words"]), 1: SimpleNamespace(fn=None, inputs=[])}  # 1 runs in the browser alone
    client = TestClient(CheckedBodies(echo, functions))
    answer = client.post(f"/gradio_api/{path}", content=body)
    assert answer.status_code == status and (status == 400 or answer.content == body)
    assert client.post("/elsewhere", content=body).content == body


@pytest.mark.parametrize(("event", "value", "status"), [("pick", "a", 200), ("pick", "z", 400), ("refuse", "a", 400), ("fail", "a", 500)])
def test_a_call_that_is_refused_is_no_fault_of_the_server(event: str, value: str, status: int) -> None:
    """Gradio itself says 500 for all that fails."""

    def refuse(choice: str) -> None:
        raise gr.Error("There is none.")

    def fail(choice: str) -> None:
        raise KeyError(choice)

    with ReportingBlocks() as blocks:
        box = gr.Dropdown(["a", "b"])
        events = {"pick": lambda choice: None, "refuse": refuse, "fail": fail}
        for name, function in events.items():
            box.change(function, box, None, api_name=name, queue=False)
    app = App.create_app(blocks)
    client = TestClient(CheckedBodies(app, blocks.fns))
    answer = client.post(f"/gradio_api/run/{event}", json={"data": [value], "fn_index": list(events).index(event)})
    assert answer.status_code == status, answer.text


def test_a_fault_is_described_by_its_kind_and_its_number(caplog: pytest.LogCaptureFixture) -> None:
    assert re.fullmatch(r"KeyError: 'x'; fault \d{6}", describe_fault(KeyError("x")))
    assert re.fullmatch(r"RuntimeError; fault \d{6}", describe_fault(RuntimeError()))


def test_every_package_that_is_needed_has_a_licence_that_is_known() -> None:
    found = list_licences()
    assert len(found) > 60 and {name for name, each in found.items() if not KNOWN.search(each["licence"])} == set()


def test_events_leave_no_copies_of_components_behind() -> None:
    with ReportingBlocks() as blocks:
        box = gr.Textbox()
        box.submit(lambda words: gr.update(value=words, label=words), box, box)
        box.change(lambda words: words, box, box)
    session = SessionState(blocks)
    known = set(session.blocks_config.blocks)
    for number in range(3):
        made = run_apart(blocks.process_api(block_fn=0, inputs=[str(number)], state=session))
        assert made["data"][0]["label"] == str(number)
        run_apart(blocks.process_api(block_fn=1, inputs=["plain"], state=session))
    assert set(session.blocks_config.blocks) == known and set(session.config_values) == known
    assert session[box._id].label == "2" and session.config_values[box._id]["props"]["value"] == "plain"


def test_what_is_sent_to_a_browser_that_has_gone_is_dropped() -> None:
    with ReportingBlocks() as blocks:
        box = gr.Textbox()
        box.submit(lambda: None)
    request, function = Request({"type": "http"}), blocks.fns[0]
    queue = blocks.queue()._queue
    kept = queue.pending_messages_per_session
    kept["here"] = asyncio.Queue()
    for session in ("here", "gone"):
        queue.send_message(Event(session, function, request, None), HeartbeatMessage())
    assert kept["here"].qsize() == 1 and list(kept) == ["here"]
    for number in range(SESSIONS):  # the oldest makes room
        kept[str(number)] = asyncio.Queue()
    queue.send_message(Event("here", function, request, None), HeartbeatMessage())
    assert len(kept) == SESSIONS and "here" not in kept
