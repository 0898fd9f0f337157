"""What a judge is: it scores finished clips and never guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nrg_sampler.rewards.weights import RewardWeights, WeightsLike


@runtime_checkable
class Judge(Protocol):
    """Score finished clips on named axes, higher is better. It grades; it does not guide."""

    axes: tuple[str, ...]

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Return scores, shape ``(B, axes)``.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.
            fps: Frames per second of the clips.
        """
        ...


def chooser(judge: Judge, fps: float, weights: WeightsLike = None) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Return the weighted sum of a judge's axes, as ``best_of_n`` takes it.

    Args:
        judge: Who scores.
        fps: Frames per second of the clips.
        weights: One weight per axis of the judge; 1 for each by default.
    """
    resolved = torch.tensor(RewardWeights.parse(weights).resolve(judge.axes))

    def score(clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return judge(clips, prompts, fps).cpu() @ resolved

    return score
