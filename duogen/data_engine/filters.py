"""The filters: each a small function `Sample -> Sample | Dropped`.

Order matters for speed only: what is cheap and drops much comes first. What looks across pages is in `near.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from duogen.data_engine.options import DataOptions
from duogen.data_engine.pictures import looked_at
from duogen.data_engine.sample import Dropped, Filter, Sample, Words

MAIL = re.compile(r"\b[\w.+-]+(?:@| ?[(\[]at[)\]] ?)[\w-]+(?:\.[\w-]+)+\b", re.I)
# A year, an amount or a range is none of these.
PHONES = (
    r"\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}",  # international
    r"(?:1[ -])?(?:\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})",  # three groups with brackets or hyphens
    r"0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}",  # with the zero of the trunk
    r"(?<=\b(?:tel|fax)[.:] )[\d(][\d /()-]{4,18}\d",  # whatever is called one
    r"(?<=\bphone: )[\d(][\d /()-]{4,18}\d",
)
PHONE = re.compile(rf"(?<![\w.,/-])(?:{'|'.join(PHONES)})(?![\w/-])", re.I)
HIDDEN = {"mail": "name@example.com", "phone": "555-0100"}
LETTERS_FOR_LANGUAGE = 1500


def filters(options: DataOptions) -> dict[str, Filter]:
    """The filters of one page by name, in order."""
    blocked = block_list(options.block)
    return {
        "text only": text_only,
        "too short": lambda sample: too_short(sample, options.min_words),
        "list of links": mostly_headings,
        "block list": lambda sample: on_block_list(sample, blocked),
        "wrong language": lambda sample: in_language(sample, options.language),
        "useless pictures": lambda sample: without_useless_pictures(sample, options),
        "personal data": without_personal_data,
    }


def text_only(sample: Sample) -> Sample | Dropped:
    return sample if sample.pictures() else Dropped("no picture in the text")


def too_short(sample: Sample, least: int) -> Sample | Dropped:
    count = word_count(sample.text())
    return sample if count >= least else Dropped(f"{'no' if not count else 'too few'} words")


def word_count(text: str) -> int:
    """Words, or for scripts without blanks a word for every two letters."""
    wide = sum(1 for letter in text if "\u3040" <= letter <= "\u9fff")
    return len(re.findall(r"\w+", text)) + wide // 2


def mostly_headings(sample: Sample) -> Sample | Dropped:
    """Overviews and lists of links have headings and little below them."""
    words = [part for part in sample.parts if isinstance(part, Words)]
    headings = sum(part.kind == "heading" for part in words)
    said = sum(word_count(part.text) for part in words if part.kind != "heading")
    return Dropped("headings without text") if headings >= 3 and said < 12 * headings else sample


def block_list(file: str) -> re.Pattern[str] | None:
    """The lines of a block list as one pattern.

    Raises:
        ValueError: it cannot be read.
    """
    if not file:
        return None
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"The block list {file} cannot be read ({error}); name a text file with a word or an address a line.") from error
    wanted = [re.escape(line.lower()) for line in lines if line and not line.startswith("#")]
    return re.compile(rf"(?<!\w)(?:{'|'.join(wanted)})(?!\w)") if wanted else None


def on_block_list(sample: Sample, blocked: re.Pattern[str] | None) -> Sample | Dropped:
    if blocked is None:
        return sample
    source = sample.source
    found = blocked.search("\n".join((source.file, source.url, source.title, sample.text())).lower())
    return Dropped(f"has {found[0]!r}") if found else sample


@lru_cache(maxsize=1)
def _languages() -> object:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def in_language(sample: Sample, wanted: str) -> Sample | Dropped:
    """Lists of names and amounts tell little of a language, so running text is asked first."""
    if not wanted:
        return sample
    words = sorted((part for part in sample.parts if isinstance(part, Words) and part.kind != "code"), key=lambda part: -len(part.text))
    text = " ".join(part.text for part in words)[:LETTERS_FOR_LANGUAGE]
    found, sure = _languages().classify(text)
    return sample if found == wanted or sure < 0.8 else Dropped(f"in {found}")


def without_useless_pictures(sample: Sample, options: DataOptions) -> Sample | Dropped:
    """Look at every picture and take out those that say nothing; a page that has none left is dropped."""
    parts, gone = list(sample.parts), {}
    kept: list[int] = []
    for at, part in enumerate(parts):
        if isinstance(part, Words):
            continue
        seen, why = looked_at(part, options)
        parts[at] = seen
        why = why or _repeats(seen.look, kept)
        if why:
            gone[at] = why
        else:
            kept.append(seen.look)
            if len(kept) == options.max_pictures:
                gone |= {later: "after the most pictures a page may have" for later in range(at + 1, len(parts))}
                break
    left = replace(sample, parts=tuple(parts)).without(gone, "useless pictures")
    if not left.pictures():
        return Dropped("no picture is worth it: " + ", ".join(dict.fromkeys(gone.values())))
    return left


def _repeats(look: int | None, kept: list[int]) -> str:
    return "nearly the same as one before" if look is not None and any((look ^ other).bit_count() <= 6 for other in kept) else ""


def without_personal_data(sample: Sample) -> Sample | Dropped:
    """Mail addresses and phone numbers are masked wherever they stand."""
    count = 0

    def masked(text: str) -> str:
        nonlocal count
        for name, pattern in (("mail", MAIL), ("phone", PHONE)):
            text, found = pattern.subn(HIDDEN[name], text)
            count += found
        return text

    parts = []
    for part in sample.parts:
        if isinstance(part, Words):
            parts.append(replace(part, text=masked(part.text)))
        else:
            parts.append(replace(part, alt=masked(part.alt), title=masked(part.title), caption=masked(part.caption)))
    return replace(sample, parts=tuple(parts), notes=sample.notes | {"masked": count}) if count else sample


def normal(text: str) -> str:
    """One spelling of each letter, soft hyphens and zero-width characters gone."""
    if text.isascii():  # has none of these
        return text
    return "".join(letter for letter in unicodedata.normalize("NFC", text) if unicodedata.category(letter) != "Cf" or letter == "\u200d")


def passed(sample: Sample, chain: dict[str, Filter]) -> Iterator[tuple[str, Sample | Dropped]]:
    """What each filter makes of a page, until one drops it."""
    for name, each in chain.items():
        result = each(sample)
        yield name, result
        if isinstance(result, Dropped):
            return
        sample = result
