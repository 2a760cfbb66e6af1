"""The models folder of ComfyUI or Forge: which transformers, LoRAs, pairs and upscalers it holds. It is named once, in the settings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from duogen.files import read_record, write_beside
from duogen.models.lora_files import read_lora
from duogen.models.transformer_files import DENOISERS, GGUF, SAFETENSORS, TEXT_ENCODERS, read_architecture, read_transformer
from duogen.paths import data_home

SETTINGS, FIELD = "settings.json", "models_folder"
VARIABLE = "DUOGEN_MODELS"  # goes before what is kept
TRANSFORMERS = ("diffusion_models", "unet", "checkpoints", "stable-diffusion")  # folders of ComfyUI and Forge, in lower case
LORAS = ("loras", "lora", "lycoris")
PAIRS = ("diffusers",)
UPSCALERS = ("upscale_models", "esrgan", "realesrgan")
PICKLE = ".pth"  # as most upscalers come
INDEX = "model_index.json"


@dataclass(frozen=True)
class ModelFile:
    """What was found.

    Attributes:
        path: a file, or the folder of a pipeline.
        kind: "transformer", "LoRA", "pair" or "upscaler".
        form: "GGUF", "fp8", or "" for whole weights; of a pair, how its transformer is quantised.
    """

    path: Path
    kind: str
    form: str
    bytes: int

    def title(self) -> str:
        """Its name, its form and its size."""
        return " · ".join([self.path.name, *([self.form] if self.form else []), f"{self.bytes / 1e9:.2f} GB"])


def models_folder() -> Path | None:
    """The folder that was named, `None` where none was."""
    named = os.environ.get(VARIABLE) or str(read_record(data_home() / SETTINGS).get(FIELD, ""))
    return Path(named).expanduser() if named else None


def keep_models_folder(name: str) -> Path | None:
    """Keep the name of the folder for all later starts; "" forgets it. Returns the folder.

    Raises:
        ValueError: there is no such folder, or it is not that of ComfyUI or Forge; one sentence.
    """
    folder = None
    if name.strip():
        folder = Path(name.strip()).expanduser().absolute()
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}; name the models folder of ComfyUI or Forge.")
        if not _list_known(folder):
            folder = folder / "models"
        if not folder.is_dir() or not _list_known(folder):
            raise ValueError(f"{name.strip()} holds none of {', '.join(TRANSFORMERS)}; name the models folder of ComfyUI or Forge.")
    settings = read_record(data_home() / SETTINGS)
    settings[FIELD] = str(folder or "")
    data_home().mkdir(parents=True, exist_ok=True)
    write_beside(data_home() / SETTINGS, json.dumps(settings, indent=1).encode())
    return folder


def _list_known(folder: Path) -> dict[str, Path]:
    """Its folders that hold transformers, LoRAs, pairs or upscalers, by their names in lower case; none where it cannot be read."""
    try:
        there = {each.name.lower(): each for each in folder.iterdir() if each.is_dir()}
    except OSError:
        return {}
    return {name: each for name, each in there.items() if name in (*TRANSFORMERS, *LORAS, *PAIRS, *UPSCALERS)}


def find_model_files(kind: str = "") -> list[ModelFile]:
    """What is in the folder that was named, by name; `kind` is one of "transformer", "LoRA", "pair" and "upscaler", or "" for all."""
    folder = models_folder()
    if folder is None or not folder.is_dir():
        return []
    places = {"transformer": TRANSFORMERS, "LoRA": LORAS, "pair": (*PAIRS, *TRANSFORMERS), "upscaler": UPSCALERS}
    searches = {"transformer": _find_transformers, "LoRA": _find_loras, "pair": _find_pairs, "upscaler": _find_upscalers}
    known, found = _list_known(folder), []
    for each in [kind] if kind else places:
        found += [file for name in places[each] if name in known for file in searches[each](known[name].resolve())]
    return sorted(found, key=lambda file: (file.kind, file.path.name.lower()))


def _find_transformers(folder: Path) -> Iterator[ModelFile]:
    for file in _list_files(folder, SAFETENSORS, GGUF):
        try:
            form = _form_of_gguf(file) if file.suffix.lower() == GGUF else read_transformer(file).form
        except ValueError:  # something else, or damaged: whoever names it gets the sentence
            continue
        yield ModelFile(file, "transformer", form, file.stat().st_size)


def _form_of_gguf(file: Path) -> str:
    """Raises ValueError: it is no transformer. All of its header would take seconds for each file."""
    if read_architecture(file) in TEXT_ENCODERS:
        raise ValueError(f"{file} is a text encoder")
    return "GGUF"


def _find_loras(folder: Path) -> Iterator[ModelFile]:
    for file in _list_files(folder, SAFETENSORS):
        try:
            read_lora(file)
        except ValueError:
            continue
        yield ModelFile(file, "LoRA", "", file.stat().st_size)


def _find_pairs(folder: Path) -> Iterator[ModelFile]:
    for index in folder.rglob(INDEX):
        configs = (read_record(index.parent / name / "config.json") for name in DENOISERS)
        denoiser = next(filter(None, configs), {})
        method = str((denoiser.get("quantization_config") or {}).get("quant_method", ""))
        yield ModelFile(index.parent, "pair", method, sum(file.stat().st_size for file in _list_files(index.parent, SAFETENSORS)))


def _find_upscalers(folder: Path) -> Iterator[ModelFile]:
    for file in _list_files(folder, SAFETENSORS, PICKLE):
        yield ModelFile(file, "upscaler", "", file.stat().st_size)


def _list_files(folder: Path, *suffixes: str) -> list[Path]:
    """Single files, not those in the folders of pipelines when a folder above is asked for."""
    pairs = {index.parent for index in folder.rglob(INDEX)} - {folder}
    files = [file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
    return sorted(file for file in files if not pairs.intersection(file.parents))


def find_transformer(name: str) -> Path:
    """The file of a transformer: a path, or the name of one in the models folder, with or without its ending.

    Raises:
        ValueError: there is none; one sentence.
    """
    file = Path(name).expanduser()
    if file.is_file():
        return file
    if file.is_dir():
        raise ValueError(f"{file} is a folder; name the file of a transformer in it.")
    found = [each.path for each in find_model_files("transformer") if name in (each.path.name, each.path.stem)]
    if not found:
        raise ValueError(f"There is no transformer {name}, neither as a file nor in the models folder; name its file.")
    if len(found) > 1:
        raise ValueError(f"The models folder has {len(found)} transformers called {name}; name the file, such as {found[0]}.")
    return found[0]
