"""Settings, the pure function and the call for sampling loops, against Eq. 11 written out by hand."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from tiny import TowardTarget

from nrg_sampler import DirectionMemory, GuidanceTrace, GuidanceWarning, RewardGuidance, guide, guided_velocity
from nrg_sampler.guidance.directions import renoised
from nrg_sampler.guidance.push import measure_push
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient

SHAPE = (2, 3, 2, 4, 4)


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Bumpy:
    """Two axes that mix all latents nonlinearly and depend on sigma."""

    axes = ("a", "b")
    std = (0.5, 2.0)
    recommended_scale = 3.0

    def __call__(self, latents, sigma, conditioning):
        flat = latents.flatten(1)
        return torch.stack([(flat.sin() * flat.roll(1, 1)).sum(1) * (1 - sigma), (flat**3).mean(1) * sigma], dim=1)


def test_the_guided_velocity_is_equation_eleven():
    velocity, grad, sigma = batch(0), batch(1), torch.tensor([0.2, 0.8])
    expected = torch.stack([velocity[0] - 3 * 0.25 * grad[0], velocity[1] - 3 * 4.0 * grad[1]])
    torch.testing.assert_close(guide(velocity, grad, sigma, 3.0), expected)


def test_scale_zero_returns_the_velocity_itself_and_asks_no_reward():
    def refuses(*inputs):
        raise AssertionError("the reward was called")

    velocity = batch()
    assert guide(velocity, batch(1), 0.5, 0.0) is velocity
    assert guided_velocity(batch(2), velocity, 0.5, refuses, guidance=RewardGuidance(scale=0)) is velocity


def test_a_negative_scale_pushes_the_other_way():
    velocity, grad = batch(), batch(1)
    torch.testing.assert_close(guide(velocity, grad, 0.5, -1.0) - velocity, velocity - guide(velocity, grad, 0.5, 1.0))


@pytest.mark.parametrize("sigma", [1.0, 1 - 1e-6, 0.9997, 0.999, 0.0])
def test_pure_noise_and_clean_latents_are_never_guided(sigma):
    velocity = batch()
    assert torch.equal(guide(velocity, batch(1), sigma), velocity)
    assert guided_velocity(batch(2), velocity, sigma, TowardTarget()) is velocity


@pytest.mark.parametrize("sigma", [0.9975, 0.995, 0.001])
def test_every_other_sigma_is_guided(sigma):
    velocity = batch()
    assert not torch.equal(guide(velocity, batch(1), sigma), velocity)


def test_the_clamp_limits_the_coefficient_per_sample():
    push = measure_push(batch(), batch(1), torch.tensor([0.5, 0.99]), max_coefficient=20.0)
    torch.testing.assert_close(push.coefficient, torch.tensor([1.0, 20.0]))
    assert push.clamped.tolist() == [False, True]


def test_the_cap_limits_the_push_relative_to_the_velocity_per_sample():
    velocity, grad = batch(), batch(1)
    grad[1] *= 1e-3
    push = measure_push(velocity, grad, 0.9, max_push=0.3)
    change = velocity - guide(velocity, grad, 0.9, max_push=0.3)
    assert push.capped.tolist() == [True, False]
    torch.testing.assert_close(change[0].norm(), 0.3 * velocity[0].norm())
    torch.testing.assert_close(change[1], 9 * grad[1])
    torch.testing.assert_close(push.push_ratio, change.flatten(1).norm(dim=1) / velocity.flatten(1).norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(change[0].flatten(), grad[0].flatten(), dim=0)
    assert cosine > 0.999999


def test_damping_multiplies_the_push_by_a_power_of_the_signal():
    velocity, grad = batch(), batch(1)
    undamped, damped = velocity - guide(velocity, grad, 0.75), velocity - guide(velocity, grad, 0.75, damping=2)
    torch.testing.assert_close(damped, undamped / 16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_a_gradient_that_is_not_finite_leaves_its_sample_alone(value):
    velocity, grad = batch(), batch(1)
    grad[0, 0, 0, 0, :2] = value
    guided = guide(velocity, grad, 0.5, 10.0)
    assert torch.equal(guided[0], velocity[0])
    torch.testing.assert_close(guided[1], velocity[1] - 10 * grad[1])


def test_a_gradient_that_is_not_finite_is_warned_about():
    class Broken(TowardTarget):
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning) * latents.new_tensor([[torch.nan], [1.0]])

    velocity = batch()
    with pytest.warns(
        GuidanceWarning, match="gradient was not finite in 1 of 1 guided steps; those were left unguided"
    ):
        guided = guided_velocity(batch(1), velocity, 0.5, Broken())
    assert torch.equal(guided[0], velocity[0]) and not torch.equal(guided[1], velocity[1])
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
    assert latents.grad is None and all(parameter.grad is None for parameter in reward.parameters())
    assert not guided.requires_grad


def test_calibrated_strength_counts_in_the_recommended_scale():
    raw = guided_velocity(
        batch(1), batch(0), 0.5, Bumpy(), guidance=RewardGuidance.paper(scale=6.0, weights=(2.0, 0.5))
    )
    calibrated = RewardGuidance(scale=2.0, weights="1:1", max_coefficient=None, max_push=None, damping=0.0)
    torch.testing.assert_close(guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=calibrated), raw)


def test_a_reward_that_recommends_no_damping_is_damped_by_the_signal():
    for sigma in (0.25, 0.5, 0.75):  # so that the factor sigma / (1 - sigma) * (1 - sigma) is sigma
        guided = guided_velocity(
            batch(1), batch(0), sigma, Bumpy(), guidance=RewardGuidance(scale=0.01, max_push=None)
        )
        grad, _ = reward_gradient(batch(1), sigma, Bumpy())
        torch.testing.assert_close(guided, batch(0) - 0.01 * 3.0 * sigma * grad)


class Trusted(Bumpy):
    recommended_scale = (3.0, 12.0)
    recommended_damping = (0.5, 2.0)
    recommended_fading = (4.0, 1.0)


POWERS = {
    "recommended": ({}, ((0.5, 4.0), (2.0, 1.0))),
    "one number": ({"damping": 1.5, "fading": 0}, ((1.5, 0.0), (1.5, 0.0))),
    "text": ({"damping": "1.5", "fading": "a=0,b=1"}, ((1.5, 0.0), (1.5, 1.0))),
    "an axis": ({"damping": {"b": 1.5}}, ((0.0, 4.0), (1.5, 1.0))),
    "a list": ({"damping": [3, 1], "fading": [1, 3]}, ((3.0, 1.0), (1.0, 3.0))),
}


@pytest.mark.parametrize("given, powers", POWERS.values(), ids=POWERS)
@pytest.mark.parametrize("options", [{}, {"conflicts": "project"}, {"floor": "b"}, {"balanced": True}], ids=str)
def test_each_axis_is_trusted_by_its_own_powers(given, powers, options):
    """The push by axes of one strength and trust each is that of weights which change with the noise level."""
    sigma = torch.tensor([0.3, 0.8])
    settings = {"scale": 0.1, "max_push": None, **options}
    found = guided_velocity(
        batch(1), batch(0), sigma, Trusted(), guidance=RewardGuidance("2:0.5", **given, **settings)
    )
    for row, level in enumerate(sigma.tolist()):
        trust = [(1 - level) ** damping * level**fading for damping, fading in powers]
        weights = [2.0 * trust[0], 0.5 * 4 * trust[1]]  # b is recommended four times the strength
        flat = RewardGuidance(weights, damping=0.0, fading=0.0, **settings)
        alone = guided_velocity(batch(1), batch(0), level, Bumpy(), guidance=flat)
        torch.testing.assert_close(found[row], alone[row])


def test_an_axis_without_weight_changes_nothing_about_the_others():
    guidance = RewardGuidance("1:0", scale=0.1)
    alone = guided_velocity(batch(1), batch(0), 0.6, Trusted(), guidance=guidance)
    grad, _ = reward_gradient(batch(1), 0.6, Bumpy(), weights="1:0")
    torch.testing.assert_close(alone, batch(0) - 0.1 * 3 * 1.5 * 0.4**0.5 * 0.6**4 * grad)
    trace = GuidanceTrace(Trusted.axes)
    guided_velocity(batch(1), batch(0), 0.6, Trusted(), guidance=guidance, trace=trace)
    assert trace.rows()[0]["coefficient"] == pytest.approx(1.5 * 0.4**0.5 * 0.6**4)


def test_the_paper_s_settings_ask_for_no_recommendation():
    both = [
        guided_velocity(batch(1), batch(0), 0.6, reward, guidance=RewardGuidance.paper(2.0, "2:0.5"))
        for reward in (Trusted(), Bumpy())
    ]
    assert torch.equal(*both)


def test_the_trace_tells_the_factor_that_all_axes_share():
    trace = GuidanceTrace(Trusted.axes)
    guided_velocity(batch(1), batch(0), 0.75, Trusted(), guidance=RewardGuidance(scale=0.1), trace=trace)
    assert trace.rows()[0]["coefficient"] == pytest.approx(3 * 0.25**0.5 * 0.75)


@pytest.mark.parametrize("damping", ["VQ=1", [1, 2, 3]])
def test_damping_that_does_not_fit_the_axes_is_refused(damping):
    with pytest.raises(ValueError, match="Expected `damping` as one number, or one for each of a, b, but got "):
        guided_velocity(batch(1), batch(), 0.5, Bumpy(), guidance=RewardGuidance(damping=damping))


def test_the_paper_s_settings_have_no_window_limit_or_calibration():
    paper = RewardGuidance.paper()
    assert (paper.scale, paper.start, paper.stop, paper.every, paper.reuse) == (100.0, 0.0, 1.0, 1, False)
    assert (paper.max_coefficient, paper.max_push, paper.calibrated) == (None, None, False)
    assert (paper.damping, paper.fading) == (0.0, 0.0)
    assert (paper.reuse, paper.balanced, paper.conflicts, paper.floor) == (False, False, "sum", None)
    assert (paper.parallel, paper.smoothing, paper.lookahead) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({}, list(range(10))),
        ({"start": 0.3}, [3, 4, 5, 6, 7, 8, 9]),
        ({"stop": 0.3}, [0, 1, 2]),
        ({"start": 0.2, "stop": 0.7}, [2, 3, 4, 5, 6]),
        ({"every": 4, "reuse": False}, [0, 4, 8]),
        ({"every": 4, "reuse": True}, list(range(10))),
        ({"start": 0.5, "stop": 0.5}, []),
    ],
)
def test_the_window_counts_in_fractions_of_the_steps(settings, guided):
    guidance = RewardGuidance(**settings)
    assert [step for step in range(10) if guidance.skips(step, 10) is None] == guided


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 2}, "Expected `start` to be between 0 and 1, but got 2."),
        ({"stop": -0.1}, "Expected `stop` to be between 0 and 1, but got -0.1."),
        ({"start": 0.6, "stop": 0.5}, r"Expected `start` to be at most `stop` \(0.5\), but got 0.6."),
        ({"scale": float("nan")}, "Expected `scale` to be a finite number, but got nan."),
        ({"every": 0}, "Expected `every` to be a whole number of 1 or more, but got 0."),
        ({"every": 1.5}, "Expected `every` to be a whole number of 1 or more, but got 1.5."),
        ({"max_coefficient": 0}, "Expected `max_coefficient` to be above 0, or None for no limit, but got 0."),
        ({"max_push": -1}, "Expected `max_push` to be above 0, or None for no limit, but got -1."),
        ({"conflicts": "fight"}, "Expected `conflicts` to be 'sum' or 'project', but got 'fight'."),
        ({"lookahead": 1.5}, "Expected `lookahead` to be between 0 and 1, but got 1.5."),
        (
            {"lookahead": 1, "smoothing": 0.5},
            "Expected `smoothing` to be 0 with lookahead=1, where no noise is left, but got 0.5.",
        ),
        ({"parallel": 1.5}, "Expected `parallel` to be between 0 and 1, but got 1.5."),
        ({"smoothing": -0.5}, "Expected `smoothing` to be between 0 and 1, but got -0.5."),
        ({"smoothing_samples": 0}, "Expected `smoothing_samples` to be a whole number of 1 or more, but got 0."),
        ({"damping": -1}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got -1."),
        ({"damping": "nan"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got nan."),
        ({"damping": "VQ=-1"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got VQ=-1."),
        ({"damping": "little"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got little."),
        ({"disagreement": -1}, "Expected `disagreement` to be 0 or more, but got -1."),
        ({"weights": "0:0:0"}, "Expected at least one reward weight above 0, but got 0:0:0; use a scale of 0"),
        ({"weights": {"VQ": 0}}, "Expected at least one reward weight above 0, but got VQ=0"),
        ({"weights": "1:x"}, "Expected reward weights like '1:1:1'"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardGuidance(**settings)


def test_zero_weights_are_fine_without_guidance():
    assert RewardGuidance(weights="0:0:0", scale=0).scale == 0


@pytest.mark.parametrize("guidance", [
    RewardGuidance(), RewardGuidance(weights="VQ=1", start=0.2, max_push=None), RewardGuidance(damping=0.5),
    RewardGuidance(damping={"VQ": 0, "TA": 1.5}, fading="2"),
])  # fmt: skip
def test_settings_survive_plain_values(guidance):
    assert RewardGuidance(**json.loads(json.dumps(guidance.to_dict()))) == guidance


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
    assert guided.device.type == "meta" and guided.shape == SHAPE
    with pytest.raises((NotImplementedError, RuntimeError)):
        trace.warn()


def test_nothing_is_warned_about_when_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_velocity(batch(1), batch(), 0.5, TowardTarget())


class Opposed:
    """Two linear axes that pull apart: raising one lowers the other."""

    axes = ("VQ", "TA")

    def __init__(self):
        self.first = batch(20)[:1]
        self.second = batch(21)[:1] - 0.8 * self.first
        self.calls = 0

    def __call__(self, latents, sigma, conditioning):
        self.calls += 1
        scores = [(latents * gradient).flatten(1).sum(dim=1) for gradient in (self.first, self.second)]
        return torch.stack(scores, dim=1)


def change(reward, guidance, axis, **inputs):
    """To first order, how the push of one step changes an axis: (B,)."""
    trace = GuidanceTrace(reward.axes)
    velocity = batch(0)
    guided = guided_velocity(batch(1), velocity, 0.5, reward, guidance=guidance, trace=trace, **inputs)
    gradient = {"VQ": reward.first, "TA": reward.second}[axis]
    return ((velocity - guided) * gradient).flatten(1).sum(dim=1), trace


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_a_floor_keeps_an_axis_without_weight_from_being_lowered(scale):
    reward = Opposed()
    axis = "TA" if scale > 0 else "VQ"
    weights = "1:0" if scale > 0 else "1:1"
    free, _ = change(reward, RewardGuidance(weights=weights, scale=scale), axis)
    held, trace = change(reward, RewardGuidance(weights=weights, scale=scale, floor=axis), axis)
    assert (free < -0.01).all() and (held > -1e-4).all()
    assert trace.rows()[0]["floored"] == 1.0 and "floored" in str(trace)


def test_a_floor_that_is_not_touched_changes_nothing():
    guidance = RewardGuidance(weights="0:1")
    plain = guided_velocity(batch(1), batch(0), 0.5, Opposed(), guidance=guidance)
    floored = guided_velocity(batch(1), batch(0), 0.5, Opposed(), guidance=RewardGuidance(weights="0:1", floor="TA"))
    torch.testing.assert_close(floored, plain)


def test_projected_conflicts_raise_both_axes():
    guidance = RewardGuidance(weights="1:0.2")
    assert (change(Opposed(), guidance, "TA")[0] < 0).all()
    projected = RewardGuidance(weights="1:0.2", conflicts="project")
    assert (change(Opposed(), projected, "TA")[0] > 0).all() and (change(Opposed(), projected, "VQ")[0] > 0).all()


def test_balanced_axes_no_longer_depend_on_the_unit_of_the_reward():
    class OtherUnits(Opposed):
        def __call__(self, latents, sigma, conditioning):
            return super().__call__(latents, sigma, conditioning) * latents.new_tensor([100.0, 0.01])

    def direction(reward, **settings):
        guidance = RewardGuidance(max_push=None, **settings)
        push = batch(0) - guided_velocity(batch(1), batch(0), 0.5, reward, guidance=guidance)
        return push / push.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1, 1)

    torch.testing.assert_close(direction(Opposed(), balanced=True), direction(OtherUnits(), balanced=True))
    assert not torch.allclose(direction(Opposed()), direction(OtherUnits()), rtol=0.1)


def test_separate_gradients_add_up_to_that_of_the_sum():
    guidance = {"weights": "0.3:0.7", "scale": 0.01, "max_push": None, "damping": 0.0}
    together = guided_velocity(batch(1), batch(0), 0.5, Bumpy(), guidance=RewardGuidance(**guidance))
    grads, raw = axis_gradients(batch(1), 0.5, Bumpy())
    expected = batch(0) - 0.01 * 3.0 * (0.3 * grads[0] + 0.7 * grads[1])
    torch.testing.assert_close(together, expected)
    assert raw.shape == (2, 2)


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
    assert torch.equal(pushes[3], pushes[4]) and pushes[0].norm() == 0


def test_reuse_without_a_memory_evaluates_the_reward_in_every_step():
    latents, velocity = batch(1), batch()
    reused, every = (RewardGuidance(weights="1:0", every=gap, reuse=gap > 1) for gap in (3, 1))
    results = [guided_velocity(latents, velocity, 0.5, Opposed(), guidance=guidance) for guidance in (reused, every)]
    assert torch.equal(*results) and not torch.equal(results[0], velocity)
    trace = GuidanceTrace(Opposed.axes)
    for index in range(4):
        guided_velocity(
            latents, velocity, 0.5, Opposed(), guidance=reused, step_index=index, num_inference_steps=4, trace=trace
        )
    assert [(step.skipped, step.reused) for step in trace.steps] == [(None, False)] * 4


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 10),
        ({"scale": 0}, 0),
        ({"every": 4}, 3),
        ({"every": 4, "reuse": True}, 3),
        ({"start": 0.5}, 5),
        ({"smoothing": 0.1}, 40),
    ],
)
def test_the_gradients_of_a_run_are_known_beforehand(settings, count):
    assert RewardGuidance.preset("best", **settings).gradients(10) == count


def test_a_floor_on_an_unknown_axis_is_refused():
    message = r"Expected `floor` to name axes of the reward \(VQ, TA\), but got MQ; use the reward's own axes."
    with pytest.raises(ValueError, match=message):
        guided_velocity(batch(1), batch(), 0.5, Opposed(), guidance=RewardGuidance(floor="MQ"))


@pytest.mark.parametrize("floor", ["VQ,TA", ["VQ", "TA"], " VQ, TA "])
def test_a_floor_is_read_from_text_or_a_list(floor):
    guidance = RewardGuidance(floor=floor)
    assert guidance.floor == ("VQ", "TA") and RewardGuidance(**guidance.to_dict()) == guidance


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
