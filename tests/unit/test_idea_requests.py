"""Requests for ideas, and the mark of a turn that is ideas."""

from __future__ import annotations

import json

import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text, Turn, load_conversation, save_conversation
from duogen.ideas import find_ideas
from duogen.library.conversations import ConversationStore
from ui.chat.history import find_outdated


@pytest.mark.parametrize(
    ("words", "count", "drawing"),
    [
        ("Give me four ideas", 4, "Draw something."),
        ("give me 4 ideas for a garden.", 4, "Draw a garden."),
        ("show me 3 ideas of a red house", 3, "Draw a red house."),
        ("Can you give me five different ideas for a small boat, please?", 5, "Draw a small boat."),
        ("Gib mir vier Ideen für einen Garten", 4, "Zeichne einen Garten."),
        ("zeig mir bitte 3 verschiedene Bildideen zu einem Haus!", 3, "Zeichne etwas zu einem Haus."),
        ("给我四个花园的点子", 4, "画花园。"),
        ("请给我两个创意，关于房子。", 2, "画房子。"),
    ],
)
def test_requests_for_ideas(words, count, drawing) -> None:
    request = find_ideas(words)
    assert request is not None and (request.count, request.drawing) == (count, drawing)
    assert request.ask(True, ["a red house"]) == drawing
    told = request.ask(False, ["a red\nhouse"])
    assert words in told and "- a red house" in told and "number 2 " in told


@pytest.mark.parametrize(
    "words",
    [
        "Give me an idea for a birthday present.",
        "Give me 10 ideas for a house",
        "two ideas are better than one",
        "Here are four ideas for a garden, which is best?",
        "Four ideas for a garden. Then write a poem",
        "give me four ideas how to save money",
        "Vier Ideen sind genug",
        "我有四个想法要告诉你",
        "",
        pytest.param("给" * 1_000_000, id="long"),  # would take hours to read by patterns
    ],
)
def test_other_messages(words) -> None:
    assert find_ideas(words) is None


def ideas() -> Conversation:
    pictures = [Image(PILImage.new("RGB", (8, 8), colour), 1, 1.0) for colour in ("red", "blue")]
    asked = Conversation().say("user", "Give me two ideas")
    return asked.with_turn(Turn("assistant", (Text("One."), pictures[0], Text("Two."), pictures[1]), parent=asked.head, ideas=True))


def test_the_mark_is_kept_on_disk_and_in_a_zip(tmp_path) -> None:
    save_conversation(ideas(), tmp_path / "one")
    for lazily in (False, True):
        assert [turn.ideas for turn in load_conversation(tmp_path / "one", lazily).path()] == [False, True]
    store = ConversationStore(tmp_path / "store")
    kept = store.save(ideas())
    with (tmp_path / "out.zip").open("wb") as out:
        store.pack_to(kept.id, out)
    assert store.unpack(tmp_path / "out.zip").path()[-1].ideas
    file = tmp_path / "one" / "conversation.json"
    written = json.loads(file.read_text())
    assert "ideas" not in written["turns"][0]
    del written["turns"][1]["ideas"]  # as it was written before there were ideas
    file.write_text(json.dumps(written))
    assert not load_conversation(tmp_path / "one").path()[-1].ideas
    written["turns"][1]["ideas"] = "yes"
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match="the mark of ideas is of the type str"):
        load_conversation(tmp_path / "one")


def test_an_idea_stands_for_itself() -> None:
    """It was painted after its own line alone, so going on with it, or painting another one again, outdates nothing."""
    conversation = ideas()
    turn = conversation.path()[-1]
    assert turn.before(1) == (Text("One."),) and turn.before(3) == (Text("Two."),)
    again = turn.with_image(1, Image(PILImage.new("RGB", (8, 8), "green"), 2, 1.0))
    assert again.ideas and not find_outdated(conversation.with_turn(again), again)
    chosen = Turn("assistant", turn.parts[2:], parent=turn.parent)
    assert not find_outdated(conversation.with_turn(chosen), chosen)
