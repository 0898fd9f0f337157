"""Score pairs with a latent reward: for its loss, its accuracy and the statistics of its raw values."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.training.ensemble import align_members
from nrg_sampler.training.pairs import PairData

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward

NEARLY_CLEAN = (0.02, 0.1)  # noise levels at which mean and standard deviation are measured


def score_pairs(
    model: Any, clean: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, members: bool = False
) -> Tensor:
    """Compute raw rewards of noised pairs, shape ``(B, 2, axes)``, in one call of the model.

    Args:
        model: The reward.
        clean: Shape ``(B, 2, C, T, H, W)``.
        noise: Same shape.
        sigma: Shape ``(B,)``.
        conditioning: One prompt a pair.
        members: Return the raw rewards of each member, shape ``(B, 2, members, axes)``.
    """
    levels = sigma[:, None].expand(-1, 2)
    latents = noised(clean.flatten(0, 1), noise.flatten(0, 1), levels.flatten()).unflatten(0, (-1, 2))
    return score_read(model, latents, levels, conditioning, members=members)


def score_read(
    model: Any,
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    velocity: Tensor | None = None,
    members: bool = False,
) -> Tensor:
    """Compute raw rewards of pairs as they are read, shape ``(B, 2, axes)``, in one call of the model.

    Args:
        model: The reward.
        latents: Noisy latents, shape ``(B, 2, C, T, H, W)``.
        sigma: Their noise levels, shape ``(B, 2)``.
        conditioning: One prompt a pair.
        velocity: Of the step, shape of ``latents``, for a reward that needs it.
        members: Return the raw rewards of each member, shape ``(B, 2, members, axes)``.
    """
    embeds, mask = conditioning.prompt_embeds, conditioning.prompt_mask
    both = Conditioning(
        None if embeds is None else embeds.repeat_interleave(2, dim=0),
        None if mask is None else mask.repeat_interleave(2, dim=0),
        None if velocity is None else velocity.flatten(0, 1),
    )
    options = {"members": True} if members else {}
    raw: Tensor = model(latents.flatten(0, 1), sigma.flatten(), both, **options)
    in_pairs: Tensor = raw.float().unflatten(0, (-1, 2))
    return in_pairs


def in_bfloat16(model: Any, device: torch.device) -> Callable[..., Tensor]:
    """Return the forward pass of a model under bfloat16 autocast.

    Not left to accelerate, whose precision is one for the whole process: a second run may have another.
    """

    def forward(*inputs: Any, **options: Any) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16), warnings.catch_warnings():
            # A root mean square norm has weights in float32 and inputs in bfloat16, which is meant.
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            raw: Tensor = model(*inputs, **options)
        return raw

    return forward


@torch.no_grad()
def calibrate(reward: LatentReward, data: PairData, device: torch.device, seed: int, limit: int = 256) -> None:
    """Align the members and store mean and standard deviation of the raw reward over nearly clean clips of the data.

    Args:
        reward: Gets them in its config.
        data: The pairs; their clips stand for samples of the model.
        device: Where the reward is.
        seed: Of noise and noise levels.
        limit: Pairs at most.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = NEARLY_CLEAN
    raw = []
    for index in torch.randperm(len(data), generator=generator)[:limit].tolist():
        batch = data.batch([index], device)
        sigma = low + (high - low) * torch.rand(1, generator=generator)
        if reward.needs_velocity:  # which only the sampler knows: clean clips instead of nearly clean ones
            sigma = torch.zeros(1)
        noise = torch.randn(batch.clean.shape, generator=generator)
        scored = score_pairs(reward, batch.clean, noise.to(device), sigma.to(device), batch.conditioning, members=True)
        raw.append(scored[0])
    values = align_members(reward, torch.cat(raw)).mean(dim=1)  # (2 * pairs, axes)
    spread = values.std(dim=0).clamp(min=1e-6)
    reward.register_to_config(mean=values.mean(dim=0).tolist(), std=spread.tolist())
