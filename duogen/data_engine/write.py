"""Write the format that fine-tuning reads: `conversations.jsonl`, a conversation a line, beside the folder `images`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from duogen.conversation import Message
from duogen.data_engine.sample import Picture, Source
from duogen.files import sync_folder

CONVERSATIONS = "conversations.jsonl"
IMAGES = "images"


def make_record(id: str, turns: Sequence[Message[Picture]], source: Source, files: dict[str, str]) -> dict[str, Any]:
    """The line of a dialogue. `files` maps the name of each picture to its file below the folder."""
    said = []
    for turn in turns:
        parts = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "file": f"{IMAGES}/{files[part.name]}", "alt": part.caption or part.alt or part.title, "kind": part.kind}
            for part in turn.parts
        ]
        said.append({"role": turn.role, "parts": parts})
    return {"id": id, "turns": said, "source": source.as_dict()}


def write_records(folder: Path, records: Iterable[dict[str, Any]]) -> int:
    """Write all lines to a file beside the final one, flush it to the disk, then rename it. Returns the number of lines."""
    part, count = folder / f".{CONVERSATIONS}.part", 0
    with part.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        os.fsync(out.fileno())
    part.replace(folder / CONVERSATIONS)
    sync_folder(folder)
    return count
