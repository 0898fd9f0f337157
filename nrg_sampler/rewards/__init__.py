"""Rewards: anything that maps ``(latents, sigma, conditioning)`` to one number per sample and named axis."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.rewards.ensemble import EnsembleReward
from nrg_sampler.rewards.weights import RewardWeights

if TYPE_CHECKING:
    from nrg_sampler.rewards.dina import DiNaReward
    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.rewards.latent_prm import LatentPRM
    from nrg_sampler.rewards.pixel import PixelReward

__all__ = [
    "Conditioning",
    "DiNaReward",
    "EnsembleReward",
    "LatentPRM",
    "LatentReward",
    "PixelReward",
    "Reward",
    "RewardWeights",
]


# These bring diffusers in or need it, so only on demand.
_LATE = {"DiNaReward": "dina", "LatentPRM": "latent_prm", "LatentReward": "latent", "PixelReward": "pixel"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
