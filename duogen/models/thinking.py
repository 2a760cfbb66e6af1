"""Thinking before the answer: what the MLLM says between two marks stays in its context and is shown apart, never as the answer.

The text comes in pieces that may end anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

OPENING, CLOSING = "<think>\nBefore I answer, I think: ", "</think>"
DRAFTING = "<think>\n"  # thoughts that are drawn: each step's words, then its picture
MOST_TOKENS = 512
MOST_DRAFTS = 16


@dataclass
class Thoughts:
    """Finds the end of the thoughts in a stream of text.

    Attributes:
        held: text that might be the beginning of the closing mark.
        over: the mark has come.
    """

    held: str = ""
    over: bool = False

    def feed(self, text: str) -> str:
        """What of the thoughts is certain now that `text` came; what follows the mark is dropped."""
        said, mark, _ = (self.held + text).partition(CLOSING)
        self.over, self.held = bool(mark), ""
        if not mark:
            begun = next((length for length in range(len(CLOSING) - 1, 0, -1) if said.endswith(CLOSING[:length])), 0)
            said, self.held = said[: len(said) - begun], said[len(said) - begun :]
        return said
