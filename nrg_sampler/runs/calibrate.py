"""Measure a reward over a model's own samples: its standard units, and the strength that moves them visibly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceWarning
from nrg_sampler.hosts.attach import attach
from nrg_sampler.hosts.prompts import frame_rate
from nrg_sampler.hosts.sampling import SampledClips, sample_clips
from nrg_sampler.rewards.base import Conditioning, RewardHooks
from nrg_sampler.rewards.calibration import Calibration
from nrg_sampler.rewards.decoding import frames_a_latent
from nrg_sampler.rewards.frames import ALL, chosen_frames
from nrg_sampler.rewards.pixel import PixelReward

SHARE = 0.15  # of the velocity: seen in the samples, and well below what breaks them
PROBES = 4
FIRST_THIRD = 1 / 3
UNNOTICED = 1e-6  # a strength that leaves the samples what they are; the push is in proportion to it


def calibrate(
    pipe: Any,
    reward: Any,
    name: str,
    model: str,
    prompts: Sequence[str],
    n: int,
    *,
    share: float = SHARE,
    probes: int = PROBES,
    frames: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **sampling: Any,
) -> Calibration:
    """Measure a reward.

    Args:
        pipe: A pipeline, which samples without a reward of its own.
        reward: The reward, which is given what was measured.
        name: What it is called.
        model: What the pipeline is called.
        prompts: Texts, taken in turn; the seeds are 0, 1, 2 and so on.
        n: How many unguided samples are scored, at least 2.
        share: Norm of the push over that of the velocity that the strength is to reach.
        probes: In how many of the samples the push is measured.
        frames: Which latent frames to look at, as in ``RewardGuidance``.
        progress: Called with a line before each sample.
        **sampling: Further arguments of the pipeline.

    Returns:
        What was measured.

    Raises:
        ValueError: If all samples have one score, scores are not finite or the reward does not push.
    """
    hooks = RewardHooks.of(reward)
    look = frames or hooks.recommended_frames
    rows = []
    for seed in range(n):
        progress(f"sample {seed + 1} of {n}, unguided")
        prompt = prompts[seed % len(prompts)]
        clips = sample_clips(pipe, [prompt], [seed], **_unguided(pipe), output_type="pt", **sampling)
        rows.append(_scores(reward, clips, prompt, look, seed, frame_rate(pipe)))
    scores = torch.stack(rows).double()
    mean, std = scores.mean(dim=0), scores.std(dim=0)
    for axis, middle, deviation in zip(hooks.axes, mean.tolist(), std.tolist(), strict=True):
        if not (deviation > 0 and deviation < float("inf")):
            raise ValueError(
                f"Expected scores of {axis} that differ between {n} samples, but got a mean of {middle:g} and a "
                f"deviation of {deviation:g}; take more samples with --n, or other prompts."
            )
    found = Calibration(
        name, model, hooks.axes, tuple(mean.tolist()), tuple(std.tolist()), 1.0, share, look, n, min(probes, n)
    )
    found.applied(reward)
    pushes = []
    for seed in range(found.probes):
        progress(f"push {seed + 1} of {found.probes}")
        pushes += _pushes(pipe, reward, prompts[seed % len(prompts)], seed, frames, sampling)
    at_one = sum(pushes) / max(1, len(pushes)) / UNNOTICED
    if not (0 < at_one < float("inf")):
        raise ValueError(
            f"Expected a reward that pushes in the first third of the steps, but {name} pushes by {at_one:g} of the "
            "velocity; sample more steps with --steps, or check that its score depends on the frames."
        )
    strength = float(f"{share / at_one:.3g}")
    calibration = Calibration(**{**found.to_dict(), "recommended_scale": strength})
    calibration.applied(reward)
    return calibration


def _unguided(pipe: Any) -> dict[str, Any]:
    """Arguments by which a pipeline of this package is sampled as one of diffusers is."""
    return {"reward_scale": 0.0} if hasattr(pipe, "reward_model") else {}


@torch.no_grad()
def _scores(reward: Any, clips: SampledClips, prompt: str, look: str, turn: int, fps: float | None) -> Tensor:
    """Return the raw scores of a finished sample, shape ``(axes,)``, by the frames whose turn it is."""
    if not isinstance(reward, PixelReward):
        latents = clips.latents.float()
        conditioning = Conditioning(clips.prompt_embeds.float(), prompts=(prompt,), fps=fps)
        raw: Tensor = reward(latents, latents.new_zeros(len(latents)), conditioning)
        return raw[0].float().cpu()
    shown = clips.frames.float()
    shown = (shown if shown.ndim == 5 else shown[:, None]).transpose(1, 2)  # (B, 3, T, H, W)
    if look != ALL:
        apart = frames_a_latent(reward.decoder.vae)
        chosen, _ = chosen_frames(look, (shown.shape[2] - 1) // apart + 1, turn)
        shown, fps = shown[:, :, [apart * index for index in chosen]], fps and fps / (apart * chosen.step)
    return reward.score_frames(shown, [prompt], fps)[0].float().cpu()


def _pushes(
    pipe: Any, reward: Any, prompt: str, seed: int, frames: str | None, sampling: dict[str, Any]
) -> list[float]:
    """Return the push of each guided step, as a share of the velocity, at a strength that changes nothing."""
    guidance = RewardGuidance.preset("best", scale=UNNOTICED, max_push=None, stop=FIRST_THIRD, frames=frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuidanceWarning)  # of no effect, as is meant
        with attach(pipe, reward, guidance) as trace:
            sample_clips(pipe, [prompt], [seed], **_unguided(pipe), output_type="latent", **sampling)
    return [row["push_ratio"] for row in trace.rows() if row["skipped"] is None]
