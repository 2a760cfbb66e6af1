"""OpenAI's API for chat completions, images and videos, on the page's server: its routes, who may use them, and how bodies are read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from duogen.events import Event, Events
from duogen.faults import name_fault
from ui.api.auth import TooManyTries, Users
from ui.api.chat import ChatRequest, Completion
from ui.api.images import ImageRequest, Painted, has_sources, parse_sources
from ui.api.requests import RequestError, Work, run_in_queue
from ui.api.streams import error_response, stream_response
from ui.api.videos import VideoJobs, VideoRequest
from ui.parts.foreign_pages import is_own_page
from ui.parts.loading import Loading

if TYPE_CHECKING:
    from duogen.answerer import Answerer

MOST_BYTES = 64_000_000
MOST_FIELDS = 100
POLL_SECONDS = 0.3
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
HERE = "/v1/models, /v1/chat/completions, /v1/images/generations, /v1/images/edits and /v1/videos"

Handler = Callable[["Api", Request], Awaitable[Response]]


def answer_errors(handler: Handler) -> Handler:
    """Decorate a handler: every error becomes a response in OpenAI's shape."""

    @functools.wraps(handler)
    async def wrapper(api: Api, request: Request) -> Response:
        try:
            return await handler(api, request)
        except RequestError as wrong:
            return error_response(wrong)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            reason = name_fault(error)
            return error_response(RequestError(f"The request could not be served ({reason}); the server's terminal shows more.", 500))

    return wrapper


@dataclass(frozen=True)
class Api:
    """The API. `users` are those who may use it, `None` for everybody; `videos` are the jobs of all of them."""

    loading: Loading
    users: Users | None = None
    videos: VideoJobs = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "videos", VideoJobs(self.loading))

    def router(self) -> APIRouter:
        routes = APIRouter(include_in_schema=False)
        for path in ("/v1", "/v1/{path:path}"):
            routes.add_api_route(path, self.serve, methods=METHODS, response_model=None)
        return routes

    @answer_errors
    async def serve(self, request: Request) -> Response:
        """Every request below /v1: what is not there is an error in OpenAI's shape too."""
        path = request.path_params.get("path", "").strip("/")
        handlers = self._handlers(path)
        if not handlers:
            raise RequestError(f"There is no /v1/{path} here; there are {HERE}.", 404, "unknown_url")
        allowed = {"Allow": ", ".join([*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"])}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allowed)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            words = f"/v1/{path} takes {' and '.join(handlers)}, not {request.method}."
            response = error_response(RequestError(words, 405, "method_not_supported"))
            response.headers.update(allowed)
            return response
        await self._authorize(request)
        return await handler(request)

    def _handlers(self, path: str) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """What serves a path, by method."""
        if path == "models" or path.startswith("models/"):
            return {"GET": self._models}
        if path == "videos":
            return {"POST": self._make_video}
        if path.startswith("videos/"):
            return {"GET": self._send_video} if path.endswith("/content") else {"GET": self._show_video, "DELETE": self._delete_video}
        posts = {
            "chat/completions": self._chat,
            "images/generations": self._generate,
            "images/edits": self._edit,
            "images/variations": self._refuse_variation,
        }
        return {"POST": posts[path]} if path in posts else {}

    async def _models(self, request: Request) -> Response:
        """All models, or the one that the path names."""
        name = request.path_params["path"].strip("/").removeprefix("models").strip("/")
        await self._wait_until_ready()
        self._check_model(name)
        model = {"id": self._model_name(), "object": "model", "created": 0, "owned_by": "duogen"}
        return JSONResponse(model if name else {"object": "list", "data": [model]})

    async def _chat(self, request: Request) -> Response:
        """OpenAI's `POST /v1/chat/completions`."""
        body = await self._read_json(request)
        asked = await asyncio.to_thread(ChatRequest.parse, body)
        answer = Completion(await self._choose_model(body, asked.stream), asked.notices)
        events = self._events(request, self._check_first(body, asked.work))
        if asked.stream:
            return stream_response(answer.stream(events, asked.with_usage))
        async for event in events:
            answer.take(event)
        if answer.made.error:
            raise RequestError(answer.made.error, 500)
        return JSONResponse(await asyncio.to_thread(answer.response))

    async def _generate(self, request: Request) -> Response:
        """OpenAI's `POST /v1/images/generations`. Pictures in it are changed, as other makers have it."""
        body = await self._read_json(request)
        sources = await asyncio.to_thread(parse_sources, body, {}) if has_sources(body) else ()
        return await self._paint(request, body, await asyncio.to_thread(ImageRequest.parse, body, sources))

    async def _edit(self, request: Request) -> Response:
        """OpenAI's `POST /v1/images/edits`, as a form with files or as JSON with data URLs."""
        if _content_type(request) == "multipart/form-data":
            body, files = await self._read_form(request)
        else:
            body, files = await self._read_json(request), {}
        sources = await asyncio.to_thread(parse_sources, body, files)
        return await self._paint(request, body, await asyncio.to_thread(ImageRequest.parse, body, sources))

    async def _refuse_variation(self, request: Request) -> Response:
        raise RequestError("This server makes no variations; send the picture to /v1/images/edits, with words for what should differ.")

    async def _make_video(self, request: Request) -> Response:
        """OpenAI's `POST /v1/videos`, as a form with files or as JSON with data URLs."""
        if _content_type(request) == "multipart/form-data":
            body, files = await self._read_form(request)
        else:
            body, files = await self._read_json(request), {}
        asked = await asyncio.to_thread(VideoRequest.parse, body, files)
        return JSONResponse((await asyncio.to_thread(self.videos.start, asked)).as_json())

    async def _show_video(self, request: Request) -> Response:
        return JSONResponse(self.videos.find(_video_id(request)).as_json())

    async def _delete_video(self, request: Request) -> Response:
        """Stop a video within a step, or throw a finished one away."""
        id = _video_id(request)
        self.videos.delete(id)
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})

    async def _send_video(self, request: Request) -> Response:
        """The MP4 file of a finished video."""
        job = self.videos.find(_video_id(request))
        if not job.data:
            raise RequestError(job.error or "This video is not done yet; ask again when its status is completed.", 409, "not_ready")
        return Response(job.data, media_type="video/mp4")

    async def _paint(self, request: Request, body: dict[str, Any], asked: ImageRequest) -> Response:
        await self._choose_model(body, asked.stream)
        painted = Painted(asked)

        def follow(index: int) -> AsyncIterator[Event]:
            return self._events(request, self._check_first(body, asked.work(index)))

        if asked.stream:
            return stream_response(painted.stream(follow))
        for index in range(asked.count):
            async for event in follow(index):
                painted.take(event)
        if len(painted.images) < asked.count:
            raise RequestError("The picture was stopped.", 499)
        return JSONResponse(await asyncio.to_thread(painted.response))

    async def _read_json(self, request: Request) -> dict[str, Any]:
        if _content_type(request) != "application/json":
            # No foreign web page can send this type without being let in.
            raise RequestError("Send the request with Content-Type: application/json.", 415)
        body = await self._read_body(request)
        try:
            asked = await asyncio.to_thread(json.loads, body)
        except (ValueError, RecursionError) as error:
            raise RequestError("The request is no JSON.") from error
        if not isinstance(asked, dict):
            raise RequestError("The request must be a JSON object.")
        return asked

    async def _read_form(self, request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
        """The fields and the files of a form."""
        if not self.users and not is_own_page(request.headers):
            raise RequestError("A web page of another address may not send forms; send JSON.", 403)
        body = await self._read_body(request)

        async def stream() -> AsyncGenerator[bytes]:
            yield body

        parser = MultiPartParser(request.headers, stream(), max_files=MOST_FIELDS, max_fields=MOST_FIELDS, max_part_size=MOST_BYTES)
        fields: dict[str, Any] = {}
        files: dict[str, list[bytes]] = {}
        try:
            form = await parser.parse()
        except (MultiPartException, ValueError, LookupError) as error:
            raise RequestError("The request is no form that can be read.") from error
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(name, []).append(await value.read())
            else:
                fields[name] = value
        await form.close()
        return fields, files

    async def _read_body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise RequestError("Send the request without Content-Encoding.", 415)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise RequestError(f"The request is larger than {MOST_BYTES // 1_000_000} MB; send fewer or smaller pictures.", 413)
        return bytes(body)

    async def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        try:
            known = not self.users or await self.users.admits_header(given)
        except TooManyTries as early:
            raise RequestError(str(early), 429, "rate_limit_exceeded") from early
        if not known:
            raise RequestError("Say who you are: HTTP Basic, or an API key of the form name:password.", 401, "invalid_api_key")

    async def _choose_model(self, body: dict[str, Any], stream: bool) -> str:
        """The name of the model that answers. A stream does not wait until it is open: its own bytes keep the client waiting."""
        if stream and not self.loading.finished.is_set():
            return str(body.get("model") or "duogen")
        await self._wait_until_ready()
        self._check_model(body.get("model"))
        return self._model_name()

    async def _wait_until_ready(self) -> None:
        while not self.loading.finished.is_set():
            await asyncio.sleep(0.1)

    def _check_model(self, name: Any) -> None:
        """Raises RequestError: another one than the open pair is asked for."""
        if name not in (None, "", self._model_name(), "duogen"):
            words = f"There is no model {name!r} here; the open one is {self._model_name()!r}."
            raise RequestError(words, 404, "model_not_found", "model")

    def _check_first(self, body: dict[str, Any], work: Work) -> Work:
        """The work, unless another model is open when its turn comes than the one that was asked for."""

        def check_and_work(engine: Answerer, stop: threading.Event) -> Events:
            self._check_model(body.get("model"))
            yield from work(engine, stop)

        return check_and_work

    def _model_name(self) -> str:
        """Raises RequestError: none is open, or another one is being opened."""
        engine = self.loading.engine
        if engine is None:
            raise RequestError(self.loading.error or self.loading.words, 503)
        return str(engine.about["title"]).lower().replace(" ", "-")

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


def _video_id(request: Request) -> str:
    return request.path_params["path"].strip("/").removeprefix("videos/").removesuffix("/content")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
