"""The same engine for programs: OpenAI's chat completions and image generations, on the page's own server.

Words and pictures come in one answer. As plain `content` it is Markdown with the pictures as data URLs; `content_parts` beside it
holds the same in parts. Sent back as a message of the assistant, such Markdown becomes words and pictures again.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from duogen.conversation import Conversation, Image, Piece, Text, open_picture
from duogen.events import Done, Event, Failed, ImageDone, TextDelta
from duogen.options import ImageOptions, Options, TextOptions
from ui.auth import Users
from ui.loading import Loading

DATA_PICTURE = re.compile(r"!\[[^\]]*\]\((data:image/[^)\s]+)\)")
MOST_BYTES = 64_000_000
MOST_PICTURES = 10
OTHER_NAMES = {"max_completion_tokens": "max_tokens"}


class Wrong(Exception):
    """A request that cannot be served; the message is one sentence."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return JSONResponse({"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}, self.status)


@dataclass(frozen=True)
class Api:
    """The engine as programs reach it. `users` are those who may ask, `None` for everybody."""

    loading: Loading
    users: Users | None = None

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1")
        routes.add_api_route("/models", self.models, methods=["GET"], response_model=None)
        routes.add_api_route("/chat/completions", self.chat, methods=["POST"], response_model=None)
        routes.add_api_route("/images/generations", self.images, methods=["POST"], response_model=None)
        return routes

    async def models(self, request: Request) -> JSONResponse:
        try:
            self._let_in(request)
            await self._ready()
            return JSONResponse({"object": "list", "data": [{"id": self._name(), "object": "model", "created": 0, "owned_by": "duogen"}]})
        except Wrong as wrong:
            return wrong.response()

    async def chat(self, request: Request) -> JSONResponse | StreamingResponse:
        """OpenAI's `POST /v1/chat/completions`."""
        try:
            asked = await self._asked(request)
            conversation = conversation_of(asked.get("messages"))
            if asked.get("n", 1) != 1:
                raise Wrong("n must be 1: ask again for another answer.")
            options = options_of(asked, self.loading.engine.about)
        except Wrong as wrong:
            return wrong.response()
        answer = Completion(self._name())
        events = self._events(conversation, options)
        if asked.get("stream"):
            usage = bool((asked.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(answer.stream(events, usage), media_type="text/event-stream")
        async for event in events:
            answer.take(event)
            if await request.is_disconnected():
                break
        return answer.failure().response() if answer.failed else JSONResponse(answer.whole())

    async def images(self, request: Request) -> JSONResponse:
        """OpenAI's `POST /v1/images/generations`."""
        try:
            asked = await self._asked(request)
            about = self.loading.engine.about
            prompt, count = asked.get("prompt"), asked.get("n") or 1
            if not isinstance(prompt, str) or not prompt.strip():
                raise Wrong("There is no prompt; say what the picture should show.")
            if not isinstance(count, int) or not 1 <= count <= MOST_PICTURES:
                raise Wrong(f"n must be from 1 to {MOST_PICTURES}.")
            size = "x".join(map(str, about["image_size"]))
            if asked.get("size") not in (None, "auto", size):
                raise Wrong(f"This pair paints pictures of {size}; leave size out, or ask for that.")
            options = options_of({**asked, "max_images": 1}, about)
            pictures = [await self._picture(prompt, _with_seed(options, index)) for index in range(count)]
        except Wrong as wrong:
            return wrong.response()
        as_url = asked.get("response_format") == "url"
        data = [{"url": data_url(each)} if as_url else {"b64_json": data_url(each).partition(",")[2]} for each in pictures]
        return JSONResponse({"created": int(time.time()), "data": data})

    async def _picture(self, prompt: str, options: Options) -> Image:
        """The first picture of an answer; painted from the prompt itself where the pair answers in words alone."""
        conversation = Conversation().say("user", prompt.strip())
        last: Event | None = None
        async for event in self._events(conversation, options):
            last = event
            if isinstance(event, ImageDone):
                return event.image
        if isinstance(last, Failed):
            raise Wrong(last.message, 500)
        return await asyncio.to_thread(self._painted, conversation.say("assistant", prompt.strip() + "\n"), options)

    def _painted(self, conversation: Conversation, options: Options) -> Image:
        with self.loading.line.place(lambda before: None, threading.Event()):
            try:
                return self.loading.engine.paint_after(conversation, options)
            except (ValueError, RuntimeError) as error:
                raise Wrong(f"The picture could not be painted: {error}.", 500) from error

    async def _asked(self, request: Request) -> dict[str, Any]:
        """The body of a request that may be served, once the pair is open."""
        self._let_in(request)
        if int(request.headers.get("content-length") or 0) > MOST_BYTES:
            raise Wrong(f"The request is larger than {MOST_BYTES // 1_000_000} MB; send fewer or smaller pictures.", 413)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise Wrong(f"The request is larger than {MOST_BYTES // 1_000_000} MB; send fewer or smaller pictures.", 413)
        try:
            asked = json.loads(body)
        except ValueError as error:
            raise Wrong("The request is no JSON.") from error
        if not isinstance(asked, dict):
            raise Wrong("The request must be a JSON object.")
        await self._ready()
        if asked.get("model") not in (None, "", self._name(), "duogen"):
            raise Wrong(f"There is no model {asked['model']!r} here; the open one is {self._name()!r}.", 404, "model_not_found")
        return asked

    def _let_in(self, request: Request) -> None:
        if self.users and not self.users.may_header(request.headers.get("authorization", "")):
            raise Wrong("Say who you are: HTTP Basic, or an API key of the form name:password.", 401, "invalid_api_key")

    async def _ready(self) -> None:
        while not self.loading.finished.is_set():
            await asyncio.sleep(0.1)
        if self.loading.engine is None:
            raise Wrong(self.loading.error, 503)

    def _name(self) -> str:
        return str(self.loading.engine.about["title"]).lower().replace(" ", "-")

    async def _events(self, conversation: Conversation, options: Options) -> AsyncIterator[Event]:
        """The engine's events. It works in a thread, and stops when nobody listens any more."""
        loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def work() -> None:
            with self.loading.line.place(lambda before: None, stop) as mine:
                for event in self._answered(conversation, options, stop) if mine else ():
                    loop.call_soon_threadsafe(queue.put_nowait, event)
            loop.call_soon_threadsafe(queue.put_nowait, None)

        threading.Thread(target=work, name="api", daemon=True).start()
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            stop.set()

    def _answered(self, conversation: Conversation, options: Options, stop: threading.Event) -> Iterator[Event]:
        try:
            yield from self.loading.engine.answer(conversation, options, stop)
        except Exception as error:  # a program must learn of it, whatever it is
            yield Failed(f"The answer failed ({type(error).__name__}: {error}).", conversation)


class Completion:
    """An answer on its way to a program."""

    def __init__(self, model: str) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.parts: list[Piece] = []
        self.failed = ""
        self.ended: Done | None = None

    def take(self, event: Event) -> str:
        """Remember an event; returns what it adds to the Markdown."""
        match event:
            case TextDelta(text):
                said = self.parts.pop().text if self.parts and isinstance(self.parts[-1], Text) else ""
                self.parts.append(Text(said + text))
                return text
            case ImageDone(_, image):
                self.parts.append(image)
                return markdown(image)
            case Done():
                self.ended = event
            case Failed(message, _):
                self.failed = message
        return ""

    def failure(self) -> Wrong:
        return Wrong(self.failed, 500)

    def whole(self) -> dict[str, Any]:
        content = "".join(part.text if isinstance(part, Text) else markdown(part) for part in self.parts)
        message = {"role": "assistant", "content": content, "content_parts": [_part(part) for part in self.parts]}
        choice = {"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    async def stream(self, events: AsyncIterator[Event], usage: bool) -> AsyncIterator[str]:
        """Server-sent events, as OpenAI writes them."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for event in events:
            if added := self.take(event):
                yield self._chunk({"content": added})
        if self.failed:
            yield f"data: {self.failure().response().body.decode()}\n\n"
            return
        yield self._chunk({}, self._reason())
        if usage:
            yield f"data: {json.dumps({**self.head, 'object': 'chat.completion.chunk', 'choices': [], 'usage': self._usage()})}\n\n"
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**self.head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    def _reason(self) -> str:
        return "length" if self.ended and self.ended.stats.stopped in ("max_tokens", "max_images") else "stop"

    def _usage(self) -> dict[str, int]:
        stats = self.ended.stats if self.ended else None
        prompt, said = (stats.prompt_tokens, stats.text_tokens) if stats else (0, 0)
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def conversation_of(messages: Any) -> Conversation:
    """OpenAI's messages as a conversation. System messages are passed over: the pair was not taught to heed them.

    Raises:
        Wrong: they are malformed, the last is not the user's, or a picture cannot be read.
    """
    if not isinstance(messages, list) or not messages:
        raise Wrong("There are no messages; send at least one of the user.")
    conversation = Conversation()
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):
            continue
        if role not in ("user", "assistant"):
            raise Wrong("Every message needs the role user or assistant.")
        parts = [part for given in _contents(message.get("content")) for part in _pieces(given, role)]
        if parts:
            conversation = conversation.say(role, *parts)
    path = conversation.path()
    if not path or path[-1].role != "user":
        raise Wrong("The last message must be the user's, and not empty.")
    return conversation


def _contents(content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    if not all(isinstance(part, dict) for part in parts):
        raise Wrong("The parts of a message must be objects with a type.")
    return parts


def _pieces(part: dict[str, Any], role: str) -> list[Piece]:
    if part.get("type") == "text":
        text = str(part.get("text") or "")
        if role == "user":
            return [Text(text)] if text.strip() else []
        cut = DATA_PICTURE.split(text)  # words and addresses in turn
        pieces = [picture_of(each) if index % 2 else Text(each.strip() + "\n") for index, each in enumerate(cut)]
        return [piece for piece in pieces if isinstance(piece, Image) or piece.text.strip()]
    if part.get("type") == "image_url":
        address = part.get("image_url")
        return [picture_of(address.get("url", "") if isinstance(address, dict) else str(address))]
    raise Wrong(f"A message's part cannot be a {part.get('type')!r}; send text or image_url.")


def picture_of(address: str) -> Image:
    """A data URL as a picture. Links are refused: whoever asks could make this machine fetch them.

    Raises:
        Wrong: it is no data URL, or no picture.
    """
    head, _, data = address.partition(",")
    if not re.fullmatch(r"data:image/[\w.+-]+;base64", head):
        raise Wrong("Send pictures as data URLs (data:image/png;base64,...); links are not fetched.")
    try:
        return Image(open_picture(base64.b64decode(data, validate=True)))
    except ValueError as error:
        raise Wrong(str(error) if "picture" in str(error) else "A picture's base64 is damaged.") from error


def options_of(asked: dict[str, Any], about: dict[str, Any]) -> Options:
    """The options that a request names; what it leaves out is the pair's own choice.

    Raises:
        Wrong: a value is of the wrong type or out of its range.
    """
    given = {OTHER_NAMES.get(name, name): value for name, value in asked.items() if value is not None}
    given = {**{name: about[name] for name in ("steps", "guidance")}, **given}

    def chosen(kind: type) -> Any:
        return kind(**{each.name: _number(each.name, given[each.name], each.type) for each in fields(kind) if each.name in given})

    try:
        seed = _number("seed", given["seed"], "int") if "seed" in given else None
        return Options(seed, chosen(TextOptions), chosen(ImageOptions))
    except ValueError as error:
        raise Wrong(str(error)) from error


def _number(name: str, value: Any, kind: str) -> float | int:
    right = isinstance(value, int | float) and not isinstance(value, bool) and (kind != "int" or float(value).is_integer())
    if not right:
        raise ValueError(f"{name} must be {'a whole number' if kind == 'int' else 'a number'}, not {value!r}.")
    return int(value) if kind == "int" else float(value)


def _with_seed(options: Options, index: int) -> Options:
    """The same for the `index`-th of several pictures."""
    return options if options.seed is None else Options(options.seed + index, options.text, options.image)


def data_url(image: Image) -> str:
    data = io.BytesIO()
    image.picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def markdown(image: Image) -> str:
    alt = re.sub(r"[\[\]\\\n]", " ", image.alt or "A picture")
    return f"\n![{alt}]({data_url(image)})\n"


def _part(part: Piece) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": data_url(part)}, "seed": part.seed, "seconds": part.seconds, "alt": part.alt}
