"""`bench.peers` at its smallest: both ways do the same work, are counted alike, and paint equal pictures where they should."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench.gpu import small_sources
from bench.peers import __main__ as command
from bench.peers import equality
from bench.peers.families import FAMILIES, Size
from bench.peers.measure import RUNS, count_work, run_duogen, run_naive
from bench.peers.script import CHAT_ONLY, GUIDE, Exchange

SMALL = Size(64, 2, 64, 2)
SHORT = (replace(GUIDE[0], answer=(GUIDE[0].answer[0], GUIDE[0].answer[1], GUIDE[0].answer[-1])), GUIDE[1])


def test_a_tiny_run_writes_what_it_prints(tmp_path, capsys) -> None:
    out = tmp_path / "peers.json"
    assert command.main(["--tiny", "--repeats", "1", "--threads", "1", "--families", "block-causal,words", "--out", str(out)]) == 0
    raw = json.loads(out.read_text())
    assert list(raw["families"]) == ["block-causal", "words"]
    assert raw["machine"]["cpu"] and raw["machine"]["width"] == 64
    guide, chat = raw["families"].values()
    assert guide["naive"]["forwards"] == 20 and guide["duogen"]["forwards"] == 24, "one for each picture before the last"
    assert guide["duogen"]["tokens"] * 3 < guide["naive"]["tokens"] and guide["duogen"]["painted"] * 2 < guide["naive"]["painted"]
    assert chat["naive"]["forwards"] == chat["duogen"]["forwards"] == 0
    for each in (guide, chat):
        assert each["ratio"] == pytest.approx(each["naive"]["seconds"] / each["duogen"]["seconds"])
        assert all(each[way]["overhead_seconds"] > 0 for way in RUNS)
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 3 and guide["title"] in printed


@pytest.mark.parametrize("name", FAMILIES)
def test_both_ways_say_and_paint_the_same(name) -> None:
    script: tuple[Exchange, ...] = SHORT if FAMILIES[name].script is GUIDE else CHAT_ONLY
    with small_sources(SMALL.side):
        peers = FAMILIES[name].build(SMALL)
        with count_work(peers) as alone:
            naive = run_naive(peers, script)
        with count_work(peers) as ours:
            conversation = run_duogen(peers, script)
    known = peers.engine.memory.context.packed.ids
    assert known == naive.said.ids[: len(known)] and len(naive.said.ids) - len(known) <= 2, "the same conversation, but for its last mark"
    mine = [image.picture for turn in conversation.path() for image in turn.images()]
    assert len(mine) == len(naive.pictures) == sum(bool(part.picture) for each in script for part in each.answer)
    assert ours.tokens < alone.tokens and ours.painted <= alone.painted
    differences = [np.abs(np.asarray(one, dtype=int) - np.asarray(other)).max() for one, other in zip(mine, naive.pictures, strict=True)]
    if name in ("block-causal-least", "cosmos"):  # later ones differ: only one way sees all frames, or frames that were encoded again
        assert differences[0] <= 1
    elif name != "block-causal":  # whose pipeline reads the words without the pictures
        assert max(differences, default=0) == 0
    assert all(np.asarray(picture).std() > 0 for picture in mine)


# The others are equal in whole answers, above.
SINGLE = [case for case in equality.CASES if case.family in ("cosmos", "z-image") or case.guidance != 1]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: f"{case.family}-{case.earlier}-{case.guidance:g}")
def test_single_pictures_are_equal_to_diffusers(case) -> None:
    assert equality.compare(case, SMALL) <= case.allowed


def test_a_difference_shows(monkeypatch, capsys) -> None:
    plain = equality.paint
    monkeypatch.setattr(
        equality, "paint", lambda peers, pictures, size, guidance: plain(peers, pictures, replace(size, steps=size.steps + 1), guidance)
    )
    for family in ("cosmos", "z-image"):
        case = next(each for each in equality.CASES if each.family == family)
        assert equality.compare(case, SMALL) > 1e-3
    assert command.main(["equality", "--families", "z-image", "--threads", "1"]) == 1
    assert "| z-image | 0 | " in capsys.readouterr().out


def test_what_is_not_there_is_said(capsys) -> None:
    assert command.main(["--families", "sdxl"]) == 2
    assert "there is no family sdxl" in capsys.readouterr().err
