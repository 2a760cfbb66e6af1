"""The pictures of a guide as files, and what a screen reader says of them."""

from __future__ import annotations

import base64

from duogen.content_credentials import encode_signed, sign_picture
from duogen.conversation import Image
from duogen.library.guide import clean_words
from duogen.library.markdown import strip_markdown
from duogen.provenance import encode_picture
from duogen.text_decoding import cut_text

ALT_LETTERS = 240


def encode_png(image: Image) -> bytes:
    return encode_signed(image.picture, "PNG", image.origin, image.is_painted)


def encode_compact(image: Image) -> tuple[str, bytes]:
    """ "png" or "jpeg", whichever needs fewer bytes: drawings are smaller as PNG, photographs as JPEG; both look the same. Unsigned."""
    jpeg = encode_picture(image.picture, "JPEG", image.origin, quality=92, subsampling=0)
    return min(("png", encode_picture(image.picture, "PNG", image.origin)), ("jpeg", jpeg), key=lambda packed: len(packed[1]))


def data_url(image: Image) -> str:
    kind, data = encode_compact(image)
    if image.is_painted:
        data = sign_picture(data, kind.upper(), image.origin)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def alt_text(image: Image, words: str = "") -> str:
    """The text for screen readers: the picture's own description, else the words that it was painted from."""
    return cut_text(" ".join(clean_words(image.alt or strip_markdown(words)).split()), ALT_LETTERS) or "A picture"
