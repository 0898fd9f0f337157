"""A judge of frames that reads the prompt: it knows what it sees, guides the bundled model, and is evaluated."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from nrg_sampler import NRGFlowPipeline, cli
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import caption, prompts, sample_scene

NAME = f"module:{Path(__file__).parents[2] / 'examples' / 'text_judge.py'}:TextJudge"


def test_it_prefers_the_prompt_that_a_clip_was_drawn_for() -> None:
    rng, asked = random.Random(0), prompts("validation")[:40]
    clips = render(draw([sample_scene(prompt, rng) for prompt in asked]))
    judge = load_judge(NAME)
    own = judge(clips, [caption(prompt) for prompt in asked], 8.0)
    for words in (lambda p: (p.shape, None), lambda p: (None, p.color)):  # shape alone, colour alone
        others = [" ".join(filter(None, words(prompt))) for prompt in asked]
        turned = others[1:] + others[:1]
        differ = [index for index, (one, two) in enumerate(zip(others, turned, strict=True)) if one != two]
        right, wrong = (judge(clips, texts, 8.0)[differ, 0] for texts in (others, turned))
        assert (right > wrong).float().mean() > 0.95
    assert own.shape == (40, 1) and judge(clips[:1], ["nothing of that world"], 8.0).abs() < 0.2


def test_its_gradient_reaches_the_pixels() -> None:
    from nrg_sampler.rewards.own import load_own

    frames = torch.rand(1, 3, 2, 16, 16, dtype=torch.float64, requires_grad=True)
    judge = load_own(NAME).double()
    (grad,) = torch.autograd.grad(judge(frames, ["a red circle"]).sum(), frames)
    step = 1e-6 * torch.randn_like(frames)
    change = (judge(frames + step, ["a red circle"]) - judge(frames - step, ["a red circle"])).sum() / 2
    torch.testing.assert_close((grad * step).sum(), change, rtol=1e-3, atol=1e-9)


def test_it_raises_its_own_score_of_the_bundled_model() -> None:
    pipe = NRGFlowPipeline.from_pretrained("shapes", reward_model=NAME)
    pipe.set_progress_bar_config(disable=True)
    scores = []
    for scale in (0.0, 1.0):
        generator = torch.Generator().manual_seed(3)
        call = {"num_inference_steps": 6, "generator": generator, "output_type": "pt"}
        frames = pipe("a yellow star moving left", reward_scale=scale, **call).frames
        scores.append(pipe.reward_model.score_frames(frames.transpose(1, 2), ["a yellow star"]).item())
    assert scores[1] > scores[0]


def test_it_is_evaluated_by_the_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--n", "2", "--split", "validation", "--steps", "3", "--batch", "2", "--judges", "oracle", "--json"]
    arms = ["--reward", NAME, "--out", str(tmp_path)]
    assert cli.main(["evaluate", *options, *arms]) == 2
    assert "of the reward's axes, TA, but '1:1:1' is not; name others, as --arms 'TA=1" in capsys.readouterr().err
    assert cli.main(["evaluate", *options, *arms, "--arms", "TA=1"]) == 0, capsys.readouterr().err
    (summary,) = map(json.loads, capsys.readouterr().out.splitlines())
    by_axis = {row["axis"]: row for row in summary["rows"]}
    assert by_axis["TA"]["target_gain"] is not None and by_axis["VQ"]["target_gain"] is None
    assert by_axis.keys() == {"VQ", "MQ", "TA", "mean"} and summary["n"] == 2
