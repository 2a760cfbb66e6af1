"""What programs of other makers send: read, refused in OpenAI's shape, or answered with a sentence on what had no effect."""

from __future__ import annotations

import base64
import http.client
import io
import json
import textwrap
import threading
from urllib.parse import quote, urlsplit

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image
from duogen.events import Done, ImageDone, ImageStarted, ImageStep, Stats, TextDelta
from tests.support.api import ask, picture, png, serve
from tests.support.stand_in import StandIn
from tests.support.tiny import BOV, END, script
from tests.support.waiting import patience, run_apart
from ui.api import streams
from ui.api.chat import NO_TOOLS, ChatRequest, Completion
from ui.api.images import ImageRequest
from ui.api.messages import NOT_FETCHED, SYSTEM, parse_messages
from ui.api.openai import Api
from ui.api.pictures import parse_picture
from ui.api.requests import RequestError, parse_options
from ui.api.stop_words import StopWatch
from ui.parts.loading import Loading

HELLO = [{"role": "user", "content": "hello"}]
NOISE = PILImage.effect_noise((48, 40), 60).convert("RGB")
FILE = png(NOISE)
BASE64 = base64.b64encode(FILE).decode()
HEAD = "data:image/png;base64,"
URL_SAFE = HEAD + base64.urlsafe_b64encode(FILE).decode()

# As these programs send them where nobody changed their settings.
OPEN_WEBUI = {
    "chat": {
        "stream": True, "model": "tiny", "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}],
        "stream_options": {"include_usage": True},
    },
    "picture": {
        "stream": True, "model": "tiny", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "what is this"}, {"type": "image_url", "image_url": {"url": HEAD + BASE64}}]}],
    },
    "title": {"model": "tiny", "messages": HELLO, "stream": False, "max_completion_tokens": 1000},
    "follow-up": {"model": "tiny", "messages": HELLO, "stream": False, "max_tokens": 1000},
}  # fmt: skip
NEXTCLOUD = {
    "prompt": {"model": "tiny", "messages": HELLO, "n": 1, "max_tokens": 1000},
    "chat": {
        "model": "tiny", "messages": [
            {"role": "system", "content": "This is a conversation in a specific language."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Draw a boat"}],
        "n": 1, "max_completion_tokens": 1000,
    },
}  # fmt: skip
NEXTCLOUD_PICTURE = {"prompt": "a boat", "size": "1024x1024", "n": 1, "model": "tiny"}
OPEN_WEBUI_PICTURE = {"model": "tiny", "prompt": "a boat", "n": 1, "size": "512x512", "response_format": "b64_json"}


def request(address: str, method: str, path: str, body: object = None) -> tuple[http.client.HTTPResponse, bytes]:
    parts = urlsplit(address)
    line = http.client.HTTPConnection(parts.netloc, timeout=patience())
    line.request(method, parts.path + path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    response = line.getresponse()
    return response, response.read()


def options_of(**asked):
    parsed = ChatRequest.parse({"messages": HELLO, **asked})
    return parse_options(parsed.given, {}).text, parsed.notices


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        ({"max_tokens": 9000}, 8192),
        ({"max_tokens": 32000.0}, 8192),
        ({"max_completion_tokens": 10**30}, 8192),
        ({"max_tokens": "9000"}, 8192),
        ({"max_tokens": -1}, 8192),
        ({"max_tokens": None}, 512),
        ({"max_tokens": ""}, 512),
        ({"max_completion_tokens": 100, "max_tokens": 200}, 100),
        ({"max_tokens": 200, "max_completion_tokens": 100}, 100),
        ({"max_tokens": 200, "max_completion_tokens": None}, 200),
    ],
)
def test_a_limit_is_a_wish(asked, limit):
    text, notices = options_of(**asked)
    assert text.max_tokens == limit
    most = max(float(each or 0) for each in asked.values())
    assert notices == (["max_tokens is at most 8192 here."] if most > 8192 else [])


def test_an_answer_that_was_cut_says_so():
    said = Completion("tiny", [])
    said.take(Done(Conversation().say("user", "Hi").say("assistant", "Hello"), Stats(1, 1, 9, 0, 0.1, 0.2, "max_tokens")))
    whole = said.response()
    assert whole["choices"][0]["finish_reason"] == "length" and [words for words in whole["notices"] if 'say "go on"' in words]

    async def events():
        yield Done(said.made.conversation, said.made.stats)

    async def collect() -> list[str]:
        return [line async for line in Completion("tiny", []).stream(events(), False)]

    last = json.loads(run_apart(collect())[-2].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length" and last["notices"] == whole["notices"]


@pytest.mark.parametrize(("share", "kept"), [(0, 0.05), (0.01, 0.05), (0.05, 0.05), ("0.5", 0.5), (1, 1.0)])
def test_a_share_is_a_wish(share, kept):
    assert options_of(top_p=share)[0].top_p == kept


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be between"),
        ({"max_tokens": -2}, "max_tokens must be between"),
        ({"max_tokens": "many"}, "whole number"),
        ({"max_tokens": float("nan")}, "whole number"),
        ({"max_tokens": float("inf")}, "whole number"),
        ({"top_p": 1.5}, "top_p must be between"),
        ({"top_p": -0.1}, "top_p must be between"),
        ({"temperature": "warm"}, "a number"),
        ({"think": "perhaps"}, "true or false"),
        ({"n": 3}, "n must be 1"),
        ({"n": "x"}, "whole number"),
        ({"stream": "perhaps"}, "true or false"),
        ({"stop": 5}, "stop must be"),
        ({"stop": ["a"] * 17}, "16 texts"),
        ({"tool_choice": "required"}, "calls no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "calls no tools"),
        ({"function_call": {"name": "f"}}, "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "JSON"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "JSON"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [*HELLO, {"role": "tool", "tool_call_id": "1", "content": "4"}]}, "calls no tools"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, *HELLO]}, "calls no tools"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "input_audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]}]},
            "not fetched",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}, "holds no picture"),
        ({"messages": [{"role": "user", "content": "x", "images": ["/etc/passwd"]}]}, "not fetched"),
        ({"messages": [{"role": "user", "content": "![x](data:image/png;base64,AAAA)"}]}, "cannot be read as a picture"),
    ],
)
def test_nonsense_and_another_meaning_are_refused(asked, words):
    with pytest.raises(RequestError, match=words) as refused:
        ChatRequest.parse({"messages": HELLO, **asked})
    assert refused.value.status == 400 and str(refused.value).endswith(".")


def test_nothing_is_ignored_without_a_word(address, loading, monkeypatch):
    asked = {
        "messages": [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "See ![a](https://x/y.png)", "files": [1]}],
        "tools": [{"type": "function"}], "tool_choice": "auto", "frequency_penalty": 0.5, "presence_penalty": 0, "logit_bias": {},
        "user": "anna", "n": None, "response_format": {"type": "text"}, "stream": "false", "max_tokens": 10_000,
    }  # fmt: skip
    script(monkeypatch, loading.engine.tokens, "hi", END)
    _, body = request(address, "POST", "/chat/completions", asked)
    answer = json.loads(body)
    assert answer["choices"][0]["message"]["content"] == "hi"
    assert answer["notices"] == [
        SYSTEM, "These fields of messages have no effect here: files.", NOT_FETCHED, NO_TOOLS, "max_tokens is at most 8192 here.",
        "These fields have no effect here: frequency_penalty.",
    ]  # fmt: skip
    script(monkeypatch, loading.engine.tokens, "hi", END)
    response, body = request(address, "POST", "/chat/completions", {**asked, "stream": "true"})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert json.loads(body.decode().split("\n\n")[0].removeprefix("data: "))["notices"] == answer["notices"]


@pytest.mark.parametrize("program", [*OPEN_WEBUI.values(), *NEXTCLOUD.values()])
def test_default_bodies_get_an_answer(address, loading, monkeypatch, program):
    script(monkeypatch, loading.engine.tokens, "Here", BOV, END)
    response, body = request(address, "POST", "/chat/completions", program)
    assert response.status == 200 and b"Here" in body and b"data:image/png;base64," in body


@pytest.mark.parametrize("program", [OPEN_WEBUI_PICTURE, NEXTCLOUD_PICTURE])
def test_default_bodies_get_a_picture(address, loading, monkeypatch, program):
    script(monkeypatch, loading.engine.tokens, BOV)
    response, body = request(address, "POST", "/images/generations", program)
    made = json.loads(body)
    assert response.status == 200 and made["size"] == "64x64" and "not " + program["size"] in made["notices"][0]


@pytest.mark.parametrize(
    "address",
    [
        HEAD + BASE64,
        "data:image/png;charset=utf-8;base64," + BASE64,
        "data:image/png;name=a.png;base64," + BASE64,
        "data:image/png;base64;name=a.png," + BASE64,
        "DATA:IMAGE/PNG;BASE64," + BASE64,
        "data:image/png ; base64 ," + BASE64,
        "data:image/jpeg;base64," + BASE64,
        "data:image/*;base64," + BASE64,
        "data:application/octet-stream;base64," + BASE64,
        "data:;base64," + BASE64,
        "data:base64," + BASE64,
        "image/png;base64," + BASE64,
        BASE64,
        "\n".join(textwrap.wrap(BASE64, 64)),
        HEAD + BASE64.rstrip("="),
        HEAD + BASE64 + "==",
        HEAD + "\n".join(textwrap.wrap(BASE64, 76)),
        HEAD + "\r\n".join(textwrap.wrap(BASE64, 76)) + "\r\n",
        "\t " + HEAD + " " + BASE64 + "\n",
        URL_SAFE,
        HEAD + quote(BASE64, safe=""),
        HEAD + "%0A".join(textwrap.wrap(BASE64, 76)),
        "data:image/png," + quote(FILE),
    ],
)
def test_a_data_url_is_read_however_it_is_spelled(address):
    assert parse_picture(address).picture.tobytes() == NOISE.tobytes()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/x.png",
        "https://x/?;base64," + BASE64,
        "file:///etc/passwd",
        "/etc/passwd",
        "a.png",
        "",
        None,
        5,
        ["x"],
        {"url": "x"},
    ],
)
def test_links_and_files_are_not_fetched(address):
    with pytest.raises(RequestError, match="not fetched"):
        parse_picture(address)


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "image_url", "image_url": HEAD + BASE64}]},
        {"content": [{"type": "input_image", "image_url": HEAD + BASE64, "detail": "auto"}]},
        {"content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}}]},
        {"content": [{"type": "image", "data": BASE64, "mimeType": "image/png"}]},
        {"content": [{"type": "image", "image": HEAD + BASE64}]},
        {"content": [{"type": "file", "file": {"filename": "a.png", "file_data": HEAD + BASE64}}]},
        {"content": "what is this", "images": [BASE64]},
        {"content": "what is this", "images": BASE64},
        {"content": "", "images": [{"url": HEAD + BASE64}]},
        {"content": f"look ![a]({HEAD}{BASE64})"},
        {"content": f'look ![a [b]](<{HEAD}{BASE64}> "a title") here'},
        {"content": f'<p>look <img alt="a" src="{HEAD}{BASE64}" width="9"></p>'},
        {"content": f"{HEAD}{BASE64}"},
        {"content": ["what is this", {"type": "input_image", "image_url": {"url": HEAD + BASE64}}]},
    ],
)
def test_a_picture_is_seen_wherever_it_stands(message):
    conversation, notices = parse_messages([{"role": "user", **message}])
    seen = conversation.path()[0]
    assert [image.picture.tobytes() for image in seen.images()] == [NOISE.tobytes()] and not notices
    assert "base64" not in seen.text()


def test_words_stay_as_they_are():
    text = "One  \n\n```\n![x](y.png) <img src='z.png'>\n``` data:image/png;base64,... \ud83d end"
    conversation, _ = parse_messages([{"role": "user", "content": [{"type": "input_text", "text": text}, {"text": "two"}]}])
    assert conversation.path()[0].text() == text.replace("\ud83d", "\ufffd") + "two"


def test_an_answer_ends_before_its_stop_words(client, loading, monkeypatch):
    given = {"model": "tiny", "messages": ask("Draw"), "seed": 3, "stop": ["END.", "\nUser:"]}
    script(monkeypatch, loading.engine.tokens, "Step one EN", BOV, "and EN", "D. more", BOV, END)
    whole = client.chat.completions.create(**given).choices[0]
    words = [part["text"] for part in whole.message.content_parts if part["type"] == "text"]
    assert words == ["Step one EN", "and "] and whole.message.content.count("![") == 1 and whole.finish_reason == "stop"
    script(monkeypatch, loading.engine.tokens, "Step one EN", BOV, "and EN", "D. more", BOV, END)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**given, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content and chunks[-1].finish_reason == "stop"
    script(monkeypatch, loading.engine.tokens, "Step on", END)
    assert client.chat.completions.create(**{**given, "stop": "on and on"}).choices[0].message.content == "Step on"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_words_are_found_however_the_words_come(text, words, data):
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5))), len(text)]

    def shown(pieces) -> str:
        watch, said = StopWatch(tuple(words)), ""
        for piece in pieces:
            said += "" if watch.found else watch.feed(piece)
        return said + ("" if watch.found else watch.release())

    whole = shown([text])
    assert shown(text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)) == whole == text[: len(whole)]
    assert all(word not in whole for word in words) and (whole == text) == all(word not in text for word in words)


def wait_for_comment(answer: http.client.HTTPResponse) -> None:
    while (line := answer.readline()) != b": keep-alive\n":
        assert line, "the answer ended without one"


def paint_until(free: threading.Event, begun: threading.Event):
    """An answer that is busy all the time and has nothing to send until it is free."""

    def answer(conversation, options, stop):
        yield ImageStarted(0, 1, 8)
        begun.set()
        while not free.wait(0.005) and not stop.is_set():
            yield ImageStep(0, 1, 8)
        yield TextDelta("at last")

    return answer


def test_bytes_come_while_a_client_waits(address, loading, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.02)
    begun, free = threading.Event(), threading.Event()
    monkeypatch.setattr(loading.engine, "answer", paint_until(free, begun))
    monkeypatch.setattr(loading.engine, "stream_image", lambda *_: iter([ImageDone(0, Image(NOISE))]))
    answers = []
    for path, asked in (("chat/completions", {"messages": HELLO}), ("images/generations", {"prompt": "x"})):
        line = http.client.HTTPConnection(urlsplit(address).netloc, timeout=patience())
        line.request("POST", f"/v1/{path}", json.dumps({**asked, "stream": True}), {"Content-Type": "application/json"})
        answers.append(line.getresponse())
        assert answers[-1].headers["Cache-Control"] == "no-cache" and answers[-1].headers["X-Accel-Buffering"] == "no"
        assert begun.wait(patience())
    for answer in answers:  # one is being painted, the other waits in line
        wait_for_comment(answer)
    free.set()
    assert b"at last" in answers[0].read() and b"image_generation.completed" in answers[1].read()


def test_a_stream_begins_before_the_pair_is_open(monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.02)
    for model, end in (("stand-in", b"[DONE]"), ("another", b"There is no model 'another' here")):
        loading = Loading()
        with serve(Api(loading)) as address:
            line = http.client.HTTPConnection(urlsplit(address).netloc, timeout=patience())
            body = json.dumps({"messages": HELLO, "stream": True, "model": model})
            line.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = line.getresponse()
            wait_for_comment(answer)
            loading.engine = StandIn(0)
            loading.finished.set()
            assert end in answer.read()


def test_every_path_answers_in_openais_shape(address):
    for method, path, status, code in (
        ("GET", "/models/tiny", 200, None),
        ("GET", "/models/tiny/", 200, None),
        ("GET", "/models/", 200, None),
        ("HEAD", "/models", 200, None),
        ("HEAD", "/models/tiny", 200, None),
        ("OPTIONS", "/models", 204, None),
        ("GET", "/models/gpt-5/mini", 404, "model_not_found"),
        ("POST", "/embeddings", 404, "unknown_url"),
        ("GET", "", 404, "unknown_url"),
        ("DELETE", "/models/tiny", 405, "method_not_supported"),
        ("GET", "/chat/completions", 405, "method_not_supported"),
        ("HEAD", "/chat/completions", 405, None),
        ("POST", "/images/variations", 400, None),
    ):
        response, body = request(address, method, path, {} if method == "POST" else None)
        assert response.status == status, (method, path)
        if method == "GET" and status == 200:
            found = json.loads(body)
            assert (found if path == "/models/tiny" or path == "/models/tiny/" else found["data"][0])["id"] == "tiny"
        elif status >= 400 and method != "HEAD":
            error = json.loads(body)["error"]
            assert error["code"] == code and error["message"].endswith(".") and {"type", "param"} <= error.keys()
        if status in (204, 405):
            assert "OPTIONS" in response.headers["Allow"]


def test_openais_client_understands_what_is_refused(client):
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no /v1/embeddings"):
        client.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.BadRequestError, match="no variations"):
        client.images.create_variation(image=io.BytesIO(FILE))
    with pytest.raises(openai.BadRequestError, match="calls no tools") as refused:
        client.chat.completions.create(model="tiny", messages=[*HELLO, {"role": "tool", "tool_call_id": "1", "content": "4"}])
    assert refused.value.param == "messages[1]"


NAMES = st.sampled_from(["role", "content", "type", "text", "images", "url"])
ANY = st.recursive(
    st.sampled_from([None, True, 0, -1, 2.5, float("nan"), "", "x", "user", "text", "image_url", picture(), "\ud83d", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("messages", "prompt", "size", "n", "stop", "stream", "max_tokens", "top_p", "seed", "tools", "response_format", "stream_options")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=4))
def test_any_request_is_read_or_refused(asked):
    for parse in (ChatRequest.parse, ImageRequest.parse, lambda asked: ChatRequest.parse({"messages": HELLO, **asked})):
        try:
            parse(asked)
        except RequestError as refused:
            assert str(refused)
