"""Conversations: branches, disk, and pictures that people bring."""

from __future__ import annotations

import io
import json
import struct
import zlib

import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Text, load_conversation, save_conversation
from duogen.picture_input import open_picture


def picture(colour: str = "red") -> PILImage.Image:
    return PILImage.new("RGB", (8, 6), colour)


def test_saved_conversation_comes_back_whole(tmp_path):
    said = (
        Conversation(title="boats")
        .say("user", "a boat", picture("blue"))
        .say("assistant", Text("Step 1."), Image(picture(), 7, 0.5, "a boat"))
    )
    save_conversation(said, tmp_path)
    back = load_conversation(tmp_path)
    assert back == said
    assert back.path()[0].images()[0].picture.getpixel((0, 0)) == (0, 0, 255)
    assert back.path()[1].images()[0].seed == 7


def test_edit_makes_a_branch_and_keeps_the_old_one():
    first = Conversation().say("user", "one").say("assistant", "1")
    asked = first.path()[0].id
    second = first.at(None).say("user", "two")
    assert [turn.text() for turn in second.path()] == ["two"]
    assert second.branches(asked) == [asked, second.head]
    assert [turn.text() for turn in second.at(first.head).path()] == ["one", "1"]


def test_interrupted_save_leaves_the_earlier_one(tmp_path, monkeypatch):
    said = Conversation().say("user", "one")
    save_conversation(said, tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_conversation(said.say("assistant", "two"), tmp_path)
    assert load_conversation(tmp_path) == said
    assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1'])
def test_damaged_file_gets_a_sentence(tmp_path, text):
    (tmp_path / "conversation.json").write_text(text)
    with pytest.raises(ValueError, match="damaged"):
        load_conversation(tmp_path)


def encoded(image: PILImage.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_alpha_lies_on_white():
    assert open_picture(encoded(PILImage.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_and_cmyk_and_rotated_and_animated():
    grey = PILImage.new("I;16", (4, 4), 32768)
    assert abs(open_picture(encoded(grey, "PNG")).getpixel((0, 0))[0] - 128) <= 1
    assert open_picture(encoded(PILImage.new("CMYK", (4, 4)), "JPEG")).mode == "RGB"
    turned = PILImage.Exif()
    turned[0x0112] = 6
    assert open_picture(encoded(picture(), "JPEG", exif=turned)).size == (6, 8)
    frames = encoded(picture("red"), "GIF", save_all=True, append_images=[picture("blue")])
    assert open_picture(frames).getpixel((0, 0))[0] > 200


def test_unreadable_pictures_get_a_sentence(tmp_path):
    whole = encoded(PILImage.effect_noise((64, 64), 50), "PNG")
    for data in (b"", b"not a picture", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="cannot be read as a picture"):
            open_picture(data)
    with pytest.raises(ValueError, match="There is no file"):
        open_picture(tmp_path / "none.png")


def test_bomb_is_refused():
    with pytest.raises(ValueError, match="50 megapixels"):
        open_picture(encoded(PILImage.new("1", (8000, 8000)), "PNG"))
    larger = bytearray(encoded(picture(), "PNG"))  # beyond what Pillow itself looks at
    larger[16:24] = struct.pack(">II", 60_000, 60_000)
    larger[29:33] = struct.pack(">I", zlib.crc32(larger[12:29]))
    with pytest.raises(ValueError, match="50 megapixels"):
        open_picture(bytes(larger))


def test_a_mask_is_kept_with_its_picture(tmp_path):
    mask = PILImage.new("L", (6, 4))
    mask.paste(255, (1, 1, 3, 3))
    save_conversation(Conversation().say("user", Image(PILImage.new("RGB", (6, 4), "red"), mask=mask)), tmp_path)
    (image,) = load_conversation(tmp_path).path()[0].images()
    assert image.mask.mode == "L" and image.mask.tobytes() == mask.tobytes()


def test_a_turn_goes_with_what_came_after_it():
    first = Conversation().say("user", "one").say("assistant", "1")
    (asked, answered), other = first.path(), first.at(first.path()[0].id).say("assistant", "uno").say("user", "two")
    assert other.tip(asked.id) == other.head and other.tip(answered.id) == answered.id
    back = other.without(other.path()[1].id)
    assert back.head == answered.id and len(back.turns) == 2, "the branch beside it is shown"
    assert back.without(answered.id).head == asked.id
    assert other.without(asked.id) == Conversation(id=first.id)
    assert other.without(answered.id).head == other.head, "what is not shown goes without a trace"
    assert back.with_turn(other.turns[other.path()[1].id]).head == other.path()[1].id


@pytest.mark.parametrize("parent", ["b", "a", "none"])
def test_a_circle_is_damage(tmp_path, parent):
    turns = [{"id": "a", "role": "user", "parent": parent, "parts": []}, {"id": "b", "role": "user", "parent": "a", "parts": []}]
    (tmp_path / "conversation.json").write_text(json.dumps({"format": 1, "id": "c", "title": "", "head": "b", "turns": turns}))
    with pytest.raises(ValueError, match="damaged"):
        load_conversation(tmp_path)
