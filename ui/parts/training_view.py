"""A training run as HTML: its progress, its loss curve and its samples."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas

from ui.chat.history import address
from ui.parts.i18n import translate
from ui.parts.shared import status_line, translate_html

NAMES = {"mllm": "What to say", "dit": "How to paint it"}
MOST_POINTS, MOST_COLUMNS = 300, 8
CAPTION_WORDS = {  # what is said when a caption was changed in its tile
    "kept": "Kept.",
    "empty": "A caption needs words; the old ones stay.",
    "gone": "This caption can no longer be changed; look at the folder again.",
    "failed": "The caption could not be written; make room on the disk.",
}


def progress_html(known: dict[str, Any], mood: str) -> str:
    share = known["step"] / known["steps"] if known.get("steps") and mood == "busy" else None
    return status_line(known["words"], mood, share=share)


def figures_html(known: dict[str, Any]) -> str:
    """Loss, validation loss, learning rate, memory."""
    shown = {
        "Loss": f"{known['loss']:.4f}" if "loss" in known else "",
        "On kept-back examples": f"{known['validation']:.4f}" if "validation" in known else "",
        "Learning rate": f"{known['learning_rate']:.2e}" if "learning_rate" in known else "",
        "Memory": f"{known['memory'] / 1024**3:.1f} GB" if "memory" in known else "",
        "On": known.get("device", ""),
    }
    rows = "".join(f"<dt>{translate_html(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in shown.items() if value)
    return f'<dl class="facts">{rows}</dl>'


def loss_points(figures: dict[str, list[dict[str, float]]]) -> pandas.DataFrame:
    """The running mean of the loss, and the validation loss, of both stages."""
    points: list[tuple[float, float, str]] = []
    for stage, entries in figures.items():
        mean, every = None, max(1, len(entries) // MOST_POINTS)
        for number, entry in enumerate(entries):
            if "loss" in entry:
                mean = entry["loss"] if mean is None else 0.9 * mean + 0.1 * entry["loss"]
                if number % every == 0 or number == len(entries) - 1:
                    points.append((entry["step"], mean, translate(NAMES[stage])))
            if "validation" in entry:
                points.append((entry["step"], entry["validation"], translate(f"{NAMES[stage]}, kept back")))
    return pandas.DataFrame(points, columns=["step", "loss", "kind"])


@dataclass(frozen=True)
class TilePicture:
    """A picture of an example as it is trained; by its `key` a browser may choose its part, and `cropped` says that one is chosen."""

    file: str
    key: str
    cropped: bool = False


@dataclass(frozen=True)
class Tile:
    """An example as it is shown: its pictures and its words. With a `key` the words are a caption that can be changed in place."""

    pictures: list[TilePicture]
    words: str
    key: str = ""


def tiles_html(tiles: list[Tile], count: int) -> str:
    """Examples: their pictures with their words below."""
    shown, name = [], translate_html("Caption")
    for tile in tiles:
        images = "".join(_tile_picture_html(picture) for picture in tile.pictures)
        words = html.escape(tile.words)
        below = f'<figcaption title="{words}">{words}</figcaption>'
        if tile.key:
            empty = translate_html("No caption yet")
            below = f'<textarea data-key="{tile.key}" rows="3" dir="auto" aria-label="{name}" placeholder="{empty}">{words}</textarea>'
        shown.append(f'<figure class="tile"><div>{images}</div>{below}</figure>')
    more = f"<p>{translate_html(f'... and {count - len(tiles)} more.')}</p>" if count > len(tiles) else ""
    said = "".join(f' data-{kind}="{html.escape(translate(words))}"' for kind, words in CAPTION_WORDS.items())
    return f'<div class="tiles"{said}>{"".join(shown)}</div>{more}<p class="kept" role="status"></p>'


def _tile_picture_html(picture: TilePicture) -> str:
    name, kind = translate_html("Choose the part of this picture that is trained"), "chosen" * picture.cropped
    image = f'<img src="{address(picture.file)}" alt="">'
    return f'<button type="button" class="{kind}" data-crop="{picture.key}" title="{name}" aria-label="{name}">{image}</button>'


def problems_html(rows: list[list[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{translate_html(str(cell))}</td>" for cell in row) + "</tr>" for row in rows[:200])
    more = f"<p>{translate_html(f'... and {len(rows) - 200} more.')}</p>" if len(rows) > 200 else ""
    head = "".join(f"<th>{translate_html(name)}</th>" for name in ("Where", "What", "What was done"))
    return f'<table class="problems"><tr>{head}</tr>{cells}</table>{more}'


def samples_html(samples: list[dict[str, Any]], serve: Callable[[str], str]) -> str:
    """A row for each prompt, with its samples from left to right. `serve` returns the file of a picture that browsers may fetch."""
    shown = ""
    for stage, name in NAMES.items():
        columns = [each for each in samples if each["stage"] == stage]
        if not columns:
            continue
        if len(columns) > MOST_COLUMNS:  # the first, the last, and some between
            step = (len(columns) - 1) / (MOST_COLUMNS - 1)
            columns = [columns[round(index * step)] for index in range(MOST_COLUMNS)]
        head = "".join(f"<th>{_step_label(each['step'])}</th>" for each in columns)
        rows = ""
        for number in range(len(columns[0]["shown"])):
            prompt = html.escape(columns[0]["shown"][number]["prompt"][:160])
            cells = "".join(f"<td>{_sample_html(each['shown'][number], serve)}</td>" for each in columns if number < len(each["shown"]))
            rows += f'<tr class="asked"><td colspan="{len(columns)}">{prompt}</td></tr><tr>{cells}</tr>'
        shown += f'<h3>{translate_html(name)}</h3><div class="strip"><table class="{stage}"><tr>{head}</tr>{rows}</table></div>'
    return shown


def _step_label(step: int) -> str:
    return translate_html("Before" if step == 0 else f"Step {step:,}")


def _sample_html(sample: dict[str, Any], serve: Callable[[str], str]) -> str:
    if "picture" in sample:
        return f'<img src="{address(serve(sample["picture"]))}" alt="{html.escape(sample["text"])}">'
    return f"<p>{html.escape(sample['text'])}</p>"
