r"""Guided sampling against closed forms.

With the exact noise-aware reward :math:`h(x, \sigma) = \log E[e^{w r(x_0)} \mid x_\sigma]` the guided flow must sample
the tilted distribution :math:`p(x_0)\, e^{w r(x_0)}`. For a mixture of Gaussians and r = x0, everything is known:
posteriors, h, its tilted mean. The samples start at the quantiles of the noise, so that chance plays no part.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nrg_sampler import RewardGuidance, attach, guided_velocity
from nrg_sampler.flow import stochastic_step
from nrg_sampler.search import systematic

STEPS, SAMPLES = 200, 201


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians in one dimension; tensors have shape ``(components,)``."""

    shares: Tensor
    means: Tensor
    spreads: Tensor

    @classmethod
    def of(cls, *components: tuple[float, float, float]) -> Mixture:
        return cls(*torch.tensor(components, dtype=torch.float64).T)

    def posterior(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log share, mean and variance of each component of p(x0 | x), each ``(B, components)``."""
        alpha, sigma = 1 - sigma[:, None], sigma[:, None]
        total = (alpha * self.spreads) ** 2 + sigma**2
        residual = x[:, None] - alpha * self.means
        log_shares = (self.shares.log() - total.log() / 2 - residual**2 / (2 * total)).log_softmax(dim=1)
        gain = alpha * self.spreads**2 / total
        return log_shares, self.means + gain * residual, self.spreads**2 * sigma**2 / total

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[noise - x0 | x]."""
        log_shares, means, _ = self.posterior(x, sigma)
        return (x - (log_shares.exp() * means).sum(1)) / sigma

    def log_tilt(self, x: Tensor, sigma: Tensor, weight: float) -> Tensor:
        """log E[exp(weight * x0) | x]."""
        log_shares, means, variances = self.posterior(x, sigma)
        return (log_shares + weight * means + weight**2 * variances / 2).logsumexp(dim=1)

    def tilted_mean(self, weight: float) -> float:
        """Mean of p(x0) exp(weight * x0)."""
        shares = (self.shares.log() + weight * self.means + weight**2 * self.spreads**2 / 2).softmax(dim=0)
        return float((shares * (self.means + weight * self.spreads**2)).sum())


class ExactTilt:
    """The noise-aware reward of a mixture, up to the factor that guidance applies."""

    axes = ("x",)

    def __init__(self, target: Mixture, weight: float) -> None:
        self.target, self.weight = target, weight

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        return self.target.log_tilt(latents.flatten().double(), sigma.double(), self.weight)[:, None]


TARGETS = {
    "gaussian": (Mixture.of((1.0, 0.5, 0.7)), 1.5),
    "mixture": (Mixture.of((0.7, -1.0, 0.4), (0.3, 1.0, 0.3)), 0.8),
}
PAPER = RewardGuidance.paper(scale=1.0)


def noise(dtype: torch.dtype = torch.float64) -> Tensor:
    quantiles = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    return torch.distributions.Normal(0.0, 1.0).icdf(quantiles).to(dtype).reshape(-1, 1, 1, 1, 1)


def sample_by_hand(target: Mixture, reward: ExactTilt, guidance: RewardGuidance) -> float:
    """The loop a user would write, and the mean it arrives at."""
    latents = noise()
    sigmas = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    for sigma, following in itertools.pairwise(sigmas):
        velocity = target.velocity(latents.flatten(), sigma.expand(SAMPLES)).reshape(latents.shape)
        velocity = guided_velocity(latents, velocity, sigma, reward, guidance=guidance)
        latents = latents + (following - sigma) * velocity
    return float(latents.mean())


@pytest.mark.parametrize("name", TARGETS)
def test_a_hand_written_loop_reaches_the_tilted_mean(name):
    target, weight = TARGETS[name]
    reached = sample_by_hand(target, ExactTilt(target, weight), PAPER)
    assert reached == pytest.approx(target.tilted_mean(weight), rel=0.02)


@pytest.mark.parametrize("name", TARGETS)
def test_without_guidance_it_reaches_the_mean_of_the_target(name):
    target, weight = TARGETS[name]
    reached = sample_by_hand(target, ExactTilt(target, weight), RewardGuidance(scale=0))
    assert reached == pytest.approx(target.tilted_mean(0.0), rel=0.02, abs=0.01)


@pytest.mark.parametrize("name", TARGETS)
def test_the_check_fails_when_the_sign_is_wrong(name):
    target, weight = TARGETS[name]
    reached = sample_by_hand(target, ExactTilt(target, weight), RewardGuidance.paper(scale=-1.0))
    assert reached != pytest.approx(target.tilted_mean(weight), rel=0.1)


@pytest.mark.parametrize("name", TARGETS)
def test_the_check_fails_when_the_coefficient_is_dropped(name, monkeypatch):
    monkeypatch.setattr("nrg_sampler.guidance.push.coefficient", torch.ones_like)
    target, weight = TARGETS[name]
    reached = sample_by_hand(target, ExactTilt(target, weight), PAPER)
    assert reached != pytest.approx(target.tilted_mean(weight), rel=0.1)


def particles(target: Mixture, weight: float, share: float, count: int = 4000) -> Tensor:
    """Sample stochastically, drawing particles by the rise of the exact log-tilt every tenth step."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, generator=generator, dtype=torch.float64)
    sigmas = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64)
    credited = target.log_tilt(latents, sigmas[0].expand(count), weight)
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas), start=1):
        velocity = target.velocity(latents, sigma.expand(count))
        fresh = torch.randn(count, generator=generator, dtype=torch.float64)
        latents = stochastic_step(latents, velocity, sigma, following, fresh, share)
        if weight and index % 10 == 0:
            risen = target.log_tilt(latents, following.expand(count), weight)
            rows = systematic(risen - credited, generator)
            latents, credited = latents[rows], risen[rows]
    return latents


@pytest.mark.parametrize("name", TARGETS)
def test_particles_reach_the_tilted_mean_without_any_gradient(name):
    target, weight = TARGETS[name]
    reached = float(particles(target, weight, share=1.0).mean())
    assert reached == pytest.approx(target.tilted_mean(weight), abs=0.05)
    assert abs(target.tilted_mean(weight) - target.tilted_mean(0.0)) > 0.3


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", TARGETS)
def test_fresh_noise_leaves_the_distribution_as_it_is(name, share):
    target, _ = TARGETS[name]
    reached = particles(target, 0.0, share).sort().values
    mean = target.tilted_mean(0.0)
    second = float((target.shares * (target.spreads**2 + target.means**2)).sum())
    assert float(reached.mean()) == pytest.approx(mean, abs=0.04)
    assert float(reached.var()) == pytest.approx(second - mean**2, rel=0.06)


def test_without_fresh_noise_a_stochastic_step_is_the_step_of_euler():
    latents, velocity = noise(), noise().flip(0) ** 3
    step = stochastic_step(latents, velocity, 0.8, 0.7, noise(), share=0.0)
    torch.testing.assert_close(step, latents - 0.1 * velocity)


class ExactDenoiser(torch.nn.Module):
    """The exact velocity in place of a network, which reads no prompt."""

    def __init__(self, target: Mixture) -> None:
        super().__init__()
        self._target = target

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        velocity = self._target.velocity(hidden_states.flatten().double(), timestep.double() / 1000)
        return velocity.float().reshape(hidden_states.shape)


class WanPipeline:
    """Stands in for a pipeline: a scheduler, a denoiser, a loop."""

    def __init__(self, target: Mixture, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.transformer = ExactDenoiser(target)

    def __call__(self) -> SimpleNamespace:
        self.scheduler.set_timesteps(STEPS)
        latents = noise(torch.float32)
        for index, timestep in enumerate(self.scheduler.timesteps):
            velocity = self.transformer(
                hidden_states=latents,
                timestep=1000 * self.scheduler.sigmas[index].double().expand(SAMPLES),
                encoder_hidden_states=torch.zeros(SAMPLES, 1, 1),
            )
            latents = self.scheduler.step(velocity, timestep, latents).prev_sample
        return SimpleNamespace(mean=float(latents.mean()))


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("name", TARGETS)
def test_an_attached_pipeline_reaches_the_tilted_mean(name, shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    target, weight = TARGETS[name]
    pipe = WanPipeline(target, FlowMatchEulerDiscreteScheduler(shift=shift))
    with attach(pipe, ExactTilt(target, weight), PAPER):
        reached = pipe().mean
    assert reached == pytest.approx(target.tilted_mean(weight), rel=0.02)
    assert pipe().mean == pytest.approx(target.tilted_mean(0.0), rel=0.02, abs=0.01)
