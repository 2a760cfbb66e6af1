"""Pictures for programs: sizes, formats, streams, and changes of pictures that they send."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
from PIL import Image as PILImage

from duogen.provenance import Origin, read_origin
from tests.support.api import encode, png
from tests.support.tiny import BOV, END, SIDE, script
from tests.support.waiting import patience
from ui.api.images import ImageRequest, nearest_size, parse_size
from ui.api.requests import RequestError

OWN = {"image_size": (1280, 704)}


def decode(data: str) -> PILImage.Image:
    return PILImage.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    ("size", "about", "options"),
    [
        ((1280, 704), OWN, {"aspect": "auto", "side": 0}),
        ((1792, 1024), OWN, {"aspect": "16:9", "side": 0}),  # larger than its own
        ((1024, 1024), OWN, {"aspect": "1:1", "side": 0}),
        ((512, 512), OWN, {"aspect": "1:1", "side": 512}),
        ((1, 1), OWN, {"aspect": "1:1", "side": 16}),
        ((90000, 1), OWN, {"aspect": "auto", "side": 1280}),
        ((512, 512), {"image_size": (1024, 1024)}, {"aspect": "auto", "side": 512}),
        ((1024, 1536), {"image_size": (1024, 1024)}, {"aspect": "2:3", "side": 0}),
        ((512, 512), {"image_size": (1024, 1024), "sees_previous": True}, {}),
    ],
)
def test_the_nearest_size(size, about, options):
    assert nearest_size(size, about) == options
    image = ImageRequest.parse({"prompt": "x", "size": f"{size[0]}x{size[1]}"}).options(about).image
    assert {"aspect": image.aspect, "side": image.side} == {"aspect": "auto", "side": 0, **options}


def test_sizes_as_programs_write_them():
    assert parse_size("1024x512") == parse_size(" 1024 X 512 ") == parse_size("1024×512") == (1024, 512)
    assert parse_size("auto") is parse_size("") is parse_size(None) is None
    for wrong in ("big", "0x5", "5", "-5x5", 512, ["5x5"], "999999x5"):
        with pytest.raises(RequestError, match="size must be"):
            parse_size(wrong)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"n": 11}, "n must be"),
        ({"n": 0}, "n must be"),
        ({"prompt": " "}, "no prompt"),
        ({"output_format": "gif"}, "output_format"),
        ({"response_format": "file"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"output_compression": 101}, "output_compression"),
        ({"partial_images": 4}, "partial_images"),
        ({"stream": "perhaps"}, "true or false"),
        ({"side": 5000}, "side must be"),
    ],
)
def test_wrong_pictures_are_refused(asked, words):
    with pytest.raises(RequestError, match=words):
        ImageRequest.parse({"prompt": "a house", **asked})


def test_what_has_no_effect_is_said():
    asked = {"prompt": "a house", "quality": "hd", "style": "vivid", "n": None, "user": "anna", "moderation": "low", "max_tokens": 9000}
    assert ImageRequest.parse({**asked, "max_tokens": 100}).notices == ["These fields have no effect here: quality, style."]
    assert ImageRequest.parse({"prompt": "a house", "quality": "standard", "size": "", "n": "2"}).notices == []


def test_sizes_formats_and_seeds(client, loading, monkeypatch):
    script(monkeypatch, loading.engine.tokens, BOV, BOV)
    made = client.images.generate(model="tiny", prompt="a house", size="1024x1024", n=2, extra_body={"seed": 1, "output_format": "webp"})
    assert made.size == f"{SIDE}x{SIDE}" and made.output_format == "webp" and len(made.notices) == 1
    assert [(decode(each.b64_json).format, decode(each.b64_json).size) for each in made.data] == [("WEBP", (SIDE, SIDE))] * 2
    script(monkeypatch, loading.engine.tokens, BOV)
    small = {"seed": 1, "output_format": "jpeg", "output_compression": 50}
    made = client.images.generate(model="tiny", prompt="a house", response_format="url", n=None, extra_body=small)
    head, _, data = made.data[0].url.partition(",")
    assert head == "data:image/jpeg;base64" and decode(data).format == "JPEG"


def test_a_stream_of_pictures(client, loading, monkeypatch):
    script(monkeypatch, loading.engine.tokens, BOV)
    given = {"model": "tiny", "prompt": "a house", "extra_body": {"seed": 1, "steps": 4}}
    events = list(client.images.generate(**given, stream=True, partial_images=1))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert all(decode(event.b64_json).size == (SIDE, SIDE) and event.size == f"{SIDE}x{SIDE}" for event in events)
    script(monkeypatch, loading.engine.tokens, BOV)
    assert client.images.generate(**given).data[0].b64_json == events[-1].b64_json
    assert read_origin(decode(events[-1].b64_json)) is Origin.PAINTED
    monkeypatch.setattr(loading.engine, "answer", lambda *_: (_ for _ in ()).throw(KeyError("lost")))
    with pytest.raises(openai.APIError, match="The answer failed"):
        list(client.images.generate(**given, stream=True))


def test_only_what_is_transparent_in_the_mask_changes(client, loading, monkeypatch):
    house = PILImage.effect_noise((96, 80), 60).convert("RGB")
    mask = PILImage.new("RGBA", house.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, 48, 80))
    script(monkeypatch, loading.engine.tokens, BOV)
    files = {"image": ("house.png", png(house)), "mask": ("mask.png", png(mask))}
    made = client.images.edit(model="tiny", prompt="a blue door", **files, n=1, size="1024x1024", extra_body={"seed": "1", "steps": "1"})
    changed = decode(made.data[0].b64_json)
    assert made.size == "96x80" == f"{changed.width}x{changed.height}" and "not 1024x1024" in made.notices[0]
    assert read_origin(changed) is Origin.CHANGED
    before, after = np.asarray(house), np.asarray(changed)
    assert (before[:, 48:] == after[:, 48:]).all() and (before[:, :40] != after[:, :40]).any()
    see_through = house.convert("RGBA")  # a picture that is its own mask
    see_through.putalpha(mask.getchannel("A"))
    script(monkeypatch, loading.engine.tokens, "No", END)  # painted from the prompt itself
    made = client.images.edit(model="tiny", prompt="a blue door", image=[png(see_through), png(house)], extra_body={"steps": 1})
    after = np.asarray(decode(made.data[0].b64_json))
    assert after.shape == before.shape and (before[:, 48:] == after[:, 48:]).all()


def test_an_edit_without_a_mask_and_as_json(client, loading, monkeypatch):
    house = PILImage.new("RGB", (96, 80), "red")
    script(monkeypatch, loading.engine.tokens, BOV)
    made = client.images.edit(model="tiny", prompt="a blue door", image=png(house), extra_body={"seed": 1, "steps": 1})
    assert made.size == f"{SIDE}x{SIDE}"
    for path, asked in (("edits", {"images": [{"image_url": encode(house)}]}), ("generations", {"image": encode(house)})):
        script(monkeypatch, loading.engine.tokens, BOV)
        body = {"model": "tiny", "prompt": "a blue door", "seed": 1, "steps": 1, **asked}
        again = client.post(f"/images/{path}", cast_to=dict, body=body)
        assert again["data"][0]["b64_json"] == made.data[0].b64_json
    script(monkeypatch, loading.engine.tokens, BOV)
    events = list(client.images.edit(model="tiny", prompt="x", image=png(house), stream=True, extra_body={"seed": 1, "steps": 1}))
    assert [event.type for event in events] == ["image_edit.completed"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"image": b"no picture"}, "cannot be read as a picture"),
        ({"image": png(PILImage.new("RGB", (9, 9))), "mask": png(PILImage.new("RGBA", (8, 8)))}, "the size of the picture"),
        ({"image": png(PILImage.new("RGB", (9, 9))), "mask": png(PILImage.new("RGB", (9, 9)))}, "no transparent places"),
        ({"image": [png(PILImage.new("RGB", (9, 9)))] * 17}, "at most 16"),
    ],
)
def test_wrong_edits_are_refused(client, files, words):
    with pytest.raises(openai.BadRequestError, match=words):
        client.images.edit(model="tiny", prompt="a blue door", **files)


def send_form(address: str, form: bytes, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(f"{address}/images/edits", form, {"Content-Type": "multipart/form-data; boundary=x", **headers})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=patience())
    return refused.value.code, json.loads(refused.value.read())["error"]


def test_forms_that_cannot_be_read_and_forms_of_foreign_pages(address):
    no_picture = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na door\r\n--x--\r\n'
    assert "no picture to change" in send_form(address, no_picture)[1]["message"]
    for origin, status in (("https://example.org", 403), ("null", 403), ("http://localhost:3000", 400), (address, 400)):
        assert send_form(address, no_picture, Origin=origin)[0] == status
    for damaged in (b"", b"--x", b"--y\r\n\r\n", no_picture[:40], b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"):
        status, error = send_form(address, damaged)
        assert status == 400 and error["type"] == "invalid_request_error"
    assert send_form(address, no_picture, **{"Content-Type": "multipart/form-data"})[0] == 400
    assert send_form(address, no_picture, **{"Content-Encoding": "gzip"})[0] == 415
