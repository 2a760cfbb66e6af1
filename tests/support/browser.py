"""The page as a person has it: a server of its own process, and what a person does in a browser window. Fixtures: `conftest.py`."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError, expect

from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery, PictureQuery
from duogen.library.references import ReferenceStore
from tests.support.waiting import patience

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "tests" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser_only = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
PRELOADED = ["ui.page", "ui.api.openai", "ui.api.endpoint", "tests.support.browser"]
IF_USED = ["duogen.engine", "duogen.finetune.run", "tests.models.test_finetune"]
expect.set_options(timeout=1000 * patience())


def fork_context() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported all that these tests need, and used nothing of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED + [name for name in IF_USED if name in sys.modules])  # once for a worker
    return context


def run_program(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Be `python COMMAND`, with an environment of its own; all that it says goes into `log`."""
    with log.open("w") as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = command
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")


class Server:
    """`python app.py`, or another program that takes its flags, on a free port.

    Args:
        fresh: in a Python of its own, as a person starts it; else in a copy of one that has imported everything already, which is
            there in no time, but has read the environment of the tests.
    """

    def __init__(self, home: Path, *flags: str, program: str = "app.py", fresh: bool = False) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.home, self.log = home, home / "app.log"
        self.address = f"http://127.0.0.1:{self.port}/"
        self.log.touch()
        given = [program, "--port", str(self.port), "--no-browser", *flags], {**os.environ, "DUOGEN_HOME": str(home)}, self.log
        self.process = (multiprocessing.get_context("spawn") if fresh else fork_context()).Process(target=run_program, args=given)
        self.process.start()
        until = time.monotonic() + patience()
        while not self._answers():
            if not self.process.is_alive() or time.monotonic() > until:
                self.end()
                raise AssertionError(f"The server does not start: {self.log.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(self.address, timeout=30).status == 200
        except OSError:
            return False

    def end(self) -> None:
        """At once, as a power cut does it; `leave` is how a service manager does it."""
        self.process.kill()
        self.process.join()

    def leave(self) -> int | None:
        """Asked to go, as by Ctrl+C or a service manager; returns its exit status."""
        self.process.terminate()
        self.process.join(patience())
        return self.process.exitcode


def stand_in(home: Path, *flags: str, seconds: float = 0.05, fresh: bool = False) -> Server:
    """A server whose answers come from `stand_in.py`, where a picture takes so many seconds."""
    return Server(home, "--seconds", str(seconds), *flags, program="tests/support/stand_in.py", fresh=fresh)


def serve_klein(home: Path) -> Server:
    """A server with a tiny diffusers pair, which paints any shape."""
    from tests.support import public  # imports torch

    painter, mllm = public.klein(home / "klein"), public.qwen3_mllm(home / "mllm")
    return Server(home, "--pair", str(painter), "--mllm", str(mllm), "--device", "cpu", "--painter-precision", "fp32")


def delete_everything(home: Path) -> None:
    """Delete what a person made on a running server, as another window would."""
    store, gallery = ConversationStore(home / "conversations"), Gallery(home)
    for entry in store.list_entries():
        store.delete(entry.id)
    while entries := gallery.find(PictureQuery())[0]:
        for entry in entries:
            gallery.delete(entry.id)
    gallery.delete_freeable()
    references = ReferenceStore(home / "references")
    for each in references.list_references():
        references.delete(each.about.name)
    for file in (home / "go", home / "arena" / "votes.jsonl"):
        file.unlink(missing_ok=True)


def fix_seed(page, seed: int) -> None:
    """In the drawer, which is open."""
    page.fill("#options input[placeholder=random], #options textarea[placeholder=random]", str(seed))


def send(page, words: str) -> None:
    page.fill("#box textarea", words)
    page.keyboard.press("Enter")


def act(page, command: str, nth: int = 0, who: str = "bot") -> None:
    """Press a small button of the chat, by its command; where it is behind "More", that is opened first."""
    button = page.locator(f"#talk .{who} button.act[value^='{command} ']").nth(nth)
    menu = button.locator("xpath=ancestor::details")
    if menu.count():
        menu.locator("summary").focus()  # which shows it where there is no mouse
        page.keyboard.press("Enter")
    else:
        button.focus()
    button.click()


ANSWERED = """() => !document.querySelector('#box .stop-button')
    && [...document.querySelectorAll('#talk .message-row')].at(-1)?.matches('.bot-row:has(.chat-actions)')"""


SEEN = """() => [
    ...[...document.querySelectorAll('#talk .message-row, .toast-text, #status')].slice(-4).map(each => each.innerText.slice(0, 200)),
    ...performance.getEntriesByType('resource').filter(each => each.name.includes('/queue/')).slice(-8).map(each =>
        `${each.name.split('/').at(-1).slice(0, 9)} ${each.responseStatus} ${Math.round(each.startTime)}+${Math.round(each.duration)} ms`),
    `now ${Math.round(performance.now())} ms`,
].join('; ')"""


def wait_until_answered(page) -> None:
    """Until the newest answer has its buttons and nothing is left to stop: the buttons alone may be those of the answer before."""
    try:
        page.wait_for_function(ANSWERED)
    except TimeoutError as error:
        raise AssertionError(f"No answer came. The page shows, and has asked for: {page.evaluate(SEEN)}") from error


def loaded_pictures(page, least: int, inside: str = ".bot") -> int:
    """How many painted or brought pictures the browser has really decoded, once there are at least so many."""
    shown = f"[...document.querySelectorAll('#talk {inside} img.picture')]"
    count = f"{shown}.filter(img => img.naturalWidth > 0 && !img.src.endsWith('.svg')).length"
    page.wait_for_function(f"{count} >= {least}")
    return page.evaluate(count)


def overflow_width(page) -> int:
    """By how many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


SETTLED = """async () => {
    const frames = async () => { for (let n = 0; n < 3; n++) await new Promise(done => requestAnimationFrame(done)); };
    const ends = each => each.effect.getComputedTiming().endTime !== Infinity;
    await frames();
    for (;;) {
        const moving = document.getAnimations().filter(each => each.playState === 'running' && ends(each));
        if (!moving.length) break;
        await Promise.all(moving.map(each => each.finished.catch(() => 0)));
        await frames();
    }
}"""


def settle(page) -> None:
    """Wait until nothing slides or fades any more; what turns for ever may."""
    page.evaluate(SETTLED)


def open_part(page, button: str, control: str) -> None:
    """Open a tab or an accordion by its button, and wait until what is typed into its controls stays.

    Gradio 6 writes the first values of the controls once more, in the second frame after they are there. Nobody is so fast but a test.
    """
    page.click(button)
    page.wait_for_selector(control)
    settle(page)
