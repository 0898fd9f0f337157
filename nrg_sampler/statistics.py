"""Intervals by the bootstrap, and rank correlation; every draw has a fixed seed, so that a table can be made again."""

from __future__ import annotations

from collections.abc import Callable
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
