"""The Models tab: what it says of each pair, and a pair fetched, opened, asked and removed in a browser against a hub on 127.0.0.1."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from playwright.sync_api import expect

from duogen.cli.main import main
from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done, Failed
from duogen.hub.catalogue import entries, is_installed
from duogen.hub.download import is_running
from duogen.library.conversations import ConversationStore
from duogen.models.guardrail import Guardrail
from duogen.options import LoadOptions
from tests.support import public
from tests.support.browser import SHOTS, Server, browser_only, fix_seed, loaded_pictures, open_part, overflow_width, send
from tests.support.hub import Hub, served
from tests.support.tiny import served_pair
from tests.support.waiting import until
from ui.page import Page
from ui.parts.loading import Loading
from ui.tabs.models import OTHER, card_html, list_choices


def test_a_card_says_what_a_pair_costs_and_asks() -> None:
    text = card_html(entries()["cosmos-predict2.5-2b"])
    conditions = ("NVIDIA Open Model License", "cosmos_guardrail is not installed")
    for words in (*conditions, "GB in bf16", "GB in nf4", "GB are free on", "diffusers/base/post-trained"):
        assert words in text
    assert ("DuoGen Sketch · bundled", "duogen-sketch") in list_choices()


def test_the_tab_follows_what_is_chosen(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loading = Loading()
    loading.finished.set()
    tab = Page(loading, ConversationStore(tmp_path / "conversations"), tmp_path / "shown").models
    values = {tab.choice: "cosmos-predict2.5-14b", tab.name: "", tab.mllm: "", **{each: each.value for each in tab.load.values()}}
    window = types.SimpleNamespace(session_hash="window")
    shown = tab.show(values, window)
    assert "14B" in shown[tab.description] and "On this machine:" in shown[tab.plan]
    assert shown[tab.pull].visible and not shown[tab.use].interactive and not shown[tab.other].visible
    folder = public.cosmos(tmp_path / "unseen")
    values |= {tab.choice: OTHER, tab.name: str(folder), tab.load["picture_side",]: 64}
    shown = tab.show(values, window)
    assert tab.plan in tab._drop_if_late(values, window, shown)
    for later in ({tab.choice: "duogen-sketch"}, {tab.load["picture_side",]: 128}):  # chosen while the folder was looked up
        tab.latest["window"] = tab._choices(values | later)
        assert tab.plan not in tab._drop_if_late(values, window, shown)
    assert "64 x 32 px" in shown[tab.plan] and shown[tab.use].interactive and not shown[tab.pull].visible
    switched = []
    monkeypatch.setattr(loading, "switch", lambda *given: switched.append(given))
    tab._use(values)
    assert switched[0][0] == str(folder) and switched[0][2].picture_side == 64
    values[tab.name] = "no such thing"
    assert "neither in the catalogue" in tab.show(values, window)[tab.description]


def test_what_lacks_of_a_choice_can_be_fetched(tmp_path, monkeypatch) -> None:
    """A few-step LoRA of a pair that is here, and a language model for a painter's folder."""
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loading, pair = Loading(), entries()["qwen-image-edit-2511"]
    loading.finished.set()
    tab = Page(loading, ConversationStore(tmp_path / "conversations"), tmp_path / "shown").models
    values = {tab.choice: pair.id, tab.name: "", tab.mllm: "", **{each: each.value for each in tab.load.values()}}
    started: list = []
    monkeypatch.setattr("duogen.hub.download.start", lambda *given: started.append(given))
    public.in_cache(tmp_path / "hub", pair.sources[0].repo, "main", public.qwen_edit)
    shown = tab.render_progress(values)
    assert shown[tab.use].interactive and shown[tab.remove].visible and not shown[tab.pull].visible
    values[tab.load["preset",]] = pair.presets[0].id
    shown = tab.render_progress(values)
    assert not shown[tab.use].interactive and shown[tab.pull].visible
    tab._pull(values)
    assert started == [(pair.id, pair.presets[0].id)]
    public.in_cache(tmp_path / "hub", pair.presets[0].repo, "main", lambda there: (there / pair.presets[0].file).write_bytes(b"x"))
    assert tab.render_progress(values)[tab.use].interactive
    painter, mllm = public.klein(tmp_path / "painter"), "someone/mllm"
    values |= {tab.choice: OTHER, tab.name: str(painter), tab.mllm: mllm, tab.load["preset",]: ""}
    assert tab.render_progress(values)[tab.pull].visible and not tab.render_progress(values)[tab.use].interactive
    tab._pull(values)
    assert started[1:] == [(mllm, "")]
    public.in_cache(tmp_path / "hub", mllm, "main", public.qwen3_mllm)
    shown = tab.render_progress(values)
    assert shown[tab.use].interactive and not shown[tab.pull].visible
    switched: list = []
    monkeypatch.setattr(loading, "switch", lambda *given: switched.append(given))
    tab._use(values)
    assert switched[0][:2] == (str(painter), mllm)


def test_another_pair_is_opened_behind_the_answers(tmp_path) -> None:
    folder = public.cosmos(tmp_path / "unseen")
    loading = Loading()
    loading.finished.set()
    load = LoadOptions(device="cpu", precision="fp32", picture_side=64)
    loading._switch(str(folder), None, load)
    assert loading.engine.about["title"] == "unseen" and loading.words == "Ready: unseen."
    loading._switch(str(tmp_path / "nothing"), None, load)
    assert loading.engine.about["title"] == "unseen" and "is not a pair" in loading.words and "is open again" in loading.words


def test_a_guardrail_refuses_words_and_pictures(tmp_path, monkeypatch) -> None:
    load = LoadOptions(device="cpu", precision="fp32", picture_side=64)
    engine = Engine.open(public.cosmos(tmp_path / "cosmos"), load=load)
    from tests.models.test_public import options, script
    from tests.support.tiny import END

    seen: list = []
    checker = types.SimpleNamespace(
        to=lambda device: checker,
        check_text_safety=lambda words: "bad" not in words,
        check_video_safety=lambda video: seen.append(video),
    )
    engine.guard = Guardrail(checker, "cpu")
    for words, reason in (("a bad thing", "words"), ("a boat", "refuses this picture;")):
        script(monkeypatch, engine.tokens, "<picture>", words, "</picture>", END)
        failed = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
        assert isinstance(failed, Failed) and reason in failed.message
    assert seen[0].shape == (1, 32, 64, 3)
    checker.check_video_safety = lambda video: np.zeros_like(video)
    script(monkeypatch, engine.tokens, "<picture>", "a boat", "</picture>", END)
    done = list(engine.answer(Conversation().say("user", "Draw"), options()))[-1]
    assert isinstance(done, Done) and done.conversation.path()[-1].images()[0].picture.getextrema() == ((0, 0),) * 3


def test_a_folder_never_seen_answers_on_the_command_line(tmp_path, capsys) -> None:
    PILImage.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    folder, out = public.cosmos(tmp_path / "unseen"), tmp_path / "out"
    flags = ["--picture-side", "64", "--steps", "2", "--temperature", "1", "--top-p", "1", "--max-tokens", "200", "--seed", "3"]
    said = ["ask", "Draw a house", "--image", str(tmp_path / "red.png"), "--pair", str(folder), "--device", "cpu", "--out", str(out)]
    assert main([*said, *flags]) == 0
    assert "[picture 1: 01.png]" in capsys.readouterr().out
    with PILImage.open(out / "01.png") as picture:
        assert max(picture.size) == 64


COMMON = {"README.md", "config.json"}  # names that both repositories have
KLEIN = "#models-choice label:has-text('FLUX.2 klein 4B')"


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    """The repositories of a pair of the catalogue, as large as a test can bear."""
    home, write = tmp_path_factory.mktemp("repositories"), {"painter": public.klein, "mllm": public.qwen3_mllm}
    with served({source.repo: write[source.role](home / source.role) for source in entries()["flux2-klein-4b"].sources}) as hub:
        yield hub


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory) -> Iterator[Path]:
    """Data and hub cache of servers that see no other hub."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"}.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("DUOGEN_HOME", str(home))
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
        patch.delenv("HF_TOKEN", raising=False)
        yield home


def start_server(home: Path) -> Server:
    return Server(home, "--device", "cpu", "--pair", str(served_pair(home / "tiny")), fresh=True)


def open_models(tab: Callable, server: Server, **look: Any) -> Any:
    page = tab(server.address, **look)
    page.wait_for_selector("#status:has-text('Ready: Tiny')")
    open_part(page, "button[role=tab]:has-text('Models')", "#models-choice")
    return page


def shrink_pictures(page) -> None:
    """What a tiny pair paints is no better when it is large."""
    open_part(page, "#models-load button.label-wrap", "#models-load input[type=number]")
    page.fill("#models-load input[type=number]", "64")
    page.keyboard.press("Tab")
    page.wait_for_selector("#models-plan:has-text('64 x ')")
    page.click("#models-load button.label-wrap")


def ask(page, words: str) -> None:
    """Ask in the chat until an answer has words and a picture: an untrained model now and then wants none."""
    page.click("button[role=tab]:has-text('Chat')")
    page.click("#drawer")
    for name, value in (("Temperature", "1"), ("Top p", "1"), ("Max images", "2"), ("Steps", "2")):
        page.fill(f"#options input[type=number][aria-label$='{name}']", value)
        page.keyboard.press("Tab")
    page.click("#options .toggle-button")
    before = page.locator("#talk .bot img.picture").count()
    for seed in range(1, 13):
        page.click("#drawer")
        fix_seed(page, seed)
        page.click("#options .toggle-button")
        rows = page.locator("#talk .bot").count()
        send(page, words)
        page.wait_for_function(f"document.querySelectorAll('#talk .bot').length > {rows}")
        page.wait_for_selector("#box .submit-button")
        if page.locator("#talk .bot img.picture").count() > before:
            break
    page.wait_for_function("[...document.querySelectorAll('#talk .bot img.picture')].every(img => img.complete)")
    said, notes = ("".join(page.locator(f"#talk .bot{part}").all_inner_texts()) for part in ("", " small"))
    assert loaded_pictures(page, before + 1) > before and "<pic" not in said and len(said.strip()) > len(notes)


@browser_only
def test_a_pair_is_fetched_opened_asked_and_removed(hub: Hub, home: Path, tab: Callable, tmp_path) -> None:
    server = start_server(home)
    try:
        fetch_a_part(hub, server, tab)
    finally:
        server.end()
    assert len({name for name, _ in hub.asked[9:]}) == 1 and not is_running("flux2-klein-4b")
    server = start_server(home)  # which knows where the one before stopped
    try:
        page = fetch_the_rest(hub, server, tab)
        shrink_pictures(page)
        page.screenshot(path=SHOTS / "models-here.png")
        page.click("#models-use")
        page.wait_for_selector("#models-status:has-text('Open now: FLUX.2 klein 4B + Qwen3-VL-4B. Attention kernel: ')")
        ask(page, "Draw a house")
        page.screenshot(path=SHOTS / "models-answer.png")
        another_folder(page, public.cosmos(tmp_path / "unseen"))
        ask(page, "And now?")
        page.screenshot(path=SHOTS / "models-second-answer.png")
        remove_it(page)
        assert not is_installed(entries()["flux2-klein-4b"]) and not list((home / "hub").glob("models--*"))
        open_on_phone(tab, server)
        assert server.leave() == 0
    finally:
        server.end()


def fetch_a_part(hub: Hub, server: Server, tab: Callable) -> None:
    """Look at the card, begin, close the page and pause in another; the hub sends nine files and keeps the tenth back."""
    hub.left = 9
    page = open_models(tab, server)
    page.click(KLEIN)  # while the pair before is still being looked up
    page.wait_for_selector("#models-card:has-text('Qwen3-VL')")
    for part in ("Apache-2.0", "24.9 GB", "GB are free on the disk"):
        expect(page.locator("#models-card")).to_contain_text(part)
    page.wait_for_selector("#models-plan:has-text('GB of')")
    expect(page.locator("#models-use")).to_be_disabled()
    page.screenshot(path=SHOTS / "models-card.png")
    page.click("#models-pull")
    page.wait_for_selector("#models-status:has-text('MB/s')")
    page.wait_for_selector("#models-files progress")
    page.screenshot(path=SHOTS / "models-download.png")
    page.close()
    page = open_models(tab, server)
    page.click(KLEIN)
    page.wait_for_selector("#models-status:has-text('MB/s')")
    until(lambda: len(hub.asked) >= 10)
    page.click("#models-pause")
    page.wait_for_selector("#models-status:has-text('Paused at')")


def fetch_the_rest(hub: Hub, server: Server, tab: Callable) -> Any:
    hub.left = -1
    before, asked = [name for name, _ in hub.asked[:9]], len(hub.asked)
    page = open_models(tab, server)
    page.click(KLEIN)
    page.click("#models-pull:has-text('Go on')")
    page.wait_for_selector("#models-verify")
    assert not set(before) & {name for name, _ in hub.asked[asked:]} - COMMON, "what was here came once more"
    page.click("#models-verify")
    page.wait_for_selector("#models-status:has-text('All files are what the hub has')")
    return page


def remove_it(page) -> None:
    page.click("button[role=tab]:has-text('Models')")
    page.click(KLEIN)
    page.wait_for_selector("#models-plan:has-text('as measured here')")
    page.click("#models-remove")
    page.click("#models-sure")
    page.wait_for_selector("#models-status:has-text('are free again')")
    page.wait_for_selector(f"{KLEIN}:has-text('25 GB')")


def another_folder(page, folder: Path) -> None:
    """Type one in and open it; the conversation stays."""
    open_part(page, "button[role=tab]:has-text('Models')", "#models-choice")
    page.click("#models-choice label:has-text('Another folder')")
    page.fill("#models-name textarea, #models-name input", str(folder))
    page.keyboard.press("Enter")
    page.wait_for_selector("#models-card:has-text('A folder.')")
    page.wait_for_selector("#models-plan:has-text('64 x 32 px')")
    page.screenshot(path=SHOTS / "models-folder.png")
    page.click("#models-use")
    page.wait_for_selector("#models-status:has-text('Open now: unseen.')")


def open_on_phone(tab: Callable, server: Server) -> None:
    page = tab(server.address, viewport={"width": 390, "height": 844})
    page.wait_for_selector("#status:has-text('Ready: unseen')")
    open_part(page, "button[role=tab]:has-text('Models')", "#models-choice")
    page.click("#models-choice label:has-text('Cosmos-Predict2.5-2B')")
    page.wait_for_selector("#models-card:has-text('NVIDIA Open Model License')")
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "models-phone.png")
