"""Requests of programs, for every API: checks pictures and options, and runs the engine for one request after the other."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import threading
import traceback
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from duogen.conversation import Conversation, Image
from duogen.events import Events, Failed, ImageDone
from duogen.options import Checked, ImageOptions, Options, TextOptions
from duogen.picture_input import open_picture
from ui.parts.loading import Loading

if TYPE_CHECKING:
    from duogen.engine import Engine

PICTURE_SIDE = 1536  # a photo from a phone takes 150 MB of memory, and no pair sees more
MOST_PICTURES = 64
OTHER_NAMES = {"max_completion_tokens": "max_tokens"}

Work = Callable[["Engine", threading.Event], Events]


class RequestError(Exception):
    """A request that cannot be served; the message is one sentence."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def run_in_queue(loading: Loading, work: Work, stop: threading.Event) -> Events:
    """The events of `work` when it is its turn in the queue; every error becomes `Failed`. Blocks while other requests are before."""
    while not stop.is_set() and not loading.finished.wait(0.1):
        pass
    with loading.queue.wait_turn(lambda before: None, stop) as mine:
        if not mine:
            return
        if loading.engine is None:
            yield Failed(loading.error, Conversation())
            return
        try:
            yield from work(loading.engine, stop)
        except Exception as error:  # a program must learn of every error
            traceback.print_exc()
            yield Failed(f"The answer failed ({type(error).__name__}: {error}).", Conversation())


def answer_work(conversation: Conversation, options: Options) -> Work:
    return lambda engine, stop: engine.answer(conversation, options, stop)


def image_work(prompt: str, options: Options) -> Work:
    """The work that makes one picture: the first of an answer, or, if the answer has none, one painted from the prompt itself."""

    def work(engine: Engine, stop: threading.Event) -> Events:
        asked = Conversation().say("user", prompt)
        with contextlib.closing(engine.answer(asked, options, stop)) as events:
            for event in events:
                yield event
                if isinstance(event, ImageDone | Failed):
                    return
        if not stop.is_set():
            yield from engine.stream_image(asked.say("assistant", prompt + "\n"), options, stop)

    return work


def parse_picture(address: Any) -> Image:
    """A data URL as a picture. Links are refused: a client could make this machine fetch them.

    Raises:
        Wrong: it is no data URL, or no picture.
    """
    head, _, data = str(address).partition(",")
    if not re.fullmatch(r"data:image/[\w.+-]+;base64", head):
        raise RequestError("Send pictures as data URLs (data:image/png;base64,...); links are not fetched.")
    try:
        brought = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise RequestError("A picture's base64 is damaged; encode it anew.") from error
    try:
        picture = open_picture(brought)
    except ValueError as error:
        raise RequestError(str(error)) from error
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return Image(picture)


def data_url(image: Image) -> str:
    data = io.BytesIO()
    image.picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def parse_options(asked: dict[str, Any], about: dict[str, Any]) -> Options:
    """The options of a request. Missing options take the values of the pair. No previews by default.

    Raises:
        Wrong: a value is of the wrong type or out of its range.
    """
    given = {OTHER_NAMES.get(name, name): value for name, value in asked.items() if value is not None}
    given = {"preview_every": 0, **about, **given}

    def build(kind: type[Checked]) -> Checked:
        return kind(**{each.name: _check_value(each.name, given[each.name], str(each.type)) for each in fields(kind) if each.name in given})

    try:
        seed = int(_check_value("seed", given["seed"], "int")) if "seed" in given else None
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise ValueError("seed must fit into 64 bits.")
        return Options(seed, build(TextOptions), build(ImageOptions))
    except (ValueError, OverflowError) as error:
        raise RequestError(str(error)) from error


def _check_value(name: str, value: Any, kind: str) -> float | int | bool | str:
    if kind == "str":
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a word, not {value!r}.")
        return value
    if kind == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {value!r}.")
        return value
    right = isinstance(value, int | float) and not isinstance(value, bool) and (kind != "int" or value == value // 1)
    if not right:
        raise ValueError(f"{name} must be {'a whole number' if kind == 'int' else 'a number'}, not {value!r}.")
    return int(value) if kind == "int" else float(value)
