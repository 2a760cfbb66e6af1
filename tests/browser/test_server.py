"""The running server: what it offers programs beside the page, and what it refuses everybody. The engine is `stand_in.py`."""

from __future__ import annotations

import base64
import http.client
import io
import itertools
import json
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import gradio as gr
import openai
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image as PILImage

from bench.reliability.requests import count_tracebacks
from duogen.events import TextDelta
from duogen.library.conversation_zip import LARGEST_ZIP
from tests.browser.test_everyone import faults
from tests.support.browser import ROOT, SHOTS, Server, browser_only, overflow_width, stand_in
from tests.support.waiting import patience, run_apart
from ui.api.auth import FREE_TRIES, add_user
from ui.api.endpoint import Endpoint
from ui.parts.foreign_pages import FOREIGN, OTHER_NAME
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

SECRET = "a walk by the sea"
ASKED = [{"role": "user", "content": "How do I draw a boat?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    chat = home / "conversations" / "x"
    (chat / "images").mkdir(parents=True)
    (chat / "conversation.json").write_text(json.dumps({"title": SECRET}))
    PILImage.new("RGB", (64, 64), "red").save(chat / "images" / "own.png")
    server = stand_in(home, "--mcp", fresh=True)
    yield server
    server.end()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("guarded")
    add_user(home / "users", "anna", "correct horse")
    server = stand_in(home, "--auth", str(home / "users"), fresh=True)
    yield server
    server.end()


def fetch(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body; `path` goes over the line as it is."""
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience())
    try:
        line.putrequest("GET" if body is None else "POST", path, skip_host="Host" in headers)
        for name, value in headers.items():
            line.putheader(name.replace("_", "-"), value)
        if body is not None:
            line.putheader("Content-Length", str(len(body)))
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, answer.read()
    finally:
        line.close()


def post(server: Server, path: str, content: dict) -> dict:
    return json.loads(fetch(server, path, json.dumps(content).encode(), Content_Type="application/json")[1])


def upload(server: Server, name: str, data: bytes) -> tuple[int, str]:
    """Status, and the path that the server gave the file."""
    head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
    body = head.encode() + data + b"\r\n--cut--\r\n"
    status, answer = fetch(server, "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=cut")
    return status, json.loads(answer)[0] if status == 200 else ""


def encode_png(width: int = 64, height: int = 64) -> bytes:
    data = io.BytesIO()
    PILImage.new("RGB", (width, height), "blue").save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        *((f"/gradio_api/{door}/answer", b'{"data": ["A boat"]}', 404) for door in ("run", "api")),  # past the queue, beside another answer
        ("/gradio_api/mcp/", b"\x96", 400),
    ],
)
def test_a_call_that_gradio_would_answer_with_a_traceback_is_refused(server, path, body, status):
    assert fetch(server, path, body, Content_Type="application/json")[0] == status


def test_a_direct_call_without_its_inputs_is_refused(server):
    events = json.loads(fetch(server, "/config")[1])["dependencies"]
    event = next(each["id"] for each in events if each["inputs"] and each["backend_fn"])
    body = json.dumps({"fn_index": event, "data": []}).encode()
    status, said = fetch(server, "/gradio_api/run/x", body, Content_Type="application/json")
    assert status == 400 and b"of its inputs; give all of them in data." in said


def test_an_event_that_fails_says_the_number_that_the_log_gives_its_fault(server):
    events = json.loads(fetch(server, "/config")[1])["dependencies"]
    event = next(each["id"] for each in events if each["inputs"] and each["backend_fn"] and each["queue"])
    post(server, "/gradio_api/queue/join", {"fn_index": event, "data": [], "session_hash": "faulty"})
    said = fetch(server, "/gradio_api/queue/data?session_hash=faulty")[1].decode()
    (number,) = re.findall(r"Something failed here \(ValueError; fault (\d{6})\)", said)
    log = server.log.read_text()
    assert f"Fault {number}" in log and not count_tracebacks(log)


def test_openai_streams_through_the_pages_server(server):
    client = openai.OpenAI(base_url=server.address + "v1", api_key="none", max_retries=0, timeout=patience())
    asked = [{"role": "user", "content": "How do I draw a boat? Go slowly."}]
    words = ""
    for chunk in client.chat.completions.create(model="duogen", messages=asked, stream=True):
        words += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        if words.count("](data:image/png;base64,") == 2:  # the third is painted only now: what comes at once never comes
            (server.home / "go").touch()
    assert words.count("](data:image/png;base64,") == 3 and words.rstrip().endswith("All done!")


def test_the_named_endpoint_gives_words_and_files(server, tmp_path):
    client = Client(server.address, verbose=False, download_files=tmp_path)
    parts = client.predict("How do I draw a boat?", api_name="/answer", seed=3)
    files = [Path(part["image"]) for part in parts if "image" in part]
    assert "hull" in parts[0]["text"] and len(files) == 3 and PILImage.open(files[0]).size == (256, 256)
    again = client.predict("How do I draw a boat?", api_name="/answer", seed=3)
    assert [part.get("seed") for part in again] == [part.get("seed") for part in parts] != [None] * 7
    for wrong, message in (
        ({"steps": 1000}, "steps must be"),
        ({"pictures": ["/etc/passwd"]}, "not fetched"),
        ({"seed": "x"}, "seed must"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict("x", api_name="/answer", **wrong)


def test_an_answer_that_nobody_takes_any_more_is_stopped(tmp_path):
    ended = []

    class Endless:
        about = {}

        def answer(self, conversation, options, stop):
            try:
                while True:
                    time.sleep(0.01)
                    yield TextDelta("x")
            finally:
                ended.append(stop)

    loading = Loading(engine=Endless())
    loading.finished.set()
    answer = Endpoint(loading, PictureFolder(tmp_path, 9)).answer("x", [], {})
    assert next(answer)[0]["text"].startswith("x")
    answer.close()
    assert ended and ended[0].is_set()
    with loading.queue.wait_turn(lambda before: None, ended[0].__class__()) as mine:
        assert mine, "it still stands in the line"


def test_mcp_has_one_tool_that_answers_in_words_and_pictures(server):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk():
        async with streamable_http_client(server.address + "gradio_api/mcp/") as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            answers = [await session.call_tool("answer", {"prompt": "a boat", **more}) for more in ({}, {"steps": 1000})]
            return tools, *answers

    tools, answer, refused = run_apart(talk())
    inputs = tools[0].inputSchema
    assert [tool.name for tool in tools] == ["answer"] and inputs["required"] == ["prompt"]
    assert {"pictures", "seed", "temperature", "steps", "max_images"} <= inputs["properties"].keys()
    assert "(1 to 100)" in inputs["properties"]["steps"]["description"]
    pictures = [part for part in answer.content if part.type == "image"]
    assert "hull" in answer.content[0].text and len(pictures) == 3
    assert PILImage.open(io.BytesIO(base64.b64decode(pictures[0].data))).size == (256, 256)
    assert refused.isError and "steps must be" in refused.content[0].text


def list_ways(target: Path, served: Path) -> Iterator[str]:
    """Addresses under which a careless server would give a file away."""
    up = "/.." * 14
    forms = [str(target), f"{served}{up}{target}", f"{served}/../../conversations/x/conversation.json", f"{up[1:]}{target}", f"/{target}"]
    forms += [f"file://{target}", f"{target}%00.png", f"~{up}{target}"]
    spelt: list[Callable[[str], str]] = [
        lambda path: path,
        lambda path: quote(path, safe=""),
        lambda path: quote(quote(path, safe=""), safe=""),
        lambda path: path.replace("..", "%2e%2e"),
        lambda path: path.replace("..", "%252e%252e").replace("/", "%252f"),
        lambda path: path.replace("/", "%5c"),
    ]
    doors = ["/gradio_api/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/", "/gradio_api/proxy="]
    for door, form, spell in itertools.product(doors, forms, spelt):
        yield door + spell(form)


def test_no_file_but_pictures_is_given_away(server):
    home = server.home
    served = home / "shown" / "pictures"
    weights = next((ROOT / "weights").rglob("*.safetensors"))
    for target, inside in (
        (Path("/etc/passwd"), b"root:"),
        (home / "conversations" / "x" / "conversation.json", SECRET.encode()),
        (ROOT / "app.py", b"argparse"),
        (weights, weights.read_bytes()[:64]),
    ):
        for path in list_ways(target, served):
            status, body = fetch(server, path)
            assert status >= 400 and inside not in body, path
    (served / "seen.png").write_bytes(encode_png())
    assert fetch(server, f"/gradio_api/file={served}/seen.png") == (200, encode_png()), "the doors are all shut: the test shows nothing"


def test_the_server_fetches_nothing_for_others(server):
    inner = f"http://127.0.0.1:{server.port}/config"
    for path in (
        f"/gradio_api/file={inner}",
        f"/gradio_api/proxy={inner}",
        "/gradio_api/file=http://[::1]/",
        "/gradio_api/file=ftp://localhost/",
    ):
        assert fetch(server, path)[0] >= 400, path


def submit_message(server: Server, file: str) -> str:
    """Send a message with a file that is said to lie at `file`, past the browser; returns how it ended."""
    config = json.loads(fetch(server, "/config")[1])
    submit = next(each for each in config["dependencies"] if each["api_name"] == "submit")
    parts = {each["id"]: each for each in config["components"]}
    picture = {"path": file, "orig_name": "own.png", "meta": {"_type": "gradio.FileData"}}
    data = [
        {"text": "Look", "files": [picture]} if parts[each]["type"] == "multimodaltextbox" else parts[each]["props"].get("value")
        for each in submit["inputs"]
    ]
    session = uuid.uuid4().hex
    post(server, "/gradio_api/queue/join", {"data": data, "fn_index": submit["id"], "session_hash": session})
    with urllib.request.urlopen(f"{server.address}gradio_api/queue/data?session_hash={session}", timeout=patience()) as events:
        for line in events:
            if line.startswith(b"data:") and (event := json.loads(line[5:]))["msg"] == "process_completed":
                return "taken" if event["success"] else "refused"
    return "lost"


def test_a_message_cannot_name_a_file_of_the_server(server):
    assert submit_message(server, upload(server, "own.png", encode_png())[1]) == "taken"
    assert submit_message(server, str(server.home / "conversations" / "x" / "images" / "own.png")) == "refused"
    assert submit_message(server, str(ROOT / "assets" / "readme" / "guide.webp")) == "refused"


def test_uploads_are_bounded_and_stay_in_their_folder(server):
    uploads = server.home / "uploads"
    for name in ("../../../out.png", "..%2f..%2fout.png", "/out.png", "..\\out.png"):
        status, path = upload(server, name, encode_png())
        assert status >= 400 or Path(path).resolve().is_relative_to(uploads), name
    assert json.loads(fetch(server, "/config")[1])["max_file_size"] == LARGEST_ZIP, "what is exported comes back"
    assert upload(server, "large.zip", bytes(26_300_000))[0] == 200
    status, page = upload(server, "page.html", b"<script>alert(1)</script>")
    with urllib.request.urlopen(f"{server.address}gradio_api/file={page}") as answer:
        assert answer.headers["Content-Disposition"].startswith("attachment"), "a page that somebody uploaded would run"


@browser_only
def test_a_user_signs_in_on_a_page_of_ours(guarded: Server, browser) -> None:
    page = browser.new_context(locale="de-DE", viewport={"width": 390, "height": 844}).new_page()
    page.set_default_timeout(1000 * patience())
    page.goto(guarded.address)
    page.fill("input[name=username]", "anna")
    page.fill("input[name=password]", "wrong horse")
    page.click("button:has-text('Anmelden')")
    page.wait_for_selector("#wrong:has-text('Name oder Passwort ist falsch')")
    assert faults(page) == [] and overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "login.png")
    page.fill("input[name=password]", "correct horse")
    page.keyboard.press("Enter")
    page.wait_for_selector("#talk .example")
    page.context.close()


def test_a_guarded_server_gives_strangers_nothing(guarded):
    question = json.dumps({"messages": ASKED}).encode()
    asked = {"Content_Type": "application/json"}
    known = {"Authorization": "Basic " + base64.b64encode(b"anna:correct horse").decode()}
    for path, body in (
        ("/config", None),
        ("/gradio_api/info", None),
        ("/gradio_api/file=" + str(guarded.home / "users"), None),
        ("/gradio_api/call/answer", b'{"data": ["x"]}'),
        ("/gradio_api/queue/join", b'{"data": ["x"], "fn_index": 0, "session_hash": "x"}'),
        ("/gradio_api/upload", b""),
        ("/v1/models", None),
        ("/v1/chat/completions", question),
        ("/v1/images/generations", b'{"prompt": "x"}'),
    ):
        assert fetch(guarded, path, body, **asked)[0] == 401, path
    for path in ("/gradio_api/mcp/schema", "/gradio_api/heartbeat/x", "/gradio_api/upload_progress?upload_id=x"):
        assert fetch(guarded, path)[0] == 401, path
    assert fetch(guarded, "/gradio_api/cancel", b"{}", **asked)[0] == 401
    assert fetch(guarded, "/v1/models", **known)[0] == 200
    client = openai.OpenAI(base_url=guarded.address + "v1", api_key="anna:correct horse", max_retries=0)
    assert client.chat.completions.create(model="duogen", messages=ASKED).choices[0].message.content
    assert Client(guarded.address, verbose=False, auth=("anna", "correct horse")).predict("x", api_name="/answer")
    with pytest.raises(Exception, match="credentials|login|auth"):
        Client(guarded.address, verbose=False, auth=("anna", "wrong horse"))


def sign_in(server: Server, name: str, password: str, **headers: str) -> http.client.HTTPResponse:
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patience())
    form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    line.request("POST", "/login", urlencode({"username": name, "password": password}), form)
    answer = line.getresponse()
    answer.read()
    return answer


def test_a_user_signs_in_by_a_cookie_that_scripts_cannot_read_and_out_again(guarded):
    def cookies(**headers: str) -> list[str]:
        return sign_in(guarded, "anna", "correct horse", **headers).headers.get_all("Set-Cookie")

    marks = [each.split("; ", 1)[1] for each in cookies()]
    assert all("HttpOnly" in each and each.count("SameSite=Lax") == 1 and "none" not in each.lower() for each in marks)
    assert all(each.endswith("; Secure") for each in cookies(**{"X-Forwarded-Proto": "https"})), "behind a proxy with TLS"
    known = {"Cookie": "; ".join(each.partition(";")[0] for each in cookies())}
    assert fetch(guarded, "/config", **known)[0] == 200
    assert fetch(guarded, "/gradio_api/token", **known)[0] == 404, "it would tell a script the cookie"
    assert fetch(guarded, "/gradio_api/upload", b"", Origin="https://evil.example", **known) == (403, FOREIGN.encode())
    assert fetch(guarded, "/config", Origin="https://evil.example", **known) == (403, FOREIGN.encode())
    assert fetch(guarded, "/logout", **known)[0] == 302
    assert fetch(guarded, "/config", **known)[0] == 401


def test_many_wrong_passwords_have_to_wait(guarded):
    answers = [sign_in(guarded, "mallory", f"wrong {n}") for n in range(FREE_TRIES + 1)]
    assert [each.status for each in answers] == [400] * FREE_TRIES + [429]
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert fetch(guarded, "/v1/models", Authorization="Bearer mallory:x")[0] == 429, "one count for both doors"


def test_another_name_for_this_machine_is_refused(server):
    for path, body in (
        ("/", None),
        ("/config", None),
        ("/v1/models", None),
        ("/v1/chat/completions", b"{}"),
        ("/gradio_api/queue/join", b"{}"),
    ):
        assert fetch(server, path, body, Host="evil.example") == (403, OTHER_NAME.encode()), path


def test_the_endpoints_inputs_are_the_options(tmp_path):
    with gr.Blocks() as blocks:
        pass
    Endpoint(Loading(), PictureFolder(tmp_path, 9)).add_to(blocks)
    inputs = blocks.get_api_info()["named_endpoints"]["/answer"]["parameters"]
    kinds = {each["parameter_name"]: each["python_type"]["type"] for each in inputs}
    assert kinds["prompt"] == "str" and kinds["steps"] == "None | int" and kinds["temperature"] == "None | float"
