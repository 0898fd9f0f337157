"""Guide an existing pipeline for the duration of a ``with`` block.

``scheduler.step`` is the one place where the velocity after classifier-free guidance, the latents and sigma meet, so
that is what ``attach`` wraps, on the instance. The prompt's features are read from the denoiser's arguments on the
way.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceTrace, GuidanceWarning
from nrg_sampler.hosts.capture import captured_calls
from nrg_sampler.hosts.families import UNKNOWN, Family, family_of, require_flow
from nrg_sampler.hosts.prompts import PipelineCalls, frame_rate, watched
from nrg_sampler.hosts.shared_forward import shared_forward
from nrg_sampler.hosts.stepping import others_step, replaced_step
from nrg_sampler.hosts.steps import GuidedSteps, guided_step
from nrg_sampler.rewards.base import check_reward
from nrg_sampler.rewards.by_name import RewardLike, reward_for

_attached: weakref.WeakSet[Any] = weakref.WeakSet()


@contextmanager
def attach(
    pipe: Any,
    reward: RewardLike,
    guidance: RewardGuidance | None = None,
    *,
    memory: DirectionMemory | None = None,
    prompts: str | Sequence[str] | None = None,
    fps: float | None = None,
    **overrides: Any,
) -> Iterator[GuidanceTrace]:
    """Guide whatever ``pipe`` samples inside the ``with`` block, and leave it as it was.

    ::

        with attach(pipe, reward, weights="0.1:0.1:0.8") as trace:
            video = pipe(prompt).frames[0]

    Args:
        pipe: A diffusers pipeline that samples a rectified flow; ``nrg-sampler families`` lists what was tested.
        reward: Differentiable reward with named ``axes``, on the latents' device; or its name, folder or Hub id, or
            several names with weights, see :func:`nrg_sampler.rewards.by_name.reward_for`, which loads them for the
            block. May be ``None`` if the scale is 0.
        guidance: The settings.
        memory: Holds the direction and the prompts from step to step, for a callback that changes the batch on the
            way; one of its own by default.
        prompts: The text of the prompts, for a reward that reads it, where the pipeline is called with features alone;
            one for each prompt of every call in the block, in place of the call's own.
        fps: Frames per second of the finished video, for a reward that reads them, where a call does not state them;
            by default what the pipeline's ``sampling.json`` says.
        **overrides: Single settings that replace those of ``guidance``.

    Yields:
        The trace of every step sampled inside the block. With ``scale=0`` nothing is touched and it stays empty.

    Raises:
        ValueError: If pipeline, scheduler, reward or settings do not fit, or guidance is attached already; in a call
            of the pipeline, if the reward reads text and there is none, or ``prompts`` are of another number.

    Warns:
        GuidanceWarning: If the kind of pipeline is unknown; on leaving, if gradients were not finite, guidance
            changed nothing or the pipeline has another scheduler than before.
    """
    guidance = replace(guidance or RewardGuidance(), **overrides)
    if guidance.scale == 0:
        yield GuidanceTrace(tuple(getattr(reward, "axes", ())), guidance.scale)
        return
    family, loaded = _checked(pipe, reward, guidance)
    scheduler = pipe.scheduler
    _attached.add(pipe)
    try:
        with _guiding(pipe, family, loaded, guidance, memory, prompts, fps) as trace:
            yield trace
    finally:
        _attached.discard(pipe)
    if pipe.scheduler is not scheduler:
        warnings.warn(
            "The pipeline was given another scheduler inside the `attach` block, and nothing was guided since; give "
            "it the scheduler before the block.",
            GuidanceWarning,
            stacklevel=3,
        )
        return
    trace.warn()


@contextmanager
def attached_beside(pipe: Any, reward: Any, guidance: RewardGuidance) -> Iterator[GuidanceTrace]:
    """Guide as ``attach`` does, beside guidance that is attached already or will be inside the block: pushes add up.

    Args:
        pipe: The pipeline.
        reward: A reward that reads no text.
        guidance: The settings.

    Yields:
        The trace of this guidance alone.

    Raises:
        ValueError: If the scheduler or the reward does not fit.
    """
    require_flow(pipe.scheduler)
    check_reward(reward, pipe)
    with _guiding(pipe, family_of(type(pipe)), reward, guidance, beside=True) as trace:
        yield trace


@contextmanager
def _guiding(
    pipe: Any,
    family: Family,
    reward: Any,
    guidance: RewardGuidance,
    memory: DirectionMemory | None = None,
    prompts: str | Sequence[str] | None = None,
    fps: float | None = None,
    beside: bool = False,
) -> Iterator[GuidanceTrace]:
    trace = GuidanceTrace(tuple(reward.axes), guidance.scale)
    with ExitStack() as cleanup:
        calls = cleanup.enter_context(captured_calls(pipe, family))
        if guidance.forward == "shared":
            reward = cleanup.enter_context(shared_forward(pipe, reward))
        scheduler = pipe.scheduler
        asked = PipelineCalls(reward, prompts, frame_rate(pipe) if fps is None else fps)
        steps = GuidedSteps(scheduler, family, reward, guidance, trace, asked, memory)

        def guide(output: Tensor, latents: Tensor, timestep: Any, tokenwise: bool) -> Tensor:
            return steps(calls.take(latents, timestep), output, latents, tokenwise)

        cleanup.enter_context(watched(pipe, asked))
        attached_to = weakref.ref(scheduler)
        # a deep copy of the scheduler samples something else
        cleanup.enter_context(
            replaced_step(
                scheduler,
                lambda original: guided_step(original, lambda own: guide if attached_to() is own else None),
                beside,
            )
        )
        yield trace


def _checked(pipe: Any, reward: RewardLike, guidance: RewardGuidance) -> tuple[Family, Any]:
    """Return what is particular about the pipeline, and the reward, loaded only if the pipeline can be guided."""
    family = family_of(type(pipe))
    require_flow(pipe.scheduler)
    parts = (pipe.scheduler, getattr(pipe, "guider", None))
    guides_itself = any(isinstance(getattr(part, "trace", None), GuidanceTrace) for part in parts)
    if pipe in _attached or others_step(pipe.scheduler) or guides_itself:
        raise ValueError(
            "Expected a pipeline without guidance, but guidance is attached to it or to its scheduler already; "
            "leave the other `attach` block first, or give the pipeline a scheduler of its own."
        )
    loaded = reward_for(pipe, reward, offload=guidance.offload)
    check_reward(loaded, pipe)
    resolved = resolve(guidance, loaded)
    fits = resolved.hooks.chooses_frames and resolved.frames != "first" and guidance.crop == 1
    if resolved.windowed and family.given is not None and not fits:
        raise ValueError(
            f"Expected frames='all' and crop=1 for {type(pipe).__name__}, which is given a frame, but got "
            f"{resolved.frames!r} and {guidance.crop:g}; set `every` above 1 to save time."
        )
    if family is UNKNOWN:
        warnings.warn(
            f"{type(pipe).__name__} is not among the pipelines this was tested with; guiding it as a rectified flow "
            "with `encoder_hidden_states` as its prompt. See `nrg-sampler families`.",
            GuidanceWarning,
            stacklevel=4,
        )
    return family, loaded
