"""Bradley-Terry with ties against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

from nrg_sampler.training.losses import bradley_terry_with_ties

DIFFERENCES = torch.linspace(-6, 6, 25, dtype=torch.float64)


def probability(preference, k):
    return torch.exp(-bradley_terry_with_ties(DIFFERENCES, torch.full_like(DIFFERENCES, preference), k))


@pytest.mark.parametrize("k", [1.5, 5.0, 20.0])
def test_probabilities_sum_to_one(k):
    total = sum(probability(preference, k) for preference in (1, -1, 0))
    torch.testing.assert_close(total, torch.ones_like(total))


def test_matches_the_published_form():
    k, a = 5.0, torch.exp(DIFFERENCES)  # rewards d and 0: e^rA = a, e^rB = 1
    torch.testing.assert_close(probability(1, k), a / (a + k))
    torch.testing.assert_close(probability(-1, k), 1 / (k * a + 1))
    torch.testing.assert_close(probability(0, k), (k**2 - 1) * a / ((a + k) * (k * a + 1)))


def test_becomes_bradley_terry_as_ties_vanish():
    torch.testing.assert_close(probability(1, 1 + 1e-9), DIFFERENCES.sigmoid(), atol=1e-8, rtol=0)


def test_a_tie_is_likeliest_at_equal_rewards():
    tie = probability(0, 5.0)
    assert tie.argmax() == len(DIFFERENCES) // 2
    assert tie.max() == pytest.approx((25 - 1) / 36)


def test_large_differences_stay_finite():
    loss = bradley_terry_with_ties(torch.tensor([1e4, -1e4]), torch.tensor([-1.0, 0.0]))
    assert loss.isfinite().all()


@pytest.mark.parametrize("k", [1.0, 0.5, -math.inf])
def test_refuses_k_without_ties(k):
    with pytest.raises(ValueError, match="Expected `k` above 1"):
        bradley_terry_with_ties(torch.zeros(1), torch.zeros(1), k)
