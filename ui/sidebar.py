"""The list of conversations, as HTML of our own: its buttons are those of `acts.js`."""

from __future__ import annotations

import html

from duogen.store import Entry
from ui.history import button

SAVES = (("pdf", "Save as PDF"), ("html", "Save as web page"), ("markdown", "Save as Markdown"), ("zip", "Save to bring back"))


def chat_list(entries: list[Entry], shown: str | None, renaming: str | None, running: set[str], searched: bool) -> str:
    """Args: shown: the one that is open. running: those whose answer is being made. searched: whether words were looked for."""
    if not entries:
        return f'<p class="none">{"Nothing has these words." if searched else "What you ask is kept here."}</p>'
    return f"<ul>{''.join(_line(entry, entry.id == shown, entry.id == renaming, entry.id in running) for entry in entries)}</ul>"


def _line(entry: Entry, shown: bool, renaming: bool, running: bool) -> str:
    title = html.escape(entry.title or "Without a name")
    if renaming:
        return f'<li class="renaming"><input name="{entry.id}" value="{title}" maxlength="200" title="Name of the conversation"></li>'
    marks = ('<span class="busy" title="An answer is being made"></span>' if running else "") + (
        '<span class="pinned" title="Pinned"></span>' if entry.pinned else ""
    )
    acts = [("rename", "Rename"), ("unpin", "Unpin") if entry.pinned else ("pin", "Pin"), *SAVES, ("delete", "Delete")]
    menu = "".join(f"<span>{button(wish, name, entry.id, words=name)}</span>" for wish, name in acts)
    here = ' aria-current="page"' if shown else ""
    opening = f'<button type="button" class="act open" value="open {entry.id}" title="{title}"{here}>{marks}{title}</button>'
    more = f'<details><summary aria-label="More for {title}">⋯</summary><div class="menu">{menu}</div></details>'
    return f'<li class="{"on" if shown else ""}">{opening}{more}</li>'
