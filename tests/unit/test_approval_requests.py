"""Requests to keep a part of a picture and to change the rest."""

from __future__ import annotations

import json

import pytest
from PIL import Image as PILImage

from duogen.approved import MARKED, describe_place, find_approval, find_shown, mask_rest
from duogen.conversation import Conversation, Image
from duogen.paths import ASSETS


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("I like the house, change the rest", "the house"),
        ("I like the house. Change the rest!", "the house"),
        ("Keep the house and paint everything else anew", "the house"),
        ("keep the red roof, make the rest a winter night", "the red roof"),
        ("Please keep the house as it is, but change everything else", "the house"),
        ("Change everything but the house", "the house"),
        ("change everything except for the two trees.", "the two trees"),
        ("Can you keep the house and change the rest?", "the house"),
        ("I love the boat of @2; please change the rest", "the boat"),
        ("change the rest, keep the dog", "the dog"),
        ("change everything, but keep the dog", "the dog"),
        ("I like the house, change the rest of it", "the house"),
        ("Mir gefällt das Haus, ändere den Rest", "das Haus"),
        ("Das Haus gefällt mir, ändere bitte den Rest.", "Das Haus"),
        ("Behalte das Haus und male alles andere neu", "das Haus"),
        ("Lass das Haus, wie es ist, und mach den Rest neu", "das Haus"),
        ("Ändere alles außer dem Haus", "dem Haus"),
        ("Das Dach soll so bleiben, ändere den Rest", "Das Dach"),
        ("我喜欢房子，其余的都换掉", "房子"),
        ("保留房子，重画其他部分", "房子"),
        ("除了房子都改掉", "房子"),
        ("请保留红色的屋顶，把其余部分换成冬天", "红色的屋顶"),
        (f"Keep {MARKED}, change the rest.", MARKED),
    ],
)
def test_requests_to_keep_a_part(words: str, part: str) -> None:
    request = find_approval(words)
    assert request and request.part == part and request.said == words and not request.wish
    assert request.ask(True) == words and part in request.ask(False) and words in request.ask(False)


@pytest.mark.parametrize(
    "words",
    [
        "Make the roof red", "I like it, change the rest", "I like the house", "Change everything", "Keep the house", "keep going",
        "draw a house and the rest of the garden", "I like the house, paint the rest of the roof red", "Give me four ideas for a house",
        "Ich mag das Haus", "Ändere den Rest", "我喜欢房子", "keep " * 200,
    ],
)  # fmt: skip
def test_other_messages_are_none(words: str) -> None:
    assert find_approval(words) is None


@pytest.mark.parametrize("colon", [":", "："])
def test_a_wish_stands_behind_a_colon(colon: str) -> None:
    request = find_approval(f"Keep the house, change the rest{colon} a winter\nnight. " + "Snow. " * 99)
    assert request and request.part == "the house" and request.wish.startswith("a winter\nnight.")
    assert request.ask(True) == request.wish and request.said in request.ask(False)


def test_the_sketchbook_asks_in_words_that_are_understood() -> None:
    asks = json.loads((ASSETS / "sketchbook" / "phrases" / "compose.json").read_text(encoding="utf-8"))["approved"]
    assert [find_approval(each.format(the="the house")).part for each in asks] == ["the house"] * len(asks)


def test_the_picture_is_the_named_one_else_the_latest_that_is_no_reference() -> None:
    one, two, three, four = (Image(PILImage.new("RGB", (8, 8), (at, 0, 0))) for at in range(4))
    talk = Conversation().say("user", one, "Look").say("assistant", two, "Here")
    ask = "Keep the house, change the rest"

    def shown(*parts):
        found = find_shown(talk.say("user", *parts).path())
        return found and found.picture.getpixel((0, 0))[0]

    assert shown(ask) == 1 and shown(three, ask) == 2 and shown(f"Keep the house of @1{ask[14:]}") == 0
    assert shown(Image(four.picture, role="reference"), ask) == 1
    assert find_shown(Conversation().say("user", ask).path()) is None


def test_a_mask_of_the_rest_and_where_its_part_is() -> None:
    mask = mask_rest((100, 50), [(10, 10, 30, 20), (60, 30, 70, 50)])
    assert [mask.getpixel(at) for at in ((10, 10), (29, 19), (30, 19), (65, 49), (0, 0))] == [0, 0, 255, 0, 255]
    assert describe_place(mask) == "what is seen from 10 to 70 percent of its width and from 20 to 100 percent of its height"
    assert describe_place(PILImage.new("L", (9, 9), 255)) == ""
