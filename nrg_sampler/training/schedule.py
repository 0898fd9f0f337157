"""The learning-rate schedule of every training: linear warm-up, then a cosine down to 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, warmup: int, steps: int, first: int = 0) -> float:
    """Return the learning-rate factor at a step, in ``[0, 1]``.

    Args:
        step: Steps done before this one.
        warmup: Steps over which the factor rises linearly to 1.
        steps: Steps in all, at the end of which the factor is 0.
        first: 0 if the warm-up begins with a factor of 0, 1 if with ``1 / warmup``.
    """
    if step < warmup:
        return (step + first) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
