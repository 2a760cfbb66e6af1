"""Stage 1: the MLLM learns what to say and when to draw (DuoGen, section 4): next-token loss on the assistant's turns, BOV included.

Only the language model's upper layers get LoRA. The lower layers, whose hidden states the connector reads, stay as in the base model. So
MLLM and DiT can be trained at the same time, and a new adapter of the MLLM never changes the DiT's input.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from duogen.models.mllm import embed
from duogen.models.sequence import Packed, Tokens, positions
from duogen.precision import resolve_precision
from duogen.train.curriculum import sample_task, sample_with_drafts
from duogen.train.padding import pad_conversations
from duogen.train.settings import MLLMSettings
from duogen.train.trainer import Recipe, kind_of_device, load_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Qwen2_5_VLForConditionalGeneration

MAX_DIALOGUES = 64  # that a batch is chosen from, fewer where they are long


@dataclass
class TextBatch:
    """Padded conversations: ids [B, L], places [3, B, L], mask and learn boolean [B, L], and all their pictures."""

    ids: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor
    learn: torch.Tensor
    vision: tuple[torch.Tensor, torch.Tensor] | None


def collate(tokens: Tokens, packs: list[Packed]) -> TextBatch:
    """Pad conversations to the longest."""
    ids, places, mask = pad_conversations([(pack.ids, positions(pack)[0]) for pack in packs])
    learn = torch.zeros_like(mask)
    for row, pack in enumerate(packs):
        learn[row, : len(pack.learn)] = torch.tensor(pack.learn)
    images = [slot.image for pack in packs for slot in pack.slots]
    return TextBatch(ids, places, mask, learn, tokens.pixels(images) if images else None)


def adapt_mllm(mllm: Qwen2_5_VLForConditionalGeneration, settings: MLLMSettings, rows: list[int], precision: str = "auto") -> PeftModel:
    """Put a fresh LoRA adapter on the MLLM's upper layers.

    With `train_vision` (the default) the vision tower and the rows of the special tokens are trained too. Without, nothing below the
    adapter is, so that a DiT that is trained at the same time reads the same hidden states.
    """
    sizes: Any = mllm.config.text_config
    layers = range(settings.first_layer, sizes.num_hidden_layers)
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, layers_to_transform=list(layers), layers_pattern="layers",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        exclude_modules=r".*visual.*", trainable_token_indices={"embed_tokens": rows},
    )  # fmt: skip
    if resolve_precision(precision, kind_of_device()) == "bf16":
        mllm.model.language_model.layers.to(torch.bfloat16)  # frozen: autocast would cast them again at every step
    model: Any = get_peft_model(mllm, config)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False  # autocast would undo the cast
    mllm.model.visual.requires_grad_(settings.train_vision)
    for name, parameter in model.named_parameters():
        if "trainable_tokens" in name:
            parameter.requires_grad_(settings.train_vision)
    return model


def load_pair_weights(model: PeftModel, folder: Path) -> None:
    """Load the adapter and the vision tower of a pair's `text_encoder` folder into an adapted MLLM, as the beginning of a training.

    Raises:
        ValueError: the adapter there has another rank or other layers, or a file is missing.
    """
    from peft import set_peft_model_state_dict

    try:
        adapter, vision = (load_file(folder / f"{name}.safetensors") for name in ("adapter_model", "vision"))
        base: Any = model.get_base_model()
        base.model.visual.load_state_dict(vision)
        left = set_peft_model_state_dict(model, adapter)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"The training cannot begin with the weights in {folder}: {' '.join(str(error).split())[:200]}") from error
    own = {name for name, _ in model.named_parameters() if "lora_" in name or "trainable_tokens" in name}
    if own.intersection(left.missing_keys) or left.unexpected_keys:
        raise ValueError(f"The adapter in {folder} has other layers than the recipe asks for.")


class MLLMStage:
    """Trains on dialogues of the sketchbook's tasks; a batch has dialogues of one task, which are of similar length."""

    def __init__(self, recipe: Recipe, mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens) -> None:
        self.recipe, self.tokens, self.settings = recipe, tokens, MLLMSettings.from_json(recipe.settings)
        self.peft = adapt_mllm(mllm, self.settings, [tokens.bov, tokens.eov, tokens.pad], recipe.precision)
        if self.settings.grow_from:
            load_pair_weights(self.peft, Path(self.settings.grow_from) / "text_encoder")
        self.mllm = mllm
        self.modules: dict[str, nn.Module] = {"mllm": self.peft}

    def batch(self, step: int) -> TextBatch:
        rng = random.Random(self.recipe.step_seed(step))
        shares = self.settings.tasks
        task = rng.choices(list(shares), list(shares.values()))[0]
        packs: list[Packed] = []
        while len(packs) < MAX_DIALOGUES and sum(len(pack.ids) for pack in packs) < 2 * self.settings.tokens:
            packs.append(self._pack(task, rng))
        packs.sort(key=lambda pack: len(pack.ids))
        start = rng.randrange(len(packs))  # neighbours by length: little padding
        chosen: list[Packed] = []
        for pack in packs[start:] + packs[:start][::-1]:
            if chosen and (len(chosen) + 1) * max(len(pack.ids), len(chosen[-1].ids)) > self.settings.tokens:
                break
            chosen.append(pack)
        return collate(self.tokens, chosen)

    def _pack(self, task: str, rng: random.Random) -> Packed:
        if not self.settings.drafts:
            return self.tokens.pack(sample_task(task, rng, self.settings))
        dialogue = sample_with_drafts(task, rng, self.settings, self.settings.drafts)
        packed = Packed()
        for index, turn in enumerate(dialogue.turns):
            start = len(packed.ids)
            self.tokens.add_turn(packed, turn)
            if index < dialogue.first:
                packed.learn[start:] = [False] * (len(packed.ids) - start)
            elif index in dialogue.undecided:
                packed.learn[packed.learn.index(True, start)] = False
        return packed

    def predict(self, batch: TextBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of all tokens to learn, row by row, and these tokens."""
        embeds = embed(self.mllm, batch.ids, *(batch.vision or (None, None)))
        if not self.settings.train_vision:
            # Nothing below the adapter is trained, so it needs no backward pass.
            embeds = embeds.detach()
        out = self.mllm.model.language_model(
            inputs_embeds=embeds, position_ids=batch.places, attention_mask=batch.mask.long(), use_cache=False
        )
        learn = batch.learn[:, 1:]  # logits only where the loss needs them: no layer is wider than the vocabulary
        logits = self.mllm.lm_head(out.last_hidden_state[:, :-1][learn]).float()
        return logits, batch.ids[:, 1:][learn]

    def loss(self, batch: TextBatch, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        logits, meant = self.predict(batch)
        loss = F.cross_entropy(logits, meant)
        bov = meant == self.tokens.bov
        figures = {"right": float((logits.argmax(-1) == meant).float().mean())}
        if bov.any():
            figures["bov"] = float((logits[bov].argmax(-1) == self.tokens.bov).float().mean())
        return loss, figures


def load_adapted_mllm(mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, recipe: Recipe, runs: Path) -> tuple[PeftModel, int]:
    """Load vision tower and adapter from `runs` into the MLLM, without merging; returns the model and the steps of stage 1.

    Raises:
        ValueError: the vision stage or stage 1 has not run.
    """
    settings = MLLMSettings.from_json(recipe.settings)
    if not settings.grow_from:
        load_weights(runs / "vision", {"visual": mllm.model.visual}, ema=False)
    peft = adapt_mllm(mllm, settings, [tokens.bov, tokens.eov, tokens.pad], recipe.precision)
    if settings.grow_from:
        load_pair_weights(peft, Path(settings.grow_from) / "text_encoder")
    return peft, load_weights(runs / "mllm", {"mllm": peft})
