"""What is measured of clips beside the scores of judges."""

from __future__ import annotations

import math

import pytest
import torch

from nrg_sampler.evaluation import features


def test_motion_of_a_known_change():
    clips = torch.zeros(2, 3, 5, 8, 8)
    clips[1, :, 1::2] = 0.4
    torch.testing.assert_close(features.motion(clips), torch.tensor([0.0, 0.4]))


def test_high_frequency_separates_a_coarse_from_a_fine_wave():
    place = torch.arange(64) * 2 * math.pi
    waves = torch.stack([(place * cycles / 64).sin() for cycles in (4, 30)])  # below and above half the highest
    clips = waves[:, None, None, None, :].expand(2, 3, 2, 64, 64)
    torch.testing.assert_close(features.high_frequency(clips), torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)
    mixed = (2 * clips[:1] + clips[1:]) / 3  # energies 4 to 1
    assert features.high_frequency(mixed).item() == pytest.approx(0.2, abs=1e-4)
    assert features.high_frequency(torch.full((1, 3, 2, 8, 8), 0.7)).item() == 0


def test_saturation_is_the_distance_of_the_colour_channels():
    grey, red = torch.full((3, 2, 4, 4), 0.5), torch.zeros(3, 2, 4, 4)
    red[0] = 0.8
    torch.testing.assert_close(features.saturation(torch.stack([grey, red])), torch.tensor([0.0, 0.8]))


def test_diversity_is_the_mean_pairwise_distance_and_blind_to_grain():
    clips = torch.stack([torch.full((3, 2, 8, 8), value) for value in (0.0, 0.3, 0.6)])
    assert features.diversity(clips) == pytest.approx((0.3 + 0.3 + 0.6) / 3)
    grain = torch.tensor([1.0, -1.0]).repeat(4).expand(3, 2, 8, 8) * 0.2
    assert features.diversity(torch.stack([clips[1] + grain, clips[1] - grain])) == pytest.approx(0, abs=1e-6)
