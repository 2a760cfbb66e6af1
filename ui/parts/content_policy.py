"""The Content-Security-Policy of the page: whatever words, file names or models say, a browser loads nothing from any other address."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duogen.library.export import hash_script

POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-eval'",  # Gradio compiles the scripts of components and events
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",  # the canvas reads its own pictures from such addresses
    "worker-src": "'self' blob:",
    "frame-src": "'self'",  # the frame that prints a guide has no address and this policy
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'self'",
}
OTHERS = {
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",  # browsers look up the hosts of links before anybody clicks them
}
SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


class ContentPolicy:
    """Middleware that adds the policy to every response. Scripts that the server wrote into a page run; those put in later do not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def send_with_policy(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.update(OTHERS | {"Content-Security-Policy": write_policy(b"")})
                if headers.get("content-type", "").startswith("text/html"):
                    start = message  # its policy names its scripts, so it waits for them
                    return
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if message.get("more_body"):
                    return
                MutableHeaders(raw=start["headers"])["Content-Security-Policy"] = write_policy(bytes(body))
                await send(start)
                message = {**message, "body": bytes(body)}
                start = None
            await send(message)

        await self.app(scope, receive, send_with_policy)


def write_policy(page: bytes) -> str:
    """The header of a page, whose own scripts it lets run by their hashes."""
    hashes = "".join(f" {hash_script(code)}" for code in SCRIPT.findall(page))
    return "; ".join(f"{name} {value}{hashes if name == 'script-src' else ''}" for name, value in POLICY.items())
