"""Let a judge, or a reward without its gradient, score what a pipeline has just finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.hosts.finished import Finished
from nrg_sampler.hosts.prompts import RATE, frame_rate, texts_of
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.rewards.frame_scorer import Wanted
from nrg_sampler.rewards.gradient import weighted_score
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike


class FinishedScorer:
    """Score finished samples of a pipeline, by a judge of their frames or a reward of their latents.

    Args:
        pipe: The pipeline.
        judge: Scores finished clips; a judge by its name, or a callable that maps frames ``(B, 3, T, H, W)`` in [0,
            1], and ``prompts`` and ``fps`` if its parameters have these names, to scores ``(B,)`` or ``(B, axes)``.
        reward: Scores finished latents where there is no judge; the pipeline's own by default.
        weights: One weight for each axis of whoever scores.
        prompts: The text of the prompts, where the calls do not have it.

    Attributes:
        reads_latents: Whether no frames are needed.

    Raises:
        ValueError: If there is neither judge nor reward.
    """

    def __init__(
        self,
        pipe: Any,
        judge: Any = None,
        reward: Any = None,
        weights: WeightsLike = None,
        prompts: str | Sequence[str] | None = None,
    ) -> None:
        self._judge = load_judge(judge, str(getattr(pipe, "device", "cpu"))) if isinstance(judge, str) else judge
        self._reward: Any = getattr(pipe, "reward_model", None) if reward is None else reward
        if self._judge is None and self._reward is None:
            raise ValueError(
                "Expected somebody who scores the look-ahead samples, but got neither a judge nor a reward; pass a "
                "`judge` of finished clips, or samples with picks as `looks`."
            )
        self.reads_latents = self._judge is None
        self._weights = RewardWeights.parse(weights)
        self._prompts, self._rate = texts_of(prompts), frame_rate(pipe)

    def __call__(self, output: Any, finished: Finished, arguments: Mapping[str, Any]) -> Tensor:
        """Return a score for each sample of a call, shape ``(B,)``.

        Args:
            output: What the pipeline returned, with frames as tensors unless latents are enough.
            finished: Its finished latents.
            arguments: What it was called with, by name.

        Raises:
            ValueError: If the judge returns another number of scores.
        """
        prompts = self._prompts or texts_of(arguments.get("prompt"))
        rates = [float(rate) for name in RATE if isinstance(rate := arguments.get(name), (int, float))]
        fps = next(iter(rates), self._rate)
        if self.reads_latents:
            latents, own = finished.latents, replace(finished.conditioning, prompts=prompts, fps=fps)
            raw = self._reward(latents, latents.new_zeros(len(latents)), own.for_batch(len(latents)))
            return weighted_score(self._reward, raw, self._weights)
        clips = _clips(output)
        wanted = Wanted.by(self._judge).arguments(len(clips), prompts, fps)
        scores = torch.as_tensor(self._judge(clips, **wanted)).to(clips)
        if scores.ndim == 2:
            axes = getattr(self._judge, "axes", [str(column) for column in range(scores.shape[1])])
            scores = scores @ torch.tensor(self._weights.resolve(tuple(axes))).to(scores)
        if scores.shape != clips.shape[:1]:
            raise ValueError(
                f"Expected the judge to return a score for each of {len(clips)} clips, or one for each and axis, but "
                f"got {tuple(scores.shape)}; return one row for each clip."
            )
        return scores


def _clips(output: Any) -> Tensor:
    """Return the frames of a pipeline's output, shape ``(B, 3, T, H, W)``; a picture is a clip of one."""
    frames = getattr(output, "frames", None)
    clips = output.images.unsqueeze(1) if frames is None else frames
    return torch.as_tensor(clips).transpose(1, 2).float()
