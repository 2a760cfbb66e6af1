"""Where a pair's parts lie and how: quantised, offloaded, tiled; which attention kernel; what is skipped or compiled."""

from __future__ import annotations

import gc
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.attention

from duogen.heaps import trim_heaps
from duogen.kernels import Kernel, explain_no_xformers, explain_unfit_gpu, explain_unused_gpu, has_xformers, serves_wheels, torch_build
from duogen.options import LoadOptions

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

# Of painters: small layers at the rims, and the connector. Quantising them costs more than it saves.
KEPT_WHOLE = (
    "crossattn_proj", "patch_embed", "time_embed", "norm_out", "proj_out", "img_in", "txt_in", "time_text_embed", "x_embedder",
    "context_embedder", "time_guidance_embed",
)  # fmt: skip
CACHED_FROM = 9  # steps; below, every step changes too much to be skipped
CACHE_THRESHOLD = 0.08
SDPA_KINDS = {"FLASH_ATTENTION": "flash", "EFFICIENT_ATTENTION": "memory-efficient", "CUDNN_ATTENTION": "cuDNN", "MATH": "plain"}


def dtype_of(precision: str, device: str) -> torch.dtype:
    """What a painter computes in; "auto" is exact on a CPU and bf16 elsewhere."""
    if precision == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return torch.float32 if precision == "fp32" else torch.bfloat16


def quantisation(precision: str) -> Any:
    """What diffusers' `from_pretrained` takes to quantise a painter, `None` for whole weights."""
    from diffusers import BitsAndBytesConfig

    if precision == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=list(KEPT_WHOLE)
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(KEPT_WHOLE)) if precision == "int8" else None


# Packages that open weights which came quantised, by the method that their configuration names, and how pip calls them.
OPENERS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"), "awq": ("gptqmodel", "gptqmodel"), "gptq": ("gptqmodel", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"), "torchao": ("torchao", "torchao"),
    "quanto": ("optimum.quanto", "optimum-quanto"), "nunchaku_lite": ("kernels", "kernels"), "sdnq": ("sdnq", "sdnq"),
    "auto-round": ("auto_round", "auto-round"), "hqq": ("hqq", "hqq"), "modelopt": ("modelopt", "nvidia-modelopt"),
    "nunchaku": ("nunchaku", "https://github.com/nunchaku-tech/nunchaku"),  # the package of that name on PyPI is another one
}  # fmt: skip


def stored_quantisation(folder: Path) -> str:
    """The method that the weights in a part's folder were quantised with before they came; "" for whole weights.

    Raises:
        ValueError: the package that opens them is not here.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, ValueError, AttributeError):
        return ""  # whoever opens the part says what is wrong with it
    if not isinstance(about, dict):
        return ""
    method = str(about.get("quant_method") or "bitsandbytes").lower()
    module, package = OPENERS.get(method, ("", ""))
    if module and not _is_installed(module) and package.startswith("https:"):
        raise ValueError(f"The weights in {folder} are quantised with {method}, which needs its own program: {package}")
    if module and not _is_installed(module):
        raise ValueError(f"The weights in {folder} are quantised with {method}, which the package {package} opens: pip install {package}")
    return method


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


@contextmanager
def allow_cpu_quantisation() -> Iterator[None]:
    """diffusers refuses to quantise without a GPU, though bitsandbytes does it: its check of the machine is left out meanwhile."""
    from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    kinds: dict[str, Any] = AUTO_QUANTIZER_MAPPING
    names = ("bitsandbytes_4bit", "bitsandbytes_8bit")
    before = {name: kinds[name] for name in names}
    try:
        for name, kind in before.items():
            kinds[name] = type(kind.__name__, (kind,), {"validate_environment": lambda self, *given, **named: None})
        yield
    finally:
        kinds.update(before)


def open_painter(folder: Path, kind: type[ModelMixin], precision: str, device: str) -> Any:
    """A DiT in a precision, on `device` when it is quantised, else in host memory.

    Raises:
        OSError, ValueError: as diffusers' `from_pretrained`.
    """
    stored = stored_quantisation(folder)
    config = None if stored else quantisation(precision)
    whole: dict[str, Any] = {"dtype": dtype_of(precision, device), "use_safetensors": True, "local_files_only": True}
    if config is None and not stored:
        return kind.from_pretrained(folder, **whole)
    on_device = {} if (stored, device) == ("torchao", "cpu") else {"device_map": {"": device}}  # diffusers takes that CPU for an offload
    whole |= on_device | ({"quantization_config": config} if config else {})
    if device != "cpu":
        return kind.from_pretrained(folder, **whole)
    with allow_cpu_quantisation():
        return kind.from_pretrained(folder, **whole)


def release_device(module: Any, resting: bool) -> Any:
    """A part that was quantised on the GPU leaves it at once where parts take turns: the next one may need all of it."""
    if resting and is_quantised(module):
        module.to("cpu")
        _give_back()
    return module


def is_quantised(module: Any) -> bool:
    return getattr(module, "quantization_method", None) is not None or bool(getattr(module, "is_quantized", False))


class DeviceSwapper:
    """Who is on the GPU: everybody, or the MLLM and the painter in turn.

    Args:
        mllm: the MLLM. `painter`: the modules that paint; empty where a pipeline's own hooks move them.
        work: where one computes; `rest`: where one waits.
        mllm_device: a device that the MLLM has for itself and never leaves; "" where it computes on `work`.
    """

    def __init__(self, mllm: Any, painter: list[Any], work: str, rest: str | None = None, mllm_device: str = "") -> None:
        self.mllm = [] if mllm_device else [mllm]
        self.painter, self.work, self.rest, self.mllm_device = painter, work, rest, mllm_device

    def use_mllm(self) -> None:
        """The MLLM comes, the painter goes."""
        self._change(self.painter, self.mllm)

    def use_painter(self) -> None:
        """The painter comes, the MLLM goes."""
        self._change(self.mllm, self.painter)

    def _change(self, going: list[Any], coming: list[Any]) -> None:
        if self.rest is None:
            return
        for place, modules in ((self.rest, going), (self.work, coming)):
            for module in modules:
                if module.device.type != torch.device(place).type:
                    module.to(place)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class RemoteModel:
    """A model on another device than the pipeline that calls it.

    It is no module, so diffusers neither moves it nor asks it where the pipeline computes.

    Args:
        device: the pipeline's, whose tensors come in and where those go that come out.
    """

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, torch.device(device)

    def __call__(self, *given: Any, **named: Any) -> Any:
        from accelerate.utils import send_to_device

        there = self.model.device
        return send_to_device(self.model(*send_to_device(given, there), **send_to_device(named, there)), self.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["model"], name)


def swap_devices(pair: Any) -> bool:
    """Let a pair's parts take turns on the GPU from now on; False where they do already, or there is no GPU."""
    swapper = pair.swapper
    if swapper.rest is not None or torch.device(swapper.work).type != "cuda":
        return False
    pipe = getattr(pair, "pipe", None)
    if pipe is not None:
        pipe.enable_model_cpu_offload(device=swapper.work)
    elif swapper.mllm_device:
        return False
    pair.swapper = DeviceSwapper(pair.text_encoder, swapper.painter, swapper.work, "cpu", swapper.mllm_device)
    pair.swapper.use_painter()
    return True


def free() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    _give_back()
    trim_heaps()


def _give_back() -> None:
    """What PyTorch holds of a GPU for nobody."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def offload_layers(module: Any, device: str, by_part: bool = False) -> None:
    """Group offload: a block is on the GPU only while it computes. With `by_part` the same holds for each of its parts."""
    from diffusers.hooks import apply_group_offloading

    # Beside a stream diffusers fetches ahead, which it learns from the model's own forward; without that, nobody waits for the weights.
    streams, kind = device.startswith("cuda") and not by_part, "leaf_level" if by_part else "block_level"
    apply_group_offloading(
        module, onload_device=torch.device(device), offload_device=torch.device("cpu"), offload_type=kind,
        num_blocks_per_group=None if by_part else 1, use_stream=streams, low_cpu_mem_usage=streams,
    )  # fmt: skip


def offload_with_hooks(modules: list[Any], painter: Any, device: str) -> Callable[[], None]:
    """A pipeline's other parts beside a `painter` that comes layer by layer, where diffusers' own hooks cannot be: each is on the GPU
    only while it computes, and none while the painter does.

    Returns:
        What sends them all away.
    """
    from accelerate import cpu_offload_with_hook

    hooks: list[Any] = []
    for module in modules:
        hooks.append(cpu_offload_with_hook(module, torch.device(device), hooks[-1] if hooks else None)[1])

    def offload(*_: Any) -> None:
        staying = [hook for hook in hooks if next(hook.model.parameters()).device.type != "cpu"]
        for hook in staying:
            hook.offload()
        if staying:
            _give_back()

    painter.register_forward_pre_hook(offload)
    return offload


def set_tiling(vae: Any, requested: str) -> None:
    if requested == "on" and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()


def choose_kernel(device: str, requested: str = "auto") -> Kernel:
    """The attention kernel for a device; "auto" takes xformers where it loads and knows the GPU, else PyTorch's own.

    Raises:
        ValueError: there is no such kernel.
    """
    if requested == "native":
        return Kernel(requested, sdpa_kind(device))
    if requested != "auto":
        from diffusers.models.attention_dispatch import AttentionBackendName

        names = [each.value for each in AttentionBackendName]
        if requested not in names:
            common = ", ".join(name for name in names if not name.startswith("_") and not name.endswith("hub"))
            raise ValueError(f"There is no attention kernel {requested!r}; choose auto or one of {common}.")
        return Kernel(requested)
    why = explain_no_xformers_here(device)
    if not why:
        return Kernel("xformers")
    explains = is_nvidia(device) and (has_xformers() or serves_wheels())  # elsewhere nobody can have it
    return Kernel("native", sdpa_kind(device), why if explains else "")


def is_nvidia(device: str) -> bool:
    """Whether a device is an NVIDIA GPU; PyTorch calls AMD's "cuda" too."""
    return device.startswith("cuda") and torch.version.hip is None


def explain_no_xformers_here(device: str) -> str:
    """Why xformers does not compute on a device, as a clause; "" where it does."""
    if not is_nvidia(device):
        return "xformers computes on NVIDIA GPUs only"
    return explain_unfit_gpu(torch.cuda.get_device_capability(device)) or explain_no_xformers(torch_build()) or _xformers_failure(device)


def _xformers_failure(device: str) -> str:
    """What goes wrong when xformers computes on a GPU, as a clause; "" when nothing does."""
    try:
        from xformers.ops import memory_efficient_attention  # ty: ignore[import-not-found]  only on machines with an NVIDIA GPU

        probe = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16, device=device)
        memory_efficient_attention(probe, probe, probe)
    except Exception as error:  # whatever it is, PyTorch's own kernel does as well
        return f"xformers fails on this GPU ({_first_line(error)})"
    return ""


def sdpa_kind(device: str) -> str:
    """Which of PyTorch's own kernels a painter's attention takes on a GPU, asked of PyTorch's dispatcher; "" for a CPU."""
    if device.startswith("cpu"):
        return ""
    try:
        probe = torch.zeros(1, 4, 128, 64, dtype=torch.bfloat16, device=device)
        names = {each.value: name for name, each in torch.nn.attention.SDPBackend.__members__.items()}
        return SDPA_KINDS.get(names.get(torch._fused_sdp_choice(probe, probe, probe), ""), "")
    except (RuntimeError, NotImplementedError):  # a device whose backend does not say
        return ""


def explain_unused_gpu_here(device: str) -> str:
    """What to install where the CPU computes since PyTorch cannot use the GPU, as a sentence; "" where all is well."""
    usable = not device.startswith("cpu") or any(each.is_available() for each in (torch.cuda, torch.xpu, torch.backends.mps))
    return explain_unused_gpu(torch_build(), usable)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def set_attention(model: Any, device: str, requested: str) -> Kernel:
    """Choose a painter's kernel; returns it.

    Raises:
        ValueError: one sentence: the chosen kernel does not work here.
    """
    from diffusers.utils import logging

    kernel, spoken = choose_kernel(device, requested), logging.get_verbosity()
    logging.set_verbosity_error()  # that kernels are experimental is nothing a user can act on
    try:
        model.set_attention_backend(kernel.name)  # PyTorch's own too: diffusers takes the kernel chosen last for all models of the process
    except (ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        reason = _first_line(error)
        if requested != "auto":
            reason = (explain_no_xformers_here(device) if requested == "xformers" else "") or reason
            raise ValueError(f"The attention kernel {requested!r} cannot be used here ({reason}); choose --attention native.") from error
        if kernel.name != "native":
            return replace(set_attention(model, device, "native"), why=f"{kernel.name} does not work with this painter ({reason})")
    finally:
        logging.set_verbosity(spoken)
    return kernel


def wants_block_cache(steps: int, requested: str) -> bool:
    """Whether steps that change little are skipped: off below 9 steps."""
    return requested == "on" or (requested == "auto" and steps >= CACHED_FROM)


def set_block_cache(model: Any, steps: int, requested: str) -> bool:
    """First-block caching (ParaAttention) by diffusers, for a model that is called whole; returns whether it is on."""
    wanted = wants_block_cache(steps, requested)
    # diffusers' cache compares the first block's output with the last one's: they must be of one kind (of FLUX.2 they are not).
    fit = hasattr(model, "enable_cache") and len(getattr(model, "_repeated_blocks", None) or ()) == 1
    if fit and wanted != model.is_cache_enabled:
        from diffusers import FirstBlockCacheConfig

        model.enable_cache(FirstBlockCacheConfig(threshold=CACHE_THRESHOLD)) if wanted else model.disable_cache()
    return fit and wanted


def compile_model(model: Any, load: LoadOptions) -> None:
    """Compile what diffusers calls as a whole. `duogen.models.pipeline.place` compiles the blocks of a Cosmos painter."""
    if load.compile == "on":
        model.compile_repeated_blocks(fullgraph=False) if getattr(model, "_repeated_blocks", None) else model.compile()
