"""Rewards that read a part of the latents: the same gradient there, nothing elsewhere, and every part has its turn."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import TowardTarget, sample, tiny_transformer
from tiny_families import TINY

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, attach, guided_velocity
from nrg_sampler.cost import step as cost
from nrg_sampler.cost.workloads import WORKLOADS
from nrg_sampler.guidance.part import Part
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.step import reward_direction
from nrg_sampler.rewards.gradient import reward_gradient

SHAPE = (2, 16, 5, 8, 8)
PART = RewardGuidance.preset("best", frames="every:2", crop=0.5)  # a turn in every step


@pytest.fixture
def reward() -> Any:
    torch.manual_seed(1)
    return LatentReward.from_transformer(tiny_transformer(), num_blocks=1).requires_grad_(False).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(2, 6, 16, generator=generator)
    return torch.randn(SHAPE, generator=generator), torch.tensor([0.3, 0.8]), Conditioning(embeds)


def test_every_part_has_its_turn_as_often_as_the_others():
    read = torch.zeros(6, 8, 12)
    for turn in range(2 * 3 * 2 * 2):
        part = Part.of((1, 16, 6, 8, 12), "every:3", 0.5, turn).cut(read)
        assert part.shape == (2, 4, 6)
        part += 1
    assert torch.equal(read, torch.full_like(read, 2.0))


@pytest.mark.parametrize(
    ("size", "crop", "places"), [(8, 0.01, 4), (2, 0.5, 1), (1, 0.5, 1), (10, 0.7, 2), (7, 1.0, 1), (7, 0.5, 2)]
)
def test_places_cover_the_picture_and_begin_at_patches(size, crop, places):
    rows = {Part.of((1, 1, 1, size, 2), "every:4", crop, turn).rows.indices(size) for turn in range(2 * places)}
    assert len(rows) == places
    assert {row for place in rows for row in range(*place)} == set(range(size))
    assert all(start % 2 == 0 or stop == size for start, stop, _ in rows)


def test_a_reward_asked_in_every_second_step_still_reads_every_frame(inputs):
    latents, sigma, _ = inputs
    found = [
        reward_direction(
            resolve(RewardGuidance(frames="every:2", every=2), TowardTarget()), latents, latents, sigma, None, step
        )
        for step in (0, 2)
    ]
    assert all((found[0].value + found[1].value).abs().sum(dim=(0, 1, 3, 4)) > 0)


@pytest.mark.parametrize("step", [0, 3])
def test_the_gradient_is_that_of_the_reward_on_the_part(reward, inputs, step):
    latents, sigma, conditioning = inputs
    place = Part.of(SHAPE, "every:2", 0.5, step)
    expected, raw = reward_gradient(place.cut(latents), sigma, reward, place.conditioning(conditioning))
    found = reward_direction(resolve(PART, reward), latents, latents, sigma, conditioning, step)
    assert torch.equal(place.cut(found.value), expected)
    assert torch.equal(found.raw, raw)
    place.cut(found.value).zero_()
    assert not found.value.any()
    assert expected.abs().max() > 1e-5


def test_the_gradient_matches_finite_differences(reward, inputs):
    latents, sigma, conditioning = inputs
    place = Part.of(SHAPE, "every:2", 0.5, 1)

    def score(at: torch.Tensor) -> torch.Tensor:
        return reward(place.cut(at), sigma, place.conditioning(conditioning)).sum(dim=1)

    gradient = reward_direction(resolve(PART, reward), latents, latents, sigma, conditioning, 1).value
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    step = 0.02  # the transformer's norms run in float32, so smaller steps drown in rounding
    rise = (score(latents + step * direction) - score(latents - step * direction)) / (2 * step)
    torch.testing.assert_close(rise, (gradient * direction).flatten(1).sum(dim=1), rtol=2e-2, atol=1e-5)


def test_a_reward_of_single_latents_has_its_own_gradient_on_the_part(inputs):
    latents, sigma, _ = inputs
    axes, whole = RewardGuidance(floor="closeness"), RewardGuidance(floor="closeness", frames="every:2", crop=0.5)
    full = reward_direction(resolve(axes, TowardTarget()), latents, latents, sigma, None)
    part = reward_direction(resolve(whole, TowardTarget()), latents, latents, sigma, None)
    place = Part.of(SHAPE, "every:2", 0.5, 0)
    share = place.cut(latents).numel() / latents.numel()  # the reward is a mean over what it reads
    torch.testing.assert_close(place.cut(part.value) * share, place.cut(full.value))


def test_frames_keep_their_places_in_the_video(reward, inputs):
    latents, sigma, conditioning = inputs
    whole = reward.rope(latents)
    for found, expected in zip(reward.rotary(latents[:, :, ::2], 2), whole, strict=True):
        assert torch.equal(found, expected.unflatten(1, (5, -1))[:, ::2].flatten(1, 2))
    near, far = (
        reward(latents[:, :, ::2], sigma, Conditioning(conditioning.prompt_embeds, frame_stride=n)) for n in (1, 2)
    )
    assert (near - far).abs().max() > 1e-6


def test_a_velocity_in_the_conditioning_is_cut_likewise(inputs):
    latents, sigma, conditioning = inputs
    seen = []

    class Uses(TowardTarget):
        needs_velocity = True

        def __call__(self, latents, sigma, conditioning):
            seen.append((latents.shape, conditioning.velocity.shape, conditioning.frame_stride))
            return super().__call__(latents, sigma, conditioning)

    reward_direction(resolve(PART, Uses()), latents, latents, sigma, conditioning)
    assert seen == [((2, 16, 3, 4, 4), (2, 16, 3, 4, 4), 2)]


def test_a_pipeline_is_guided_by_parts(wan):
    unguided = sample(wan)
    with attach(wan, TowardTarget(), frames="every:2", crop=0.5, scale=50.0) as trace:
        guided = sample(wan)
    assert (guided - 1).square().mean() < (unguided - 1).square().mean()
    assert all(row["push_ratio"] > 0 for row in trace.rows() if row["skipped"] is None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"frames": "every:0"},
            "Expected `frames` to be all, first, middle, random, turns or every:N, but got 'every:0'.",
        ),
        ({"frames": 2}, "Expected `frames` to be all, first, middle, random, turns or every:N, but got 2."),
        ({"crop": 0.0}, "Expected `crop` to be above 0 and at most 1, but got 0.0."),
        ({"crop": 1.5}, "Expected `crop` to be above 0 and at most 1, but got 1.5."),
        (
            {"frames": "every:2", "forward": "shared"},
            "Expected `frames` to be all with forward='shared', but got every:2.",
        ),
        ({"crop": 0.5, "forward": "shared"}, "Expected `crop` to be 1 with forward='shared', but got 0.5."),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RewardGuidance(**settings)


def test_a_loop_has_to_say_which_step_it_is(inputs):
    latents, sigma, _ = inputs
    with pytest.raises(
        ValueError, match=r"Expected `step_index` and `num_inference_steps` .* frames='every:2', crop=0.5"
    ):
        guided_velocity(latents, latents, sigma, TowardTarget(), guidance=PART)


def test_a_given_frame_cannot_be_cut():
    pipe = TINY["LTX image-to-video"]().pipe
    with (
        pytest.raises(ValueError, match="Expected frames='all' and crop=1 for LTXImageToVideoPipeline"),
        attach(pipe, TowardTarget(), frames="every:2"),
    ):
        pass


def test_a_part_costs_less_than_the_whole():
    shapes = replace(WORKLOADS["shapes"], config={**WORKLOADS["shapes"].config, "num_layers": 2})
    unguided, whole, _ = cost.count_step(shapes, 1, False, torch.float32)
    _, part, predicted = cost.count_step(shapes, 1, False, torch.float32, guidance=PART)
    assert part.flops / unguided.flops == pytest.approx(predicted, rel=0.1)
    assert part.flops - unguided.flops < 0.3 * (whole.flops - unguided.flops)
    assert part.peak_bytes < whole.peak_bytes
    with pytest.raises(ValueError, match=r"Expected frames='all' and crop=1 for flux, but got 'every:2' and 0.5"):
        WORKLOADS["flux"].read_by(PART)
