"""How well score differences agree with preferences: accuracy with and without ties, and calibration.

Everywhere ``difference`` is the score of A minus that of B and ``preference`` is 1 (A is better), -1 (B is) or 0 (the
same), both of shape ``(n,)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def accuracy_without_ties(difference: Tensor, preference: Tensor) -> float:
    """Return the share of decided pairs ranked right; a difference of 0 is wrong, tied pairs are left out.

    Returns:
        The share; NaN without decided pairs.
    """
    decided = preference != 0
    return (difference.sign() == preference)[decided].double().mean().item()


def accuracy_with_ties(difference: Tensor, preference: Tensor, threshold: float) -> float:
    """Return the share of pairs predicted right, a tie up to a difference of ``threshold``; NaN without pairs."""
    predicted = difference.sign() * (difference.abs() > threshold)
    return (predicted == preference).double().mean().item()


@dataclass(frozen=True)
class Threshold:
    """A tie threshold and how accurate it is on the pairs it was chosen on."""

    value: float
    accuracy: float


def calibrate_threshold(difference: Tensor, preference: Tensor) -> Threshold:
    """Choose the threshold below which a difference is best called a tie.

    Every threshold that changes a prediction is tried: one below all differences, one half way between each two
    neighbouring distinct ones, and one above all. Equal differences are never split, which no threshold can do.

    Raises:
        ValueError: If there are no pairs.

    Reference:
        Deutsch et al., 2023, arXiv:2305.14324, Algorithm 1.
    """
    if not len(difference):
        raise ValueError("Expected labelled pairs to choose a tie threshold on, but got none; label more pairs.")
    size, order = difference.abs().double().sort()
    right = (difference.sign() == preference)[order]
    tied = (preference == 0)[order]
    # With the k smallest differences called ties: the real ties among them and the right calls among the others. A
    # difference of 0 is a tie whatever the threshold, and its sign is 0, so both counts agree on it.
    zero = torch.zeros(1, dtype=torch.long)
    hits = torch.cat([zero, tied.cumsum(0)]) + right.sum() - torch.cat([zero, right.cumsum(0)])
    edges = torch.cat([size.new_tensor([True]).bool(), size[1:] > size[:-1], size.new_tensor([True]).bool()])
    edges[0] = bool(size[0] > 0)  # nothing lies below a difference of 0
    possible = edges.nonzero()[:, 0]
    best = int(possible[hits[possible].argmax()])
    below = float(size[best - 1]) if best else 0.0
    above = float(size[best]) if best < len(size) else math.inf
    value = below if math.isinf(above) else (below + above) / 2
    return Threshold(value, int(hits[best]) / len(size))


def expected_calibration_error(probability: Tensor, outcome: Tensor, bins: int = 10) -> float:
    """Return the mean gap between confidence and accuracy, over bins of equal width.

    Args:
        probability: Of the outcome, in ``[0, 1]``, shape ``(n,)``.
        outcome: 1 where it came true, 0 where not, same shape.
        bins: Number of bins.

    Returns:
        The gap, weighted by how many predictions a bin has; NaN without predictions.

    Reference:
        Guo et al., 2017, arXiv:1706.04599, Eq. 5.
    """
    if not len(probability):
        return math.nan
    place = (probability.double() * bins).long().clamp(max=bins - 1)
    gap = 0.0
    for index in place.unique():
        inside = place == index
        confidence, frequency = probability[inside].double().mean(), outcome[inside].double().mean()
        gap += ((confidence - frequency).abs() * inside.double().mean()).item()
    return gap
