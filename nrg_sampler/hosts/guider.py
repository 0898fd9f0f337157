"""Reward guidance inside a guider, for modular pipelines that are put together from exchangeable parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from diffusers.guiders import BaseGuidance
from torch import nn

from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.hosts.capture import DenoiserCalls
from nrg_sampler.hosts.families import UNKNOWN, require_flow
from nrg_sampler.hosts.prompts import PipelineCalls
from nrg_sampler.hosts.steps import GuidedSteps
from nrg_sampler.hosts.subclassing import GuidedCopy, guided_subclass
from nrg_sampler.rewards.by_name import RewardLike, reward_on


class RewardGuider(GuidedCopy, BaseGuidance):
    """A guider that adds reward guidance to what another guider makes of the denoiser's predictions.

    ::

        pipe.update_components(guider=RewardGuider(pipe.guider, pipe.scheduler, reward))

    It is an instance of the class it was made from too, with the same configuration, and is saved as that: a reward is
    no part of a configuration. A guider never sees the latents, so they are read from the denoiser's input, which must
    be ``(B, C, T, H, W)`` or ``(B, C, H, W)`` with the latents as its first channels. In half precision its result is
    rounded as any other guider's; ``attach``, which also takes modular pipelines, steps in float32.

    Args:
        guider: The guider to wrap; it stays as it is.
        scheduler: The pipeline's scheduler, from which sigma is read.
        reward: Differentiable reward with named ``axes``, on the latents' device; or its name, as ``attach`` takes it.
        guidance: The settings.
        prompts: The text of the positive prompt of each sample, or one for all, for rewards that read it.
        vae: The pipeline's VAE, for a reward by its name that sees frames.

    Attributes:
        trace: What the guidance did, in all runs since the guider was made.

    Raises:
        ValueError: If scheduler, reward or settings do not fit.
    """

    trace: GuidanceTrace
    _guiding = ("trace", "_scheduler", "_calls", "_hooks", "_steps")

    def __new__(
        cls,
        guider: Any,
        scheduler: Any,
        reward: RewardLike,
        guidance: RewardGuidance | None = None,
        *,
        prompts: str | Sequence[str] | None = None,
        vae: Any = None,
    ) -> RewardGuider:
        """Return a guided copy; arguments as of the class."""
        guidance = guidance or RewardGuidance()
        require_flow(scheduler)
        loaded = reward_on(vae, reward)
        resolve(guidance, loaded)
        guided = copy.copy(guider)
        kind: Any = type(guider)
        guided.__class__ = guided_subclass(RewardGuider, kind)
        guided.trace = GuidanceTrace(tuple(loaded.axes), guidance.scale)
        guided._scheduler, guided._calls, guided._hooks = scheduler, DenoiserCalls(scheduler), []
        calls = PipelineCalls(loaded, prompts, argument="`RewardGuider(..., prompts=[...])`")
        guided._steps = GuidedSteps(scheduler, UNKNOWN, loaded, guidance, guided.trace, calls)
        return guided  # type: ignore[no-any-return]

    def new(self, **kwargs: Any) -> Any:
        """Return a plain copy of the wrapped guider with other settings."""
        return self._plain.from_config(self.config, **kwargs)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Prepare the wrapped guider's models, and watch the first call of a step, which has the positive prompt."""
        super().prepare_models(denoiser)
        self._hooks.append(denoiser.register_forward_pre_hook(self._calls.see, with_kwargs=True))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Undo what ``prepare_models`` did."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        super().cleanup_models(denoiser)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the wrapped guider does, its prediction guided."""
        output = super().forward(*args, **kwargs)
        if self._scheduler.step_index is None:
            self._scheduler._init_step_index(self._timestep)
        call = self._calls.take()
        latents = call["hidden_states"][:, : output.pred.shape[1]]  # what conditions them follows
        output.pred = self._steps(call, output.pred, latents).to(output.pred.dtype)
        return output
