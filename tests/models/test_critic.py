"""The second look at a picture: what the MLLM says of it, what is painted instead, and that both models go on as if that were all."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.critic import PromptCritic, QuestionCritic, Verdict, list_questions, open_critic, read_verdict
from duogen.engine import Engine
from duogen.events import Done, ImageDone, ImageStarted, Notice
from duogen.models.pipeline import About, open_pair
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions
from duogen.paths import ROOT
from tests.support import public
from tests.support.tiny import BOV, END, script, tiny_pair

VERDICTS = {
    '{"shows": true}': Verdict(),
    '```json\n{"shows": "No", "reason": "The roof is blue, not red.", "prompt": "a <b>red</b> roof"}\n```': Verdict(
        False, "The roof is blue, not red", "a b red /b roof"
    ),
    "<think>shows: true?</think>{'Shows': False, 'reason': 'no door'}": Verdict(False, "no door"),
    '[{"shows": 0, "reason": 7, "prompt": null}]': Verdict(False),
    "No, the door is red.": Verdict(False, "the door is red"),
    "": Verdict(),
    "Nothing is wrong with it.": Verdict(),
    '{"reason": "no"}': Verdict(),
}


@pytest.mark.parametrize("said", VERDICTS)
def test_a_verdict_is_read_and_an_unreadable_one_is_yes(said) -> None:
    assert read_verdict(said) == VERDICTS[said]


STEPS = {  # words of the bundled pair, and what it is asked
    "Step 2. On plain paper, draw the windows: two small brown squares side by side in the body.": ["What colour are the windows?"],
    "Step 1. On the left, draw the bottom bun: a broad orange rectangle just above the ground.": ["What colour is the bottom bun?"],
    "At night: on the right, a tree with a trunk in brown and leaves in green.": [
        "What colour is the trunk?",
        "What colour are the leaves?",
    ],
    "Now the lamp is gone.": [],
}


def read_questions(words: str) -> list[tuple[str, str]]:
    return list_questions(About.load(ROOT / "weights" / "duogen-sketch").check_questions, words)


class Scripted:
    """A critic that refuses the first `refuses` pictures, wants `prompt` painted instead, and prefers the new picture or the old one."""

    def __init__(self, refuses: int = 0, prompt: str = "", new: bool = True) -> None:
        self.refuses, self.prompt, self.new, self.seen = refuses, prompt, new, []

    def check(self, picture, words, stop) -> Verdict:
        self.seen.append((picture, words))
        return Verdict() if len(self.seen) > self.refuses else Verdict(False, "the roof is blue, not red", self.prompt)

    def prefers(self, new, old, words, stop) -> bool:
        return self.new


def options(check: int, seed: int = 5) -> Options:
    return Options(seed, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(steps=2, preview_every=0, check=check))


@pytest.fixture(scope="module")
def sketch(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair"), gate=True), "cpu", "fp32")


@pytest.fixture(scope="module", params=["qwen_edit", "cosmos"])
def public_pair(request, tmp_path_factory):
    folder = getattr(public, request.param)(tmp_path_factory.mktemp(request.param))
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", picture_side=64)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):  # the pipeline scales source pictures to a megapixel
            patch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{name}", 64 * 64)
        yield Engine.open(folder, load=load).pair


def answer(engine: Engine, monkeypatch, given: Options, prompt: str = "a red house") -> list:
    """Two pictures and the words between them, however the pair asks for pictures."""
    picture = (BOV,) if engine.tuned else ("<picture>", prompt, "</picture>")
    second = (BOV,) if engine.tuned else ("<picture>", "a blue door", "</picture>")
    script(monkeypatch, engine.tokens, "Step 1. A red", *picture, "then", *second, "done", END)
    return list(engine.answer(Conversation().say("user", "Draw a red house."), given))


def criticise(monkeypatch, critic: Scripted) -> Scripted:
    monkeypatch.setattr("duogen.engine.open_critic", lambda mllm, about: critic)
    return critic


def list_kept(engine: Engine) -> list[np.ndarray]:
    """All that an engine keeps between answers, as arrays."""
    memory = engine.memory
    kept = [np.array(memory.context.packed.ids), *(np.asarray(slot.image.picture) for slot in memory.slots)]
    kept += [each.numpy() for layer in memory.context.cache.layers for each in (layer.keys, layer.values)]
    kept += [each.numpy() if isinstance(each, torch.Tensor) else np.asarray(each) for each in memory.frames.past]
    if engine.tuned:
        kept.append(memory.context.condition().numpy())
        engine.painter.fill_cache(memory.frames)
        kept += [each.numpy() for pair in memory.frames.cache.blocks for each in pair]
    return kept


def same(one: Engine, other: Engine) -> None:
    mine, plain = list_kept(one), list_kept(other)
    assert len(mine) == len(plain)
    for left, right in zip(mine, plain, strict=True):
        assert left.shape == right.shape and np.allclose(left, right, atol=1e-4)


def pixels(events: list) -> list[bytes]:
    assert isinstance(events[-1], Done), events[-1]
    return [image.picture.tobytes() for image in events[-1].conversation.path()[-1].images()]


def paint_with(monkeypatch, engine: Engine, seeds: dict[int, int]) -> None:
    """Let the painter take other seeds for its calls, counted from 0."""
    plain, calls = engine.painter.paint, iter(range(99))
    swap = lambda request: replace(request, seed=seeds.get(next(calls), request.seed))  # noqa: E731
    monkeypatch.setattr(engine.painter, "paint", lambda frames, request: plain(frames, swap(request)))


def test_a_critic_that_agrees_changes_nothing(sketch, monkeypatch) -> None:
    plain, looked = Engine(sketch), Engine(sketch)
    events = answer(plain, monkeypatch, options(0))
    critic = criticise(monkeypatch, Scripted())
    again = answer(looked, monkeypatch, options(2))
    assert [type(event) for event in again] == [type(event) for event in events] and pixels(again) == pixels(events)
    assert [words for _, words in critic.seen] == ["Step 1. A red", "then"] and not again[-1].versions
    same(looked, plain)


@pytest.mark.parametrize("new", [True, False])
def test_both_models_go_on_from_the_picture_that_stays(sketch, monkeypatch, new) -> None:
    """The slow way: an answer without the option, whose first picture is painted with the seed of the one that stayed."""
    looked, plain = Engine(sketch), Engine(sketch)
    criticise(monkeypatch, Scripted(1, new=new))
    events = answer(looked, monkeypatch, options(1))
    first, other = (event for event in events if isinstance(event, ImageStarted) and event.index == 0)
    assert other.seed != first.seed and Notice("Looks again: the roof is blue, not red.") in events
    kept, refused = (other, first) if new else (first, other)
    paint_with(monkeypatch, plain, {0: kept.seed})
    assert pixels(events) == pixels(answer(plain, monkeypatch, options(0)))
    same(looked, plain)
    done = events[-1]
    (version,), head = done.versions, done.conversation.path()[-1]
    assert version.parent == head.parent and version.id in done.conversation.turns and done.conversation.head == head.id
    assert [image.seed for image in (head.images()[0], version.images()[0])] == [kept.seed, refused.seed]
    assert version.parts[0] == head.parts[0] and version.parts[2:] == head.parts[2:]
    assert version.images()[0].picture.tobytes() != head.images()[0].picture.tobytes()


@pytest.mark.parametrize("new", [True, False])
def test_an_untuned_mllm_words_the_correction(public_pair, monkeypatch, new) -> None:
    """The context then holds the words that the kept picture was painted from, as the conversation does."""
    looked, plain = Engine(public_pair), Engine(public_pair)
    critic = criticise(monkeypatch, Scripted(1, "a house, its roof is red", new))
    events = answer(looked, monkeypatch, options(1))
    seeds = [event.seed for event in events if isinstance(event, ImageStarted)]
    assert [words for _, words in critic.seen] == ["a red house", "a blue door"] and len(seeds) == 3
    said = critic.prompt if new else "a red house"
    image = events[-1].conversation.path()[-1].images()[0]
    assert image.alt == said and events[-1].versions[0].images()[0].alt == ("a red house" if new else critic.prompt)
    paint_with(monkeypatch, plain, {0: seeds[new]})
    assert pixels(answer(plain, monkeypatch, options(0), said)) == pixels(events)
    same(looked, plain)


def test_it_ends_where_the_last_try_is_refused_too(sketch, monkeypatch) -> None:
    critic = criticise(monkeypatch, Scripted(99))
    engine = Engine(sketch)
    script(monkeypatch, engine.tokens, "A house", BOV, END)
    events = list(engine.answer(Conversation().say("user", "Draw."), options(2)))
    (done,) = (event for event in events if isinstance(event, ImageDone))
    assert len(done.others) == 2 and len(critic.seen) == 2 and len({each.seed for each in (done.image, *done.others)}) == 3
    assert len(events[-1].versions) == 2 and events[-1].stats.images == 1


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_a_try_that_comes_to_nothing_leaves_the_picture_before(sketch, monkeypatch, how) -> None:
    engine, stop, calls = Engine(sketch), threading.Event(), []
    criticise(monkeypatch, Scripted(1))
    plain = engine.painter.paint

    def paint(frames, request):
        calls.append(request)
        if len(calls) == 2 and how == "failed":
            raise ValueError("It does not fit.")
        if len(calls) == 2:
            stop.set()
        return plain(frames, request)

    monkeypatch.setattr(engine.painter, "paint", paint)
    script(monkeypatch, engine.tokens, "A house", BOV, "so", END)
    events = list(engine.answer(Conversation().say("user", "Draw."), options(1), stop))
    (done,) = (event for event in events if isinstance(event, ImageDone))
    assert done.image.seed == calls[0].seed and not done.others and isinstance(events[-1], Done)
    assert events[-1].stats.stopped == ("user" if how == "stopped" else "end")
    assert (Notice("It does not fit.") in events) == (how == "failed")


def test_the_critic_reads_beside_the_conversation(public_pair, monkeypatch) -> None:
    """With a real MLLM, whose verdict is scripted: what the conversation's context holds stays as it was."""
    engine, picture = Engine(public_pair), PILImage.new("RGB", (64, 64), "red")
    context = engine.memory.context
    engine.mllm.prefill(context, engine.tokens.pack(Conversation().say("user", "Hello.").path()))
    before = [each.clone() for layer in context.cache.layers for each in (layer.keys, layer.values)]
    critic = open_critic(engine.mllm, engine.pair.about)
    assert isinstance(critic, PromptCritic)
    script(monkeypatch, engine.tokens, '{"shows": false, "reason": "no door", "prompt": "a door"}', END)
    assert critic.check(picture, "a house", threading.Event()) == Verdict(False, "no door", "a door")
    for said, new in (('{"better": "first"}', False), ('{"better": 1}', False), ('{"better": "second"}', True), ("Well.", True)):
        script(monkeypatch, engine.tokens, said, END)
        assert critic.prefers(picture, picture, "a house", threading.Event()) == new
    after = [each for layer in context.cache.layers for each in (layer.keys, layer.values)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_pair_of_short_answers_is_asked_its_own_questions(sketch, monkeypatch) -> None:
    about = replace(sketch.about, check_questions=((r"the (\w+): an? (?P<answer>red|blue)", r"What colour is the \1?"),))
    engine, picture, asked = Engine(sketch), PILImage.new("RGB", (64, 64)), []
    critic = open_critic(engine.mllm, about)
    assert isinstance(critic, QuestionCritic)
    seen = {"roof": "The roof is blue.", "door": "The door is blue."}
    monkeypatch.setattr(critic.qa, "ask", lambda question, *given: asked.append(question) or seen[question.split()[-1][:-1]])
    words = "Draw the roof: a red triangle. Draw the door: a blue square."
    assert critic.check(picture, words, threading.Event()) == Verdict(False, "The roof is blue, not red")
    assert asked == ["What colour is the roof?", "What colour is the door?"]
    assert critic.check(picture, "Nothing.", threading.Event()).shows and not critic.prefers(picture, picture, words, threading.Event())
    assert [[question for _, question in read_questions(step)] for step in STEPS] == list(STEPS.values())
    with pytest.raises(ValueError, match="without a group called answer"):
        About(check_questions=(("the roof", "Is it?"),))
