"""Approved parts: "I like the house, change the rest" keeps the house of a picture to the pixel and has all else painted anew (WeGen)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import regex
from PIL import Image as PILImage

from duogen.conversation import Image, Text, Turn
from duogen.grounding import Box
from duogen.picture_roles import order_sources
from duogen.prompts import fill_prompt

LONGEST = 300  # letters of a message that can be such a request, up to its wish
LONGEST_PART = 80  # of the name of what stays
MARKED = "what is marked"  # what stays where a mask says it
NOT_FOUND = (
    "The language model does not find “{part}” in the picture; name it as the picture shows it, or mark it in the Studio and choose to keep"
    " what is marked."
)
CANNOT_POINT = "The language model of this pair cannot point at things; mark the part in the Studio and choose to keep what is marked."
FILLS_ALL = "“{part}” takes up the whole picture, so nothing is left to change; say what should change."

_PART = rf"(?P<part>[^\s.,;:!?。，；：！？、][^.,;:!?。，；：！？\n]{{0,{LONGEST_PART}}}?)"
_BETWEEN = r"\s*(?:[,;.!–—-]+\s*)?"
_WISH = r"(?:[ ,:][^\n]*)?"  # how the rest should be, which the language model reads
_REST = (
    r"(?:all )?(?:of )?(?:the rest|everything else|all else|(?:all )?the other (?:things|parts))(?: of (?:it|the picture|@\d+))?(?! of\b)"
)
_CHANGE = r"(?:change|redo|repaint|replace|renew|paint|draw|make|vary)"
_POLITE = r"(?:(?:please|pls|ok|hi|hey|hello|yes|now)[\s,]+)*(?:(?:can|could|would|will) (?:you|u)(?: please)? )?"
_LIKE = (
    rf"(?:(?:i|we)(?: really| do)? (?:like|love) {_PART}|(?:keep|leave) {_PART}|{_PART} (?:is|are|looks?) (?:so |very |really )?"
    rf"(?:good|great|fine|nice|perfect|lovely|beautiful|right)|{_PART} (?:can|may|should|must) (?:stay|remain))"
    r"(?:,? (?:(?:just )?(?:as|like) (?:it is|they are)|the way (?:it is|they are)|unchanged|as is))?"
)
_ÄNDERE = (
    r"(?:ändere?|aendere?|veränder[en]*|mal(?:e|en sie)?|zeichne(?:n sie)?|mach(?:e|en sie)?|erneuere|ersetze|tausche?|änder[en]* sie)"
)
_RESTE = r"(?:den (?:ganzen )?rest|alles (?:andere|übrige|uebrige|sonst)|das (?:andere|übrige|uebrige))"
_MAG = (
    rf"(?:(?:mir|uns) (?:gefällt|gefallen|gefaellt) {_PART}|{_PART} (?:gefällt|gefallen|gefaellt) (?:mir|uns)(?: gut| sehr)?"
    rf"|(?:ich mag|wir mögen) {_PART}|behalte(?:n sie)? {_PART}(?: bei)?|lass(?:t|e|en sie)? {_PART}(?: stehen)?"
    rf"|{_PART} (?:ist|sind) (?:sehr |so )?(?:gut|schön|super|perfekt|toll|richtig)"
    rf"|{_PART} (?:soll|sollen|kann|können|darf|muss) (?:so )?bleiben)"
    r"(?:,? (?:so,? )?wie (?:es|er|sie) (?:ist|sind)| so)?"
)
_GAI = (
    r"(?:都|全部|全|請|请)*(?:换掉|换成|换|更换|改掉|改成|改变|改|重新画|重画|重做|變|换一下|改一下|換掉|換成|換|更換|改變|重新畫|重畫)"
    r"(?:一下|了|吧|掉)*"
)
_QIYU = r"(?:其余|其他|其它|剩下|别的|其餘|別的)(?:的)?(?:部分|地方|东西|內容|内容|東西)?"
_BAO = (
    rf"(?:(?:我|我们)?(?:很|挺|非常)?(?:喜欢|喜歡){_PART}|(?:请)?(?:保留|留下|保持){_PART}(?:不变|不變)?"
    rf"|{_PART}(?:很好|不错|不錯|很漂亮|保留|留着|不变|不變|别动|別動|不要动|不要動|不要改))"
)
# A message is such a request where one of these fits all of it.
_PATTERNS = tuple(
    regex.compile(rf"\s*{pattern}[\s.!?。！？]*", regex.IGNORECASE)
    for pattern in (
        rf"{_POLITE}{_LIKE}{_BETWEEN}(?:(?:and|but|so)\s+)?(?:now\s+)?(?:please\s+)?{_CHANGE} {_REST}{_WISH}",
        rf"{_POLITE}{_CHANGE} {_REST}(?: anew| again)?{_BETWEEN}(?:(?:and|but)\s+)?(?:please\s+)?(?:keep|leave) {_PART}"
        r"(?: as (?:it is|they are)| unchanged)?",
        rf"{_POLITE}{_CHANGE} (?:everything|all){_BETWEEN}(?:but|and) (?:keep|leave) {_PART}",
        rf"{_POLITE}{_CHANGE} (?:everything|all)(?: else)?(?: anew| again)?,? (?:but|except(?: for)?|apart from|other than) {_PART}",
        rf"(?:(?:bitte|ok|ja|hallo)[\s,]+)*{_MAG}{_BETWEEN}(?:(?:und|aber)\s+)?(?:bitte\s+)?{_ÄNDERE} (?:bitte )?{_RESTE}{_WISH}",
        rf"(?:(?:bitte|ok|ja|hallo)[\s,]+)*{_ÄNDERE} (?:bitte )?alles(?: andere)?(?: neu| anders)?,?"
        rf" (?:außer|ausser|bis auf) {_PART}(?: neu| anders)?",
        rf"{_BAO}\s*[,，.。;；、]?\s*(?:但是|但|请|請|然后|把|将|\s)*(?:{_QIYU}{_GAI}|{_GAI}{_QIYU})[^\n]*?",
        rf"(?:请|請)?除了{_PART}(?:以外|之外|外)?\s*[,，]?\s*(?:把)?(?:{_QIYU})?{_GAI}[^\n]*?",
    )
)
_PRONOUNS = {
    *("it", "this", "that", "them", "these", "those", "all", "everything"),
    *("es", "das", "ihn", "sie", "alles", "它", "这个", "那个", "这", "那"),
}
_OF_MARK = regex.compile(r"\s*(?:of|in|from|von|aus|auf|在|的)?\s*@\d{1,4}\s*的?\s*", regex.IGNORECASE)


@dataclass(frozen=True)
class ApprovalRequest:
    """A request to keep a part of a picture and to change the rest.

    Attributes:
        said: its words.
        part: the name of what stays.
        wish: how the rest should be, where that stands behind a colon.
    """

    said: str
    part: str
    wish: str = ""

    def ask(self, tuned: bool, place: str = "") -> str:
        """The words that ask for the new picture: a trained pair reads the user's own, another MLLM is told what to do.

        Args:
            place: where the part is, for an MLLM that sees no mask.
        """
        if tuned:
            return self.wish or self.said
        named = place if self.part == MARKED and place else self.part
        return fill_prompt("approved", request=self.said, part=named)


def find_approval(words: str) -> ApprovalRequest | None:
    """The request to keep a named part that a message is, in English, German or Chinese; `None` for any other message."""
    head, *wish = regex.split(r"\s*[:：]\s*", words.strip(), maxsplit=1)
    for asked, behind in [(head, "".join(wish))] + [(words, "")] * bool(wish):
        if len(asked) > LONGEST:
            continue
        found = next((found for pattern in _PATTERNS if (found := pattern.fullmatch(asked))), None)
        part = _OF_MARK.sub(" ", found["part"]).strip(" ,，") if found else ""
        if part and part.lower() not in _PRONOUNS:
            return ApprovalRequest(words.strip(), part, behind)
    return None


def find_shown(path: Sequence[Turn]) -> Image | None:
    """The picture that such a request is about: the one that it names, else the latest that is no reference; `None` where there is none.

    Args:
        path: the turns up to the request.
    """
    before = [image for turn in path[:-1] for image in turn.images()]
    every = [*before, *path[-1].images()]
    named, references = order_sources(path[-1], len(before))
    if named:
        return every[named[0] - 1]
    return next((every[number - 1] for number in range(len(every), 0, -1) if number not in references), None)


def mask_rest(size: tuple[int, int], boxes: Sequence[Box]) -> PILImage.Image:
    """A mask of `size` (width, height), white where a picture may change: all but the boxes."""
    mask = PILImage.new("L", size, 255)
    for box in boxes:
        mask.paste(0, box)
    return mask


def describe_place(mask: PILImage.Image) -> str:
    """Where the black of a mask is, in words; "" where there is none."""
    kept = mask.point(lambda value: 0 if value else 255).getbbox()
    if kept is None:
        return ""
    left, right = (round(100 * at / mask.width) for at in kept[::2])
    top, bottom = (round(100 * at / mask.height) for at in kept[1::2])
    return f"what is seen from {left} to {right} percent of its width and from {top} to {bottom} percent of its height"


def reword(question: Turn, words: str) -> Turn:
    """A question with the same pictures and other words."""
    return replace(question, parts=(*question.images(), Text(words)))
