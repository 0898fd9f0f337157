"""Latents are normalised as each pipeline does it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import LTXPipeline

from nrg_sampler.rewards.latent_space import denormalised, normalised

MEAN, STD = (0.5, -1.0, 2.0), (2.0, 0.25, 1.5)
LATENTS = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class WithBuffers(torch.nn.Module):
    """As the VAE of LTX, which keeps statistics beside its weights."""

    def __init__(self, factor):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=factor)
        self.register_buffer("latents_mean", torch.tensor(MEAN))
        self.register_buffer("latents_std", torch.tensor(STD))


def per_channel(values):
    return torch.tensor(values).view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_as_ltx_does(factor):
    vae = WithBuffers(factor)
    expected = LTXPipeline._normalize_latents(LATENTS, vae.latents_mean, vae.latents_std, factor)
    torch.testing.assert_close(normalised(vae, LATENTS), expected)
    expected = LTXPipeline._denormalize_latents(LATENTS, vae.latents_mean, vae.latents_std, factor)
    torch.testing.assert_close(denormalised(vae, LATENTS), expected)


def test_as_wan_does():
    vae = SimpleNamespace(config=SimpleNamespace(latents_mean=list(MEAN), latents_std=list(STD)))
    torch.testing.assert_close(normalised(vae, LATENTS), (LATENTS - per_channel(MEAN)) / per_channel(STD))


def test_as_flux_does():
    vae = torch.nn.Identity()
    vae.config = SimpleNamespace(shift_factor=0.1, scaling_factor=0.36)
    torch.testing.assert_close(normalised(vae, LATENTS), (LATENTS - 0.1) * 0.36)
    torch.testing.assert_close(denormalised(vae, LATENTS), LATENTS / 0.36 + 0.1)


def test_one_undoes_the_other_in_half_precision_too():
    vae = WithBuffers(0.7)
    there_and_back = denormalised(vae, normalised(vae, LATENTS.half()))
    assert there_and_back.dtype == torch.float16
    torch.testing.assert_close(there_and_back, LATENTS.half(), atol=2e-2, rtol=1e-2)
