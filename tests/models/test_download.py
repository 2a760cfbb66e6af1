"""Fetching pairs from a hub on 127.0.0.1: all of it, after every kind of accident, and by a worker that outlives who started it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file

from duogen.cli.main import main
from duogen.hub import download, fetching
from duogen.hub.catalogue import entries, find, find_download, find_folders, is_installed, list_missing, lora_file
from tests.support.hub import COMMIT, Hub, served
from tests.support.waiting import until

BIG = 3_000_000
REPO = "someone/painter"


def pipeline(folder: Path) -> Path:
    """The shape of a pipeline's repository; the weights are noise, and some files are not wanted."""
    for name in ("transformer", "vae"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    save_file({"a": torch.rand(BIG // 4)}, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({"b": torch.rand(10)}, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({"a": torch.rand(10)}, folder / "all-in-one.safetensors")
    (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "code.py").write_text("print('no')")
    (folder / "model_index.json").write_text('{"_class_name": "X", "transformer": ["diffusers", "T"], "vae": ["diffusers", "V"]}')
    return folder


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    folder = pipeline(tmp_path_factory.mktemp("repo") / "painter")
    pickles = tmp_path_factory.mktemp("pickles")
    (pickles / "pytorch_model.bin").write_bytes(b"pickle")
    klein = entries()["flux2-klein-4b"]
    repos = {REPO: folder, "someone/pickles": pickles, **{source.repo: folder for source in klein.sources}}
    with served(repos) as hub:
        yield hub


@pytest.fixture
def hub(online: Hub, tmp_path, monkeypatch) -> Hub:
    online.calm()
    cache = tmp_path / "hub"
    for name, value in {
        "HF_ENDPOINT": online.address, "HF_HUB_CACHE": str(cache), "DUOGEN_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", online.address)
    address = online.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return online


def fetched(id: str = REPO) -> download.Progress:
    """As the worker does it, in this process: which exit status it has, and what it leaves."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        download.work(id)
    finally:
        signal.signal(signal.SIGTERM, before)
    return download.status(id)


def test_everything_needed_comes_and_nothing_else(hub) -> None:
    seen: list[float] = []
    fetching.Fetch(find_download(REPO), say=lambda now: seen.append(now.done)).run()
    there = find(REPO).folder
    names = sorted(file.relative_to(there).as_posix() for file in there.rglob("*") if file.is_file())
    model = "diffusion_pytorch_model.safetensors"
    assert names == ["model_index.json", *[f"{part}/{name}" for part in ("transformer", "vae") for name in ("config.json", model)]]
    assert there.name == COMMIT and (there / "transformer" / model).is_symlink()
    assert seen[0] == 0 and seen == sorted(seen) and seen[-1] > BIG
    assert "Bearer hf_test" in hub.tokens
    hub.asked.clear()
    assert fetched().state == "done" and hub.asked == [], "what is here is not fetched again"


def test_it_goes_on_where_it_was_cut(hub) -> None:
    hub.cut = 1_000_000
    assert fetched().state == "done"
    name = "transformer/diffusion_pytorch_model.safetensors"
    starts = [int(span.removeprefix("bytes=").rstrip("-") or 0) for asked, span in hub.asked if asked == name]
    assert starts[0] == 0 and 0 < starts[-1] <= 1_000_000, "the rest only"


def test_a_damaged_file_is_thrown_away_and_fetched_again(hub) -> None:
    hub.damage = {"vae/diffusion_pytorch_model.safetensors"}
    assert "came damaged" in fetched().message
    hub.damage.clear()
    hub.asked.clear()
    assert fetched().state == "done"
    assert [name for name, _ in hub.asked] == ["vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"/api/": (401, "GatedRepo")}, "agree to its conditions"),
        ({"/api/": (403, "GatedRepo")}, "hf auth login"),
        ({"/api/": (401, "RepoNotFound")}, "no repository"),
        ({"/resolve/": (503, "")}, "error (503)"),
        ({"/resolve/": (403, "")}, "log in"),
    ],
)
def test_a_refusal_is_one_sentence(hub, refuse, words, monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.refuse = refuse
    now = fetched()
    assert now.state == "failed" and words in now.message and "\n" not in now.message
    hub.refuse = {}
    assert fetched().state == "done"


@pytest.mark.parametrize("place", ["/api/", "/resolve/"])
def test_too_many_requests_are_waited_for_and_then_told(hub, place, monkeypatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.refuse = {place: (429, "")}
    assert "too many requests" in fetched().message
    hub.refuse, hub.times = {"/resolve/": (429, "")}, 2
    assert fetched().state == "done", "a hub that asks to wait twice is waited for"


def test_a_slow_link_shows_how_far_it_is(hub, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "WRITE_SECONDS", 0.0)
    hub.pace = 0.02  # 3.3 MB/s
    seen: list[tuple[int, float, str]] = []
    fetching.Fetch(find_download(REPO), say=lambda now: seen.append((now.done, now.speed, now.line()))).run()
    assert len({done for done, _, _ in seen}) > 20, "it jumps"
    steady = [(speed, line) for done, speed, line in seen if BIG / 2 < done < BIG]
    assert steady and all(1e5 < speed < 4e6 and "MB/s, " in line and line.endswith(" left.") for speed, line in steady)


def test_a_link_that_goes_dead_is_taken_up_again(hub, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.stall = 1_000_000
    assert fetched().state == "done"
    starts = [span for name, span in hub.asked if name == "transformer/diffusion_pytorch_model.safetensors"]
    assert len(starts) == 2 and 0 < int(starts[1].removeprefix("bytes=").rstrip("-")) <= 1_000_000, "the rest only"


def test_a_dead_link_can_be_paused(hub) -> None:
    hub.left = 1
    download.start(REPO)
    until(lambda: len(hub.asked) == 2)
    download.pause(REPO)
    until(lambda: not download.is_running(REPO))
    assert download.status(REPO).state == "paused"


def test_a_proxy_is_asked_instead(hub, monkeypatch) -> None:
    for name, value in (("HF_ENDPOINT", "http://hub.invalid"), ("HTTP_PROXY", hub.address), ("NO_PROXY", "")):
        monkeypatch.setenv(name, value)
    download.start(REPO)
    until(lambda: not download.is_running(REPO))
    assert download.status(REPO).state == "done" and hub.hosts == {"hub.invalid"}


@pytest.mark.parametrize(
    ("id", "words"),
    [("someone/nothing", "no repository"), (f"{REPO}@v9", "no revision v9"), ("someone/pickles", "can run code")],
)
def test_what_is_not_there_or_not_safe(hub, id, words) -> None:
    assert words in fetched(id).message


def test_no_network_and_offline(hub, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in fetched().message
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in fetched().message


def test_a_full_disk_is_told_before_anything_comes(hub, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda where: shutil._ntuple_diskusage(10, 9, 1))
    assert "GB are free" in fetched().message and hub.asked == []
    monkeypatch.undo()
    assert "disk is full" in fetching.explain_failure(OSError(28, "No space left"), find_download(REPO))


def test_a_disk_that_fills_up_on_the_way_keeps_what_came(hub, monkeypatch) -> None:
    name, plain = "transformer/diffusion_pytorch_model.safetensors", fetching.Fetch._count_bytes

    def count_bytes(self, wanted, count):
        plain(self, wanted, count)
        if wanted.name == name and self.progress.files[fetching.label(wanted)][1] > BIG / 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching.Fetch, "_count_bytes", count_bytes)
    now = fetched()
    assert now.state == "failed" and "The disk is full" in now.message and BIG / 2 < now.done < BIG
    monkeypatch.setattr(fetching.Fetch, "_count_bytes", plain)
    hub.asked.clear()
    assert fetched().state == "done"
    (start,) = [span for asked, span in hub.asked if asked == name]
    assert int(start.removeprefix("bytes=").rstrip("-")) > BIG / 3, "the rest only"


def test_a_few_step_lora_is_fetched_checked_and_removed_with_its_pair(hub, tmp_path, capsys) -> None:
    pair = entries()["qwen-image-edit-2511"]
    preset = pair.presets[0]
    (tmp_path / "lora").mkdir()
    save_file({"a": torch.rand(1000)}, tmp_path / "lora" / preset.file)
    (tmp_path / "lora" / "another.safetensors").write_bytes(b"not wanted")
    repos = {pair.sources[0].repo: hub.repos[REPO], preset.repo: tmp_path / "lora"}
    hub.repos.update(repos)
    assert main(["pull", pair.id]) == 0 and is_installed(pair)
    assert main(["pull", pair.id, "--preset", "sideways"]) == 2 and "lightning-4" in capsys.readouterr().err
    assert main(["pull", pair.id, "--preset", preset.id]) == 0
    file = lora_file(preset)
    assert not (file.parent / "another.safetensors").exists()
    file.resolve().write_bytes(b"x")
    assert download.verify(pair.id) == [preset.file]
    assert main(["pull", pair.id, "--preset", preset.id]) == 0 and lora_file(preset).stat().st_size > 4000
    assert main(["remove", pair.id]) == 0
    with pytest.raises(ValueError, match="not on this machine yet"):
        lora_file(preset)
    for repo in repos:
        del hub.repos[repo]


def test_weights_in_parts_are_not_here_before_all_are(tmp_path) -> None:
    """Whoever looks while the first part has come must not open it."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.rand(2)}, tmp_path / "model-00001-of-00002.safetensors")
    assert list_missing(tmp_path) == ["model.safetensors.index.json"]
    parts = {name: f"model-0000{name}-of-00002.safetensors" for name in "12"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert list_missing(tmp_path) == [parts["2"]]
    save_file({"b": torch.rand(2)}, tmp_path / parts["2"])
    assert list_missing(tmp_path) == []


def test_a_worker_is_paused_killed_and_goes_on(hub, monkeypatch) -> None:
    hub.pace = 0.1
    download.start(REPO)
    until(lambda: (download.status(REPO) or download.Progress("")).done > 100_000)
    now = download.status(REPO)
    assert now.state == "running" and now.total > BIG
    download.start(REPO)  # a second press does nothing
    download.pause(REPO)
    until(lambda: not download.is_running(REPO))
    paused = download.status(REPO)
    assert paused.state == "paused" and 100_000 < paused.done < BIG and "Paused at" in paused.line()
    download.start(REPO)
    until(lambda: download.status(REPO).done > paused.done + 100_000)
    kill(REPO)
    until(lambda: not download.is_running(REPO))
    assert download.status(REPO).state == "paused", "a worker that was killed can be gone on with"
    hub.pace = 0.0
    assert main(["pull", REPO]) == 0
    assert list_missing(find(REPO).folder) == []


def kill(id: str) -> None:
    """The worker of `id`, by the command line it was started with."""
    for process in Path("/proc").glob("[0-9]*"):
        words = (process / "cmdline").read_bytes().split(b"\0") if (process / "cmdline").exists() else []
        if b"duogen.hub.download" in words and id.encode() in words:
            os.kill(int(process.name), signal.SIGKILL)


def test_a_worker_waits_for_who_only_looks(hub) -> None:
    """To see whether a worker runs is to take its lock for a moment, longer on a busy machine: the worker must not give up then."""
    lock = FileLock(download._lock("flux2-klein-4b").lock_file, thread_local=False)
    lock.acquire(timeout=0)
    threading.Timer(0.3, lock.release).start()
    assert download.work("flux2-klein-4b") == 0
    assert is_installed(entries()["flux2-klein-4b"])


def test_pull_verify_and_remove_from_the_command_line(hub, capsys) -> None:
    assert main(["pull", "flux2-klein-4b"]) == 0
    assert is_installed(entries()["flux2-klein-4b"])
    weights = find_folders(entries()["flux2-klein-4b"])["painter"] / "vae" / "diffusion_pytorch_model.safetensors"
    weights.resolve().write_bytes(b"x")
    capsys.readouterr()
    assert main(["pull", "flux2-klein-4b", "--verify"]) == 0
    assert "vae/diffusion_pytorch_model.safetensors" in capsys.readouterr().out
    assert download.verify("flux2-klein-4b") == []
    assert main(["remove", "flux2-klein-4b"]) == 0 and "free again" in capsys.readouterr().out
    assert not is_installed(entries()["flux2-klein-4b"])
    assert main(["remove", "flux2-klein-4b"]) == 2
    assert main(["remove", "duogen-sketch"]) == 2
    assert main(["pull", "nonsense"]) == 2
