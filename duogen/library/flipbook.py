"""A guide as a flipbook: its pictures one after the other, each with its words below it, as animated WebP, GIF or MP4.

A frame shows a picture as it was painted. A crossfade, which is off unless it is requested, adds frames that were not; the file says so.
Typst sets the words, with the fonts of the PDF.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from PIL import Image as PILImage

from duogen.content_credentials import sign_picture
from duogen.conversation import Conversation, Image
from duogen.library.guide import Block, Section, guess_language, guide_title, sections
from duogen.library.guide_pdf import typeset
from duogen.library.markdown import markdown_lines, strip_markdown
from duogen.library.video_file import PAPER, encode_mp4, pack_origin
from duogen.provenance import TERMS, Origin, write_packet
from duogen.text_decoding import count_words

TICK = 100  # milliseconds; every time is a multiple of it, and a blended frame takes one
LOOK, READ, SHORTEST, LONGEST = 1500, 350, 3000, 12000  # milliseconds: for the picture, for a word, at least and at most
MOST_SECONDS, MOST_BLENDED = 60, 20
LEAST_WIDTH, MOST_SIDE, MOST_HEIGHT = 480, 2048, 4096  # words need room; players show no larger videos
MOST_PIXELS = 200_000_000  # of all frames together; Pillow holds those of an animated picture at once
POINTS, LINE_SHARE, SMALLEST = 14, 30, 16  # the size of letters in flipbook.typ; in pixels a share of the width


@dataclass(frozen=True)
class FlipbookOptions:
    """How a flipbook plays.

    Attributes:
        seconds: how long each picture stays; `None` for as long as its words take to read, 3 to 12 seconds.
        words: whether each picture has its words below it.
        crossfade: how many frames are blended between two pictures.
    """

    seconds: float | None = None
    words: bool = True
    crossfade: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: a number is out of range."""
        if self.seconds is not None and not TICK / 1000 <= self.seconds <= MOST_SECONDS:
            raise ValueError(f"The seconds of a picture must be between {TICK / 1000} and {MOST_SECONDS}, not {self.seconds:g}.")
        if not 0 <= self.crossfade <= MOST_BLENDED:
            raise ValueError(f"The frames of a crossfade must be between 0 and {MOST_BLENDED}, not {self.crossfade}.")


@dataclass(frozen=True)
class Frame:
    """A picture of a flipbook.

    Attributes:
        words: Markdown.
        language: as `guess_language` says it.
    """

    image: Image
    words: str
    language: str

    @property
    def milliseconds(self) -> int:
        """How long the picture and its words take to look at and to read."""
        return _round_time(min(max(LOOK + READ * count_words(strip_markdown(self.words)), SHORTEST), LONGEST))


def _round_time(milliseconds: float) -> int:
    return max(1, round(milliseconds / TICK)) * TICK


def list_frames(found: Sequence[Section]) -> list[Frame]:
    """The pictures of answers, each with its words. Steps without a picture are said with the next one, the last ones with the last.

    What is said before the first step and after the last one is left out.

    Raises:
        ValueError: there are fewer than two pictures.
    """
    frames: list[Frame] = []
    for section in found:
        language, said = guess_language(section), []
        pictures = [at for at, block in enumerate(section.blocks) if block.picture is not None]
        for at, block in enumerate(section.blocks):
            said += [_say_block(block)] if block.is_step else []
            if block.picture is not None and at != pictures[-1]:
                frames.append(Frame(block.picture, "\n\n".join(said), language))
                said = []
        last = section.blocks[pictures[-1]].picture if pictures else None
        frames += [Frame(last, "\n\n".join(said), language)] if last is not None else []
    if len(frames) < 2:
        raise ValueError("A flipbook needs at least two pictures; save this as a PDF or as a web page instead.")
    return frames


def _say_block(block: Block) -> str:
    return f"**{block.label}.** {block.words}" if block.number is not None else block.words


def draw_frames(frames: Sequence[Frame], options: FlipbookOptions) -> Iterator[tuple[PILImage.Image, int]]:
    """The frames as RGB pictures of one size, and the milliseconds of each. Pictures of different sizes are centred on white.

    Without words a picture that is no larger than `MOST_SIDE` keeps its pixels.

    Raises:
        ValueError: the words do not fit below the pictures.
    """
    width, height, factor = _measure(frames, options.words)
    panels = _set_words(frames, width) if options.words and any(each.words for each in frames) else []
    tall = height + max((panel.height for panel in panels), default=0)
    if tall > MOST_HEIGHT:
        raise ValueError("The words of a step are too long for a flipbook; leave the words out, or save it as a PDF instead.")
    before: PILImage.Image | None = None
    for at, each in enumerate(frames):
        picture = each.image.picture
        if factor != 1:
            picture = picture.resize([max(1, round(side * factor)) for side in picture.size], PILImage.Resampling.LANCZOS)
        shown = PILImage.new("RGB", (width, tall), PAPER)
        shown.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        if panels:
            shown.paste(panels[at], (0, height))
        for blended in range(options.crossfade if before else 0):
            yield PILImage.blend(before or shown, shown, (blended + 1) / (options.crossfade + 1)), TICK
        yield shown, _round_time(1000 * options.seconds) if options.seconds else each.milliseconds if options.words else SHORTEST
        before = shown


def _measure(frames: Sequence[Frame], words: bool) -> tuple[int, int, float]:
    """The width and the height that hold every picture, and by how much pictures grow for words, or shrink."""
    sizes = [each.image.picture.size for each in frames]
    width, height = (max(sides) for sides in zip(*sizes, strict=True))
    factor = min(ceil(LEAST_WIDTH / width) if words else 1, MOST_SIDE / max(width, height))
    factor = int(factor) if factor > 1 else factor
    return max(1, round(width * factor)), max(1, round(height * factor)), factor


def _set_words(frames: Sequence[Frame], width: int) -> list[PILImage.Image]:
    """The words of each frame as a picture as wide as the frames. Raises ValueError: Typst cannot set them."""
    import typst

    scale = max(SMALLEST, width / LINE_SHARE) / POINTS
    lines = [{"language": each.language or "en", "lines": markdown_lines(each.words)} for each in frames]
    try:
        with tempfile.TemporaryDirectory(prefix="duogen-flipbook-") as folder:
            pages = typeset("flipbook", {"width": width / scale, "frames": lines}, Path(folder), format="png", ppi=72 * scale)
    except typst.TypstError as error:
        raise ValueError(f"The words cannot be set ({error.message.splitlines()[0]}); save it as a web page instead.") from error
    return [PILImage.open(io.BytesIO(page)).convert("RGB") for page in pages]


def as_webp(conversation: Conversation, answer: str | None = None, options: FlipbookOptions | None = None) -> bytes:
    """An animated WebP that loses nothing of the frames. Raises ValueError as `list_frames` and `draw_frames`, or it is too large."""
    return _encode(conversation, answer, options or FlipbookOptions(), "WEBP", _encode_webp)


def as_gif(conversation: Conversation, answer: str | None = None, options: FlipbookOptions | None = None) -> bytes:
    """An animated GIF, each frame with the 256 colours that suit it best. Raises ValueError as `as_webp`."""
    return _encode(conversation, answer, options or FlipbookOptions(), "GIF", _encode_gif)


def as_mp4(conversation: Conversation, answer: str | None = None, options: FlipbookOptions | None = None) -> bytes:
    """A video, H.264 in MP4. An odd size gets a white line more. Raises ValueError as `list_frames` and `draw_frames`."""
    return _encode(conversation, answer, options or FlipbookOptions(), "MP4", _encode_mp4)


FLIPBOOKS = {".webp": as_webp, ".gif": as_gif, ".mp4": as_mp4}


@dataclass(frozen=True)
class _Mark:
    """What a file says of itself.

    Attributes:
        origin: of the pictures together; `None` where no model is known to have painted any.
    """

    title: str
    origin: Origin | None
    blended: int

    @property
    def comment(self) -> str:
        """The mark of origin for files that cannot hold XMP."""
        source = f" Digital source type: {TERMS}{self.origin}" if self.origin else ""
        return f"Made with DuoGen. {self.frames}{source}"

    @property
    def frames(self) -> str:
        if not self.blended:
            return "Every picture is shown as it is; nothing is blended."
        return f"{self.blended} frames between one picture and the next are blended, not painted."

    @property
    def packet(self) -> bytes:
        return write_packet(self.origin, self.frames if self.blended else "")


Drawn = Iterator[tuple[PILImage.Image, int]]


def _encode(
    conversation: Conversation, answer: str | None, options: FlipbookOptions, kind: str, encode: Callable[[Drawn, _Mark], bytes]
) -> bytes:
    found = sections(conversation, answer)
    frames = list_frames(found)
    origin = find_common_origin([each.image.origin for each in frames])
    data = encode(draw_frames(frames, options), _Mark(guide_title(found), origin, options.crossfade))
    return sign_picture(data, kind, origin) if all(each.image.is_painted for each in frames) else data


def find_common_origin(origins: Sequence[Origin | None]) -> Origin | None:
    """The origin of pictures together: painted where all are, changed where some are."""
    if len(set(origins)) == 1:
        return origins[0]
    return Origin.CHANGED if any(origins) else None


def _collect(drawn: Drawn) -> tuple[list[PILImage.Image], list[int]]:
    """All frames, and their milliseconds. Raises ValueError: they are too many."""
    pictures, times, pixels = [], [], 0
    for picture, milliseconds in drawn:
        pixels += picture.width * picture.height
        if pixels > MOST_PIXELS:
            raise ValueError("This is too much for an animated picture; save it as a video instead.")
        pictures.append(picture)
        times.append(milliseconds)
    return pictures, times


def _encode_webp(drawn: Drawn, mark: _Mark) -> bytes:
    (first, *rest), times = _collect(drawn)
    data, xmp = io.BytesIO(), {"xmp": mark.packet} if mark.origin or mark.blended else {}
    first.save(data, "WEBP", save_all=True, append_images=rest, duration=times, loop=0, lossless=True, **xmp)
    return data.getvalue()


def _encode_gif(drawn: Drawn, mark: _Mark) -> bytes:
    pictures, times = _collect(drawn)
    first, *rest = [picture.quantize(palette=picture.quantize(256)) for picture in pictures]
    data = io.BytesIO()
    first.save(data, "GIF", save_all=True, append_images=rest, duration=times, loop=0, comment=mark.comment)
    return data.getvalue()


def _encode_mp4(drawn: Drawn, mark: _Mark) -> bytes:
    shown = (picture for picture, milliseconds in drawn for _ in range(milliseconds // TICK))
    return encode_mp4(shown, 1000 // TICK, mark.title, mark.comment, stills=True) + _pack_xmp(mark)


def _pack_xmp(mark: _Mark) -> bytes:
    """The mark as a box at the end of an MP4; nothing without an origin."""
    return pack_origin(mark.origin, mark.frames if mark.blended else "")
