"""How fast a pair answers: python -m bench.reply [--pair DIR] [--threads N] [--repeats N]

Measured side by side in one run, medians of the repeats: a guide from question to end, the eighth picture against the first, what a
second turn has to encode again, and decoding a token against one bare forward pass of the language model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch

from bench.machine import host
from duogen.conversation import Conversation, Image
from duogen.engine import Engine, Memory
from duogen.events import Done, Failed, TextDelta
from duogen.models.mllm import Context
from duogen.models.sequence import positions
from duogen.options import ImageOptions, Options, TextOptions

RESULTS = Path(__file__).parent / "results"
QUESTION = "How do I draw a red house with a blue door?"
FOLLOW_UP = "Make the door green instead."
STEP = "Step {n}. Add the roof: a small blue circle on top of the walls."
PICTURES = 8
TRIES, LEAST = 20, 8  # answers tried for one of at least so many pieces of text
GOALS = {
    "guide_first_word_seconds": 0.5, "guide_seconds": 8.0, "eighth_picture_to_first": 1.15, "encoded_to_new_tokens": 1.0,
    "decode_to_bare_forward": 1.0,
}  # fmt: skip
GUIDE_WITH_BF16 = 4.0  # seconds, where the CPU has bf16 instructions


def goals(kind: str) -> dict[str, float]:
    """What is to be reached on a kind of CPU, named as by `bench.machine.cpu_kind`."""
    return GOALS | ({"guide_seconds": GUIDE_WITH_BF16} if kind.endswith("bf16") else {})


def options(engine: Engine, seed: int, max_images: int = PICTURES) -> Options:
    """What a user gets who changes nothing."""
    about = engine.about
    return Options(seed, TextOptions(), ImageOptions(about["steps"], about["guidance"], max_images=max_images, preview_every=0))


def answer(engine: Engine, conversation: Conversation, asked: Options) -> tuple[Done, list[float]]:
    """An answer, and when each piece of its text came.

    Raises:
        ValueError: the pair failed.
    """
    times: list[float] = []
    for event in engine.answer(conversation, asked):
        if isinstance(event, TextDelta):
            times.append(time.perf_counter())
        elif isinstance(event, Failed):
            raise ValueError(event.message)
        elif isinstance(event, Done):
            return event, times
    raise ValueError("The answer ended without an end.")


def guide(engine: Engine, seed: int) -> dict[str, float]:
    """A guide from nothing, and what its follow-up has to encode."""
    engine.memory = Memory()
    done, _ = answer(engine, Conversation().say("user", QUESTION), options(engine, seed))
    known = len(engine.memory.context.packed.ids)
    pictures = [part.seconds for turn in done.conversation.path() for part in turn.parts if isinstance(part, Image)]
    found = {
        "guide_first_word_seconds": done.stats.first_text_seconds,
        "guide_seconds": done.stats.seconds,
        "guide_pictures": done.stats.images,
        "guide_tokens": done.stats.text_tokens,
        "picture_seconds": statistics.median(pictures) if pictures else float("nan"),
    }
    more, _ = answer(engine, done.conversation.say("user", FOLLOW_UP), options(engine, seed, max_images=1))
    return found | {
        "second_first_word_seconds": more.stats.first_text_seconds,
        "encoded_to_new_tokens": more.stats.encoded_tokens / (more.stats.prompt_tokens - known),
    }


def eighth_picture(engine: Engine, seed: int) -> dict[str, float]:
    """Eight pictures in one answer whose words are given, so that every pair and every run paints as many."""
    engine.memory = Memory()
    parts: list[Any] = []
    asked = Conversation().say("user", QUESTION)
    for number in range(1, PICTURES + 1):
        parts.append(STEP.format(n=number))
        parts.append(engine.generate_image(asked.say("assistant", *parts), options(engine, seed + number)))
    first, last = parts[1].seconds, parts[-1].seconds
    return {"first_picture_seconds": first, "eighth_picture_seconds": last, "eighth_picture_to_first": last / first}


def decoding(engine: Engine, seed: int) -> dict[str, float]:
    """A token as the engine says it against one forward pass of transformers at the same place, on the same tokens."""
    for attempt in range(seed, seed + TRIES):
        engine.memory = Memory()
        done, times = answer(engine, Conversation().say("user", QUESTION), options(engine, attempt, max_images=0))
        count = done.stats.text_tokens
        if len(times) > LEAST:
            break
    else:
        raise ValueError("The pair says too little before its first picture to time its words; take another pair.")
    decode = (times[-1] - times[0]) / (count - 1)
    bare = bare_forward(engine, done.stats.prompt_tokens, count)
    return {"decode_token_seconds": decode, "bare_forward_seconds": bare, "decode_to_bare_forward": decode / bare}


@torch.no_grad()
def bare_forward(engine: Engine, prompt: int, count: int) -> float:
    """Mean seconds of one token through the language model and its head, cached, nothing else asked of it."""
    said = engine.memory.context.packed
    context = Context()
    engine.mllm.prefill(context, type(said)(said.ids[:prompt], said.learn[:prompt], []))
    model = engine.mllm.model
    where = positions(context.packed)[1]
    ids = said.ids[prompt : prompt + count]
    begun = time.perf_counter()
    for offset, token in enumerate(ids):
        embeds = model.get_input_embeddings()(torch.tensor([[token]], device=model.device))
        place = torch.full((3, 1, 1), where + offset, device=model.device)
        out = model.model.language_model(inputs_embeds=embeds, position_ids=place, past_key_values=context.cache, use_cache=True)
        model.lm_head(out.last_hidden_state[:, -1]).float()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / len(ids)


def machine(engine: Engine, threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    device = str(engine.pair.transformer.device)
    return {
        **host(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        **{name: version(name) for name in ("torch", "transformers", "diffusers")},
        "pair": engine.about["title"],
        "steps": engine.about["steps"],
        "guidance": engine.about["guidance"],
    }


def measure(engine: Engine, repeats: int) -> dict[str, float]:
    """Medians over `repeats` rounds, each round measuring everything once; one round before them warms up."""
    rounds = [{**guide(engine, seed), **eighth_picture(engine, seed), **decoding(engine, seed)} for seed in range(repeats + 1)][1:]
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def main() -> int:
    top = argparse.ArgumentParser(prog="python -m bench.reply", description=__doc__.splitlines()[0])
    top.add_argument("--pair", help="folder of a pair (default: the bundled one)")
    top.add_argument("--device", default="cpu")
    top.add_argument("--precision", default="auto")
    top.add_argument("--threads", type=int, default=2, help="threads of torch on the CPU")
    top.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    given = top.parse_args()
    try:
        if given.repeats < 1 or given.threads < 1:
            raise ValueError("--repeats and --threads must be at least 1.")
        torch.set_num_threads(given.threads)
        engine = Engine.open(given.pair, given.device, given.precision)
        figures = measure(engine, given.repeats)
    except ValueError as error:
        print(f"bench.reply: {error}", file=sys.stderr)
        return 2
    about = {**machine(engine, given.threads), "precision": given.precision, "repeats": given.repeats}
    for name, value in about.items():
        print(f"{name:28} {value}")
    wanted = goals(about["cpu_kind"])
    for name, value in figures.items():
        print(f"{name:28} {value:10.3f}" + (f"   goal <= {wanted[name]}" if name in wanted else ""))
    kind = about["cpu_kind"].lower().replace(" with ", "-") if given.device == "cpu" else given.device
    file = RESULTS / f"reply-{kind}-{given.threads}.json"
    file.write_text(json.dumps({"machine": about, "figures": figures, "goals": wanted}, indent=1, allow_nan=True) + "\n", encoding="utf-8")
    print(f"Wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
