"""Read the scores behind the tables of docs/evidence: paired comparisons, what noise in training wins, who gains.

The base line is graded by the oracle of today, the rest by that of 0.1.0.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[1] / "docs" / "evidence"
AXES = ("VQ", "MQ", "TA")


def read(name: str) -> dict[str, dict[int, list[float]]]:
    """Read the scores of each arm and prompt, by the oracle."""
    scores: dict[str, dict[int, list[float]]] = {}
    with open(FOLDER / name, newline="") as file:
        for row in csv.DictReader(file):
            if row["seed"] == row["index"]:  # the clip at the prompt's own seed
                scores.setdefault(row["arm"], {})[int(row["index"])] = [float(row[axis]) for axis in AXES]
    return scores


scores = read("evaluation-test.csv")


def scores_of(arm: str) -> torch.Tensor:
    """Return the oracle's scores of an arm, shape ``(prompts, axes)``."""
    return torch.tensor([scores[arm][index] for index in sorted(scores[arm])])


def gains_of(arm: str) -> torch.Tensor:
    """Return by how many standard deviations the mean of the axes rises, shape ``(prompts,)``."""
    return ((scores_of(arm) - unguided) / unguided.std(dim=0)).mean(dim=1)


def wins_of(arm: str) -> torch.Tensor:
    """Return 100 for each motion that is better than the unguided one, 50 for a tie, shape ``(prompts,)``."""
    return 50 * (1 + (scores_of(arm) - unguided)[:, AXES.index("MQ")].sign())


def with_margin(values: torch.Tensor) -> str:
    """Return the mean with half the width of its 95 % interval."""
    return f"{values.mean():+.3f} ± {1.96 * values.std() / len(values) ** 0.5:.3f}"


unguided = scores_of("unguided")
default = gains_of("guided")
print(f"{len(default)} prompts, gain of the mean of the axes: default {default.mean():+.3f}")
for arm in ("paper", "paper to the letter", "guided, reused every 2nd", "auto"):
    gains = gains_of(arm)
    print(f"{arm} {gains.mean():+.3f}, default minus that {with_margin(default - gains)} (95 %)")
for settings in ("", ", paper", ", paper to the letter"):
    noised, clean = (wins_of(f"{trained} latents{settings}") for trained in ("noised", "clean"))
    print(f"motion{settings or ', default'}: noised minus clean {with_margin(noised - clean)} points of win rate")
order = ((unguided - unguided.mean(dim=0)) / unguided.std(dim=0)).mean(dim=1).argsort()
quarters = default[order].chunk(4)
print("default, from the quarter that is worst unguided to the best:", *(f"{part.mean():+.2f}" for part in quarters))
print(f"lose more than 0.2: {(default < -0.2).float().mean():.0%}, gain more: {(default > 0.2).float().mean():.0%}")
scores = read("baseline-test.csv")
unguided = scores_of("unguided")
means = " / ".join(f"{mean:.3f}" for mean in unguided.mean(dim=0))
print(f"base line, {len(unguided)} prompts, unguided means {means}, gains in standard deviations:")
for arm in [arm for arm in scores if arm != "unguided"]:
    moved = (scores_of(arm) - unguided) / unguided.std(dim=0)
    print(f"{arm}:", ", ".join(f"{axis} {with_margin(moved[:, place])}" for place, axis in enumerate(AXES)))
