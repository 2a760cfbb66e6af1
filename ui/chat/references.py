"""Saved references in the page: what `references.js` asks of the server, and a question that asks for a style beside what it asks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from duogen.conversation import REFERENCE, Image, Reference, Text, Turn
from duogen.files import explain_disk
from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Entry, Gallery, PictureQuery
from duogen.library.references import ReferenceStore, SavedReference
from duogen.picture_input import open_picture
from duogen.provenance import find_origin
from ui.chat.history import address
from ui.parts.i18n import translate

OFFERED = 12  # pictures of the Library, of which one is chosen as a style
Asked = dict[str, Any]


class ReferenceFunctions:
    """The functions that `references.js` calls on the server. Each takes one object and returns one; a refusal is its `error`."""

    def __init__(self, references: ReferenceStore, gallery: Gallery, store: ConversationStore) -> None:
        self.references, self.gallery, self.store = references, gallery, store

    def functions(self) -> list[Callable[[Asked], Asked]]:
        listed = (self.list_references, self.save_reference, self.change_reference, self.delete_reference, self.restore_reference)
        return [catch_refusal(each) for each in (*listed, self.suggest_pictures, self.find_pictures)]

    def list_references(self, asked: Asked) -> Asked:
        """All references: `name`, `kind`, `words`, `count` of pictures, and the address of the first, `picture`."""
        return {"references": [self._show(each) for each in self.references.list_references()]}

    def save_reference(self, asked: Asked) -> Asked:
        """Save a picture, `source`, under a name, or add it to the reference that `to` names."""
        image = self._find_image(*str(asked["source"]).split(" "))
        if to := str(asked.get("to") or ""):
            return self._show(self.references.add_pictures(to, [image]))
        return self._show(self.references.add(_read_about(asked), [image]))

    def change_reference(self, asked: Asked) -> Asked:
        """Give the reference `of` another name, kind or words."""
        return self._show(self.references.change(str(asked["of"]), _read_about(asked)))

    def delete_reference(self, asked: Asked) -> Asked:
        self.references.delete(str(asked["name"]))
        return {}

    def restore_reference(self, asked: Asked) -> Asked:
        return self._show(self.references.restore(str(asked["name"])))

    def suggest_pictures(self, asked: Asked) -> Asked:
        """The pictures that fit best to the words of a message; none of the conversation `chat`."""
        found = self.gallery.suggest(str(asked["words"]), apart_from=str(asked.get("chat") or ""))
        return {"pictures": [self._show_entry(each) for each in found]}

    def find_pictures(self, asked: Asked) -> Asked:
        """The newest pictures of the Library with all of `words`."""
        found, _ = self.gallery.find(PictureQuery(str(asked["words"])), count=OFFERED)
        return {"pictures": [self._show_entry(each) for each in found]}

    def _find_image(self, place: str, id: str, at: str = "0") -> Image:
        """A picture of the Library, "library ID", or of an answer or a question, "CONVERSATION TURN PLACE"."""
        if place == "library":
            return open_entry(self.gallery.entry(id))
        return self.store.open(place).turns[id].image_at(int(at))

    def _show(self, saved: SavedReference) -> Asked:
        about, picture = saved.about, address(self._thumbnail(saved.files[0]))
        return {"name": about.name, "kind": about.kind, "words": about.words, "count": len(saved.files), "picture": picture}

    def _thumbnail(self, file: Path) -> Path:
        """A small copy of a reference's picture, made now if it is missing."""
        key = hashlib.sha256(f"{file} {file.stat().st_mtime_ns}".encode()).hexdigest()[:32]
        thumbnails = self.gallery.thumbnails
        return thumbnails.find(key) or thumbnails.make(key, open_picture(file, letterbox=True))

    def _show_entry(self, entry: Entry) -> Asked:
        """`words` are its own, `asked` those of its question."""
        caption, asked = (" ".join(words.split()) for words in (entry.about.caption, entry.about.words))
        said = {"words": caption or asked or translate("Brought in"), "asked": asked or caption}
        return {"id": entry.id, "picture": address(self.gallery.thumbnail(entry))} | said


def catch_refusal(function: Callable[[Asked], Asked]) -> Callable[[Asked], Asked]:
    """Decorate a function of the server: a refusal is returned as `error`, in the language of the browser."""

    @functools.wraps(function)
    def wrapper(asked: Asked) -> Asked:
        try:
            return function(asked)
        except (KeyError, TypeError, IndexError, AttributeError):
            return {"error": translate("That is no longer there; open the page anew.")}
        except ValueError as reason:
            return {"error": translate(str(reason))}
        except OSError as reason:
            return {"error": translate(explain_disk(reason) or "The disk cannot be read or written; see that it is there, and try again.")}

    return wrapper


def open_entry(entry: Entry) -> Image:
    """A picture of the Library as one of a message. Raises ValueError: it cannot be read."""
    return Image(open_picture(entry.file), origin=find_origin(entry.file))


def _read_about(asked: Asked) -> Reference:
    return Reference(str(asked["name"]), str(asked["kind"]), str(asked.get("words") or ""))


def ask_in_style(question: Turn, style: Sequence[Image]) -> Turn:
    """A question that also asks for the style of some pictures, which go along with it."""
    about = style[0].reference
    said = f"@{about.name}" if about else f"in the style of @{len(question.images()) + 1}"
    shown = tuple(replace(each, role=REFERENCE) for each in style)
    first = next((at for at, part in enumerate(question.parts) if isinstance(part, Text)), len(question.parts))
    parts = (*question.parts[:first], *shown, *question.parts[first:], Text(f"\n\nPaint every picture {said}."))
    return replace(question, parts=parts)
