"""Guide what a pipeline hands to its scheduler: the one place where velocity, latents and sigma meet."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nrg_sampler.flow import working_dtype
from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import take_step
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.hosts.capture import conditioning_of, prompts_of
from nrg_sampler.hosts.families import Family
from nrg_sampler.hosts.layouts import Call, GivenFrame
from nrg_sampler.hosts.prompts import PipelineCalls, PromptedCall
from nrg_sampler.hosts.step_view import StepView
from nrg_sampler.rewards.base import Conditioning, SharedForward
from nrg_sampler.rewards.gradient import prepared

Guide: TypeAlias = Callable[[Tensor, Tensor, Any, bool], Tensor]  # output, latents, timestep, one for each token


class GuidedSteps:
    """Guide what the pipeline hands to the scheduler, step after step.

    Args:
        scheduler: The scheduler whose steps these are.
        family: What is particular about the pipeline.
        reward: The reward.
        guidance: The settings.
        trace: Records every step.
        calls: The calls of the pipeline that are under way, which have the text of the prompts.
        memory: Holds the direction from step to step, and forgets it when a run begins.
    """

    def __init__(
        self,
        scheduler: Any,
        family: Family,
        reward: Any,
        guidance: RewardGuidance,
        trace: GuidanceTrace,
        calls: PipelineCalls,
        memory: DirectionMemory | None = None,
    ) -> None:
        self._family, self._view = family, StepView(scheduler, family)
        self._reward, self._guidance = reward, guidance
        self._trace, self._calls = trace, calls
        self._memory = memory or DirectionMemory()
        self._prompts_given: tuple[Any, ...] | None = None
        self._versions: tuple[Any, ...] = ()
        self._prompted: PromptedCall | None = None
        self._prompts = Conditioning()

    def __call__(self, call: Call, output: Tensor, latents: Tensor, tokenwise: bool = False) -> Tensor:
        """Return the guided output of the model in float32, or ``output`` itself where the step is left alone.

        Args:
            call: Arguments of the denoiser by name.
            output: What the scheduler takes for the velocity, shape of ``latents``.
            latents: Noisy latents in the pipeline's own layout.
            tokenwise: Whether every token has a timestep of its own.
        """
        if self._view.begins(call, latents, tokenwise):
            self._begin()
        seen = self._view.seen(output, latents)
        guided = take_step(
            replace(self._resolved, reward=self._reward_of(call, seen.latents)),
            seen.latents,
            seen.velocity,
            seen.sigma,
            self._conditioning(call, latents),
            step_index=seen.index,
            num_inference_steps=seen.count,
            trace=self._trace,
            memory=self._memory,
            dtype=working_dtype(seen.velocity),
        )
        return output if guided is seen.velocity else self._view.output(guided, output, latents)

    def _begin(self) -> None:
        self._resolved = resolve(self._guidance, self._reward)
        self._prompts_given = self._prompted = None
        self._trace.begin_run()
        self._memory.last = None

    def _conditioning(self, call: Call, latents: Tensor) -> Conditioning:
        """Return the positive prompts as the reward prepared them, again only if the denoiser was given others."""
        texts = self._texts(latents.shape[0])
        given, before = prompts_of(call, self._family), self._prompts_given
        versions = (*map(_version, given), texts)
        if before is None or self._versions != versions or any(map(operator.is_not, given, before)):
            conditioning = conditioning_of(call, self._family, latents.shape[0])
            conditioning = replace(conditioning, prompts=texts, fps=self._calls.current.fps)
            self._prompts = prepared(self._reward, conditioning, latents.device)
            self._prompts_given, self._versions = given, versions
        return self._prompts

    def _texts(self, batch: int) -> tuple[str, ...] | None:
        """Return the text of each sample; the memory follows them where a callback gives some up."""
        call, needed = self._calls.current, self._calls.needed
        if call is not self._prompted:
            self._memory.prompts = call.of_samples(batch, needed)
            self._prompted, self._prompts_given = call, None
        texts = self._memory.prompts
        if texts is None or len(texts) == batch:
            return texts
        if len(set(texts)) == 1:
            return texts[:1] * batch
        if needed:
            raise ValueError(
                f"Expected the batch of {len(texts)} samples that the prompts are of, but the pipeline goes on with "
                f"{batch}; pass `memory=DirectionMemory()` and call its `keep(rows)` where the batch is changed."
            )
        return None

    def _reward_of(self, call: Call, video: Tensor) -> Any:
        given = self._family.given
        frame = given.frame(call, video) if given else None
        # features that are shared were computed with the frame in its place
        if given is None or frame is None or isinstance(self._resolved.reward, SharedForward):
            return self._resolved.reward
        return _WithFrame(self._resolved.reward, given, frame)


def _version(prompts: Any) -> Any:
    """Return how often a tensor was changed in place, or what equals nothing else where nobody counts that."""
    if prompts is None:
        return 0
    return prompts._version if isinstance(prompts, Tensor) and not prompts.is_inference() else object()


class _WithFrame:
    """A reward of latents without the frame that was given; all other attributes are those of the reward."""

    def __init__(self, reward: Any, given: GivenFrame, frame: Tensor) -> None:
        self._reward, self._given, self._frame = reward, given, frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, **options: Any) -> Any:
        velocity = conditioning.velocity
        if velocity is not None:  # the frame is clean and stays where it is
            velocity = self._given.completed(velocity, torch.zeros_like(self._frame))
        latents, before = self._given.completed(latents, self._frame), latents.shape[2]
        frames, later = conditioning.frames, latents.shape[2] - before
        if frames is not None:
            frames = range(frames.start + later, frames.stop + later, frames.step)
        return self._reward(latents, sigma, replace(conditioning, velocity=velocity, frames=frames), **options)


def guided_step(original: Any, guide_of: Callable[[Any], Guide | None]) -> Any:
    """Return the ``step`` of a scheduler's class with guidance before it.

    Args:
        original: The plain ``step``.
        guide_of: Returns what guides a scheduler of the class; ``None`` if nothing does.
    """

    @functools.wraps(original)  # some pipelines look at the signature to see what `step` takes
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        guide = guide_of(self)
        if guide is None:
            return original(self, model_output, timestep, sample, *args, **kwargs)
        if self.step_index is None:
            self._init_step_index(timestep)
        guided = guide(model_output, sample, timestep, kwargs.get("per_token_timesteps") is not None)
        result = original(self, guided, timestep, sample, *args, **kwargs)
        return result if guided is model_output else _cast(result, sample.dtype)

    return step


def _cast(result: Any, dtype: torch.dtype) -> Any:
    """Cast the sample rather than the velocity: in half precision a small push would be rounded away."""
    if isinstance(result, tuple):
        return (result[0].to(dtype), *result[1:])
    result.prev_sample = result.prev_sample.to(dtype)
    return result
