"""The losses against their closed forms."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from nrg_sampler.training.losses import (
    LIKELIHOODS,
    LOSSES,
    Comparison,
    bradley_terry_with_ties,
    log_bradley_terry_ties,
    negative_log_likelihood,
)

DIFFERENCES = torch.linspace(-6, 6, 25, dtype=torch.float64)
SIGMA = torch.linspace(0, 1, 25, dtype=torch.float64)


def probability(preference, k):
    return torch.exp(-bradley_terry_with_ties(DIFFERENCES, torch.full_like(DIFFERENCES, preference), k))


def compare(label, **more):
    """Pairs of one axis with the differences above."""
    first = DIFFERENCES[:, None].clone().requires_grad_()
    preference = torch.full_like(first, label, requires_grad=False)
    return Comparison(first, torch.zeros_like(first), preference, SIGMA, **more)


@pytest.mark.parametrize(
    "model", [*LIKELIHOODS.values(), *(partial(log_bradley_terry_ties, k=k) for k in (1.5, 20.0))]
)
def test_probabilities_sum_to_one(model):
    total = torch.stack(model(DIFFERENCES, SIGMA)).exp().sum(dim=0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_ties_match_the_published_form():
    k, a = 5.0, torch.exp(DIFFERENCES)  # rewards d and 0: e^rA = a, e^rB = 1
    torch.testing.assert_close(probability(1, k), a / (a + k))
    torch.testing.assert_close(probability(-1, k), 1 / (k * a + 1))
    torch.testing.assert_close(probability(0, k), (k**2 - 1) * a / ((a + k) * (k * a + 1)))


def test_becomes_bradley_terry_as_ties_vanish():
    near = log_bradley_terry_ties(DIFFERENCES, SIGMA, k=1 + 1e-9)
    plain = LIKELIHOODS["bradley-terry"](DIFFERENCES, SIGMA)
    for ours, theirs in zip(near, plain, strict=True):
        torch.testing.assert_close(ours.exp(), theirs.exp(), atol=1e-8, rtol=0)
    torch.testing.assert_close(plain[0].exp(), 1 / (1 + torch.exp(-DIFFERENCES)))


def test_thurstone_is_a_normal_distribution_whose_width_follows_the_noise():
    width = torch.sqrt(2 * (2 * SIGMA**2 + 0.05))
    normal = torch.distributions.Normal(torch.zeros_like(width), width)
    torch.testing.assert_close(LIKELIHOODS["thurstone"](DIFFERENCES, SIGMA)[0].exp(), normal.cdf(DIFFERENCES))


def test_a_tie_is_likeliest_at_equal_rewards():
    tie = probability(0, 5.0)
    assert tie.argmax() == len(DIFFERENCES) // 2
    assert tie.max() == pytest.approx((25 - 1) / 36)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_loss_is_minus_the_logarithm_of_what_was_said(name):
    log_a, log_b, log_tie = LIKELIHOODS[name](DIFFERENCES, SIGMA)
    for label, expected in ((1.0, log_a), (-1.0, log_b)):
        found = LOSSES[name](compare(label))
        torch.testing.assert_close(found.parts["preferred"][:, 0], -expected)
        torch.testing.assert_close(found.per_axis(), -expected.mean()[None])
        assert not found.parts["tie"].any()
        assert found.counted.all()
    tied = LOSSES[name](compare(0.0))
    if name == "bradley-terry-ties":
        torch.testing.assert_close(tied.parts["tie"][:, 0], -log_tie)
    else:
        assert not tied.counted.any()
        assert tied.per_axis().item() == 0


def test_regression_is_half_the_mean_of_two_squared_errors():
    one = torch.ones(25, 1, dtype=torch.float64)
    found = LOSSES["regression"](compare(math.nan, teacher_first=one, teacher_second=2 * one))
    torch.testing.assert_close(found.per_axis()[0], ((DIFFERENCES - 1) ** 2 + 4).mean() / 2)
    assert set(found.means()) == {"first", "second"}


@pytest.mark.parametrize("name", LOSSES)
def test_what_nobody_said_has_neither_loss_nor_gradient(name):
    unknown = torch.full((25, 1), math.nan, dtype=torch.float64)
    comparison = compare(math.nan, teacher_first=unknown, teacher_second=unknown)
    found = LOSSES[name](comparison)
    assert not found.counted.any()
    assert found.per_axis().item() == 0
    (gradient,) = torch.autograd.grad(found.per_axis().sum(), comparison.first)
    assert not gradient.any()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_large_differences_keep_loss_and_gradient_finite(name):
    first = torch.tensor([[1e3], [-1e3], [0.0]], requires_grad=True)
    loss = LOSSES[name](Comparison(first, torch.zeros(3, 1), torch.tensor([[-1.0], [0.0], [0.0]]), torch.zeros(3)))
    (gradient,) = torch.autograd.grad(loss.per_axis().sum(), first)
    assert loss.per_axis().isfinite().all()
    assert gradient.isfinite().all()


def test_a_share_of_a_batch_can_be_divided_by_the_whole():
    whole = LOSSES["bradley-terry-ties"](compare(1.0))
    shares = [
        negative_log_likelihood(
            Comparison(DIFFERENCES[part, None], torch.zeros(len(part), 1), torch.ones(len(part), 1)),
            LIKELIHOODS["bradley-terry-ties"],
        ).per_axis(torch.tensor([25]))
        for part in (torch.arange(7), torch.arange(7, 25))
    ]
    torch.testing.assert_close(shares[0] + shares[1], whole.per_axis())


@pytest.mark.parametrize("k", [1.0, 0.5, -math.inf, math.nan])
def test_refuses_k_without_ties(k):
    with pytest.raises(ValueError, match="Expected `k` above 1"):
        bradley_terry_with_ties(torch.zeros(1), torch.zeros(1), k)


def test_says_what_is_missing():
    with pytest.raises(ValueError, match="Expected a teacher's scores for the loss 'regression'"):
        LOSSES["regression"](compare(1.0))
    with pytest.raises(ValueError, match=r"Expected `preference` of shape \(2, 1\).*but got \(2, 3\)"):
        Comparison(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 3))
