"""A person of a server, without a browser: acts on the classes that the page calls, and what of it must be there after the next start.

A claim is what the page has acknowledged: `conversation/ID`, `picture/ID`, `vote/SEED`, `preset/NAME`, `waiting/ID` or `zip/FILE`, and its
value. An act tells what it may change before it begins, and its claims when it is done.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from duogen.conversation import Conversation, Image, Piece, Text, load_conversation
from duogen.evaluate.arena import Contestant, read_votes
from duogen.events import Done, Event, ImageDone, ImageStarted, ImageStep, Stats, TextDelta
from duogen.files import make_folder, read_record
from duogen.library.conversations import ID, ConversationStore
from duogen.library.pictures import Gallery, PictureQuery
from duogen.library.presets import PresetStore
from duogen.library.references import ReferenceStore
from duogen.options import ImageOptions, Options
from duogen.provenance import Origin
from ui.chat.actions import write_export
from ui.chat.answers import Jobs, Task
from ui.chat.waiting_list import Request
from ui.parts.arena_rounds import ArenaRounds
from ui.parts.loading import Loading
from ui.parts.pictures import PictureFolder
from ui.tabs.finetune import keep_example

Claims = dict[str, Any]
Tell = Callable[[Mapping[str, Any]], None]

PAIR, SIDE, STEPS, PICTURES = "bench", 48, 3, 2
PAUSE = 0.002  # seconds of a word, and of a step
WAIT = 0.001
CONTESTANTS = [Contestant("One", "one"), Contestant("Two", "two")]
ACTS = ("answer", "upload", "bring", "export", "delete", "undo", "favourite", "settings", "preset", "vote", "wait", "teach")


class Painter:
    """Answers with pictures of noise, as an engine does."""

    def __init__(self, rng: random.Random, on_picture: Callable[[Image], None] = lambda image: None) -> None:
        self.about = {"title": "Bench", "steps": STEPS, "guidance": 1.0, "image_size": (SIDE, SIDE)}
        self.rng, self.on_picture = rng, on_picture

    def answer(self, asked: Conversation, options: Options, stop: Any = None) -> Iterator[Event]:
        parts: list[Piece] = []
        for number in range(PICTURES):
            for word in (f"Step {number}. ", "Draw ", "this."):
                yield TextDelta(word)
                time.sleep(PAUSE)
            parts.append(Text(f"Step {number}. Draw this."))
            yield ImageStarted(number, number, STEPS)
            for step in range(1, STEPS + 1):
                time.sleep(PAUSE)
                yield ImageStep(number, step, STEPS)
            parts.append(image := Image(make_noise(self.rng), number, 0.1, f"Step {number}", origin=Origin.PAINTED))
            yield ImageDone(number, image)
            self.on_picture(image)  # whoever takes the events has kept it by now
        yield Done(asked.say("assistant", *parts), Stats(1, 1, 1, PICTURES, 0.1, 0.1, "end"))


class Lender(Loading):
    """A pair that is open, and others for the Arena."""

    @contextmanager
    def lend_engines(self, words: str) -> Iterator[Any]:
        yield lambda *contestant: self.engine


def make_noise(rng: random.Random) -> PILImage.Image:
    return PILImage.frombytes("RGB", (SIDE, SIDE), rng.randbytes(3 * SIDE * SIDE))


class Person:
    """Acts in a home that one server has."""

    def __init__(self, home: Path, seed: int, tell: Tell) -> None:
        self.home, self.rng, self.tell = home, random.Random(seed), tell
        loading: Any = Lender(words="Ready", engine=Painter(self.rng))
        loading.finished.set()
        shown = home / "shown"
        folders = PictureFolder(shown / "pictures", 256), PictureFolder(shown / "previews", 64)
        self.store, self.gallery, self.presets = ConversationStore(home / "conversations"), Gallery(home), PresetStore(home / "presets")
        self.jobs = Jobs(loading, self.store, *folders, self.gallery, ReferenceStore(home / "references"))
        self.rounds = ArenaRounds(loading, self.gallery, folders, home / "arena" / "votes.jsonl")
        self.exports, self.aside = shown / "exports", home.with_name(home.name + "-browser")
        for folder in (self.exports, self.aside):
            make_folder(folder)

    def do(self, act: str) -> None:
        """Do one act of `ACTS`."""
        claims = getattr(self, f"_{act}")()
        self.tell({"done": act, "claims": claims})

    def _begin(self, act: str, *touched: str) -> None:
        self.tell({"begin": act, "touched": touched})

    # Acts

    def _answer(self) -> Claims:
        asked = Conversation(title=f"About {self.rng.randrange(1000)}").say("user", make_noise(self.rng), "How do I draw this?")
        key = f"conversation/{asked.id}"
        self._begin("answer", key)
        self.store.save(asked)
        self.tell({"claims": {key: {"pictures": [hash_picture(image.picture) for image in asked.path()[0].images()]}}})

        def claim(image: Image) -> None:
            self.tell({"claims": {key: {"pictures": [hash_picture(image.picture)]}}})

        painter = Painter(self.rng, claim)
        options = Options(seed=1)
        job = self.jobs.start(Task(asked.id, asked.head, lambda engine, stop: painter.answer(asked, options, stop), options, asked.head))
        wait_for(lambda: job.done)
        if job.bad:
            raise ValueError(job.status)
        last = self.store.open(asked.id).path()[-1]
        return self._claim(asked.id) | {f"picture/{entry.id}": describe_entry(entry) for entry in self._entries_of(last.images())}

    def _upload(self) -> Claims:
        file = self.aside / "upload.png"
        make_noise(self.rng).save(file)
        self._begin("upload")
        entry, _ = self.gallery.import_file(file)
        self.gallery.thumbnail(entry)
        return {f"picture/{entry.id}": describe_entry(entry)}

    def _bring(self) -> Claims:
        file = self.aside / "brought.zip"
        with file.open("wb") as out:
            self.store.pack_to(self._choose_conversation(), out)
        self._begin("bring")
        return self._claim(self.store.unpack(file).id)

    def _export(self) -> Claims:
        id = self._choose_conversation()
        self._begin("export")
        file = write_export(self.exports, "all.zip", lambda out: self.store.pack_to(id, out))
        return {f"zip/{file.relative_to(self.home)}": file.stat().st_size}

    def _delete(self) -> Claims:
        if self.rng.random() < 0.5:
            id = self._choose_picture()
            self._begin("delete", f"picture/{id}")
            favourite = self.gallery.entry(id).about.favourite
            self.gallery.delete(id)
            return {f"picture/{id}": {"place": "deleted", "favourite": favourite}}
        id = self._choose_conversation()
        self._begin("delete", f"conversation/{id}", f"waiting/{id}")
        before = self._claim(id)
        self.store.delete(id)
        return {f"conversation/{id}": before[f"conversation/{id}"] | {"place": "deleted"}}

    def _undo(self) -> Claims:
        conversation, picture = self._choose_conversation(), self._choose_picture()
        self._begin("undo", f"conversation/{conversation}", f"waiting/{conversation}", f"picture/{picture}")
        self.store.delete(conversation)
        self.gallery.delete(picture)
        self.store.restore(conversation)
        entry = self.gallery.restore(picture)
        return self._claim(conversation) | {f"picture/{picture}": describe_entry(entry)}

    def _favourite(self) -> Claims:
        id = self._choose_picture()
        self._begin("favourite", f"picture/{id}")
        entry = self.gallery.set_favourite(id, not self.gallery.entry(id).about.favourite)
        return {f"picture/{id}": describe_entry(entry)}

    def _settings(self) -> Claims:
        id = self._choose_conversation()
        self._begin("settings", f"conversation/{id}")
        self.store.rename(id, f"Title {self.rng.randrange(1000)}")
        self.store.pin(id, self.rng.random() < 0.5)
        return self._claim(id)

    def _preset(self) -> Claims:
        name, steps = f"own {self.rng.randrange(4)}", self.rng.randrange(1, 60)
        self._begin("preset", f"preset/{name}")
        self.presets.save(PAIR, name, Options(image=ImageOptions(steps=steps)))
        return {f"preset/{name}": steps}

    def _vote(self) -> Claims:
        made = self.rounds.start(Conversation().say("user", f"Draw {self.rng.random()}"), CONTESTANTS)
        wait_for(lambda: made.phase != "running")
        if made.phase != "ready":
            raise ValueError(made.status)
        self._begin("vote", f"vote/{made.seed}")
        self.rounds.vote(made, "a")
        entries = [entry for side in made.sides.values() for entry in self._entries_of(side.finished()[0].images())]
        return {f"vote/{made.seed}": 1} | {f"picture/{entry.id}": describe_entry(entry) for entry in entries}

    def _wait(self) -> Claims:
        """Ask something that waits for an answer under way."""
        id = self._choose_conversation()
        self._begin("wait", f"waiting/{id}")
        words = [f"And then {number}?" for number in range(self.rng.randrange(1, 4))]
        self.store.save_waiting(id, [asdict(Request(each, (), Options(seed=1))) for each in words])
        return {f"waiting/{id}": words}

    def _teach(self) -> Claims:
        self._begin("teach")
        conversation = self.store.open(self._choose_conversation())
        keep_example(conversation)
        return {f"example/{conversation.head}": True}

    # What is there

    def _claim(self, id: str) -> Claims:
        return {f"conversation/{id}": describe_conversation(self.store.open(id), self.store.read_about(id), "here")}

    def _entries_of(self, images: Any) -> list[Any]:
        from duogen.library.pictures import picture_id

        return [self.gallery.entry(picture_id(image.picture)) for image in images]

    def _choose_conversation(self) -> str:
        if not (entries := self.store.list_entries()):
            self.do("answer")
            entries = self.store.list_entries()
        return self.rng.choice(entries).id

    def _choose_picture(self) -> str:
        if not (entries := self.gallery.find(PictureQuery())[0]):
            self.do("upload")
            entries = self.gallery.find(PictureQuery())[0]
        return self.rng.choice(entries).id


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(WAIT)


def hash_picture(picture: PILImage.Image) -> str:
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()[:16]


def describe_entry(entry: Any) -> dict[str, Any]:
    return {"place": "here", "favourite": entry.about.favourite}


def describe_conversation(conversation: Conversation, about: Mapping[str, Any], place: str) -> dict[str, Any]:
    turns, pictures = {}, set()
    for turn in conversation.turns.values():
        said = [part.text if isinstance(part, Text) else hash_picture(part.picture) for part in turn.parts]
        turns[turn.id] = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
        pictures |= {hash_picture(image.picture) for image in turn.images()}
    return {"place": place, "title": conversation.title, "pinned": about["pinned"], "turns": turns, "pictures": sorted(pictures)}


def read_home(home: Path) -> tuple[Claims, list[str]]:
    """What is in a home after a start, by the names of claims, and a sentence for each thing that does not open."""
    faults: list[str] = []
    found: Claims = {}
    store, gallery = ConversationStore(home / "conversations"), Gallery(home)
    for entry in store.list_entries():
        if entry.damaged:
            faults.append(f"conversation {entry.id} is damaged")
    for folder, place in [(store.folder, "here"), (store.deleted, "deleted")]:
        for each in (each for each in folder.iterdir() if ID.fullmatch(each.name)):
            _read_conversation(each, place, found, faults)
    _read_pictures(home, gallery, found, faults)
    votes, _ = read_votes(home / "arena" / "votes.jsonl")
    found |= {f"vote/{seed}": count for seed, count in Counter(vote.seed for vote in votes).items()}
    presets, damaged = PresetStore(home / "presets").list_presets(PAIR)
    found |= {f"preset/{each.name}": each.options.image.steps for each in presets}
    faults += damaged
    for file in (home / "shown" / "exports").glob("[!.]*/*.zip"):
        found[f"zip/{file.relative_to(home)}"] = file.stat().st_size
        faults += [] if zipfile.is_zipfile(file) else [f"{file} is no zip"]
    _read_copies(home, found, faults)
    return found, faults


def _read_conversation(folder: Path, place: str, found: Claims, faults: list[str]) -> None:
    if not any(file.is_file() and file.name[0] != "." for file in folder.rglob("*")):
        return  # it was just being made
    try:
        conversation = load_conversation(folder)  # opens every picture
        file = folder / "about.json"
        about = {"pinned": False, "waiting": []} | (json.loads(file.read_text()) if file.exists() else {})
    except ValueError as error:
        faults.append(f"{place}: {error}")
        return
    if place == "here" or f"conversation/{folder.name}" not in found:
        found[f"waiting/{folder.name}"] = [each["words"] for each in about["waiting"]]
        found[f"conversation/{folder.name}"] = describe_conversation(conversation, about, place)


def _read_pictures(home: Path, gallery: Gallery, found: Claims, faults: list[str]) -> None:
    listed = {entry.id: entry for entry in gallery.find(PictureQuery(), count=100_000)[0]}
    found |= {f"picture/{entry.id}": describe_entry(entry) for entry in listed.values()}
    for file in gallery.deleted.glob("[!.]*.png"):
        if file.stem not in listed:
            found[f"picture/{file.stem}"] = {"place": "deleted", "favourite": False}
    folders = (gallery.pictures, gallery.deleted, gallery.thumbnails.folder)
    for file in itertools.chain.from_iterable(folder.glob("[!.]*") for folder in folders):
        faults += _find_damage(file)
    faults += [f"{file.name} is not in the Library" for file in gallery.pictures.glob("[!.]*.png") if file.stem not in listed]


def _find_damage(file: Path) -> list[str]:
    try:
        with PILImage.open(file) as picture:
            picture.load()
    except OSError as error:
        return [f"{file.parent.name}/{file.name} does not open: {error}"]
    return []


def _read_copies(home: Path, found: Claims, faults: list[str]) -> None:
    """Examples, rounds that wait for a vote, and the pictures that browsers fetch."""
    for folder in [*(home / "finetune" / "examples").glob("[!.]*"), *(home / "arena" / "waiting").glob("[!.]*")]:
        try:
            load_conversation(folder)
        except ValueError as error:
            example = folder.parent.name == "examples" and not any(file.is_file() and file.name[0] != "." for file in folder.rglob("*"))
            faults += [] if example else [str(error)]
            continue
        if folder.parent.name == "examples":
            found[f"example/{folder.name}"] = True
        elif read_record(folder / "round.json").get("seed") is None:
            faults.append(f"{folder.name}/round.json does not open")
    for file in (home / "shown").glob("p*/[!.]*.png"):
        faults += _find_damage(file)


def find_lost(claims: Claims, touched: set[str], found: Claims) -> list[str]:
    """The claims that do not hold. Of what an act was changing, as much as was told must be there, in its old state or its new one."""
    lost = []
    for key, value in claims.items():
        kind = key.partition("/")[0]
        there = found.get(key)
        if kind == "conversation":
            holds = there is not None and set(value.get("pictures", ())) <= set(there["pictures"])
            holds = holds and value.get("turns", {}).items() <= there["turns"].items()
            holds = holds and (key in touched or all(there[name] == value[name] for name in ("place", "title", "pinned") if name in value))
        elif kind == "picture":
            holds = there is not None and (key in touched or there["place"] == value["place"])
            holds = holds and (key in touched or there["place"] == "deleted" or there == value)
        else:
            holds = there == value or (key in touched and kind in ("preset", "waiting"))
        if not holds:
            lost.append(f"{key} was {value} and is {there}")
    return lost + [f"{key} counts {value} times" for key, value in found.items() if key.startswith("vote/") and value != 1]


def find_leftovers(home: Path) -> list[Path]:
    """Files that a kill left beside their places."""
    return [file for file in home.rglob(".*") if file.name.endswith(".part") or file.name.startswith(".coming-")]


class Ledger:
    """What a person was told: claims, and what the act under way may change."""

    def __init__(self, claims: Claims) -> None:
        self.claims, self.touched, self.act, self.done = dict(claims), set[str](), "", Counter[str]()

    def take(self, told: Mapping[str, Any]) -> None:
        if "begin" in told:
            self.act, self.touched = told["begin"], set(told["touched"])
        for key, value in told.get("claims", {}).items():
            before = self.claims.get(key)
            if "done" not in told and isinstance(before, dict) and isinstance(value, dict):  # of an answer under way
                value = before | {"pictures": [*before.get("pictures", ()), *value["pictures"]]}
            self.claims[key] = value
        if "done" in told:
            self.done[told["done"]] += 1
            self.act, self.touched = "", set()
