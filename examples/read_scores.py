"""Read the scores behind the README's tables: a paired comparison with the paper's settings, and who gains."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

AXES = ("VQ", "MQ", "TA")

scores: dict[str, dict[int, list[float]]] = {}
with open(Path(__file__).with_name("evaluation-test.csv"), newline="") as file:
    for row in csv.DictReader(file):
        if row["seed"] == row["index"]:  # the clip at the prompt's own seed
            scores.setdefault(row["arm"], {})[int(row["index"])] = [float(row[axis]) for axis in AXES]


def scores_of(arm: str) -> torch.Tensor:
    """Return the oracle's scores of an arm, shape ``(prompts, axes)``."""
    return torch.tensor([scores[arm][index] for index in sorted(scores[arm])])


unguided = scores_of("unguided")
default, paper = (((scores_of(arm) - unguided) / unguided.std(dim=0)).mean(dim=1) for arm in ("guided", "paper"))
difference = default - paper
margin = 1.96 * difference.std() / len(difference) ** 0.5
order = ((unguided - unguided.mean(dim=0)) / unguided.std(dim=0)).mean(dim=1).argsort()
quarters = default[order].chunk(4)
print(
    f"{len(default)} prompts, gain of the mean of the axes: default {default.mean():+.3f}, paper {paper.mean():+.3f}"
)
print(f"default minus paper {difference.mean():+.3f} ± {margin:.3f} (95 %)")
print("default, from the quarter that is worst unguided to the best:", *(f"{part.mean():+.2f}" for part in quarters))
print(f"lose more than 0.2: {(default < -0.2).float().mean():.0%}, gain more: {(default > 0.2).float().mean():.0%}")
