"""Short forms of the harnesses in bench/reliability: odd pictures and words; nothing ends in an error that nobody documented."""

from __future__ import annotations

import random
from pathlib import Path

from transformers import Qwen2VLImageProcessorPil

from bench.reliability.pictures import try_pictures
from bench.reliability.requests import find_fault, list_escapes, make_shots
from bench.reliability.texts import PIECES, try_texts
from duogen.models.sequence import Tokens
from tests.support.tiny import SIDE, tiny_tokenizer


def test_damaged_pictures_are_taken_or_refused_at_every_door(tmp_path: Path) -> None:
    told = try_pictures(90, 3, tmp_path)
    assert told["faults"] == []
    assert told["outcomes"]["door: taken"] >= 15 and told["outcomes"]["door: refused"] >= 15, "the pictures show nothing"


def test_hostile_words_stay_words_everywhere(tmp_path: Path) -> None:
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=1, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE)
    told = try_texts(len(PIECES), 3, tmp_path, Tokens(tiny_tokenizer(), processor))
    assert told["faults"] == []


def test_the_harness_sees_what_it_looks_for(tmp_path: Path) -> None:
    """Otherwise its zeros say nothing."""
    shots = list(make_shots(random.Random(1), 200, tmp_path, [("GET", "/gradio_api/call/answer/{event_id}")]))
    assert {shot.method for shot in shots} >= {"GET", "POST"} and len(set(list_escapes(tmp_path))) > 200
    assert find_fault(shots[0], 500, b"Traceback (most recent call last):") == "a traceback was sent"
    assert find_fault(shots[0], 500, b"{}") and find_fault(shots[0], 200, b"root:x:0:0") and not find_fault(shots[0], 404, b"{}")
