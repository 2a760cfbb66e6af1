"""The benchmarks: what each asks, read from its official layout.

GenEval and DPG-Bench prompts ship with this repository; the others are read from the folder that their authors publish.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from duogen import paths
from duogen.conversation import open_picture
from duogen.evaluate.fetch import fetched

ASSETS = paths.ASSETS / "benchmarks"
MARK = re.compile(r"<image>|<BEGIN>", re.I)


@dataclass(frozen=True)
class Task:
    """One request of a benchmark.

    Attributes:
        parts: what the user says: words and the files of pictures, in order.
        group: what the benchmark's tables group by.
        about: what scoring needs: questions, a reference answer, what must be seen.
    """

    id: str
    parts: tuple[str | Path, ...]
    group: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def words(self) -> str:
        return " ".join(part for part in self.parts if isinstance(part, str))

    def pictures(self) -> list[Path]:
        return [part for part in self.parts if isinstance(part, Path)]


@dataclass(frozen=True)
class Benchmark:
    """
    Attributes:
        kind: what an answer is judged as: "detected", "picture", "edit" or "interleaved".
        judged: the name of the prompt that the judge gets, for those that are judged.
        scale: the largest score of the judge's.
        hub: where its authors publish it; `files` are those of them that are needed, all where it names none.
    """

    name: str
    kind: str
    read: Callable[[Path], Iterator[Task]]
    judged: str = ""
    scale: float = 5.0
    hub: str = ""
    files: tuple[str, ...] = ()
    ships: bool = False


def tasks_of(benchmark: Benchmark, folder: Path | None, limit: int | None = None) -> list[Task]:
    """The tasks of a benchmark, with `limit` spread evenly over all of them. Without a folder: what ships, or what the hub has.

    Raises:
        ValueError: it cannot be had, or is not laid out as the benchmark is.
    """
    if folder is None or (not folder.exists() and benchmark.hub.endswith(f"/datasets/{folder}")):
        ships = ASSETS / benchmark.name
        folder = ships if benchmark.ships else fetched(benchmark.name, benchmark.hub, benchmark.files)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; name the one that holds {benchmark.name}.")
    try:
        found = list(benchmark.read(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not laid out as {benchmark.name} is: it lacks {Path(str(error.filename)).name}.") from error
    except (KeyError, TypeError, IndexError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not laid out as {benchmark.name} is ({type(error).__name__}: {error}).") from error
    if not found:
        raise ValueError(f"{folder} holds no task of {benchmark.name}.")
    found = _distinct(found)
    if limit is not None and limit < len(found):
        found = [found[at * len(found) // limit] for at in range(limit)]
    return found


def _distinct(tasks: list[Task]) -> list[Task]:
    """Ids that occur twice, as those of ISG-Bench do in its categories, would have one answer for two requests."""
    seen: dict[str, int] = {}
    found = []
    for task in tasks:
        seen[task.id] = seen.get(task.id, 0) + 1
        found.append(task if seen[task.id] == 1 else replace(task, id=f"{task.id}-{seen[task.id]}"))
    return found


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _named(folder: Path, *names: str) -> Path:
    """The first of these files that is there, anywhere in the folder."""
    for name in names:
        if (folder / name).exists():
            return folder / name
        found = sorted(folder.rglob(name))
        if found:
            return found[0]
    raise FileNotFoundError(2, "missing", names[0])


def _picture(folder: Path, name: str) -> Path:
    """A picture of the benchmark by its name there.

    Raises:
        FileNotFoundError: it is not in the folder.
    """
    inside = folder.resolve()
    for base in ("", "images", "zipped_images", "Benchmark", "singleturn", "Benchmark/singleturn", "ISG_eval"):
        file = (folder / base / name).resolve()
        if not file.is_relative_to(inside):
            continue
        if file.is_file():
            return file
        # ISG-Bench writes a.JPG and has a.jpg.
        if (alike := [each for each in file.parent.glob(f"{glob.escape(file.stem)}.*") if each.is_file()]) and len(alike) == 1:
            return alike[0]
    raise FileNotFoundError(2, "missing", name)


def _said(folder: Path, said: list[dict[str, Any]]) -> tuple[str | Path, ...]:
    """A list of {"text", "image"} (OpenING, MMIE) as parts."""
    parts: list[str | Path] = []
    for each in said:
        text = MARK.sub(" ", each.get("text") or "").strip()
        parts += [text] if text else []
        parts += [_picture(folder, each["image"])] if each.get("image") else []
    return tuple(parts)


def _geneval(folder: Path) -> Iterator[Task]:
    for number, raw in enumerate(_lines(folder / "evaluation_metadata.jsonl")):
        yield Task(f"{number:05}", (raw["prompt"],), raw["tag"], {"include": raw["include"], "exclude": raw.get("exclude", [])})


def _dpg(folder: Path) -> Iterator[Task]:
    """With `dpg_bench.csv` its published questions; without, a question for each sentence of the prompt."""
    questions: dict[str, list[dict[str, Any]]] = {}
    if (folder / "dpg_bench.csv").exists():
        with (folder / "dpg_bench.csv").open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                after = [number for number in row["dependency"].replace(",", " ").split() if number != "0"]
                entry = {"id": row["proposition_id"], "ask": row["question_natural_language"], "after": after}
                questions.setdefault(row["item_id"], []).append(entry | {"group": row.get("category_broad", "")})
    for raw in _lines(folder / "prompts.jsonl"):
        id, prompt = str(raw["id"]), raw["prompt"]
        cut = [each for each in re.split(r"(?<=[.!?])\s+", prompt.strip()) if each]
        plain = [{"id": str(at), "ask": f"Does the picture show this: {each}", "after": []} for at, each in enumerate(cut, 1)]
        yield Task(id, (prompt,), "", {"questions": questions.get(id, plain), "published_questions": id in questions})


def _wise(folder: Path) -> Iterator[Task]:
    for name in ("cultural_common_sense.json", "spatio-temporal_reasoning.json", "natural_science.json"):
        for raw in _json(_named(folder, name)):
            about = {"explanation": raw["Explanation"], "subcategory": raw.get("Subcategory", "")}
            yield Task(str(raw["prompt_id"]), (raw["Prompt"],), raw["Category"], about)


def _imgedit(folder: Path) -> Iterator[Task]:
    for id, raw in _json(_named(folder, "basic_edit.json", "singleturn.json")).items():
        yield Task(str(id), (_picture(folder, raw["id"]), raw["prompt"]), raw["edit_type"])


def _gedit(folder: Path) -> Iterator[Task]:
    """As the hub has it (Parquet), as `datasets` saves it, or its rows as JSON lines with pictures beside them; the English half."""
    saved = (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists()
    if saved or any(folder.rglob("*.parquet")):
        rows = _saved_rows(folder, saved)
    else:
        rows = _lines(_named(folder, "gedit.jsonl", "metadata.jsonl"))
    for raw in rows:
        if raw.get("instruction_language", "en") == "en":
            name = raw.get("input_image") or raw["file_name"]
            picture = name if isinstance(name, Path) else _picture(folder, name)
            yield Task(str(raw["key"]), (picture, raw["instruction"]), raw["task_type"])


def _saved_rows(folder: Path, saved: bool) -> Iterator[dict[str, Any]]:
    """Rows of a dataset, `saved` to disk or as Parquet; their pictures are written beside it once."""
    from datasets import Dataset, load_from_disk

    files = sorted(map(str, folder.rglob("*.parquet")))
    found = load_from_disk(str(folder)) if saved else Dataset.from_parquet(files, cache_dir=str(folder / ".rows"))
    for raw in found["train"] if hasattr(found, "keys") else found:
        file = folder / "pictures" / f"{raw['key']}.png"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            raw["input_image"].convert("RGB").save(file)
        yield {**raw, "input_image": file}


def _interleavedbench(folder: Path) -> Iterator[Task]:
    for number, raw in enumerate(_json(_named(folder, "interleaved_bench.json"))):
        asked = next(each["value"] for each in raw["conversations"] if each["from"] == "human")
        pictures = iter(raw.get("image") or [])
        parts: list[str | Path] = []
        for at, piece in enumerate(asked.replace("<BEGIN>", "").split("<image>")):
            name = next(pictures, None) if at else None
            parts += [_picture(folder, name)] if name else []
            parts += [piece.strip(" .\n")] if piece.strip(" .\n") else []
        reference = " ".join(each["value"] for each in raw["conversations"] if each["from"] != "human")
        yield Task(str(raw.get("id", number)), tuple(parts), raw["task_name"], {"reference": reference})


def _comm(folder: Path) -> Iterator[Task]:
    """Task 4 of CoMM: a whole illustrated guide from its title; the guide itself is the reference."""
    file = _named(folder, "test.jsonl", "test.json", "test_data.json")
    for raw in _lines(file) if file.suffix == ".jsonl" else _json(file):
        steps = [" ".join(each["content"].strip() for each in step if each["type"] == "text") for step in raw["step_info"]]
        asked = f"Can you generate step-by-step instructions with images about {raw['title']}?"
        pictures = sum(each["type"] == "image" for step in raw["step_info"] for each in step)
        about = {"reference": "\n".join(steps), "pictures": pictures}
        yield Task(str(raw["data_id"]), (asked,), raw.get("dataset_type", ""), about)


def _opening(folder: Path) -> Iterator[Task]:
    for raw in _lines(_named(folder, "test_data.jsonl", "data.jsonl")):
        asked, answered = raw["conversations"][0]["input"], raw["conversations"][1]["output"]
        about = {
            "reference": "\n".join(each.get("text") or "" for each in answered),
            "pictures": sum(bool(a.get("image")) for a in answered),
        }
        yield Task(str(raw["total_uid"]), _said(folder, asked), str(raw.get("meta_task_name", raw.get("task_uid", ""))), about)


def _isg(folder: Path) -> Iterator[Task]:
    for raw in _lines(_named(folder, "ISG-Bench.jsonl")):
        parts = tuple(each["content"] if each["type"] == "text" else _picture(folder, each["content"]) for each in raw["Query"])
        golden = raw.get("Golden") or []
        about = {
            "structure": [each["type"] for each in golden],
            "reference": "\n".join(each["content"] for each in golden if each["type"] == "text"),
            "questions": _isg_questions(raw.get("predict") or {}),
        }
        yield Task(str(raw["id"]), parts, str(raw.get("Category", "")), about)


def _isg_questions(predict: dict[str, Any]) -> list[dict[str, Any]]:
    """Questions about one picture of the answer each, and which must be answered yes before."""
    found = predict.get("image_qa") or []
    rows = found if isinstance(found, list) else next(iter(found.values()), [])
    return [{"id": row["id"], "ask": row["Question"], "after": row.get("Preliminary", []), "image": row["image"]} for row in rows]


def _mmie(folder: Path) -> Iterator[Task]:
    for raw in _json(_named(folder, "data.json", "overview.json")):
        reference = "\n".join(each.get("text") or "" for each in raw.get("gt_answer") or [])
        yield Task(str(raw["id"]), _said(folder, raw["question"]), str(raw.get("category", raw.get("field", ""))), {"reference": reference})


def check_pictures(tasks: list[Task]) -> None:
    """Raises ValueError when a picture of a task is damaged: before hours of answering, not after."""
    for task in tasks:
        for file in task.pictures():
            open_picture(file)


BENCHMARKS = {
    each.name: each
    for each in (
        Benchmark("geneval", "detected", _geneval, ships=True, hub="github.com/djghosh13/geneval"),
        Benchmark("dpg", "picture", _dpg, "judge-question", 1.0, "github.com/TencentQQGYLab/ELLA", ships=True),
        Benchmark("wise", "picture", _wise, "judge-wise", 2.0, "github.com/PKU-YuanGroup/WISE"),
        Benchmark("imgedit", "edit", _imgedit, "judge-edit", 5.0, "huggingface.co/datasets/sysuyy/ImgEdit", ("Benchmark.tar",)),
        Benchmark("gedit", "edit", _gedit, "judge-viescore", 10.0, "huggingface.co/datasets/stepfun-ai/GEdit-Bench"),
        Benchmark("interleavedbench", "interleaved", _interleavedbench, "judge-interleaved", 5.0, "huggingface.co/mqliu/InterleavedBench"),
        Benchmark("comm", "interleaved", _comm, "judge-comm", 10.0, "huggingface.co/datasets/weisuxi/CoMM", ("*.json*", "*.zip")),
        Benchmark("opening", "interleaved", _opening, "judge-opening", 10.0, "github.com/LanceZPF/OpenING"),
        Benchmark("isg", "interleaved", _isg, "judge-five", 5.0, "huggingface.co/datasets/shuaishuaicdp/ISG-Bench"),
        Benchmark("mmie", "interleaved", _mmie, "judge-five", 5.0, "huggingface.co/datasets/MMIE/MMIE"),
    )
}
