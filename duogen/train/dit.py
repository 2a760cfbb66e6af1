"""Stage 2: connector and DiT learn to paint the next frame; the MLLM is frozen (DuoGen, section 4).

Block-causal teacher forcing: the clean frames of a conversation and several noisy copies of each stand in one sequence, so that
one pass of the MLLM serves many targets.

B conversations, F frames, K noisy copies, N tokens per frame, S words, L tokens in all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from torch import nn

from duogen.conversation import Turn
from duogen.models.sequence import Packed, Tokens, positions
from duogen.nn.attention import frame_mask, word_scores
from duogen.nn.flow import add_change, even_sigmas, noisy
from duogen.nn.frames import embed_frames, project_condition, unpatchify, walk
from duogen.nn.vae import PatchVAE
from duogen.train.curriculum import dialogue
from duogen.train.grow import grow_transformer
from duogen.train.padding import padded
from duogen.train.states import KeptStates, Projection, StateStore, name_store, narrow_connector, read_states, sum_check, truncated
from duogen.train.trainer import Recipe
from duogen.train.vae import to_pixels

WORDS = 16  # a batch's length is a multiple of this
READ_AT_ONCE = 32  # dialogues whose states are made for keeping
FITTED_TO = 128  # dialogues of each group that the projection is fitted to
FIT_STEPS = 24  # batches that a last layer is fitted to
RIDGE = 1e-4
MOST_WEIGHT = 2.0  # of a target with little noise, against one of noise alone
MOVED = 1e-4  # squared error, in units of a latent's mean variance, above which a place differs from the frame before


@dataclass
class FrameBatch:
    """Conversations with the same number of pictures, F.

    Attributes:
        ids, places, mask: [B, S], [3, B, S], [B, S] what the MLLM reads.
        vision: patches and grids of all pictures but the last ones, `None` when the MLLM reads words alone.
        pixels: [B, F, 3, H, W].
        words: boolean [B, F, S], which words each frame reads (those before its own BOV); `fewer` is the negative branch's.
        painted: boolean [B, F], frames that are targets (a user's own are context only).
        first: time index of the first frame.
        kept: states that were read before, int8 [B, S, K] and their scales [B, S]; `vision` is left out then.
    """

    ids: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor
    vision: tuple[torch.Tensor, torch.Tensor] | None
    pixels: torch.Tensor
    words: torch.Tensor
    fewer: torch.Tensor
    painted: torch.Tensor
    first: int
    kept: tuple[torch.Tensor, torch.Tensor] | None = None


def collate(
    tokens: Tokens, dialogues: list[list[Turn]], frames: int, first: int, see: bool, kept: list[KeptStates] | None = None
) -> FrameBatch:
    """Pad conversations to one length, keeping the first `frames` pictures of each.

    Args:
        see: whether the MLLM reads the pictures too; without, its ids hold words alone.
        kept: what the MLLM made of each conversation when it read them.

    Raises:
        ValueError: something else was read then.
    """
    packs = [tokens.pack(turns) for turns in dialogues]
    slots = [pack.slots[:frames] for pack in packs]
    reads = [_readable(pack, own, see) for pack, own in zip(packs, slots, strict=True)]
    ids, places, mask = padded([(own, where) for own, where, _ in reads], WORDS)
    words, fewer = (torch.zeros(len(packs), frames, ids.shape[1], dtype=torch.bool) for _ in range(2))
    for row, (_, _, cuts) in enumerate(reads):
        for index, (until, since) in enumerate(cuts):
            words[row, index, :until] = True
            fewer[row, index, : max(since, 1)] = True  # the first token always stays: attention needs one
    pictures = [[slot.image for slot in own] for own in slots]
    seen = [each[:-1] if see else [] for each in pictures]
    for read, images, states in zip(reads, seen, kept or [], strict=False):
        if states.check != sum_check(read[0], images):
            raise ValueError("The kept states are of other dialogues than the recipe makes now; remove their folder in `states`.")
    shown = [image for each in seen for image in each]
    vision = tokens.pixels(shown) if shown and kept is None else None
    pixels = torch.stack([to_pixels([image.picture for image in each]) for each in pictures])
    painted = torch.tensor([[slot.painted for slot in own] for own in slots])
    whole = _pad_states(kept, ids.shape[1]) if kept else None
    return FrameBatch(ids, places, mask, vision, pixels, words, fewer, painted, first, whole)


def _pad_states(kept: list[KeptStates], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    packed = torch.zeros(len(kept), length, kept[0].packed.shape[1], dtype=torch.int8)
    scale = torch.zeros(len(kept), length, dtype=torch.float16)
    for row, each in enumerate(kept):
        packed[row, : len(each.packed)], scale[row, : len(each.scale)] = each.packed, each.scale
    return packed, scale


def _readable(pack: Packed, kept: list[Any], see: bool) -> tuple[list[int], torch.Tensor, list[tuple[int, int]]]:
    """The ids before the last picture kept, which no frame reads, and their positions; per picture (words before its BOV, words before its
    segment).
    """
    cuts = [(slot.bov, pack.last_segment(slot.bov)) for slot in kept]
    part = pack.between(0, kept[-1].bov)
    if see:
        return part.ids, positions(part)[0], cuts
    inside = {index for slot in kept for index in range(slot.bov, slot.end)}
    ids = [token for index, token in enumerate(part.ids) if index not in inside]
    gone = [sum(1 for index in inside if index < cut) for cut, _ in cuts]
    earlier = [sum(1 for index in inside if index < since) for _, since in cuts]
    cuts = [(cut - less, since - fewer) for (cut, since), less, fewer in zip(cuts, gone, earlier, strict=True)]
    return ids, torch.arange(len(ids)).expand(3, -1), cuts


@dataclass
class NoisyFrames:
    """What the DiT is given of a batch, and what it should make of it.

    Attributes:
        packed: [B, given + targets, C, h, w], the clean frames and then the noisy ones.
        order: of each, its time and its number among the copies; 0 for a clean one.
        meant, change: of the targets, the clean latents [B, targets, C, h, w] and how much each place counts [B, targets, h, w].
        sigma: [B, targets].
    """

    packed: torch.Tensor
    order: list[tuple[int, int]]
    meant: torch.Tensor
    change: torch.Tensor
    sigma: torch.Tensor


def new_transformer(settings: dict[str, Any], channels: int, states: int) -> CosmosTransformer3DModel:
    """A small Cosmos DiT for latents of `channels`, of a frame and the one before, reading `states` channels of hidden states.

    Blocks start as identities.
    """
    heads, width = settings["heads"], settings["heads"] * settings["head_dim"]
    model = CosmosTransformer3DModel(
        in_channels=2 * channels + 1, out_channels=channels, num_attention_heads=heads, attention_head_dim=settings["head_dim"],
        num_layers=settings["layers"], mlp_ratio=4.0, text_embed_dim=width, adaln_lora_dim=settings["adaln"], max_size=(64, 32, 32),
        patch_size=(1, 1, 1), rope_scale=(1.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable",
        use_crossattn_projection=True, crossattn_proj_in_channels=states, encoder_hidden_states_channels=width,
    )  # fmt: skip
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm2, block.norm3):
            nn.init.zeros_(norm.linear_2.weight)
    nn.init.zeros_(model.time_embed.t_embedder.linear_2.weight)
    nn.init.zeros_(model.proj_out.weight)
    for table in model.learnable_pos_embed.parameters():
        nn.init.normal_(table, std=0.02)
    return model


class DiTStage:
    """Teacher forcing on the sketchbook; `settings` name the share of every kind of dialogue.

    With `dialogues` in the settings it learns from so many fixed ones, whose states are kept on disk, `states` channels each; without, from
    new ones at every step.
    """

    def __init__(
        self, recipe: Recipe, mllm: nn.Module, tokens: Tokens, vae: PatchVAE, layers: list[int], states: Path | None = None
    ) -> None:
        """`states`: the folder for kept states."""
        self.recipe, self.tokens, self.vae, self.layers = recipe, tokens, vae, layers
        self.settings = recipe.settings or {}
        self.mllm = truncated(mllm, max(layers)).eval().requires_grad_(False)
        vae.requires_grad_(False)
        torch.manual_seed(recipe.seed)
        self.store: StateStore | None = None
        self.projection: Projection | None = None
        width = mllm.config.text_config.hidden_size * len(layers)
        if self.settings.get("dialogues"):
            if states is None:
                raise ValueError("A recipe with `dialogues` needs a folder for their states.")
            self.store = StateStore(states / name_store(self.settings, recipe.seed, self.mllm), self._counts())
            width = self.settings["states"]
        self.transformer = new_transformer(self.settings["model"], vae.config.z_dim, width)
        self.modules = {"transformer": self.transformer}
        self.mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
        # The axes are orthonormal, so this makes the error that of pixels: evenly weighted, the many faint axes drown out the colours.
        self.weight = self.std.square() / self.std.square().mean()

    def batch(self, step: int) -> list[FrameBatch]:
        """One group of single pictures and one of longer conversations."""
        rng = random.Random(self.recipe.step_seed(step))
        groups = []
        for group in self.settings["groups"]:
            choice = rng.randrange(len(group["frames"]))
            frames, kept = group["frames"][choice], None
            if self.store is None:
                turns = [dialogue(rng, group["tasks"], frames, self.settings) for _ in range(_conversations(group, frames))]
            else:
                known = range(choice, self.store.counts[group["name"]], len(group["frames"]))
                numbers = rng.choices(known, k=_conversations(group, frames))
                turns = [self.make_dialogue(group, number) for number in numbers]
                kept = [self.store.get(group["name"], number) for number in numbers]
            first = rng.randrange(8) if rng.random() < 0.2 else 0  # so that later positions in time are known too
            groups.append(collate(self.tokens, turns, frames, first, self.settings["see"], kept))
        return groups

    def make_dialogue(self, group: dict[str, Any], number: int) -> list[Turn]:
        """A group's dialogue of a number, always the same."""
        frames = group["frames"][number % len(group["frames"])]
        rng = random.Random(f"{self.recipe.seed}/{group['name']}/{number}")
        return dialogue(rng, group["tasks"], frames, self.settings)

    def _counts(self) -> dict[str, int]:
        """How many of the fixed dialogues each group has: as a step takes of them."""
        groups = self.settings["groups"]
        shares = [sum(_conversations(group, frames) for frames in group["frames"]) / len(group["frames"]) for group in groups]
        wished = [round(self.settings["dialogues"] * share / sum(shares)) for share in shares]
        return {group["name"]: max(count, len(group["frames"])) for group, count in zip(groups, wished, strict=True)}

    def fill_states(self, say: Callable[[str], None] = print) -> None:
        """Read the fixed dialogues whose states are not kept yet. A run that was stopped goes on where it was."""
        if self.store is None:
            return
        groups = {group["name"]: group for group in self.settings["groups"]}

        def samples() -> Iterator[torch.Tensor]:
            say("Finding the axes of the states ...")
            for group in groups.values():
                yield from (states for states, _ in self._read(group, range(min(FITTED_TO, self.store.counts[group["name"]]))))

        def make(name: str, numbers: range) -> list[KeptStates]:
            read = self._read(groups[name], numbers)
            return [KeptStates(*self.projection.pack(states), check) for states, check in read]

        self.projection = self.store.fill_projection(samples, self.settings["states"])
        self.store.fill(make, say)

    def _read(self, group: dict[str, Any], numbers: range) -> Iterator[tuple[torch.Tensor, int]]:
        """What the MLLM makes of dialogues, in order: [S, D], and the sum of what it read."""
        for start in range(0, len(numbers), READ_AT_ONCE):
            made: dict[int, tuple[torch.Tensor, int]] = {}
            part = numbers[start : start + READ_AT_ONCE]
            for frames in sorted(set(group["frames"])):
                rows = [number for number in part if group["frames"][number % len(group["frames"])] == frames]
                turns = [self.make_dialogue(group, number) for number in rows]
                data = collate(self.tokens, turns, frames, 0, self.settings["see"]) if rows else None
                states = self.states(data) if data else []
                for row, number in enumerate(rows):
                    own = [image for turn in turns[row] for image in turn.images()][: frames - 1] if self.settings["see"] else []
                    made[number] = states[row, data.mask[row]], sum_check(data.ids[row, data.mask[row]].tolist(), own)
            yield from (made[number] for number in part)

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        """Begin with the painter in `folder`, of as many latent channels or fewer, its last layer fitted anew to what is predicted here."""
        old = CosmosTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        channels = self.vae.config.z_dim
        grown = grow_transformer(old, old.config.out_channels, channels) if old.config.out_channels < channels else old
        if self.projection is not None:
            narrow_connector(grown, self.projection)
        self.transformer.load_state_dict(grown.state_dict())
        self._fit_last_layer()

    @torch.no_grad()
    def _fit_last_layer(self) -> None:
        """Closed form, weighted least squares from the last hidden states to what they should say."""
        layer, inputs = self.transformer.proj_out, []
        handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].float()))
        width = layer.in_features
        gram, product = torch.zeros(width, width).double(), torch.zeros(width, layer.out_features).double()
        try:
            for step in range(FIT_STEPS):
                generator = torch.Generator().manual_seed(self.recipe.step_seed(step))
                for group, data in zip(self.settings["groups"], self.batch(step), strict=True):
                    batch = self._add_noise(data, group["copies"], generator, group.get("skip", 0))
                    out = self._walk(batch, data, generator)
                    size = out.shape[-2] * out.shape[-1]
                    hidden = inputs.pop()[:, -out.shape[1] * size :]
                    said = out - layer(hidden).unflatten(1, (-1, size)).transpose(2, 3).unflatten(3, out.shape[-2:])  # what is added to it
                    wanted = (batch.meant - said).flatten(3).transpose(2, 3).flatten(1, 2)
                    weight = (self._weigh(batch, data)[..., None, None] * batch.change).flatten(1)[..., None]
                    gram += torch.einsum("bnc,bnd->cd", hidden * weight, hidden).double()
                    product += torch.einsum("bnc,bnd->cd", hidden * weight, wanted).double()
                    inputs.clear()
        finally:
            handle.remove()
        gram += RIDGE * gram.diagonal().mean() * torch.eye(width)
        layer.weight.copy_(torch.linalg.solve(gram, product).T)

    def loss(self, batch: list[FrameBatch], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        total, figures = torch.zeros(()), {}
        for group, data in zip(self.settings["groups"], batch, strict=True):
            error, weight = self._errors(data, group["copies"], generator, group.get("skip", 0))
            total = total + (error * weight).sum() / weight.sum() * group["weight"]
            figures[f"frames_{group['name']}"] = float(error.detach().mean())
        return total, figures

    def _errors(self, data: FrameBatch, copies: int, generator: torch.Generator, skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error of the predicted clean latents, per conversation and target frame [B, (F - skip) * K], and its weight.

        The first `skip` frames are no targets: another group has enough of them.
        """
        batch = self._add_noise(data, copies, generator, skip)
        out = self._walk(batch, data, generator)
        error = (self.weight * (out - batch.meant).square()).mean(2).mul(batch.change).mean((2, 3))
        return error, self._weigh(batch, data)

    def _weigh(self, batch: NoisyFrames, data: FrameBatch) -> torch.Tensor:
        """How much each target counts [B, targets]."""
        # More would teach to sharpen what is there already, at the cost of what to paint.
        weight = (1 / batch.sigma.square()).clamp(max=MOST_WEIGHT)
        return weight * data.painted[:, [time for time, _ in batch.order[-batch.sigma.shape[1] :]]]

    def _add_noise(self, data: FrameBatch, copies: int, generator: torch.Generator, skip: int) -> NoisyFrames:
        count, frames = data.pixels.shape[:2]
        latents = self.encode(data.pixels)
        targets = [(time, index + 1) for time in range(skip, frames) for index in range(copies)]
        sigma = even_sigmas(count * len(targets), self.settings["training_shift"], generator).view(count, -1)
        noise = torch.randn(count, len(targets), *latents.shape[2:], generator=generator)
        meant = latents[:, [time for time, _ in targets]]
        given = [(time, 0) for time in range(frames - 1)]  # nobody looks at the clean last frame
        # At run time earlier frames are the painter's own, not perfect: a little noise on them here.
        changes = self.settings.get("predicts") == "change"
        blur = torch.rand(count, 1 if changes else len(given), 1, 1, 1, generator=generator) * self.settings["context_noise"]
        blur = blur * torch.randn(count, blur.shape[1], *latents.shape[2:], generator=generator)
        if changes:  # what is wrong with a frame is wrong with the next one too: it says only what differs
            meant = meant + blur * torch.tensor([float(time > 0) for time, _ in targets]).view(1, -1, 1, 1, 1)
        packed = torch.cat([latents[:, : len(given)] + blur, noisy(meant, noise, sigma[..., None, None, None])], 1)
        change = torch.stack([self._changed(latents, time) for time, _ in targets], 1)
        return NoisyFrames(packed, given + targets, meant, change, sigma)

    def _changed(self, latents: torch.Tensor, time: int) -> torch.Tensor:
        """How much each place of a frame counts [B, h, w]: what is new in it, the more the smaller, else a nose drowns in the sky."""
        if time == 0:
            return torch.ones_like(latents[:, 0, 0])
        moved = (self.weight * (latents[:, time] - latents[:, time - 1]).square()).mean(1) > MOVED
        share = moved.float().mean((1, 2), keepdim=True).clamp(min=1 / 32)
        return 1 + self.settings.get("focus", 0.0) * moved / share

    def _walk(self, batch: NoisyFrames, data: FrameBatch, generator: torch.Generator) -> torch.Tensor:
        """The predicted targets, clean, [B, targets, C, h, w]."""
        packed, order, sigma = batch.packed, batch.order, batch.sigma
        given = len(order) - sigma.shape[1]
        times = [data.first + time for time, _ in order]
        before = [packed[:, time - 1] if time else None for time, _ in order]  # the clean frames come first, in order
        frames = embed_frames(self.transformer, list(packed.unbind(1)), times, [index < given for index in range(len(order))], before)
        size = frames.lengths[0]
        sees = frame_mask(order, order)
        reads = data.words[:, [time for time, _ in order]]
        dropped = torch.rand(reads.shape[:2], generator=generator) < self.settings["dropout"]
        dropped[:, :given] = False
        fewer = data.fewer[:, [time for time, _ in order]]
        reads = torch.where(dropped[..., None], fewer, reads)
        scores = word_scores(reads, reads & ~fewer, self.settings["fresh_bias"]).repeat_interleave(size, 1)[:, None]
        timesteps = torch.cat([torch.zeros(len(packed), given), sigma], 1) * self.settings["timestep_scale"]
        out, _ = walk(self.transformer, frames, timesteps, project_condition(self.transformer, self.states(data)), scores, sees)
        targets = out[:, given * size :].float().unflatten(1, (-1, size))
        made = [unpatchify(self.transformer, each, frames.sizes[0]) for each in targets.unbind(1)]
        predicts = self.settings.get("predicts", "sample")
        return torch.stack([add_change(each, old, predicts) for each, old in zip(made, before[given:], strict=True)], 1)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, F, 3, H, W] -> normalised latents [B, F, C, h, w]."""
        latents = self.vae.encode(pixels.transpose(1, 2)).latent_dist.mode().float().transpose(1, 2)
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def states(self, data: FrameBatch) -> torch.Tensor:
        """[B, S, D] as the connector reads them, float32; of kept states [B, S, K]."""
        if data.kept is not None:
            return self.projection.unpack(*data.kept)
        return read_states(self.mllm, self.layers, data.ids, data.places, data.mask, data.vision)


def _conversations(group: dict[str, Any], frames: int) -> int:
    """Of a batch of a group's."""
    return max(1, group["targets"] // ((frames - group.get("skip", 0)) * group["copies"]))

