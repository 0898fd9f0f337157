"""The closed form of look-ahead guidance: against its formula, against a mixture that is known, and bad input."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nrg_sampler import Conditioning, RewardGuidance, guided_velocity
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.rewards.lookahead import LookaheadReward, standardised

EXACT = RewardGuidance.preset("best", scale=1.0, calibrated=False, max_push=None)
SIZE = (2, 3, 2, 2)  # C, T, H, W


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pull(latents: Tensor, samples: Tensor, scores: Tensor, sigma: float, sharpness: float) -> Tensor:
    """The formula, sample by sample: -(1 / sigma) sum_i [softmax(phi + lambda r) - softmax(phi)]_i x_i."""
    rows = []
    for x in latents:
        squares = torch.stack([((x - (1 - sigma) * one) ** 2).sum() for one in samples])
        phi = -squares / (2 * sigma**2)
        weights = (phi + sharpness * scores).softmax(0) - phi.softmax(0)
        rows.append(-sum(weight * one for weight, one in zip(weights, samples, strict=True)) / sigma)
    return torch.stack(rows)


@pytest.mark.parametrize("sigma", [0.97, 0.7, 0.2])
def test_the_push_is_that_of_the_formula(sigma: float) -> None:
    samples, scores, latents = random(5, *SIZE), random(5, seed=1), random(3, *SIZE, seed=2)
    reward = LookaheadReward(samples[None], scores[None], sharpness=1.3)
    velocity = torch.zeros_like(latents)
    pushed = guided_velocity(latents, velocity, sigma, reward, guidance=EXACT)
    expected = pull(latents, samples, scores, sigma, 1.3)
    torch.testing.assert_close(pushed, expected, rtol=1e-5, atol=1e-6)


def test_pure_noise_is_pushed_too_toward_the_mean_that_the_scores_make() -> None:
    samples, scores, latents = random(5, *SIZE), random(5, seed=1), random(3, *SIZE, seed=2)
    reward = LookaheadReward(samples[None], scores[None], sharpness=1.3)
    pushed = guided_velocity(latents, torch.zeros_like(latents), 1.0, reward, guidance=EXACT)
    shift = ((1.3 * scores).softmax(0) - 1 / 5) @ samples.flatten(1)
    torch.testing.assert_close(pushed.flatten(1), -shift.expand(3, -1), atol=0.02, rtol=0.02)


def test_each_prompt_is_pulled_by_its_own_samples() -> None:
    samples, scores, latents = random(2, 4, *SIZE), random(2, 4, seed=1), random(6, *SIZE, seed=2)
    sigma = torch.full((6,), 0.8, dtype=torch.float64)
    together, _ = reward_gradient(latents, sigma, LookaheadReward(samples, scores))
    for prompt in range(2):
        rows = slice(3 * prompt, 3 * prompt + 3)
        own = LookaheadReward(samples[prompt : prompt + 1], scores[prompt : prompt + 1])
        alone, _ = reward_gradient(latents[rows], sigma[rows], own)
        torch.testing.assert_close(together[rows], alone)


def test_without_sharpness_or_with_even_scores_nothing_moves() -> None:
    samples, latents, velocity = random(1, 4, *SIZE), random(2, *SIZE, seed=2), random(2, *SIZE, seed=3)
    for scores, sharpness in ((random(1, 4, seed=1), 0.0), (torch.ones(1, 4), 1.0)):
        reward = LookaheadReward(samples, standardised(scores), sharpness)
        assert torch.equal(guided_velocity(latents, velocity, 0.9, reward, guidance=EXACT), velocity)


def test_half_precision_around_it_changes_nothing() -> None:
    """The exponent is a difference of large numbers, which bfloat16 would round away."""
    samples, scores, latents = 10 * random(1, 4, *SIZE).float(), random(1, 4, seed=1), random(2, *SIZE, seed=2).float()
    reward = LookaheadReward(samples, scores)
    plain, _ = reward_gradient(latents, 0.7, reward)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = reward_gradient(latents, 0.7, reward)
    assert torch.equal(plain, rounded)


def test_scores_are_measured_in_the_spread_of_their_prompt() -> None:
    scores = torch.tensor([[1.0, 3.0], [70.0, 70.0], [1e8, 1e8 + 8]])
    torch.testing.assert_close(standardised(scores)[:2], torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    assert standardised(scores)[2].tolist() == [0.0, 0.0]  # what float32 cannot tell apart
    picks = standardised(torch.tensor([[1.0, 0.0, 0.0, -1.0]]))
    torch.testing.assert_close(picks, torch.tensor([[2**0.5, 0.0, 0.0, -(2**0.5)]]))


def test_bad_samples_scores_and_settings_are_refused() -> None:
    samples, scores = random(1, 3, *SIZE), random(1, 3)
    with pytest.raises(ValueError, match=r"Expected samples of shape \(prompts, n, C, T, H, W\)"):
        LookaheadReward(samples[0], scores)
    with pytest.raises(ValueError, match="Expected a finite score for each sample"):
        standardised(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="Expected a finite `sharpness`"):
        LookaheadReward(samples, scores, float("nan"))
    with pytest.raises(ValueError, match="Expected finite scores"):
        LookaheadReward(samples, scores / 0)
    reward = LookaheadReward(samples, scores)
    with pytest.raises(
        ValueError, match=r"Expected latents of shape \(B, 2, 3, 2, 2\).*take samples of the same call"
    ):
        reward(random(2, 2, 3, 2, 4), torch.full((2,), 0.5), Conditioning())


@dataclass(frozen=True)
class Mixture:
    """A mixture of spherical Gaussians in the plane; the reward is linear, so that its tilt is a mixture too."""

    shares: Tensor
    means: Tensor  # (K, 2)
    spread: float

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[noise - x0 | x]."""
        alpha, total = 1 - sigma, ((1 - sigma) * self.spread) ** 2 + sigma**2
        residual = x[:, None] - alpha * self.means  # (B, K, 2)
        share = (self.shares.log() - residual.square().sum(2) / (2 * total)).softmax(1)
        means = self.means + alpha * self.spread**2 / total * residual
        return (x - (share[..., None] * means).sum(1)) / sigma

    def tilted(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Shares and mean of p(x0) exp(slope * x0)."""
        shares = (self.shares.log() + self.means @ slope).softmax(0)
        return shares, shares @ (self.means + self.spread**2 * slope)

    def modes(self, x: Tensor) -> Tensor:
        """Share of the samples nearest to each mean."""
        nearest = torch.cdist(x, self.means).argmin(1)
        return torch.bincount(nearest, minlength=len(self.means)) / len(x)

    def sample(self, noise: Tensor, steps: int, reward: Any = None, guidance: RewardGuidance = EXACT) -> Tensor:
        """Euler steps from noise ``(B, 2)``."""
        x = noise
        for sigma, following in itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64)):
            velocity = self.velocity(x, sigma)
            if reward is not None:
                as_video = (part.reshape(-1, 2, 1, 1, 1) for part in (x, velocity))
                velocity = guided_velocity(*as_video, sigma, reward, guidance=guidance).reshape(-1, 2)
            x = x + (following - sigma) * velocity
        return x


WORLD = Mixture(
    torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([[-2.0, 0.0], [2.0, 1.0], [1.0, -2.0]]).double(), 0.4
)
SLOPE = torch.tensor([0.3, 0.2], dtype=torch.float64)  # the reward of x0 is SLOPE * x0, lambda 1


def noise(count: int) -> Tensor:
    """Points in the plane that are spread as standard normal noise, without the chance of drawing them."""
    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return torch.distributions.Normal(0.0, 1.0).icdf(points.clamp(1e-9, 1 - 1e-9))


def reached(scale: float = 1.0) -> Tensor:
    """Samples of 100 steps, guided by n = 512 look-ahead samples of 100 steps."""
    looks = WORLD.sample(random(512, 2), 100)
    reward = LookaheadReward(looks.reshape(1, -1, 2, 1, 1, 1), (looks @ SLOPE)[None])
    guidance = RewardGuidance.preset("best", scale=scale, calibrated=False, max_push=None)
    return WORLD.sample(noise(512), 100, reward, guidance)


def test_a_mixture_is_tilted_to_its_mean_and_its_modes_within_five_percent() -> None:
    shares, mean = WORLD.tilted(SLOPE)
    before = WORLD.shares @ WORLD.means
    arrived = reached()
    assert (arrived.mean(0) - mean).norm() < 0.05 * mean.norm()
    assert ((WORLD.modes(arrived) - shares).abs() < 0.05 * shares).all()
    assert (mean - before).norm() > 0.5
    assert (shares - WORLD.shares).abs().max() > 0.15


def test_that_check_fails_for_a_push_of_half_the_strength() -> None:
    shares, _ = WORLD.tilted(SLOPE)
    assert ((WORLD.modes(reached(scale=0.5)) - shares).abs() > 0.05 * shares).any()
