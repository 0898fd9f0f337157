r"""A noise-aware reward in closed form, from finished samples and their scores alone: look-ahead guidance.

Of a distribution that consists of samples :math:`x_1, \dots, x_n`, the exact noise-aware reward is known without any
network, and so is its gradient:

.. math::
    h(x, \sigma) = \log \mathbb E[e^{\lambda r(x_0)} \mid x_\sigma = x]
    = \log \sum_i e^{\varphi_i + \lambda r_i} - \log \sum_i e^{\varphi_i}, \qquad
    \varphi_i = -\frac{\|x - (1-\sigma)\,x_i\|^2}{2\sigma^2}

    -\frac{\sigma}{1-\sigma}\,\nabla h = -\frac1\sigma
    \sum_i \big[\mathrm{softmax}(\varphi + \lambda r) - \mathrm{softmax}(\varphi)\big]_i\, x_i

The gradient fades exactly like :math:`1-\sigma` toward pure noise, so that the push has a limit there and is taken.
Scores may come from anybody: a judge without gradients, or a person.

Reference:
    LiDAR, arXiv:2602.03211 (look-ahead sample reward guidance), there for variance-exploding noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.flow import expand, per_sample
from nrg_sampler.rewards.base import Conditioning

SMALLEST_SIGMA = 1e-4  # below it the kernel has no width
EVEN = 1e-6  # of the largest score, a spread that is rounding alone


def standardised(scores: Tensor) -> Tensor:
    """Return the scores of each prompt with mean 0 and standard deviation 1; all 0 where they are the same.

    Args:
        scores: Of finished samples, shape ``(prompts, n)``.

    Raises:
        ValueError: If one is not finite.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError(
            f"Expected a finite score for each sample, but got {scores.flatten().tolist()}; leave out samples that "
            "nobody can score."
        )
    exact = scores.double()
    centred = exact - exact.mean(dim=1, keepdim=True)
    spread = centred.square().mean(dim=1, keepdim=True).sqrt()
    even = spread <= EVEN * exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    return torch.where(even, 0.0, centred / spread.where(~even, torch.ones_like(spread))).float()


class LookaheadReward:
    r"""What noisy latents may be expected to score, by samples of the same prompt that are finished.

    Args:
        samples: Clean latents, shape ``(prompts, n, C, T, H, W)``. A batch of latents has the prompts in this order,
            as many samples of each, side by side.
        scores: Of them, higher is better, shape ``(prompts, n)``.
        sharpness: The factor :math:`\lambda` of the scores.

    Raises:
        ValueError: If shapes do not fit, a score is not finite or a setting is out of range.
    """

    axes = ("lookahead",)
    recommended_damping = 0.0  # nothing of it is learned, so that it is right at any noise level
    guides_noise = True

    def __init__(self, samples: Tensor, scores: Tensor, sharpness: float = 1.0) -> None:
        if samples.ndim != 6 or scores.shape != samples.shape[:2] or 0 in scores.shape:
            raise ValueError(
                "Expected samples of shape (prompts, n, C, T, H, W) with scores (prompts, n), but got "
                f"{tuple(samples.shape)} and {tuple(scores.shape)}; pass one score for each sample."
            )
        if not math.isfinite(sharpness):
            raise ValueError(f"Expected a finite `sharpness`, but got {sharpness:g}; 1 is that of the formula.")
        if not bool(scores.isfinite().all()):
            raise ValueError(f"Expected finite scores, but got {scores.tolist()}; leave such samples out.")
        with torch.inference_mode(False):  # autograd takes no tensors made in inference mode
            self._samples = samples.detach().float().clone()
            self._tilt = sharpness * scores.detach().to(self._samples).clone()

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the log-tilt, shape ``(B, 1)``.

        Raises:
            ValueError: If the batch is no multiple of the prompts, or the latents have another size.
        """
        prompts, size = len(self._samples), list(self._samples.shape[2:])
        if list(latents.shape[1:]) != size or len(latents) % prompts:
            raise ValueError(
                f"Expected latents of shape (B, {', '.join(map(str, size))}) with as many of each of {prompts} "
                f"prompts, but got {tuple(latents.shape)}; take samples of the same call."
            )
        level = per_sample(sigma, latents).clamp(min=SMALLEST_SIGMA)
        gain: Tensor = _LogTilt.apply(  # type: ignore[no-untyped-call]
            latents, level, self._samples.to(latents), self._tilt.to(latents)
        )
        return gain[:, None]


class _LogTilt(torch.autograd.Function):
    """The reward with its gradient in closed form; neither is computed in half precision, whatever is around it."""

    @staticmethod
    def forward(ctx: Any, latents: Tensor, level: Tensor, samples: Tensor, tilt: Tensor) -> Tensor:
        prompts = len(tilt)
        x, towards = (
            latents.detach().flatten(1).unflatten(0, (prompts, -1)),
            samples.flatten(2),
        )  # (P, B/P, D), (P, n, D)
        alpha, width = (part.view(prompts, -1, 1) for part in (1 - level, level**2))
        with torch.autocast(latents.device.type, enabled=False):  # the exponent is a difference of large numbers
            along = x @ towards.mT  # (P, B/P, n)
            squares = towards.square().sum(dim=2)[:, None]
            near = (alpha * along - alpha**2 * squares / 2) / (width)  # phi, up to what all have in common
            tilted = near + tilt[:, None]
            gain = tilted.logsumexp(dim=2) - near.logsumexp(dim=2)
            change = (tilted.softmax(dim=2) - near.softmax(dim=2)) @ towards
        ctx.save_for_backward((alpha / width * change).view_as(latents))
        flat: Tensor = gain.flatten()
        return flat

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return expand(slope, gradient) * gradient, None, None, None
