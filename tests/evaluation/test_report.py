"""The summary of a suite, the document of all, and the contact sheet of the worst cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_clips import FakePipe, clip, grades_of

from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.arms import (
    UNGUIDED,
    Arm,
    weights_suite,
)
from nrg_sampler.evaluation.document import Document, Section
from nrg_sampler.evaluation.report import markdown, summarise
from nrg_sampler.evaluation.worst import contact_sheet, sample_cases, worst_indices
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.search import Search
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import prompts


def test_summary_counts_wins_against_the_unguided_run(tmp_path):
    arms = weights_suite(RewardGuidance())
    summary = summarise("weights", arms, grades_of(FakePipe(), arms, 3, tmp_path / "g.csv"))
    assert summary["n"] == 3
    assert summary["judge"] == "oracle"
    assert len(summary["rows"]) == 4 * (len(arms) - 1)
    assert all(row["win"] == 50.0 and row["gain"] == 0 for row in summary["rows"])  # grey against grey: only ties
    assert "| 1:0:0 | 50.0 [50.0, 50.0]" in markdown(summary)


def test_summary_measures_gains_costs_and_side_effects_against_the_unguided_run():
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)).tolist()
    clips = [clip(UNGUIDED, i, (noise[i], noise[i], 0.5), noise[i], 1.0) for i in range(40)]
    # half a spread more VQ, none of MQ, the target two spreads more, every tenth clip still, half as fast again
    spread = torch.tensor(noise).std().item()
    clips += [
        clip("1:1:1", i, (noise[i] + 0.5 * spread, noise[i], 0.5), noise[i] + 2 * spread, 1.0 if i % 10 else 0.05, 1.5)
        for i in range(40)
    ]
    arms = [Arm(UNGUIDED), Arm("1:1:1", RewardGuidance(weights="1:1:1"))]
    summary = summarise("scale-sweep", arms, clips, diversity={UNGUIDED: {0: 0.2, 1: 0.4}, "1:1:1": {0: 0.1, 1: 0.35}})
    rows = {row["axis"]: row for row in summary["rows"]}
    assert (rows["VQ"]["win"], rows["MQ"]["win"], rows["mean"]["win"]) == (100, 50, 100)
    assert rows["VQ"]["gain"] == pytest.approx(0.5, abs=1e-3)
    assert rows["mean"]["gain"] == pytest.approx(0.5 / 3, abs=1e-3)
    assert rows["VQ"]["target_gain"] == pytest.approx(2, abs=1e-3)
    assert rows["VQ"]["k"] == 1.5
    (about,) = summary["arms"]
    assert about["hacking"] == pytest.approx(1 - (0.5 / 3) / 2, abs=1e-3)
    assert about["gain_per_cost"] == pytest.approx(0.5 / 3 / 0.5, abs=1e-3)
    assert (about["static"], about["unguided_static"], about["network"]) == (10, 0, 1)
    assert about["diversity"] == pytest.approx(0.45 / 0.6, abs=1e-3)
    assert "| 1:1:1 | 2.00 | 1.00 |" in markdown(summary)


def test_sliders_that_work_have_a_rank_correlation_of_one():
    arms = [Arm(UNGUIDED), *(Arm(w, RewardGuidance(weights=w)) for w in ("1:0:0", "0.5:0.5:0", "0:0.5:0.5", "0:0:1"))]
    noise = torch.randn(30, generator=torch.Generator().manual_seed(0)).tolist()
    clips = []
    for arm in arms:
        weights = arm.guidance.weights.resolve(("VQ", "MQ", "TA")) if arm.guidance else (0, 0, 0)
        clips += [clip(arm.name, i, tuple(noise[i] + weight for weight in weights), 0, 1) for i in range(30)]
    sliders = summarise("weights", arms, clips)["sliders"]
    assert all(sliders[axis] == {"rho": 1.0, "low": 1.0, "high": 1.0} for axis in ("VQ", "MQ", "TA"))


def test_the_worst_cases_are_the_largest_losses_by_the_oracle():
    clips = [clip(UNGUIDED, i, (0.1 * i, 0.5, 0.5), 0, 1) for i in range(5)]
    changes = (0.1, -0.3, 0.0, -0.5, 0.2)
    clips += [clip("guided", i, (0.1 * i + changes[i], 0.5, 0.5), 0, 1) for i in range(5) if i != 2]
    assert worst_indices(clips, "guided", UNGUIDED) == [3, 1, 0, 4]
    assert worst_indices(clips, "guided", UNGUIDED, count=1) == [3]


def test_the_contact_sheet_shows_each_pair_with_its_change():
    pipe, asked = FakePipe(), prompts("test")[:4]
    cases = sample_cases(ArmSampler(pipe), Arm("guided", RewardGuidance()), Arm(UNGUIDED), asked, [3, 0, 2], batch=2)
    assert [case.index for case in cases] == [3, 0, 2]
    assert [call[1] for call in pipe.calls] == [[3, 0]] * 2 + [[2]] * 2
    assert all(case.change.eq(0).all() and case.clips.shape == (2, 3, 13, 64, 64) for case in cases)
    sheet = contact_sheet(cases)
    strip = 7 * 64 + 6 * 8  # seven frames and the gaps between them
    assert sheet.dtype == "uint8"
    assert sheet.shape[1] == 2 * strip + 5 * 8
    grey = (sheet == 128).all(axis=2)
    first = slice(8 + 16 + 2, 8 + 16 + 2 + 64)  # below the gap and a line of text
    assert grey[first, 8 : 8 + 64].all()
    assert not grey[first, 8 + 64 : 8 + 72].any()
    assert grey.sum() == pytest.approx(3 * 2 * 7 * 64 * 64, rel=1e-3)
    assert (sheet[:8].min(), sheet[8 : 8 + 16].min()) == (255, 0)  # text above it


def test_the_document_has_every_table_and_picture():
    arms = [
        Arm(UNGUIDED),
        Arm("guided", RewardGuidance(weights="1:1:1")),
        Arm("chosen", search=Search(), judge="pixel"),
    ]
    clips = [clip(arm.name, i, (i / 5, 0.5, 0.5), i, 1) for arm in arms for i in range(4)]
    clips = [replace(c, further={**c.further, **{f"pixel_{axis}": 0.0 for axis in AXES}}) for c in clips]
    summaries = [summarise("rivals", arms, clips, judge) for judge in ("oracle", "pixel")]
    section = Section("rivals", summaries, ["rivals.png"], "Left out 'this'.")
    text = Document({"date": "2000-01-01"}, [section], ("worst.png", 4)).markdown()
    assert "- date: 2000-01-01" in text
    assert "Left out 'this'." in text
    assert "By the oracle, 4 prompts:" in text
    assert "By the pixel judge, 4 prompts:" in text
    assert "![rivals](rivals.png)" in text
    assert "![The 4 worst cases](worst.png)" in text
    oracle, pixel = text.split("By the pixel judge")
    assert "| chosen |" in oracle
    assert "| chosen † |" in pixel
    assert "† Here the pixel judge had a say" in pixel
