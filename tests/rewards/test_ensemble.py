"""Rewards with several members: the lower confidence bound and its gradient, against closed forms."""

from __future__ import annotations

import pytest
import torch
from tiny import TowardTarget, tiny_transformer

from nrg_sampler import Conditioning, EnsembleReward, LatentReward, RewardGuidance, attach, guided_velocity
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.step import reward_direction
from nrg_sampler.rewards.base import RewardHooks
from nrg_sampler.rewards.ensemble import lower_bound
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient

SHAPE = (2, 3, 2, 4, 4)


def batch(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear:
    """Two axes along fixed directions, in another unit and from another origin than the next one's."""

    axes = ("VQ", "TA")

    def __init__(self, seed: int, sign: float = 1.0, std: float = 1.0) -> None:
        self.slopes = sign * torch.stack([batch(seed)[0], batch(seed + 1)[0]])
        self.mean, self.std = (3.0, -1.0), (std, std)

    def __call__(self, latents, sigma, conditioning):
        return torch.einsum("bcthw,acthw->ba", latents, self.slopes.to(latents.dtype)) + torch.tensor(self.mean)


class Curved(Linear):
    """The same, bent."""

    def __call__(self, latents, sigma, conditioning):
        return super().__call__(latents.sin() * (1 - sigma).view(-1, 1, 1, 1, 1), sigma, conditioning)


def push(reward, **settings):
    guidance = RewardGuidance(max_push=None, max_coefficient=None, **settings)
    velocity = batch(0)
    return velocity - guided_velocity(batch(1), velocity, 0.5, reward, guidance=guidance)


def test_the_bound_is_the_mean_minus_deviations():
    said = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])  # (1, members, axes)
    torch.testing.assert_close(lower_bound(said, 0.0), torch.tensor([[2.0, 5.0]]))
    torch.testing.assert_close(lower_bound(said, 1.0), torch.tensor([[1.0, 5.0]]))  # of two members, the smaller
    torch.testing.assert_close(lower_bound(said, -1.0), torch.tensor([[3.0, 5.0]]))


def test_the_push_of_two_members_is_that_of_the_smaller_one():
    first, second = Linear(10), Linear(20)
    grads, _ = axis_gradients(batch(1), 0.5, EnsembleReward([first, second]), disagreement=1.0)
    values = torch.stack([reward(batch(1), torch.tensor(0.5), None) for reward in (first, second)])  # (2, B, axes)
    for sample in range(2):
        for axis in range(2):
            lower = (first, second)[int(values[:, sample, axis].argmin())]
            torch.testing.assert_close(grads[axis, sample], lower.slopes[axis], atol=1e-4, rtol=1e-4)


def test_members_count_in_units_of_their_own():
    wide = Linear(10, std=4.0)
    wide.slopes = 4.0 * wide.slopes
    both = EnsembleReward([Linear(10), wide])
    said = both(batch(1), torch.tensor([0.5, 0.5]), Conditioning(), members=True)
    torch.testing.assert_close(said[:, 0], said[:, 1])
    torch.testing.assert_close(push(both, disagreement=2.0), push(Linear(10)))


@pytest.mark.parametrize("disagreement", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"balanced": True, "weights": "1:0.5"}, {"floor": "TA", "weights": "1:0"}])
def test_identical_members_push_as_one_does(disagreement, settings):
    one = Curved(10)
    expected = push(one, **settings)
    torch.testing.assert_close(push(EnsembleReward([one, one, one]), disagreement=disagreement, **settings), expected)


def test_members_that_contradict_each_other_push_nowhere():
    against = EnsembleReward([Linear(10), Linear(10, sign=-1.0)])
    assert push(against).abs().max() < 1e-12
    # with disagreement, the only way up is toward where they agree, and there the way ends
    latents = batch(1)
    grads, _ = axis_gradients(latents, 0.5, against, axes=["VQ"], disagreement=1.0)
    slope = Linear(10).slopes[0]
    level = (latents * slope).flatten(1).sum(dim=1)
    torch.testing.assert_close(grads[0], -level.sign().view(-1, 1, 1, 1, 1) * slope, atol=1e-6, rtol=1e-6)
    agreed = latents - (level / slope.square().sum()).view(-1, 1, 1, 1, 1) * slope
    grads, _ = axis_gradients(agreed, 0.5, against, axes=["VQ"], disagreement=1.0)
    assert grads.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_the_gradient_of_the_bound_matches_finite_differences(scale):
    reward = EnsembleReward([Curved(10), Curved(20), Curved(30)])
    guidance = RewardGuidance(disagreement=0.7, weights="1:0.5", scale=scale)
    direction = reward_direction(resolve(guidance, reward), batch(1), batch(0), 0.3, None).value

    def bound(latents):
        said = reward(latents, torch.tensor([0.3, 0.3]), Conditioning(), members=True)
        axes = said.mean(dim=1) - scale * 0.7 * said.std(dim=1, correction=0)
        return axes @ torch.tensor([1.0, 0.5], dtype=axes.dtype)

    toward, step = batch(5), 1e-5
    rise = (bound(batch(1) + step * toward) - bound(batch(1) - step * toward)) / (2 * step)
    torch.testing.assert_close((direction * toward).flatten(1).sum(dim=1), rise, rtol=1e-6, atol=1e-6)


def test_the_trace_shows_the_mean():
    reward = EnsembleReward([Curved(10), Curved(20)])
    _, raw = reward_gradient(batch(1), 0.3, reward, disagreement=2.0)
    torch.testing.assert_close(raw, reward(batch(1), torch.tensor([0.3, 0.3]), Conditioning()))


def test_the_members_of_a_latent_reward_guide(wan):
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(tiny_transformer(), 1, num_members=3).requires_grad_(False).eval()

    def sample(**settings):
        with attach(wan, reward, scale=1e4, **settings) as trace:
            options = {"height": 16, "width": 16, "num_frames": 5, "output_type": "latent", "num_inference_steps": 2}
            found = wan("a red circle", generator=torch.Generator().manual_seed(0), **options)
        assert len(trace.steps) == 2
        return found.frames

    plain, careful = sample(), sample(disagreement=1.0)
    assert (plain - careful).abs().max() > 1e-3
    assert careful.isfinite().all()


def test_one_member_cannot_disagree(wan):
    reward, guidance = TowardTarget(), RewardGuidance(disagreement=0.5)
    sentence = "Expected a reward with several members for disagreement=0.5, but TowardTarget has one; train one with"
    assert RewardHooks.of(reward).num_members == 1
    with pytest.raises(ValueError, match=sentence):
        guided_velocity(batch(1), batch(0), 0.5, reward, guidance=guidance)
    with pytest.raises(ValueError, match=sentence), attach(wan, reward, guidance):
        raise AssertionError("the reward was taken")


def test_recommends_the_mean_strength_and_what_the_most_careful_of_its_rewards_does():
    bold, careful, silent = Linear(10), Linear(20), Linear(30)
    bold.recommended_scale, bold.recommended_damping, bold.recommended_fading = (10.0, 40.0), (0.0, 3.0), (4.0, 0.0)
    careful.recommended_scale, careful.recommended_damping = 20.0, (2.0, 1.0)
    both = EnsembleReward([bold, careful])
    assert (both.recommended_scale, both.recommended_damping) == ((15.0, 30.0), (2.0, 3.0))
    assert both.recommended_fading == (4.0, 0.0)
    assert EnsembleReward([bold, silent]).recommended_damping == (1.0, 3.0)


def test_says_what_cannot_be_combined():
    with pytest.raises(ValueError, match=r"Expected two rewards or more, but got 1; a single one needs no ensemble."):
        EnsembleReward([Linear(10)])
    with pytest.raises(
        ValueError, match="Expected rewards with the axes VQ, TA, as the first has, but got one with clo"
    ):
        EnsembleReward([Linear(10), TowardTarget()])
    with pytest.raises(ValueError, match="Expected a reward, a callable with named `axes`, but got int without them"):
        EnsembleReward([Linear(10), 3])


def test_a_member_that_refuses_a_pipeline_speaks_for_all(wan):
    fitting = LatentReward.from_transformer(tiny_transformer(), 1)
    other = LatentReward.from_transformer(tiny_transformer(), 1)
    EnsembleReward([fitting, other]).check_compatible(wan)
    other.register_to_config(in_channels=48)
    with pytest.raises(ValueError, match="Expected a pipeline with 48 latent channels"):
        EnsembleReward([fitting, other]).check_compatible(wan)
