"""A latent reward that reads the clean latents which the velocity of the step predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import tiny_transformer
from torch import Tensor

from nrg_sampler.flow import clean_from
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import guided_velocity
from nrg_sampler.hosts.shared_forward import _check_reward
from nrg_sampler.rewards.base import Conditioning, score_clean
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.rewards.latent import LatentReward

SHAPE = (2, 16, 3, 4, 4)


def new_reward(reads_prediction: bool, **options: object) -> LatentReward:
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(
        tiny_transformer(), num_blocks=1, reads_prediction=reads_prediction, **options
    )
    return reward.requires_grad_(False).eval()


def trained(reward: LatentReward) -> LatentReward:
    """Give the branch of the noise, which begins with zeros, weights as training would."""
    torch.manual_seed(2)
    assert reward.noise_beside is not None
    for parameter in reward.noise_beside.parameters():
        parameter.normal_(std=0.1)
    return reward


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(3)
    latents, velocity = torch.randn(2, *SHAPE, generator=generator)
    embeds = torch.randn(2, 6, 16, generator=generator)
    return latents, torch.tensor([0.3, 0.8]), Conditioning(embeds, velocity=velocity)


def test_it_begins_as_a_reward_of_clean_latents_on_the_prediction(inputs):
    latents, sigma, conditioning = inputs
    plain, reading = new_reward(reads_prediction=False), new_reward(reads_prediction=True)
    plain.load_state_dict({name: value for name, value in reading.state_dict().items() if "noise_beside" not in name})
    clean = clean_from(latents, conditioning.velocity, sigma)
    expected = plain(clean, torch.zeros(2), conditioning)
    torch.testing.assert_close(reading(latents, sigma, conditioning), expected)
    assert (reading(latents, sigma, conditioning) - plain(latents, sigma, conditioning)).abs().max() > 1e-4


def test_once_trained_it_sees_the_noise_and_its_level(inputs):
    latents, sigma, conditioning = inputs
    reward = trained(new_reward(reads_prediction=True))
    shift = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    # Other latents and another velocity that predict the same clean latents.
    moved = replace(conditioning, velocity=conditioning.velocity + shift / sigma[:, None, None, None, None])
    assert (reward(latents + shift, sigma, moved) - reward(latents, sigma, conditioning)).abs().max() > 1e-4
    velocity = conditioning.velocity * (sigma / (1 - sigma))[:, None, None, None, None]
    at_another_level = replace(conditioning, velocity=velocity)
    assert (reward(latents, 1 - sigma, at_another_level) - reward(latents, sigma, conditioning)).abs().max() > 1e-4


def test_its_gradient_is_that_with_the_velocity_held(inputs):
    latents, sigma, conditioning = inputs
    reward = trained(new_reward(reads_prediction=True)).double()
    conditioning = replace(
        conditioning,
        prompt_embeds=conditioning.prompt_embeds.double(),
        velocity=conditioning.velocity.double(),
    )
    latents, sigma, step = latents.double(), sigma.double(), 1e-3  # scores are float32
    weights = torch.tensor([[1.0, -2.0, 0.5]]).double()
    along = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)).double()

    def score(at: Tensor) -> Tensor:
        return (reward(at, sigma, conditioning) * weights).sum(dim=1)

    measured = (score(latents + step * along) - score(latents - step * along)) / (2 * step)
    with torch.enable_grad():
        leaf = latents.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    torch.testing.assert_close((gradient * along).flatten(1).sum(dim=1), measured, rtol=2e-3, atol=1e-5)
    assert gradient.abs().max() > 0


def test_guidance_hands_it_the_velocity(inputs):
    latents, _, conditioning = inputs
    reward = trained(new_reward(reads_prediction=True))
    own, others = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(6))
    prompts = replace(conditioning, velocity=None)

    def push(velocity: Tensor) -> Tensor:
        return guided_velocity(latents, velocity, 0.8, reward, prompts, RewardGuidance(scale=1.0)) - velocity

    assert push(own).abs().max() > 0
    assert (push(own) - push(others)).abs().max() > 1e-3 * push(own).abs().max()


def test_noisy_latents_without_a_velocity_are_refused_and_finished_ones_scored(inputs):
    latents, sigma, conditioning = inputs
    reward, prompts = new_reward(reads_prediction=True), replace(conditioning, velocity=None)
    with pytest.raises(ValueError, match=r"Expected `velocity` in the conditioning .* none at sigma 0\.8; pass that"):
        reward(latents, sigma, prompts)
    scores = score_clean(reward, latents, prompts)
    torch.testing.assert_close(scores, reward(latents, torch.zeros(2), conditioning))


def test_it_is_saved_and_loaded_with_its_branch(tmp_path, inputs):
    reward = trained(new_reward(reads_prediction=True))
    reward.save_pretrained(tmp_path)
    loaded = LatentReward.from_pretrained(tmp_path)
    assert loaded.needs_velocity
    torch.testing.assert_close(loaded(*inputs), reward(*inputs))
    latents, sigma, conditioning = inputs
    gradients = [reward_gradient(latents, sigma, own, conditioning)[0] for own in (loaded, reward)]
    torch.testing.assert_close(*gradients)


def test_it_shares_no_forward_pass_with_the_denoiser():
    reward = new_reward(reads_prediction=True, prompt_in_trunk=True)
    with pytest.raises(ValueError, match="reads the noisy latents alone for forward='shared'"):
        _check_reward(tiny_transformer(), reward)
