"""Random damage to folders and zips of training data: every file is learnt or named, and reading never ends in anything but a sentence."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duogen.conversation import Conversation, save_conversation
from duogen.dataset.describe import describe, problem_rows
from duogen.dataset.format import split_examples
from duogen.dataset.readers import read_dataset
from tests.unit.test_example_layouts import CAPTIONS, CHATS, build, encoded, picture_of
from tests.unit.test_examples import home, tokens  # noqa: F401

BUILT = settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
NAMES = [
    "a.png",
    "a.txt",
    "conversations.jsonl",
    "metadata.csv",
    "x.json",
    "before/a.png",
    "after/a.png",
    "x.zip",
    "Ka\u0308se.jpg",
    "a.png.txt",
]
RUBBISH = [b"", b"\0" * 40, b"\xff\xfe\0\xd8", b"[" * 9000, b'{"messages": 5}', b"\xd8\xff\xe0" * 9, b"PK\x05\x06" + bytes(18), b"PAR1" * 3]


@cache
def layouts() -> list[dict[str, bytes]]:
    """Files of every layout."""
    found = []
    for files, _ in (CAPTIONS | CHATS).values():
        with tempfile.TemporaryDirectory() as folder:
            found.append(collect(build(Path(folder), files)))
    with tempfile.TemporaryDirectory() as folder:
        save_conversation(Conversation().say("user", "Draw.").say("assistant", "Here.", picture_of(1)), Path(folder) / "talk")
        found.append(collect(Path(folder)))
    return found


def collect(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def spoil(files: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """The files with some cut, changed, renamed, doubled, emptied, or with rubbish beside them."""
    made = dict(files)
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(sorted(made))
        data = bytearray(made[name])
        match rng.randrange(6):
            case 0:
                made[name] = bytes(data[: rng.randint(0, len(data))])
            case 1 if data:
                at = rng.randrange(len(data))
                data[at : at + 9] = rng.randbytes(9)
                made[name] = bytes(data)
            case 2:
                made[rng.choice(NAMES)] = made.pop(name)
            case 3:
                made[rng.choice(NAMES)] = rng.choice(RUBBISH)
            case 4:
                made[name] = rng.choice(RUBBISH)
            case _:
                made[f"{rng.choice(['x', 'images', 'before'])}/{name}"] = made[name]
    folders = {str(parent) for name in made for parent in Path(name).parents}
    return {name: data for name, data in made.items() if name not in folders}


def add_links(folder: Path, rng: random.Random) -> None:
    for target in rng.sample(["..", ".", "nowhere", "a.png", "/dev/null", "/dev/zero"], rng.randint(0, 3)):
        link = folder / rng.choice(["l.png", "link", "l.txt", "images2", "x.jsonl"])
        if not os.path.lexists(link):
            link.symlink_to(target)
    if rng.random() < 0.3 and not os.path.lexists(folder / "pipe.png"):
        os.mkfifo(folder / "pipe.png")


def check(source: Path, tokens) -> None:  # noqa: F811
    """Every file is learnt or named, the sums add up, and what is learnt can be opened."""
    try:
        data = read_dataset(source)
    except ValueError as error:
        said = str(error)
        assert said.endswith(".") and "Traceback" not in said and "codec" not in said and said.encode()
        return
    rows = json.dumps(problem_rows(data), ensure_ascii=False)
    assert rows.encode() and "codec" not in rows and "Errno" not in rows
    used = {file for each in data.examples for file in (*each.files, *(picture.file for picture in each.pictures()))}
    named = {file for problem in data.problems for file in problem.files} | set(data.loose)
    for file in data.found - used - named:
        assert file.name in rows, file
    found, learnt, others, passed = data.count_files()
    assert found == learnt + others + passed and min(learnt, others, passed) >= 0
    report = describe(data, tokens, 300)
    assert report.sentences() and sum(report.files[1:]) == report.files[0] == found
    for example in data.examples:
        assert example.turns() and tokens.pack(example.turns()).ids and example.key()
    train, held = split_examples(data.examples, 0.3)
    assert len(train) + len(held) == len(data.examples)


@BUILT
@given(st.integers(0, 2**32))
def test_whatever_happens_to_a_folder_its_files_are_learnt_or_named(tokens, seed: int) -> None:  # noqa: F811
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "set"
        build(place, spoil(rng.choice(layouts()), rng))
        add_links(place, rng)
        check(place, tokens)


@BUILT
@given(st.integers(0, 2**32))
def test_whatever_happens_to_a_zip_its_files_are_learnt_or_named(tmp_path, tokens, seed: int) -> None:  # noqa: F811
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.zip"
        methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
        with zipfile.ZipFile(file, "w", rng.choice(methods)) as packed:
            for name, data in (rng.choice(layouts()) | {"b.png": encoded(2)}).items():
                packed.writestr(name.replace("/", rng.choice("/\\")), data)
        data = bytearray(file.read_bytes())
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(1, 30)] = rng.randbytes(rng.randint(1, 30))
        file.write_bytes(data[: rng.choice([len(data), rng.randint(0, len(data))])])
        check(file, tokens)
    unpacked = tmp_path / "home" / "finetune" / "unpacked"
    assert not [each for each in unpacked.glob(".*")] if unpacked.is_dir() else True
    shutil.rmtree(unpacked, ignore_errors=True)
