"""The engine as a named endpoint of Gradio's, `/answer`, with an input for every option; also what MCP offers as a tool."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any, get_type_hints

import gradio as gr

from duogen.conversation import Conversation
from duogen.events import Failed, ImageDone, TextDelta
from duogen.options import ImageOptions, TextOptions
from ui.api.requests import Wrong, answering, in_turn, options_of, picture_of
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

ABOUT = """Ask the pair for an answer in words and pictures.

Args:
    prompt: what to draw, explain or change
    pictures: pictures that the prompt speaks of, as data URLs (data:image/png;base64,...)
    seed: the same number gives the same answer
"""
RETURNS = "Returns:\n    parts of the answer in their order: words as text, pictures as files with alt text and seed\n"
SAY_SECONDS = 0.2

Part = dict[str, Any]


class Endpoint:
    """`pictures` is a folder that the page serves."""

    def __init__(self, loading: Loading, pictures: PictureFolder) -> None:
        self.loading, self.pictures = loading, pictures

    def add_to(self, blocks: gr.Blocks) -> None:
        options = {"seed": int | None} | {each.name: kind | None for each, kind in _options()}

        def answer(prompt: str, pictures: list[str], *given: Any) -> Iterator[list[Part]]:
            yield from self.answer(prompt, pictures, dict(zip(options, given, strict=True)))

        # Gradio reads inputs and their descriptions from these.
        inputs = [_input("prompt", str, inspect.Parameter.empty), _input("pictures", list[str], [])]
        inputs += [_input(name, kind, None) for name, kind in options.items()]
        answer.__signature__ = inspect.Signature(inputs, return_annotation=list[Part])
        answer.__annotations__ = {each.name: each.annotation for each in inputs}
        answer.__doc__ = ABOUT + "".join(f"    {each.name}: {_help(each)}\n" for each, _ in _options()) + RETURNS
        with blocks:
            gr.api(answer, api_name="answer", concurrency_limit=None)

    def answer(self, prompt: str, pictures: list[str], options: dict[str, Any]) -> Iterator[list[Part]]:
        """The parts of the answer so far, again and again; stops when nobody takes them any more."""
        stop, parts, said = threading.Event(), [], 0.0
        try:
            while not self.loading.finished.wait(SAY_SECONDS):
                yield []
            work = answering(self._asked(prompt, pictures), options_of(options, getattr(self.loading.engine, "about", {})))
            for event in in_turn(self.loading, work, stop):
                if isinstance(event, Failed):
                    raise Wrong(event.message)
                self._take(event, parts)
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    yield [dict(part) for part in parts]
            yield parts
        except Wrong as wrong:
            raise gr.Error(str(wrong), print_exception=False) from wrong
        finally:
            stop.set()

    def _asked(self, prompt: Any, pictures: Any) -> Conversation:
        if not isinstance(prompt, str) or not prompt.strip():
            raise Wrong("There is no prompt; say what to draw or explain.")
        if not isinstance(pictures or [], list):
            raise Wrong("pictures must be a list of data URLs.")
        return Conversation().say("user", *map(picture_of, pictures or []), prompt)

    def _take(self, event: Any, parts: list[Part]) -> None:
        match event:
            case TextDelta(text):
                if parts and "text" in parts[-1]:
                    parts[-1]["text"] += text
                else:
                    parts.append({"text": text})
            case ImageDone(_, image):
                file = gr.FileData(path=self.pictures.keep(image.picture), mime_type="image/png").model_dump()
                parts.append({"image": file, "alt": image.alt, "seed": image.seed})


def _options() -> list[tuple[Field, type]]:
    """The fields of the option dataclasses that an answer without a watcher has, and their types."""
    kinds = [(each, get_type_hints(kind)[each.name]) for kind in (TextOptions, ImageOptions) for each in fields(kind)]
    return [(each, kind) for each, kind in kinds if each.name != "preview_every"]


def _input(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _help(each: Field) -> str:
    low, high = each.metadata["low"], each.metadata["high"]
    return each.metadata["help"].rstrip(".") + (f" ({low} to {high})" if low is not None else "")


def show_in_mcp(blocks: gr.Blocks) -> None:
    """Let the tool's answer be words and pictures in turn. Gradio itself writes a list as one text."""
    server = blocks.mcp_server_obj
    plain = server.postprocess_output_data

    def in_parts(data: list[list[Part]], root: str) -> list[Any]:
        return [each for part in data[0] for each in plain([part.get("image") or part["text"]], root)]

    server.postprocess_output_data = in_parts
