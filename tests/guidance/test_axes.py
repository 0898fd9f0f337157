"""Axes that pull apart, in a guided step: floors, conflicts, balance."""

from __future__ import annotations

import pytest
import torch
from tiny_step import Bumpy, Opposed, batch

from nrg_sampler import GuidanceTrace, RewardGuidance, guided_velocity
from nrg_sampler.rewards.gradient import axis_gradients


def change(reward, guidance, axis, **inputs):
    """To first order, how the push of one step changes an axis: (B,)."""
    trace = GuidanceTrace(reward.axes)
    velocity = batch(0)
    guided = guided_velocity(batch(1), velocity, 0.5, reward, guidance=guidance, trace=trace, **inputs)
    gradient = {"VQ": reward.first, "TA": reward.second}[axis]
    return ((velocity - guided) * gradient).flatten(1).sum(dim=1), trace


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_floor_keeps_an_axis_without_weight_from_being_lowered(scale):
    reward = Opposed()
    axis = "TA" if scale > 0 else "VQ"
    weights = "1:0" if scale > 0 else "1:1"
    free, _ = change(reward, RewardGuidance(weights=weights, scale=scale), axis)
    held, trace = change(reward, RewardGuidance(weights=weights, scale=scale, floor=axis), axis)
    assert (free < -0.01).all()
    assert (held > -1e-4).all()
    assert trace.rows()[0]["floored"] == 1.0
    assert "floored" in str(trace)


def test_a_floor_that_is_not_touched_changes_nothing():
    guidance = RewardGuidance(weights="0:1")
    plain = guided_velocity(batch(1), batch(0), 0.5, Opposed(), guidance=guidance)
    floored = guided_velocity(batch(1), batch(0), 0.5, Opposed(), guidance=RewardGuidance(weights="0:1", floor="TA"))
    torch.testing.assert_close(floored, plain)


def test_projected_conflicts_raise_both_axes():
    guidance = RewardGuidance(weights="1:0.2")
    assert (change(Opposed(), guidance, "TA")[0] < 0).all()
    projected = RewardGuidance(weights="1:0.2", conflicts="project")
    assert (change(Opposed(), projected, "TA")[0] > 0).all()
    assert (change(Opposed(), projected, "VQ")[0] > 0).all()


def test_balanced_axes_no_longer_depend_on_the_unit_of_the_reward():
    class OtherUnits(Opposed):
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning) * latents.new_tensor([100.0, 0.01])

    def direction(reward, **settings):
        guidance = RewardGuidance(max_push=None, **settings)
        push = batch(0) - guided_velocity(batch(1), batch(0), 0.5, reward, guidance=guidance)
        return push / push.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)

    torch.testing.assert_close(direction(Opposed(), balanced=True), direction(OtherUnits(), balanced=True))
    assert not torch.allclose(direction(Opposed()), direction(OtherUnits()), rtol=0.1)


def test_separate_gradients_add_up_to_that_of_the_sum():
    guidance = {"weights": "0.3:0.7", "scale": 0.01, "max_push": None, "damping": 0.0}
    together = guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=RewardGuidance(**guidance))
    grads, raw = axis_gradients(batch(1), 0.5, Bumpy())
    expected = batch(0) - 0.01 * 3.0 * (0.3 * grads[0] + 0.7 * grads[1])
    torch.testing.assert_close(together, expected)
    assert raw.shape == (2, 2)


def test_a_floor_on_an_unknown_axis_is_refused():
    message = r"Expected `floor` to name axes of the reward \(VQ, TA\), but got MQ; use the reward's own axes."
    with pytest.raises(ValueError, match=message):
        guided_velocity(batch(1), batch(), 0.5, Opposed(), guidance=RewardGuidance(floor="MQ"))
