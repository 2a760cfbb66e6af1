"""Kills, power cuts and full disks: short forms of `bench/reliability`, and a test for each fault that its long runs found."""

from __future__ import annotations

import errno
import os
import sqlite3
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as PILImage

from bench.reliability.full_disk import fill_often, small_disk
from bench.reliability.job_kills import kill_jobs
from bench.reliability.kills import kill_often, kill_starts
from bench.reliability.person import ACTS, CONTESTANTS, Person, read_home, wait_for
from bench.reliability.power_cut import STATES, Disk, cut
from duogen import conversation as conversations
from duogen.cli.main import Answer, write_answer
from duogen.conversation import Conversation, Text
from duogen.dataset.unpack import unpack_zip
from duogen.evaluate.answer_files import save_answer
from duogen.files import append_line, explain_disk, fill_folder, make_folder, move
from duogen.library.conversations import ConversationStore
from ui.parts import shared

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    figures = kill_often(tmp_path, len(ACTS), seed=3)
    assert figures["faults"] == [] and figures["claims_checked"] > 50


@linux_only
@pytest.mark.slow
def test_a_server_that_is_killed_while_it_starts_needs_no_help(tmp_path: Path) -> None:
    figures = kill_starts(tmp_path, 2, seed=5)
    assert figures["faults"] == [] and figures["kept"] > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data engine", "evaluation"])
def test_a_job_that_is_killed_makes_the_same(tmp_path: Path, name: str) -> None:
    figures = kill_jobs(tmp_path, 2, 0, [name])[name]
    assert figures["faults"] == [] and figures["kills"] == 2


@linux_only
@pytest.mark.slow
def test_a_power_cut_leaves_no_empty_file_and_loses_nothing(tmp_path: Path) -> None:
    figures = cut(tmp_path, rounds=1, seed=1, every=12)
    assert figures["faults"] == {} and figures["states_opened"] > 60


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "probe", 1):
            pass
    except OSError as error:
        pytest.skip(str(error))
    assert fill_often(tmp_path / "disk", 1, seed=0, megabytes=16)["faults"] == []


def pack(file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a/words.txt", "words")
        packed.writestr("more.txt", "more")
    return file


def fill(folder: Path) -> None:
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"weights")
    (folder / "model_index.json").write_text("{}")


def write_pair(folder: Path) -> None:
    with fill_folder(folder) as part:
        fill(part)


def move_line(old: Path, new: Path) -> None:
    append_line(old, {"a": 1})
    make_folder(new.parent)
    move(old, new)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "answer of an evaluation": lambda home: save_answer(home, "a", [Text("Here."), conversations.Image(PILImage.new("RGB", (8, 8)))]),
    "answer of ask": lambda home: write_answer(Answer([Text("Here.")]), home / "out" / "answer"),
    "merged pair": lambda home: write_pair(home / "pair"),
    "unpacked zip": lambda home: unpack_zip(pack(home.with_name("packed.zip"))),
    "votes": lambda home: (make_folder(home / "arena"), append_line(home / "arena" / "votes.jsonl", {"vote": "a"})),
    "moved": lambda home: move_line(home / "old.jsonl", home / "new" / "new.jsonl"),
}


@linux_only
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_made_as_a_whole_survives_a_power_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DUOGEN_HOME", str(home))
    disk = Disk(home)
    with disk.watch():
        FOLDERS[name](home)
        made = {file.relative_to(home): file.read_bytes() for file in home.rglob("*") if file.is_file()}
        for state in STATES:
            disk.write_state(state, tmp_path / state)
            left = {file.relative_to(tmp_path / state): file.read_bytes() for file in (tmp_path / state).rglob("*") if file.is_file()}
            assert left == made and made, state


def test_a_conversation_that_was_not_whole_yet_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, write = ConversationStore(tmp_path), conversations.write_beside

    def write_pictures(file: Path, data: bytes) -> None:
        if file.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    monkeypatch.setattr(conversations, "write_beside", write_pictures)
    with pytest.raises(OSError):
        store.save(Conversation().say("user", PILImage.new("RGB", (8, 8)), "What is this?"))
    assert store.list_entries() == [] and [file.name for file in tmp_path.iterdir()] == [".deleted"]


def test_what_a_kill_left_goes_after_a_day(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path)
    images = tmp_path / store.save(Conversation().say("user", PILImage.new("RGB", (8, 8)))).id / "images"
    for age, name in ((0, ".new.png.7.part"), (2, ".old.png.7.part")):
        (images / name).touch()
        os.utime(images / name, (time.time() - age * 86400,) * 2)
    ConversationStore(tmp_path)
    assert [file.name for file in images.glob(".*")] == [".new.png.7.part"] and len(list(images.glob("[!.]*"))) == 1


def test_a_vote_that_a_kill_cut_off_counts_once_and_keeps_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Person(tmp_path / "home", 0, lambda told: None)
    made = before.rounds.start(Conversation().say("user", "Draw a boat."), CONTESTANTS)
    wait_for(lambda: made.phase == "ready")
    monkeypatch.setattr(before.gallery, "add", lambda *given: sys.exit("killed"))
    with pytest.raises(SystemExit):
        before.rounds.vote(made, "a")
    after = Person(tmp_path / "home", 1, lambda told: None)
    again = after.rounds.find(made.id)
    assert again is not None and (again.phase, again.vote) == ("voted", "a")
    with pytest.raises(ValueError, match="no two answers"):
        after.rounds.vote(again, "b")
    found, faults = read_home(tmp_path / "home")
    assert faults == [] and found[f"vote/{made.seed}"] == 1 and sum(key.startswith("picture/") for key in found) == 4
    assert list(after.rounds.waiting.iterdir()) == []


FULL = "The disk is full; make room on it, and try again."
NO_CHANGES = "The disk takes no changes any more; see that it has room and can be written, and try again."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (OSError(errno.EROFS, "Read-only file system"), NO_CHANGES),
        (sqlite3.OperationalError("database or disk is full"), FULL),
        (sqlite3.OperationalError("disk I/O error"), NO_CHANGES),
        (sqlite3.OperationalError("no such table: words"), ""),
        (OSError(errno.EACCES, "Permission denied"), ""),
    ],
)
def test_the_page_says_what_to_do_about_a_disk(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(shared.gr, "Warning", lambda words, **_: shown.append(words))
    monkeypatch.setattr(shared, "translate_html", str)
    monkeypatch.setattr(shared, "translate", str)

    def act():
        raise error
        yield

    assert explain_disk(error) == said
    if said:
        assert len(list(shared.catch_refusals(act(), None))) == 1 and shown == [said]  # type: ignore[arg-type]
    else:
        with pytest.raises(type(error)):
            list(shared.catch_refusals(act(), None))  # type: ignore[arg-type]
