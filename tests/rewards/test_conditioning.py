"""The texts of a conditioning stay with their samples."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler import Conditioning, EnsembleReward
from nrg_sampler.guidance.part import Part
from nrg_sampler.rewards.base import RewardHooks


class ReadsText:
    axes = ("length",)
    needs_prompts = True

    def __call__(self, latents, sigma, conditioning):
        lengths = torch.tensor([len(text) for text in conditioning.prompts]).to(latents)
        return (latents.mean(dim=(1, 2, 3, 4)) * lengths)[:, None]


def test_texts_are_kept_by_copies_and_parts():
    given = Conditioning(torch.zeros(2, 3, 4), prompts=["a", "b"], fps=16.0)
    assert given.prompts == ("a", "b")
    part = Part.of((2, 4, 4, 8, 8), frames="every:2", crop=0.5, turn=0)
    for changed in (given.copied(torch.device("cpu")), part.conditioning(given), given.for_batch(2)):
        assert (changed.prompts, changed.fps) == (("a", "b"), 16.0)


def test_a_single_text_is_repeated_and_the_unconditional_half_is_dropped():
    assert Conditioning(prompts=("a",)).for_batch(3).prompts == ("a", "a", "a")
    halves = Conditioning(torch.zeros(4, 3, 4), prompts=("", "", "a", "b"))
    assert halves.for_batch(2).prompts == ("a", "b")
    assert Conditioning(torch.zeros(4, 3, 4), prompts=("a", "b")).for_batch(2).prompts == ("a", "b")


@pytest.mark.parametrize("prompts", [("a", "b"), ("a", "b", "c", "d", "e", "f")])
def test_texts_of_another_number_of_samples_are_refused(prompts):
    with pytest.raises(ValueError, match=rf"one prompt for each of 3 samples, but got {len(prompts)} prompts"):
        Conditioning(torch.zeros(3, 3, 4), prompts=prompts).for_batch(3)


def test_a_text_in_place_of_a_sequence_is_refused():
    with pytest.raises(ValueError, match=r"one text for each sample, but got the single text 'a red circle'"):
        Conditioning(prompts="a red circle")


def test_a_reward_says_that_it_reads_text():
    assert RewardHooks.of(ReadsText()).needs_prompts
    assert RewardHooks.of(EnsembleReward([ReadsText(), ReadsText()])).needs_prompts
