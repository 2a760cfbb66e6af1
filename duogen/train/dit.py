"""Stage 2: connector and DiT learn to paint the next frame; the MLLM is frozen (DuoGen, section 4).

Block-causal teacher forcing: one sequence holds the clean frames of a conversation and several noisy copies of each, so that one pass of
the MLLM serves many targets.

B conversations, F frames, K noisy copies, N tokens per frame, S words, L tokens in all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel
from torch import nn

from duogen.conversation import Turn
from duogen.models.sequence import Packed, Slot, Tokens, positions
from duogen.nn.attention import KeyValue, frame_mask, word_scores
from duogen.nn.flow import add_noise
from duogen.nn.frames import embed_frames, forward_frames, project_condition, unpatchify
from duogen.nn.vae import PatchVAE, pixel_weights
from duogen.painters.masks import to_pixels
from duogen.train.curriculum import sample_dialogue
from duogen.train.grow import grow_transformer
from duogen.train.objective import FlowObjective, Prediction
from duogen.train.padding import pad_conversations
from duogen.train.settings import DiTModel, DiTSettings, TaskGroup
from duogen.train.states import KeptStates, Projection, StateStore, checksum, name_store, narrow_connector, read_states, truncate_layers
from duogen.train.trainer import Recipe

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

WORDS = 16  # a batch's length is a multiple of this
READ_AT_ONCE = 32  # dialogues whose states are computed together for the store
FITTED_TO = 128  # dialogues of each group that the projection is fitted to
FIT_STEPS, GATE_STEPS = 24, 300  # batches that a copy gate is fitted to, and steps of that fit


@dataclass
class FrameBatch:
    """Conversations with the same number of pictures, F.

    Attributes:
        ids, places, mask: [B, S], [3, B, S], [B, S], the MLLM's input.
        vision: patches and grids of all pictures but the last ones, `None` when the MLLM reads words alone.
        pixels: [B, F, 3, H, W].
        words: boolean [B, F, S], the words that each frame reads (those before its own BOV); `fewer` is the same for the negative branch.
        painted: boolean [B, F], frames that are targets (a user's own are context only).
        first: time index of the first frame.
        kept: states from the store, int8 [B, S, K], and their scales [B, S]; `vision` is `None` then.
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
        see: whether the MLLM reads the pictures too; else its ids hold words alone.
        kept: the stored states of each conversation.

    Raises:
        ValueError: the stored states are of other conversations.
    """
    packs = [tokens.pack(turns) for turns in dialogues]
    slots = [pack.slots[:frames] for pack in packs]
    reads = [_read_words(pack, own, see) for pack, own in zip(packs, slots, strict=True)]
    ids, places, mask = pad_conversations([(own, where) for own, where, _ in reads], WORDS)
    words, fewer = (torch.zeros(len(packs), frames, ids.shape[1], dtype=torch.bool) for _ in range(2))
    for row, (_, _, cuts) in enumerate(reads):
        for index, (until, since) in enumerate(cuts):
            words[row, index, :until] = True
            fewer[row, index, : max(since, 1)] = True  # the first token always stays: attention needs one
    pictures = [[slot.image for slot in own] for own in slots]
    seen = [each[:-1] if see else [] for each in pictures]
    for read, images, states in zip(reads, seen, kept or [], strict=False):
        if states.check != checksum(read[0], images):
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


def _read_words(pack: Packed, kept: list[Slot], see: bool) -> tuple[list[int], torch.Tensor, list[tuple[int, int]]]:
    """The ids before the last picture kept, which no frame reads; their positions; for each picture (words before its BOV, words before
    its segment).
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
    """The DiT's input from a batch, and what it should predict.

    Attributes:
        packed: [B, given + targets, C, h, w], the clean frames and then the noisy ones.
        order: (time, number of the copy) of each frame; the number is 0 for a clean one.
        meant, noise: of the targets, the clean latents and the noise, [B, targets, C, h, w].
        moved: boolean [B, targets, h, w], the places that differ from the frame before; all of a first frame.
        sigma: [B, targets].
    """

    packed: torch.Tensor
    order: list[tuple[int, int]]
    meant: torch.Tensor
    noise: torch.Tensor
    moved: torch.Tensor
    sigma: torch.Tensor

    def times(self) -> list[int]:
        """The time of each target."""
        return [time for time, _ in self.order[-self.sigma.shape[1] :]]


@dataclass(frozen=True)
class TargetRunner:
    """Runs a DiT over the clean and the noisy frames of a batch at once, as stage 2 teaches it.

    `timestep_scale` and `fresh_bias` are those of the pair's `About`.
    """

    timestep_scale: float
    fresh_bias: float

    def run(
        self, transformer: CosmosTransformer3DModel, batch: NoisyFrames, condition: list[KeyValue], scores: torch.Tensor, first: int = 0
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """The output for each target, [B, C (+ 2), h, w] float32, and the clean frame before it, `None` for a first frame.

        Args:
            condition: what `project_condition` returned for the words of the batch.
            scores: [B, frames, S], what `word_scores` gives for each frame of `batch.order`.
            first: time index of the first frame.
        """
        packed, order, sigma = batch.packed, batch.order, batch.sigma
        given = len(order) - sigma.shape[1]
        before = [packed[:, time - 1] if time else None for time, _ in order]  # the clean frames come first, in order
        times, clean = [first + time for time, _ in order], [index < given for index in range(len(order))]
        frames = embed_frames(transformer, list(packed.unbind(1)), times, clean, before)
        size = frames.lengths[0]
        timesteps = torch.cat([torch.zeros(len(packed), given), sigma], 1) * self.timestep_scale
        read = scores.repeat_interleave(size, 1)[:, None]
        out, _ = forward_frames(transformer, frames, timesteps, condition, read, frame_mask(order, order))
        outputs = out[:, given * size :].float().unflatten(1, (-1, size)).unbind(1)
        return [(unpatchify(transformer, each, frames.sizes[0]), old) for each, old in zip(outputs, before[given:], strict=True)]


def new_transformer(settings: DiTModel, channels: int, states: int) -> CosmosTransformer3DModel:
    """Make a small Cosmos DiT. Its input is the latents of a frame and of the one before, `channels` each, and `states` channels of hidden
    states. Its blocks start as identities. With `gate` in the settings its output has two more channels, the copy gate.
    """
    heads, width = settings.heads, settings.heads * settings.head_dim
    model = CosmosTransformer3DModel(
        in_channels=2 * channels + 1, out_channels=channels + 2 * settings.gate,
        num_attention_heads=heads, attention_head_dim=settings.head_dim,
        num_layers=settings.layers, mlp_ratio=4.0, text_embed_dim=width, adaln_lora_dim=settings.adaln, max_size=(64, 32, 32),
        patch_size=(1, 1, 1), rope_scale=(1.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable",
        use_crossattn_projection=True, crossattn_proj_in_channels=states, encoder_hidden_states_channels=width,
    )  # fmt: skip
    blocks: Any = model.transformer_blocks
    for block in blocks:
        for norm in (block.norm1, block.norm2, block.norm3):
            nn.init.zeros_(norm.linear_2.weight)
    nn.init.zeros_(model.time_embed.t_embedder.linear_2.weight)
    nn.init.zeros_(model.proj_out.weight)
    assert model.learnable_pos_embed is not None
    for table in model.learnable_pos_embed.parameters():
        nn.init.normal_(table, std=0.02)
    return model


class DiTStage:
    """Teacher forcing on the sketchbook; `settings` name the share of every kind of dialogue.

    With `dialogues` in the settings it trains on that many fixed dialogues, whose states are kept on disk, `states` channels each; without,
    it trains on new dialogues at every step.
    """

    def __init__(
        self, recipe: Recipe, mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, vae: PatchVAE, layers: list[int],
        states: Path | None = None,
    ) -> None:  # fmt: skip
        """`states`: the folder of the store."""
        self.recipe, self.tokens, self.vae, self.layers = recipe, tokens, vae, layers
        self.settings = DiTSettings.from_json(recipe.settings)
        self.mllm = truncate_layers(mllm, max(layers)).eval().requires_grad_(False)
        vae.requires_grad_(False)
        torch.manual_seed(recipe.seed)
        self.store: StateStore | None = None
        self.projection: Projection | None = None
        sizes: Any = mllm.config.text_config
        width = sizes.hidden_size * len(layers)
        if self.settings.dialogues:
            if states is None:
                raise ValueError("A recipe with `dialogues` needs a folder for their states.")
            self.store = StateStore(states / name_store(recipe.settings or {}, recipe.seed, self.mllm), self._counts())
            width = self.settings.states
        self.transformer = new_transformer(self.settings.model, vae.config.z_dim, width)
        self.modules: dict[str, nn.Module] = {"transformer": self.transformer}
        self.mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        self.std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)
        self.objective = FlowObjective(
            pixel_weights(vae.config.latents_std), shift=self.settings.training_shift, focus=self.settings.focus,
            has_gate=self.settings.model.gate,
        )  # fmt: skip

    def batch(self, step: int) -> list[FrameBatch]:
        """A batch for each group of the settings, such as single pictures and longer conversations."""
        rng = random.Random(self.recipe.step_seed(step))
        groups = []
        for group in self.settings.groups:
            choice = rng.randrange(len(group.frames))
            frames, kept = group.frames[choice], None
            if self.store is None:
                turns = [sample_dialogue(rng, group.tasks, frames, self.settings) for _ in range(_count_conversations(group, frames))]
            else:
                known = range(choice, self.store.counts[group.name], len(group.frames))
                numbers = rng.choices(known, k=_count_conversations(group, frames))
                turns = [self.make_dialogue(group, number) for number in numbers]
                kept = [self.store.get(group.name, number) for number in numbers]
            first = rng.randrange(8) if rng.random() < 0.2 else 0  # so that later positions in time are trained too
            groups.append(collate(self.tokens, turns, frames, first, self.settings.see, kept))
        return groups

    def make_dialogue(self, group: TaskGroup, number: int) -> list[Turn]:
        """Make a group's dialogue number `number`; the same number always gives the same dialogue."""
        frames = group.frames[number % len(group.frames)]
        rng = random.Random(f"{self.recipe.seed}/{group.name}/{number}")
        return sample_dialogue(rng, group.tasks, frames, self.settings)

    def _counts(self) -> dict[str, int]:
        """How many of the fixed dialogues each group has, in the proportion in which a step draws from the groups."""
        groups = self.settings.groups
        shares = [sum(_count_conversations(group, frames) for frames in group.frames) / len(group.frames) for group in groups]
        counts = [round(self.settings.dialogues * share / sum(shares)) for share in shares]
        return {group.name: max(count, len(group.frames)) for group, count in zip(groups, counts, strict=True)}

    def fill_states(self, log: Callable[[str], None] = print) -> None:
        """Compute the states of the fixed dialogues that are not in the store yet. After a stop the same call goes on."""
        store = self.store
        if store is None:
            return
        groups = {group.name: group for group in self.settings.groups}

        def samples() -> Iterator[torch.Tensor]:
            log("Finding the axes of the states ...")
            for group in groups.values():
                yield from (states for states, _ in self._read(group, range(min(FITTED_TO, store.counts[group.name]))))

        projection = self.projection = store.fill_projection(samples, self.settings.states)

        def make(name: str, numbers: range) -> list[KeptStates]:
            read = self._read(groups[name], numbers)
            return [KeptStates(*projection.pack(states), check) for states, check in read]

        store.fill(make, log)

    def _read(self, group: TaskGroup, numbers: range) -> Iterator[tuple[torch.Tensor, int]]:
        """The MLLM's states of dialogues, in order: [S, D], and the checksum of what it read."""
        for start in range(0, len(numbers), READ_AT_ONCE):
            made: dict[int, tuple[torch.Tensor, int]] = {}
            part = numbers[start : start + READ_AT_ONCE]
            for frames in sorted(set(group.frames)):
                rows = [number for number in part if group.frames[number % len(group.frames)] == frames]
                if not rows:
                    continue
                turns = [self.make_dialogue(group, number) for number in rows]
                data = collate(self.tokens, turns, frames, 0, self.settings.see)
                states = self.states(data)
                for row, number in enumerate(rows):
                    own = [image for turn in turns[row] for image in turn.images()][: frames - 1] if self.settings.see else []
                    made[number] = states[row, data.mask[row]], checksum(data.ids[row, data.mask[row]].tolist(), own)
            yield from (made[number] for number in part)

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        """Begin with the weights of the painter in `folder`, which may have fewer latent channels. A copy gate is fitted to it."""
        old = CosmosTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        channels, known = self.vae.config.z_dim, (_config(old).in_channels - 1) // 2
        grown = grow_transformer(old, known, channels) if known < channels else old
        if self.projection is not None:
            narrow_connector(grown, self.projection)
        weights = grown.state_dict()
        gate_is_new = self.objective.has_gate and _config(grown).out_channels == channels
        if gate_is_new:
            weights["proj_out.weight"] = torch.cat([weights["proj_out.weight"], torch.zeros(2, grown.proj_out.in_features)])
        self.transformer.load_state_dict(weights)
        if gate_is_new:
            self.transformer.proj_out.weight[-2:] = self._fit_gate()

    def _fit_gate(self) -> torch.Tensor:
        """The copy gate's weights [2, width] by logistic regression: which places differ from the frame before."""
        hidden, distance, moved = (torch.cat(each) for each in zip(*self._gate_examples(), strict=True))
        weights = torch.zeros(2, hidden.shape[1], requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.01)
        with torch.enable_grad():
            for _ in range(GATE_STEPS):
                base, slope = (hidden @ weights.T).unbind(1)
                F.binary_cross_entropy_with_logits(base + (1 + slope) * distance, moved.float()).backward()
                optimizer.step()
                optimizer.zero_grad()
        return weights.detach()

    def _gate_examples(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Last hidden states [N, width], logits of a gate of zeros [N], which are the distance from the frame before, and labels [N]."""
        inputs: list[torch.Tensor] = []
        handle = self.transformer.proj_out.register_forward_pre_hook(lambda _, given: inputs.append(given[0].float()))
        try:
            for step in range(FIT_STEPS):
                generator = torch.Generator().manual_seed(self.recipe.step_seed(step))
                for group, data in zip(self.settings.groups, self.batch(step), strict=True):
                    batch = self._add_noise(data, group.copies, generator, group.skip)
                    predictions, places = self._predict(batch, data, generator), batch.moved.shape[-2] * batch.moved.shape[-1]
                    hidden = inputs.pop()[:, -len(predictions) * places :].unflatten(1, (-1, places))
                    for index, each in enumerate(predictions):
                        if each.logit is not None:
                            yield hidden[:, index].flatten(0, 1), each.logit.flatten(), batch.moved[:, index].flatten()
        finally:
            handle.remove()

    def loss(self, batch: list[FrameBatch], generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        total, figures = torch.zeros(()), {}
        for group, data in zip(self.settings.groups, batch, strict=True):
            error, weight = self._errors(data, group.copies, generator, group.skip)
            total = total + (error * weight).sum() / weight.sum() * group.weight
            figures[f"frames_{group.name}"] = float(error.detach().mean())
        return total, figures

    def _errors(self, data: FrameBatch, copies: int, generator: torch.Generator, skip: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared error of the predicted clean latents, per conversation and target frame [B, (F - skip) * K], and its weight.

        The first `skip` frames are no targets: another group has enough of them.
        """
        batch = self._add_noise(data, copies, generator, skip)
        predictions, times = self._predict(batch, data, generator), batch.times()
        errors = [
            self.objective.compute_error(each, batch.meant[:, index], batch.noise[:, index], batch.moved[:, index], time == 0)
            for index, (each, time) in enumerate(zip(predictions, times, strict=True))
        ]
        return torch.stack(errors, 1), self.objective.weigh_targets(batch.sigma) * data.painted[:, times]

    def _add_noise(self, data: FrameBatch, copies: int, generator: torch.Generator, skip: int) -> NoisyFrames:
        count, frames = data.pixels.shape[:2]
        latents = self.encode(data.pixels)
        targets = [(time, index + 1) for time in range(skip, frames) for index in range(copies)]
        sigma = self.objective.draw_sigmas(count * len(targets), generator).view(count, -1)
        noise = torch.randn(count, len(targets), *latents.shape[2:], generator=generator)
        meant = latents[:, [time for time, _ in targets]]
        given = [(time, 0) for time in range(frames - 1)]  # no frame attends to the clean last frame
        # When the pair paints, earlier frames are its own and not perfect: they get a little noise here.
        blur = torch.rand(count, len(given), 1, 1, 1, generator=generator) * self.settings.context_noise
        clean = latents[:, : len(given)] + blur * torch.randn(count, len(given), *latents.shape[2:], generator=generator)
        previous = [latents[:, time - 1] if time else None for time, _ in targets]
        shown = [clean[:, time - 1] if time else None for time, _ in targets]
        moved = [self.objective.find_moved(meant[:, index], old) for index, old in enumerate(previous)]
        meant = torch.stack([self.objective.choose_target(meant[:, i], old, moved[i]) for i, old in enumerate(shown)], 1)
        packed = torch.cat([clean, add_noise(meant, noise, sigma[..., None, None, None])], 1)
        return NoisyFrames(packed, given + targets, meant, noise, torch.stack(moved, 1), sigma)

    def _predict(self, batch: NoisyFrames, data: FrameBatch, generator: torch.Generator) -> list[Prediction]:
        """What the DiT makes of each target."""
        given = len(batch.order) - batch.sigma.shape[1]
        reads, fewer = (each[:, [time for time, _ in batch.order]] for each in (data.words, data.fewer))
        dropped = torch.rand(reads.shape[:2], generator=generator) < self.settings.dropout
        dropped[:, :given] = False
        reads = torch.where(dropped[..., None], fewer, reads)
        runner = TargetRunner(self.settings.timestep_scale, self.settings.fresh_bias)
        condition = project_condition(self.transformer, self.states(data))
        outputs = runner.run(self.transformer, batch, condition, word_scores(reads, reads & ~fewer, runner.fresh_bias), data.first)
        return [self.objective.read_output(out, before, batch.packed.shape[2]) for out, before in outputs]

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, F, 3, H, W] -> normalised latents [B, F, C, h, w]."""
        latents = self.vae.encode(pixels.transpose(1, 2)).latent_dist.mode().float().transpose(1, 2)
        return (latents - self.mean) / self.std

    @torch.no_grad()
    def states(self, data: FrameBatch) -> torch.Tensor:
        """[B, S, D] as the connector reads them, float32; of kept states [B, S, K]."""
        if data.kept is not None:
            assert self.projection is not None, "the states of a batch are stored, and their projection is not loaded"
            return self.projection.unpack(*data.kept)
        return read_states(self.mllm, self.layers, data.ids, data.places, data.mask, data.vision)


def _config(model: CosmosTransformer3DModel) -> Any:
    """A model's configuration, which diffusers types as a dict though it is read by attribute."""
    return model.config


def _count_conversations(group: TaskGroup, frames: int) -> int:
    """How many conversations a group's batch has."""
    return max(1, group.targets // ((frames - group.skip) * group.copies))
