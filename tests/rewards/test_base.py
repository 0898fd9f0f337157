"""Weights, normalisation and what is refused as a reward."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields

import pytest
import torch
from tiny import TowardTarget, sample

from nrg_sampler import RewardGuidance, attach, guided_velocity
from nrg_sampler.evaluation.controls import trusted_as
from nrg_sampler.rewards import Conditioning, Reward, RewardWeights
from nrg_sampler.rewards.base import RewardHooks, check_reward, normalised
from nrg_sampler.rewards.gradient import reward_gradient, weighted_score

AXES = ("VQ", "MQ", "TA")


class Quality:
    axes = AXES
    mean = (1.0, 2.0, 3.0)
    std = (0.5, 1.0, 2.0)
    recommended_scale = 7.0

    def __call__(self, latents, sigma, conditioning):
        return torch.stack([latents.mean(dim=(1, 2, 3, 4)) * k for k in (1.0, 2.0, 3.0)], dim=1)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("0.1:0.1:0.8", (0.1, 0.1, 0.8)),
        ("1 : 2 : 3", (1.0, 2.0, 3.0)),
        ("TA=0.5,VQ=2", (2.0, 0.0, 0.5)),
        ({"MQ": 1}, (0.0, 1.0, 0.0)),
        ([1, 0, 2], (1.0, 0.0, 2.0)),
        (torch.tensor([1.0, 0.0, 2.0]), (1.0, 0.0, 2.0)),
        (RewardWeights((1.0, 2.0, 3.0)), (1.0, 2.0, 3.0)),
        (None, (1.0, 1.0, 1.0)),
    ],
)
def test_weights_are_read_from_strings_dicts_and_sequences(weights, expected):
    assert RewardWeights.parse(weights).resolve(AXES) == expected


@pytest.mark.parametrize("weights", ["0.1:0.1:0.8", "VQ=2,TA=0.5"])
def test_weights_print_as_they_are_read(weights):
    assert str(RewardWeights.parse(weights)) == weights


@pytest.mark.parametrize("weights", ["", "a:b:c", "1:1:", "VQ=", "VQ=1,TA", 3, ["x"], object()])
def test_weights_that_do_not_parse_are_refused(weights):
    with pytest.raises(ValueError, match=r"Expected reward weights like '1:1:1'.* write one number per axis"):
        RewardWeights.parse(weights)


@pytest.mark.parametrize("weights", ["1:-1:1", {"VQ": -0.5}, [float("nan"), 1, 1], "inf:1:1"])
def test_negative_and_infinite_weights_are_refused(weights):
    with pytest.raises(ValueError, match="Expected reward weights of 0 or more, but got"):
        RewardWeights.parse(weights)


def test_a_repeated_axis_is_refused():
    with pytest.raises(ValueError, match="Expected each axis once, but got VQ, VQ"):
        RewardWeights.parse("VQ=1,VQ=2")


def test_a_wrong_number_of_weights_is_refused():
    with pytest.raises(ValueError, match=r"Expected 3 reward weights \(VQ:MQ:TA\), but got 2 \(1:1\)"):
        RewardWeights.parse("1:1").resolve(AXES)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="Expected weights for the axes VQ, MQ, TA, but got XX"):
        RewardWeights.parse("VQ=1,XX=1").resolve(AXES)


def test_normalisation_uses_the_stored_statistics():
    raw = torch.tensor([[1.5, 2.0, 7.0]])
    torch.testing.assert_close(normalised(Quality(), raw), torch.tensor([[1.0, 0.0, 2.0]]))
    assert RewardHooks.of(Quality()).recommended_scale == (7.0, 7.0, 7.0)


def test_a_reward_without_statistics_is_used_as_it_is():
    raw = torch.tensor([[3.0]])
    assert torch.equal(normalised(TowardTarget(), raw), raw)
    assert RewardHooks.of(TowardTarget()).recommended_scale == (1.0,)
    assert RewardHooks.of(TowardTarget()).recommended_damping == (1.0,)


def test_the_score_weighs_axes_as_given():
    raw = torch.tensor([[1.5, 2.0, 7.0]])
    torch.testing.assert_close(weighted_score(Quality(), raw, "1:1:0.5"), torch.tensor([2.0]))
    torch.testing.assert_close(weighted_score(Quality(), raw, "1:1:0.5", calibrated=False), torch.tensor([7.0]))


def test_a_reward_needs_nothing_but_axes_and_a_call():
    assert isinstance(TowardTarget(), Reward)
    check_reward(TowardTarget())


@pytest.mark.parametrize("reward", [None, lambda *inputs: None, "VQ", 3])
def test_what_has_no_named_axes_is_refused(reward):
    with pytest.raises(ValueError, match="Expected a reward, a callable with named `axes`"):
        check_reward(reward)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("std", (1.0, 1.0), r"Expected `std` of the reward to have one value per axis \(VQ, MQ, TA\), but got 2"),
        ("mean", (1.0,), "Expected `mean` of the reward to have one value per axis"),
        ("std", (1.0, 0.0, 1.0), "Expected `std` of the reward to be above 0"),
        ("recommended_damping", (1.0,), "Expected `recommended_damping` of the reward to have one value per axis"),
        ("recommended_damping", (1.0, -1.0, 0.0), "Expected `recommended_damping` of the reward to be 0 or more"),
        ("recommended_fading", (1.0, math.inf, 0.0), "Expected `recommended_fading` of the reward to be 0 or more"),
        ("recommended_scale", (1.0, 2.0), "Expected `recommended_scale` of the reward to have one value per axis"),
        ("recommended_scale", 0.0, "Expected `recommended_scale` of the reward to be above 0"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(name, value, message):
    reward = Quality()
    setattr(reward, name, value)
    with pytest.raises(ValueError, match=message):
        check_reward(reward)


def test_a_reward_for_other_latents_is_refused_by_its_own_sentence():
    class ForImages(Quality):
        def check_compatible(self, pipe):
            raise ValueError("Expected latents of images.")

    with pytest.raises(ValueError, match="Expected latents of images"):
        check_reward(ForImages(), pipe=object())


def test_a_reward_on_another_device_is_refused():
    class OnMeta(torch.nn.Linear):
        axes = ("x",)

    with pytest.raises(ValueError, match=r"device cpu, but it is on meta; move it with `reward.to\('cpu'\)`"):
        reward_gradient(torch.zeros(1, 1, 1, 1, 1), 0.5, OnMeta(1, 1, device="meta"))


@pytest.mark.parametrize("output", [torch.zeros(2), torch.zeros(1, 3), torch.zeros(2, 1), 1.0])
def test_a_reward_of_another_shape_is_refused(output):
    class Odd(Quality):
        def __call__(self, latents, sigma, conditioning):
            return output

    with pytest.raises(ValueError, match=r"Expected the reward to return a tensor of shape \(2, 3\), one column per"):
        reward_gradient(torch.zeros(2, 1, 1, 1, 1), 0.5, Odd())


def test_a_reward_without_gradient_is_refused():
    class Detached(Quality):
        @torch.no_grad()
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning)

    with pytest.raises(ValueError, match="Expected a reward that is differentiable with respect to the latents"):
        reward_gradient(torch.zeros(2, 1, 1, 1, 1), 0.5, Detached())


def test_conditioning_drops_the_unconditional_half_and_repeats_a_single_row():
    embeds = torch.arange(4.0).reshape(4, 1, 1)
    assert torch.equal(Conditioning(embeds).for_batch(2).prompt_embeds, embeds[2:])
    assert Conditioning(embeds[:1]).for_batch(3).prompt_embeds.shape == (3, 1, 1)
    assert Conditioning().for_batch(3).prompt_embeds is None
    with pytest.raises(ValueError, match="Expected the conditioning of 3 samples, but got 4"):
        Conditioning(embeds).for_batch(3)


class WithNamesOfItsOwn(TowardTarget):
    """A reward that has, for reasons of its own, what rewards of this package have."""

    blocks, config, members = 3, None, "many"

    def evaluate(self, loader, metric):
        pytest.fail("called something that is no part of a reward")

    score_features = enable_gradient_checkpointing = register_to_config = gradient_checkpointing = evaluate


def test_nothing_but_what_is_documented_is_looked_for(wan):
    reward, plain = WithNamesOfItsOwn(), TowardTarget()
    latents = torch.randn(1, 16, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guided_velocity(latents, latents, 0.5, reward), guided_velocity(latents, latents, 0.5, plain))
    with attach(wan, reward):
        guided = sample(wan)
    with attach(wan, plain):
        assert torch.equal(guided, sample(wan))
    with pytest.raises(ValueError, match="forward='separate' in a sampling loop of your own"):
        guided_velocity(latents, latents, 0.5, reward, guidance=RewardGuidance(forward="shared"))
    with (
        pytest.raises(ValueError, match="a latent reward that was trained with prompt_in_trunk=True"),
        attach(wan, reward, forward="shared"),
    ):
        pass
    assert trusted_as(reward, plain) is reward


def test_hooks_are_documented_one_by_one():
    documented = re.findall(r"^    (\w+): ", inspect.getdoc(RewardHooks) or "", flags=re.MULTILINE)
    assert documented == [field.name for field in fields(RewardHooks)]
