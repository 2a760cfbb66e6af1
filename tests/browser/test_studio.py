"""The studio: masks, canvases and versions without a browser, then a picture changed in a real one."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

from duogen.conversation import Conversation
from duogen.engine import Engine
from duogen.events import Done, Event, Failed, Stats, TextDelta
from duogen.grounding import read_boxes
from duogen.hub.model_files import find_model_files
from duogen.library.conversations import ConversationStore
from duogen.library.pictures import Gallery, PictureQuery
from duogen.models.pipeline import open_pair
from duogen.options import Options
from duogen.painters.base import PaintStep
from duogen.painters.masks import fit, inner_box, keep_unchanged
from duogen.picture_input import open_picture
from duogen.provenance import Origin
from duogen.upscale import Upscaler, open_upscaler
from tests.support.browser import SHOTS, Server, browser_only, fix_seed, open_part, overflow_width, settle
from tests.support.tiny import BOV, END, script, tiny_pair
from tests.support.waiting import patience
from ui.parts import controls
from ui.parts.disk_space import DiskSpace
from ui.parts.loading import Loading
from ui.parts.picture_change import (
    CANVAS_COLOUR,
    PLACES,
    REFERENCE,
    SOURCE,
    brush_mask,
    change_request,
    extend_canvas,
    find_region,
    lay_on_canvas,
)
from ui.parts.pictures import PictureFolder
from ui.parts.shared import Refusal, Shared
from ui.tabs.studio import CHOOSE, COMPARE, MARK, Studio
from ui.tabs.studio_tools import CROPPED, LANCZOS, check_scale, crop_to_marks, list_upscalers, upscalers_html


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
    values |= {each: None for pair in (*studio.others, studio.example.pictures) for each in pair} | {studio.keep: False}
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
    laid = lay_on_canvas(picture, whole)  # as the half before of the comparison
    assert laid is not None and laid.size == whole.size
    assert laid.crop((left, top, left + 90, top + 50)).tobytes() == picture.tobytes()
    assert laid.getpixel((0, 0)) == CANVAS_COLOUR or (left, top) == (0, 0)
    assert lay_on_canvas(noise(9), whole) is None and lay_on_canvas(whole, picture) is None
    with pytest.raises(ValueError, match="at least 90 x 50"):
        extend_canvas(picture, None, (89, 99), place)


def fill_slowly(picture: PILImage.Image, point: tuple[int, int], tolerance: int) -> set[tuple[int, int]]:
    """The places around a point, each reached from a neighbour."""
    first, found, waiting = picture.getpixel(point), set(), [point]
    while waiting:
        x, y = waiting.pop()
        inside = 0 <= x < picture.width and 0 <= y < picture.height
        if inside and (x, y) not in found and max(abs(a - b) for a, b in zip(picture.getpixel((x, y)), first, strict=True)) <= tolerance:
            found.add((x, y))
            waiting += [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
    return found


@pytest.mark.parametrize("tolerance", [0, 60, 130, 255])
def test_a_tap_finds_what_hangs_together(tolerance: int) -> None:
    picture, point = noise(3, (24, 20)), (7, 9)
    near = {(x + i, y + j) for x, y in fill_slowly(picture, point, tolerance) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    marked = np.argwhere(np.asarray(find_region(picture, point, tolerance)) == 255)
    assert {(x, y) for y, x in marked.tolist()} == {(x, y) for x, y in near if 0 <= x < 24 and 0 <= y < 20}


SEEN, SIZE = (560, 420), (800, 600)


@pytest.mark.parametrize(
    ("said", "boxes"),
    [
        ('```json\n[{"bbox_2d": [56, 42, 280, 210], "label": "roof"}]\n```', [(80, 60, 400, 300)]),
        ('{"bbox_2d": [0, 0, 560.0, 420]}', [(0, 0, 800, 600)]),
        ('[{"bbox_2d": [7, 7, 14, 14]}, {"bbox_2d": [-9, 7, 900, 14]}]', [(10, 10, 20, 20), (0, 10, 800, 20)]),
        ("[56, 42, 280, 210]", [(80, 60, 400, 300)]),
        *(
            (said, [])
            for said in ("[]", "I see a roof.", '{"bbox_2d": [5, 5, 5, 9]}', '{"bbox_2d": "all"}', '[{"bbox_2d": [1, 2, true, 4]}]')
        ),
    ],
)
def test_boxes_are_read_from_what_the_mllm_says(said: str, boxes: list) -> None:
    assert read_boxes(said, SEEN, SIZE) == boxes


def marks(studio: Studio, shown: dict) -> PILImage.Image:
    """The mask that the editor shows."""
    layers = [PILImage.open(each["path"]) for each in shown[studio.editor].value["layers"]]
    return brush_mask(layers, (90, 50))


def test_a_named_part_is_marked(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(self, question: str, pictures: list, most: int, stop) -> str:
        asked.append(question)
        return said

    monkeypatch.setattr("duogen.vision_qa.MLLMVisionQA.ask", ask)
    said = '[{"bbox_2d": [16, 0, 32, 32], "label": "the roof"}]'  # a tiny pair sees 64 x 64
    drawn = {"layers": [layer((90, 50), 60, 40, 70, 45)]}
    seen = {}
    for update in studio.picker.mark_named(values[studio.current], drawn, "the roof"):
        seen |= update
    width, height = studio.shared.loading.engine.tokens.grid_of_size((90, 50))[::-1]
    marked = np.asarray(marks(studio, seen)) > 0
    inside = np.zeros((50, 90), bool)
    inside[: round(32 * 50 / (16 * height)), round(16 * 90 / (16 * width)) : round(32 * 90 / (16 * width))] = True
    inside[40:45, 60:70] = True
    assert (marked == inside).all() and "the roof" in asked[0] and seen[studio.view] == MARK
    said = "There is none."
    *_, last = studio.picker.mark_named(values[studio.current], drawn, "the moon")
    assert "did not find it" in last[studio.status] and studio.editor not in last
    engine = studio.shared.loading.engine
    monkeypatch.setattr(engine.pair, "about", replace(engine.pair.about, check_questions=(("(?P<answer>red)", "?"),)))
    with pytest.raises(ValueError, match="tap the picture instead"):
        engine.find_boxes(noise(1), "the roof")


class Tap:
    def __init__(self, *index: int) -> None:
        self.index = index


def test_tools_make_versions_and_keep_the_origin(studio: Studio, values: dict) -> None:
    root, tools, gallery = values[studio.current], studio.reshaper, studio.shared.gallery
    tapped, _ = studio.picker.mark_tapped(root, None, 0, Tap(3, 4))
    assert marks(studio, tapped).getbbox() == (2, 3, 5, 6)
    drawn = {"layers": [layer((90, 50), 10, 5, 30, 45)]}
    *_, cropped = tools.crop_marked(root, drawn)
    *_, turned = tools.turn_right(cropped[studio.current])
    *_, back = tools.turn_left(turned[studio.current])
    *_, large = tools.enlarge_picture(turned[studio.current], LANCZOS)
    assert (pixels(studio, cropped[studio.current]) == pixels(studio, root)[5:45, 10:30]).all()
    assert (pixels(studio, turned[studio.current]) == np.rot90(pixels(studio, cropped[studio.current]), -1)).all()
    assert back[studio.current] == cropped[studio.current] and pixels(studio, large[studio.current]).shape == (40, 80, 3)
    made = gallery.entry(large[studio.current])
    assert (made.about.parent, made.about.root, made.about.origin, made.about.painted) == (turned[studio.current], root, "", False)
    assert large[studio.version] == "<p>4 ← 3 Enlarged</p>"
    with pytest.raises(Refusal, match="what should remain"):
        crop_to_marks(noise(1), [])
    with pytest.raises(Refusal, match="at most 4096 pixels"):
        check_scale(noise(1), 46)


def test_a_tiled_enlargement_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(12, 12, 3, padding=1))
    model, picture = torch.nn.Sequential(layers, torch.nn.PixelShuffle(2), torch.nn.Sigmoid()), noise(5, (150, 97))
    whole = np.asarray(Upscaler(model, 2, tile=0).upscale(picture)).astype(int)
    assert whole.shape == (194, 300, 3) and abs(whole - np.asarray(Upscaler(model, 2, tile=40).upscale(picture))).max() <= 1


def test_upscalers_of_the_models_folder_enlarge(studio: Studio, values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DUOGEN_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "upscale_models"
    folder.mkdir(parents=True)
    (folder / "wrong.pth").write_bytes(pickle.dumps(print, 2))
    torch.save({"params": {"a": torch.ones(2)}}, folder / "other.pth")
    assert [each.path.name for each in find_model_files("upscaler")] == ["other.pth", "wrong.pth"]
    with monkeypatch.context() as without:
        without.setattr("duogen.upscale.PACKAGE", "no_such_package")
        assert [value for _, value in list_upscalers()] == [LANCZOS] and "spandrel" in upscalers_html(list_upscalers())
        with pytest.raises(ValueError, match="pip install"):
            open_upscaler(folder / "other.pth")
    compact = pytest.importorskip("spandrel.architectures.Compact.__arch.SRVGG", reason="upscalers need spandrel")
    for file, words in ((folder / "wrong.pth", "damaged, or holds code"), (folder / "other.pth", "no family")):
        with pytest.raises(ValueError, match=words):
            open_upscaler(file)
    torch.manual_seed(0)
    model = compact.SRVGGNetCompact(num_in_ch=3, num_out_ch=3, num_feat=4, num_conv=1, upscale=2).eval()
    save_file(model.state_dict(), folder / "tiny.safetensors")
    *_, large = studio.reshaper.enlarge_picture(values[studio.current], str(folder / "tiny.safetensors"))
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.array(noise(1))).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).clamp(0, 1).numpy() * 255
    assert abs(pixels(studio, large[studio.current]) - expected).max() <= 1
    assert studio.shared.gallery.entry(large[studio.current]).about.origin == Origin.CHANGED


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


@pytest.mark.parametrize("size", [(800, 600), (600, 800), (48, 48)])
def test_where_nothing_changed_the_picture_stays_to_the_pixel(size: tuple[int, int]) -> None:
    before = noise(1, size)
    seen = fit(before, (256, 256))
    assert keep_unchanged(seen, seen, before) is not before and keep_unchanged(seen, seen, before).tobytes() == before.tobytes()
    painted, box = seen.copy(), (100, 110, 130, 140)
    painted.paste((250, 10, 10), box)
    left, top, width, _ = inner_box(size, seen.size)
    scale = size[0] / width
    there = [round((at - gap) * scale) for at, gap in zip(box, (left, top, left, top), strict=True)]
    made = np.asarray(keep_unchanged(painted, seen, before))
    changed = np.argwhere((made != np.asarray(before)).any(-1))
    reach = 10 * max(1, scale)  # of the soft edge
    assert made.shape == (size[1], size[0], 3)
    assert (changed.min(0)[::-1] >= np.array(there[:2]) - reach).all()
    assert (changed.max(0)[::-1] <= np.array(there[2:]) + reach).all()
    inside = made[there[1] + 2 : there[3] - 2, there[0] + 2 : there[2] - 2]
    assert abs(inside.astype(int) - (250, 10, 10)).max() <= 12, "the change itself is not laid in"
    other = noise(2, (256, 256))
    assert keep_unchanged(other, seen, before).tobytes() != before.tobytes() and keep_unchanged(other, seen, before).size == size


def test_a_change_without_a_mask_keeps_size_and_what_stays(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = studio.shared.loading.engine
    painter, root = engine.painter, values[studio.current]

    for change, changes in ((torch.clone, False), (paint_corner, True)):

        def paint_again(frames, request, change: Callable = change) -> Iterator[PaintStep]:
            yield PaintStep(1, change(frames.past[-1]))

        monkeypatch.setattr(painter, "paint", paint_again)
        script(monkeypatch, engine.tokens, BOV, END)
        after = make(studio, values | {studio.words: "a door"})
        before, now = pixels(studio, root), pixels(studio, after[studio.current])
        assert now.shape == before.shape == (50, 90, 3)
        assert (after[studio.current] != root) == changes
        assert (now == before)[:, 45:].all() and (now != before)[:, :20].any() == changes
    for chosen in ({("image", "aspect"): "1:1"}, {("image", "side"): 128}):
        chosen = {studio.shared.drawer[path]: value for path, value in chosen.items()}
        assert studio._read_change(values | {studio.words: "x"} | chosen).before is None, "a chosen size is taken back"


def paint_corner(latents: torch.Tensor) -> torch.Tensor:
    """Latents of which the left quarter is something else."""
    latents = latents.clone()
    latents[..., : latents.shape[-1] // 4] += 3
    return latents


@pytest.mark.parametrize("sent", [None, {}, {"across": 1, "down": 0, "wide": 150}])
def test_a_pulled_canvas_that_makes_no_sense_changes_nothing(studio: Studio, sent: object) -> None:
    assert list(studio.resize_canvas(gr.EventData(None, sent))) == [studio.anchor]
    whole = studio.resize_canvas(gr.EventData(None, {"across": 0, "down": 0.5, "wide": 150, "high": 100}))
    assert whole == {studio.width: 150, studio.height: 100, studio.anchor: "left"}


def test_a_canvas_grows_around_the_picture(studio: Studio, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, studio.shared.loading.engine.tokens, BOV, END)
    after = make(studio, values | {studio.width: 200, studio.anchor: "left"})
    now = pixels(studio, after[studio.current])
    assert now.shape == (50, 180, 3) and (now[:, :90] == pixels(studio, values[studio.current])).all()
    assert len(np.unique(now[:, 90:].reshape(-1, 3), axis=0)) > 9
    halves = [open_picture(Path(file["path"])) for file in after[studio.slider].value]
    assert [half.size for half in halves] == [(180, 50)] * 2 and (np.asarray(halves[0])[:, :90] == now[:, :90]).all()


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
    open_part(page, "#studio-canvas button >> nth=0", "#studio-canvas input[type=number]")
    for share, percent in ((0.5, "150"), (-0.4, "100")):
        box = wait_for_box(page, "#studio-frame .frame")
        page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * (1 + share), box["y"] + box["height"] / 2, steps=6)
        page.mouse.up()
        page.wait_for_function("percent => document.querySelector('#studio-canvas input[type=number]').value == percent", arg=percent)
    page.locator("#studio-canvas button").first.click()


def find_corner(whole: PILImage.Image, part: PILImage.Image) -> tuple[int, int]:
    """Where the left upper corner of a part is in a whole picture."""
    pixels, wanted = np.asarray(whole), np.asarray(part)
    spots = np.argwhere((pixels[: whole.height - part.height + 1, : whole.width - part.width + 1] == wanted[0, 0]).all(-1))
    return next((x, y) for y, x in spots.tolist() if (pixels[y : y + part.height, x : x + part.width] == wanted).all())


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
    page.locator("#studio-view label").nth(1).click()
    box = wait_for_box(page, "#studio-tap img")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#studio-status:has-text('Marked')")
    wait_for_box(page, "#studio-editor canvas")
    page.locator("#studio-reshape button").first.click()
    page.click("#studio-crop")
    page.wait_for_selector("#studio-strip .thumbnail-item >> nth=2")
    page.screenshot(path=SHOTS / "studio-tools.png")
    newest = gallery.find(PictureQuery())[0][0]
    assert newest.about.words == CROPPED and 3 <= newest.width < 120, "what was tapped is not what was cropped"
    left, top = find_corner(open_picture(gallery.entry(newest.about.parent).file), open_picture(newest.file))
    assert left - 3 <= 160 <= left + newest.width + 3 and top - 3 <= 120 <= top + newest.height + 3
    phone = tab(tiny.address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.click("button[role=tab]:has-text('Studio')")
    phone.set_input_files("#studio-upload input[type=file]", str(tmp_path / "brought.png"))
    phone.wait_for_selector("#studio-editor canvas")
    phone.wait_for_timeout(1500)
    assert overflow_width(phone) <= 0
    phone.screenshot(path=SHOTS / "studio-phone.png")
