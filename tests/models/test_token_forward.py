"""The fast way of one token equals transformers' own, with the weights as they are at that moment."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from duogen.models.kv_cache import LEAST_ROOM, new_kv_cache
from duogen.models.mllm import MLLM, Context
from duogen.models.sequence import Packed, Tokens
from duogen.models.token_forward import TokenForward, is_supported
from duogen.train.states import truncate_layers
from tests.support.tiny import BOV, LAYERS, MARKS, tiny_mllm, tiny_tokenizer

PROMPT = list(range(20, 33))


@pytest.fixture
def model() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(3)
    model = tiny_mllm(300).requires_grad_(False)
    for layer in model.model.language_model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.self_attn, name).bias.normal_()
    return model


@torch.no_grad()
def read_slowly(model, ids: list[int], cache: DynamicCache) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' own forward: all hidden states [layers + 1, new, C] and the last logits."""
    where = torch.arange(cache.get_seq_length(), cache.get_seq_length() + len(ids)).expand(3, 1, -1)
    out = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(torch.tensor([ids])), position_ids=where, past_key_values=cache, use_cache=True,
        output_hidden_states=True,
    )  # fmt: skip
    return torch.cat(out.hidden_states), model.lm_head(out.last_hidden_state[:, -1])[0]


def compare(model, dtype: torch.dtype, tolerance: float, count: int = 5) -> None:
    """Read a prompt in both ways, then `count` tokens one by one; every state and logit is the same."""
    plain, fast = DynamicCache(), new_kv_cache()
    read_slowly(model, PROMPT, plain)
    read_slowly(model, PROMPT, fast)
    forward = TokenForward(model, dtype)
    for number in range(count):
        states, logits = read_slowly(model, [40 + number], plain)
        made, mine = forward(40 + number, len(PROMPT) + number, fast)
        torch.testing.assert_close(torch.stack(made), states.float(), rtol=tolerance, atol=tolerance * states.abs().max().item())
        torch.testing.assert_close(mine, logits.float(), rtol=tolerance, atol=tolerance * logits.abs().max().item())
    assert fast.get_seq_length() == plain.get_seq_length() == len(PROMPT) + count
    for mine, other in zip(fast.layers, plain.layers, strict=True):
        torch.testing.assert_close(mine.keys.float(), other.keys.float(), rtol=tolerance, atol=tolerance * 10)


def test_a_token_is_read_as_by_transformers(model):
    compare(model, torch.float32, 2e-5)


def test_a_token_is_read_with_one_bias_alone(model):
    """Such as training may leave it: of queries, keys and values only one has a bias."""
    for layer in model.model.language_model.layers:
        layer.self_attn.k_proj.bias.zero_()
        layer.self_attn.v_proj.bias.zero_()
    compare(model, torch.float32, 2e-5)


def test_a_token_is_read_in_bf16_within_its_rounding(model):
    compare(model.to(torch.bfloat16), torch.bfloat16, 5e-2)


def test_float32_weights_read_single_tokens_in_bf16(model):
    """The precision "mixed": what is read at once stays exact."""
    compare(model, torch.bfloat16, 5e-2)
    assert model.lm_head.weight.dtype == torch.float32
    with pytest.raises(AssertionError):
        compare(model, torch.bfloat16, 1e-5)


def test_weights_are_not_held_twice(model):
    forward = TokenForward(model, torch.float32)
    attention = model.model.language_model.layers[0].self_attn
    assert attention.q_proj.weight.data_ptr() == forward.layers[0].qkv.data_ptr()
    assert attention.k_proj.weight.data_ptr() == forward.layers[0].qkv[attention.q_proj.out_features :].data_ptr()
    compare(model, torch.float32, 2e-5)


def test_adapters_count_as_they_work(model):
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"])
    plain = TokenForward(model, torch.float32)(41, 0, new_kv_cache())[1]
    inject_adapter_in_model(config, model, adapter_name="one")
    inject_adapter_in_model(config, model, adapter_name="two")
    assert is_supported(model)
    layers = [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    for active, scale in ((["one"], 1.0), (["one", "two"], 0.3)):
        for layer in layers:
            layer.set_adapter(active)
            layer.set_scale(active[-1], scale)
        compare(model, torch.float32, 2e-5)
        assert not torch.allclose(TokenForward(model, torch.float32)(41, 0, new_kv_cache())[1], plain, rtol=1e-3)
    for layer in layers:
        layer.enable_adapters(False)
    compare(model, torch.float32, 2e-5)
    torch.testing.assert_close(TokenForward(model, torch.float32)(41, 0, new_kv_cache())[1], plain)


def test_changed_weights_are_laid_out_anew(model):
    tokens = Tokens(tiny_tokenizer(), None, MARKS[BOV - 1])
    mllm, context = MLLM(model, tokens, [1, LAYERS]), Context()
    mllm.prefill(context, Packed(PROMPT, [False] * len(PROMPT), []))
    before = mllm.token_forward
    mllm.prefill(Context(), Packed(PROMPT, [False] * len(PROMPT), []))
    assert mllm.token_forward is before
    with torch.no_grad():
        model.model.language_model.layers[0].self_attn.o_proj.weight.mul_(0.5)
    mllm.prefill(Context(), Packed(PROMPT, [False] * len(PROMPT), []))
    assert mllm.token_forward is not before


def test_an_adapter_of_another_strength_counts_at_once(model):
    """Its weights do not change then: only how strongly they count, or whether."""
    tokens = Tokens(tiny_tokenizer(), None, MARKS[BOV - 1])
    inject_adapter_in_model(LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]), model, adapter_name="one")
    mllm, layers = MLLM(model, tokens, [1, LAYERS]), [each for each in model.modules() if isinstance(each, BaseTunerLayer)]
    changes = [lambda each: None, lambda each: each.set_scale("one", 0.2), lambda each: each.enable_adapters(False)]
    seen = []
    for change in changes:
        for layer in layers:
            change(layer)
        context, plain = Context(), DynamicCache()
        mllm.prefill(context, Packed(PROMPT, [False] * len(PROMPT), []))
        mllm.append(context, 41)
        read_slowly(model, PROMPT, plain)
        states, _ = read_slowly(model, [41], plain)
        torch.testing.assert_close(context.fresh[-1][0, 1], states[LAYERS, 0], rtol=2e-5, atol=1e-4)
        seen.append(states[LAYERS, 0])
    assert not torch.allclose(seen[0], seen[1], rtol=1e-3) and not torch.allclose(seen[1], seen[2], rtol=1e-3)


def test_rows_of_tokens_that_learnt_count(model):
    """An adapter may hold new embeddings of single tokens, as that of begin-of-vision."""
    plain = TokenForward(model, torch.float32)(41, 0, new_kv_cache())[1]
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [41, 43]})
    inject_adapter_in_model(config, model, adapter_name="one")
    rows = [weight for name, weight in model.named_parameters() if "trainable_tokens_delta" in name]
    with torch.no_grad():
        rows[0].add_(torch.randn_like(rows[0]))
    compare(model, torch.float32, 2e-5)
    assert not torch.allclose(TokenForward(model, torch.float32)(41, 0, new_kv_cache())[1], plain, rtol=1e-3)


def test_what_is_not_supported_is_left_to_transformers(model):
    assert is_supported(model)
    model.config.text_config.hidden_act = "gelu"
    assert not is_supported(model)
    model.config.text_config.hidden_act = "silu"
    model.model.language_model.layers[1].mlp.up_proj = torch.nn.Sequential(torch.nn.Linear(64, 128))
    assert not is_supported(model)
    tokens = Tokens(tiny_tokenizer(), None, MARKS[BOV - 1])
    mllm, context = MLLM(model, tokens, [1, LAYERS]), Context()
    mllm.prefill(context, Packed(PROMPT, [False] * len(PROMPT), []))
    mllm.append(context, 41)
    assert mllm.token_forward is None
    states, logits = read_slowly(model, [*PROMPT, 41], DynamicCache())
    torch.testing.assert_close(context.fresh[-1][0, 0], states[1, -1])


def test_the_cache_grows_and_forgets_in_place():
    torch.manual_seed(0)
    fast, plain = new_kv_cache(), DynamicCache()
    for length in (3, 1, 1, LEAST_ROOM, 1, -9, 2, -4, 5):
        if length < 0:
            fast.crop(length)
            plain.crop(length)
            continue
        key, value = torch.randn(1, 2, length, 4), torch.randn(1, 2, length, 4)
        made, expected = fast.update(key, value, 0), plain.update(key, value, 0)
        assert all(torch.equal(mine, other) for mine, other in zip(made, expected, strict=True))
    assert fast.get_seq_length() == plain.get_seq_length()
    before = fast.layers[0].key_buffer.data_ptr()
    fast.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), 0)
    assert fast.layers[0].key_buffer.data_ptr() == before


def test_a_model_cut_to_the_layers_that_are_read_has_no_fast_way():
    model = tiny_mllm(len(tiny_tokenizer()))
    assert is_supported(model) and not is_supported(truncate_layers(model, LAYERS - 1))
