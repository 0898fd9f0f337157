"""One guided denoising step: ask the reward, settle what its axes disagree about, push the velocity.

The settings are :class:`nrg_sampler.guidance.settings.RewardGuidance`; the formula itself is in :mod:`nrg_sampler.guidance.push`, what is
done when axes disagree in :mod:`nrg_sampler.guidance.directions`.

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nrg_sampler.flow import PURE_NOISE, along_path, clean_from, expand, working_dtype
from nrg_sampler.guidance import directions
from nrg_sampler.guidance.part import Window
from nrg_sampler.guidance.push import Push, compute_push
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.stopwatch import Stopwatch
from nrg_sampler.guidance.trace import GuidanceTrace, Measurement
from nrg_sampler.rewards.base import Conditioning, Reward, RewardWeights, check_reward
from nrg_sampler.rewards.gate import propose_weights
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient


class Direction(NamedTuple):
    """Where the reward wants the latents to go.

    Args:
        value: Combined gradient, shape of the latents.
        raw: Raw reward there, shape ``(B, axes)``.
        floored: Whether a floor changed it, shape ``(B,)``.
        proposed: Weights that the reward proposed, shape ``(B, axes)``; ``None`` if they were given.
    """

    value: Tensor
    raw: Tensor
    floored: Tensor
    proposed: Tensor | None = None


@dataclass
class DirectionMemory:
    """Hold the last direction for the steps that reuse it; one per sampling run.

    Args:
        last: The direction, or ``None`` before the first.
    """

    last: Direction | None = field(default=None, repr=False)

    def recall(self, latents: Tensor) -> Direction | None:
        """Return the last direction if it is of such latents."""
        return self.last if self.last is not None and self.last.value.shape == latents.shape else None

    def keep(self, rows: Tensor) -> None:
        """Keep the samples ``rows`` of the batch, in this order, as a sampling loop does that gives some up."""
        if self.last is not None:
            parts = (None if part is None else part[rows.to(part.device)] for part in self.last)
            self.last = Direction(*parts)  # type: ignore[arg-type]


def reward_direction(
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None,
    guidance: RewardGuidance,
    seed: int = 0,
) -> Direction:
    """Differentiate the reward and settle what its axes disagree about.

    Args:
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        velocity: Velocity after classifier-free guidance, same shape.
        sigma: Noise level: a number, or shape ``(B,)``.
        reward: Differentiable reward with named ``axes``.
        conditioning: The positive prompts, one row per latent.
        guidance: The settings.
        seed: Number of the step: the seed of the noise that ``smoothing`` exchanges, and whose turn it is to be read.

    Returns:
        The direction, before scale, coefficient and limits.

    Raises:
        ValueError: If the arguments or the reward do not fit.
    """
    guidance.check(reward)
    weights: Mapping[str, float | Tensor]
    weights, floor = guidance.resolve(reward.axes)
    proposed = None
    if RewardWeights.parse(guidance.weights).auto:
        proposed = propose_weights(reward, conditioning)
        weights = dict(zip(reward.axes, proposed.unbind(dim=1), strict=True))
    dtype = working_dtype(latents, velocity)
    latents, velocity = latents.to(dtype), velocity.to(dtype)
    _, beyond = guidance.trust(reward)
    weights = {axis: beyond[axis].weigh(weight, sigma, latents) for axis, weight in weights.items()}
    # a push away from the reward is sure of the upper bound
    disagreement = math.copysign(guidance.disagreement, guidance.scale)
    if getattr(reward, "needs_velocity", False):
        conditioning = replace(conditioning or Conditioning(), velocity=velocity)
    names = guidance.differentiated(reward.axes)
    level = (1 - guidance.lookahead) * sigma

    def gradients(at: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the axes, or of their weighted sum alone, which takes a single pass back."""
        part, told = at, conditioning
        if guidance.windowed:
            window = Window.of(at.shape, guidance.frame_stride, guidance.crop, seed // guidance.every)
            part, told = window.cut(at), window.conditioning(conditioning or Conditioning())
        options = guidance.calibrated, disagreement
        if names:
            grads, raw = axis_gradients(part, level, reward, told, names, *options)
        else:
            grad, raw = reward_gradient(part, level, reward, told, weights, *options)
            grads = grad[None]
        return (window.placed(grads, (len(grads), *at.shape)) if guidance.windowed else grads), raw

    if guidance.smoothing:
        noises = guidance.smoothing, guidance.smoothing_samples, seed
        found = [gradients(point) for point in directions.renoised(latents, velocity, sigma, level, *noises)]
        grads, raw = (torch.stack(parts).mean(dim=0) for parts in zip(*found))
    else:
        grads, raw = gradients(along_path(latents, velocity, sigma, level) if guidance.lookahead else latents)
    if guidance.lookahead:
        # The velocity is taken for constant, which leaves a Jacobian of 1 (Patel et al., 2024, arXiv:2412.00100, gradient
        # skipping). The gradient of what is expected of the clean latents shrinks like 1 - sigma, and read at `level` it
        # has not done so yet.
        grads = expand((1 - sigma) / (1 - level), latents) * grads

    direction = _combined(grads, names, weights, guidance) if names else grads[0]
    if guidance.parallel != 1:
        direction = directions.less_parallel(direction, clean_from(latents, velocity, sigma), guidance.parallel)
    floored = torch.zeros(len(latents), dtype=torch.bool, device=latents.device)
    if floor:
        sign = math.copysign(1, guidance.scale)  # the floor holds for what is done, also when that is flipped
        held, floored = directions.above_floor(sign * direction, grads[[names.index(axis) for axis in floor]])
        direction = sign * held
    return Direction(direction, raw, floored, proposed)


def _combined(
    grads: Tensor, names: Sequence[str], weights: Mapping[str, float | Tensor], guidance: RewardGuidance
) -> Tensor:
    terms = grads[[names.index(axis) for axis in weights]]
    if guidance.balanced:
        terms = directions.balanced(terms)
    terms = torch.stack([expand(weight, term) * term for weight, term in zip(weights.values(), terms, strict=True)])
    if guidance.conflicts == "project":
        terms = directions.without_conflicts(terms)
    return terms.sum(dim=0)


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
    memory: DirectionMemory | None = None,
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
        step_index: Number of the denoising step from 0; needed if ``guidance`` has a window, skips steps or
            reads parts of the latents.
        num_inference_steps: Number of denoising steps; needed with ``step_index``.
        trace: Records the step, and warns when its ``warn`` is called. Without one, a gradient that is not finite is
            warned about at once.
        memory: Holds the direction from step to step, for ``guidance`` that reuses it; without one the reward is
            evaluated in every step.
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
    if guidance.forward == "shared" and not hasattr(reward, "evaluate"):
        raise ValueError(
            "Expected forward='separate' in a sampling loop of your own, but got 'shared'; only `attach` can reach into "
            "the denoiser."
        )
    _check_arguments(latents, velocity, sigma)
    recorder = GuidanceTrace(tuple(reward.axes), guidance.scale) if trace is None else trace
    if guidance.reuse and memory is None:
        guidance = replace(guidance, every=1, reuse=False)
    skipped = _skips(guidance, step_index, num_inference_steps) or _skips_sigma(sigma)
    if skipped:
        recorder.record(step_index, sigma, skipped=skipped)
        return velocity

    stopwatch = Stopwatch(latents.device)
    held = memory.recall(latents) if memory and guidance.reuses(step_index or 0) else None
    direction = held or reward_direction(
        latents, velocity, sigma, reward, conditioning, guidance, seed=step_index or 0
    )
    if memory is not None:
        memory.last = direction
    trust, _ = guidance.trust(reward)
    strength, powers = guidance.strength(reward), {"damping": trust.damping, "fading": trust.fading}
    push = compute_push(velocity, direction.value, sigma, strength, **powers, **guidance.limits())
    guided = (velocity.to(push.value.dtype) - push.value).to(dtype or velocity.dtype)
    stopwatch.stop()
    recorder.proposed = direction.proposed
    recorder.record(step_index, sigma, reused=held is not None, measurement=_measurement(direction, push, stopwatch))
    if trace is None:
        recorder.warn_not_finite()
    return guided


def _measurement(direction: Direction, push: Push, stopwatch: Stopwatch) -> Measurement:
    numbers = push._asdict()
    del numbers["value"]
    return Measurement(reward=direction.raw, floored=direction.floored, stopwatch=stopwatch, **numbers)


def _skips(guidance: RewardGuidance, step_index: int | None, num_inference_steps: int | None) -> str | None:
    if step_index is not None and num_inference_steps is not None:
        return guidance.skips(step_index, num_inference_steps)
    if (guidance.start, guidance.stop, guidance.every) != (0, 1, 1) or guidance.windowed:
        raise ValueError(
            f"Expected `step_index` and `num_inference_steps` for guidance with start={guidance.start:g}, "
            f"stop={guidance.stop:g}, every={guidance.every}, frame_stride={guidance.frame_stride}, "
            f"crop={guidance.crop:g}, but got {step_index} and {num_inference_steps}; pass both."
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
