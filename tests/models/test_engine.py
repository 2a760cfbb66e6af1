"""The loop of words and pictures: its events, Stop, limits, seeds, failures, and what it remembers between answers."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text, Turn
from duogen.engine import NO_SYSTEM_PROMPT, Engine
from duogen.events import Done, Failed, ImageDone, ImageStarted, ImageStep, Notice, TextDelta, Thought
from duogen.models.pipeline import open_pair
from duogen.models.sequence import Packed
from duogen.options import ImageOptions, Options, TextOptions
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.cosmos import Inpaint
from duogen.provenance import Origin
from tests.support.tiny import BOV, END, EOV, PAD, SIDE, START, script, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def engine(pair):
    return Engine(pair)


def options(seed: int | None = 1, **image) -> Options:
    return Options(seed, TextOptions(temperature=1.0, top_p=1.0), ImageOptions(**{"steps": 2, "preview_every": 0} | image))


def asked(words: str = "Draw a red house.", *pictures: PILImage.Image | Image) -> Conversation:
    return Conversation().say("user", words, *pictures)


def grey(seed: int) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def parts(done: Done) -> list[str | bytes]:
    """Words and pixels of the answer."""
    return [part.text if isinstance(part, Text) else part.picture.tobytes() for part in done.conversation.path()[-1].parts]


def last(events) -> Done:
    *_, done = events
    assert isinstance(done, Done), done
    return done


def thinking(seed: int = 1) -> Options:
    return Options(seed, TextOptions(temperature=1.0, top_p=1.0, think=True), ImageOptions(steps=2, preview_every=0))


THOUGHTS = [("a door < a house", "</think>"), ("two ", "steps</thi", "nk> and"), ("a house", BOV), ("a house", END)]


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_thoughts_come_before_the_answer_and_are_no_part_of_it(engine, monkeypatch, thoughts):
    script(monkeypatch, engine.tokens, *thoughts, "Step 1.", BOV, "Done", END)
    events = list(engine.answer(asked(), thinking()))
    kinds = [type(event) for event in events if type(event) in (Thought, TextDelta)]
    assert kinds == sorted(kinds, key=[Thought, TextDelta].index)
    assert "".join(event.text for event in events if isinstance(event, Thought)) in ("a door < a house", "two steps", "a house")
    assert [words for words in parts(events[-1]) if isinstance(words, str)][0].endswith("Step 1.") and events[-1].stats.images == 1
    read = engine.pair.tokenizer.decode(engine.memory.context.packed.ids)
    assert read.count("<think>") == read.count("</think>") == 1, "what was thought stands in the context, and is closed"
    script(monkeypatch, engine.tokens, "Fine.", END)
    known = len(engine.memory.context.packed.ids)
    more = last(engine.answer(events[-1].conversation.say("user", "And now?"), options()))
    assert more.stats.encoded_tokens == more.stats.prompt_tokens - known


def test_a_pair_that_cannot_think_or_paint_in_other_sizes_says_so(engine, monkeypatch):
    for wish, about, words in (
        (thinking(), {"thinks": False}, "switch Think off"),
        (options(side=4 * SIDE), {"sees_previous": True}, f"{SIDE} x {SIDE}"),
    ):
        monkeypatch.setattr(engine.pair, "about", replace(engine.pair.about, **about))
        monkeypatch.setattr(engine.painter, "about", engine.pair.about)
        script(monkeypatch, engine.tokens, "Step 1.", BOV, "Done", END)
        *_, failed = engine.answer(asked(), wish)
        assert isinstance(failed, Failed) and words in failed.message
        assert [turn.text() for turn in failed.conversation.path()] == ["Draw a red house."]


def test_events_come_in_order(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "Step 1.", BOV, "Step 2.", BOV, END)
    events = list(engine.answer(asked(), options(steps=5, preview_every=2)))
    kinds = [type(event) for event in events if not isinstance(event, TextDelta)]
    assert kinds == [*[ImageStarted, *[ImageStep] * 5, ImageDone] * 2, Done]
    first = kinds.index(ImageDone) + 1
    cut = next(at for at, event in enumerate(events) if isinstance(event, ImageStarted))
    assert "".join(event.text for event in events[:cut]) == "Step 1."
    steps = [event for event in events if isinstance(event, ImageStep)]
    assert [(event.index, event.step, event.steps) for event in steps] == [(index, step, 5) for index in (0, 1) for step in range(1, 6)]
    assert [event.step for event in steps[:5] if event.preview] == [2, 4]
    assert all(event.preview.size == (SIDE, SIDE) for event in steps if event.preview)
    started, done = (next(event for event in events if isinstance(event, kind)) for kind in (ImageStarted, ImageDone))
    assert (started.index, started.steps, started.seed) == (0, 5, done.image.seed)
    assert done.image.alt == "Step 1." and done.image.seconds > 0 and first == 7
    turn = events[-1].conversation.path()[-1]
    assert turn.role == "assistant" and [type(part) for part in turn.parts] == [Text, Image, Text, Image]
    assert [image.origin for image in turn.images()] == [Origin.PAINTED] * 2
    stats = events[-1].stats
    assert (stats.images, stats.stopped) == (2, "end")
    assert stats.text_tokens == len(engine.tokens.text("Step 1.")) + len(engine.tokens.text("Step 2."))
    assert (
        stats.prompt_tokens == stats.encoded_tokens == len(engine.tokens.pack(asked().path()).ids) + len(engine.tokens.opening("assistant"))
    )
    assert 0 < stats.first_text_seconds <= stats.seconds


def test_a_character_of_several_tokens_comes_whole(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "é 🏠 ok", END)
    events = list(engine.answer(asked(), options()))
    deltas = [event.text for event in events if isinstance(event, TextDelta)]
    assert "🏠" in deltas and "".join(deltas) == "é 🏠 ok" == parts(events[-1])[0]


def test_stop_ends_the_words_within_one_token(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "abcdefgh", BOV, END)
    stop, seen = threading.Event(), []
    for event in engine.answer(asked(), options(), stop):
        seen.append(event)
        stop.set()
    assert [type(event) for event in seen] in ([TextDelta, Done], [TextDelta, TextDelta, Done])
    assert seen[-1].stats.stopped == "user"
    assert parts(seen[-1]) == ["".join(event.text for event in seen[:-1])]


def test_stop_ends_a_picture_within_one_step(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "One", BOV, "two", BOV, "three", END)
    stop, seen = threading.Event(), []
    for event in engine.answer(asked(), options(steps=9), stop):
        seen.append(event)
        if isinstance(event, ImageStep) and (event.index, event.step) == (1, 2):
            stop.set()
    assert [type(event) for event in seen[-2:]] == [ImageStep, Done] and seen[-2].step == 2
    assert seen[-1].stats.stopped == "user"
    assert [type(part) for part in seen[-1].conversation.path()[-1].parts] == [Text, Image, Text]
    script(monkeypatch, engine.tokens, "More", BOV, END)  # and the talk goes on
    continue_answer = seen[-1].conversation.say("user", "go on")
    done = last(engine.answer(continue_answer, options()))
    assert done.stats.images == 1 and done.stats.encoded_tokens < done.stats.prompt_tokens / 2


def test_limits_are_kept(engine, monkeypatch):
    say = ("abcdef", BOV, "gh", BOV, "ij", END)
    script(monkeypatch, engine.tokens, *say)
    done = last(engine.answer(asked(), Options(1, TextOptions(temperature=1.0, max_tokens=4), options().image)))
    assert (done.stats.text_tokens, done.stats.stopped, parts(done)) == (4, "max_tokens", ["abcd"])
    for most in (0, 1):
        script(monkeypatch, engine.tokens, *say)
        done = last(engine.answer(asked(), options(max_images=most)))
        assert (done.stats.images, done.stats.stopped, len(parts(done))) == (most, "max_images", 1 + 2 * most)
        following = last(engine.answer(done.conversation.say("user", "go on"), options(max_images=0)))
        assert following.stats.encoded_tokens < following.stats.prompt_tokens


def with_pictures(pair) -> int:
    """A seed whose answer, in words of the talker's own, has a picture."""
    return next(seed for seed in range(50) if last(Engine(pair).answer(asked(), options(seed, max_images=2))).stats.images)


def test_the_same_seed_gives_the_same_reply(engine, pair):
    seed = with_pictures(pair)
    wish = options(seed, max_images=2)
    first = last(engine.answer(asked(), wish))
    assert parts(first) == parts(last(Engine(pair).answer(asked(), wish)))  # fresh
    assert parts(first) == parts(last(engine.answer(asked(), wish)))  # warm
    second = first.conversation.say("user", "And a blue door.")
    answers = [last(engine.answer(second, options(each, max_images=2))) for each in (4, 5, 4)]
    assert parts(answers[0]) == parts(answers[2]) != parts(answers[1])


def test_without_a_seed_replies_differ_and_say_their_seeds(engine, monkeypatch):
    seeds = set()
    for _ in range(2):
        script(monkeypatch, engine.tokens, BOV, END)
        seeds.add(last(engine.answer(asked(), options(None))).conversation.path()[-1].images()[0].seed)
    assert len(seeds) == 2 and None not in seeds


def test_nothing_is_encoded_twice(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "One", BOV, "two", END)
    conversation = last(engine.answer(asked("Look: ", grey(1)), options())).conversation
    script(monkeypatch, engine.tokens, "Three", BOV, END)
    calls = []
    plain = engine.painter.encode
    monkeypatch.setattr(engine.painter, "encode", lambda picture: calls.append(picture) or plain(picture))
    words = "Now add a door."
    done = last(engine.answer(conversation.say("user", words), options()))
    new = [END, *engine.tokens.newline, *engine.tokens.opening("user"), *engine.tokens.text(words), END, *engine.tokens.newline]
    assert done.stats.encoded_tokens == len(new) + len(engine.tokens.opening("assistant"))
    assert not calls


def answers_as_a_fresh_engine_does(engine, conversation, monkeypatch) -> None:
    """For conversations with uploaded pictures only: a fresh engine knows them exactly."""
    both, fresh = [], Engine(engine.pair)
    for each in (engine, fresh):
        script(monkeypatch, engine.tokens, "Here", BOV, "and", BOV, END)
        both.append(last(each.answer(conversation, options(3, guidance=2.0))))
    for mine, other in zip(parts(both[0]), parts(both[1]), strict=True):
        if isinstance(mine, str):
            assert mine == other
        else:
            assert np.abs(np.frombuffer(mine, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).max() <= 1
    mine, other = (torch.cat([torch.cat(pair) for pair in each.memory.frames.cache.blocks]) for each in (engine, fresh))
    assert mine.shape == other.shape and (mine - other).abs().max() < 1e-3


def test_an_answer_at_an_earlier_turn_forgets_what_came_after(engine, monkeypatch):
    upload = asked("What is this? ", grey(1))
    script(monkeypatch, engine.tokens, "A house.", BOV, END)
    done = last(engine.answer(upload, options()))
    script(monkeypatch, engine.tokens, "More", BOV, END)
    last(engine.answer(done.conversation.say("user", "more", grey(2)), options()))
    answers_as_a_fresh_engine_does(engine, done.conversation.at(upload.head), monkeypatch)


def test_words_edited_before_a_picture_are_read_anew(engine, monkeypatch):
    """The edit has as many tokens and the very same picture: only the ids tell."""
    picture = Image(grey(1))
    script(monkeypatch, engine.tokens, "Ok", BOV, END)
    last(engine.answer(asked("abc ", picture), options()))
    answers_as_a_fresh_engine_does(engine, asked("xyz ", picture), monkeypatch)


def test_another_picture_among_the_same_words_is_seen(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "Ok", BOV, END)
    last(engine.answer(asked("Look: ", grey(1)), options()))
    answers_as_a_fresh_engine_does(engine, asked("Look: ", grey(2)), monkeypatch)


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("no such kernel\ntrace"), "no such kernel"), (torch.OutOfMemoryError("77 GiB"), "Memory ran out")],
)
def test_a_failing_painter_leaves_the_conversation_and_the_engine_sound(engine, monkeypatch, error, message):
    conversation, wish = asked("Look: ", grey(1)), options()
    monkeypatch.setattr(engine.painter, "decode", lambda latents: (_ for _ in ()).throw(error))
    script(monkeypatch, engine.tokens, "One", BOV, "two", END)
    *_, failed = engine.answer(conversation, wish)
    assert isinstance(failed, Failed) and message in failed.message and "\n" not in failed.message
    assert failed.conversation == conversation
    monkeypatch.undo()
    assert not engine.memory.context.packed.ids and not engine.memory.frames.past
    answers_as_a_fresh_engine_does(engine, conversation, monkeypatch)


def test_what_was_finished_before_a_failure_stays(engine, monkeypatch):
    script(monkeypatch, engine.tokens, "One", BOV, "two", BOV, END)
    for event in engine.answer(asked(), options()):
        if isinstance(event, ImageDone):
            monkeypatch.setattr(engine.painter, "decode", lambda latents: (_ for _ in ()).throw(RuntimeError("broken")))
    assert isinstance(event, Failed)
    assert [type(part) for part in event.conversation.path()[-1].parts] == [Text, Image]
    assert event.conversation.path()[-1].role == "assistant"


def test_a_programming_error_is_named_and_forgets(engine, monkeypatch, caplog):
    monkeypatch.setattr(engine.painter, "remember", lambda *_: {}["missing"])
    script(monkeypatch, engine.tokens, "One", BOV, "two", END)
    *_, failed = engine.answer(asked(), options())
    assert isinstance(failed, Failed) and "KeyError: 'missing'" in failed.message
    assert caplog.records[-1].exc_info[0] is KeyError, "whoever runs the server sees where it happened"
    monkeypatch.undo()
    answers_as_a_fresh_engine_does(engine, asked("Look: ", grey(1)), monkeypatch)


CAUSES = [
    (RuntimeError(), "The pair failed (RuntimeError); try again"),
    (RuntimeError(" \n\n"), "The pair failed (RuntimeError); try again"),
    (RuntimeError("\nno kernel\ntrace"), "The pair failed (RuntimeError: no kernel); try again"),
    (NotImplementedError("cat"), "(NotImplementedError: cat)"),
    (ValueError(), "The pair failed (ValueError); try again"),
    (ValueError("This painter cannot see; bring no picture.\nMore."), "This painter cannot see; bring no picture."),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), "(UnicodeDecodeError: "),
    (AssertionError(), "(AssertionError)"),
    (AttributeError("no images"), "(AttributeError: no images)"),
    (TypeError("4 given"), "(TypeError: 4 given)"),
    (NameError("x"), "(NameError: x)"),
    (IndexError(), "(IndexError)"),
    (ZeroDivisionError(), "(ZeroDivisionError)"),
    (StopIteration(), "RuntimeError: generator raised StopIteration"),
    (RecursionError("too deep"), "(RecursionError: too deep)"),
    (MemoryError(), "Memory ran out (MemoryError); make the pictures smaller"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full (OSError); make room"),
    (OSError(28, "No space left on device"), "The disk is full (OSError); make room"),
    (OSError(5, "Input/output error"), "(OSError: Input/output error)"),
    (ImportError("cannot import name y"), "(ImportError: cannot import name y)"),
    (ModuleNotFoundError("No module named 'peft.x'", name="peft.x"), "The pair needs the package peft (ModuleNotFoundError)"),
]


PLACES = [("paint", *case) for case in CAUSES]
PLACES += [(place, *CAUSES[at]) for place in ("decode", "encode", "mllm", "tokens") for at in (0, 8, 15)]


@pytest.mark.parametrize(("place", "cause", "words"), PLACES)
def test_whatever_is_raised_ends_in_one_sentence(engine, monkeypatch, place, cause, words):
    owner, name = {"mllm": (engine.mllm, "prefill"), "tokens": (engine.mllm, "append")}.get(place, (engine.painter, place))
    asking = asked("Look: ", grey(1)) if place == "encode" else asked()
    plain, calls = getattr(owner, name), []

    def fail_later(*given, **named):
        calls.append(given)
        if len(calls) > (place == "decode"):
            raise cause
        return plain(*given, **named)

    monkeypatch.setattr(owner, name, fail_later)
    script(monkeypatch, engine.tokens, "Here", BOV, "and", BOV, END)
    *_, failed = engine.answer(asking, options())
    assert isinstance(failed, Failed) and "\n" not in failed.message
    assert words in failed.message
    said = failed.conversation.path()
    assert [turn.text() for turn in said] == (["Draw a red house.", "Here"] if place == "decode" else [asking.path()[0].text()])
    assert not engine.memory.context.packed.ids and not engine.memory.frames.past and not engine.memory.slots


def test_a_picture_painted_again_fails_in_one_sentence_too(engine, monkeypatch):
    begun = asked().say("assistant", "A red house")
    monkeypatch.setattr(engine.painter, "paint", lambda *_: (_ for _ in ()).throw(KeyError("to_q")))
    *_, failed = engine.stream_image(begun, options())
    assert isinstance(failed, Failed) and "(KeyError: 'to_q')" in failed.message
    assert failed.conversation.head == begun.path()[0].id and not engine.memory.context.packed.ids
    with pytest.raises(ValueError, match="KeyError"):
        engine.generate_image(begun, options())


def test_a_reader_who_goes_away_in_the_middle_breaks_nothing(engine, monkeypatch):
    for last_seen in (TextDelta, ImageStep, ImageDone):
        conversation = asked("Look: ", grey(1))
        script(monkeypatch, engine.tokens, "One", BOV, "two", END)
        reader = engine.answer(conversation, options())
        while not isinstance(next(reader), last_seen):
            pass
        reader.close()
        answers_as_a_fresh_engine_does(engine, conversation, monkeypatch)


def test_nothing_said_is_nothing_to_answer(engine):
    for conversation in (Conversation(), asked().say("assistant", "Yes.")):
        (failed,) = engine.answer(conversation, options())
        assert isinstance(failed, Failed) and "say something" in failed.message and failed.conversation is conversation


def test_more_pictures_than_the_painter_has_places_for(engine, monkeypatch):
    most = engine.pair.transformer.config.max_size[0]
    script(monkeypatch, engine.tokens, "One", BOV, END)
    *_, failed = engine.answer(asked("Look", *[grey(0)] * most), options())
    assert isinstance(failed, Failed) and "start a new chat" in failed.message


def test_marks_of_turns_and_pictures_are_never_said(engine):
    script_free = engine.answer(asked(), options())
    next(script_free)
    assert torch.isneginf(engine.memory.context.logits[[START, EOV, PAD]]).all()
    assert torch.isfinite(engine.memory.context.logits[[BOV, END]]).all()


def test_painting_after_given_words_is_what_an_answer_paints(engine, pair, monkeypatch):
    script(monkeypatch, engine.tokens, "A red house", BOV, "and", BOV, END)
    done = last(engine.answer(asked(), options(8)))
    other = Engine(pair)
    begun = asked().say("assistant", "A red house")
    image = other.generate_image(begun, options(8))
    assert image.picture.tobytes() == parts(done)[1]
    encoded = []
    monkeypatch.setattr(other.painter, "encode", encoded.append)
    other.generate_image(asked().say("assistant", "A red house", image, "and"), options(8))
    assert not encoded  # its own picture is not encoded again
    with pytest.raises(ValueError, match="no answer"):
        other.generate_image(asked(), options())


def test_an_answer_goes_on_from_any_of_its_parts(engine, pair, monkeypatch):
    script(monkeypatch, engine.tokens, "One", BOV, "two", BOV, END)
    whole = last(engine.answer(asked(), options()))
    head = whole.conversation.path()[-1]
    begun = whole.conversation.with_turn(Turn("assistant", head.parts[:2], parent=head.parent))
    script(monkeypatch, engine.tokens, "three", BOV, END)
    *shown, done = engine.continue_answer(begun, options(7))
    new = done.conversation.path()[-1]
    assert [event.index for event in shown if isinstance(event, ImageStarted)] == [1]
    assert new.parts[:2] == head.parts[:2] and [part.text for part in new.parts if isinstance(part, Text)] == ["One", "three"]
    assert new.parent == head.parent and parts(done)[1] == parts(whole)[1] and len(new.images()) == 2
    packed = Packed()
    engine.tokens.add_turn(packed, new)
    assert engine.memory.said[new.id].ids == packed.ids
    told = whole.conversation.with_turn(Turn("assistant", (Text("One"),), parent=head.parent))
    script(monkeypatch, engine.tokens, " more", END)
    assert parts(last(engine.continue_answer(told, options()))) == ["One more"]
    with pytest.raises(ValueError, match="no answer"):
        list(engine.continue_answer(asked(), options()))


def test_a_failure_while_going_on_leaves_the_answer_as_it_was(engine, monkeypatch):
    conversation = asked().say("assistant", "One", grey(1))
    monkeypatch.setattr(engine.painter, "decode", lambda latents: (_ for _ in ()).throw(RuntimeError("broken")))
    script(monkeypatch, engine.tokens, "two", BOV, END)
    *_, failed = engine.continue_answer(conversation, options())
    assert isinstance(failed, Failed) and failed.conversation.head == conversation.path()[0].id


def marked(width: int, height: int, *box: int) -> PILImage.Image:
    mask = PILImage.new("L", (width, height))
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE * 2, SIDE), (50, 90)])
def test_outside_a_mask_not_a_pixel_changes(engine, monkeypatch, size):
    picture = PILImage.fromarray(np.random.default_rng(5).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    mask = marked(*size, size[0] // 2, size[1] // 4, size[0] - 3, size[1] // 2)
    script(monkeypatch, engine.tokens, "Now", BOV, "and", BOV, END)
    done = last(engine.answer(asked("Make the door red.", Image(picture, mask=mask)), options()))
    changed, free = (np.asarray(part.picture) for part in done.conversation.path()[-1].images())
    inside = np.asarray(mask) > 0
    assert changed.shape == (size[1], size[0], 3) and free.shape == (SIDE, SIDE, 3)
    assert (changed == np.asarray(picture))[~inside].all()
    assert (changed != np.asarray(picture))[inside].mean() > 0.5


def test_a_picture_that_goes_on_from_a_brought_one_says_so(engine, monkeypatch):
    brought, conversation = Image(grey(1)), asked("Draw a house.")
    for before, origins in (([brought], [Origin.CHANGED] * 2), ([brought, Image(grey(2), origin=Origin.PAINTED)], [Origin.PAINTED] * 2)):
        script(monkeypatch, engine.tokens, "So", BOV, BOV, END)
        done = last(engine.answer(conversation.say("assistant", "x").say("user", *before, "Make it red."), options()))
        assert [image.origin for image in done.conversation.path()[-1].images()] == origins


def test_a_masked_answer_painted_again_keeps_its_mask(engine, monkeypatch):
    picture, mask = grey(1), marked(SIDE, SIDE, 0, 0, 10, 10)
    conversation = asked("Change it.", Image(picture, mask=mask)).say("assistant", "Now")
    again = np.asarray(engine.generate_image(conversation, options(3)).picture)
    assert (again == np.asarray(picture))[np.asarray(mask) == 0].all()


@pytest.mark.parametrize(("mask", "message"), [(marked(SIDE, SIDE, 0, 0, 0, 0), "Nothing"), (marked(9, 9, 0, 0, 4, 4), "9 x 9")])
def test_a_useless_mask_gets_a_sentence(engine, monkeypatch, mask, message):
    conversation = asked("Change it.", Image(grey(1), mask=mask))
    script(monkeypatch, engine.tokens, "Now", BOV, END)
    *_, failed = engine.answer(conversation, options())
    assert isinstance(failed, Failed) and message in failed.message and failed.conversation == conversation


def test_what_a_mask_leaves_is_painted_around(engine):
    """The latents that stay are those of the picture, and what is painted inside depends on them."""
    states = torch.randn(1, 5, engine.mllm.model.config.text_config.hidden_size * 2, generator=torch.Generator().manual_seed(1))
    inpaint = engine.painter.prepare_inpaint(grey(1), marked(SIDE, SIDE, 0, 0, 3, 3))
    assert inpaint.mask.sum() == 1
    results = []
    for each in (inpaint, Inpaint(-inpaint.latents, inpaint.mask)):
        *_, final = engine.painter.paint(Frames.empty(), PaintRequest(states, 0, options(steps=4).image, 7, each))
        assert torch.equal(final.latents[~inpaint.mask.expand_as(final.latents)], each.latents[~inpaint.mask.expand_as(each.latents)])
        results.append(final.latents[..., 0, 0])
    assert (results[0] - results[1]).abs().max() > 1e-4


def test_what_the_copy_gate_keeps_stays_to_the_pixel(tmp_path, monkeypatch):
    """Of a brought picture that is not square and larger than what the pair paints, too."""
    pair = open_pair(tiny_pair(tmp_path, gate=True), "cpu", "fp32")
    pair.about = replace(pair.about, copy_below=1.5)
    engine = Engine(pair)
    rng = np.random.default_rng(3)
    brought = PILImage.fromarray(rng.integers(0, 255, (3 * SIDE // 2, 2 * SIDE, 3), dtype=np.uint8))
    script(monkeypatch, engine.tokens, "Here", BOV, "and", BOV, END)
    done = last(engine.answer(Conversation().say("user", "Change it", brought), options(steps=2)))
    before = np.asarray(brought)
    for image in done.conversation.path()[-1].images():
        after = np.asarray(image.picture)
        same = (after == before).all(-1)
        assert after.shape == before.shape and 0.1 < same.mean() < 1
        cell = 2 * SIDE // 4  # a latent's place, in pixels of this picture
        columns = [same[:, start : start + cell] for start in range(0, 2 * SIDE, cell)]
        assert any(rows.all() for part in columns for rows in np.array_split(part, 8)), "no whole place stayed"
        before = after


def test_style_words_stand_behind_every_question_and_cost_no_second_reading(engine, monkeypatch) -> None:
    """A tuned pair reads them as if the user had written them, in earlier questions too; a system prompt it was never taught to follow."""
    styled = replace(options(style_words=" ink "), text=TextOptions(1.0, 1.0, system_prompt="Be short."))
    script(monkeypatch, engine.tokens, "ab", END)
    notice, *_, done = engine.answer(Conversation().say("user", "Draw."), styled)
    assert notice == Notice(NO_SYSTEM_PROMPT)
    read = engine.tokens.text("Draw.") + engine.tokens.text(" ink")
    assert engine.tokens.tokenizer.decode(read) in engine.tokens.tokenizer.decode(engine.memory.context.packed.ids)
    script(monkeypatch, engine.tokens, "cd", END)
    *_, again = engine.answer(done.conversation.say("user", "More."), styled)
    new = engine.tokens.opening("user") + engine.tokens.text("More.") + engine.tokens.text(" ink")
    new += engine.tokens.closing() + engine.tokens.opening("assistant")
    assert again.stats.encoded_tokens - len(new) in (0, 1, 2), "what was read before is not read again"
