"""Guide an existing pipeline: the only room that touches one.

``scheduler.step`` is the one place where the velocity after classifier-free guidance, the latents and sigma meet, so
that is what ``attach`` wraps, on the instance and for the duration of a ``with`` block. The prompt's features are read
from the denoiser's arguments on the way.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.families import Family, family_of, require_flow
from nrg_sampler.flow import PURE_NOISE, working_dtype
from nrg_sampler.guidance import DirectionMemory, RewardGuidance, guided_velocity
from nrg_sampler.rewards.base import Conditioning, Reward, check_reward
from nrg_sampler.trace import GuidanceTrace

_attached: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def attach(
    pipe: Any, reward: Reward | None, guidance: RewardGuidance | None = None, **overrides: Any
) -> Iterator[GuidanceTrace]:
    """Guide whatever ``pipe`` samples inside the ``with`` block, and leave it as it was.

    ::

        with attach(pipe, reward, weights="0.1:0.1:0.8") as trace:
            video = pipe(prompt).frames[0]

    Args:
        pipe: A diffusers pipeline that samples a rectified flow with latents ``(B, C, T, H, W)``.
        reward: Differentiable reward with named ``axes``, on the latents' device; may be ``None`` if the scale is 0.
        guidance: The settings.
        **overrides: Single settings that replace those of ``guidance``.

    Yields:
        The trace of every step sampled inside the block. With ``scale=0`` nothing is touched and it stays empty.

    Raises:
        ValueError: If pipeline, scheduler, reward or settings do not fit, or guidance is attached already.

    Warns:
        GuidanceWarning: On leaving, if gradients were not finite or guidance changed nothing.
    """
    guidance = replace(guidance or RewardGuidance(), **overrides)
    trace = GuidanceTrace(tuple(getattr(reward, "axes", ())), guidance.scale)
    if guidance.scale == 0:
        yield trace
        return
    family = _check(pipe, reward, guidance)
    with ExitStack() as cleanup:
        prompt = cleanup.enter_context(_captured_prompt(pipe, family))
        guide_step = _GuidedSteps(pipe.scheduler, family, reward, guidance, prompt, trace)
        cleanup.enter_context(_replaced_step(pipe.scheduler, guide_step))
        _attached.add(pipe)
        cleanup.callback(_attached.discard, pipe)
        yield trace
    trace.warn()


def _check(pipe: Any, reward: Any, guidance: RewardGuidance) -> Family:
    require_flow(pipe.scheduler)
    family = family_of(type(pipe))
    if pipe in _attached or "step" in vars(pipe.scheduler):
        raise ValueError(
            "Expected a pipeline without guidance, but guidance is attached to it or to its scheduler already; "
            "leave the other `attach` block first, or give the pipeline a scheduler of its own."
        )
    check_reward(reward, pipe)
    guidance.resolve(reward.axes)
    return family


class _Prompt:
    """The prompt's features as the denoiser saw them last."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._embeds: Tensor | None = None

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the first call since the last step: pipelines with two calls a step put the positive prompt first."""
        if self._embeds is None:
            position = self._family.prompt_position
            positional = args[position] if len(args) > position else None
            self._embeds = kwargs.get(self._family.prompt_argument, positional)

    def take(self, batch: int) -> Conditioning:
        """Return the conditioning of ``batch`` latents and wait for the next call."""
        conditioning, self._embeds = Conditioning(self._embeds), None
        return conditioning.for_batch(batch)


@contextmanager
def _captured_prompt(pipe: Any, family: Family) -> Iterator[_Prompt]:
    prompt = _Prompt(family)
    denoisers = [getattr(pipe, name, None) for name in family.denoisers]
    hooks = [
        module.register_forward_pre_hook(prompt.see, with_kwargs=True) for module in denoisers if module is not None
    ]
    try:
        yield prompt
    finally:
        for hook in hooks:
            hook.remove()


class _GuidedSteps:
    """Guide the velocity of each step and keep count of them."""

    def __init__(
        self,
        scheduler: Any,
        family: Family,
        reward: Any,
        guidance: RewardGuidance,
        prompt: _Prompt,
        trace: GuidanceTrace,
    ) -> None:
        self._scheduler, self._family = scheduler, family
        self._reward, self._guidance = reward, guidance
        self._prompt, self._trace = prompt, trace
        self._memory = DirectionMemory()
        self._schedule: Tensor | None = None
        self._sigmas: list[float] = []
        self._first = 0

    def __call__(self, velocity: Tensor, latents: Tensor) -> Tensor:
        """Return the guided velocity in float32, or ``velocity`` itself where the step is left alone."""
        conditioning = self._prompt.take(latents.shape[0])
        self._check_latents(latents)
        index = self._scheduler.step_index
        if self._scheduler.sigmas is not self._schedule:
            self._begin(index)
        order = self._scheduler.order  # Heun calls twice per denoising step
        return guided_velocity(
            latents,
            velocity,
            self._sigmas[index],
            self._reward,
            conditioning,
            self._guidance,
            step_index=(index - self._first) // order,
            num_inference_steps=-(-(len(self._scheduler.timesteps) - self._first) // order),
            trace=self._trace,
            memory=self._memory,
            dtype=working_dtype(velocity),
        )

    def _begin(self, index: int) -> None:
        self._schedule, self._first = self._scheduler.sigmas, index
        self._sigmas = self._schedule.tolist()  # once a run, so that no step waits for the device
        if max(self._sigmas) > 1 + 1 - PURE_NOISE:
            raise ValueError(
                f"Expected sigmas between 0 and 1, but the scheduler starts at {max(self._sigmas):g}; "
                "use a rectified-flow schedule."
            )
        self._trace.begin_run()
        self._memory = DirectionMemory()

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != self._family.latent_ndim:
            raise ValueError(
                f"Expected latents of shape (B, C, T, H, W) at the scheduler, but got {tuple(latents.shape)}; "
                "call `guided_velocity` in a sampling loop of your own for another layout."
            )


@contextmanager
def _replaced_step(scheduler: Any, guide_step: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    original = type(scheduler).step
    attached_to = weakref.ref(scheduler)

    @functools.wraps(original)  # some pipelines look at the signature to see what `step` takes
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        is_copy = attached_to() is not self  # a deep copy of the scheduler samples something else
        if is_copy:
            return original(self, model_output, timestep, sample, *args, **kwargs)
        if self.step_index is None:
            self._init_step_index(timestep)
        guided = guide_step(model_output, sample)
        result = original(self, guided, timestep, sample, *args, **kwargs)
        return result if guided is model_output else _cast(result, sample.dtype)

    # A bound method rather than a closure: deepcopy binds it to the copy, which would otherwise step this scheduler.
    scheduler.step = types.MethodType(step, scheduler)
    try:
        yield
    finally:
        del scheduler.step


def _cast(result: Any, dtype: torch.dtype) -> Any:
    """Cast the sample rather than the velocity: in half precision a small push would be rounded away."""
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    result.prev_sample = result.prev_sample.to(dtype)
    return result
