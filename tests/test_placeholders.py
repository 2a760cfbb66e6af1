"""Finding wishes for pictures in a stream of text: however it is cut, whatever is broken, no markup reaches the user."""

from __future__ import annotations

import random
import re

import pytest

from duogen.models.placeholders import LONGEST_PROMPT, Asked, Placeholders, marked

CASES = {
    "plain words, 1 < 2 and a <b>": ["plain words, 1 < 2 and a <b>"],
    "One.<picture>A red house.</picture> Two.": ["One.", Asked("A red house."), " Two."],
    '<picture from="1, 3">It\nglows</picture>': [Asked("It glows", (1, 3))],
    "< Picture >x< / PICTURE >y": [Asked("x"), "y"],
    '<image prompt="a cat" /> and <img alt=\'a dog\'>': [Asked("a cat"), " and ", Asked("a dog")],
    "a<picture>b <picture>c</picture> d</picture> e": ["a", Asked("b c"), " d e"],  # nested
    "a<picture>b": ["a", Asked("b")],  # never closed
    "a<picture>b\n\nStep 2.": ["a", Asked("b"), "\n\nStep 2."],
    "a</picture>b": ["ab"],  # a stray end
    "a<picture>b</picture": ["a", Asked("b")],
    "a<picture": ["a", Asked("")],
    "a<pict": ["a"],
    "a <": ["a <"],
    "the <pictures> of </imaged>": ["the <pictures> of </imaged>"],
    "a<picture a red house\nb</picture>c": ["a", Asked("a red house b"), "c"],  # its ">" is missing
    "<picture></picture>": [Asked("")],
    "<picture>one</picture><picture>two</picture>": [Asked("one"), Asked("two")],
}


def joined(pieces: list) -> list:
    out: list = []
    for piece in pieces:
        if isinstance(piece, str) and out and isinstance(out[-1], str):
            out[-1] += piece
        else:
            out.append(piece)
    return out


def parsed(text: str, cuts: list[int]) -> list:
    parser, pieces = Placeholders(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pieces += parser.feed(text[start:end])
    return joined(pieces + parser.close())


@pytest.mark.parametrize("text", CASES)
def test_wishes_are_found_however_the_text_is_cut(text: str) -> None:
    for cuts in ([], list(range(1, len(text))), *[[at] for at in range(1, len(text))]):
        assert parsed(text, cuts) == CASES[text], cuts


def test_no_markup_is_ever_shown() -> None:
    rng = random.Random(0)
    bits = ["<picture>", "</picture>", "<picture ", "<", ">", "/"]
    bits += ["<pict", "<pictures", "a", " ", "\n", "\n\n", 'from="1"', "<img", "</img"]
    for _ in range(3000):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(1, 12)))
        cuts = sorted(rng.sample(range(len(text) + 1), min(3, len(text))))
        whole, cut = parsed(text, []), parsed(text, cuts)
        assert whole == cut, text
        shown = "".join(piece for piece in whole if isinstance(piece, str))
        assert not re.search(r"<\s*/?\s*(picture|image|img)(?![a-z])", shown, re.I), (text, shown)


def test_words_come_at_once_and_an_endless_prompt_ends() -> None:
    parser = Placeholders()
    assert parser.feed("Hello ") == ["Hello "] and parser.feed("you <") == ["you "] and parser.feed("3") == ["<3"]
    parser.feed("<picture>")
    asked, rest = parser.feed("x" * (LONGEST_PROMPT + 5))
    assert len(asked.prompt) == LONGEST_PROMPT and rest == "xxxxx"
    assert joined(Placeholders().feed(marked("a boat"))) == [Asked("a boat")]
