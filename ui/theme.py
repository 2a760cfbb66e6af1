"""The look: paper and ink, one violet; fonts of the system, so that nothing is fetched."""

from __future__ import annotations

import gradio as gr

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
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="*background_fill_secondary",
        button_secondary_background_fill_hover_dark="*background_fill_primary",
        body_text_color_subdued="#716a63",
        body_text_color_subdued_dark="#b3aca6",
    )
