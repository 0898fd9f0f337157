"""Reward guidance for rectified-flow video models: a guided velocity is a velocity.

``import nrg_sampler`` loads torch and nothing heavier; what needs diffusers comes in when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.push import guide
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import guided_velocity
from nrg_sampler.guidance.trace import GuidanceTrace, GuidanceWarning
from nrg_sampler.hosts.attach import attach
from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.rewards.ensemble import EnsembleReward
from nrg_sampler.rewards.weights import RewardWeights

if TYPE_CHECKING:
    from nrg_sampler.hosts.guider import RewardGuider
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline
    from nrg_sampler.hosts.scheduler import RewardGuidedScheduler
    from nrg_sampler.rewards.latent import LatentReward

__all__ = [
    "Conditioning",
    "DirectionMemory",
    "EnsembleReward",
    "GuidanceTrace",
    "GuidanceWarning",
    "LatentReward",
    "NRGFlowPipeline",
    "Reward",
    "RewardGuidance",
    "RewardGuidedScheduler",
    "RewardGuider",
    "RewardWeights",
    "attach",
    "guide",
    "guided_velocity",
]

_LAZY = {
    "LatentReward": "nrg_sampler.rewards.latent",
    "NRGFlowPipeline": "nrg_sampler.hosts.pipeline",
    "RewardGuidedScheduler": "nrg_sampler.hosts.scheduler",
    "RewardGuider": "nrg_sampler.hosts.guider",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
