"""One guided denoising step: read the latents, differentiate the reward, settle its axes, push the velocity.

The settings are :class:`nrg_sampler.guidance.settings.RewardGuidance`; the formula itself is in
:mod:`nrg_sampler.guidance.push`, what is done when axes disagree in :mod:`nrg_sampler.guidance.directions`.

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from nrg_sampler.flow import PURE_NOISE, along_path, below_noise, clean_from, expand, working_dtype
from nrg_sampler.guidance import directions
from nrg_sampler.guidance.memory import Direction, DirectionMemory
from nrg_sampler.guidance.push import guide, measure_push
from nrg_sampler.guidance.resolved import ResolvedGuidance, resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.stopwatch import Stopwatch
from nrg_sampler.guidance.trace import GuidanceTrace, Measurement
from nrg_sampler.rewards.base import Conditioning, Reward, SharedForward
from nrg_sampler.rewards.gate import propose_weights
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient

AxisWeights: TypeAlias = Mapping[str, float | Tensor]  # a number, or one for each sample, shape (B,)


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
    if guidance.reuse and memory is None:
        guidance = replace(guidance, every=1, reuse=False)
    resolved = resolve(guidance, reward)
    if guidance.forward == "shared" and not isinstance(reward, SharedForward):
        raise ValueError(
            "Expected forward='separate' in a sampling loop of your own, but got 'shared'; only `attach` can reach "
            "into the denoiser."
        )
    _check_arguments(latents, velocity, sigma)
    _check_place(resolved, step_index, num_inference_steps)
    recorder = GuidanceTrace(resolved.axes, guidance.scale) if trace is None else trace
    guided = take_step(
        resolved,
        latents,
        velocity,
        sigma,
        conditioning,
        step_index=step_index,
        num_inference_steps=num_inference_steps,
        trace=recorder,
        memory=memory or DirectionMemory(),
        dtype=dtype,
    )
    if trace is None:
        recorder.warn_not_finite()
    return guided


def take_step(
    resolved: ResolvedGuidance,
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    conditioning: Conditioning | None,
    *,
    step_index: int | None,
    num_inference_steps: int | None,
    trace: GuidanceTrace,
    memory: DirectionMemory,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Guide one step with settings that were worked out and checked before; arguments as of ``guided_velocity``."""
    settings = resolved.settings
    place = step_index or 0
    skipped = None if num_inference_steps is None else settings.skips(place, num_inference_steps)
    stated, sigma = sigma, below_noise(sigma) if resolved.hooks.guides_noise else sigma
    skipped = skipped or _skips_sigma(sigma)
    if skipped:
        trace.record(step_index, stated, skipped=skipped)
        return velocity
    stopwatch = Stopwatch(latents.device)
    held = memory.recall(latents) if settings.reuses(place) else None
    direction = held or reward_direction(resolved, latents, velocity, sigma, conditioning, turn=place)
    memory.last = direction
    push = measure_push(velocity, direction.value, sigma, resolved.strength, **resolved.limits)
    exact = velocity.to(working_dtype(velocity, direction.value))
    guided = guide(exact, direction.value, sigma, resolved.strength, push=push).to(dtype or velocity.dtype)
    stopwatch.stop()
    trace.proposed = direction.proposed
    measurement = Measurement(**vars(push), reward=direction.raw, floored=direction.floored, stopwatch=stopwatch)
    trace.record(step_index, stated, reused=held is not None, measurement=measurement)
    return guided


def reward_direction(
    resolved: ResolvedGuidance,
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    conditioning: Conditioning | None,
    turn: int = 0,
) -> Direction:
    """Differentiate the reward and settle what its axes disagree about.

    Args:
        resolved: The settings, worked out for the reward.
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        velocity: Velocity after classifier-free guidance, same shape.
        sigma: Noise level: a number, or shape ``(B,)``.
        conditioning: The positive prompts, one row per latent.
        turn: Number of the step: the seed of the noise that ``smoothing`` exchanges, and whose turn it is to be read.

    Returns:
        The direction, before scale, coefficient and limits.

    Raises:
        ValueError: If the arguments or the reward do not fit.
    """
    dtype = working_dtype(latents, velocity)
    latents, velocity = latents.to(dtype), velocity.to(dtype)
    if resolved.hooks.needs_velocity:
        conditioning = replace(conditioning or Conditioning(), velocity=velocity)
    weights, proposed = _weights(resolved, conditioning, sigma, latents)
    level = (1 - resolved.settings.lookahead) * sigma
    points = reading_points(resolved.settings, latents, velocity, sigma, level, turn)
    grads, raw = mean_gradients(resolved, points, level, conditioning, weights, turn)
    if resolved.settings.lookahead:
        # The velocity is taken for constant, which leaves a Jacobian of 1 (Patel et al., 2024, arXiv:2412.00100,
        # gradient skipping). The gradient of what is expected of the clean latents shrinks like 1 - sigma, and read at
        # `level` it has not done so yet.
        grads = expand((1 - sigma) / (1 - level), latents) * grads
    direction, floored = settled(resolved, grads, weights, clean_from(latents, velocity, sigma))
    return Direction(direction, raw, floored, proposed)


def reading_points(
    settings: RewardGuidance,
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    level: Tensor | float,
    seed: int,
) -> Iterable[Tensor]:
    """First stage: where the reward is read, one point at noise level ``level`` or several to average over."""
    if settings.smoothing:
        noises = settings.smoothing, settings.smoothing_samples, seed
        return directions.renoised(latents, velocity, sigma, level, *noises)
    return [along_path(latents, velocity, sigma, level) if settings.lookahead else latents]


def mean_gradients(
    resolved: ResolvedGuidance,
    points: Iterable[Tensor],
    level: Tensor | float,
    conditioning: Conditioning | None,
    weights: AxisWeights,
    turn: int,
) -> tuple[Tensor, Tensor]:
    """Second stage: the gradients there, averaged over the points.

    Returns:
        The gradients of the axes that are differentiated one at a time, shape ``(K, B, C, T, H, W)``; with none, K = 1
        and it is that of the weighted sum, which takes a single backward pass. And the raw reward, ``(B, axes)``.
    """
    settings = resolved.settings
    # a push away from the reward is sure of the upper bound
    options = settings.calibrated, math.copysign(settings.disagreement, settings.scale)
    gradients, raws = [], []
    for point in points:
        read, given = point, conditioning
        part = resolved.part(point.shape, turn) if resolved.windowed else None
        if part is not None:
            read, given = part.cut(point), part.conditioning(conditioning or Conditioning())
        if resolved.differentiated:
            grads, raw = axis_gradients(read, level, resolved.reward, given, resolved.differentiated, *options)
        else:
            grad, raw = reward_gradient(read, level, resolved.reward, given, weights, *options)
            grads = grad[None]
        gradients.append(grads if part is None else part.placed(grads, (len(grads), *point.shape)))
        raws.append(raw)
    if len(gradients) == 1:
        return gradients[0], raws[0]
    return torch.stack(gradients).mean(dim=0), torch.stack(raws).mean(dim=0)


def settled(resolved: ResolvedGuidance, grads: Tensor, weights: AxisWeights, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Third stage: one direction from the gradients ``(K, B, ...)`` of several axes.

    Returns:
        The direction, shape ``(B, ...)``, and whether a floor changed it, shape ``(B,)``.
    """
    settings, names = resolved.settings, resolved.differentiated
    direction = grads[0]
    if names:
        terms = grads[[names.index(axis) for axis in weights]]
        if settings.balanced:
            terms = directions.balanced(terms)
        terms = torch.stack(
            [expand(weight, term) * term for weight, term in zip(weights.values(), terms, strict=True)]
        )
        if settings.conflicts == "project":
            terms = directions.without_conflicts(terms)
        direction = terms.sum(dim=0)
    if settings.parallel != 1:
        direction = directions.less_parallel(direction, clean, settings.parallel)
    if not resolved.floor:
        return direction, torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    sign = math.copysign(1, settings.scale)  # the floor holds for what is done, also when that is flipped
    floors = grads[[names.index(axis) for axis in resolved.floor]]
    held, floored = directions.above_floor(sign * direction, floors)
    return sign * held, floored


def _weights(
    resolved: ResolvedGuidance, conditioning: Conditioning | None, sigma: Tensor | float, latents: Tensor
) -> tuple[AxisWeights, Tensor | None]:
    """Return the weight of each axis beyond the trust that all share, and what the reward proposed, if it did."""
    weights: AxisWeights = resolved.weights
    proposed = None
    if resolved.proposed:
        proposed = propose_weights(resolved.reward, conditioning)
        weights = dict(zip(resolved.axes, proposed.unbind(dim=1), strict=True))
    return {axis: resolved.beyond[axis].weigh(weight, sigma, latents) for axis, weight in weights.items()}, proposed


def _skips_sigma(sigma: Tensor | float) -> str | None:
    """Spare the reward where no sample can be guided, unless looking would make the host wait for the device."""
    if isinstance(sigma, Tensor) and sigma.device.type != "cpu":
        return None
    levels = torch.as_tensor(sigma)
    return "sigma" if bool(((levels <= 0) | (levels > PURE_NOISE)).all()) else None


def _check_place(resolved: ResolvedGuidance, step_index: int | None, num_inference_steps: int | None) -> None:
    settings = resolved.settings
    if step_index is not None and num_inference_steps is not None:
        return
    if (settings.start, settings.stop, settings.every) != (0, 1, 1) or resolved.windowed:
        raise ValueError(
            f"Expected `step_index` and `num_inference_steps` for guidance with start={settings.start:g}, "
            f"stop={settings.stop:g}, every={settings.every}, frames={resolved.frames!r}, "
            f"crop={settings.crop:g}, but got {step_index} and {num_inference_steps}; pass both."
        )


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
