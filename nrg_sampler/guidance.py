"""Flow-NRG: the settings and the one call for a sampling loop.

The formula itself is in :mod:`nrg_sampler.push`; what is done when axes disagree, in :mod:`nrg_sampler.directions`.

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler import directions
from nrg_sampler.flow import PURE_NOISE, clean_from, expand, working_dtype
from nrg_sampler.push import Push, compute_push
from nrg_sampler.rewards.base import (
    Conditioning,
    Reward,
    RewardWeights,
    WeightsLike,
    check_reward,
    recommended_scale,
)
from nrg_sampler.rewards.ensemble import member_count
from nrg_sampler.rewards.gate import propose_weights, require_gate
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient
from nrg_sampler.rewards.window import Window
from nrg_sampler.trace import GuidanceTrace, Measurement, Stopwatch

CONFLICTS = ("sum", "project")
FORWARDS = ("separate", "shared")
READS = ("noisy", "clean")


@dataclass(frozen=True)
class RewardGuidance:
    """Say how strongly, when and within which limits the reward moves the velocity.

    Args:
        weights: One weight per axis: ``"1:1:1"``, ``"VQ=1,TA=0.5"``, a dict, a sequence; ``None`` is 1 for every axis.
            ``"auto"`` lets the reward propose them from the prompt, see :mod:`nrg_sampler.rewards.gate`.
        scale: Strength; 0 is none and a negative one pushes away from the reward.
        start: First guided moment as a fraction of the denoising steps, in [0, 1].
        stop: Moment from which guidance is off, in [0, 1], at least ``start``.
        every: Ask the reward in each n-th denoising step only.
        reuse: Push with the last direction in the steps between, rather than leave them unguided.
        max_coefficient: Upper limit of ``sigma / (1 - sigma)``, above 0; ``None`` for no limit.
        max_push: Upper limit of the push's norm as a fraction of the velocity's norm, above 0; ``None`` for no limit.
        damping: Exponent p >= 0 of a factor ``(1 - sigma) ** p`` on the push, which trusts the reward less in noise.
        calibrated: Measure the reward in its stored standard deviations and ``scale`` in its recommended scale.
            If ``False`` the reward is used raw and ``scale`` is the paper's w.
        balanced: Give the gradients of the weighted axes one norm, so that the weights alone set their shares.
        conflicts: What to do where two axes pull apart: ``"sum"`` adds them up all the same, ``"project"`` first takes
            out of each what goes against the other.
        floor: Axes that the push must not lower to first order, such as ``"TA"`` or ``"VQ,TA"``, weighted or not;
            ``None`` for no floor.
        parallel: Share kept of the push's part along the predicted clean latents, in [0, 1]; less saturates less.
        disagreement: Push along the mean of the reward's members minus this multiple of their standard deviation, axis
            by axis, 0 or more: what they disagree about pushes less. Needs a reward with several members; see
            :mod:`nrg_sampler.rewards.ensemble`.
        reads: What the reward is differentiated at: the ``"noisy"`` latents, as in the paper, or the predicted ``"clean"``
            ones, without differentiating the model, for a reward that knows no noise.
        smoothing: Share of the noise that is exchanged, in [0, 1], for the gradient to be an average over noises;
            0 takes the gradient at the latents themselves.
        smoothing_samples: Gradients in that average, each at the cost of one.
        forward: ``"separate"``: the reward runs its own forward pass. ``"shared"``: it reads the features that the
            denoiser computes anyway, inside ``attach`` and with a reward made for it; only the backward pass is extra.
        frame_stride: Let the reward read each n-th latent frame only; steps take turns in which one is the first.
        crop: Share of the height and of the width that the reward reads, above 0 and at most 1; steps take turns in
            the place. Both save time and memory with long and large videos.

    Raises:
        ValueError: If a setting is out of range.
    """

    weights: WeightsLike = None
    scale: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    reuse: bool = False
    max_coefficient: float | None = 1.0
    max_push: float | None = 0.3
    damping: float = 0.5
    calibrated: bool = True
    balanced: bool = False
    conflicts: str = "sum"
    floor: str | Sequence[str] | None = None
    parallel: float = 1.0
    disagreement: float = 0.0
    reads: str = "noisy"
    smoothing: float = 0.0
    smoothing_samples: int = 4
    forward: str = "separate"
    frame_stride: int = 1
    crop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "stop", "parallel", "smoothing"):
            _expect(0 <= getattr(self, name) <= 1, name, "between 0 and 1", getattr(self, name))
        _expect(self.start <= self.stop, "start", f"at most `stop` ({self.stop:g})", self.start)
        _expect(math.isfinite(self.scale), "scale", "a finite number", self.scale)
        _expect(0 < self.crop <= 1, "crop", "above 0 and at most 1", self.crop)
        for name in ("every", "smoothing_samples", "frame_stride"):
            count = getattr(self, name)
            _expect(isinstance(count, int) and count >= 1, name, "a whole number of 1 or more", count)
        for name, choices in (("conflicts", CONFLICTS), ("reads", READS), ("forward", FORWARDS)):
            chosen = getattr(self, name)
            _expect(chosen in choices, name, " or ".join(map(repr, choices)), repr(chosen))
        if self.forward == "shared":  # the denoiser sees the noisy latents, once
            _expect(self.smoothing == 0, "smoothing", "0 with forward='shared'", self.smoothing)
            _expect(self.reads == "noisy", "reads", "'noisy' with forward='shared'", repr(self.reads))
            for name in ("frame_stride", "crop"):
                _expect(getattr(self, name) == 1, name, "1 with forward='shared'", getattr(self, name))
        for name in ("max_coefficient", "max_push"):
            limit = getattr(self, name)
            _expect(limit is None or limit > 0, name, "above 0, or None for no limit", limit)
        for name in ("damping", "disagreement"):
            number = getattr(self, name)
            _expect(math.isfinite(number) and number >= 0, name, "0 or more", number)
        weights = RewardWeights.parse(self.weights)
        if self.scale != 0:
            weights.require_some()
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "floor", _floor(self.floor))

    @classmethod
    def paper(cls, scale: float = 100.0, weights: WeightsLike = None) -> RewardGuidance:
        """Return the published algorithm: every step but sigma = 1, raw reward, no limit and nothing else added."""
        return cls(weights=weights, scale=scale, max_coefficient=None, max_push=None, damping=0.0, calibrated=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``RewardGuidance(**settings)`` reads them back."""
        weights = RewardWeights.parse(self.weights)
        floor = _floor(self.floor)
        return {
            **vars(self),
            "weights": str(weights) if weights.values or weights.auto else None,
            "floor": None if floor is None else ",".join(floor),
        }

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
        return "every" if step_index % self.every and not self.reuse else None

    def reuses(self, step_index: int) -> bool:
        """Return whether a guided step takes the last direction, if there is one yet."""
        return self.reuse and step_index % self.every != 0

    def asked_steps(self, num_inference_steps: int) -> int:
        """Return in how many steps of a run the reward is asked."""
        if self.scale == 0:
            return 0
        guided = [step for step in range(num_inference_steps) if self.skips(step, num_inference_steps) is None]
        return sum(not self.reuses(step) or step == guided[0] for step in guided)

    @property
    def windowed(self) -> bool:
        """Whether the reward reads a part of the latents only."""
        return self.frame_stride > 1 or self.crop < 1

    def gradients(self, num_inference_steps: int) -> int:
        """Return how many gradients of the reward one run takes."""
        samples = self.smoothing_samples if self.smoothing and self.reads == "noisy" else 1
        return self.asked_steps(num_inference_steps) * samples

    def differentiated(self, axes: Sequence[str]) -> tuple[str, ...]:
        """Return the axes that are differentiated one at a time; none if their weighted sum is."""
        weights, floor = self.resolve(axes)
        apart = self.balanced or self.conflicts != "sum" or floor
        return tuple(axis for axis in axes if axis in weights or axis in floor) if apart else ()

    def passes_back(self, axes: Sequence[str]) -> int:
        """Return how many backward passes one gradient takes."""
        return max(1, len(self.differentiated(axes)))

    def resolve(self, axes: Sequence[str]) -> tuple[dict[str, float], tuple[str, ...]]:
        """Return the weight of each axis that has one, 1 where the prompts decide, and the floored axes.

        Raises:
            ValueError: If an axis is unknown or the number of weights differs.
        """
        floor = _floor(self.floor) or ()
        if unknown := [name for name in floor if name not in axes]:
            raise ValueError(
                f"Expected `floor` to name axes of the reward ({', '.join(axes)}), but got {', '.join(unknown)}; "
                "use the reward's own axes."
            )
        given = RewardWeights.parse(self.weights)
        weights = (1.0,) * len(axes) if given.auto else given.resolve(axes)
        return {axis: weight for axis, weight in zip(axes, weights, strict=True) if weight}, floor

    def check(self, reward: Any) -> None:
        """Refuse settings that the reward cannot serve.

        Raises:
            ValueError: If an axis is unknown, weights are to be proposed and it cannot, or members that disagree are
                asked for and there is one only.
        """
        self.resolve(reward.axes)
        if RewardWeights.parse(self.weights).auto:
            require_gate(reward)
        if self.disagreement and member_count(reward) < 2:
            raise ValueError(
                f"Expected a reward with several members for disagreement={self.disagreement:g}, but "
                f"{type(reward).__name__} has one; train one with `train-reward --members 3`, combine rewards in an "
                "`EnsembleReward`, or leave disagreement at 0."
            )


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
    given: WeightsLike | Tensor = guidance.weights
    proposed = None
    if RewardWeights.parse(guidance.weights).auto:
        given = proposed = propose_weights(reward, conditioning)
        weights = dict(zip(reward.axes, proposed.unbind(dim=1), strict=True))
    # a push away from the reward is sure of the upper bound
    disagreement = math.copysign(guidance.disagreement, guidance.scale)
    dtype = working_dtype(latents, velocity)
    latents, velocity = latents.to(dtype), velocity.to(dtype)
    if getattr(reward, "needs_velocity", False):
        conditioning = replace(conditioning or Conditioning(), velocity=velocity)
    names = guidance.differentiated(reward.axes)

    def gradients(at: Tensor) -> tuple[Tensor, Tensor]:
        """Return those of the axes, or of their weighted sum alone, which takes a single pass back."""
        level = 0.0 if guidance.reads == "clean" else sigma
        part, told = at, conditioning
        if guidance.windowed:
            window = Window.of(at.shape, guidance.frame_stride, guidance.crop, seed // guidance.every)
            part, told = window.cut(at), window.conditioning(conditioning or Conditioning())
        options = guidance.calibrated, disagreement
        if names:
            grads, raw = axis_gradients(part, level, reward, told, names, *options)
        else:
            grad, raw = reward_gradient(part, level, reward, told, given, *options)
            grads = grad[None]
        return (window.placed(grads, (len(grads), *at.shape)) if guidance.windowed else grads), raw

    if guidance.reads == "clean":
        # d clean / d latents is taken for 1: Patel et al., 2024, arXiv:2412.00100 (FlowChef, gradient skipping)
        grads, raw = gradients(clean_from(latents, velocity, sigma))
    elif guidance.smoothing:
        points = directions.renoised(latents, velocity, sigma, guidance.smoothing, guidance.smoothing_samples, seed)
        found = [gradients(point) for point in points]
        grads, raw = (torch.stack(parts).mean(dim=0) for parts in zip(*found))
    else:
        grads, raw = gradients(latents)

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
        memory: Holds the direction from step to step; needed if ``guidance`` reuses it.
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
    skipped = _skips(guidance, step_index, num_inference_steps) or _skips_sigma(sigma)
    if guidance.reuse and memory is None:
        raise ValueError(
            "Expected `memory` for guidance that reuses directions, but got None; "
            "make one `DirectionMemory()` a run and pass it in every step."
        )
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
    push = compute_push(velocity, direction.value, sigma, guidance.strength(reward), **guidance.limits())
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


def _floor(axes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    names = axes.split(",") if isinstance(axes, str) else axes or ()
    return tuple(name.strip() for name in names if name.strip()) or None


def _expect(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {got}.")
