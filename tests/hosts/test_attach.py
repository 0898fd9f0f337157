"""Guiding stock pipelines, and leaving them as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import PromptMatch, TowardTarget, sample, schedulers

from nrg_sampler import RewardGuidance, attach
from nrg_sampler.hosts.families import require_flow

# numpy 2 about the conversion of a tensor in DPMSolverMultistepScheduler.set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SOLVERS = ("euler", "unipc", "dpm++", "heun")
STRONG = RewardGuidance.preset("best", max_coefficient=20.0, scale=200.0, max_push=None, damping=0.0)


def is_untouched(pipe: Any) -> bool:
    modules = (pipe.transformer, pipe.transformer_2)
    hooks = [hook for module in modules if module is not None for hook in module._forward_pre_hooks]
    return "step" not in vars(pipe.scheduler) and not hooks


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_quadratic_reward_rises_with_the_scale(wan, reward, solver):
    wan.scheduler = schedulers()[solver]
    distances = []
    for scale in (0.0, 50.0, 100.0, 200.0):
        with attach(wan, reward, STRONG, scale=scale):
            distances.append(float((sample(wan, num_inference_steps=6) - reward.target).square().mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.9 * distances[0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_flipped_sign_lowers_the_reward(wan, reward, solver):
    wan.scheduler = schedulers()[solver]
    unguided = sample(wan)
    with attach(wan, reward, scale=-200.0, max_push=None, damping=0.0):
        guided = sample(wan)
    assert (guided - reward.target).square().mean() > 1.05 * (unguided - reward.target).square().mean()


@pytest.mark.parametrize("solver", SOLVERS)
def test_scale_zero_is_bit_identical_to_the_stock_pipeline(wan, reward, solver):
    wan.scheduler = schedulers()[solver]
    unguided = sample(wan)
    with attach(wan, reward, scale=0) as trace:
        assert is_untouched(wan)
        assert torch.equal(sample(wan), unguided)
    assert trace.rows() == []


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_pipeline_is_as_it_was_after_leaving(wan, reward, solver):
    wan.scheduler = schedulers()[solver]
    unguided = sample(wan)
    with attach(wan, reward, STRONG):
        assert not is_untouched(wan)
        assert not torch.equal(sample(wan), unguided)
    assert is_untouched(wan)
    assert torch.equal(sample(wan), unguided)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_the_pipeline_is_as_it_was_after_an_exception(wan, reward, solver):
    wan.scheduler = schedulers()[solver]
    unguided = sample(wan)

    def stop(pipe, index, timestep, tensors):
        if index == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt), attach(wan, reward, STRONG):
        sample(wan, callback_on_step_end=stop)
    assert is_untouched(wan)
    assert torch.equal(sample(wan), unguided)


def test_a_reward_that_raises_leaves_the_pipeline_as_it_was(wan):
    class Fails(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attach(wan, Fails()):
        sample(wan)
    assert is_untouched(wan)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_inside_no_grad_and_inference_mode(wan, mode):
    reward = PromptMatch()
    with attach(wan, reward, STRONG):
        expected = sample(wan)
    with mode(), attach(wan, reward, STRONG):
        guided = sample(wan)
    torch.testing.assert_close(guided, expected)


def test_both_transformers_of_wan22_are_watched(wan22):
    reward = PromptMatch()
    unguided = sample(wan22, num_inference_steps=6)
    used = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: used.append(name))
        for name, module in (("first", wan22.transformer), ("second", wan22.transformer_2))
    ]
    with attach(wan22, reward, STRONG):
        guided = sample(wan22, num_inference_steps=6)
    for hook in hooks:
        hook.remove()
    assert set(used) == {"first", "second"}
    assert len(reward.seen) == 5
    assert all(torch.equal(embeds, reward.seen[0]) for embeds in reward.seen)
    assert not torch.equal(guided, unguided)
    assert is_untouched(wan22)
    assert torch.equal(sample(wan22, num_inference_steps=6), unguided)


def test_nested_and_repeated_attachment_is_refused(wan, reward):
    from diffusers import WanPipeline

    message = "Expected a pipeline without guidance, but guidance is attached to it or to its scheduler already"
    sharing = WanPipeline(**wan.components)
    with attach(wan, reward):
        for pipe in (wan, sharing):
            with pytest.raises(ValueError, match=message), attach(pipe, reward):
                pass
        original, wan.scheduler = wan.scheduler, schedulers()["unipc"]
        with pytest.raises(ValueError, match=message), attach(wan, reward):
            pass
        wan.scheduler = original
        sample(wan)
    assert is_untouched(wan)
    with attach(wan, reward):
        sample(wan)


def test_a_scheduler_that_is_not_rectified_flow_is_refused(wan, reward):
    from diffusers import DDIMScheduler, UniPCMultistepScheduler

    wan.scheduler = DDIMScheduler()
    message = (
        "Expected a rectified-flow scheduler, but got DDIMScheduler with prediction_type='epsilon'; use a FlowMatch"
    )
    with pytest.raises(ValueError, match=message), attach(wan, reward):
        pass
    for scheduler in (
        UniPCMultistepScheduler(prediction_type="flow_prediction"),
        UniPCMultistepScheduler(use_flow_sigmas=True),
    ):
        with pytest.raises(ValueError, match="Expected a rectified-flow scheduler, but got"):
            require_flow(scheduler)


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        (None, {}, "Expected a reward, a callable with named `axes`, but got None"),
        (TowardTarget(), {"weights": "1:1"}, r"Expected 1 reward weights \(closeness\), but got 2"),
        (TowardTarget(), {"weights": "VQ=1"}, "Expected weights for the axes closeness, but got VQ"),
        (TowardTarget(), {"start": 2}, "Expected `start` to be between 0 and 1, but got 2."),
    ],
)
def test_bad_input_is_refused_before_anything_is_touched(wan, reward, settings, message):
    with pytest.raises(ValueError, match=message), attach(wan, reward, **settings):
        pytest.fail("attached")
    assert is_untouched(wan)


def test_a_scheduler_exchanged_inside_the_block_is_said_to_be_unguided(wan, reward):
    attached = attach(wan, reward, STRONG)
    trace = attached.__enter__()
    wan.scheduler = schedulers()["unipc"]
    sample(wan)
    with pytest.warns(UserWarning, match="another scheduler inside the `attach` block, and nothing was guided since"):
        attached.__exit__(None, None, None)
    assert trace.rows() == []
    assert is_untouched(wan)
