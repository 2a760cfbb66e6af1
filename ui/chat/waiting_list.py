"""The requests of a conversation that wait for the answers before them: kept on the disk, and shown above the message box."""

from __future__ import annotations

import html
import threading
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery
from duogen.options import ImageOptions, Options, TextOptions, read_options
from ui.chat.history import address, button
from ui.parts.shared import Refusal, draw_seed, translate_html

MOST_WAITING = 30


@dataclass(frozen=True)
class Request:
    """A question that is not asked yet.

    Attributes:
        files: its pictures, as files that outlast the server.
        early: whether it was given before the pair was open.
        roles: of the files that have one.
    """

    words: str
    files: tuple[str, ...]
    options: Options
    early: bool = False
    roles: dict[str, str] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class WaitingLists:
    """The lists of all conversations. Who holds `lock` sees no change by others."""

    def __init__(self, store: ConversationStore) -> None:
        self.store = store
        self.lock = threading.RLock()

    def read(self, chat: str | None) -> list[Request]:
        return [_read_request(each) for each in self.store.read_about(chat)["waiting"]] if chat else []

    def add(self, chat: str, request: Request) -> None:
        """Raises: Refusal: the list is full. ValueError: the conversation is gone."""
        with self.lock:
            listed = self.read(chat)
            if len(listed) >= MOST_WAITING:
                raise Refusal(f"{MOST_WAITING} requests wait already; cancel one, or wait for the next answer.")
            self._save(chat, [*listed, request])

    def move(self, chat: str, id: str, places: int) -> None:
        """Move a request by so many places; beyond an end it stays there. Raises Refusal: it is asked already."""
        with self.lock:
            listed = self.read(chat)
            at = _find_place(listed, id)
            request = listed.pop(at)
            listed.insert(max(0, at + places), request)
            self._save(chat, listed)

    def remove(self, chat: str, id: str) -> Request:
        """Raises: Refusal: it is asked already."""
        with self.lock:
            listed = self.read(chat)
            request = listed.pop(_find_place(listed, id))
            self._save(chat, listed)
            return request

    def _save(self, chat: str, listed: list[Request]) -> None:
        self.store.save_waiting(chat, [asdict(each) for each in listed])


def _find_place(listed: list[Request], id: str) -> int:
    at = next((index for index, each in enumerate(listed) if each.id == id), None)
    if at is None:
        raise Refusal("It is asked already.")
    return at


def _read_request(raw: dict[str, Any]) -> Request:
    """A request as the store returns it; options that no longer fit are left at their defaults."""
    seed, given = raw["options"].get("seed"), raw["options"]
    try:
        text, image = read_options(TextOptions, given.get("text", {})), read_options(ImageOptions, given.get("image", {}))
        options = Options(seed if isinstance(seed, int) else draw_seed(), text, image)
    except ValueError:
        options = Options(draw_seed())
    return Request(raw["words"], tuple(raw["files"]), options, raw["early"], raw["roles"], raw["id"])


def list_html(listed: list[Request], held: bool, gallery: Gallery) -> str:
    """The list, "" where nothing waits. One that is `held` says so and offers to go on."""
    if not listed:
        return ""
    if held:
        line, act = "The list waits; nothing of it is sent until you go on with it.", button("go-on", "Go on", words="Go on with the list")
    else:
        line, act = "1 request waits for this answer" if len(listed) == 1 else f"{len(listed)} requests wait for this answer", ""
    items = "".join(_item_html(each, gallery) for each in listed)
    name = translate_html("Waiting requests")
    return f'<div role="status" class="told"><span>{translate_html(line)}</span>{act}</div><ol aria-label="{name}">{items}</ol>'


def _item_html(request: Request, gallery: Gallery) -> str:
    small = [gallery.thumbnails.find(Path(file).stem) or file for file in request.files]
    named = [(address(file), translate_html(f"Your picture {number}")) for number, file in enumerate(small, 1)]
    pictures = "".join(f'<img src="{source}" alt="{name}">' for source, name in named)
    acts = [button("wait-up", "Move up", request.id), button("wait-down", "Move down", request.id)]
    acts += [button("wait-edit", "Back into the box", request.id), button("wait-cancel", "Take it off the list", request.id)]
    words = f'<span class="words">{html.escape(request.words)}</span>'
    return f'<li id="waits-{html.escape(request.id)}">{pictures}{words}<span class="acts">{"".join(acts)}</span></li>'
