"""Answers on disk. Each is written whole or not at all, so an evaluation that was killed can be resumed.

The folder `answers/ID/` holds `answer.json`, {"id", "parts": [{"type": "text", "text"} | {"type": "image", "file"}], "error"}, and the
pictures. Answers of other systems in this layout are scored and compared in the same way.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from duogen.answerer import Answerer
from duogen.conversation import Conversation, Image, Piece, Text
from duogen.evaluate.replies import Painting, default_image_options, painting_fields
from duogen.evaluate.rubric import Rubric
from duogen.evaluate.tasks import Benchmark, Task
from duogen.events import AnswerBuilder
from duogen.files import append_line, fill_folder, write_beside
from duogen.options import Options
from duogen.picture_input import open_picture

ANSWERS, SCORES, PAINTING, FROZEN = "answers", "scores.jsonl", "painting.json", "judge-prompts.json"
Log = Callable[[str], None]


def answer_folder(root: Path, id: str) -> Path:
    return root / ANSWERS / re.sub(r"[^\w.-]", "_", id)


def load_answer(root: Path, id: str) -> list[str | Path] | None:
    """Load the answer to a task, with pictures as files; `None` where there is none yet.

    Raises:
        ValueError: the answer is damaged.
    """
    folder = answer_folder(root, id)
    try:
        raw = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        return [part["text"] if part["type"] == "text" else folder / Path(part["file"]).name for part in raw["parts"]]
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"The answer in {folder} is damaged ({error}); delete it to have it made again.") from error


def save_answer(root: Path, id: str, parts: Iterable[Piece], error: str = "", seconds: float = 0.0) -> None:
    """Write an answer to a folder beside its place, then rename that."""
    folder = answer_folder(root, id)
    said, count = [], 0
    with fill_folder(folder) as beside:
        for part in parts:
            if isinstance(part, Text):
                said.append({"type": "text", "text": part.text})
            else:
                count += 1
                part.picture.save(beside / f"{count:02}.png")
                said.append({"type": "image", "file": f"{count:02}.png"})
        raw = {"id": id, "parts": said, "error": error, "seconds": round(seconds, 2)}
        (beside / "answer.json").write_text(json.dumps(raw, ensure_ascii=False, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)


def answer_all(
    engine: Answerer,
    benchmark: Benchmark,
    tasks: list[Task],
    root: Path,
    seed: int = 0,
    log: Log = print,
    *,
    painting: Painting | None = None,
    at_once: int = 1,
) -> int:
    """Answer the tasks that have no answer yet. Returns how many there were.

    Args:
        painting: how the pictures are painted, where not as the pair does by itself.
        at_once: how many tasks are answered at a time, where the engine is one of several replicas.

    Raises:
        ValueError: the answers that are there were painted otherwise, or the judge's prompts changed since the first of them.
    """
    _freeze_prompts(root, benchmark.rubric)
    _record_painting(root, painting_fields(default_image_options(engine, painting)))
    missing = [each for each in enumerate(tasks, 1) if not (answer_folder(root, each[1].id) / "answer.json").exists()]

    def answer(each: tuple[int, Task]) -> str:
        number, task = each
        parts, error, seconds = answer_task(engine, benchmark, task, seed, painting)
        save_answer(root, task.id, parts, error, seconds)
        pictures = sum(isinstance(part, Image) for part in parts)
        return f"{number}/{len(tasks)} {task.id}: {pictures} pictures{f', {error}' if error else ''}"

    with ThreadPoolExecutor(at_once) as pool:
        for said in map(answer, missing) if at_once == 1 else pool.map(answer, missing):
            log(said)
    return len(missing)


def check_frozen_prompts(root: Path, rubric: Rubric | None) -> bool:
    """Whether the judge's prompts were written down before the first answer; not so for answers of other systems or older versions.

    Raises:
        ValueError: they changed since.
    """
    file = root / FROZEN
    if rubric is None or not file.exists():
        return False
    if json.loads(file.read_text(encoding="utf-8"))["hash"] != rubric.hash_prompts():
        raise ValueError(
            f"The judge's prompts changed after the answers in {root} were begun; bring the old ones back, or answer anew in another --out."
        )
    return True


def _freeze_prompts(root: Path, rubric: Rubric | None) -> None:
    """Write down what the judge will be asked by before the first answer, so that it cannot be fitted to the answers."""
    if rubric is not None and not check_frozen_prompts(root, rubric) and not (root / ANSWERS).exists():
        root.mkdir(parents=True, exist_ok=True)
        frozen = {"prompts": [rubric.prompt, *rubric.more_prompts], "hash": rubric.hash_prompts()}
        write_beside(root / FROZEN, json.dumps(frozen).encode())


def load_painting(root: Path) -> Painting | None:
    """How the pictures of these answers were painted; `None` where another system made them, or an older version."""
    file = root / PAINTING
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _record_painting(root: Path, painting: Painting) -> None:
    """Write down how the pictures are painted, before the first one is."""
    before = load_painting(root)
    if before not in (None, painting):
        said = ", ".join(f"--{name} {value}" for name, value in before.items())
        raise ValueError(f"The answers in {root} were painted with {said}; go on with these, or choose a new folder with --out.")
    if before is None and not (root / ANSWERS).exists():  # else nobody knows how the first ones were
        root.mkdir(parents=True, exist_ok=True)
        write_beside(root / PAINTING, json.dumps(painting).encode())


def answer_task(
    engine: Answerer, benchmark: Benchmark, task: Task, seed: int, painting: Painting | None = None
) -> tuple[list[Piece], str, float]:
    """Let the pair answer a task. Returns the parts, an error sentence ("" if none), and the seconds."""
    image = default_image_options(engine, painting, max_images=benchmark.most_pictures)
    given = [part if isinstance(part, str) else open_picture(part) for part in task.parts]
    answer = AnswerBuilder.from_events(engine.answer(Conversation().say("user", *given), Options(seed, image=image)))
    if answer.stats is None:
        return answer.parts, answer.error or "The answer ended without an end.", 0.0
    return answer.parts, "", answer.stats.seconds


def load_scores(root: Path, judge: str, prompts: str = "", name: str = SCORES) -> dict[str, dict[str, Any]]:
    """Load the scores of one judge, by task id. Lines that cannot be decoded, such as one cut off at the end, are skipped.

    Args:
        prompts: hash of its prompts; scores that other prompts got are skipped.
        name: of the file in `root`.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError), (root / name).open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                raw = json.loads(line)
                if raw.get("judge") == judge and (not prompts or raw.get("prompts", prompts) == prompts):
                    found[raw["id"]] = raw
    return found


def add_score(root: Path, raw: dict[str, Any], name: str = SCORES) -> None:
    append_line(root / name, raw)


def list_answered(root: Path) -> Iterator[str]:
    """The ids of all answers in the folder."""
    for file in sorted((root / ANSWERS).glob("[!.]*/answer.json")):  # without what a kill left beside its place
        yield json.loads(file.read_text(encoding="utf-8"))["id"]
