"""LoRA files of other tools: whose they are, and what they say of themselves. Their headers are enough, so torch is not needed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from duogen.models.weight_files import PICKLES, read_header
from duogen.text_decoding import RUBBISH

SUFFIX = ".safetensors"
MOST_WORDS, LONGEST_WORDS = 5, 60  # trigger words that are shown, and the letters of one
TOOLS = {  # by the beginning of a tensor's name
    "kohya": r"lora_(unet|te\d?|transformer|prior)_",
    "ComfyUI or ai-toolkit": r"diffusion_model\.",
    "diffusers": r"(transformer|unet|text_encoder(_\d)?)\.",
    "peft": r"base_model\.model\.",
}
ADAPTED = re.compile(r"lora|lokr", re.IGNORECASE)
UNKNOWN = {"dora_scale": "a DoRA", "hada_": "a LoHa", "oft_": "an OFT adapter", "diff_b": "a full difference of weights"}
HALVES = re.compile(r"(?:lora[._](?:A|down)|lora[._](?:B|up))(?=\.|$)")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file.

    Attributes:
        tool: whose key format it has.
        base: the model that it was trained on, as it says itself; "" where it does not.
        triggers: the words that call up what it learnt, as it says itself.
    """

    file: Path
    title: str
    tool: str
    base: str
    triggers: tuple[str, ...]


def read_lora(file: Path) -> LoraFile:
    """Read what a LoRA file says of itself.

    Raises:
        ValueError: it is no LoRA file, or none that diffusers can use; one sentence that names it.
    """
    if file.suffix.lower() in PICKLES:
        raise ValueError(f"{file} is a pickle, which can run code; get the LoRA as a {SUFFIX} file.")
    if file.suffix.lower() == ".zip":
        raise ValueError(f"{file} is a zip; unpack it and name what is in it.")
    if file.suffix.lower() != SUFFIX:
        raise ValueError(f"{file} is no LoRA file; a LoRA file ends in {SUFFIX}.")
    header = read_header(file)
    if not header.shapes:
        raise ValueError(f"{file} holds no weights; get the LoRA again.")
    for mark, what in UNKNOWN.items():
        if any(mark in name for name in header.shapes):
            raise ValueError(f"{file} is {what}, which diffusers cannot put on a painter; get it as a LoRA.")
    if not any(ADAPTED.search(name) for name in header.shapes):
        raise ValueError(f"{file} is no LoRA: it holds a model's own weights.")
    _check_halves(file, list(header.shapes))
    said = header.metadata
    title = said.get("modelspec.title") or said.get("ss_output_name") or said.get("name") or file.stem
    base = said.get("ss_base_model_version") or said.get("modelspec.architecture") or said.get("base_model") or ""
    tool = next((tool for tool, pattern in TOOLS.items() if any(re.match(pattern, name) for name in header.shapes)), "another tool")
    return LoraFile(file, _shorten(title), tool, _shorten(base.removesuffix("/lora")), _find_triggers(said))


def _check_halves(file: Path, names: list[str]) -> None:
    """Raises ValueError when half of a layer's two matrices is missing: diffusers would leave that layer without effect."""
    halves: dict[str, set[str]] = {}
    for name in names:
        if found := HALVES.search(name):
            halves.setdefault(name[: found.start()], set()).add("down" if re.search(r"A$|down$", found.group()) else "up")
    lacking = sum(len(each) < 2 for each in halves.values())
    if lacking:
        raise ValueError(f"{file} lacks half of the weights of {lacking} of its {len(halves)} layers; get the LoRA again.")


def _find_triggers(said: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger words that a file names, else the commonest captions of its training."""
    phrase = said.get("modelspec.trigger_phrase") or said.get("trigger_word") or said.get("trigger_words") or ""
    if phrase.strip():
        return (_shorten(phrase),)
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(said.get("ss_tag_frequency", "{}")).values():
            counts.update({tag.strip(): int(count) for tag, count in tags.items()})
    except Exception:  # what a stranger's file says is no reason to refuse it
        return ()
    return tuple(_shorten(tag) for tag, _ in counts.most_common(MOST_WORDS) if tag)


def _shorten(words: str) -> str:
    plain = " ".join(RUBBISH.sub("", words).split())
    return plain if len(plain) <= LONGEST_WORDS else plain[: LONGEST_WORDS - 1] + "…"
