"""Grade a latent reward along the sampler's own trajectories: where guidance acts, among samples of one prompt.

Noised clips and clips of other settings differ in ways that are easy to see. Guidance has to choose between samples of
one prompt at the settings of use, from latents as they stand on the way; the label is the finished clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrg_sampler.rewards.base import normalised
from nrg_sampler.statistics import ratio_interval
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.scoring import score_read

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward

LEVELS = (0.96, 0.91, 0.86, 0.77, 0.67, 0.5, 0.29)  # kept by default; the first third of the steps has most of them
ACTING = (0.6, 0.95)  # noise levels at which guidance does nearly all it does


@torch.no_grad()
def score_along(reward: LatentReward, data: PairData, device: torch.device, batch: int = 8) -> Iterator[Tensor]:
    """Score both clips of every pair at each step that is kept of them.

    Args:
        reward: The reward.
        data: The pairs.
        device: Where the reward is.
        batch: Pairs scored together.

    Yields:
        For some pairs at a time the normalised reward of A minus that of B, shape ``(b, K, axes)``.

    Raises:
        ValueError: If no steps are kept of the clips.
    """
    if not data.levels:
        raise ValueError("Expected clips whose trajectories are kept, but got clips alone; sample them with levels.")
    for start in range(0, len(data), batch):
        indices = range(start, min(start + batch, len(data)))
        parts = []
        for place in range(len(data.levels)):
            pairs = data.batch(indices, device, [place] * len(indices))
            steps = pairs.steps
            assert steps is not None  # they were asked for
            velocity = steps.velocity if reward.needs_velocity else None
            raw = score_read(reward, steps.latents, steps.sigma, pairs.conditioning, velocity)
            scores = normalised(reward, raw).cpu()  # (b, 2, axes)
            parts.append(scores[:, 0] - scores[:, 1])
        yield torch.stack(parts, dim=1)


def grade_along(differences: Tensor, data: PairData) -> dict[str, Any]:
    """Return how often the reward ranks pairs as their finished clips were, ties left out.

    Args:
        differences: Normalised, shape ``(pairs, K, axes)``.
        data: Whose pairs they are.

    Returns:
        For each axis its ``pairs`` that are not ties, its accuracy ``by_sigma``, and over the levels in
        ``ACTING`` the mean, ``accuracy``, with its 95 % bootstrap interval over prompts, ``low`` and ``high``.
    """
    acting = torch.tensor([ACTING[0] < level < ACTING[1] for level in data.levels])
    report: dict[str, Any] = {}
    for index, axis in enumerate(data.axes):
        preference = data.preference[:, index].nan_to_num(0)
        decided = preference != 0
        right = (differences[..., index].sign() == preference[:, None]).double() * decided[:, None]  # (pairs, K)
        by_sigma = right.sum(dim=0) / decided.sum()
        figures: dict[str, Any] = {
            "pairs": int(decided.sum()),
            "by_sigma": {f"{level:.2f}": share for level, share in zip(data.levels, by_sigma.tolist(), strict=True)},
        }
        if acting.any() and decided.any():
            won, compared = _by_prompt(right[:, acting].mean(dim=1), data), _by_prompt(decided.double(), data)
            interval = ratio_interval(won, compared)
            low, high = (None, None) if interval is None else interval
            accuracy = (won.sum() / compared.sum()).item()
            figures |= {"accuracy": accuracy, "low": low, "high": high, "prompts": int((compared > 0).sum())}
        report[axis] = figures
    return report


def _by_prompt(values: Tensor, data: PairData) -> Tensor:
    """Sum values of pairs over the pairs of each prompt."""
    names = {name: place for place, name in enumerate(dict.fromkeys(data.prompts))}
    places = torch.tensor([names[name] for name in data.prompts])
    return torch.zeros(len(names), dtype=torch.float64).index_add_(0, places, values)


def table_along(report: Mapping[str, Any]) -> str:
    """Lay the figures of one reward out, one row an axis, in percent."""
    levels = list(next(iter(report.values()))["by_sigma"])
    acting = f"mean of σ in {ACTING}"
    lines = [f"| axis | {acting} | pairs | {' | '.join(f'σ {level}' for level in levels)} |"]
    lines.append(f"|---|{'---|' * (len(levels) + 2)}")
    for axis, figures in report.items():
        mean = "-"
        if "accuracy" in figures:
            mean = f"{100 * figures['accuracy']:.1f}"
            if figures["low"] is not None:
                mean += f" [{100 * figures['low']:.1f}, {100 * figures['high']:.1f}]"
        cells = [mean, str(figures["pairs"]), *(f"{100 * figures['by_sigma'][level]:.1f}" for level in levels)]
        lines.append(f"| {axis} | {' | '.join(cells)} |")
    return "\n".join(lines)
