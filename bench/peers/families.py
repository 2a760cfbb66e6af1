"""The families that are compared, one function each: real classes at a small size with random weights, for both ways the same modules.

A further family is one function here and one line in `FAMILIES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image as PILImage

from bench.gpu import RAW, TOYS, build_pipeline, mark_ids, merged, part_class, tokenizer
from bench.peers.naive import Wish, paint_frame, prepare_pictures, prepare_video, read_states
from bench.peers.script import CHAT_ONLY, GUIDE, TEXTS, Exchange
from duogen.engine import Engine
from duogen.models.pipeline import About, DuoGenPipeline
from duogen.models.placement import DeviceSwapper
from duogen.options import LoadOptions
from duogen.painters.cosmos import CosmosPainter
from duogen.painters.diffusers import DiffusersPair
from duogen.painters.diffusers import place as place_stock

# What begins where an editing pipeline has no picture.
BEGINNERS = {"QwenImageEditPlusPipeline": diffusers.QwenImagePipeline, "LongCatImageEditPipeline": diffusers.LongCatImagePipeline}
HEAD = 64  # channels of an attention head
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class Size:
    """How large the models are: `width` channels and `layers` layers of MLLM and DiT, `side` pixels of a picture, `steps` of denoising."""

    width: int = 256
    layers: int = 6
    side: int = 192
    steps: int = 4

    @property
    def picture(self) -> tuple[int, int]:
        return self.side, self.side


@dataclass
class Peers:
    """A pair, and how the libraries alone do what it does.

    Attributes:
        pipe: diffusers' pipeline.
        naive: paints a picture by it.
        readers: models that read tokens.
        last: the layer that the denoiser ends with.
    """

    engine: Engine
    pipe: Any
    naive: Callable[[Wish], PILImage.Image]
    readers: tuple[torch.nn.Module, ...]
    last: torch.nn.Module


@dataclass(frozen=True)
class Family:
    """Attributes:
    title: for the table.
    peer: what it is compared with.
    goal: the least ratio of seconds, naive to DuoGen.
    script: what is said and painted.
    """

    title: str
    peer: str
    build: Callable[[Size], Peers]
    goal: float = 1.0
    script: tuple[Exchange, ...] = GUIDE


def build_part(name: str, **changes: Any) -> Any:
    """A part of the catalogue by its public configuration with some values changed, initialised as its class does."""
    kind, config = part_class(name), merged(RAW["parts"][name]["config"], changes)
    model = kind(kind.config_class(**config)) if RAW["parts"][name]["library"] == "transformers" else kind(**config)
    return model.eval().requires_grad_(False)


def text_sizes(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """Sizes of a language model of Qwen's kind."""
    heads = width // HEAD
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 3), "head_dim": HEAD, "vocab_size": vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip


def build_mllm(name: str, size: Size, words: Any) -> tuple[Any, Any]:
    """An MLLM and what prepares its pictures."""
    rope = RAW["parts"][name]["config"]["text_config"]["rope_parameters"] | {"mrope_section": [8, 12, 12]}
    seen = size.width // 2
    eyes = {"depth": 4, "hidden_size": seen, "intermediate_size": 2 * seen, "num_heads": seen // 32, "out_hidden_size": size.width}
    last = {"deepstack_visual_indexes": [0, 1, 2]} if "qwen3" in name else {"fullatt_block_indexes": [1, 3]}
    text = text_sizes(size.width, size.layers, len(words)) | {"rope_parameters": rope}
    model = build_part(name, text_config=text, vision_config=eyes | last, tie_word_embeddings=False, **mark_ids(words))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = words.pad_token_id, None
    patch = model.config.vision_config.patch_size
    limits = {"min_pixels": 32 * 32, "max_pixels": size.side**2}
    return model, transformers.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=2, **limits)


def known_of(size: Size, **about: Any) -> About:
    return About(title="toy", image_size=size.picture, steps=size.steps, guidance=1.0, **about)


class AllowAll:
    """Stands for the guardrail, which is another package and no part of the comparison."""

    def to(self, device: Any) -> AllowAll:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True


def cosmos(size: Size, causal: bool, least: bool = False) -> Peers:
    """Cosmos-Predict2.5. The DiT has no padding mask, whose resizing wants torchvision; what is called here needs it for nothing else.

    Args:
        causal: DuoGen's pair says BOV itself, reads the conversation's states and paints block-causally; the pipeline's prompt is all the
            words so far. Else both read the picture's prompt, and DuoGen too sees all frames at every step.
        least: the script does the least that a script without memory can: it reads the conversation's states once for each picture, encodes
            every picture by itself, and decodes the new one alone.
    """
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen2.5-vl-7b", size, words)
    dit = build_part(
        "cosmos-predict2.5-2b", num_attention_heads=size.width // HEAD, attention_head_dim=HEAD, num_layers=size.layers,
        text_embed_dim=size.width, adaln_lora_dim=size.width // 4, crossattn_proj_in_channels=size.width * size.layers,
        encoder_hidden_states_channels=size.width, max_size=(16, 64, 64), concat_padding_mask=False,
    )  # fmt: skip
    vae = build_part("wan-vae", **TOYS["wan-vae"])
    solver = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pair = DuoGenPipeline(mllm, words, dit, vae, solver, image_processor=eyes)
    pair.about = known_of(size, tuned=causal, frame_attention="block_causal" if causal else "bidirectional")
    pipe = diffusers.Cosmos2_5_PredictBasePipeline(mllm, words, dit, vae, type(solver).from_config(solver.config), AllowAll())
    pipe.set_progress_bar_config(disable=True)
    engine = Engine(pair)
    assert isinstance(engine.painter, CosmosPainter)
    engine.painter.follows = True  # as stage 2 teaches

    def naive(wish: Wish) -> PILImage.Image:
        if least:
            embeds = read_states(mllm, engine.tokens, wish.packed)
            return paint_frame(pipe, embeds, prepare_pictures(pipe, wish, size.picture), size.steps, False)
        prompt = words.decode(wish.packed.ids, skip_special_tokens=True) if causal else wish.prompt
        embeds = pipe.encode_prompt(prompt, None, False)[0]
        return paint_frame(pipe, embeds, prepare_video(pipe, wish, size.picture), size.steps, True)

    return Peers(engine, pipe, naive, (mllm,), dit.proj_out)


def stock(size: Size, pipe: Any, mllm: Any, eyes: Any, readers: tuple[Any, ...], most: int) -> Peers:
    """A pipeline of diffusers. Both ways give it the same earlier pictures: the latest, as many as it takes."""
    load = LoadOptions(device="cpu", precision="fp32", painter_precision="fp32", offload="none", tiling="off")
    pair = DiffusersPair(
        mllm, pipe.tokenizer, eyes, pipe, known_of(size, tuned=False, most_sources=most), DeviceSwapper(mllm, [], "cpu"), load
    )  # fmt: skip
    place_stock(pair, load, "cpu")
    words_only = pipe
    if relative := BEGINNERS.get(type(pipe).__name__):  # it cannot begin from nothing
        wanted = inspect.signature(relative.__init__).parameters
        words_only = relative(**{name: part for name, part in pipe.components.items() if name in wanted})
        words_only.set_progress_bar_config(disable=True)

    def naive(wish: Wish) -> PILImage.Image:
        return call_pipeline(pipe if wish.pictures else words_only, wish, size, most)

    dit = pipe.transformer
    last = dit.proj_out if hasattr(dit, "proj_out") else next(iter(dit.all_final_layer.values()))
    return Peers(Engine(pair), pipe, naive, readers, last)


def call_pipeline(pipe: Any, wish: Wish, size: Size, most: int) -> PILImage.Image:
    """The pipeline's own call."""
    kind, takes = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    pictures = wish.pictures[::-1][:most]
    given: dict[str, Any] = {"image": pictures if most > 1 else pictures[0]} if pictures else {}
    if kind.startswith("QwenImage"):
        given |= {"true_cfg_scale": wish.guidance} | ({"negative_prompt": " "} if wish.guidance > 1 else {})
    else:
        given |= {"guidance_scale": wish.guidance}
    width, height = size.picture
    own = {"width": width, "height": height, "max_area": width * height, "enable_prompt_rewrite": False}
    given |= {name: value for name, value in own.items() if name in takes}
    generator = torch.Generator().manual_seed(wish.seed)
    return pipe(prompt=wish.prompt, num_inference_steps=size.steps, generator=generator, **given).images[0]


def qwen_image_edit(size: Size, id: str = "qwen-image-edit", most: int = 3) -> Peers:
    """Its text encoder is the MLLM."""
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen2.5-vl-7b", size, words)
    dit = build_part(
        "qwen-image-20b", num_layers=size.layers, num_attention_heads=size.width // HEAD, attention_head_dim=HEAD,
        joint_attention_dim=size.width, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    parts = {"transformer": dit, "vae": build_part("qwen-image-vae", **TOYS["qwen-image-vae"]), "text_encoder": mllm}
    return stock(size, build_pipeline(id, parts, words, eyes), mllm, eyes, (mllm,), most)


def qwen_image(size: Size) -> Peers:
    return qwen_image_edit(size, "qwen-image-2512", 0)


def longcat_image(size: Size, id: str = "longcat-image", most: int = 0) -> Peers:
    """Its text encoder is the MLLM; its pipelines do not say how far they are."""
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen2.5-vl-7b", size, words)
    twofold = max(1, size.layers // 3)
    dit = build_part(
        "longcat-image-6b", num_layers=twofold, num_single_layers=size.layers - twofold, num_attention_heads=size.width // HEAD,
        attention_head_dim=HEAD, joint_attention_dim=size.width, pooled_projection_dim=size.width, axes_dims_rope=[16, 24, 24],
    )  # fmt: skip
    parts = {"transformer": dit, "vae": build_part("flux1-vae", **TOYS["flux1-vae"]), "text_encoder": mllm}
    return stock(size, build_pipeline(id, parts, words, eyes), mllm, eyes, (mllm,), most)


def longcat_image_edit(size: Size) -> Peers:
    return longcat_image(size, "longcat-image-edit", 1)


def flux1_kontext(size: Size) -> Peers:
    """A Qwen3-VL talks; a CLIP and a T5 read the prompts, which it pads to 512 tokens. It takes one picture."""
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen3-vl-4b", size, words)
    width, heads, twofold = size.width, size.width // HEAD, max(1, size.layers // 3)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": size.layers, "num_attention_heads": heads}
    clip = build_part("clip-l", **sizes, vocab_size=len(words))
    t5 = build_part("t5-xxl", d_model=width, d_kv=HEAD, d_ff=4 * width, num_layers=size.layers, num_heads=heads, vocab_size=len(words))
    dit = build_part(
        "flux1-kontext-12b", num_layers=twofold, num_single_layers=size.layers - twofold, num_attention_heads=heads,
        attention_head_dim=HEAD, joint_attention_dim=width, pooled_projection_dim=width, axes_dims_rope=[16, 24, 24],
    )  # fmt: skip
    vae = build_part("flux1-vae", **TOYS["flux1-vae"])
    pipe = build_pipeline("flux1-kontext", {"transformer": dit, "vae": vae, "text_encoder": clip, "text_encoder_2": t5}, words, eyes)
    return stock(size, pipe, mllm, eyes, (mllm, clip, t5), 1)


def flux2_klein(size: Size) -> Peers:
    """A Qwen3-VL talks; a Qwen3 reads the prompts, of which the pipeline takes the 27th layer."""
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen3-vl-4b", size, words)
    reader = build_part("qwen3-4b", **text_sizes(max(HEAD, size.width // 3), 28, len(words)))
    twofold = max(1, size.layers // 4)
    dit = build_part(
        "flux2-klein-4b", num_attention_heads=size.width // HEAD, attention_head_dim=HEAD, num_layers=twofold,
        num_single_layers=size.layers - twofold, joint_attention_dim=3 * reader.config.hidden_size, axes_dims_rope=(16, 16, 16, 16),
    )  # fmt: skip
    vae = build_part("flux2-vae", **TOYS["flux2-vae"])
    pipe = build_pipeline("flux2-klein", {"transformer": dit, "vae": vae, "text_encoder": reader}, words, eyes)
    return stock(size, pipe, mllm, eyes, (mllm, reader), 4)


def z_image(size: Size) -> Peers:
    """Z-Image takes no pictures."""
    torch.manual_seed(0)
    words = tokenizer(TEXTS, CHAT)
    mllm, eyes = build_mllm("qwen3-vl-4b", size, words)
    reader = build_part("qwen3-4b", **text_sizes(size.width, size.layers, len(words)))
    heads = size.width // HEAD
    dit = build_part(
        "z-image-6b", dim=size.width, n_layers=size.layers, n_heads=heads, n_kv_heads=heads, cap_feat_dim=size.width, axes_dims=[16, 24, 24]
    )
    parts = {"transformer": dit, "vae": build_part("flux1-vae", **TOYS["flux1-vae"]), "text_encoder": reader}
    return stock(size, build_pipeline("z-image", parts, words, eyes), mllm, eyes, (mllm, reader), 0)


def cosmos_causal(size: Size) -> Peers:
    return cosmos(size, True)


def cosmos_least(size: Size) -> Peers:
    return cosmos(size, True, True)


def cosmos_plain(size: Size) -> Peers:
    return cosmos(size, False)


FAMILIES = {
    "block-causal": Family("Cosmos class, block-causal, as the bundled pair", "Cosmos2_5_PredictBasePipeline", cosmos_causal, 3.0),
    "block-causal-least": Family("The same, against the least work without memory", "its parts", cosmos_least),
    "cosmos": Family("Cosmos-Predict2.5, taught to paint the next frame", "Cosmos2_5_PredictBasePipeline", cosmos_plain),
    "qwen-image-edit": Family("Qwen-Image-Edit-Plus", "QwenImageEditPlusPipeline", qwen_image_edit),
    "qwen-image": Family("Qwen-Image", "QwenImagePipeline", qwen_image),
    "longcat-image": Family("LongCat-Image", "LongCatImagePipeline", longcat_image),
    "longcat-image-edit": Family("LongCat-Image-Edit", "LongCatImageEditPipeline", longcat_image_edit),
    "flux1-kontext": Family("FLUX.1 Kontext", "FluxKontextPipeline", flux1_kontext),
    "flux2-klein": Family("FLUX.2 klein", "Flux2KleinPipeline", flux2_klein),
    "z-image": Family("Z-Image", "ZImagePipeline", z_image),
    "words": Family("Words alone, two turns", "generate", cosmos_causal, 1.0, CHAT_ONLY),
}
