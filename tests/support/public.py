"""Tiny checkpoints of the public pairs' real classes, random weights, laid out as on the hub: sharded, without `duogen.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    LongCatImageTransformer2DModel,
    QwenImageTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)  # fmt: skip
from tokenizers import AddedToken
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from duogen.models.placeholders import CLOSING, OPENING
from tests.support.tiny import BOV, END, EOV, MARKS, PAD, START, tiny_letter, tiny_mllm, tiny_pair, tiny_tokenizer

CHAT = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
SHARD = "60KB"


def talking_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, with the marks of a wish for a picture as words of their own."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in (OPENING, CLOSING)])
    tokenizer.chat_template = CHAT
    return tokenizer


def wishing(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    """Biases of the output head: at temperature 1 it says letters, wishes for pictures and ends, as an untuned MLLM would."""
    opening, closing = tokenizer.convert_tokens_to_ids([OPENING, CLOSING])
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[:, 0] = 2.0
        head = model.lm_head.weight
        head[:, 0] = -30.0
        for letter in "abcdefghijklmnop":
            head[tiny_letter(letter), 0] = 0.0
        head[opening, 0], head[closing, 0], head[END, 0] = 5.0, 4.0, 1.0
    return model


def qwen_mllm() -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    tokenizer = talking_tokenizer()
    return wishing(tiny_mllm(len(tokenizer)), tokenizer), tokenizer


def eyes(patch: int = 8) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, temporal_patch_size=1, min_pixels=64 * 64, max_pixels=64 * 64)


def written(mllm: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A language model that sees, as the hub has it."""
    mllm.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    eyes().save_pretrained(folder)
    return folder


def qwen3_mllm(folder: Path) -> Path:
    """A Qwen3-VL, with DeepStack."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "bos_token_id": START, "eos_token_id": END,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
        "initializer_range": 0.2, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2,
        "temporal_patch_size": 1, "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=PAD, video_token_id=PAD + 1, vision_start_token_id=BOV,
        vision_end_token_id=EOV, tie_word_embeddings=False,
    )  # fmt: skip
    model = wishing(Qwen3VLForConditionalGeneration(config).eval(), tokenizer)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        for merger in (model.model.visual.merger, *model.model.visual.deepstack_merger_list):
            merger.linear_fc2.weight[0], merger.linear_fc2.bias[0] = 0, 0
        model.model.visual.merger.linear_fc2.bias[0] = 2.0
    return written(model, tokenizer, folder)


def klein(folder: Path) -> Path:
    """FLUX.2 klein: a Qwen3 that only reads, so it needs a mllm."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    reader = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=28, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        )
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=192,
        axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False, timestep_guidance_channels=16,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    pipe = Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), vae, reader, tokenizer, transformer, is_distilled=True)
    pipe.save_pretrained(folder, max_shard_size=SHARD)
    return folder


def qwen2_mllm(folder: Path) -> Path:
    """A Qwen2.5-VL by itself."""
    torch.manual_seed(0)
    return written(*qwen_mllm(), folder)


def pix2pix(folder: Path) -> Path:
    """A pipeline that nothing here was written for: a UNet that changes pictures after words, with a CLIP that reads them."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length = 77
    reader = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, eos_token_id=END,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(64, 64), layers_per_block=1, in_channels=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4
    )
    solver = EulerDiscreteScheduler()
    pipe = StableDiffusionInstructPix2PixPipeline(vae, reader, tokenizer, unet, solver, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return folder


def qwen_edit(folder: Path) -> Path:
    """Qwen-Image-Edit-Plus: its text encoder is a Qwen2.5-VL, which talks too."""
    torch.manual_seed(0)
    mllm, tokenizer = qwen_mllm()
    transformer = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=3, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=64,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    parts = {"text_encoder": mllm, "tokenizer": tokenizer, "transformer": transformer, "vae": vae}
    return write_parts(folder, "QwenImageEditPlusPipeline", "processor", parts)


def write_parts(folder: Path, kind: str, processor: str, parts: dict[str, Any]) -> Path:
    """A pipeline whose text encoder is a Qwen2.5-VL, with a processor of that name, which diffusers could not save without torchvision."""
    index = {"_class_name": kind, "_diffusers_version": "0.42.0"}
    for name, part in ({"scheduler": FlowMatchEulerDiscreteScheduler()} | parts).items():
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        index[name] = [library, "Qwen2Tokenizer" if name == "tokenizer" else type(part).__name__]
        part.save_pretrained(folder / name, **({"max_shard_size": SHARD} if name in ("text_encoder", "transformer") else {}))
    index[processor] = ["transformers", "Qwen2VLProcessor"]
    eyes().save_pretrained(folder / processor)
    parts["tokenizer"].save_pretrained(folder / processor)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def plain_vae(**changes: Any) -> AutoencoderKL:
    """The autoencoder of FLUX.1's kind: 16 channels, an eighth of the side."""
    sizes = {"block_out_channels": (8,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(latent_channels=16, norm_num_groups=4, shift_factor=0.1, scaling_factor=0.4, **sizes | changes)


def longcat(folder: Path, kind: str = "LongCatImagePipeline") -> Path:
    """LongCat-Image, whose pipelines do not say how far they are; its text encoder is a Qwen2.5-VL."""
    torch.manual_seed(0)
    mllm, tokenizer = qwen_mllm()
    transformer = LongCatImageTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=64,
        pooled_projection_dim=64, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    parts = {"text_encoder": mllm, "tokenizer": tokenizer, "transformer": transformer, "vae": plain_vae()}
    return write_parts(folder, kind, "text_processor", parts)


def longcat_edit(folder: Path) -> Path:
    return longcat(folder, "LongCatImageEditPipeline")


def qwen_image(folder: Path) -> Path:
    """Qwen-Image, which paints from words alone."""
    qwen_edit(folder)
    index = json.loads((folder / "model_index.json").read_text())
    del index["processor"]
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "QwenImagePipeline"}))
    return folder


def z_image(folder: Path) -> Path:
    """Z-Image: a Qwen3 reads; no pictures."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    reader = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        )
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=64, axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64]
    )
    ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), plain_vae(), reader, tokenizer, transformer).save_pretrained(folder)
    return folder


def kontext(folder: Path, kind: type = FluxKontextPipeline, guidance_embeds: bool = True) -> Path:
    """FLUX.1: a CLIP and a T5 read; Kontext changes one picture."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length = 77
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, eos_token_id=END,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    pipe = kind(FlowMatchEulerDiscreteScheduler(), plain_vae(), clip, tokenizer, t5, tokenizer, transformer)
    pipe.save_pretrained(folder)
    return folder


def schnell(folder: Path) -> Path:
    return kontext(folder, FluxPipeline, False)


def cosmos(folder: Path) -> Path:
    """Plain Cosmos-Predict2.5, whose MLLM was never taught BOV and wishes for pictures in words."""
    tiny_pair(folder, cosmos_layout=True)
    mllm, tokenizer = qwen_mllm()
    for file in (folder / "text_encoder").glob("*.safetensors"):
        file.unlink()
    mllm.save_pretrained(folder / "text_encoder", max_shard_size=SHARD)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    transformer = CosmosTransformer3DModel(
        in_channels=17, out_channels=16, num_attention_heads=2, attention_head_dim=32, num_layers=2, mlp_ratio=2.0, text_embed_dim=64,
        adaln_lora_dim=64, max_size=(16, 16, 16), patch_size=(1, 2, 2), rope_scale=(1.0, 3.0, 3.0), concat_padding_mask=True,
        extra_pos_embed_type=None, use_crossattn_projection=True, crossattn_proj_in_channels=64 * 3, encoder_hidden_states_channels=64,
    )  # fmt: skip
    transformer.save_pretrained(folder / "transformer", max_shard_size=SHARD)
    return folder


def in_cache(home: Path, repo: str, revision: str, write) -> Path:
    """Let `write` fill the snapshot of a repository in a hub cache, as a download leaves it."""
    there = home / f"models--{repo.replace('/', '--')}"
    snapshot = there / "snapshots" / ("0" * 39 + "1")
    snapshot.mkdir(parents=True)
    refs = there / "refs" / revision
    refs.parent.mkdir(parents=True)
    refs.write_text(snapshot.name)
    write(snapshot)
    return snapshot


assert MARKS[START] == "<|im_start|>"
