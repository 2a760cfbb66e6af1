"""Correcting an answer: as text in the box, with its pictures as numbers in brackets, and back."""

from __future__ import annotations

import re

from duogen.conversation import Image, Piece, Text, Turn
from duogen.text_decoding import clean_message, is_blank
from ui.parts.shared import Refusal

MARK = re.compile(r"\[(\d+)\]")


def write_words(turn: Turn) -> str:
    """The words of an answer, with [1], [2] ... in place of its pictures."""
    said, count = [], 0
    for part in turn.parts:
        if isinstance(part, Text):
            said.append(part.text)
        elif isinstance(part, Image):
            count += 1
            said.append(f"[{count}]")
    return "".join(said)


def apply_correction(turn: Turn, words: str) -> tuple[Piece, ...]:
    """The parts of the answer as `words` give it. A picture whose number is missing is left out.

    Raises:
        Refusal: nothing is left, or a number stands for no picture or not in its order.
    """
    pictures, parts, last = turn.images(), [], 0
    for place, piece in enumerate(MARK.split(words)):
        if place % 2:
            number = int(piece)
            if not last < number <= len(pictures):
                raise Refusal(f"[{piece}] stands for no picture here; keep each number once, in its order, or take it out.")
            last = number
            parts.append(pictures[number - 1])
        elif piece:
            parts.append(Text(piece))
    if is_blank(words):
        raise Refusal("Type what the answer should say.")
    return tuple(parts)


def reword(turn: Turn, said: list[str]) -> tuple[Piece, ...]:
    """The parts of the answer with the words `said`, one for each part of words; the gaps around them stay, empty ones are left out.

    Raises:
        Refusal: nothing is left, or these are not as many as the answer has.
    """
    boxed = [part for part in turn.parts if isinstance(part, Text) and part.text.strip()]
    if len(boxed) != len(said):
        raise Refusal("That is no longer there; open the page anew.")
    new = {id(part): clean_message(str(words)) for part, words in zip(boxed, said, strict=True)}
    if not any(new.values()):
        raise Refusal("Type what the answer should say.")
    parts = []
    for part in turn.parts:
        if not isinstance(part, Text) or id(part) not in new:
            parts.append(part)
        elif words := new[id(part)]:
            parts.append(Text(part.text.replace(part.text.strip(), words, 1)))
    return tuple(parts)
