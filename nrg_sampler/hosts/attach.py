"""Guide an existing pipeline for the duration of a ``with`` block.

``scheduler.step`` is the one place where the velocity after classifier-free guidance, the latents and sigma meet, so
that is what ``attach`` wraps, on the instance. The prompt's features are read from the denoiser's arguments on the
way.
"""

from __future__ import annotations

import types
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
from nrg_sampler.hosts.steps import Guide, GuidedSteps, guided_step
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
    trace = GuidanceTrace(tuple(loaded.axes), guidance.scale)
    with ExitStack() as cleanup:
        calls = cleanup.enter_context(captured_calls(pipe, family))
        if guidance.forward == "shared":
            loaded = cleanup.enter_context(shared_forward(pipe, loaded))
        scheduler = pipe.scheduler
        asked = PipelineCalls(loaded, prompts, frame_rate(pipe))
        steps = GuidedSteps(scheduler, family, loaded, guidance, trace, asked, memory)

        def guide(output: Tensor, latents: Tensor, timestep: Any, tokenwise: bool) -> Tensor:
            return steps(calls.take(latents, timestep), output, latents, tokenwise)

        cleanup.enter_context(watched(pipe, asked))
        cleanup.enter_context(_replaced_step(scheduler, guide))
        _attached.add(pipe)
        cleanup.callback(_attached.discard, pipe)
        yield trace
    if pipe.scheduler is not scheduler:
        warnings.warn(
            "The pipeline was given another scheduler inside the `attach` block, and nothing was guided since; give "
            "it the scheduler before the block.",
            GuidanceWarning,
            stacklevel=3,
        )
        return
    trace.warn()


def _checked(pipe: Any, reward: RewardLike, guidance: RewardGuidance) -> tuple[Family, Any]:
    """Return what is particular about the pipeline, and the reward, loaded only if the pipeline can be guided."""
    family = family_of(type(pipe))
    require_flow(pipe.scheduler)
    parts = (pipe.scheduler, getattr(pipe, "guider", None))
    guides_itself = any(isinstance(getattr(part, "trace", None), GuidanceTrace) for part in parts)
    if pipe in _attached or "step" in vars(pipe.scheduler) or guides_itself:
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


@contextmanager
def _replaced_step(scheduler: Any, guide: Guide) -> Iterator[None]:
    attached_to = weakref.ref(scheduler)
    # a deep copy of the scheduler samples something else
    step = guided_step(type(scheduler).step, lambda stepping: guide if attached_to() is stepping else None)
    # A bound method rather than a closure: deepcopy binds it to the copy, which would otherwise step this scheduler.
    scheduler.step = types.MethodType(step, scheduler)
    try:
        yield
    finally:
        del scheduler.step
