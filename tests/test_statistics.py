"""Intervals, ranks and ratios against a second source."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler.statistics import bootstrap_interval, ranks, ratio_interval, spearman


def test_interval_matches_the_normal_approximation():
    points = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    low, high = bootstrap_interval(points)
    half_width = 1.96 * points.std().item() / 20
    assert low == pytest.approx(points.mean().item() - half_width, abs=0.005)
    assert high == pytest.approx(points.mean().item() + half_width, abs=0.005)
    assert bootstrap_interval(points) == (low, high)


def test_rank_correlation_matches_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(0, 4, (2, 12), generator=generator).double()  # with ties
    assert spearman(one, other).item() == pytest.approx(stats.spearmanr(one, other).statistic)
    assert ranks(one).tolist() == pytest.approx((stats.rankdata(one) - 1 + 0.5).tolist())
    assert spearman(one, torch.ones(12)).item() == 0


def test_a_ratio_has_an_interval_unless_its_denominator_may_be_zero():
    generator = torch.Generator().manual_seed(0)
    target = 2 + torch.randn(400, generator=generator)
    held_out = 0.5 * target + 0.5 * torch.randn(400, generator=generator)
    low, high = ratio_interval(held_out, target)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20 / 2, rel=0.2)
    assert ratio_interval(held_out, target - 2) is None
