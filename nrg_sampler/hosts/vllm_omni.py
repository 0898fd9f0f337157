"""Experimental: the scheduler that vLLM-Omni is to make for the name ``nrg_reward``.

Its RFC #6269 (pull request #6277, in no release that was seen) lets an engine take a scheduler from the group of entry
points ``vllm_omni.schedulers``. It makes it by ``from_pretrained(model, subfolder="scheduler", ...)`` with the
``scheduler_kwargs`` of the engine, which are plain values, and copies it for each request.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.hosts.scheduler import RewardGuidedScheduler
from nrg_sampler.rewards.base import Conditioning, RewardHooks, check_reward
from nrg_sampler.rewards.by_name import NAMES, names_and_weights, reward_on, sees_frames

HUB_ARGUMENTS = ("local_files_only", "revision", "cache_dir", "token")


class ServedScheduler(RewardGuidedScheduler):
    """A scheduler guided by a reward that is named by plain values, whose copies are guided too.

    It sees neither the request nor the denoiser, so a reward that reads prompts is given one text for all requests,
    and latents are ``(B, C, T, H, W)`` or ``(B, C, H, W)``, as those of Wan and SD3; packed ones are refused.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        *,
        reward: Any = None,
        preset: str | None = None,
        guidance: dict[str, Any] | None = None,
        prompts: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load the scheduler of a model and guide it.

        Args:
            pretrained_model_name_or_path: Folder or Hub id of the model.
            subfolder: Of its scheduler.
            return_unused_kwargs: As in diffusers.
            reward: A reward, or its name as :func:`nrg_sampler.rewards.by_name.reward_for` takes it; one that sees
                frames is given the model's VAE. Without one the scheduler is plain.
            preset: A preset of the settings.
            guidance: Settings of :class:`~nrg_sampler.guidance.settings.RewardGuidance` by name.
            prompts: The text for a reward that reads it, the same for all requests.
            **kwargs: As in diffusers.

        Raises:
            ValueError: If reward or settings do not fit.
        """
        loaded = super().from_pretrained(
            pretrained_model_name_or_path, subfolder=subfolder, return_unused_kwargs=return_unused_kwargs, **kwargs
        )
        if reward is None:
            return loaded
        scheduler, *unused = loaded if return_unused_kwargs else (loaded,)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        own = _OnDeviceOfLatents(_loaded(pretrained_model_name_or_path, reward, hub))
        settings = guidance or {}
        chosen = RewardGuidance.preset(preset, **settings) if preset else RewardGuidance(**settings)
        guided = served(scheduler, own, chosen, prompts)
        return (guided, *unused) if return_unused_kwargs else guided


def served(scheduler: Any, reward: Any, guidance: RewardGuidance, prompts: str | None = None) -> Any:
    """Return a guided scheduler whose deep copies are guided by the same reward, each with a run of its own."""
    guided: Any = RewardGuidedScheduler(scheduler, reward, guidance, prompts=prompts)
    kind = type(guided)

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        plain = object.__new__(kind._plain)
        state = {name: value for name, value in vars(self).items() if name not in kind._guiding}
        vars(plain).update(copy.deepcopy(state, memo))
        return served(plain, reward, guidance, prompts)

    guided.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__deepcopy__": copied})
    return guided


class _OnDeviceOfLatents:
    """A reward that follows the latents to their device, which is not known before the first step."""

    def __init__(self, reward: Any) -> None:
        self._reward = reward
        self.axes = check_reward(reward).axes

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_reward"], name)

    def __call__(self, latents: Any, sigma: Any, conditioning: Conditioning, **options: Any) -> Any:
        if isinstance(self._reward, nn.Module):
            self._reward.to(latents.device)
        return self._reward(latents, sigma, conditioning, **options)


def _loaded(model: Any, reward: Any, hub: dict[str, Any]) -> Any:
    if not isinstance(reward, NAMES):
        return reward
    vae = None
    if any(sees_frames(name) for name in names_and_weights(reward)):
        from diffusers import AutoModel

        vae = AutoModel.from_pretrained(model, subfolder="vae", **hub).eval()
    loaded = reward_on(vae, reward)
    hooks = RewardHooks.of(loaded)
    if getattr(getattr(loaded, "config", None), "text_dim", None) is not None and not hooks.needs_prompts:
        raise ValueError(
            f"Expected a reward that a scheduler can evaluate, but {reward!r} reads the features of each prompt, "
            "which vLLM-Omni does not hand to a scheduler; use one that sees frames, or `attach` with diffusers."
        )
    return loaded
