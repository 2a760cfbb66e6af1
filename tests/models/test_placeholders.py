"""Requests for pictures in a stream of text: however it is cut, whatever is broken, nothing is lost and no markup reaches the user."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from duogen.events import Thought
from duogen.models.picture_marks import PictureRequest, read_head
from duogen.models.placeholders import LONGEST_PROMPT, Placeholders, mark_picture
from duogen.models.text_reader import Piece

HTML = '<picture>\n  <source srcset="a.webp">\n  <img src="a.jpg" alt="x">\n</picture>'
CASES: dict[str, list[Piece]] = {
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
    "for i<p": ["for i<p"],
    "the <pictures> of </imaged>": ["the <pictures> of </imaged>"],
    "a<picture a red house\nb</picture>c": ["a", PictureRequest("a red house b"), "c"],  # its ">" is missing
    "<picture></picture>": [PictureRequest("")],
    "<picture>one</picture><picture>two</picture>": [PictureRequest("one"), PictureRequest("two")],
    # Code is never a request ...
    "Use the `<picture>` element.": ["Use the `<picture>` element."],
    f"```html\n{HTML}\n```\n<picture>a</picture>": [f"```html\n{HTML}\n```\n", PictureRequest("a")],
    "1. ~~~\n   <picture>x</picture>\n   ~~~\n2. <picture>y</picture>": [
        "1. ~~~\n   <picture>x</picture>\n   ~~~\n2. ", PictureRequest("y")
    ],
    "````\n```\n<picture>a</picture>\n````": ["````\n```\n<picture>a</picture>\n````"],
    "``a ` <picture>b</picture>``": ["``a ` <picture>b</picture>``"],
    "```<picture>``` <picture>a</picture>": ["```<picture>``` ", PictureRequest("a")],
    "<code><picture></code> <pre>\n\n<img alt='a'></pre>": ["<code><picture></code> <pre>\n\n<img alt='a'></pre>"],
    # ... and what only looks like code is none.
    "a ` b <picture>c</picture>\n\nd `": ["a ` b ", PictureRequest("c"), "\n\nd `"],
    "- a ` b\n- <picture>c</picture> `": ["- a ` b\n- ", PictureRequest("c"), " `"],
    "a \\` b <picture>c</picture> `": ["a \\` b ", PictureRequest("c"), " `"],
    # Who speaks of a mark asks for nothing.
    'A "<picture>" &quot;</picture>&quot;, <picture>a</picture>': ['A "<picture>" &quot;</picture>&quot;, ', PictureRequest("a")],
    "Use the <picture> element in HTML.\n\n<picture>a</picture>": ["Use the <picture> element in HTML.\n\n", PictureRequest("a")],
    "\\<picture> or (<picture>)": ["\\<picture> or (<picture>)"],
    f"Like this: {HTML} Yes.": [f"Like this: {HTML} Yes."],
    'the <img> tag, <img src="a.png"> and <img src=b alt="">': ['the <img> tag, <img src="a.png"> and <img src=b alt="">'],
    # Words and sources wherever they stand.
    "<picture: a red house> and\n\nmore": [PictureRequest("a red house"), " and\n\nmore"],
    '<picture="a red house"/> and <picture a dog/>!': [PictureRequest("a red house"), " and ", PictureRequest("a dog"), "!"],
    '<picture prompt="a > b"> then <picture alt="c"></picture>d': [PictureRequest("a > b"), " then ", PictureRequest("c"), "d"],
    '<picture\n  prompt="a cat"\n/><picture 2>a dog</picture>': [PictureRequest("a cat"), PictureRequest("a dog")],
    '<picture title="Step 1">a house</picture><picture from="picture 1">x': [PictureRequest("a house"), PictureRequest("x", (1,))],
    '<picture from="1 and 2" a red house>at dusk</picture>': [PictureRequest("a red house at dusk", (1, 2))],
    '<img src="a.png" alt="a cat"> and <img>a dog</img>': [PictureRequest("a cat"), " and ", PictureRequest("a dog")],
    "＜picture from＝“1”＞红房子＜／picture＞ 好": [PictureRequest("红房子", (1,)), " 好"],
    "**<picture>**a cat**</picture>** *<picture>b</picture>* **c**": [PictureRequest("a cat"), " ", PictureRequest("b"), " **c**"],
    # As models write that were taught other marks.
    "![a cat](a.png) ![](b.png 'a dog') ![no": [PictureRequest("a cat"), " ", PictureRequest("a dog"), " ![no"],
    "[picture: a cat] [Image 2: b] [picture](a) [ ] 【图片：猫】": [
        PictureRequest("a cat"), " ", PictureRequest("b"), " [picture](a) [ ] ", PictureRequest("猫")
    ],
    '{"picture": "a cat"}': [PictureRequest("a cat")],
    '{"name": "draw_image", "arguments": "{\\"prompt\\": \\"a {cat}\\"}"}\nok': [PictureRequest("a {cat}"), "\nok"],
    '<tool_call>\n{"name": "image_gen", "arguments": {"prompt": "a cat", "from": 1}}\n</tool_call>': [PictureRequest("a cat", (1,))],
    '{"name": "Chair", "image": "chair.png"}\n{x}\n{"a": ': ['{"name": "Chair", "image": "chair.png"}\n{x}\n{"a": '],
    "<|vision_start|><|image_pad|><|vision_end|> a <| b <|end": [" a <| b <|end"],
    # Thoughts
    "<think>I <picture>test</picture>\n\n`</think>Yes: <picture>real</picture>": [
        Thought("I <picture>test</picture>\n\n`"), "Yes: ", PictureRequest("real")
    ],
    "So <think>hm</think> yes. The <think> tag.\n\n</think>\n<thinking>on": [
        "So ", Thought("hm"), " yes. The <think> tag.\n\n\n", Thought("on")
    ],
}  # fmt: skip


def join_words(pieces: list[Piece]) -> list[Piece]:
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, str) and isinstance(last, str):
            out[-1] = last + piece
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            out[-1] = Thought(last.text + piece.text)
        else:
            out.append(piece)
    return out


def parse(text: str, cuts: list[int] | None = None) -> list[Piece]:
    parser, pieces = Placeholders(), []
    for start, end in zip([0, *(cuts or [])], [*(cuts or []), len(text)], strict=True):
        pieces += parser.feed(text[start:end])
    return join_words(pieces + parser.close())


def words_of(pieces: list[Piece]) -> list[str]:
    """All words, of requests and thoughts too."""
    texts = [each.prompt if isinstance(each, PictureRequest) else each.text if isinstance(each, Thought) else each for each in pieces]
    return re.findall(r"w\d+", " ".join(texts))


@pytest.mark.parametrize("text", CASES)
def test_requests_are_found_however_the_text_is_cut(text: str) -> None:
    for cuts in ([], list(range(1, len(text))), *[[at] for at in range(1, len(text))]):
        assert parse(text, cuts) == CASES[text], cuts


MARKS = [
    "<picture>", "</picture>", "<picture ", "<", ">", "/", "<pict", "<pictures", "＜picture＞", "<img ", "<image>", "</img", " alt='a'",
    "`", "``", "```\n", "~~~", "\n", "\n\n", "- ", " ", "**", '"', "![", "](a)", "[picture: ", "]", "{", '{"picture": "', '"}', "\\",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>", "<|image_pad|>", " from='1'", ":", "=", "<source",
]  # fmt: skip
SOUP = st.lists(st.sampled_from(MARKS) | st.just("w"), max_size=14)


def number_words(bits: list[str]) -> str:
    """The bits as a text in which no two words are the same."""
    return "".join(f"w{index} " if bit == "w" else bit for index, bit in enumerate(bits))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(SOUP, st.randoms(use_true_random=False))
def test_no_word_is_lost_or_said_twice_whatever_is_broken(bits: list[str], rng: random.Random) -> None:
    text = number_words(bits)
    whole = parse(text)
    said = words_of(whole)
    assert said == re.findall(r"w\d+", text)
    assert whole == parse(text, list(range(1, len(text)))) == parse(text, sorted(rng.sample(range(len(text) + 1), min(3, len(text)))))


PLAIN = st.sampled_from(["w ", "a", " ", "\n", "\n\n", "1 < 2", "<b>", "* a", "_x_y", "é🏠", "[ ]", "{}", "&lt;"])
ASKED = st.builds(PictureRequest, st.text("ab.é ,").map(lambda words: " ".join(words.split())))
CODE = st.sampled_from(["`<picture>` ", "`` ` <img alt='a'> `` ", "\n```html\n<picture>w</picture>\n```\n", "\n~~~\n![a](b)\n~~~\n"])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(PLAIN | CODE | ASKED, max_size=12))
def test_what_comes_in_goes_out(pieces: list[Piece]) -> None:
    text = "".join(mark_picture(each.prompt) if isinstance(each, PictureRequest) else str(each) for each in pieces)
    assert parse(text) == join_words(pieces)


LINES = st.sampled_from(["`", "``", "\n```\n", "\n~~~\n", "\n~~~~ a\n", "\n", "\n\n", "a ", "\n- ", "\n# ", "<picture>w</picture> "])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(LINES, max_size=14))
@example(["`", "\n```\n", "<picture>w</picture> ", "`"])
def test_code_is_what_commonmark_calls_code(bits: list[str]) -> None:
    text = "".join(bit.replace("w", f"w{index}") for index, bit in enumerate(bits))
    assume(not re.search(r"[^`\n]`{3}", text))  # a fence that begins inside a line is none; models mean one
    tokens = [inner for token in MarkdownIt("commonmark").parse(text) for inner in [token, *(token.children or [])]]
    code = "".join(token.info + token.content for token in tokens if token.type in ("fence", "code_inline"))
    asked = [piece.prompt for piece in parse(text) if isinstance(piece, PictureRequest)]
    assert asked == [word for word in re.findall(r"w\d+", text) if not re.search(rf"{word}\b", code)]


def test_no_markup_is_ever_shown() -> None:
    rng = random.Random(0)
    bits = ["<picture>", "</picture>", "<picture ", "<", ">", "/"]
    bits += ["<pict", "<pictures", "a", " ", "\n", "\n\n", 'from="1"', "<img", "</img"]
    for _ in range(3000):
        text = "".join(rng.choice(bits) for _ in range(rng.randrange(1, 12)))
        cuts = sorted(rng.sample(range(len(text) + 1), min(3, len(text))))
        whole, cut = parse(text, []), parse(text, cuts)
        assert whole == cut, text
        shown = "".join(piece for piece in whole if isinstance(piece, str))
        assert not re.search(r"<\s*/?\s*(picture|image)(?![a-z])|<\s*/\s*img(?![a-z])", shown, re.I), (text, shown)
        assert not re.search(r"<\s*img(?![a-z])[^>]*(<|$)", shown, re.I), (text, shown)  # a whole one without words is HTML


ENDLESS = [
    "<" + " " * 20_000, "`" * 20_000, "".join("`" * each + "a" for each in range(190)), "![" * 10_000, "<img>" * 4000, "<picture " * 2000,
    "<code>" * 3000, '{"a":\n' * 3000, "[picture: " * 2000, '<picture prompt="a"> x' * 1000, "x <think> " * 2000,
    "<picture " + 'a="' * 6000, "<picture>" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("text", ENDLESS)
def test_every_character_is_read_a_bounded_number_of_times(text: str, monkeypatch) -> None:
    reads, advance = [0], Placeholders._advance
    monkeypatch.setattr(Placeholders, "_advance", lambda self: (reads.__setitem__(0, reads[0] + 1), advance(self))[1])
    pieces = parse(text)
    assert reads[0] < 150 * len(text), "it goes back too often"
    assert all(len(piece.prompt) <= LONGEST_PROMPT for piece in pieces if isinstance(piece, PictureRequest))


def test_words_come_at_once_and_an_endless_prompt_ends() -> None:
    parser = Placeholders()
    assert parser.feed("Hello ") == ["Hello "] and parser.feed("you <") == ["you "] and parser.held == "<" and parser.feed("3") == ["<3"]
    assert parser.feed("a `b") == ["a "] and parser.held == "`b" and not parser.is_open()
    assert parser.feed("` c<picture>") == ["`b` c"] and parser.is_open()
    asked, rest = parser.feed("x" * (LONGEST_PROMPT + 5))
    assert len(asked.prompt) == LONGEST_PROMPT and rest == "xxxxx" and not parser.is_open()
    assert join_words(Placeholders().feed(mark_picture("a boat"))) == [PictureRequest("a boat")]


def test_an_answer_that_goes_on_in_code_is_still_in_code() -> None:
    parser = Placeholders()
    parser.feed("See:\n```html\n<picture>a")
    assert parser.fence == "```"
    pieces = Placeholders(parser.fence).feed("</picture>\n```\n<picture>b</picture>")
    assert join_words(pieces) == ["</picture>\n```\n", PictureRequest("b")]
    parser.feed("\n```\n")
    assert parser.fence == ""


def test_what_stands_in_a_mark() -> None:
    assert read_head(' from="the first and picture 3" class="wide"').sources == (1, 3) and not read_head(' class="wide"').words
    assert read_head(" a view from 2 hills").sources == () and read_head(" a view from 2 hills").words == "a view from 2 hills"
