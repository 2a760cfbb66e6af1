"""What the public pairs need on a GPU, at their real sizes with random weights: python -m bench.gpu [--pairs ID,ID] [--out FILE]

Nothing is downloaded: the models are built from the public configurations in `assets/catalogue.json`, layer by layer on the GPU. In one
run, for NF4 and bf16 and each attention kernel: peak memory, tokens a second, seconds a step and a picture of 1024 px with 0, 4 and 8
earlier ones; then each pair under caps of 8, 12, 16 and 24 GB, opened as the memory plan says. The table's first line names each kernel's
version, or why it does not load. Every row is written down as soon as it is there, as JSON and as a table beside it; the same command
goes on after the last one. `--tiny` is the same run with toy models, on a CPU too: it shows in a minute that nothing is broken, and
measures nothing.

`--compare` paints the same pictures with each pair's painter in bf16 and in NF4, at equal seeds, prints how far they differ, and saves them
side by side. Real weights are taken where the pair is on this machine; random ones only show that it runs.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import numpy as np
import torch
import transformers
from accelerate import init_empty_weights
from PIL import Image as PILImage
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from duogen.conversation import Conversation, Image
from duogen.engine import Engine, Memory
from duogen.events import ImageStarted, ImageStep, Notice
from duogen.files import write_beside
from duogen.hub.catalogue import FILE, entries, is_installed
from duogen.hub.memory_plan import CUDA, GB, GPU_SIZES, Machine, Plan, plan
from duogen.models.pipeline import About, DuoGenPipeline
from duogen.models.pipeline import place as place_frames
from duogen.models.placeholders import PictureRequest
from duogen.models.placement import KEPT_WHOLE, DeviceSwapper, explain_no_xformers_here, free, sdpa_kind, set_attention
from duogen.options import ImageOptions, LoadOptions, Options, TextOptions, scale_size
from duogen.painters.base import Frames, PaintRequest
from duogen.painters.diffusers import DiffusersPair, WordsAndPictures
from duogen.painters.diffusers import place as place_stock

RESULTS = Path(__file__).parent / "results"
SOURCE_SIZES = ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE")  # to which the pipeline scales its source pictures
KERNELS = ("native", "xformers", "flash")
HOST = 100 * GB  # of the machine that a plan for a smaller GPU is made for
HEADS = (
    "pair", "card", "precisions", "offload", "size", "kernel", "earlier pictures", "tokens/s", "s/step", "s/picture", "peak GB",
    "planned GB (* it ran out and stepped down)",
)  # fmt: skip
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
PLAIN_CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"
WHOLE = {*KEPT_WHOLE, "visual", "lm_head"}
RAW = json.loads(FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Scale:
    """How much is done: pixels of a picture's side, letters of the question, tokens said, steps, numbers of earlier pictures."""

    side: int = 1024
    words: int = 400
    tokens: int = 64
    steps: int = 4
    earlier: tuple[int, ...] = (0, 4, 8)


TINY = Scale(64, 20, 4, 2)
_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "head_dim": 16}
_EYES = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_DIT = {"num_attention_heads": 4, "attention_head_dim": 16}
_COSMOS = _DIT | {
    "num_layers": 2,
    "text_embed_dim": 64,
    "adaln_lora_dim": 64,
    "crossattn_proj_in_channels": 128,
    "encoder_hidden_states_channels": 64,
}
_WAN = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
PIPELINES = {  # families, as the ids of their pairs begin
    "flux1-kontext": "FluxKontextPipeline", "flux2-klein": "Flux2KleinPipeline", "longcat-image-edit": "LongCatImageEditPipeline",
    "longcat-image": "LongCatImagePipeline", "qwen-image-edit": "QwenImageEditPlusPipeline", "qwen-image-2512": "QwenImagePipeline",
    "z-image": "ZImagePipeline",
}  # fmt: skip
BUILT = ("cosmos-predict2.5", *PIPELINES)
_FLUX = _DIT | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 64, "pooled_projection_dim": 64}
_VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TOYS: dict[str, dict[str, Any]] = {  # what `--tiny` changes of the public configurations
    "qwen2.5-vl-7b": {
        "text_config": _TEXT | {"num_hidden_layers": 2, "rope_parameters": _ROPE}, "vision_config": _EYES | {"fullatt_block_indexes": [1]},
    },
    "qwen3-vl-4b": {
        "text_config": _TEXT | {"num_hidden_layers": 3, "rope_parameters": _ROPE | {"mrope_interleaved": True}},
        "vision_config": _EYES | {"deepstack_visual_indexes": [0, 1]},
    },
    "qwen3-4b": _TEXT | {"num_hidden_layers": 28},  # the pipeline reads its 27th layer
    "qwen3-8b": _TEXT | {"num_hidden_layers": 28},
    "cosmos-predict2.5-2b": _COSMOS,
    "cosmos-predict2.5-14b": _COSMOS,
    "qwen-image-20b": _DIT | {"num_layers": 2, "joint_attention_dim": 64, "axes_dims_rope": (8, 4, 4)},
    "flux2-klein-4b": _DIT | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 192, "axes_dims_rope": (4, 4, 4, 4)},
    "flux2-klein-9b": _DIT | {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 192, "axes_dims_rope": (4, 4, 4, 4)},
    "wan-vae": _WAN,
    "qwen-image-vae": _WAN,
    "flux2-vae": _VAE,
    "flux1-vae": _VAE,
    "z-image-6b": {
        "dim": 192, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 6, "n_kv_heads": 6, "cap_feat_dim": 64, "axes_dims": [8, 12, 12],
    },
    "longcat-image-6b": _FLUX | {"axes_dims_rope": [4, 6, 6]},
    "flux1-kontext-12b": _FLUX | {"axes_dims_rope": [4, 6, 6]},
    "t5-xxl": {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 512},
    "clip-l": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 512},
}  # fmt: skip
PROMPTS = (  # of the comparison: plain shapes, a photograph, writing
    "a red house with a blue door under a yellow sun", "a photograph of a lighthouse on a rock in a storm at night",
    "a poster that says OPEN in large letters above a bowl of oranges",
)  # fmt: skip
SEED = 7


def tokenizer(texts: Sequence[str] = (), chat: str = PLAIN_CHAT) -> transformers.PreTrainedTokenizerFast:
    """Bytes and Qwen's marks: enough to measure with. The words of `texts` become about a token each, as with a real tokenizer."""
    alphabet = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if texts:
        initial, special = pre_tokenizers.ByteLevel.alphabet(), list(MARKS)
        trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=special, initial_alphabet=initial, show_progress=False)
        inner.train_from_iterator([*texts] * 2, trainer)  # a pair must be seen twice
    inner.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=MARKS[0], unk_token=MARKS[0], chat_template=chat)


def mark_ids(words: transformers.PreTrainedTokenizerFast) -> dict[str, int]:
    """The marks of pictures, as the configuration of an MLLM names them."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in names.items()}


def part_class(name: str) -> Any:
    """The class of a part of the catalogue."""
    raw = RAW["parts"][name]
    return getattr({"transformers": transformers, "diffusers": diffusers}[raw["library"]], raw["class"])


@dataclass(frozen=True)
class Workshop:
    """Builds parts of the catalogue with random weights.

    Attributes:
        work: where they are made and quantised. `home`: where they lie then.
    """

    work: str
    home: str
    tiny: bool

    def built(self, name: str, precision: str, **changes: Any) -> Any:
        """A part with random weights, its large layers quantised as `duogen` does."""
        raw, kind = RAW["parts"][name], part_class(name)
        config = merged(raw["config"] | changes, TOYS[name] if self.tiny else {})
        with init_empty_weights():
            model = kind(kind.config_class(**config)) if raw["library"] == "transformers" else kind(**config)
        for path, module in list(model.named_modules()):
            self._fill(module)
            if precision == "nf4" and isinstance(module, torch.nn.Linear) and not set(path.split(".")) & WHOLE and "vae" not in name:
                parent = model.get_submodule(path.rpartition(".")[0])
                setattr(parent, path.rpartition(".")[2], self._as_nf4(module))
        if raw["library"] == "transformers":
            model.tie_weights()
        model.is_quantized = precision == "nf4"
        return model.eval().requires_grad_(False)

    def _fill(self, module: torch.nn.Module) -> None:
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.is_meta:
                fresh = torch.empty(weight.shape, dtype=torch.bfloat16, device=self.work).normal_(std=0.02)
                module._parameters[name] = torch.nn.Parameter(fresh.to(self.home), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.to(self.home)

    def _as_nf4(self, linear: torch.nn.Linear) -> torch.nn.Module:
        import bitsandbytes as bnb

        sizes = linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16
        small = bnb.nn.Linear4bit(*sizes, quant_type="nf4", device="meta")
        whole = linear.weight.data.to(self.work)
        small.weight = bnb.nn.Params4bit(whole, requires_grad=False, quant_type="nf4").to(self.work).to(self.home)
        small.bias = linear.bias
        return small


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A configuration with some values changed, those of its parts too."""
    inner = {name: merged(config[name], value) for name, value in changes.items() if isinstance(config.get(name), dict)}
    return config | changes | inner


def opened(id: str, load: LoadOptions, device: str, scale: Scale, size: tuple[int, int] | None = None) -> DuoGenPipeline | DiffusersPair:
    """A pair of the catalogue, built instead of loaded, and placed as a loaded one is.

    Raises:
        ValueError: it is of a family that is not built here.
    """
    raw, words = next(each for each in RAW["pairs"] if each["id"] == id), tokenizer()
    names, about = raw["parts"], raw["about"]
    if not id.startswith(BUILT):
        raise ValueError(f"bench.gpu cannot build {id} yet; choose a pair of {', '.join(BUILT)}.")
    workshop = Workshop(device, device if load.offload == "none" else "cpu", scale == TINY)
    speaks = "mllm" if "mllm" in names else "text_encoder"
    precisions = {"transformer": load.painter_precision, "vae": "bf16"}
    parts = {
        role: workshop.built(name, precisions.get(role, load.precision), **(mark_ids(words) if role == speaks else {}))
        for role, name in names.items()
    }  # fmt: skip
    talker = parts.pop("mllm") if speaks == "mllm" else parts["text_encoder"]
    patch, most = talker.config.vision_config.patch_size, min(640, scale.side) ** 2
    eyes = transformers.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, min_pixels=4096, max_pixels=most)
    size = scale_size(size or tuple(about["image_size"]), scale.side) if scale == TINY else size or tuple(about["image_size"])
    known = About(
        title=raw["title"], tuned=False, image_size=size, steps=scale.steps, guidance=about["guidance"],
        most_sources=about.get("most_sources", 3),
    )  # fmt: skip
    if "cosmos" in id:
        solver = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        pair = DuoGenPipeline(talker, words, parts["transformer"], parts["vae"], solver, image_processor=eyes)
        pair.about = known
        place_frames(pair, load, device)
        return pair
    pipe = build_pipeline(id, parts, words, eyes)
    stock = DiffusersPair(talker, words, eyes, pipe, known, DeviceSwapper(talker, [], device), load)
    place_stock(stock, load, device)
    return stock


def build_pipeline(id: str, parts: dict[str, Any], words: Any, eyes: Any) -> Any:
    """diffusers' pipeline of a pair of the catalogue, by the beginning of its id.

    Args:
        parts: its models by name. `words`: a tokenizer. `eyes`: what prepares pictures for the MLLM.
    """
    kind = getattr(diffusers, next(name for family, name in PIPELINES.items() if id.startswith(family)))
    takes = inspect.signature(kind.__init__).parameters
    if "tokenizer_2" in takes:  # CLIP's reads no more
        words = copy.deepcopy(words)
        words.model_max_length = 77
    given = parts | {name: words for name in takes if name.startswith("tokenizer")}
    given |= {"is_distilled": True} if "is_distilled" in takes else {}
    shift = {"shift": 3.0} if id.startswith("z-image") else {"use_dynamic_shifting": True}
    # As in `duogen.painters.diffusers`: pipelines ask for this class, which wants torchvision.
    reader = type("Qwen2VLProcessor", (WordsAndPictures, transformers.Qwen2VLProcessor), {})
    given |= {name: reader(words, eyes) for name in takes if name.endswith("processor")}
    return kind(scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift), **given)


@contextmanager
def small_sources(side: int) -> Iterator[None]:
    """Some pipelines scale their sources to a megapixel whatever they paint; here to the size of the pictures."""
    from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit as longcat

    plain, where = longcat.calculate_dimensions, "diffusers.pipelines"
    with ExitStack() as stack:
        for name in SOURCE_SIZES:
            stack.enter_context(mock.patch(f"{where}.qwenimage.pipeline_qwenimage_edit_plus.{name}", side**2))
        stack.enter_context(mock.patch(f"{where}.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS", [(side, side)]))
        stack.enter_context(mock.patch.object(longcat, "calculate_dimensions", lambda area, ratio: plain(side**2, ratio)))
        yield


def measured(engine: Engine, device: str, scale: Scale, earlier: int) -> dict[str, Any]:
    """A whole step of an answer: the question and `earlier` pictures are read, a picture's words written, the picture painted."""
    engine.memory = Memory()
    pictures = [Image(PILImage.new("RGB", engine.about["image_size"], (shade * 20, 90, 90))) for shade in range(earlier)]
    asked = Conversation().say("user", *pictures, "a" * scale.words).say("assistant", "A red house with a blue door.")
    wished = Options(1, TextOptions(temperature=1.0), ImageOptions(scale.steps, engine.about["guidance"], preview_every=0))
    began, times, told = now(device), [], []
    for event in engine.stream_image(asked, wished):
        if isinstance(event, ImageStarted | ImageStep):
            times.append(now(device))
        elif isinstance(event, Notice):
            told.append(event.message)
    whole, steps = now(device) - times[0], [after - before for before, after in zip(times[1:], times[2:], strict=False)]
    engine.pair.swapper.use_mllm()
    talking = now(device)
    tokens = engine.mllm.generate(engine.memory.context, wished.text, torch.Generator())
    said = sum(1 for _ in zip(range(scale.tokens), tokens, strict=False))
    peak = torch.cuda.max_memory_allocated() / GB if device.startswith("cuda") else 0.0
    found = {"tokens_per_second": said / (now(device) - talking), "read_seconds": times[0] - began, "step_seconds": min(steps)}
    return found | {"picture_seconds": whole, "peak_gb": peak} | ({"stepped_down": " ".join(told)} if told else {})


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def capped(device: str, card: float) -> Iterator[None]:
    """Let a GPU have `card` GB, as far as PyTorch obeys; 0 for all of it."""
    if not device.startswith("cuda") or not card:
        yield
        return
    total = torch.cuda.get_device_properties(0).total_memory
    free()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (card * GB - CUDA) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


class Table:
    """The rows so far, on disk after each."""

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file, self.about, self.rows = file, about, []
        if file.exists():
            known = json.loads(file.read_text(encoding="utf-8"))
            if known["about"] != about:
                raise ValueError(f"{file} holds figures of another machine or run; move it away, or choose another file with --out.")
            self.rows = known["rows"]

    def lacks(self, asked: dict[str, Any]) -> bool:
        return not any(asked.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        write_beside(self.file, json.dumps({"about": self.about, "rows": self.rows}, indent=1).encode())
        write_beside(self.file.with_suffix(".md"), self.as_markdown().encode())

    def as_markdown(self) -> str:
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        lines = [f"`python -m bench.gpu`: {about}.", "", "| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
        return "\n".join([*lines, *(f"| {' | '.join(cells(row))} |" for row in self.rows)]) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    given = [row["pair"], f"{row['card']} GB" if row["card"] else "whole", f"{row['precision']} + {row['painter']}", row["offload"]]
    given += [row["size"], row["kernel"], str(row["earlier"])]
    if "failed" in row:
        return [*given, row["failed"].replace("|", "/"), *[""] * 4]
    numbers = [row["tokens_per_second"], row["step_seconds"], row["picture_seconds"], row["peak_gb"], row["planned_gb"]]
    return [*given, *(f"{number:.3g}" for number in numbers[:-1]), f"{numbers[-1]:.3g}" + (" *" if "stepped_down" in row else "")]


def tried(table: Table, id: str, chosen: Plan, device: str, scale: Scale, kernels: tuple[str, ...], card: int = 0) -> None:
    """A row for each kernel and number of earlier pictures; what fails is a row with the reason."""
    size, load = chosen.size, replace(chosen.load, device=device)
    common = {"pair": id, "card": card, "precision": load.precision, "painter": load.painter_precision, "offload": load.offload}
    common |= {"size": f"{size[0]}x{size[1]}"}
    asked = [common | {"kernel": kernel, "earlier": count} for kernel in kernels for count in scale.earlier]
    asked = [row for row in asked if table.lacks(row)]
    if not asked:
        return
    free()
    with capped(device, card):
        try:
            engine = Engine(opened(id, load, device, scale, size))
        except (ValueError, RuntimeError) as error:  # out of memory is a RuntimeError
            table.add(asked[0] | {"failed": reason(error)})
            return
        for row in asked:
            table.add(row | {"planned_gb": chosen.gpu / GB} | attempt(engine, device, scale, row))
        del engine  # before the next pair is built


def attempt(engine: Engine, device: str, scale: Scale, row: dict[str, Any]) -> dict[str, Any]:
    free()
    pair = engine.pair
    model = pair.pipe.transformer if isinstance(pair, DiffusersPair) else pair.transformer
    try:
        set_attention(model, device, row["kernel"])
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        return measured(engine, device, scale, row["earlier"])
    except (ValueError, RuntimeError) as error:
        return {"failed": reason(error)}


def kernel_report(device: str) -> dict[str, str]:
    """What each kernel is on this machine: its kind or version, or why it does not load."""
    versions = {name: installed_version(package) for name, package in (("xformers", "xformers"), ("flash", "flash-attn"))}
    why = {"xformers": explain_no_xformers_here(device), "flash": "" if versions["flash"] else "flash-attn is not installed"}
    said = {name: f"none ({why[name]})" if why[name] else versions[name] for name in versions}
    return {f"kernel {name}": words for name, words in {"native": f"PyTorch's own {sdpa_kind(device)}".strip(), **said}.items()}


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def run(ids: list[str], table: Table, device: str, scale: Scale) -> None:
    """All rows, the most wanted first."""
    for id in ids:
        pair = entries()[id]
        for card in GPU_SIZES:
            chosen = plan(pair.parts, pair.about, Machine.with_gpu(card, HOST))
            if chosen.fits:
                tried(table, id, chosen, device, scale, ("native",), card)
    for precision in ("nf4", "bf16"):
        for id in ids:
            wish = LoadOptions(precision=precision, painter_precision=precision, offload="none", tiling="off")
            chosen = plan(entries()[id].parts, entries()[id].about, Machine(1000 * GB, 1000 * GB), wish)
            tried(table, id, chosen, device, scale, KERNELS)


def paint(engine: Engine, words: str, steps: int) -> PILImage.Image:
    """The picture of these words, without pictures before it."""
    asked, options = PictureRequest(words), ImageOptions(steps, engine.about["guidance"])
    condition, segment = engine._condition(asked)
    negative = engine._negative(asked, options)
    engine.pair.swapper.use_painter()
    *_, last = engine.painter.paint(Frames.empty(), PaintRequest(condition, segment, options, SEED, negative=negative))
    return last.picture or engine.painter.decode(last.latents)


def paint_all(id: str, precision: str, device: str, scale: Scale) -> list[PILImage.Image]:
    """The pictures of `PROMPTS` by a pair's painter in a precision; the MLLM is the same each time."""
    wish = LoadOptions(device=device, precision="nf4", painter_precision=precision)
    if scale != TINY and is_installed(entries()[id]):
        engine = Engine.open(id, load=wish)
        return [paint(engine, words, engine.about["steps"]) for words in PROMPTS]
    torch.manual_seed(0)  # the same random weights
    engine = Engine(opened(id, replace(wish, offload="none", tiling="off"), device, scale))
    return [paint(engine, words, scale.steps) for words in PROMPTS]


def compare(id: str, device: str, scale: Scale, folder: Path) -> list[tuple[float, float]]:
    """Paint in bf16 and in NF4 at equal seeds, and save the pictures side by side; returns the MSE (of pixels in 0..1) and PSNR of each."""
    whole = paint_all(id, "bf16", device, scale)
    free()
    small = paint_all(id, "nf4", device, scale)
    free()
    width, height = whole[0].size
    sheet = PILImage.new("RGB", (2 * width, len(whole) * height))
    found = []
    for row, pictures in enumerate(zip(whole, small, strict=True)):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * width, row * height))
        one, other = (np.asarray(picture, dtype=np.float64) / 255 for picture in pictures)
        error = float(((one - other) ** 2).mean())
        found.append((error, -10 * math.log10(error) if error else math.inf))
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / f"nf4-{id}.png")
    return found


def run_comparison(ids: list[str], device: str, scale: Scale, folder: Path) -> None:
    """Compare and print."""
    print("| pair | weights | words | MSE | PSNR (dB) | pictures (bf16, NF4) |\n|---|---|---|---|---|---|")
    for id in ids:
        weights = "real" if scale != TINY and is_installed(entries()[id]) else "random"
        for words, (error, ratio) in zip(PROMPTS, compare(id, device, scale, folder), strict=True):
            print(f"| {id} | {weights} | {words} | {error:.2e} | {ratio:.1f} | {folder / f'nf4-{id}.png'} |", flush=True)
    print('Where pictures of real weights are as good in NF4, put "nf4_compared": true into the pair\'s "about" in assets/catalogue.json.')


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.splitlines()[0])
    top.add_argument("--pairs", default="cosmos-predict2.5-2b,flux2-klein-4b,qwen-image-edit-2511", metavar="ID,ID")
    where = "JSON file, the table is written beside it (default: bench/results/gpu-CARD.json)"
    top.add_argument("--out", type=Path, metavar="FILE", help=where)
    top.add_argument("--tiny", action="store_true", help="the same with toy models, on a CPU too: measures nothing, finds what is broken")
    top.add_argument("--compare", action="store_true", help="paint in bf16 and in NF4 at equal seeds, and save the pictures side by side")
    given = top.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.tiny:
        print("bench.gpu: There is no CUDA device here; this measures GPUs. Try --tiny to see that it would run.", file=sys.stderr)
        return 2
    ids = given.pairs.split(",")
    scale, card = TINY if given.tiny else Scale(), torch.cuda.get_device_name() if device == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    about = {"device": card, **versions, **kernel_report(device)}
    about |= {"side": scale.side, "steps": scale.steps, "weights": "toys" if given.tiny else "random"}
    try:
        if given.compare:
            run_comparison(ids, device, scale, given.out.parent if given.out else RESULTS)
            return 0
        table = Table(given.out or RESULTS / f"gpu-{'-'.join(card.split())}.json", about)
        with ExitStack() as stack:
            stack.enter_context(mock.patch("duogen.engine.PROMPT_TOKENS", scale.tokens))  # there a picture's words end
            stack.enter_context(small_sources(scale.side) if given.tiny else nullcontext())
            run(ids, table, device, scale)
    except ValueError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    print(table.file.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
