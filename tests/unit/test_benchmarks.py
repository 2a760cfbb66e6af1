"""The benchmarks: models of official layouts, GenEval's rules, the judge and its answers, answers that survive a kill."""

from __future__ import annotations

import json
import random
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image as PILImage
from PIL import ImageDraw

from duogen.cli.main import main
from duogen.conversation import Conversation, Image, Text
from duogen.evaluate import benchmarks
from duogen.evaluate.answer_files import SCORES, add_score, answer_all, list_answered, load_answer, load_painting, load_scores, save_answer
from duogen.evaluate.benchmark import Scorer, published_figures, score_all
from duogen.evaluate.benchmarks import benchmark_names, describe_benchmark, find_benchmark
from duogen.evaluate.benchmarks.geneval import COLOURS, check_picture, dominant_colour
from duogen.evaluate.detector import Detection, bounding_box
from duogen.evaluate.drawings import DrawingDetector
from duogen.evaluate.judge import check_pair_prompt, compare_answers, judge_answer, parse_verdict, read_scores
from duogen.evaluate.rubric import FIVE, Rubric
from duogen.evaluate.side import System, compute_win_rates, write_side_by_side
from duogen.evaluate.tasks import Benchmark, Task, load_tasks
from duogen.events import Done, ImageDone, Stats, TextDelta
from duogen.prompts import PROMPTS, load_prompt
from duogen.sketchbook.draw import draw
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.world import make_thing, random_thing
from tests.support.hub import served

PAINT = {
    "red": (220, 30, 30),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "purple": (140, 50, 190),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "": (90, 170, 200),
}
SIDE, CELL, MARKER = 192, 44, (255, 0, 255)


# GenEval


def drawn(about: dict, classes: list[str]) -> PILImage.Image:
    """What a prompt asks for, as marked rectangles: the marker's neighbour says the class."""
    picture = PILImage.new("RGB", (SIDE, SIDE), (128, 128, 128))
    spots, column = [], 0
    for wanted in about["include"]:
        for _ in range(wanted["count"]):
            left, top = 4 + column % 4 * (CELL + 2), 4 + 3 * column // 4 * (CELL // 4) % 3 * (CELL + 2)
            if "position" in wanted:
                relation, target = wanted["position"]
                step = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
                left, top = (at + 70 * way for at, way in zip(spots[target], step, strict=True))
            elif any("position" in each for each in about["include"]):
                left = top = 74
            spots.append((left, top))
            context = ImageDraw.Draw(picture)
            context.rectangle((left, top, left + CELL - 1, top + CELL - 1), PAINT[wanted.get("color", "")])
            picture.putpixel((left, top), MARKER)
            picture.putpixel((left + 1, top), (classes.index(wanted["class"]), 0, 0))
            column += 1
    return picture


class Reads:
    """Finds the marked rectangles."""

    name, known_classes = "reads marks", None

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def find(self, picture: PILImage.Image) -> list[Detection]:
        pixels = np.asarray(picture)
        seen = []
        for top, left in np.argwhere((pixels == MARKER).all(-1)):
            mask = np.zeros(pixels.shape[:2], bool)
            mask[top : top + CELL, left : left + CELL] = True
            seen.append(Detection(self.classes[pixels[top, left + 1, 0]], 0.99, bounding_box(mask), mask))
        return seen


def test_drawn_pictures_score_one_and_permuted_ones_what_permutation_gives(tmp_path: Path):
    benchmark = find_benchmark("geneval")
    tasks = load_tasks(benchmark, None)
    assert len(tasks) == 553
    classes = sorted({wanted["class"] for task in tasks for wanted in task.about["include"]})
    pictures = [drawn(task.about, classes) for task in tasks]
    detector = Reads(classes)
    wrong = [
        (task.words(), why)
        for task, picture in zip(tasks, pictures, strict=True)
        for good, why in [check_picture(task.about, task.group, picture, detector)]
        if not good
    ]
    assert wrong == []
    order = list(range(len(tasks)))
    random.Random(0).shuffle(order)
    by_chance = sum(check_picture(task.about, task.group, pictures[at], detector)[0] for task, at in zip(tasks, order, strict=True))
    some = [(tasks[a], pictures[b]) for a in range(0, 553, 29) for b in range(0, 553, 23)]
    alike = sum(check_picture(task.about, task.group, picture, detector)[0] for task, picture in some)
    assert alike / 500 < 0.03 and by_chance <= 15, "the wrong picture passes as rarely as prompts are alike"
    for task, picture in zip(tasks[:12], pictures, strict=False):
        save_answer(tmp_path, task.id, [Text("Here."), Image(picture)])
    results = score_all(benchmark, tasks[:12], tmp_path, Scorer(detector=detector), log=lambda words: None)
    assert results["score"]["value"] == 1.0 and results["published"][0]["name"] == "DuoGen"


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_by_rules(colour: str):
    picture = PILImage.new("RGB", (20, 20), PAINT[colour])
    assert dominant_colour(picture, np.ones((20, 20), bool)) == colour


def test_counting_refuses_too_many():
    about = {"include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}]}
    three = drawn({"include": [{"class": "clock", "count": 3}]}, ["clock"])
    assert check_picture(about, "counting", three, Reads(["clock"])) == (False, "3 clock, fewer than 3 expected")


def test_a_real_segmenter_class_finds_in_its_layout(tmp_path: Path):
    """Random weights find nothing sensible; that they load from a folder and answer in the right form is what is tested."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil, SwinConfig

    from duogen.evaluate.detector import Mask2Former

    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        mask_feature_size=32,
        feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        num_queries=4,
        num_labels=3,
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    found = Mask2Former(str(tmp_path)).find(PILImage.new("RGB", (80, 60)))
    assert all(each.mask.shape == (60, 80) and each.score >= 0.3 for each in found)
    with pytest.raises(ValueError, match="--detector"):
        Mask2Former(str(tmp_path / "none"))


def test_without_a_detector_drawings_are_read_and_that_is_said(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def nowhere(*given, **more):
        raise OSError("no such repository")

    monkeypatch.setattr("transformers.Mask2FormerForUniversalSegmentation.from_pretrained", nowhere)
    car = {part: "red" for part in ("body", "cabin", "window", "wheels")}
    painted = {
        "a photo of a car": (draw(Scene("meadow", (random_thing(random.Random(1), ["car"]),))), True),
        "a photo of a boat": (draw(Scene("sea", (random_thing(random.Random(1), ["truck"]),))), False),
        "a photo of a red car": (draw(Scene("meadow", (make_thing("car", car, side="left", scale="small"),))), True),
        "a photo of a bench": (draw(Scene("meadow", (random_thing(random.Random(1), ["car"]),))), False),
        "a photo of a cat": (None, False),
    }
    tasks = {task.words(): task for task in load_tasks(find_benchmark("geneval"), None)}
    for words, (picture, _) in painted.items():
        save_answer(tmp_path, tasks[words].id, [Text("Here."), *([Image(picture)] if picture else [])])
    argv = ["evaluate", "geneval", "--score-only", "--out", str(tmp_path)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "detector is missing" in said and "10 of the 80 objects" in said and "counts as wrong: 1 of 5" in said, said
    rows = {row["id"]: row for row in load_scores(tmp_path, f"{DrawingDetector.name}, colours by rules").values()}
    found = {words: bool(rows[tasks[words].id]["scores"]["score"]) for words in painted}
    assert found == {words: good for words, (_, good) in painted.items()}
    assert rows[tasks["a photo of a bench"].id]["failed"] == "the detector does not know: bench"
    assert json.loads((tmp_path / "results.json").read_text())["judge"].startswith("sketchbook reader")
    assert main([*argv, "--detector", str(tmp_path / "none")]) == 2 and "--detector" in capsys.readouterr().err
    tool = DrawingDetector().find(draw(Scene("meadow", (make_thing("car", car, side="left", scale="small"),))).resize((512, 512)))
    assert [each.name for each in tool] == ["car"] and tool[0].mask.shape == (512, 512) and tool[0].box[2] < 300


# Readers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "a").mkdir(parents=True)
    PILImage.new("RGB", (32, 32), "red").save(tmp_path / "images" / "a" / "1.png")
    return tmp_path


def write(file: Path, raw: object, lines: bool = False) -> None:
    text = "\n".join(json.dumps(each) for each in raw) if lines else json.dumps(raw)
    file.write_text(text, encoding="utf-8")


LAYOUTS = {
    "wise": (
        (
            "cultural_common_sense.json",
            [{"prompt_id": 1, "Prompt": "A festival dish", "Category": "Culture", "Explanation": "Mooncakes"}],
            False,
        ),
        ("spatio-temporal_reasoning.json", [{"prompt_id": 2, "Prompt": "x", "Category": "Time", "Explanation": "y"}], False),
        ("natural_science.json", [{"prompt_id": 3, "Prompt": "x", "Category": "Physics", "Explanation": "y"}], False),
    ),
    "imgedit": (("basic_edit.json", {"7": {"id": "a/1.png", "prompt": "Make it blue.", "edit_type": "adjust"}}, False),),
    "gedit": (
        (
            "gedit.jsonl",
            [
                {
                    "key": "k",
                    "task_type": "color_alter",
                    "instruction": "Make it blue.",
                    "instruction_language": "en",
                    "input_image": "a/1.png",
                },
                {"key": "c", "task_type": "color_alter", "instruction": "x", "instruction_language": "cn", "input_image": "a/1.png"},
            ],
            True,
        ),
    ),
    "interleavedbench": (
        (
            "interleaved_bench.json",
            [
                {
                    "id": "i",
                    "task_name": "wikihow_next_step",
                    "image": ["a/1.png", "a/1.png"],
                    "conversations": [
                        {"from": "human", "value": "<BEGIN>First step. <image> What is next?"},
                        {"from": "gpt", "value": "Then <image>"},
                    ],
                }
            ],
            False,
        ),
    ),
    "comm": (
        (
            "test.jsonl",
            [
                {
                    "data_id": "c",
                    "dataset_type": "wikihow",
                    "title": "folding a crane",
                    "summary_info": "",
                    "step_info": [[{"type": "text", "content": "Fold it."}, {"type": "image", "image_path": "a/1.png"}]],
                }
            ],
            True,
        ),
    ),
    "opening": (
        (
            "test_data.jsonl",
            [
                {
                    "total_uid": "o",
                    "meta_task_name": "Travel",
                    "conversations": [
                        {"input": [{"text": "<BEGIN> Plan a day like this.", "image": "a/1.png"}]},
                        {"output": [{"text": "Go.", "image": None}]},
                    ],
                }
            ],
            True,
        ),
    ),
    "isg": (
        (
            "ISG-Bench.jsonl",
            [
                {
                    "id": "s",
                    "Category": "HowTo",
                    "Query": [{"type": "text", "content": "How?"}, {"type": "image", "content": "a/1.png"}],
                    "Golden": [{"type": "text", "content": "So."}, {"type": "image", "content": "a/1.png"}],
                    "predict": {"image_qa": [{"id": "q1", "Question": "Is it red?", "Preliminary": [], "image": "<gen_img1>"}]},
                }
            ],
            True,
        ),
    ),
    "ueval": (
        (
            "test.jsonl",
            [{"id": "1", "task": "life", "prompt": "How?", "text_rubrics": ["Says how."], "image_rubrics": ["Shows."], "text_ref": "So."}],
            True,
        ),
    ),
    "mmie": (
        (
            "data.json",
            [{"id": "m", "question": [{"text": "Why?", "image": "a/1.png"}], "gt_answer": [{"text": "So.", "image": None}]}],
            False,
        ),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_readers_of_the_official_layouts(name: str, folder: Path):
    for file, raw, lines in LAYOUTS[name]:
        write(folder / file, raw, lines)
    tasks = load_tasks(find_benchmark(name), folder)
    assert len(tasks) == (3 if name == "wise" else 1) and all(task.id and task.words() and "<" not in task.words() for task in tasks)
    assert len(tasks[0].pictures()) == (0 if name in ("wise", "comm", "ueval") else 1)
    if name in ("comm", "opening", "isg", "mmie", "interleavedbench", "ueval"):
        assert tasks[0].about["reference"].strip()
    (folder / LAYOUTS[name][0][0]).write_text('{"x": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="not laid out|no task"):
        load_tasks(find_benchmark(name), folder)
    (folder / LAYOUTS[name][0][0]).unlink()
    with pytest.raises(ValueError, match="lacks"):
        load_tasks(find_benchmark(name), folder)


def test_benchmarks_are_fetched_from_the_hub_once(folder: Path, tmp_path_factory, monkeypatch, capsys):
    (name, raw, _), root = LAYOUTS["imgedit"][0], tmp_path_factory.mktemp("hub")
    write(folder / "images" / name, raw)
    (root / "imgedit").mkdir()
    with tarfile.open(root / "imgedit" / "Benchmark.tar", "w") as archive:
        archive.add(folder / "images", "Benchmark/singleturn")
    (root / "imgedit" / "much.tar").write_bytes(b"no archive")
    rows = {"key": ["k"], "task_type": ["color_alter"], "instruction": ["Make it blue."], "instruction_language": ["en"]}
    picture = PILImage.open(folder / "images" / "a" / "1.png")
    features = Features({**{each: Value("string") for each in rows}, "input_image": Picture()})
    (root / "gedit" / "data").mkdir(parents=True)
    Dataset.from_dict(rows | {"input_image": [picture]}, features).to_parquet(root / "gedit" / "data" / "train.parquet")
    monkeypatch.setenv("DUOGEN_HOME", str(root / "home"))
    command = ["evaluate", "imgedit", "--answer-only", "--out", str(root / "out")]
    with served({"datasets/sysuyy/ImgEdit": root / "imgedit", "datasets/stepfun-ai/GEdit-Bench": root / "gedit"}) as hub:
        address = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {"ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": address, "HF_HUB_OFFLINE": False}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        hub.refuse = {"Benchmark.tar": (403, "")}
        assert main(command) == 2 and "imgedit cannot be fetched from the hub" in capsys.readouterr().err
        assert not (root / "home" / "benchmarks" / "imgedit").exists()
        hub.calm()
        found = load_tasks(find_benchmark("imgedit"), None)
        assert "much.tar" not in {name for name, _ in hub.asked}, "terabytes that nobody needs"
        named = load_tasks(find_benchmark("gedit"), Path("stepfun-ai/GEdit-Bench"))
        hub.refuse = {"": (500, "")}
        assert load_tasks(find_benchmark("imgedit"), None) == found and load_tasks(find_benchmark("gedit"), None) == named
        hub.refuse = {"InterleavedBench": (404, "RepoNotFound"), "MMIE": (403, "GatedRepo")}
        with pytest.raises(ValueError, match="interleavedbench cannot be fetched from the hub .*--data"):
            load_tasks(find_benchmark("interleavedbench"), None)
        with pytest.raises(ValueError, match="accept its terms: do so on huggingface.co/datasets/MMIE/MMIE"):
            load_tasks(find_benchmark("mmie"), None)
    assert [(task.words(), len(task.pictures())) for task in (*found, *named)] == [("Make it blue.", 1)] * 2
    with pytest.raises(ValueError, match="wise does not come with DuoGen; get it .github.com/PKU-YuanGroup/WISE."):
        load_tasks(find_benchmark("wise"), None)


def test_an_id_that_occurs_twice_is_answered_twice(folder: Path):
    """And a picture whose ending is written otherwise is found."""
    raw = LAYOUTS["isg"][0][1][0]
    again = {**raw, "Category": "Story", "Query": [raw["Query"][0], {"type": "image", "content": "a/1.PNG"}]}
    write(folder / "ISG-Bench.jsonl", [raw, again], lines=True)
    tasks = load_tasks(find_benchmark("isg"), folder)
    assert [task.id for task in tasks] == ["s", "s-2"] and tasks[0].pictures() == tasks[1].pictures()


def test_dpg_ships_and_takes_its_published_questions(folder: Path):
    tasks = load_tasks(find_benchmark("dpg"), None, limit=50)
    assert len(tasks) == 50 and not tasks[0].about["published_questions"] and tasks[0].about["questions"][0]["ask"].startswith("Does")
    write(folder / "prompts.jsonl", [{"id": "0", "prompt": "A red cube."}], lines=True)
    (folder / "dpg_bench.csv").write_text(
        "item_id,proposition_id,dependency,category_broad,question_natural_language\n"
        "0,1,0,entity,Is there a cube?\n0,2,1,attribute,Is it red?\n"
    )
    (task,) = load_tasks(find_benchmark("dpg"), folder)
    assert [each["after"] for each in task.about["questions"]] == [[], ["1"]] and task.about["published_questions"]


UEVAL = [  # id, task, prompt, criteria of words, criteria of pictures
    ("1", "life", "How do I fold a shirt?", ["Says to lay it flat.", "Names three steps."], ["Each picture shows a step."]),
    ("2", "paper", "Draw the model.", [], ["Shows an encoder.", "Shows a decoder."]),
]


def write_ueval(folder: Path, first_version: bool = False) -> Path:
    """A miniature of the published Parquet file, with the columns and types of its card."""
    criterion: object = Value("string")
    if first_version:
        criterion = {"criterion": Value("string"), "tags": [Value("string")]}
    columns = {each: Value("string") for each in ("id", "task_type" if first_version else "task", "prompt", "text_ref")}
    features = Features({**columns, "text_rubrics": [criterion], "image_rubrics": [criterion], "image_ref": [Picture()]})
    rows: dict[str, list] = {name: [] for name in features}
    for id, task, prompt, words, pictures in UEVAL:
        marks = [[{"criterion": ask, "tags": []} if first_version else ask for ask in asks] for asks in (words, pictures)]
        row = (id, task, prompt, "So.", *marks, [PILImage.new("RGB", (8, 8), "red")])
        for name, value in zip(features, row, strict=True):
            rows[name].append(value)
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict(rows, features).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_ueval_is_read_in_both_published_layouts(tmp_path: Path):
    one, other = (load_tasks(find_benchmark("ueval"), write_ueval(tmp_path / str(first), first)) for first in (False, True))
    assert one == other and [(task.id, task.group, task.words(), task.pictures()) for task in one] == [(*row[:3], []) for row in UEVAL]
    asked = [[(each["about"], each["ask"]) for each in task.about["criteria"]] for task in one]
    assert asked == [[*(("text", ask) for ask in row[3]), *(("image", ask) for ask in row[4])] for row in UEVAL]


# A file each


def test_every_file_is_a_benchmark_that_can_be_judged():
    names = {file.stem for file in Path(benchmarks.__file__).parent.glob("[a-z]*.py")}
    assert {"geneval", "dpg", "wise", "imgedit", "gedit", "interleavedbench", "comm", "opening", "isg", "mmie"} <= names
    assert names == set(benchmark_names())
    for name in names:
        benchmark = find_benchmark(name)
        benchmark.check_prompt()
        assert benchmark.name == name and describe_benchmark(name).endswith(".")
    with pytest.raises(ValueError, match="no benchmark napkin; choose one of "):
        find_benchmark("napkin")


SUMS = '''"""Sums: pictures of sums, 100 % by hand."""

from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task, read_json

RUBRIC = Rubric("judge-wise", ("consistency", "realism", "aesthetic"), 2.0)
BENCHMARK = Benchmark("sums", "picture", lambda folder: (Task(each, (each,)) for each in read_json(folder / "sums.json")), RUBRIC)
'''


def test_adding_a_benchmark_is_adding_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (tmp_path / "sums.py").write_text(SUMS, encoding="utf-8")
    write(tmp_path / "sums.json", ["1 + 1", "2 + 2"])
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    monkeypatch.setattr("duogen.engine.Engine.open", lambda *_, **__: Painter())
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    assert "Sums: pictures of sums, 100 % by hand." in " ".join(capsys.readouterr().out.split())
    assert "duogen.evaluate.benchmarks.sums" not in sys.modules, "--help imported it"
    assert main(["evaluate", "sums", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--answer-only"]) == 0
    assert len(list((tmp_path / "out" / "answers").iterdir())) == 2
    sys.modules.pop("duogen.evaluate.benchmarks.sums")
    (tmp_path / "sums.py").write_text(SUMS.replace("BENCHMARK =", "MARKS ="), encoding="utf-8")
    with pytest.raises(ValueError, match="must define BENCHMARK"):
        find_benchmark("sums")
    sys.modules.pop("duogen.evaluate.benchmarks.sums")


ASKS = 'Look. {{question}}\nAnswer with JSON only:\n{"answer": "yes"}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "no prompt judge-question"),
        (b"\xff\xfe", "cannot be read"),
        (ASKS.replace("{{question}}", "").encode(), "lacks the blank {{question}}"),
        (ASKS.replace("Look", "{{mood}}").encode(), "blank mood that nothing fills"),
        (ASKS.replace("answer", "verdict").encode(), "must end in a JSON object with answer"),
        (ASKS.removesuffix("}").encode(), "must end in a JSON object"),
        (ASKS.partition("\n")[0].encode(), "must end in a JSON object"),
    ],
)
def test_a_broken_prompt_is_refused_before_the_first_answer(text, why, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Also where scoring is for later: then its hours would be in vain too."""

    def opened(*given, **more):
        raise AssertionError("the pair was opened")

    for file in PROMPTS.glob("*.md"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "judge-question.md").unlink()
    if text is not None:
        (tmp_path / "judge-question.md").write_bytes(text)
    monkeypatch.setattr("duogen.prompts.PROMPTS", tmp_path)
    monkeypatch.setattr("duogen.engine.Engine.open", opened)
    load_prompt.cache_clear()
    try:
        assert main(["evaluate", "dpg", "--limit", "2", "--out", str(tmp_path / "out"), "--answer-only"]) == 2
    finally:
        load_prompt.cache_clear()
    said = capsys.readouterr().err
    assert why in said and len(said.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_comparison_looks_at_its_prompt_before_it_opens_the_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    check_pair_prompt()
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        (folder / "answers").mkdir(parents=True)
    monkeypatch.setattr("duogen.prompts.PROMPTS", tmp_path)
    load_prompt.cache_clear()
    try:
        assert main(["evaluate", "compare", "dpg", *map(str, folders), "--judge", "/no/such/judge"]) == 2
    finally:
        load_prompt.cache_clear()
    assert "no prompt judge-pair" in capsys.readouterr().err


def test_a_figure_is_made_of_scores_that_are_asked_for():
    keys = find_benchmark("comm").rubric.keys
    for rubric, why in (
        (Rubric("judge-comm", keys, overall=lambda scores: scores["charm"]), "a score 'charm'"),
        (Rubric("judge-comm", keys, about_pictures=("charm",)), "'charm', which is about pictures"),
        (Rubric("judge-comm", keys[1:]), "and no other keys"),
    ):
        with pytest.raises(ValueError, match=why):
            Benchmark("comm", "interleaved", lambda folder: iter(()), rubric).check_prompt()
    with pytest.raises(ValueError, match="either a rubric for a judge or a check for a detector"):
        Benchmark("comm", "interleaved", lambda folder: iter(())).check_prompt()


# The judge


class Says:
    """A judge that answers in turn, the last answer for ever; `asked` are the questions and pictures."""

    name, version = "says", "1"

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []

    def ask(self, question: str, pictures, most: int = 512) -> str:
        self.asked.append((question, list(pictures)))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


WELL = {"t_com": 4, "i_com": 3.5, "i_co": 2, "i_q": 0, "it_co": 5}

PLAIN = json.dumps(WELL)
BARE = PLAIN.replace('"', "")
SINGLE = PLAIN.replace('"', "'")
READABLE = [
    PLAIN,
    f"```json\n{PLAIN}\n```",
    f"```\n{PLAIN}```",
    f"Here you are:\n{PLAIN}",
    f"{PLAIN}\n\nI hope this helps!",
    f"<think>{{maybe 3?}}</think>{PLAIN}",
    SINGLE,
    BARE,
    PLAIN[:-1] + ",}",
    PLAIN.replace(",", ",\n  "),
    PLAIN.replace(": ", ":"),
    PLAIN.upper(),
    PLAIN[:-1],
    f"json\n{PLAIN}",
    f"[{PLAIN}]",
    PLAIN.replace('"', "\u201d").replace("{\u201d", "{\u201c"),
    f'{{"scores": {PLAIN}}}',
    PLAIN.replace("4,", "4, // quite complete\n"),
    PLAIN.replace(": 4", ': "4"'),
    PLAIN.replace(": 4", ': "4/5"'),
    PLAIN.replace(": 4", ": 4/5"),
    PLAIN.replace(": 4", ': {"score": 4, "why": "ok"}'),
    PLAIN.replace("t_com", "T-Com").replace('i_co"', 'I Co"'),
    PLAIN[:-1] + ', "comment": "a {curly} one"}',
    PLAIN[:-1] + ', "comment": "it\'s fine"}',
    PLAIN[:-1] + ', "why": "cut off in the mid',
    PLAIN[:-1] + ', "ok": True, "rest": None}',
    PLAIN.replace(": 0", ": 0.0"),
    "\ufeff" + PLAIN,
    f'First I thought {{"t_com": 1}} but no: {PLAIN}',
    PLAIN.replace(": 4", ": [4]"),
    PLAIN.replace(", ", "\n"),
    f"**Answer:** {PLAIN}",
    PLAIN.replace("{", "{ \n\n"),
    PLAIN[:-1] + ', "text": "line\nbreak"}',
    f"{PLAIN}{PLAIN}",
    PLAIN.replace(": 5", ": +5"),
    PLAIN.replace(": 3.5", ": 3.50"),
    f"<json>{PLAIN}</json>",
    f"Scores = {PLAIN};",
    PLAIN.replace('"t_com"', "t_com"),
    f"> {PLAIN}",
    PLAIN.replace(": 2", ": /* two */ 2"),
]
UNREADABLE = [
    "",
    " ",
    "I cannot judge pictures.",
    "{}",
    "[]",
    "null",
    "4",
    "4, 3, 2, 0, 5",
    PLAIN.replace('"t_com": 4, ', ""),
    PLAIN.replace(": 4", ": 6"),
    PLAIN.replace(": 4", ": -1"),
    PLAIN.replace(": 4", ": null"),
    PLAIN.replace(": 4", ': "good"'),
    PLAIN.replace(": 4", ": true"),
    PLAIN.replace(": 4", ": NaN"),
    "{" * 400,
    "[" * 3000,
    "}" + PLAIN[1:20],
    PLAIN[:30],
    '{"t_com": ' * 50,
    "```json\n```",
    "<think>" + PLAIN,
    "\x00\x01",
    "t_com: very good",
    PLAIN[1:20],
    PLAIN.replace(": 4", ': "4 to 5 or so, maybe"').replace("4 to", "about 4 to"),
    PLAIN.replace(": 4", ": []"),
    PLAIN.replace(": 4", ": 1e999"),
    '"',
    "'{'",
    "{:}",
]


def malformed() -> list[tuple[str, bool]]:
    """200 answers as models give them, and whether the five scores can be read out of each."""
    cases = [(each, True) for each in READABLE] + [(each, False) for each in UNREADABLE]
    rng = random.Random(1)
    while len(cases) < 200:  # wrapped in more talk, which must change nothing
        answer, readable = rng.choice(cases[: len(READABLE) + len(UNREADABLE)])
        before, after = (
            rng.choice(["", "Sure. ", "Step by step:\n1. look\n2. judge\n\n", "Ok -> "]),
            rng.choice(["", "\n", "\nDone.", " Thanks!"]),
        )
        cut = answer.count("{") != answer.count("}") or answer.count("[") != answer.count("]")
        cases.append((before + answer + ("" if cut else after), readable))
    return cases


def test_two_hundred_malformed_answers():
    cases = malformed()
    assert len(cases) == 200
    wrong = [(answer, readable) for answer, readable in cases if (read_scores(answer, FIVE, 5.0) == WELL) != readable]
    assert wrong == []
    assert all(read_scores(answer, FIVE, 5.0) is None for answer, readable in cases if not readable)


def test_a_judge_is_asked_again_and_then_given_up(folder: Path):
    picture = folder / "images" / "a" / "1.png"
    task = Task("t", ("How?", picture), "", {"reference": "So.", "structure": ["text", "image"]})
    vision_qa = Says("hm", json.dumps(WELL))
    said = judge_answer(find_benchmark("isg"), task, ["So.", picture], vision_qa)
    assert len(vision_qa.asked) == 2 and "could not be read" in vision_qa.asked[1][0] and said.scores["structure"] == 1.0
    assert said.scores["score"] == pytest.approx(2.9) and vision_qa.asked[0][1] == [picture, picture]
    hopeless = Says("hm")
    assert judge_answer(find_benchmark("isg"), task, ["So."], hopeless).scores == {} and len(hopeless.asked) == 3
    assert judge_answer(find_benchmark("mmie"), task, ["So."], Says(json.dumps(WELL))).scores["i_q"] == 0.0, "nothing was drawn"
    asks = Task("t", ("x",), "", {"questions": [{"id": "1", "ask": "A cube?", "after": []}]})
    unsure = Says("hm", "maybe", '{"answer": "yes"}')
    assert judge_answer(find_benchmark("dpg"), asks, [picture], unsure).scores == {"score": 1.0}
    assert "could not be read" in unsure.asked[1][0]
    assert compare_answers(task, ["So."], ["Or so."], Says("hm", '{"better": "A"}', "hm", '{"better": "B"}')) == 1.0


@pytest.mark.parametrize(
    ("name", "figure", "without"),
    [("interleavedbench", lambda said: sum(said.values()) / 5, 1.0), ("comm", lambda said: said["relevance"], 0.0),
     ("opening", lambda said: sum(said.values()) / 7, 18 / 7)],
)  # fmt: skip
def test_interleaved_answers_are_asked_what_their_benchmark_asks(folder: Path, name: str, figure, without: float):
    """On its own scale: 9 is too much for InterleavedBench alone. Without a picture its questions about pictures count 0."""
    picture, benchmark = folder / "images" / "a" / "1.png", find_benchmark(name)
    task = Task("t", ("How?",), "", {"reference": "So."})
    said = {each: float(at % 5 + 1) for at, each in enumerate(benchmark.rubric.keys, 2)}
    vision_qa = Says(json.dumps(said))
    found = judge_answer(benchmark, task, ["So.", picture], vision_qa).scores
    assert found == said | {"score": pytest.approx(figure(said))} and "[image 1]" in vision_qa.asked[0][0]
    assert judge_answer(benchmark, task, ["So."], vision_qa).scores["score"] == pytest.approx(without)
    high = Says(json.dumps(dict.fromkeys(said, 9)))
    assert bool(judge_answer(benchmark, task, ["So.", picture], high).scores) == (name != "interleavedbench")


def test_ueval_scores_words_and_pictures_by_the_criteria_that_are_met(folder: Path, tmp_path: Path):
    benchmark, picture = find_benchmark("ueval"), folder / "images" / "a" / "1.png"
    how, model = load_tasks(benchmark, write_ueval(tmp_path / "ueval"))
    judge = Says('{"criteria_met": true}', '{"criteria_met": "not sure"}', "hm", "true")
    said = judge_answer(benchmark, how, ["Lay it flat.", picture], judge)
    assert said.scores == {"text": 0.5, "image": 1.0, "score": 0.75} and said.verdicts == {"1": True, "2": False, "3": True}
    assert [len(pictures) for _, pictures in judge.asked] == [0, 0, 1, 1], "words are judged by themselves; what is unreadable again"
    assert "Says to lay it flat." in judge.asked[0][0] and "[image" not in judge.asked[0][0]
    assert "Lay it flat.\n[image 1]" in judge.asked[2][0] and "main action" in judge.asked[2][0]
    assert judge_answer(benchmark, how, ["Lay it flat."], Says("yes")).scores == {"text": 1.0, "image": 0.0, "score": 0.5}
    closed = Says('{"criteria_met": true}', '{"criteria_met": false}')
    assert judge_answer(benchmark, model, ["Here it is.", picture], closed).scores == {"image": 0.5, "score": 0.5}
    assert not any("Here it is." in asked for asked, _ in closed.asked), "closed tasks judge the pictures without the words"
    hopeless = judge_answer(benchmark, how, ["So.", picture], Says("perhaps"))
    assert hopeless.scores == {} and hopeless.failed


def test_each_benchmark_reports_its_own_figure(folder: Path):
    picture = folder / "images" / "a" / "1.png"
    task = Task("t", (picture, "Make it blue."), "adjust", {"explanation": "blue"})
    wise = judge_answer(find_benchmark("wise"), task, [picture], Says('{"consistency": 2, "realism": 1, "aesthetic": 0}'))
    assert wise.scores["score"] == pytest.approx(0.8)
    marks = Says('{"success": 9, "overediting": 4, "naturalness": 9, "artifacts": 10}')
    gedit = judge_answer(find_benchmark("gedit"), task, [picture], marks)
    assert gedit.scores["score"] == pytest.approx(6.0)
    imgedit = judge_answer(find_benchmark("imgedit"), task, [picture], Says('{"compliance": 2, "naturalness": 5, "integrity": 5}'))
    assert imgedit.scores["score"] == pytest.approx(2.0)
    assert judge_answer(find_benchmark("gedit"), task, ["no"], Says("")).scores == {"score": 0.0}
    asks = [{"id": "1", "ask": "A cube?", "after": []}, {"id": "2", "ask": "Red?", "after": ["1"]}]
    dpg = judge_answer(find_benchmark("dpg"), Task("t", ("x",), "", {"questions": asks}), [picture], vision_qa := Says('{"answer": "no"}'))
    assert dpg.scores["score"] == 0.0 and len(vision_qa.asked) == 1, "what depends on a no is no"
    assert [parse_verdict(each) for each in ("Yes.", '{"answer": "no"}', "maybe")] == [True, False, None]


def test_a_preference_must_survive_the_swap(folder: Path):
    task = Task("t", ("How?",))
    always_first, fair = Says('{"better": "A"}'), Says('{"better": "A"}', '{"better": "B"}')
    assert compare_answers(task, ["one"], ["two"], always_first) == 0.5 and compare_answers(task, ["one"], ["two"], fair) == 1.0
    assert compare_answers(task, ["one"], ["two"], Says("?")) is None


def test_a_pair_and_its_plain_checkpoint_read_alike(tmp_path: Path):
    import shutil

    from duogen.vision_qa import open_vision_qa
    from tests.support.tiny import tiny_pair

    pair, plain = tiny_pair(tmp_path / "pair"), tmp_path / "plain"
    for part in ("tokenizer", "image_processor", "text_encoder"):
        shutil.copytree(pair / part, plain, dirs_exist_ok=True)
    picture = PILImage.new("RGB", (64, 64), "red")
    models = [open_vision_qa(str(folder), "cpu", "fp32") for folder in (pair, plain)]
    said = [vision_qa.ask("What is this?", [picture], 12) for vision_qa in models]
    assert said[0] == said[1] != "" and [vision_qa.name for vision_qa in models] == ["Tiny", "plain"]
    assert models[0].version == models[1].version and len(models[0].version) == 12
    (plain / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(ValueError, match="must be a Qwen2.5-VL checkpoint"):
        open_vision_qa(str(plain), "cpu")


# Answers that stay


class Painter:
    """An engine that paints grey, and dies before its third answer when it is told to."""

    about = {"title": "Grey", "steps": 1, "guidance": 1.0}

    def __init__(self, dies: bool = False) -> None:
        self.dies, self.asked, self.options = dies, [], []

    def answer(self, conversation: Conversation, options, stop=None):
        if self.dies and len(self.asked) == 2:
            raise KeyboardInterrupt
        self.asked.append(conversation.path()[-1].text())
        self.options.append(options)
        picture = Image(PILImage.new("RGB", (8, 8), "grey"))
        yield TextDelta("Here.")
        yield ImageDone(0, picture)
        yield Done(conversation.say("assistant", "Here.", picture), Stats(1, 1, 1, 1, 0.1, 0.1, "end"))


def test_an_evaluation_that_was_killed_repeats_and_loses_nothing(tmp_path: Path):
    benchmark = find_benchmark("dpg")
    tasks = load_tasks(benchmark, None, limit=4)
    killed, resumed = Painter(dies=True), Painter()
    with pytest.raises(KeyboardInterrupt):
        answer_all(killed, benchmark, tasks, tmp_path, log=lambda words: None)
    left = tmp_path / "answers" / f".{tasks[2].id}.1.part"  # as a kill in the middle of writing leaves it
    left.mkdir()
    (left / "answer.json").write_text('{"id": "half"}')
    assert answer_all(resumed, benchmark, tasks, tmp_path, log=lambda words: None) == 2
    assert killed.asked + resumed.asked == [task.words() for task in tasks]
    assert all(load_answer(tmp_path, task.id)[0] == "Here." for task in tasks)
    assert sorted(list_answered(tmp_path)) == sorted(task.id for task in tasks)
    vision_qa = Says('{"answer": "yes"}')
    add_score(tmp_path, {"id": tasks[0].id, "group": "", "judge": "says 1", "scores": {"score": 0.5}, "failed": ""})
    with (tmp_path / SCORES).open("a") as out:
        out.write('{"id": "cut o')
    results = score_all(benchmark, tasks, tmp_path, Scorer(judge=vision_qa), log=lambda words: None)
    assert results["score"]["value"] == pytest.approx(0.875) and results["judge"] == "says 1" and "not comparable" in results["caution"]
    asked = len(vision_qa.asked)
    score_all(benchmark, tasks, tmp_path, Scorer(judge=vision_qa), log=lambda words: None)
    assert len(vision_qa.asked) == asked and len(load_scores(tmp_path, "says 1")) == 4


def test_how_pictures_are_painted_is_chosen_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    painter, judge = Painter(), Says('{"answer": "yes"}')
    monkeypatch.setattr("duogen.engine.Engine.open", lambda *_, **__: painter)
    monkeypatch.setattr("duogen.vision_qa.open_vision_qa", lambda *_: judge)
    argv = ["evaluate", "dpg", "--limit", "2", "--out", str(tmp_path / "out"), "--judge", "says"]
    assert main([*argv, "--steps", "0"]) == 2 and main([*argv, "--sampler", "fast"]) == 2
    assert "steps must be between 1 and 100" in (said := capsys.readouterr().err) and "no sampler 'fast'" in said and not painter.asked
    assert main([*argv, "--steps", "3", "--sampler", "unipc"]) == 0
    assert {(each.image.steps, each.image.guidance, each.image.sampler, each.image.max_images) for each in painter.options} == {
        (3, 1.0, "unipc", 1)
    }
    chosen = {"steps": 3, "guidance": 1.0, "sampler": "unipc"}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["painting"] == chosen
    assert main([*argv, "--resume"]) == 2
    assert "painted with --steps 3, --guidance 1.0, --sampler unipc; go on with these" in capsys.readouterr().err
    assert main([*argv, "--resume", "--limit", "3", "--steps", "3", "--sampler", "unipc"]) == 0 and len(painter.asked) > 2
    assert main([*argv, "--score-only"]) == 0 and load_painting(tmp_path / "out") == chosen
    (tmp_path / "out" / "painting.json").unlink()  # as another system's answers are
    assert main([*argv, "--resume"]) == 0 and load_painting(tmp_path / "out") is None


@pytest.fixture
def ueval_answers(tmp_path: Path) -> tuple[Benchmark, list[Task], Path]:
    """UEval's miniature, answered: the question of the open task three times."""
    benchmark = find_benchmark("ueval")
    how, model = load_tasks(benchmark, write_ueval(tmp_path / "ueval"))
    tasks = [*(replace(how, id=f"how {number}") for number in range(3)), model]
    answer_all(Painter(), benchmark, tasks, tmp_path / "out", log=lambda words: None)
    return benchmark, tasks, tmp_path / "out"


def test_answers_that_are_judged_again_tell_how_verdicts_agree(ueval_answers):
    benchmark, tasks, root = ueval_answers
    judge, second, said = Says('{"criteria_met": true}'), Says('{"criteria_met": false}', '{"criteria_met": true}'), []
    second.version = "2"
    results = score_all(benchmark, tasks, root, Scorer(judge=judge, rejudge=1.0, second=second), said.append)
    assert results["score"]["value"] == 1.0 and results["agreement"]["judge"] == "says 2"
    assert results["agreement"]["verdicts"]["value"] == pytest.approx(10 / 11), "eleven criteria, one seen otherwise"
    assert results["agreement"]["difference"]["value"] == pytest.approx(0.25 / 4)
    assert any("judged again blindly: 4 answers, by says 2" in line for line in said) and not any("greedily" in line for line in said)
    asked = len(second.asked)
    assert (
        score_all(benchmark, tasks, root, Scorer(judge=judge, rejudge=1.0, second=second), said.append)["agreement"] == results["agreement"]
    )
    assert len(second.asked) == asked == 11 == len(judge.asked), "what was judged is not judged another time"
    some = score_all(benchmark, tasks, root, Scorer(judge=judge, rejudge=0.1), said.append)["agreement"]
    assert some["answers"] == 1 and some["verdicts"]["value"] == 1.0 and "greedily" in said[-2]
    assert json.loads((root / "results.json").read_text())["agreement"] == some


def test_ueval_reports_the_mean_of_its_tasks(ueval_answers):
    benchmark, tasks, root = ueval_answers
    judge = Says(*['{"criteria_met": true}'] * 9, '{"criteria_met": false}')
    results = score_all(benchmark, tasks, root, Scorer(judge=judge), log=lambda words: None)
    assert {group: each["value"] for group, each in results["groups"].items()} == {"life": 1.0, "paper": 0.0}
    assert results["score"]["value"] == 0.5 and results["scores"]["score"]["value"] == 0.75


def test_the_prompts_of_the_judge_stay_as_they_were_before_the_first_answer(ueval_answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    benchmark, tasks, root = ueval_answers
    judge = Says('{"criteria_met": true}')
    results = score_all(benchmark, tasks, root, Scorer(judge=judge), log=lambda words: None)
    assert results["prompts"] == {"hash": json.loads((root / "judge-prompts.json").read_text())["hash"], "frozen": True}
    for file in PROMPTS.glob("*.md"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "judge-criterion-closed.md").open("r+") as kinder:
        text = kinder.read()
        kinder.seek(0)
        kinder.write(f"Be kind. {text}")
    monkeypatch.setattr("duogen.prompts.PROMPTS", tmp_path)
    load_prompt.cache_clear()
    try:
        for act in (
            lambda: score_all(benchmark, tasks, root, Scorer(judge=judge), log=lambda words: None),
            lambda: answer_all(Painter(), benchmark, tasks, root, log=lambda words: None),
        ):
            with pytest.raises(ValueError, match="prompts changed after the answers in .* were begun"):
                act()
        (root / "judge-prompts.json").unlink()  # as another system's answers are
        asked = len(judge.asked)
        again = score_all(benchmark, tasks, root, Scorer(judge=judge), log=lambda words: None)
        assert not again["prompts"]["frozen"] and again["prompts"]["hash"] != results["prompts"]["hash"]
        assert len(judge.asked) == 2 * asked, "scores by other prompts are not taken over"
    finally:
        load_prompt.cache_clear()


def test_judging_again_needs_a_share_and_a_judge(tmp_path: Path, capsys):
    for name, more, why in (
        ("dpg", ["--rejudge", "10"], "a share of the answers, such as 0.1, not 10"),
        ("dpg", ["--second-judge", "x"], "name it with --rejudge"),
        ("geneval", ["--rejudge", "0.1"], "geneval has no judge"),
    ):
        assert main(["evaluate", name, "--limit", "1", "--out", str(tmp_path / "out"), *more]) == 2
        assert why in capsys.readouterr().err


def test_every_published_figure_names_its_judge_and_version():
    found = [(name, each) for name in benchmark_names() for each in published_figures(name)]
    assert len(found) > 15 and [each for each in found if not (each[1]["judge"] and each[1]["version"] and each[1]["source"])] == []


def test_side_by_side(tmp_path: Path):
    tasks = load_tasks(find_benchmark("dpg"), None, limit=2)
    systems = [System(name, tmp_path / name) for name in ("one", "two")]
    for system in systems:
        answer_all(Painter(), find_benchmark("dpg"), tasks, system.folder, log=lambda words: None)
        score_all(find_benchmark("dpg"), tasks, system.folder, Scorer(judge=Says('{"answer": "yes"}')), log=lambda words: None)
    rates = compute_win_rates(systems, tasks, Says('{"better": "A"}'), log=lambda words: None)
    page = write_side_by_side("dpg", systems, tasks, tmp_path / "page.html", rates, "says 1").read_text(encoding="utf-8")
    assert page.count("<section") == 2 and "one against two" in page and "not comparable" in page and page.count("01.png") == 4
