"""What is said and painted in the comparison: fixed words, so that both ways do the same work whatever the random weights would say."""

from __future__ import annotations

from dataclasses import dataclass

from duogen.models.placeholders import BLIND_SYSTEM, SYSTEM, mark_picture
from duogen.models.sequence import Tokens


@dataclass(frozen=True)
class Segment:
    """Words, and the words of the picture that follows them; "" for none, which ends the answer."""

    words: str
    picture: str = ""

    def ids(self, tokens: Tokens) -> list[int]:
        """The tokens that the MLLM says for it. A tuned one asks for a picture by BOV, an untuned one by a placeholder."""
        if not self.picture:
            return [*tokens.text(self.words), tokens.end]
        if tokens.tuned:
            return [*tokens.text(self.words), tokens.bov]
        return tokens.text(self.words + mark_picture(self.picture))


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: tuple[Segment, ...]


# About as many tokens to a picture as in a guide of the bundled pair: 94 to four pictures.
GUIDE = (
    Exchange(
        "How do I draw a red house with a blue door?",
        (
            Segment("Step 1. Begin with the walls: draw a large red square in the middle of the page.", "a large red square"),
            Segment("Step 2. Add the roof: put a wide brown triangle on top of the walls.", "a red house with a brown roof"),
            Segment("Step 3. Add the door: a small blue square at the bottom of the walls.", "a red house with a roof and a blue door"),
            Segment("Step 4. Add the sun: a small yellow circle in the corner of the sky.", "a red house with a blue door under a sun"),
            Segment("That is your house. Ask me for more when you like."),
        ),
    ),
    Exchange(
        "Make the door green instead.",
        (
            Segment("Here is the same house, and now the door at the bottom is green.", "a red house with a green door under a sun"),
            Segment("Only the door has changed."),
        ),
    ),
)
CHAT_ONLY = tuple(Exchange(each.question, (Segment(" ".join(part.words for part in each.answer)),)) for each in GUIDE)
SAID = [text for each in GUIDE for part in each.answer for text in (each.question, part.words, mark_picture(part.picture))]
TEXTS = [SYSTEM, BLIND_SYSTEM, *SAID]
