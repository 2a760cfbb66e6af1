"""Saved references: on disk, mentioned in messages of the page, the command line and programs, and as an MLLM reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image as PILImage

from duogen.cli.main import main
from duogen.conversation import REFERENCE, Conversation, Image, Reference, Text, Turn, load_conversation, save_conversation
from duogen.library import references
from duogen.library.picture_file import PictureInfo
from duogen.library.pictures import Gallery
from duogen.library.references import MOST_PICTURES, ReferenceStore, open_references
from duogen.mentions import check_name, find_mentions, fold_name, spell_out
from ui.api.messages import parse_messages
from ui.api.requests import RequestError
from ui.chat.references import ask_in_style

BOAT = Reference("Boat", "thing", "a red boat")
INK = Reference("ink", "style", "black ink")
SHIP = Reference("小船", "character")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceStore:
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path))
    return open_references()


def plain(colour: str, size: int = 8) -> Image:
    return Image(PILImage.new("RGB", (size, size), colour))


def colours(turn: Turn) -> list[tuple[int, ...]]:
    return [image.picture.getpixel((0, 0)) for image in turn.images()]


def names(store: ReferenceStore) -> list[str]:
    return [each.about.name for each in store.list_references()]


def test_a_reference_is_saved_changed_and_brought_back(store: ReferenceStore) -> None:
    store.add(Reference(" @Boat ", "thing", " a red\n boat. "), [plain("red", 3000), plain("blue")])
    saved = store.find("@bOAT")
    assert saved.about == BOAT and [image.picture.size for image in saved.open_images()] == [(1536, 1536), (8, 8)]
    with pytest.raises(ValueError, match="a reference called @Boat already"):
        store.add(Reference("BOAT", "style"), [plain("red")])
    store.add_pictures("boat", [plain("lime")] * 6)
    with pytest.raises(ValueError, match="from 1 to 8 pictures, not 9"):
        store.add_pictures("boat", [plain("lime")])
    store.add(INK, [plain("black")])
    with pytest.raises(ValueError, match="called @ink already"):
        store.change("boat", Reference("INK", "thing"))
    assert store.change("boat", Reference("BOAT", "thing")).about.name == "BOAT"
    changed = store.change("boat", Reference("Straße", "thing", "x"))
    assert names(store) == ["ink", "Straße"] and len(changed.files) == MOST_PICTURES and store.find("STRASSE") == changed
    store.delete("straße")
    assert names(store) == ["ink"]
    assert store.restore("Straße").files == changed.files
    with pytest.raises(ValueError, match=r"no reference called moon; there are @ink, @Straße\."):
        store.find("moon")


@pytest.mark.parametrize("name", ["", "1", "２", "two words", "a.b", "-boat", "boat_", "../x", "🚤", "x" * 41])
def test_a_name_that_cannot_be_is_refused(store: ReferenceStore, name: str) -> None:
    with pytest.raises(ValueError, match="A name "):
        store.add(Reference(name, "thing"), [plain("red")])
    assert names(store) == []


def test_a_save_that_breaks_off_leaves_nothing_and_a_damaged_one_costs_no_other(store: ReferenceStore, monkeypatch) -> None:
    store.add(INK, [plain("black")])

    def fail(about: Reference, folder: Path) -> None:
        raise OSError("the power is gone")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="power"):
        broken.setattr(references, "_write_about", fail)
        store.add(BOAT, [plain("red")])
    assert sorted(each.name for each in store.folder.iterdir()) == [".deleted", "ink"]
    store.add(BOAT, [plain("red")])
    (store.folder / "boat" / "about.json").write_text('{"name": "Boat", "kind": "planet", "words": ""}')
    assert names(store) == ["ink"]
    with pytest.raises(ValueError, match="A damaged reference is in"):
        store.add(BOAT, [plain("red")])


PIECES = [  # as typed, and as read at the first and at a later mention
    ("@Boat", "Boat (a red boat, see picture 2 and picture 3)", "Boat"),
    ("@bOAT's", "Boat (a red boat, see picture 2 and picture 3)'s", "Boat's"),
    ("in @INK.", "in the style of ink (black ink, see picture 4).", "in the style of ink."),
    ("in the style of @ink", "in the style of ink (black ink, see picture 4)", "in the style of ink"),
    ("(@ink)", "(in the style of ink (black ink, see picture 4))", "(in the style of ink)"),
    ("画@小船在海上", "画小船 (see picture 5)在海上", "画小船在海上"),
    *(
        (each, each, each)
        for each in ("me@boat", "ann_b@ink.org", "https://a.b/@boat", "@boats", "@boat-like", "@1", "@moon", "@@boat", "and")
    ),
    *((each, each, each) for each in ("`@boat`", "``a ` @ink``", "\n```\n@boat\n@ink\n```\n", "it`s")),
]


def write_message(seed: int) -> tuple[str, str]:
    """A message of known pieces, and what is read for it."""
    typed, read, seen = "", "", set[str]()
    for shown, first, later in random.Random(seed).sample(PIECES, 9):
        name = first.split(" (")[0].removeprefix("(").split()[-1] if first != later else ""
        typed, read, seen = f"{typed} {shown}", f"{read} {later if name in seen else first}", seen | {name}
    return typed, read


def test_a_message_is_read_as_its_pieces_are(store: ReferenceStore, tmp_path: Path) -> None:
    for about, shown in ((BOAT, ("red", "blue")), (INK, ("black",)), (SHIP, ("lime",))):
        store.add(about, [plain(each) for each in shown])
    every = "@boat @ink @小船 "
    for seed in range(300):
        typed, _ = write_message(seed)
        typed = typed.replace("it`s", "its")  # a lone backtick may find another that closes it
        asked = store.attach(Conversation().say("user", plain("white"), every + typed))
        (turn,) = asked.path()
        assert turn.text() == every + typed, "what was typed stays"
        assert colours(turn) == [(255, 255, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0), (0, 255, 0)]
        assert [image.role for image in turn.images()] == ["", *[REFERENCE] * 4]
        alone = Turn("user", (*turn.images(), Text(typed)))
        assert spell_out(alone).text() == write_message(seed)[1].replace("it`s", "its")
    save_conversation(asked, tmp_path / "kept")
    assert load_conversation(tmp_path / "kept").path() == [turn]


@pytest.mark.parametrize(
    ("text", "found"),
    [("@a ~~~ @a\n~~~\n@a\n~~~\n@a", [0, 7, 21]), ("it`s @a, and @a", [5, 13]), ("```\n@a", []), ("@Ā @ā", [0, 3]), ("@", [])],
)
def test_mentions_stand_outside_code(text: str, found: list[int]) -> None:
    assert [mention.start for mention in find_mentions(text, {"a", fold_name("ā")})] == found


def test_a_message_without_mentions_or_with_unknown_ones_is_the_same_object(store: ReferenceStore) -> None:
    asked = Conversation().say("user", "Write to ann@boat.org and @nobody.")
    assert store.attach(asked) is asked and spell_out(asked.path()[0]) is asked.path()[0]
    store.check_room("@nobody", 8, 8)
    store.add(BOAT, [plain("red")])
    with pytest.raises(ValueError, match=r"takes 8 pictures at most; with those of @Boat these are 9"):
        store.check_room("@boat", 8, 8)


def test_programs_mention_references_too(store: ReferenceStore) -> None:
    store.add(BOAT, [plain("red")])
    said = [
        {"role": "user", "content": "Draw @boat."},
        {"role": "assistant", "content": "@boat"},
        {"role": "user", "content": "More @boat"},
    ]
    conversation, _ = parse_messages(said)
    assert [len(turn.images()) for turn in conversation.path()] == [1, 0, 1]
    next(store.folder.glob("boat/*.png")).write_bytes(b"\x89PNG damaged")
    with pytest.raises(RequestError, match=r"1\.png"):
        parse_messages(said[:1])


def test_a_question_in_a_style_names_its_picture() -> None:
    asked = Turn("user", (plain("red"), Text("Draw a boat.")))
    (style,) = [Image(plain("black").source, reference=INK)]
    assert (
        spell_out(ask_in_style(asked, [style])).text()
        == "Draw a boat.\n\nPaint every picture in the style of ink (black ink, see picture 2)."
    )
    shown = ask_in_style(asked, [plain("black")])
    assert (
        shown.text().endswith("in the style of @2.") and colours(shown) == [(255, 0, 0), (0, 0, 0)] and shown.images()[1].role == REFERENCE
    )


def command_lines(home: Path) -> Iterator[tuple[list[str], int, str]]:
    yield ["add", "boat", str(home / "a.png"), str(home / "b.png"), "--kind", "thing", "--words", "a red boat"], 0, "a message with @boat"
    yield ["add", "Boat", str(home / "a.png")], 2, "called @boat already"
    yield ["add", "boat", str(home / "a.png"), "--more"], 0, "Saved"
    yield ["list"], 0, "@boat                    thing      3 pictures  a red boat"
    yield ["remove", "@boat"], 0, "@boat is deleted"
    yield ["list"], 0, ""


def test_the_command_line_lists_adds_and_removes(store: ReferenceStore, tmp_path: Path, capsys) -> None:
    for name in "ab":
        plain("red").picture.save(tmp_path / f"{name}.png")
    for arguments, status, said in command_lines(tmp_path):
        assert main(["references", *arguments]) == status
        out = capsys.readouterr()
        assert said in out.out + out.err and (said or not out.out)


def test_pictures_that_fit_are_what_a_message_names(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path)
    asked = [
        ("How do I draw a red house?", "a" * 32),
        ("How do I draw a red house?", "a" * 32),
        ("Draw a dragon.", "b" * 32),
        ("画一只小船", "c" * 32),
    ]
    for number, (words, conversation) in enumerate(asked):
        info = PictureInfo(words, conversation=conversation, turn=conversation)
        gallery.add(PILImage.new("RGB", (8, 8), (number, 0, 0)), info)

    def suggest(words: str, apart_from: str = "") -> list[str]:
        return [entry.about.words for entry in gallery.suggest(words, apart_from=apart_from)]

    assert suggest("How do I draw a big house?") == ["How do I draw a red house?"], "one picture of an answer"
    assert suggest("How do I draw a big house?", "a" * 32) == suggest("How do I draw a cat?") == suggest('") OR x') == suggest("") == []
    assert suggest("A DRAGON, please!") == ["Draw a dragon."] and suggest("请画小船在海上") == ["画一只小船"]


def test_check_name_takes_names_of_all_scripts() -> None:
    for name in ("red-boat", "Boat_2", "2boats", "小船", "नाव", "Straße"):
        assert check_name(f"@{name}") == name
