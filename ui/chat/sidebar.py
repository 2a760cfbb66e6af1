"""The list of conversations as HTML. `actions.js` handles its buttons."""

from __future__ import annotations

import html

from duogen.library.conversations import Entry
from ui.chat.history import button
from ui.parts.i18n import translate

SAVES = (
    ("pdf", "Save as PDF"),
    ("html", "Save as web page"),
    ("markdown", "Save as Markdown"),
    ("zip", "Save to bring back"),
    ("print", "Print"),
)


def chat_list(entries: list[Entry], shown: str | None, renaming: str | None, running: set[str], searched: bool) -> str:
    """Args: shown: the open one. running: those with a running answer. searched: whether this is the result of a search."""
    if not entries:
        none = translate("No conversation has these words." if searched else "Your conversations are kept here.")
        return f'<p class="none">{html.escape(none)}</p>'
    return f"<ul>{''.join(_entry_html(entry, entry.id == shown, entry.id == renaming, entry.id in running) for entry in entries)}</ul>"


def _entry_html(entry: Entry, shown: bool, renaming: bool, running: bool) -> str:
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
    opening = f'<button type="button" class="act open" value="open {entry.id}" title="{title}" dir="auto"{here}>{marks}{title}</button>'
    more = f'<details><summary aria-label="{more}">⋯</summary><div class="menu">{menu}</div></details>'
    return f'<li class="{"on" if shown else ""}">{opening}{more}</li>'


def _mark(kind: str, name: str) -> str:
    name = html.escape(translate(name))
    return f'<span class="{kind}" role="img" aria-label="{name}" title="{name}"></span>'
