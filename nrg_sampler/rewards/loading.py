"""Load a reward by its name."""

from __future__ import annotations

import os
from typing import Any

from nrg_sampler.checkpoints import BUNDLED, bundled_folder, first_line, readable
from nrg_sampler.rewards.base import check_reward
from nrg_sampler.rewards.configured import MismatchedWeightsError
from nrg_sampler.rewards.latent import LatentReward


def load_reward(name: str | os.PathLike[str], **kwargs: Any) -> LatentReward:
    """Load a latent reward.

    Args:
        name: ``"shapes"``, a folder written by ``LatentReward.save_pretrained`` or a Hub id.
        **kwargs: Passed to ``LatentReward.from_pretrained``, such as ``dtype``.

    Raises:
        ValueError: If there is no such reward, its files are damaged or its weights are not those of its config.
    """
    source = str(bundled_folder("reward") if name == BUNDLED else name)
    with readable(source):
        try:
            kind = LatentReward.load_config(source).get("_class_name")
        except OSError as error:
            raise ValueError(
                f"Expected a reward in {source!r}, but found none ({first_line(error)}); "
                "pass a folder that `LatentReward.save_pretrained` wrote, or a Hub id."
            ) from error
        if kind != "LatentReward":
            raise ValueError(
                f"Expected a LatentReward in {source!r}, but got {kind}; load another kind yourself and pass it."
            )
        try:
            reward: LatentReward = LatentReward.from_pretrained(source, **kwargs)
            check_reward(reward)
        except MismatchedWeightsError:
            raise
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            if "memory" in str(error):
                raise
            raise ValueError(
                f"Expected a reward as it was saved in {source!r}, but none can be made of its config.json and "
                f"weights ({first_line(error)}); copy it again."
            ) from error
    return reward
