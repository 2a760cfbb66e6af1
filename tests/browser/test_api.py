"""The API with OpenAI's own client, and who may use it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image as PILImage

from duogen.conversation import Image
from duogen.events import Done, Draft, ImageDone, ImageStarted, Stats, TextDelta, Thought
from tests.support.api import ask, encode, picture, serve
from tests.support.tiny import BOV, END, SIDE, script
from tests.support.waiting import patience, until
from ui.api.auth import Users, add_user
from ui.api.messages import parse_messages
from ui.api.openai import Api
from ui.api.pictures import MOST_PICTURES, PICTURE_SIDE, data_url, parse_picture
from ui.api.requests import RequestError, parse_options, run_in_queue

ROOT = Path(__file__).parents[2]
ABOUT = {"steps": 2, "guidance": 1.0}


def test_words_and_pictures_in_one_answer(client, loading, monkeypatch):
    script(monkeypatch, loading.engine.tokens, "Step one", BOV, "and two", BOV, END)
    answer = client.chat.completions.create(model="tiny", messages=ask("Draw", picture()), seed=3, temperature=1, extra_body={"steps": 1})
    message = answer.choices[0].message
    assert message.content.startswith("Step one\n![") and message.content.count("](data:image/png;base64,") == 2
    assert [part["type"] for part in message.content_parts] == ["text", "image_url", "text", "image_url"]
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 5 and answer.usage.prompt_tokens > 5
    assert client.models.list().data[0].id == "tiny"
    back, _ = parse_messages([*ask("Draw"), {"role": "assistant", "content": message.content}, *ask("Go on")])
    said = back.path()[1]
    assert len(said.images()) == 2 and said.text() == "Step one\nand two\n"
    assert data_url(said.images()[0]) == message.content_parts[1]["image_url"]["url"]


def test_a_stream_is_the_same_answer(client, loading, monkeypatch):
    texts = []
    for stream in (False, True):
        script(monkeypatch, loading.engine.tokens, "Here", BOV, "it is", END)
        given = {"model": "tiny", "messages": ask("Draw"), "seed": 3, "temperature": 1}
        if not stream:
            texts.append(client.chat.completions.create(**given).choices[0].message.content)
            continue
        chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
        texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
        assert chunks[-1].usage.total_tokens > 0 and chunks[-2].choices[0].finish_reason == "stop"
    assert texts[0] == texts[1]


def test_drafts_are_reasoning_in_parts(client, loading, monkeypatch):
    drafts = tuple(Image(PILImage.new("RGB", (SIDE, SIDE), colour), 1, 0.1, f"Step {colour}.\n") for colour in ("red", "green"))
    image = Image(drafts[1].picture, 1, 0.2, "A green one.", drafts=drafts)
    steps = [event for number, each in enumerate(drafts, 1) for event in (Thought(each.alt), Draft(number, each))]

    def answer(conversation, options, stop):
        yield from (*steps, TextDelta("A green one."), ImageStarted(0, 1, 1), ImageDone(0, image))
        yield Done(conversation.say("assistant", "A green one.", image), Stats(1, 1, 1, 1, 0.1, 0.2, "end"))

    monkeypatch.setattr(loading.engine, "answer", answer)
    whole = client.chat.completions.create(model="tiny", messages=ask("Draw")).choices[0].message
    chunks = list(client.chat.completions.create(model="tiny", messages=ask("Draw"), stream=True))
    streamed = [part for chunk in chunks for part in getattr(chunk.choices[0].delta, "reasoning_parts", [])]
    assert streamed == whole.reasoning_parts and [part["alt"] for part in streamed] == ["Step red.\n", "Step green.\n"]
    assert whole.reasoning_content == "Step red.\nStep green.\n" and whole.content.count("data:image") == 1


def test_pictures_alone(client, loading, monkeypatch):
    script(monkeypatch, loading.engine.tokens, "Look", BOV, END, "No", END)
    made = client.images.generate(model="tiny", prompt="a house", n=2, extra_body={"seed": 1})
    sizes = [PILImage.open(io.BytesIO(base64.b64decode(each.b64_json))).size for each in made.data]
    assert sizes == [(SIDE, SIDE)] * 2  # the second was answered in words, and painted from the prompt itself
    assert made.size == f"{SIDE}x{SIDE}" and not hasattr(made, "notices")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role user or assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "text or image_url"),
        ({"messages": ask("x") + [{"role": "assistant", "content": "y"}]}, "last message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]},
            "not fetched",
        ),
        ({"messages": ask("data:image/png;base64,AAAA")}, "cannot be read as a picture"),
        ({"messages": ask("data:image/png;base64,A")}, "damaged"),
        ({"messages": ask("x"), "temperature": 3}, "temperature must be between"),
        ({"messages": ask("x"), "max_tokens": 1.5}, "whole number"),
        ({"messages": ask("x"), "extra_body": {"steps": 1000}}, "steps must be between"),
        ({"messages": ask("x"), "seed": 2**70}, "64 bits"),
        ({"messages": ask("x"), "extra_body": {"guidance": 10**400}}, "too large"),
        ({"messages": ask("x"), "n": 2}, "n must be 1"),
        ({"messages": ask("x"), "stream_options": 5}, "stream_options"),
        ({"messages": [{"role": "user", "content": 5}]}, "must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": {}}]}]}, "text or image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": None}]}]}, "not fetched"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]}, "not fetched"),
    ],
)
def test_wrong_requests_get_a_sentence(client, wrong, message):
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.chat.completions.create(**{"model": "tiny", **wrong})
    assert refused.value.type == "invalid_request_error"


def test_a_bomb_another_model_and_a_failure(client, loading, monkeypatch):
    with pytest.raises(openai.BadRequestError, match="50 megapixels"):
        client.chat.completions.create(model="tiny", messages=ask(encode(PILImage.new("1", (9000, 9000)))))
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=ask("x"))
    monkeypatch.setattr(loading.engine, "answer", lambda *_: (_ for _ in ()).throw(KeyError("lost")))
    with pytest.raises(openai.InternalServerError, match="The answer failed"):
        client.chat.completions.create(model="tiny", messages=ask("x"))


def run_endlessly(begun: threading.Event, stopped: threading.Event):
    """An answer without an end; says when it was begun, and when it was stopped."""

    def answer(conversation, options, stop):
        begun.set()
        while True:
            yield TextDelta("x")
            if stop.wait(0.02):
                stopped.set()
                return

    return answer


def test_a_client_that_goes_away_stops_the_answer(client, address, loading, monkeypatch):
    begun, stopped = threading.Event(), threading.Event()
    monkeypatch.setattr(loading.engine, "answer", run_endlessly(begun, stopped))
    with client.chat.completions.create(model="tiny", messages=ask("x"), stream=True) as stream:
        next(iter(stream))
    assert stopped.wait(patience())
    for path, asked in (("chat/completions", {"messages": ask("x")}), ("images/generations", {"prompt": "x"})):
        begun.clear()
        stopped.clear()
        line = http.client.HTTPConnection(urlsplit(address).netloc)
        line.request("POST", f"/v1/{path}", json.dumps({"model": "tiny", **asked}), {"Content-Type": "application/json"})
        assert begun.wait(patience())
        line.close()
        assert stopped.wait(patience())


def test_askers_are_served_one_after_the_other(loading, monkeypatch):
    order, free = [], threading.Event()

    def work(name):
        def events(engine, stop):
            order.append(name)
            free.wait(patience())
            order.append(name)
            yield TextDelta(name)

        return events

    threads = []
    for place, name in enumerate("abc", 1):
        threads.append(threading.Thread(target=lambda name=name: list(run_in_queue(loading, work(name), threading.Event()))))
        threads[-1].start()
        until(lambda place=place: len(loading.queue._waiting) == place)
    free.set()
    for thread in threads:
        thread.join(patience())
    assert "".join(order) == "aabbcc"


def test_what_is_no_request_gets_a_sentence(address):
    for body, kind, status in (
        (b"{", "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b'{"messages": []}', "text/plain", 415),  # what a foreign web page can send without asking
        (b" " * 64_000_001, "application/json", 413),
    ):
        request = urllib.request.Request(f"{address}/chat/completions", body, {"Content-Type": kind})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=patience())
        error = json.loads(refused.value.read())["error"]
        assert refused.value.code == status and error["type"] == "invalid_request_error" and error["message"]


def test_pictures_are_bounded():
    assert max(parse_picture(encode(PILImage.new("RGB", (4000, 1000)))).picture.size) == PICTURE_SIDE
    with pytest.raises(RequestError, match=f"more than {MOST_PICTURES}"):
        parse_messages(ask(*[picture()] * (MOST_PICTURES + 1)))


def test_options_are_those_of_the_dataclasses():
    options = parse_options({"max_completion_tokens": 9, "top_p": 0.5, "seed": 4, "guidance": 2, "unknown": 1, "stop": None}, ABOUT)
    assert (options.text.max_tokens, options.text.top_p, options.seed, options.image.guidance, options.image.steps) == (9, 0.5, 4, 2.0, 2)
    assert parse_options({"sampler": "euler"}, ABOUT).image.sampler == "euler"
    assert parse_options({}, {**ABOUT, "sampler": True}).image.sampler == "auto"  # a pair's own field of the same name
    for wrong in ("painting", 7):
        with pytest.raises(RequestError, match="sampler"):
            parse_options({"sampler": wrong}, ABOUT)


def test_only_known_users_may(loading, tmp_path):
    file = tmp_path / "users"
    add_user(file, "anna", "correct horse")
    add_user(file, "ben", "battery staple")
    assert "correct" not in file.read_text() and file.stat().st_mode & 0o077 == 0
    users = Users(file)
    assert users.accepts("anna", "correct horse") and users.accepts("anna", "correct horse")
    assert not users.accepts("anna", "battery staple") and not users.accepts("carl", "") and not users.accepts("", "")
    with serve(Api(loading, users)) as address:
        for header, status in (("", 401), ("Basic !", 401), ("Bearer anna:wrong", 401), ("Bearer anna:correct horse", 200)):
            request = urllib.request.Request(f"{address}/models", headers={"Authorization": header})
            try:
                found = urllib.request.urlopen(request, timeout=patience()).status
            except urllib.error.HTTPError as error:
                found = error.code
                assert json.loads(error.read())["error"]["code"] == "invalid_api_key"
            assert found == status


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "Others can reach 0.0.0.0"),
        (["--auth", "no-such-file"], "There is no file no-such-file"),
        (["--add-user", "anna"], "--auth FILE"),
        (["--mcp", "--auth", "users"], "cannot ask for passwords"),
        (["--root-path", "a page"], "--root-path a page is no path"),
    ],
)
def test_a_page_that_others_can_reach_asks_who_they_are(flags, message):
    command = [sys.executable, str(ROOT / "app.py"), "--no-browser", *flags]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=patience())
    assert ended.returncode == 2 and message in ended.stderr and ended.stderr.count("\n") == 1
