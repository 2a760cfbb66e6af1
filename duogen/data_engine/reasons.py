"""Say in a few plain words why something could not be read, and group such reasons for a report."""

from __future__ import annotations

import errno
import lzma
import re
import zipfile
import zlib

import brotli

DETAILS = re.compile(r" of page \w+| \([^()]*(?:\([^()]*\)[^()]*)*\)")  # which page or file it was
DAMAGED = (zlib.error, lzma.LZMAError, brotli.error, EOFError, zipfile.BadZipFile)
LONGEST = 160  # letters


def describe_error(error: BaseException) -> str:
    """What an error says about the file that raised it, without a name and a full stop: "it is locked with a password"."""
    said = _first_words(error)
    match error:
        case MemoryError():
            return "it takes more memory than there is"
        case RecursionError():
            return "it is nested too deeply"
        case TimeoutError():
            return said
        case FileNotFoundError():
            return "it is not there any more"
        case RuntimeError() if "password" in said or "encrypted" in said:
            return "it is locked with a password"
        case NotImplementedError():
            return f"it is packed in a way that is not known here ({said})"
        case _ if isinstance(error, DAMAGED):
            return f"its packed data is damaged ({said})"
        case UnicodeError():
            return "it is no text that can be read"
        case OSError() if error.errno == errno.EINVAL:  # a place before the beginning of the file
            return "it is damaged"
        case OSError() if error.strerror:
            return error.strerror
        case ValueError() | OSError():
            return f"it {said}" if said.startswith("is ") else said
    return f"{type(error).__name__}: {said}" if said != type(error).__name__ else said


def _first_words(error: BaseException) -> str:
    """The message of an error on one line, its class where it has none."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    printable = "".join(letter if letter.isprintable() else " " for letter in message)
    return " ".join(printable.split()).removesuffix(".")[:LONGEST] or type(error).__name__


def group_reason(reason: str) -> str:
    """The reason without the file or page that it names, so that equal reasons can be counted."""
    return DETAILS.sub("", reason)


def short_name(name: str, most: int = 60) -> str:
    """The name of a picture for a reason: the end of a long address, nothing of the data of a `data:` address."""
    if name.startswith("data:"):
        return name.partition(",")[0][:most] or "data:"
    return name if len(name) <= most else "..." + name[3 - most :]
