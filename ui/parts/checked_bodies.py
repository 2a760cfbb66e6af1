"""Bodies that Gradio's routes would answer with status 500 and a traceback in the log are refused before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


def count_missing(body: bytes, functions: Mapping[int, Any]) -> int:
    """How many inputs a direct call lacks of those that its function takes; 0 also where Gradio's route says itself what is wrong."""
    try:
        call = json.loads(body)
        return max(0, len(functions[call["fn_index"]].inputs) - len(call["data"]))
    except (ValueError, RecursionError, LookupError, TypeError):
        return 0


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
        if is_direct and (missing := count_missing(body, self.functions)):
            wrong = {"error": f"The call lacks {missing} of its inputs; give all of them in data."}
        if wrong:
            await JSONResponse(wrong, 400)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)
