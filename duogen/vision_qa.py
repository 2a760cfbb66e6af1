"""Visual question answering by an MLLM: a question with pictures in, an answer in words out.

The data engine and the judge of the benchmarks use it. It opens a pair folder, or a Qwen2.5-VL checkpoint by folder or hub name.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image as PILImage

from duogen.conversation import Conversation
from duogen.models.mllm import MLLM, Context
from duogen.models.sequence import Tokens
from duogen.options import TextOptions
from duogen.picture_input import open_picture

MOST_TOKENS = 512
MOST_SIDE = 1024  # pixels of the longer side of a picture


class VisionQA(Protocol):
    """Answers questions about pictures.

    Attributes:
        name: the name in results.
        version: differs between two states of the weights under one name.
    """

    name: str
    version: str

    def ask(self, question: str, pictures: Sequence[Path | PILImage.Image], most: int = MOST_TOKENS) -> str:
        """Answer by greedy decoding in at most `most` tokens. The pictures come before the question."""


class MLLMVisionQA:
    """A Qwen2.5-VL model that answers."""

    def __init__(self, mllm: MLLM, name: str, version: str) -> None:
        self.mllm, self.name, self.version = mllm, name, version

    def ask(
        self, question: str, pictures: Sequence[Path | PILImage.Image], most: int = MOST_TOKENS, stop: threading.Event | None = None
    ) -> str:
        """As of `VisionQA`; the answer breaks off where `stop` is set."""
        tokens, context = self.mllm.tokens, Context()
        opened = [shrink(open_picture(each) if isinstance(each, Path) else each) for each in pictures]
        packed = tokens.pack(Conversation().say("user", *opened, question).path())
        packed.add(tokens.opening("assistant"), False)
        self.mllm.prefill(context, packed)
        said: list[int] = []
        generator = torch.Generator()
        while len(said) < most and not (stop and stop.is_set()):
            assert context.logits is not None, "prefill gives them"
            context.logits[tokens.bov] = float("-inf")  # no picture in the answer
            token = next(self.mllm.generate(context, TextOptions(temperature=0.0), generator))
            if token == tokens.end:
                break
            said.append(token)
            self.mllm.append(context, token)
            context.fresh.clear()  # hidden states, which only a painter needs
        return tokens.tokenizer.decode(said, skip_special_tokens=True).strip()


def shrink(picture: PILImage.Image) -> PILImage.Image:
    """A picture as an MLLM is asked about it: at most `MOST_SIDE` pixels a side."""
    if max(picture.size) <= MOST_SIDE:
        return picture
    picture = picture.copy()
    picture.thumbnail((MOST_SIDE, MOST_SIDE), PILImage.Resampling.LANCZOS)
    return picture


def open_vision_qa(name: str | None, device: str = "auto", precision: str = "auto") -> MLLMVisionQA:
    """Open a pair (`None`: the bundled one) or a Qwen2.5-VL checkpoint for visual question answering.

    Raises:
        ValueError: one sentence that says what is wrong with it.
    """
    from duogen.hub.assemble import prepare_pair
    from duogen.models.pipeline import open_pair, pick_device

    if name:
        folder = Path(name)
        if (folder / "config.json").exists() and not (folder / "model_index.json").exists():
            return _open_checkpoint(folder, folder.name, pick_device(device), precision)
        if not folder.exists() and name.count("/") == 1:
            return _open_checkpoint(_fetch_checkpoint(name), name, pick_device(device), precision)
    ready = prepare_pair(name, lambda sentence: None)
    pair = open_pair(ready, device, precision)
    tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
    return MLLMVisionQA(MLLM(pair.text_encoder, tokens, [-1]), pair.about.title, checkpoint_version(ready / "text_encoder"))


def _fetch_checkpoint(name: str) -> Path:
    """Download a checkpoint from the hub by its name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name} cannot be fetched from the hub ({type(error).__name__}); name a folder instead.") from error


def _open_checkpoint(folder: Path, name: str, device: str, precision: str) -> MLLMVisionQA:
    """Open a checkpoint in the layout of transformers."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    from duogen.models.pipeline import open_mllm
    from duogen.precision import best_precision, token_dtype

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "qwen2_5_vl":
        raise ValueError(f"{name} is a {kind} model; the MLLM here must be a Qwen2.5-VL checkpoint or a pair.")
    if precision == "auto":
        precision = best_precision(device)
    try:
        model = open_mllm(folder, device, precision)
        tokens = Tokens(AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessorPil.from_pretrained(folder))
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot be opened: {str(error).splitlines()[0]}") from error
    return MLLMVisionQA(MLLM(model, tokens, [-1], token_dtype=token_dtype(precision)), name, checkpoint_version(folder))


def checkpoint_version(folder: Path) -> str:
    """A digest of a checkpoint's configuration and of the names, sizes and first bytes of its weight files."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(1 << 20))
    return digest.hexdigest()[:12]
