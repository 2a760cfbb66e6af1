"""OpenAI's messages, and those of its imitators, as a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from duogen.conversation import REFERENCE, ROLES, SOURCE, Conversation, Image, Piece, Text
from duogen.library.references import open_references
from duogen.text_decoding import clean_text, is_blank
from ui.api.pictures import MOST_PICTURES, NO_DATA, find_address, parse_picture
from ui.api.requests import RequestError

# A picture inside words: in Markdown, in HTML, or a data URL that stands alone.
DATA_PICTURE = re.compile(
    r"""!\[(?:[^\[\]]|\[[^\[\]]{0,200}\]){0,2000}\]
        \(\s{0,9}<?(?P<markdown>data:(?:image/|application/octet-stream|;)[^)\s>]+)>?(?:\s{1,9}["'][^"'\n]{0,400}["'])?\s{0,9}\)
    |<img\b[^<>]{0,400}?\bsrc\s{0,9}=\s{0,9}
        ["'](?P<html>data:(?:image/|application/octet-stream|;)[^"'<>]+)["'][^<>]{0,400}>
    |(?P<bare>data:image/[\w.+-]{1,40}(?:;[\w=.-]{1,80}){0,4};base64,[A-Za-z0-9+/=_-]{64,})""",
    re.IGNORECASE | re.VERBOSE,
)
LINKED_PICTURE = re.compile(r"!\[[^\[\]]{0,400}\]\(\s{0,9}<?https?:", re.IGNORECASE)

WORDS = {None, "text", "input_text", "output_text"}  # types of parts
PICTURES = {"image_url", "input_image", "image", "image_base64", "file", "input_file", "media"}
PICTURE_FIELDS = ("images", "image", "image_url", "image_urls")  # of messages
CALLS = ("tool_calls", "function_call")
READ = {"role", "content", *PICTURE_FIELDS, *CALLS}
NO_MATTER = {  # fields of messages that an answer does not depend on
    *("id", "name", "refusal", "reasoning", "reasoning_content", "reasoning_details", "annotations", "audio", "content_parts", "model"),
    *("timestamp", "created_at", "date", "status", "type", "metadata", "cache_control"),
}

SYSTEM = "System messages are not read: the pair is not trained to follow them."
NOT_FETCHED = "Pictures that the words link to are not fetched; send them as data URLs."


def parse_messages(messages: Any) -> tuple[Conversation, list[str]]:
    """Messages as a conversation, and what of them is not read, a sentence each.

    Raises:
        RequestError: they are malformed, the last is not the user's, or a picture cannot be read.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError("There are no messages; send at least one of the user.", param="messages")
    conversation, notices, pictures = Conversation(), [], 0
    for index, message in enumerate(messages):
        role = _read_role(message, index)
        if role == "system":
            notices.append(SYSTEM)
            continue
        unread = [name for name, value in message.items() if value and name not in READ | NO_MATTER]
        if unread:
            notices.append(f"These fields of messages have no effect here: {', '.join(unread)}.")
        parts: list[Piece] = []
        for piece in _read_pieces(message, role):
            pictures += isinstance(piece, Image)
            if pictures > MOST_PICTURES:
                raise RequestError(f"The messages hold more than {MOST_PICTURES} pictures; send fewer.", param="messages")
            if isinstance(piece, Text) and LINKED_PICTURE.search(piece.text):
                notices.append(NOT_FETCHED)
            parts.append(piece)
        if parts:
            said = conversation.say(role, *parts)
            conversation = attach_references(said) if role == "user" else said
    path = conversation.path()
    if not path or path[-1].role != "user":
        raise RequestError("The last message must be the user's, and not empty.", param="messages")
    return conversation, list(dict.fromkeys(notices))


def attach_references(conversation: Conversation) -> Conversation:
    """The conversation with the pictures of the saved references that its last message mentions.

    Raises:
        RequestError: one of them cannot be read, or the conversation then holds too many.
    """
    try:
        attached = open_references().attach(conversation)
    except ValueError as error:
        raise RequestError(str(error), param="messages") from error
    if attached is not conversation and sum(len(turn.images()) for turn in attached.path()) > MOST_PICTURES:
        words = f"With the pictures of the references that they mention, the messages hold more than {MOST_PICTURES}; mention fewer."
        raise RequestError(words, param="messages")
    return attached


def _read_role(message: Any, index: int) -> str:
    """ "system", "user" or "assistant"."""
    role = message.get("role") if isinstance(message, dict) else None
    if role in ("tool", "function") or (role == "assistant" and any(message.get(name) for name in CALLS)):
        words = "This pair calls no tools, so it reads no calls and results of them; send what it should know as the user's words."
        raise RequestError(words, param=f"messages[{index}]")
    if role in ("system", "developer"):
        return "system"
    if role not in ("user", "assistant"):
        raise RequestError("Every message needs the role user or assistant.", param=f"messages[{index}].role")
    return role


def _read_pieces(message: dict[str, Any], role: str) -> Iterator[Piece]:
    """Pictures that stand beside the content, then the content."""
    for name in PICTURE_FIELDS:
        beside = message.get(name) or []
        for each in beside if isinstance(beside, list) else [beside]:
            yield parse_picture(find_address(each))
    for part in _content_parts(message.get("content")):
        kind = part.get("type")
        if kind in WORDS and isinstance(part.get("text"), str):
            yield from _read_words(clean_text(part["text"]), role)
        elif kind in PICTURES:
            address = find_address({name: value for name, value in part.items() if name != "type"})
            if address is None:
                raise RequestError(f"A part of the type {kind} holds no picture. {NO_DATA}")
            yield replace(parse_picture(address), role=_read_role_of_picture(part))
        else:
            raise RequestError(f"A message's part cannot be a {kind!r}; send text or image_url.")


def _read_role_of_picture(part: dict[str, Any]) -> str:
    """What a picture's part says that it is for; "" where that is open."""
    role = part.get("role") or ""
    if role not in ROLES:
        raise RequestError(f"A picture's role is {SOURCE} or {REFERENCE}, not {role!r}.")
    return role


def _content_parts(content: Any) -> list[dict[str, Any]]:
    given = [] if content is None else content if isinstance(content, list) else [content]
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in given]
    if not all(isinstance(part, dict) for part in parts):
        raise RequestError("The content of a message must be text, or a list of parts with a type.")
    return parts


def _read_words(text: str, role: str) -> Iterator[Piece]:
    """Words, and in their places the pictures that they hold as data URLs."""
    at = 0
    for found in [*DATA_PICTURE.finditer(text), None]:
        words = text[at : found.start() if found else len(text)]
        if not is_blank(words):
            yield Text(words if role == "user" else words.strip() + "\n")
        if found:
            yield parse_picture(found[found.lastgroup or 0])
            at = found.end()
