"""The bundled pipeline, the rewards that arms name besides its own, and what tells them from others of their names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nrg_sampler.checkpoints import BUNDLED, bundled_folder
from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.controls import RandomDirection, pixel_control, trusted_as
from nrg_sampler.evaluation.panel import Grader
from nrg_sampler.evaluation.settings import EvaluationSettings
from nrg_sampler.hosts.pipeline import NRGFlowPipeline
from nrg_sampler.judges.loading import judge_identity
from nrg_sampler.judges.shapes import load_pixel_judge
from nrg_sampler.rewards.by_name import local_fingerprints, names_and_weights, sees_frames
from nrg_sampler.rewards.loading import load_reward
from nrg_sampler.runs.manifest import model_fingerprint
from nrg_sampler.runs.sampler import quiet_unless_watched


def load_arm_sampler(
    settings: EvaluationSettings, fingerprints: dict[str, str], judges: Mapping[str, Grader] | None = None
) -> ArmSampler:
    """Load the pipeline and the rewards that are there.

    Args:
        settings: Which, and where they run.
        fingerprints: Of :func:`model_fingerprints`.
        judges: Who may score look-ahead samples.

    Raises:
        ValueError: If a model does not load.
    """
    quiet_unless_watched()
    reward = settings.reward or BUNDLED
    pipe: Any = NRGFlowPipeline.from_pretrained(BUNDLED, reward_model=reward).to(settings.device)
    pipe.set_progress_bar_config(disable=True)
    rewards: dict[str, Any] = {"random": RandomDirection(pipe.reward_model)}
    if settings.clean_reward is not None:
        clean = load_reward(settings.clean_reward).to(settings.device)
        rewards["clean"] = trusted_as(clean, pipe.reward_model)
    with contextlib.suppress(ValueError):  # where no pixel judge is installed, its arm is left out
        judged = pixel_control(load_pixel_judge(settings.pixel_folder), pipe).to(settings.device)
        rewards["pixel"] = trusted_as(judged, pipe.reward_model)
    dtype = getattr(torch, settings.arithmetic)
    sampling = {} if settings.steps is None else {"num_inference_steps": settings.steps}
    return ArmSampler(pipe, rewards, None if dtype == torch.float32 else dtype, sampling, fingerprints, judges)


def model_fingerprints(settings: EvaluationSettings) -> dict[str, str]:
    """Return the fingerprints of the models, by what they do here; those that are not there are left out."""
    folders = {"pipeline": bundled_folder("pipeline"), "clean": settings.clean_reward}
    if settings.reward is None or settings.reward == BUNDLED:
        folders["target"] = bundled_folder("reward")
    elif not all(map(sees_frames, names_and_weights(settings.reward))):
        folders["target"] = settings.reward
    with contextlib.suppress(ValueError):
        folders["pixel"] = settings.pixel_folder or bundled_folder("judge")
    found = {name: model_fingerprint(str(folder)) for name, folder in folders.items() if folder is not None}
    if "target" not in folders:  # judges of frames, each with its files
        digests = local_fingerprints(str(settings.reward))
        found["target"] = f"{settings.reward} {' '.join(map(str, digests.values()))}"
    return {name: value for name, value in found.items() if value is not None}


def common_settings(
    settings: EvaluationSettings, fingerprints: dict[str, str], judges: Sequence[str]
) -> dict[str, Any]:
    """Return what all clips of a folder have in common; what differs by arm is in ``ArmSampler.source``."""
    return {
        "split": settings.split,
        "steps": settings.steps,
        "dtype": settings.arithmetic,
        "device": settings.device.partition(":")[0],
        "pipeline": fingerprints.get("pipeline"),
        "reward": fingerprints.get("target"),
        **{f"{name.partition(':')[0]} judge": judge_identity(name) for name in judges},
    }
