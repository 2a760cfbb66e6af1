"""An answer as words in the box, its pictures as numbers in brackets, and the answer that comes of what a person made of them."""

from __future__ import annotations

import re

from duogen.conversation import Image, Piece, Text, Turn
from ui.parts.shared import Refused

MARK = re.compile(r"\[(\d+)\]")


def to_words(turn: Turn) -> str:
    """What an answer says, with [1], [2] ... where its pictures stand."""
    said, count = [], 0
    for part in turn.parts:
        if isinstance(part, Text):
            said.append(part.text)
        elif isinstance(part, Image):
            count += 1
            said.append(f"[{count}]")
    return "".join(said)


def corrected(turn: Turn, words: str) -> tuple[Piece, ...]:
    """The parts of the answer as `words` put it; a picture whose number was taken out is left out.

    Raises:
        Refused: nothing is left, or a number stands for no picture or not in its order.
    """
    pictures, parts, last = turn.images(), [], 0
    for place, piece in enumerate(MARK.split(words)):
        if place % 2:
            number = int(piece)
            if not last < number <= len(pictures):
                raise Refused(f"[{piece}] stands for no picture here; keep each number once, in its order, or take it out.")
            last = number
            parts.append(pictures[number - 1])
        elif piece:
            parts.append(Text(piece))
    if not words.strip():
        raise Refused("Type what the answer should say.")
    return tuple(parts)
