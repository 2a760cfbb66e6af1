"""DuoGen: an MLLM that talks and decides when to draw, and a diffusion transformer that paints the next frame (arXiv 2602.00508)."""

from __future__ import annotations

import logging
import os
from typing import Any

from duogen.kernels import hide_xformers
from duogen.lazy_imports import import_lazily

import_lazily()

# A thread that waits for another shall sleep: on a machine that has other work, those that spin make a picture take twenty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # OpenMP reads it when torch is imported
# oneDNN and torch's bridge to it keep 1,024 kernels each, one for every length of every layer's input: 2.5 MB more with each new prompt.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

# Both announce at import what a CPU lacks, in words that would frighten a user; where they matter, opening a pair says so.
for _name in ("xformers", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).setLevel(logging.ERROR)
hide_xformers()  # diffusers imports xformers wherever it finds it, and xformers warns wherever it cannot load


def silence_libraries() -> None:
    """Keep the libraries' own bars and remarks off the terminal; they read these when they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def __getattr__(name: str) -> Any:
    """Classes that model folders name as `["duogen", "PatchVAE"]`; looked up late so that `import duogen` costs nothing."""
    if name == "PatchVAE":
        from duogen.nn.vae import PatchVAE

        return PatchVAE
    if name == "SceneHead":
        from duogen.nn.scene_head import SceneHead

        return SceneHead
    if name == "ChangeHead":
        from duogen.nn.change_head import ChangeHead

        return ChangeHead
    if name == "ModelMixin":  # diffusers asks a component's library for the base class whose loading methods it may call
        from diffusers import ModelMixin

        return ModelMixin
    if name == "DuoGenPipeline":
        from duogen.models.pipeline import DuoGenPipeline

        return DuoGenPipeline
    raise AttributeError(f"module 'duogen' has no attribute {name!r}")
