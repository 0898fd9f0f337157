"""How much was gained, whether it was wanted, and whether a slider does what it says."""

from __future__ import annotations

import torch
from torch import Tensor

from nrg_sampler.statistics import DRAWS, Estimate, spearman


def gains(challenger: Tensor, baseline: Tensor) -> Tensor:
    """Return the change of each axis and of their mean, clip by clip, in units of the baseline's spread.

    Args:
        challenger: Scores of one arm, shape ``(n, axes)``.
        baseline: Scores of the unguided run on the same prompts and seeds, same shape; its standard deviation over
            the prompts is the unit.

    Returns:
        Shape ``(n, axes + 1)``; the last column is the mean over the axes.
    """
    spread = baseline.std(dim=0) if len(baseline) > 1 else torch.ones(baseline.shape[1])
    change = (challenger - baseline) / spread.clamp(min=1e-6)
    return torch.cat([change, change.mean(dim=1, keepdim=True)], dim=1)


def hacking_index(held_out_gain: float, target_gain: float) -> float | None:
    """Return the share of the target's gain that a judge which did not guide does not confirm.

    Args:
        held_out_gain: Gain by the judge, in units of its spread.
        target_gain: Gain by the guiding reward, in units of its own.

    Returns:
        0 if both gain alike, 1 if the judge sees nothing, above 1 if it sees a loss; ``None`` if the target gains
        nothing, so that there is nothing to confirm.
    """
    return 1 - held_out_gain / target_gain if target_gain > 0 else None


def slider_correlation(weights: Tensor, changes: Tensor) -> Estimate:
    """Return Spearman's rho between an axis' weight and its mean gain over arms.

    Args:
        weights: Weight of the axis in each arm, shape ``(arms,)``.
        changes: Its gain on each prompt, shape ``(arms, n)``.
    """
    rho = spearman(weights, changes.mean(dim=1)).item()
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(changes.shape[1], (DRAWS, changes.shape[1]), generator=generator)
    drawn = spearman(weights, changes[:, draws].mean(dim=2).T).double()  # (DRAWS,)
    low, high = (torch.quantile(drawn, q).item() for q in (0.025, 0.975))
    return Estimate(rho, low, high)
