"""The list of conversations as HTML. `actions.js` handles its buttons."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from pathlib import Path

from duogen.library.conversations import MOST_TAGS, TAG_LETTERS, Entry, fold_tag
from duogen.text_decoding import fold_text
from ui.chat.history import address, button
from ui.parts.i18n import translate

SAVES = (
    ("pdf", "Save as PDF"),
    ("html", "Save as web page"),
    ("markdown", "Save as Markdown"),
    ("zip", "Save to bring back"),
    ("print", "Print"),
)


def chat_list(
    entries: list[Entry],
    shown: str | None,
    edited: Mapping[str | None, str],
    running: set[str],
    searched: bool,
    thumbnail: Callable[[Entry], Path | None],
) -> str:
    """The conversations by day.

    Args:
        shown: the open one.
        edited: those with a box to type in, and what it sets: "name" or "tags".
        running: those with a running answer.
        searched: whether this is the result of a search.
        thumbnail: the file of a small picture of a conversation, if it has one.
    """
    if not entries:
        none = translate("No conversation has these words." if searched else "Your conversations are kept here.")
        return f'<p class="none">{html.escape(none)}</p>'
    today, days = date.today(), ""
    for day, found in itertools.groupby(entries, lambda entry: _day_html(entry, today)):
        lines = (
            _box_html(entry, edited[entry.id])
            if entry.id in edited
            else _entry_html(entry, entry.id == shown, entry.id in running, thumbnail(entry))
            for entry in found
        )
        days += f"<h2>{day}</h2><ul>{''.join(lines)}</ul>"
    return days


def tag_row(tags: list[str], words: str) -> str:
    """All tags as buttons that filter the list; those in the `words` of the search are pressed."""
    if not tags:
        return ""
    chosen, shown = fold_text(words).split(), ""
    for tag in tags:
        pressed, called = str(fold_tag(tag) in chosen).lower(), html.escape(tag)
        shown += f'<button type="button" class="act tag" value="tag {called}" aria-pressed="{pressed}" dir="auto">{called}</button>'
    return f'<div class="tags" role="group" aria-label="{html.escape(translate("Tags"))}">{shown}</div>'


def _day_html(entry: Entry, today: date) -> str:
    """The heading over a conversation. `actions.js` writes dates as the browser's language does."""
    if entry.pinned:
        return html.escape(translate("Pinned"))
    day = date.fromtimestamp(entry.changed)
    if day >= today - timedelta(days=1):
        return html.escape(translate("Today" if day >= today else "Yesterday"))
    return f'<time datetime="{day.isoformat()}">{day.isoformat()}</time>'


def _box_html(entry: Entry, kind: str) -> str:
    """A conversation while its name or its tags are typed."""
    title = html.escape(entry.title or translate("Without a name"))
    if kind == "name":
        name = html.escape(translate("Name of the conversation"))
        box = f'<input name="name {entry.id}" value="{title}" maxlength="200" dir="auto" title="{name}" aria-label="{name}">'
        return f'<li class="renaming">{box}</li>'
    name, tags = html.escape(translate("Tags, with spaces between them")), html.escape(" ".join(entry.tags))
    most = MOST_TAGS * (TAG_LETTERS + 2)
    box = f'<input name="tags {entry.id}" value="{tags}" maxlength="{most}" dir="auto" placeholder="{name}" aria-label="{name}">'
    return f'<li class="tagging"><div><span class="title" dir="auto">{title}</span>{box}</div></li>'


def _entry_html(entry: Entry, shown: bool, running: bool, thumbnail: Path | None) -> str:
    called = entry.title or translate("A damaged conversation" if entry.damaged else "Without a name")
    title = html.escape(called)
    marks = _mark("busy", "An answer is being made") * running + _mark("pinned", "Pinned") * entry.pinned
    marks += _mark("damaged", "Damaged") * entry.damaged
    pin = ("unpin", "Unpin") if entry.pinned else ("pin", "Pin")
    actions = [("rename", "Rename"), ("retag", "Tags"), pin, *SAVES, ("delete", "Delete")]
    if entry.damaged:
        actions = [("zip", "Save its files"), ("delete", "Delete")]
    menu = "".join(f"<span>{button(command, name, entry.id, words=name)}</span>" for command, name in actions)
    here = ' aria-current="page"' if shown else ""
    more = html.escape(translate(f"More for {called}"))
    picture = f'<img src="{address(thumbnail)}" alt="" loading="lazy">' if thumbnail else '<span class="blank"></span>'
    tags = " ".join(f'<span class="tag" dir="auto">{html.escape(tag)}</span>' for tag in entry.tags)
    below = f' <span class="tags">{tags}</span>' if tags else ""
    said = f'{picture}<span class="said"><span class="title">{marks}{title}</span>{below}</span>'
    opening = f'<button type="button" class="act open" value="open {entry.id}" title="{title}" dir="auto"{here}>{said}</button>'
    more = f'<details class="more"><summary aria-label="{more}"></summary><div class="menu">{menu}</div></details>'
    return f'<li class="{"on" if shown else ""}">{opening}{more}</li>'


def _mark(kind: str, name: str) -> str:
    name = html.escape(translate(name))
    return f'<span class="{kind}" role="img" aria-label="{name}" title="{name}"></span>'
