"""The multimodal LLM at work: prefill what is new, talk token by token, keep every hidden state the painter will need.

L new tokens, C width of a hidden state, K layers that the connector reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from duogen.models.kv_cache import new_kv_cache
from duogen.models.sequence import Packed, Tokens, positions
from duogen.models.token_forward import TokenForward, is_supported, weights_version
from duogen.options import TextOptions

PROMPT_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
PROMPT_LENGTH = 512


def normalise_states(states: torch.Tensor) -> torch.Tensor:
    """A layer's hidden states, each normalised over its channels (DuoGen, section 3; as Cosmos-Predict2.5 does)."""
    states = states.float()
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + 1e-8)


def embed(
    model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, pixels: torch.Tensor | None, grids: torch.Tensor | None
) -> torch.Tensor:
    """Input embeddings [B, L, C] of ids [B, L], with the vision tower's output where pictures stand."""
    return embed_with_features(model, ids, pixels, grids)[0]


def embed_with_features(
    model: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor, pixels: torch.Tensor | None, grids: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """What `embed` returns, and what else the language model takes: of a Qwen3-VL, features for its first layers (DeepStack)."""
    embeds = model.get_input_embeddings()(ids)
    if pixels is None or grids is None:
        return embeds, {}
    visual = model.config.vision_config
    seen = model.model.get_image_features(append_patch_positions(pixels, grids, visual).to(ids.device), grids.to(ids.device))
    features = torch.cat(list(seen.pooler_output))
    mask = ids == model.config.image_token_id
    deep = {}
    if getattr(seen, "deepstack_features", None):
        deep = {"visual_pos_masks": mask, "deepstack_visual_embeds": [torch.cat(list(each)) for each in seen.deepstack_features]}
    return embeds.masked_scatter(mask[..., None].expand_as(embeds), features.to(embeds.dtype)), deep


def append_patch_positions(pixels: torch.Tensor, grids: torch.Tensor, vision: Any) -> torch.Tensor:
    """Patches with where they lie in their picture, for a tower that takes two channels more than the pictures have.

    Qwen's towers know of places relative ones only (rotary positions), from which a small one does not learn to tell left from right.
    Two channels of coordinates in -1..1 say it outright (CoordConv, Liu et al., 2018, arXiv 1807.03247, section 4).

    Args:
        pixels: [patches, channels * T * P * P], merged patches together, as Qwen's image processors order them.
        grids: [pictures, 3] patches in time, height and width.
        vision: the tower's configuration; `pixels` come back as they are unless its `in_channels` asks for coordinates.

    Returns:
        [patches, (channels + 2) * T * P * P].
    """
    area = vision.temporal_patch_size * vision.patch_size**2
    if vision.in_channels * area != pixels.shape[1] + 2 * area:
        return pixels
    merge, places = vision.spatial_merge_size, []
    for time, height, width in grids.tolist():
        rows, columns = (2 * (torch.arange(count) + 0.5) / count - 1 for count in (height, width))
        place = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)], -1)
        blocks = place.view(height // merge, merge, width // merge, merge, 2).transpose(1, 2)
        places.append(blocks.reshape(-1, 2).repeat(time, 1))
    return torch.cat([pixels, torch.cat(places).to(pixels).repeat_interleave(area, 1)], 1)


@dataclass
class Context:
    """What the MLLM has read: its KV cache, and the hidden states that the connector reads.

    Attributes:
        packed: the ids and picture slots that the cache covers.
        states: [L, K * C] normalised, of the tokens that a picture has been painted from so far.
        fresh: [l, K, C] as the model gave them, one for each call since then; with `states` they cover `packed.ids`.
        position: the rotary position of the next token.
    """

    cache: DynamicCache = field(default_factory=new_kv_cache)
    packed: Packed = field(default_factory=Packed)
    states: torch.Tensor | None = None
    fresh: list[torch.Tensor] = field(default_factory=list)
    position: int = 0
    logits: torch.Tensor | None = None

    def condition(self, until: int | None = None) -> torch.Tensor:
        """Hidden states of all tokens before index `until`: [1, until, K * C]."""
        if self.fresh:  # normalised here and not at every token, which would slow the talk
            new = normalise_states(torch.cat(self.fresh)).flatten(1)
            self.states = new if self.states is None else torch.cat([self.states, new])
            self.fresh = []
        assert self.states is not None, "nothing has been read"
        return self.states[None, :until]

    def keep(self, length: int) -> None:
        """Forget everything after the first `length` tokens, which must not cut a picture in two."""
        if self.states is not None or self.fresh:
            self.states = self.condition(length)[0]
        self.cache.crop(length - self.cache.get_seq_length())
        self.packed = self.packed.between(0, length)
        self.position = positions(self.packed)[1]
        self.logits = None


class MLLM:
    """A Qwen2.5-VL or Qwen3-VL model, its tokens, and the layers that the connector reads (indices into `hidden_states`).

    `remembers` says whether their states are kept while it talks; they are not where the painter reads a prompt of its own.
    `token_dtype` is the number format of the weights that single tokens are read with on a CPU; by default the model's own.
    """

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, layers: list[int], remembers: bool = True,
        token_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokens, self.layers, self.remembers = model, tokens, layers, remembers
        self.token_dtype = token_dtype
        self.token_forward: TokenForward | None = None
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
        embeds, deep = embed_with_features(self.model, ids, pixels, grids)
        self._read(context, embeds, where, deep)
        self._prepare_token_forward()
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
            if mine.bov < count and not mine.image.shows_same(other.image):
                return mine.bov
        cut = [slot.bov for slot in new.slots if slot.bov < count < slot.end]
        return min([count, *cut])

    def _read(self, context: Context, embeds: torch.Tensor, where: torch.Tensor, deep: dict[str, Any] | None = None) -> None:
        out = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=where[:, None].to(embeds.device),
            past_key_values=context.cache,
            use_cache=True,
            output_hidden_states=self.remembers,
            **(deep or {}),
        )
        self._note(context, out.hidden_states, self.model.lm_head(out.last_hidden_state[:, -1])[0].float())

    def _note(self, context: Context, states: Sequence[torch.Tensor], logits: torch.Tensor) -> None:
        if self.remembers:
            context.fresh.append(torch.stack([states[layer].flatten(0, -2) for layer in self.layers], 1))
        context.logits = logits
        context.logits[self.unsaid] = float("-inf")

    @torch.no_grad()
    def read_prompt(self, prompt: str) -> tuple[torch.Tensor, int]:
        """States of a picture's prompt by itself, as Cosmos-Predict2.5's painter was trained to read them (its `_get_prompt_embeds`).

        Returns:
            [1, 512, K * C], and the index of the prompt's first word.
        """
        tokens = self.tokens
        before = [*tokens.opening("system"), *tokens.text(PROMPT_SYSTEM), *tokens.closing(), *tokens.opening("user")]
        ids = [*before, *tokens.text(prompt), *tokens.closing()][:PROMPT_LENGTH]
        blank = tokens.tokenizer.pad_token_id if tokens.tokenizer.pad_token_id is not None else tokens.end
        ids += [blank] * (PROMPT_LENGTH - len(ids))
        where = torch.arange(PROMPT_LENGTH, device=self.model.device).expand(3, 1, -1)
        out = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(torch.tensor([ids], device=self.model.device)), position_ids=where,
            use_cache=False, output_hidden_states=True,
        )  # fmt: skip
        return torch.cat([normalise_states(out.hidden_states[layer]) for layer in self.layers], -1), len(before)

    @torch.no_grad()
    def append(self, context: Context, token: int) -> None:
        """Read one token that was just said."""
        if self.token_forward:
            self._note(context, *self.token_forward(token, context.position, context.cache))
        else:
            ids = torch.tensor([[token]], device=self.model.device)
            where = torch.full((3, 1), context.position)
            self._read(context, self.model.get_input_embeddings()(ids), where)
        context.packed.add([token], True)
        context.position += 1

    def generate(self, context: Context, options: TextOptions, generator: torch.Generator) -> Iterator[int]:
        """Say tokens until begin-of-vision or end of turn, which is yielded last and not yet read into the context."""
        while True:
            assert context.logits is not None, "nothing has been read"
            token = choose(context.logits, options, generator)
            yield token
            if token in (self.tokens.bov, self.tokens.end):
                return
            self.append(context, token)

    def _prepare_token_forward(self) -> None:
        """Lay out the weights for single tokens as they are now: training and adapters change them."""
        if not is_supported(self.model):
            self.token_forward = None
        elif self.token_forward is None or self.token_forward.version != weights_version(self.model):
            self.token_forward = TokenForward(self.model, self.token_dtype or self.model.lm_head.weight.dtype)


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
