"""Roles of pictures: marks in words, what a trained pair and an untrained MLLM read, on disk, and on the command line."""

from __future__ import annotations

import json

import pytest
from PIL import Image as PILImage

from duogen.cli.main import parser
from duogen.conversation import Conversation, Image, Text, load_conversation, save_conversation
from duogen.library.conversations import ConversationStore
from duogen.picture_roles import WORDINGS, arrange_turn, describe_roles, find_marks, name_pictures, number_turn, order_sources


def image(colour: str, role: str = "") -> Image:
    return Image(PILImage.new("RGB", (8, 6), colour), role=role)


def colours(parts) -> list[str]:
    """The parts: words, and of each picture its colour and role."""
    names = {(255, 0, 0): "red", (0, 0, 255): "blue", (255, 255, 0): "yellow"}
    return [part.text if isinstance(part, Text) else f"{names[part.picture.getpixel((0, 0))]} {part.role}".strip() for part in parts]


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("the boat of @2 into @1.", [2, 1]),
        ("@1's roof, @1, (@3)", [1, 3]),
        ("把@2的船放进@1", [2, 1]),
        ("a@1.com, me@2, @1st, @boat, https://x.org/@3, @1.png, @12345, 2@3", []),
    ],
)
def test_marks_in_words(words, numbers) -> None:
    assert find_marks(words) == numbers


@pytest.mark.parametrize(
    ("roles", "shown"),
    [
        (("source", "reference"), ["blue reference", "red source", "picture 1 into picture 2"]),
        (("reference", "source"), ["red reference", "blue source", "picture 2 into picture 1"]),
        (("reference", "reference"), ["red reference", "blue reference", "picture 2 into picture 1"]),
        (("", "reference"), ["blue reference", "red source", "picture 1 into picture 2"]),
        (("source", ""), ["blue reference", "red source", "picture 1 into picture 2"]),
        (("", ""), ["red reference", "blue source", "picture 2 into picture 1"]),
    ],
)
def test_a_trained_pair_reads_references_first_and_the_source_last(roles, shown) -> None:
    turn = Conversation().say("user", image("red", roles[0]), image("blue", roles[1]), "@2 into @1").path()[0]
    assert colours(arrange_turn(turn, []).parts) == shown


def test_earlier_pictures_that_are_named_are_shown_again() -> None:
    before = [image("red", "reference"), image("blue")]
    turn = Conversation().say("user", "Put @2 into", image("yellow", "reference"), "as @1 and @7").path()[0]
    assert colours(arrange_turn(turn, before).parts) == ["Put picture 2 into", "yellow reference", "blue source", "as picture 1 and @7"]
    turn = Conversation().say("user", "Make @1 and @2 one").path()[0]
    assert colours(arrange_turn(turn, before).parts) == ["red reference", "blue source", "Make picture 1 and picture 2 one"]


def test_without_roles_and_marks_nothing_changes() -> None:
    turn = Conversation().say("user", image("red"), image("blue"), "Hello @you @9").path()[0]
    assert arrange_turn(turn, [image("yellow")]) is turn and number_turn(turn, 1) == turn
    assert describe_roles(turn, 1) == "" and order_sources(turn, 1) == ([], [])


def test_an_untrained_mllm_reads_the_numbers_of_the_conversation() -> None:
    turn = Conversation().say("user", image("red", "source"), image("blue", "reference"), "@2 into @1, as @4; @3 was nice").path()[0]
    assert number_turn(turn, 3).text() == "@5 into @4, as @4; @3 was nice"
    assert number_turn(turn, 3, left_out=3).text() == "@2 into @1, as @1; another image was nice"
    assert describe_roles(turn, 3) == " (Keep the pixels of @4. Keep the looks of @5.)"
    assert order_sources(turn, 3) == ([4, 3], [5])


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("QwenImageEditPlusPipeline", "Picture 2 in Picture 1"),
        ("Flux2KleinPipeline", "image 2 in image 1"),
        ("Flux2Pipeline", "image 2 in image 1"),
        ("QwenImageEditPipeline", "the image in the image"),
        ("AnotherPipeline", "image 2 in image 1"),
    ],
)
def test_each_pipeline_has_its_own_words(pipeline, words) -> None:
    assert name_pictures("@1 in @7", pipeline, [7, 1]) == words
    assert name_pictures("no mark, a@1.com", pipeline, [1]) == "no mark, a@1.com"


def test_the_table_names_pipelines_that_there_are() -> None:
    import diffusers

    known = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    assert all(any(name.startswith(begin) for name in known) for begin in WORDINGS)


def test_roles_survive_disk_export_and_import(tmp_path) -> None:
    said = Conversation(title="boats").say("user", image("red", "source"), image("blue", "reference"), image("yellow"), "@1 into @2")
    store = ConversationStore(tmp_path / "chats")
    store.save(said)
    with (tmp_path / "chat.zip").open("wb") as out:
        store.pack_to(said.id, out)
    store.delete(said.id)
    back = store.unpack(tmp_path / "chat.zip")
    assert [each.role for each in back.path()[0].images()] == ["source", "reference", ""]
    file = tmp_path / "chats" / back.id / "conversation.json"
    raw = json.loads(file.read_text())
    assert "role" not in raw["turns"][0]["parts"][2]
    raw["turns"][0]["parts"][0]["role"] = "hero"
    file.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="the role of a picture is none of those"):
        load_conversation(file.parent)


def test_a_conversation_without_roles_is_written_as_before(tmp_path) -> None:
    save_conversation(Conversation().say("user", image("red"), "Hi"), tmp_path)
    assert "role" not in json.loads((tmp_path / "conversation.json").read_text())["turns"][0]["parts"][0]


def test_a_waiting_message_keeps_its_roles_on_disk(tmp_path) -> None:
    store, file = ConversationStore(tmp_path / "chats"), tmp_path / "x.png"
    file.write_bytes(b"x")
    said = store.save(Conversation(title="boats").say("user", "Hi"))
    waiting = {"words": "w", "files": [str(file), "/gone.png"], "options": {}, "roles": {str(file): "source", "/gone.png": "x"}}
    store.save_waiting(said.id, [waiting])
    assert store.read_about(said.id)["waiting"][0]["roles"] == {str(file): "source"}


def test_the_command_line_numbers_pictures_as_they_are_given() -> None:
    given = parser().parse_args(["ask", "@1 into @3", "--reference", "C:\\a.png", "--image", "b:c.png", "--source", "https://x/d.png"])
    assert given.image == [("reference", "C:\\a.png"), ("", "b:c.png"), ("source", "https://x/d.png")]
    assert parser().parse_args(["ask", "hi"]).image == []
