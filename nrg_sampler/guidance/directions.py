r"""From the gradients of several axes to one direction: what to do when they disagree.

Every function is pure and treats each sample of a batch on its own. Gradients of ``K`` axes are stacked to shape
``(K, B, ...)``; a direction has the latents' shape ``(B, ...)`` and points to where the latents should go.

References:
    [1] Yu et al., 2020, arXiv:2001.06782 (PCGrad: projecting conflicting gradients).
    [2] Hildreth, 1957, A quadratic programming procedure (projection onto an intersection of half-spaces).
    [3] Sadat et al., 2024, arXiv:2410.02416 (the parallel part of guidance over-saturates).
    [4] Smilkov et al., 2017, arXiv:1706.03825 (SmoothGrad: averaging gradients over noise).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nrg_sampler.flow import clean_from, noise_from, noised
from nrg_sampler.guidance.push import SMALLEST_NORM

SWEEPS = 100  # of [2] over several floors; a single one is exact after the first


def balanced(grads: Tensor) -> Tensor:
    """Scale the gradients of one sample to a common norm, the mean of theirs, so that weights alone set the shares.

    Args:
        grads: Gradients of the weighted axes, before their weights, shape ``(K, B, ...)``.

    Returns:
        Same shape; a gradient of zero stays zero.
    """
    norms = grads.flatten(2).norm(dim=2)  # (K, B)
    factors = norms.mean(dim=0) / norms.clamp(min=SMALLEST_NORM)
    return _scaled(factors, grads)


def without_conflicts(grads: Tensor) -> Tensor:
    r"""Take out of each gradient its part against another one, where the two point more than 90 degrees apart.

    .. math:: g_i \leftarrow g_i - \frac{\min(0, \langle g_i, g_j\rangle)}{\|g_j\|^2}\, g_j \quad (j \ne i)

    Args:
        grads: Gradients with their weights, shape ``(K, B, ...)``.

    Returns:
        Same shape. With two axes, the sum lowers neither to first order.

    Reference:
        [1], Algorithm 1; the other axes are taken in order rather than at random, so that a run can be repeated.
    """
    projected = []
    for index, grad in enumerate(grads):
        for other in (*grads[:index], *grads[index + 1 :]):
            against = _dot(grad, other).clamp(max=0) / _dot(other, other).clamp(min=SMALLEST_NORM)  # (B,)
            grad = grad - _scaled(against, other)
        projected.append(grad)
    return torch.stack(projected)


def above_floor(direction: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
    r"""Change a direction as little as possible so that it lowers no floored axis to first order.

    .. math:: \arg\min_p \|p - d\|^2 \quad\text{with}\quad \langle p, g_k\rangle \ge 0 \text{ for all } k

    With one axis that is the projection onto a half-space, :math:`d - \min(0, \langle d, g\rangle)\,g / \|g\|^2`.

    Args:
        direction: Where the latents would go, shape ``(B, ...)``.
        floors: Gradients of the floored axes, shape ``(K, B, ...)``.

    Returns:
        The direction, same shape, and for each sample whether it had to be changed, shape ``(B,)``.

    Reference:
        [2]; the multipliers :math:`\lambda \ge 0` of :math:`p = d + \sum_k \lambda_k g_k` are found one at a time.
    """
    flat = floors.flatten(2).transpose(0, 1)  # (B, K, N)
    gram = flat @ flat.mT  # (B, K, K)
    slopes = (flat @ direction.flatten(1)[..., None])[..., 0]  # (B, K)
    multipliers = torch.zeros_like(slopes)
    for _ in range(SWEEPS if len(floors) > 1 else 1):
        for k in range(len(floors)):
            excess = slopes[:, k] + (gram[:, k] * multipliers).sum(dim=1)
            multipliers[:, k] = (multipliers[:, k] - excess / gram[:, k, k].clamp(min=SMALLEST_NORM)).clamp(min=0)
    changed = (multipliers > 0).any(dim=1)
    return direction + _scaled(multipliers.T, floors).sum(dim=0), changed


def less_parallel(direction: Tensor, clean: Tensor, share: float) -> Tensor:
    """Keep only a share of the direction's part along the predicted clean latents, which over-saturates.

    Args:
        direction: Shape ``(B, ...)``.
        clean: Predicted clean latents, same shape.
        share: What is kept of that part, in [0, 1].

    Reference:
        [3], Eq. 8, there for classifier-free guidance.
    """
    along = _dot(direction, clean) / _dot(clean, clean).clamp(min=SMALLEST_NORM)
    return direction - (1 - share) * _scaled(along, clean)


def renoised(
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    level: Tensor | float,
    share: float,
    samples: int,
    seed: int,
) -> Iterator[Tensor]:
    r"""Yield latents on the path of the given ones, at noise level ``level``, with part of their noise exchanged.

    .. math:: \tilde x = (1-\sigma')\,\hat x_0 + \sigma'\,(\sqrt{1-s^2}\,\hat\varepsilon \pm s\,\varepsilon')

    They have the noise level that the reward was trained on, so its gradients there may be averaged: what they share
    is about the clip, the rest about the noise. Fresh noise comes in pairs of both signs, which cancels its first
    order.

    Args:
        latents: Noisy latents, shape ``(B, ...)``.
        velocity: Predicted velocity, same shape.
        sigma: Their noise level: a number, or shape ``(B,)``.
        level: That of the result, likewise; their own if it is ``sigma``.
        share: Share ``s`` of the noise's norm that is exchanged, in [0, 1].
        samples: How many to yield.
        seed: Of the fresh noise, which every sample of a batch gets alike.

    Reference:
        After [4], which adds noise instead of exchanging it.
    """
    clean, noise = clean_from(latents, velocity, sigma), noise_from(latents, velocity, sigma)
    generator = torch.Generator().manual_seed(seed)
    for index in range(samples):
        if index % 2 == 0:
            fresh = torch.randn(latents.shape[1:], generator=generator).to(latents, non_blocking=True)
        sign = 1 - 2 * (index % 2)
        yield noised(clean, (1 - share**2) ** 0.5 * noise + sign * share * fresh, level)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(dim=1)  # (B,)


def _scaled(factors: Tensor, tensors: Tensor) -> Tensor:
    """Multiply ``(B, ...)`` by ``(B,)``, or ``(K, B, ...)`` by ``(K, B)``."""
    return factors.reshape(*factors.shape, *[1] * (tensors.ndim - factors.ndim)) * tensors
