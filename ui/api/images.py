"""OpenAI's image generations and edits: what a request asks for, and the pictures as they are sent."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image
from duogen.events import Event, Events, Failed, ImageDone, ImageStep, Notice, Restarted
from duogen.mentions import spell_out
from duogen.options import Options
from duogen.text_decoding import clean_message
from ui.api.chat import OPTIONS, RANGES, clamp_options, unread_fields
from ui.api.messages import attach_references
from ui.api.pictures import FORMATS, decode_address, encode_base64, find_address, mark_transparent, read_picture
from ui.api.requests import RequestError, image_work, parse_flag, parse_number, parse_options
from ui.api.streams import error_line, sse_line

if TYPE_CHECKING:
    from duogen.answerer import Answerer

MOST_AT_ONCE, MOST_SOURCES, MOST_PARTIAL = 10, 16, 3
SIZE = re.compile(r"\s*(\d{1,5})\s*[xX×*]\s*(\d{1,5})\s*")
SOURCE_FIELD = re.compile(r"images?(\[\d*\])?")
SIDE, ASPECTS = RANGES["side"], RANGES["aspect"]["values"]
READ = {
    *OPTIONS,
    *("prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "background", "stream", "partial_images"),
    *("max_completion_tokens", "mask"),
}
NO_MATTER = {"user", "moderation", "metadata", "safety_identifier"}  # fields that a picture does not depend on
USUAL = ("auto", "standard", "low")  # of quality, style and input_fidelity: what asks for nothing


@dataclass(frozen=True)
class Output:
    """How a picture is sent: its format, the quality from 1 to 100, whether as a data URL."""

    format: str = "png"
    quality: int = 100
    as_url: bool = False

    @classmethod
    def parse(cls, asked: dict[str, Any]) -> Output:
        """Raises RequestError: it cannot be sent so."""
        name = asked.get("output_format") or "png"
        if not isinstance(name, str) or name not in FORMATS:
            raise RequestError("output_format must be png, jpeg or webp.", param="output_format")
        if asked.get("response_format") not in (None, "", "url", "b64_json"):
            raise RequestError("response_format must be url or b64_json.", param="response_format")
        if asked.get("background") not in (None, "", "auto", "opaque"):
            raise RequestError("This pair paints no transparent background; background must be auto or opaque.", param="background")
        quality = 100 if asked.get("output_compression") in (None, "") else parse_number("output_compression", asked["output_compression"])
        if not 0 <= quality <= 100:
            raise RequestError("output_compression must be from 0 to 100.", param="output_compression")
        return cls(FORMATS[name].lower(), max(1, quality), asked.get("response_format") == "url")

    def encode(self, image: Image) -> str:
        return encode_base64(image, self.format.upper(), self.quality)

    def entry(self, image: Image) -> dict[str, str]:
        data = self.encode(image)
        return {"url": f"data:image/{self.format};base64,{data}"} if self.as_url else {"b64_json": data}


@dataclass(frozen=True)
class ImageRequest:
    """A request for pictures.

    Attributes:
        conversation: its one turn asks for `prompt`, after the pictures that are to be changed.
        size: (width, height) that is wished for, `None` for the pair's own.
        given: the fields that are options.
        partial: how many pictures in the making a stream may show.
        notices: what of the request has no effect, a sentence each.
    """

    prompt: str
    conversation: Conversation
    count: int
    size: tuple[int, int] | None
    given: dict[str, Any]
    output: Output
    stream: bool
    partial: int
    notices: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, asked: dict[str, Any], sources: tuple[Image, ...] = ()) -> ImageRequest:
        """Raises RequestError: a field is wrong, or the pair cannot do what it asks for."""
        prompt = asked.get("prompt")
        if not isinstance(prompt, str) or not (prompt := clean_message(prompt)):
            raise RequestError("There is no prompt; say what the picture should show.", param="prompt")
        count = 1 if asked.get("n") in (None, "") else parse_number("n", asked["n"])
        if not 1 <= count <= MOST_AT_ONCE:
            raise RequestError(f"n must be from 1 to {MOST_AT_ONCE}.", param="n")
        partial = parse_number("partial_images", asked.get("partial_images") or 0)
        if not 0 <= partial <= MOST_PARTIAL:
            raise RequestError(f"partial_images must be from 0 to {MOST_PARTIAL}.", param="partial_images")
        given, notices = clamp_options(asked)
        given["max_images"] = 1
        parse_options(given, {})
        known = READ | NO_MATTER | {name for name in ("quality", "style", "input_fidelity") if asked.get(name) in USUAL}
        notices += unread_fields({name: value for name, value in asked.items() if not SOURCE_FIELD.fullmatch(name)}, known)
        stream = parse_flag("stream", asked.get("stream") or False)
        asking = attach_references(Conversation().say("user", *sources, prompt))
        prompt = spell_out(asking.path()[0]).text()
        return cls(prompt, asking, count, parse_size(asked.get("size")), given, Output.parse(asked), stream, partial, notices)

    @property
    def kind(self) -> str:
        """What the events of a stream begin with."""
        return "image_edit" if any(not each.reference for each in self.conversation.path()[0].images()) else "image_generation"

    def work(self, index: int) -> Callable[[Answerer, threading.Event], Events]:
        """The work that makes the picture at `index`, with the options of the pair that is open when it begins."""

        def work(engine: Answerer, stop: threading.Event) -> Events:
            yield from image_work(self.conversation, self.prompt, self.options(engine.about, index))(engine, stop)

        return work

    def options(self, about: dict[str, Any], index: int = 0) -> Options:
        wished = nearest_size(self.size, about) if self.size else {}
        options = parse_options(wished | self.given, about)
        if self.stream and self.partial:
            options = replace(options, image=replace(options.image, preview_every=max(1, options.image.steps // (self.partial + 1))))
        return options if options.seed is None else replace(options, seed=options.seed + index)

    def size_notice(self, picture: PILImage.Image) -> list[str]:
        """A sentence if the picture has another size than was wished for."""
        if self.size in (None, picture.size):
            return []
        asked, made = ("x".join(map(str, size)) for size in (self.size, picture.size))
        return [f"The picture has {made} pixels, not {asked}: the pair paints the nearest size that it can."]


def parse_size(size: Any) -> tuple[int, int] | None:
    """(width, height), `None` where a request leaves it to the pair.

    Raises:
        RequestError: it is no size.
    """
    if size in (None, "", "auto"):
        return None
    found = SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None or not int(found[1]) or not int(found[2]):
        raise RequestError("size must be auto, or a width and a height such as 1024x1024.", param="size")
    return int(found[1]), int(found[2])


def nearest_size(size: tuple[int, int], about: dict[str, Any]) -> dict[str, Any]:
    """The options for the picture nearest to `size` that the pair can paint: of the nearest shape, and not larger than its own."""
    own = about["image_size"]
    if about.get("sees_previous"):  # its pictures have one size
        return {}
    shapes = {each: tuple(map(int, each.split(":"))) for each in ASPECTS if each != "auto"} | {"auto": own}
    aspect = min(shapes, key=lambda name: (abs(math.log(size[0] * shapes[name][1] / size[1] / shapes[name][0])), name != "auto"))
    side = max(1, round(min(max(size), max(own)) / SIDE["step"])) * SIDE["step"]
    return {"aspect": aspect, "side": side if math.prod(size) < math.prod(own) else 0}


def has_sources(asked: dict[str, Any]) -> bool:
    return any(value and SOURCE_FIELD.fullmatch(name) for name, value in asked.items())


def parse_sources(asked: dict[str, Any], files: dict[str, list[bytes]]) -> tuple[Image, ...]:
    """The pictures that an edit changes, the first one with its mask.

    Args:
        asked: the fields; pictures in them are data URLs.
        files: what came as files, by field.

    Raises:
        RequestError: there is none, there are too many, or one or the mask cannot be read.
    """
    brought = [file for name, found in files.items() if SOURCE_FIELD.fullmatch(name) for file in found]
    for name, value in asked.items():
        if value and SOURCE_FIELD.fullmatch(name):
            brought += [decode_address(find_address(each)) for each in (value if isinstance(value, list) else [value])]
    if not brought:
        raise RequestError("There is no picture to change; send it in the field image.", param="image")
    if len(brought) > MOST_SOURCES:
        raise RequestError(f"An edit takes at most {MOST_SOURCES} pictures; send fewer.", param="image")
    mask = next(iter(files.get("mask", [])), None)
    if mask is None and asked.get("mask"):
        mask = decode_address(find_address(asked["mask"]))
    first, *others = map(read_picture, brought)
    return mark_transparent(first, brought[0], mask), *others


class Painted:
    """The pictures of a request as they are sent to a program."""

    def __init__(self, asked: ImageRequest) -> None:
        self.asked, self.notices = asked, list(asked.notices)
        self.images: list[Image] = []
        self.begun = int(time.time())

    def take(self, event: Event) -> None:
        """Raises RequestError: the answer failed."""
        if isinstance(event, Failed):
            raise RequestError(event.message, 500)
        if isinstance(event, Notice | Restarted):
            self.notices.append(event.message)
        if isinstance(event, ImageDone):
            self.notices += self.asked.size_notice(event.image.picture)
            self.images.append(event.image)

    def response(self) -> dict[str, Any]:
        output, notices = self.asked.output, list(dict.fromkeys(self.notices))
        data = [output.entry(image) for image in self.images]
        return {"created": self.begun, "data": data, **self._form(self.images[-1].picture), **({"notices": notices} if notices else {})}

    def _form(self, picture: PILImage.Image) -> dict[str, str]:
        return {"size": f"{picture.width}x{picture.height}", "output_format": self.asked.output.format, "background": "opaque"}

    async def stream(self, follow: Callable[[int], AsyncIterator[Event]]) -> AsyncGenerator[str]:
        """Server-sent events, as OpenAI writes them.

        Args:
            follow: the events of the picture at an index.
        """
        try:
            for index in range(self.asked.count):
                partial = 0
                async for event in follow(index):
                    self.take(event)
                    if isinstance(event, ImageStep) and event.preview and partial < self.asked.partial:
                        yield await asyncio.to_thread(self._line, "partial_image", Image(event.preview), {"partial_image_index": partial})
                        partial += 1
                    if isinstance(event, ImageDone):
                        notices = {"notices": list(dict.fromkeys(self.notices))} if self.notices else {}
                        yield await asyncio.to_thread(self._line, "completed", event.image, notices)
        except RequestError as wrong:
            yield error_line(wrong)

    def _line(self, name: str, image: Image, more: dict[str, Any]) -> str:
        kind = f"{self.asked.kind}.{name}"
        data = {"type": kind, "b64_json": self.asked.output.encode(image), "created_at": self.begun, "quality": "auto"}
        return sse_line({**data, **self._form(image.picture), **more}, kind)
