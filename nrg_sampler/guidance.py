r"""Flow-NRG: the settings, the pure function and the one call for a sampling loop.

.. math:: \tilde v = v - w\,\frac{\sigma}{1-\sigma}\,\nabla_x r(x_\sigma, \sigma)

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler.flow import PURE_NOISE, coefficient, expand, per_sample, working_dtype
from nrg_sampler.rewards.base import (
    Conditioning,
    Reward,
    RewardWeights,
    WeightsLike,
    check_reward,
    recommended_scale,
)
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.trace import GuidanceTrace, Measurement, Stopwatch

TINY = 1e-30  # keeps the ratio of two zero norms at zero


@dataclass(frozen=True)
class RewardGuidance:
    """Say how strongly, when and within which limits the reward moves the velocity.

    Args:
        weights: One weight per axis: ``"1:1:1"``, ``"VQ=1,TA=0.5"``, a dict, a sequence; ``None`` is 1 for every axis.
        scale: Strength; 0 is none and a negative one pushes away from the reward.
        start: First guided moment as a fraction of the denoising steps, in [0, 1].
        stop: Moment from which guidance is off, in [0, 1], at least ``start``.
        every: Guide each n-th denoising step only.
        max_coefficient: Upper limit of ``sigma / (1 - sigma)``, above 0; ``None`` for no limit.
        max_push: Upper limit of the push's norm as a fraction of the velocity's norm, above 0; ``None`` for no limit.
        damping: Exponent p >= 0 of a factor ``(1 - sigma) ** p`` on the push, which trusts the reward less in noise.
        calibrated: Measure the reward in its stored standard deviations and ``scale`` in its recommended scale.
            If ``False`` the reward is used raw and ``scale`` is the paper's w.

    Raises:
        ValueError: If a setting is out of range.
    """

    weights: WeightsLike = None
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    max_coefficient: float | None = 1.0
    max_push: float | None = 0.3
    damping: float = 0.0
    calibrated: bool = True

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            _expect(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        _expect(self.start <= self.stop, "start", f"at most `stop` ({self.stop:g})", self.start)
        _expect(math.isfinite(self.scale), "scale", "a finite number", self.scale)
        _expect(isinstance(self.every, int) and self.every >= 1, "every", "a whole number of 1 or more", self.every)
        for name in ("max_coefficient", "max_push"):
            limit = getattr(self, name)
            _expect(limit is None or limit > 0, name, "above 0, or None for no limit", limit)
        _expect(math.isfinite(self.damping) and self.damping >= 0, "damping", "0 or more", self.damping)
        weights = RewardWeights.parse(self.weights)
        if self.scale != 0:
            weights.require_some()
        object.__setattr__(self, "weights", weights)

    @classmethod
    def paper(cls, scale: float = 100.0, weights: WeightsLike = None) -> RewardGuidance:
        """Return the published algorithm: every step but sigma = 1, raw reward, no clamp, cap or damping."""
        return cls(weights=weights, scale=scale, max_coefficient=None, max_push=None, calibrated=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``RewardGuidance(**settings)`` reads them back."""
        weights = RewardWeights.parse(self.weights)
        return {**vars(self), "weights": None if weights.values is None else str(weights)}

    def strength(self, reward: Reward) -> float:
        """Return the number that multiplies the gradient of the score, the ``w`` of the formula."""
        return self.scale * (recommended_scale(reward) if self.calibrated else 1.0)

    def limits(self) -> dict[str, Any]:
        """Return the settings that bound the push, as keyword arguments of ``guide``."""
        return {"max_coefficient": self.max_coefficient, "max_push": self.max_push, "damping": self.damping}

    def skips(self, step_index: int, num_inference_steps: int) -> str | None:
        """Return why a denoising step is left unguided: ``"window"`` or ``"every"``; ``None`` if it is not."""
        if not self.start <= step_index / num_inference_steps < self.stop:
            return "window"
        return "every" if step_index % self.every else None


class Push(NamedTuple):
    """A change of the velocity, shape ``(B, C, T, H, W)``, and what made it, each ``(B,)``; see ``Measurement``."""

    value: Tensor
    grad_norm: Tensor
    velocity_norm: Tensor
    coefficient: Tensor
    push_ratio: Tensor
    clamped: Tensor
    capped: Tensor
    finite: Tensor


def compute_push(
    velocity: Tensor,
    reward_grad: Tensor,
    sigma: Tensor | float,
    scale: float = 1.0,
    *,
    max_coefficient: float | None = None,
    max_push: float | None = None,
    damping: float = 0.0,
) -> Push:
    """Return what ``guide`` subtracts from the velocity, with its numbers per sample; arguments as there."""
    dtype = working_dtype(velocity, reward_grad)
    velocity, reward_grad = velocity.to(dtype), reward_grad.to(dtype)
    sigma = per_sample(sigma, velocity)
    guidable = (sigma > 0) & (sigma <= PURE_NOISE)
    sigma = torch.where(guidable, sigma, 0.0)  # keeps the singularity at 1 out of the arithmetic

    factor = coefficient(sigma)
    highest = math.inf if max_coefficient is None else max_coefficient
    clamped = factor > highest
    factor = factor.clamp(max=highest) * (1 - sigma) ** damping
    push = scale * expand(factor, velocity) * reward_grad

    grad_norm, velocity_norm, push_norm = _norm(reward_grad), _norm(velocity), _norm(push)
    finite = (grad_norm.isfinite() & push_norm.isfinite()) | ~guidable
    limit = math.inf if max_push is None else max_push * velocity_norm
    capped = (push_norm > limit) & finite
    shrink = torch.where(capped, limit / push_norm, 1.0)
    # `where`, because 0 * nan is nan
    push = torch.where(expand(guidable & finite, push).bool(), push * expand(shrink, push), 0.0)
    ratio = torch.where(guidable & finite, push_norm * shrink / velocity_norm.clamp(min=TINY), 0.0)
    return Push(push, grad_norm, velocity_norm, factor, ratio, clamped, capped, finite)


def guide(
    velocity: Tensor,
    reward_grad: Tensor,
    sigma: Tensor | float,
    scale: float = 1.0,
    *,
    max_coefficient: float | None = None,
    max_push: float | None = None,
    damping: float = 0.0,
) -> Tensor:
    r"""Move a velocity toward higher reward, each sample on its own.

    .. math:: \tilde v = v - w \frac{\sigma}{1-\sigma} (1-\sigma)^p \nabla_x r(x_\sigma, \sigma)

    Args:
        velocity: Velocity after classifier-free guidance, shape ``(B, C, T, H, W)``.
        reward_grad: Gradient of the weighted reward w.r.t. the latents, same shape.
        sigma: Noise level, 1 is pure noise: a number, or shape ``(B,)``; samples at 0 and 1 are left alone.
        scale: Strength ``w``; 0 returns ``velocity`` itself.
        max_coefficient: Upper limit of ``sigma / (1 - sigma)``; ``None`` for no limit.
        max_push: Upper limit of the change's norm as a fraction of the velocity's norm; ``None`` for no limit.
        damping: Exponent p >= 0 of the factor ``(1 - sigma) ** p``.

    Returns:
        Guided velocity, same shape and dtype as ``velocity``; a sample whose gradient is not finite comes back as is.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 11 (Flow-NRG); clamp, cap and damping are additions.
    """
    if scale == 0:
        return velocity
    push = compute_push(
        velocity, reward_grad, sigma, scale, max_coefficient=max_coefficient, max_push=max_push, damping=damping
    )
    return (velocity.to(push.value.dtype) - push.value).to(velocity.dtype)


def guided_velocity(
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None = None,
    guidance: RewardGuidance | None = None,
    *,
    step_index: int | None = None,
    num_inference_steps: int | None = None,
    trace: GuidanceTrace | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the guided velocity of one step: all that a hand-written sampling loop needs.

    ::

        for sigma, sigma_next in pairwise(sigmas):
            velocity = model(latents, sigma)
            velocity = guided_velocity(latents, velocity, sigma, reward)
            latents = latents + (sigma_next - sigma) * velocity

    Args:
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        velocity: Velocity after classifier-free guidance, same shape.
        sigma: Noise level, 1 is pure noise: a number, or shape ``(B,)``; at 0 and 1 nothing is changed.
        reward: Differentiable reward with named ``axes``.
        conditioning: The positive prompts, one row per latent.
        guidance: The settings.
        step_index: Number of the denoising step from 0; needed if ``guidance`` has a window or skips steps.
        num_inference_steps: Number of denoising steps; needed with ``step_index``.
        trace: Records the step, and warns when its ``warn`` is called. Without one, a gradient that is not finite is
            warned about at once.
        dtype: Type of the result, that of ``velocity`` by default; for a loop that casts the latents instead.

    Returns:
        Guided velocity, same shape; with ``scale=0`` and in skipped steps ``velocity`` itself, untouched.

    Raises:
        ValueError: If the arguments or the reward do not fit.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 11 (Flow-NRG).
    """
    guidance = guidance or RewardGuidance()
    if guidance.scale == 0:
        return velocity
    check_reward(reward)
    _check_arguments(latents, velocity, sigma)
    recorder = GuidanceTrace(tuple(reward.axes), guidance.scale) if trace is None else trace
    skipped = _skips(guidance, step_index, num_inference_steps) or _skips_sigma(sigma)
    if skipped:
        recorder.record(step_index, sigma, skipped=skipped)
        return velocity

    stopwatch = Stopwatch(latents.device)
    grad, raw = reward_gradient(latents, sigma, reward, conditioning, guidance.weights, guidance.calibrated)
    push = compute_push(velocity, grad, sigma, guidance.strength(reward), **guidance.limits())
    guided = (velocity.to(push.value.dtype) - push.value).to(dtype or velocity.dtype)
    stopwatch.stop()
    recorder.record(step_index, sigma, measurement=_measurement(raw, push, stopwatch))
    if trace is None:
        recorder.warn_not_finite()
    return guided


def _measurement(raw: Tensor, push: Push, stopwatch: Stopwatch) -> Measurement:
    numbers = push._asdict()
    del numbers["value"]
    return Measurement(reward=raw, stopwatch=stopwatch, **numbers)


def _skips(guidance: RewardGuidance, step_index: int | None, num_inference_steps: int | None) -> str | None:
    if step_index is not None and num_inference_steps is not None:
        return guidance.skips(step_index, num_inference_steps)
    if (guidance.start, guidance.stop, guidance.every) != (0, 1, 1):
        raise ValueError(
            f"Expected `step_index` and `num_inference_steps` for guidance with start={guidance.start:g}, "
            f"stop={guidance.stop:g}, every={guidance.every}, but got {step_index} and {num_inference_steps}; pass both."
        )
    return None


def _skips_sigma(sigma: Tensor | float) -> str | None:
    """Spare the reward where no sample can be guided, unless asking would make the host wait for the device."""
    if isinstance(sigma, Tensor) and sigma.device.type != "cpu":
        return None
    levels = torch.as_tensor(sigma)
    return "sigma" if bool(((levels <= 0) | (levels > PURE_NOISE)).all()) else None


def _check_arguments(latents: Tensor, velocity: Tensor, sigma: Tensor | float) -> None:
    if latents.shape != velocity.shape:
        raise ValueError(
            f"Expected `latents` and `velocity` of one shape, but got {tuple(latents.shape)} and "
            f"{tuple(velocity.shape)}; pass the velocity after classifier-free guidance."
        )
    if isinstance(sigma, Tensor) and sigma.device.type != "cpu":  # looking at it would make the host wait
        return
    levels = torch.as_tensor(sigma)
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(
            f"Expected `sigma` between 0 and 1, but got {levels.max().item():g}; a timestep is 1000 times sigma."
        )


def _norm(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(dim=1).sqrt()


def _expect(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {got}.")
