"""Rewrite pages by rules: remove debris and normalise the text."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from duogen.data_engine.filters import normalise_letters
from duogen.data_engine.sample import ASSETS, WORD, Block, Dropped, Lost, Sample, Words, stem_word

URL = re.compile(r"\(?\b(?:https?://|www\.)\S+\)?")
EMOJI = re.compile("[\U0001f300-\U0001faff\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U0001f1e6-\U0001f1ff]+")
NOT_AN_END = re.compile(r"(?:\b(?:e\.g|i\.e|etc|approx|ca|vs|tsp|tbsp|oz|lb|min|no|fig|mr|mrs|dr|st)|\b[A-Z]|^\d{1,3})\.$", re.I)
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]?\s+(?=[\"'(\[]?[A-Z0-9])")
FILLERS = frozenset(re.findall(r"\w+", "a an and also are be is it just now of so that the then these this those to very was were your"))
FACE = re.compile(r"(?<!\w)[:;]-?[)D(](?!\w)")
EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*(?:edit|\d+|\u2026|\.\.\.)?\s*\]")
BLANKS = re.compile(r"[ \t\u00a0]+")
BLANK_BEFORE_MARK = re.compile(r"(?<!\d)\s+([,.;:!?)])")
BLANK_BEFORE_COMMA = re.compile(r"[ \t]+([,;])(?=[^\W\d_])")  # "hearty ,meaty": the blank stands on the wrong side
POINTER = re.compile(r"\s*\((?:see|as in|like in) (?:the )?(?:picture|photo|image|pic)s?(?: (?:below|above))?\)", re.I)


@lru_cache(maxsize=2)
def debris_pattern(running: bool) -> re.Pattern[str]:
    """The pattern of debris: the general one, plus that of paragraphs for `running` text."""
    anywhere, paragraphs = (ASSETS / "debris.txt").read_text(encoding="utf-8").split("[paragraphs]")
    lines = (anywhere + paragraphs if running else anywhere).splitlines()
    return re.compile("|".join(f"(?:{line})" for line in lines if line and not line.startswith("#")), re.I)


def split_sentences(text: str) -> list[str]:
    """Cut a paragraph into sentences. Abbreviations and initials end none."""
    found: list[str] = []
    for piece in SENTENCE_END.split(text):
        if found and NOT_AN_END.search(found[-1]):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return [each.strip() for each in found if each.strip()]


def clean_page(sample: Sample) -> Sample | Dropped:
    """Remove debris, cut paragraphs into sentences, and drop empty headings and repeated text."""
    parts: list[Block] = []
    lost: list[Lost] = []
    said: set[tuple[str, ...]] = set()
    for part in sample.parts:
        if not isinstance(part, Words):
            alt = tidy_text(part.alt)
            named = alt.lower() != sample.source.author.lower()
            parts.append(replace(part, alt=alt if named else "", title=tidy_text(part.title), caption=tidy_text(part.caption)))
            continue
        if part.kind == "code":
            parts.append(part)
            continue
        for each in _clean_block(part, lost):
            gist = _gist(each.text)
            if each.kind in ("paragraph", "sentence", "quote") and len(each.text) > 40 and gist in said:
                lost.append(Lost(each.text[:80], "rewrite", "said before"))
                continue
            said.add(gist)
            parts.append(each)
    parts = _drop_empty_headings(_start_paragraphs(parts), sample.source.title)
    whole = replace(sample, parts=tuple(parts), lost=sample.lost + tuple(lost))
    return whole if any(isinstance(part, Words) and part.kind != "heading" for part in parts) else Dropped("nothing but debris")


def _gist(text: str) -> tuple[str, ...]:
    """The words that carry meaning, in order. Near-repeats share them; other numbers or directions give another gist."""
    return tuple(stem_word(word) for word in WORD.findall(text.lower()) if word not in FILLERS)


def tidy_text(text: str) -> str:
    """Normalise blanks and letters. Removes addresses, emoji and pointers to pictures ("see below")."""
    text = POINTER.sub("", URL.sub("", EMOJI.sub(" ", normalise_letters(text))))
    text = EMPTY_BRACKETS.sub("", FACE.sub("", text))
    text = BLANK_BEFORE_MARK.sub(r"\1", BLANK_BEFORE_COMMA.sub(r"\1 ", BLANKS.sub(" ", text)))
    return text.strip()


def _clean_block(part: Words, lost: list[Lost]) -> list[Words]:
    """The sentences of a block without debris. The first keeps the kind of the block, the others continue its paragraph."""
    text = tidy_text(part.text)
    if not re.search(r"\w", text):
        return []
    pattern = debris_pattern(part.kind in ("paragraph", "quote"))
    found = split_sentences(text) if part.kind == "paragraph" else [text]
    kept = []
    for each in found:
        whole = [each] if part.kind == "paragraph" else split_sentences(each)
        good = [one for one in whole if not pattern.search(one.strip("*_ "))]
        lost += [Lost(one[:80], "rewrite", "debris") for one in whole if one not in good]
        kept.append(" ".join(good))
    kept = [each for each in kept if each]
    return [replace(part, text=each, kind=part.kind if not at else "sentence") for at, each in enumerate(kept)]


def _start_paragraphs(parts: list[Block]) -> list[Block]:
    """Turn a sentence into the start of a paragraph where its own start is lost or a picture precedes it."""
    joined: list[Block] = []
    for part in parts:
        before = joined[-1] if joined else None
        goes_on = isinstance(before, Words) and before.kind in ("paragraph", "sentence")
        if isinstance(part, Words) and part.kind == "sentence" and not goes_on:
            part = replace(part, kind="paragraph")
        joined.append(part)
    return joined


def _drop_empty_headings(parts: list[Block], title: str) -> list[Block]:
    """Drop headings that repeat the title, and headings with nothing below them."""
    kept: list[Block] = []
    plain = re.sub(r"\W+", " ", title).strip().lower()
    for at, part in enumerate(parts):
        if isinstance(part, Words) and part.kind == "heading":
            below = parts[at + 1] if at + 1 < len(parts) else None
            empty = below is None or (isinstance(below, Words) and below.kind == "heading" and len(below.mark) <= len(part.mark))
            same = re.sub(r"\W+", " ", part.text).strip().lower()
            if empty or (plain and (same == plain or (len(same) > 8 and plain.startswith(same)))):
                continue
        kept.append(part)
    return kept
