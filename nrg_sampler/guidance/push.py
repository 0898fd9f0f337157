r"""Flow-NRG as a pure function: from a velocity and a reward gradient to a guided velocity.

.. math:: \tilde v = v - w\,\frac{\sigma}{1-\sigma}\,\nabla_x r(x_\sigma, \sigma)

Reference:
    Liu et al., 2025, arXiv:2501.13918, Eq. 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nrg_sampler.flow import PURE_NOISE, coefficient, expand, per_sample, working_dtype

SMALLEST_NORM = 1e-30  # keeps the ratio of two zero norms at zero


@dataclass(frozen=True)
class Push:
    """How far each sample is pushed; every tensor has shape ``(B,)`` and stays on the velocity's device.

    Args:
        factor: What multiplies the gradient, limits included; 0 for a sample that is left alone.
        grad_norm: Norm of the gradient of the weighted reward.
        velocity_norm: Norm of the velocity before guidance.
        coefficient: ``sigma / (1 - sigma)``, clamped, and trusted as all weighted axes are.
        push_ratio: Norm of the change over the norm of the velocity.
        clamped: Whether the coefficient was clamped.
        capped: Whether the push was shortened.
        finite: Whether the gradient was finite; if not, the sample is left alone.
    """

    factor: Tensor
    grad_norm: Tensor
    velocity_norm: Tensor
    coefficient: Tensor
    push_ratio: Tensor
    clamped: Tensor
    capped: Tensor
    finite: Tensor


def guide(
    velocity: Tensor,
    reward_grad: Tensor,
    sigma: Tensor | float,
    scale: float = 1.0,
    *,
    max_coefficient: float | None = None,
    max_push: float | None = None,
    damping: float = 0.0,
    fading: float = 0.0,
    push: Push | None = None,
) -> Tensor:
    r"""Move a velocity toward higher reward, each sample on its own.

    .. math:: \tilde v = v - w \frac{\sigma}{1-\sigma} (1-\sigma)^p\,\sigma^q\,\nabla_x r(x_\sigma, \sigma)

    Args:
        velocity: Velocity after classifier-free guidance, shape ``(B, C, T, H, W)``.
        reward_grad: Gradient of the weighted reward w.r.t. the latents, same shape.
        sigma: Noise level, 1 is pure noise: a number, or shape ``(B,)``; samples at 0 and 1 are left alone.
        scale: Strength ``w``; 0 returns ``velocity`` itself.
        max_coefficient: Upper limit of ``sigma / (1 - sigma)``; ``None`` for no limit.
        max_push: Upper limit of the change's norm as a fraction of the velocity's norm; ``None`` for no limit.
        damping: Exponent p >= 0 of the factor ``(1 - sigma) ** p``.
        fading: Exponent q >= 0 of the factor ``sigma ** q``.
        push: What ``measure_push`` returned for the same arguments, if it is known.

    Returns:
        Guided velocity, same shape and dtype as ``velocity``; a sample whose gradient is not finite comes back as is.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 11 (Flow-NRG); clamp, cap, damping and fading are additions.
    """
    if scale == 0:
        return velocity
    if push is None:
        limits = {"max_coefficient": max_coefficient, "max_push": max_push}
        push = measure_push(velocity, reward_grad, sigma, scale, damping=damping, fading=fading, **limits)
    dtype = working_dtype(velocity, reward_grad)
    factor = expand(push.factor, velocity.to(dtype))
    gradient = torch.where(factor == 0, 0.0, reward_grad.to(dtype))  # 0 * nan is nan
    return (velocity.to(dtype) - factor * gradient).to(velocity.dtype)  # Eq. 11


def measure_push(
    velocity: Tensor,
    reward_grad: Tensor,
    sigma: Tensor | float,
    scale: float = 1.0,
    *,
    max_coefficient: float | None = None,
    max_push: float | None = None,
    damping: float = 0.0,
    fading: float = 0.0,
) -> Push:
    """Work out how far ``guide`` pushes each sample within the limits; arguments as there."""
    dtype = working_dtype(velocity, reward_grad)
    sigma = per_sample(sigma, velocity, dtype)
    guidable = (sigma > 0) & (sigma <= PURE_NOISE)
    sigma = torch.where(guidable, sigma, 0.0)  # keeps the singularity at 1 out of the arithmetic

    factor = coefficient(sigma)
    highest = math.inf if max_coefficient is None else max_coefficient
    clamped = factor > highest
    factor = factor.clamp(max=highest) * (1 - sigma) ** damping * sigma**fading

    grad_norm, velocity_norm = _norm(reward_grad.to(dtype)), _norm(velocity.to(dtype))
    push_norm = abs(scale) * factor * grad_norm
    finite = (grad_norm.isfinite() & push_norm.isfinite()) | ~guidable
    limit = math.inf if max_push is None else max_push * velocity_norm
    capped = (push_norm > limit) & finite
    shrink = torch.where(capped, limit / push_norm, 1.0)
    moved = guidable & finite
    return Push(
        factor=torch.where(moved, scale * factor * shrink, 0.0),
        grad_norm=grad_norm,
        velocity_norm=velocity_norm,
        coefficient=factor,
        push_ratio=torch.where(moved, push_norm * shrink / velocity_norm.clamp(min=SMALLEST_NORM), 0.0),
        clamped=clamped,
        capped=capped,
        finite=finite,
    )


def _norm(tensor: Tensor) -> Tensor:
    return tensor.flatten(1).square().sum(dim=1).sqrt()
