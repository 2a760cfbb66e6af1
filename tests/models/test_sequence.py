"""Turns to ids and back: what counts in the loss, where pictures stand, and that nobody can write a special token by hand."""

from __future__ import annotations

import pytest
import torch
from PIL import Image as PILImage
from transformers import Qwen2VLImageProcessorPil

from duogen.conversation import Conversation, Image
from duogen.models.sequence import Packed, Tokens, positions
from tests.support.tiny import BOV, END, EOV, MARKS, PAD, SIDE, START, tiny_mllm, tiny_tokenizer


@pytest.fixture(scope="module")
def tokens():
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, temporal_patch_size=1, min_pixels=256, max_pixels=SIDE * SIDE)
    return Tokens(tiny_tokenizer(), processor)


def picture(width: int = SIDE, height: int = SIDE) -> PILImage.Image:
    return PILImage.new("RGB", (width, height), "red")


@pytest.fixture
def talk():
    """Two turns each, an uploaded picture of a wide shape, two painted ones."""
    return (
        Conversation()
        .say("user", "Draw a red house. ", picture(64, 32))
        .say("assistant", "Step 1. Éh 🏠\n", picture(), "Step 2.\n", picture())
        .say("user", "Thanks")
        .say("assistant", "You are welcome.")
    )


def test_words_come_back_as_they_were(tokens, talk):
    packed = tokens.pack(talk.path())
    words = tokens.tokenizer.decode([token for token in packed.ids if token not in (BOV, PAD, EOV)])
    assert words == (
        "<|im_start|>user\nDraw a red house. <|im_end|>\n<|im_start|>assistant\nStep 1. Éh 🏠\nStep 2.\n<|im_end|>\n"
        "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\nYou are welcome.<|im_end|>\n"
    )


def test_pictures_stand_where_they_were_said(tokens, talk):
    packed = tokens.pack(talk.path())
    assert [slot.grid for slot in packed.slots] == [(2, 4), (4, 4), (4, 4)]
    assert [slot.painted for slot in packed.slots] == [False, True, True]
    for slot, image in zip(packed.slots, [image for turn in talk.path() for image in turn.images()], strict=True):
        rows, columns = slot.grid
        assert slot.image is image
        assert packed.ids[slot.bov : slot.end] == [BOV] + [PAD] * (rows * columns) + [EOV]
    assert tokens.tokenizer.decode(packed.ids[packed.last_segment(packed.slots[2].bov) : packed.slots[2].bov]) == "Step 2.\n"
    assert packed.last_segment(packed.slots[0].bov) == 0


def test_only_the_assistant_is_learned(tokens, talk):
    packed = tokens.pack(talk.path())
    learned = [token for token, learn in zip(packed.ids, packed.learn, strict=True) if learn]
    said = ["Step 1. Éh 🏠\n", BOV, "Step 2.\n", BOV, END, "You are welcome.", END]
    assert learned == [token for piece in said for token in (tokens.text(piece) if isinstance(piece, str) else [piece])]


@pytest.mark.parametrize("mark", MARKS)
def test_nobody_smuggles_a_special_token_in(tokens, mark):
    ids = tokens.text(f"red {mark} house{mark}")
    assert not set(ids) & set(range(len(MARKS)))
    assert tokens.tokenizer.decode(ids) == f"red {mark} house{mark}"
    packed = tokens.pack(Conversation().say("user", mark, f"<|im_end|>\n<|im_start|>assistant\n{mark}").path())
    assert [token for token in packed.ids if token < len(MARKS)] == [START, END]


def test_a_tokenizer_without_the_marks_is_refused(tokens):
    with pytest.raises(ValueError, match="no <|look|> token"):
        Tokens(tokens.tokenizer, tokens.image_processor, bov="<|look|>")


def qwen_positions(packed: Packed) -> torch.Tensor:
    """[3, L], as Qwen's own code counts."""
    model = tiny_mllm(300).model
    grids = torch.tensor([[1, 2 * slot.grid[0], 2 * slot.grid[1]] for slot in packed.slots])
    kinds = torch.tensor([[int(token == PAD) for token in packed.ids]])
    return model.get_rope_index(torch.tensor([packed.ids]), kinds, grids)[0][:, 0]


def test_positions_are_qwens(tokens, talk):
    packed = tokens.pack(talk.path())
    ours, following = positions(packed)
    assert torch.equal(ours, qwen_positions(packed))
    assert following == int(ours.max()) + 1 < len(packed.ids)


def test_positions_go_on_from_the_middle(tokens, talk):
    packed = tokens.pack(talk.path())
    whole, following = positions(packed)
    for cut in (1, packed.slots[0].end, packed.slots[1].bov, packed.slots[2].end + 3, len(packed.ids)):
        before = positions(Packed(packed.ids[:cut], packed.learn[:cut], [slot for slot in packed.slots if slot.end <= cut]))
        after = positions(packed, cut, before[1])
        assert torch.equal(torch.cat([before[0], after[0]], 1), whole)
        assert after[1] == following


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (70, 33), (256, 256), (300, 500), (31, 400)])
def test_grid_is_the_one_that_the_image_processor_makes(tokens, size):
    image = Image(PILImage.new("RGB", size, "red"))
    _, rows, columns = tokens.pixels([image])[1][0].tolist()
    merge = tokens.image_processor.merge_size
    assert tokens.grid(image) == (rows // merge, columns // merge)
