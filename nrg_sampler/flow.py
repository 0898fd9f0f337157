r"""The rectified-flow convention and its algebra, stated once for the whole package.

.. math::
    x_\sigma = (1-\sigma)\,x_0 + \sigma\,\varepsilon, \qquad v = \varepsilon - x_0, \qquad
    x_{\sigma'} = x_\sigma + (\sigma' - \sigma)\,v

``sigma`` lies in [0, 1]: 1 is pure noise and 0 is the clean latent; sampling runs from 1 down to 0. The timestep that
diffusers hands to a model is ``1000 * sigma``. Any ``sigma`` argument may be a number, a scalar tensor or one value
per sample, shape ``(B,)``.

References:
    [1] Lipman et al., 2022, arXiv:2210.02747 (flow matching).
    [2] Liu et al., 2025, arXiv:2501.13918, Eq. 11 (the coefficient of the reward gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Models are trained on 1000 noise levels, so within one level of 1 *is* 1: Euler starts at exactly 1, UniPC at
# 1 - 1e-6 and DPM++ between 0.999 and 0.9999, and all of them mean pure noise.
PURE_NOISE = 1 - 1e-3 - 1e-6


def per_sample(sigma: Tensor | float, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``sigma`` as one value per sample of ``like``, shape ``(B,)``, on its device.

    Args:
        sigma: Noise level in [0, 1]: a number, a scalar tensor or shape ``(B,)``.
        like: Any batch, shape ``(B, ...)``.
        dtype: Floating type of the result; that of ``like`` by default.

    Raises:
        ValueError: If ``sigma`` has neither one value nor one per sample.
    """
    batch, dtype = like.shape[0], dtype or like.dtype
    if not isinstance(sigma, Tensor):
        return torch.full((batch,), float(sigma), dtype=dtype, device=like.device)
    sigma = sigma.to(device=like.device, dtype=dtype).flatten()
    if sigma.numel() not in (1, batch):
        raise ValueError(
            f"Expected `sigma` with one value or one per sample ({batch}), but got {sigma.numel()} values; "
            "pass a number or a tensor of shape (B,)."
        )
    return sigma.expand(batch)


def expand(sigma: Tensor | float, like: Tensor) -> Tensor:
    """Shape ``sigma`` as ``(B, 1, ..., 1)`` so that it multiplies ``like`` sample by sample."""
    return per_sample(sigma, like).reshape(-1, *[1] * (like.ndim - 1))


def noised(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Mix clean latents and noise: ``(1 - sigma) * clean + sigma * noise``."""
    sigma = expand(sigma, clean)
    return (1 - sigma) * clean + sigma * noise


def velocity_from(clean: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity of the straight path: ``noise - clean``."""
    return noise - clean


def velocity_from_clean(latents: Tensor, clean: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the velocity that leads from ``latents`` at ``sigma`` > 0 to ``clean``: ``(latents - clean) / sigma``."""
    return (latents - clean) / expand(sigma, latents)


def along_path(latents: Tensor, velocity: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """Follow the velocity straight to another noise level: ``latents + (sigma_next - sigma) * velocity``."""
    return latents + (expand(sigma_next, latents) - expand(sigma, latents)) * velocity


def clean_from(latents: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the predicted clean latents: ``latents - sigma * velocity``."""
    return latents - expand(sigma, latents) * velocity


def noise_from(latents: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the predicted noise: ``latents + (1 - sigma) * velocity``."""
    return latents + (1 - expand(sigma, latents)) * velocity


def score_from(latents: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the score at ``sigma`` > 0, the gradient of ``log p_sigma``: minus the predicted noise over ``sigma``."""
    return -noise_from(latents, velocity, sigma) / expand(sigma, latents)


def stochastic_step(
    latents: Tensor,
    velocity: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    fresh: Tensor,
    share: float = 1.0,
) -> Tensor:
    r"""Take a step that exchanges part of the noise for fresh noise and leaves the distribution as it is.

    .. math::
        x_{\sigma'} = (1-\sigma')\,\hat x_0 + \sqrt{\sigma'^2 - s^2}\,\hat\varepsilon + s\,\varepsilon', \qquad
        s = \eta\,\sigma'\sqrt{1 - \left(\frac{(1-\sigma)\,\sigma'}{(1-\sigma')\,\sigma}\right)^2}

    Args:
        latents: At ``sigma``, shape ``(B, ...)``.
        velocity: There, same shape.
        sigma: Noise level above ``sigma_next``.
        sigma_next: Noise level below 1 to step to.
        fresh: Standard normal noise, same shape.
        share: The factor eta in [0, 1]: 0 is the Euler step, 1 draws from the posterior of :math:`x_{\sigma'}` given
            the prediction. In the limit of small steps every value gives the same marginals.

    Returns:
        Latents at ``sigma_next``, same shape.

    Reference:
        Song et al., 2020, arXiv:2010.02502, Eq. 12 and 16 (eta), for the straight path.
    """
    clean, noise = clean_from(latents, velocity, sigma), noise_from(latents, velocity, sigma)
    now, after = expand(sigma, latents), expand(sigma_next, latents)
    kept = (1 - now) * after / ((1 - after) * now)
    renewed = share * after * (1 - kept**2).clamp(min=0).sqrt()
    return (1 - after) * clean + (after**2 - renewed**2).clamp(min=0).sqrt() * noise + renewed * fresh


def coefficient(sigma: Tensor, alpha: Tensor | None = None) -> Tensor:
    r"""Return the factor of the reward gradient in the guided velocity, :math:`\sigma/\alpha`.

    Args:
        sigma: Noise level in [0, 1].
        alpha: Weight of the clean latents in :math:`x = \alpha x_0 + \sigma\varepsilon`; ``1 - sigma``, the
            rectified flow, by default.

    Returns:
        The coefficient, same shape as ``sigma``; infinite where ``alpha`` is 0.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Eq. 11.
    """
    return sigma / (1 - sigma if alpha is None else alpha)


def below_noise(sigma: Tensor | float) -> Tensor | float:
    """Return ``sigma``, or the highest level that is not yet pure noise, where it is above."""
    highest = PURE_NOISE - 1e-6  # as it is rounded in any type
    return sigma.clamp(max=highest) if isinstance(sigma, Tensor) else min(sigma, highest)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 where one of ``tensors`` has it."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
