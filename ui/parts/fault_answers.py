"""What a client gets when a route or an event fails: a sentence with a number, not an empty 500 nor a line that breaks off."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.route_utils import FnIndexInferError
from gradio.state_holder import SessionState
from gradio.utils import LRUCache
from httpx import InvalidURL  # of the client that Gradio uses
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duogen.faults import name_fault, report_fault
from ui.parts.i18n import translate
from ui.parts.shared import translate_html

# What Gradio's routes raise for a request that makes no sense.
UNREADABLE = (ValueError, TypeError, LookupError, FnIndexInferError, InvalidURL)


SESSIONS = 2000  # whose messages are kept, as Gradio keeps them


class PendingMessages(LRUCache[str, "asyncio.Queue[Any]"]):
    """The messages that browsers have not read yet, by session.

    Those of a session that has gone are dropped, as nobody reads them. In Gradio's own the event fails that sends them.
    """

    def __missing__(self, session: str) -> asyncio.Queue[Any]:
        return asyncio.Queue()


class ReportingBlocks(gr.Blocks):
    """Blocks whose events tell the browser the number of a fault, and leave nothing behind.

    Gradio's own say "Error" and log a traceback without a number.
    """

    def queue(self, *args: Any, **kwargs: Any) -> ReportingBlocks:
        """As Gradio's, but an event whose browser has gone ends as any other."""
        super().queue(*args, **kwargs)
        self._queue.pending_messages_per_session = PendingMessages(SESSIONS)
        return self

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Gradio's.

        Raises:
            gr.Error: the event failed; the browser shows what it says.
        """
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False  # it says itself what is wrong
            raise
        except Exception as error:
            words = f"Something failed here ({name_fault(error)}). Try again; if it stays, tell the number to whoever runs this server."
            raise gr.Error(translate_html(words), title=translate("Error"), print_exception=False) from error

    async def postprocess_data(self, block_fn: BlockFunction, predictions: list | dict, state: SessionState | None) -> list[Any]:
        """As Gradio's, but a component that an event has updated keeps its id.

        An update of a component's looks puts a copy with an id of its own in the component's place (Gradio 6). The next event enters the
        copy under that id too, where nobody ever finds it: some 60 KB more of the server's memory with each answer.
        """
        made = await super().postprocess_data(block_fn, predictions, state)
        blocks = state.blocks_config.blocks if state else {}
        for output in block_fn.outputs:
            if output._id in blocks:
                blocks[output._id]._id = output._id
        return made


class FaultAnswers:
    """Middleware that answers for a route that raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "\0" in scope.get("path", ""):  # no file and no address has one, and libraries fail in their own ways
            await JSONResponse({"detail": "The address of the request cannot be read."}, 400)(scope, receive, send)
            return
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if scope["type"] != "http":
                raise
            if started:
                if not isinstance(error.__cause__ or error, HTTPException):  # a refusal that Gradio thought of too late
                    report_fault(error)
                await send({"type": "http.response.body", "body": b""})
                return
            status = 400 if isinstance(error, UNREADABLE) else 500
            await JSONResponse({"detail": f"The request could not be served ({name_fault(error)})."}, status)(scope, receive, send)
