"""The engine as the Gradio endpoint `/answer`, with an input for every option. MCP offers it as a tool too."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any, get_type_hints

import gradio as gr

from duogen.conversation import Conversation, Image, Piece, Text
from duogen.events import AnswerBuilder
from duogen.options import ImageOptions, TextOptions
from duogen.text_decoding import clean_text, is_blank
from ui.api.messages import attach_references
from ui.api.pictures import parse_picture
from ui.api.requests import RequestError, answer_work, parse_options, run_in_queue
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder

ABOUT = """Ask the pair for an answer in words and pictures.

Args:
    prompt: what to draw, explain or change
    pictures: pictures that the prompt speaks of, as data URLs (data:image/png;base64,...)
    seed: the same number gives the same answer
"""
RETURNS = "Returns:\n    parts of the answer in their order: words as text, pictures as files with alt text and seed\n"
YIELD_SECONDS = 0.2

Part = dict[str, Any]


class Endpoint:
    """`pictures` is a folder that the page serves."""

    def __init__(self, loading: Loading, pictures: PictureFolder) -> None:
        self.loading, self.pictures = loading, pictures

    def add_to(self, blocks: gr.Blocks) -> None:
        options = {"seed": int | None} | {each.name: kind | None for each, kind in _option_fields()}

        def answer(prompt: str, pictures: list[str], *given: Any) -> Iterator[list[Part]]:
            yield from self.answer(prompt, pictures, dict(zip(options, given, strict=True)))

        # Gradio reads inputs and their descriptions from these.
        inputs = [_parameter("prompt", str, inspect.Parameter.empty), _parameter("pictures", list[str], [])]
        inputs += [_parameter(name, kind, None) for name, kind in options.items()]
        signature = inspect.Signature(inputs, return_annotation=list[Part])
        answer.__signature__ = signature  # ty: ignore[missing-attribute]  # `inspect` reads it, though typeshed knows none
        answer.__annotations__ = {each.name: each.annotation for each in inputs}
        answer.__doc__ = ABOUT + "".join(f"    {each.name}: {_describe_field(each)}\n" for each, _ in _option_fields()) + RETURNS
        with blocks:
            gr.api(answer, api_name="answer", concurrency_limit=None)

    def answer(self, prompt: str, pictures: list[str], options: dict[str, Any]) -> Iterator[list[Part]]:
        """Yield the parts of the answer so far, repeatedly. Stops when the client has gone."""
        stop, made, said = threading.Event(), AnswerBuilder(), 0.0
        try:
            while not self.loading.finished.wait(YIELD_SECONDS):
                yield []
            work = answer_work(self._build_conversation(prompt, pictures), parse_options(options, self.loading.about))
            for event in run_in_queue(self.loading, work, stop):
                made.take(event)
                if made.error:
                    raise RequestError(made.error)
                if time.monotonic() - said > YIELD_SECONDS:
                    said = time.monotonic()
                    yield self._render(made.parts)
            yield self._render(made.parts)
        except RequestError as wrong:
            raise gr.Error(str(wrong), print_exception=False) from wrong
        finally:
            stop.set()

    def _build_conversation(self, prompt: Any, pictures: Any) -> Conversation:
        if not isinstance(prompt, str) or is_blank(prompt):
            raise RequestError("There is no prompt; say what to draw or explain.")
        if not isinstance(pictures or [], list):
            raise RequestError("pictures must be a list of data URLs.")
        return attach_references(Conversation().say("user", *map(parse_picture, pictures or []), clean_text(prompt)))

    def _render(self, parts: Sequence[Piece]) -> list[Part]:
        return [{"text": part.text} if isinstance(part, Text) else self._render_picture(part) for part in parts]

    def _render_picture(self, image: Image) -> Part:
        file = gr.FileData(path=self.pictures.keep_image(image), mime_type="image/png").model_dump()
        return {"image": file, "alt": image.alt, "seed": image.seed}


def _option_fields() -> list[tuple[Field, type]]:
    """The fields of the option dataclasses that matter without previews, and their types."""
    kinds = [(each, get_type_hints(kind)[each.name]) for kind in (TextOptions, ImageOptions) for each in fields(kind)]
    return [(each, kind) for each, kind in kinds if each.name != "preview_every"]


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)


def _describe_field(each: Field) -> str:
    low, high = each.metadata["low"], each.metadata["high"]
    return each.metadata["help"].rstrip(".") + (f" ({low} to {high})" if low is not None else "")


def show_in_mcp(blocks: gr.Blocks) -> None:
    """Let the tool answer with words and pictures in turn. Gradio itself writes a list as one text."""
    server: Any = blocks.mcp_server_obj
    plain = server.postprocess_output_data

    def split_parts(data: list[list[Part]], root: str) -> list[Any]:
        return [each for part in data[0] for each in plain([part.get("image") or part["text"]], root)]

    server.postprocess_output_data = split_parts
