"""Tiny checkpoints of the public video models' real classes, random weights, laid out as on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)  # fmt: skip
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from duogen.models.pipeline import About
from tests.support.public import SHARD, talking_tokenizer

VAE = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}


def wan(folder: Path, first_only: bool = False) -> Path:
    """Wan: as 2.2 I2V, which takes a first and a last frame; `first_only` as TI2V-5B, whose folder names the pipeline of words."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length = 512
    reader = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    channels = 16 if first_only else 36
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=channels, out_channels=16, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    parts: dict[str, Any] = {"tokenizer": tokenizer, "text_encoder": reader, "vae": AutoencoderKLWan(z_dim=16, **VAE)}
    solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    kind = WanPipeline if first_only else WanImageToVideoPipeline
    kind(**parts, scheduler=solver, transformer=transformer, expand_timesteps=first_only).save_pretrained(folder, max_shard_size=SHARD)
    return folder


def small_wan(folder: Path) -> Path:
    """As `wan`, with small frames and few steps by its own account."""
    wan(folder)
    About(title="Tiny Wan", tuned=False, image_size=(64, 64), steps=3, guidance=1.0).write(folder)
    return folder


def wan_first_only(folder: Path) -> Path:
    return wan(folder, first_only=True)


def ltx(folder: Path) -> Path:
    """LTX-Video, whose folder names the pipeline of words alone."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length = 128
    reader = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32, num_layers=1,
        caption_channels=32,
    )  # fmt: skip
    sizes: dict[str, Any] = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    sizes |= {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, spatio_temporal_scaling=(True, True, True, False), decoder_spatio_temporal_scaling=(True, True, True, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=4, patch_size_t=1, **sizes,
    )  # fmt: skip
    LTXPipeline(FlowMatchEulerDiscreteScheduler(), vae, reader, tokenizer, transformer).save_pretrained(folder)
    return folder


def ltx2(folder: Path) -> Path:
    """LTX-2: a Gemma 3 reads, connectors pass that on, and sound is made beside the frames."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length, tokenizer.padding_side = 64, "left"
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8,
    }  # fmt: skip
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    reader = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8,
        num_layers=2, caption_channels=16, rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=16, text_proj_in_factor=3, video_connector_num_attention_heads=4, video_connector_attention_head_dim=4,
        video_connector_num_layers=1, video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=4,
        audio_connector_attention_head_dim=4, audio_connector_num_layers=1, audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32, rope_theta=10000.0, rope_double_precision=False, causal_temporal_positioning=False,
        rope_type="split",
    )  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 3, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4, spatio_temporal_scaling=(True,) * 4, decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4, downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(False,) * 3, upsample_factor=(1,) * 3, timestep_conditioning=False, patch_size=4, patch_size_t=1,
        encoder_causal=True, decoder_causal=False, spatial_compression_ratio=32, temporal_compression_ratio=8,
    )  # fmt: skip
    sound = AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2, resolution=32,
        latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0, mid_block_add_attention=False, sample_rate=16000,
        mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1, output_sampling_rate=16000,
    )  # fmt: skip
    parts: dict[str, Any] = {"vae": vae, "audio_vae": sound, "text_encoder": reader, "tokenizer": tokenizer, "connectors": connectors}
    LTX2Pipeline(FlowMatchEulerDiscreteScheduler(), **parts, transformer=transformer, vocoder=vocoder).save_pretrained(folder)
    return folder


def cosmos2(folder: Path) -> Path:
    """Cosmos-Predict2 video to world. Its index names the guardrail, as the hub's does."""
    torch.manual_seed(0)
    tokenizer = talking_tokenizer()
    tokenizer.model_max_length = 512
    parts: dict[str, Any] = {
        "text_encoder": T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)),
        "tokenizer": tokenizer,
        "transformer": CosmosTransformer3DModel(
            in_channels=17, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2.0, text_embed_dim=32,
            adaln_lora_dim=4, max_size=(16, 16, 16), patch_size=(1, 2, 2), rope_scale=(1.0, 3.0, 3.0), concat_padding_mask=True,
            extra_pos_embed_type=None,
        ),
        "vae": AutoencoderKLWan(z_dim=16, **VAE),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    }  # fmt: skip
    index: dict[str, Any] = {"_class_name": "Cosmos2VideoToWorldPipeline", "_diffusers_version": "0.34.0"}
    for name, part in parts.items():
        library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
        index[name] = [library, "PreTrainedTokenizerFast" if name == "tokenizer" else type(part).__name__]
        part.save_pretrained(folder / name)
    index["safety_checker"] = ["cosmos_guardrail", "CosmosSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
