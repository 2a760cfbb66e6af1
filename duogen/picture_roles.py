"""What the pictures of a message are for, and how each model was trained to read several of them.

A picture that a user brings is a source (its pixels are kept), a reference (its looks are kept) or, with no role, what it always was.
"@2" in the words names a picture: the second of the message, or where the message has fewer, the second of the conversation. This module
turns both into what a model reads:

- a trained pair reads a message whose last picture is the source (`arrange_turn`), since its painter copies from the frame before;
- an untrained MLLM reads the running numbers of the conversation (`number_turn`) and writes them into its prompts for the painter;
- a diffusers pipeline reads its own wording for the pictures that it is given (`name_pictures`), the source first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from duogen.conversation import REFERENCE, SOURCE, Image, Piece, Text, Turn

_MARK = re.compile(r"(?<![A-Za-z0-9_@./+-])@(\d{1,4})(?![A-Za-z0-9_]|[.@+-][A-Za-z0-9])")
_SHOWN_ORDER = {REFERENCE: 0, "": 1, SOURCE: 2}
_SAID = {SOURCE: "Keep the pixels of", REFERENCE: "Keep the looks of"}


# How a prompt speaks of the pictures that a pipeline is given, counted from 1, by the beginning of the pipeline's class.
WORDINGS = {
    # Its encoder reads "Picture 1: <picture>Picture 2: <picture>" before the prompt (diffusers, pipeline_qwenimage_edit_plus.py:
    # img_prompt_template); trained on one to three pictures (model card of Qwen-Image-Edit-2509).
    "QwenImageEditPlus": "Picture {}",
    # One picture, without a name, before the prompt (diffusers, pipeline_qwenimage_edit.py: prompt_template_encode).
    "QwenImageEdit": "the image",
    # Its text encoder sees no pictures; these differ by their place in time, 10, 20, 30 ... (diffusers, pipeline_flux2_klein.py:
    # _prepare_image_ids). Its makers write "the person from image 1 is petting the cat from image 2" (help.bfl.ai, article 3531680306).
    "Flux2": "image {}",
    # One picture; prompts name none: "Make Pikachu hold a sign that says ..." (diffusers, pipeline_flux_kontext.py: EXAMPLE_DOC_STRING).
    "FluxKontext": "the image",
    # One picture, "the given image(s)" in the words before the prompt (diffusers, pipeline_longcat_image_edit.py:
    # prompt_template_encode_prefix).
    "LongCatImageEdit": "the image",
}
OTHERS = "image {}"
TRAINED = "picture {}"  # what the sketchbook says, which the bundled pair learns from
NOT_SHOWN = "another image"


def find_marks(words: str) -> list[int]:
    """The numbers that "@1" and the like in some words say, each once, in order."""
    return list(dict.fromkeys(int(number) for number in _MARK.findall(words)))


def replace_marks(words: str, name: Callable[[int], str]) -> str:
    """The words with `name(1)` for "@1"; where it is "", the mark stays."""
    return _MARK.sub(lambda found: name(int(found[1])) or found[0], words)


def _find_running_number(number: int, own: int, before: int) -> int:
    """The number in the conversation of a picture that a message with `own` pictures names by `number`; 0 for no picture.

    `before` are the pictures before the message.
    """
    if 0 < number <= own:
        return before + number
    return number if 0 < number <= before + own else 0


def arrange_turn(turn: Turn, before: Sequence[Image]) -> Turn:
    """A message as a trained pair reads it: references first, the source last, and "picture 1" in place of "@1", as they stand then.

    Earlier pictures that it names are shown again. Without a source the last picture that is no reference is one. A message without roles
    and marks stays as it is.

    Args:
        before: the pictures of the conversation before it.
    """
    own = turn.images()
    numbers = {number: _find_running_number(number, len(own), len(before)) for number in find_marks(turn.text())}
    known = [*before, *own]
    if not any(numbers.values()) and not any(image.role for image in own):
        return turn
    recalled = dict.fromkeys(number for number in numbers.values() if 0 < number <= len(before))
    places = [*recalled, *range(len(before) + 1, len(known) + 1)]
    roles = {place: "" if place in recalled else known[place - 1].role for place in places}
    places.sort(key=lambda place: _SHOWN_ORDER[roles[place]])
    shown = [replace(known[place - 1], role=REFERENCE) for place in places]
    if roles[places[-1]] != REFERENCE:
        shown[-1] = replace(shown[-1], role=SOURCE)
    names = {number: TRAINED.format(places.index(place) + 1) for number, place in numbers.items() if place}
    return replace(turn, parts=tuple(_lay_out(turn.parts, shown, lambda number: names.get(number, ""))))


def _lay_out(parts: Sequence[Piece], shown: Sequence[Image], name: Callable[[int], str]) -> Iterator[Piece]:
    """The words with names in place of marks, and `shown` in the places of the pictures; those that are more stand before the first."""
    pictures = iter(shown)
    more = len(shown) - sum(isinstance(part, Image) for part in parts)
    first = next((at for at, part in enumerate(parts) if isinstance(part, Image)), 0)
    for at, part in enumerate(parts):
        if at == first:
            yield from (next(pictures) for _ in range(more))
        yield next(pictures) if isinstance(part, Image) else Text(replace_marks(part.text, name))


def number_turn(turn: Turn, before: int, left_out: int = 0) -> Turn:
    """A message as an untrained MLLM reads it: its marks count the pictures of the conversation that it sees.

    Args:
        before: how many pictures the conversation has before the message.
        left_out: how many of them the MLLM does not see, the oldest.
    """
    own = len(turn.images())

    def name(number: int) -> str:
        running = _find_running_number(number, own, before)
        return f"@{running - left_out}" if running > left_out else NOT_SHOWN if running else ""

    return replace(turn, parts=tuple(Text(replace_marks(part.text, name)) if isinstance(part, Text) else part for part in turn.parts))


def describe_roles(turn: Turn, before: int) -> str:
    """The roles of a message's pictures in words: " (Keep the pixels of @1. Keep the looks of @2.)"; "" without roles.

    Args:
        before: how many pictures the MLLM sees before the message.
    """
    said = [f"{_SAID[image.role]} @{before + number}." for number, image in enumerate(turn.images(), 1) if image.role]
    return f" ({' '.join(said)})" if said else ""


def order_sources(turn: Turn, before: int) -> tuple[list[int], list[int]]:
    """The running numbers of the pictures that a pipeline is to start from: those to change, the source first, and the references.

    These are the pictures that a message names, and where one of its own has a role all of its own; none where it leaves that open.

    Args:
        before: how many pictures the conversation has before the message.
    """
    own = turn.images()
    numbers = {_find_running_number(number, len(own), before) for number in find_marks(turn.text())} - {0}
    roles = {before + number: image.role for number, image in enumerate(own, 1)}
    numbers |= roles.keys() if any(roles.values()) else set()
    ordered = sorted(numbers, key=lambda number: (-_SHOWN_ORDER[roles.get(number, "")], number))
    references = [number for number in ordered if roles.get(number) == REFERENCE]
    return ordered[: len(ordered) - len(references)], references


def name_pictures(prompt: str, pipeline: str, numbers: Sequence[int]) -> str:
    """A prompt with a pipeline's wording in place of "@1".

    Args:
        pipeline: its class.
        numbers: the running numbers of the pictures that it is given, in order.
    """
    fitting = [begin for begin in WORDINGS if pipeline.startswith(begin)]
    wording = WORDINGS[max(fitting, key=len)] if fitting else OTHERS
    return replace_marks(prompt, lambda number: wording.format(numbers.index(number) + 1) if number in numbers else NOT_SHOWN)
