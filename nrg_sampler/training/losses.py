r"""Losses on preference pairs, one table of functions.

Every model of a comparison maps the difference of two rewards, :math:`d = r_A - r_B`, to the logarithms of
:math:`P(A), P(B), P(\text{tie})`, which sum to 1. Training minimises the negative log-likelihood of the labels;
``regression`` and ``tilted-regression`` need no labels but a teacher's scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

K = 5.0  # Liu et al., 2025, section 3.2
STEEPEST = 4.0  # exponent of `tilted_regression` from where on it follows its tangent: a single clip pulls so far only
THURSTONE_FLOOR = 0.05  # variance of a judgement on a clean clip; DiNa-LRM, arXiv:2602.11146


@dataclass(frozen=True)
class Comparison:
    """A batch of compared pairs.

    Args:
        first: Raw reward of A, shape ``(B, axes)``.
        second: Raw reward of B, same shape.
        preference: 1 where A is preferred, -1 where B is, 0 for a tie, NaN without a label; same shape.
        sigma: Noise level of each pair, shape ``(B,)``; 0 by default.
        teacher_first: Scores of A by a teacher, NaN where there is none, shape ``(B, axes)``; for ``regression`` only.
        teacher_second: Those of B.
        tilt: How strongly the reward is to tilt, for ``tilted-regression`` only.

    Raises:
        ValueError: If the shapes differ.
    """

    first: Tensor
    second: Tensor
    preference: Tensor
    sigma: Tensor | None = None
    teacher_first: Tensor | None = None
    teacher_second: Tensor | None = None
    tilt: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("second", "preference", "teacher_first", "teacher_second"):
            value = getattr(self, name)
            if value is not None and value.shape != self.first.shape:
                raise ValueError(
                    f"Expected `{name}` of shape {tuple(self.first.shape)}, as `first` has, but got "
                    f"{tuple(value.shape)}; give one number per pair and axis."
                )

    @property
    def difference(self) -> Tensor:
        """Reward of A minus reward of B."""
        return self.first - self.second


@dataclass(frozen=True)
class LossParts:
    """The terms of a loss.

    Args:
        parts: Terms by name, each ``(B, axes)`` and 0 where it does not apply.
        counted: Whether a pair and axis has a loss at all, bool, same shape.
    """

    parts: dict[str, Tensor]
    counted: Tensor

    def per_axis(self, count: Tensor | None = None) -> Tensor:
        """Average over the counted pairs, shape ``(axes,)``; an axis without labels gives 0.

        Args:
            count: Divide by these numbers of pairs instead, shape ``(axes,)``: those of a larger batch that this is
                a share of.
        """
        count = self.counted.sum(dim=0) if count is None else count
        return sum(self.parts.values(), torch.zeros(())).sum(dim=0) / count.clamp(min=1)

    def weighted(self, weights: Tensor) -> LossParts:
        """Weight each pair by ``weights``, shape ``(B,)``; means still divide by the number of pairs."""
        return LossParts({name: weights[:, None] * part for name, part in self.parts.items()}, self.counted)

    def means(self, count: Tensor | None = None) -> dict[str, float]:
        """Average each part over the counted pairs and sum it over the axes."""
        count = self.counted.sum(dim=0) if count is None else count
        return {
            name: (part.detach().sum(dim=0) / count.clamp(min=1)).sum().item() for name, part in self.parts.items()
        }


class Likelihood(Protocol):
    """Logarithms of the probabilities of A, B and a tie, each of the shape of ``difference``."""

    def __call__(self, difference: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return them for raw differences and noise levels."""
        ...


def log_bradley_terry(difference: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compare by Bradley and Terry, 1952: :math:`P(A) = \sigma(d)` and, without ties, :math:`P(\text{tie}) = 0`."""
    impossible = torch.full_like(difference, -math.inf)
    return functional.logsigmoid(difference), functional.logsigmoid(-difference), impossible


def log_bradley_terry_ties(difference: Tensor, sigma: Tensor, k: float = K) -> tuple[Tensor, Tensor, Tensor]:
    r"""Bradley-Terry with ties of width ``ln k``, Rao and Kupper's model.

    .. math::
        P(A) = \sigma(d - \ln k), \quad P(B) = \sigma(-d - \ln k), \quad
        P(\text{tie}) = (k^2 - 1)\,\sigma(d - \ln k)\,\sigma(-d - \ln k)

    Raises:
        ValueError: If ``k`` is not above 1.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 2 (k = 5); Rao and Kupper, 1967.
    """
    if not k > 1:
        raise ValueError(f"Expected `k` above 1 (1 is Bradley-Terry, which has no ties), but got {k}.")
    log_a = functional.logsigmoid(difference - math.log(k))
    log_b = functional.logsigmoid(-difference - math.log(k))
    return log_a, log_b, log_a + log_b + math.log(k**2 - 1)


def log_thurstone(difference: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Thurstone's model with a variance that grows with the noise, which hides what sets clips apart.

    .. math:: P(A) = \Phi\left(d / \sqrt{2 v}\right), \quad v = 2\sigma^2 + 0.05

    It has no ties. ``sigma`` is the noise level of each pair, ``(B,)`` or broadcastable to ``difference``.

    Reference:
        DiNa-LRM, arXiv:2602.11146; Thurstone, 1927, case V.
    """
    variance = 2 * _like(sigma, difference) ** 2 + THURSTONE_FLOOR
    scaled = difference / (2 * variance).sqrt()
    impossible = torch.full_like(difference, -math.inf)
    return torch.special.log_ndtr(scaled), torch.special.log_ndtr(-scaled), impossible


def _like(sigma: Tensor, difference: Tensor) -> Tensor:
    return sigma[:, None] if sigma.ndim == 1 and difference.ndim == 2 else sigma


def bradley_terry_with_ties(difference: Tensor, preference: Tensor, k: float = K) -> Tensor:
    """Compute the negative log-likelihood of each pair under :func:`log_bradley_terry_ties`.

    Args:
        difference: Reward of A minus reward of B, any shape.
        preference: 1 where A is preferred, -1 where B is, 0 for a tie; same shape.
        k: Width of the tie, above 1: rewards that differ by less than ``ln k`` are most likely a tie.

    Returns:
        The loss of each pair, same shape.
    """
    log_a, log_b, log_tie = log_bradley_terry_ties(difference, torch.zeros_like(difference), k)
    return -log_tie.where(preference == 0, log_a.where(preference > 0, log_b))


def negative_log_likelihood(comparison: Comparison, likelihood: Likelihood) -> LossParts:
    """Compute the parts ``preferred`` and ``tie``; a model without ties does not count tied pairs."""
    difference, preference = comparison.difference, comparison.preference
    sigma = comparison.sigma if comparison.sigma is not None else torch.zeros_like(difference)
    log_a, log_b, log_tie = likelihood(difference, sigma)
    zero = torch.zeros_like(difference)
    preferred = torch.where(preference > 0, -log_a, torch.where(preference < 0, -log_b, zero))
    has_ties, tied = log_tie.isfinite(), preference == 0
    tie = torch.where(tied & has_ties, -log_tie.where(has_ties, zero), zero)
    return LossParts({"preferred": preferred, "tie": tie}, ~tied & ~preference.isnan() | tied & has_ties)


def regression(comparison: Comparison) -> LossParts:
    r"""Compute the squared error against a teacher's scores of the clean clips.

    Its minimiser is :math:`E[r(x_0) \mid x_\sigma]`, the exact log-tilt to first order in the guidance strength; no
    preference is needed.

    Raises:
        ValueError: If there are no scores.

    Reference:
        StitchVM, arXiv:2605.19804 (a clean reward distilled into the expectation under noise).
    """
    return _against_scores(comparison, "regression", lambda excess: excess.square() / 2)


def tilted_regression(comparison: Comparison) -> LossParts:
    r"""Compute a loss whose minimiser is the value that tilting by :math:`e^{w r}` needs, :math:`w` the ``tilt``.

    .. math::
        L = \frac{e^{d} - d - 1}{w^2}, \quad d = w\,(r(x_0) - f), \qquad
        \arg\min_f E[L \mid x_\sigma] = \frac1w \log E\big[e^{w\,r(x_0)} \mid x_\sigma\big]

    The mean, which ``regression`` finds, is that for small :math:`w`, as the loss is. What clips may still become
    counts more the higher the strength.

    Raises:
        ValueError: If there are no scores.

    Reference:
        Varian, 1975 (the linear-exponential loss); Uehara et al., 2025, arXiv:2501.09685 (the soft value function).
    """
    tilt = comparison.tilt

    def linear_exponential(excess: Tensor) -> Tensor:
        exponent = tilt * excess
        bounded = exponent.clamp(max=STEEPEST)
        return (bounded.exp() * (1 + exponent - bounded) - exponent - 1) / tilt**2

    return _against_scores(comparison, "tilted-regression", linear_exponential)


def _against_scores(comparison: Comparison, loss: str, of_excess: Callable[[Tensor], Tensor]) -> LossParts:
    teachers = comparison.teacher_first, comparison.teacher_second
    if teachers[0] is None or teachers[1] is None:
        raise ValueError(
            f"Expected a teacher's scores for the loss {loss!r}, but got preferences only; "
            "give scores of both clips, or choose a loss on preferences."
        )
    parts = {}
    for name, raw, score in zip(("first", "second"), (comparison.first, comparison.second), teachers, strict=True):
        assert score is not None  # checked above
        known = ~score.isnan()
        excess = score.where(known, raw.detach()) - raw
        parts[name] = torch.where(known, of_excess(excess), torch.zeros_like(raw))
    return LossParts(parts, ~teachers[0].isnan() | ~teachers[1].isnan())


LIKELIHOODS: dict[str, Likelihood] = {
    "bradley-terry": log_bradley_terry,
    "bradley-terry-ties": log_bradley_terry_ties,
    "thurstone": log_thurstone,
}
LOSSES: dict[str, Callable[[Comparison], LossParts]] = {
    **{name: partial(negative_log_likelihood, likelihood=model) for name, model in LIKELIHOODS.items()},
    "regression": regression,
    "tilted-regression": tilted_regression,
}
