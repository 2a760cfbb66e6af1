"""The part of a picture that a person chose to train is what the trainer reads, to the pixel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from duogen.dataset.crops import Crop, crop_file, write_crop
from duogen.dataset.describe import TokenCounter, describe, problem_rows
from duogen.dataset.format import Picture, write_examples
from duogen.dataset.readers import read_dataset
from duogen.models.sequence import Tokens
from tests.support.tiny import Qwen2VLImageProcessorPil, tiny_tokenizer


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """The tokens of a picture follow its size."""
    return Tokens(tiny_tokenizer(), Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=64 * 64))


def write_noise(file: Path, seed: int = 0) -> np.ndarray:
    """A picture of 64 x 48 in which every pixel differs; returns its pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
    PILImage.fromarray(pixels).save(file)
    return pixels


def test_the_trainer_reads_the_chosen_part_to_the_pixel(tmp_path: Path, tokens: Tokens) -> None:
    pixels = {name: write_noise(tmp_path / "set" / f"{name}.png", seed) for seed, name in enumerate(("boat", "tree", "sun"))}
    for name in ("boat", "tree"):
        (tmp_path / "set" / f"{name}.txt").write_text(f"A {name}")
    before = {example.where: example.key() for example in read_dataset(tmp_path / "set").examples}
    for name in ("boat", "sun"):
        write_crop(tmp_path / "set" / f"{name}.png", Crop(5, 7, 32, 40))
    data = read_dataset(tmp_path / "set")
    packed = {example.where: tokens.pack(example.turns()) for example in data.examples}
    shown = {where: np.asarray(each.slots[0].image.picture) for where, each in packed.items()}
    assert np.array_equal(shown["boat.png"], pixels["boat"][7:47, 5:37]) and np.array_equal(shown["tree.png"], pixels["tree"])
    keys = {example.where: example.key() for example in data.examples}
    assert keys["tree.png"] == before["tree.png"] and keys["boat.png"] != before["boat.png"], "the cache knows the crop"
    counted, ids = TokenCounter(tokens), {where: len(each.ids) for where, each in packed.items()}
    assert {example.where: counted(example.lines) for example in data.examples} == ids
    report = describe(data, tokens, 1000)
    assert report.sizes == {"32 x 40": 1, "64 x 48": 1} and data.loose == [tmp_path / "set" / "sun.png"]
    assert data.unread == [] and report.files == (7, 5, 2, 0)
    write_examples(data.examples, tmp_path / "again")
    written = {each.lines[0].text(): np.asarray(each.pictures()[0].open()) for each in read_dataset(tmp_path / "again").examples}
    assert np.array_equal(written["A boat"], shown["boat.png"]) and np.array_equal(written["A tree"], shown["tree.png"])
    write_crop(tmp_path / "set" / "boat.png", None)
    assert {example.where: example.key() for example in read_dataset(tmp_path / "set").examples} == before


OUTSIDE = [(-1, 0, 32, 32), (40, 0, 32, 32), (0, 20, 32, 32), (0, 0, 8, 32), (0, 0, 32.0, 32), (True, 0, 32, 32), ("0", 0, 32, 32)]
DAMAGE = [
    b"", b"[" * 2000, b"\xff\xfe\x00", b"null", b"[1, 2, 3, 4]", b'{"left": 0, "top": 0, "width": 32}', b"{}" + b" " * 5000,
    *(json.dumps(dict(zip(Crop._fields, numbers, strict=True))).encode() for numbers in OUTSIDE),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_crop_is_named_in_one_sentence(tmp_path: Path, damage: bytes) -> None:
    for name in ("boat", "tree", "sun"):
        write_noise(tmp_path / f"{name}.png")
    for name in ("boat", "tree"):
        (tmp_path / f"{name}.txt").write_text(name)
    for name in ("boat", "sun"):
        crop_file(tmp_path / f"{name}.png").write_bytes(damage)
    data = read_dataset(tmp_path)
    assert [example.where for example in data.examples] == ["tree.png"] and data.loose == [] and data.unread == []
    why = "holds no part of its picture; choose the part again, or delete the file"
    assert sorted(problem_rows(data)) == [[f"{name}.png", f"{name}.png.crop {why}", "left out"] for name in ("boat", "sun")]


def test_a_picture_that_became_smaller_is_not_cut_in_black(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png")
    part = Picture(tmp_path / "a.png", crop=Crop(30, 0, 32, 32))
    assert part.open().size == (32, 32)
    PILImage.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="choose it again"):
        part.open()
