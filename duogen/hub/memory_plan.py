"""What fits: precision of each part, what is offloaded, tiling and picture size for a GPU, a host and a pair.

All sizes are bytes; GB in words are 2**30 bytes, as GPUs are sold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from duogen.hub.catalogue import Part
from duogen.hub.timings import say_seconds
from duogen.kernels import Kernel
from duogen.options import LoadOptions, scale_size, split_device

GB = 2**30
NOTHING = Part(0, 0)  # for what a pipeline has not
GPU_SIZES = (8, 12, 16, 24)
# "mixed" holds float32 weights and their bf16 copy.
# NF4 stores 4 bits and, for every 64 weights, a scale of 32 bits; int8 a scale for every row.
BYTES = {"fp32": 4.0, "mixed": 6.0, "bf16": 2.0, "int8": 1.01, "nf4": 0.5625}
CONTEXT = 6144  # tokens of a long illustrated conversation
PROMPT = 1024  # tokens that the MLLM reads at once: words and a picture or two
CUDA = 0.6 * GB  # what CUDA itself and a desktop take from a GPU
WORDS = 512  # tokens of a picture's prompt
TILE = 256  # pixels of a tile's side
HOST_SPARE = 2 * GB  # left to everything else on the machine
FLOPS_OF_A_CORE = 2.5e10  # of a CPU core in float32, measured for large products; bf16 and NF4 are no faster
SIDES = (1024, 768, 512)
CONVERSATION = 7  # pictures before the last one of a long conversation
VISION = 640 * 640 / 14**2 * 1280 * 2.0 * 24  # bytes: a picture as the MLLM sees it, on its way through the vision tower
UNCOMPARED = (
    "Nobody has compared pictures of this painter in 4 bits with those of the whole one yet; if they look wrong, use another precision"
    " (--painter-precision bf16)."
)


@dataclass(frozen=True)
class Machine:
    """What there is.

    Attributes:
        gpu: free bytes of the GPU, 0 without one. `host`: free bytes of host memory. `cores`: of the CPU.
        mllm_gpu: free bytes of a device that the MLLM has for itself, 0 for the CPU; `None` where it shares the painter's.
        precision: the MLLM's best one on a CPU.
        unified: the GPU's memory is the host's, as of Apple's.
        quantises: bitsandbytes works on the GPU.
    """

    gpu: float
    host: float
    cores: int = 1
    precision: str = "bf16"
    unified: bool = False
    quantises: bool = True
    mllm_gpu: float | None = None

    @staticmethod
    def here(device: str = "auto") -> Machine:
        """This machine. Raises ValueError: more than two devices are named."""
        mllm, painter = split_device(device)
        there = Machine._with_device(painter)
        if mllm == painter:
            return there
        own = Machine._with_device(mllm)
        return replace(there, mllm_gpu=own.gpu, precision=own.precision, quantises=own.quantises and there.quantises)

    @staticmethod
    def _with_device(device: str) -> Machine:
        import psutil
        import torch

        from duogen.precision import best_precision

        host, cores = psutil.virtual_memory().available, os.cpu_count() or 1
        if device in ("auto", "cuda") or device.startswith("cuda:"):
            index = int(device[5:]) if device[5:].isdigit() else None
            if torch.cuda.is_available() and (index or 0) < torch.cuda.device_count():
                free, _ = torch.cuda.mem_get_info(index)
                return Machine(free, host, cores)
        elif device.startswith("xpu") and torch.xpu.is_available():
            free, _ = torch.xpu.mem_get_info()
            return Machine(free, host, cores)
        elif device.startswith("mps") and torch.backends.mps.is_available():
            free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
            return Machine(min(free, host), host, cores, unified=True, quantises=False)
        return Machine(0, host, cores, best_precision())

    @staticmethod
    def with_gpu(gigabytes: float, host: float, cores: int = 1, mllm_gigabytes: float | None = None) -> Machine:
        """A machine with a GPU as it is sold, 0 for none, and one for the MLLM alone, `None` where it shares that GPU."""
        own = None if mllm_gigabytes is None else max(0.0, mllm_gigabytes * GB - CUDA)
        return Machine(max(0.0, gigabytes * GB - CUDA), host, cores, mllm_gpu=own)

    def with_room(self, plan: Plan) -> Machine:
        """The same machine after what is open on it, as planned, is closed."""
        own = None if self.mllm_gpu is None else self.mllm_gpu + (plan.mllm_gpu or 0.0)
        return replace(self, gpu=self.gpu + plan.gpu if self.gpu else 0.0, host=self.host + plan.host, mllm_gpu=own)


@dataclass(frozen=True)
class Plan:
    """How a pair is opened and what that costs.

    Attributes:
        load: every choice made, nothing "auto" but the kernel.
        size: (width, height) of pictures.
        gpu: peak bytes on the GPU; 0 on a CPU. `mllm_gpu`: on a GPU that the MLLM has for itself, 0 where it computes on
            the CPU beside a GPU; `None` where both share a device.
        host: peak bytes of host memory.
        fits: whether both are there. `why_not` is the sentence when they are not.
        seconds: for a picture, where that is known beforehand (on a CPU, or after the first pictures), else 0.
        measured: whether `seconds` is what pictures took here, not an estimate.
        attention: the painter's kernel; "auto" for a GPU that is not here.
        moved: bytes that go to the GPU for each picture where the painter comes layer by layer, else 0.
        unused_gpu: what to install for a GPU that PyTorch cannot use, in a sentence; "" where there is none.
        faster: what would make it faster, in sentences.
        uncompared: the painter is in 4 bits, and nobody has compared its pictures with those of the whole one.
    """

    load: LoadOptions
    size: tuple[int, int]
    gpu: float
    host: float
    fits: bool
    why_not: str = ""
    seconds: float = 0.0
    faster: tuple[str, ...] = ()
    measured: bool = False
    attention: Kernel = Kernel("native")
    unused_gpu: str = ""
    moved: float = 0.0
    mllm_gpu: float | None = None
    uncompared: bool = False

    def how(self, guided: bool) -> str:
        """All that makes a step of a picture faster or slower on one machine, as a word for `duogen.hub.timings`."""
        load, where = self.load, "card" if self.gpu else "cpu"
        size = f"{self.size[0]}x{self.size[1]}"
        own = [Path(load.transformer).name] if load.transformer else []
        return " ".join([where, *own, load.painter_precision, load.offload, size, self.attention.name, load.compile, f"{1 + guided}"])

    def sentences(self) -> list[str]:
        """What was chosen, what it costs and what would be faster."""
        if not self.fits:
            return [self.why_not, *([self.unused_gpu] if self.unused_gpu else [])]
        load, (width, height) = self.load, self.size
        painter = load.painter_precision + (f" ({Path(load.transformer).name})" if load.transformer else "")
        said = [f"Language model {load.precision}, painter {painter}, {width} x {height} px."]
        how = {"model": "The parts take turns on the GPU.", "group": "The painter comes layer by layer."}
        said += [how.get(load.offload, "") if self.gpu else ""]
        said += [f"That moves {_gb(self.moved)} to the GPU for each picture." if self.moved else ""]
        said += ["The autoencoder works in tiles." if load.tiling == "on" else ""]
        said += [*self._needs(), UNCOMPARED if self.uncompared else ""]
        said += [self._pace(), self.kernel(), *self.faster, self.unused_gpu]
        return [each for each in said if each]

    def costs(self) -> list[str]:
        """Memory, and the seconds of a picture where they are known; or why it does not fit."""
        return [each for each in (*self._needs(), self._pace()) if each] if self.fits else [self.why_not]

    def _pace(self) -> str:
        measured = ", as measured here" if self.measured else ""
        return f"A picture takes about {say_seconds(self.seconds)}{measured}." if self.seconds else ""

    def _needs(self) -> list[str]:
        """What it needs of each device."""
        host = f"It needs {_gb(self.host)} of memory."
        if self.mllm_gpu is not None:
            said = [f"The language model needs {_gb(self.mllm_gpu)} on its GPU." if self.mllm_gpu else ""]
            said += [f"The painter needs {_gb(self.gpu)} on its GPU." if self.gpu else ""]
            return said if all(said) and self.load.offload == "none" else [*said, host]
        if not self.gpu:
            return [host]
        if self.load.offload == "none":
            return [f"It needs {_gb(self.gpu)} on the GPU."]
        return [f"It needs {_gb(self.gpu)} on the GPU and {_gb(self.host)} of host memory."]

    def kernel(self) -> str:
        """Which attention kernel paints."""
        return self.attention.sentence()

    def line(self) -> str:
        """All of that in one line."""
        return " ".join(self.sentences())


def weights(part: Part, precision: str) -> float:
    """Bytes of a part's weights; what quantisation leaves alone stays in 16 bits, and what came quantised as it is."""
    if part.bytes:
        return part.bytes
    rest = part.parameters - part.quantisable
    return part.quantisable * BYTES[precision] + rest * max(2.0, BYTES[precision])


def weigh_precisions(parts: dict[str, Part]) -> dict[str, float]:
    """GB that the weights of a pair take, by precision."""
    return {precision: sum(weights(part, precision) for part in parts.values()) / GB for precision in BYTES}


def plan(
    parts: dict[str, Part], about: dict[str, Any], machine: Machine, requested: LoadOptions | None = None, few_steps: str = ""
) -> Plan:
    """The best way to open a pair, or why there is none.

    Args:
        parts: "text_encoder", "transformer", "vae" and, where another model talks, "mllm".
        about: `image_size`, `steps`, `guidance`; `frame_attention` of painters of frames, `most_sources` of pipelines with source
            pictures; `latent_frames` of video models, and `decoded_frames`, as many as their autoencoder decodes at once.
        requested: what is not "auto" is kept.
        few_steps: title of a few-step LoRA of the pair, to be named where steps are many.

    Raises:
        ValueError: a part's size is not known.
    """
    requested = requested or LoadOptions()
    for name in ("transformer", "mllm" if "mllm" in parts else "text_encoder"):
        part = parts.get(name, NOTHING)
        if part.parameters and not (part.width and part.layers):
            raise ValueError(f"The configuration of this pair's {name} does not say how wide and deep it is; choose another pair.")
    tried = [_add_costs(parts, about, machine, each) for each in _candidates(about, machine, requested)]
    chosen = next((each for each in tried if each.fits), None)
    if chosen is None:
        least = min(tried, key=lambda each: _lack(each, machine))
        return replace(least, why_not=f"It does not fit: it would need {_explain_lack(least, machine)}.")
    faster = []
    if machine.gpu and (chosen.load.offload != "none" or chosen.load.tiling == "on"):
        whole = _add_costs(parts, about, machine, (replace(chosen.load, offload="none", tiling="off"), chosen.size))
        whose = "all of it" if machine.mllm_gpu is None else "the painter"
        faster.append(f"A GPU with {_gb(whole.gpu + CUDA)} would hold {whose} at once.")
    if few_steps and about.get("steps", 0) > 8 and not requested.preset:
        faster.append(f"The preset for {few_steps} would be about {about['steps'] // 4} times faster.")
    elif not machine.gpu and chosen.seconds > 120:
        faster.append("Any GPU of 8 GB would be far faster.")
    return replace(chosen, faster=tuple(faster))


def replan_size(chosen: Plan, parts: dict[str, Part], about: dict[str, Any], machine: Machine, size: tuple[int, int]) -> Plan:
    """What a picture of another size than was planned for costs, everything else being as it is opened."""
    costed = replace(_add_costs(parts, about, machine, (chosen.load, size)), attention=chosen.attention)
    what = f"A picture of {size[0]} x {size[1]} px does not fit: it would need {_explain_lack(costed, machine)}; choose a smaller side."
    return costed if costed.fits else replace(costed, why_not=what)


def _candidates(about: dict[str, Any], machine: Machine, requested: LoadOptions) -> Iterator[tuple[LoadOptions, tuple[int, int]]]:
    """From the fastest and best to the most frugal; only what the request allows."""
    own = tuple(about["image_size"])
    sizes = [scale_size(own, requested.picture_side or max(own))]
    if not requested.picture_side:
        sizes += [scale_size(own, side) for side in SIDES if side < max(own)]
    has_gpu, own_gpu = machine.gpu > 0, machine.mllm_gpu is not None
    offloads = ("none", "group") if own_gpu and paints_frames(about) else ("none", "model", "group")  # nobody to take turns with
    full = "bf16" if has_gpu else "fp32"
    precisions = [("bf16", full), ("nf4", full), ("nf4", "bf16"), ("nf4", "nf4")]
    if not machine.quantises:
        precisions = [("bf16", full)]
    if machine.precision == "mixed":
        precisions = [("mixed", full), *precisions]
    if own_gpu:  # each is as good as its own device allows
        mllms, painters = (dict.fromkeys(each) for each in zip(*precisions, strict=True))
        precisions = [(mllm, painter) for painter in painters for mllm in mllms]
    for size in sizes:
        for offload in offloads if has_gpu else ("none",):
            for tiling in ("off", "on"):
                for mllm_precision, painter in precisions:
                    if offload == "group" and painter in ("nf4", "int8") and "auto" in (requested.offload, requested.painter_precision):
                        continue  # quantised layers do not travel one by one
                    given = {"precision": mllm_precision, "painter_precision": painter, "offload": offload, "tiling": tiling}
                    kept = {name: getattr(requested, name) for name in given if getattr(requested, name) != "auto"}
                    if kept.get("offload", "none") not in offloads:
                        del kept["offload"]
                    yield replace(requested, **(given | kept), picture_side=max(size)), size


def _add_costs(parts: dict[str, Part], about: dict[str, Any], machine: Machine, candidate: tuple[LoadOptions, tuple[int, int]]) -> Plan:
    load, size = candidate
    name = "mllm" if "mllm" in parts else "text_encoder"
    mllm = parts.get(name, NOTHING)
    held = {name: weights(part, _precision_of(name, load)) for name, part in parts.items()}
    held["transformer"] += held.pop("lora", 0.0)
    guardrail = held.pop("guardrail", 0.0)  # stays where it was opened
    talk, paint = mllm_work(mllm), painter_work(parts["transformer"], about, size)
    decode = vae_work(parts.get("vae", NOTHING), size, load.tiling == "on") * about.get("decoded_frames", 1)
    read, own = mllm.layers * 2 * mllm.cached * CONTEXT * 2.0 + state_memory(mllm, about), 0.0
    largest, own_gpu = max(held.values()), machine.mllm_gpu is not None
    if own_gpu:
        own, talk, read = held.pop(name, 0.0) + talk + read, 0.0, 0.0
        largest = largest if machine.mllm_gpu else max(held.values())
    total = sum(held.values())
    # What was read stays on the GPU, whatever else leaves it.
    memory = read + frame_cache(parts["transformer"], about, size) + guardrail
    block = held["transformer"] / max(parts["transformer"].layers, 1)
    painter = 3 * block if load.offload == "group" else held["transformer"]
    others = [size for name, size in held.items() if name != "transformer"] or [0.0]
    if load.offload == "none" or (own_gpu and paints_frames(about)):
        peak = painter + sum(others) + memory + max(talk, paint, decode)
    else:
        peak = memory + max(max(others) + talk, painter + paint, held.get("vae", 0.0) + decode)
    if not machine.gpu:
        host, gpu = peak, 0.0
    else:
        host, gpu = (total if load.offload != "none" else 0.3 * largest), peak
    mllm_gpu = (own if machine.mllm_gpu else 0.0) if own_gpu else None
    host += own - (mllm_gpu or 0.0)
    moved = held["transformer"] * about.get("steps", 8) * _passes(about) if load.offload == "group" and machine.gpu else 0.0
    seconds = 0.0 if machine.gpu else _cpu_seconds(parts["transformer"], about, size, machine.cores)
    kernel = load.attention if load.attention != "auto" or machine.gpu else "native"
    uncompared = load.painter_precision == "nf4" and not about.get("nf4_compared")
    made = Plan(
        load, size, gpu, host, False, seconds=seconds, attention=Kernel(kernel), moved=moved, mllm_gpu=mllm_gpu, uncompared=uncompared
    )
    return replace(made, fits=not _lack(made, machine))


def _precision_of(name: str, load: LoadOptions) -> str:
    if name in ("vae", "lora", "guardrail"):
        return "bf16"
    return load.painter_precision if name in ("transformer", "transformer_2") else load.precision


def frame_tokens(part: Part, size: tuple[int, int]) -> int:
    return max(1, (size[0] // part.pixels) * (size[1] // part.pixels))


def mllm_work(part: Part) -> float:
    """Work memory of the MLLM: a picture goes through its vision tower, then its vision tokens and the prompt at once through the rest."""
    return max(PROMPT * part.width * 2.0 * 24, VISION) + 0.1 * GB


def paints_frames(about: dict[str, Any]) -> bool:
    """Whether a pair's painter paints frames; others are pipelines, which say how many source pictures they take."""
    return bool(about.get("frames", "most_sources" not in about))


def earlier_pictures(about: dict[str, Any]) -> int:
    """How many earlier pictures a long conversation has that the painter sees."""
    if not paints_frames(about):
        return about.get("most_sources", 0)
    return CONVERSATION if _is_tuned(about) else 0  # an untuned one paints from words alone


def _is_tuned(about: dict[str, Any]) -> bool:
    return about.get("tuned", about.get("frame_attention") == "block_causal")


def state_memory(mllm: Part, about: dict[str, Any]) -> float:
    """Hidden states of a whole conversation, in 32 bits, where a painter of frames reads them."""
    if not paints_frames(about) or not _is_tuned(about):
        return 0.0
    return CONTEXT * (len(about.get("layers") or ()) or mllm.layers) * mllm.width * 4.0


def frame_cache(part: Part, about: dict[str, Any], size: tuple[int, int]) -> float:
    """Keys and values of a conversation's earlier pictures, where frames attend block-causally."""
    if not paints_frames(about) or about.get("frame_attention") != "block_causal":
        return 0.0
    return earlier_pictures(about) * frame_tokens(part, size) * part.layers * 2 * part.width * 2.0


def _passes(about: dict[str, Any]) -> int:
    """How often every layer comes in a step: pipelines run their guidance apart, painters of frames in one batch."""
    return 2 if about.get("guidance", 1.0) > 1 and not paints_frames(about) else 1


def painter_work(part: Part, about: dict[str, Any], size: tuple[int, int]) -> float:
    """Work memory of one denoising step: some 20 activations of 16 bits for every token and channel that goes through the layers."""
    branches = 2 if about.get("guidance", 1.0) > 1 and paints_frames(about) else 1  # pipelines run theirs one after the other
    cached = about.get("frame_attention") == "block_causal" and paints_frames(about)
    tokens = frame_tokens(part, size) * (about.get("latent_frames", 1) + (0 if cached else earlier_pictures(about))) + WORDS
    return branches * tokens * part.width * 2.0 * 20 + 0.2 * GB


def vae_work(part: Part, size: tuple[int, int], tiled: bool) -> float:
    """Work memory of the autoencoder: some 8 full-size maps of its first width."""
    pixels = min(size[0] * size[1], TILE * TILE * 4) if tiled else size[0] * size[1]
    return pixels * max(part.width, 1) * 2.0 * 8 + 0.1 * GB


def _cpu_seconds(part: Part, about: dict[str, Any], size: tuple[int, int], cores: int) -> float:
    """Two operations for every weight and token, in each step and branch."""
    branches = 2 if about.get("guidance", 1.0) > 1 else 1
    frame = frame_tokens(part, size) * about.get("latent_frames", 1)
    words = 0 if paints_frames(about) else WORDS  # of painters of frames they do not go through the layers
    cached = about.get("frame_attention") == "block_causal" and paints_frames(about)
    tokens = words + frame * (1 if cached else 1 + min(1, earlier_pictures(about)))  # with one picture before it
    return about.get("steps", 8) * branches * 2.0 * part.parameters * tokens / (FLOPS_OF_A_CORE * cores)


def _lack(made: Plan, machine: Machine) -> float:
    """Bytes that a machine has too few of for a plan."""
    host = made.host + HOST_SPARE + made.gpu * machine.unified
    has = ((made.gpu, machine.gpu), (made.mllm_gpu or 0.0, machine.mllm_gpu or 0.0), (host, machine.host))
    return sum(max(needed - there, 0.0) for needed, there in has)


def _explain_lack(least: Plan, machine: Machine) -> str:
    lacking = []
    own, there = least.mllm_gpu or 0.0, machine.mllm_gpu or 0.0
    if own > there:
        lacking.append(f"{_gb(own)} on the language model's GPU, where {_gb(there)} are free")
    if least.gpu > machine.gpu:
        whose = "GPU" if machine.mllm_gpu is None else "painter's GPU"
        lacking.append(f"{_gb(least.gpu)} on the {whose}, where {_gb(machine.gpu)} are free")
    host = least.host + HOST_SPARE + least.gpu * machine.unified
    if host > machine.host:
        lacking.append(f"{_gb(host)} of free host memory, where {_gb(machine.host)} are (the machine would swap)")
    return " and ".join(lacking)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"
