r"""Rewards with several members: what they agree on can be trusted further than what only one of them says.

A push that climbs the mean of several rewards also climbs what one of them alone has got wrong. The lower confidence
bound

.. math:: \bar r_k - \lambda \sqrt{\tfrac1M \sum_m (r_{m,k} - \bar r_k)^2}

of each axis k takes from it what the members disagree about. With two members and :math:`\lambda = 1` it is the
smaller of the two; beyond 1 the most optimistic member of two counts against itself.

References:
    [1] Coste et al., 2023, arXiv:2310.02743 (conservative optimisation of ensembles of reward models).
    [2] Eisenstein et al., 2023, arXiv:2312.09244 (ensembles mitigate over-optimisation; they do not end it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.base import Conditioning, Reward, check_reward, normalised

SQRT_OFFSET = 1e-12  # gives the root of zero a slope of zero


def lower_bound(members: Tensor, disagreement: float) -> Tensor:
    """Mean over the members minus a multiple of their standard deviation.

    Args:
        members: Reward of each member, shape ``(B, members, axes)``.
        disagreement: The multiple; a negative one gives the upper bound.

    Returns:
        Shape ``(B, axes)``, differentiable also where all members agree.

    Reference:
        [1], section 3.2 (uncertainty-weighted optimisation, there with the variance).
    """
    spread = members.var(dim=1, correction=0)
    return members.mean(dim=1) - disagreement * (spread + SQRT_OFFSET).sqrt()


class EnsembleReward(nn.Module):
    """Several rewards of the same axes as one, whose members they are.

    Each is measured in its own stored mean and standard deviation, so that rewards with other origins and units can be
    compared; their mean guides.

    Args:
        rewards: Two or more rewards with the same axes in the same order.

    Raises:
        ValueError: If there are fewer, one is no reward, or axes differ.

    Reference:
        [1], where each member is trained from its own seed.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        super().__init__()
        if len(rewards) < 2:
            raise ValueError(f"Expected two rewards or more, but got {len(rewards)}; a single one needs no ensemble.")
        hooks = [check_reward(reward) for reward in rewards]
        for reward in rewards:
            if tuple(reward.axes) != tuple(rewards[0].axes):
                raise ValueError(
                    f"Expected rewards with the axes {', '.join(rewards[0].axes)}, as the first has, but got one with "
                    f"{', '.join(reward.axes)}; combine rewards that score the same."
                )
        self.rewards = list(rewards)
        for index, reward in enumerate(rewards):
            if isinstance(reward, nn.Module):  # so that `to` moves it
                self.add_module(f"member_{index}", reward)
        self.axes = tuple(rewards[0].axes)
        self.num_members = len(rewards)
        scales = zip(*(own.recommended_scale for own in hooks), strict=True)
        self.recommended_scale = tuple(sum(column) / len(rewards) for column in scales)
        # as the most careful of them recommends
        self.recommended_damping = tuple(map(max, zip(*(own.recommended_damping for own in hooks), strict=True)))
        self.recommended_fading = tuple(map(max, zip(*(own.recommended_fading for own in hooks), strict=True)))
        self.needs_velocity = any(own.needs_velocity for own in hooks)
        self.needs_prompts = any(own.needs_prompts for own in hooks)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, members: bool = False) -> Tensor:
        """Return the mean of the normalised rewards, shape ``(B, axes)``, or each of them, ``(B, members, axes)``."""
        scores = [normalised(reward, reward(latents, sigma, conditioning)) for reward in self.rewards]
        return torch.stack(scores, dim=1) if members else torch.stack(scores).mean(dim=0)

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline that one of the rewards refuses.

        Raises:
            ValueError: As that reward does.
        """
        for reward in self.rewards:
            check_reward(reward, pipe)
