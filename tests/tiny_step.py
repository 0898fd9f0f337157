"""Random latents and rewards on which one guided step is tried."""

from __future__ import annotations

import torch

SHAPE = (2, 3, 2, 4, 4)


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Bumpy:
    """Two axes that mix all latents nonlinearly and depend on sigma."""

    axes = ("a", "b")
    std = (0.5, 2.0)
    recommended_scale = 3.0

    def __call__(self, latents, sigma, conditioning):
        flat = latents.flatten(1)
        return torch.stack([(flat.sin() * flat.roll(1, 1)).sum(1) * (1 - sigma), (flat**3).mean(1) * sigma], dim=1)


class Opposed:
    """Two linear axes that pull apart: raising one lowers the other."""

    axes = ("VQ", "TA")

    def __init__(self):
        self.first = batch(20)[:1]
        self.second = batch(21)[:1] - 0.8 * self.first
        self.calls = 0

    def __call__(self, latents, sigma, conditioning):
        self.calls += 1
        scores = [(latents * gradient).flatten(1).sum(dim=1) for gradient in (self.first, self.second)]
        return torch.stack(scores, dim=1)
