"""The state of a run on disk: one database with the result of every page, so a stopped run can be resumed.

All data of a page is written in one transaction. The browser page reads the database while the run writes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duogen.data_engine.reasons import group_reason

STATE = "state.sqlite"
STEPS = ("read", "text only", "too short", "list of links", "block list", "wrong language", "useless pictures", "personal data", "rewrite",
         "near-duplicate text", "near-duplicate pictures", "dialogue")  # fmt: skip
SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (
    id TEXT PRIMARY KEY, n INTEGER, kind TEXT, file TEXT, member TEXT, title TEXT, kept INTEGER, step TEXT, reason TEXT,
    record TEXT, about TEXT, verdict TEXT DEFAULT '', draw INTEGER);
CREATE INDEX IF NOT EXISTS by_n ON pages (n);
CREATE INDEX IF NOT EXISTS by_draw ON pages (kept, draw);
CREATE INDEX IF NOT EXISTS by_step ON pages (step, reason);
CREATE TABLE IF NOT EXISTS files (name TEXT, page TEXT, PRIMARY KEY (name, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (what TEXT, name TEXT, n INTEGER, PRIMARY KEY (what, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """The result of a page.

    Attributes:
        record: the dialogue, as a line of `conversations.jsonl`, `None` for a page that was dropped.
        about: the source of the page and what was removed from it.
        verdict: a person's decision: "keep", "drop" or "".
        counted: entries for the histograms, by histogram.
    """

    id: str
    kind: str
    file: str
    member: str = ""
    title: str = ""
    step: str = ""
    reason: str = ""
    record: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""
    counted: dict[str, list[str]] = field(default_factory=dict)

    def files(self) -> list[str]:
        parts = [part for turn in (self.record or {"turns": []})["turns"] for part in turn["parts"]]
        return [part["file"].rpartition("/")[2] for part in parts if part["type"] == "image"]

    def is_in_set(self) -> bool:
        return self.record is not None and (self.verdict == "keep" or (not self.step and self.verdict != "drop"))


class State:
    """The database of one run. Creates `folder` when it is missing."""

    def __init__(self, folder: Path, writes: bool = True) -> None:
        """Open the database.

        Raises:
            ValueError: `writes` is false and there is no run.
        """
        self.folder = folder
        file = folder / STATE
        if not writes and not file.exists():
            raise ValueError(f"There is no run in {folder}; make one with: python -m duogen data make PAGES --out {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        self.database = sqlite3.connect(file, timeout=30, check_same_thread=False)
        if writes:
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=NORMAL")
            self.database.executescript(SCHEMA)

    def close(self) -> None:
        self.database.close()

    def set_facts(self, **said: object) -> None:
        """Store facts about the run by name, as JSON."""
        with self.database:
            rows = [(name, json.dumps(value)) for name, value in said.items()]
            self.database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def get_fact(self, name: str, default: Any = None) -> Any:
        """A stored fact about the run."""
        found = self.database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else default

    def has_page(self, id: str) -> bool:
        return self.database.execute("SELECT 1 FROM pages WHERE id = ?", (id,)).fetchone() is not None

    def put_page(self, row: Row) -> None:
        """Write a page. The caller commits."""
        draw = int.from_bytes(hashlib.sha256(f"draw {row.id}".encode()).digest()[:7], "big")
        at = self.database.execute("SELECT n FROM pages WHERE id = ?", (row.id,)).fetchone()
        n = at[0] if at else self.database.execute("SELECT COALESCE(MAX(n), -1) + 1 FROM pages").fetchone()[0]
        record = json.dumps(row.record, ensure_ascii=False) if row.record else None
        values = (row.id, n, row.kind, row.file, row.member, row.title, int(row.is_in_set()), row.step, row.reason, record,
                  json.dumps(row.about, ensure_ascii=False), row.verdict, draw)  # fmt: skip
        self.database.execute(f"INSERT OR REPLACE INTO pages VALUES ({','.join('?' * len(values))})", values)
        self.database.execute("DELETE FROM files WHERE page = ?", (row.id,))
        self.database.executemany("INSERT OR IGNORE INTO files VALUES (?, ?)", [(name, row.id) for name in row.files()])
        for what, names in row.counted.items():
            for name in names:
                self.add_count(what, name)

    def add_count(self, what: str, name: str) -> None:
        self.database.execute("INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1", (what, name))

    def counts(self, what: str) -> dict[str, int]:
        return dict(self.database.execute("SELECT name, n FROM counts WHERE what = ? ORDER BY n DESC, name", (what,)))

    def get_row(self, id: str) -> Row:
        """The row of a page.

        Raises:
            ValueError: there is no such page.
        """
        found = self.rows("id = ?", (id,), 1)
        if not found:
            raise ValueError(f"This run has no page {id}.")
        return found[0]

    def rows(self, where: str = "1", values: Sequence[object] = (), most: int = 100, order: str = "n", skip: int = 0) -> list[Row]:
        sql = f"SELECT {COLUMNS} FROM pages WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
        return [_parse_row(found) for found in self.database.execute(sql, (*values, most, skip))]

    def count_pages(self, where: str = "1", values: Sequence[object] = ()) -> int:
        return self.database.execute(f"SELECT COUNT(*) FROM pages WHERE {where}", values).fetchone()[0]

    def records(self) -> Iterator[dict[str, Any]]:
        """The dialogues of the set, in the order of the pages."""
        for (record,) in self.database.execute("SELECT record FROM pages WHERE kept ORDER BY n"):
            yield json.loads(record)

    def sample_rows(self, count: int) -> list[Row]:
        """Random dialogues of the set, always the same ones."""
        return self.rows("kept", (), count, "draw")

    def count_dropped(self) -> dict[str, dict[str, int]]:
        """How many pages each step dropped, by reason without the names in it, the commonest first."""
        found: dict[str, Counter[str]] = {}
        for step, reason, count in self.database.execute("SELECT step, reason, COUNT(*) FROM pages WHERE step != '' GROUP BY step, reason"):
            found.setdefault(step, Counter())[group_reason(reason)] += count
        return {step: dict(counts.most_common()) for step, counts in found.items()}

    def unreadable(self, most: int) -> list[tuple[str, str, str]]:
        """File, page in it and reason of the first pages that could not be read."""
        sql = "SELECT file, member, reason FROM pages WHERE step = 'read' ORDER BY n LIMIT ?"
        return self.database.execute(sql, (most,)).fetchall()


COLUMNS = "id, kind, file, member, title, step, reason, record, about, verdict"


def _parse_row(found: Sequence[Any]) -> Row:
    id, kind, file, member, title, step, reason, record, about, verdict = found
    dialogue = json.loads(record) if record else None
    return Row(id, kind, file, member, title, step, reason, dialogue, json.loads(about), verdict)
