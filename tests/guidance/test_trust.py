"""Damping and fading: how much a reward, and each of its axes, is trusted at a noise level."""

from __future__ import annotations

import pytest
import torch
from tiny_step import Bumpy, batch

from nrg_sampler import GuidanceTrace, RewardGuidance, guided_velocity
from nrg_sampler.rewards.gradient import reward_gradient


def test_a_reward_that_recommends_no_damping_is_damped_by_the_signal():
    for sigma in (0.25, 0.5, 0.75):  # so that the factor sigma / (1 - sigma) * (1 - sigma) is sigma
        guided = guided_velocity(
            batch(1), batch(0), sigma, Bumpy(), guidance=RewardGuidance(scale=0.01, max_push=None)
        )
        grad, _ = reward_gradient(batch(1), sigma, Bumpy())
        torch.testing.assert_close(guided, batch(0) - 0.01 * 3.0 * sigma * grad)


class Trusted(Bumpy):
    recommended_scale = (3.0, 12.0)
    recommended_damping = (0.5, 2.0)
    recommended_fading = (4.0, 1.0)


POWERS = {
    "recommended": ({}, ((0.5, 4.0), (2.0, 1.0))),
    "one number": ({"damping": 1.5, "fading": 0}, ((1.5, 0.0), (1.5, 0.0))),
    "text": ({"damping": "1.5", "fading": "a=0,b=1"}, ((1.5, 0.0), (1.5, 1.0))),
    "an axis": ({"damping": {"b": 1.5}}, ((0.0, 4.0), (1.5, 1.0))),
    "a list": ({"damping": [3, 1], "fading": [1, 3]}, ((3.0, 1.0), (1.0, 3.0))),
}


@pytest.mark.parametrize(("given", "powers"), POWERS.values(), ids=POWERS)
@pytest.mark.parametrize("options", [{}, {"conflicts": "project"}, {"floor": "b"}, {"balanced": True}], ids=str)
def test_each_axis_is_trusted_by_its_own_powers(given, powers, options):
    """The push by axes of one strength and trust each is that of weights which change with the noise level."""
    sigma = torch.tensor([0.3, 0.8])
    settings = {"scale": 0.1, "max_push": None, **options}
    found = guided_velocity(
        batch(1), batch(0), sigma, Trusted(), guidance=RewardGuidance("2:0.5", **given, **settings)
    )
    for row, level in enumerate(sigma.tolist()):
        trust = [(1 - level) ** damping * level**fading for damping, fading in powers]
        weights = [2.0 * trust[0], 0.5 * 4 * trust[1]]  # b is recommended four times the strength
        flat = RewardGuidance(weights, damping=0.0, fading=0.0, **settings)
        alone = guided_velocity(batch(1), batch(0), level, Bumpy(), guidance=flat)
        torch.testing.assert_close(found[row], alone[row])


def test_an_axis_without_weight_changes_nothing_about_the_others():
    guidance = RewardGuidance("1:0", scale=0.1)
    alone = guided_velocity(batch(1), batch(0), 0.6, Trusted(), guidance=guidance)
    grad, _ = reward_gradient(batch(1), 0.6, Bumpy(), weights="1:0")
    torch.testing.assert_close(alone, batch(0) - 0.1 * 3 * 1.5 * 0.4**0.5 * 0.6**4 * grad)
    trace = GuidanceTrace(Trusted.axes)
    guided_velocity(batch(1), batch(0), 0.6, Trusted(), guidance=guidance, trace=trace)
    assert trace.rows()[0]["coefficient"] == pytest.approx(1.5 * 0.4**0.5 * 0.6**4)


def test_the_paper_s_settings_ask_for_no_recommendation():
    both = [
        guided_velocity(batch(1), batch(0), 0.6, reward, guidance=RewardGuidance.paper(2.0, "2:0.5"))
        for reward in (Trusted(), Bumpy())
    ]
    assert torch.equal(*both)


def test_the_trace_tells_the_factor_that_all_axes_share():
    trace = GuidanceTrace(Trusted.axes)
    guided_velocity(batch(1), batch(0), 0.75, Trusted(), guidance=RewardGuidance(scale=0.1), trace=trace)
    assert trace.rows()[0]["coefficient"] == pytest.approx(3 * 0.25**0.5 * 0.75)


@pytest.mark.parametrize("damping", ["VQ=1", [1, 2, 3]])
def test_damping_that_does_not_fit_the_axes_is_refused(damping):
    with pytest.raises(ValueError, match="Expected `damping` as one number, or one for each of a, b, but got "):
        guided_velocity(batch(1), batch(), 0.5, Bumpy(), guidance=RewardGuidance(damping=damping))
