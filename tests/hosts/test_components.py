"""What may be the reward of a pipeline: any callable, and modules without a device or a dtype."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import TowardTarget, sample
from tiny_reward import TinyReward

from nrg_sampler import EnsembleReward, NRGFlowPipeline


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_any_callable_serves_as_a_reward(wan):
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TowardTarget())
    assert not torch.equal(sample(pipe, reward_scale=100), sample(wan))


class Bare(torch.nn.Module):
    """A module that is a reward and knows nothing of diffusers: no `device`, no `dtype`, perhaps no weights."""

    axes = ("mean",)

    def __init__(self, *weights: torch.nn.Module) -> None:
        super().__init__()
        self.weights = torch.nn.ModuleList(weights)

    def forward(self, latents, sigma, conditioning):
        return (1 - sigma)[:, None] * latents.mean(dim=(1, 2, 3, 4))[:, None]


class HalfKnown(Bare):
    device = torch.device("cpu")


@pytest.mark.parametrize(
    "reward",
    [
        EnsembleReward([TinyReward(), TinyReward()]),
        EnsembleReward([TowardTarget(), TowardTarget()]),
        Bare(),
        Bare(torch.nn.Linear(2, 2)),
        Bare(torch.nn.BatchNorm1d(2, affine=False)),
        HalfKnown(torch.nn.Linear(2, 2)),
    ],
    ids=["ensemble", "ensemble of plain rewards", "no weights", "weights", "buffers", "a device and no dtype"],
)
def test_a_module_needs_no_device_nor_dtype_to_be_a_reward(wan, reward):
    pipe = NRGFlowPipeline.from_pipe(copy.deepcopy(wan), reward_model=reward)  # it is cast below
    assert not torch.equal(sample(pipe, reward_scale=100), sample(wan))
    assert pipe._execution_device == pipe.device == torch.device("cpu")
    assert pipe.to(torch.float64) is pipe
    assert pipe.reward_model is reward
    assert pipe.dtype == torch.float64
    floating = [tensor for tensor in reward.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} <= {torch.float64}
    assert pipe.to("cpu", torch.float32, silence_dtype_warnings=True).dtype == torch.float32
    assert sample(pipe, reward_scale=100).isfinite().all()
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert sample(pipe, reward_scale=100).isfinite().all()


def test_device_and_dtype_of_a_pipeline_are_not_those_of_its_reward(wan):
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TinyReward().to("meta", torch.float16))
    assert pipe.dtype == torch.float32
    assert pipe.device == torch.device("cpu")
