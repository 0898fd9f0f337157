"""The protocol of a reward, its optional hooks and its normalisation.

A reward maps noisy latents ``(B, C, T, H, W)``, their ``sigma`` ``(B,)`` and the conditioning to raw numbers
``(B, axes)``. Nothing has to be inherited; a class with ``axes`` and ``__call__`` is a reward::

    class Brightness:
        axes = ("brightness",)

        def __call__(self, latents, sigma, conditioning):
            return (1 - sigma)[:, None] * latents.mean(dim=(1, 2, 3, 4))[:, None]

It should be noise-aware: its gradient must fade like ``1 - sigma`` toward pure noise, for the coefficient
``sigma / (1 - sigma)`` grows without bound there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nrg_sampler.rewards.frames import ALL, read_frames
from nrg_sampler.rewards.pixel_options import PixelOptions

DAMPING = 1.0  # of a reward that recommends none: sigma / (1 - sigma) times 1 - sigma is never above 1


@dataclass(frozen=True)
class Conditioning:
    """What each sample is conditioned on.

    Args:
        prompt_embeds: Text features of the positive prompt, shape ``(B, L, D)``.
        prompt_mask: 1 where a token counts, shape ``(B, L)``; all count by default.
        velocity: Velocity of the step after classifier-free guidance, shape of the latents; only for a reward with
            ``needs_velocity``.
        pooled: One vector for the positive prompt as a whole, shape ``(B, P)``, where the model has one.
        prepared: What the reward's own ``prepare`` made of the prompt, if it was called.
        frame_stride: How far apart in the video the frames of the latents are.
        frames: Which of the latent frames a reward that ``chooses_frames`` is to look at; all by default.
        prompts: The positive prompt as text, one for each sample, where it is known.
        fps: Frames per second of the finished video, where it is known.

    Raises:
        ValueError: If ``prompts`` is a single text.
    """

    prompt_embeds: Tensor | None = None
    prompt_mask: Tensor | None = None
    velocity: Tensor | None = None
    pooled: Tensor | None = None
    prepared: Any = field(default=None, kw_only=True)
    frame_stride: int = field(default=1, kw_only=True)
    frames: range | None = field(default=None, kw_only=True)
    prompts: tuple[str, ...] | None = field(default=None, kw_only=True)
    fps: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            raise ValueError(
                f"Expected `prompts` with one text for each sample, but got the single text {self.prompts!r}; pass "
                "`prompts=(text,)`."
            )
        if self.prompts is not None:
            object.__setattr__(self, "prompts", tuple(self.prompts))

    def copied(self, device: torch.device) -> Conditioning:
        """Return an independent copy on ``device``, safe to use under autograd even if made in inference mode."""
        copies: dict[str, Any] = {name: _copy(tensor, device) for name, tensor in self._tensors()}
        return replace(self, **copies)

    def for_batch(self, batch: int) -> Conditioning:
        """Return the conditioning of ``batch`` samples, repeating a single one and dropping the unconditional half.

        Raises:
            ValueError: If the stored batch is neither 1, ``batch`` nor ``2 * batch``; texts are of ``2 * batch`` only
                where tensors are.
        """
        rows: dict[str, Any] = {name: _for_batch(tensor, batch) for name, tensor in self._tensors()}
        return replace(self, **rows, prompts=self._prompts_for(batch), prepared=None)

    def _prompts_for(self, batch: int) -> tuple[str, ...] | None:
        if self.prompts is None or len(self.prompts) == batch:
            return self.prompts
        if len(self.prompts) == 1:
            return self.prompts * batch
        halved = any(tensor is not None and len(tensor) == 2 * batch for _, tensor in self._tensors())
        if halved and len(self.prompts) == 2 * batch:
            return self.prompts[batch:]
        raise ValueError(
            f"Expected one prompt for each of {batch} samples, but got {len(self.prompts)} prompts; pass one for "
            "each, or a single one for all."
        )

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in ("prompt_embeds", "prompt_mask", "velocity", "pooled"))


def _copy(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(device).clone()


def _for_batch(tensor: Tensor | None, batch: int) -> Tensor | None:
    if tensor is None or tensor.shape[0] == batch:
        return tensor
    if tensor.shape[0] == 2 * batch:  # classifier-free guidance in one batch: [unconditional, conditional]
        return tensor.chunk(2)[1]
    if tensor.shape[0] == 1:
        return tensor.expand(batch, *tensor.shape[1:])
    raise ValueError(
        f"Expected the conditioning of {batch} samples, but got {tensor.shape[0]}; pass one row per latent."
    )


@runtime_checkable
class Reward(Protocol):
    """Score noisy latents, higher is better.

    That is all a reward needs. What it may have besides, and what stands in where it does not, is
    :class:`RewardHooks`.
    """

    axes: tuple[str, ...]

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the raw reward, shape ``(B, axes)``.

        Args:
            latents: Noisy latents, float32, shape ``(B, C, T, H, W)``.
            sigma: Noise level in (0, 1), 1 is pure noise, shape ``(B,)``.
            conditioning: The positive prompt of each sample.
        """
        ...


class SharedForward(ABC):
    """A reward whose forward pass another network has begun, on latents of its own making."""

    @abstractmethod
    def evaluate(self, latents: Tensor, conditioning: Conditioning, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the latents that were followed, and the raw reward ``(B, axes)`` that depends on them.

        Args:
            latents: Those of the step, to compare with.
            conditioning: The positive prompts.
            **options: ``members=True``, as a reward with several members takes it.
        """


@dataclass(frozen=True)
class RewardHooks:
    """What a reward may have besides ``axes`` and ``__call__``, filled in where it does not.

    Give a reward attributes of these names. With the statistics and recommendations, weights and strengths mean the
    same for every reward.

    Args:
        axes: Names of the axes.
        mean: Of the raw reward over the base model's samples, one per axis; 0 by default.
        std: Its standard deviation there, the unit of a calibrated reward; 1 by default.
        recommended_scale: The default strength, in units of which calibrated scales are given: one number, or one per
            axis; 1 by default.
        recommended_damping: For each axis the power of ``1 - sigma`` by which its gradient is to be trusted less in
            noise, see :mod:`nrg_sampler.guidance.trust`; 1 by default.
        recommended_fading: The same of ``sigma``, by which it is to be trusted less near the end; 0 by default.
        recommended_frames: Which latent frames it is to look at in a step, as ``RewardGuidance`` names them; all by
            default.
        chooses_frames: Whether it is handed all frames, with those to look at in ``frames`` of the conditioning,
            rather than latents that are cut to them; ``False`` by default.
        needs_velocity: Whether it wants the velocity of the step in the conditioning; ``False`` by default.
        needs_prompts: Whether it reads the text of the prompts in the conditioning; ``False`` by default.
        guides_noise: Whether its gradient is known to fade exactly like ``1 - sigma``, so that the push at pure noise
            has a limit and is taken; ``False`` by default.
        num_members: How many members it has; above 1 it takes ``members=True`` and returns each member's reward, shape
            ``(B, members, axes)``, instead of the mean; 1 by default.
        has_gate: Whether it has ``propose``; ``False`` by default.
        propose: ``propose(conditioning)`` returns weights for each prompt, shape ``(B, axes)``, see
            :mod:`nrg_sampler.rewards.gate`.
        prepare: ``prepare(conditioning)`` returns it with what can be worked out of the prompts once for all steps, in
            ``prepared``; returned as it is by default.
        computed_with: ``computed_with(options)`` returns the same reward computed in another way, see
            :mod:`nrg_sampler.rewards.pixel_options`; for rewards on pixels.
        offloaded: Whether its weights rest elsewhere than the latents and it brings them itself; ``False`` by default.
        check_compatible: ``check_compatible(pipe)`` raises ``ValueError`` for a pipeline whose latents are not its
            own; none are refused by default.
    """

    axes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recommended_scale: tuple[float, ...]
    recommended_damping: tuple[float, ...]
    recommended_fading: tuple[float, ...]
    recommended_frames: str
    chooses_frames: bool
    needs_velocity: bool
    needs_prompts: bool
    guides_noise: bool
    num_members: int
    has_gate: bool
    propose: Callable[[Conditioning], Tensor] | None
    prepare: Callable[[Conditioning], Conditioning] | None
    computed_with: Callable[[PixelOptions], Any] | None
    offloaded: bool
    check_compatible: Callable[[Any], None] | None

    @classmethod
    def of(cls, reward: Any) -> RewardHooks:
        """Read what a reward has."""
        axes = tuple(reward.axes)

        def per_axis(name: str, default: float) -> tuple[float, ...]:
            values = getattr(reward, name, None)
            if values is None or isinstance(values, (int, float)):
                return (default if values is None else float(values),) * len(axes)
            return tuple(float(value) for value in values)

        return cls(
            axes=axes,
            mean=per_axis("mean", 0.0),
            std=per_axis("std", 1.0),
            recommended_scale=per_axis("recommended_scale", 1.0),
            recommended_damping=per_axis("recommended_damping", DAMPING),
            recommended_fading=per_axis("recommended_fading", 0.0),
            recommended_frames=getattr(reward, "recommended_frames", None) or ALL,
            chooses_frames=bool(getattr(reward, "chooses_frames", False)),
            needs_velocity=bool(getattr(reward, "needs_velocity", False)),
            needs_prompts=bool(getattr(reward, "needs_prompts", False)),
            guides_noise=bool(getattr(reward, "guides_noise", False)),
            num_members=int(getattr(reward, "num_members", 1)),
            has_gate=bool(getattr(reward, "has_gate", False)),
            propose=getattr(reward, "propose", None),
            prepare=getattr(reward, "prepare", None),
            computed_with=getattr(reward, "computed_with", None),
            offloaded=bool(getattr(reward, "offloaded", False)),
            check_compatible=getattr(reward, "check_compatible", None),
        )


def normalised(reward: Reward, raw: Tensor) -> Tensor:
    """Return ``(raw - mean) / std`` per axis with the reward's stored statistics, shape ``(B, axes)``."""
    hooks = RewardHooks.of(reward)
    statistics = zip(raw.unbind(-1), hooks.mean, hooks.std, strict=True)
    # numbers rather than a tensor of them, whose copy to the device the host would wait for
    return torch.stack([(column - mean) / std for column, mean, std in statistics], dim=-1)


@torch.no_grad()
def score_clean(reward: Reward, latents: Tensor, conditioning: Conditioning) -> Tensor:
    """Score finished latents, sigma 0, in the reward's standard deviations.

    Args:
        reward: Any reward.
        latents: Clean latents, shape ``(B, C, T, H, W)``.
        conditioning: The positive prompts, one row per latent.

    Returns:
        Shape ``(B, axes)``.
    """
    latents = latents.float()
    return normalised(reward, reward(latents, latents.new_zeros(len(latents)), conditioning))


def check_reward(reward: Any, pipe: Any = None) -> RewardHooks:
    """Refuse what cannot serve as a reward, or not with this pipeline.

    Returns:
        What the reward has.

    Raises:
        ValueError: If ``reward`` has no named axes, its statistics do not fit them or ``pipe`` has other latents.
    """
    axes = getattr(reward, "axes", None)
    if not callable(reward) or not axes or isinstance(axes, str):
        raise ValueError(
            f"Expected a reward, a callable with named `axes`, but got {_describe(reward)}; "
            "give it a tuple such as `axes = ('VQ', 'MQ', 'TA')`."
        )
    hooks = RewardHooks.of(reward)
    for name in ("mean", "std", "recommended_damping", "recommended_fading", "recommended_scale"):
        values = getattr(hooks, name)
        if len(values) != len(axes):
            raise ValueError(
                f"Expected `{name}` of the reward to have one value per axis ({', '.join(axes)}), "
                f"but got {len(values)}; store one for each."
            )
    for name in ("recommended_damping", "recommended_fading"):
        if not all(math.isfinite(value) and value >= 0 for value in getattr(hooks, name)):
            raise ValueError(
                f"Expected `{name}` of the reward to be 0 or more for each axis, but got {getattr(hooks, name)}; 0 "
                "trusts an axis at any noise level."
            )
    if not all(math.isfinite(value) and value > 0 for value in hooks.recommended_scale):
        raise ValueError(
            f"Expected `recommended_scale` of the reward to be above 0, but got {hooks.recommended_scale}; "
            "measure it again."
        )
    read_frames("recommended_frames", hooks.recommended_frames)
    if not all(value > 0 for value in hooks.std):
        raise ValueError(f"Expected `std` of the reward to be above 0, but got {hooks.std}; measure it again.")
    if pipe is not None and hooks.check_compatible is not None:
        hooks.check_compatible(pipe)
    return hooks


def _describe(reward: Any) -> str:
    return "None" if reward is None else f"{type(reward).__name__} without them"
