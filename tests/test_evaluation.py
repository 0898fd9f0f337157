"""Win rates, resumable grading and the summary."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nrg_sampler.evaluation.arms import Arm, weights_suite
from nrg_sampler.evaluation.grading import grade_arms, read_grades
from nrg_sampler.evaluation.report import markdown, summarise
from nrg_sampler.evaluation.winrate import bootstrap_interval, win_rate
from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.shapes.scenes import prompts


def test_ties_count_half():
    rate = win_rate(torch.tensor([1.0, 0.0, 0.5, 0.5]), torch.tensor([0.0, 1.0, 0.5, 0.0]))
    assert rate.win == pytest.approx(100 * 2.5 / 4) and rate.n == 4


def test_interval_matches_the_normal_approximation():
    points = (torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    low, high = bootstrap_interval(points)
    half_width = 1.96 * points.std().item() / 20
    assert low == pytest.approx(points.mean().item() - half_width, abs=0.005)
    assert high == pytest.approx(points.mean().item() + half_width, abs=0.005)
    assert bootstrap_interval(points) == (low, high)


def test_win_rate_says_what_is_wrong():
    with pytest.raises(ValueError, match="two lists of scores of one length"):
        win_rate(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="some are not a number"):
        win_rate(torch.tensor([float("nan")]), torch.zeros(1))


class FakePipe:
    """Returns grey clips and counts its calls; the oracle finds nothing in them."""

    def __init__(self):
        self.calls = []

    def __call__(self, texts, generator, output_type, **options):
        self.calls.append((list(texts), [g.initial_seed() for g in generator], options))
        return SimpleNamespace(frames=torch.full((len(texts), 13, 3, 64, 64), 0.5))


def test_arms_share_prompts_and_seeds(tmp_path):
    pipe = FakePipe()
    arms = weights_suite(RewardGuidance())
    graded = list(grade_arms(pipe, arms, prompts("test")[:3], tmp_path / "grades.csv", batch=2))
    assert len(graded) == 3 * len(arms)
    assert {tuple(call[0] + call[1]) for call in pipe.calls[: len(arms)]} == {tuple(pipe.calls[0][0] + [0, 1])}
    assert [call[2].get("reward_scale") for call in pipe.calls[: len(arms)]].count(0.0) == 1


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    file, arms = tmp_path / "grades.csv", [Arm("unguided"), Arm("1:0:0", RewardGuidance(weights="1:0:0"))]
    run = grade_arms(FakePipe(), arms, prompts("test")[:4], file, batch=2)
    for _ in range(4):
        next(run)
    run.close()
    file.write_text(file.read_text() + "1:0:0,3,a cut li")
    pipe = FakePipe()
    graded = list(grade_arms(pipe, arms, prompts("test")[:4], file, batch=2))
    assert len(graded) == 8 and len(pipe.calls) < 4
    assert {(clip.arm, clip.index) for clip in read_grades(file)} == {(arm.name, i) for arm in arms for i in range(4)}


def test_summary_counts_wins_against_the_unguided_run(tmp_path):
    arms = weights_suite(RewardGuidance())
    summary = summarise("weights", arms, grade_arms(FakePipe(), arms, prompts("test")[:3], tmp_path / "g.csv"))
    assert summary["n"] == 3 and summary["judge"] == "oracle"
    assert len(summary["rows"]) == 3 * (len(arms) - 1)
    assert all(row["win"] == 50.0 for row in summary["rows"])  # grey against grey: only ties
    assert "| 1:0:0 | 50.0 [50.0, 50.0]" in markdown(summary)


def test_flipped_arms_only_change_the_sign():
    arms = {arm.name: arm.guidance for arm in weights_suite(RewardGuidance(scale=2.0))}
    for weights in ("1:0:0", "0:1:0", "0:0:1"):
        assert arms[f"{weights} flipped"].scale == -arms[weights].scale == -2.0
        assert arms[f"{weights} flipped"].weights == arms[weights].weights
