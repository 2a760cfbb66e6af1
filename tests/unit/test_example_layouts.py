"""The layouts of training data that people have: each is read, and what is not is named with its true reason."""

from __future__ import annotations

import base64
import io
import json
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image as PILImage
from pyarrow import parquet

from duogen.conversation import Conversation, save_conversation
from duogen.dataset.describe import describe, problem_rows
from duogen.dataset.format import Data, split_examples
from duogen.dataset.layouts.before_after import CHANGED
from duogen.dataset.readers import read_dataset
from tests.unit.test_examples import home, list_turns, picture, tokens  # noqa: F401

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def encoded(seed: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture_of(seed).save(out, form)
    return out.getvalue()


def picture_of(seed: int) -> PILImage.Image:
    return PILImage.linear_gradient("L").rotate(seed * 37 % 360).resize((32, 24)).convert("RGB")


def build(folder: Path, files: dict[str, str | bytes | int | list | dict]) -> Path:
    """Write files: a number is a picture, a list or an object is JSON, or JSON lines where the name says so."""
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, int):
            picture(file, data)
        elif isinstance(data, list | dict):
            file.write_text("\n".join(map(json.dumps, data)) if name.endswith("l") else json.dumps(data))
        else:
            file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def short(data: Data) -> list[list]:
    """The examples: words and names of pictures, user and assistant alternating."""
    return [[parts if len(parts) > 1 else parts[0] for _, parts in list_turns(example)] for example in data.examples]


def named(data: Data) -> dict[str, str]:
    return {where: what for where, what, _ in problem_rows(data)}


def captioned(**words: str) -> list[list]:
    return [[text, [f"{text}\n", name.replace("_", ".")]] for name, text in words.items()]


def chat(question: object, answer: object = "A.", **more: object) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} | more


def llava(question: object, answer: object = "A.", **more: object) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]} | more


DATA_URL = "data:image/png;base64," + base64.b64encode(encoded(4)).decode()
SEEN = [[["a.png", "What?"], "A."]]

CAPTIONS = {
    "capital endings": ({"A.PNG": 1, "a.TXT": "Sun"}, captioned(A_PNG="Sun")),
    "the picture's ending in the caption's name": ({"a.png": 1, "a.png.txt": "Sun"}, captioned(a_png="Sun")),
    "other endings": ({"a.png": 1, "a.caption": "Sun", "b.png": 2, "b.png.tags": "x, y"}, captioned(a_png="Sun", b_png="x, y")),
    "one JSON file each": ({"a.png": 1, "a.json": {"caption": "Sun"}, "b.png": 2, "b.json": {"tags": ["x", "y"]}},
                           captioned(a_png="Sun", b_png="x, y")),
    "a folder of captions": ({"images/x/a.png": 1, "captions/x/a.txt": "Sun", "train/images/b.png": 2, "train/captions/b.txt": "Tree"},
                             captioned(a_png="Sun", b_png="Tree")),
    "kohya's folders": ({"9_red sun/a.png": 1, "9_red sun/b.png": 2, "9_red sun/b.txt": "Tree"}, captioned(a_png="red sun", b_png="Tree")),
    "metadata.jsonl": ({"train/metadata.jsonl": [{"file_name": "a.png", "text": "Sun"}], "train/a.png": 1, "test/b.png": 2,
                        "test/metadata.jsonl": [{"file_name": "b.png", "text": "Tree"}], "README.md": "x"},
                       captioned(b_png="Tree", a_png="Sun")),
    "metadata.csv": ({"metadata.csv": 'file_name,text\r\na.png,"Sun, big"\r\n', "a.png": 1}, captioned(a_png="Sun, big")),
    "a table out of Excel": ({"set.csv": "Image;Caption\na.png;Käse\n".encode("utf-16"), "a.png": 1}, captioned(a_png="Käse")),
    "captions by names": ({"captions.json": {"a.png": "Sun", "b.png": {"caption": "Tree"}}, "images/a.png": 1, "b.png": 2},
                          captioned(a_png="Sun", b_png="Tree")),
    "letters of Windows": ({"a.png": 1, "a.txt": "Käse mit „Brot“".encode("cp1252")}, captioned(a_png="Käse mit „Brot“")),
    "one folder two deep": ({"x/y/a.png": 1, "x/y/a.txt": "Sun", "x/.DS_Store": "", "__MACOSX/y/._a.png": "", "Thumbs.db": ""},
                            captioned(a_png="Sun")),
}  # fmt: skip

CHATS = {
    "LLaMA-Factory": ({"set.json": [chat("<image>What?", images=["d/a.png"])], "d/a.png": 1, "dataset_info.json": {"x": {}}}, SEEN),
    "its rows as our file": ({"conversations.jsonl": [chat("<image>What?", images=["a.png"])], "a.png": 1}, SEEN),
    "its rows under another name": ({"train.jsonl": [chat("<image>What?", images=["a.png"])], "a.png": 1}, SEEN),
    "OpenAI": ({"x.jsonl": [chat([{"type": "image_url", "image_url": {"url": "images/a.png"}}, {"type": "text", "text": "What?"}])],
                "images/a.png": 1}, SEEN),
    "OpenAI's other names": ({"x.jsonl": [chat([{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "What?"}])],
                              "a.png": 1}, SEEN),
    "ShareGPT": ({"x.json": [llava("<image>\nWhat?", image="a.png", system="Be kind."), llava("Hi", image=None)], "a.png": 1},
                 [*SEEN, ["Hi", "A."]]),
    "a picture that no mark places": ({"x.json": [llava("What?", image="a.png")], "a.png": 1}, SEEN),
    "two files": ({"1.json": [llava("Hi")], "2.json": [llava("Ho")]}, [["Hi", "A."], ["Ho", "A."]]),
    "pictures named in the words": ({"x.json": [llava("<img>a.png</img>\nWhat?")], "a.png": 1}, SEEN),
    "paths of another machine": ({"x.json": [llava("<image>\nWhat?", image="C:\\Users\\me\\set\\images\\a.png")], "images/a.png": 1}, SEEN),
    "rows beside the pictures' folder": ({"texts/x.json": [llava("<image>\nWhat?", image="a.png")], "images/a.png": 1}, SEEN),
    "Alpaca": ({"x.json": [{"instruction": "Say", "input": "it", "output": "A."}]}, [["Say\nit", "A."]]),
    "questions": ({"x.json": {"data": [{"image": "a.png", "question": "What?", "answer": "A."}]}, "a.png": 1}, SEEN),
    "a list in a file of lines": ({"x.jsonl": json.dumps([chat("Hi")], indent=1)}, [["Hi", "A."]]),
    "lines in a file of JSON": ({"x.json": json.dumps(chat("Hi")) + "\n" + json.dumps(chat("Ho"))}, [["Hi", "A."], ["Ho", "A."]]),
    "a mark at the start": ({"conversations.jsonl": b"\xef\xbb\xbf" + json.dumps(chat("Hi")).encode()}, [["Hi", "A."]]),
    "PowerShell": ({"conversations.jsonl": (json.dumps(chat("Käse")) + "\r\n").encode("utf-16")}, [["Käse", "A."]]),
    "a line's end inside a string": ({"conversations.jsonl": json.dumps(chat("a\u2028b"), ensure_ascii=False)}, [["a\u2028b", "A."]]),
    "capital folders": ({"conversations.jsonl": [chat([{"type": "image", "file": "Images\\A.PNG"}, "What?"])], "images/a.png": 1}, SEEN),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CAPTIONS, *CHATS])
def test_a_layout_is_read(tmp_path: Path, name: str) -> None:
    files, wanted = (CAPTIONS | CHATS)[name]
    data = read_dataset(build(tmp_path / "set", files))
    assert short(data) == wanted and not data.loose and not data.count_left_out()
    found, learnt, others, passed = data.count_files()
    assert found == learnt + others + passed and others == ("dataset_info.json" in files)


def test_a_picture_inside_a_line_is_read(tmp_path: Path) -> None:
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA_URL.partition(",")[2]}}
    rows = [
        chat([{"type": "image_url", "image_url": {"url": DATA_URL}}, "What?"]),
        chat([block, "What?"]),
        chat([{"image": DATA_URL[:60]}]),
    ]
    data = read_dataset(build(tmp_path / "set", {"conversations.jsonl": rows}))
    assert [example.turns()[0].images()[0].picture.size for example in data.examples] == [(32, 24)] * 2
    assert named(data) == {"conversations.jsonl line 3": "the picture in a data URL cannot be read"}


REFUSED_ROWS = {
    "it is no JSON object": [[], 5, None, "words"],
    'it has no "turns"': [{"turns": {"a": 1}}, {"messages": None}, {}],
    'a turn has no "role"': [{"turns": [5]}],
    "must be": [{"turns": [{"role": "King", "text": "x"}]}],
    "role is function_call, which a pair does not read": [{"conversations": [{"from": "function_call", "value": "{}"}]}],
    "calls a tool": [{"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}],
    "has no words": [llava(None)],
    "are no text, but 5": [llava(5)],
    "names more pictures than it has": [llava("<image><image>", image="a.png"), llava("<image>")],
    "it has 2 pictures and marks the places of 1": [llava("<image>What?", image=["a.png", "a.png"])],
    'it has "videos"': [chat("<video>What?", videos=["v.mp4"])],
    "nothing is fetched": [chat([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])],
    "is missing": [
        llava("<image>", image="x" * 400 + ".png"),
        llava("<image>", image="a\0.png"),
        llava("<image>", image="images/none.png"),
    ],
    "lies outside": [llava("<image>", image="../../a.png")],
    "is a pipe": [llava("<image>", image="p.png")],
    "letters of its words were lost": [llava("a \ufffd b"), llava("a \x93b\x94")],
    'its "output" is empty': [{"instruction": "x", "output": ""}],
}


def test_every_odd_row_is_named_and_the_good_ones_are_read(tmp_path: Path) -> None:
    rows = [(reason, row) for reason, given in REFUSED_ROWS.items() for row in given]
    lines = [*(json.dumps(row) for _, row in rows), "no JSON", "[" * 100_000, "9" * 9_000, json.dumps(chat("Hi"))]
    folder = build(tmp_path / "set", {"conversations.jsonl": "\n".join(lines), "a.png": 1})
    os.mkfifo(folder / "p.png")
    data = read_dataset(folder)
    assert short(data) == [["Hi", "A."]] and len(data.problems) == len(lines) - 1
    for problem, (reason, row) in zip(data.problems, rows, strict=False):
        assert reason in problem.what and len(problem.what) < 250, (problem, row)
    assert all("not JSON" in problem.what for problem in data.problems[-3:])
    assert named(data)["a.png"] == "no conversation that is learnt shows it" and "pipe" in named(data)["p.png"]


def test_half_an_emoji_and_zeros_are_left_out_and_said(tmp_path: Path) -> None:
    text = '{"messages": [{"role": "user", "content": "Hi \\ud83d\\u0000"}, {"role": "assistant", "content": "\\ud83d\\ude00"}]}'
    data = read_dataset(build(tmp_path / "set", {"conversations.jsonl": text}))
    assert short(data) == [["Hi ", "\U0001f600"]] and data.problems[0].fix == "left these out"
    data = read_dataset(build(tmp_path / "other", {"a.png": 1, "a.txt": b"A red\0 sun", "b.png": 2, "b.txt": "Tree"}))
    assert short(data) == captioned(b_png="Tree") and "no text that can be read" in named(data)["a.txt"]


def test_odd_captions_are_named_once_each(tmp_path: Path, tokens) -> None:  # noqa: F811
    files = {"empty.txt": " \n", "signs.txt": ", , ,", "json.txt": '{"caption": "Sun"}', "list.txt": "[1, 2]", "long.txt": "word " * 600}
    files |= {name.replace(".txt", ".png"): at for at, name in enumerate(files)} | {"lfs.txt": POINTER, "lfs.png": 9, "alone.txt": "x"}
    data = read_dataset(build(tmp_path / "set", files))
    report = describe(data, tokens, 300)
    assert short(data) == captioned(json_png="Sun") and report.files == (13, 2, 11, 0)
    reasons = {
        "empty.txt": "caption is empty", "signs.txt": "no words, only signs", "json.txt": "caption is JSON", "list.txt": "no caption",
        "long.png": "tokens", "lfs.txt": "git lfs pull", "alone.txt": "no picture that is read has this name",
    }  # fmt: skip
    assert all(reason in named(data)[name] for name, reason in reasons.items()) and len(problem_rows(data)) == len(reasons)
    assert any("learnt from: 2; named with a reason: 11" in sentence for sentence in report.sentences())


def test_damaged_pictures_have_one_problem_each(tmp_path: Path) -> None:
    bad = {
        "cut.png": encoded(1)[:200],
        "empty.png": b"",
        "lfs.png": POINTER,
        "page.jpg": "<!doctype html><p>Not found",
        "zeros.png": bytes(900),
    }
    files = (
        {name.rsplit(".", 1)[0] + ".txt": "Sun" for name in bad}
        | bad
        | {"good.png": 3, "good.txt": "Tree", "loose.png": b"x", "free.png": 4}
    )
    data = read_dataset(build(tmp_path / "set", files))
    assert short(data) == captioned(good_png="Tree") and [file.name for file in data.loose] == ["free.png"]
    assert {problem.where for problem in data.problems} == {*bad, "loose.png"} and not data.unread and len(data.problems) == 6
    assert "git lfs pull" in named(data)["lfs.png"]


def test_pictures_before_and_after_belong_together_by_their_place(tmp_path: Path) -> None:
    sides = {f"{side}/{place}/1.png": at for at, side in enumerate(("Before", "AFTER")) for place in "xy"}
    sides |= {"AFTER/x/1.txt": "Make it x.", "instruction.txt": "Make it new."}
    data = read_dataset(build(tmp_path / "set", sides))
    pairs = [[picture.file.relative_to(tmp_path / "set").as_posix() for picture in example.pictures()] for example in data.examples]
    assert pairs == [["Before/x/1.png", "AFTER/x/1.png"], ["Before/y/1.png", "AFTER/y/1.png"]] and not problem_rows(data)
    assert short(data) == [[["1.png", words], [CHANGED, "1.png"]] for words in ("Make it x.", "Make it new.")]


def test_pictures_before_and_after_that_clash_or_are_alone_are_named(tmp_path: Path) -> None:
    names = ("before/1.png", "before/1.bmp", "after/1.png", "before/2.png", "before/2.bmp", "after/2.gif", "before/3.png", "after/3.bmp")
    names += ("before/a.png", "after/A.png", "before/alone.png", "after/only.png", "before/bad.png", "other.png")
    files = {name: at for at, name in enumerate(names)} | {"after/bad.png": b"no picture", "instruction.txt": "Make it red."}
    data = read_dataset(build(tmp_path / "set", files))
    pairs = sorted([picture.file.name for picture in example.pictures()] for example in data.examples)
    assert pairs == [["1.png", "1.png"], ["3.png", "3.bmp"], ["a.png", "A.png"]]
    rows = named(data)
    assert rows["before/1.png"] == "1.bmp and 1.png have one name in before" and "1.png" in rows["before/1.bmp"]
    assert "may become 2.gif" in rows["before/2.png"] and "belongs to" in rows["after/2.gif"]
    assert "no picture after/alone.png" in rows["before/alone.png"] and "no picture before/only.png" in rows["after/only.png"]
    assert rows["before/bad.png"].startswith("after/bad.png") and "neither" in rows["other.png"]
    assert data.count_files()[0] == sum(data.count_files()[1:]) == len(files)


def test_names_in_composed_and_decomposed_letters_are_one(tmp_path: Path) -> None:
    loose, joined = (unicodedata.normalize(form, "Käse") for form in ("NFD", "NFC"))
    files = {f"{loose}.png": 1, f"{joined}.txt": "Sun"}
    assert len(read_dataset(build(tmp_path / "a", files)).examples) == 1
    rows = [chat([{"type": "image", "file": f"images/{joined}.png"}, "What?"])]
    assert len(read_dataset(build(tmp_path / "b", {"conversations.jsonl": rows, f"images/{loose}.png": 1})).examples) == 1
    made = build(tmp_path / "c", {"conversations.jsonl": rows, "images/x.png": 1})
    os.rename(made / "images" / "x.png", os.fsencode(made / "images") + b"/K\xe4se.png")  # in Latin-1, as old disks have it
    data = read_dataset(made)
    assert len(data.examples) == 1 and json.dumps(problem_rows(data)).encode()


def test_a_picture_with_another_ending_is_taken_and_said_if_it_can_be_read(tmp_path: Path) -> None:
    rows = [chat([{"type": "image", "file": f"{name}.png"}, "What?"]) for name in ("good", "bad", "two")]
    files = {"conversations.jsonl": rows, "good.bmp": 1, "bad.jpg": b"no picture", "two.bmp": 2, "two.gif": 3}
    data = read_dataset(build(tmp_path / "set", files))
    assert short(data) == [[["good.bmp", "What?"], "A."]] and data.problems[0].fix == "took good.bmp"
    assert "bad.jpg" in data.problems[1].what and "two.png is missing" in data.problems[2].what and len(data.problems) == 3


def test_links_are_followed_once_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    other = build(tmp_path / "disk", {"images/a.png": 1, "images/a.txt": "Sun"})
    folder = build(tmp_path / "set", {"b.png": 2, "b.txt": "Tree", "folder.png/x.md": "x"})
    for name, target in {"one": other, "two": other, "up": "..", "round.png": "round.png", "gone.png": "nowhere.png"}.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    data = read_dataset(folder)
    assert short(data) == captioned(b_png="Tree", a_png="Sun")
    reasons = {
        "two": "a link to the folder one", "up": "holds this one", "round.png": "back to itself", "gone.png": "file that is not there",
        "pipe.png": "is a pipe", "folder.png": "is a folder", "folder.png/x.md": "end in .md",
    }  # fmt: skip
    assert {name: reason in named(data)[name] for name, reason in reasons.items()} == dict.fromkeys(reasons, True)
    assert data.count_files() == (11, 4, 7, 0)
    linked = build(tmp_path / "linked", {"conversations.jsonl": [chat([{"type": "image", "file": "images/a.png"}, "What?"])]})
    (linked / "images").symlink_to(other / "images")
    assert short(read_dataset(linked)) == SEEN


def test_a_table_of_hugging_face_loses_only_its_bad_rows(tmp_path: Path) -> None:
    one, two = ({"bytes": encoded(seed), "path": f"{seed}.png"} for seed in (1, 2))
    tables = {
        "plain": [{"image": one, "text": "Sun"}, {"image": {"bytes": None, "path": "gone.png"}, "text": "x"}, {"image": one, "text": None}],
        "talk": [{"image": one, **llava("<image>What?")}, {"image": None, **llava(None)}],
        "change": [{"original_image": one, "edit_prompt": "Make it red.", "edited_image": two}],
        "two": [{"image": one, "conditioning_image": two, "text": "Tree"}],
        "named": [{"file_name": "b.png", "text": "Car"}],
    }
    (tmp_path / "set").mkdir()
    for name, rows in tables.items():
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / f"{name}.parquet")
    build(tmp_path / "set", {"cut.parquet": (tmp_path / "set" / "plain.parquet").read_bytes()[:300], "lfs.parquet": POINTER, "b.png": 3})
    data = read_dataset(tmp_path / "set")
    rows = named(data)
    assert [example.where for example in data.examples] == [f"{name}.parquet row 1" for name in ("change", "named", "plain", "talk", "two")]
    assert len(data.examples[0].pictures("user")) == len(data.examples[0].pictures("assistant")) == 1
    assert (
        "damaged" in rows["cut.parquet"] and "git lfs pull" in rows["lfs.parquet"] and "gone.png is missing" in rows["plain.parquet row 2"]
    )
    assert "conditioning_image" in rows["two.parquet"] and "has no words" in rows["talk.parquet row 2"] and len(rows) == 6


def test_an_export_that_is_damaged_leaves_the_others_alone(tmp_path: Path) -> None:
    for number in range(3):
        save_conversation(Conversation().say("user", "Draw.").say("assistant", "Here.", picture_of(number)), tmp_path / "set" / str(number))
    (tmp_path / "set" / "1" / "conversation.json").write_text('{"turns": [' * 5000)
    (next((tmp_path / "set" / "2" / "images").iterdir())).unlink()
    data = read_dataset(build(tmp_path / "set", {"stray.zip": b"PK\x03\x04 no zip", "notes.txt": "x"}))
    assert [example.where for example in data.examples] == ["0"] and {problem.where for problem in data.problems} == {"1", "2"}
    assert "not opened" in named(data)["stray.zip"] and "notes.txt" in named(data)
    alone = read_dataset(build(tmp_path / "other", {"conversation.json": [llava("Hi")]}))
    assert short(alone) == [["Hi", "A."]]  # another program's file of that name


def test_no_picture_is_on_both_sides_whatever_its_file_is_called(tmp_path: Path) -> None:
    files = {f"{at}.{ending}": 1 for at, ending in enumerate(("png", "bmp", "tiff", "png", "bmp"))} | {
        f"{at}.png": at for at in range(5, 20)
    }
    data = read_dataset(build(tmp_path / "set", files | {f"{at}.txt": f"Words {at}" for at in range(20)}))
    for seed in range(10):
        train, held = split_examples(data.examples, 0.2, seed)
        same = [bool({"0", "1", "2", "3", "4"} & {each.where.split(".")[0] for each in side}) for side in (train, held)]
        assert sum(same) == 1 and len(train) + len(held) == 20 and len(held) == 4
    same_picture = [each for each in data.examples if each.where.split(".")[0] in set("01234")]
    assert len(same_picture) == 5 and split_examples(same_picture) == (same_picture, [])


@pytest.mark.parametrize(("name", "data", "words"), [
    ("x.zip", POINTER, "git lfs pull"), ("x.7z", b"7z\xbc\xaf\x27", "7z archive, no zip"), ("x.tgz", b"\x1f\x8b", "gzip file, no zip"),
    ("x.jsonl", "{}", "no zip and no folder"), ("x.zip", b"PK\x03\x04", "is no zip, or is damaged"), ("x.zip", "", "no zip and no folder"),
])  # fmt: skip
def test_what_is_no_zip_is_called_by_its_name(tmp_path: Path, name: str, data: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        read_dataset(build(tmp_path, {name: data}) / name)
    assert str(raised.value).count(". ") == 0
    assert not list((tmp_path / "home").rglob("*"))


def test_a_folder_without_training_data_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it holds 2 files, such as a.pdf"):
        read_dataset(build(tmp_path / "set", {"a.pdf": "x", "b.docx": "x"}))
    data = read_dataset(build(tmp_path / "cut", {"set.json": json.dumps([chat("Hi")] * 3, indent=1)[:-20], "a.png": 1}))
    assert not data.loose and "not JSON" in named(data)["set.json"]  # not: the pictures have no words
    for name in ("x" * 5000, "a\0b", "~nobody-here/x"):
        with pytest.raises(ValueError, match="There is no folder"):
            read_dataset(Path(name))
