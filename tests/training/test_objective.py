"""What an objective may say, the noise it draws, and which parts of the trunk it trains."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from tiny import tiny_transformer

from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.training.objective import SIGMA_SAMPLINGS, Objective
from nrg_sampler.training.trunk import TRUNK_MODULES, merge_trunk, open_trunk


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"loss": "hinge"}, "Expected `loss` to be one of bradley-terry, .* but got 'hinge'"),
        ({"pooling": "sum"}, "Expected `pooling` to be one of query, mean, max, but got 'sum'"),
        ({"trunk": "half"}, "Expected `trunk` to be one of full, lora, frozen, but got 'half'"),
        ({"sigma_sampling": "beta"}, "Expected `sigma_sampling` to be one of uniform, shifted, logit-normal"),
        ({"num_blocks": 0}, "Expected `num_blocks` to be at least 1, but got 0"),
        ({"shift": 0.0}, "Expected `shift` to be above 0, but got 0"),
        ({"prompt_dropout": 1.0}, "Expected `prompt_dropout` from 0 to below 1, but got 1"),
    ],
)
def test_refuses_unknown_choices(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Objective(**wrong)


@pytest.mark.parametrize("name", SIGMA_SAMPLINGS)
def test_noise_levels_follow_their_distribution(name):
    sigma = Objective(sigma_sampling=name, shift=3.0).sample_sigma(20_000, generator())
    assert sigma.min() >= 0
    assert sigma.max() <= 1
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    found = (sigma[:, None] <= levels).float().mean(dim=0)
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = {
        "uniform": levels,
        "shifted": levels / (3 - 2 * levels),  # the inverse of the shift
        "logit-normal": normal.cdf(levels.logit()),
    }
    torch.testing.assert_close(found, expected[name], atol=0.015, rtol=0)


def test_a_reward_of_clean_latents_sees_no_noise():
    assert not Objective(noised=False).sample_sigma(8, generator()).any()


@pytest.mark.parametrize("same", [True, False])
def test_compared_clips_share_their_noise_or_do_not(same):
    noise = Objective(same_noise=same).sample_noise(3, 2, (4, 2), generator())
    assert noise.shape == (3, 2, 4, 2)
    assert torch.equal(noise[:, 0], noise[:, 1]) == same
    assert not torch.equal(noise[0], noise[1])


def test_drops_the_asked_share_of_prompts():
    dropped = Objective(prompt_dropout=0.25).sample_dropped(20_000, generator())
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert not Objective().sample_dropped(100, generator()).any()


@pytest.fixture
def reward():
    torch.manual_seed(1)
    return LatentReward.from_transformer(tiny_transformer(), num_blocks=1)


@pytest.fixture
def inputs():
    return (
        torch.randn(2, 16, 3, 4, 4, generator=generator()),
        torch.tensor([0.3, 0.8]),
        Conditioning(torch.randn(2, 6, 16, generator=generator(1))),
    )


def train(reward, inputs, steps=3):
    """Take a few steps and return the names of the parameters that moved."""
    before = {name: value.detach().clone() for name, value in reward.named_parameters()}
    trainable = [parameter for parameter in reward.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        reward(*inputs).square().mean().backward()
        optimizer.step()
    return {name for name, value in reward.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("trunk", ["full", "lora", "frozen"])
def test_only_what_the_objective_opens_is_trained(reward, inputs, trunk):
    open_trunk(reward, trunk, lora_rank=2)
    moved = train(reward, inputs)
    in_trunk = {name for name in moved if name.startswith(TRUNK_MODULES)}
    assert "queries" in moved
    assert "null_context" in moved
    if trunk == "full":
        assert any(name.startswith("patch_embedding") for name in in_trunk)
    if trunk == "lora":
        assert in_trunk
        assert all("lora_" in name for name in in_trunk)
    if trunk == "frozen":
        assert not in_trunk


def test_merging_adapters_leaves_a_plain_reward_that_scores_the_same(reward, inputs, tmp_path):
    plain = set(reward.state_dict())
    before = reward(*inputs)
    open_trunk(reward, "lora", lora_rank=2)
    torch.testing.assert_close(reward(*inputs), before)  # adapters begin at nothing
    train(reward, inputs)
    adapted = reward(*inputs)
    assert not torch.allclose(adapted, before, atol=1e-4)
    merge_trunk(reward)
    assert set(reward.state_dict()) == plain
    torch.testing.assert_close(reward(*inputs), adapted, atol=1e-5, rtol=1e-4)
    reward.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentReward.from_pretrained(tmp_path)(*inputs), adapted, atol=1e-5, rtol=1e-4)


def test_merging_a_reward_without_adapters_changes_nothing(reward, inputs):
    before = reward(*inputs)
    merge_trunk(reward)
    assert torch.equal(reward(*inputs), before)


def test_says_what_lora_needs(reward, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'install it with pip install "nrg-sampler\[train\]"'):
        open_trunk(reward, "lora")
    assert math.isfinite(sum(parameter.sum().item() for parameter in reward.parameters()))
