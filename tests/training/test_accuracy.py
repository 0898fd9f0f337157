"""Accuracy with and without ties and calibration, against brute force and known cases."""

from __future__ import annotations

import math

import pytest
import torch

from nrg_sampler.training.accuracy import (
    accuracy_with_ties,
    accuracy_without_ties,
    calibrate_threshold,
    expected_calibration_error,
)


def test_ties_are_left_out_and_a_difference_of_zero_is_wrong():
    difference, preference = torch.tensor([2.0, -1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, -1.0, 0.0])
    assert accuracy_without_ties(difference, preference) == pytest.approx(1 / 3)
    assert math.isnan(accuracy_without_ties(difference[3:], preference[3:]))


@pytest.mark.parametrize("seed", range(8))
def test_threshold_is_as_good_as_any_that_can_be_tried(seed):
    generator = torch.Generator().manual_seed(seed)
    difference = torch.randint(-6, 7, (40,), generator=generator) / 2  # many equal differences, and zeros
    preference = torch.randint(-1, 2, (40,), generator=generator).float()
    found = calibrate_threshold(difference, preference)
    tried = [accuracy_with_ties(difference, preference, value) for value in torch.linspace(0, 4, 400).tolist()]
    assert found.accuracy == pytest.approx(max(tried))
    assert accuracy_with_ties(difference, preference, found.value) == pytest.approx(found.accuracy)


def test_threshold_lies_between_distinct_differences():
    difference = torch.tensor([0.5, -0.5, 0.5, 2.0, -3.0])
    preference = torch.tensor([0.0, 0.0, 1.0, 1.0, -1.0])
    found = calibrate_threshold(difference, preference)  # splitting the group of 0.5 would get every pair right
    assert found.value == pytest.approx(1.25)
    assert found.accuracy == pytest.approx(4 / 5)


@pytest.mark.parametrize(("preference", "value"), [(torch.ones(3), 0.5), (torch.zeros(3), 3.0)])
def test_no_pair_or_every_pair_can_be_a_tie(preference, value):
    found = calibrate_threshold(torch.tensor([1.0, 2.0, 3.0]), preference)
    assert found.value == pytest.approx(value)
    assert found.accuracy == 1.0


def test_threshold_needs_pairs():
    with pytest.raises(ValueError, match="Expected labelled pairs to choose a tie threshold on, but got none"):
        calibrate_threshold(torch.zeros(0), torch.zeros(0))


def test_calibration_error_is_the_gap_between_sureness_and_success():
    probability = torch.tensor([0.95] * 10 + [0.55] * 10)
    outcome = torch.tensor([1.0] * 9 + [0.0] + [1.0] * 3 + [0.0] * 7)
    assert expected_calibration_error(probability, outcome) == pytest.approx(0.5 * 0.05 + 0.5 * 0.25, abs=1e-6)
    assert expected_calibration_error(torch.ones(4), torch.ones(4)) == 0
    assert math.isnan(expected_calibration_error(torch.zeros(0), torch.zeros(0)))
