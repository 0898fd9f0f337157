r"""How much each axis of a reward is trusted at each noise level.

The gradient of an axis counts with a factor :math:`(1-\sigma)^p\,\sigma^q` beside the coefficient of the formula:

- Damping, p, trusts an axis less in noise, where its reading is least reliable [1].
- Fading, q, trusts it less where the picture is nearly settled: a push there moves the reward more than the clip.

Which powers serve was measured for the bundled reward, axis by axis; see the README. What all weighted axes share
multiplies the push (:mod:`nrg_sampler.guidance.push`), what one of them has beyond that its weight.

Reference:
    [1] arXiv:2606.02884 (guidance by a learned reward; damping in time).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from nrg_sampler.entries import shown
from nrg_sampler.flow import per_sample
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike

PowersLike: TypeAlias = float | WeightsLike  # one for all axes, one for each, or none for what the reward recommends


class Trust(NamedTuple):
    """The factor of one axis.

    Args:
        share: What it counts at any noise level.
        damping: Power of ``1 - sigma``.
        fading: Power of ``sigma``.
    """

    share: float
    damping: float
    fading: float

    def weigh(self, weight: float | Tensor, sigma: Tensor | float, like: Tensor) -> float | Tensor:
        """Return ``weight`` times the factor: a number if all samples of ``like`` have the same, else ``(B,)``."""
        weight = weight * self.share
        if self.damping or self.fading:
            level = per_sample(sigma, like)
            weight = weight * (1 - level) ** self.damping * level**self.fading
        return weight


def shared(trusts: Mapping[str, Trust]) -> tuple[Trust, dict[str, Trust]]:
    """Split the trust in several axes into what they share and what each has beyond it."""
    powers = [(trust.damping, trust.fading) for trust in trusts.values()]
    damping, fading = (min(column) for column in zip(*powers, strict=True)) if powers else (0.0, 0.0)
    beyond = {
        axis: trust._replace(damping=trust.damping - damping, fading=trust.fading - fading)
        for axis, trust in trusts.items()
    }
    return Trust(1.0, damping, fading), beyond


def read_powers(name: str, given: PowersLike) -> float | RewardWeights | None:
    """Read one number, one per axis or nothing; numbers may be text, as from a command line.

    Raises:
        ValueError: If it does not parse, or a power is negative or not finite.
    """
    if given is None or isinstance(given, RewardWeights):
        return given
    try:
        number = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        try:
            return RewardWeights.parse(given)
        except ValueError:
            number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"Expected `{name}` to be 0 or more, or as 'VQ=0,TA=1.5', but got {shown(given, str)}.")
    return number


def powers_of(name: str, given: PowersLike, axes: Sequence[str], recommended: tuple[float, ...]) -> tuple[float, ...]:
    """Return one power per axis; those that the reward recommends if none are given.

    Raises:
        ValueError: If an axis is unknown, or there is another number of them.
    """
    powers = read_powers(name, given)
    if powers is None:
        return recommended
    if not isinstance(powers, RewardWeights):
        return (powers,) * len(axes)
    try:
        return powers.resolve(axes)
    except ValueError:
        raise ValueError(
            f"Expected `{name}` as one number, or one for each of {', '.join(axes)}, but got {powers}; name the "
            "reward's own axes."
        ) from None
