"""LoRA files on a diffusers pipeline.

diffusers converts the key formats of kohya, ComfyUI and ai-toolkit. What it cannot place it passes over with a line in its log; here a LoRA
is put on whole, or refused in a sentence.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from duogen.models.lora_files import read_lora
from duogen.models.peft_layers import has_effect, layers_with, list_loaded, remove_adapter, set_weights

PREFIX = "lora_"  # of the names that these LoRAs have in peft; a pair's few-step LoRA has another
LAST_OF_LAYER = re.compile(r"lora_B\.|lora_up\.|lora\.up\.|lora_linear_layer\.up\.|lokr_w2(_a)?$")


def set_loras(pipe: Any, weights: Mapping[Path, float]) -> None:
    """Make these files the LoRAs that work in a pipeline, each with its strength; a few-step LoRA of the pair itself goes on.

    Raises:
        ValueError: one of them is no LoRA, is damaged, or does not fit this pipeline; those before it may be on.
    """
    if weights and not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"{type(pipe).__name__} takes no LoRAs; turn them off, or open another pair.")
    names = {_name(file): file for file in weights}
    loaded = {name for part in _parts(pipe) for name in list_loaded(part)}
    for gone in [name for name in loaded - names.keys() if name.startswith(PREFIX)]:
        _remove(pipe, gone)
    for name in names.keys() - loaded:
        _load(pipe, names[name], name)
    kept = frozenset(name for name in loaded if not name.startswith(PREFIX))
    for part in _parts(pipe):
        set_weights(part, {name: weights[file] for name, file in names.items()}, kept)


def _parts(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def _remove(pipe: Any, name: str) -> None:
    for part in _parts(pipe):
        remove_adapter(part, name)


def _name(file: Path) -> str:
    """The same for the same file; peft's names hold no dots."""
    try:
        stat = file.stat()
    except OSError as error:
        raise ValueError(f"There is no LoRA file {file}.") from error
    return PREFIX + hashlib.sha256(f"{file.resolve()} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:16]


def _load(pipe: Any, file: Path, name: str) -> None:
    about = read_lora(file)
    given = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
    try:
        with _collect_warnings() as warnings:
            pipe.load_lora_weights(str(file.parent), adapter_name=name, **given)
        converted = pipe.lora_state_dict(str(file.parent), **given)
        state = converted[0] if isinstance(converted, tuple) else converted
        wanted = sum(bool(LAST_OF_LAYER.search(each)) for each in state)
        found = sum(len(layers_with(part, name)) for part in _parts(pipe))
        if warnings or not found or found < wanted:
            raise LookupError(warnings or f"{found} of {wanted} layers")
    except Exception as error:  # each pipeline's converter raises its own
        _remove(pipe, name)
        base = about.base or "another painter"
        raise ValueError(f"The LoRA {file} was made for {base} and does not fit this one; open the pair that it was made for.") from error
    if not any(has_effect(part, name) for part in _parts(pipe)):
        _remove(pipe, name)
        raise ValueError(f"The LoRA {file} changes nothing: all of its weights are zero; get it again.")


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """What diffusers logs while it loads a LoRA: tensors that it cannot place."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if re.search("(unexpected|missing|unsupported) keys", record.getMessage(), re.IGNORECASE):
                found.append(record.getMessage())

    log = logging.getLogger("diffusers")
    before: list[logging.Handler] = log.handlers
    others: list[logging.Handler] = [Collector(logging.WARNING)]
    log.handlers = others  # in place of its own: the sentence says what is wrong
    try:
        yield found
    finally:
        log.handlers = before
