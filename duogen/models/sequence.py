"""Conversation <-> token ids, picture slots and loss masks: the only place that knows special tokens.

A turn is `<|im_start|>role\\n ... <|im_end|>\\n` (ChatML, as Qwen and SmolLM2 write it); a picture, brought or painted, is
`<|vision_start|>`, one `<|image_pad|>` per merged patch, `<|vision_end|>`. `<|vision_start|>` is the begin-of-vision token (BOV)
that the MLLM predicts when it wants to draw (DuoGen, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from duogen.conversation import Image, Piece, Text, Turn
from duogen.mentions import spell_out
from duogen.models.placeholders import mark_picture
from duogen.picture_input import pad_size, pad_thin
from duogen.text_decoding import clean_text


@dataclass(frozen=True)
class Slot:
    """Where a picture stands among the ids.

    Attributes:
        bov: index of its begin-of-vision token; the words it is painted from are those before.
        end: index after its end-of-vision token.
        grid: merged patches, (rows, columns).
        image: the picture itself.
        painted: whether the assistant made it.
    """

    bov: int
    end: int
    grid: tuple[int, int]
    image: Image
    painted: bool

    def shift(self, by: int) -> Slot:
        """The same picture, `by` tokens further on."""
        return replace(self, bov=self.bov + by, end=self.end + by)


@dataclass
class Packed:
    """A conversation as the MLLM reads it.

    Attributes:
        ids: token ids, length L.
        learn: whether each token counts in the stage-1 loss: what the assistant says, BOV and end of turn included.
        slots: the pictures in order.
    """

    ids: list[int] = field(default_factory=list)
    learn: list[bool] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)

    def add(self, ids: Items[int], learn: bool) -> None:
        self.ids.extend(ids)
        self.learn.extend([learn] * len(ids))

    def between(self, start: int, end: int | None = None) -> Packed:
        """A copy of the ids from `start` to `end`, with the pictures that lie wholly in there, counted from `start`."""
        stop = len(self.ids) if end is None else end
        slots = [slot.shift(-start) for slot in self.slots if start <= slot.bov and slot.end <= stop]
        return Packed(self.ids[start:stop], self.learn[start:stop], slots)

    def extend(self, other: Packed) -> None:
        """Append another conversation's ids and pictures."""
        self.slots.extend(slot.shift(len(self.ids)) for slot in other.slots)
        self.ids.extend(other.ids)
        self.learn.extend(other.learn)

    def last_segment(self, bov: int) -> int:
        """Index at which the last text segment before a BOV starts: after the picture before it, or 0.

        The negative guidance branch reads the words before this index only (DuoGen, section 3: guidance).
        """
        return max((slot.end for slot in self.slots if slot.end <= bov), default=0)


class Tokens:
    """The ids of the special tokens, and how turns become ids.

    Raises:
        ValueError: the tokenizer lacks one of the special tokens.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, bov: str = "<|vision_start|>", tuned: bool = True) -> None:
        """`tuned`: the MLLM knows BOV; else its pictures stand behind the words by which it asked for them."""
        self.tokenizer, self.image_processor, self.tuned = tokenizer, image_processor, tuned
        self.start, self.end = self._id("<|im_start|>"), self._id("<|im_end|>")
        self.bov, self.eov, self.pad = self._id(bov), self._id("<|vision_end|>"), self._id("<|image_pad|>")
        self.newline = self.text("\n")

    def _id(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or index == self.tokenizer.unk_token_id:
            raise ValueError(f"This pair's tokenizer has no {token} token; choose a pair made for interleaved generation.")
        return index

    def text(self, text: str) -> list[int]:
        """Plain words to ids; special tokens written out in them stay words, so that nobody can smuggle one in."""
        return self.tokenizer(clean_text(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def opening(self, role: str) -> list[int]:
        return [self.start, *self.text(f"{role}\n")]

    def closing(self) -> list[int]:
        return [self.end, *self.newline]

    def grid(self, image: Image) -> tuple[int, int]:
        """Merged patches (rows, columns) that the vision tower makes of a picture."""
        return self.grid_of_size(image.picture.size)

    def grid_of_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """As `grid`, of any picture of this (width, height)."""
        maker = self.image_processor
        factor = maker.patch_size * maker.merge_size
        width, height = pad_size(size)
        # Only the size: preparing the pixels is the slow part, and `pixels` does it when they are needed.
        tall, wide = smart_resize(height, width, factor, maker.size["shortest_edge"], maker.size["longest_edge"])
        return tall // factor, wide // factor

    def pixels(self, images: list[Image]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures as the vision tower takes them: patches [P, channels * area] and grids [pictures, 3]."""
        made = self.image_processor(images=[pad_thin(image.picture) for image in images], return_tensors="pt")
        return made["pixel_values"], made["image_grid_thw"]

    def add_image(self, packed: Packed, image: Image, painted: bool) -> None:
        """Append a picture; a painted one's BOV counts in the loss."""
        grid = self.grid(image)
        bov = len(packed.ids)
        packed.add([self.bov], painted)
        packed.add([self.pad] * (grid[0] * grid[1]) + [self.eov], False)
        packed.slots.append(Slot(bov, len(packed.ids), grid, image, painted))

    def add_parts(self, packed: Packed, parts: Items[Piece], mine: bool) -> None:
        """Append words and pictures of a turn."""
        for part in parts:
            if isinstance(part, Text):
                packed.add(self.text(part.text), mine)
                continue
            if mine and not self.tuned:
                packed.add(self.text(mark_picture(part.alt)), mine)
            self.add_image(packed, part, mine)

    def add_turn(self, packed: Packed, turn: Turn) -> None:
        """Append a whole turn, its mentions of references as plain words."""
        mine = turn.role == "assistant"
        packed.add(self.opening(turn.role), False)
        self.add_parts(packed, turn.parts if mine else spell_out(turn).parts, mine)
        packed.add([self.end], mine)
        packed.add(self.newline, False)

    def pack(self, turns: Items[Turn]) -> Packed:
        """Turns to ids, first to last."""
        packed = Packed()
        for turn in turns:
            self.add_turn(packed, turn)
        return packed


def find_start(turns: Items[tuple[Packed, bool]], most_tokens: int, most_pictures: int) -> int:
    """Index of the oldest turn that is read together with the last one.

    Where a question would outgrow the limits, the oldest turns before it go until the rest fills at most half of them. So the start moves
    seldom, and what was read mostly need not be read again. It depends on sizes alone: the same conversation begins at the same place.

    Args:
        turns: each turn, and whether it is a question; the last one is.

    Returns:
        The index of a question; that of the last one where nothing else fits beside it.
    """
    start = tokens = pictures = 0
    for end, (turn, asks) in enumerate(turns):
        tokens, pictures = tokens + len(turn.ids), pictures + len(turn.slots)
        if not asks or (tokens <= most_tokens and pictures <= most_pictures):
            continue
        while start < end and not (turns[start][1] and 2 * tokens <= most_tokens and 2 * pictures <= most_pictures):
            gone, _ = turns[start]
            tokens, pictures, start = tokens - len(gone.ids), pictures - len(gone.slots), start + 1
    return start


def positions(packed: Packed, start: int = 0, first: int = 0) -> tuple[torch.Tensor, int]:
    """Multimodal rotary positions of the ids from `start` on, as Qwen2.5-VL counts them.

    Args:
        first: the position of the token at `start`.

    Returns:
        [3, L - start] (time, row, column), and the position that follows.
    """
    rows: list[tuple[int, int, int]] = []
    at, index = first, start
    slots = {slot.bov: slot for slot in packed.slots}
    while index < len(packed.ids):
        rows.append((at, at, at))
        at += 1
        slot = slots.get(index)
        index += 1
        if slot is not None:
            height, width = slot.grid
            rows += [(at, at + row, at + column) for row in range(height) for column in range(width)]
            at += max(height, width)
            index += height * width
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 3).T, at
