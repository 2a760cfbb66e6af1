"""What the public pairs need on a GPU, at their real sizes with random weights: python -m bench.gpu [--pairs ID,ID] [--out FILE]

Nothing is downloaded: the models are built from the public configurations in `assets/catalogue.json`, layer by layer on the card. In one
run, for NF4 and bf16 and each attention kernel: peak memory, tokens a second, seconds a step and a picture of 1024 px with 0, 4 and 8
earlier ones; then each pair under caps of 8, 12, 16 and 24 GB, opened as the memory plan says.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image as PILImage
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from duogen.catalogue import FILE, entries
from duogen.engine import Engine
from duogen.memory import CARDS, GB, Machine, plan
from duogen.mllm import Context
from duogen.options import ImageOptions, LoadOptions, TextOptions
from duogen.pipeline import About, DuoGenPipeline
from duogen.placeholders import Asked
from duogen.placement import KEPT_WHOLE, Turns, layer_by_layer, set_attention, tile
from duogen.sequence import Packed
from duogen.stock import StockPair

RESULTS = Path(__file__).parent / "results"
SIDE, WORDS, TOKENS, STEPS = 1024, 400, 64, 4
EARLIER = (0, 4, 8)
KERNELS = ("native", "xformers", "flash")
CUDA = 0.6 * GB  # of a card's size that no program gets
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WHOLE = {*KEPT_WHOLE, "visual", "lm_head"}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes and Qwen's marks: enough to measure with."""
    alphabet = [*MARKS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    chat = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=MARKS[0], unk_token=MARKS[0], chat_template=chat)


def built(name: str, precision: str, device: str, **changes: Any) -> Any:
    """A part of the catalogue with random weights on `device`, its large layers quantised as `duogen` does."""
    raw = json.loads(FILE.read_text(encoding="utf-8"))["parts"][name]
    kind = getattr({"transformers": transformers, "diffusers": diffusers}[raw["library"]], raw["class"])
    config = raw["config"] | changes
    with torch.device("meta"):
        model = kind(kind.config_class(**config)) if raw["library"] == "transformers" else kind(**config)
    for path, module in list(model.named_modules()):
        filled(module, device)
        if precision == "nf4" and isinstance(module, torch.nn.Linear) and not set(path.split(".")) & WHOLE and "vae" not in name:
            parent = model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], as_nf4(module, device))
    return model.eval().requires_grad_(False)


def filled(module: torch.nn.Module, device: str) -> None:
    for name, weight in list(module._parameters.items()):
        if weight is not None and weight.is_meta:
            fresh = torch.empty(weight.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
            module._parameters[name] = torch.nn.Parameter(fresh, requires_grad=False)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = torch.ones(buffer.shape, dtype=buffer.dtype, device=device)
    if hasattr(module, "inv_freq"):  # rotary frequencies: any will do for a measurement
        module.inv_freq = torch.linspace(1.0, 1e-4, len(module.inv_freq), device=device)


def as_nf4(linear: torch.nn.Linear, device: str) -> torch.nn.Module:
    import bitsandbytes as bnb

    small = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16, quant_type="nf4", device="meta"
    )
    small.weight = bnb.nn.Params4bit(linear.weight.data.cpu(), requires_grad=False, quant_type="nf4").to(device)
    small.bias = linear.bias
    return small


def opened(id: str, load: LoadOptions, device: str) -> DuoGenPipeline | StockPair:
    """A pair of the catalogue, built instead of loaded."""
    raw = next(each for each in json.loads(FILE.read_text(encoding="utf-8"))["pairs"] if each["id"] == id)
    names, words = raw["parts"], tokenizer()
    marks = {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in (
        ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end"))}  # fmt: skip
    home = device if load.offload == "none" else "cpu"
    talker = built(names.get("brain") or names["text_encoder"], load.precision, home, **marks)
    painter, vae = built(names["transformer"], load.painter_precision, home), built(names["vae"], "bf16", home)
    eyes = transformers.Qwen2VLImageProcessorPil(
        patch_size=talker.config.vision_config.patch_size, merge_size=2, temporal_patch_size=2, min_pixels=SIDE * 64, max_pixels=640 * 640
    )
    size = tuple(raw["about"]["image_size"])
    most = raw["about"].get("most_sources", 3)
    about = About(title=raw["title"], tuned=False, image_size=size, steps=STEPS, guidance=1.0, most_sources=most)
    tile(vae, load.tiling)
    if load.offload == "group":
        layer_by_layer(painter, device)
    if "cosmos" in id:
        solver = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        pair: Any = DuoGenPipeline(talker, words, painter, vae, solver, image_processor=eyes)
        moved = [vae] if load.offload == "group" else [painter, vae]
    else:
        pair, moved = StockPair(talker, words, eyes, stock(names, talker, painter, vae, words, eyes, home), about, None, load), []
        if home != device:
            pair.pipe.enable_model_cpu_offload(device=device)
    pair.about = about
    pair.turns = Turns(talker, moved, device, None if home == device else "cpu")
    return pair


def stock(names: dict[str, str], talker: Any, painter: Any, vae: Any, words: Any, eyes: Any, home: str) -> Any:
    from duogen.stock import WordsAndPictures, _with_picture_marks

    solver = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    if "brain" in names:
        return diffusers.Flux2KleinPipeline(solver, vae, built(names["text_encoder"], "nf4", home), words, painter, is_distilled=True)
    pipe = diffusers.QwenImageEditPlusPipeline.__new__(diffusers.QwenImageEditPlusPipeline)
    talker.register_forward_pre_hook(_with_picture_marks, with_kwargs=True)
    diffusers.QwenImageEditPlusPipeline.__init__(pipe, solver, vae, talker, words, WordsAndPictures(words, eyes), painter)
    return pipe


def measured(engine: Engine, device: str, earlier: int) -> dict[str, float]:
    """Tokens a second, seconds a step and a picture after `earlier` ones, and the peak of it all in GB."""
    engine.memory = type(engine.memory)()
    context, frames = Context(), engine.memory.frames
    packed = Packed()
    packed.add(engine.tokens.text("a" * WORDS), False)
    engine.pair.turns.talk()
    engine.mllm.prefill(context, packed)
    began = now(device)
    for _, _token in zip(range(TOKENS), engine.mllm.talk(context, TextOptions(temperature=1.0), torch.Generator()), strict=False):
        pass
    rate = TOKENS / (now(device) - began)
    asked = Asked("A red house with a blue door, photographed in the evening.")
    condition, segment = engine._brief(asked)
    engine.pair.turns.paint()
    for shade in range(earlier):
        engine.painter.remember(frames, engine.painter.encode(PILImage.new("RGB", (SIDE, SIDE), (shade * 20, 90, 90))), None, 0)
    began = now(device)
    times, latents = [], None
    for painted in engine.painter.paint(frames, condition, segment, ImageOptions(STEPS, 1.0, preview_every=0), 1):
        times.append(now(device))
        latents = painted.latents
    engine.painter.decode(latents)
    whole, steps = now(device) - began, [after - before for before, after in zip(times, times[1:], strict=False)]
    peak = torch.cuda.max_memory_allocated() / GB if device.startswith("cuda") else 0.0
    return {"tokens_per_second": rate, "step_seconds": min(steps or [whole]), "picture_seconds": whole, "peak_gb": peak}


def now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def tried(id: str, load: LoadOptions, device: str, kernels: tuple[str, ...], earlier: tuple[int, ...], size: Any = None) -> list[dict]:
    """One row for each kernel and number of earlier pictures; what fails is a row with the reason."""
    rows = []
    engine = Engine(opened(id, load, device))
    if size:
        engine.pair.about = engine.painter.about = replace(engine.pair.about, image_size=size)
    for kernel in kernels:
        for count in earlier:
            row = {"pair": id, "precision": load.precision, "painter": load.painter_precision, "offload": load.offload, "kernel": kernel}
            try:
                model = engine.pair.pipe.transformer if isinstance(engine.pair, StockPair) else engine.pair.transformer
                set_attention(model, device, kernel) if kernel != "native" else model.reset_attention_backend()
                if device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                rows.append(row | {"earlier": count} | measured(engine, device, count))
            except (ValueError, RuntimeError, torch.OutOfMemoryError) as error:
                rows.append(row | {"earlier": count, "failed": str(error).splitlines()[0][:200]})
            print(json.dumps(rows[-1]), flush=True)
    del engine
    gc.collect()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="cosmos-predict2.5-2b,flux2-klein-4b,qwen-image-edit-2511")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here; this measures GPUs.\n")
    rows, device = [], "cuda"
    total = torch.cuda.get_device_properties(0).total_memory
    for id in given.pairs.split(","):
        for precision in ("nf4", "bf16"):
            load = LoadOptions(device=device, precision=precision, painter_precision=precision, offload="none", tiling="off")
            rows += tried(id, load, device, KERNELS, EARLIER)
        pair = entries()[id]
        for card in CARDS:
            chosen = plan(pair.parts, pair.about, Machine.with_card(card, 100 * GB))
            if not chosen.fits:
                continue
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, (card * GB - CUDA) / total))
            found = tried(id, chosen.load, device, ("native",), EARLIER, chosen.size)
            rows += [{**row, "card": card, "planned_gb": chosen.card / GB} for row in found]
            torch.cuda.set_per_process_memory_fraction(1.0)
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "side": SIDE, "steps": STEPS}
    given.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
