"""DuoGen: an MLLM that talks and decides when to draw, and a diffusion transformer that paints the next frame (arXiv 2602.00508)."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Classes that model folders name as `["duogen", "PatchVAE"]`; looked up late so that `import duogen` costs nothing."""
    if name == "PatchVAE":
        from duogen.nn.vae import PatchVAE

        return PatchVAE
    if name == "DuoGenPipeline":
        from duogen.pipeline import DuoGenPipeline

        return DuoGenPipeline
    raise AttributeError(f"module 'duogen' has no attribute {name!r}")
