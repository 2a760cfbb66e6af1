"""The theme: light paper, dark ink, one violet, and system fonts, so that nothing is fetched."""

from __future__ import annotations

from typing import Any

import gradio as gr

from duogen.library.export import FOLLOW_STYLE
from ui import STATIC

FONT = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]


def theme() -> gr.themes.Base:
    look = gr.themes.Base(
        primary_hue=gr.themes.colors.violet,
        secondary_hue=gr.themes.colors.violet,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        text_size=gr.themes.sizes.text_md,
        font=FONT,
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return look.set(
        body_background_fill="#fbfaf8",
        body_background_fill_dark="#171519",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#211e25",
        background_fill_secondary="#f4f2ee",
        background_fill_secondary_dark="#1c1a20",
        block_background_fill="#ffffff",
        block_background_fill_dark="#211e25",
        border_color_primary="#e7e3dc",
        border_color_primary_dark="#36313d",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        button_primary_background_fill="#7c3aed",
        button_primary_background_fill_dark="#7c3aed",
        button_primary_background_fill_hover="#6d28d9",
        button_primary_background_fill_hover_dark="#6d28d9",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="*background_fill_secondary",
        button_secondary_background_fill_hover_dark="*background_fill_primary",
        input_background_fill="#f4f2ee",
        input_background_fill_dark="#2a2631",
        body_text_color_subdued="#716a63",
        body_text_color_subdued_dark="#b3aca6",
    )


def launch_style() -> dict[str, Any]:
    """Theme arguments of `launch`. The other styles are in the head of the page, because Gradio scopes `css_paths` to its own container."""
    printed, follow = (STATIC / "print.css").read_text(encoding="utf-8"), FOLLOW_STYLE.read_text(encoding="utf-8")
    return {
        "theme": theme(),
        "css_paths": [STATIC / "style.css", STATIC / "tabs.css", STATIC / "head.css", STATIC / "references.css"],
        "head": f'<style media="print">{printed}</style><style>{follow}</style>',
    }
