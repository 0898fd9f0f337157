"""The settings of the guidance worked out for one reward, once a run: everything that a step needs to know of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nrg_sampler.guidance.part import Part
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trust import Trust, powers_of, shared
from nrg_sampler.rewards.base import Reward, RewardHooks, check_reward
from nrg_sampler.rewards.frames import ALL
from nrg_sampler.rewards.gate import require_gate


@dataclass(frozen=True)
class ResolvedGuidance:
    """A reward and the settings that guide with it.

    Args:
        settings: The settings.
        reward: The reward.
        hooks: What it has besides axes.
        weights: Of each axis that has one; 1 where the prompts decide.
        proposed: Whether the prompts decide.
        floor: Axes that the push must not lower to first order.
        strength: What multiplies the gradient of the score, the ``w`` of the formula.
        trust: Trust that all weighted axes share, by noise level.
        beyond: Trust of each weighted axis beyond that.
    """

    settings: RewardGuidance
    reward: Reward
    hooks: RewardHooks
    weights: dict[str, float]
    proposed: bool
    floor: tuple[str, ...]
    strength: float
    trust: Trust
    beyond: dict[str, Trust]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the reward."""
        return self.hooks.axes

    @property
    def frames(self) -> str:
        """Which latent frames the reward looks at."""
        return self.settings.frames or self.hooks.recommended_frames

    @property
    def windowed(self) -> bool:
        """Whether the reward reads a part of the latents only."""
        return self.frames != ALL or self.settings.crop < 1

    def part(self, shape: Sequence[int], turn: int) -> Part:
        """Return the part of latents ``(B, C, T, H, W)`` that is read in the step with the number ``turn``."""
        settings = self.settings
        return Part.of(shape, self.frames, settings.crop, turn // settings.every, self.hooks.chooses_frames)

    @property
    def limits(self) -> dict[str, Any]:
        """The limits and powers of the push, as arguments of ``guide``."""
        settings, trust = self.settings, self.trust
        limits = {"max_coefficient": settings.max_coefficient, "max_push": settings.max_push}
        return {**limits, "damping": trust.damping, "fading": trust.fading}

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The axes that are differentiated one at a time; none if their weighted sum is, in a single backward pass."""
        apart = self.settings.balanced or self.settings.conflicts != "sum" or self.floor
        return tuple(axis for axis in self.axes if axis in self.weights or axis in self.floor) if apart else ()

    @property
    def passes_back(self) -> int:
        """How many backward passes one gradient takes."""
        return max(1, len(self.differentiated))


def resolve(settings: RewardGuidance, reward: Any) -> ResolvedGuidance:
    """Work the settings out for a reward.

    Raises:
        ValueError: If it is no reward, an axis is unknown, the number of weights or powers differs, weights are to be
            proposed and it cannot, options of rewards on pixels are given and it is none, or a penalty on
            disagreement needs several members and there is one only.
    """
    hooks = check_reward(reward)
    if any(options := settings.pixel_options):
        if hooks.computed_with is None:
            raise ValueError(
                f"Expected a reward on pixels for {options}, but {type(reward).__name__} reads latents; leave it out."
            )
        reward = hooks.computed_with(options)
        hooks = check_reward(reward)
    axes = hooks.axes
    given = settings.axis_weights
    floor = _floor(settings, axes)
    weights = (1.0,) * len(axes) if given.auto else given.resolve(axes)
    weighted = {axis: weight for axis, weight in zip(axes, weights, strict=True) if weight}
    trusts = _trusts(settings, hooks)
    trust, beyond = shared({axis: own for axis, own in trusts.items() if axis in weighted})
    if given.auto:
        require_gate(reward)
    if settings.disagreement and hooks.num_members < 2:
        raise ValueError(
            f"Expected a reward with several members for disagreement={settings.disagreement:g}, but "
            f"{type(reward).__name__} has one; train one with `train-reward --members 3`, combine rewards in an "
            "`EnsembleReward`, or leave disagreement at 0."
        )
    return ResolvedGuidance(
        settings=settings,
        reward=reward,
        hooks=hooks,
        weights=weighted,
        proposed=given.auto,
        floor=floor,
        strength=settings.scale * (max(hooks.recommended_scale) if settings.calibrated else 1.0),
        trust=trust,
        beyond=beyond,
    )


def _trusts(settings: RewardGuidance, hooks: RewardHooks) -> dict[str, Trust]:
    """Return how far each axis is trusted at each noise level."""
    scales = hooks.recommended_scale
    shares = [scale / max(scales) for scale in scales] if settings.calibrated else [1.0] * len(scales)
    damping = powers_of("damping", settings.damping, hooks.axes, hooks.recommended_damping)
    fading = powers_of("fading", settings.fading, hooks.axes, hooks.recommended_fading)
    return dict(zip(hooks.axes, map(Trust, shares, damping, fading), strict=True))


def _floor(settings: RewardGuidance, axes: Sequence[str]) -> tuple[str, ...]:
    floor = tuple(settings.floor or ())
    if unknown := [name for name in floor if name not in axes]:
        raise ValueError(
            f"Expected `floor` to name axes of the reward ({', '.join(axes)}), but got {', '.join(unknown)}; "
            "use the reward's own axes."
        )
    return floor
