"""What people bring to teach a pair: every kind of folder is read, what is wrong is said, and safe things are mended."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Message, save_conversation
from duogen.dataset import readers
from duogen.dataset.describe import TokenCounter, describe, problem_rows
from duogen.dataset.format import Data, Example, Picture, find_duplicates, split_examples, write_examples
from duogen.dataset.layouts.before_after import CHANGED
from duogen.dataset.readers import read_dataset
from duogen.library.conversations import ConversationStore
from duogen.models.sequence import Tokens
from tests.support.tiny import Qwen2VLImageProcessorPil, tiny_tokenizer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DUOGEN_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(tiny_tokenizer(), Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=64 * 64, max_pixels=64 * 64))


def picture(file: Path, seed: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = PILImage.linear_gradient("L").rotate(seed * 37 % 360).resize((32, 24)).convert("RGB")
    made.paste((seed * 50 % 256, 90, 20), (seed, seed, seed + 9, seed + 9))
    made.save(file)
    return file


def list_turns(example: Example) -> list[tuple[str, list[str]]]:
    return [(line.role, [part if isinstance(part, str) else part.file.name for part in line.parts]) for line in example.lines]


def part(value: str) -> dict:
    return {"type": "image", "file": value} if value.endswith(".png") else {"type": "text", "text": value}


def conversations(folder: Path, *dialogues: list[tuple[str, list[str]]] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    turns = [
        one if isinstance(one, str) else [{"role": role, "parts": [part(each) for each in parts]} for role, parts in one]
        for one in dialogues
    ]
    (folder / "conversations.jsonl").write_text("\n".join(one if isinstance(one, str) else json.dumps({"turns": one}) for one in turns))
    return folder


GOOD = [("user", ["Draw a boat."]), ("assistant", ["The hull.", "images/a.png", "Done."])]


def test_a_file_that_is_deleted_while_the_folder_is_read_is_named(tmp_path, monkeypatch):
    folder = conversations(tmp_path / "set", GOOD)
    picture(folder / "images" / "a.png")
    beside, take = folder / "state.sqlite-shm", readers._take
    beside.write_bytes(b"x")

    def take_and_delete(*given):
        beside.unlink(missing_ok=True)
        return take(*given)

    monkeypatch.setattr(readers, "_take", take_and_delete)
    data = read_dataset(folder)
    assert [(each.where, each.what) for each in data.unread] == [(beside.name, "was deleted while the folder was read")]
    assert len(data.examples) == 1 and not data.problems


def test_the_own_format_and_all_that_can_be_wrong_with_a_line(tmp_path):
    folder = conversations(
        tmp_path / "d", GOOD, "no json", '{"id": 1}', [("user", ["Hi"])], [("user", ["Hi"]), ("assistant", ["images/none.png"])],
        [("user", ["Hi"]), ("assistant", ["images/bad.png"])], [("user", ["Hi"]), ("king", ["Ho"])], [*GOOD, ("user", ["And now?"])],
        [("user", ["Hi"]), ("assistant", ["../outside.png"])], [("user", ["Hi"]), ("user", ["there"]), ("assistant", ["images/A.png"])],
        [("system", ["Be kind."]), *GOOD],
    )  # fmt: skip
    picture(folder / "images" / "a.png")
    (folder / "images" / "bad.png").write_bytes(b"not a picture")
    picture(tmp_path / "outside.png")
    data = read_dataset(folder)
    assert data.kind == "conversations" and len(data.examples) == 4
    assert list_turns(data.examples[0]) == GOOD[:1] + [("assistant", ["The hull.", "a.png", "Done."])]
    problems = {problem.where.split()[-1]: problem for problem in data.problems}
    for line, words in {"2": "not JSON", "3": "turns", "4": "no answer", "5": "none.png is missing", "6": "read as a picture"}.items():
        assert words in problems[line].what and not problems[line].fix, problems[line]
    assert "king" in problems["7"].what and "outside" in problems["9"].what
    assert problems["8"].fix == "left the question out" and len(data.examples[1].lines) == 2
    assert list_turns(data.examples[2]) == [("user", ["Hi", "\n", "there"]), ("assistant", ["a.png"])]
    assert data.count_left_out() == 7 and len(problem_rows(data)) == len(data.problems)


def test_too_long_examples_are_cut_after_an_answer_or_left_out(tmp_path, tokens):
    folder = conversations(tmp_path / "d", [*GOOD, ("user", ["More"]), ("assistant", ["x" * 300])], [("user", ["y" * 300]), GOOD[1]])
    picture(folder / "images" / "a.png")
    data = read_dataset(folder)
    whole = [TokenCounter(tokens)(example.lines) for example in data.examples]
    assert whole == [len(tokens.pack(example.turns()).ids) for example in data.examples]
    report = describe(data, tokens, 100)
    assert len(data.examples) == 1 and len(data.examples[0].lines) == 2 and report.fixed == 1 and report.left_out == 1
    assert report.tokens[2] <= 100 and report.sizes == {"32 x 24": 1} and report.painted == 1
    assert any("1 example left out, 1 mended" in words for words in report.sentences())


def test_exported_conversations_give_the_branch_that_is_shown(tmp_path):
    pic = Image(PILImage.open(picture(tmp_path / "p.png")).convert("RGB"), alt="a hull")
    talk = Conversation().say("user", "Draw a boat.").say("assistant", "Old answer.")
    talk = talk.at(talk.path()[0].id).say("assistant", "The hull.", pic)
    save_conversation(talk, tmp_path / "many" / talk.id)
    store = ConversationStore(tmp_path / "store")
    store.save(talk)
    (tmp_path / "many" / "boat.zip").write_bytes(store.pack(talk.id))
    (tmp_path / "one.zip").write_bytes(store.pack(talk.id))
    for source, count in ((tmp_path / "many", 2), (tmp_path / "one.zip", 1)):
        data = read_dataset(source)
        assert data.kind == "exported conversations" and not data.problems and len(data.examples) == count
        for example in data.examples:
            assert [line.text() for line in example.lines] == ["Draw a boat.", "The hull."]
            assert example.pictures()[0].alt == "a hull" and example.turns()[1].images()[0].picture.tobytes() == pic.picture.tobytes()


def test_captions_and_pairs(tmp_path):
    picture(tmp_path / "c" / "sub" / "one.png", 1).with_suffix(".txt").write_text("A boat.\n")
    picture(tmp_path / "c" / "two.jpg", 2)
    data = read_dataset(tmp_path / "c")
    assert [list_turns(each) for each in data.examples] == [[("user", ["A boat."]), ("assistant", ["A boat.\n", "one.png"])]]
    assert [file.name for file in data.loose] == ["two.jpg"]
    for index, name in enumerate(("x", "y", "z")):
        picture(tmp_path / "e" / "before" / f"{name}.png", index)
        picture(tmp_path / "e" / "after" / f"{name}.png", index + 10)
    (tmp_path / "e" / "after" / "x.txt").write_text("Make it red.")
    (tmp_path / "e" / "after" / "y.png").unlink()
    data = read_dataset(tmp_path / "e")
    assert list_turns(data.examples[0]) == [("user", ["x.png", "Make it red."]), ("assistant", [CHANGED, "x.png"])]
    assert data.examples[0].pictures("user")[0].file.parent.name == "before" and len(data.problems) == 2


def test_llava_and_hugging_face_folders(tmp_path):
    import datasets

    picture(tmp_path / "l" / "pics" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A boat."}]
    (tmp_path / "l" / "talk.json").write_text(json.dumps([{"image": "pics/a.png", "conversations": turns}, {"image": "b.png"}]))
    data = read_dataset(tmp_path / "l")
    assert data.kind == "LLaVA conversations" and len(data.problems) == 1
    assert list_turns(data.examples[0]) == [("user", ["a.png", "What is it?"]), ("assistant", ["A boat."])]
    stored = {"bytes": (tmp_path / "l" / "pics" / "a.png").read_bytes(), "path": "a.png"}
    made = datasets.Dataset.from_dict({"image": [stored] * 2, "text": ["A boat.", ""]})
    made = made.cast_column("image", datasets.Image())
    made.save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "hf" / "data").mkdir(parents=True)
    made.to_parquet(str(tmp_path / "hf" / "data" / "train-0.parquet"))
    for folder in (tmp_path / "disk", tmp_path / "hf"):
        data = read_dataset(folder)
        assert data.kind == "a Hugging Face dataset" and len(data.examples) == 1 and len(data.problems) == 1
        assert data.examples[0].turns()[1].images()[0].picture.size == (32, 24)


def test_what_cannot_be_read_gets_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no training data; bring"):
        read_dataset(tmp_path / "empty")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is no zip"):
        read_dataset(tmp_path / "bad.zip")


def test_a_zip_with_one_folder_in_it_and_back(tmp_path):
    folder = conversations(tmp_path / "d", GOOD)
    picture(folder / "images" / "a.png")
    write_examples(read_dataset(folder).examples, tmp_path / "again")
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        for file in (tmp_path / "again").rglob("*.*"):
            packed.write(file, Path("mine") / file.relative_to(tmp_path / "again"))
    (tmp_path / "d.zip").write_bytes(data.getvalue())
    assert [line.text() for line in read_dataset(tmp_path / "d.zip").examples[0].lines] == ["Draw a boat.", "The hull.Done."]
    assert read_dataset(tmp_path / "d.zip").examples[0].key() == read_dataset(folder).examples[0].key()


def test_the_split_is_by_conversation_and_always_the_same(tmp_path):
    files = [picture(tmp_path / f"{index}.png", index) for index in range(20)]
    made = [Example(str(index), (Message("user", ("a",)), Message("assistant", (Picture(file),)))) for index, file in enumerate(files)]
    train, held = split_examples(made, 0.2, 3)
    assert len(held) == 4 and len(train) == 16 and split_examples(made, 0.2, 3) == (train, held) and split_examples(made, 0.2, 4)[1] != held
    shared = [*made, Example("twin", made[int(held[0].where)].lines)]
    train, held = split_examples(shared, 0.2, 3)
    assert not {p.file for each in train for p in each.pictures()} & {p.file for each in held for p in each.pictures()}
    assert split_examples(made[:3]) == (made[:3], []) and split_examples(made, 0.0) == (made, [])


def test_pictures_that_look_the_same_are_found(tmp_path):
    one = picture(tmp_path / "1.png", 3)
    PILImage.open(one).resize((64, 48)).save(tmp_path / "2.jpg", quality=90)
    files = [one, tmp_path / "2.jpg", picture(tmp_path / "3.png", 8)]
    made = [Example(str(index), (Message("user", ("a",)), Message("assistant", (Picture(file),)))) for index, file in enumerate(files)]
    assert find_duplicates(made) == [("0", "1")]
    assert find_duplicates([Example("0", (*made[0].lines, *made[1].lines))]) == []
    assert Data("x", tmp_path).count_left_out() == 0


def test_pictures_of_other_colours_do_not_look_the_same(tmp_path: Path) -> None:
    made = []
    for index, colour in enumerate(("red", "#c00000", "blue", "red")):
        shown = PILImage.new("RGB", (64, 48), "white")
        shown.paste(colour, (16, 12, 48, 36))
        shown.putpixel((index, 0), (0, 0, 0))
        shown.save(tmp_path / f"{index}.png")
        made.append(Example(str(index), (Message("assistant", (Picture(tmp_path / f"{index}.png"),)),)))
    assert find_duplicates(made) == [("0", "3")]
