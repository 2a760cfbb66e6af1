"""Who is not signed in gets the page on which one signs in, and nothing else. Gradio's `/login` checks the name and gives the cookie."""

from __future__ import annotations

import html
import math
import re
from string import Template
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui import STATIC
from ui.api.auth import CLIENT, TooManyTries
from ui.parts.i18n import choose_language, translate_into
from ui.parts.root_path import is_below, strip_root_path

WORDS = {
    "about": "It answers in words and pictures. The person who runs this page gives you a name and a password.",
    "name": "Your name",
    "password": "Password",
    "enter": "Sign in",
    "wrong": "The name or the password is wrong; try again.",
    "often": "Too many wrong passwords; wait a while, then try again.",
    "failed": "The page does not answer; try again in a moment.",
}


GRADIO = "/gradio_api"  # a few of its routes ask nobody who they are
STARTED = f"{GRADIO}/startup-events"  # Gradio asks it when it starts; it tells nothing
TOKEN = f"{GRADIO}/token"  # tells a script the cookie that scripts shall not read; the page does without it


class LoginPage:
    """Middleware that shows the page to whoever opens the start page and is not signed in, and marks the cookie of those who are."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        """`root_path` is where a reverse proxy has the page."""
        self.app, self.root_path, self.base = app, root_path, urlsplit(root_path).path + "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        CLIENT.set(scope["client"][0] if scope.get("client") else "")
        path = strip_root_path(scope["path"], self.root_path)
        response: Response | None = None
        if is_below(TOKEN, path):
            response = JSONResponse({"detail": "Not Found"}, 404)
        elif is_below(GRADIO, path) and path != STARTED and not is_signed_in(Request(scope)):
            response = JSONResponse({"detail": "Not authenticated"}, 401)
        elif path in ("/", "") and scope["method"] in ("GET", "HEAD") and not is_signed_in(Request(scope)):
            page = write_login(choose_language(Request(scope).headers.get("accept-language", "")), self.base)
            response = HTMLResponse(page, headers={"Cache-Control": "no-store"})
        if response is not None:
            await response(scope, receive, send)
            return
        is_safe = "https" in (scope.get("scheme"), urlsplit(self.root_path).scheme)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                mark_cookies(MutableHeaders(raw=message["headers"]), is_safe)
            await send(message)

        await self.app(scope, receive, send_marked)


def mark_cookies(headers: MutableHeaders, is_safe: bool) -> None:
    """Let a browser send the cookies of a response to this server's own pages only, and over https only if it came so (`is_safe`)."""
    cookies = headers.getlist("set-cookie")
    del headers["set-cookie"]
    for cookie in cookies:
        bare = re.sub(r";\s*(samesite=\w+|secure)", "", cookie, flags=re.IGNORECASE)
        needs_https = is_safe or re.search(r";\s*secure\b", cookie, re.IGNORECASE)
        headers.append("set-cookie", f"{bare}; SameSite=Lax" + ("; Secure" if needs_https else ""))


async def refuse_try(_: Request, error: TooManyTries) -> Response:
    """The response to a password that came too early after too many wrong ones."""
    return JSONResponse({"detail": str(error)}, 429, {"Retry-After": str(math.ceil(error.seconds))})


def is_signed_in(request: Request) -> bool:
    """Whether Gradio knows the cookie of the request."""
    gradio = request.app
    names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
    return any(request.cookies.get(name) in gradio.tokens for name in names)


def write_login(language: str, base: str) -> str:
    said = {name: html.escape(translate_into(language, words)) for name, words in WORDS.items()}
    return Template((STATIC / "login.html").read_text(encoding="utf-8")).substitute(said, language=language, base=base)
