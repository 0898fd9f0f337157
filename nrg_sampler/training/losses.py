"""Losses on preference pairs."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional


def bradley_terry_with_ties(difference: Tensor, preference: Tensor, k: float = 5.0) -> Tensor:
    r"""Negative log-likelihood of preferences that may be ties (Rao and Kupper's model).

    .. math::
        P(A) = \sigma(d - \ln k), \quad P(B) = \sigma(-d - \ln k), \quad
        P(\text{tie}) = (k^2 - 1)\,\sigma(d - \ln k)\,\sigma(-d - \ln k)

    Args:
        difference: ``d``, reward of A minus reward of B, any shape.
        preference: 1 where A is preferred, -1 where B is, 0 for a tie; same shape.
        k: Width of the tie, above 1: rewards that differ by less than ``ln k`` are most likely a tie.

    Returns:
        The loss of each pair, same shape.

    Raises:
        ValueError: If ``k`` is not above 1.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 2 (k = 5); Rao and Kupper, 1967.
    """
    if k <= 1:
        raise ValueError(f"Expected `k` above 1 (1 is Bradley-Terry, which knows no ties), but got {k}.")
    log_a = functional.logsigmoid(difference - math.log(k))
    log_b = functional.logsigmoid(-difference - math.log(k))
    tie = log_a + log_b + math.log(k**2 - 1)
    return -(tie.where(preference == 0, log_a.where(preference > 0, log_b)))
