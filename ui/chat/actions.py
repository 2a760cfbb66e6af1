"""The small buttons of the chat and of the list of conversations: a click comes as "wish argument argument" from `actions.js`."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from duogen.conversation import Conversation, Text, Turn
from duogen.library.conversations import Store
from duogen.library.export import as_html, as_pdf, as_zip
from duogen.library.picture_file import About
from ui.chat.answers import Task
from ui.chat.correct import to_words
from ui.chat.history import button
from ui.chat.panel import Chat, Edit, View, kindly
from ui.parts.shared import EMPTY_BOX, UPLOADS, Refused, Updates, new_seed
from ui.tabs.finetune import keep_example

VARIANTS = 4


class Acts:
    """What each button does; `to_studio` gives the updates that open a picture of the library there."""

    def __init__(self, chat: Chat, to_studio: Callable[[str], Updates]) -> None:
        self.chat, self.to_studio, self.status = chat, to_studio, chat.status
        self.acts: dict[str, Callable[..., Updates]] = {
            "open": self._open, "rename": self._rename, "name": self._name, "pin": self._pin, "unpin": self._unpin, "delete": self._delete,
            "branch": self._branch, "edit": self._edit, "retry": self.chat.retry, "drop": self._drop, "again": self._again,
            "vary": self._vary, "on": self._on, "words": self._words, "use": self._use, "studio": self._studio, "undo": self._undo,
            "cancel": self._cancel, "recall": self._recall, "say": self._refuse, "teach": self._teach,
        }  # fmt: skip

    @kindly
    def act(self, values: dict, event: gr.EventData, request: gr.Request) -> Updates:
        """A click on one of the small buttons: "wish argument argument", and what was typed with it."""
        wish, *arguments = str(event._data.get("wish", "")).split(" ")
        try:
            if wish == "name":
                arguments.append(str(event._data.get("words", "")))
            return self.acts[wish](values, request, *arguments)
        except (KeyError, TypeError, IndexError) as error:
            raise Refused("That is no longer there; open the page anew.") from error

    def _refuse(self, values: dict, request: gr.Request, *words: str) -> Updates:
        raise Refused(" ".join(words))

    # Whole conversations

    def _open(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.open(id)
        box = {} if values[self.chat.view].editing is None else {self.chat.box: self.chat.free_box(EMPTY_BOX)}
        return self.chat.looking(values, request, View(id), self.chat.loading.words) | box

    def _rename(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._kept(values, renaming=id)

    def _name(self, values: dict, request: gr.Request, id: str, words: str) -> Updates:
        self.chat.store.rename(id, words)
        return self._kept(values, renaming=None)

    def _pin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.pin(id, True)
        return self._kept(values)

    def _unpin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.pin(id, False)
        return self._kept(values)

    def _kept(self, values: dict, **changes: Any) -> Updates:
        """The list anew; all else stays."""
        view = replace(values[self.chat.view], **changes)
        return {self.chat.view: view, self.chat.list: self.chat.listed(values, view)}

    def _delete(self, values: dict, request: gr.Request, id: str) -> Updates:
        if job := self.chat.jobs.of(id):
            job.stop.set()
        title = self.chat.store.open(id).title
        self.chat.store.delete(id)
        shown = values[self.chat.view].id
        view = View(None if shown == id else shown, undo=id)
        return self.chat.looking(values, request, view, f'"{title}" is deleted.', act=_undo())

    def _undo(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.chat.view]
        if isinstance(view.undo, str):
            self.chat.store.restore(view.undo)
            return self.chat.looking(values, request, View(view.undo), "It is back.")
        if view.undo is None:
            raise Refused("There is nothing to undo any more.")
        self.chat.check_free(values)
        old = view.undo
        self.chat.store.change(old.id, lambda now: replace(now, turns={**old.turns, **now.turns}, head=old.head))
        return self.chat.shown(values, View(old.id), "It is back.")

    def _cancel(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.chat.view]
        box = {self.chat.box: self.chat.free_box(EMPTY_BOX)} if view.editing else {}
        return self.chat.shown(values, View(view.id), self.chat.loading.words) | box

    def _recall(self, values: dict, request: gr.Request) -> Updates:
        """What waits goes back into the box, before what has been typed since."""
        job = self.chat.jobs.of(values[self.chat.view].id)
        question = self.chat.jobs.recall(job) if job else None
        if question is None:
            raise Refused("It is asked already.")
        given = values[self.chat.box] or EMPTY_BOX
        words = "\n".join(filter(None, [question.words, given.get("text")]))
        box = self.chat.busy_box({"text": words, "files": [*question.files, *given.get("files", [])]})
        return self.chat.looking(values, request, values[self.chat.view], None) | {self.chat.box: box}

    # Messages and pictures

    def _branch(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        self.chat.store.change(conversation.id, lambda now: now.at(now.tip(turn.id)), quiet=True)
        return self.chat.shown(values, View(conversation.id), self.chat.loading.words)

    def _edit(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        if turn.role == "user":
            box = {"text": turn.text(), "files": [self.chat.pictures.keep(image.picture) for image in turn.images()]}
            said = "Sending it makes a branch; the old one stays."
        else:
            box = {"text": to_words(turn), "files": []}
            said = "[1] is the first picture. Sending it makes a branch; the old one stays."
        view = View(conversation.id, Edit(id))
        return self.chat.shown(values, view, said, act=_give_up()) | {self.chat.box: self.chat.free_box(box)}

    def _on(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        """What comes after a part of an answer is made anew, or at all; the answer that is there stays as a branch."""
        conversation, turn = self.chat.turn(values, id)
        if turn.role != "assistant":
            raise Refused("Only an answer can go on.")
        begun = Turn("assistant", turn.parts[: int(at) + 1], parent=turn.parent)
        asked, options = conversation.with_turn(begun), replace(self.chat.shared.options(values), seed=new_seed())
        work = lambda engine, stop: engine.going_on(asked, options, stop)  # noqa: E731
        return self.chat.started(values, request, Task(asked.id, turn.parent, work, options, conversation.head, parts=begun.parts))

    def _drop(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, _ = self.chat.turn(values, id)
        self.chat.store.change(conversation.id, lambda now: now.without(id))
        return self.chat.shown(values, View(conversation.id, undo=conversation), "Deleted, with all that came after it.", act=_undo())

    def _again(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        return self.chat.repaint(values, request, conversation, turn, int(at))

    def _vary(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        return self.chat.repaint(values, request, conversation, turn, int(at), VARIANTS)

    def _words(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        place = int(at)
        said = turn.parts[place - 1] if place and isinstance(turn.parts[place - 1], Text) else Text("")
        view = View(conversation.id, Edit(id, place))
        words = "Change the words of this picture and send them: a branch."
        box = {self.chat.box: self.chat.free_box({"text": said.text.strip(), "files": []})}
        return self.chat.shown(values, view, words, act=_give_up()) | box

    def _use(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        given = values[self.chat.box] or EMPTY_BOX
        files = [*given.get("files", []), self.chat.pictures.keep(turn.parts[int(at)].picture)]
        if len(files) > UPLOADS:
            raise Refused(f"Bring at most {UPLOADS} pictures with a message.")
        box = {self.chat.box: self.chat.free_box({"text": given.get("text") or "", "files": files})}
        return self.chat.shown(values, View(conversation.id), "The picture is in the box: say what to do with it.") | box

    def _teach(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Keep a conversation up to an answer as an example to learn from."""
        conversation, _ = self.chat.turn(values, id)
        keep_example(conversation.at(id))
        return self.chat.shown(values, values[self.chat.view], "It is an example now; the Fine-tune tab has it.")

    def _studio(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.turn(values, id)
        about = About(turn.parts[int(at)].alt, conversation=conversation.id, turn=id)
        return self.to_studio(self.chat.shared.gallery.add(turn.parts[int(at)].picture, about).id)


def packing(store: Store) -> Callable[[str], dict]:
    """Makes the files that leave the page."""
    writers = {"pdf": (".pdf", as_pdf), "html": (".html", as_page), "markdown": (".zip", as_zip)}

    def pack(wish: str) -> dict:
        """What a browser saves, for "KIND CONVERSATION" or "KIND CONVERSATION ANSWER"."""
        kind, id, *answer = str(wish).split(" ")
        try:
            conversation = store.open(id)
            ending, write = writers.get(kind, (".zip", None))
            data = write(conversation, *answer) if write else store.pack(id)
            title = re.sub(r"[^\w-]+", "-", conversation.title).strip("-")[:40] or "conversation"
            return {"name": title + ending, "data": base64.b64encode(data).decode()}
        except (ValueError, TypeError) as error:
            return {"error": str(error)}

    return pack


def as_page(conversation: Conversation, answer: str | None = None) -> bytes:
    return as_html(conversation, answer).encode()


def _undo() -> str:
    return button("undo", "Bring it back", words="Undo")


def _give_up() -> str:
    return button("cancel", "Leave it as it is", words="Cancel")
