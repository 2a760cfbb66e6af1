"""The Models tab: what it says of each pair, what it offers, and another pair opened behind the answers."""

from __future__ import annotations

import types

import numpy as np
from PIL import Image as PILImage

from duogen.__main__ import main
from duogen.catalogue import entries
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done, Failed
from duogen.guardrail import Guardrail
from duogen.options import LoadOptions
from duogen.store import Store
from tests import public
from tests.test_page import SHOTS, Server, browser, browser_only, sideways, tab  # noqa: F401
from ui.loading import Loading
from ui.models import OTHER, card, choices
from ui.page import Page

REPO = "someone/unseen-cosmos"


def test_a_card_says_what_a_pair_costs_and_asks() -> None:
    text = card(entries()["cosmos-predict2.5-2b"])
    for words in ("NVIDIA Open Model License", "cosmos_guardrail is not installed", "GB are free on", "diffusers/base/post-trained"):
        assert words in text
    assert ("DuoGen Sketch · bundled", "duogen-sketch") in choices()


def test_the_tab_follows_what_is_chosen(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loading = Loading()
    loading.finished.set()
    tab = Page(loading, Store(tmp_path / "conversations"), tmp_path / "shown").models  # noqa: F811
    values = {tab.choice: "cosmos-predict2.5-14b", tab.name: "", tab.brain: "", **{each: each.value for each in tab.load.values()}}
    shown = tab.show(values)
    assert "14B" in shown[tab.card] and "On this machine:" in shown[tab.plan]
    assert shown[tab.pull].visible and not shown[tab.use].interactive and not shown[tab.other].visible
    folder = public.cosmos(tmp_path / "unseen")
    values |= {tab.choice: OTHER, tab.name: str(folder), tab.load["picture_side",]: 64}
    shown = tab.show(values)
    assert "64 x 32 px" in shown[tab.plan] and shown[tab.use].interactive and not shown[tab.pull].visible
    switched = []
    monkeypatch.setattr(loading, "switch", lambda *given: switched.append(given))
    tab._use(values)
    assert switched[0][0] == str(folder) and switched[0][2].picture_side == 64
    values[tab.name] = "no such thing"
    assert "neither in the catalogue" in tab.show(values)[tab.card]


def test_another_pair_is_opened_behind_the_answers(tmp_path) -> None:
    folder = public.cosmos(tmp_path / "unseen")
    loading = Loading()
    loading.finished.set()
    load = LoadOptions(device="cpu", precision="fp32", picture_side=64)
    loading._switch(str(folder), None, load)
    assert loading.engine.about["title"] == "unseen" and loading.words == "Ready: unseen."
    loading._switch(str(tmp_path / "nothing"), None, load)
    assert loading.engine.about["title"] == "unseen" and "is not a pair" in loading.words and "is open again" in loading.words


def test_a_guardrail_refuses_words_and_pictures(tmp_path, monkeypatch) -> None:
    load = LoadOptions(device="cpu", precision="fp32", picture_side=64)
    engine = Engine.open(public.cosmos(tmp_path / "cosmos"), load=load)
    from tests.test_public import options, script
    from tests.tiny import END

    seen: list = []
    checker = types.SimpleNamespace(
        to=lambda device: checker,
        check_text_safety=lambda words: "bad" not in words,
        check_video_safety=lambda video: seen.append(video),
    )
    engine.guard = Guardrail(checker, "cpu")
    for words, reason in (("a bad thing", "words"), ("a boat", "refuses this picture;")):
        script(monkeypatch, engine.tokens, "<picture>", words, "</picture>", END)
        failed = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
        assert isinstance(failed, Failed) and reason in failed.message
    assert seen[0].shape == (1, 32, 64, 3)
    checker.check_video_safety = lambda video: np.zeros_like(video)
    script(monkeypatch, engine.tokens, "<picture>", "a boat", "</picture>", END)
    done = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(done, Done) and done.conversation.path()[-1].images()[0].picture.getextrema() == ((0, 0),) * 3


def test_a_folder_never_seen_answers_on_the_command_line(tmp_path, capsys) -> None:
    PILImage.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    folder, out = public.cosmos(tmp_path / "unseen"), tmp_path / "out"
    flags = ["--picture-side", "64", "--steps", "2", "--temperature", "1", "--top-p", "1", "--max-tokens", "200", "--seed", "1"]
    said = ["ask", "Draw a house", "--image", str(tmp_path / "red.png"), "--pair", str(folder), "--device", "cpu", "--out", str(out)]
    assert main([*said, *flags]) == 0
    assert "[picture 1: 01.png]" in capsys.readouterr().out
    with PILImage.open(out / "01.png") as picture:
        assert max(picture.size) == 64
