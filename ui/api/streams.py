"""Server-sent events, as OpenAI writes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse

from ui.api.requests import RequestError

KEEP_ALIVE = ": keep-alive\n\n"
KEEP_ALIVE_SECONDS = 5  # clients and proxies give up after 10 and more
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is nginx's: pass each event on at once


def stream_response(lines: AsyncGenerator[str]) -> StreamingResponse:
    return StreamingResponse(keep_alive(lines), media_type="text/event-stream", headers=HEADERS)


async def keep_alive(lines: AsyncGenerator[str]) -> AsyncGenerator[str]:
    """The lines, and a comment wherever none came for `KEEP_ALIVE_SECONDS`."""
    coming = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=KEEP_ALIVE_SECONDS)
            if not done:
                yield KEEP_ALIVE
                continue
            line = coming.result()
            if line is None:
                return
            yield line
            coming = asyncio.ensure_future(anext(lines, None))
    finally:
        coming.cancel()
        await asyncio.wait([coming])
        await lines.aclose()


def sse_line(data: dict[str, Any], event: str = "") -> str:
    return (f"event: {event}\n" if event else "") + f"data: {json.dumps(data)}\n\n"


def error_line(wrong: RequestError) -> str:
    return sse_line(error_body(wrong))


def error_body(wrong: RequestError) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    kind = "invalid_request_error" if wrong.status < 500 else "server_error"
    return {"error": {"message": str(wrong), "type": kind, "param": wrong.param, "code": wrong.code}}


def error_response(wrong: RequestError) -> JSONResponse:
    headers = {"WWW-Authenticate": 'Basic realm="DuoGen", charset="UTF-8"'} if wrong.status == 401 else None
    return JSONResponse(error_body(wrong), wrong.status, headers)
