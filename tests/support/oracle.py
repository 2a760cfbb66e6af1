"""The slow, plain way of one answer, which the engine must equal: no cache, no batch, everything from the beginning at every token.

Where they can, the models' own `forward`s do the work; nothing here calls `duogen.nn`, `duogen.painters.cosmos` or `duogen.engine`.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import CosmosTransformer3DModel
from PIL import Image as PILImage

from duogen.conversation import Image, Text, Turn
from duogen.models import mllm
from duogen.models.pipeline import DuoGenPipeline
from duogen.models.sequence import Packed, Tokens
from duogen.options import Options


@dataclass
class Earlier:
    """A picture that is there: its latents [1, C, h, w], how many tokens stand before it, and where the last text segment begins."""

    latents: torch.Tensor
    words: int
    segment: int


def read(pair: DuoGenPipeline, tokens: Tokens, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole sequence through `Qwen2_5_VLForConditionalGeneration`: [1, L, K * C] normalised states, and the last logits."""
    count = pair.text_encoder.config.text_config.num_hidden_layers
    inputs = {"input_ids": torch.tensor([packed.ids])}
    if packed.slots:
        pixels, grids = tokens.pixels([slot.image for slot in packed.slots])
        kinds = torch.tensor([[int(token == tokens.pad) for token in packed.ids]])
        inputs |= {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": kinds}
    with torch.no_grad():
        out = pair.text_encoder(**inputs, output_hidden_states=True, use_cache=False)
    layers = [out.hidden_states[layer] for layer in pair.about.layers or range(1, count + 1)]
    states = [(layer - layer.mean(-1, keepdim=True)) / layer.std(-1, keepdim=True) for layer in layers]
    return torch.cat(states, -1), out.logits[0, -1]


def encode(pair: DuoGenPipeline, picture: PILImage.Image) -> torch.Tensor:
    pixels = torch.tensor(np.array(picture)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.no_grad():
        latents = pair.vae.encode(pixels).latent_dist.mode()[:, :, 0]
    mean, std = (torch.tensor(each)[None, :, None, None] for each in (pair.vae.config.latents_mean, pair.vae.config.latents_std))
    return (latents - mean) / std


def decode(pair: DuoGenPipeline, latents: torch.Tensor) -> np.ndarray:
    mean, std = (torch.tensor(each)[None, :, None, None] for each in (pair.vae.config.latents_mean, pair.vae.config.latents_std))
    with torch.no_grad():
        pixels = pair.vae.decode((latents * std + mean)[:, :, None]).sample[0, :, 0]
    return ((pixels.clamp(-1, 1) + 1) / 2 * 255).permute(1, 2, 0).numpy()


def bidirectional(
    model: CosmosTransformer3DModel, latents: list[torch.Tensor], timesteps: list[float], states: torch.Tensor
) -> torch.Tensor:
    """The last frame's output of the model's own `forward` over all frames: [1, C, h, w]."""
    frames = torch.stack(latents, 2)
    mask = torch.zeros_like(frames[:, :1])
    mask[:, :, :-1] = 1
    if model.config.concat_padding_mask:
        # `forward` would resize a padding mask with torchvision, which may not be there: hand it in, empty, as a second mask channel.
        model = copy.deepcopy(model)
        model.register_to_config(concat_padding_mask=False)
        mask = torch.cat([mask, torch.zeros_like(mask)], 1)
    if model.config.in_channels > 2 * frames.shape[1]:
        mask = torch.cat([mask, before_each(frames)], 1)
    with torch.no_grad():
        times = torch.tensor(timesteps).view(1, 1, -1, 1, 1)
        return model(frames, times, states, condition_mask=mask, return_dict=False)[0][:, :, -1]


def before_each(frames: torch.Tensor) -> torch.Tensor:
    """The frame before every frame, nothing before the first: [1, C, F, h, w]."""
    return torch.cat([torch.zeros_like(frames[:, :, :1]), frames[:, :, :-1]], 2)


def block_causal(
    model: CosmosTransformer3DModel,
    latents: list[torch.Tensor],
    timesteps: list[float],
    states: list[torch.Tensor],
    scores: list[torch.Tensor],
    blind: bool = False,
) -> torch.Tensor:
    """The last frame's output where every frame sees itself and those before it, and reads its own `states`: [1, C, h, w].

    `scores` [S] are added to the cross-attention of each frame; the last one sees itself alone if it is `blind`.

    `CosmosTransformer3DModel.forward`, but the attentions run once for each frame, over what that frame may see.
    """
    frames = torch.stack(latents, 2)
    count, height, width = frames.shape[2:]
    size = height * width  # patch size 1
    mask = torch.zeros_like(frames[:, :1])
    mask[:, :, :-1] = 1
    with torch.no_grad():
        cos, sin = model.rope(frames)
        extra = model.learnable_pos_embed(frames)
        before = before_each(frames)
        if blind:
            before[:, :, -1] = 0
        channels = [frames, mask, before] if model.config.in_channels > 2 * frames.shape[1] else [frames, mask]
        hidden = model.patch_embed(torch.cat(channels, 1)).flatten(1, 3)
        temb, embedded = (each.repeat_interleave(size, 0)[None] for each in model.time_embed(hidden, torch.tensor(timesteps)))
        contexts = [model.crossattn_proj(each) for each in states]
        for block in model.transformer_blocks:
            hidden = hidden + extra
            normed, gate = block.norm1(hidden, embedded, temb)
            seen = []
            for frame in range(count):
                start, until = frame * size if blind and frame == count - 1 else 0, (frame + 1) * size
                seen.append(block.attn1(normed[:, start:until], image_rotary_emb=(cos[start:until], sin[start:until]))[:, -size:])
            hidden = hidden + gate * torch.cat(seen, 1)
            normed, gate = block.norm2(hidden, embedded, temb)
            heard = [
                block.attn2(part, encoder_hidden_states=context, attention_mask=added.expand(1, 1, size, -1))
                for part, context, added in zip(normed.split(size, 1), contexts, scores, strict=True)
            ]  # fmt: skip
            hidden = hidden + gate * torch.cat(heard, 1)
            normed, gate = block.norm3(hidden, embedded, temb)
            hidden = hidden + gate * block.ff(normed)
        out = model.proj_out(model.norm_out(hidden, embedded, temb))[:, -size:]
    return out.transpose(1, 2).unflatten(2, (height, width))


def velocity(
    pair: DuoGenPipeline, earlier: list[Earlier], states: torch.Tensor, cut: tuple[int, int], latents: torch.Tensor, sigma: float,
    blind: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """One branch's velocity, and its copy gate (of no channels without one).

    It reads as many tokens of `states` as `cut` says first; they are new from where it says second.

    The other frames read what was before them; a `blind` branch does not see them.
    """
    words, segment = cut
    frames = [each.latents for each in earlier] + [latents]
    timesteps = [0.0] * len(earlier) + [sigma * pair.about.timestep_scale]
    alone = blind and pair.transformer.learnable_pos_embed is None  # positions are rotary then: only distances count
    if pair.about.frame_attention == "bidirectional" and (alone or not blind):
        shown = slice(-1, None) if blind else slice(None)
        out = bidirectional(pair.transformer, frames[shown], timesteps[shown], states[:, :words])
    else:
        reads = [states[:, : each.words] for each in earlier] + [states[:, :words]]
        scores = [torch.zeros(part.shape[1]) for part in reads]
        for each, start in zip(scores, [*(each.segment for each in earlier), segment], strict=True):
            each[max(start, 1) :] = pair.about.fresh_bias
        out = block_causal(pair.transformer, frames, timesteps, reads, scores, blind)
    out, gate = out[:, : latents.shape[1]], out[:, latents.shape[1] :]
    return (out if pair.about.prediction == "velocity" else (latents - out) / max(sigma, 0.05)), gate


def paint(pair: DuoGenPipeline, earlier: list[Earlier], states: torch.Tensor, segment: int, options: Options, seed: int) -> torch.Tensor:
    """The next picture's latents, one branch after the other, one step after the other."""
    side = pair.about.image_size[0] // pair.vae.spatial_compression_ratio
    latents = torch.randn(1, pair.vae.config.z_dim, side, side, generator=torch.Generator().manual_seed(seed))
    scheduler = type(pair.scheduler).from_config(pair.scheduler.config)
    scheduler.set_timesteps(options.image.steps)
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[index])
        flow, gate = velocity(pair, earlier, states, (states.shape[1], segment), latents, sigma)
        words, pictures = options.image.guidance, options.image.picture_guidance if earlier else 1.0
        if words > 1 or pictures > 1:
            cut = (max(segment, 1), max(segment, 1))
            negative, _ = velocity(pair, earlier, states, cut, latents, sigma)
            flow = negative + words * (flow - negative)
        if pictures > 1:
            nothing, _ = velocity(pair, earlier, states, cut, latents, sigma, blind=True)
            flow = flow + (pictures - 1) * (negative - nothing)
        if earlier and gate.shape[1]:
            stays = find_copies(pair, latents - sigma * flow, gate, earlier[-1].latents)
            flow = (latents - torch.where(stays, earlier[-1].latents, latents - sigma * flow)) / max(sigma, 0.05)
        latents = scheduler.step(flow, timestep, latents, return_dict=False)[0]
    return torch.where(stays, earlier[-1].latents, latents) if earlier and gate.shape[1] else latents


def find_copies(pair: DuoGenPipeline, made: torch.Tensor, gate: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Which places of the frame before the copy gate copies, boolean [1, 1, h, w], place by place."""
    weights = torch.tensor(pair.vae.config.latents_std) ** 2
    weights = weights / weights.mean()
    copies = torch.zeros(1, 1, *made.shape[2:], dtype=torch.bool)
    for row in range(made.shape[2]):
        for column in range(made.shape[3]):
            base, slope = gate[0, :, row, column]
            distance = (weights * (made - before)[0, :, row, column] ** 2).mean()
            copies[0, 0, row, column] = base + (1 + slope) * (torch.log(distance + 1e-4) + 3) < pair.about.copy_below
    return copies


def answer(pair: DuoGenPipeline, path: list[Turn], options: Options) -> list[str | np.ndarray]:
    """The whole answer: words and pictures (0 to 255, not rounded) in turn."""
    tokens = Tokens(pair.tokenizer, pair.image_processor, pair.about.bov)
    packed = tokens.pack(path)
    packed.add(tokens.opening("assistant"), False)
    seeds, generator = random.Random(options.seed), torch.Generator().manual_seed(options.seed)
    earlier = [Earlier(encode(pair, slot.image.picture), slot.bov, packed.last_segment(slot.bov)) for slot in packed.slots]
    parts: list[str | np.ndarray] = []
    words: list[int] = []
    while True:
        states, logits = read(pair, tokens, packed)
        logits[[tokens.start, tokens.eov, tokens.pad]] = float("-inf")
        token = mllm.choose(logits, options.text, generator)
        if token not in (tokens.bov, tokens.end):
            words.append(token)
            packed.add([token], True)
            continue
        if words:
            parts.append(pair.tokenizer.decode(words))
            words = []
        if token == tokens.end:
            return parts
        bov = len(packed.ids)
        latents = paint(pair, earlier, states, packed.last_segment(bov), options, seeds.randrange(2**31))
        pixels = decode(pair, latents)
        if earlier and pair.transformer.config.out_channels > latents.shape[1]:
            lay_back(pixels, np.asarray(packed.slots[-1].image.picture), (latents == earlier[-1].latents)[0].all(0).numpy())
        parts.append(pixels)
        earlier.append(Earlier(latents, bov, packed.last_segment(bov)))
        tokens.add_image(packed, Image(PILImage.fromarray(pixels.round().astype(np.uint8))), True)


def lay_back(pixels: np.ndarray, before: np.ndarray, stays: np.ndarray) -> None:
    """Put the pixels of the picture before, of the same size, where its latents were copied, place by place."""
    side = len(pixels) // len(stays)
    for row, column in np.argwhere(stays):
        place = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        pixels[place] = before[place]


def parts_of(turn: Turn) -> list[str | np.ndarray]:
    """An engine's turn in the same form."""
    return [part.text if isinstance(part, Text) else np.asarray(part.picture).astype(np.float32) for part in turn.parts]
