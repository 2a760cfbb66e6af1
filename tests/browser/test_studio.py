"""The studio: masks, canvases and versions without a browser, then a picture changed in a real one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done, Event, Failed, Stats, TextDelta
from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery, PictureQuery
from duogen.models.pipeline import open_pair
from duogen.options import Options
from duogen.picture_input import open_picture
from tests.support.browser import SHOTS, Server, browser_only, fix_seed, overflow_width, settle
from tests.support.tiny import BOV, END, script, tiny_pair
from tests.support.waiting import patience
from ui.parts import controls
from ui.parts.disk_space import DiskSpace
from ui.parts.loading import Loading
from ui.parts.picture_change import PLACES, REFERENCE, SOURCE, brush_mask, change_request, extend_canvas
from ui.parts.pictures import PictureFolder
from ui.parts.shared import Refusal, Shared
from ui.tabs.studio import CHOOSE, COMPARE, Studio


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return open_pair(tiny_pair(tmp_path_factory.mktemp("pair")), "cpu", "fp32")


@pytest.fixture
def studio(pair, tmp_path: Path) -> Studio:
    return make_studio(Engine(pair), tmp_path)


def make_studio(engine, home: Path) -> Studio:
    loading = Loading(engine=engine, words="Ready")
    loading.finished.set()
    with gr.Blocks():
        previews, gallery = PictureFolder(home / "previews", 9), Gallery(home)
        space = DiskSpace(gallery, ConversationStore(home / "conversations"), (previews,), home / "uploads")
        shared = Shared(loading, gallery, space, previews, controls.build(Options))
        return Studio(gr.Tab("Studio"), shared)


def noise(seed: int, size: tuple[int, int] = (90, 50)) -> PILImage.Image:
    return PILImage.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def layer(size: tuple[int, int], *box: int) -> PILImage.Image:
    """What the brush leaves: half clear colour inside `box`."""
    painted = PILImage.new("RGBA", size)
    painted.paste((139, 92, 246, 140), box)
    return painted


def open_picture_in(studio: Studio, file: Path) -> dict:
    """The values of a browser that has just opened a picture."""
    *_, shown = studio.open_file(str(file))
    values = {control: control.value for control in studio.shared.drawer.values()}
    values |= {each: None for pair in studio.others for each in pair}
    plain = {studio.editor: None, studio.words: "", studio.width: 100, studio.height: 100, studio.anchor: "middle"}
    return values | plain | {studio.current: shown[studio.current], studio.shared.drawer["seed",]: "7"}


@pytest.fixture
def values(studio: Studio, tmp_path: Path) -> dict:
    noise(1).save(tmp_path / "brought.png")
    return open_picture_in(studio, tmp_path / "brought.png")


def make(studio: Studio, values: dict, count: int = 1) -> dict:
    """All updates of one change, the later over the earlier."""
    after: dict = {}
    for update in studio._make(values, "tab", count):
        after |= update
    assert not studio.stops, "the browser could never ask again"
    return after


def pixels(studio: Studio, id: str) -> np.ndarray:
    return np.asarray(open_picture(studio.shared.gallery.entry(id).file))


def test_a_mask_is_what_the_brush_covered() -> None:
    mask = brush_mask([layer((90, 50), 10, 10, 30, 20)], (90, 50))
    assert mask.getbbox() == (10, 10, 30, 20) and set(np.unique(np.asarray(mask))) == {0, 255}
    assert brush_mask([layer((180, 100), 20, 20, 60, 40)], (90, 50)).getbbox() == (10, 10, 30, 20)
    assert brush_mask([layer((90, 50), 0, 0, 0, 0)], (90, 50)) is None and brush_mask([], (90, 50)) is None


@pytest.mark.parametrize("place", PLACES)
def test_a_larger_canvas_keeps_the_old_pixels(place: str) -> None:
    picture, marked = noise(2), brush_mask([layer((90, 50), 5, 5, 9, 9)], (90, 50))
    whole, mask = extend_canvas(picture, marked, (121, 70), place)
    old = np.asarray(mask) == 0
    assert whole.size == mask.size == (121, 70) and old.sum() == 90 * 50 - 16
    left, top = (round(share * gap) for share, gap in zip(PLACES[place], (31, 20), strict=True))
    assert whole.crop((left, top, left + 90, top + 50)).tobytes() == picture.tobytes()
    assert extend_canvas(picture, marked, (90, 50), place) == (picture, marked)
    with pytest.raises(ValueError, match="at least 90 x 50"):
        extend_canvas(picture, None, (89, 99), place)


def test_pictures_are_named_in_the_request() -> None:
    assert change_request("Make it red.", []) == "Make it red."
    words = change_request("Put the boat of picture 2 in.", [SOURCE, REFERENCE])
    assert words.startswith("Picture 1 is a source: keep its pixels. Picture 2 is a source") and words.endswith("picture 2 in.")
    assert "Picture 3 is a reference: keep its looks only." in words


def test_outside_what_was_painted_over_not_a_pixel_changes(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, studio.shared.loading.engine.tokens, "Now", BOV, END)
    painted = layer((90, 50), 20, 10, 60, 30)
    after = make(studio, values | {studio.words: "a door", studio.editor: {"layers": [painted]}})
    entry = studio.shared.gallery.entry(after[studio.current])
    assert after[studio.view] == COMPARE and entry.about.parent == values[studio.current] and entry.about.seed == 7
    before, now = pixels(studio, values[studio.current]), pixels(studio, entry.id)
    inside = np.asarray(painted.getchannel("A")) > 0
    assert (now == before)[~inside].all() and (now != before)[inside].mean() > 0.5


def test_a_canvas_grows_around_the_picture(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, studio.shared.loading.engine.tokens, BOV, END)
    after = make(studio, values | {studio.width: 200, studio.anchor: "left"})
    now = pixels(studio, after[studio.current])
    assert now.shape == (50, 180, 3) and (now[:, :90] == pixels(studio, values[studio.current])).all()
    assert len(np.unique(now[:, 90:].reshape(-1, 3), axis=0)) > 9


def test_four_versions_are_kept_and_an_older_one_makes_a_branch(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    root = values[studio.current]
    script(monkeypatch, studio.shared.loading.engine.tokens, *[BOV] * 4, "Then", BOV)
    after = make(studio, values | {studio.words: "another"}, 4)
    assert after[studio.view] == CHOOSE and len(after[studio.offered]) == len(set(after[studio.offered])) == 4
    assert after[studio.current] == root
    third = after[studio.offered][2]
    *_, picked = studio.pick(after[studio.offered], Selection(2))
    assert picked[studio.current] == third and picked[studio.undo].interactive and not picked[studio.redo].interactive
    branch = make(studio, values | {studio.current: third, studio.words: "on"})
    assert studio.shared.gallery.entry(branch[studio.current]).about.parent == third
    assert branch[studio.listed] == [root, *after[studio.offered], branch[studio.current]]
    *_, undone = studio.show_parent(branch[studio.current])
    *_, redone = studio.show_child(third)
    assert undone[studio.current] == third and redone[studio.current] == branch[studio.current]
    assert Gallery(studio.shared.gallery.index.parent).versions(root)[-1].id == branch[studio.current], "not on disk"


class Selection:
    def __init__(self, index: int) -> None:
        self.index = index


def test_other_pictures_go_along(studio: Studio, values: dict, tmp_path: Path) -> None:
    noise(3).save(tmp_path / "boat.png")
    file, kind = studio.others[0]
    work = studio._read_change(values | {studio.words: "Add the boat.", file: str(tmp_path / "boat.png"), kind: REFERENCE})
    turn = work.asked.path()[-1]
    assert [image.picture.tobytes() for image in turn.images()] == [noise(1).tobytes(), noise(3).tobytes()]
    assert "Picture 2 is a reference" in turn.text() and work.words == "Add the boat."
    assert len(studio.shared.gallery.versions(work.entry.id)) == 1


@pytest.mark.parametrize("painted", [False, True])
def test_nothing_to_do_gets_a_sentence(studio: Studio, values: dict, painted: bool) -> None:
    layers = [layer((90, 50), 1, 1, 9, 9)] if painted else []
    with pytest.raises(Refusal, match="belongs" if painted else "should change"):
        list(studio._make(values | {studio.editor: {"layers": layers}}, "tab", 1))
    assert not studio.stops
    with pytest.raises(ValueError, match="no longer here"):
        list(studio._make(values | {studio.words: "x", studio.current: "gone"}, "tab", 1))


class Scripted:
    """An engine that does what it is told, for what a sound one never does."""

    about = {"title": "Scripted"}

    def __init__(self, play: Callable[[threading.Event], Iterator[Event]]) -> None:
        self.play = play

    def answer(self, conversation: Conversation, options: Options, stop: threading.Event) -> Iterator[Event]:
        return self.play(conversation, stop)


def only_words(conversation: Conversation, stop: threading.Event) -> Iterator[Event]:
    yield TextDelta(words := "A house is <b>fine</b> as it is.")
    yield Done(conversation.say("assistant", words), Stats(1, 1, 1, 0, 0.1, 0.1, "end"))


def too_big(conversation: Conversation, stop: threading.Event) -> Iterator[Event]:
    yield Failed("Memory ran out.", conversation)


def fail(conversation: Conversation, stop: threading.Event) -> Iterator[Event]:
    yield TextDelta("Well")
    raise KeyError("out of luck")


@pytest.mark.parametrize(
    ("play", "words"), [(only_words, "“A house is &lt;b&gt;fine"), (too_big, "Memory ran out."), (fail, "out of luck")]
)
def test_what_brings_no_picture_says_so(play: Callable, words: str, tmp_path: Path) -> None:
    studio = make_studio(Scripted(play), tmp_path / "home")
    noise(1).save(tmp_path / "brought.png")
    values = open_picture_in(studio, tmp_path / "brought.png")
    after = make(studio, values | {studio.words: "x"}, 4)
    assert words in after[studio.status] and after[studio.change].visible and not after[studio.stop].visible
    assert len(studio.shared.gallery.versions(values[studio.current])) == 1


def test_stop_stops_and_keeps_what_is_finished(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def choose(logits, options, generator) -> int:
        if chosen:
            studio.stops["tab"].wait(patience())  # the second picture begins when it is no longer wanted
        chosen.append(BOV)
        return BOV

    monkeypatch.setattr("duogen.models.mllm.choose", choose)
    after: dict = {}
    for update in studio._make(values | {studio.words: "x"}, "tab", 4):
        after |= update
        if update.get(studio.offered):
            studio.stops["tab"].set()
    assert len(after[studio.offered]) == 1 and "Stopped." in after[studio.status]


def test_it_waits_in_the_line_of_all(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, studio.shared.loading.engine.tokens, BOV)
    with studio.shared.loading.queue.wait_turn(lambda before: None, threading.Event()):
        updates = studio._make(values | {studio.words: "x"}, "tab", 1)
        next(updates)
        assert "1 before this" in next(updates)[studio.status]
        with pytest.raises(Refusal, match="still being painted"):
            next(studio._make(values, "tab", 1))
    assert any(studio.current in update for update in updates)


def test_who_gives_up_waiting_paints_nothing(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studio.shared.loading.engine, "answer", lambda *given: pytest.fail("another is painting"))
    with studio.shared.loading.queue.wait_turn(lambda before: None, threading.Event()):
        updates = studio._make(values | {studio.words: "x"}, "tab", 1)
        next(updates)
        studio.stops["tab"].set()
        *_, last = updates
    assert "Stopped." in last[studio.status]


def test_settings_of_a_picture_go_back_into_the_drawer(studio: Studio, values: dict) -> None:
    shared = studio.shared
    entry = shared.gallery.entry(values[studio.current])
    about = replace(entry.about, seed=5, options={"image": {"steps": 12, "guidance": 99.0, "preview_every": "x"}, "text": [], "z": 1})
    restored = shared.restore_options(about)
    assert restored == {shared.drawer["seed",]: "5", shared.drawer["image", "steps"]: 12}


def brush(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A stroke over the editor; places are shares of its canvas."""
    box = wait_for_box(page, "#studio-editor canvas")
    spots = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*spots[0])
    page.mouse.down()
    page.mouse.move(*spots[1], steps=8)
    page.mouse.up()
    page.wait_for_timeout(1500)  # the editor hands the stroke over after a while and says nothing when it has


def wait_for_box(page, selector: str) -> dict[str, float]:
    """Where an element is once it holds still: the editor fits the picture in after it is there."""
    page.wait_for_selector(selector)
    page.locator(selector).first.scroll_into_view_if_needed()
    seen: list[dict[str, float]] = []
    for _ in range(100):
        seen.append(page.locator(selector).first.bounding_box())
        if len(seen) > 8 and all(box == seen[-1] for box in seen[-8:]):
            return seen[-1]
        page.wait_for_timeout(250)
    raise AssertionError(f"{selector} never holds still")


def pull_the_canvas(page) -> None:
    """Its right edge out by half, and back."""
    page.locator("#studio-canvas button").first.click()
    for share, percent in ((0.5, "150"), (-0.4, "100")):
        box = wait_for_box(page, "#studio-frame .frame")
        page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (1 + share), box["y"] + box["height"] / 2, steps=6)
        page.mouse.up()
        page.wait_for_function("percent => document.querySelector('#studio-canvas input[type=number]').value == percent", arg=percent)
    page.locator("#studio-canvas button").first.click()


@browser_only
def test_a_picture_is_changed_in_the_browser(tiny: Server, tab: Callable, tmp_path: Path) -> None:
    noise(4, (320, 240)).save(tmp_path / "brought.png")
    page = tab(tiny.address)
    page.click("button[role=tab]:has-text('Studio')")
    page.wait_for_selector("#studio-upload")
    page.screenshot(path=SHOTS / "studio-empty.png")
    page.set_input_files("#studio-upload input[type=file]", str(tmp_path / "brought.png"))
    brush(page, (0.45, 0.5), (0.6, 0.55))
    page.fill("#studio-words textarea", "a round window")
    page.click("#drawer")
    fix_seed(page, 4)  # an untrained model wants no picture now and then; with this seed it wants one at once
    page.click("#options .toggle-button")
    pull_the_canvas(page)
    page.screenshot(path=SHOTS / "studio-mask.png")
    page.click("#studio-change")
    page.wait_for_selector("#studio-status:has-text('Here it is')")
    page.wait_for_selector("#studio-slider img")
    settle(page)
    page.screenshot(path=SHOTS / "studio-compare.png")
    before, after = (each.bounding_box() for each in page.locator("#studio-slider .slider-wrap img").all())
    assert before == after, "before and after do not lie over each other"
    gallery = Gallery(tiny.home)
    first, second = (np.asarray(open_picture(entry.file)) for entry in gallery.versions(gallery.find(PictureQuery())[0][0].id))
    changed = np.argwhere((first != second).any(-1))
    assert first.shape == second.shape == (240, 320, 3) and len(changed) > 100
    assert changed.min(0)[0] > 60 and changed.max(0)[0] < 200 and changed.min(0)[1] > 100, "outside the stroke pixels changed"
    page.reload()
    page.click("button[role=tab]:has-text('Studio')")
    page.wait_for_selector("#studio-strip .thumbnail-item >> nth=1")
    phone = tab(tiny.address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.click("button[role=tab]:has-text('Studio')")
    phone.set_input_files("#studio-upload input[type=file]", str(tmp_path / "brought.png"))
    phone.wait_for_selector("#studio-editor canvas")
    phone.wait_for_timeout(1500)
    assert overflow_width(phone) <= 0
    phone.screenshot(path=SHOTS / "studio-phone.png")
