"""Judges of frames that read text: what they are called with, and that they guide."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny import sample
from torch import nn

from nrg_sampler import Conditioning, RewardGuidance, attach
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.rewards import PixelReward
from nrg_sampler.rewards.frame_scorer import Wanted

FRAMES = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class ColourOfText(nn.Module):
    """Reward red where the text says so, else blue."""

    axes = ("TA",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[str], float | None]] = []

    def forward(self, frames: torch.Tensor, prompts: list[str], fps: float | None) -> torch.Tensor:
        self.seen.append((prompts, fps))
        channel = [0 if "red" in text else 2 for text in prompts]
        other = [2 - index for index in channel]
        rows = range(len(prompts))
        return (frames[rows, channel] - frames[rows, other]).mean(dim=(1, 2, 3))[:, None]


def frames_only(frames: Any) -> Any:
    return frames.mean(dim=(1, 2, 3, 4))[:, None]


def with_prompts(frames: Any, prompts: Any) -> Any:
    return frames_only(frames) * torch.tensor([[float(len(text))] for text in prompts])


def may_have_both(frames: Any, *, fps: float = 1.0, prompts: Any = ("none",)) -> Any:
    return frames_only(frames) * len(prompts[0]) * fps


def anything(*frames: Any, **others: Any) -> Any:
    assert not others
    return frames_only(*frames)


@pytest.mark.parametrize(
    ("judge", "wanted"),
    [
        (frames_only, Wanted()),
        (anything, Wanted()),
        (torch.mean, Wanted()),  # has no signature
        (with_prompts, Wanted(prompts=True, needs_prompts=True)),
        (partial(with_prompts, prompts=["a"]), Wanted(prompts=True)),
        (may_have_both, Wanted(prompts=True, fps=True)),
        (ColourOfText(), Wanted(True, True, True, True)),
    ],
)
def test_what_a_judge_is_called_with_is_read_from_its_signature(wan: Any, judge: Any, wanted: Wanted) -> None:
    assert Wanted.by(judge) == wanted
    assert PixelReward(judge, wan.vae, ("a",)).needs_prompts == wanted.needs_prompts


def test_frames_are_scored_with_their_prompts(wan: Any) -> None:
    reward = PixelReward(with_prompts, wan.vae, ("a",))
    mean = frames_only(FRAMES)
    assert torch.equal(reward.score_frames(FRAMES, ["a", "abc"]), mean * torch.tensor([[1.0], [3.0]]))
    assert torch.equal(reward.score_frames(FRAMES, ["ab"]), mean * 2)
    both = PixelReward(may_have_both, wan.vae, ("a",))
    assert torch.equal(both.score_frames(FRAMES), mean * 4)
    assert torch.equal(both.score_frames(FRAMES, ["ab"], 8.0), mean * 2 * 8)
    assert torch.equal(PixelReward(frames_only, wan.vae, ("a",)).score_frames(FRAMES, ["a", "b"], 8.0), mean)


def test_missing_and_surplus_prompts_are_refused(wan: Any) -> None:
    reward = PixelReward(with_prompts, wan.vae, ("a",))
    with pytest.raises(ValueError, match=r"Expected prompts for a judge that reads them, but got none; guide with"):
        reward.score_frames(FRAMES)
    with pytest.raises(ValueError, match=r"one prompt for each of 2 samples, but got 3 prompts"):
        reward.score_frames(FRAMES, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"but got the single text 'a red circle'"):
        reward.score_frames(FRAMES, "a red circle")


def test_a_judge_that_reads_text_guides_each_clip_toward_its_own(wan: Any) -> None:
    judge = ColourOfText()
    reward = PixelReward(judge, wan.vae, judge.axes)
    prompts, settings = ["a red circle", "a blue square"], {"latents": None}
    plain = sample(wan, prompts, **settings)
    assert torch.equal(_scale_zero(wan, reward, prompts), plain)
    with attach(wan, reward, RewardGuidance.preset("best", scale=30.0)):
        guided = sample(wan, prompts, **settings)
    assert {tuple(texts) for texts, _ in judge.seen} == {tuple(prompts)}
    with torch.no_grad():
        before, after = (reward.score_frames(reward.frames(clips), prompts) for clips in (plain, guided))
    assert (after > before).all()


def _scale_zero(wan: Any, reward: Any, prompts: list[str]) -> torch.Tensor:
    with attach(wan, reward, scale=0.0):
        return sample(wan, prompts)


def test_a_judge_is_given_the_rate_of_the_frames_that_it_is_shown(wan: Any) -> None:
    judge = ColourOfText()
    reward = PixelReward(judge, wan.vae, judge.axes)
    latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for fps, stride, shown in ((16.0, 1, 16.0), (16.0, 2, 8.0), (None, 2, None)):
        conditioning = Conditioning(prompts=("a red circle",), fps=fps, frame_stride=stride)
        reward(latents, torch.zeros(1), conditioning)
        assert judge.seen[-1] == (["a red circle"], shown)


SOURCES = {
    "frames": "def __call__(self, clips):\n        return clips.mean(dim=(1, 2, 3, 4))[:, None]",
    "text": "def __call__(self, clips, prompts):\n        return torch.tensor([[float(len(p))] for p in prompts])",
    "may": "def __call__(self, clips, prompts=()):\n        return torch.tensor([[float(len(p))] for p in prompts])",
    "rate": "def __call__(self, clips, *, fps):\n        return torch.full((len(clips), 1), fps)",
    "named": "def __call__(self, clips, *, prompts, fps):\n        return torch.full((len(clips), 1), fps)",
    "other": "def __call__(self, videos, texts, rate):\n        return torch.full((len(videos), 1), rate)",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_judge_of_ones_own_is_called_by_its_signature(tmp_path: Any, name: str) -> None:
    file = tmp_path / f"judge_{name}.py"
    file.write_text(f"import torch\n\n\nclass Judge:\n    axes = ('a',)\n\n    {SOURCES[name]}\n")
    scores = load_judge(f"module:{file}:Judge")(FRAMES, ["a", "abc"], 8.0)
    mean = FRAMES.mean(dim=(1, 2, 3, 4))[:, None]
    expected = {"frames": mean, "text": torch.tensor([[1.0], [3.0]]), "may": torch.tensor([[1.0], [3.0]])}
    torch.testing.assert_close(scores, expected.get(name, torch.full((2, 1), 8.0)))
