"""The prompt that an attached reward sees, and how often it is prepared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import PromptMatch, sample

from nrg_sampler import RewardGuidance, attach

STRONG = RewardGuidance.preset("best", max_coefficient=20.0, scale=200.0, max_push=None, damping=0.0)


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
        assert reward.prepared == 1
        assert len(reward.seen) > 1
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
