"""Short forms of the harnesses in bench/reliability: odd pictures and words; nothing ends in an error that nobody documented."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL import JpegImagePlugin
from transformers import Qwen2VLImageProcessorPil

from bench.reliability.pictures import try_pictures
from bench.reliability.requests import ODD, SOUND, count_tracebacks, describe_value, find_fault, list_escapes, make_described, make_shots
from bench.reliability.texts import PIECES, try_texts
from duogen.models.sequence import Tokens
from tests.support.tiny import SIDE, tiny_tokenizer
from ui.api.chat import ChatRequest
from ui.api.images import ImageRequest, parse_sources
from ui.api.requests import RequestError


def test_damaged_pictures_are_taken_or_refused_at_every_door(tmp_path: Path) -> None:
    told = try_pictures(90, 3, tmp_path)
    assert told["faults"] == []
    assert told["outcomes"]["door: taken"] >= 15 and told["outcomes"]["door: refused"] >= 15, "the pictures show nothing"


def test_a_mask_that_cannot_be_transparent_costs_no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG of many layers takes seconds each time."""
    decoded: list[int] = []
    prepare = JpegImagePlugin.JpegImageFile.load_prepare
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load_prepare", lambda self: decoded.append(1) or prepare(self))
    out = io.BytesIO()
    PILImage.new("RGB", (64, 48), "red").save(out, "JPEG", progressive=True)
    with pytest.raises(RequestError, match="no transparent places"):
        parse_sources({}, {"image": [out.getvalue()], "mask": [out.getvalue()]})
    assert len(decoded) == 1


def test_hostile_words_stay_words_everywhere(tmp_path: Path) -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=1, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
    told = try_texts(len(PIECES), 3, tmp_path, Tokens(tiny_tokenizer(), processor))
    assert told["faults"] == []


@pytest.mark.parametrize(
    ("path", "parse"), [("/v1/images/generations", lambda body: ImageRequest.parse(body, ())), ("/v1/chat/completions", ChatRequest.parse)]
)
def test_a_field_of_a_request_is_taken_or_refused_in_a_sentence(path: str, parse: Callable[[dict], object]) -> None:
    refused = 0
    for name, odd in itertools.product(SOUND[path], ODD):
        try:
            parse(SOUND[path] | {name: odd})
        except RequestError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50, "the values show nothing"


def test_schemathesis_makes_requests_of_a_description() -> None:
    body = {"content": {"application/json": {"schema": describe_value(SOUND["/v1/images/generations"])}}}
    described = {"openapi": "3.1.0", "info": {"title": "x", "version": "1"}, "paths": {"/a/{name}": {"post": {
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}], "requestBody": body,
        "responses": {}}}}}  # fmt: skip
    shots = list(make_described(described, 30, 1))
    assert len(shots) == 30 and {shot.method for shot in shots} == {"POST"} and all(shot.path.startswith("/a/") for shot in shots)
    assert any(b'"prompt"' in shot.body for shot in shots)


def test_the_harness_sees_what_it_looks_for(tmp_path: Path) -> None:
    """Otherwise its zeros say nothing."""
    shots = list(make_shots(random.Random(1), 200, tmp_path, [("GET", "/gradio_api/call/answer/{event_id}")]))
    assert {shot.method for shot in shots} >= {"GET", "POST"} and len(set(list_escapes(tmp_path))) > 200
    assert find_fault(shots[0], 500, b"Traceback (most recent call last):") == "a traceback was sent"
    lines = "Traceback (most recent call last):\nKeyError: 1\n"
    assert count_tracebacks(f"ERROR:duogen.faults:Fault 012345\n{lines}\nDuring handling of the above exception, x:\n\n{lines}{lines}") == 1
    assert find_fault(shots[0], 500, b"{}") and find_fault(shots[0], 200, b"root:x:0:0") and not find_fault(shots[0], 404, b"{}")
