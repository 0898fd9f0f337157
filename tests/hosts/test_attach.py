"""Guiding stock pipelines, and leaving them as they were."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import PromptMatch, TowardTarget, sample, schedulers

from nrg_sampler import GuidanceWarning, RewardGuidance, attach
from nrg_sampler.guidance.push import guide
from nrg_sampler.hosts.families import require_flow
from nrg_sampler.rewards.gradient import reward_gradient

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


def test_an_euler_step_is_equation_eleven_written_out(wan, reward):
    """The second step (the first is pure noise) against the same step made by hand from a recorded velocity."""
    seen = []

    def record(pipe, index, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    sample(wan, callback_on_step_end=record)
    plain = list(seen)
    seen.clear()
    with attach(wan, reward, STRONG):
        sample(wan, callback_on_step_end=record)
    assert torch.equal(seen[0], plain[0])
    before, after = wan.scheduler.sigmas[1:3]
    velocity = (plain[1] - plain[0]) / (after - before)
    grad, _ = reward_gradient(plain[0], before, reward)
    expected = plain[0] + (after - before) * guide(velocity, grad, before, STRONG.scale, max_coefficient=20.0)
    torch.testing.assert_close(seen[1], expected)


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


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_reward_sees_the_positive_prompt(wan, guidance_scale):
    reward = PromptMatch()
    with attach(wan, reward, RewardGuidance.preset("best")):
        sample(wan, "a red circle", negative_prompt="blue square", guidance_scale=guidance_scale)
    with torch.no_grad():
        expected, _ = wan.encode_prompt("a red circle", max_sequence_length=8)
    assert len(reward.seen) == 3
    for embeds in reward.seen:
        torch.testing.assert_close(embeds, expected)


def test_prompt_embeds_work_in_place_of_a_prompt(wan):
    with torch.no_grad():
        embeds, negative = wan.encode_prompt("a red circle", max_sequence_length=8)
    with attach(wan, PromptMatch(), STRONG):
        by_prompt = sample(wan)
        by_embeds = sample(wan, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    torch.testing.assert_close(by_embeds, by_prompt)


def test_a_batch_of_two_prompts_equals_two_single_runs(wan):
    prompts = ["a red circle", "blue square moving left"]
    with attach(wan, PromptMatch(), STRONG):
        together = sample(wan, prompts)
        singles = [sample(wan, prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    torch.testing.assert_close(together, torch.cat(singles), atol=1e-5, rtol=1e-4)


def test_several_videos_per_prompt_are_guided(wan):
    reward = PromptMatch()
    with attach(wan, reward, STRONG) as trace:
        videos = sample(wan, num_videos_per_prompt=2)
    assert videos.shape[0] == reward.seen[0].shape[0] == 2
    assert {row["sample"] for row in trace.rows(per_sample=True) if not row["skipped"]} == {0, 1}


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
    assert len(reward.seen) == 5 and all(torch.equal(embeds, reward.seen[0]) for embeds in reward.seen)
    assert not torch.equal(guided, unguided)
    assert is_untouched(wan22) and torch.equal(sample(wan22, num_inference_steps=6), unguided)


def call_denoiser(pipe, latents):
    """Evaluate the denoiser as a loop does before it steps; what comes out does not matter."""
    with torch.no_grad():
        prompt = torch.zeros(1, 4, 16)
        pipe.transformer(hidden_states=latents.float(), timestep=torch.tensor([500.0]), encoder_hidden_states=prompt)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_bfloat16_velocities_step_in_float32_and_latents_keep_their_dtype(wan, reward, solver):
    scheduler = wan.scheduler = schedulers()[solver]
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    latents, velocity = torch.randn(2, 1, 16, 2, 4, 4, generator=generator).bfloat16()
    given = []
    original = type(scheduler).step

    with attach(wan, reward, STRONG):
        for timestep in scheduler.timesteps:
            call_denoiser(wan, latents)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            given.append(latents.dtype)
    assert given == [torch.bfloat16] * 4
    assert type(scheduler).step is original


def test_a_small_push_survives_half_precision(wan, reward):
    """Rounded to bfloat16 with the velocity, a push of 1e-4 of its size would be lost."""
    scheduler = wan.scheduler
    scheduler.set_timesteps(4)
    latents = torch.zeros(1, 16, 2, 4, 4)
    velocity = torch.ones(1, 16, 2, 4, 4, dtype=torch.bfloat16)
    with attach(wan, reward, scale=0.5):
        call_denoiser(wan, latents)
        first = scheduler.step(velocity, scheduler.timesteps[0], latents, return_dict=False)[0].float()
        call_denoiser(wan, first)
        second = scheduler.step(velocity, scheduler.timesteps[1], first, return_dict=False)[0]
    change = second - first - (scheduler.sigmas[2] - scheduler.sigmas[1])
    assert second.dtype == torch.float32
    assert (change > 0).all() and change.max() < 1e-3


def test_return_dict_keeps_working(wan, reward):
    scheduler = wan.scheduler
    scheduler.set_timesteps(4)
    latents = torch.zeros(1, 16, 2, 4, 4)
    with attach(wan, reward):
        for timestep in scheduler.timesteps:
            call_denoiser(wan, latents)
            latents = scheduler.step(
                model_output=torch.ones_like(latents), timestep=timestep, sample=latents
            ).prev_sample
    assert latents.shape == (1, 16, 2, 4, 4)


def test_the_signature_of_step_stays_visible(wan, reward):
    with pytest.warns(GuidanceWarning), attach(wan, reward):
        assert inspect.signature(wan.scheduler.step) == inspect.signature(
            type(wan.scheduler).step.__get__(wan.scheduler)
        )


def test_a_deep_copy_of_the_scheduler_steps_by_itself_unguided(wan, reward):
    latents, velocity = torch.zeros(1, 16, 2, 4, 4), torch.ones(1, 16, 2, 4, 4)
    wan.scheduler.set_timesteps(4)
    expected = copy.deepcopy(wan.scheduler)
    with pytest.warns(GuidanceWarning), attach(wan, reward, STRONG):
        copied = copy.deepcopy(wan.scheduler)
        for timestep in wan.scheduler.timesteps[:2]:
            stepped = copied.step(velocity, timestep, latents).prev_sample
            assert torch.equal(stepped, expected.step(velocity, timestep, latents).prev_sample)
        assert copied.step_index == 2 and wan.scheduler.step_index is None


def test_the_trace_tells_every_step(wan, reward):
    guidance = RewardGuidance(scale=1e4, start=0.25, every=2, reuse=False, max_push=0.3)
    with attach(wan, reward, guidance) as trace:
        sample(wan, num_inference_steps=8)
        sample(wan, num_inference_steps=2)
    rows = trace.rows()
    assert [row["skipped"] for row in rows[:8]] == ["window", "window", None, "every", None, "every", None, "every"]
    assert [row["run"] for row in rows] == [0] * 8 + [1] * 2
    assert [row["sigma"] for row in rows[8:]] == pytest.approx(wan.scheduler.sigmas[:2].tolist())
    assert rows[2]["reward"]["closeness"] < 0 and rows[2]["capped"] and rows[2]["push_ratio"] == pytest.approx(0.3)
    assert json.loads(trace.to_json())["summary"]["guided"] == trace.summary()["guided"] == 3
    assert len(str(trace).splitlines()) == 11


def test_the_window_counts_denoising_steps_not_calls(wan, reward):
    """Heun calls the scheduler twice per denoising step."""
    wan.scheduler = schedulers()["heun"]
    with attach(wan, reward, start=0.5) as trace:
        sample(wan, num_inference_steps=4)
    skipped = [(step.step_index, step.skipped) for step in trace.steps]
    assert skipped == [(0, "window"), (0, "window"), (1, "window"), (1, "window"), (2, None), (2, None), (3, None)]


def test_a_gradient_that_is_not_finite_leaves_its_steps_unguided(wan):
    class Broken(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning) * torch.nan

    unguided = sample(wan)
    with (
        pytest.warns(GuidanceWarning, match="not finite in 3 of 3 guided steps") as caught,
        attach(wan, Broken()) as trace,
    ):
        guided = sample(wan)
    assert len(caught) == 1
    assert torch.equal(guided, unguided)
    assert trace.summary()["not_finite"] == 3


def test_guidance_without_effect_says_so(wan):
    class Constant(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            return 0 * latents.sum(dim=(1, 2, 3, 4))[:, None]

    with (
        pytest.warns(GuidanceWarning, match="no effect: the gradient was zero in every step"),
        attach(wan, Constant()),
    ):
        sample(wan)
    with pytest.warns(GuidanceWarning, match="no effect: no denoising step was within its window"):
        with attach(wan, TowardTarget(), start=0.4, stop=0.4):
            sample(wan)
    with (
        pytest.warns(GuidanceWarning, match="no effect: no denoising step passed through"),
        attach(wan, TowardTarget()),
    ):
        pass


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


def test_latents_of_another_layout_are_refused(wan, reward):
    wan.scheduler.set_timesteps(4)
    packed = torch.zeros(1, 8, 16)
    with pytest.raises(
        ValueError, match=r"Expected latents of shape \(B, C, T, H, W\) at the scheduler, but got \(1, 8"
    ):
        with attach(wan, reward):
            wan.scheduler.step(packed, wan.scheduler.timesteps[0], packed)


def test_sigmas_above_one_are_refused(wan, reward):
    wan.scheduler.set_timesteps(4)
    wan.scheduler.sigmas = wan.scheduler.sigmas * 80
    latents = torch.zeros(1, 16, 2, 4, 4)
    with pytest.raises(ValueError, match="Expected sigmas between 0 and 1, but the scheduler starts at 80"):
        with attach(wan, reward):
            wan.scheduler.step(latents, wan.scheduler.timesteps[0], latents)


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


def test_reused_directions_ask_the_reward_less_often_and_start_anew_in_every_run(wan):
    class Counting(TowardTarget):
        calls = 0

        def __call__(self, *inputs):
            self.calls += 1
            return super().__call__(*inputs)

    reward, guidance = Counting(), RewardGuidance(every=3, reuse=True, start=0.2)
    with attach(wan, reward, guidance) as trace:
        first, second = sample(wan, num_inference_steps=10), sample(wan, num_inference_steps=10)
    assert torch.equal(first, second)
    assert reward.calls == 2 * guidance.gradients(10) == 8
    assert sum(row.get("reused", False) for row in trace.rows()) == 8


class PreparesItsPrompt(PromptMatch):
    """Counts how often it was asked to read the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared = 0

    def prepare(self, conditioning):
        self.prepared += 1
        return replace(conditioning, prepared=conditioning.prompt_embeds.clone())

    def __call__(self, latents, sigma, conditioning):
        assert torch.equal(conditioning.prepared, conditioning.prompt_embeds)
        return super().__call__(latents, sigma, conditioning)


def test_the_prompt_is_prepared_once_a_run(wan):
    reward = PreparesItsPrompt()
    with attach(wan, reward, scale=5.0):
        first = sample(wan)
        assert reward.prepared == 1 and len(reward.seen) > 1
        sample(wan, "a blue square")
        assert reward.prepared == 2
    with attach(wan, PromptMatch(), scale=5.0):
        assert torch.equal(sample(wan), first)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_prompt_that_changes_on_the_way_is_prepared_again(wan, in_place):
    def change(pipe, index, timestep, tensors):
        embeds = tensors["prompt_embeds"]
        return {"prompt_embeds": embeds.mul_(2) if in_place else embeds * 2}

    reward = PreparesItsPrompt()
    with attach(wan, reward, scale=5.0):
        sample(wan, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert reward.prepared == 4


def test_a_prompt_is_prepared_under_inference_mode(wan):
    reward = PreparesItsPrompt()
    with torch.inference_mode(), attach(wan, reward, scale=5.0):
        sample(wan)
    assert reward.prepared == 4  # nobody counts there what is changed in place
