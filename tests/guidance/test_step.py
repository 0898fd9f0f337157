"""The call for sampling loops of one's own: one guided step, its precision, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny import TowardTarget
from tiny_step import SHAPE, Bumpy, Opposed, batch

from nrg_sampler import DirectionMemory, GuidanceTrace, GuidanceWarning, RewardGuidance, guided_velocity
from nrg_sampler.guidance.directions import renoised
from nrg_sampler.rewards.gradient import reward_gradient


def test_a_gradient_that_is_not_finite_is_warned_about():
    class Broken(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning) * latents.new_tensor([[torch.nan], [1.0]])

    velocity = batch()
    with pytest.warns(
        GuidanceWarning, match="gradient was not finite in 1 of 1 guided steps; those were left unguided"
    ):
        guided = guided_velocity(batch(1), velocity, 0.5, Broken())
    assert torch.equal(guided[0], velocity[0])
    assert not torch.equal(guided[1], velocity[1])
    assert guided.isfinite().all()


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_gradient_matches_finite_differences(calibrated):
    latents, sigma = batch(3, torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)
    grad, _ = reward_gradient(latents, sigma, Bumpy(), weights="1:0.5", calibrated=calibrated)
    scale = (2.0, 0.25) if calibrated else (1.0, 0.5)  # weight / std

    def score(x):
        return (Bumpy()(x, sigma, None) @ torch.tensor(scale, dtype=torch.float64)).sum()

    for index in [(0, 0, 0, 0, 0), (1, 2, 1, 3, 3), (0, 1, 1, 2, 1)]:
        nudge = torch.zeros_like(latents)
        nudge[index] = 1e-6
        slope = (score(latents + nudge) - score(latents - nudge)) / 2e-6
        torch.testing.assert_close(grad[index], slope, rtol=1e-6, atol=1e-8)


def test_float64_stays_float64():
    latents, velocity = batch(1, torch.float64), batch(0, torch.float64)
    guidance = RewardGuidance.paper(scale=2.0, weights="1:1")
    grad, _ = reward_gradient(latents, 0.5, Bumpy(), weights="1:1", calibrated=False)
    torch.testing.assert_close(
        guided_velocity(latents, velocity, 0.5, Bumpy(), guidance=guidance),
        velocity - 2 * grad,
        rtol=1e-14,
        atol=1e-14,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_its_dtype_and_is_computed_in_float32(dtype):
    seen = []

    class Watching(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            seen.append((latents.dtype, sigma.dtype))
            return super().__call__(latents, sigma, conditioning)

    latents, velocity = batch(1, dtype), batch(0, dtype)
    guided = guided_velocity(latents, velocity, 0.5, Watching(), guidance=RewardGuidance(scale=100))
    assert seen == [(torch.float32, torch.float32)]
    assert guided.dtype == dtype
    exact = guided_velocity(latents.float(), velocity.float(), 0.5, Watching(), guidance=RewardGuidance(scale=100))
    assert torch.equal(guided, exact.to(dtype))
    assert guided_velocity(latents, velocity, 0.5, Watching(), dtype=torch.float32).dtype == torch.float32


def test_a_batch_of_two_equals_two_single_runs():
    latents, velocity, sigma = batch(1), batch(0), torch.tensor([0.4, 0.97])
    guidance = RewardGuidance(weights="1:1", scale=0.05, damping=0.5)
    together = guided_velocity(latents, velocity, sigma, Bumpy(), guidance=guidance)
    singles = [
        guided_velocity(latents[i : i + 1], velocity[i : i + 1], sigma[i], Bumpy(), guidance=guidance) for i in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat(singles))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_inside_no_grad_and_inference_mode(mode):
    expected = guided_velocity(batch(1), batch(0), torch.tensor([0.4, 0.6]), TowardTarget())
    with mode():
        guided = guided_velocity(batch(1), batch(0), torch.tensor([0.4, 0.6]), TowardTarget())
    assert torch.equal(guided, expected)
    assert not torch.equal(guided, batch(0))


def test_no_gradient_is_left_behind():
    class Trainable(torch.nn.Linear):
        axes = ("x",)

        def forward(self, latents, sigma, conditioning):
            return super().forward(latents.flatten(1))

    reward, latents = Trainable(96, 1), batch(1).requires_grad_()
    guided = guided_velocity(latents, batch(0), 0.5, reward)
    assert latents.grad is None
    assert all(parameter.grad is None for parameter in reward.parameters())
    assert not guided.requires_grad


def test_calibrated_strength_counts_in_the_recommended_scale():
    raw = guided_velocity(
        batch(1), batch(0), 0.5, Bumpy(), guidance=RewardGuidance.paper(scale=6.0, weights=(2.0, 0.5))
    )
    calibrated = RewardGuidance(scale=2.0, weights="1:1", max_coefficient=None, max_push=None, damping=0.0)
    torch.testing.assert_close(guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=calibrated), raw)


def test_a_skipped_step_returns_the_velocity_itself():
    velocity, trace = batch(), GuidanceTrace(("closeness",))
    guidance = RewardGuidance(start=0.5)
    inputs = (batch(1), velocity, 0.5, TowardTarget())
    assert guided_velocity(*inputs, guidance=guidance, step_index=4, num_inference_steps=10, trace=trace) is velocity
    guided = guided_velocity(*inputs, guidance=guidance, step_index=5, num_inference_steps=10, trace=trace)
    assert not torch.equal(guided, velocity)
    assert [step.skipped for step in trace.steps] == ["window", None]


@pytest.mark.parametrize("settings", [{"start": 0.1}, {"stop": 0.9}, {"every": 2, "reuse": False}])
def test_a_window_without_a_step_index_is_refused(settings):
    with pytest.raises(ValueError, match="Expected `step_index` and `num_inference_steps` for guidance with start="):
        guided_velocity(batch(1), batch(), 0.5, TowardTarget(), guidance=RewardGuidance(**settings))


def test_a_timestep_instead_of_sigma_is_refused():
    with pytest.raises(
        ValueError, match="Expected `sigma` between 0 and 1, but got 981; a timestep is 1000 times sigma"
    ):
        guided_velocity(batch(1), batch(), 981.0, TowardTarget())


def test_latents_and_velocity_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="Expected `latents` and `velocity` of one shape"):
        guided_velocity(batch(1)[:1], batch(), 0.5, TowardTarget())


def test_no_step_waits_for_the_device():
    """On the meta device there are no numbers, so that any look at one raises."""
    trace = GuidanceTrace(Bumpy.axes)
    latents, velocity = batch(1).to("meta"), batch().to("meta")
    guided = guided_velocity(latents, velocity, 0.5, Bumpy(), guidance=RewardGuidance(damping=1.0), trace=trace)
    assert guided.device.type == "meta"
    assert guided.shape == SHAPE
    with pytest.raises((NotImplementedError, RuntimeError)):
        trace.warn()


def test_nothing_is_warned_about_when_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_velocity(batch(1), batch(), 0.5, TowardTarget())


def test_the_part_along_the_clean_latents_can_be_left_out():
    guidance = RewardGuidance(scale=0.01, weights="1:1", parallel=0.0, max_push=None)
    push = batch(0) - guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=guidance)
    clean = batch(1) - 0.5 * batch(0)
    cosine = torch.nn.functional.cosine_similarity(push.flatten(1), clean.flatten(1))
    assert cosine.abs().max() < 1e-3


@pytest.mark.parametrize("level", [0.5, 0.4])
def test_smoothing_averages_the_gradient_over_exchanged_noise(level):
    settings = {"lookahead": 1 - level / 0.5, "scale": 0.1, "max_push": None, "damping": 0.0}
    guidance = RewardGuidance(weights="1:1", smoothing=0.5, smoothing_samples=3, **settings)
    guided = guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=guidance, step_index=4, num_inference_steps=9)
    points = renoised(batch(1), batch(0), 0.5, level, 0.5, 3, seed=4)
    grads = [reward_gradient(point, level, Bumpy(), weights="1:1")[0] for point in points]
    torch.testing.assert_close(guided, batch(0) - 0.1 * 3.0 * 0.5 / (1 - level) * sum(grads) / 3)


def test_a_reused_direction_asks_the_reward_every_nth_step_only():
    reward, memory, trace = Opposed(), DirectionMemory(), GuidanceTrace(Opposed.axes)
    guidance = RewardGuidance(weights="1:0", every=3, reuse=True, start=0.2)
    pushes = []
    for step in range(8):
        guided = guided_velocity(
            batch(step), batch(0), 0.5, reward, guidance=guidance, step_index=step, num_inference_steps=8,
            trace=trace, memory=memory,
        )  # fmt: skip
        pushes.append(batch(0) - guided)
    assert reward.calls == 3 == guidance.gradients(8)
    assert [row.get("reused") for row in trace.rows()] == [None, None, False, False, True, True, False, True]
    assert torch.equal(pushes[3], pushes[4])
    assert pushes[0].norm() == 0


def test_reuse_without_a_memory_evaluates_the_reward_in_every_step():
    latents, velocity = batch(1), batch()
    reused, every = (RewardGuidance(weights="1:0", every=gap, reuse=gap > 1) for gap in (3, 1))
    results = [guided_velocity(latents, velocity, 0.5, Opposed(), guidance=guidance) for guidance in (reused, every)]
    assert torch.equal(*results)
    assert not torch.equal(results[0], velocity)
    trace = GuidanceTrace(Opposed.axes)
    for index in range(4):
        guided_velocity(
            latents, velocity, 0.5, Opposed(), guidance=reused, step_index=index, num_inference_steps=4, trace=trace
        )
    assert [(step.skipped, step.reused) for step in trace.steps] == [(None, False)] * 4


@pytest.mark.parametrize("sigma", [0.5, torch.tensor([0.3, 0.8])], ids=str)
@pytest.mark.parametrize("lookahead", [0.2, 1.0])
def test_a_look_ahead_reads_the_latents_that_the_velocity_leads_to(lookahead, sigma):
    """Against finite differences of the reward along the path, whose velocity stays as it is."""
    reward, latents, velocity = Bumpy(), batch(1).double(), batch(0).double()
    levels = torch.as_tensor(sigma).double().expand(2)
    ahead = (1 - lookahead) * levels
    wide = (levels - ahead).reshape(-1, 1, 1, 1, 1)

    def read(at):
        return (reward(at - wide * velocity, ahead, None) / torch.tensor(reward.std)).sum(dim=1)

    slopes = torch.zeros_like(latents)
    step = 1e-6
    for index in range(latents[0].numel()):
        nudge = torch.zeros_like(latents)
        nudge.flatten(1)[:, index] = step
        slopes.flatten(1)[:, index] = (read(latents + nudge) - read(latents - nudge)) / (2 * step)
    # what is left of the coefficient after the default damping, and of a gradient that was read ahead
    factor = (levels * (1 - levels) / (1 - ahead)).reshape(-1, 1, 1, 1, 1)
    guidance = RewardGuidance("1:1", lookahead=lookahead, scale=0.1, max_push=None)
    guided = guided_velocity(latents, velocity, sigma, reward, guidance=guidance)
    torch.testing.assert_close(guided, velocity - 0.1 * 3.0 * factor * slopes, rtol=1e-6, atol=1e-8)
