"""What a plan says of cost and memory, and that it warns before a step is tried that does not fit."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from tiny import TowardTarget

from nrg_sampler import LatentReward, NRGFlowPipeline, RewardGuidance, cli
from nrg_sampler.cost import step as cost
from nrg_sampler.runs import plan
from nrg_sampler.runs.recipe import Recipe

RECIPE = Recipe(
    prompt="a red circle",
    guidance=RewardGuidance.preset("best"),
    sampling={"num_inference_steps": 9, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 8},
    model="tiny",
    reward=None,
    device="cpu",
    dtype="float32",
    fps=None,
)


@pytest.fixture
def pipe(wan: Any) -> Any:
    torch.manual_seed(0)
    return NRGFlowPipeline.from_pipe(wan, reward_model=LatentReward.from_transformer(wan.transformer, 1))


def test_the_ratio_is_the_one_that_is_counted(pipe: Any) -> None:
    workload = plan._workload(pipe, {**plan.WAN_DEFAULTS, **RECIPE.sampling})
    assert workload is not None
    assert workload.latents == (1, 16, 5, 16, 16)
    _, _, predicted = cost.count_step(workload, 1, False, torch.float32)
    found = plan.plan(pipe, RECIPE)
    assert (found.evaluations, found.guided_steps) == (18, 9)
    assert found.ratio == pytest.approx(predicted, abs=0.01)


def test_sharing_is_cheaper_and_checkpointing_dearer(pipe: Any) -> None:
    separate = plan.plan(pipe, RECIPE).ratio
    shared = plan.plan(pipe, replace(RECIPE, guidance=RewardGuidance.preset("best", forward="shared"))).ratio
    strided = plan.plan(pipe, replace(RECIPE, guidance=RewardGuidance.preset("best", frames="every:2"))).ratio
    assert 1 < strided < separate
    pipe.reward_model.enable_gradient_checkpointing()
    assert shared < separate < plan.plan(pipe, RECIPE).ratio


def test_memory_is_left_open_where_weights_come_and_go(pipe: Any) -> None:
    pipe.transformer = copy.deepcopy(pipe.transformer)
    register = HookRegistry.check_if_exists_or_initialize(pipe.transformer.blocks[0])
    assert plan.count_memory(pipe, RECIPE) is not None  # an empty registry moves nothing
    register.register_hook(ModelHook(), "group_offloading")
    assert plan.count_memory(pipe, RECIPE) is None


def test_memory_grows_with_the_picture(pipe: Any) -> None:
    small = plan.count_memory(pipe, RECIPE)
    large = plan.count_memory(pipe, replace(RECIPE, sampling={**RECIPE.sampling, "height": 128, "width": 128}))
    assert small is not None
    assert large is not None
    assert plan.plan(pipe, RECIPE).weights_mb < small.needed < large.needed < large.available
    unguided = plan.count_memory(pipe, replace(RECIPE, guidance=RewardGuidance(scale=0.0)))
    assert unguided is not None
    assert unguided.needed < small.needed
    cropped = plan.count_memory(pipe, replace(RECIPE, guidance=RewardGuidance(frames="every:3", crop=0.5)))
    assert cropped is not None
    assert cropped.needed < small.needed


def test_what_cannot_be_counted_is_left_open(pipe: Any) -> None:
    pipe.reward_model = TowardTarget()
    assert plan.count_memory(pipe, RECIPE) is None
    found = plan.plan(pipe, RECIPE)
    assert found.fits
    assert found.needed_mb is None
    assert "needs about" not in str(found)


def test_a_plan_says_before_it_tries_that_it_will_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "available_mb", lambda device: -1000.0)
    monkeypatch.setattr(plan, "measure", lambda sampler: pytest.fail("it tried"))
    assert cli.main(["generate", "a red circle moving right", "--plan", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    assert found["needed_mb"] > 0
    assert found["seconds"] is None


def test_a_plan_says_what_is_free(pipe: Any) -> None:
    fits, tight = (str(plan.plan(pipe, RECIPE, memory=plan.Memory(20.0, free))) for free in (30.0, 10.0))
    assert "A guided step needs about 20 MB; 30 MB are free." in fits
    assert "will not fit" not in fits
    assert "That will not fit: let the reward save memory" in tight
    assert "--checkpointing" in tight
