"""The first page: what the open pair can do, what it cannot, and requests to press."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from gradio.components.chatbot import ExampleMessage

from duogen import paths
from ui.chat.history import button
from ui.parts.i18n import translate
from ui.parts.shared import translate_html

WAITING = {"title": "DuoGen", "summary": "Ask how to draw something, and it explains in words and pictures."}
WELCOME_PICTURES = paths.ASSETS / "welcome"
# For pairs that bring no examples, by what they can.
FILMS = "Show in three pictures how a wave breaks on a beach"
SOURCES = "Paint a lighthouse at dusk, then show the same lighthouse in winter"
PAINTERS = ("Paint a quiet harbour in the morning as a watercolour", "Paint a fox who reads a book under a tree")
GUIDES = ("Explain in four pictures how to fold a paper boat", "Tell me a story of a small robot, with three pictures")


def welcome_html(about: dict[str, Any]) -> str:
    """What the pair is, and its limits with a button that hides them for good. On one line, as of `html_part`."""
    hint = translate_html(about.get("limits", ""))
    limits = f'<p class="limits">{hint} {button("known", "Do not show this again", words="Got it")}</p>' if hint else ""
    return " ".join(f"<h2>{translate_html(about['title'])}</h2><p>{translate_html(about['summary'])}</p>{limits}".splitlines())


def make_examples(about: dict[str, Any]) -> list[ExampleMessage]:
    """The pair's own examples, with a picture where it painted one for this page; else examples of what pairs of its kind can."""
    if about["examples"]:
        return [_make_example(words) for words in about["examples"]]
    special = FILMS if about.get("films") else SOURCES if about.get("most_sources") else PAINTERS[1]
    return [{"text": translate(words)} for words in (GUIDES[0], PAINTERS[0], special, GUIDES[1])]


def _make_example(words: str) -> ExampleMessage:
    picture = _find_pictures().get(words)
    return {"text": words, "icon": str(picture)} if picture else {"text": words}


@functools.cache
def _find_pictures() -> dict[str, Path]:
    """The pictures of `python -m bench.welcome`, by request."""
    examples = json.loads((WELCOME_PICTURES / "examples.json").read_text(encoding="utf-8"))["examples"]
    return {words: WELCOME_PICTURES / name for words, name in examples.items()}
