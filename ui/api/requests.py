"""Requests of programs, for every API: options, and the engine's work for one request after the other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from duogen.conversation import Conversation
from duogen.events import Events, Failed, ImageDone
from duogen.faults import describe_fault
from duogen.options import Checked, ImageOptions, Options, TextOptions, preset_values
from ui.parts.loading import Loading

if TYPE_CHECKING:
    from duogen.answerer import Answerer

FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

Work = Callable[["Answerer", threading.Event], Events]


class RequestError(Exception):
    """A request that cannot be served; the message is one sentence.

    Attributes:
        status: of HTTP.
        code: OpenAI's word for the error, `None` where it has none.
        param: the field of the request that is wrong, `None` where it is none alone.
    """

    def __init__(self, message: str, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


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
        except RequestError as wrong:
            yield Failed(str(wrong), Conversation())
        except Exception as error:  # a program must learn of every error
            yield Failed(f"The answer failed ({describe_fault(error)}).", Conversation())


def answer_work(conversation: Conversation, options: Options) -> Work:
    return lambda engine, stop: engine.answer(conversation, options, stop)


def image_work(conversation: Conversation, prompt: str, options: Options) -> Work:
    """The work that makes one picture: the first of an answer, or, if the answer has none, one painted from the prompt itself.

    Args:
        conversation: its last turn is the user's, who asks for `prompt`.
    """

    def work(engine: Answerer, stop: threading.Event) -> Events:
        with contextlib.closing(engine.answer(conversation, options, stop)) as events:
            for event in events:
                yield event
                if isinstance(event, ImageDone | Failed):
                    return
        if not stop.is_set():
            yield from engine.stream_image(conversation.say("assistant", prompt + "\n"), options, stop)

    return work


def parse_options(asked: dict[str, Any], about: dict[str, Any]) -> Options:
    """The options of a request. Missing options take the values of the pair. No previews by default.

    Raises:
        RequestError: a value is of the wrong type or out of its range.
    """
    given = {name: value for name, value in asked.items() if value is not None and value != ""}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given["max_completion_tokens"]
    own = {name: value for (_, name), value in preset_values("balanced", about).items()}
    given = {**own, "preview_every": 0, **given}

    def build(kind: type[Checked]) -> Checked:
        return kind(**{each.name: _check_value(each.name, given[each.name], str(each.type)) for each in fields(kind) if each.name in given})

    try:
        seed = parse_number("seed", given["seed"]) if "seed" in given else None
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
        return parse_flag(name, value)
    return parse_number(name, value) if kind == "int" else parse_fraction(name, value)


def parse_flag(name: str, value: Any) -> bool:
    """A truth value as programs write it: true, "true", 1.

    Raises:
        RequestError: it is none.
    """
    flag = FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise RequestError(f"{name} must be true or false, not {value!r}.", param=name)
    return flag


def parse_number(name: str, value: Any) -> int:
    """A whole number as programs write it: 8, 8.0, "8".

    Raises:
        RequestError: it is none.
    """
    number = _read_number(value)
    if number is None or number != number // 1:
        raise RequestError(f"{name} must be a whole number, not {value!r}.", param=name)
    return int(number)


def parse_fraction(name: str, value: Any) -> float:
    """A number as programs write it: 0.5, 1, "0.5".

    Raises:
        RequestError: it is none.
        OverflowError: it is too large.
    """
    number = _read_number(value)
    if number is None:
        raise RequestError(f"{name} must be a number, not {value!r}.", param=name)
    return float(number)


def _read_number(value: Any) -> float | int | None:
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
