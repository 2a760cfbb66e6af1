"""Synthesise dialogues: topics, requests of an MLLM, answers of a teacher pair, scores of a judge (DuoGen, section 4).

The state is the same database as for pages, so a run can be resumed and has the same report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Image, Message
from duogen.data_engine.near import Index, signature
from duogen.data_engine.pages import Place
from duogen.data_engine.run import make_row, write_dataset
from duogen.data_engine.sample import ASSETS, Picture, Sample, Source, Words
from duogen.data_engine.state import State
from duogen.data_engine.write import IMAGES
from duogen.evaluate.answer_files import answer_task, load_answer, save_answer
from duogen.evaluate.judge import ask_for_scores
from duogen.evaluate.rubric import FIVE
from duogen.evaluate.tasks import Benchmark, Task
from duogen.files import write_beside
from duogen.prompts import fill_prompt, parse_json

if TYPE_CHECKING:
    from duogen.engine import Engine
    from duogen.vision_qa import VisionQA

AT_ONCE = 8  # requests to ask the model for at a time
LEAST = 3.0  # of each of the five scores
INTERLEAVED = Benchmark("synthesised", "interleaved", lambda folder: iter(()))
Log = Callable[[str], None]


@dataclass(frozen=True)
class Makers:
    """The models: `writer` words the requests, `teacher` answers them, `judge` scores the answers."""

    writer: VisionQA
    teacher: Engine
    judge: VisionQA


def list_topics() -> list[tuple[str, str]]:
    """All pairs (domain, sub-category), with the domains in turn."""
    found: dict[str, list[str]] = json.loads((ASSETS / "topics.json").read_text(encoding="utf-8"))
    longest = max(map(len, found.values()))
    return [(domain, names[at]) for at in range(longest) for domain, names in found.items() if at < len(names)]


def write_requests(writer: VisionQA, count: int) -> Iterator[tuple[str, str, str]]:
    """Let the MLLM write `count` different requests. Yields (domain, sub-category, request); fewer where it repeats itself."""
    seen: set[str] = set()
    given, empty, every = 0, 0, list_topics()
    turn = 0
    while given < count and empty < len(every):
        domain, topic = every[turn % len(every)]
        turn += 1
        said = parse_json(writer.ask(fill_prompt("synthesise-request", count=AT_ONCE, topic=topic, domain=domain), []))
        listed = said.get("requests") if isinstance(said, dict) else said
        fresh = [each for each in listed if _is_usable(each) and each.lower().strip() not in seen] if isinstance(listed, list) else []
        empty = 0 if fresh else empty + 1
        for each in fresh[: count - given]:
            seen.add(each.lower().strip())
            given += 1
            yield domain, topic, " ".join(each.split())


def _is_usable(request: object) -> bool:
    return isinstance(request, str) and 10 <= len(request.strip()) <= 300


def synthesise(makers: Makers, out: Path, count: int, seed: int = 0, least: float = LEAST, log: Log = print) -> State:
    """Make dialogues until `count` requests are answered. Answers with a score below `least` are dropped, with the scores as the reason.

    Returns:
        The state of the run, open.

    Raises:
        ValueError: `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / "state.sqlite").exists():
        raise ValueError(f"{out} holds something else; choose a new folder with --out.")
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    state = State(out)
    options = {"count": count, "seed": seed, "least": least}
    state.set_facts(asked={"root": "topics", "options": options, "model": makers.writer.name}, state="running")
    index = Index(state.database)
    for domain, topic, request in _load_requests(makers.writer, state, count):
        place = Place("synthesised", f"topics/{domain}/{topic}", request)
        if state.has_page(place.id):
            continue
        step, reason, turns = _make_dialogue(makers, out, Task(place.id, (request,)), seed, least, index)
        source = Source(place.file, title=request, author=str(makers.teacher.about["title"]), tags=(domain, topic))
        shown = tuple(part if isinstance(part, Picture) else Words(part) for turn in turns for part in turn.parts)
        state.put_page(make_row(place, Sample(place.id, source, shown), None if step else turns, step, reason))
        if not step:
            index.add(place.id, signature(request), [])
        state.database.commit()
        log(f"{state.count_pages()}/{count} {request[:60]}: {reason or 'kept'}")
    write_dataset(state)
    state.set_facts(state="done")
    return state


def _load_requests(writer: VisionQA, state: State, count: int) -> Iterator[tuple[str, str, str]]:
    """The requests of this run: written once and stored with it."""
    known = state.get_fact("requests", [])
    if len(known) < count:
        known = [list(each) for each in write_requests(writer, count)]
        state.set_facts(requests=known)
    yield from ((domain, topic, request) for domain, topic, request in known[:count])


def _make_dialogue(makers: Makers, out: Path, task: Task, seed: int, least: float, index: Index) -> tuple[str, str, list[Message[Picture]]]:
    """Make one dialogue. Returns the step and the reason if the request is dropped (else "", ""), and the turns."""
    if index.find_text(signature(task.words())):
        return "near-duplicate text", "nearly a request before", []
    parts, error, seconds = answer_task(makers.teacher, INTERLEAVED, task, seed)
    if error or not any(isinstance(part, Image) for part in parts):
        return "dialogue", error or "the teacher drew nothing", []
    save_answer(out, task.id, parts, "", seconds)
    said = load_answer(out, task.id)
    assert said is not None, "it was saved a line before"
    question = fill_prompt("judge-five", prompt=task.words(), answer=_number_pictures(said), reference="(none)")
    judged = ask_for_scores(makers.judge, question, [part for part in said if isinstance(part, Path)], FIVE, 5.0)
    if not judged.scores:
        return "dialogue", judged.failed, []
    weak = [f"{name} {value:g}" for name, value in judged.scores.items() if value < least]
    if weak:
        return "dialogue", "judged too weak: " + ", ".join(weak), []
    turn = Message("assistant", tuple(_copy_picture(part, out) if isinstance(part, Path) else part for part in said))
    return "", "", [Message("user", (task.words(),)), turn]


def _number_pictures(parts: list[str | Path]) -> str:
    count, words = 0, []
    for part in parts:
        count += isinstance(part, Path)
        words.append(f"[image {count}]" if isinstance(part, Path) else part)
    return "\n".join(words)


def _copy_picture(file: Path, out: Path) -> Picture:
    """Copy a picture of an answer into the set."""
    data = file.read_bytes()
    kept = out / IMAGES / (hashlib.sha256(data).hexdigest()[:24] + file.suffix)
    write_beside(kept, data)
    return Picture(kept.name, file=kept, kind="drawing", alt="")
