"""Gradient checkpointing that keeps attention: the same gradient, less memory, no attention computed twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from tiny import tiny_transformer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from nrg_sampler import Conditioning
from nrg_sampler.cost import step as cost
from nrg_sampler.cost.prediction import block_costs, predicted_ratio
from nrg_sampler.cost.workloads import WORKLOADS
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.rewards.latent import LatentReward

LONG = replace(
    WORKLOADS["shapes"], config={**WORKLOADS["shapes"].config, "num_layers": 4}, latents=(1, 16, 21, 32, 32)
)


def in_full(block, *args):
    return checkpoint(block.__call__, *args, use_reentrant=False)


@pytest.fixture
def reward():
    torch.manual_seed(0)
    tiny = tiny_transformer()
    deep = type(tiny).from_config({**tiny.config, "num_layers": 3})
    return LatentReward.from_transformer(deep, num_blocks=3).requires_grad_(False).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 3, 4, 4, generator=generator)
    return latents, torch.tensor([0.25, 0.75]), Conditioning(torch.randn(2, 6, 16, generator=generator))


class Calls(TorchDispatchMode):
    """Count the operations that reach the kernels, by name."""

    def __init__(self):
        super().__init__()
        self.of = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.of[func.name().split("::")[1].split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_gradient(reward, latents, sigma, conditioning):
    with Calls() as calls:
        grad, raw = reward_gradient(latents, sigma, reward, conditioning)
    return grad, raw, calls.of


def test_the_gradient_is_the_same_and_attention_is_computed_once(reward, inputs):
    grad, raw, plain = calls_of_a_gradient(reward, *inputs)
    reward.enable_gradient_checkpointing()
    saving_grad, saving_raw, saving = calls_of_a_gradient(reward, *inputs)
    assert torch.equal(saving_grad, grad)
    assert torch.equal(saving_raw, raw)
    assert grad.abs().max() > 0
    attention = [name for name in plain if "attention" in name and "backward" not in name]
    assert attention
    assert all(saving[name] == plain[name] >= 6 for name in attention)
    assert saving["addmm"] > plain["addmm"]
    reward.disable_gradient_checkpointing()
    assert calls_of_a_gradient(reward, *inputs)[2] == plain


def test_another_way_of_checkpointing_can_be_given(reward, inputs):
    plain = calls_of_a_gradient(reward, *inputs)
    reward.enable_gradient_checkpointing(in_full)
    full = calls_of_a_gradient(reward, *inputs)
    torch.testing.assert_close(full[0], plain[0])
    attention = next(name for name in plain[2] if "attention" in name and "backward" not in name)
    assert full[2][attention] > plain[2][attention]


def test_it_saves_most_of_the_memory_for_few_operations():
    unguided, plain, _ = cost.count_step(LONG, 4, False, torch.float32)
    _, saving, predicted = cost.count_step(LONG, 4, True, torch.float32)
    assert saving.peak_bytes < 0.6 * plain.peak_bytes
    linear_again = saving.flops - plain.flops
    forward = unguided.flops / LONG.evaluations  # of all 4 blocks
    assert 0 < linear_again < 0.8 * forward  # attention is the rest
    assert saving.flops / unguided.flops == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize("tokens_wide", [16, 64])
def test_the_longer_the_video_the_smaller_its_share(tokens_wide):
    workload = replace(LONG, latents=(1, 16, 5, tokens_wide, tokens_wide))
    costs = block_costs(workload.build(), workload.tokens)
    plain, saving = (predicted_ratio(costs, 2, 2, checkpointing=given) for given in (False, True))
    linear = sum(each.linear for each in costs[:2]) / (2 * sum(each.forward for each in costs))
    assert saving - plain == pytest.approx(linear)
