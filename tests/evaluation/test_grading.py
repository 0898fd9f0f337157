"""Grading that shares clips between arms and goes on where it stopped."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import TowardTarget
from tiny_clips import FakePipe, brightness, grades_of

from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.arms import (
    UNGUIDED,
    Arm,
    weights_suite,
)
from nrg_sampler.evaluation.grading import COLUMNS, Graded, chosen, diversity_of_arms, read_grades
from nrg_sampler.evaluation.panel import panel
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.hosts.pipeline import NRGFlowPipeline
from nrg_sampler.lookahead import Lookahead
from nrg_sampler.search import OTHER_CANDIDATE, Search, candidate_seeds
from nrg_sampler.shapes.scenes import prompts


def test_arms_share_prompts_and_seeds(tmp_path):
    pipe = FakePipe()
    arms = weights_suite(RewardGuidance())
    graded = list(grades_of(pipe, arms, 3, tmp_path / "grades.csv", batch=2))
    assert len(graded) == 3 * len(arms)
    assert {tuple(call[0] + call[1]) for call in pipe.calls[: len(arms)]} == {tuple(pipe.calls[0][0] + [0, 1])}
    assert [call[2].get("reward_scale") for call in pipe.calls[: len(arms)]].count(0.0) == 1
    assert {clip.further["evaluations"] for clip in graded} == {2}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    file, arms = tmp_path / "grades.csv", [Arm(UNGUIDED), Arm("1:0:0", RewardGuidance(weights="1:0:0"))]
    run = grades_of(FakePipe(), arms, 4, file, batch=2)
    for _ in range(4):
        next(run)
    run.close()
    file.write_text(file.read_text() + "unguided,3,a cut line,3,0.5,0.5,0.5,1.0,0.1")
    pipe = FakePipe()
    graded = list(grades_of(pipe, arms, 4, file, batch=2))
    assert len(graded) == 8
    assert len(pipe.calls) < 4
    sources = [ArmSampler(pipe).source(arm) for arm in arms]
    assert {(clip.arm, clip.index) for clip in read_grades(file)} == {(one, i) for one in sources for i in range(4)}


def test_a_table_of_an_earlier_version_is_still_read(tmp_path):
    file = tmp_path / "old.csv"
    file.write_text(",".join(COLUMNS) + "\nunguided,0,a red circle,0,0.5,0.25,1.0,0.516\n")
    (clip,) = read_grades(file)
    assert clip.grades == (0.5, 0.25, 1.0)
    assert clip.seconds == 0.516
    assert clip.further == {}


def test_another_judge_grades_the_same_clips_and_a_table_without_its_grades_is_made_again(tmp_path):
    file, arms = tmp_path / "grades.csv", [Arm(UNGUIDED)]
    list(grades_of(FakePipe(), arms, 2, file))
    pipe = FakePipe()
    graded = list(grades_of(pipe, arms, 2, file, judges={"pixel": brightness}))
    assert len(pipe.calls) == 1
    assert graded[0].by("pixel") == pytest.approx((0.5, 0.5, 0.5))
    assert graded[0].by("oracle") == graded[0].grades
    assert read_grades(file)[1].by("pixel") == pytest.approx((0.5, 0.5, 0.5))
    assert all(map(math.isnan, graded[0].by("target")))


def test_arms_of_one_source_share_their_clips(tmp_path):
    pipe, file = FakePipe(), tmp_path / "clips.csv"
    arms = [
        Arm(UNGUIDED),
        Arm("best of 2", search=Search.best_of(2), judge="pixel"),
        Arm("best of 4", search=Search.best_of(4), judge="pixel"),
        Arm("none", RewardGuidance(scale=0)),
    ]
    graded = list(grades_of(pipe, arms, 2, file, judges={"pixel": brightness}))
    assert [call[1] for call in pipe.calls] == [
        [first, first + 1] for first in range(0, 4 * OTHER_CANDIDATE, OTHER_CANDIDATE)
    ]
    taken = {(clip.arm, clip.index): clip for clip in graded}
    assert [taken[arm.name, 1].seed for arm in arms] == [1, candidate_seeds(1, 2)[1], candidate_seeds(1, 4)[3], 1]
    assert [taken[arm.name, 0].further["evaluations"] for arm in arms] == [2, 4, 8, 2]
    assert taken["best of 4", 0].by("pixel") == pytest.approx((0.8, 0.8, 0.8))
    more = FakePipe()  # another suite
    list(grades_of(more, [Arm("again"), Arm("best of 4", search=Search.best_of(4), judge="oracle")], 2, file))
    assert not more.calls


def candidate(seed, target, seconds=2.0, oracle=0.5):
    further = {f"target_{axis}": value for axis, value in zip(("VQ", "MQ", "TA"), target, strict=True)}
    costs = {"cpu_seconds": seconds, "decoding": 0.1, "evaluations": 10.0, "memory_mib": 100.0 + seed}
    return Graded("unguided", 0, "a red circle", seed, (oracle,) * 3, 3.0, {**further, **costs})


def test_the_best_candidate_costs_all_of_them():
    both = [candidate(0, (0.0, 0.0, 1.0), oracle=0.7), candidate(1, (3.0, 0.0, 0.0))]
    by_all = chosen(Arm("b", search=Search.best_of(2, "1:1:1")), both)
    by_text = chosen(Arm("b", search=Search.best_of(2, "0:0:1")), both)
    by_oracle = chosen(Arm("b", search=Search.best_of(2), judge="oracle"), both)
    assert (by_all.seed, by_text.seed, by_oracle.seed) == (1, 0, 0)
    assert by_all.further["evaluations"] == 20
    assert by_all.further["memory_mib"] == 101
    # the reward reads latents, so one of two clips is not decoded
    assert by_all.cost == pytest.approx(2 * 2.0 - 0.1 * 2.0)
    assert by_all.seconds == pytest.approx(2 * 3.0 - 0.1 * 3.0)
    assert by_oracle.cost == 2 * 2.0
    assert by_oracle.by("target") == (0.0, 0.0, 1.0)


def test_sources_differ_in_whatever_changes_the_clips(tmp_path):
    pipe = FakePipe()
    sampler = ArmSampler(pipe, fingerprints={"target": "one"})
    base = Arm("a", RewardGuidance(weights="1:1:1"))
    same = [Arm("b", RewardGuidance(weights="1:1:1")), Arm("c", base.guidance, search=Search.best_of(4))]
    assert {sampler.source(arm) for arm in same} == {sampler.source(base)}
    other = [
        Arm("d", RewardGuidance(weights="1:1:1", damping=2.0)),
        Arm("e", base.guidance, steps=2),
        Arm("f", base.guidance, reward="random"),
        Arm("g", base.guidance, search=Search()),
        Arm("h"),
    ]
    assert len({sampler.source(arm) for arm in (base, *other)}) == 6
    assert ArmSampler(pipe, fingerprints={"target": "two"}).source(base) != sampler.source(base)
    assert sampler.source(Arm("i", RewardGuidance(scale=0))) == sampler.source(Arm("h")) == "unguided"
    assert not sampler.can(Arm("j", reward="clean"))


def test_more_steps_are_a_multiple():
    pipe = FakePipe()
    ArmSampler(pipe, sampling={"num_inference_steps": 10}).sample(Arm("m", steps=1.4), prompts("test")[:2], [4, 5])
    assert pipe.calls[-1][1:] == ([4, 5], {"num_inference_steps": 14, "reward_scale": 0.0})


def test_diversity_is_measured_over_seeds_and_resumed(tmp_path):
    pipe, arms = FakePipe(), [Arm(UNGUIDED), Arm("1:1:1", RewardGuidance())]
    file, two = tmp_path / "diversity.csv", prompts("test")[:2]
    first = list(diversity_of_arms(ArmSampler(pipe), arms, two, file, seeds=3))
    assert [call[1] for call in pipe.calls] == [[0, 1, 2]] * 4
    assert first == list(diversity_of_arms(ArmSampler(FakePipe()), arms, two, file, seeds=3))
    assert [row[:2] for row in first] == [(UNGUIDED, 0), ("1:1:1", 0), (UNGUIDED, 1), ("1:1:1", 1)]


def test_an_unknown_judge_is_refused():
    with pytest.raises(ValueError, match=r"Expected judges from oracle.*, but got jury."):
        panel(["oracle", "jury"])


def test_look_ahead_samples_are_scored_by_a_judge_that_knows_the_prompts_and_are_counted(wan):
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TowardTarget())
    pipe._set_sampling({"closed_vocabulary": False})
    pipe.set_progress_bar_config(disable=True)
    sampling = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 4, "max_sequence_length": 8}
    asked, seen = prompts("test")[:2], []

    def judge(clips, own):
        seen.append((tuple(clips.shape), list(own)))
        return brightness(clips, own)

    sampler = ArmSampler(pipe, sampling=sampling, judges={"pixel": judge})
    looking = Arm("look-ahead", judge="pixel", lookahead=Lookahead(samples=3, steps=2, scale=20.0))
    pulled = sampler.sample(looking, asked, [4, 5])
    plain = sampler.sample(Arm(UNGUIDED), asked, [4, 5])
    assert seen == [((2, 3, 3, 16, 16), asked)] * 3
    assert (pulled.evaluations, plain.evaluations) == (2 * (3 * 2 + 4), 2 * 4)
    assert not torch.equal(pulled.clips, plain.clips)
    sources = {sampler.source(arm) for arm in (looking, replace(looking, judge=None), Arm(UNGUIDED))}
    assert len(sources) == 3
