"""Win rates of one arm over another on the same prompts and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nrg_sampler.statistics import bootstrap_interval


@dataclass(frozen=True)
class WinRate:
    """A win rate in percent with its 95 % bootstrap interval.

    Args:
        win: Share of pairs won; a tie counts half.
        low: Lower end of the interval.
        high: Upper end.
        n: Number of pairs.
    """

    win: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.win:.1f} [{self.low:.1f}, {self.high:.1f}]"


def win_rate(challenger: Tensor, baseline: Tensor) -> WinRate:
    """Compare scores pair by pair.

    Args:
        challenger: Scores of one arm, shape ``(n,)``, higher is better.
        baseline: Scores of the other on the same prompts and seeds, same shape.

    Raises:
        ValueError: If the shapes differ, there is no pair, or a score is not a number.
    """
    if challenger.shape != baseline.shape or challenger.ndim != 1 or not len(challenger):
        raise ValueError(
            f"Expected two lists of scores of one length, but got shapes {tuple(challenger.shape)} "
            f"and {tuple(baseline.shape)}."
        )
    if torch.isnan(challenger).any() or torch.isnan(baseline).any():
        raise ValueError("Expected scores, but some are not a number; leave out clips that could not be graded.")
    points = ((challenger - baseline).sign().double() + 1) / 2
    low, high = bootstrap_interval(points)
    return WinRate(100 * points.mean().item(), 100 * low, 100 * high, len(points))
