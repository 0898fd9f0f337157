"""A look at the clip while it is being sampled: x0_hat, decoded now and then."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nrg_sampler.flow import clean_from
from nrg_sampler.rewards.latent_space import denormalised
from nrg_sampler.video import Frames, to_uint8

PICTURES = 6  # in a run


class Preview:
    """Estimate the clean latents from two consecutive noisy ones and decode their first frame.

    Both lie on the line that an Euler step follows, so ``v = (x' - x) / (sigma' - sigma)`` is the (guided) velocity
    and ``x0_hat = x' - sigma' v``; for other solvers it is the average velocity of the step. Heun comes to
    each sigma twice, and the second time the velocity is still that of the first.

    Args:
        pipe: The sampling pipeline; there are pictures if its latents are those of a video and its autoencoder stores
            their statistics, as Wan's does.
        steps: How many steps the run has.
    """

    def __init__(self, pipe: Any, steps: int) -> None:
        self._pipe = pipe
        self._every = max(1, steps // PICTURES)
        self._last: Tensor | None = None
        self._velocity: Tensor | None = None
        self._works = hasattr(pipe.vae.config, "latents_std")

    def picture(self, step: int, latents: Tensor) -> Frames | None:
        """Return a picture of shape ``(H, W, 3)``, or ``None`` in most steps.

        Args:
            step: Number of the finished step, from 0.
            latents: After it, shape ``(B, C, T, H, W)``.
        """
        last, self._last = self._last, latents
        sigmas = self._pipe.scheduler.sigmas
        if not self._works or latents.ndim != 5 or last is None or len(sigmas) <= step + 1:
            return None
        before, after = sigmas[step].item(), sigmas[step + 1].item()
        if before != after:
            self._velocity = (latents - last) / (after - before)
        if self._velocity is None or step % self._every:
            return None
        return self._decode(clean_from(latents, self._velocity, after)[:1, :, :1])

    def _decode(self, clean: Tensor) -> Frames:
        vae = self._pipe.vae
        with torch.no_grad():
            frame = vae.decode(denormalised(vae, clean).to(vae.dtype), return_dict=False)[0][0, :, 0]  # (3, H, W)
        picture: Frames = to_uint8((frame.float() / 2 + 0.5).permute(1, 2, 0)[None].cpu().numpy())[0]
        return picture
