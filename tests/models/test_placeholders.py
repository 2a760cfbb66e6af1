"""Finding wishes for pictures in a stream of text: however it is cut, whatever is broken, no markup reaches the user."""

from __future__ import annotations

import random
import re

import pytest

from duogen.models.placeholders import LONGEST_PROMPT, PictureRequest, Placeholders, mark_picture

CASES = {
    "plain words, 1 < 2 and a <b>": ["plain words, 1 < 2 and a <b>"],
    "One.<picture>A red house.</picture> Two.": ["One.", PictureRequest("A red house."), " Two."],
    '<picture from="1, 3">It\nglows</picture>': [PictureRequest("It glows", (1, 3))],
    "< Picture >x< / PICTURE >y": [PictureRequest("x"), "y"],
    '<image prompt="a cat" /> and <img alt=\'a dog\'>': [PictureRequest("a cat"), " and ", PictureRequest("a dog")],
    "a<picture>b <picture>c</picture> d</picture> e": ["a", PictureRequest("b c"), " d e"],  # nested
    "a<picture>b": ["a", PictureRequest("b")],  # never closed
    "a<picture>b\n\nStep 2.": ["a", PictureRequest("b"), "\n\nStep 2."],
    "a</picture>b": ["ab"],  # a stray end
    "a<picture>b</picture": ["a", PictureRequest("b")],
    "a<picture": ["a", PictureRequest("")],
    "a<pict": ["a"],
    "a <": ["a <"],
    "the <pictures> of </imaged>": ["the <pictures> of </imaged>"],
    "a<picture a red house\nb</picture>c": ["a", PictureRequest("a red house b"), "c"],  # its ">" is missing
    "<picture></picture>": [PictureRequest("")],
    "<picture>one</picture><picture>two</picture>": [PictureRequest("one"), PictureRequest("two")],
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
    assert joined(Placeholders().feed(mark_picture("a boat"))) == [PictureRequest("a boat")]
