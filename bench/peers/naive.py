"""The same work as a script's author does it with the libraries alone.

For every piece of text: `generate` over the whole conversation, all its pictures prepared and read again. For every picture: the pipeline
with its prompt and all earlier pictures. No state stays between two calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image as PILImage
from transformers import LogitsProcessor, LogitsProcessorList

from bench.peers.script import Exchange, Segment
from duogen.conversation import Image, Text, Turn
from duogen.models.placeholders import SYSTEM
from duogen.models.sequence import Packed, Tokens


@dataclass(frozen=True)
class Wish:
    """A picture that is due: the conversation before it, its prompt, the pictures before it, its seed and its guidance."""

    packed: Packed
    prompt: str
    pictures: list[PILImage.Image]
    seed: int
    guidance: float = 1.0


class Follow(LogitsProcessor):
    """Lets `generate` say the given tokens, whatever the model would like to say."""

    def __init__(self, said: list[int], start: int) -> None:
        self.said, self.start = said, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.said[input_ids.shape[1] - self.start]] = 0
        return forced


def model_inputs(tokens: Tokens, packed: Packed) -> dict[str, torch.Tensor]:
    """A whole conversation as a Qwen-VL takes it."""
    ids = torch.tensor([packed.ids])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if packed.slots:
        pixels, grids = tokens.pixels([slot.image for slot in packed.slots])
        given |= {"pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": (ids == tokens.pad).int()}
    return given


@dataclass
class Script:
    """A conversation by the libraries alone.

    Attributes:
        paint: the pipeline's call.
        system: what an untuned MLLM is told first.
        said: the conversation so far. `pictures`: what was painted.
    """

    model: Any
    tokens: Tokens
    paint: Callable[[Wish], PILImage.Image]
    system: str = SYSTEM
    said: Packed = field(default_factory=Packed)
    pictures: list[PILImage.Image] = field(default_factory=list)

    def run(self, exchanges: tuple[Exchange, ...], seed: int) -> None:
        """Answer every question."""
        tokens = self.tokens
        if not tokens.tuned:
            self.said.add([*tokens.opening("system"), *tokens.text(self.system), *tokens.closing()], False)
        for exchange in exchanges:
            rng = random.Random(seed)  # the seeds of the pictures, as the engine draws them
            tokens.add_turn(self.said, Turn("user", (Text(exchange.question),)))
            self.said.add(tokens.opening("assistant"), False)
            for segment in exchange.answer:
                self._say(segment)
                if segment.picture:
                    self._draw(segment, rng.randrange(2**31))
            self.said.add(tokens.closing(), False)

    @torch.no_grad()
    def _say(self, segment: Segment) -> None:
        ids = segment.ids(self.tokens)
        count, start = len(ids), len(self.said.ids)
        follow = LogitsProcessorList([Follow(ids, start)])
        made = self.model.generate(
            **model_inputs(self.tokens, self.said), max_new_tokens=count, min_new_tokens=count, do_sample=False, logits_processor=follow
        )
        found = made[0, start:].tolist()
        # BOV and the end of the turn are written with what follows them.
        self.said.add(found if segment.picture and not self.tokens.tuned else found[:-1], True)

    def _draw(self, segment: Segment, seed: int) -> None:
        picture = self.paint(Wish(self.said, segment.picture, list(self.pictures), seed))
        self.pictures.append(picture)
        self.tokens.add_image(self.said, Image(picture, alt=segment.picture), True)


@torch.no_grad()
def read_states(model: Any, tokens: Tokens, packed: Packed) -> torch.Tensor:
    """The whole conversation's hidden states, normalised as `Cosmos2_5_PredictBasePipeline._get_prompt_embeds` does."""
    states = model(**model_inputs(tokens, packed), output_hidden_states=True).hidden_states[1:]
    return torch.cat([(each - each.mean(-1, keepdim=True)) / (each.std(-1, keepdim=True) + 1e-8) for each in states], -1)


Prepared = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def prepare_video(pipe: Any, wish: Wish, size: tuple[int, int]) -> Prepared:
    """Noise, given latents, their mask and indicator, by the pipeline's own `prepare_latents`.

    The earlier pictures are a video's beginning. A latent stands for one video frame and each further one for four, so the later pictures
    are repeated; the rest is filled up with the last one, as in `__call__`.
    """
    width, height = size
    count, generator = len(wish.pictures), torch.Generator().manual_seed(wish.seed)
    frames = [each for index, each in enumerate(wish.pictures) for _ in range(4 if index else 1)] + wish.pictures[-1:] * 4
    video = pipe.video_processor.preprocess_video(frames, height, width) if frames else None
    return pipe.prepare_latents(
        video, 1, pipe.vae.config.z_dim, height, width, num_frames_in=max(0, 4 * count - 3), num_frames_out=1 + 4 * count,
        do_classifier_free_guidance=False, dtype=torch.float32, device="cpu", generator=generator,
    )  # fmt: skip


@torch.no_grad()
def prepare_pictures(pipe: Any, wish: Wish, size: tuple[int, int]) -> Prepared:
    """What `prepare_video` returns, with the least work: every earlier picture is one latent, encoded by itself."""
    width, height = size
    frames = [pipe.video_processor.preprocess(each, height, width)[:, :, None] for each in wish.pictures]
    known = [(pipe.vae.encode(each).latent_dist.mode() - pipe.latents_mean) * pipe.latents_std for each in frames]
    ratio = pipe.vae_scale_factor_spatial
    noise = torch.randn((1, pipe.vae.config.z_dim, 1, height // ratio, width // ratio), generator=torch.Generator().manual_seed(wish.seed))
    given = torch.cat([*known, torch.zeros_like(noise)], 2)
    latents = torch.cat([*(torch.zeros_like(each) for each in known), noise], 2)
    indicator, mask = pipe.create_condition_mask(given.shape, "cpu", torch.float32, len(known))
    return latents, given, mask, indicator


@torch.no_grad()
def paint_frame(pipe: Any, embeds: torch.Tensor, prepared: Prepared, steps: int, whole: bool) -> PILImage.Image:
    """The next frame, by the components of a `Cosmos2_5_PredictBasePipeline` as its `__call__` drives them from its denoising loop on.

    The call itself refuses more than two given latents.

    Args:
        whole: decode all frames, as the call does; else the new one alone.
    """
    latents, given, mask, indicator = prepared
    pipe.scheduler.set_timesteps(steps)
    truth = (latents - given) * mask
    for index, timestep in enumerate(pipe.scheduler.timesteps):
        sigma = pipe.scheduler.sigmas[index].float()
        out = pipe.transformer(
            hidden_states=mask * given + (1 - mask) * latents, condition_mask=mask, timestep=indicator * 0.0001 + (1 - indicator) * sigma,
            encoder_hidden_states=embeds, return_dict=False,
        )[0]  # fmt: skip
        latents = pipe.scheduler.step(truth + out * (1 - mask), timestep, latents, return_dict=False)[0]
    made = latents if whole else latents[:, :, -1:]
    pixels = pipe.vae.decode(made / pipe.latents_std + pipe.latents_mean, return_dict=False)[0]
    return pipe.video_processor.postprocess_video(pixels, output_type="pil")[0][-1]
