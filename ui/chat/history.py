"""A conversation as the messages of the chat, and an answer while it is being made.

The sanitizer of the chat keeps the class, title and value of a button. The value is the command of a click, such as "retry TURN" or
"again TURN 2", which `actions.js` sends to the page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from duogen.conversation import REFERENCE, SOURCE, Conversation, Image, Piece, Text, Turn
from duogen.events import AnswerBuilder, Event, ImageDone, ImageStarted, ImageStep, Notice, PendingPicture, Restarted, Stats, TextDelta
from duogen.hub.timings import say_seconds
from duogen.library.guide import Block, are_steps, cut_blocks, place_in_steps
from duogen.mentions import list_references
from ui import STATIC
from ui.chat.safe_html import render_words
from ui.parts.i18n import translate
from ui.parts.pictures import PictureFolder

PAINTING = STATIC / "painting.svg"
SHOWN_PIXELS = 768
STRIP_PIXELS = 96
ENDED = {
    "user": ["stopped"],
    "max_tokens": ["cut at the longest answer that Options allow"],
    "max_images": ["cut at the most pictures that Options allow"],
    "max_context": ["cut at the most that the pair can read"],
}
BROKEN_OFF = "broken off"
UNFINISHED = (BROKEN_OFF, *(words for each in ENDED.values() for words in each))
FACT = re.compile(r"\d+ pictures?|[\d.]+ s|seed \w+")
FLIPBOOK_FILES = [
    ("webp", "Save as animated WebP"),
    ("gif", "Save as GIF"),
    ("mp4", "Save as video"),
]
PICTURE_BAR = [("again", "Paint this picture again"), ("words", "Change its words and paint again")]
ANIMATE, ANIMATE_ON = ("animate", "Animate this step"), ("animate-on", "Animate to the next step")
PICTURE_MENU = [
    ("vary", "Paint four different ones"),
    ANIMATE,
    ("on", "Tell anew what comes after this picture"),
    ("use", "Use this picture in a question"),
    ("reference", "Save as a reference"),
    ("studio", "Edit this picture in the studio"),
]
ROLE_NAMES = {"": "", SOURCE: "Source", REFERENCE: "Reference"}
MARKS = {"better": "Better than its other versions", "worse": "Worse than its other versions"}
PICTURE_REST = ("rest", "Paint again from here")
OUTDATED = "What stands before this picture has changed since it was painted."

Message = dict[str, Any]


def text_part(words: str) -> Message:
    """Words, read as Markdown, that cannot become HTML of their own or fetch a picture."""
    return {"type": "text", "text": render_words(words)}


def html_part(markup: str) -> Message:
    """Our own HTML, on one line: after a blank line the chat would read words in it as Markdown."""
    return {"type": "text", "text": " ".join(markup.splitlines())}


def thoughts_part(thoughts: str) -> Message:
    """The thoughts before the answer, folded; empty without thoughts."""
    name, words = html.escape(translate("Thoughts")), "<br>".join(map(html.escape, thoughts.strip().splitlines()))
    return html_part(f'<details class="thoughts"><summary>{name}</summary>{words}</details>' if words else "")


def address(path: str | Path) -> str:
    """The URL of a file that the page serves."""
    return f"gradio_api/file={quote(str(path), safe='/:')}"


def button(command: str, name: str, *arguments: object, words: str = "") -> str:
    """A small button that sends "command argument argument" to `ChatActions.run`. It shows an icon, or `words`."""
    value, name = html.escape(" ".join([command, *map(str, arguments)])), html.escape(translate(name))
    shown = html.escape(translate(words)) if words else f'<span class="sr">{name}</span>'
    kind = "worded" if words else f"icon i-{command}"
    return f'<button type="button" class="act {kind}" value="{value}" title="{name}">{shown}</button>'


def picture_part(path: str | Path, alt: str, full: str | Path | None = None, below: str = "", kind: str = "") -> Message:
    """A picture by its file. Written as HTML because the chat drops the alternative text of files.

    Args:
        full: the file that a click opens, if it is another one.
        below: our own HTML under the picture.
        kind: a CSS class.
    """
    image = f'<img class="picture" src="{address(path)}" alt="{html.escape(alt)}">'
    link = f'<a href="{address(full or path)}" target="_blank" rel="noopener">{image}</a>'
    return html_part(f'<figure class="card {kind}">{link}{below}</figure>')


def alt_words(image: Image, words: str) -> str:
    """What a screen reader says: the picture's own description, else the last sentences before it."""
    return last_sentences(image.alt or words) or translate("A picture")


def last_sentences(words: str) -> str:
    """The last sentences of some Markdown on one line."""
    return " ".join(re.sub(r"[*_`#]", "", words).split())[-240:]


def more_menu(items: Iterable[str], about: str = "") -> str:
    """The menu behind "More": buttons with words, and below them a line of what is to know."""
    name = html.escape(translate("More"))
    line = f'<p class="about">{html.escape(about)}</p>' if about else ""
    entries = "".join(f"<span>{item}</span>" for item in items)
    summary = f'<summary title="{name}"><span class="sr">{name}</span></summary>'
    return f'<details class="more">{summary}<div class="menu">{entries}{line}</div></details>'


def stats_line(stats: Stats, seed: int | None, notices: Iterable[str] = ()) -> str:
    """The small line under an answer. `notices` are what the user was told while it was made."""
    answer_picture = {0: [], 1: ["1 picture"]}.get(stats.images, [f"{stats.images} pictures"])
    return " · ".join([*answer_picture, f"{stats.seconds:.1f} s", f"seed {seed}", *notices, *ENDED.get(stats.stopped, [])])


def messages(conversation: Conversation, notes: dict[str, dict], pictures: PictureFolder, idle: bool = False) -> list[Message]:
    """The current branch.

    Args:
        notes: what `ConversationStore.read_about` holds, by turn.
        idle: whether no answer is being made: then a question without one offers to be answered.
    """
    path, before = conversation.path(), 0
    shown = []
    for turn in path:
        if turn.role == "user":
            content = _question_content(conversation, turn, before, pictures, idle and turn is path[-1])
        else:
            content = _answer_content(conversation, turn, before, notes, pictures)
        shown.append({"role": turn.role, "content": content})
        before += len(turn.images())
    return shown


def _question_content(conversation: Conversation, turn: Turn, before: int, pictures: PictureFolder, unanswered: bool) -> list[Message]:
    """`before`: how many pictures the branch has before the turn."""
    parts, number = [], 0
    for part in turn.parts:
        if isinstance(part, Image):
            number += 1
            if part.reference:
                continue
        parts.append(text_part(part.text) if isinstance(part, Text) else question_picture(part, number, before + number, pictures))
    parts.append(html_part(reference_chips(turn, pictures)))
    bar = [button("copy", "Copy the words", conversation.id, turn.id), button("edit", "Edit, as a branch", turn.id)]
    menu = [menu_entry("retry", "Answer again with a new seed", turn.id)]
    menu.append(menu_entry("drop", "Delete, with all that came after it", turn.id))
    again = ""
    if unanswered:
        told = html.escape(translate("This question has no answer yet."))
        again = f"<small>{told}</small>" + button("retry", "Answer this question", turn.id, words="Answer it")
    return [join_parts(parts), html_part(f'<div class="chat-actions">{_arrows(conversation, turn)}{_bar(bar, menu)}{again}</div>')]


def _answer_content(conversation: Conversation, turn: Turn, before: int, notes: dict[str, dict], pictures: PictureFolder) -> list[Message]:
    """`before`: how many pictures the branch has before the turn."""
    blocks, about = cut_blocks(turn.parts), notes.get(turn.id, {})
    outdated = find_outdated(conversation, turn, {id for id, note in notes.items() if note.get("rejected")})
    show = lambda block: _answer_picture(conversation, turn, before, block, pictures, block.at in outdated)  # noqa: E731
    parts = [ideas_part(blocks, show)] if turn.ideas else block_parts(blocks, turn.text(), show)
    said = str(about.get("line", ""))
    facts, told = [], []
    for each in filter(None, said.split(" · ")):
        (facts if FACT.fullmatch(each) else told).append(translate(each))
    bar = [button("copy", "Copy the words", conversation.id, turn.id), button("retry", "Answer again with a new seed", turn.id)]
    bar.append(button("edit", "Correct the words, as a branch", turn.id))
    plays = sum(block.picture is not None for block in blocks) > 1
    menu = [
        *([menu_entry("play", "Play as a flipbook", conversation.id, turn.id)] if plays else []),
        menu_entry("reword", "Edit words", conversation.id, turn.id),
        *([menu_entry("restyle", "Paint all in another style", turn.id)] if turn.images() else []),
        menu_entry("split", "Continue in a new conversation", turn.id),
        menu_entry("pdf", "Save this answer as PDF", conversation.id, turn.id),
        *(menu_entry(command, name, conversation.id, turn.id) for command, name in (FLIPBOOK_FILES if plays else [])),
        menu_entry("print", "Print this answer", conversation.id, turn.id),
        menu_entry("teach", "Use as training example", turn.id),
        menu_entry("drop", "Delete, with all that came after it", turn.id),
    ]
    if find_versions(conversation, turn, notes):
        menu[-1:-1] = [menu_entry(command, name, turn.id) for command, name in MARKS.items()]
    line = f"<small>{html.escape(' · '.join(told))}</small>" if told else ""
    if said.endswith(UNFINISHED) and parts:
        line += button("on", "Go on with this answer", turn.id, len(turn.parts) - 1, words="Go on")
    can_follow = not turn.ideas and max(place_in_steps(blocks), default=0) > 1
    follow = button("follow", "Show it step by step over the whole window", conversation.id, turn.id, words="Follow") if can_follow else ""
    actions = f'<div class="chat-actions">{_arrows(conversation, turn)}{_bar(bar, menu, " · ".join(facts))}{line}{follow}</div>'
    return [join_parts([thoughts_part(str(about.get("thoughts", ""))), *parts, html_part(actions)])]


def find_versions(conversation: Conversation, turn: Turn, notes: dict[str, dict]) -> list[Turn]:
    """The other answers to the same request, where they and the answer itself are finished."""
    beside = [conversation.turns[id] for id in conversation.branches(turn.id)]
    done = [each for each in beside if not str(notes.get(each.id, {}).get("line", "")).endswith(UNFINISHED)]
    return [each for each in done if each is not turn] if turn in done and turn.parent else []


def menu_entry(command: str, name: str, *arguments: object) -> str:
    """An action of a menu: its name is its words."""
    return button(command, name, *arguments, words=name)


def _bar(bar: list[str], menu: list[str], about: str = "") -> str:
    return f'<span class="bar">{"".join(bar)}{more_menu(menu, about)}</span>'


def join_parts(parts: list[Message]) -> Message:
    """Parts as one, so that the chat shows them as one message."""
    return {"type": "text", "text": "\n\n".join(part["text"] for part in parts if part["text"])}


def block_parts(blocks: list[Block], whole: str, picture: Callable[[Block], Message]) -> list[Message]:
    """The parts of an answer: steps as cards, words and pictures outside of steps one below the other.

    Args:
        whole: all words, for an answer without any picture.
        picture: the picture of a block that has one.
    """
    if all(block.picture is None for block in blocks):
        return [text_part(whole)]
    steps, shown = are_steps(blocks), []
    for block in blocks:
        parts = ([text_part(block.words)] if block.words else []) + ([picture(block)] if block.picture is not None else [])
        shown += [_step_part(block, parts)] if steps and block.is_step else parts
    return shown


def ideas_part(blocks: list[Block], picture: Callable[[Block], Message]) -> Message:
    """Ideas side by side, the line of each above its picture."""
    cells = []
    for block in blocks:
        shown = picture(block)["text"] if block.picture is not None else ""
        cells.append(f'<div class="idea"><div class="said">\n\n{text_part(block_words(block))["text"]}\n\n</div>{shown}</div>')
    return {"type": "text", "text": f'<div class="ideas">{"".join(cells)}</div>' if cells else ""}


def _step_part(block: Block, parts: list[Message]) -> Message:
    """A step as a card: its number, its words and beside them its picture."""
    label = html.escape(block.label)
    number = f'<b class="number" title="{label}">{block.number}</b>' if block.number is not None else ""
    words, pictures = parts[: bool(block.words)], parts[bool(block.words) :]
    shown = f'<div class="step">{number}<div class="said">\n\n' + "".join(part["text"] for part in words) + "\n\n</div>"
    return {"type": "text", "text": shown + "".join(part["text"] for part in pictures) + "</div>"}


def question_picture(image: Image, number: int, running: int, pictures: PictureFolder) -> Message:
    """A picture of a question, with its number and its role, and where it is another one, its number in the conversation."""
    alt, later = image.alt or translate(f"Your picture {number}"), f"@{running}" if running != number else ""
    marked = filter(None, [str(number), html.escape(translate(ROLE_NAMES[image.role])), later])
    mark = f'<span class="number">{" · ".join(marked)}</span>'
    return picture_part(pictures.keep_image(image, SHOWN_PIXELS), alt, pictures.keep_image(image), mark, "brought")


def reference_chips(turn: Turn, pictures: PictureFolder) -> str:
    """The references that went along with a question, each with its first picture."""
    chips = []
    for about, (first, *_) in list_references(turn):
        small, full = (address(pictures.keep_image(first, most)) for most in (STRIP_PIXELS, 0))
        name, words = html.escape(about.name), html.escape(about.words)
        shown = f'<img src="{small}" alt="">@{name}'
        chips.append(f'<a class="reference" href="{full}" target="_blank" rel="noopener" title="{words}">{shown}</a>')
    return f'<div class="references">{"".join(chips)}</div>' if chips else ""


def _answer_picture(
    conversation: Conversation, turn: Turn, before: int, block: Block[Image], pictures: PictureFolder, outdated: bool
) -> Message:
    """A picture of an answer, before which the branch has `before` pictures, with its buttons and its other versions."""
    at, image = block.at or 0, turn.image_at(block.at or 0)
    full = pictures.keep_image(image)
    name = html.escape(translate("Download"))
    save = f'<a class="act icon i-save" href="{address(full)}" download="duogen.png" title="{name}"><span class="sr">{name}</span></a>'
    bar = [*(button(command, name, turn.id, at) for command, name in PICTURE_BAR), save]
    menu = [PICTURE_REST] * outdated + PICTURE_MENU
    if any(isinstance(part, Image) for part in turn.parts[at + 1 :]) and not turn.ideas:
        menu.insert(menu.index(ANIMATE) + 1, ANIMATE_ON)
    number = before + sum(isinstance(part, Image) for part in turn.parts[: at + 1])
    bar.append(f'<span class="called" title="{html.escape(translate(f"In a message, @{number} is this picture."))}">@{number}</span>')
    below = _bar(bar, [menu_entry(command, name, turn.id, at) for command, name in menu], translate(OUTDATED) if outdated else "")
    below += _motion(turn, at, image, pictures) + _drafts(image, pictures) + _versions(conversation, turn, at, pictures)
    if turn.ideas:
        below += button("choose", "Go on with this one", turn.id, at, words="Go on with this one")
    return picture_part(pictures.keep_image(image, SHOWN_PIXELS), alt_words(image, block_words(block)), full, below)


def _motion(turn: Turn, at: int, image: Image, pictures: PictureFolder) -> str:
    """The animation of a picture, which plays when it is wanted, and what can be done with it."""
    file = pictures.keep_motion(image.motion) if image.motion else ""
    if not image.motion or not file:
        return ""
    name, save = html.escape(image.motion.words), html.escape(translate("Save as video"))
    shown = f'<video src="{address(file)}" title="{name}" controls loop muted playsinline preload="metadata"></video>'
    link = f'<a class="act icon i-save" href="{address(file)}" download="duogen.mp4" title="{save}"><span class="sr">{save}</span></a>'
    return f'<div class="motion">{shown}<span class="bar">{link}{button("still", "Remove the animation", turn.id, at)}</span></div>'


def _drafts(image: Image, pictures: PictureFolder) -> str:
    """The drafts of a picture, folded; `drafts.js` plays them where they are unfolded."""
    if not image.drafts:
        return ""
    shown = []
    for draft in image.drafts:
        words, file = html.escape(last_sentences(draft.alt)), address(pictures.keep_image(draft, SHOWN_PIXELS))
        shown.append(f'<figure><img src="{file}" alt=""><figcaption>{words}</figcaption></figure>')
    name = html.escape(translate(f"{len(shown)} drafts"))
    return f'<details class="drafts"><summary>{name}</summary><div class="strip">{"".join(shown)}</div></details>'


def block_words(block: Block) -> str:
    """The words of a block with the number of its step, as the answer said them."""
    return f"{block.label}. {block.words}" if block.number is not None else block.words


def _versions(conversation: Conversation, turn: Turn, at: int, pictures: PictureFolder) -> str:
    """The pictures that were painted for the same place, each by the answer that has it and is most like this one."""
    versions: list[Turn] = []
    for other in _find_repaints(conversation, turn):
        same = next((index for index, each in enumerate(versions) if _same_picture(each.parts[at], other.parts[at])), None)
        if same is None:
            versions.append(other)
        else:
            versions[same] = min(versions[same], other, key=lambda each: _count_differences(turn.parts, each.parts))
    if len(versions) < 2:
        return ""
    shown = []
    for number, other in enumerate(versions, 1):
        name = html.escape(translate(f"Version {number}"))
        tile = f'<img src="{address(pictures.keep_image(other.image_at(at), STRIP_PIXELS))}" alt="{name}">'
        chosen = " chosen" if other.id == turn.id else ""
        shown.append(f'<button type="button" class="act tile{chosen}" value="branch {other.id}" title="{name}">{tile}</button>')
    return f'<div class="versions">{"".join(shown)}</div>'


def _find_repaints(conversation: Conversation, turn: Turn) -> list[Turn]:
    """The answer and those beside it that painting pictures again, one after the other, led to or from."""
    beside = [conversation.turns[id] for id in conversation.branches(turn.id)]
    found = [turn]
    for each in found:  # it grows
        known = {one.id for one in found}
        found += [other for other in beside if other.id not in known and _is_repaint(each.parts, other.parts)]
    known = {one.id for one in found}
    return [other for other in beside if other.id in known]


def _is_repaint(some: tuple[Piece, ...], others: tuple[Piece, ...]) -> bool:
    """Whether two answers differ by one picture."""
    return any(isinstance(part, Image) and _differ_only_at(some, others, at) for at, part in enumerate(some))


def _count_differences(some: tuple[Piece, ...], others: tuple[Piece, ...]) -> int:
    """At how many places two answers of the same shape differ."""
    pairs = zip(some, others, strict=True)
    return sum(not _same_picture(one, other) if isinstance(one, Image) else one != other for one, other in pairs)


def _differ_only_at(some: tuple[Piece, ...], others: tuple[Piece, ...], at: int) -> bool:
    """Whether two answers are the same but for the picture at `at` and the words right before it."""
    if len(some) != len(others) or _same_picture(some[at], others[at]):
        return False
    for place, (one, other) in enumerate(zip(some, others, strict=True)):
        if type(one) is not type(other):
            return False
        if place == at or (place == at - 1 and isinstance(one, Text)):
            continue
        if one != other or (isinstance(one, Image) and not _same_picture(one, other)):
            return False
    return True


def _same_picture(one: Piece, other: Piece) -> bool:
    return isinstance(one, Image) and isinstance(other, Image) and one.shows_same(other)


def find_outdated(conversation: Conversation, turn: Turn, rejected: Collection[str] = ()) -> set[int]:
    """The places of the pictures of an answer that were painted after other words or pictures than stand before them now.

    Args:
        rejected: answers that hold a picture that was not chosen; what comes after it was not painted after it.
    """
    painted: dict[int, tuple[Piece, ...]] = {}  # by picture, what stood before it in the oldest answer that has it
    for beside in conversation.branches(turn.id):
        other = conversation.turns[beside]
        for at, part in enumerate(other.parts if beside not in rejected else ()):
            if isinstance(part, Image):
                painted.setdefault(id(part.source), other.before(at))
    found = set()
    for at, part in enumerate(turn.parts):
        now = turn.before(at)
        then = painted.get(id(part.source), now) if isinstance(part, Image) else now
        if len(then) != len(now) or _count_differences(then, now):
            found.add(at)
    return found


def _arrows(conversation: Conversation, turn: Turn) -> str:
    """The way to the branches beside a turn, "" if there are none. Answers that differ by pictures painted again count as one."""
    beside: list[str] = []
    seen: set[str] = set()
    for id in conversation.branches(turn.id):
        if id not in seen:
            group = [each.id for each in _find_repaints(conversation, conversation.turns[id])] if turn.role == "assistant" else [id]
            seen.update(group)
            beside.append(turn.id if turn.id in group else group[-1])
    if len(beside) < 2:
        return ""
    at = beside.index(turn.id)
    back, on = beside[at - 1], beside[(at + 1) % len(beside)]
    count = f'<span class="count">{at + 1}/{len(beside)}</span>'
    return button("branch", "The branch before", back, words="‹") + count + button("branch", "The next branch", on, words="›")


class Answer(AnswerBuilder):
    """An unfinished answer: takes events, and gives the message and a status line.

    Attributes:
        rest: the parts after those that are made, where one picture is repainted.
    """

    def __init__(
        self,
        pictures: PictureFolder,
        previews: PictureFolder,
        parts: tuple[Piece, ...] = (),
        rest: tuple[Piece, ...] = (),
        ideas: bool = False,
    ) -> None:
        super().__init__(list(parts), ideas=ideas)
        self.pictures, self.previews = pictures, previews
        self.rest = rest
        self.status = "Thinking ..."

    def take(self, event: Event) -> None:
        super().take(event)
        match event:
            case TextDelta():
                self.status = f"Writing ... {self.notice}" if self.notice else "Writing ..."
            case ImageStarted(index):
                self.status = f"Painting picture {index + 1} ..."
            case ImageStep(index, step, steps):
                painting = f"Painting picture {index + 1}, step {step} of {steps} ..."
                self.status = f"Painting picture {index + 1}, step {step} of {steps} ... {self.notice}" if self.notice else painting
            case Notice(words) | Restarted(words):
                self.status = words
            case ImageDone(_, image):
                self.pictures.keep_image(image, SHOWN_PIXELS)

    def finished_parts(self) -> tuple[Piece, ...]:
        """The complete parts, which stay if the answer ends now."""
        return tuple(self.parts)

    def message(self) -> Message:
        parts = [*self.all_parts(), *self.rest]
        whole = "".join(part.text for part in parts if isinstance(part, Text))
        blocks = cut_blocks(parts)
        made = [ideas_part(blocks, self._picture)] if self.ideas else block_parts(blocks, whole, self._picture)
        shown = [thoughts_part(self.thoughts), *made]
        shown = [part for part in shown if part["text"]]
        return {"role": "assistant", "content": shown or [{"type": "text", "text": "…"}]}

    def _picture(self, block: Block[Image | PendingPicture]) -> Message:
        """A picture that is painted, or while it is painted its preview, its words and the time left."""
        pending = block.picture
        if isinstance(pending, Image):
            return picture_part(self.pictures.keep_image(pending, SHOWN_PIXELS), alt_words(pending, block_words(block)))
        assert pending is not None
        words = last_sentences(block_words(block).strip().rpartition("\n")[2])
        name = html.escape(translate("Steps painted"))
        bar = f'<progress value="{pending.step}" max="{pending.steps}" title="{name}" aria-label="{name}"></progress>'
        bar = bar if pending.steps else ""  # nobody knows how many drafts there will be
        time_left = translate(f"draft {pending.drafts}" if pending.drafts else _say_left(pending.seconds_left()))
        below = f"{bar}<figcaption><span>{html.escape(words)}</span><span>{time_left}</span></figcaption>"
        file = self.previews.keep(pending.preview) if pending.preview else PAINTING
        return picture_part(file, translate(f"Picture {pending.index + 1} is being painted"), below=below, kind="pending")


def _say_left(left: float | None) -> str:
    """The time until a picture is painted."""
    if left is None:
        return "painting ..."
    seconds = max(1, round(left))
    return f"{seconds} s left" if seconds < 90 else f"{say_seconds(seconds)} left"
