"""Answers on disk: each is written once, whole or not at all, so that an evaluation that was killed goes on where it was.

A folder `answers/ID/` with `answer.json`, {"id", "parts": [{"type": "text", "text"} | {"type": "image", "file"}], "error"}, and its
pictures. Answers of other systems in this layout are scored and compared like those of a pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from duogen.conversation import Conversation, Image, Text, append_line, open_picture
from duogen.engine import Engine
from duogen.evaluate.asking import own_image
from duogen.evaluate.tasks import Benchmark, Task
from duogen.events import Done, Failed, ImageDone, TextDelta
from duogen.options import Options

ANSWERS, SCORES = "answers", "scores.jsonl"
Say = Callable[[str], None]


def folder_of(root: Path, id: str) -> Path:
    return root / ANSWERS / re.sub(r"[^\w.-]", "_", id)


def stored(root: Path, id: str) -> list[str | Path] | None:
    """The answer to a task, pictures as files; `None` where there is none yet.

    Raises:
        ValueError: it is damaged.
    """
    folder = folder_of(root, id)
    try:
        raw = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        return [part["text"] if part["type"] == "text" else folder / Path(part["file"]).name for part in raw["parts"]]
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"The answer in {folder} is damaged ({error}); delete it to have it made again.") from error


def store(root: Path, id: str, parts: Iterable[Text | Image], error: str = "", seconds: float = 0.0) -> None:
    """Write an answer beside its place, then rename."""
    folder = folder_of(root, id)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    said, count = [], 0
    try:
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
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def answer_all(engine: Engine, benchmark: Benchmark, tasks: list[Task], root: Path, seed: int = 0, say: Say = print) -> int:
    """Answer what is not answered yet; returns how many that were."""
    made = 0
    for number, task in enumerate(tasks, 1):
        if (folder_of(root, task.id) / "answer.json").exists():
            continue
        parts, error, seconds = answer(engine, benchmark, task, seed)
        store(root, task.id, parts, error, seconds)
        made += 1
        say(f"{number}/{len(tasks)} {task.id}: {sum(isinstance(part, Image) for part in parts)} pictures{f', {error}' if error else ''}")
    return made


def answer(engine: Engine, benchmark: Benchmark, task: Task, seed: int) -> tuple[list[Text | Image], str, float]:
    """What a pair answers: its parts, one sentence where it failed, and the seconds it took."""
    most = 1 if benchmark.kind in ("detected", "picture", "edit") else 8
    image = own_image(engine, max_images=most)
    given = [part if isinstance(part, str) else open_picture(part) for part in task.parts]
    parts: list[Text | Image] = []
    for event in engine.answer(Conversation().say("user", *given), Options(seed, image=image)):
        match event:
            case TextDelta(text):
                parts[-1:] = [Text(parts[-1].text + text)] if parts and isinstance(parts[-1], Text) else [*parts[-1:], Text(text)]
            case ImageDone(_, picture):
                parts.append(picture)
            case Failed(message, _):
                return parts, message, 0.0
            case Done(conversation, stats):
                return list(conversation.path()[-1].parts), "", stats.seconds
    return parts, "The answer ended without an end.", 0.0


def scores(root: Path, judge: str) -> dict[str, dict[str, Any]]:
    """The scores that a judge has given so far, by task; a last line that was cut off is as if it were not there."""
    found = {}
    with contextlib.suppress(FileNotFoundError), (root / SCORES).open(encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                raw = json.loads(line)
                if raw.get("judge") == judge:
                    found[raw["id"]] = raw
    return found


def add_score(root: Path, raw: dict[str, Any]) -> None:
    append_line(root / SCORES, raw)


def answered(root: Path) -> Iterator[str]:
    """The ids of all answers in a folder."""
    for file in sorted((root / ANSWERS).glob("*/answer.json")):
        yield json.loads(file.read_text(encoding="utf-8"))["id"]
