"""The scene head: fitted by logistic regression to the MLLM's states before the pictures of the sketchbook's dialogues.

S words, D channels of the states, N pictures.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from duogen.models.sequence import Packed, Tokens, positions
from duogen.nn.scene_head import SceneHead
from duogen.sketchbook.drafts import find_drafted
from duogen.sketchbook.scene import Scene
from duogen.sketchbook.tasks import Dialogue, Line, draw_turns, sample
from duogen.train.states import read_states, truncate_layers

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

SHARES = {"guide": 0.3, "picture": 0.25, "edit": 0.35, "question": 0.1}
REQUESTS = (1, 2, 2, 2, 3)  # dialogues that follow one another in one conversation
DRAFTED = 0.6  # of the conversations end with an answer in drafts, where one can be drawn so
TESTED = 0.1  # of the conversations, which the head is not fitted to
PENALTY = 1e-4
LOSS = 12.0  # what it costs to lose the picture before where it should stay, in times of what it costs to keep it where it should go


def sample_conversation(rng: random.Random) -> Dialogue:
    """Sample dialogues of several tasks, one after the other in one conversation.

    The last answer alone may be drawn in drafts: those of the answers before have left the context.
    """
    lines: list[Line] = []
    for _ in range(rng.choice(REQUESTS)):
        lines += sample(rng.choices(list(SHARES), list(SHARES.values()))[0], rng).lines
    drafted = find_drafted(lines)
    if drafted and rng.random() < DRAFTED:
        last = rng.choice(list(drafted))
        lines[last:] = [drafted[last]]
    return Dialogue("scenes", tuple(lines))


def label_scenes(dialogue: Dialogue) -> list[bool]:
    """For every picture of a dialogue, whether a new scene begins with it: an upload, or the first picture of a guide or a picture."""
    return [
        line.role == "user" or (index == 0 and line.kind in ("guide", "picture"))
        for line in dialogue.lines
        for index, _ in enumerate(part for part in line.parts if isinstance(part, Scene))
    ]


@torch.no_grad()
def read_scene_states(mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, layers: list[int], dialogue: Dialogue) -> torch.Tensor:
    """The state before each picture's BOV, [N, D], of a dialogue with a picture."""
    packed = tokens.pack(draw_turns(dialogue))
    return read_packed_states(mllm, tokens, layers, packed)[[slot.bov - 1 for slot in packed.slots]]


@torch.no_grad()
def read_packed_states(mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, layers: list[int], packed: Packed) -> torch.Tensor:
    """The states of all that stands before the last picture's BOV, [S, D]."""
    read = packed.between(0, packed.slots[-1].bov)
    ids, shown = torch.tensor([read.ids]), [slot.image for slot in read.slots]
    vision = tokens.pixels(shown) if shown else None
    return read_states(mllm, layers, ids, positions(read)[0][:, None], torch.ones_like(ids, dtype=torch.bool), vision)[0]


def fit_scene_head(
    mllm: Qwen2_5_VLForConditionalGeneration, tokens: Tokens, layers: list[int], conversations: int, seed: int
) -> tuple[SceneHead, float]:
    """Fit a head to sampled conversations.

    Returns:
        The head, and the share of pictures that it tells right in the last tenth of the conversations, which it was not fitted to.
    """
    rng, mllm = random.Random(seed), truncate_layers(mllm, max(layers)).eval()
    states, labels, ends = [], [], [0]
    for _ in range(conversations):
        dialogue = sample_conversation(rng)
        states.append(read_scene_states(mllm, tokens, layers, dialogue))
        labels += label_scenes(dialogue)
        ends.append(len(labels))
    seen, known = torch.cat(states), torch.tensor(labels)
    fitted = ends[len(ends) - 1 - max(1, round(TESTED * conversations))]
    head = regress(seen[:fitted], known[:fitted].float())
    with torch.no_grad():
        head.linear.bias.sub_(math.log(LOSS))  # the first draft of an added thing and that of a new picture are words alike
    return head, float(((head(seen[fitted:]) > 0) == known[fitted:]).float().mean())


def regress(states: torch.Tensor, labels: torch.Tensor) -> SceneHead:
    """Logistic regression of `labels` [N] (0 or 1) on states [N, D], with a penalty on large weights of normalised states."""
    mean, spread = states.mean(0), states.std(0) + 1e-3
    normalised = (states - mean) / spread
    head = SceneHead(states.shape[1])
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = F.binary_cross_entropy_with_logits(head(normalised), labels) + PENALTY * head.linear.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        head.linear.weight.div_(spread)
        head.linear.bias.sub_(head.linear.weight @ mean)
    return head.requires_grad_(False)
