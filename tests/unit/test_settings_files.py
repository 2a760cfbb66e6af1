"""Settings that people write by hand: recipes, users and block lists, as editors on all systems save them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from duogen.data_engine.filters import load_block_list
from duogen.finetune.config import FineTuneConfig
from ui.api.auth import Users, add_user

SAVED = {
    "Notepad": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "PowerShell": lambda text: text.encode("utf-16"),
    "Windows": lambda text: text.encode("cp1252"),
}


@pytest.mark.parametrize("editor", SAVED)
def test_files_of_every_editor_are_read(tmp_path: Path, editor: str) -> None:
    save = SAVED[editor]
    recipe, users, blocked = (tmp_path / name for name in ("recipe.json", "users.txt", "block.txt"))
    recipe.write_bytes(save(json.dumps({"mllm": {"steps": 81}}, indent=1)))
    assert FineTuneConfig.load(recipe).mllm.steps == 81
    add_user(users, "anna", "correct horse")
    users.write_bytes(save(users.read_text()))
    assert Users(users).accepts("anna", "correct horse") and not Users(users).accepts("anna", "wrong horse")
    add_user(users, "ben", "battery staple")
    assert Users(users).accepts("anna", "correct horse") and Users(users).accepts("ben", "battery staple")
    blocked.write_bytes(save("Vögel\n# a remark\ncat\n"))
    found = load_block_list(str(blocked))
    assert found is not None and found.search("zwei vögel") and found.search("a cat") and not found.search("a remark")


@pytest.mark.parametrize("data", [b"\xff\xfe\0\xd8", b"a\0b\0\0c", b"[" * 100_000])
def test_what_is_no_such_file_gets_one_sentence(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(data)
    for read in (FineTuneConfig.load, Users):
        with pytest.raises(ValueError, match="file.txt") as raised:
            read(file)
        assert "codec" not in str(raised.value)
    for read in (FineTuneConfig.load, Users, lambda file: load_block_list(str(file))):
        with pytest.raises(ValueError, match="nowhere|folder"):
            read(tmp_path / "nowhere")
        with pytest.raises(ValueError):
            read(tmp_path)
