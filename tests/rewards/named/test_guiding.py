"""Named rewards guide a stock pipeline through its VAE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_named
import torch
from tiny import sample
from torch import Tensor

from nrg_sampler import attach
from nrg_sampler.rewards.named.judge import FrameJudge
from nrg_sampler.rewards.pixel import PixelReward

PROMPT = "a red circle"


@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_guidance_raises_the_score_and_scale_0_leaves_the_sample_alone(
    name: str, wan: Any, load: Callable[..., FrameJudge]
) -> None:
    judge = load(name)

    def by_prompt(frames: Tensor) -> Tensor:
        score: Tensor = judge(frames, [PROMPT] * len(frames))
        return score

    reward = PixelReward(by_prompt if judge.entry.reads_prompts else judge, wan.vae, judge.axes)

    @torch.no_grad()
    def score(latents: Tensor) -> float:
        return reward.score_frames(reward.frames(latents)).item()

    unguided = sample(wan, PROMPT)
    with attach(wan, reward, scale=0.0):
        assert torch.equal(sample(wan, PROMPT), unguided)
    scale = 3000.0 / float(judge.entry.factor or 1.0)
    with attach(wan, reward, scale=scale, max_push=None) as trace:
        guided = sample(wan, PROMPT)
    assert trace.summary()["guided"] > 0
    assert score(guided) > score(unguided)
