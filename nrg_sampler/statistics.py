"""Intervals by the bootstrap and by Student's t, and rank correlation.

Every draw has a fixed seed, so that a table can be made again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

RESAMPLES = 10_000
DRAWS = 2000  # of ratios and correlations, which cost more each


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over prompts.

    Args:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def bootstrap_interval(
    values: Tensor, level: float = 0.95, statistic: Callable[[Tensor], Tensor] = partial(torch.mean, dim=1)
) -> tuple[float, float]:
    """Percentile bootstrap interval, with a fixed seed so that a table can be made again.

    Args:
        values: Shape ``(n,)``.
        level: How often the interval should hold the truth.
        statistic: Of each row of ``(resamples, n)``; the mean by default.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    found = statistic(values[draws])
    tail = (1 - level) / 2
    return torch.quantile(found, tail).item(), torch.quantile(found, 1 - tail).item()


def estimate(values: Tensor) -> Estimate:
    """Return the mean of ``values`` (n,) with its interval."""
    low, high = bootstrap_interval(values.double())
    return Estimate(values.double().mean().item(), low, high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return Student's t-interval of the mean of a few values; ``None`` for a single one.

    A bootstrap of four values is too narrow: its resamples vary less than new samples would.

    Args:
        values: Independent, such as one for each seed; their distribution is taken as normal.
        level: How often the interval should hold the truth.
    """
    if len(values) < 2:
        return None
    mean = statistics.fmean(values)
    half = t_quantile((1 + level) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution.

    Args:
        probability: From 0.5 to below 1.
        degrees: Degrees of freedom, 1 or more.

    Reference:
        Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4 (the distribution as a finite sum), solved by bisection.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(100):
        angle = (low + high) / 2
        low, high = (angle, high) if _t_within(angle, degrees) < 2 * probability - 1 else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _t_within(angle: float, degrees: int) -> float:
    """Probability of a t between minus and plus ``sqrt(degrees) * tan(angle)``."""
    odd = degrees % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = 0.0
    for power in range(2 + odd, degrees + 1, 2):  # each term is of one more factor cos^2
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    return 2 / math.pi * (angle + total) if odd else total


def ratio_interval(numerator: Tensor, denominator: Tensor) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of ``numerator.mean() / denominator.mean()`` over pairs, both ``(n,)``.

    ``None`` if that of the denominator reaches 0, where a ratio has no bounds.
    """
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(numerator), (DRAWS, len(numerator)), generator=generator)
    one, two = (values.double()[draws].mean(dim=1) for values in (numerator, denominator))
    if torch.quantile(two, 0.025) <= 0:
        return None
    low, high = (torch.quantile(one / two, q).item() for q in (0.025, 0.975))
    return low, high


def ranks(values: Tensor) -> Tensor:
    """Return ranks along the last dimension, ties averaged."""
    mine, others = values[..., :, None], values[..., None, :]
    return (mine > others).sum(dim=-1) + 0.5 * (mine == others).sum(dim=-1).double()


def spearman(one: Tensor, other: Tensor) -> Tensor:
    """Return Spearman's rank correlation along the last dimension; 0 where one side does not vary."""
    centred = [r - r.mean(dim=-1, keepdim=True) for r in (ranks(one), ranks(other))]
    norms = centred[0].norm(dim=-1) * centred[1].norm(dim=-1)
    rho: Tensor = (centred[0] * centred[1]).sum(dim=-1) / norms.clamp(min=1e-12)
    return rho
