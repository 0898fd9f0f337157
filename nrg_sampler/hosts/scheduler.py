"""Reward guidance inside a scheduler, for workflows in which only the scheduler can be exchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.hosts.families import UNKNOWN, require_flow
from nrg_sampler.hosts.prompts import PipelineCalls
from nrg_sampler.hosts.steps import GuidedSteps, guided_step
from nrg_sampler.hosts.subclassing import GuidedCopy, guided_subclass
from nrg_sampler.rewards.by_name import RewardLike, reward_on

_FAMILY = replace(UNKNOWN, prompt="prompt", prompt_mask="mask")


class RewardGuidedScheduler(GuidedCopy, SchedulerMixin, ConfigMixin):
    """A scheduler that guides every velocity it is given before it steps.

    ::

        pipe.scheduler = RewardGuidedScheduler(pipe.scheduler, reward, prompt_embeds=embeds)

    It is an instance of the class it was made from too, with the same configuration, so whatever takes that takes
    this. It is saved as the plain scheduler: a reward is no part of a configuration, and ``from_config`` and
    ``from_pretrained`` guide if they are given one. It sees no denoiser, so the prompt has to be handed over here and
    latents are ``(B, C, T, H, W)`` or ``(B, C, H, W)``; use ``attach`` where a pipeline is at hand.

    Args:
        scheduler: The rectified-flow scheduler to guide; it stays as it is.
        reward: Differentiable reward with named ``axes``, on the latents' device; or its name, as ``attach`` takes it.
        guidance: The settings.
        prompt_embeds: Features of the positive prompt, shape ``(B, L, D)``, for rewards that read them.
        prompt_mask: 1 where a token counts, shape ``(B, L)``.
        prompts: The text of the positive prompt of each sample, or one for all, for rewards that read it.
        vae: The pipeline's VAE, for a reward by its name that sees frames.

    Attributes:
        trace: What the guidance did, in all runs since the scheduler was made.

    Raises:
        ValueError: If scheduler, reward or settings do not fit.
    """

    trace: GuidanceTrace
    _guiding = ("trace", "_guide")

    def __new__(
        cls,
        scheduler: Any,
        reward: RewardLike,
        guidance: RewardGuidance | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        vae: Any = None,
    ) -> RewardGuidedScheduler:
        """Return a guided copy; arguments as of the class."""
        guidance = guidance or RewardGuidance()
        require_flow(scheduler)
        loaded = reward_on(vae, reward)
        resolve(guidance, loaded)
        if isinstance(scheduler, RewardGuidedScheduler) or "step" in vars(scheduler):
            raise ValueError(
                "Expected a scheduler without guidance, but this one is guided already; "
                "pass the plain one, or `type(scheduler).from_config(scheduler.config)`."
            )
        guided = copy.deepcopy(scheduler)
        kind: Any = type(scheduler)
        guided.__class__ = guided_subclass(RewardGuidedScheduler, kind)
        guided.trace = GuidanceTrace(tuple(loaded.axes), guidance.scale)
        calls = PipelineCalls(loaded, prompts, argument="`RewardGuidedScheduler(..., prompts=[...])`")
        steps = GuidedSteps(guided, _FAMILY, loaded, guidance, guided.trace, calls)
        features = {"prompt": prompt_embeds, "mask": prompt_mask}
        guided._guide = lambda output, latents, timestep, tokenwise: steps(features, output, latents, tokenwise)
        return guided  # type: ignore[no-any-return]

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        return {"step": guided_step(base.step, lambda scheduler: scheduler._guide)}

    @classmethod
    def from_config(
        cls,
        config: Any,
        reward: RewardLike = None,
        guidance: RewardGuidance | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        vae: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Make a scheduler of this class or that of the configuration; arguments as in diffusers and above.

        Returns:
            A guided scheduler if there is a ``reward``, a plain one if not.

        Raises:
            ValueError: If the configuration does not tell the class.
        """
        kind = cls._plain or getattr(diffusers, config.get("_class_name", ""), None)
        if kind is None:
            raise ValueError(
                "Expected the configuration of a scheduler of diffusers, but got one that names no class of it; "
                "make the scheduler first and pass it to `RewardGuidedScheduler`."
            )
        scheduler = kind.from_config(config, **kwargs)
        if reward is None:
            return scheduler
        given: dict[str, Any] = {"prompt_embeds": prompt_embeds, "prompt_mask": prompt_mask, "prompts": prompts}
        return RewardGuidedScheduler(scheduler, reward, guidance, **given, vae=vae)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load the scheduler of a folder or Hub id, guided if a ``reward`` is given; otherwise as ``from_config``."""
        config, unused = cls.load_config(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=True, **kwargs
        )
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **unused)
