"""The API on a server in this process, and what programs send to it."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from PIL import Image as PILImage

from tests.support.tiny import SIDE
from tests.support.waiting import patience, until
from ui.api.openai import Api


@contextmanager
def serve(api: Api) -> Iterator[str]:
    """The address that a program is given."""
    app = FastAPI()
    app.include_router(api.router())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(patience())


def png(picture: PILImage.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def encode(picture: PILImage.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def picture(colour: str = "red") -> str:
    return encode(PILImage.new("RGB", (SIDE, SIDE), colour))


def ask(*parts: str) -> list[dict]:
    content = [
        {"type": "image_url", "image_url": {"url": part}} if part.startswith("data:") else {"type": "text", "text": part} for part in parts
    ]
    return [{"role": "user", "content": content}]
