"""Share an adapter: write its model card, pack it as a zip, or push it to a repository on the hub."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from duogen.files import write_beside
from duogen.finetune.config import rename_old_keys
from duogen.finetune.jobs import Job
from duogen.models.adapters import PARTS, read_about

NAMES = {"mllm": "1, what to say and when to draw", "dit": "2, how to paint it"}

CARD = """---
library_name: peft
tags:
- duogen
- lora
- interleaved-generation
---

# {title}

An adapter for the DuoGen pair `{base}`, fine-tuned on {examples} examples ({data}).

    python -m duogen ask "..." --adapter DIR
    python app.py --adapter DIR:0.8

Each folder in it is a plain peft adapter: `PeftModel.from_pretrained(model, DIR / "text_encoder")`. diffusers reads it with

    transformer.load_lora_adapter(
        DIR / "transformer", weight_name="adapter_model.safetensors", prefix="base_model.model"
    )

| stage | steps | rank | learning rate | loss, last steps | kept-back examples, before and after |
|---|---|---|---|---|---|
{rows}

The examples are not part of this repository. What they allow, and what the pair's own licence allows, holds for this adapter.
"""


def model_card(folder: Path) -> str:
    """The model card of an adapter, from the files of its run."""
    about = _without_paths(folder)
    recipe = rename_old_keys(about.get("recipe", {}))
    rows = [row for stage in NAMES if (row := _row(Job(folder), stage, recipe.get(stage, {})))]
    known = {name: about.get(name, "?") for name in ("title", "base", "examples", "data")}
    return CARD.format(**known, rows="\n".join(rows))


def _row(job: Job, stage: str, own: dict[str, Any]) -> str:
    figures = job.figures(stage)
    losses = [entry["loss"] for entry in figures if "loss" in entry][-20:]
    held = [entry["validation"] for entry in figures if "validation" in entry]
    if not losses or not own:
        return ""
    kept = f"{held[0]:.4f} → {held[-1]:.4f}" if held else "none"
    mean = sum(losses) / len(losses)
    return f"| {NAMES[stage]} | {figures[-1]['step']} | {own['rank']} | {own['learning_rate']:g} | {mean:.4f} | {kept} |"


def _without_paths(folder: Path) -> dict[str, Any]:
    """`adapter.json` without paths of this machine. A base that is named by its repository on the hub keeps that name."""
    about = read_about(folder)
    base = str(about["base"])
    local = Path(base).is_absolute() or base.startswith(("~", ".")) or Path(base).exists()
    return about | {"base": Path(base).name if local else base}


def copy_shareable(folder: Path, into: Path) -> None:
    """Copy the part of an adapter's folder that is for others: no states, no examples, no paths of this machine."""
    about = _without_paths(folder)
    into.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if (folder / part).is_dir():
            shutil.copytree(folder / part, into / part, dirs_exist_ok=True)
    write_beside(into / "adapter.json", json.dumps(about, indent=1, ensure_ascii=False).encode())
    write_beside(into / "README.md", model_card(folder).encode())


def zip_adapter(folder: Path) -> Path:
    """Pack the adapter as a zip in a temporary folder. Raises ValueError when there is no adapter."""
    target = Path(tempfile.mkdtemp(prefix="adapter-")) / f"{folder.name}.zip"
    with tempfile.TemporaryDirectory() as room:
        copy_shareable(folder, Path(room))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as zipped:
            for file in sorted(Path(room).rglob("*")):
                if file.is_file():
                    zipped.write(file, f"{folder.name}/{file.relative_to(room).as_posix()}")
    return target


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload an adapter with its model card; returns its address.

    Raises:
        ValueError: one sentence: no adapter, no token, no such name, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    read_about(folder)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError("Name the repository as USER/NAME.")
    api = HfApi()
    if not api.token and not _token():
        raise ValueError("The hub needs your token: run `hf auth login`, or set HF_TOKEN, and publish again.")
    try:
        with tempfile.TemporaryDirectory() as room:
            copy_shareable(folder, Path(room))
            url = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=room, commit_message=f"{folder.name}, fine-tuned with DuoGen")
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is no name for a repository; use letters, digits, - and _.") from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"The hub did not take it ({' '.join(str(error).split())[:160]}); nothing is lost, try again.") from error
    return str(url)


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
