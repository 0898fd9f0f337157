"""Preference pairs as tensors, batch by batch, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.training.cache import LatentCache, clip_name, prompt_name, sigmas_name, step_name
from nrg_sampler.training.preferences import PreferenceTable


@dataclass(frozen=True)
class PairSteps:
    """Steps of the sampler on its way to the clips of pairs.

    Args:
        latents: Noisy latents of A and B, shape ``(B, 2, C, T, H, W)``; 0 where no step was asked for.
        velocity: Of the same shape.
        sigma: Noise levels, shape ``(B, 2)``.
        read: Which pairs a step was asked for of, bool, shape ``(B,)``.
    """

    latents: Tensor
    velocity: Tensor
    sigma: Tensor
    read: Tensor


@dataclass(frozen=True)
class PairBatch:
    """Some pairs.

    Args:
        clean: Clean latents of A and B, shape ``(B, 2, C, T, H, W)``.
        conditioning: The prompt of each pair.
        preference: 1, -1, 0 or NaN, shape ``(B, axes)``.
        scores: A teacher's scores, shape ``(B, axes, 2)``, if there are any.
        steps: Steps on the way to the clips, if any were asked for.
    """

    clean: Tensor
    conditioning: Conditioning
    preference: Tensor
    scores: Tensor | None = None
    steps: PairSteps | None = None


class PairData:
    """Pairs whose clips and prompts are in a cache.

    Args:
        axes: Names of the axes.
        clips: Names of A and B in the cache.
        prompts: The prompt of each pair; their features are in the cache.
        preference: 1, -1, 0 or NaN, shape ``(N, axes)``.
        cache: Holds the latents and features.
        scores: A teacher's scores, NaN where there is none, shape ``(N, axes, 2)``.
        overall: The preference as a whole, shape ``(N,)``; unlabelled by default.
        measured: The scores as the teacher gave them, whose digest is the same on every machine; ``scores`` by
            default.
    """

    def __init__(
        self,
        axes: tuple[str, ...],
        clips: Sequence[tuple[str, str]],
        prompts: Sequence[str],
        preference: Tensor,
        cache: LatentCache,
        scores: Tensor | None = None,
        overall: Tensor | None = None,
        measured: Tensor | None = None,
    ) -> None:
        """Keep the pairs; tensors are read batch by batch."""
        self.axes, self._cache = axes, cache
        self._clips = list(clips)
        self._prompts = [prompt_name(prompt) for prompt in prompts]
        self.preference = preference
        self.overall = torch.full((len(self._clips),), torch.nan) if overall is None else overall
        self.scores = scores
        self.measured = scores if measured is None else measured

    @classmethod
    def of(cls, table: PreferenceTable, cache: LatentCache) -> PairData:
        """Return the pairs of a preference file; the clips are read once more, for their checksum only."""
        return cls(
            table.axes,
            [(clip_name(pair.first), clip_name(pair.second)) for pair in table.pairs],
            [pair.prompt for pair in table.pairs],
            table.preferences(),
            cache,
            table.scores(),
            torch.tensor([pair.overall for pair in table.pairs]),
        )

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._clips)

    @property
    def names(self) -> list[tuple[str, str, str]]:
        """Names of A, of B and of the prompt of each pair, which stand for their contents."""
        return [(*clips, prompt) for clips, prompt in zip(self._clips, self._prompts, strict=True)]

    @property
    def prompts(self) -> list[str]:
        """Name of the prompt of each pair."""
        return list(self._prompts)

    @property
    def encoding(self) -> dict[str, Any]:
        """What besides clips and prompts decides latents and features, the model and how files become clips."""
        return dict(self._cache.settings)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one clip's latents."""
        return tuple(self._cache.get(self._clips[0][0]).shape)

    @property
    def levels(self) -> list[float]:
        """Noise levels of the steps that are kept of each clip; none of clips that were not sampled so."""
        name = sigmas_name(self._clips[0][0])
        levels: list[float] = self._cache.get(name).tolist() if name in self._cache else []
        return levels

    def batch(self, indices: Sequence[int], device: torch.device, steps: Sequence[int | None] = ()) -> PairBatch:
        """Read some pairs, in float32.

        Args:
            indices: Of the pairs.
            device: Where they are to be.
            steps: Which of the kept steps of each pair to read besides, if any.
        """
        clean = torch.stack([torch.stack([self._cache.get(name) for name in self._clips[index]]) for index in indices])
        features = [self._cache.get(self._prompts[index]).float() for index in indices]
        embeds = pad_sequence(features, batch_first=True)  # (B, L, D)
        lengths = torch.tensor([len(feature) for feature in features])
        mask = torch.arange(embeds.shape[1]) < lengths[:, None]
        rows = torch.as_tensor(indices)
        return PairBatch(
            clean.float().to(device),
            Conditioning(embeds.to(device), mask.to(device)),
            self.preference[rows].to(device),
            None if self.scores is None else self.scores[rows].to(device),
            self._steps(indices, device, steps) if any(step is not None for step in steps) else None,
        )

    def _steps(self, indices: Sequence[int], device: torch.device, steps: Sequence[int | None]) -> PairSteps:
        shape = self.shape
        moments = torch.zeros(len(indices), 2, 2, *shape)
        sigma = torch.zeros(len(indices), 2)
        for row, (index, step) in enumerate(zip(indices, steps, strict=True)):
            for side, clip in enumerate(self._clips[index] if step is not None else ()):
                assert step is not None  # of the loop
                moments[row, side] = self._cache.get(step_name(clip, step)).float()
                sigma[row, side] = self._cache.get(sigmas_name(clip))[step]
        latents, velocity = moments.to(device).unbind(dim=2)
        read = torch.tensor([step is not None for step in steps])
        return PairSteps(latents, velocity, sigma.to(device), read.to(device))


def subset(table: PreferenceTable, kept: Sequence[bool]) -> PreferenceTable:
    """Return the pairs of a table where ``kept`` is true."""
    return PreferenceTable(table.axes, [pair for pair, keep in zip(table.pairs, kept, strict=True) if keep])
