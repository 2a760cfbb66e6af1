"""What the next picture changes of the one before: a small transformer over the MLLM's states of that picture and of what was said since,
and a small convolution over the picture itself.

B pictures, N = h * w places, W words, D channels of the states, K channels inside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

CHANGE_HEAD = "change_head"  # its folder in a pair, and its name in `model_index.json`
KINDS = ("paint", "move", "remove", "recolour")  # what becomes of the picture before: the first is for the painter alone
BINS, SPANS = 128, (2.0, 1.0, 1.0)  # of each number of a motion: how many values it may have, and the largest; the smallest is its negative
NEAR = 2  # bins beside the likeliest one that its value is the mean with


class Transforms(NamedTuple):
    """What happens to pixels of the picture before.

    Attributes:
        kinds: logits [B, 4], of `KINDS`.
        motions: logits [B, 3, BINS], of what `read_motions` returns.
        colours: [B, 3] in -1..1, what a recoloured part has afterwards.
    """

    kinds: torch.Tensor
    motions: torch.Tensor
    colours: torch.Tensor


def list_bins() -> torch.Tensor:
    """[3, BINS]: the values of a motion's numbers."""
    return torch.linspace(-1, 1, BINS) * torch.tensor(SPANS)[:, None]


def read_motions(logits: torch.Tensor) -> torch.Tensor:
    """Motions [B, 3] of their logits [B, 3, BINS]: the binary logarithm of the size afterwards, in times of the size before; and how far
    the middle goes to the right and down, in widths and heights of the picture.

    Each is the mean around the likeliest bin (as SimCC, Li et al. 2022): of two places that are likely, a regression would tell the one
    between them.
    """
    likely = logits.float().softmax(-1)
    away = (torch.arange(BINS, device=logits.device) - likely.argmax(-1, keepdim=True)).abs()
    near = likely * (away <= NEAR)
    return (near * list_bins().to(near)).sum(-1) / near.sum(-1)


class ChangeHead(ModelMixin, ConfigMixin):
    """Tells the places, and the pixels, that the next picture changes from those that stay, and what need not be painted.

    The MLLM's states of a picture say what is where, and its words say what changes. To bring both together is easier to learn than to
    paint, so a painter that copies what stays asks this head beside its own copy gate. Each place then says which pixels of its part of the
    picture it means, as the mask queries of MaskFormer do (Cheng et al. 2021, section 3.2). A thing that moves or changes its size keeps
    its pixels, one that goes leaves its ground, and a part of another colour keeps its shape: one more token says which of these it is,
    where to or which colour, and a second query which pixels are meant (as Finn et al. 2016, section 3, predict video by masks and
    transformations of pixels).
    """

    config: Any  # diffusers types what is read by attribute as a dict

    @register_to_config
    def __init__(
        self,
        channels: int = 3456,
        places: tuple[int, int] = (8, 8),
        words: int = 96,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        *,
        pixels: int = 0,
        transforms: bool = False,
    ) -> None:
        """
        Args:
            places: rows and columns of a picture, for the MLLM and the painter alike.
            words: how many of the latest words are read.
            pixels: channels of what is read from the picture itself; 0 for a head that knows places only.
            transforms: whether it tells what happens to pixels that need not be painted; it must know pixels.
        """
        super().__init__()
        self.from_places, self.from_words = nn.Linear(channels, width), nn.Linear(channels, width)
        self.place_table = nn.Parameter(torch.randn(places[0] * places[1], width) * 0.1)
        self.word_table = nn.Parameter(torch.randn(words, width) * 0.1)  # counted from the last word
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.to_logit = nn.Linear(width, 1)
        if pixels:
            self.to_query = nn.Linear(width, pixels + 1)
            self.stem = nn.Sequential(
                nn.Conv2d(5, pixels, 3, padding=1), nn.GELU(), nn.Conv2d(pixels, pixels, 3, padding=2, dilation=2), nn.GELU(),
                nn.Conv2d(pixels, pixels, 1),
            )  # fmt: skip
        if transforms:
            self.motion_token = nn.Parameter(torch.randn(1, width) * 0.1)
            self.to_kind, self.to_colour, self.to_source = nn.Linear(width, len(KINDS)), nn.Linear(width, 3), nn.Linear(width, pixels + 1)
            self.to_motion = nn.Linear(width, len(SPANS) * BINS)

    def forward(self, places: torch.Tensor, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], above 0 where the next picture differs. The arguments are those of `read`."""
        return self.mark_places(self.read(places, words, lengths))

    def read(self, places: torch.Tensor, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """What changes at each place, [B, N, K]; of a head that knows transforms [B, N + 1, K], and what they are is the last.

        Args:
            places: [B, N, D], the states of the picture's tokens.
            words: [B, W, D], the states of the words since, the last one first; of more than the head reads, the rest is left out.
            lengths: [B], how many of the words are none of the padding.
        """
        weight = self.from_places.weight
        words = words[:, : len(self.word_table)]
        said = self.from_words(words.to(weight)) + self.word_table[: words.shape[1]]
        seen = self.from_places(places.to(weight)) + self.place_table
        if self.config.transforms:
            seen = torch.cat([seen, self.motion_token.expand(len(seen), -1, -1)], 1)
        padding = torch.arange(words.shape[1], device=words.device) >= lengths[:, None]
        ignored = torch.cat([padding.new_zeros(seen.shape[:2]), padding], 1)
        return self.encoder(torch.cat([seen, said], 1), src_key_padding_mask=ignored)[:, : seen.shape[1]]

    def mark_places(self, read: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], above 0 where the next picture differs, of what `read` returned."""
        return self.to_logit(read[:, : len(self.place_table)]).squeeze(-1)

    def find_transforms(self, read: torch.Tensor) -> Transforms:
        """What happens to the pixels that `mark_source` marks.

        Args:
            read: what `read` returned, of a head that knows transforms.
        """
        last = read[:, -1]
        return Transforms(self.to_kind(last), self.to_motion(last).unflatten(1, (len(SPANS), BINS)), self.to_colour(last).tanh())

    def mark_pixels(self, read: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Logits [B, H, W], above 0 where the next picture differs.

        Args:
            read: what `read` returned.
            pictures: [B, 3, H, W] in -1..1, the pictures before; H and W are multiples of h and w.
        """
        return self._mark(self.to_query, read, pictures)

    def mark_source(self, read: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Logits [B, H, W], above 0 for the pixels that a transform is of; the arguments are those of `mark_pixels`."""
        return self._mark(self.to_source, read, pictures)

    def _mark(self, to_query: nn.Linear, read: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        rows, columns = self.config.places
        height, width = (side // count for side, count in zip(pictures.shape[2:], (rows, columns), strict=True))
        # Where in its place each pixel lies, -1..1: things of one colour are told apart by it.
        down, across = (torch.linspace(-1, 1, side, device=pictures.device) for side in (height, width))
        within = torch.stack(torch.meshgrid(down, across, indexing="ij")).repeat(1, rows, columns).expand(len(pictures), -1, -1, -1)
        found = self.stem(torch.cat([pictures.to(within), within], 1).to(read)).unflatten(3, (columns, width)).unflatten(2, (rows, height))
        query = to_query(read[:, : len(self.place_table)]).unflatten(1, (rows, columns))
        logits = torch.einsum("bkyixj,byxk->byixj", found, query[..., 1:]) + query[:, :, None, :, None, 0]
        return logits.flatten(3).flatten(1, 2)
