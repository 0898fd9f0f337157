"""Controls: a random direction as strong as the reward's gradient, and a judge of pixels made to guide."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from nrg_sampler.rewards.base import Conditioning, Reward, RewardHooks
from nrg_sampler.rewards.gradient import axis_gradients
from nrg_sampler.rewards.pixel import PixelReward


class RandomDirection:
    """A reward whose gradient has the norm of another one's, on every axis and sample, and a random direction.

    Args:
        reward: Whose norms, axes and statistics it takes.
        seed: Of the directions.
    """

    def __init__(self, reward: Reward, seed: int = 0) -> None:
        self._reward = reward
        self._generator = torch.Generator().manual_seed(seed)
        self.axes = reward.axes
        hooks = RewardHooks.of(reward)
        self.mean, self.std = hooks.mean, hooks.std
        self.needs_velocity, self.needs_prompts = hooks.needs_velocity, hooks.needs_prompts
        trusted_as(self, reward)

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return numbers linear in the latents, shape ``(B, axes)``; only their gradient means anything."""
        grads, _ = axis_gradients(latents, sigma, self._reward, conditioning, calibrated=False)  # (A, B, ...)
        fresh = torch.randn(grads.shape, generator=self._generator).to(grads)
        norms = (grads.flatten(2).norm(dim=2) / fresh.flatten(2).norm(dim=2)).T  # (B, A)
        along = (fresh * latents).flatten(2).sum(dim=2).T  # (B, A)
        linear: Tensor = norms * along
        return linear


def pixel_control(judge: Any, pipe: Any) -> PixelReward:
    """Return a reward that shows the predicted clean latents to a judge of pixels, as the paper's Table 7 does.

    The judge gets no prompt, so only the axes that see none mean anything.

    Args:
        judge: A ``PixelJudge``.
        pipe: The pipeline whose VAE decodes.
    """

    def grades(frames: Tensor) -> Tensor:
        scores: Tensor = judge(frames, [""] * len(frames))
        return scores

    return PixelReward(grades, pipe.vae, judge.axes, noise_aware=False, mean=judge.mean, std=judge.std)


def trusted_as(reward: Any, target: Reward) -> Any:
    """Let a reward push with the strength and the trust of another one, so that two arms differ in gradients alone.

    Args:
        reward: A reward with the axes of ``target``; changed in place.
        target: Whose recommendations it takes.

    Returns:
        ``reward``.

    Raises:
        ValueError: If the axes differ.
    """
    if tuple(reward.axes) != tuple(target.axes):
        raise ValueError(
            f"Expected a reward with the axes {', '.join(target.axes)}, as the one it is compared with, but got "
            f"{', '.join(reward.axes)}; compare rewards that score the same."
        )
    hooks = RewardHooks.of(target)
    names = ("recommended_scale", "recommended_damping", "recommended_fading")
    recommended: dict[str, Any] = {name: getattr(hooks, name) for name in names}
    if isinstance(reward, ConfigMixin):
        reward.register_to_config(**recommended)
    else:
        vars(reward).update(recommended)
    return reward
