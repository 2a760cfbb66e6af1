"""An MLLM as a reader: one question with pictures, one answer in words. The data engine's helper and the benchmarks' judge.

Any pair folder serves, and any folder or hub name of a Qwen2.5-VL checkpoint, which the judges of most benchmarks are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation, open_picture
from duogen.models.mllm import MLLM, Context
from duogen.models.sequence import Tokens
from duogen.options import TextOptions

MOST_TOKENS = 512
MOST_SIDE = 1024  # of a picture that is read


class Reader(Protocol):
    """Whoever answers questions about pictures.

    Attributes:
        name: what it is called in results.
        version: tells two states of one name apart.
    """

    name: str
    version: str

    def ask(self, question: str, pictures: Sequence[Path | PILImage.Image], most: int = MOST_TOKENS) -> str:
        """The answer, at most `most` tokens long, the likeliest at every token. The pictures come before the question."""


class MLLMReader:
    """A Qwen2.5-VL model that answers."""

    def __init__(self, mllm: MLLM, name: str, version: str) -> None:
        self.mllm, self.name, self.version = mllm, name, version

    def ask(self, question: str, pictures: Sequence[Path | PILImage.Image], most: int = MOST_TOKENS) -> str:
        tokens, context = self.mllm.tokens, Context()
        opened = [_fitting(open_picture(each) if isinstance(each, Path) else each) for each in pictures]
        packed = tokens.pack(Conversation().say("user", *opened, question).path())
        packed.add(tokens.opening("assistant"), False)
        self.mllm.prefill(context, packed)
        said: list[int] = []
        generator = torch.Generator()
        while len(said) < most:
            context.logits[tokens.bov] = float("-inf")  # a reader does not draw
            token = next(self.mllm.talk(context, TextOptions(temperature=0.0), generator))
            if token == tokens.end:
                break
            said.append(token)
            self.mllm.append(context, token)
            context.fresh.clear()  # hidden states, which only a painter wants
        return tokens.tokenizer.decode(said, skip_special_tokens=True).strip()


def _fitting(picture: PILImage.Image) -> PILImage.Image:
    if max(picture.size) <= MOST_SIDE:
        return picture
    picture = picture.copy()
    picture.thumbnail((MOST_SIDE, MOST_SIDE), PILImage.Resampling.LANCZOS)
    return picture


def open_reader(name: str | None, device: str = "auto", precision: str = "auto") -> MLLMReader:
    """Open a pair (`None`: the bundled one) or a Qwen2.5-VL checkpoint as a reader.

    Raises:
        ValueError: one sentence that says what is wrong with it.
    """
    from duogen.hub.assemble import ready_pair
    from duogen.models.pipeline import open_mllm, open_pair, pick_device

    folder = Path(name) if name else None
    if folder is not None and (folder / "config.json").exists() and not (folder / "model_index.json").exists():
        return _plain(folder, folder.name, pick_device(device), precision, open_mllm)
    if folder is not None and not folder.exists() and name.count("/") == 1:
        return _plain(_fetched(name), name, pick_device(device), precision, open_mllm)
    ready = ready_pair(name, lambda sentence: None)
    pair = open_pair(ready, device, precision)
    tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
    return MLLMReader(MLLM(pair.text_encoder, tokens, [-1]), pair.about.title, version_of(ready / "text_encoder"))


def _fetched(name: str) -> Path:
    """A checkpoint from the hub, by its name there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name} cannot be fetched from the hub ({type(error).__name__}); name a folder instead.") from error


def _plain(folder: Path, name: str, device: str, precision: str, open_mllm: object) -> MLLMReader:
    """A checkpoint in transformers' own layout."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    from duogen.precision import best_precision, token_dtype

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "qwen2_5_vl":
        raise ValueError(f"{name} is a {kind} model; a reader or judge must be a Qwen2.5-VL checkpoint or a pair.")
    if precision == "auto":
        precision = best_precision(device)
    try:
        model = open_mllm(folder, device, precision)
        tokens = Tokens(AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder))
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error
    return MLLMReader(MLLM(model, tokens, [-1], token_dtype=token_dtype(precision)), name, version_of(folder))


def version_of(folder: Path) -> str:
    """A name for the state of a checkpoint: a digest of its configuration and of the names, sizes and heads of its weight files."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(1 << 20))
    return digest.hexdigest()[:12]
