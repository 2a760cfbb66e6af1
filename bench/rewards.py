"""What the reward stage adds: `python -m bench.rewards --recipe FILE --runs DIR`.

Held-out requests are painted by the pair that a run began with and by the run's averaged weights, with the same words, earlier pictures
and noise, and graded by the exact check. The differences are of the same requests, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_cosmos import CosmosTransformer3DModel

from duogen.sketchbook.grade import Grade
from duogen.sketchbook.world import HELD_OUT_KINDS
from duogen.train.__main__ import build_reward_stage
from duogen.train.reward import RewardStage
from duogen.train.settings import RequestGroup
from duogen.train.trainer import Recipe, autocast, load_weights

AT_ONCE = 16
UNSEEN = "unseen"
GROUPS = (  # the tasks, which picture of a dialogue, and how many of the requests, where 96 are asked for
    (RequestGroup(name="singles", frames=(1,), tasks={"picture": 1.0}), 96),
    (RequestGroup(name="edits", frames=(2,), tasks={"edit": 1.0}), 96),
    (RequestGroup(name="guides3", frames=(3,), tasks={"guide": 1.0}), 32),
    (RequestGroup(name="drafts3", frames=(3,), tasks={"drafts": 1.0}), 32),
    (RequestGroup(name=UNSEEN, frames=(1,), tasks={"picture": 0.5, "guide": 0.5}), 32),
)


def grade_requests(stage: RewardStage, transformer: CosmosTransformer3DModel, group: RequestGroup, n: int) -> list[Grade]:
    """The grades of about `n` held-out requests of a group, always the same ones; things that training never shows for `UNSEEN`."""
    held = tuple(sorted(HELD_OUT_KINDS)) if group.name == UNSEEN else stage.settings.core_kinds
    grades: list[Grade] = []
    for part in range(max(1, n // AT_ONCE)):
        asked = stage.make_requests(random.Random(f"eval/{group.name}/{part}"), group, min(n, AT_ONCE), held)
        same = torch.Generator().manual_seed(part)
        with autocast(stage.recipe), torch.no_grad():
            painted = stage.paint(transformer, stage.prepare(asked.data, same), 1, same)
        grades += [own[0] for own in stage.grade(painted, asked.requests)]
    return grades


def compare(before: list[Grade], after: list[Grade]) -> tuple[float, float, float]:
    """The mean difference of the shares of the same requests, and its 95 % interval."""
    found = [other.share - one.share for one, other in zip(before, after, strict=True)]
    mean = sum(found) / len(found)
    reach = 1.96 * math.sqrt(sum((each - mean) ** 2 for each in found) / max(1, len(found) - 1) / len(found))
    return mean, mean - reach, mean + reach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=Path("assets/recipes/duogen-sketch-reward.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--n", type=int, default=96, help="requests of the larger groups")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe, runs = Recipe.load(given.recipe, "reward"), given.runs / given.recipe.stem
    stage = build_reward_stage(recipe, runs)
    steps = load_weights(runs / "reward", stage.modules)
    print(f"{stage.settings.method} after {steps} steps: right marks before, after and the difference; wholly right before, after")
    for group, many in GROUPS:
        n = max(1, round(many * given.n / 96))
        before, after = (grade_requests(stage, each, group, n) for each in (stage.reference, stage.transformer))
        shares = [sum(grade.share for grade in grades) / len(grades) for grades in (before, after)]
        mean, low, high = compare(before, after)
        right = [sum(grade.right for grade in grades) for grades in (before, after)]
        interval = f"{mean:+.1%} ({low:+.1%} to {high:+.1%})"
        print(f"{group.name:8} {shares[0]:6.1%} {shares[1]:6.1%}  {interval}  {right[0]}, {right[1]} of {len(before)}")


if __name__ == "__main__":
    main()
