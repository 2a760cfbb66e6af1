"""A conversation as a guide: questions, and answers cut into steps, each with its picture. What all exports have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

import regex

from duogen.conversation import Conversation, Image, Piece, Text, Turn
from duogen.library.markdown import find_code_lines
from duogen.text_decoding import clean_text, cut_text

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

TITLE_LETTERS = 120
CHINESE_NUMBERS = "一二三四五六七八九十"


def _step_pattern(label: str, heading: str = "?") -> re.Pattern[str]:
    """A pattern for lines that begin with `label`, perhaps as a heading or in bold."""
    before, after = rf"^ {{0,3}}(?P<heading>#{{1,6}} +){heading}(?P<bold>\*\*)?", r"(?P<closed>\*\*[.:：]?)?[ \t]*"
    return re.compile(f"{before}(?P<label>{label}){after}", re.IGNORECASE | re.MULTILINE)


STEP_WORDS = (
    r"(?:step|schritt|étape|paso|passo|passaggio|stap|steg|trin|krok|bước|langkah|шаг|крок|стъпка|الخطوة|خطوة|گام|מדרגה|שלב|चरण) +"
    r"|(?:ステップ|手順|단계) ?"
)
# How answers count their steps, surest first: an answer that says "Step 1." may hold lists whose "1." is no step.
STEPS = (
    _step_pattern(
        rf"(?:{STEP_WORDS})\d{{1,3}}(?: ?[.):：。、–—-]|(?=\*\*|[ \t]*$))"
        r"|步骤 ?\d{1,3} ?[.:：、，]?"
        r"|第 ?(?:\d{1,3}|[一二三四五六七八九十]) ?步 ?[.:：、，]?"
    ),
    _step_pattern(r"\d{1,3}[.):：、](?=\s|\*)", heading=""),
    _step_pattern(r"\d{1,3}(?:[.)](?=\s|\*)|、)"),
)
# The languages of each script, the likeliest first, and how much a letter says: a Chinese one is a word.
SCRIPTS = {
    "Hiragana": (("ja",), 9), "Katakana": (("ja",), 9), "Hangul": (("ko",), 3), "Han": (("zh",), 3),
    "Arabic": (("ar", "fa", "ur", "ps", "ug"), 1), "Hebrew": (("he",), 1), "Thai": (("th",), 1), "Greek": (("el",), 1),
    "Cyrillic": (("ru", "uk", "bg", "sr", "be", "mk", "kk", "ky", "mn"), 1), "Devanagari": (("hi", "mr", "ne"), 1),
    "Latin": (
        (
            "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "hu", "ro", "hr", "sl", "tr", "vi", "id",
            "et", "lv", "lt", "ca",
        ),
        1,
    ),
    "Bengali": (("bn",), 1), "Tamil": (("ta",), 1), "Telugu": (("te",), 1), "Georgian": (("ka",), 1), "Armenian": (("hy",), 1),
    "Khmer": (("km",), 1), "Lao": (("lo",), 1),
}  # fmt: skip
RIGHT_TO_LEFT = {"ar", "fa", "ur", "ps", "ug", "he"}
SURE = 0.15  # a guess among the languages of a script that is less sure says nothing
LETTERS_FOR_LANGUAGE = 4000
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")  # with what a PDF may not hold
SENTENCE_END = re.compile(r"[?？！。]+|!+(?=\s|$)|\.(?=\s+[A-ZÄÖÜ])")
SHORTEST_SENTENCE = 12
END_MARKS = " .!,;:…?？！。，；："


P = TypeVar("P")


@dataclass(frozen=True)
class Block(Generic[P]):
    """A part of a page that stays together: words and the picture after them.

    Attributes:
        words: Markdown.
        number: the number of the step in the answer; `None` for words that are no step.
        label: the number as the answer writes it, such as "Schritt 2".
        picture: the picture that follows the words, or what stands for it while it is painted.
        at: the place of the picture among the parts of the answer.
    """

    words: str
    number: int | None = None
    label: str = ""
    picture: P | None = None
    at: int | None = field(default=None, compare=False)

    @property
    def is_step(self) -> bool:
        """Whether it is a step, in an answer that explains in steps."""
        return self.number is not None or (bool(self.words) and self.picture is not None)


@dataclass(frozen=True)
class Section:
    """A question, its uploaded pictures, and the answer."""

    question: str
    brought: tuple[Image, ...]
    blocks: tuple[Block[Image], ...]


def sections(conversation: Conversation, answer: str | None = None) -> list[Section]:
    """The sections of the current branch, or only one answer with its question.

    Args:
        answer: the id of that answer's turn.

    Raises:
        ValueError: nothing was answered yet, or there is no such answer on this branch.
    """
    path = conversation.path()
    pairs = [(path[index - 1] if index else None, turn) for index, turn in enumerate(path) if turn.role == "assistant"]
    if answer is not None:
        pairs = [pair for pair in pairs if pair[1].id == answer]
    if not pairs:
        raise ValueError("There is no answer to export yet; ask for something first.")
    return [_section(asked, answered) for asked, answered in pairs]


def show_drafts(conversation: Conversation) -> Conversation:
    """The same conversation, in which the drafts of a picture are steps before the words that announce it.

    The last draft is the picture itself, so it stands there once.
    """
    turns = {id: replace(turn, parts=tuple(_list_drafts(turn.parts))) for id, turn in conversation.turns.items()}
    return Conversation(turns, conversation.head, conversation.id, conversation.title)


def _list_drafts(parts: Sequence[Piece]) -> list[Piece]:
    shown: list[Piece] = []
    for part in parts:
        if isinstance(part, Image) and part.drafts:
            words = [shown.pop()] if shown and isinstance(shown[-1], Text) else []
            for draft in part.drafts[:-1]:
                shown += [Text(f"{draft.alt.strip()}\n\n"), draft]
            shown += words
        shown.append(part)
    return shown


def _section(asked: Turn | None, answered: Turn) -> Section:
    brought = tuple(asked.images()) if asked else ()
    return Section(clean_words(asked.text()).strip() if asked else "", brought, tuple(cut_blocks(answered.parts)))


def cut_blocks(parts: Sequence[Text | P]) -> list[Block[P]]:
    """The parts of an answer as blocks: its words are cut at each picture and at each number that counts a step."""
    said = "\n".join(clean_words(part.text) for part in parts if isinstance(part, Text))
    steps = next((pattern for pattern in STEPS if pattern.search(said)), STEPS[-1])
    blocks: list[Block[P]] = []
    words = ""
    for at, part in enumerate(parts):
        if isinstance(part, Text):
            words += clean_words(part.text)
            continue
        blocks += _blocks(words, part, at, steps)
        words = ""
    return blocks + _blocks(words, None, None, steps)


def are_steps(blocks: Iterable[Block]) -> bool:
    """Whether an answer explains in steps: it counts them, or leads to several pictures with words before each."""
    found = list(blocks)
    illustrated = sum(block.picture is not None and bool(block.words) for block in found)
    counted = any(block.number is not None for block in found)
    return illustrated > 1 or (counted and any(block.picture is not None for block in found))


def place_in_steps(blocks: Sequence[Block]) -> list[int]:
    """The step that each block belongs to, counted from 1: what is no step belongs to the one before it, or to 0; all 0 without steps."""
    if not are_steps(blocks):
        return [0] * len(blocks)
    return list(accumulate(int(block.is_step) for block in blocks))


def _blocks(words: str, picture: P | None, at: int | None, steps: re.Pattern[str]) -> list[Block[P]]:
    """The words before a picture as blocks: earlier steps are blocks of their own, and the last step has the picture."""
    found = list(steps.finditer(words))
    if found and ("```" in words or "~~~" in words):
        code = find_code_lines(words)
        found = [match for match in found if words.count("\n", 0, match.start()) not in code]
    if not found:
        return [Block(words.strip(), picture=picture, at=at)] if words.strip() or picture else []
    cut = [match.start() for match in found] + [len(words)]
    blocks: list[Block[P]] = [_step(match, words[match.end() : end].strip()) for match, end in zip(found, cut[1:], strict=True)]
    blocks[-1] = replace(blocks[-1], picture=picture, at=at)
    lead = words[: cut[0]].strip()
    return [Block(lead), *blocks] if lead else blocks


def _step(match: re.Match[str], words: str) -> Block:
    """A step without its number. The rest of a heading, or of bold words that begin with the number, stays bold."""
    said = match["label"]
    digits = re.findall(rf"\d+|[{CHINESE_NUMBERS}]", said)[0]
    number = int(digits) if digits.isdecimal() else CHINESE_NUMBERS.index(digits) + 1
    first, _, rest = words.partition("\n")
    if match["bold"] and not match["closed"]:
        gap = "\n\n" if first.rstrip().endswith("**") else "\n"
        words = f"**{first.rstrip()}{gap}{rest}"
    elif match["heading"] and first.strip():
        words = f"**{first.strip(' *#')}**\n{rest}"
    return Block(words, number, said.rstrip(" .):–—-：、，"))


def clean_words(words: str) -> str:
    """Words that every format takes: without halves of letters and without controls."""
    return CONTROLS.sub("", clean_text(words))


def guide_title(found: list[Section]) -> str:
    """The first sentence of the first question on one line, without the marks at its end but one question mark; shortened if it is long."""
    line = " ".join(found[0].question.split())
    for end in SENTENCE_END.finditer(line):
        if end.end() >= SHORTEST_SENTENCE:
            line = line[: end.end()]
            break
    said = line.rstrip(END_MARKS)
    asking = next((mark for mark in line[len(said) :] if mark in "?？"), "")
    line = said + asking if said else line or "A guide"
    return line if len(line) <= TITLE_LETTERS else cut_text(line, TITLE_LETTERS) + " …"


def rest_of_question(found: list[Section]) -> str:
    """The first question on one line, where the title does not say all of it; else ""."""
    line = " ".join(found[0].question.split())
    return "" if line.rstrip(END_MARKS) == guide_title(found).rstrip(END_MARKS) else line


def guess_language(*found: Section) -> str:
    """The language of most letters, as a code of two letters: by their script, then by the words; "" if unknown."""
    text = "\n".join(text for section in found for text in (section.question, *(block.words for block in section.blocks)))
    return _guess_language(text[:LETTERS_FOR_LANGUAGE])


@lru_cache(64)
def _guess_language(text: str) -> str:
    counts = {script: weight * len(regex.findall(rf"\p{{Script={script}}}", text)) for script, (_, weight) in SCRIPTS.items()}
    script = max(counts, key=lambda each: counts[each])
    if not counts[script]:
        return ""
    languages = SCRIPTS[script][0]
    if len(languages) == 1:
        return languages[0]
    language, sure = _language_identifier(languages).classify(text)
    return language if sure >= SURE else languages[0]


@cache
def _language_identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier


def text_direction(language: str) -> str:
    """ "rtl" or "ltr"."""
    return "rtl" if language in RIGHT_TO_LEFT else "ltr"
