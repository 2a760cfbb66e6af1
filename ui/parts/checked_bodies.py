"""Bodies that Gradio's routes would answer with status 500 and a traceback in the log are refused before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duogen.faults import NUMBER

MCP = "/gradio_api/mcp"
DIRECT = ("/gradio_api/run/", "/gradio_api/api/")
UNREADABLE = {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "The body of the request is no JSON that can be read."}}


def is_readable(body: bytes) -> bool:
    """Whether it is JSON that can be written as JSON again: in UTF-8, without half characters, and not too deep."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def find_wrong_call(body: bytes, functions: Mapping[int, Any]) -> str:
    """What is wrong with a direct call of a function, in a sentence; "" also where Gradio's route says it itself."""
    try:
        call = json.loads(body)
        function = functions[call["fn_index"]]
        missing = len(function.inputs) - len(call["data"])
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    if function.fn is None:
        return "The event runs in the browser alone; it cannot be called."
    return f"The call lacks {missing} of its inputs; give all of them in data." if missing > 0 else ""


class CheckedBodies:
    """Middleware that answers for the MCP server, and for direct calls of the page's functions, where a body makes no sense."""

    def __init__(self, app: ASGIApp, functions: Mapping[int, Any]) -> None:
        self.app, self.functions = app, functions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post, path = scope["type"] == "http" and scope["method"] == "POST", scope.get("path", "")
        is_direct = is_post and any(each in path for each in DIRECT)
        if not is_direct and not (is_post and MCP in path):
            await self.app(scope, receive, send)
            return
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        wrong: dict[str, Any] = {} if is_direct or is_readable(body) else UNREADABLE
        if is_direct and (sentence := find_wrong_call(body, self.functions)):
            wrong = {"error": sentence}
        if wrong:
            await JSONResponse(wrong, 400)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, _correct_status(send) if is_direct else send)


def _correct_status(send: Send) -> Send:
    """Gradio gives every event that fails the status 500; without the number of a fault it was the call that was wrong."""
    held: list[Message] = []

    async def correct(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            held.append(message)
            return
        if held:
            start = held.pop()
            is_fault = NUMBER.search(message.get("body", b"").decode("utf-8", "replace"))
            await send(start if is_fault else {**start, "status": 400})
        await send(message)

    return correct
