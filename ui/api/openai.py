"""OpenAI's API for chat completions and image generations, on the server of the page.

Words and pictures come in one answer. As plain `content` it is Markdown with the pictures as data URLs; `content_parts` beside it
holds the same in parts. Sent back as a message of the assistant, such Markdown becomes words and pictures again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from duogen.conversation import Conversation, Image, Piece, Text
from duogen.events import AnswerBuilder, Event, Failed, ImageDone, TextDelta, Thought
from duogen.options import Options
from ui.api.auth import Users
from ui.api.requests import MOST_PICTURES, RequestError, Work, answer_work, data_url, image_work, parse_options, parse_picture, run_in_queue
from ui.parts.loading import Loading

DATA_PICTURE = re.compile(r"!\[[^\]]*\]\((data:image/[^)\s]+)\)")
MOST_BYTES = 64_000_000
MOST_AT_ONCE = 10
POLL_SECONDS = 0.3

Handler = Callable[["Api", Request], Awaitable[Response]]


def error_response(wrong: RequestError) -> JSONResponse:
    """OpenAI's shape of an error."""
    kind = "invalid_request_error" if wrong.status < 500 else "server_error"
    headers = {"WWW-Authenticate": 'Basic realm="DuoGen", charset="UTF-8"'} if wrong.status == 401 else None
    return JSONResponse({"error": {"message": str(wrong), "type": kind, "param": None, "code": wrong.code}}, wrong.status, headers)


def answer_errors(handler: Handler) -> Handler:
    """Decorate a handler: every error becomes a response in OpenAI's shape."""

    @functools.wraps(handler)
    async def wrapper(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except RequestError as wrong:
            return error_response(wrong)
        except Exception as error:
            traceback.print_exc()
            return error_response(
                RequestError(f"The request could not be served ({type(error).__name__}); the server's terminal shows more.", 500)
            )

    return wrapper


@dataclass(frozen=True)
class Api:
    """The API. `users` are those who may use it, `None` for everybody."""

    loading: Loading
    users: Users | None = None

    def router(self) -> APIRouter:
        routes = APIRouter(prefix="/v1")
        routes.add_api_route("/models", self.models, methods=["GET"], response_model=None)
        routes.add_api_route("/chat/completions", self.chat, methods=["POST"], response_model=None)
        routes.add_api_route("/images/generations", self.images, methods=["POST"], response_model=None)
        return routes

    @answer_errors
    async def models(self, request: Request) -> Response:
        await self._authorize(request)
        await self._wait_until_ready()
        return JSONResponse({"object": "list", "data": [{"id": self._model_name(), "object": "model", "created": 0, "owned_by": "duogen"}]})

    @answer_errors
    async def chat(self, request: Request) -> Response:
        """OpenAI's `POST /v1/chat/completions`."""
        asked = await self._read_request(request)
        conversation = await asyncio.to_thread(parse_messages, asked.get("messages"))
        if asked.get("n") not in (None, 1):
            raise RequestError("n must be 1: ask again for another answer.")
        options = parse_options(asked, self._about())
        extra = asked.get("stream_options") or {}
        if not isinstance(extra, dict):
            raise RequestError("stream_options must be an object.")
        answer = Completion(self._model_name())
        events = self._events(request, answer_work(conversation, options))
        if asked.get("stream"):
            return StreamingResponse(answer.stream(events, bool(extra.get("include_usage"))), media_type="text/event-stream")
        async for event in events:
            answer.made.take(event)
        if answer.made.error:
            raise RequestError(answer.made.error, 500)
        return JSONResponse(await asyncio.to_thread(answer.response))

    @answer_errors
    async def images(self, request: Request) -> Response:
        """OpenAI's `POST /v1/images/generations`."""
        asked = await self._read_request(request)
        about = self._about()
        prompt, count = asked.get("prompt"), asked.get("n", 1)
        if not isinstance(prompt, str) or not prompt.strip():
            raise RequestError("There is no prompt; say what the picture should show.")
        if type(count) is not int or not 1 <= count <= MOST_AT_ONCE:
            raise RequestError(f"n must be from 1 to {MOST_AT_ONCE}.")
        size = "x".join(map(str, about["image_size"]))
        if asked.get("size") not in (None, "auto", size):
            raise RequestError(f"This pair paints pictures of {size}; leave size out, or ask for that.")
        if asked.get("response_format") not in (None, "url", "b64_json"):
            raise RequestError("response_format must be url or b64_json.")
        options = parse_options({**asked, "max_images": 1}, about)
        urls = [await self._picture(request, prompt.strip(), _offset_seed(options, index)) for index in range(count)]
        as_url = asked.get("response_format") == "url"
        data = [{"url": url} if as_url else {"b64_json": url.partition(",")[2]} for url in urls]
        return JSONResponse({"created": int(time.time()), "data": data})

    async def _picture(self, request: Request, prompt: str, options: Options) -> str:
        """A data URL."""
        made: Image | None = None
        async for event in self._events(request, image_work(prompt, options)):
            if isinstance(event, Failed):
                raise RequestError(event.message, 500)
            if isinstance(event, ImageDone):
                made = event.image
        if made is None:
            raise RequestError("The picture was stopped.", 499)
        return await asyncio.to_thread(data_url, made)

    async def _read_request(self, request: Request) -> dict[str, Any]:
        """The body of an authorized request, when the pair is open."""
        await self._authorize(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(
                "Send the request with Content-Type: application/json.", 415
            )  # which no foreign web page can without being let in
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise RequestError(f"The request is larger than {MOST_BYTES // 1_000_000} MB; send fewer or smaller pictures.", 413)
        try:
            asked = json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise RequestError("The request is no JSON.") from error
        if not isinstance(asked, dict):
            raise RequestError("The request must be a JSON object.")
        await self._wait_until_ready()
        if asked.get("model") not in (None, "", self._model_name(), "duogen"):
            raise RequestError(
                f"There is no model {asked['model']!r} here; the open one is {self._model_name()!r}.", 404, "model_not_found"
            )
        return asked

    async def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self.users and not await asyncio.to_thread(self.users.accepts_header, given):
            raise RequestError("Say who you are: HTTP Basic, or an API key of the form name:password.", 401, "invalid_api_key")

    async def _wait_until_ready(self) -> None:
        while not self.loading.finished.is_set():
            await asyncio.sleep(0.1)
        self._about()

    def _about(self) -> dict[str, Any]:
        """What the open pair says of itself. Raises RequestError: none is open, or another one is being opened."""
        engine = self.loading.engine
        if engine is None:
            raise RequestError(self.loading.error or self.loading.words, 503)
        return engine.about

    def _model_name(self) -> str:
        return str(self._about()["title"]).lower().replace(" ", "-")

    async def _events(self, request: Request, work: Work) -> AsyncIterator[Event]:
        """The events of the engine, which works in a thread and stops when the client has gone."""
        loop, queue, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def follow() -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                for event in run_in_queue(self.loading, work, stop):
                    loop.call_soon_threadsafe(queue.put_nowait, event)
                loop.call_soon_threadsafe(queue.put_nowait, None)

        async def watch() -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(POLL_SECONDS)
            stop.set()

        threading.Thread(target=follow, name="api", daemon=True).start()
        watching = asyncio.create_task(watch())
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            stop.set()
            watching.cancel()


class Completion:
    """An answer as it is sent to a program."""

    def __init__(self, model: str) -> None:
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self.made = AnswerBuilder()

    def response(self) -> dict[str, Any]:
        parts = [content_part(part) for part in self.made.parts]
        message = {"role": "assistant", "content": "".join(map(part_markdown, parts)), "content_parts": parts}
        choice = {"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def _delta(self, event: Event) -> dict[str, str]:
        """What an event adds to a stream. Thoughts go into `reasoning_content`, as with other servers."""
        self.made.take(event)
        match event:
            case Thought(text):
                return {"reasoning_content": text}
            case TextDelta(text) if text:
                return {"content": text}
            case ImageDone(_, image):
                return {"content": part_markdown(content_part(image))}
        return {}

    async def stream(self, events: AsyncIterator[Event], usage: bool) -> AsyncIterator[str]:
        """Server-sent events, as OpenAI writes them."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for event in events:
            if delta := await asyncio.to_thread(self._delta, event):
                yield self._chunk(delta)
        if self.made.error:
            yield f"data: {bytes(error_response(RequestError(self.made.error, 500)).body).decode()}\n\n"
            return
        yield self._chunk({}, self._reason())
        if usage:
            yield f"data: {json.dumps({**self.head, 'object': 'chat.completion.chunk', 'choices': [], 'usage': self._usage()})}\n\n"
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {json.dumps({**self.head, 'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    def _reason(self) -> str:
        return "length" if self.made.stats and self.made.stats.stopped in ("max_tokens", "max_images") else "stop"

    def _usage(self) -> dict[str, int]:
        stats = self.made.stats
        prompt, said = (stats.prompt_tokens, stats.text_tokens) if stats else (0, 0)
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def content_part(part: Piece) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": data_url(part)}, "seed": part.seed, "seconds": part.seconds, "alt": part.alt}


def part_markdown(part: dict[str, Any]) -> str:
    if part["type"] == "text":
        return part["text"]
    alt = re.sub(r"[\[\]\\\n]", " ", part["alt"] or "A picture")
    return f"\n![{alt}]({part['image_url']['url']})\n"


def parse_messages(messages: Any) -> Conversation:
    """OpenAI's messages as a conversation. System messages are ignored: the pair is not trained to follow them.

    Raises:
        Wrong: they are malformed, the last is not the user's, or a picture cannot be read.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("There are no messages; send at least one of the user.")
    conversation, pictures = Conversation(), 0
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer"):
            continue
        if role not in ("user", "assistant"):
            raise RequestError("Every message needs the role user or assistant.")
        parts: list[Piece] = []
        for piece in (piece for given in _content_parts(message.get("content")) for piece in _pieces(given, role)):
            pictures += isinstance(piece, str)
            if pictures > MOST_PICTURES:
                raise RequestError(f"The messages hold more than {MOST_PICTURES} pictures; send fewer.")
            parts.append(parse_picture(piece) if isinstance(piece, str) else piece)
        if parts:
            conversation = conversation.say(role, *parts)
    path = conversation.path()
    if not path or path[-1].role != "user":
        raise RequestError("The last message must be the user's, and not empty.")
    return conversation


def _content_parts(content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else [] if content is None else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise RequestError("The content of a message must be text, or a list of parts with a type.")
    return parts


def _pieces(part: dict[str, Any], role: str) -> list[Text | str]:
    """Words, and the URLs of pictures."""
    if part.get("type") == "image_url":
        address = part.get("image_url")
        return [str(address.get("url") if isinstance(address, dict) else address)]
    text = part.get("text")
    if part.get("type") != "text" or not isinstance(text, str):
        raise RequestError(f"A message's part cannot be a {part.get('type')!r}; send text or image_url.")
    if role == "user":
        return [Text(text)] if text.strip() else []
    cut = DATA_PICTURE.split(text)  # words and addresses in turn
    return [each if index % 2 else Text(each.strip() + "\n") for index, each in enumerate(cut) if each.strip()]


def _offset_seed(options: Options, index: int) -> Options:
    """The options for the `index`-th of several pictures."""
    return options if options.seed is None else replace(options, seed=options.seed + index)
