"""How a training looks: its progress, its curve, the strip of samples; plain functions from what is known to HTML."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import pandas

from ui.chat.history import address
from ui.parts.i18n import say
from ui.parts.shared import sentence, status_line

NAMES = {"talk": "What to say", "paint": "How to paint it"}
MOST_POINTS, MOST_COLUMNS = 300, 8


def bar(known: dict[str, Any], mood: str) -> str:
    share = known["step"] / known["steps"] if known.get("steps") and mood == "busy" else None
    return status_line(known["words"], mood, share=share)


def facts(known: dict[str, Any]) -> str:
    """Loss, validation loss, learning rate, memory."""
    shown = {
        "Loss": f"{known['loss']:.4f}" if "loss" in known else "",
        "On kept-back examples": f"{known['validation']:.4f}" if "validation" in known else "",
        "Learning rate": f"{known['learning_rate']:.2e}" if "learning_rate" in known else "",
        "Memory": f"{known['memory'] / 1024**3:.1f} GB" if "memory" in known else "",
        "On": known.get("device", ""),
    }
    rows = "".join(f"<dt>{sentence(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in shown.items() if value)
    return f'<dl class="facts">{rows}</dl>'


def plotted(figures: dict[str, list[dict[str, float]]]) -> pandas.DataFrame:
    """Loss (a running mean, the noise of single steps hides everything else) and validation loss of both stages."""
    points: list[tuple[int, float, str]] = []
    for stage, entries in figures.items():
        mean, every = None, max(1, len(entries) // MOST_POINTS)
        for number, entry in enumerate(entries):
            if "loss" in entry:
                mean = entry["loss"] if mean is None else 0.9 * mean + 0.1 * entry["loss"]
                if number % every == 0 or number == len(entries) - 1:
                    points.append((entry["step"], mean, say(NAMES[stage])))
            if "validation" in entry:
                points.append((entry["step"], entry["validation"], say(f"{NAMES[stage]}, kept back")))
    return pandas.DataFrame(points, columns=["step", "loss", "kind"])


def shown_tiles(tiles: list[tuple[list[str], str]], count: int) -> str:
    """Examples: their pictures, and their words below."""
    shown = []
    for files, words in tiles:
        images = "".join(f'<img src="{address(file)}" alt="">' for file in files)
        shown.append(f'<figure class="tile"><div>{images}</div><figcaption>{html.escape(words)}</figcaption></figure>')
    more = f"<p>{sentence(f'... and {count - len(tiles)} more.')}</p>" if count > len(tiles) else ""
    return f'<div class="tiles">{"".join(shown)}</div>{more}'


def shown_problems(rows: list[list[Any]]) -> str:
    cells = "".join("<tr>" + "".join(f"<td>{sentence(str(cell))}</td>" for cell in row) + "</tr>" for row in rows[:200])
    more = f"<p>{sentence(f'... and {len(rows) - 200} more.')}</p>" if len(rows) > 200 else ""
    head = "".join(f"<th>{sentence(name)}</th>" for name in ("Where", "What", "What was done"))
    return f'<table class="problems"><tr>{head}</tr>{cells}</table>{more}'


def shown_strip(samples: list[dict[str, Any]], served: Callable[[str], str]) -> str:
    """Each prompt is a row; from left to right how its sample changes. `served` gives the file of a picture that a browser may have."""
    shown = ""
    for stage, name in NAMES.items():
        columns = [each for each in samples if each["stage"] == stage]
        if not columns:
            continue
        if len(columns) > MOST_COLUMNS:  # the first, the last, and some between
            step = (len(columns) - 1) / (MOST_COLUMNS - 1)
            columns = [columns[round(index * step)] for index in range(MOST_COLUMNS)]
        head = "".join(f"<th>{_when(each['step'])}</th>" for each in columns)
        rows = ""
        for number in range(len(columns[0]["shown"])):
            prompt = html.escape(columns[0]["shown"][number]["prompt"][:160])
            cells = "".join(f"<td>{_cell(each['shown'][number], served)}</td>" for each in columns if number < len(each["shown"]))
            rows += f'<tr class="asked"><td colspan="{len(columns)}">{prompt}</td></tr><tr>{cells}</tr>'
        shown += f'<h3>{sentence(name)}</h3><div class="strip"><table class="{stage}"><tr>{head}</tr>{rows}</table></div>'
    return shown


def _when(step: int) -> str:
    return sentence("Before" if step == 0 else f"Step {step:,}")


def _cell(sample: dict[str, Any], served: Callable[[str], str]) -> str:
    if "picture" in sample:
        return f'<img src="{address(served(sample["picture"]))}" alt="{html.escape(sample["text"])}">'
    return f"<p>{html.escape(sample['text'])}</p>"
