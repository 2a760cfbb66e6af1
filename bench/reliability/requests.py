"""Requests that no client would send, to a running server: python -m bench.reliability.requests

The server is the tests' stand-in with its MCP server. Requests are mutations of sound ones to /v1, to every endpoint that Gradio's
description (OpenAPI) names, and to MCP, and paths that try to leave the folders that are served. As many more are made by Schemathesis from
the server's whole description, half of them against it. What the server says in its log is read too: an error is a sentence, never a
traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import itertools
import json
import random
import re
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from bench.browser import served
from bench.machine import host, report
from duogen.faults import NUMBER

FILE = Path(__file__).parents[1] / "results" / "requests.json"
SECRET = "a-walk-by-the-sea"  # in the files that nobody may get
SERVER = ("tests/support/stand_in.py", "--seconds", "0", "--mcp")
PATIENCE = 120.0
EVENT_SECONDS = 1.0  # how long the first event of a stream is waited for; some streams never end
TRIES = 20  # requests of one operation in a row
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1e308,
        -1e308,
        2**63,
        2**200,
        0.1,
        "",
        " ",
        "\0",
        "a" * 5000,
        "é\u202e\u2028",
        "\ud800",
        "../../etc/passwd",
    ),
    *("<script>alert(1)</script>", "nan", "1e999", "9" * 400, "http://127.0.0.1:9/", "file:///etc/passwd", PICTURE, [], {}, [[]], [{}]),
    *({"": ""}, {"type": "image_url"}, [None] * 200, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}),
]
SOUND: dict[str, Any] = {
    "/v1/chat/completions": {
        "model": "duogen", "messages": [{"role": "user", "content": [{"type": "text", "text": "A boat"}, {"type": "image_url",
        "image_url": {"url": PICTURE}}]}], "seed": 1, "max_tokens": 9, "stop": ["x"], "stream": False, "n": 1, "temperature": 0.5,
    },
    "/v1/images/generations": {"prompt": "A boat", "n": 1, "size": "64x64", "response_format": "url", "seed": 1, "output_format": "png"},
    "/v1/images/edits": {"prompt": "A boat", "image": PICTURE, "mask": PICTURE, "n": 1},
    "/v1/images/variations": {"image": PICTURE},
    "/gradio_api/call/answer": {"data": ["A boat", [], 1]},
    "/gradio_api/call/v2/answer": {"prompt": "A boat"},
    "/gradio_api/run/answer": {"data": ["A boat", [], 1], "session_hash": "x"},
    "/gradio_api/queue/join": {"data": ["A boat"], "fn_index": 0, "session_hash": "x", "event_data": None, "trigger_id": 1},
    "/gradio_api/component_server": {"data": ["x"], "fn_name": "pack", "component_id": 1, "session_hash": "x"},
    "/gradio_api/cancel": {"session_hash": "x", "fn_index": 0, "event_id": "x"},
    "/gradio_api/reset": {"event_id": "x"},
    "/gradio_api/mcp/": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "answer", "arguments": {"prompt": "x"}}},
}  # fmt: skip
TYPES = ("application/json", "application/json", "application/json", "text/plain", "multipart/form-data; boundary=x", "", "\xff")
SET_BY_SEND = ("Content-Length", "Transfer-Encoding", "Accept", "Accept-Encoding", "Connection")
# Before a traceback that the log gives a number, and between the parts of a traceback.
NUMBERED = re.compile(rf"{NUMBER.pattern}$|^During handling of the above exception|^The above exception was the direct cause")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE")
DOORS = (
    "/gradio_api/file=",
    "/gradio_api/file/",
    "/static/",
    "/assets/",
    "/svelte/",
    "/gradio_api/proxy=",
    "/gradio_api/stream/",
    "/v1/",
    "/",
)


@dataclass(frozen=True)
class Shot:
    """A request as it goes over the line."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def mutate(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The value with something odd in one or more of its places."""
    if rng.random() < 0.15 + 0.1 * depth:
        return rng.choice(ODD)
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        changed = value | {name: mutate(rng, value[name], depth + 1)}
        if rng.random() < 0.1:
            del changed[name]
        if rng.random() < 0.1:
            changed[rng.choice(("", "x", "__proto__", "stream", "seed", "size", "tools", name + "[]"))] = rng.choice(ODD)
        return changed
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(rng, value[at], depth + 1), *value[at + rng.randrange(2) :]]
    return rng.choice(ODD)


def encode_body(rng: random.Random, content: Any) -> bytes:
    """As JSON, sometimes damaged."""
    body = json.dumps(content).encode()
    match rng.randrange(14):
        case 0:
            return body[: rng.randrange(len(body) + 1)]
        case 1:
            return rng.randbytes(rng.randrange(200))
        case 2:
            return b"[" * 100_000
        case 3:
            return b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../a"\r\n\r\n' + body + b"\r\n--x--\r\n"
    return body


def list_escapes(home: Path) -> Iterator[str]:
    """Paths that a careless server would follow out of its folders."""
    targets = [
        home / "conversations" / "x" / "conversation.json",
        home / "secret.txt",
        Path("/etc/passwd"),
        home / "shown" / ".." / "secret.txt",
    ]
    for door in DOORS:
        for target in targets:
            for form in (
                str(target),
                f"{home}/shown/pictures/../../{target.name}",
                "../" * 12 + str(target)[1:],
                f"//{target}",
                f"{target}\0.png",
            ):
                for spelt in (
                    quote(form),
                    quote(form, safe=""),
                    quote(quote(form, safe=""), safe=""),
                    form.replace("/", "%5c").replace("\0", "%00"),
                ):
                    yield door + spelt


def read_json(address: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(address.rstrip("/") + path, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def read_routes(address: str) -> list[tuple[str, str]]:
    """Method and path of what Gradio's description names."""
    paths = read_json(address, "/gradio_api/openapi.json").get("paths", {})
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def describe_value(example: Any) -> dict[str, Any]:
    """A JSON schema of values like an example."""
    if isinstance(example, dict):
        return {"type": "object", "properties": {name: describe_value(each) for name, each in example.items()}}
    if isinstance(example, list):
        return {"type": "array", "items": describe_value(example[0]) if example else {}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return {"type": kinds[type(example)]} if type(example) in kinds else {}


def describe_server(address: str) -> dict[str, Any]:
    """The server's OpenAPI description, and the paths below /v1, which it leaves out, with bodies like those in `SOUND`."""
    described = read_json(address, "/openapi.json")
    for path, body in SOUND.items():
        if path.startswith("/v1/"):
            content = {"application/json": {"schema": describe_value(body)}}
            described["paths"][path] = {"post": {"requestBody": {"content": content}, "responses": {}}}
    return described


def make_described(described: dict[str, Any], count: int, seed: int) -> Iterator[Shot]:
    """So many requests by Schemathesis to every operation of a description in turn: as it says, and against it."""
    import schemathesis

    operations = [each.ok() for each in schemathesis.openapi.from_dict(described).get_all_operations()]

    def make_all() -> Iterator[Shot]:
        for turn in itertools.count(seed):
            for operation, mode in itertools.product(operations, schemathesis.GenerationMode):
                yield from make_cases(operation.as_strategy(generation_mode=mode), turn)

    yield from itertools.islice(make_all(), count)


def make_cases(strategy: Any, seed: int) -> list[Shot]:
    """Some requests of one operation; none where it takes nothing that could be against its description."""
    import hypothesis
    import requests
    from hypothesis.errors import Unsatisfiable

    shots: list[Shot] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=TRIES,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        deadline=None,
    )
    @hypothesis.given(strategy)
    def keep(case: Any) -> None:
        with contextlib.suppress(ValueError):  # no client could send it
            sent: Any = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
            body = sent.body.encode("utf-8", "replace") if isinstance(sent.body, str) else sent.body or b""
            kept = {name: value for name, value in sent.headers.items() if name not in SET_BY_SEND}
            shots.append(Shot(sent.method, sent.path_url, body, kept.pop("Content-Type", ""), tuple(kept.items())))

    with contextlib.suppress(Unsatisfiable):
        keep()
    return shots


def make_shots(rng: random.Random, count: int, home: Path, routes: list[tuple[str, str]]) -> Iterator[Shot]:
    """So many requests; every fifth is a path, every tenth one of Gradio's described endpoints."""
    escapes = list(list_escapes(home))
    rng.shuffle(escapes)
    for index in range(count):
        if index % 5 == 0:
            yield Shot(rng.choice(("GET", "GET", "HEAD")), escapes[index // 5 % len(escapes)])
            continue
        if index % 10 == 1 and routes:
            method, path = rng.choice(routes)
            name = quote(str(rng.choice(ODD))[:300].encode("utf-8", "replace"), safe="")
            path = path.replace("{", "").replace("}", "") if rng.random() < 0.5 else path.rsplit("/", 1)[0] + "/" + name
            yield Shot(method, path, encode_body(rng, mutate(rng, {"data": ["x", [], 1]})))
            continue
        path = rng.choice(list(SOUND))
        body = encode_body(rng, mutate(rng, SOUND[path]))
        method = "POST" if rng.random() < 0.93 else rng.choice(METHODS)
        yield Shot(method, path + rng.choice(("", "", "", "/", "?x=%00", "/../x")), body, rng.choice(TYPES))


def send(address: str, shot: Shot) -> tuple[int, bytes]:
    """Status and the beginning of the body; 0 where the server closed the line."""
    at = urlsplit(address)
    line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=PATIENCE)
    try:
        line.connect()
        wire = line.sock
        line.putrequest(shot.method, shot.path.replace("\0", "%00").replace(" ", "%20"))
        for name, value in (("Content-Type", shot.content_type), ("Accept", "application/json, text/event-stream"), *shot.headers):
            if value:
                line.putheader(name, value if value.isascii() else value.encode("utf-8", "replace"))
        line.putheader("Content-Length", str(len(shot.body)))
        line.endheaders(shot.body)
        answer = line.getresponse()
        if answer.headers.get_content_type() != "text/event-stream":
            return answer.status, answer.read(200_000)
        wire.settimeout(EVENT_SECONDS)
        with contextlib.suppress(TimeoutError):
            return answer.status, answer.read1(200_000)
        return answer.status, b""
    except (http.client.HTTPException, ConnectionError):
        return 0, b""
    finally:
        line.close()


def find_fault(shot: Shot, status: int, body: bytes) -> str:
    """What is wrong with an answer, "" if nothing is."""
    if SECRET.encode() in body or b"root:x:0" in body:
        return "a file was given away"
    if b"Traceback (most recent call last)" in body:
        return "a traceback was sent"
    if status >= 500 and status not in (501, 503):
        return f"status {status}: {body[:160]!r}"
    return "the line was closed" if status == 0 else ""


def hide_secrets(home: Path) -> None:
    """Write files that nobody may get."""
    (home / "secret.txt").write_text(SECRET)
    (home / "conversations" / "x").mkdir(parents=True, exist_ok=True)
    (home / "conversations" / "x" / "conversation.json").write_text(json.dumps({"title": SECRET}))


def shoot(address: str, shots: Iterable[Shot]) -> dict[str, Any]:
    """Send requests, and say what came back."""
    statuses, faults = Counter[str](), list[str]()
    for index, shot in enumerate(shots):
        status, body = send(address, shot)
        statuses[f"{status // 100}xx"] += 1
        if wrong := find_fault(shot, status, body):
            faults.append(f"{index} {shot.method} {shot.path[:120]} {shot.content_type} {shot.body[:200]!r}: {wrong}")
    return {"requests": statuses.total(), "statuses": dict(sorted(statuses.items())), "faults": faults}


def count_tracebacks(log: str) -> int:
    """The tracebacks in a server's log without a number of `duogen.faults`, which the answer would have said."""
    lines = [line for line in log.splitlines() if line.strip()]
    starts = [before for before, line in itertools.pairwise(["", *lines]) if line.startswith("Traceback (most recent call last)")]
    return sum(not NUMBERED.search(before) for before in starts)


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reliability.requests", description=__doc__.splitlines()[0])
    top.add_argument("--count", type=int, default=5000)
    top.add_argument("--described", type=int, default=5000, help="requests by Schemathesis (default: 5000)")
    top.add_argument("--seed", type=int, default=26)
    top.add_argument("--out", type=Path, default=FILE)
    given = top.parse_args()
    if given.described and importlib.util.find_spec("schemathesis") is None:
        top.error("--described needs Schemathesis; install it (pip install schemathesis), or give --described 0.")
    machine, rng = host(), random.Random(given.seed)
    figures: dict[str, Any] = {"seed": given.seed}
    with tempfile.TemporaryDirectory(prefix="duogen-requests-") as folder, served(Path(folder), *SERVER) as address:
        hide_secrets(Path(folder))
        figures["corpus"] = shoot(address, make_shots(rng, given.count, Path(folder), read_routes(address)))
        if given.described:
            figures["described"] = shoot(address, make_described(describe_server(address), given.described, given.seed))
        figures["tracebacks_without_a_number"] = count_tracebacks(
            (Path(folder) / "server.log").read_text(encoding="utf-8", errors="replace")
        )
    report(figures, machine, given.out)
    return 1 if any(each["faults"] for each in figures.values() if isinstance(each, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
