"""The list of conversations as HTML. `actions.js` handles its buttons."""

from __future__ import annotations

import html
import itertools
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

from duogen.library.conversations import Entry
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
    renaming: str | None,
    running: set[str],
    searched: bool,
    thumbnail: Callable[[Entry], Path | None],
) -> str:
    """The conversations by day.

    Args:
        shown: the open one.
        running: those with a running answer.
        searched: whether this is the result of a search.
        thumbnail: the file of a small picture of a conversation, if it has one.
    """
    if not entries:
        none = translate("No conversation has these words." if searched else "Your conversations are kept here.")
        return f'<p class="none">{html.escape(none)}</p>'
    today, days = date.today(), ""
    for day, found in itertools.groupby(entries, lambda entry: _day_html(entry, today)):
        lines = (_entry_html(entry, entry.id == shown, entry.id == renaming, entry.id in running, thumbnail(entry)) for entry in found)
        days += f"<h2>{day}</h2><ul>{''.join(lines)}</ul>"
    return days


def _day_html(entry: Entry, today: date) -> str:
    """The heading over a conversation. `actions.js` writes dates as the browser's language does."""
    if entry.pinned:
        return html.escape(translate("Pinned"))
    day = date.fromtimestamp(entry.changed)
    if day >= today - timedelta(days=1):
        return html.escape(translate("Today" if day >= today else "Yesterday"))
    return f'<time datetime="{day.isoformat()}">{day.isoformat()}</time>'


def _entry_html(entry: Entry, shown: bool, renaming: bool, running: bool, thumbnail: Path | None) -> str:
    called = entry.title or translate("A damaged conversation" if entry.damaged else "Without a name")
    title = html.escape(called)
    if renaming:
        name = html.escape(translate("Name of the conversation"))
        box = f'<input name="{entry.id}" value="{title}" maxlength="200" dir="auto" title="{name}" aria-label="{name}">'
        return f'<li class="renaming">{box}</li>'
    marks = _mark("busy", "An answer is being made") * running + _mark("pinned", "Pinned") * entry.pinned
    marks += _mark("damaged", "Damaged") * entry.damaged
    actions = [("rename", "Rename"), ("unpin", "Unpin") if entry.pinned else ("pin", "Pin"), *SAVES, ("delete", "Delete")]
    if entry.damaged:
        actions = [("zip", "Save its files"), ("delete", "Delete")]
    menu = "".join(f"<span>{button(command, name, entry.id, words=name)}</span>" for command, name in actions)
    here = ' aria-current="page"' if shown else ""
    more = html.escape(translate(f"More for {called}"))
    picture = f'<img src="{address(thumbnail)}" alt="" loading="lazy">' if thumbnail else '<span class="blank"></span>'
    said = f'{picture}<span class="title">{marks}{title}</span>'
    opening = f'<button type="button" class="act open" value="open {entry.id}" title="{title}" dir="auto"{here}>{said}</button>'
    more = f'<details class="more"><summary aria-label="{more}"></summary><div class="menu">{menu}</div></details>'
    return f'<li class="{"on" if shown else ""}">{opening}{more}</li>'


def _mark(kind: str, name: str) -> str:
    name = html.escape(translate(name))
    return f'<span class="{kind}" role="img" aria-label="{name}" title="{name}"></span>'
