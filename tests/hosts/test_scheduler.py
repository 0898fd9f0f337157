"""A scheduler that guides by itself: the same result as attach, and whatever else a scheduler has to be."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tiny import PromptMatch, TowardTarget, sample, schedulers

from nrg_sampler import RewardGuidance, RewardGuidedScheduler, attach

# numpy 2 about the conversion of a tensor in DPMSolverMultistepScheduler.set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STRONG = RewardGuidance(max_coefficient=20.0, scale=200.0, max_push=None, damping=0.0)


def embeds(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipe.encode_prompt("a red circle", max_sequence_length=8)[0]


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++", "heun"])
def test_it_samples_what_the_attached_pipeline_samples(wan: Any, solver: str) -> None:
    plain = wan.scheduler = schedulers()[solver]
    unguided = sample(wan)
    with attach(wan, PromptMatch(), STRONG) as trace:
        attached = sample(wan)
    wan.scheduler = RewardGuidedScheduler(plain, PromptMatch(), STRONG, prompt_embeds=embeds(wan))
    assert torch.equal(sample(wan), attached)
    assert wan.scheduler.trace.rows()[-1]["push_ratio"] == pytest.approx(trace.rows()[-1]["push_ratio"])
    wan.scheduler = plain
    assert torch.equal(sample(wan), unguided)


def test_it_is_a_scheduler_of_the_class_it_was_made_from() -> None:
    plain = schedulers()["unipc"]
    guided = RewardGuidedScheduler(plain, TowardTarget())
    assert isinstance(guided, type(plain))
    assert isinstance(guided, RewardGuidedScheduler)
    assert type(plain) is not type(guided)
    assert "trace" not in vars(plain)
    assert guided.config == plain.config


def test_scale_zero_is_bit_identical(wan: Any) -> None:
    unguided = sample(wan)
    wan.scheduler = RewardGuidedScheduler(wan.scheduler, TowardTarget(), RewardGuidance(scale=0))
    assert torch.equal(sample(wan), unguided)


def test_a_hand_written_loop_is_guided() -> None:
    results = []
    for scheduler in (schedulers()["euler"], RewardGuidedScheduler(schedulers()["euler"], TowardTarget(), STRONG)):
        scheduler.set_timesteps(4)
        latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))  # pictures
        for timestep in scheduler.timesteps:
            latents = scheduler.step(torch.zeros_like(latents), timestep, latents).prev_sample
        results.append((latents - 1).square().mean())
    assert results[1] < 0.9 * results[0]


def test_it_is_saved_as_the_plain_scheduler_and_loaded_with_or_without_a_reward(wan: Any, tmp_path: Any) -> None:
    from diffusers import DiffusionPipeline, UniPCMultistepScheduler

    plain = schedulers()["unipc"]
    wan.scheduler = RewardGuidedScheduler(plain, TowardTarget(), STRONG)
    wan.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded.scheduler) is UniPCMultistepScheduler
    assert loaded.scheduler.config.flow_shift == 3.0
    folder = tmp_path / "scheduler"
    assert type(RewardGuidedScheduler.from_pretrained(folder)) is UniPCMultistepScheduler
    guided = RewardGuidedScheduler.from_pretrained(tmp_path, subfolder="scheduler", reward=TowardTarget())
    assert isinstance(guided, RewardGuidedScheduler)
    assert guided.config.flow_shift == 3.0


def test_from_config_takes_another_setting_and_a_reward() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    guided = RewardGuidedScheduler(schedulers()["unipc"], TowardTarget(), STRONG)
    other = type(guided).from_config(guided.config, flow_shift=7.0)
    assert type(other) is UniPCMultistepScheduler
    assert other.config.flow_shift == 7.0
    again = type(guided).from_config(other.config, TowardTarget(), STRONG)
    assert isinstance(again, RewardGuidedScheduler)
    assert again.config.flow_shift == 7.0
    assert type(FlowMatchEulerDiscreteScheduler.from_config(guided.config)) is FlowMatchEulerDiscreteScheduler


def test_copies_are_plain() -> None:
    plain = schedulers()["euler"]
    guided = RewardGuidedScheduler(plain, TowardTarget())
    for copied in (copy.copy(guided), copy.deepcopy(guided), pickle.loads(pickle.dumps(guided))):
        assert type(copied) is type(plain)
        assert set(vars(copied)) == set(vars(plain))
    assert isinstance(guided, RewardGuidedScheduler)
    assert guided.trace.steps == []


def test_bad_input_is_refused_when_it_is_made() -> None:
    from diffusers import DDIMScheduler

    euler = schedulers()["euler"]
    with pytest.raises(ValueError, match="Expected a rectified-flow scheduler, but got DDIMScheduler"):
        RewardGuidedScheduler(DDIMScheduler(), TowardTarget())
    with pytest.raises(ValueError, match="Expected a reward, a callable with named `axes`, but got None"):
        RewardGuidedScheduler(euler, None)
    with pytest.raises(ValueError, match="Expected 1 reward weights"):
        RewardGuidedScheduler(euler, TowardTarget(), RewardGuidance(weights="1:1"))
    with pytest.raises(
        ValueError, match="Expected a scheduler without guidance, but this one is guided already; pass"
    ):
        RewardGuidedScheduler(RewardGuidedScheduler(euler, TowardTarget()), TowardTarget())


def test_packed_latents_are_refused() -> None:
    scheduler = RewardGuidedScheduler(schedulers()["euler"], TowardTarget())
    scheduler.set_timesteps(4)
    packed = torch.zeros(1, 8, 16)
    with pytest.raises(
        ValueError, match=r"Expected latents of shape \(B, C, T, H, W\) at the scheduler, but got \(1, 8"
    ):
        scheduler.step(packed, scheduler.timesteps[0], packed)


def test_attaching_to_a_guided_scheduler_is_refused(wan: Any) -> None:
    wan.scheduler = RewardGuidedScheduler(wan.scheduler, TowardTarget())
    message = "Expected a pipeline without guidance, but guidance is attached"
    with pytest.raises(ValueError, match=message), attach(wan, TowardTarget()):
        pass
