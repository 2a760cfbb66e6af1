"""Turn a page into a dialogue: a request, an answer with pictures, sometimes a follow-up (DuoGen, section 4)."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from duogen.conversation import Message
from duogen.data_engine.rewrite import tidy_text
from duogen.data_engine.sample import ASSETS, Block, Dropped, Picture, Sample, Words, content_words, load_word_lists

NUMBER = re.compile(r"\d+(?:[.,/]\d+)*")
LISTED = re.compile(r"^\s*\d+[.)]\s+", re.M)
MAKING = re.compile(r"^(ingredients?|directions?|method|preparation)\b", re.I)
DOING = re.compile(r"^(instructions?|steps?|step \d+.*|directions?|how to .*)$", re.I)
ON_THE_WAY = "ingredients raw before mixing step process unbaked uncooked dough simmering"
FOLLOWS = {
    "notes": re.compile(r"^((closing |final )?(remarks?|thoughts?|notes?)|a note on .*|good to know|warnings?|troubleshooting)\W*$", re.I),
    "tips": re.compile(r"^(tips?|hints?|tricks?|tips (and|&) tricks)\W*$", re.I),
    "variations": re.compile(r"^(variations?|variants?|alternatives?|substitut\w+|optional( extras)?)\W*$", re.I),
    "storage": re.compile(r"^(storage|storing|leftovers?|shelf life)\b.*$", re.I),
    "serving": re.compile(r"^(serving( suggestions?)?|to serve|served? with|pairings?)\W*$", re.I),
    "equipment": re.compile(r"^(equipment|tools?)\W*$", re.I),
}


@lru_cache(maxsize=1)
def load_phrases() -> dict[str, Any]:
    return json.loads((ASSETS / "dialogue.json").read_text(encoding="utf-8"))


def page_kind(sample: Sample) -> str:
    """The kind of a page: "make" (a recipe), "how", "ask", "steps" or "tell"."""
    title = sample.source.title.strip()
    headings = [part.text.strip() for part in sample.parts if isinstance(part, Words) and part.kind == "heading"]
    if title.endswith("?"):
        return "ask"
    if re.match(r"how to\b", title, re.I):
        return "how"
    if sum(bool(MAKING.match(each)) for each in headings) >= 2:
        return "make"
    numbered = sum(isinstance(part, Words) and part.kind == "item" and part.mark.strip()[:1].isdigit() for part in sample.parts)
    return "steps" if numbered >= 3 or any(DOING.match(each) for each in headings) else "tell"


def page_topic(sample: Sample) -> str:
    """The title as part of a sentence: without the site's name, brackets, or capitals that the text lacks."""
    title = re.split(r"\s[|·»–—-]\s", tidy_text(sample.source.title))[0]
    title = re.sub(r"\s*[(\[].*?[)\]]", "", title).strip(" .!:") or title
    if page_kind(sample) == "ask":
        return title
    if page_kind(sample) == "how":
        title = re.sub(r"^how to\s+", "", title, flags=re.I)
        return title[:1].lower() + title[1:]
    title = re.sub(r"^(recipe for|the best|easy|my)\s+|\s+recipe$", "", title, flags=re.I)
    text = sample.text()
    known = set(re.findall(r"\b[a-z][\w'-]*", text)) | load_word_lists()["plain"]
    words = title.split()
    small = all(word.lower() in known or not word[:1].isupper() for word in words)
    return title.lower() if small else title


def add_lead(sample: Sample, rng: random.Random) -> Sample:
    """Make the page begin with words: put a sentence before a first picture or list."""
    first = sample.parts[0]
    if isinstance(first, Words) and first.kind in ("paragraph", "quote") and not _follow_up_name(first):
        return sample
    said = load_phrases()[page_kind(sample)]
    thing = page_topic(sample)
    form = "lead" if isinstance(first, Picture) and shows_topic(first, sample) else "plain"
    words = rng.choice(said[form]).format(thing=thing)
    parts = ([Words(words)] if words else []) + list(sample.parts)
    parts = _move_behind_intro(parts, bool(words) and form == "lead")
    return replace(sample, parts=tuple(parts), notes=sample.notes | {"lead": form})


def _move_behind_intro(parts: list[Block], led: bool) -> list[Block]:
    """Move a first picture without a lead sentence behind the introduction below it."""
    if led or len(parts) < 3 or not isinstance(parts[1], Picture):
        return parts
    at = 1
    while at < len(parts) and isinstance(parts[at], Picture):
        at += 1
    if at < len(parts) and isinstance(parts[at], Words) and parts[at].kind == "paragraph":
        return [parts[0], parts[at], *parts[1:at], *parts[at + 1 :]]
    return parts


def shows_topic(picture: Picture, sample: Sample) -> bool:
    """Whether a picture's words name the topic of the page and no step on the way to it."""
    said, title = content_words(picture.words()), content_words(re.sub(r"[(\[].*?[)\]]", "", sample.source.title))
    return not said or (2 * len(said & title) >= len(title) and not said & content_words(ON_THE_WAY))


def make_turns(sample: Sample, rng: random.Random, request: str = "") -> list[Message[Picture]] | Dropped:
    """Make the turns of a page's dialogue.

    Args:
        request: the user's words, where a model wrote them.
    """
    kind, thing = page_kind(sample), page_topic(sample)
    said = load_phrases()
    if not re.search(r"\w", thing) and not request:
        return Dropped("no title, heading or file name to ask about")
    parts, follow = _split_follow_up(list(sample.parts))
    shown = [part for part in parts if isinstance(part, Picture)]
    bring = kind == "make" and len(shown) >= 2 and isinstance(parts[0], Words) and parts[1] is shown[0] and rng.random() < 0.3
    if bring and shows_topic(shown[0], sample):
        known = rng.choice(said[kind]["known"]).format(thing=thing)
        user = Message("user", (shown[0], rng.choice(said[kind]["pictured"])))
        parts = [Words(known), *parts[2:]]
    else:
        user = Message("user", (request or _capitalise(rng.choice(said[kind]["request"]).format(thing=thing)),))
    answer = Message("assistant", render_blocks(parts))
    turns = [user, answer]
    if follow:
        heading, rest, question = follow
        ask = question or rng.choice(said["follow"][heading])
        turns += [Message("user", (ask,)), Message("assistant", render_blocks(rest))]
    return turns if answer.pictures() else Dropped("no picture is left for the answer")


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _follow_up_name(part: Block) -> str:
    """The follow-up question that a heading answers, "" if none."""
    if not isinstance(part, Words) or part.kind != "heading":
        return ""
    return next((name for name, pattern in FOLLOWS.items() if pattern.match(part.text.strip())), "")


def _split_follow_up(parts: list[Block]) -> tuple[list[Block], tuple[str, list[Block], str] | None]:
    """Split off the last section if it answers a likely follow-up question at some length."""
    headings = [(at, part) for at, part in enumerate(parts) if at and isinstance(part, Words) and part.kind == "heading"]
    at, heading = headings[-1] if headings else (0, None)
    if heading is None or not any(isinstance(part, Picture) for part in parts[:at]):
        return parts, None
    rest = parts[at + 1 :]
    question = heading.text.strip() if heading.text.strip().endswith("?") else ""
    name = _follow_up_name(heading)
    words = sum(len(part.text.split()) for part in rest if isinstance(part, Words))
    if not (name or question) or words < 10 or (rest and isinstance(rest[0], Picture)):
        return parts, None
    return parts[:at], (name, rest, question)


def render_blocks(parts: Sequence[Block]) -> tuple[str | Picture, ...]:
    """Blocks as Markdown text between pictures, with all blanks and line breaks."""
    said: list[str | Picture] = []
    text = ""
    before: Block | None = None
    for part in parts:
        if isinstance(part, Picture):
            if text:
                said.append(text + "\n\n")
            said.append(part)
            text = ""
        else:
            text += _block_gap(before, part, bool(text)) + _format_block(part)
        before = part
    return tuple([*said, text] if text else said)


def _block_gap(before: Block | None, part: Words, running: bool) -> str:
    if not running:
        return ""
    if part.kind == "sentence":
        return " "
    both = before is not None and part.kind == before.kind == "item"
    return "\n" if both else "\n\n"


def _format_block(part: Words) -> str:
    if part.kind == "heading":
        return f"**{part.text.strip('*_ :')}**"
    if part.kind == "code":
        return f"```\n{part.text}\n```"
    return f"{part.mark}{part.text}"


# The validator


def count_numbers(text: str) -> Counter[str]:
    """Count the numbers of a text. Numbers of list items do not count."""
    return Counter(NUMBER.findall(LISTED.sub("", text)))


def find_violation(sample: Sample, turns: Sequence[Message[Picture]]) -> str:
    """Return the rule that a dialogue breaks, "" if none: every picture once and in order, none invented, no number changed."""
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        return "the turns do not alternate"
    used = [picture.name for turn in turns for picture in turn.pictures()]
    wanted = [picture.name for picture in sample.pictures()]
    if used != wanted:
        return "pictures are missing, invented or in another order" if sorted(used) != sorted(wanted) else "pictures are in another order"
    if not all(turn.text().strip() or turn.pictures() for turn in turns):
        return "a turn is empty"
    answers = count_numbers("\n".join(turn.text("\n") for turn in turns if turn.role == "assistant"))
    source = count_numbers("\n".join(part for part in render_blocks(sample.parts) if isinstance(part, str)))
    free = count_numbers(sample.source.title)
    added, gone = answers - source - free, source - answers - free
    if added or gone:
        return f"numbers have changed ({', '.join([*added, *gone][:4])})"
    first = next((turn for turn in turns if turn.role == "assistant"), None)
    return "the answer begins with a picture" if first and first.parts and isinstance(first.parts[0], Picture) else ""
