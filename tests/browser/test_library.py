"""All pictures: their files, the index, and the page's library."""

from __future__ import annotations

import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from duogen.conversation import Conversation
from duogen.library.conversations import ConversationStore
from duogen.library.picture_file import PictureInfo, from_json, parse_parameters, read_upload, to_json
from duogen.library.pictures import Gallery, PictureQuery, Thumbnails, picture_id
from tests.support.browser import SHOTS, Server, browser_only, delete_everything, open_part, overflow_width, settle
from tests.support.waiting import patience
from ui.parts.disk_space import DiskSpace
from ui.parts.pictures import PictureFolder


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path)


def plain(shade: int, size: tuple[int, int] = (40, 30)) -> PILImage.Image:
    return PILImage.new("RGB", size, (shade, 100, 50))


def ids(gallery: Gallery, **wanted) -> list[str]:
    return [entry.id for entry in gallery.find(PictureQuery(**wanted))[0]]


def test_a_picture_is_a_file_that_says_how_it_was_made(gallery: Gallery) -> None:
    about = PictureInfo("A red house, größer", seed=7, model="Tiny", options={"image": {"steps": 4}}, conversation="c", turn="t")
    entry = gallery.add(plain(1), about)
    with PILImage.open(entry.file) as file:
        assert file.text["parameters"] == "A red house, größer\nSteps: 4, Seed: 7, Size: 40x30, Model: Tiny"
        assert from_json(file.text["duogen"]) == about
        assert file.tobytes() == plain(1).tobytes()
    assert (entry.width, entry.height, entry.bytes) == (40, 30, entry.file.stat().st_size)
    assert gallery.add(plain(1), PictureInfo("again")).about == about
    assert len(list(gallery.pictures.iterdir())) == 1


def test_other_forms_of_the_same_letters_are_found(gallery: Gallery) -> None:
    cafe = gallery.add(plain(1), PictureInfo("a Cafe\u0301 with a Ｂａｒ in Zu\u00adrich"))
    assert all(ids(gallery, words=words) == [cafe.id] for words in ("café", "CAFE\u0301", "bar", "ｂａｒ", "zurich"))


def test_a_picture_of_the_future_is_not_on_top(gallery: Gallery) -> None:
    now = time.time()
    made = {name: gallery.add(plain(shade), PictureInfo(name, made=when)).id for shade, (name, when) in enumerate(
        {"later": now + 5e8, "old": now - 50, "new": now - 5}.items())}  # fmt: skip
    assert ids(gallery) == [made["new"], made["old"], made["later"]]
    assert ids(gallery, sort="old") == [made["later"], made["old"], made["new"]]


def test_a_clock_that_was_ahead_once_deletes_no_picture(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, now, day = gallery.add(plain(1), PictureInfo("x")), time.time(), 24 * 3600
    gallery.delete(entry.id)
    for days, left in ((31, True), (0.2, True), (31, True), (32.1, False)):
        monkeypatch.setattr("time.time", lambda days=days: now + days * day)
        assert bool(list(Gallery(tmp_path).deleted.glob("*.png"))) == left, days


@pytest.mark.parametrize(
    "settings",
    [
        '{"words": "half \\ud83d", "options": {"a": "\\udc00"}}',
        '{"options": ' + '{"a":' * 900 + "1" + "}" * 901,
        '{"made": NaN}',
        "[" * 5000,
        "7",
    ],
)
def test_hostile_settings_cost_no_picture(gallery: Gallery, tmp_path: Path, settings: str) -> None:
    chunks = PngInfo()
    chunks.add_itxt("duogen", settings)
    plain(9).save(tmp_path / "brought.png", pnginfo=chunks)
    (gallery.pictures / f"{'a' * 32}.png").write_bytes((tmp_path / "brought.png").read_bytes())
    gallery.sync()
    brought, _ = gallery.import_file(tmp_path / "brought.png")
    assert set(ids(gallery)) == {"a" * 32, brought.id} and gallery.set_favourite("a" * 32, True).about.favourite


@pytest.mark.parametrize("loss", ["removed", "damaged", "old"])
def test_a_lost_index_is_made_of_the_files_again(gallery: Gallery, loss: str) -> None:
    first, second = gallery.add(plain(1), PictureInfo("a boat", made=1.0)), gallery.add(plain(2), PictureInfo("a tree", made=2.0))
    gallery.set_favourite(first.id, True)
    before = gallery.find(PictureQuery())
    if loss == "old":
        with sqlite3.connect(gallery.index) as index:
            index.executescript("DROP TABLE words; PRAGMA user_version = 99")
    else:
        for file in gallery.index.parent.glob("pictures.sqlite*"):
            file.unlink()
        if loss == "damaged":
            gallery.index.write_bytes(b"no database " * 99)
    again = Gallery(gallery.index.parent)
    assert again.find(PictureQuery()) == before
    assert ids(again, favourites=True) == [first.id] and ids(again, words="tree") == [second.id]


def test_the_index_follows_the_folder(gallery: Gallery) -> None:
    gone = gallery.add(plain(1), PictureInfo("gone"))
    gone.file.unlink()
    plain(9).save(gallery.pictures / "from elsewhere.png")
    (gallery.pictures / "broken.png").write_bytes(b"no picture")
    gallery.sync()
    assert ids(gallery) == ["from elsewhere"] and not gallery.find(PictureQuery())[0][0].about.painted


@pytest.mark.parametrize(
    ("words", "found"),
    [("red", {1}), ("HOU", {1, 2}), ("red house", {1}), ("hauser", {3}), ("红色", {4}), ("色房", {4}), ("房红", set()),
     ('" - *', {1, 2, 3, 4}), ("OR NOT (", set()), ("x", set())],
)  # fmt: skip
def test_search_by_words(gallery: Gallery, words: str, found: set[int]) -> None:
    given = {1: "A red house", 2: "the blue houses", 3: "Zwei Häuser", 4: "画一座红色房子"}
    names = {gallery.add(plain(shade), PictureInfo(said)).id: shade for shade, said in given.items()}
    assert {names[id] for id in ids(gallery, words=words)} == found


def test_sorting_and_pages(gallery: Gallery) -> None:
    sizes = [(40, 30), (10, 10), (90, 90)]
    added = [gallery.add(plain(at, size), PictureInfo(str(at), made=100.0 + at)).id for at, size in enumerate(sizes)]
    assert ids(gallery) == added[::-1] and ids(gallery, sort="old") == added
    assert ids(gallery, sort="large") == [added[2], added[0], added[1]]
    page, total = gallery.find(PictureQuery(), 2, 5)
    assert [entry.id for entry in page] == added[:1] and total == 3


def test_deleting_can_be_undone(gallery: Gallery) -> None:
    entry = gallery.set_favourite(gallery.add(plain(1), PictureInfo("a boat")).id, True)
    gallery.delete(entry.id)
    assert ids(gallery) == [] and not any(gallery.pictures.iterdir()) and len(gallery.thumbnails) == 0
    with pytest.raises(ValueError, match="no longer here"):
        gallery.entry(entry.id)
    assert gallery.freeable().deleted == 1
    assert gallery.restore(entry.id) == entry and ids(gallery, words="boat") == [entry.id]
    gallery.delete(entry.id)
    gallery.delete_freeable()
    with pytest.raises(ValueError, match="gone for good"):
        gallery.restore(entry.id)
    with pytest.raises(ValueError, match="gone for good"):
        gallery.restore("../pictures/x")


def test_a_favourite_keeps_its_pixels_and_other_texts(gallery: Gallery) -> None:
    entry = gallery.set_favourite(gallery.add(plain(1), PictureInfo("a boat", seed=3)).id, True)
    with PILImage.open(entry.file) as file:
        assert "Seed: 3" in file.text["parameters"] and from_json(file.text["duogen"]).favourite
        assert file.tobytes() == plain(1).tobytes()
    assert not gallery.set_favourite(entry.id, False).about.favourite


def test_versions_are_found_from_each_of_them(gallery: Gallery) -> None:
    first = gallery.add(plain(1), PictureInfo("first", made=3.0))
    second = gallery.add(plain(2), PictureInfo("second", parent=first.id, root=first.id, made=4.0))
    third = gallery.add(plain(3), PictureInfo("branch", parent=first.id, root=first.id, made=5.0))
    gallery.add(plain(4), PictureInfo("other"))
    for id in (first.id, second.id, third.id):
        assert gallery.versions(id) == [first, second, third]


def test_settings_come_back_from_a_dropped_picture(gallery: Gallery, tmp_path: Path) -> None:
    made = Gallery(tmp_path / "elsewhere").add(plain(1), PictureInfo("a boat", seed=5, conversation="c" * 32, favourite=True))
    entry, known = gallery.import_file(made.file)
    assert known and entry.about.seed == 5 and entry.about.painted and not entry.about.conversation and not entry.about.favourite


def test_foreign_pictures_are_read_as_far_as_they_go(gallery: Gallery, tmp_path: Path) -> None:
    chunks = PngInfo()
    text = 'a cat, sitting\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 42, Size: 512x512, Model: v1, Note: "a, b"'
    chunks.add_text("parameters", text)
    plain(2).save(tmp_path / "tool.png", pnginfo=chunks)
    entry, known = gallery.import_file(tmp_path / "tool.png")
    assert known and (entry.about.words, entry.about.seed, entry.about.options) == ("a cat, sitting", 42, {"image": {"steps": 20}})
    with PILImage.open(entry.file) as file:
        assert file.text["parameters"] == text
    plain(3).save(tmp_path / "photo.jpg")
    assert gallery.import_file(tmp_path / "photo.jpg")[1] is False
    (tmp_path / "no.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        gallery.import_file(tmp_path / "no.png")


@pytest.mark.parametrize("text", ["", "[]", '{"words": 3}', '{"options": []}', '{"made": NaN}', '{"seed": "x"}', "[" * 100_000])
def test_damaged_settings_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged") if text != "" else pytest.raises(ValueError):
        from_json(text)
    chunks = PngInfo()
    chunks.add_itxt("duogen", text)
    plain(1).save(tmp_path / "x.png", pnginfo=chunks)
    assert read_upload(tmp_path / "x.png")[1] is None
    assert parse_parameters("only words") is None and from_json(to_json(PictureInfo("x", made=1.0))) == PictureInfo("x", made=1.0)


def test_thumbnails_are_bounded_and_made_again(gallery: Gallery, tmp_path: Path) -> None:
    entries = [gallery.add(PILImage.effect_noise((64, 64), 80 + at).convert("RGB"), PictureInfo()) for at in range(4)]
    size = max(gallery.thumbnail(entry).stat().st_size for entry in entries)
    small = gallery.thumbnails = Thumbnails(tmp_path / "few", 2 * size)
    for entry in entries:
        assert gallery.thumbnail(entry).exists()
    assert small.find(entries[0].id) is None and small.find(entries[3].id) and small.bytes <= 2 * size
    assert small.bytes == sum(file.stat().st_size for file in small.folder.iterdir()) == Thumbnails(small.folder).bytes
    entries[0].file.write_bytes(b"damaged")
    assert PILImage.open(gallery.thumbnail(entries[0])).size == (320, 320)
    gallery.delete_freeable()
    assert gallery.freeable().thumbnails == 0 and not os.listdir(small.folder)


def test_two_processes_may_use_one_folder(gallery: Gallery) -> None:
    other = Gallery(gallery.index.parent)
    entry = gallery.add(plain(1), PictureInfo("a boat"))
    assert other.entry(entry.id) == entry
    assert other.add(plain(2), PictureInfo()).id == picture_id(plain(2)) and len(ids(gallery)) == 2
    assert replace(entry.about, favourite=True) == other.set_favourite(entry.id, True).about == gallery.entry(entry.id).about


def test_disk_space_is_counted_before_it_is_freed(tmp_path: Path) -> None:
    gallery, store = Gallery(tmp_path), ConversationStore(tmp_path / "conversations")
    shown, uploads = PictureFolder(tmp_path / "shown", 9), tmp_path / "uploads"
    kept, gone = gallery.add(plain(1), PictureInfo("kept")), gallery.add(plain(2), PictureInfo("gone"))
    gallery.delete(gone.id)
    said = [store.save(Conversation().say("user", words)) for words in ("stays", "goes")]
    store.delete(said[1].id)
    shown.keep(plain(3))
    uploads.mkdir()
    for name, age in (("old", 9999), ("young", 0)):
        (uploads / name).write_bytes(b"12345")
        os.utime(uploads / name, (time.time() - age,) * 2)
    space = DiskSpace(gallery, store, (shown,), uploads)
    before = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and "sqlite" not in file.name)
    room = space.freeable()
    assert (room.copies, room.pictures, room.conversations) == (3, 1, 1) and min(room.copy_bytes, room.picture_bytes) > 5
    space.delete_freeable()
    after = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and "sqlite" not in file.name)
    assert before - after == room.bytes and space.freeable().bytes == 0
    assert kept.file.exists() and store.open(said[0].id) and (uploads / "young").exists() and Path(shown.keep(plain(3))).exists()


def test_shown_pictures_are_bounded_in_bytes(tmp_path: Path) -> None:
    noisy = [PILImage.effect_noise((64, 64), 50 + at).convert("RGB") for at in range(4)]
    folder = PictureFolder(tmp_path, 99, most=10_000)
    paths = [Path(folder.keep(picture)) for picture in noisy]
    assert folder.bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) <= 10_000
    assert paths[-1].exists() and not paths[0].exists() and 0 < len(folder) < 4


@pytest.fixture(scope="module")
def server(stand_in_server: Server) -> Server:
    home = stand_in_server.home
    delete_everything(home)
    gallery, store = Gallery(home), ConversationStore(home / "conversations")
    said = store.save(Conversation(title="A boat").say("user", "Draw a boat.").say("assistant", "Here.", plain(0)))
    for number, colour in enumerate(["red", "blue", "green"] * 24):
        thing = "boat" if number % 2 else "house"
        about = PictureInfo(
            f"Draw a {colour} {thing}.", f"Step {number}.", seed=number, model="Tiny", options={"image": {"steps": 5}}, made=1e9 + number
        )
        if number == 1:
            about = replace(about, conversation=said.id, turn=said.head)
        gallery.add(PILImage.effect_noise((90, 60), 60 + number).convert("RGB"), about)
    return stand_in_server


def choose(page, at: int) -> None:
    page.locator("#library-grid .thumbnail-item").nth(at).click()


def search(page, words: str) -> None:
    page.wait_for_function("words => document.querySelector('#library-where').innerText.includes(words)", arg=words)


@browser_only
def test_a_library_in_the_browser(server: Server, tab: Callable, tmp_path: Path) -> None:
    page = tab(server.address)
    open_part(page, "button[role=tab]:has-text('Library')", "#library-words")
    search(page, "Page 1 of 2 · 72 pictures")
    settle(page)
    page.screenshot(path=SHOTS / "library.png")
    page.fill("#library-words input, #library-words textarea", "blue boat")
    search(page, "12 pictures")
    choose(page, 11)
    page.wait_for_selector("#library-settings dd:has-text('Draw a blue boat.')")
    page.click("#library-star")
    page.wait_for_selector("#library-star:has-text('★')")
    page.screenshot(path=SHOTS / "library-chosen.png")
    page.click("#library-compare")
    page.wait_for_selector("text=Choose the picture to compare it with.")
    choose(page, 0)
    page.wait_for_selector("#library-two dd.differs")
    page.screenshot(path=SHOTS / "library-compare.png")
    page.click("#library-starred input")
    search(page, "1 picture")
    page.click("#library-delete")
    search(page, "Nothing is found")
    page.click("#library-undelete")
    search(page, "1 picture")
    page.click("#library-talk")
    page.wait_for_selector("#talk .user:has-text('Draw a boat.')")


@browser_only
def test_a_dropped_picture_gives_its_settings_back(server: Server, tab: Callable, tmp_path: Path) -> None:
    about = PictureInfo("A lamp on a table.", seed=77, options={"image": {"steps": 13}})
    made = Gallery(tmp_path / "elsewhere").add(plain(9), about)
    page = tab(server.address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page.click("button[role=tab]:has-text('Library')")
    page.set_input_files("#library-drop input[type=file]", str(made.file))
    page.wait_for_selector("#library-settings dd:has-text('A lamp on a table.')")
    settle(page)
    assert overflow_width(page) <= 0
    page.screenshot(path=SHOTS / "library-phone.png")
    page.click("#library-again")
    page.wait_for_function("document.querySelector('#box textarea')?.value == 'A lamp on a table.'")
    plain(8).save(tmp_path / "foreign.png")
    page.click("button[role=tab]:has-text('Library')")
    page.set_input_files("#library-drop input[type=file]", str(tmp_path / "foreign.png"))
    page.wait_for_selector("#library-status:has-text('It has no settings')")


def get_status(server: Server, path: str) -> int:
    try:
        return urllib.request.urlopen(f"{server.address}gradio_api/file={path}", timeout=patience()).status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_pictures_and_thumbnails_are_served(server: Server) -> None:
    gallery = Gallery(server.home)
    kept, gone = gallery.find(PictureQuery(sort="old"))[0][10:12]
    gallery.delete(gone.id)
    assert get_status(server, str(kept.file)) == get_status(server, str(gallery.thumbnail(kept))) == 200
    aside, said = gallery.deleted / gone.file.name, next((server.home / "conversations").glob("*/conversation.json"))
    assert aside.exists()
    for path in (aside, gallery.index, said, f"{gallery.pictures}/../pictures.sqlite", f"{gallery.pictures}/%2e%2e/pictures.sqlite"):
        assert get_status(server, str(path)) in (403, 404), path
    gallery.restore(gone.id)
