"""A patch autoencoder that a laptop CPU trains in minutes: linear encoder, linear plus convolutional decoder.

B batch, C latent channels, T frames, H W pixels, P patch side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


def pixel_weights(latents_std: Sequence[float]) -> torch.Tensor:
    """What a normalised latent's squared error counts, [1, C, 1, 1] with a mean of one, so that it is the error of pixels.

    This holds where the axes are orthonormal, as a `PatchVAE`'s are. With equal weights the many faint axes outweigh colours.
    """
    square = torch.tensor(latents_std).view(1, -1, 1, 1).square()
    return square / square.mean()


class PointDistribution:
    """The posterior of a deterministic encoder: all its mass on one point."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def mode(self) -> torch.Tensor:
        return self.latents

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        return self.latents


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.conv2(F.silu(self.conv1(F.silu(self.norm(hidden)))))


class PatchVAE(ModelMixin, ConfigMixin):
    """Encodes each P x P patch by itself with one matrix (a PCA of the data); decodes with its transpose and a
    convolutional correction at 1/8 of the picture's size, which also takes the noise off imperfect latents.

    The interface is `AutoencoderKLWan`'s: `encode(pixels[B, 3, T, H, W])` gives `.latent_dist`, `decode(latents)` gives
    `.sample`, `config.latents_mean` and `config.latents_std` normalise. Pixels are in -1..1; H and W are multiples of P.
    """

    config: Any  # diffusers types what is read by attribute as a dict

    @register_to_config
    def __init__(
        self,
        z_dim: int = 96,
        patch_size: int = 32,
        width: int = 64,
        blocks: int = 4,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, z_dim, patch_size, stride=patch_size)
        self.to_pixels = nn.ConvTranspose2d(z_dim, 3, patch_size, stride=patch_size)
        self.conv_in = nn.Conv2d(3 * 64, width, 1)
        self.residuals = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.conv_out = nn.Conv2d(width, 3 * 64, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    @property
    def spatial_compression_ratio(self) -> int:
        return self.config.patch_size

    def encode(self, pixels: torch.Tensor) -> AutoencoderKLOutput:
        """[B, 3, T, H, W] in -1..1 -> `.latent_dist` over [B, C, T, H / P, W / P]."""
        frames = pixels.transpose(1, 2).flatten(0, 1)
        latents = self.encoder(frames).unflatten(0, (pixels.shape[0], pixels.shape[2])).transpose(1, 2)
        return AutoencoderKLOutput(latent_dist=PointDistribution(latents))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        """[B, C, T, h, w] -> `.sample` [B, 3, T, h * P, w * P], about -1..1."""
        frames = self.decode_frames(latents.transpose(1, 2).flatten(0, 1))
        return DecoderOutput(sample=frames.unflatten(0, (latents.shape[0], latents.shape[2])).transpose(1, 2))

    def decode_frames(self, latents: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] -> [N, 3, h * P, w * P]."""
        packed = F.pixel_unshuffle(self.to_pixels(latents), 8)
        hidden = self.conv_in(packed)
        for block in self.residuals:
            hidden = block(hidden)
        return F.pixel_shuffle(packed + self.conv_out(F.silu(hidden)), 8)

    @torch.no_grad()
    def fit_patches(self, patches: torch.Tensor) -> None:
        """Set encoder and linear decoder to the principal components of `patches` [N, 3 * P * P], and the statistics.

        `latents_std` is the fourth root of the variances: half way between keeping the components' true sizes and whitening
        them, so that fine detail neither drowns in noise nor outweighs the shapes.
        """
        mean = patches.mean(0)
        centred = patches - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(patches))
        variances, axes = variances.flip(0)[: self.config.z_dim], axes.flip(1)[:, : self.config.z_dim]
        kernels = axes.T.reshape(self.encoder.weight.shape)
        # The mean of the patches stays in the latents, as theirs: a transposed convolution's bias holds one number for each colour only.
        for layer in (self.encoder, self.to_pixels):
            for name, parameter in layer.named_parameters():
                parameter.copy_(kernels if name == "weight" else torch.zeros_like(parameter))
        scales = variances.clamp(min=1e-8) ** 0.25
        scales = scales * (variances / scales**2).mean().sqrt()
        self.register_to_config(latents_mean=(mean @ axes).tolist(), latents_std=scales.tolist())


@torch.no_grad()
def grow_vae(vae: PatchVAE, z_dim: int, moments: torch.Tensor) -> PatchVAE:
    """A copy of `vae` with `z_dim` channels: its own first, then the principal axes of what those leave over.

    The first channels and their statistics stay as they are. Zeros in the new ones decode to what `vae` decodes, so a painter of the
    old latents stays a painter of the new ones.

    Args:
        moments: second moments of patches [3 * P * P, 3 * P * P], the mean of each patch's outer product with itself.

    Raises:
        ValueError: `z_dim` is not greater than the channels of `vae`.
    """
    old = vae.config.z_dim
    if z_dim <= old:
        raise ValueError(f"The autoencoder has {old} channels already; z_dim must be greater, not {z_dim}.")
    config = {name: vae.config[name] for name in ("patch_size", "width", "blocks")}
    grown = PatchVAE(z_dim=z_dim, **config)
    axes = vae.encoder.weight.flatten(1)
    rest = torch.eye(len(moments)) - axes.T @ axes
    sizes, further = torch.linalg.eigh(rest @ moments @ rest)
    sizes, further = sizes.flip(0)[: z_dim - old], further.flip(1)[:, : z_dim - old]
    kernels = torch.cat([axes, further.T]).reshape(grown.encoder.weight.shape)
    weights = vae.state_dict() | {"encoder.weight": kernels, "to_pixels.weight": kernels}
    weights["encoder.bias"] = torch.cat([weights["encoder.bias"], torch.zeros(z_dim - old)])
    grown.load_state_dict(weights)
    # The old statistics are fourth roots of variances, times this one factor.
    known = torch.tensor(vae.config.latents_std)
    scales = sizes.clamp(min=1e-8) ** 0.25 * known.square().mean() ** 0.25
    grown.register_to_config(
        latents_mean=[*vae.config.latents_mean, *[0.0] * (z_dim - old)], latents_std=[*vae.config.latents_std, *scales.tolist()]
    )
    return grown
