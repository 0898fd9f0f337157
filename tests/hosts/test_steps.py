"""What the guided scheduler of an attached pipeline does in a step: Eq. 11, precision, the trace, the window."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch
from tiny import TowardTarget, sample, schedulers

from nrg_sampler import GuidanceWarning, RewardGuidance, attach
from nrg_sampler.guidance.push import guide
from nrg_sampler.rewards.gradient import reward_gradient

# numpy 2 about the conversion of a tensor in DPMSolverMultistepScheduler.set_timesteps
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
STRONG = RewardGuidance.preset("best", max_coefficient=20.0, scale=200.0, max_push=None, damping=0.0)


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
    assert (change > 0).all()
    assert change.max() < 1e-3


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
    timesteps = wan.scheduler.timesteps[:2]

    def steps_of_a_copy():
        with attach(wan, reward, STRONG):
            copied = copy.deepcopy(wan.scheduler)
            steps = [copied.step(velocity, timestep, latents).prev_sample for timestep in timesteps]
            return copied.step_index, steps

    with pytest.warns(GuidanceWarning):
        index, steps = steps_of_a_copy()
    for timestep, stepped in zip(timesteps, steps, strict=True):
        assert torch.equal(stepped, expected.step(velocity, timestep, latents).prev_sample)
    assert index == 2
    assert wan.scheduler.step_index is None


def test_the_trace_tells_every_step(wan, reward):
    guidance = RewardGuidance(scale=1e4, start=0.25, every=2, reuse=False, max_push=0.3)
    with attach(wan, reward, guidance) as trace:
        sample(wan, num_inference_steps=8)
        sample(wan, num_inference_steps=2)
    rows = trace.rows()
    assert [row["skipped"] for row in rows[:8]] == ["window", "window", None, "every", None, "every", None, "every"]
    assert [row["run"] for row in rows] == [0] * 8 + [1] * 2
    assert [row["sigma"] for row in rows[8:]] == pytest.approx(wan.scheduler.sigmas[:2].tolist())
    assert rows[2]["reward"]["closeness"] < 0
    assert rows[2]["capped"]
    assert rows[2]["push_ratio"] == pytest.approx(0.3)
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
    with (
        pytest.warns(GuidanceWarning, match="no effect: no denoising step was within its window"),
        attach(wan, TowardTarget(), start=0.4, stop=0.4),
    ):
        sample(wan)
    with (
        pytest.warns(GuidanceWarning, match="no effect: no denoising step passed through"),
        attach(wan, TowardTarget()),
    ):
        pass


def test_latents_of_another_layout_are_refused(wan, reward):
    wan.scheduler.set_timesteps(4)
    packed = torch.zeros(1, 8, 16)
    with (
        pytest.raises(
            ValueError, match=r"Expected latents of shape \(B, C, T, H, W\) at the scheduler, but got \(1, 8"
        ),
        attach(wan, reward),
    ):
        wan.scheduler.step(packed, wan.scheduler.timesteps[0], packed)


def test_sigmas_above_one_are_refused(wan, reward):
    wan.scheduler.set_timesteps(4)
    wan.scheduler.sigmas = wan.scheduler.sigmas * 80
    latents = torch.zeros(1, 16, 2, 4, 4)
    message = "Expected sigmas between 0 and 1, but the scheduler starts at 80"
    with pytest.raises(ValueError, match=message), attach(wan, reward):
        wan.scheduler.step(latents, wan.scheduler.timesteps[0], latents)


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
