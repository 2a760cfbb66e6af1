"""Whether the next picture begins a new scene: a linear layer over the MLLM's state before BOV.

B conversations, S words, D channels of the states.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

SCENE_HEAD = "scene_head"  # its folder in a pair, and its name in `model_index.json`


class SceneHead(ModelMixin, ConfigMixin):
    """Tells a picture that begins a new scene from one that goes on from the picture before it.

    The MLLM knows that when it writes BOV: the words say whether a new picture was requested or a change. A painter that copies what stays
    from the picture before must know it for the whole picture, and not place by place.
    """

    config: Any  # diffusers types what is read by attribute as a dict

    @register_to_config
    def __init__(self, channels: int = 3456) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States of the last word before each BOV, [..., D], as logits [...]: above 0 where a new scene begins."""
        return self.linear(states.to(self.linear.weight)).squeeze(-1)
