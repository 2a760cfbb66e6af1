"""Guides as flipbooks: what the files show when they are opened again, frame by frame."""

from __future__ import annotations

import io
import random
from pathlib import Path

import av
import pytest
from PIL import Image as PILImage

from duogen.cli import main as cli
from duogen.content_credentials import read_signer, use_signer
from duogen.conversation import Conversation, Image, load_conversation, save_conversation
from duogen.library import flipbook
from duogen.library.flipbook import FLIPBOOKS, FlipbookOptions, as_mp4, as_webp, find_common_origin, list_frames
from duogen.library.guide import sections
from duogen.provenance import Origin, find_origin
from tests.unit.test_content_credentials import verdict, write_files

SIZES = ((60, 40), (33, 47), (60, 47))
COMMON = (60, 47)
PLAIN = FlipbookOptions(words=False)


def noise(size: tuple[int, int], seed: int, colours: int = 2**24) -> PILImage.Image:
    """A picture in which every pixel has a colour of its own, or one of so many."""
    drawn = random.Random(seed)
    palette = [drawn.randbytes(3) for _ in range(min(colours, size[0] * size[1]))]
    return PILImage.frombytes("RGB", size, b"".join(drawn.choice(palette) for _ in range(size[0] * size[1])))


def guide(*pictures: PILImage.Image, words: str = "Do it.") -> Conversation:
    parts: list = ["You need paper.\n\n"]
    for number, picture in enumerate(pictures, 1):
        parts += [f"Step {number}. {words}\n", Image(picture, seed=1, seconds=1.0, origin=Origin.PAINTED)]
    return Conversation().say("user", "How do I fold it?").say("assistant", *parts)


def on_canvas(picture: PILImage.Image, size: tuple[int, int]) -> PILImage.Image:
    canvas = PILImage.new("RGB", size, "white")
    canvas.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return canvas


def open_frames(data: bytes) -> list[tuple[PILImage.Image, float]]:
    """The frames of an animated picture, and how long each stays."""
    found = []
    with PILImage.open(io.BytesIO(data)) as file:
        for at in range(file.n_frames):
            file.seek(at)
            file.load()  # reads how long it stays
            found.append((file.convert("RGB"), file.info["duration"] / 1000))
    return found


def open_video(data: bytes) -> list[tuple[PILImage.Image, float]]:
    """The frames of a video, and when each comes."""
    with av.open(io.BytesIO(data)) as file:
        return [(frame.to_image(), frame.time) for frame in file.decode(video=0)]


def differ(one: PILImage.Image, other: PILImage.Image) -> float:
    """How much two pictures differ on average, 0 to 255."""
    assert one.size == other.size
    pairs = list(zip(one.tobytes(), other.tobytes(), strict=True))
    return sum(abs(first - second) for first, second in pairs) / len(pairs)


@pytest.mark.parametrize(("kind", "colours"), [(".webp", 2**24), (".gif", 60)])
def test_an_animated_picture_shows_what_was_painted_and_nothing_else(kind: str, colours: int) -> None:
    pictures = [noise(size, seed, colours) for seed, size in enumerate(SIZES)]
    data = FLIPBOOKS[kind](guide(*pictures), None, FlipbookOptions(1.5, words=False))
    frames = open_frames(data)
    assert [seconds for _, seconds in frames] == [1.5] * 3 and PILImage.open(io.BytesIO(data)).info["loop"] == 0
    assert [shown.tobytes() for shown, _ in frames] == [on_canvas(each, COMMON).tobytes() for each in pictures]
    assert find_origin(data) is Origin.PAINTED and b"blended, not painted" not in data


def test_a_video_shows_what_was_painted_and_nothing_else() -> None:
    pictures = [noise((6, 4), seed).resize(size, PILImage.Resampling.BICUBIC) for seed, size in enumerate(SIZES)]
    data = as_mp4(guide(*pictures), None, FlipbookOptions(0.5, words=False))
    even = (60, 48)
    shown = [PILImage.new("RGB", even, "white") for _ in pictures]
    for page, picture in zip(shown, pictures, strict=True):
        page.paste(on_canvas(picture, COMMON))
    frames = open_video(data)
    assert [time for _, time in frames] == pytest.approx([at / 10 for at in range(15)])
    for at, (frame, _) in enumerate(frames):
        assert [differ(frame, page) < 8 for page in shown] == [page is shown[at // 5] for page in shown]
    with av.open(io.BytesIO(data)) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(1.5)
        assert file.metadata["title"] == "How do I fold it?"
        assert file.metadata["comment"].endswith("digitalsourcetype/trainedAlgorithmicMedia")
    box = data[-int.from_bytes(data[data.rindex(b"uuid") - 4 :][:4], "big") :]
    assert box[4:8] == b"uuid" and b'DigitalSourceType="http://cv.iptc.org/' in box and data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("kind", FLIPBOOKS)
def test_a_crossfade_is_counted_and_the_file_says_so(kind: str) -> None:
    red, blue = (PILImage.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    data = FLIPBOOKS[kind](guide(red, blue), None, FlipbookOptions(1, words=False, crossfade=3))
    assert b"3 frames between one picture and the next are blended, not painted." in data
    frames = open_video(data) if kind == ".mp4" else open_frames(data)
    colours = [frame.getpixel((20, 20)) for frame, _ in frames]
    between = [(255 - round(255 * part / 4), 0, round(255 * part / 4)) for part in (1, 2, 3)]
    expected = [(255, 0, 0), *between, (0, 0, 255)]
    if kind == ".mp4":
        expected = expected[:1] * 10 + between + expected[-1:] * 10
    else:
        assert [seconds for _, seconds in frames] == [1, 0.1, 0.1, 0.1, 1]
    assert len(colours) == len(expected)
    assert sum(colours, ()) == pytest.approx(sum(expected, ()), abs=6)


def test_words_stand_below_and_say_how_long_a_picture_stays() -> None:
    pictures = [noise((500, 64), seed) for seed in range(3)]
    parts = ["Step 1. Cut.", "Step 2. " + "Fold it well. " * 4, "Step 3. " + "一二三四五六七八九十" * 20]
    said = [each for pair in zip(parts, map(Image, pictures), strict=True) for each in pair]
    frames = open_frames(as_webp(Conversation().say("user", "x").say("assistant", *said)))
    assert [seconds for _, seconds in frames] == [3, 6.4, 12]  # 14 words with the number: 1.5 + 14 x 0.35
    for (shown, _), picture in zip(frames, pictures, strict=True):
        assert shown.width == 500 and shown.crop((0, 0, 500, 64)).tobytes() == picture.tobytes()
        assert shown.crop((0, 64, *shown.size)).convert("L").getextrema()[0] < 100, "there are no letters"
        assert shown.getpixel((2, shown.height - 2)) == (255, 255, 255)


def test_every_step_is_said_with_a_picture() -> None:
    one, two, three = (Image(PILImage.new("RGB", (8, 8), colour)) for colour in ("red", "green", "blue"))
    parts = ["You need:\n\nStep 1. Cut.\n\nStep 2. Fold.\n", one, two, "Step 3. Dry.\n", three, "Step 4. Paint.\n\nStep 5. Done."]
    frames = list_frames(sections(Conversation().say("user", "x").say("assistant", *parts)))
    assert [frame.image for frame in frames] == [one, two, three] and [frame.image.picture for frame in frames][2] is three.picture
    assert [frame.words for frame in frames] == [
        "**Step 1.** Cut.\n\n**Step 2.** Fold.", "", "**Step 3.** Dry.\n\n**Step 4.** Paint.\n\n**Step 5.** Done.",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "words", "width"), [((64, 48), True, 512), ((64, 48), False, 64), ((4096, 8), False, 2048)])
def test_words_need_room_and_players_have_a_limit(size: tuple[int, int], words: bool, width: int) -> None:
    pictures = [PILImage.new("RGB", size, colour) for colour in ("red", "blue")]
    ((shown, _), _) = open_frames(as_webp(guide(*pictures), None, FlipbookOptions(words=words)))
    assert shown.width == width and shown.getpixel((width - 1, 0)) == (255, 0, 0)


def test_what_is_no_flipbook_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = PILImage.new("RGB", (64, 64))
    for conversation in (guide(picture), Conversation().say("user", "x").say("assistant", "Only words.")):
        with pytest.raises(ValueError, match="A flipbook needs at least two pictures"):
            as_webp(conversation)
    with pytest.raises(ValueError, match="too long for a flipbook"):
        as_webp(guide(picture, picture, words="Fold it well. " * 1500))
    monkeypatch.setattr(flipbook, "MOST_PIXELS", 64 * 64)
    with pytest.raises(ValueError, match="save it as a video"):
        as_webp(guide(picture, picture), None, PLAIN)
    assert len(open_video(as_mp4(guide(picture, picture), None, PLAIN))) == 2 * 30
    for seconds, crossfade in ((0, 0), (61, 0), (float("nan"), 0), (None, -1), (None, 21)):
        with pytest.raises(ValueError, match="must be between"):
            FlipbookOptions(seconds, crossfade=crossfade)


def test_the_command_line_plays_a_saved_conversation_and_its_damaged_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures = [noise((40, 40), seed, 100) for seed in range(3)]
    save_conversation(guide(*pictures), tmp_path / "talk")
    flags = ["--seconds", "2", "--no-words", "--crossfade", "1"]
    run = lambda name: cli.main(["export", str(tmp_path / "talk"), "--to", str(tmp_path / name), *flags])  # noqa: E731
    assert run("a.gif") == 0
    frames = open_frames((tmp_path / "a.gif").read_bytes())
    assert [seconds for _, seconds in frames] == [2, 0.1, 2, 0.1, 2] and frames[4][0].tobytes() == pictures[2].tobytes()
    assert run("a.pdf") != 0 and "is no flipbook" in capsys.readouterr().err and not (tmp_path / "a.pdf").exists()
    stored = load_conversation(tmp_path / "talk", lazily=True)
    stored.path()[-1].images()[1].source.file.write_bytes(b"damaged")
    assert len(open_frames(as_webp(load_conversation(tmp_path / "talk", lazily=True), None, PLAIN))) == 3


@pytest.mark.parametrize("kind", FLIPBOOKS)
def test_a_flipbook_of_paintings_is_signed(kind: str, tmp_path: Path) -> None:
    use_signer(read_signer(*write_files(tmp_path)))
    try:
        painted = guide(*(PILImage.new("RGB", (48, 48), colour) for colour in ("red", "blue")))
        data = FLIPBOOKS[kind](painted, None, PLAIN)
        brought = painted.say("user", "And?").say("assistant", Image(PILImage.new("RGB", (48, 48))))
        other = FLIPBOOKS[kind](brought, None, PLAIN)
    finally:
        use_signer(None)
    assert verdict(data, kind[1:]) == "Trusted" and verdict(other, kind[1:]) == ""
    assert len(open_video(data) if kind == ".mp4" else open_frames(data)) == (60 if kind == ".mp4" else 2)


def test_the_origin_of_pictures_together() -> None:
    painted, changed = Origin.PAINTED, Origin.CHANGED
    assert [find_common_origin(each) for each in ([painted] * 2, [painted, changed], [painted, None], [None] * 2)] == [
        painted, changed, changed, None,
    ]  # fmt: skip
