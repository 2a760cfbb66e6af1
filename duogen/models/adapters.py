"""Adapters: what fine-tuning made, put on an open pair and taken off again without reading the pair anew.

An adapter is a folder with `adapter.json` and, for each part that it changes, a folder in peft's own layout: `text_encoder/` and
`transformer/`, each with `adapter_config.json` and `adapter_model.safetensors`. A LoRA file of another tool is an adapter of a diffusers
pipeline (`duogen.models.lora_files`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from duogen.files import move, read_record, read_text, sync_file
from duogen.models.lora_files import read_lora
from duogen.models.peft_layers import has_effect, list_loaded, remove_adapter, set_weights
from duogen.models.weight_files import read_header

if TYPE_CHECKING:
    from peft import LoraConfig

    from duogen.models.pipeline import DuoGenPipeline

# peft is imported where an adapter is loaded: most pairs have none, and the import takes long.

ADAPTER, WEIGHTS = "adapter.json", "adapter_model.safetensors"
PARTS = ("text_encoder", "transformer")
PREFIX = "base_model.model."  # what peft puts before every name
MOST = 1.5


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter and how strongly it works: 1 as it was trained, 0 not at all.

    Attributes:
        path: the folder that fine-tuning made, or another tool's LoRA file.
    """

    path: Path
    weight: float = 1.0

    @staticmethod
    def parse(text: str) -> AdapterSpec:
        """ "PATH" or "PATH:WEIGHT". Raises ValueError, one sentence."""
        path, _, weight = text.rpartition(":")
        try:
            strength = float(weight)
        except ValueError:
            path, strength = text, 1.0
        if not path:
            raise ValueError(f"{text!r} names no adapter; write its folder or file, and its weight after a colon.")
        wanted = AdapterSpec(find_adapter(Path(path).expanduser()), strength)
        wanted.check()
        return wanted

    @property
    def is_lora_file(self) -> bool:
        return not self.path.is_dir()

    def check(self) -> None:
        """Raises ValueError, one sentence, when it cannot be used."""
        if not math.isfinite(self.weight) or not 0 <= self.weight <= MOST:
            raise ValueError(f"An adapter's weight is from 0 to {MOST}, not {self.weight}.")
        read_lora(self.path) if self.is_lora_file else check_adapter(self.path)

    def changes(self, part: str) -> bool:
        """Whether it works in a part of a pair, "text_encoder" or "transformer"."""
        return self.weight != 0 and (self.path / part / WEIGHTS).is_file()


def find_adapter(path: Path) -> Path:
    """The adapter that a path names: the path itself, or the only LoRA file in a folder, as the hub has one.

    Raises:
        ValueError: there is no adapter; the sentence says what was found instead.
    """
    if not path.exists():
        raise ValueError(f"{path} is no adapter: there is no such folder or file.")
    if not path.is_dir() or (path / ADAPTER).exists():
        return path
    if (path / "adapter_config.json").exists():
        tools = "only adapters that DuoGen's fine-tuning made, and LoRA files, can be used"
        raise ValueError(f"{path} is a plain peft adapter; {tools}.")
    loras = sorted(path.glob("*.safetensors"))
    if len(loras) > 1:
        raise ValueError(f"{path} holds {len(loras)} LoRA files; name one of them, such as {loras[0].name}.")
    if not loras:
        raise ValueError(f"{path} is no adapter: an adapter is a folder with {ADAPTER} in it, or a LoRA file.")
    return loras[0]


def read_about(folder: Path) -> dict[str, Any]:
    """What `adapter.json` says. Raises ValueError, one sentence."""
    if not (folder / ADAPTER).exists():
        raise ValueError(f"{folder} is no adapter: an adapter is a folder with {ADAPTER} in it.")
    about = read_record(folder / ADAPTER)
    if not about and read_text(folder / ADAPTER).strip() != "{}":
        raise ValueError(f"{folder / ADAPTER} is damaged; train or get the adapter again.")
    return {"title": folder.name, "base": "", **about}


def check_adapter(folder: Path) -> None:
    """Raises ValueError, one sentence, when a folder that fine-tuning made lacks its weights, or they are damaged."""
    read_about(folder)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
    files = [part / WEIGHTS for part in parts] or [folder / part / WEIGHTS for part in PARTS]
    lacking = [file for file in files if not file.is_file()]
    if lacking:
        beside = sorted({each.name for there in (folder, *parts) for each in there.glob("*.safetensors")} - {WEIGHTS})
        other = f"; {beside[0]} is a file of another tool, which is used by itself" if beside else ""
        names = " and ".join(file.relative_to(folder).as_posix() for file in lacking)
        raise ValueError(f"The adapter {folder} lacks {names}{other}; train or get it again.")
    for file in files:
        if not read_header(file).shapes:
            raise ValueError(f"{file} holds no weights; train or get the adapter again.")


def set_adapters(pair: DuoGenPipeline, wanted: Sequence[AdapterSpec]) -> None:
    """Make `wanted` the adapters that work in a pair; those that are not among them are taken off, those that are stay in memory.

    Raises:
        ValueError: one of them is no adapter, is damaged, or was made for another pair; those before it may be on.
    """
    for each in wanted:
        each.check()
        if each.is_lora_file:
            tool = read_lora(each.path).tool
            raise ValueError(f"{each.path} is a LoRA of {tool}; this pair takes only adapters that DuoGen's fine-tuning made.")
    working: set[Path] = set()
    for part in PARTS:
        module = getattr(pair, part)
        if module is None:  # a pair that is open in part
            continue
        there = {_name(each.path / part): each for each in wanted if (each.path / part / WEIGHTS).is_file()}
        loaded = list_loaded(module)
        for gone in loaded - there.keys():
            remove_adapter(module, gone)
        for name, each in there.items():
            if name not in loaded:
                _load(module, each.path / part, name, each.path)
            if has_effect(module, name):
                working.add(each.path)
        set_weights(module, {name: each.weight for name, each in there.items()})
    _check_effect(pair, [each.path for each in wanted if each.path not in working])


def _check_effect(pair: DuoGenPipeline, idle: list[Path]) -> None:
    """Raises ValueError: an adapter changes nothing. One that changes only a part that is not open is left in peace."""
    for path in idle:
        if all(getattr(pair, part) is not None for part in PARTS if (path / part).is_dir()):
            raise ValueError(f"The adapter {path} changes nothing: all of its weights are zero; train or get it again.")


def _name(folder: Path) -> str:
    """The same for the same file; peft's names hold no dots."""
    stat = (folder / WEIGHTS).stat()
    return "a" + hashlib.sha256(f"{folder.resolve()} {stat.st_mtime_ns} {stat.st_size}".encode()).hexdigest()[:16]


def _load(module: nn.Module, folder: Path, name: str, whole: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = {key.removeprefix(PREFIX): value for key, value in load_file(folder / WEIGHTS).items()}
        inject_adapter_in_model(config, module, adapter_name=name)
        wanted = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False).keys()
        result = set_peft_model_state_dict(module, weights, adapter_name=name)
        if result.unexpected_keys:
            raise KeyError(result.unexpected_keys[0])
    except (OSError, SafetensorError) as error:
        remove_adapter(module, name)
        raise ValueError(f"The adapter {whole} is damaged or incomplete; train or get it again.") from error
    except Exception as error:  # peft and torch raise many kinds for shapes and names that do not fit
        remove_adapter(module, name)
        raise ValueError(f"The adapter {whole} was made for another pair, or is damaged; open the pair that it names.") from error
    if lacking := wanted - weights.keys():  # peft would leave those layers without effect
        remove_adapter(module, name)
        raise ValueError(f"The adapter {whole} lacks {len(lacking)} of its {len(wanted)} weights; train or get it again.")
    module.requires_grad_(False)


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters that work into the weights, and take them off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in [(name, each) for name, each in module.named_modules() if isinstance(each, BaseTunerLayer)]:
        layer.merge(safe_merge=True)
        above, _, last = name.rpartition(".")
        setattr(module.get_submodule(above), last, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def write(module: nn.Module, name: str, config: LoraConfig, folder: Path) -> None:
    """Write the adapter `name` of a module into `folder`, as peft and diffusers read it."""
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    weights = get_peft_model_state_dict(module, adapter_name=name, save_embedding_layers=False)
    named = {PREFIX + key: value.detach().to("cpu", torch.float32).contiguous() for key, value in weights.items()}
    part = folder / f".{WEIGHTS}.part"
    save_file(named, part, metadata={"format": "pt"})
    sync_file(part)
    move(part, folder / WEIGHTS)
