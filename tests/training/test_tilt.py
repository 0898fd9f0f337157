"""The loss whose minimiser is the value that a tilt needs, against closed forms and against the mean."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nrg_sampler.training.losses import LOSSES, Comparison, regression, tilted_regression
from nrg_sampler.training.objective import Objective

MEANS, SPREAD, SHARES = torch.tensor([-1.0, 1.0]).double(), 0.4, torch.tensor([0.8, 0.2]).double()


def minimiser(scores: Tensor, loss: str, tilt: float) -> float:
    """The one raw reward that fits these scores best, by Newton's method on the loss itself."""
    raw = torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(40):
        leaf = raw.clone().requires_grad_()
        column = leaf.expand(len(scores), 1)
        zero = torch.zeros_like(scores)[:, None]
        comparison = Comparison(column, column, zero, None, scores[:, None], scores[:, None], tilt=tilt)
        value = sum(part.mean() for part in LOSSES[loss](comparison).parts.values())
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        (curve,) = torch.autograd.grad(slope, leaf)
        raw = raw - (slope.detach() / curve).clamp(-0.5, 0.5)
    return raw.item()


@pytest.mark.parametrize("tilt", [0.3, 1.0, 2.0])
def test_its_minimiser_is_the_log_of_the_mean_exponential(tilt):
    scores = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double() * 0.5
    assert minimiser(scores, "tilted-regression", tilt) == pytest.approx(
        (torch.logsumexp(tilt * scores, 0).item() - math.log(len(scores))) / tilt, abs=2e-3
    )
    assert minimiser(scores, "regression", tilt) == pytest.approx(scores.mean().item(), abs=1e-9)


def test_it_is_the_squared_error_where_the_tilt_is_small_and_bounded_where_a_clip_is_far_off():
    raw, scores = torch.tensor([[0.5, -1.0]]).double(), torch.tensor([[2.0, 0.3]]).double()
    given = (raw, raw, torch.zeros(1, 2).double(), None, scores, scores)
    small = tilted_regression(Comparison(*given, tilt=1e-3)).parts["first"]
    torch.testing.assert_close(small, regression(Comparison(*given)).parts["first"], rtol=1e-3, atol=0)
    leaf = raw.clone().requires_grad_()
    far = Comparison(leaf, raw, given[2], None, scores + 100, scores, tilt=1.0)
    (slope,) = torch.autograd.grad(tilted_regression(far).parts["first"].sum(), leaf)
    torch.testing.assert_close(slope, torch.full_like(slope, 1 - math.exp(4)))


def test_scores_that_are_missing_do_not_count_and_preferences_alone_are_refused():
    raw, zero = torch.zeros(1, 2), torch.zeros(1, 2)
    scores = torch.tensor([[1.0, math.nan]])
    parts = tilted_regression(Comparison(raw, raw, zero, None, scores, scores)).parts
    assert parts["first"][0, 0] == pytest.approx(math.e - 2) and parts["first"][0, 1] == 0
    with pytest.raises(ValueError, match="scores for the loss 'tilted-regression', but got preferences only"):
        tilted_regression(Comparison(raw, raw, zero))
    with pytest.raises(ValueError, match="Expected `tilt` above 0, but got 0"):
        Objective(tilt=0)


def sampled(value: str, tilt: float, particles: int = 20_000, steps: int = 400) -> Tensor:
    """Sample a mixture of Gaussians whose reward is x itself, guided by the exact value of either loss."""
    x = torch.randn(particles, generator=torch.Generator().manual_seed(1)).double()
    levels = torch.linspace(1, 0, steps + 1).double()
    for now, after in itertools.pairwise(levels):
        sigma = now.clamp(max=1 - 1e-4)
        alpha = 1 - sigma
        width = alpha**2 * SPREAD**2 + sigma**2
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            near = SHARES.log() - (leaf[:, None] - alpha * MEANS) ** 2 / (2 * width)
            clean = MEANS + alpha * SPREAD**2 / width * (leaf[:, None] - alpha * MEANS)  # of each mode
            left = SPREAD**2 * sigma**2 / width  # its variance
            if value == "mean":
                read = tilt * (near.softmax(dim=1) * clean).sum(dim=1)
            else:
                read = (near + tilt * clean + tilt**2 * left / 2).logsumexp(dim=1) - near.logsumexp(dim=1)
            (gradient,) = torch.autograd.grad(read.sum(), leaf)
        predicted = (near.softmax(dim=1) * clean).sum(dim=1).detach()
        velocity = (x - predicted) / sigma - sigma / alpha * gradient
        x = x + (after - now) * velocity
    return x


def test_on_a_mixture_it_reaches_the_tilted_modes_where_the_mean_goes_astray():
    for tilt, off in ((0.1, 0.0), (1.0, 0.08)):
        tilted = (SHARES.log() + tilt * MEANS).softmax(dim=0)
        expected = (tilted * (MEANS + tilt * SPREAD**2)).sum()
        by_value, by_mean = (sampled(value, tilt) for value in ("value", "mean"))
        assert (by_value > 0).double().mean() == pytest.approx(tilted[1].item(), abs=0.01)
        assert by_value.mean() == pytest.approx(expected.item(), abs=0.02)
        astray = tilted[1] - (by_mean > 0).double().mean()
        assert off - 0.01 < astray < off + 0.03  # 0.00 and 0.10
