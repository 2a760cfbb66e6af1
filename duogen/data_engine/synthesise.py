"""Dialogues made by models: topics -> requests -> answers of a teacher pair -> judged -> kept or dropped (DuoGen, section 4).

State is the same database that pages use, so a run goes on where it was stopped and has the same report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duogen.conversation import Image
from duogen.data_engine.dialogue import Turn
from duogen.data_engine.near import Index, signature
from duogen.data_engine.pages import Place
from duogen.data_engine.run import finish, row_of
from duogen.data_engine.sample import ASSETS, Picture, Sample, Source, Words
from duogen.data_engine.state import State
from duogen.data_engine.write import IMAGES
from duogen.evaluate.judge import FIVE, ask
from duogen.evaluate.stored import answer, store, stored
from duogen.evaluate.tasks import Benchmark, Task
from duogen.prompts import fill, parsed

if TYPE_CHECKING:
    from duogen.engine import Engine
    from duogen.vision_qa import Reader

AT_ONCE = 8  # requests that a model is asked for at a time
LEAST = 3.0  # of each of the five scores
INTERLEAVED = Benchmark("synthesised", "interleaved", lambda folder: iter(()))
Say = Callable[[str], None]


@dataclass(frozen=True)
class Makers:
    """Who words the requests, who answers them, who judges the answers."""

    writer: Reader
    teacher: Engine
    judge: Reader


def topics() -> list[tuple[str, str]]:
    """(domain, sub-category), every one of them, domains in turn."""
    found: dict[str, list[str]] = json.loads((ASSETS / "topics.json").read_text(encoding="utf-8"))
    longest = max(map(len, found.values()))
    return [(domain, names[at]) for at in range(longest) for domain, names in found.items() if at < len(names)]


def requests(writer: Reader, count: int) -> Iterator[tuple[str, str, str]]:
    """`count` of (domain, sub-category, request), each different from those before; fewer where the model has no more to ask."""
    seen: set[str] = set()
    given, empty, every = 0, 0, topics()
    turn = 0
    while given < count and empty < len(every):
        domain, topic = every[turn % len(every)]
        turn += 1
        said = parsed(writer.ask(fill("synthesise-request", count=AT_ONCE, topic=topic, domain=domain), []))
        listed = said.get("requests") if isinstance(said, dict) else said
        fresh = [each for each in listed if _good(each) and each.lower().strip() not in seen] if isinstance(listed, list) else []
        empty = 0 if fresh else empty + 1
        for each in fresh[: count - given]:
            seen.add(each.lower().strip())
            given += 1
            yield domain, topic, " ".join(each.split())


def _good(request: object) -> bool:
    return isinstance(request, str) and 10 <= len(request.strip()) <= 300


def synthesise(makers: Makers, out: Path, count: int, seed: int = 0, least: float = LEAST, say: Say = print) -> State:
    """Make dialogues until `count` requests were answered; what the judge finds wanting is dropped, with its scores as the reason.

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
    state.tell(asked={"root": "topics", "options": options, "model": makers.writer.name}, state="running")
    index = Index(state.database)
    for domain, topic, request in _wanted(makers.writer, state, count):
        place = Place("synthesised", f"topics/{domain}/{topic}", request)
        if state.has(place.id):
            continue
        step, reason, turns = _made(makers, out, Task(place.id, (request,)), seed, least, index)
        source = Source(place.file, title=request, author=str(makers.teacher.about["title"]), tags=(domain, topic))
        shown = tuple(part if isinstance(part, Picture) else Words(part) for turn in turns for part in turn.parts)
        state.put(row_of(place, Sample(place.id, source, shown), None if step else turns, step, reason))
        if not step:
            index.add(place.id, signature(request), [])
        state.database.commit()
        say(f"{state.number()}/{count} {request[:60]}: {reason or 'kept'}")
    finish(state)
    state.tell(state="done")
    return state


def _wanted(writer: Reader, state: State, count: int) -> Iterator[tuple[str, str, str]]:
    """The requests of this run: worded once, kept with it."""
    known = state.told("requests", [])
    if len(known) < count:
        known = [list(each) for each in requests(writer, count)]
        state.tell(requests=known)
    yield from (tuple(each) for each in known[:count])


def _made(makers: Makers, out: Path, task: Task, seed: int, least: float, index: Index) -> tuple[str, str, list[Turn]]:
    """The step that dropped a request and why, or nothing; and its dialogue."""
    if index.text_like(signature(task.words())):
        return "near-duplicate text", "nearly a request before", []
    parts, error, seconds = answer(makers.teacher, INTERLEAVED, task, seed)
    if error or not any(isinstance(part, Image) for part in parts):
        return "dialogue", error or "the teacher drew nothing", []
    store(out, task.id, parts, "", seconds)
    said = stored(out, task.id)
    question = fill("judge-five", prompt=task.words(), answer=_told(said), reference="(none)")
    judged = ask(makers.judge, question, [part for part in said if isinstance(part, Path)], FIVE, 5.0)
    if not judged.scores:
        return "dialogue", judged.failed, []
    weak = [f"{name} {value:g}" for name, value in judged.scores.items() if value < least]
    if weak:
        return "dialogue", "judged too weak: " + ", ".join(weak), []
    turn = Turn("assistant", tuple(_kept(part, out) if isinstance(part, Path) else part for part in said))
    return "", "", [Turn("user", (task.words(),)), turn]


def _told(parts: list[str | Path]) -> str:
    count, words = 0, []
    for part in parts:
        count += isinstance(part, Path)
        words.append(f"[image {count}]" if isinstance(part, Path) else part)
    return "\n".join(words)


def _kept(file: Path, out: Path) -> Picture:
    """A picture of an answer as a file of the set."""
    data = file.read_bytes()
    kept = out / IMAGES / (hashlib.sha256(data).hexdigest()[:24] + file.suffix)
    kept.write_bytes(data)
    return Picture(kept.name, file=kept, kind="drawing", alt="")
