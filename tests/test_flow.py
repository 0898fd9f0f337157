"""The algebra of the convention against itself, a closed form and diffusers' own scheduler."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler import flow


@pytest.fixture
def path() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 2, 2, 2, generator=generator, dtype=torch.float64)
    return clean, noise, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def test_clean_noise_and_velocity_are_recovered_from_noisy_latents(path):
    clean, noise, sigma = path
    latents, velocity = flow.noised(clean, noise, sigma), flow.velocity_from(clean, noise)
    torch.testing.assert_close(flow.clean_from(latents, velocity, sigma), clean)
    torch.testing.assert_close(flow.noise_from(latents, velocity, sigma), noise)
    torch.testing.assert_close(flow.velocity_from_clean(latents, clean, sigma), velocity)


def test_sigma_one_is_pure_noise_and_zero_is_clean(path):
    clean, noise, _ = path
    assert torch.equal(flow.noised(clean, noise, 1.0), noise)
    assert torch.equal(flow.noised(clean, noise, 0.0), clean)


def test_an_euler_step_along_the_velocity_stays_on_the_path(path):
    clean, noise, sigma = path
    latents = flow.noised(clean, noise, sigma)
    velocity = flow.velocity_from(clean, noise)
    stepped = latents + flow.expand(0.5 * sigma - sigma, latents) * velocity
    torch.testing.assert_close(stepped, flow.noised(clean, noise, 0.5 * sigma))
    torch.testing.assert_close(flow.along_path(latents, velocity, sigma, 0.5 * sigma), stepped)


def test_velocity_agrees_with_the_scheduler_of_diffusers(path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    clean, noise, _ = (tensor.float() for tensor in path)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    latents = noise
    for timestep in scheduler.timesteps:
        latents = scheduler.step(flow.velocity_from(clean, noise), timestep, latents).prev_sample
    torch.testing.assert_close(latents, clean, atol=1e-5, rtol=0)


def test_score_of_a_gaussian_matches_its_closed_form():
    spread, sigma = 0.5, torch.tensor(0.3, dtype=torch.float64)
    latents = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1)
    variance = ((1 - sigma) * spread) ** 2 + sigma**2
    clean = (1 - sigma) * spread**2 / variance * latents
    velocity = flow.velocity_from_clean(latents, clean, sigma)
    torch.testing.assert_close(flow.score_from(latents, velocity, sigma), -latents / variance)


def test_coefficient_is_sigma_over_alpha():
    sigma = torch.tensor([0.0, 0.5, 0.8, 1.0])
    torch.testing.assert_close(flow.coefficient(sigma), torch.tensor([0.0, 1.0, 4.0, torch.inf]))
    torch.testing.assert_close(flow.coefficient(sigma, torch.ones(4)), sigma)


@pytest.mark.parametrize("sigma", [0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.full((3,), 0.25)])
def test_sigma_may_be_a_number_a_scalar_or_one_per_sample(path, sigma):
    clean, noise, _ = path
    torch.testing.assert_close(flow.noised(clean, noise, sigma), 0.75 * clean + 0.25 * noise)


def test_a_sigma_for_another_batch_is_refused(path):
    with pytest.raises(ValueError, match=r"Expected `sigma` with one value or one per sample \(3\), but got 2 values"):
        flow.expand(torch.tensor([0.1, 0.2]), path[0])


def test_half_precision_is_computed_in_float32_and_double_in_double():
    half, double = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.float64)
    assert flow.working_dtype(half) == torch.float32
    assert flow.working_dtype(half, double) == torch.float64
