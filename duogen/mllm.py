"""The multimodal LLM at work: prefill what is new, talk token by token, keep every hidden state the painter will need.

L new tokens, C width of a hidden state, K layers that the connector reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from duogen.options import TextOptions
from duogen.sequence import Packed, Tokens, positions


def normalised(states: torch.Tensor) -> torch.Tensor:
    """A layer's hidden states, each normalised over its channels (DuoGen, section 3; as Cosmos-Predict2.5 does)."""
    states = states.float()
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + 1e-8)


def embed(
    model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, pixels: torch.Tensor | None, grids: torch.Tensor | None
) -> torch.Tensor:
    """Input embeddings [B, L, C] of ids [B, L], with the vision tower's output where pictures stand."""
    embeds = model.get_input_embeddings()(ids)
    if pixels is None:
        return embeds
    features = torch.cat(list(model.model.get_image_features(pixels.to(ids.device), grids.to(ids.device)).pooler_output))
    mask = (ids == model.config.image_token_id)[..., None].expand_as(embeds)
    return embeds.masked_scatter(mask, features.to(embeds.dtype))


@dataclass
class Context:
    """What the MLLM has read: its KV cache, and the hidden states that the connector reads.

    Attributes:
        packed: the ids and picture slots that the cache covers.
        states: [L, K * C] normalised, of the tokens that a picture has been painted from so far.
        fresh: [l, K, C] as the model gave them, one for each call since then; with `states` they cover `packed.ids`.
        position: the rotary position of the next token.
    """

    cache: DynamicCache = field(default_factory=DynamicCache)
    packed: Packed = field(default_factory=Packed)
    states: torch.Tensor | None = None
    fresh: list[torch.Tensor] = field(default_factory=list)
    position: int = 0
    logits: torch.Tensor | None = None

    def condition(self, until: int | None = None) -> torch.Tensor:
        """Hidden states of all tokens before index `until`: [1, until, K * C]."""
        if self.fresh:  # normalised here and not at every token, which would slow the talk
            new = normalised(torch.cat(self.fresh)).flatten(1)
            self.states = new if self.states is None else torch.cat([self.states, new])
            self.fresh = []
        return self.states[None, :until]

    def keep(self, length: int) -> None:
        """Forget everything after the first `length` tokens, which must not cut a picture in two."""
        self.states = self.condition(length)[0]
        self.cache.crop(length - self.cache.get_seq_length())
        self.packed = self.packed.between(0, length)
        self.position = positions(self.packed)[1]
        self.logits = None


class MLLM:
    """A Qwen2.5-VL model, its tokens, and the layers that the connector reads (indices into `hidden_states`)."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, layers: list[int]) -> None:
        self.model, self.tokens, self.layers = model, tokens, layers
        self.unsaid = [tokens.start, tokens.eov, tokens.pad]  # they would stand in the context for a turn or a picture that is not there

    @torch.no_grad()
    def prefill(self, context: Context, packed: Packed) -> int:
        """Make `context` cover `packed`, encoding only what is new; returns how many tokens that were.

        What the cache holds beyond the common beginning is forgotten.
        """
        common = self._common(context.packed, packed)
        if common == len(packed.ids):
            common = packed.last_segment(len(packed.ids) - 1)  # at least one token must be read to have logits
        if common < len(context.packed.ids):
            context.keep(common)
        slots = [slot for slot in packed.slots if slot.bov >= common]
        pixels, grids = self.tokens.pixels([slot.image for slot in slots]) if slots else (None, None)
        where, after = positions(packed, common, context.position)
        ids = torch.tensor([packed.ids[common:]], device=self.model.device)
        self._read(context, embed(self.model, ids, pixels, grids), where)
        context.packed = packed.between(0)
        context.position = after
        return len(packed.ids) - common

    def _common(self, old: Packed, new: Packed) -> int:
        count = 0
        for mine, other in zip(old.ids, new.ids, strict=False):
            if mine != other:
                break
            count += 1
        for mine, other in zip(old.slots, new.slots, strict=False):
            if mine.bov < count and mine.image.picture is not other.image.picture:
                return mine.bov
        cut = [slot.bov for slot in new.slots if slot.bov < count < slot.end]
        return min([count, *cut])

    def _read(self, context: Context, embeds: torch.Tensor, where: torch.Tensor) -> None:
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=where[:, None].to(embeds.device),
            past_key_values=context.cache,
            use_cache=True,
            output_hidden_states=True,
        )
        context.fresh.append(torch.stack([out.hidden_states[layer][0] for layer in self.layers], 1))
        context.logits = self.model.lm_head(out.last_hidden_state[:, -1])[0].float()
        context.logits[self.unsaid] = float("-inf")

    @torch.no_grad()
    def append(self, context: Context, token: int) -> None:
        """Read one token that was just said."""
        ids = torch.tensor([[token]], device=self.model.device)
        where = torch.full((3, 1), context.position)
        self._read(context, self.model.get_input_embeddings()(ids), where)
        context.packed.add([token], True)
        context.position += 1

    def talk(self, context: Context, options: TextOptions, generator: torch.Generator) -> Iterator[int]:
        """Say tokens until begin-of-vision or end of turn, which is yielded last and not yet read into the context."""
        while True:
            token = choose(context.logits, options, generator)
            yield token
            if token in (self.tokens.bov, self.tokens.end):
                return
            self.append(context, token)


def choose(logits: torch.Tensor, options: TextOptions, generator: torch.Generator) -> int:
    """Sample a token by temperature and nucleus (Holtzman et al. 2020); temperature 0 takes the likeliest."""
    if options.temperature == 0:
        return int(logits.argmax())
    ordered, index = nucleus((logits / options.temperature).softmax(-1), options.top_p)
    return int(index[torch.multinomial(ordered.cpu(), 1, generator=generator)])


def nucleus(chances: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens that together make up `top_p`, likeliest first, and their ids; what is beyond them has chance 0.

    Sorting the whole vocabulary would take a fifth of a small model's time for a token: a few of the likeliest mostly do.
    """
    count = 64
    while True:
        ordered, index = chances.topk(min(count, len(chances)))
        if count >= len(chances) or ordered.sum() >= top_p:
            break
        count *= 8
    ordered[ordered.cumsum(-1) - ordered >= top_p] = 0
    return ordered, index
