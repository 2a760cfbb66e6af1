"""One token through the MLLM's language model on a CPU, as fast as its memory gives the weights away.

transformers' own forward spends as long on Python as on products when it reads a single token with a small model, and oneDNN prepares
its bf16 products for many rows. Here the same layer is a dozen operations on weights that lie side by side.

C channels, H query heads, KV key-value heads, D channels per head, I channels of the MLP, L tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

Layer = Any  # a decoder layer or a product in it; torch types its submodules as Tensor | Module
PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LayerWeights:
    """A decoder layer's weights, those with the same input joined: `qkv` [(H + 2 KV) D, C], `gate_up` [2 I, C]; biases may be `None`."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class TokenForward:
    """A language model's weights, laid out for products of one row. The residual stream stays in float32.

    Args:
        model: one for which `is_supported` holds.
        dtype: number format of the products' weights. Where it is the model's own, the model's weights become views of the joined ones,
            so nothing is held twice.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, dtype: torch.dtype) -> None:
        language: Any = model.model.language_model
        config: Any = model.config.text_config
        self.version = weights_version(model)
        self.dtype, self.eps = dtype, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.frequencies = language.rotary_emb.inv_freq.float()
        self.scaling = language.rotary_emb.attention_scaling
        self.embed, self.stored = model.get_input_embeddings(), model.dtype  # the cache's format is the model's own
        self.layers = [_layer_weights(layer, dtype) for layer in _decoder_layers(model)]
        self.norm = language.norm.weight.float()
        self.head = model.lm_head.weight.to(dtype)

    @torch.no_grad()
    def __call__(self, token: int, position: int, cache: DynamicCache) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Read one token at a rotary position and write its keys and values into the cache.

        Returns:
            float32 hidden states [1, C], as transformers' `output_hidden_states` gives them: the embedding, each layer's output, the last
            one normalised; and logits [vocabulary].
        """
        angles = torch.cat([self.frequencies, self.frequencies]) * position
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        sin[: len(sin) // 2].neg_()  # the first half takes minus the second one
        hidden = self.embed(torch.tensor([token])).float()
        states = [hidden]
        with plain_products():
            for index, weights in enumerate(self.layers):
                hidden = hidden + self._attend(hidden, weights, (cos, sin), cache, index)
                hidden = hidden + self._transform(hidden, weights)
                states.append(hidden)
            states[-1] = self._normalise(hidden, self.norm)
            logits = F.linear(states[-1].to(self.dtype), self.head)[0].float()
        return states, logits

    def _normalise(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.eps)

    def _attend(
        self, hidden: torch.Tensor, weights: LayerWeights, rotary: tuple[torch.Tensor, torch.Tensor], cache: DynamicCache, index: int
    ) -> torch.Tensor:
        rows = self._normalise(hidden, weights.input_norm).to(self.dtype)
        heads = F.linear(rows, weights.qkv, weights.qkv_bias).float().view(self.heads + 2 * self.kv_heads, -1)
        turned = heads[: self.heads + self.kv_heads]
        turned = turned * rotary[0] + turned.roll(turned.shape[1] // 2, 1) * rotary[1]
        key = turned[self.heads :].to(self.stored)[None, :, None]
        value = heads[self.heads + self.kv_heads :].to(self.stored)[None, :, None]
        keys, values = cache.update(key, value, index)
        # The queries that share a key head are the rows of one product.
        query = turned[: self.heads].to(self.stored).view(1, self.kv_heads, -1, turned.shape[1])
        attended = F.scaled_dot_product_attention(query, keys, values)
        return F.linear(attended.reshape(1, -1).to(self.dtype), weights.out).float()

    def _transform(self, hidden: torch.Tensor, weights: LayerWeights) -> torch.Tensor:
        rows = self._normalise(hidden, weights.mlp_norm).to(self.dtype)
        gate, up = F.linear(rows, weights.gate_up).chunk(2, 1)
        return F.linear(F.silu(gate) * up, weights.down).float()


def is_supported(model: nn.Module) -> bool:
    """Whether `TokenForward` computes what the model does: a whole Qwen2.5-VL on a CPU with plain weights or LoRA, full attention, SiLU.

    A model cut to the layers that the connector reads has no final norm, so it writes no words.
    """
    if not isinstance(model, Qwen2_5_VLForConditionalGeneration) or model.device.type != "cpu":
        return False
    config: Any = model.config.text_config
    layers = _decoder_layers(model)
    if not hasattr(model.model.language_model.norm, "weight"):
        return False
    if config.hidden_act != "silu" or any(layer.self_attn.sliding_window for layer in layers):
        return False
    return all(_is_linear(each) for layer in layers for each in _products(layer)) and type(model.lm_head) is nn.Linear


def weights_version(model: Qwen2_5_VLForConditionalGeneration) -> tuple[object, ...]:
    """Differs as soon as the model computes something else: weights were changed in place, as an optimizer does, or other adapters work,
    or the same ones with another strength. For a model for which `is_supported` holds.
    """
    products = [each for layer in _decoder_layers(model) for each in _products(layer) if hasattr(each, "lora_A")]
    adapters = [(*each.active_adapters, each.disable_adapters, each.merged, *each.scaling.items()) for each in products]
    return sum(weight._version for weight in model.parameters()), *adapters


@contextmanager
def plain_products() -> Iterator[None]:
    """PyTorch's own kernels: oneDNN takes twice as long for one bf16 row, whose weights it copies into another order each time."""
    if not torch.backends.mkldnn.is_available():
        yield
        return
    before = torch.backends.mkldnn.set_flags(_enabled=False)[0]
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


def _decoder_layers(model: Qwen2_5_VLForConditionalGeneration) -> list[Layer]:
    return list(model.model.language_model.layers)


def _products(layer: Layer) -> list[Layer]:
    return [getattr(layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp, name) for name in PRODUCTS]


def _is_linear(module: Layer) -> bool:
    """Whether it is a plain linear layer, or one with LoRA."""
    if type(module) is nn.Linear:
        return True
    plain = type(getattr(module, "base_layer", None)) is nn.Linear and hasattr(module, "lora_A")
    return plain and not any(getattr(module, "use_dora", {}).values())


def _effective_weight(module: Layer) -> torch.Tensor:
    """The weight of a plain linear layer, or of one with LoRA as it works now."""
    if type(module) is nn.Linear:
        return module.weight
    base = module.base_layer
    if module.disable_adapters or module.merged:
        return base.weight
    active = [name for name in module.active_adapters if name in module.lora_A]
    return base.weight + sum(module.get_delta_weight(name) for name in active) if active else base.weight


@torch.no_grad()
def _layer_weights(layer: Layer, dtype: torch.dtype) -> LayerWeights:
    query, key, value, out, gate, up, down = _products(layer)
    biases = [getattr(each, "base_layer", each).bias for each in (query, key, value)]
    bias = torch.cat(biases).to(dtype) if any(each.any() for each in biases) else None
    return LayerWeights(
        layer.input_layernorm.weight.float(), _join([query, key, value], dtype), bias, _effective_weight(out).to(dtype),
        layer.post_attention_layernorm.weight.float(), _join([gate, up], dtype), _effective_weight(down).to(dtype),
    )  # fmt: skip


def _join(modules: list[Layer], dtype: torch.dtype) -> torch.Tensor:
    """The weights one below the other; a plain module whose format it is keeps a view of them instead of its own."""
    joined = torch.cat([_effective_weight(each).to(dtype) for each in modules])
    start = 0
    for module in modules:
        end = start + module.out_features
        if type(module) is nn.Linear and module.weight.dtype == dtype:
            module.weight.data = joined[start:end]
        start = end
    return joined
