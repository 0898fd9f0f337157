"""Rewards: anything that maps ``(latents, sigma, conditioning)`` to one number per sample and named axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nrg_sampler.rewards.base import Conditioning, Reward, RewardWeights
from nrg_sampler.rewards.ensemble import EnsembleReward

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.rewards.pixel import PixelReward

__all__ = ["Conditioning", "EnsembleReward", "LatentReward", "PixelReward", "Reward", "RewardWeights"]


def __getattr__(name: str) -> Any:
    if name == "LatentReward":  # brings diffusers in, so only when asked for
        from nrg_sampler.rewards.latent import LatentReward

        return LatentReward
    if name == "PixelReward":
        from nrg_sampler.rewards.pixel import PixelReward

        return PixelReward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
