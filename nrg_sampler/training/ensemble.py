r"""Make the members of an ensemble differ where the data is sparse, and comparable elsewhere.

Each member is trained on a bootstrap resample of the comparisons: a comparison counts a Poisson(1) number of times,
drawn once for each member. Comparisons determine a reward only up to a function of the prompt and the noise; a weak
penalty on that offset keeps the members' levels together, so that what differs between them is disagreement.

References:
    [1] Osband et al., 2016, arXiv:1602.04621 (bootstrapped heads on one trunk).
    [2] Oza and Russell, 2001, Online bagging and boosting (Poisson(1) in place of resampling).
    [3] Coste et al., 2023, arXiv:2310.02743 (ensembles of reward models against over-optimisation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward


LEVEL_PULL = 0.1  # of the members' levels to each other; it changes no ranking


def bootstrap_weights(count: int, num_members: int, seed: int) -> Tensor:
    """Draw how often each of ``count`` comparisons counts for each member [2], shape ``(count, num_members)``.

    A single member is trained on every comparison once.
    """
    if num_members == 1:
        return torch.ones(count, 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.ones(count, num_members), generator=generator)


def level_spread(raw: Tensor) -> Tensor:
    """Return the mean square distance of the members' levels from their mean, a scalar.

    Args:
        raw: Raw rewards of clips that are compared with each other, under one prompt and one noise, shape
            ``(groups, clips, members, axes)``. The level of a group is the mean over its clips.
    """
    levels = raw.mean(dim=1)  # (groups, members, axes)
    return (levels - levels.mean(dim=1, keepdim=True)).square().mean()


@torch.no_grad()
def align_members(reward: LatentReward, raw: Tensor) -> Tensor:
    """Give every member the same mean and spread, so that what is left between them is disagreement.

    A reward learned from comparisons has no natural origin or unit, and each member has one of its own. Changes the
    last layers of ``reward``; a single member stays as it is.

    Args:
        reward: The reward.
        raw: Raw rewards of its members over samples, shape ``(N, members, axes)``.

    Returns:
        Their raw rewards after the change, same shape.
    """
    if reward.num_members == 1:
        return raw
    mean, std = raw.mean(dim=0), raw.std(dim=0).clamp(min=1e-6)  # (M, A)
    factor, origin = std.mean(dim=0) / std, mean.mean(dim=0)
    for index, member in enumerate(reward.members):
        for axis, head in enumerate(member.heads):
            head[-1].weight.mul_(factor[index, axis])
            head[-1].bias.sub_(mean[index, axis]).mul_(factor[index, axis]).add_(origin[axis])
    return (raw - mean) * factor + origin
