"""The page on which a user signs in, in the place of Gradio's own. Gradio's `/login` checks the name and gives the cookie."""

from __future__ import annotations

import html
from string import Template
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ui import STATIC
from ui.parts.i18n import choose_language, translate_into

WORDS = {
    "about": "It answers in words and pictures. The person who runs this page gives you a name and a password.",
    "name": "Your name",
    "password": "Password",
    "enter": "Sign in",
    "wrong": "The name or the password is wrong; try again.",
    "failed": "The page does not answer; try again in a moment.",
}


class LoginPage:
    """Middleware that shows the page to whoever opens the start page and is not signed in."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        """`root_path` is where a reverse proxy has the page."""
        self.app, self.base = app, urlsplit(root_path).path + "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and scope["path"] in ("/", "", self.base)
        if not shown or is_signed_in(Request(scope)):
            await self.app(scope, receive, send)
            return
        page = write_login(choose_language(Request(scope).headers.get("accept-language", "")), self.base)
        await HTMLResponse(page, headers={"Cache-Control": "no-store"})(scope, receive, send)


def is_signed_in(request: Request) -> bool:
    """Whether Gradio knows the cookie of the request."""
    gradio = request.app
    names = (f"access-token-{gradio.cookie_id}", f"access-token-unsecure-{gradio.cookie_id}")
    return any(request.cookies.get(name) in gradio.tokens for name in names)


def write_login(language: str, base: str) -> str:
    said = {name: html.escape(translate_into(language, words)) for name, words in WORDS.items()}
    return Template((STATIC / "login.html").read_text(encoding="utf-8")).substitute(said, language=language, base=base)
