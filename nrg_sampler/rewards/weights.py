"""The weights of a reward's axes, as users write them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nrg_sampler.entries import shown

AUTO = "auto"  # weights that the reward is to propose


@dataclass(frozen=True)
class RewardWeights:
    """One non-negative weight per axis, used as given and never normalised, as in the paper.

    Args:
        values: The weights, in the reward's order of axes or in that of ``names``; ``None`` is 1 for every axis.
        names: The axes that ``values`` belong to; axes not named weigh 0.
        auto: Whether the reward is to propose them from the prompt, see :mod:`nrg_sampler.rewards.gate`.

    Raises:
        ValueError: If there is none, one is negative or not finite, or a name comes twice.
    """

    values: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None
    auto: bool = False

    def __post_init__(self) -> None:
        if self.values is not None and not self.values:
            raise ValueError("Expected one number per axis, but got none; leave them out for all axes alike.")
        for value in self.values or ():
            if not math.isfinite(value) or value < 0:
                raise ValueError(
                    f"Expected reward weights of 0 or more, but got {value:g}; use 0 to leave an axis unguided."
                )
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise ValueError(f"Expected each axis once, but got {', '.join(self.names)}; name every axis one time.")

    @classmethod
    def parse(cls, weights: Any) -> RewardWeights:
        """Read weights from ``"1:1:1"``, ``"VQ=1,TA=0.5"``, ``"auto"``, a mapping, a sequence or ``None`` (all 1).

        Raises:
            ValueError: If they do not parse or are negative.
        """
        if isinstance(weights, RewardWeights):
            return weights
        if weights is None:
            return cls()
        if isinstance(weights, str) and weights.strip() == AUTO:
            return cls(auto=True)
        try:
            names, values = _names_and_values(weights)
            return cls(tuple(float(value) for value in values), names)
        except (TypeError, ValueError, OverflowError) as error:
            if str(error).startswith("Expected"):
                raise
            raise ValueError(
                f"Expected reward weights like '1:1:1', 'VQ=1,TA=0.5', a dict or a list of numbers, but got "
                f"{shown(weights)}; write one number per axis."
            ) from None

    def require_some(self) -> None:
        """Raise ``ValueError`` if every weight is 0."""
        if self.values is not None and not any(self.values):
            raise ValueError(
                f"Expected at least one reward weight above 0, but got {self}; "
                "use a scale of 0 to sample without guidance."
            )

    def resolve(self, axes: Sequence[str]) -> tuple[float, ...]:
        """Return one weight per axis, in the order of ``axes``.

        Raises:
            ValueError: If an axis is unknown, the number of weights differs or a reward is yet to propose them.
        """
        if self.auto:
            raise ValueError(
                "Expected weights that are known, but got 'auto', which a prompt decides; call `propose_weights`."
            )
        if self.values is None:
            return (1.0,) * len(axes)
        if self.names is None:
            if len(self.values) != len(axes):
                raise ValueError(
                    f"Expected {len(axes)} reward weights ({':'.join(axes)}), but got {len(self.values)} ({self}); "
                    "write one number per axis."
                )
            return self.values
        unknown = [name for name in self.names if name not in axes]
        if unknown:
            raise ValueError(
                f"Expected weights for the axes {', '.join(axes)}, but got {', '.join(unknown)}; use the reward's own."
            )
        named = dict(zip(self.names, self.values, strict=True))
        return tuple(named.get(axis, 0.0) for axis in axes)

    def __str__(self) -> str:
        if self.auto:
            return AUTO
        if self.values is None:
            return "1 for every axis"
        if self.names is None:
            return ":".join(f"{value:g}" for value in self.values)
        return ",".join(f"{name}={value:g}" for name, value in zip(self.names, self.values, strict=True))


def _names_and_values(weights: Any) -> tuple[tuple[str, ...] | None, Sequence[Any]]:
    if isinstance(weights, str) and "=" in weights:
        names, values = zip(*(part.split("=") for part in weights.replace(" ", "").split(",")), strict=True)
        return names, values
    if isinstance(weights, Mapping):
        return tuple(str(name) for name in weights), list(weights.values())
    return None, weights.split(":") if isinstance(weights, str) else list(weights)


WeightsLike: TypeAlias = RewardWeights | str | Mapping[str, float] | Sequence[float] | None
