"""The folder of a user's files and the start of the server: one sentence for each thing that does not work, and one server for a folder."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from duogen.library.conversations import ConversationStore
from duogen.paths import check_home, data_home, lock_home
from ui.parts import address
from ui.parts.address import bracket_host, check_address, is_local, read_host, show_page

ROOT = Path(__file__).parents[2]
ELSEWHERE = "from duogen.paths import data_home; print(data_home())"


def start(home: Path | str, *flags: str) -> tuple[int, str]:
    """`python app.py`: its exit status, and what it says as an error."""
    command = [sys.executable, str(ROOT / "app.py"), "--no-browser", *flags]
    done = subprocess.run(command, env={**os.environ, "DUOGEN_HOME": str(home)}, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_relative_home_is_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", "mine")
    monkeypatch.chdir(tmp_path)
    assert data_home() == tmp_path / "mine"
    monkeypatch.chdir("/")
    child = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert data_home() == tmp_path / "mine" == Path(child.stdout.strip())


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", "~nobody-of-this-name/x")
    with pytest.raises(ValueError, match="there is no such user"):
        data_home()


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/duogen")):
        monkeypatch.setenv("DUOGEN_HOME", str(home))
        with pytest.raises(ValueError, match=f"The folder {home} cannot be used .*; set DUOGEN_HOME to a folder"):
            check_home()
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "new" / "one"))
    assert list(check_home().iterdir()) == []


@pytest.fixture(params=["read-only", "of another user"])
def locked_home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A home that this process may not write, once `obey_rights` took the right to do so all the same."""
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "read-only":
        home.chmod(0o500)
    elif os.geteuid():
        pytest.skip("only root can give a folder to another user")
    else:
        os.chown(home, 65534, 65534)
        home.chmod(0o700)
    return home


def obey_rights() -> None:
    """The rights of files hold for root too from here on, also for programs that take this process's place."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for others than root, who need none


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="rights of Linux")
@pytest.mark.parametrize("words", [["app.py", "--no-browser"], ["-m", "duogen", "ask", "hello"], ["-m", "duogen", "pull", "duogen-sketch"]])
def test_a_home_that_may_not_be_written_is_named_in_a_sentence(locked_home: Path, words: list[str]) -> None:
    environment = {**os.environ, "DUOGEN_HOME": str(locked_home)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, preexec_fn=obey_rights
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(locked_home) in done.stderr and "DUOGEN_HOME" in done.stderr and "Something went wrong" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "The folder {home} cannot be used"),
        (["--port", "70000"], "--port must be from 1 to 65535, not 70000."),
        (["--port", "0"], "--port must be from 1 to 65535, not 0."),
        (["--host", "192.0.2.7"], "192.0.2.7 is no address of this machine"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid is no address"),
        (["--host", "a" * 80], "is no address"),
    ],
)
def test_a_start_that_fails_says_one_sentence(tmp_path: Path, flags: list[str], said: str) -> None:
    home = tmp_path / "file"
    home.touch()
    status, words = start(home, *flags)
    assert status == 2 and words.count("\n") == 1 and said.format(home=home) in words


def test_a_second_server_leaves_the_first_alone(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "conversations")
    (store.folder / ".coming-now").mkdir()
    before = sorted(tmp_path.rglob("*"))
    lock = lock_home(tmp_path)
    assert lock
    status, words = start(tmp_path)
    assert status == 2 and words.count("\n") == 1 and f"Another DuoGen runs on {tmp_path}" in words and "DUOGEN_HOME" in words
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / ".server.lock"])
    lock.release()
    again = lock_home(tmp_path)
    assert again, "the folder is free when the first has ended"
    again.release()


def test_a_second_server_is_told_where_the_first_is(tmp_path: Path) -> None:
    lock = lock_home(tmp_path, "http://127.0.0.1:7861")
    assert lock
    with pytest.raises(ValueError, match=f"Another DuoGen runs on {tmp_path}, at http://127.0.0.1:7861; end it first"):
        lock_home(tmp_path, "http://127.0.0.1:7862")
    lock.release()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} of 127.0.0.1 cannot be used; choose another with --port"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)


def test_addresses_of_ipv6() -> None:
    assert [read_host(host) for host in ("[::1]", "::", "localhost")] == ["::1", "::", "localhost"]
    assert [bracket_host(host) for host in ("::1", "127.0.0.1")] == ["[::1]", "127.0.0.1"]
    assert all(map(is_local, ("::1", "127.0.0.1", "127.9.9.9", "localhost")))
    assert not any(map(is_local, ("::", "0.0.0.0", "192.168.0.7", "example.org")))


@pytest.mark.parametrize(("host", "opened"), [("::", "http://[::1]:7"), ("0.0.0.0", "http://127.0.0.1:7"), ("::1", "http://[::1]:7")])
def test_a_browser_is_opened_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch, host: str, opened: str) -> None:
    shown: list[str] = []
    monkeypatch.setattr(address.webbrowser, "open", shown.append)
    monkeypatch.setattr(address.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    show_page(host, 7)
    assert shown == [], "w3m would take the terminal"
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    show_page(host, 7)
    assert shown == [opened]
