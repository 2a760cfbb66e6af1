"""The filters: each a small function `Sample -> Sample | Dropped`.

The order matters for speed only: cheap filters that drop much come first. Comparisons across pages are in `near.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.data_engine.options import DataOptions
from duogen.data_engine.pictures import inspect_picture
from duogen.data_engine.reasons import short_name
from duogen.data_engine.sample import Block, Dropped, Filter, Picture, Sample, Words
from duogen.files import read_text
from duogen.text_decoding import count_words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MAIL = re.compile(r"\b[\w.+-]+(?:@| ?[(\[]at[)\]] ?)[\w-]+(?:\.[\w-]+)+\b", re.I)
# A year, an amount or a range is none of these.
PHONES = (
    r"\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}",  # international
    r"(?:1[ -])?(?:\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})",  # three groups with brackets or hyphens
    r"0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5}",  # with the zero of the trunk
    r"(?<=\b(?:tel|fax)[.:] )[\d(][\d /()-]{4,18}\d",  # any number that is called a phone number
    r"(?<=\bphone: )[\d(][\d /()-]{4,18}\d",
)
PHONE = re.compile(rf"(?<![\w.,/-])(?:{'|'.join(PHONES)})(?![\w/-])", re.I)
HIDDEN = {"mail": "name@example.com", "phone": "555-0100"}
LETTERS_FOR_LANGUAGE = 1500
NAMED = 3  # pictures that a reason names


def make_filters(options: DataOptions) -> dict[str, Filter]:
    """The filters of one page by name, in order."""
    blocked = load_block_list(options.block)
    return {
        "text only": drop_text_only,
        "too short": lambda sample: drop_short(sample, options.min_words),
        "list of links": drop_link_lists,
        "block list": lambda sample: drop_blocked(sample, blocked),
        "wrong language": lambda sample: drop_other_languages(sample, options.language),
        "useless pictures": lambda sample: drop_useless_pictures(sample, options),
        "personal data": mask_personal_data,
    }


def drop_text_only(sample: Sample) -> Sample | Dropped:
    """Drop pages without pictures."""
    return sample if sample.pictures() else Dropped("no picture in the text")


def drop_short(sample: Sample, least: int) -> Sample | Dropped:
    """Drop pages with fewer than `least` words."""
    count = count_words(sample.text())
    return sample if count >= least else Dropped(f"{'no' if not count else 'too few'} words")


def drop_link_lists(sample: Sample) -> Sample | Dropped:
    """Drop overviews and lists of links: pages of headings with little text below them."""
    words = [part for part in sample.parts if isinstance(part, Words)]
    headings = sum(part.kind == "heading" for part in words)
    said = sum(count_words(part.text) for part in words if part.kind != "heading")
    return Dropped("headings without text") if headings >= 3 and said < 12 * headings else sample


def load_block_list(file: str) -> re.Pattern[str] | None:
    """Load a block list as one pattern of its lines.

    Raises:
        ValueError: it cannot be read.
    """
    if not file:
        return None
    try:
        lines = [line.strip() for line in read_text(Path(file)).splitlines()]
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"The block list {file} cannot be read ({reason}); name a text file with a word or an address a line.") from error
    wanted = [re.escape(line.lower()) for line in lines if line and not line.startswith("#")]
    return re.compile(rf"(?<!\w)(?:{'|'.join(wanted)})(?!\w)") if wanted else None


def drop_blocked(sample: Sample, blocked: re.Pattern[str] | None) -> Sample | Dropped:
    """Drop pages that contain a blocked word or address."""
    if blocked is None:
        return sample
    source = sample.source
    found = blocked.search("\n".join((source.file, source.url, source.title, sample.text())).lower())
    return Dropped(f"has {found[0]!r}") if found else sample


@lru_cache(maxsize=1)
def _language_identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def drop_other_languages(sample: Sample, wanted: str) -> Sample | Dropped:
    """Drop pages in other languages. Long text counts first, since lists of names and amounts tell little of a language."""
    if not wanted:
        return sample
    words = sorted((part for part in sample.parts if isinstance(part, Words) and part.kind != "code"), key=lambda part: -len(part.text))
    text = " ".join(part.text for part in words)[:LETTERS_FOR_LANGUAGE]
    found, sure = _language_identifier().classify(text)
    return sample if found == wanted or sure < 0.8 else Dropped(f"in {found}")


def drop_useless_pictures(sample: Sample, options: DataOptions) -> Sample | Dropped:
    """Inspect every picture and remove the useless ones. A page without pictures left is dropped."""
    parts, gone = list(sample.parts), {}
    kept: list[int | None] = []
    for at, part in enumerate(parts):
        if isinstance(part, Words):
            continue
        seen, why = inspect_picture(part, options)
        parts[at] = seen
        why = why or _find_repeat(seen.phash, kept)
        if why:
            gone[at] = why
        else:
            kept.append(seen.phash)
            if len(kept) == options.max_pictures:
                gone |= {later: "after the most pictures a page may have" for later in range(at + 1, len(parts))}
                break
    left = replace(sample, parts=tuple(parts)).drop_parts(gone, "useless pictures")
    if not left.pictures():
        named = [(part.name, gone[at]) for at, part in enumerate(parts) if at in gone and isinstance(part, Picture)]
        return Dropped("no picture is worth it: " + _join_reasons(named))
    return left


def _join_reasons(gone: Sequence[tuple[str, str]]) -> str:
    """The reasons, each with the first pictures that it concerns."""
    said = []
    for why in dict.fromkeys(why for _, why in gone):
        names = list(dict.fromkeys(short_name(name) for name, each in gone if each == why and name))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        said.append(f"{why} ({', '.join(names[:NAMED])}{more})" if names and "(" not in why else why)
    return ", ".join(said)


def _find_repeat(phash: int | None, kept: list[int | None]) -> str:
    if phash is None:
        return ""
    return "nearly the same as one before" if any((phash ^ other).bit_count() <= 6 for other in kept if other is not None) else ""


def mask_personal_data(sample: Sample) -> Sample | Dropped:
    """Mask mail addresses and phone numbers everywhere."""
    count = 0

    def mask(text: str) -> str:
        nonlocal count
        for name, pattern in (("mail", MAIL), ("phone", PHONE)):
            text, found = pattern.subn(HIDDEN[name], text)
            count += found
        return text

    parts: list[Block] = []
    for part in sample.parts:
        if isinstance(part, Words):
            parts.append(replace(part, text=mask(part.text)))
        else:
            parts.append(replace(part, alt=mask(part.alt), title=mask(part.title), caption=mask(part.caption)))
    return replace(sample, parts=tuple(parts), notes=sample.notes | {"masked": count}) if count else sample


def normalise_letters(text: str) -> str:
    """Normalise letters to NFC and remove soft hyphens and zero-width characters."""
    if text.isascii():  # has none of these
        return text
    return "".join(letter for letter in unicodedata.normalize("NFC", text) if unicodedata.category(letter) != "Cf" or letter == "\u200d")


def run_filters(sample: Sample, chain: dict[str, Filter]) -> Iterator[tuple[str, Sample | Dropped]]:
    """Yield the result of each filter in turn, until one drops the page."""
    for name, each in chain.items():
        result = each(sample)
        yield name, result
        if isinstance(result, Dropped):
            return
        sample = result
