"""An answer that is folded from its events."""

from __future__ import annotations

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text
from duogen.events import AnswerBuilder, Done, Failed, ImageDone, ImageStarted, ImageStep, Notice, PendingPicture, Stats, TextDelta, Thought

ASKED = Conversation().say("user", "How do I draw a house?")
PREVIEW = PILImage.new("RGB", (8, 8), "grey")


def painted(colour: str, seconds: float = 4.0) -> Image:
    return Image(PILImage.new("RGB", (8, 8), colour), 1, seconds)


def stats(stopped: str = "end") -> Stats:
    return Stats(9, 9, 4, 1, 0.1, 2.0, stopped)


def test_adjacent_words_are_one_part_and_thoughts_are_none() -> None:
    answer = AnswerBuilder.from_events([Thought("First "), Thought("walls."), TextDelta("Step "), TextDelta("1.")])
    assert answer.parts == [Text("Step 1.")] and answer.thoughts == "First walls."
    assert answer.text() == "Step 1." and answer.images() == [] and answer.stats is None and answer.error == ""


def test_a_picture_is_pending_until_it_is_done() -> None:
    answer, red = AnswerBuilder(), painted("red")
    for event in (TextDelta("Walls."), ImageStarted(0, 1, 4), ImageStep(0, 1, 4, PREVIEW), ImageStep(0, 2, 4)):
        answer.take(event)
    assert answer.pending and (answer.pending.step, answer.pending.steps, answer.pending.preview) == (2, 4, PREVIEW)
    assert answer.parts == [Text("Walls.")] and answer.all_parts() == [Text("Walls."), answer.pending]
    answer.take(ImageDone(0, red))
    answer.take(TextDelta("Roof."))
    assert answer.pending is None and answer.all_parts() == answer.parts == [Text("Walls."), red, Text("Roof.")]
    assert answer.text() == "Walls.Roof." and answer.images() == [red]


def test_a_notice_stays_and_the_answer_goes_on() -> None:
    answer = AnswerBuilder.from_events([TextDelta("Walls."), Notice("Memory is short."), Notice("Smaller now."), TextDelta(" Roof.")])
    assert answer.notice == "Smaller now." and answer.parts == [Text("Walls. Roof.")] and answer.error == ""


def test_the_end_brings_the_conversation_and_its_parts() -> None:
    red = painted("red")
    said = ASKED.say("assistant", "Walls. ", red)
    answer = AnswerBuilder.from_events([TextDelta("Walls."), ImageStarted(0, 1, 4), ImageDone(0, red), Done(said, stats())])
    assert answer.conversation is said and answer.stats == stats() and answer.parts == [Text("Walls. "), red]


def test_a_failure_midway_keeps_what_was_made() -> None:
    red, kept = painted("red"), ASKED.say("assistant", "Walls.")
    events = [TextDelta("Walls."), ImageDone(0, red), TextDelta("Ro"), ImageStarted(1, 1, 4), ImageStep(1, 1, 4), Failed("Too big.", kept)]
    answer = AnswerBuilder.from_events(events)
    assert answer.error == "Too big." and answer.stats is None and answer.conversation is kept
    assert answer.pending is None and answer.parts == [Text("Walls."), red, Text("Ro")]


def test_a_stop_in_a_picture_leaves_the_finished_parts() -> None:
    said = ASKED.say("assistant", "Walls.")
    answer = AnswerBuilder.from_events([TextDelta("Walls."), ImageStarted(0, 1, 4), ImageStep(0, 1, 4), Done(said, stats("user"))])
    assert answer.stats and answer.stats.stopped == "user" and answer.error == ""
    assert answer.pending is None and answer.parts == answer.all_parts() == [Text("Walls.")]


def test_an_answer_that_goes_on_begins_with_its_parts() -> None:
    begun = (Text("Walls."),)
    answer = AnswerBuilder(list(begun))
    answer.take(TextDelta(" Roof."))
    assert answer.parts == [Text("Walls. Roof.")] and begun == (Text("Walls."),)


def test_the_seconds_of_the_last_picture_are_expected_of_the_next() -> None:
    answer = AnswerBuilder.from_events([ImageStarted(0, 1, 4, 30.0)])
    assert answer.pending and answer.pending.usual == 30.0
    answer.take(ImageDone(0, painted("red", seconds=12.0)))
    answer.take(ImageStarted(1, 1, 4, 30.0))
    assert answer.pending and answer.pending.usual == 12.0


def test_the_seconds_left_of_a_picture() -> None:
    pending = PendingPicture(0, 4, 0.0)
    assert pending.seconds_left() is None, "nothing is known before the first step"
    pending.began -= 6.0
    pending.step = 3
    assert round(pending.seconds_left() or 0) == 2
    pending.step = 4
    assert pending.seconds_left() == 0
    pending.step, pending.usual = 0, 10.0
    assert round(pending.seconds_left() or 0) == 4
