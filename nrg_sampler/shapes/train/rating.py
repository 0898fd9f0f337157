"""Rate noisy clips of a pool with a reward: for its loss, its accuracy on held-out pairs and its calibration."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import caption
from nrg_sampler.shapes.train.groups import LEFT, RIGHT, TIE, PairSampler, to_prompt
from nrg_sampler.shapes.train.pool import GROUP, Pool
from nrg_sampler.shapes.train.train_text import encode_text
from nrg_sampler.training.ensemble import align_members
from nrg_sampler.training.grade import SIGMA_BINS
from nrg_sampler.training.scoring import NEARLY_CLEAN

if TYPE_CHECKING:
    from diffusers import WanPipeline


def rate_groups(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float],
    disturbance: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Rate groups of noisy clips, each under several prompts; a group shares noise and sigma.

    Args:
        reward: The reward.
        pool: The clips.
        rows: Which of them, shape ``(groups, GROUP)``.
        labels: Attribute indices of the prompts, shape ``(groups, P, 5)``.
        pipe: Encodes the prompts.
        rng: Draws their wording.
        generator: Draws noise levels and noise.
        sigma: Range of noise levels.
        disturbance: The noisy clips are perturbed first, see `disturbed`, under the first prompt.

    Returns:
        Raw rewards of the members ``(groups, P, GROUP, M, 3)`` and the trunk's features ``(groups * GROUP, N, D)``.
    """
    groups, prompts = labels.shape[:2]
    device = reward.queries.device
    clean = pool.latents[rows.flatten()].float().to(device)
    low, high = sigma
    noise_level = (low + (high - low) * torch.rand(groups, generator=generator)).to(device).repeat_interleave(GROUP)
    noise = torch.randn(groups, *clean.shape[1:], generator=generator).to(device).repeat_interleave(GROUP, dim=0)
    texts = [caption(to_prompt(row), rng) for row in labels.flatten(0, 1).tolist()]
    with torch.no_grad():
        encoded = encode_text(pipe.tokenizer, pipe.text_encoder, texts)
    embeds, mask = (part.unflatten(0, (groups, prompts)).repeat_interleave(GROUP, dim=0) for part in encoded)
    conditionings = [Conditioning(embeds[:, index], mask[:, index]) for index in range(prompts)]
    latents = noised(clean, noise, noise_level)
    with fast_autocast(device):
        if disturbance:
            latents = disturbed(reward, latents, noise_level, conditionings[0], disturbance, generator)
        features = reward.features(latents, noise_level, conditionings[0])
        raw = [reward.score_features(features, conditioning, members=True) for conditioning in conditionings]
    return torch.stack([each.float().unflatten(0, (groups, GROUP)) for each in raw], dim=1), features


def rate(
    reward: LatentReward,
    pool: Pool,
    rows: Tensor,
    labels: Tensor,
    pipe: WanPipeline,
    rng: random.Random,
    generator: torch.Generator,
    sigma: tuple[float, float],
) -> Tensor:
    """Rate groups under one prompt each, ``(groups, 5)``; returns ``(groups, GROUP, 3)``, see `rate_groups`."""
    raw, _ = rate_groups(reward, pool, rows, labels[:, None], pipe, rng, generator, sigma)
    return raw[:, 0].mean(dim=2)


def disturbed(
    reward: LatentReward,
    latents: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    largest: float,
    generator: torch.Generator,
) -> Tensor:
    """Perturb noisy latents along the reward's own gradient, up or down, each with random weights of the axes.

    Such a step raises the reward while hardly changing the clip: an adversarial example. A reward that is trained on
    it with the clip's unchanged scores learns gradients that change the clip.

    Args:
        reward: The reward as it is now.
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        sigma: Their noise levels, shape ``(B,)``.
        conditioning: Their prompts.
        largest: Half of the clips stay, the others move by a norm that is uniform between 0 and this.
        generator: Draws weights and norms.

    Returns:
        Perturbed latents, shape as ``latents``.

    Reference:
        Kawar et al., 2022, arXiv:2208.08664 (guidance by a robust classifier).
    """
    mix = torch.randn(len(latents), len(AXES), generator=generator).to(latents.device)
    norms = largest * (2 * torch.rand(len(latents), generator=generator) - 1).clamp(min=0).to(latents.device)
    leaf = latents.detach().requires_grad_()
    (grad,) = torch.autograd.grad((mix * reward(leaf, sigma, conditioning)).sum(), leaf)
    direction = grad / grad.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1, 1)
    moved: Tensor = latents + norms.view(-1, 1, 1, 1, 1) * direction
    return moved


@torch.no_grad()
def accuracy_by_sigma(
    reward: LatentReward, pool: Pool, pipe: WanPipeline, seed: int, kind: str, groups: int = 400
) -> dict[str, object]:
    """Measure the share of held-out pairs ranked as by the oracle, per axis and sigma bin; a tied prediction is wrong.

    The kinds of pairs are those of `PairSampler`. Pairs whose oracle scores differ by less than the tie width are left
    out, as ties are in published figures.
    """
    sampler = PairSampler(pool)
    table: dict[str, object] = {}
    for bounds in SIGMA_BINS:
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        rows, labels = sampler.draw_groups([kind] * groups, rng)
        value = sampler.ratings(rows, labels)
        truth = value[:, LEFT] - value[:, RIGHT]
        raw = torch.cat(
            [
                rate(reward, pool, rows[at : at + 16], labels[at : at + 16], pipe, rng, generator, bounds)
                for at in range(0, groups, 16)
            ]
        ).cpu()
        guess = raw[:, LEFT] - raw[:, RIGHT]
        clear = truth.abs() > TIE
        right = (guess.sign() == truth.sign()) & clear
        table[f"{bounds[0]:.1f}-{bounds[1]:.1f}"] = {
            axis: {
                "accuracy": (right[..., index].sum() / clear[..., index].sum()).item(),
                "pairs": int(clear[..., index].sum()),
            }
            for index, axis in enumerate(AXES)
        }
    return table


@torch.no_grad()
def calibrate(
    reward: LatentReward,
    pool: Pool,
    pipe: WanPipeline,
    seed: int,
    recommended: Mapping[str, object],
    groups: int = 400,
) -> None:
    """Align the members and store the reward's mean and spread over nearly clean samples of the base model."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    chosen, _ = PairSampler(pool).draw_groups(["same"] * groups, rng)
    raw = torch.cat(
        [
            rate_groups(reward, pool, rows, pool.labels[rows[:, :1]], pipe, rng, generator, NEARLY_CLEAN)[0]
            for rows in chosen.split(16)
        ]
    ).flatten(0, 2)  # (clips, M, 3)
    raw = align_members(reward, raw).mean(dim=1)  # (clips, 3)
    reward.register_to_config(mean=raw.mean(dim=0).tolist(), std=raw.std(dim=0).tolist(), **recommended)
