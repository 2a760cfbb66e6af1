"""OpenAI's chat completions: what a request asks for, and an answer as it is sent.

Words and pictures come in one answer. As plain `content` it is Markdown with the pictures as data URLs; `content_parts` beside it
holds the same in parts. Sent back as a message of the assistant, such Markdown becomes words and pictures again. `notices` says in
sentences what of the request had no effect.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from duogen.conversation import Conversation, Piece, Text
from duogen.events import AnswerBuilder, Done, Draft, Event, Events, ImageDone, Notice, Restarted, TextDelta, Thought
from duogen.options import ImageOptions, TextOptions
from ui.api.messages import parse_messages
from ui.api.pictures import data_url
from ui.api.requests import RequestError, parse_flag, parse_fraction, parse_number, parse_options
from ui.api.stop_words import parse_stop, stop_at
from ui.api.streams import error_line, sse_line

if TYPE_CHECKING:
    from duogen.answerer import Answerer

RANGES = {each.name: each.metadata for kind in (TextOptions, ImageOptions) for each in fields(kind)}
OPTIONS = {*RANGES, "seed"}
READ = {
    *OPTIONS,
    *("messages", "model", "max_completion_tokens", "stream", "stream_options", "stop", "n", "response_format", "modalities"),
    *("tools", "tool_choice", "functions", "function_call"),
}
NO_MATTER = {  # fields that an answer does not depend on
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "chat_id", "session_id", "id", "keep_alive"),
}
CUT = 'The answer was cut at a limit (max_tokens, max_images or what the pair can read); say "go on" for the rest, or raise the limit.'
CHANGED = "The machine that made this answer was lost, and another one answers in other words; ask again."
NO_TOOLS = "This pair calls no tools; it answers in words and pictures."


@dataclass(frozen=True)
class ChatRequest:
    """A request for an answer.

    Attributes:
        given: the fields that are options.
        notices: what of the request has no effect, a sentence each.
    """

    conversation: Conversation
    given: dict[str, Any]
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool
    notices: list[str]

    @classmethod
    def parse(cls, asked: dict[str, Any]) -> ChatRequest:
        """Raises RequestError: a field is wrong, or the pair cannot do what it asks for."""
        conversation, notices = parse_messages(asked.get("messages"))
        _check_count(asked)
        _check_form(asked)
        notices += _check_tools(asked)
        given, clamped = clamp_options(asked)
        parse_options(given, {})
        notices += [*clamped, *unread_fields(asked, READ | NO_MATTER)]
        extra = asked.get("stream_options") or {}
        if not isinstance(extra, dict):
            raise RequestError("stream_options must be an object.", param="stream_options")
        stream = parse_flag("stream", asked.get("stream") or False)
        with_usage = parse_flag("include_usage", extra.get("include_usage") or False)
        return cls(conversation, given, parse_stop(asked.get("stop")), stream, with_usage, list(dict.fromkeys(notices)))

    def work(self, engine: Answerer, stop: threading.Event) -> Events:
        """The answer, with the options of the pair that is open when it begins."""
        options = parse_options(self.given, engine.about)
        return stop_at(engine.answer(self.conversation, options, stop), self.stop, stop)


def clamp_options(asked: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options in a request, with limits that are only wishes brought into range, and a sentence for each that was not.

    Raises:
        RequestError: a limit is no number.
    """
    given = {name: asked[name] for name in OPTIONS & asked.keys()}
    notices = []
    limit = asked.get("max_completion_tokens")
    limit = given.get("max_tokens") if limit in (None, "") else limit
    if limit not in (None, ""):
        given["max_tokens"], most = parse_number("max_tokens", limit), RANGES["max_tokens"]["high"]
        if given["max_tokens"] > most:
            notices.append(f"max_tokens is at most {most} here.")
        if given["max_tokens"] > most or given["max_tokens"] == -1:
            given["max_tokens"] = most
    if given.get("top_p") not in (None, ""):
        share, least = parse_fraction("top_p", given["top_p"]), RANGES["top_p"]["low"]
        if 0 <= share < least:
            given["top_p"] = least
            notices.append(f"top_p is at least {least} here.")
    return given, notices


def unread_fields(asked: dict[str, Any], known: set[str]) -> list[str]:
    """A sentence that names the fields that nothing reads, if there are some; a value that asks for nothing does not count."""
    unread = [name for name, value in asked.items() if value and name not in known]
    return [f"These fields have no effect here: {', '.join(unread)}."] if unread else []


def _check_count(asked: dict[str, Any]) -> None:
    if asked.get("n") not in (None, "") and parse_number("n", asked["n"]) != 1:
        raise RequestError("n must be 1: ask again for another answer.", param="n")


def _check_form(asked: dict[str, Any]) -> None:
    """Raises RequestError: the answer is to be something else than words and pictures."""
    form = asked.get("response_format")
    if (form.get("type") if isinstance(form, dict) else form) not in (None, "", "text"):
        raise RequestError("This pair cannot promise JSON; leave response_format out.", param="response_format")
    kinds = asked.get("modalities") or []
    if not isinstance(kinds, list) or any(kind not in ("text", "image") for kind in kinds):
        raise RequestError("modalities may hold text and image only.", param="modalities")


def _check_tools(asked: dict[str, Any]) -> list[str]:
    """A sentence if tools are offered. Raises RequestError: one must be called."""
    for name in ("tool_choice", "function_call"):
        if asked.get(name) not in (None, "", "none", "auto"):
            raise RequestError(f"{NO_TOOLS.removesuffix('.')}, so {name} must be none or auto.", param=name)
    return [NO_TOOLS] if asked.get("tools") or asked.get("functions") else []


class Completion:
    """An answer as it is sent to a program."""

    def __init__(self, model: str, notices: list[str]) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.made, self.notices = AnswerBuilder(), list(notices)

    def take(self, event: Event) -> None:
        self.made.take(event)
        if isinstance(event, Notice | Restarted):
            self.notices.append(event.message)
        elif isinstance(event, Done) and self._reason() == "length":
            self.notices.append(CUT)

    def response(self) -> dict[str, Any]:
        parts = [content_part(part) for part in self.made.parts]
        message = {"role": "assistant", "content": "".join(map(part_markdown, parts)), "content_parts": parts}
        if self.made.thoughts:
            message["reasoning_content"] = self.made.thoughts
        if drafts := [content_part(each) for image in self.made.images() for each in image.drafts]:
            message["reasoning_parts"] = drafts
        choice = {"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage(), **_notices(self.notices)}

    async def stream(self, events: AsyncIterator[Event], with_usage: bool) -> AsyncGenerator[str]:
        """Server-sent events, as OpenAI writes them."""
        yield self._chunk({"role": "assistant", "content": ""}, notices=self.notices)
        sent = Sent()
        async for event in events:
            told = [event.message] if isinstance(event, Notice | Restarted) else []
            if isinstance(event, Restarted):
                sent.begin_again()
            delta = sent.cut(await asyncio.to_thread(self._delta, event))
            if delta is None:
                yield error_line(RequestError(CHANGED, 500))
                return
            if delta or told:
                yield self._chunk(delta, notices=told)
        if self.made.error:
            yield error_line(RequestError(self.made.error, 500))
            return
        yield self._chunk({}, self._reason(), [CUT] if self._reason() == "length" else [])
        if with_usage:
            yield sse_line({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _delta(self, event: Event) -> dict[str, Any]:
        """What an event adds to a stream. Thoughts go into `reasoning_content`, as with other servers, drafts into `reasoning_parts`."""
        self.take(event)
        match event:
            case Thought(text):
                return {"reasoning_content": text}
            case Draft(_, image):
                return {"reasoning_parts": [content_part(image)]}
            case TextDelta(text) if text:
                return {"content": text}
            case ImageDone(_, image):
                return {"content": part_markdown(content_part(image))}
        return {}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, notices: list[str] | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return sse_line({**self.head, "object": "chat.completion.chunk", "choices": [choice], **_notices(notices or [])})

    def _reason(self) -> str:
        return "length" if self.made.stats and self.made.stats.stopped.startswith("max_") else "stop"

    def _usage(self) -> dict[str, int]:
        stats = self.made.stats
        prompt, said = (stats.prompt_tokens, stats.text_tokens) if stats else (0, 0)
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


class Sent:
    """What of an answer was sent. Where it is begun again, only what comes behind that is sent: a stream takes nothing back."""

    def __init__(self) -> None:
        self._sent: dict[str, Any] = {}
        self._now: dict[str, Any] = {}

    def begin_again(self) -> None:
        self._now = {}

    def cut(self, delta: dict[str, Any]) -> dict[str, Any] | None:
        """What of a delta is not sent yet; `None` where the new beginning is another one."""
        rest = {}
        for name, value in delta.items():
            before, now = self._sent.get(name, value[:0]), self._now.get(name, value[:0]) + value
            self._now[name] = now
            if isinstance(value, str) and not (before.startswith(now) or now.startswith(before)):
                return None
            if len(now) > len(before):
                self._sent[name], rest[name] = now, now[len(before) :]
        return rest


def _notices(notices: list[str]) -> dict[str, list[str]]:
    return {"notices": notices} if notices else {}


def content_part(part: Piece) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": data_url(part)}, "seed": part.seed, "seconds": part.seconds, "alt": part.alt}


def part_markdown(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return part["text"]
    alt = re.sub(r"[\[\]\\\n]", " ", part["alt"] or "A picture")
    return f"\n![{alt}]({part['image_url']['url']})\n"
