"""Check an example, and fix it where that is safe; cut one that is too long."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace

from duogen.conversation import Message
from duogen.dataset.format import Example, Picture, Problem
from duogen.dataset.pictures import inspect_picture
from duogen.text_decoding import clean_text, find_rubbish

MOST_LETTERS = 2_000_000  # of an example; more are not worth counting in tokens
LOST = "\ufffd"
LENGTH_OF_REASON = 200


def explain_error(error: Exception) -> str:
    """The reason in plain words for which a file, row or line is left out.

    Raises:
        OSError: the disk is full; then the others fail as well.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if isinstance(error, json.JSONDecodeError):
        return "it is not JSON"
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return clean_text(" ".join(str(error).split()).rstrip("."))[:LENGTH_OF_REASON]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or type(error).__name__}"
    return f"it cannot be read ({type(error).__name__})"


def check_example(example: Example) -> tuple[Example | None, list[Problem]]:
    """Check and fix an example. Returns it, `None` when it is unusable, and its problems."""
    problems = list(example.notes)
    try:
        lines = _clean_words(_join_turns(example, problems), example.where, problems)
        _check_pictures(lines)
        lines = [_crop_pictures(line) for line in lines]
    except Exception as error:  # whatever one example raises leaves the others alone
        return None, [Problem(example.where, explain_error(error), files=example.files)]
    return replace(example, lines=tuple(lines)), problems


def _join_turns(example: Example, problems: list[Problem]) -> list[Message[Picture]]:
    """The turns in the order user, assistant, user ...; what is fixed is noted.

    Raises:
        ValueError: there is no answer, or nothing before it.
    """
    lines: list[Message[Picture]] = []
    for line in example.lines:
        parts = tuple(part for part in line.parts if part != "")
        if not parts:
            problems.append(Problem(example.where, f"an empty turn of the {line.role}", "left the turn out"))
        elif lines and lines[-1].role == line.role:
            problems.append(Problem(example.where, f"two turns of the {line.role} in a row", "joined them"))
            lines[-1] = Message(line.role, (*lines[-1].parts, *(("\n",) if isinstance(parts[0], str) else ()), *parts))
        else:
            lines.append(Message(line.role, parts))
    while lines and lines[-1].role == "user":
        lines.pop()
        if lines:
            problems.append(Problem(example.where, "the last question has no answer", "left the question out"))
    if not lines:
        raise ValueError("it has no answer to learn from")
    if lines[0].role != "user":
        raise ValueError("it begins with an answer; put the question before it")
    if sum(len(line.text()) for line in lines) > MOST_LETTERS:
        raise ValueError(f"it has more than {MOST_LETTERS:,} letters; make it shorter")
    return lines


def _check_pictures(lines: list[Message[Picture]]) -> None:
    """Raises ValueError, which names the picture, when one cannot be read."""
    files = {picture.file for line in lines for picture in line.pictures()}
    for file in sorted(files):
        try:
            inspect_picture(file)
        except ValueError as error:
            twins = sum(other.name == file.name for other in files) > 1
            raise ValueError(f"{file.parent.name}/{error}" if twins else str(error)) from error


def _crop_pictures(line: Message[Picture]) -> Message[Picture]:
    """The line with the crops that were chosen of its pictures. Raises ValueError, which names the file, when a crop is damaged."""
    return replace(line, parts=tuple(part if isinstance(part, str) else part.with_crop() for part in line.parts))


def _clean_words(lines: list[Message[Picture]], where: str, problems: list[Problem]) -> list[Message[Picture]]:
    """The lines without letters that nobody sees and no tokenizer reads.

    Raises:
        ValueError: letters are lost, so that the words are wrong.
    """
    cleaned = [replace(line, parts=tuple(_clean(part) for part in line.parts)) for line in lines]
    if cleaned != lines:
        problems.append(Problem(where, "its words hold control characters or half an emoji", "left these out"))
    return cleaned


def _clean(part: str | Picture) -> str | Picture:
    if isinstance(part, Picture):
        alt = clean_text(part.alt)
        while found := find_rubbish(alt):
            alt = alt.replace(found, "")
        return replace(part, alt=alt)
    lost = LOST in part
    said = clean_text(part)  # joins the halves of an emoji; a half becomes a mark of a lost letter
    while found := find_rubbish(said):
        if (found == LOST and lost) or "\x80" <= found <= "\x9f":
            raise ValueError("letters of its words were lost when it was saved; save it as UTF-8 again")
        said = said.replace(found, "")
    return said


def truncate_example(
    example: Example, length: Callable[[tuple[Message[Picture], ...]], int], most: int
) -> tuple[Example | None, list[Problem]]:
    """Cut an example that is too long after the last answer that fits.

    Args:
        length: counts the tokens of lines.
        most: the allowed number of tokens.
    """
    whole = length(example.lines)
    if whole <= most:
        return example, []
    ends = [end for end in range(2, len(example.lines), 2) if length(example.lines[:end]) <= most]
    what = f"it has {whole:,} tokens, and {most:,} are allowed"
    if not ends:
        return None, [Problem(example.where, what)]
    return replace(example, lines=example.lines[: ends[-1]]), [Problem(example.where, what, f"kept its first {ends[-1] // 2} answers")]
