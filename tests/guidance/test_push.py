"""The pure function against Eq. 11 written out by hand, and the limits of its push."""

from __future__ import annotations

import pytest
import torch
from tiny import TowardTarget
from tiny_step import batch

from nrg_sampler import RewardGuidance, guide, guided_velocity
from nrg_sampler.guidance.push import measure_push


def test_the_guided_velocity_is_equation_eleven():
    velocity, grad, sigma = batch(0), batch(1), torch.tensor([0.2, 0.8])
    expected = torch.stack([velocity[0] - 3 * 0.25 * grad[0], velocity[1] - 3 * 4.0 * grad[1]])
    torch.testing.assert_close(guide(velocity, grad, sigma, 3.0), expected)


def test_scale_zero_returns_the_velocity_itself_and_asks_no_reward():
    def refuses(*inputs):
        raise AssertionError("the reward was called")

    velocity = batch()
    assert guide(velocity, batch(1), 0.5, 0.0) is velocity
    assert guided_velocity(batch(2), velocity, 0.5, refuses, guidance=RewardGuidance(scale=0)) is velocity


def test_a_negative_scale_pushes_the_other_way():
    velocity, grad = batch(), batch(1)
    torch.testing.assert_close(guide(velocity, grad, 0.5, -1.0) - velocity, velocity - guide(velocity, grad, 0.5, 1.0))


@pytest.mark.parametrize("sigma", [1.0, 1 - 1e-6, 0.9997, 0.999, 0.0])
def test_pure_noise_and_clean_latents_are_never_guided(sigma):
    velocity = batch()
    assert torch.equal(guide(velocity, batch(1), sigma), velocity)
    assert guided_velocity(batch(2), velocity, sigma, TowardTarget()) is velocity


@pytest.mark.parametrize("sigma", [0.9975, 0.995, 0.001])
def test_every_other_sigma_is_guided(sigma):
    velocity = batch()
    assert not torch.equal(guide(velocity, batch(1), sigma), velocity)


def test_the_clamp_limits_the_coefficient_per_sample():
    push = measure_push(batch(), batch(1), torch.tensor([0.5, 0.99]), max_coefficient=20.0)
    torch.testing.assert_close(push.coefficient, torch.tensor([1.0, 20.0]))
    assert push.clamped.tolist() == [False, True]


def test_the_cap_limits_the_push_relative_to_the_velocity_per_sample():
    velocity, grad = batch(), batch(1)
    grad[1] *= 1e-3
    push = measure_push(velocity, grad, 0.9, max_push=0.3)
    change = velocity - guide(velocity, grad, 0.9, max_push=0.3)
    assert push.capped.tolist() == [True, False]
    torch.testing.assert_close(change[0].norm(), 0.3 * velocity[0].norm())
    torch.testing.assert_close(change[1], 9 * grad[1])
    torch.testing.assert_close(push.push_ratio, change.flatten(1).norm(dim=1) / velocity.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(change[0].flatten(), grad[0].flatten(), dim=0)
    assert cosine > 0.999999


def test_damping_multiplies_the_push_by_a_power_of_the_signal():
    velocity, grad = batch(), batch(1)
    undamped, damped = velocity - guide(velocity, grad, 0.75), velocity - guide(velocity, grad, 0.75, damping=2)
    torch.testing.assert_close(damped, undamped / 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_gradient_that_is_not_finite_leaves_its_sample_alone(value):
    velocity, grad = batch(), batch(1)
    grad[0, 0, 0, 0, :2] = value
    guided = guide(velocity, grad, 0.5, 10.0)
    assert torch.equal(guided[0], velocity[0])
    torch.testing.assert_close(guided[1], velocity[1] - 10 * grad[1])
