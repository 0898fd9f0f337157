"""Controls: rewards that guide to show what the reward itself is good for."""

from __future__ import annotations

import pytest
import torch
from tiny import TowardTarget

from nrg_sampler.evaluation.controls import RandomDirection, pixel_control, trusted_as
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.gradient import axis_gradients


def test_a_random_direction_is_as_strong_as_the_gradient_and_unrelated_to_it():
    reward, sigma = TowardTarget(), torch.tensor([0.3, 0.7])
    latents = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # not the control's seed
    reward.recommended_scale, reward.recommended_damping, reward.recommended_fading = 3.0, (0.5,), (2.0,)
    control = RandomDirection(reward)
    ours, theirs = (resolve(RewardGuidance(), one) for one in (control, reward))
    assert (ours.trust, ours.beyond) == (theirs.trust, theirs.beyond)
    assert ours.strength == 3.0
    random, _ = axis_gradients(latents, sigma, control, Conditioning(), calibrated=False)
    true, _ = axis_gradients(latents, sigma, reward, Conditioning(), calibrated=False)
    torch.testing.assert_close(random.flatten(2).norm(dim=2), true.flatten(2).norm(dim=2))
    cosine = torch.nn.functional.cosine_similarity(random.flatten(2), true.flatten(2), dim=2)
    assert cosine.abs().max() < 0.15


def test_a_judge_of_pixels_can_be_made_to_guide_as_a_control(wan):
    from nrg_sampler import NRGFlowPipeline
    from nrg_sampler.shapes.judge import PixelJudge

    torch.manual_seed(0)
    judge = PixelJudge(words=["red"], widths=(8, 8), dim=16, num_heads=2, depth=1).eval().requires_grad_(False)
    wan.reward_model = None
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=pixel_control(judge, wan))
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 3, "max_sequence_length": 8}
    guided = pipe("a red circle", reward_weights="0:1:0", output_type="latent", **options).frames
    assert guided.isfinite().all()
    assert pipe.trace.rows()[-1]["push_ratio"] > 0


def test_a_control_is_trusted_as_the_reward_it_is_compared_with():
    class Two:
        axes = ("a", "b")

        def __init__(self, **recommended):
            vars(self).update(recommended)

        def __call__(self, latents, sigma, conditioning):
            raise AssertionError("nothing is scored here")

    target = Two(recommended_scale=(1.0, 3.0), recommended_damping=(0.5, 2.0))
    control = trusted_as(Two(recommended_fading=(7.0, 7.0)), target)
    ours, theirs = (resolve(RewardGuidance(), one) for one in (control, target))
    assert (ours.trust, ours.beyond) == (theirs.trust, theirs.beyond)
    assert ours.strength == 3.0
    with pytest.raises(ValueError, match=r"Expected a reward with the axes a, b, .* but got closeness"):
        trusted_as(TowardTarget(), target)
