"""Win rates and gains, of sliders and of the target alone."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler.evaluation.gains import (
    gains,
    hacking_index,
    slider_correlation,
)
from nrg_sampler.evaluation.winrate import win_rate
from nrg_sampler.statistics import estimate


def test_ties_count_half():
    rate = win_rate(torch.tensor([1.0, 0.0, 0.5, 0.5]), torch.tensor([0.0, 1.0, 0.5, 0.0]))
    assert rate.win == pytest.approx(100 * 2.5 / 4)
    assert rate.n == 4


def test_win_rate_says_what_is_wrong():
    with pytest.raises(ValueError, match="two lists of scores of one length"):
        win_rate(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="some are not a number"):
        win_rate(torch.tensor([float("nan")]), torch.zeros(1))


def test_gains_are_in_units_of_the_baseline_s_spread():
    baseline = torch.tensor([[0.0, 0.0], [2.0, 10.0]])
    change = gains(baseline + torch.tensor([1.0, 1.0]), baseline)
    spread = baseline.std(dim=0)
    torch.testing.assert_close(change[0, :2], 1 / spread)
    torch.testing.assert_close(change[:, 2], change[:, :2].mean(dim=1))


def test_the_interval_of_a_slider_narrows_with_the_number_of_prompts():
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0])
    noise = torch.randn(4, 400, generator=torch.Generator().manual_seed(0))
    few, many = (slider_correlation(weights, weights[:, None] + 3 * noise[:, :n]) for n in (10, 400))
    assert many.high - many.low < few.high - few.low
    assert many.low > 0.5


def test_hacking_is_gain_that_only_the_target_sees():
    assert hacking_index(2.0, 2.0) == 0
    assert hacking_index(0.0, 2.0) == 1
    assert hacking_index(-1.0, 2.0) == 1.5
    assert hacking_index(1.0, -0.5) is None
    assert str(estimate(torch.zeros(3))) == "+0.00 [+0.00, +0.00]"
