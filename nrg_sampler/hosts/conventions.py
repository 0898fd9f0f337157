r"""How schedulers state a point on the straight path and the velocity there.

The package's own statement is that of ``flow``: :math:`x = (1-\sigma)x_0 + \sigma\varepsilon`,
:math:`v = \varepsilon - x_0`. A scheduler that differs is translated before guidance, and its velocity back after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Path:
    """One statement, where ``s`` is the scheduler's number for the noise.

    Args:
        sigma: ``s`` to sigma in [0, 1].
        latents: ``(latents, s)`` to the latents of the straight path.
        velocity: ``(output, latents, s)``, what the scheduler takes, to the velocity of the straight path.
        output: ``(velocity, latents, s)``, the way back; ``latents`` are the scheduler's in both.
        highest: Largest value of ``s``.
    """

    sigma: Callable[[float], float]
    latents: Callable[[Tensor, float], Tensor]
    velocity: Callable[[Tensor, Tensor, float], Tensor]
    output: Callable[[Tensor, Tensor, float], Tensor]
    highest: float = 1.0


STRAIGHT = Path(
    sigma=lambda s: s,
    latents=lambda latents, s: latents,
    velocity=lambda output, latents, s: output,
    output=lambda velocity, latents, s: velocity,
)
# LTXCondition: with a timestep for each token, the scheduler counts the way down and takes x0 - noise
TOKENWISE = Path(
    sigma=lambda s: s,
    latents=lambda latents, s: latents,
    velocity=lambda output, latents, s: -output,
    output=lambda velocity, latents, s: -velocity,
)
# Mochi: s = 1 - sigma rises from 0 to 1, and the velocity is x0 - noise
REVERSED = Path(
    sigma=lambda s: 1 - s,
    latents=lambda latents, s: latents,
    velocity=lambda output, latents, s: -output,
    output=lambda velocity, latents, s: -velocity,
)
# Cosmos-Predict2: x = x0 + s * noise with s up to 80 and (x - x0) / s as velocity; x / (1 + s) lies on the straight
# path
EXPLODING = Path(
    sigma=lambda s: s / (1 + s),
    latents=lambda latents, s: latents / (1 + s),
    velocity=lambda output, latents, s: (1 + s) * output - latents,
    output=lambda velocity, latents, s: (velocity + latents) / (1 + s),
    highest=float("inf"),
)


def path_of(scheduler: Any, exploding: bool = False, tokenwise: bool = False) -> Path:
    """Return how ``scheduler`` states the path.

    Args:
        scheduler: A rectified-flow scheduler.
        exploding: Whether its pipeline runs it in the variance-exploding scale.
        tokenwise: Whether its step was given a timestep for each token.
    """
    if tokenwise:
        return TOKENWISE
    if scheduler.config.get("invert_sigmas", False):
        return REVERSED
    return EXPLODING if exploding else STRAIGHT
