"""The small buttons of the chat and of the list of conversations. `actions.js` sends a click as "command argument argument"."""

from __future__ import annotations

import base64
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import gradio as gr
import regex

from duogen.conversation import Conversation, Piece, Text, Turn
from duogen.evaluate.arena import VOTES, add_mark, arena_home
from duogen.files import make_folder, place_folder
from duogen.library.conversations import ConversationStore, fold_tag
from duogen.library.export import as_html, as_pdf, as_zip
from duogen.library.flipbook import FLIPBOOKS, list_frames
from duogen.library.guide import Section, sections, text_direction
from duogen.library.guide_pictures import alt_text
from duogen.library.markdown import render_html
from duogen.library.picture_file import PictureInfo
from duogen.mentions import spell_out
from duogen.text_decoding import cut_text, fold_text
from ui.chat.answers import Task, motion_task
from ui.chat.correct import reword, write_words
from ui.chat.history import SHOWN_PIXELS, address, button, find_versions
from ui.chat.motion import read_task
from ui.chat.panel import Chat, Edit, View, catch_refusal
from ui.chat.picture_roles import read_roles, write_roles
from ui.chat.references import open_entry
from ui.chat.waiting_list import Request, WaitingLists
from ui.parts.i18n import translate
from ui.parts.pictures import PictureFolder
from ui.parts.shared import EMPTY_BOX, UPLOADS, Refusal, Updates, draw_seed, read_event, status_line
from ui.tabs.arena import open_contestant
from ui.tabs.finetune import keep_example

VARIANTS = 4
NAME_LETTERS = 40
EXPORT_SECONDS = 3600


class ChatActions:
    """The handlers of the buttons. `to_studio` returns the updates that open a picture of the library in the studio."""

    def __init__(self, chat: Chat, to_studio: Callable[[str], Updates]) -> None:
        self.chat, self.to_studio, self.status = chat, to_studio, chat.status
        self.handlers: dict[str, Callable[..., Updates]] = {
            "open": self._open, "rename": self._rename, "name": self._set_name, "pin": self._pin, "unpin": self._unpin,
            "retag": self._retag, "tags": self._set_tags, "tag": self._filter_by_tag,
            "delete": self._delete, "branch": self._show_branch, "edit": self._edit, "retry": self.chat.retry, "drop": self._drop,
            "again": self._repaint, "vary": self._vary, "on": self._continue, "words": self._edit_words, "use": self._use,
            "studio": self._open_in_studio, "undo": self._undo, "cancel": self._cancel, "say": self._refuse,
            "teach": self._keep_example, "rest": self._repaint_rest, "split": self._continue_apart, "reword": self._reword,
            "wait-up": self._move_up, "wait-down": self._move_down, "wait-edit": self._edit_waiting, "wait-cancel": self._cancel_waiting,
            "go-on": self._go_on, "better": partial(self._mark, True), "worse": partial(self._mark, False),
            "animate": partial(self._animate, False), "animate-on": partial(self._animate, True), "still": self._remove_motion,
            "restyle": self._restyle, "bring": self._bring, "kept": self._tell_kept, "choose": self._choose_idea,
        }  # fmt: skip

    @catch_refusal
    def run(self, values: dict, event: gr.EventData, request: gr.Request) -> Updates:
        """Handle a click: "command argument argument", and the words typed with it."""
        command, *arguments = str(*read_event(event, "command")).split(" ")
        try:
            if command in ("name", "tags", "reword"):
                arguments += read_event(event, "words")
            if command in ("animate", "animate-on"):
                arguments += read_event(event, "motion")
            return self.handlers[command](values, request, *arguments)
        except (KeyError, TypeError, IndexError) as error:
            raise Refusal("That is no longer there; open the page anew.") from error

    def _refuse(self, values: dict, request: gr.Request, *words: str) -> Updates:
        raise Refusal(" ".join(words))

    # Whole conversations

    def _open(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.open(id)
        return self._enter(values, request, id, self.chat.loading.words)

    def _continue_apart(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Open a new conversation with what was said up to an answer."""
        new = self.chat.store.copy_until(values[self.chat.view].id, id)
        return self._enter(values, request, new.id, "This is a new conversation up to that answer; the old one stays as it is.")

    def _enter(self, values: dict, request: gr.Request, id: str, words: str) -> Updates:
        """Show a conversation. What was edited in the box belongs to the one before."""
        box = {} if values[self.chat.view].editing is None else {self.chat.box: self.chat.free_box(EMPTY_BOX)}
        return self.chat.enter_view(values, request, View(id), words) | box

    def _rename(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._refresh_list(values, renaming=id, tagging=None)

    def _set_name(self, values: dict, request: gr.Request, id: str, words: str) -> Updates:
        self.chat.store.rename(id, str(words))
        return self._refresh_list(values, renaming=None)

    def _retag(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._refresh_list(values, tagging=id, renaming=None)

    def _set_tags(self, values: dict, request: gr.Request, id: str, words: str) -> Updates:
        self.chat.store.set_tags(id, str(words))
        return self._refresh_list(values, tagging=None)

    def _filter_by_tag(self, values: dict, request: gr.Request, tag: str) -> Updates:
        """Put a tag into the search, or take it out."""
        words = (values[self.chat.search] or "").split()
        others = [word for word in words if fold_text(word) != fold_tag(tag)]
        search = " ".join(others if len(others) < len(words) else [*words, f"#{tag}"])
        return {self.chat.search: search} | self._refresh_list(values | {self.chat.search: search})

    def _pin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.pin(id, True)
        return self._refresh_list(values)

    def _unpin(self, values: dict, request: gr.Request, id: str) -> Updates:
        self.chat.store.pin(id, False)
        return self._refresh_list(values)

    def _refresh_list(self, values: dict, **changes: Any) -> Updates:
        """Update only the list of conversations."""
        view = replace(values[self.chat.view], **changes)
        return {self.chat.view: view, self.chat.list: self.chat.render_list(values, view)}

    def _delete(self, values: dict, request: gr.Request, id: str) -> Updates:
        if job := self.chat.jobs.find(id):
            job.stop.set()
        title = self.chat.store.entry(id).title or translate("A damaged conversation")
        self.chat.store.delete(id)
        shown = values[self.chat.view].id
        view = View(None if shown == id else shown, undo=id)
        return self.chat.enter_view(values, request, view, f'"{title}" is deleted.', act=_undo_button())

    def _undo(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.chat.view]
        if isinstance(view.undo, str):
            self.chat.store.restore(view.undo)
            shown = View() if self.chat.store.entry(view.undo).damaged else View(view.undo)
            return self.chat.enter_view(values, request, shown, "It is back.")
        if view.undo is None:
            raise Refusal("There is nothing to undo any more.")
        self.chat.check_free(values)
        old = view.undo
        if isinstance(old, Turn):
            self.chat.store.change(view.id, lambda now: now.with_changed(old), quiet=True)
            return self.chat.render(values, View(view.id), "It is back.")
        self.chat.store.change(old.id, lambda now: replace(now, turns={**old.turns, **now.turns}, head=old.head))
        return self.chat.render(values, View(old.id), "It is back.")

    def _cancel(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.chat.view]
        box = {self.chat.box: self.chat.free_box(EMPTY_BOX)} if view.editing else {}
        return self.chat.render(values, View(view.id), self.chat.loading.words) | box

    # Requests that wait

    def _move_up(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._change_waiting(values, lambda lists, chat: lists.move(chat, id, -1))

    def _move_down(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._change_waiting(values, lambda lists, chat: lists.move(chat, id, 1))

    def _cancel_waiting(self, values: dict, request: gr.Request, id: str) -> Updates:
        return self._change_waiting(values, lambda lists, chat: lists.remove(chat, id))

    def _edit_waiting(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Put a waiting request back into the box, before what was typed since."""
        if values[self.chat.view].editing:
            raise Refusal("Send what the box holds first, or cancel it.")
        taken: list[Request] = []
        updates = self._change_waiting(values, lambda lists, chat: taken.append(lists.remove(chat, id)))
        given = values[self.chat.box] or EMPTY_BOX
        words = "\n".join(filter(None, [taken[0].words, given.get("text")]))
        files = given.get("files", [])
        roles = dict(zip(files, read_roles(values[self.chat.roles], files), strict=True)) | taken[0].roles
        box = gr.MultimodalTextbox(value={"text": words, "files": [*taken[0].files, *files]})
        return updates | {self.chat.box: box, self.chat.roles: write_roles(roles)}

    def _change_waiting(self, values: dict, change: Callable[[WaitingLists, str], object]) -> Updates:
        view, jobs = values[self.chat.view], self.chat.jobs
        change(jobs.waiting, view.id)
        if job := jobs.find(view.id):
            job.changed += 1  # other windows draw the list too
        return {self.chat.waiting: self.chat.render_waiting(view.id)}

    def _go_on(self, values: dict, request: gr.Request) -> Updates:
        view = values[self.chat.view]
        self.chat.go_on(view.id)
        return self.chat.enter_view(values, request, view, None)

    # Messages and pictures

    def _show_branch(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        self.chat.store.change(conversation.id, lambda now: now.at(now.tip(turn.id)), quiet=True)
        return self.chat.render(values, View(conversation.id), self.chat.loading.words)

    def _edit(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        if turn.role == "user":
            own = [image for image in turn.images() if image.reference is None]  # its words bring the others again
            roles = {self.chat.pictures.keep_image(image): image.role for image in own}
            box = {"text": turn.text(), "files": [self.chat.pictures.keep_image(image) for image in own]}
            said = "Sending it makes a branch; the old one stays."
        else:
            box, roles = {"text": write_words(turn), "files": []}, {}
            said = "[1] is the first picture. Sending it makes a branch; the old one stays."
        view = View(conversation.id, Edit(id))
        filled = {self.chat.box: self.chat.free_box(box), self.chat.roles: write_roles(roles)}
        return self.chat.render(values, view, said, act=_cancel_button()) | filled

    def _continue(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        """Continue an answer after one of its parts. The old answer stays as a branch."""
        conversation, turn = self.chat.find_turn(values, id)
        if turn.role != "assistant":
            raise Refusal("Only an answer can go on.")
        begun = Turn("assistant", turn.parts[: int(at) + 1], parent=turn.parent, ideas=turn.ideas)
        asked, options = conversation.with_turn(begun), replace(self.chat.shared.options(values), seed=draw_seed())
        work = lambda engine, stop: engine.continue_answer(asked, options, stop)  # noqa: E731
        task = Task(asked.id, turn.parent, work, options, conversation.head, parts=begun.parts, ideas=turn.ideas)
        return self.chat.start_task(values, request, task)

    def _choose_idea(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        """Go on with one of several ideas: a branch with an answer that is this one alone."""
        conversation, turn = self.chat.find_turn(values, id)
        line = [Text(part.text.strip()) for part in turn.before(int(at)) if isinstance(part, Text)]
        parts = (*line, turn.image_at(int(at)))
        chosen = next((each for each in conversation.branches(id) if conversation.turns[each].parts == parts), None)
        if chosen is None:
            new = Turn("assistant", parts, parent=turn.parent)
            self.chat.store.change(conversation.id, lambda now: now.with_turn(new))
        else:
            self.chat.store.change(conversation.id, lambda now: now.at(now.tip(chosen)), quiet=True)
        return self.chat.render(values, View(conversation.id), "This idea is the answer now; the arrows lead to the others.")

    def _drop(self, values: dict, request: gr.Request, id: str) -> Updates:
        conversation, _ = self.chat.find_turn(values, id)
        self.chat.store.change(conversation.id, lambda now: now.without(id))
        return self.chat.render(
            values, View(conversation.id, undo=conversation), "Deleted, with all that came after it.", act=_undo_button()
        )

    def _repaint(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        return self.chat.repaint(values, request, conversation, turn, int(at))

    def _repaint_rest(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        return self.chat.repaint_rest(values, request, conversation, turn, int(at))

    def _vary(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        return self.chat.repaint(values, request, conversation, turn, int(at), VARIANTS)

    def _animate(self, goes_on: bool, values: dict, request: gr.Request, id: str, at: str, given: Any) -> Updates:
        """Set a picture of an answer in motion, alone or on the way to the next one."""
        conversation, turn = self.chat.find_turn(values, id)
        motion = read_task(turn, int(at), goes_on, given, draw_seed())
        return self.chat.start_task(values, request, motion_task(conversation, motion, self.chat.shared.options(values)))

    def _remove_motion(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        """Remove the animation of a picture from its answer; in the Library it stays."""
        conversation, turn = self.chat.find_turn(values, id)
        self.chat.store.change(conversation.id, lambda now: now.with_changed(now.turns[id].with_motion(int(at), None)), quiet=True)
        said = "The animation is removed from here; it stays in the Library."
        return self.chat.render(values, View(conversation.id, undo=turn), said, act=_undo_button())

    def _edit_words(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        place = int(at)
        before = turn.parts[place - 1] if place else None
        said = before.text.strip() if isinstance(before, Text) else ""
        view = View(conversation.id, Edit(id, place))
        words = "Change the words of this picture and send them: a branch."
        box = {self.chat.box: self.chat.free_box({"text": said, "files": []})}
        return self.chat.render(values, view, words, act=_cancel_button()) | box

    def _reword(self, values: dict, request: gr.Request, id: str, said: list[str]) -> Updates:
        """Save an answer with other words as a version, with the note of the old one."""
        conversation, turn = self.chat.find_turn(values, id)
        kept = self.chat.save_answer(conversation, turn, reword(turn, said))
        note = self.chat.store.read_about(kept.id)["notes"].get(turn.id)
        if note and kept.head:
            self.chat.store.save_note(kept.id, kept.head, note)
        return self.chat.render(values, View(kept.id), self.chat.loading.words)

    def _use(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        file = self.chat.pictures.keep_image(turn.image_at(int(at)))
        return self._put_into_box(values, file, View(conversation.id))

    def _bring(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Put a picture of the Library into the box."""
        return self._put_into_box(values, str(self.chat.shared.gallery.entry(id).file), values[self.chat.view])

    def _put_into_box(self, values: dict, file: str, view: View) -> Updates:
        given = values[self.chat.box] or EMPTY_BOX
        files = [*given.get("files", []), file]
        if len(files) > UPLOADS:
            raise Refusal(f"Bring at most {UPLOADS} pictures with a message.")
        value, busy = {"text": given.get("text") or "", "files": files}, self.chat.jobs.find(view.id) is not None
        box = {self.chat.box: self.chat.busy_box(value) if busy else self.chat.free_box(value)}
        return self.chat.render(values, view, "The picture is in the box: say what to do with it.") | box

    def _restyle(self, values: dict, request: gr.Request, id: str, kind: str, name: str) -> Updates:
        """Repaint an answer in a saved style ("style NAME"), or in the style of a picture of the Library ("library ID")."""
        conversation, turn = self.chat.find_turn(values, id)
        saved = kind == "style"
        style = self.chat.references.find(name).open_images() if saved else [open_entry(self.chat.shared.gallery.entry(name))]
        return self.chat.restyle(values, request, conversation, turn, style)

    def _tell_kept(self, values: dict, request: gr.Request, name: str) -> Updates:
        """Say that a reference was saved or changed."""
        return {self.chat.status: status_line(f"Saved. Type @{name} in a message, and it goes along.")}

    def _keep_example(self, values: dict, request: gr.Request, id: str) -> Updates:
        """Keep a conversation up to an answer as an example to learn from."""
        conversation, _ = self.chat.find_turn(values, id)
        keep_example(conversation.at(id))
        return self.chat.render(values, values[self.chat.view], "It is an example now; the Fine-tune tab has it.")

    def _mark(self, better: bool, values: dict, request: gr.Request, id: str) -> Updates:
        """Count a version as better, or worse, than each of the others."""
        conversation, turn = self.chat.find_turn(values, id)
        others = find_versions(conversation, turn, self.chat.store.read_about(conversation.id)["notes"])
        if not others:
            raise Refusal("There is no other finished version of this answer.")
        asked, who = [spell_out(each) for each in conversation.at(turn.parent).path()], open_contestant(self.chat.loading)
        for other in others:
            add_mark(arena_home() / VOTES, asked, *((turn, other) if better else (other, turn)), who)
        said = "better" if better else "worse"
        return self.chat.render(values, values[self.chat.view], f"This version counts as {said}; Fine-tune can learn from it.")

    def _open_in_studio(self, values: dict, request: gr.Request, id: str, at: str) -> Updates:
        conversation, turn = self.chat.find_turn(values, id)
        image = turn.image_at(int(at))
        about = PictureInfo(image.alt, painted=image.is_painted, conversation=conversation.id, turn=id, origin=image.origin or "")
        return self.to_studio(self.chat.shared.gallery.add(image.picture, about).id)


def make_packer(store: ConversationStore, exports: Path, pictures: PictureFolder) -> Callable[[str], dict]:
    """Returns the function that makes the files to download, and gives the words to copy or to edit.

    A zip or a flipbook, which may be large, goes into `exports`.
    """
    writers = {"pdf": (".pdf", as_pdf), "html": (".html", encode_html), "markdown": (".zip", as_zip)}
    make_folder(exports)

    def pack(command: str) -> dict:
        """The name of a file, and its data or its address, for "KIND CONVERSATION" or "KIND CONVERSATION ANSWER"; the words for "copy",
        and for "parts" and "play" the words and the addresses of the pictures of an answer."""
        kind, id, *answer = str(command).split(" ")
        try:
            if kind == "copy":
                return {"words": store.open(id).turns[answer[0]].text()}
            if kind == "parts":
                return {"parts": [show_part(part, pictures) for part in store.open(id).turns[answer[0]].parts]}
            if kind == "play":
                return show_flipbook(*sections(store.open(id), answer[0]), pictures)
            if flipbook := FLIPBOOKS.get(f".{kind}"):
                name, made = f"{make_file_name(store.entry(id).title)}.{kind}", flipbook(store.open(id), next(iter(answer), None))
                return {"name": name, "address": address(write_export(exports, name, lambda out: out.write(made)))}
            ending, write = writers.get(kind, (".zip", None))
            name = make_file_name(store.entry(id).title) + ending
            if write is None:
                return {"name": name, "address": address(write_export(exports, name, lambda out: store.pack_to(id, out)))}
            return {"name": name, "data": base64.b64encode(write(store.open(id), *answer)).decode()}
        except (ValueError, TypeError, LookupError) as error:
            return {"error": str(error)}

    return pack


def show_part(part: Piece, pictures: PictureFolder) -> dict[str, str]:
    """A part of an answer whose words are edited: its words, or the address and the description of its picture."""
    if isinstance(part, Text):
        return {"words": part.text.strip()}
    return {"picture": address(pictures.keep_image(part, SHOWN_PIXELS)), "alt": part.alt}


def show_flipbook(answer: Section, pictures: PictureFolder) -> dict[str, Any]:
    """What `flipbook.js` plays. Raises ValueError: as `list_frames`."""
    frames = list_frames([answer])
    return {
        "language": frames[0].language,
        "direction": text_direction(frames[0].language),
        "frames": [
            {
                "picture": address(pictures.keep_image(each.image, SHOWN_PIXELS)),
                "shape": each.image.picture.width / each.image.picture.height,
                "alt": alt_text(each.image, each.words),
                "words": render_html(each.words),
                "milliseconds": each.milliseconds,
            }
            for each in frames
        ],
    }


def make_file_name(title: str) -> str:
    """A title as a name that every file system takes."""
    words = regex.sub(r"[^\w-]+", "-", title).strip("-")  # `re` takes the vowel signs of Thai and Hindi for no letters
    return cut_text(words, NAME_LETTERS).strip("-") or "conversation"


def write_export(exports: Path, name: str, write: Callable[[BinaryIO], object]) -> Path:
    """Write a file in a folder whose name nobody can guess; those of an hour ago are deleted.

    Raises:
        ValueError: as `write`, or there is no room.
    """
    for old in exports.iterdir():
        if abs(time.time() - old.stat().st_mtime) > EXPORT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = exports / uuid.uuid4().hex
    part = exports / f".{folder.name}.part"
    try:
        part.mkdir()
        with (part / name).open("wb") as out:
            write(out)
        place_folder(part, folder)
    except OSError as error:
        raise ValueError(f"The file cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder / name


def encode_html(conversation: Conversation, answer: str | None = None) -> bytes:
    return as_html(conversation, answer).encode()


def _undo_button() -> str:
    return button("undo", "Bring it back", words="Undo")


def _cancel_button() -> str:
    return button("cancel", "Leave it as it is", words="Cancel")
