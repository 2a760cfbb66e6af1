"""For all tests: what each worker has once, and the marks that a test gets from the fixtures that it uses."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.browser import Server

# Tests' models are so small that more threads only wait for each other; the servers and commands that tests start run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
MARKED = {  # a mark, and the fixtures whose users have it
    "browser": {"browser", "tab"},
    "training": {"as_before"},
    "slow": {"stand_in_server", "tiny_server", "server", "guarded", "processes", "adapter"},
}


def pytest_configure(config: pytest.Config) -> None:
    """The home folder of whoever runs the tests stays as it was. All workers share another one: the bundled pair is assembled once."""
    if "DUOGEN_HOME" not in os.environ:
        os.environ["DUOGEN_HOME"] = config.borrowed_home = tempfile.mkdtemp(prefix="duogen-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := getattr(config, "borrowed_home", None):
        shutil.rmtree(home, ignore_errors=True)
        del os.environ["DUOGEN_HOME"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before `-m` chooses."""
    for item in items:
        for mark, fixtures in MARKED.items():
            if fixtures & set(getattr(item, "fixturenames", ())):
                item.add_marker(mark)


@pytest.fixture
def as_before():
    """For tests that train: the loop takes over the signals that stop it, and accelerate keeps its state for the whole process."""
    from accelerate.state import AcceleratorState  # only they need it

    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """One for all tests of a worker. It has an event loop in this thread, so `asyncio.run` needs another one."""
    from playwright.sync_api import sync_playwright

    from tests.support.browser import CHROMIUM, FLAGS, SHOTS

    SHOTS.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """For fixtures: whether the test has failed."""
    report = yield
    item.failed = getattr(item, "failed", False) or report.failed
    return report


@pytest.fixture
def tab(browser, request: pytest.FixtureRequest) -> Iterator[Callable]:
    """Opens a page at an address; whatever the page's own code raises fails the test. Where a test fails, it prints what the pages show."""
    from tests.support.waiting import patience

    contexts, errors = [], []

    def open_tab(address: str, **look):
        contexts.append(browser.new_context(viewport=look.pop("viewport", {"width": 1100, "height": 820}), **look))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * patience())
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#box textarea")
        return page

    yield open_tab
    for context in contexts:
        if request.node.failed:
            print("\n\n".join(page.inner_text("body") for page in context.pages))
        context.close()
    assert not errors


@pytest.fixture(scope="session")
def stand_in_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests of a worker that need no real pair: the engine is `stand_in.py`. Tests take `fast`."""
    from tests.support.browser import stand_in

    server = stand_in(tmp_path_factory.mktemp("home"))
    yield server
    server.end()


@pytest.fixture
def fast(stand_in_server: Server, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The worker's server with the stand-in, and nothing of earlier tests in its home."""
    from tests.support.browser import delete_everything

    delete_everything(stand_in_server.home)
    yield stand_in_server
    if request.node.failed:  # an answer that it left half painted would hold up those of all later tests
        (stand_in_server.home / "go").touch()
        time.sleep(1)


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests of a worker that need a real pair which answers at once, whatever it says."""
    from tests.support.browser import Server
    from tests.support.tiny import served_pair

    home = tmp_path_factory.mktemp("home")
    server = Server(home, "--pair", str(served_pair(home / "tiny")), "--device", "cpu")
    yield server
    server.end()


@pytest.fixture
def tiny(tiny_server: Server) -> Server:
    """The worker's server with a tiny pair, and nothing of earlier tests in its home."""
    from tests.support.browser import delete_everything

    delete_everything(tiny_server.home)
    return tiny_server
