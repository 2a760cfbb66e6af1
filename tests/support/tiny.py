"""A tiny pair of the real classes with random weights: opens, talks and paints in milliseconds, on any machine, without a hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from duogen.models.pipeline import ABOUT, About, DuoGenPipeline
from duogen.models.sequence import Tokens
from duogen.nn.vae import PatchVAE

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
START, END, BOV, EOV, PAD = 1, 2, 3, 4, 5
SIDE = 64  # of a picture; 16 tokens for the talker and 16 for the painter
LAYERS = 3


def tiny_pair(folder: Path, frame_attention: str = "block_causal", cosmos_layout: bool = False, gate: bool = False) -> Path:
    """Write a tiny pair into `folder` and return it: always the same weights.

    It speaks random letters, at temperature 1 some ten of them before it asks for a picture or ends its turn.

    Args:
        frame_attention: "block_causal" or "bidirectional".
        gate: the DiT has a copy gate.
        cosmos_layout: the plain layout of Cosmos-Predict2.5: no `duogen.json` (so always bidirectional), AutoencoderKLWan, UniPC.
    """
    torch.manual_seed(0)
    causal = frame_attention == "block_causal" and not cosmos_layout
    tokenizer = tiny_tokenizer()
    pair = DuoGenPipeline(
        text_encoder=tiny_mllm(len(tokenizer)),
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=8, merge_size=2, temporal_patch_size=1, min_pixels=SIDE * SIDE, max_pixels=SIDE * SIDE
        ),
        transformer=tiny_transformer(16 if cosmos_layout else 8, cosmos_layout, causal, gate),
        vae=tiny_wan() if cosmos_layout else tiny_patch_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        if cosmos_layout
        else FlowMatchEulerDiscreteScheduler(shift=2.0),
    )
    pair.about = About(
        title="Tiny", examples=("How do I draw a house?",), layers=(1, LAYERS), frame_attention=frame_attention,
        prediction="sample", timestep_scale=1000.0, fresh_bias=1.5 if causal else 0.0, sees_previous=causal,
        image_size=(SIDE, SIDE), steps=2, guidance=1.0,
    )  # fmt: skip
    pair.save_pretrained(folder)
    if cosmos_layout:
        as_cosmos(folder)
    return folder


def as_cosmos(folder: Path) -> None:
    """Leave in `folder` what a Cosmos-Predict2.5 checkpoint has."""
    (folder / ABOUT).unlink()
    shutil.rmtree(folder / "image_processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "Cosmos2_5_PredictBasePipeline"
    del index["image_processor"]
    (folder / "model_index.json").write_text(json.dumps(index))


def served_pair(folder: Path) -> Path:
    """A tiny pair that another process can open: its own class is named by its package."""
    index = tiny_pair(folder) / "model_index.json"
    index.write_text(index.read_text().replace('"duogen.nn.vae"', '"duogen"'))
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with some forty merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        ["Step 1. Draw a red house.\n", "user\nassistant\nHow do I draw the house?", "Add a blue door."] * 9, trainer
    )
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=MARKS[0], pad_token=MARKS[0], eos_token=MARKS[END])


def tiny_mllm(vocabulary: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of 64 channels and 3 layers: sizes that bitsandbytes can quantise."""
    text = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.2, "bos_token_id": START, "eos_token_id": END,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "in_channels": 3, "patch_size": 8, "spatial_merge_size": 2,
        "temporal_patch_size": 1, "window_size": 64, "fullatt_block_indexes": [0, 1], "out_hidden_size": 64, "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=PAD, video_token_id=PAD + 1, vision_start_token_id=BOV,
        vision_end_token_id=EOV, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        # Channel 0 is the same for every token and no layer writes to it: through it the output head's rows get a bias.
        model.model.language_model.embed_tokens.weight[:, 0] = 2.0
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight[0] = 0
            layer.mlp.down_proj.weight[0] = 0
        model.model.visual.merger.mlp[2].weight[0] = 0
        model.model.visual.merger.mlp[2].bias[0] = 2.0
        model.lm_head.weight[:, 0] = -30.0
        for letter in "abcdefghijklmnop":
            model.lm_head.weight[tiny_letter(letter), 0] = 0.0
        model.lm_head.weight[BOV, 0] = 4.0
        model.lm_head.weight[END, 0] = 2.0
    return model


def script(monkeypatch: Any, tokens: Tokens, *pieces: str | int) -> None:
    """Let the talker choose these words and tokens, one after the other, whatever it would like to say."""
    ids = iter([token for piece in pieces for token in (tokens.text(piece) if isinstance(piece, str) else [piece])])
    monkeypatch.setattr("duogen.models.mllm.choose", lambda logits, options, generator: next(ids))


def tiny_letter(letter: str) -> int:
    """The id of a letter: the byte alphabet comes after the marks, sorted."""
    return len(MARKS) + sorted(pre_tokenizers.ByteLevel.alphabet()).index(letter)


def tiny_transformer(channels: int, cosmos_layout: bool, sees_previous: bool, gate: bool = False) -> CosmosTransformer3DModel:
    """A DiT of 2 blocks and 24 channels that reads two of the MLLM's layers, or all in the Cosmos layout."""
    model = CosmosTransformer3DModel(
        in_channels=channels * (2 if sees_previous else 1) + 1, out_channels=channels + 2 * gate, num_attention_heads=2,
        attention_head_dim=12, num_layers=2, mlp_ratio=2.0,
        text_embed_dim=24, adaln_lora_dim=8, max_size=(16, 16, 16), patch_size=(1, 2, 2) if cosmos_layout else (1, 1, 1),
        rope_scale=(1.0, 3.0, 3.0) if cosmos_layout else (1.0, 1.0, 1.0), concat_padding_mask=cosmos_layout,
        extra_pos_embed_type=None if cosmos_layout else "learnable", use_crossattn_projection=True,
        crossattn_proj_in_channels=64 * (LAYERS if cosmos_layout else 2), encoder_hidden_states_channels=24,
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "pos_emb_" in name:
                weight.normal_(std=0.5)
            elif "norm_q" in name or "crossattn_proj" in name or "to_out" in name:
                weight.mul_(4.0)  # sharp and strong attention: a wrong mask or cache must show
    return model.eval()


def tiny_patch_vae() -> PatchVAE:
    vae = PatchVAE(z_dim=8, patch_size=16, width=8, blocks=1, latents_mean=[0.1] * 8, latents_std=[0.5 + 0.1 * i for i in range(8)])
    vae.fit_patches(torch.rand(64, 3 * 16 * 16) * 2 - 1)
    torch.nn.init.normal_(vae.conv_out.weight, std=0.02)
    return vae.eval()


def tiny_wan() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
