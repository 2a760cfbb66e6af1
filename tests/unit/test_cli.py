"""The command line: wrong input ends with one sentence, an answer ends in whole files."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage

import duogen.engine  # noqa: F401  what its import prints must not count as an answer
from duogen.cli import main as cli
from duogen.conversation import Conversation, Image, Text
from duogen.events import Done, Event, Failed, ImageDone, ImageStarted, ImageStep, Stats, TextDelta
from duogen.options import Options
from duogen.picture_input import open_picture
from tests.support.waiting import patience

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "weights" / "duogen-sketch" / "model_index.json"


class Scripted:
    """Stands in for an engine: an answer of two steps and two pictures as the real one tells it, in no time."""

    about = {"title": "Scripted", "steps": 12, "guidance": 1.5}

    def __init__(self, ending: str = "end") -> None:
        self.ending = ending
        self.asked: list[Conversation] = []
        self.options: list[Options] = []

    def continue_answer(self, conversation: Conversation, options: Options, stop: threading.Event) -> Iterator[Event]:
        yield from self.answer(conversation, options, stop)

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event) -> Iterator[Event]:
        self.asked.append(conversation)
        self.options.append(options)
        if self.ending == "nothing":
            yield Failed("Memory ran out.", conversation)
            return
        parts: list[Text | Image] = []
        for index, colour in enumerate(("red", "blue")):
            if self.ending == "interrupt" and index:
                os.kill(os.getpid(), signal.SIGINT)
                assert stop.wait(patience()), "Ctrl-C did not set the stop event"
                break
            if self.ending == "fail" and index:
                yield Failed("Memory ran out.", conversation.say("assistant", *parts))
                return
            yield TextDelta(f"Step {index + 1}. ")
            yield TextDelta(f"Draw it {colour}.\n")
            parts.append(Text(f"Step {index + 1}. Draw it {colour}.\n"))
            yield ImageStarted(index, 7 + index, 1)
            yield ImageStep(index, 1, 1)
            parts.append(Image(PILImage.new("RGB", (8, 8), colour), 7 + index, 0.5, f"a [{colour}] square"))
            yield ImageDone(index, parts[-1])
        stopped = "user" if stop.is_set() else self.ending if self.ending.startswith("max_") else "end"
        yield Done(conversation.say("assistant", *parts), Stats(5, 5, 12, len(parts) // 2, 0.1, 1.5, stopped))


@pytest.fixture
def scripted(monkeypatch):
    def use(ending: str = "end") -> Scripted:
        engine = Scripted(ending)
        monkeypatch.setattr("duogen.engine.Engine.open", lambda *_, **__: engine)
        return engine

    return use


def run(argv: list[str]) -> int:
    """The exit status, also where argparse ends the program."""
    try:
        return cli.main(argv)
    except SystemExit as ended:
        return ended.code


def assert_one_sentence(status: int, capsys, *words: str) -> None:
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err, err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["ask", "  "], "no question"),
        (["ask", "\u200b \u2060"], "no question"),
        (["ask", "hi", "--steps", "0"], "steps must be between 1 and 100"),
        (["ask", "hi", "--steps", "many"], "--steps"),
        (["ask", "hi", "--top-p", "2"], "top_p"),
        (["ask", "hi", "--colour", "red"], "--colour"),
        (["ask"], "prompt"),
        ([], "COMMAND"),
        (["paint", "hi"], "paint"),
        (["ask", "hi", "--image", "/no/such.png"], "/no/such.png"),
        (["ask", "hi", "--image", str(ROOT / "LICENSE")], "cannot be read as a picture"),
        (["ask", "hi", "--out", str(ROOT)], "is there already"),
        (["ask", "hi", "--out", str(ROOT / "LICENSE" / "deeper")], "cannot be written"),
        (["ask", "hi", "--pair", "/no/such/pair"], "/no/such/pair is not a pair"),
        (["chat", "--guidance", "11"], "guidance"),
        (["chat", "--pair", "/no/such/pair"], "/no/such/pair is not a pair"),
        (["evaluate", "sketchbook", "--n", "0"], "--n must be at least 1"),
        (["evaluate", "sketchbook", "--split", "tomorrow"], "tomorrow"),
        (["evaluate", "sketchbook", "--json", "/no/such/folder/figures.json"], "/no/such/folder"),
        (["evaluate", "sketchbook", "--pair", "/no/such/pair"], "/no/such/pair is not a pair"),
        (["evaluate", "sketchbook", "--sampler", "fast"], "no sampler 'fast'"),
        (["evaluate", "vague", "--guidance", "11"], "guidance must be between"),
        (["evaluate", "dpg", "--steps", "0"], "steps must be between 1 and 100"),
        (["evaluate", "napkin"], "napkin"),
    ],
)
def test_wrong_input_ends_with_one_sentence(argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(argv), capsys, word)
    assert not list(tmp_path.iterdir()), "a run that failed left something behind"


def test_half_an_emoji_in_a_question_is_cleaned(scripted, tmp_path):
    engine = scripted()
    assert run(["ask", " a \udc80 boat \ud800", "--out", str(tmp_path / "out")]) == 0
    assert engine.asked[0].path()[0].text() == "a \ufffd boat \ufffd"


@pytest.mark.parametrize("broken", ["empty", "half", "index"])
def test_a_broken_pair_ends_with_one_sentence(broken, capsys, tmp_path):
    pair = tmp_path / "pair"
    pair.mkdir()
    if broken == "half":
        (pair / "model_index.json").write_text(
            '{"_class_name": "DuoGenPipeline", "transformer": ["diffusers", "CosmosTransformer3DModel"]}'
        )
    if broken == "index":
        (pair / "model_index.json").write_text("{")
    assert_one_sentence(run(["ask", "hi", "--pair", str(pair)]), capsys, str(pair))


def test_a_process_ends_with_status_2():
    done = subprocess.run([sys.executable, "-m", "duogen", "ask", ""], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("duogen: There is no question")


@pytest.mark.parametrize("command", [[], ["evaluate"], ["evaluate", "geneval"]])
def test_help_comes_at_once(command):
    slow = "{'torch', 'transformers', 'diffusers', 'gradio', 'datasets', 'ray', 'duogen.evaluate.tasks', 'duogen.evaluate.replies'}"
    probe = f"import sys, duogen.__main__ as m\ntry: m.main([*{command}, '--help'])\nexcept SystemExit: print({slow} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("\nset()\n"), "--help imports what takes long"


def test_every_option_has_a_flag(scripted, tmp_path):
    engine = scripted()
    flags = "--seed 3 --temperature 0.2 --top-p 0.5 --max-tokens 9 --steps 4 --guidance 2.5 --max-images 1"
    assert run(["ask", "hi", "--out", str(tmp_path / "out"), *flags.split()]) == 0
    given = engine.options[0]
    assert (given.seed, given.text.temperature, given.text.top_p, given.text.max_tokens) == (3, 0.2, 0.5, 9)
    assert (given.image.steps, given.image.guidance, given.image.max_images) == (4, 2.5, 1)


def test_the_pair_chooses_what_is_not_given(scripted, tmp_path):
    engine = scripted()
    assert run(["ask", "hi", "--out", str(tmp_path / "out"), "--steps", "4"]) == 0
    assert (engine.options[0].image.steps, engine.options[0].image.guidance) == (4, 1.5)


def test_ask_streams_and_writes(scripted, capsys, tmp_path):
    engine = scripted()
    PILImage.new("RGB", (4, 4), "green").save(tmp_path / "mine.png")
    out = tmp_path / "made" / "here"
    assert run(["ask", " Draw it ", "--image", str(tmp_path / "mine.png"), "--out", str(out)]) == 0
    said = engine.asked[0].path()[-1]
    assert said.text() == "Draw it" and len(said.images()) == 1
    shown = capsys.readouterr().out
    assert shown.index("Draw it red.") < shown.index("[picture 1: 01.png]") < shown.index("Step 2.") < shown.index("[picture 2: 02.png]")
    assert sorted(file.name for file in out.iterdir()) == ["01.png", "02.png", "reply.json", "reply.md"]
    assert open_picture(out / "02.png").getpixel((0, 0)) == (0, 0, 255)
    assert (out / "reply.md").read_text() == (
        "Step 1. Draw it red.\n\n![a (red) square](01.png)\n\nStep 2. Draw it blue.\n\n![a (blue) square](02.png)\n"
    )
    reply = json.loads((out / "reply.json").read_text())
    assert reply["parts"][0] == {"type": "text", "text": "Step 1. Draw it red.\n"}
    assert reply["parts"][3] == {"type": "image", "file": "02.png", "seed": 8, "seconds": 0.5}
    assert reply["stats"]["text_tokens"] == 12 and reply["stats"]["stopped"] == "end"
    assert [folder.name for folder in out.parent.iterdir()] == ["here"]


def test_json_alone_goes_to_stdout(scripted, capsys, tmp_path):
    scripted()
    assert run(["ask", "hi", "--json", "--out", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "reply.json").read_text())


def test_default_folders_do_not_collide(scripted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.time, "strftime", lambda _: "now")
    scripted()
    assert run(["ask", "hi"]) == run(["ask", "hi"]) == 0
    assert sorted(folder.name for folder in (tmp_path / "output").iterdir()) == ["now", "now-2"]


def test_ctrl_c_keeps_what_is_finished(scripted, tmp_path):
    scripted("interrupt")
    before = signal.getsignal(signal.SIGINT)
    assert run(["ask", "hi", "--out", str(tmp_path / "out")]) == 130
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["01.png", "reply.json", "reply.md"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_keeps_what_is_finished(scripted, capsys, tmp_path):
    scripted("fail")
    assert run(["ask", "hi", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "duogen: Memory ran out.\n"
    assert (tmp_path / "out" / "01.png").exists() and not (tmp_path / "out" / "02.png").exists()


def test_a_failure_with_nothing_finished_writes_nothing(scripted, tmp_path):
    scripted("nothing")
    assert run(["ask", "hi", "--out", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.iterdir())


def test_chat_takes_turns(scripted, capsys, tmp_path, monkeypatch):
    engine = scripted()
    PILImage.new("RGB", (4, 4), "green").save(tmp_path / "mine.png")
    lines = iter(
        ["a house", "/image nothing.png", f"/image {tmp_path / 'mine.png'}", "make it red", "/dance", "", "/new", "a boat", "/quit", "x"]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert run(["chat", "--out", str(tmp_path / "out")]) == 0
    assert [[turn.text() for turn in asked.path() if turn.role == "user"] for asked in engine.asked] == [
        ["a house"],
        ["a house", "make it red"],
        ["a boat"],
    ]
    assert [len(asked.path()[-1].images()) for asked in engine.asked] == [0, 1, 0]
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["01", "02", "03"]
    complaints = capsys.readouterr().err.strip().splitlines()
    assert len(complaints) == 2 and "nothing.png" in complaints[0] and "/dance" in complaints[1]


def test_an_answer_that_was_cut_says_so_and_goes_on(scripted, capsys, tmp_path, monkeypatch):
    engine = scripted("max_tokens")
    lines = iter(["a house", "/on", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert run(["chat", "--out", str(tmp_path / "out")]) == 0
    assert [[turn.role for turn in asked.path()] for asked in engine.asked] == [["user"], ["user", "assistant"]]
    said = "The answer was cut at its longest (--max-tokens); /on goes on with it."
    assert capsys.readouterr().err.strip().splitlines() == [said, said]
    assert run(["ask", "a house", "--out", str(tmp_path / "one")]) == 0
    assert "was cut at its longest (--max-tokens); ask with more, or in chat" in capsys.readouterr().err


def test_chat_forgets_a_question_that_failed(scripted, tmp_path, monkeypatch):
    engine = scripted("nothing")
    lines = iter(["a house", "a boat", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert run(["chat", "--out", str(tmp_path / "out")]) == 0
    assert [len(asked.path()) for asked in engine.asked] == [1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED.exists(), reason="the trained weights are not there")
def test_ask_with_the_shipped_pair(tmp_path):
    command = [sys.executable, "-m", "duogen", "ask", "How do I draw a red house with a blue door?", "--seed", "1", "--steps", "2"]
    limits = ["--max-images", "1", "--max-tokens", "80", "--temperature", "0", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *limits], cwd=ROOT, capture_output=True, text=True, timeout=patience())
    assert done.returncode == 0, done.stderr
    assert "[picture 1: 01.png]" in done.stdout
    assert open_picture(tmp_path / "out" / "01.png").size == (256, 256)


def test_evaluate_passes_on_what_was_given(scripted, capsys, tmp_path, monkeypatch):
    from duogen.evaluate import sketchbook

    engine, calls = scripted(), []

    def measured(*given, **named):
        call = inspect.signature(real).bind(*given, **named).arguments
        calls.append(call)
        call["log"]("all right: 100 %")
        return {"all": {"right": 1.0}}

    real = sketchbook.evaluate
    monkeypatch.setattr(sketchbook, "evaluate", measured)
    flags = ["--n", "3", "--seed", "4", "--split", "train", "--kinds", "house,ice cream", "--json", str(tmp_path / "figures.json")]
    flags += ["--sampler", "dpm", "--guidance", "2", "--out", str(tmp_path / "sheets")]
    assert run(["evaluate", "sketchbook", *flags]) == 0
    del calls[0]["log"]
    given = {"split": "train", "n": 3, "seed": 4, "out": tmp_path / "sheets", "kinds": ["house", "ice cream"]}
    assert calls == [{"engine": engine, **given, "painting": {"sampler": "dpm", "guidance": 2.0}}]
    assert capsys.readouterr().out == "all right: 100 %\n"
    assert json.loads((tmp_path / "figures.json").read_text()) == {"all": {"right": 1.0}}
