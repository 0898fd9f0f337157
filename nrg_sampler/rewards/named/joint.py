"""Several named judges as one, so that the frames of a step are decoded once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.base import normalised
from nrg_sampler.rewards.frame_scorer import Wanted


class JointJudge(nn.Module):
    """Score frames by several judges, each in its published mean and standard deviation.

    Different axes stand side by side. An axis that several judges have is their weighted mean.

    Args:
        judges: The judges by name, each with one axis or more.
        weights: Of each judge within its axes, above 0.

    Warns:
        UserWarning: If an axis is averaged over judges whose deviation is not known, so that their units differ.
    """

    mean, std = None, None  # it scores in standard units already

    def __init__(self, judges: Mapping[str, Any], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges.values())
        self.weights = tuple(weights[name] for name in judges)
        self._members = {  # of each axis: which judge, which of its columns
            axis: [
                (number, judge.axes.index(axis)) for number, judge in enumerate(judges.values()) if axis in judge.axes
            ]
            for axis in dict.fromkeys(axis for judge in judges.values() for axis in judge.axes)
        }
        self.axes = tuple(self._members)
        each = [Wanted.by(judge) for judge in judges.values()]
        self._each = each
        self.wanted = Wanted(
            prompts=any(one.prompts for one in each),
            fps=any(one.fps for one in each),
            needs_prompts=any(one.needs_prompts for one in each),
            needs_fps=any(one.needs_fps for one in each),
        )
        for axis, members in self._members.items():
            names = [list(judges)[number] for number, _ in members]
            unknown = [name for name in names if judges[name].std is None]
            if len(members) > 1 and unknown:
                warnings.warn(
                    f"The axis {axis} averages several rewards, but no standard deviation is published for "
                    f"{', '.join(unknown)}, so that raw scores are averaged; weigh them by their ranges.",
                    stacklevel=2,
                )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.judges[0].device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.judges[0].dtype  # type: ignore[return-value]

    def forward(self, frames: Tensor, prompts: Sequence[str] | None = None, fps: float | None = None) -> Tensor:
        """Score clips ``(B, 3, T, H, W)`` in ``[0, 1]``; returns ``(B, axes)`` in standard units."""
        scores = [
            normalised(judge, judge(frames, **wanted.arguments(len(frames), prompts, fps)))  # type: ignore[arg-type]
            for judge, wanted in zip(self.judges, self._each, strict=True)
        ]
        columns = []
        for members in self._members.values():
            total = sum(self.weights[number] for number, _ in members)
            columns.append(
                torch.stack(
                    [scores[number][:, column] * (self.weights[number] / total) for number, column in members]
                ).sum(dim=0)
            )
        return torch.stack(columns, dim=1)
