"""Which places of the picture before the next one changes: a small transformer over the MLLM's states of that picture and of what was said
since.

B pictures, N places, W words, D channels of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

CHANGE_HEAD = "change_head"  # its folder in a pair, and its name in `model_index.json`


class ChangeHead(ModelMixin, ConfigMixin):
    """Tells the places that the next picture changes from those that stay.

    The MLLM's states of a picture say what is where, and its words say what changes. To bring both together is easier to learn than to
    paint, so a painter that copies what stays asks this head beside its own copy gate.
    """

    config: Any  # diffusers types what is read by attribute as a dict

    @register_to_config
    def __init__(
        self, channels: int = 3456, places: tuple[int, int] = (8, 8), words: int = 96, width: int = 128, layers: int = 2, heads: int = 4
    ) -> None:
        """
        Args:
            places: rows and columns of a picture, for the MLLM and the painter alike.
            words: how many of the latest words are read.
        """
        super().__init__()
        self.from_places, self.from_words = nn.Linear(channels, width), nn.Linear(channels, width)
        self.place_table = nn.Parameter(torch.randn(places[0] * places[1], width) * 0.1)
        self.word_table = nn.Parameter(torch.randn(words, width) * 0.1)  # counted from the last word
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.to_logit = nn.Linear(width, 1)

    def forward(self, places: torch.Tensor, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], above 0 where the next picture differs.

        Args:
            places: [B, N, D], the states of the picture's tokens.
            words: [B, W, D], the states of the words since, the last one first; of more than the head reads, the rest is left out.
            lengths: [B], how many of the words are none of the padding.
        """
        weight = self.from_places.weight
        words = words[:, : len(self.word_table)]
        said = self.from_words(words.to(weight)) + self.word_table[: words.shape[1]]
        seen = self.from_places(places.to(weight)) + self.place_table
        padding = torch.arange(words.shape[1], device=words.device) >= lengths[:, None]
        ignored = torch.cat([padding.new_zeros(seen.shape[:2]), padding], 1)
        return self.to_logit(self.encoder(torch.cat([seen, said], 1), src_key_padding_mask=ignored)[:, : seen.shape[1]]).squeeze(-1)
